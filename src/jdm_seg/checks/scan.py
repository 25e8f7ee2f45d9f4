"""Looks at one scan before work begins: can its values be what they are said to be, and does it show enough body?

Everything is judged on every few voxels (about 4 mm), so a whole body takes well under a second. A finding is an
error only where a result would be meaningless; what merely makes a result worse is a warning in plain words.
Thresholds without a source were chosen on public scans and are assumed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.burden.detectability import estimate_noise_hu
from jdm_seg.cases import as_modality
from jdm_seg.checks.findings import Finding
from jdm_seg.checks.look import Look
from jdm_seg.checks.orientation import suspect_orientation
from jdm_seg.checks.values import check_ct_values, check_stir_values, is_mask
from jdm_seg.volume import Spacing, Volume

NOISE_HU_MAX = 60.0
"""Synthetic CT draws 12 to 45 HU in muscle, and up to 54 is then measured in all soft tissue; beyond is unseen."""
THICKEST_MM: dict[str, float] = {"ct": 5.0, "stir": 7.0}
"""Largest voxel edge that synthetic training data are drawn with."""
_CONTRAST_ML = 80.0
"""Evenly bright volume: five public CTs with contrast have 214 to 682 mL, the others at most 29 (synthetic: 63)."""
_EDGE_SHARE = 0.10
_METAL_ML = 0.3

FloatArray = NDArray[np.float32]


def check_scan(
    scan: Volume,
    modality: str,
    *,
    training_spacing: Spacing | None = None,
    window_mm: Spacing | None = None,
    look: Look | None = None,
) -> list[Finding]:
    """Look at a scan and say what is wrong with it, the worst first.

    Args:
        scan: Any orientation and spacing; HU for ``ct``, magnitudes for ``stir``.
        modality: ``ct`` or ``stir``.
        training_spacing: Voxel size that the model works at in mm, along RAS; None if no model is at hand.
        window_mm: Size of the model's window in mm, along RAS.
        look: :meth:`Look.at` of the same scan, to spare a second one.

    Returns:
        Findings; empty when nothing is the matter. When the values cannot be of the modality, nothing else is looked
        at.

    Raises:
        InputError: For an unknown modality.
    """
    kind = as_modality(modality)
    ends = np.array([scan.array.min(), scan.array.max()], float) if scan.array.size else np.zeros(2)
    constant = _constant(scan, ends)
    if constant:
        return constant
    look = look or Look.at(scan, kind)
    if is_mask(look):
        return look.say(
            "error",
            "mask_not_scan",
            "This is a mask or a label map",
            expected="a scan",
            found=f"only {np.unique(look.array).size} different values, {look.low:g} to {look.high:g}",
            remedy="pass the scan itself",
        )
    values = check_ct_values(look) if kind == "ct" else check_stir_values(look)
    if any(finding.severity == "error" for finding in values):
        return values
    empty = _empty(look) if kind == "ct" else []
    findings = [*values, *empty, *_spacing(look, training_spacing), *_header(scan)]
    if not empty:
        findings += _field_of_view(look, window_mm)
        if kind == "ct":
            findings += [*_noise(look), *_contrast(look), *_metal(look), *_orientation(look)]
        else:
            findings += _fat(look)
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _constant(scan: Volume, ends: NDArray[np.float64]) -> list[Finding]:
    if not np.isfinite(ends).all():
        found, code, reason = "NaN or infinite voxels", "not_finite", "Some values are no numbers"
    elif ends[0] == ends[1]:
        found, code, reason = f"one value, {ends[0]:g}, everywhere", "constant", "The scan shows nothing"
    else:
        return []
    return [Finding(scan.name, "error", code, reason, "a scan", found, "export it again")]


def _empty(look: Look) -> list[Finding]:
    tissue = (look.array > -300) & ~look.is_padding
    share = look.share(tissue)
    # where no body is found, the mask is true everywhere
    if share > 0 and not (look.body.all() and share < 0.2):
        return []
    return look.say(
        "error",
        "no_body",
        "No body is in the scan, at most a table or a holder",
        expected="a body",
        found=f"{share:.1%} of voxels denser than air, none in the shape of a body",
        remedy="check that the right series was exported",
    )


def _fat(look: Look) -> list[Finding]:
    """Compare what lies under the skin with what lies deep: fat must be dark on STIR."""
    depth = ndimage.distance_transform_edt(np.pad(look.body, 1, mode="edge"), sampling=look.spacing)[1:-1, 1:-1, 1:-1]
    rim = look.array[look.body & (depth >= 5) & (depth < 12)]
    deep = look.array[look.body & (depth >= 25) & (depth < 60)]
    if min(rim.size, deep.size) < 500:
        return []
    level, muscle = float(np.median(rim)), float(np.median(deep))
    if level < 2.5 * muscle or level < np.percentile(look.array[look.body], 60):
        return []
    return look.say(
        "warning",
        "fat_bright",
        "What lies under the skin is far brighter than what lies deep, so fat is not suppressed as on STIR",
        expected="fat under the skin no brighter than muscle",
        found=f"{level / max(muscle, 1e-6):.1f} times as bright",
        remedy="check that this series is STIR and not T1 or T2",
    )


def _spacing(look: Look, training: Spacing | None) -> list[Finding]:
    findings = []
    spacing, shape = look.scan.spacing, look.scan.array.shape
    longest, limit = max(spacing), THICKEST_MM[look.modality]
    text = " × ".join(f"{step:.3g}" for step in spacing) + " mm"
    if longest > limit + 0.01:
        against = "" if training is None else f"; the model works at {max(training):.3g} mm"
        findings += look.say(
            "warning",
            "thick",
            "Voxels are longer than any that training used, so small deposits are missed",
            expected=f"at most {limit:g} mm",
            found=text + against,
            remedy="use the series with thinner slices if there is one",
        )
    elif longest > 8 * min(spacing):
        findings += look.say(
            "info",
            "anisotropic",
            "Voxels are much longer than wide",
            expected="a ratio of at most 8",
            found=text,
            remedy="nothing to do; expect coarse shapes",
        )
    if min(shape) < 5:
        findings += look.say(
            "warning",
            "few_slices",
            "So few slices do not show what is a lump and what is a strand",
            expected="5 slices or more",
            found=f"shape {shape}",
            remedy="pass the whole series",
        )
    extent = [n * step for n, step in zip(shape, spacing, strict=True)]
    unit = spacing == (1.0, 1.0, 1.0) and (sorted(shape)[1] >= 400 or min(shape) < 30)
    if unit or max(extent[:2]) > 800 or extent[2] > 2300 or sorted(extent)[1] < 40:
        findings += look.say(
            "warning",
            "size_implausible",
            "The voxel size may not be the true one, and volumes depend on it",
            expected="a field of view of 4 to 80 cm across and at most 230 cm along the patient",
            found=f"{text}, so {' × '.join(f'{length / 10:.0f}' for length in extent)} cm",
            remedy="compare with the scanner's voxel size; 1 × 1 × 1 mm is often a default",
        )
    return findings


def _header(scan: Volume) -> list[Finding]:
    header = scan.header
    if header is None or int(header["qform_code"]) or int(header["sform_code"]):
        return []
    return [
        Finding(
            scan.name,
            "warning",
            "no_orientation",
            "The file does not say how it lies in the patient, so left and right may be exchanged",
            "a qform or sform code",
            "none in the header",
            "convert the scan again from DICOM",
        )
    ]


def _field_of_view(look: Look, window_mm: Spacing | None) -> list[Finding]:
    findings = []
    # closing gaps of dark fat can carry the outline over a narrow rim of air
    level = -300.0 if look.modality == "ct" else 0.3 * float(np.median(look.array[look.body]))
    body = look.body & (look.array > level)
    sides = np.concatenate([body[0].ravel(), body[-1].ravel(), body[:, 0].ravel(), body[:, -1].ravel()])
    share = float(sides.mean())
    if share > _EDGE_SHARE:
        whole = share > 0.99
        findings += look.say(
            "warning",
            "body_cut",
            "The sides of the scan cut the body: deposits beyond them are not counted, and depth under the skin is "
            "unknown there",
            expected="air on all sides",
            found="no air at all" if whole else f"body on {share:.0%} of the sides",
            remedy="use a reconstruction with a larger field of view if there is one",
        )
    if window_mm is not None:
        extent = [n * step for n, step in zip(look.scan.array.shape, look.scan.spacing, strict=True)]
        small = [axis for axis, have, want in zip("xyz", extent, window_mm, strict=True) if have < 0.5 * want]
        if small:
            findings += look.say(
                "info",
                "smaller_than_window",
                "The scan is less than half as large as the window that the model was trained on",
                expected="at least half of " + " × ".join(f"{length:.0f}" for length in window_mm) + " mm",
                found=" × ".join(f"{length:.0f}" for length in extent) + " mm",
                remedy="nothing to do; the model sees less around than it is used to",
            )
    return findings


def _noise(look: Look) -> list[Finding]:
    # differences are taken along x; every few rows along y say the same and need less memory
    array: NDArray[Any] = look.scan.array[:, :: 1 + look.scan.array.shape[1] // 256]
    noise = estimate_noise_hu(array, np.broadcast_to(np.False_, array.shape), look.scan.grid)
    if noise is None or noise <= NOISE_HU_MAX:
        return []
    return look.say(
        "warning",
        "noisy",
        "The scan is noisier than any that training used: expect false lesions and missed ones",
        expected=f"a noise of at most {NOISE_HU_MAX:.0f} HU in soft tissue",
        found=f"{noise:.0f} HU",
        remedy="use a softer kernel or thicker slices if there is such a series",
    )


def _contrast(look: Look) -> list[Finding]:
    """Find volumes that are bright and even: enhanced blood, kidneys, bladder, bowel. Bone is bright and uneven."""
    mean = ndimage.uniform_filter(look.array, 3)
    square = ndimage.uniform_filter(look.array * look.array, 3)
    even = (mean > 140) & (mean < 600) & (square - mean * mean < 45.0**2) & look.body
    volume = float(even.sum()) * float(np.prod(look.spacing)) / 1000
    if volume < _CONTRAST_ML:
        return []
    return look.say(
        "info",
        "contrast",
        "The scan seems to be contrast-enhanced: vessels, kidneys, bladder or bowel as bright as deposits",
        expected="a scan without contrast",
        found=f"{volume:.0f} mL evenly bright at 140 to 600 HU",
        remedy="look at lesions near vessels and bowel",
    )


def _metal(look: Look) -> list[Finding]:
    volume = float((look.array > 2500).sum()) * float(np.prod(look.spacing)) / 1000
    if volume < _METAL_ML:
        return []
    return look.say(
        "info",
        "metal",
        "There is metal (or teeth) in the scan; its streaks can look like deposits",
        expected="nothing denser than 2500 HU",
        found=f"{volume:.1f} mL",
        remedy="look at lesions near it",
    )


def _orientation(look: Look) -> list[Finding]:
    suspicion = suspect_orientation(look.array, look.body, look.spacing)
    if suspicion is None:
        return []
    return look.say(
        "warning",
        "orientation_suspected",
        f"The scan may be {suspicion.what}",
        expected=suspicion.expected,
        found=suspicion.found,
        remedy="compare with the scanner's own view; the header of the file may be wrong",
    )
