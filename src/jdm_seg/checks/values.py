"""Can the values of a scan be what they are said to be: CT numbers in HU, or MR magnitudes?

Thresholds were chosen on the public scans that the tests name, and are assumed.
"""

from __future__ import annotations

import numpy as np

from jdm_seg.checks.findings import Finding
from jdm_seg.checks.look import LOWEST_HU, Look
from jdm_seg.physics import HU_MAX

_AIR_OR_FAT_SHARE = 0.005
_FAT_HU = -50
_PLAUSIBLE_SHARE = 0.4
"""At least so much of a CT is air, lung, fat or soft tissue; phase images and shifted values are not."""
_AIR_HU_MAX = -850.0
_CUT_SHARE = 0.002
"""So many voxels at the very largest value: cut there (bone and noise reach their peak in single voxels)."""


def is_mask(look: Look) -> bool:
    """Tell whether the values are those of a mask or a label map."""
    whole = look.scan.array.dtype.kind in "iub" or bool(np.array_equal(look.array, np.rint(look.array)))
    return whole and look.low >= 0 and look.high <= 255 and np.unique(look.array).size <= 8


def check_ct_values(look: Look) -> list[Finding]:
    """Judge whether the values are CT numbers in HU."""
    array, found = look.array, f"values from {look.low:g} to {look.high:g}"
    expected = "CT numbers in HU, with air or fat below -50"

    def refuse(code: str, reason: str, remedy: str, seen: str = found) -> list[Finding]:
        return look.say("error", code, reason, expected=expected, found=seen, remedy=remedy)

    if look.share(array < _FAT_HU) < _AIR_OR_FAT_SHARE:
        return refuse(*_why_not_hu(look))
    soft = look.share((array > -300) & (array < 400))
    if soft < 0.1 and look.share(array < -1500) > 0.2:
        return refuse(
            "rescaled_twice",
            "The values lie about 1000 below CT numbers",
            "export it again with the rescale intercept applied once",
        )
    plausible = look.share(((array > -1100) & (array < -700)) | ((array > -200) & (array < 200)))
    if plausible < _PLAUSIBLE_SHARE:
        return refuse(
            "not_hu",
            "The values are not those of a CT",
            "check that this is CT, and that the rescale slope and intercept were applied",
            f"{found}, only {plausible:.0%} of them air, fat or soft tissue",
        )
    return [*_cut(look), *_air(look)]


def _why_not_hu(look: Look) -> tuple[str, str, str]:
    """Return code, reason and remedy for values that hold neither air nor fat."""
    whole = look.scan.array.dtype.kind in "iu" or bool(np.array_equal(look.array, np.rint(look.array)))
    water = float(((look.array > 850) & (look.array < 1200)).sum()) / max(1, int((look.array > 300).sum()))
    if look.low > -200 and look.high > 1000 and water > 0.5:
        return (
            "rescale_forgotten",
            "The values look like CT numbers plus 1000 or 1024",
            "apply the rescale intercept (usually -1024), or export the scan again",
        )
    if look.low >= 0 and look.high <= 255 and whole:
        return (
            "picture",
            "The values are the grey levels of a picture, 0 to 255",
            "export the original scan: CT numbers cannot be regained from a window",
        )
    if look.high - look.low <= 20:
        return (
            "normalised",
            "The values have been normalised, or are no CT (PET uptake, a probability)",
            "pass the original scan in HU",
        )
    return (
        "not_hu",
        "Nothing is as dark as air or fat",
        "check that this is CT, that the rescale slope and intercept were applied, and that nothing was cut at 0",
    )


def _cut(look: Look) -> list[Finding]:
    """Find ranges that were cut by a display window."""
    findings = []
    at_top = look.share(look.array >= look.high)
    if look.high < 1000 and at_top > _CUT_SHARE:
        findings += look.say(
            "error" if look.high <= 130 else "warning",
            "cut_above",
            f"Everything over {look.high:g} HU has been cut off, so the density and mass of deposits are too low",
            expected=f"CT numbers up to bone, at best to {HU_MAX}",
            found=f"{at_top:.1%} of voxels at {look.high:g} HU",
            remedy="export the scan without a window",
        )
    at_bottom = look.share(look.array <= look.low)
    if look.low > -500 and at_bottom > 0.05:
        findings += look.say(
            "warning",
            "cut_below",
            "Air has been cut off, so the skin cannot be found",
            expected="air near -1000 HU",
            found=f"{at_bottom:.0%} of voxels at {look.low:g} HU",
            remedy="export the scan without a window",
        )
    return findings


def _air(look: Look) -> list[Finding]:
    """Compare the darkest things outside the body with -1000 HU."""
    outside = look.array[~look.body & ~look.is_padding]
    findings = []
    if outside.size > 0.1 * look.array.size:
        dark, middle = (float(value) for value in np.percentile(outside, (1, 50)))
        if dark > _AIR_HU_MAX or middle < LOWEST_HU:
            findings += look.say(
                "warning",
                "air_offset",
                "Air does not have the CT number of air, so other CT numbers may be wrong too",
                expected="air near -1000 HU",
                found=f"{dark if dark > _AIR_HU_MAX else middle:.0f} HU",
                remedy="check the rescale slope and intercept",
            )
    padded = float(look.is_padding.mean())
    if padded > 0.01:
        findings += look.say(
            "info",
            "padding",
            "Around the scanner's round field of view the scan is padded",
            expected="padding taken as air, as is done",
            found=f"{padded:.0%} of voxels at {look.low:g}",
            remedy="nothing to do",
        )
    return findings


def check_stir_values(look: Look) -> list[Finding]:
    """Judge whether the values are MR magnitudes."""
    array, found = look.array, f"values from {look.low:g} to {look.high:g}"
    expected = "MR magnitudes, 0 or more"
    air, body = look.share(array < -200), look.share((array > -200) & (array < 200))
    if air > 0.05 and look.low < -900 and air + body > _PLAUSIBLE_SHARE:
        return look.say(
            "error",
            "ct_not_mr",
            "The values are CT numbers",
            expected=expected,
            found=found,
            remedy="choose the CT model for this scan",
        )
    top = max(1e-6, float(np.percentile(np.abs(array), 99)))
    # resampling rings: a few slightly negative values are no other kind of image
    if look.share(array < -0.1 * top) > 0.01:
        return look.say(
            "error",
            "not_magnitude",
            "The values are not magnitudes (a phase image, or normalised)",
            expected=expected,
            found=f"{found}, {look.share(array < 0):.0%} of them negative",
            remedy="pass the magnitude image as the scanner gave it",
        )
    findings = []
    water = look.share((array > 850) & (array < 1200))
    if look.scan.array.dtype.kind in "iu" and look.low == 0 and water > 0.5 * look.share(array > 300) > 0.1:
        findings += look.say(
            "warning",
            "ct_suspected",
            "The values look like CT numbers plus 1000 or 1024",
            expected=expected,
            found=f"{water:.0%} of values between 850 and 1200",
            remedy="check that this is MR",
        )
    if look.scan.array.dtype.kind in "iu" and look.low >= 0 and look.high <= 255:
        findings += look.say(
            "warning" if look.high == 255 else "info",
            "eight_bit",
            "The scan holds no more grey levels than a picture",
            expected="the scanner's own values, usually of more than 8 bits",
            found=found,
            remedy="export the original scan if this came from a screen or a PNG",
        )
    return findings
