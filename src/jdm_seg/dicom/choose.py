"""Which series of a study a model should see, with the reason in words.

CT: the scan that covers most of the body; among equals an original one, 1 to 3 mm slices, a soft kernel, no contrast.
STIR: MR with an inversion pulse that nulls fat. Series that follow each other along the body are joined as stations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jdm_seg.cases import Modality
from jdm_seg.dicom.series import Series
from jdm_seg.dicom.stations import are_stations, gap_mm, joining_axis, lie_end_to_end
from jdm_seg.errors import InputError

THICKNESS_MM = (1.0, 3.0)
"""Thinner slices are noisy, thicker ones average small deposits away (assumed)."""
STIR_TI_MS = (80.0, 260.0)
"""Inversion times that null fat between 0.3 and 3 T (T1 of fat 140 to 370 ms times ln 2; see ``physics.FAT_T1_MS``)."""
_NEARLY = 0.9
"""Coverage from this share of the largest on counts as the same (assumed)."""
_SHARP = re.compile(r"LUNG|BONE|EDGE|SHARP|ULTRA|DETAIL|HR\b|^Y[A-F]|^FC(3[0-9]|5[0-9]|8[0-9])")
"""Kernels by name: GE, Philips and Canon (vendors' naming; the cut is assumed)."""
_SIEMENS = re.compile(r"^[A-Z][A-Z]?(\d\d)")
_SIEMENS_SHARP = 50
_STIR_NAME = re.compile(r"STIR|TIRM|FAT ?SUP.*IR|SHORT ?TI")
_NOT_STIR_NAME = re.compile(r"FLAIR|MPRAGE|DIXON.*(FAT|OPP)")


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        series: One series, or stations to join.
        reason: Why these, and why not the others, in words.
    """

    series: tuple[Series, ...]
    reason: str


def choose_series(found: Sequence[Series], modality: Modality, wanted: str | None = None) -> Choice:
    """Choose the series for a model.

    Args:
        found: Every series of one study.
        modality: ``ct`` or ``stir``.
        wanted: Numbers of the listing or series instance UIDs, several joined by commas as stations; overrides.

    Raises:
        InputError: If nothing fits, or ``wanted`` names nothing.
    """
    if wanted:
        return _wanted(found, wanted)
    aside = {one.number: reason for one in found if (reason := _why_not(one, modality)) is not None}
    candidates = [one for one in found if one.number not in aside]
    if not candidates:
        raise InputError(
            "DICOM",
            expected=f"a series of {'CT' if modality == 'ct' else 'STIR MR'}",
            found="; ".join(f"series {number}: {reason}" for number, reason in aside.items()) or "none",
            remedy="point at another folder, or name one with --series",
        )
    groups = _chains(candidates)
    tallest = max(_height(group) for group in groups)
    ranked = sorted(groups, key=lambda group: _rank(group, tallest, modality))
    best = ranked[0]
    others = [f"{_names(group)} left: {_difference(group, best, tallest, modality)}" for group in ranked[1:]]
    others += [f"series {number} left: {reason}" for number, reason in aside.items()]
    return Choice(tuple(best), "; ".join([f"{_names(best)} read: {_in_words(best)}", *others]))


def _wanted(found: Sequence[Series], wanted: str) -> Choice:
    series: list[Series] = []
    for name in (part.strip() for part in wanted.split(",")):
        named = [one for one in found if name == str(one.number) or (name == one.uid and name)]
        if not named:
            raise InputError(
                "--series",
                expected=f"a number from 1 to {len(found)} or a series instance UID of this study",
                found="another one",
                remedy="list the series with jdm-seg check",
            )
        # the parts of one DICOM series: the largest stands for it
        series.append(max(named, key=lambda one: (one.set_aside is None, len(one.frames))))
    return Choice(tuple(series), f"{_names(series)} read, as asked")


def _why_not(series: Series, modality: Modality) -> str | None:
    if series.set_aside is not None:
        return series.set_aside
    if series.modality != ("CT" if modality == "ct" else "MR"):
        return f"modality {series.modality or 'not stated'}"
    if series.spacing is None:
        return "no slice distance"
    if modality == "stir":
        return None if stir_evidence(series) else "no sign of STIR (name, or inversion time that nulls fat)"
    return None


def stir_evidence(series: Series) -> int:
    """Return how many signs say that an MR series is STIR: its name, and an inversion time that nulls fat; 0 to 2."""
    if _NOT_STIR_NAME.search(series.hints):
        return 0
    time = series.acquisition.inversion_time_ms
    nulls_fat = time is not None and STIR_TI_MS[0] <= time <= STIR_TI_MS[1]
    if time is not None and not nulls_fat:
        return 0
    return int(bool(_STIR_NAME.search(series.hints))) + int(nulls_fat)


def is_sharp(kernel: str | None) -> bool | None:
    """Tell whether a CT kernel is sharp (lung, bone); None where the header does not name one."""
    if kernel is None:
        return None
    name = kernel.upper()
    siemens = _SIEMENS.match(name)
    if siemens and not name.startswith("FC"):
        return int(siemens.group(1)) >= _SIEMENS_SHARP
    return bool(_SHARP.search(name))


def _chains(candidates: Sequence[Series]) -> list[list[Series]]:
    """Group series that follow each other along the body and were made alike; every other stands alone."""
    chains: list[list[Series]] = []
    for one in sorted(candidates, key=lambda series: series.number):
        for chain in chains:
            follows = any(lie_end_to_end(one, other) for other in chain)
            fits = all(_alike(one, other) and (lie_end_to_end(one, other) or _apart(one, other)) for other in chain)
            if follows and fits:
                chain.append(one)
                break
        else:
            chains.append([one])
    return chains


def _place(series: Series) -> tuple[float, int]:
    """Order along the body, so that a chain grows from one end."""
    return (float(series.frames[0].position[2]) if series.frames[0].position else 0.0), series.number


def _alike(first: Series, second: Series) -> bool:
    facts = [(one.acquisition.kernel, one.acquisition.scanning_sequence, one.image_type[:3]) for one in (first, second)]
    steps = [one.step_mm or 0.0 for one in (first, second)]
    return facts[0] == facts[1] and max(steps) <= 2 * min(steps) and are_stations(first, second) is None


def _apart(first: Series, second: Series) -> bool:
    return gap_mm(first, second, joining_axis([first, second])) > 0


def _height(group: Sequence[Series]) -> float:
    if len(group) == 1:
        return group[0].height_mm
    axis = abs(group[0].frames[0].directions[:, 2]).argmax()
    low = min(float(one.box_mm[axis, 0]) for one in group)
    return max(float(one.box_mm[axis, 1]) for one in group) - low


def _rank(group: Sequence[Series], tallest: float, modality: Modality) -> tuple[float, ...]:
    """Return a key that is smallest for the best group."""
    first = group[0]
    height = _height(group)
    evidence = 0 if modality == "ct" else -min(stir_evidence(one) for one in group)
    covered = height if height < _NEARLY * tallest else tallest
    return (
        evidence,
        -covered,
        float(_is_derived(first)),
        _thickness_penalty(first),
        float(bool(is_sharp(first.acquisition.kernel))),
        float(bool(first.acquisition.contrast_agent)),
        -sum(len(one.frames) for one in group),
        first.number,
    )


def _is_derived(series: Series) -> bool:
    return "DERIVED" in series.image_type or "SECONDARY" in series.image_type or "MPR" in series.image_type


def _thickness_penalty(series: Series) -> float:
    """Return how far the slices are from the wanted thickness; thick ones cost more than thin ones."""
    step = series.acquisition.slice_thickness_mm or series.step_mm or THICKNESS_MM[0]
    low, high = THICKNESS_MM
    return round(step - high if step > high else (low - step) if step < low else 0.0, 2)


def _difference(group: Sequence[Series], best: Sequence[Series], tallest: float, modality: Modality) -> str:
    """Say in words the first thing in which a group is worse than the best."""
    first = group[0]
    words = (
        "fewer signs of STIR",
        f"covers {_height(group):.0f} mm only",
        "derived, not original",
        f"slices of {first.acquisition.slice_thickness_mm or first.step_mm or 0:g} mm",
        f"sharp kernel {first.acquisition.kernel}",
        "contrast agent given",
        "fewer slices",
        "listed later",
    )
    keys = zip(_rank(group, tallest, modality), _rank(best, tallest, modality), words, strict=True)
    return next(word for mine, theirs, word in keys if mine != theirs)


def _names(group: Sequence[Series]) -> str:
    return "series " + " and ".join(str(one.number) for one in group)


def _in_words(group: Sequence[Series]) -> str:
    first = group[0]
    facts = [
        f"{_height(group):.0f} mm from head to foot",
        f"{sum(len(one.frames) for one in group)} {first.orientation} slices {first.step_mm or 0:.3g} mm apart",
    ]
    sharp = is_sharp(first.acquisition.kernel)
    if sharp is not None:
        facts.append(f"{'sharp' if sharp else 'soft'} kernel {first.acquisition.kernel}")
    if len(group) > 1:
        facts.append(f"{len(group)} stations to join")
    return ", ".join(facts)
