"""What became of every lesion between two scans of one subject.

Fates:
    new, resolved: no counterpart in the other scan, and large enough that it would have shown there.
    grown, shrunk, stable: one counterpart; changed by more or less than 25 %.
    merged: several lesions at baseline are one at follow-up. split: the reverse.
    uncertain: smaller than what the noisier scan can show, or a change that measurement alone explains.
    out_of_view: the other scan does not show this place.

Size is the mass of calcium where both tube voltages are known, else the volume (by integrated intensity where both
scans allow it). Matching is by assignment, not greedy; lesions left over then join one that lies on them.

Source: bands of ±25 % from Semin Arthritis Rheum 2022, 10.1016/j.semarthrit.2022.151980 (hand radiographs); matching
after registration from Phys Med Biol 2021;66:155017; smallest detectable change 1.96 √2 SEM.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.lesions import Lesion
from jdm_seg.neighbourhood import foreground_indices
from jdm_seg.tracking.correspondence import Group, match_groups
from jdm_seg.tracking.registration import Alignment
from jdm_seg.volume import Volume

BAND = 0.25
FATES = ("new", "resolved", "grown", "shrunk", "stable", "merged", "split", "uncertain", "out_of_view")
REPEATABILITY = 0.05
"""Relative standard error of a size beside noise: position, mask, calibration (assumed, of simulated repeats)."""
_GOOD_CORRELATION = 0.75
"""Assumed: one person's limb, moved, reaches 0.9 and more in the tests; legs of two people reached 0.63."""
_EDGE_SD_VOX = 0.3
"""Without a noise estimate each voxel of a lesion's surface may be in or out by this much (assumed)."""
MEASURES = ("mass_mg_ha", "volume_integrated_mm3", "volume_mm3")

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Timepoint:
    """One measured scan.

    Attributes:
        labels: Lesion numbers on the scan's own grid.
        lesions: Rows of ``lesions.csv``.
        burden: ``burden.json``.
    """

    labels: Volume
    lesions: list[Lesion]
    burden: dict[str, Any]

    @property
    def floor_mm3(self) -> float:
        """The smallest deposit that the scan can show."""
        return float(self.burden["detectability_floor_mm3"])

    def points(self) -> dict[int, Points]:
        """Return the voxel centres of every lesion in RAS mm, by number."""
        indices = foreground_indices(self.labels.array)
        numbers = self.labels.array[tuple(indices.T)]
        world = indices @ self.labels.affine[:3, :3].T + self.labels.affine[:3, 3]
        if not len(numbers):
            return {}
        order = np.argsort(numbers, kind="stable")
        values, starts = np.unique(numbers[order], return_index=True)
        return dict(zip(values.tolist(), np.split(world[order], starts[1:]), strict=True))

    def shows(self, points: Points) -> NDArray[np.bool_]:
        """Tell which RAS points lie in the scan's field of view."""
        inverse = np.linalg.inv(self.labels.affine)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        inside: NDArray[np.bool_] = ((index >= -0.5) & (index <= np.array(self.labels.array.shape) - 0.5)).all(axis=1)
        return inside


@dataclass(frozen=True)
class Change:
    """One row of ``changes.csv``: a lesion, or lesions that merged or split.

    Attributes:
        fate: One of :data:`FATES`.
        baseline: Numbers of its lesions at baseline, joined by spaces; empty for a new one.
        follow_up: The same at follow-up.
        region: Where, like the next two.
        side: The patient's side.
        depth_class: The layer.
        measure: What ``before`` and ``after`` are, one of :data:`MEASURES`.
        before: Size at baseline; 0 for a new one.
        after: Size at follow-up; 0 for a resolved one.
        change: ``after - before``.
        change_percent: Relative to ``before``; None for a new one.
        smallest_detectable_change: Absolute change that measurement alone reaches in 1 of 20 repeats.
        volume_before_mm3: By mask, like the next.
        volume_after_mm3: By mask.
        distance_mm: Between the centres after registration; None without a counterpart.
    """

    fate: str
    baseline: str
    follow_up: str
    region: str
    side: str
    depth_class: str
    measure: str
    before: float
    after: float
    change: float
    change_percent: float | None
    smallest_detectable_change: float
    volume_before_mm3: float
    volume_after_mm3: float
    distance_mm: float | None

    @property
    def numbers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lesion numbers at baseline and at follow-up."""
        before, after = (tuple(int(n) for n in side.split()) for side in (self.baseline, self.follow_up))
        return before, after


CHANGE_COLUMNS = tuple(item.name for item in fields(Change))


def track_lesions(baseline: Timepoint, follow_up: Timepoint, alignment: Alignment) -> list[Change]:
    """Match the lesions of two scans and tell their fates.

    Args:
        baseline: Earlier.
        follow_up: Later.
        alignment: Maps baseline to follow-up.

    Returns:
        One row a group of lesions that belong together, the largest change first.
    """
    before = {number: alignment.map(points) for number, points in baseline.points().items()}
    after = follow_up.points()
    groups = match_groups(before, after)
    measure = common_measure(baseline, follow_up)
    rows = [_change(group, baseline, follow_up, before, after, measure, alignment) for group in groups]
    return sorted(rows, key=lambda row: (-abs(row.change), row.baseline, row.follow_up))


def common_measure(baseline: Timepoint, follow_up: Timepoint) -> str:
    """Return which figure the two scans share, one of :data:`MEASURES`."""
    both = (baseline, follow_up)
    rows = [lesion for scan in both for lesion in scan.lesions]
    voltages_known = all(scan.burden.get("kv") and not scan.burden.get("kv_is_assumed") for scan in both)
    if voltages_known and all(row.mass_mg_ha is not None for row in rows):
        return "mass_mg_ha"
    if all(row.volume_integrated_mm3 is not None and row.density_basis != "mask" for row in rows) and rows:
        return "volume_integrated_mm3"
    return "volume_mm3"


def standard_error(lesion: Lesion, measure: str, voxel_mm3: float) -> float:
    """Return the standard error of one lesion's size: noise, and what repeated scans differ by besides."""
    size = float(getattr(lesion, measure) or 0.0)
    if measure != "volume_mm3" and lesion.volume_sd_mm3 and lesion.volume_integrated_mm3:
        noise = size * lesion.volume_sd_mm3 / lesion.volume_integrated_mm3
    else:
        surface = 4.84 * (lesion.volume_mm3 / voxel_mm3) ** (2 / 3)  # of a ball, in voxel faces
        noise = size * _EDGE_SD_VOX * np.sqrt(surface) * voxel_mm3 / lesion.volume_mm3
    return float(np.hypot(noise, REPEATABILITY * size))


def _change(
    group: Group,
    baseline: Timepoint,
    follow_up: Timepoint,
    before: dict[int, Points],
    after: dict[int, Points],
    measure: str,
    alignment: Alignment,
) -> Change:
    rows = [
        [lesion for lesion in scan.lesions if lesion.lesion in numbers]
        for scan, numbers in zip((baseline, follow_up), group, strict=True)
    ]
    sizes = [sum(float(getattr(row, measure)) for row in side) for side in rows]
    voxels = [scan.labels.grid.voxel_volume_mm3 for scan in (baseline, follow_up)]
    errors = [standard_error(row, measure, voxel) for side, voxel in zip(rows, voxels, strict=True) for row in side]
    # 1.96 √2 SEM of two scans of equal error is 1.96 times the root of the sum of both squares
    detectable = 1.96 * float(np.sqrt(np.sum(np.square(errors))))
    volumes = [sum(row.volume_mm3 for row in side) for side in rows]
    distance = None
    if group[0] and group[1]:
        middles = [
            np.concatenate([side[n] for n in ns]).mean(axis=0) for side, ns in zip((before, after), group, strict=True)
        ]
        distance = float(np.linalg.norm(middles[0] - middles[1]))
    sample = (rows[1] or rows[0])[0]
    return Change(
        fate=_fate(group, sizes, volumes, detectable, (baseline, follow_up), (before, after), alignment),
        baseline=" ".join(map(str, group[0])),
        follow_up=" ".join(map(str, group[1])),
        region=sample.region,
        side=sample.side,
        depth_class=sample.depth_class,
        measure=measure,
        before=sizes[0],
        after=sizes[1],
        change=sizes[1] - sizes[0],
        change_percent=100 * (sizes[1] / sizes[0] - 1) if sizes[0] else None,
        smallest_detectable_change=detectable,
        volume_before_mm3=volumes[0],
        volume_after_mm3=volumes[1],
        distance_mm=distance,
    )


def _fate(
    group: Group,
    sizes: list[float],
    volumes: list[float],
    detectable: float,
    scans: tuple[Timepoint, Timepoint],
    points: tuple[dict[int, Points], dict[int, Points]],
    alignment: Alignment,
) -> str:
    if not group[0] or not group[1]:
        time = 0 if group[0] else 1
        place = np.concatenate([points[time][number] for number in group[time]])
        # where the lesion would lie in the scan that does not show it
        there = place if time == 0 else alignment.unmap(place)
        if scans[1 - time].shows(there).mean() < 0.5:
            return "out_of_view"
        floor = max(scan.floor_mm3 for scan in scans)
        if volumes[time] < floor:
            return "uncertain"
        return "resolved" if time == 0 else "new"
    if len(group[0]) > 1 and len(group[0]) >= len(group[1]):
        return "merged"
    if len(group[1]) > 1:
        return "split"
    return fate_of_pair(sizes[0], sizes[1], detectable)


def fate_of_pair(before: float, after: float, detectable: float) -> str:
    """Tell what became of a lesion with one counterpart.

    Args:
        before: Size, above 0 or the change counts as growth.
        after: Size.
        detectable: Smallest detectable change of the two.

    Returns:
        ``stable`` within ±25 %, the border included; beyond, ``uncertain`` where measurement alone explains it, else
        ``grown`` or ``shrunk``.
    """
    change = after - before
    if abs(change) <= BAND * before * (1 + 1e-9):
        return "stable"
    if abs(change) < detectable:
        return "uncertain"
    return "grown" if change > 0 else "shrunk"


def fates_by_lesion(changes: list[Change]) -> tuple[dict[int, str], dict[int, str]]:
    """Return the fate of every lesion by number, at baseline and at follow-up."""
    sides: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for change in changes:
        for fates, numbers in zip(sides, change.numbers, strict=True):
            fates.update(dict.fromkeys(numbers, change.fate))
    return sides


def summarise(changes: list[Change], baseline: Timepoint, follow_up: Timepoint, alignment: Alignment) -> dict[str, Any]:
    """Return the keys of ``change.json``; what only one scan shows does not count in its totals.

    Args:
        changes: What became of every lesion.
        baseline: The earlier scan.
        follow_up: The later scan.
        alignment: How one lies on the other.
    """
    seen = [change for change in changes if change.fate != "out_of_view"]  # one scan says nothing of the others
    totals = [float(sum(getattr(change, name) for change in seen)) for name in ("before", "after")]
    measure = common_measure(baseline, follow_up)
    error = float(np.sqrt(sum(change.smallest_detectable_change**2 for change in seen)))
    return {
        "schema_version": 1,
        "baseline": baseline.burden["case_id"],
        "follow_up": follow_up.burden["case_id"],
        "modality": baseline.burden["modality"],
        "measure": measure,
        "before": totals[0],
        "after": totals[1],
        "change": totals[1] - totals[0],
        "change_percent": 100 * (totals[1] / totals[0] - 1) if totals[0] else None,
        "smallest_detectable_change": error,
        "volume_change_ml": sum(c.volume_after_mm3 - c.volume_before_mm3 for c in seen) / 1000.0,
        "fates": {fate: sum(change.fate == fate for change in changes) for fate in FATES},
        "detectability_floor_mm3": max(baseline.floor_mm3, follow_up.floor_mm3),
        "registration": {"method": alignment.method, "correlation": alignment.correlation},
        "warnings": _warnings(baseline, follow_up, measure, changes, alignment),
    }


def _warnings(
    baseline: Timepoint, follow_up: Timepoint, measure: str, changes: list[Change], alignment: Alignment
) -> list[str]:
    warnings = []
    methods = [_method(point) for point in (baseline, follow_up)]
    if methods[0] != methods[1]:
        warnings.append(
            f"The baseline was segmented by {methods[0]}, the follow-up by {methods[1]}: what changed may be the "
            "method. Predict both with one model and the same settings."
        )
    unseen = [change for change in changes if change.fate == "out_of_view"]
    if unseen:
        before, after = (sum(getattr(change, name) for change in unseen) for name in ("before", "after"))
        unit = "mg" if measure == "mass_mg_ha" else "mm³"
        warnings.append(
            f"{len(unseen)} of {len(changes)} findings lie where only one scan looked ({before:.0f} {unit} at "
            f"baseline, {after:.0f} {unit} at follow-up). They are in no total."
        )
    if alignment.correlation is None:
        warnings.append(
            "The scans were not given, so lesions were compared in scanner coordinates; a patient who lay differently "
            "makes old lesions look resolved and new. Pass both scans to register them."
        )
    elif alignment.correlation < _GOOD_CORRELATION:
        warnings.append(
            f"The two scans agree poorly after registration (correlation {alignment.correlation:.2f}); check the "
            "figure, and that both scans show the same part of one person, before believing new or resolved lesions."
        )
    if baseline.burden["modality"] == "ct" and measure != "mass_mg_ha":
        warnings.append(
            "Masses cannot be compared because a tube voltage is not known; change is in volume. Predict both scans "
            "again with --kv for a change in mass."
        )
    if measure == "volume_mm3" and baseline.burden["modality"] == "ct":
        warnings.append("Volume by mask depends on noise, voltage and slice thickness; compare like scans only.")
    uncertain = sum(change.fate == "uncertain" for change in changes)
    if uncertain:
        warnings.append(
            f"{uncertain} of {len(changes)} findings are within what measurement or the noisier scan leaves open."
        )
    return warnings


def _method(point: Timepoint) -> str:
    """Return what made a mask, in words."""
    made_by = point.burden.get("prediction")
    if not made_by:
        return "a mask drawn elsewhere"
    name, threshold = made_by.get("model", "an unknown method"), made_by.get("threshold")
    version = str(made_by.get("model_sha256") or "")[:8]
    words = [
        str(name),
        *([version] if version else []),
        *([f"at {threshold:g}"] if threshold is not None else []),
    ]
    return " ".join(words)


def change_rows(changes: list[Change]) -> list[dict[str, Any]]:
    """Return the rows of ``changes.csv``."""
    return [asdict(change) for change in changes]
