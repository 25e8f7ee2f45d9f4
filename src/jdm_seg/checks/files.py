"""Looks at NIfTI headers and at the content of scans: what readers disagree about, and which scans are one."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.checks.findings import Finding
from jdm_seg.layouts.files import Entry
from jdm_seg.volume import Volume

_DISAGREE_MM = 0.1


@dataclass(frozen=True)
class Prints:
    """What a scan is known by again.

    Attributes:
        content: Of the voxels along canonical axes: the same for another file type, compression, number type or axes.
        values: Of how often each value occurs: the same for a flipped copy too.
    """

    content: str
    values: str


def prints_of(scan: Volume) -> Prints:
    """Compute both prints slab by slab; memory stays that of a few slices."""
    array = scan.to_canonical().array
    shape = str(array.shape).encode()
    content = hashlib.blake2b(shape, digest_size=16)
    values = hashlib.blake2b(str(sorted(array.shape)).encode(), digest_size=16)
    counts = np.zeros((2, 1 << 16), np.int64)
    for z in range(array.shape[2]):
        plane = np.ascontiguousarray(array[:, :, z], dtype=np.float32) + np.float32(0)  # -0 becomes 0
        content.update(plane.data)
        bits = plane.view(np.uint32).ravel()
        for row, part in zip(counts, (bits >> 16, bits & 0xFFFF), strict=True):
            row += np.bincount(part, minlength=1 << 16)
    values.update(counts.tobytes())
    return Prints(content.hexdigest(), values.hexdigest())


def check_header(scan: Volume, where: str) -> list[Finding]:
    """Look for what two readers of one header may read differently."""
    header = scan.header
    if header is None:
        return []
    findings = []
    if int(header["qform_code"]) and int(header["sform_code"]):
        distance = _distance_mm(header.get_qform(), header.get_sform(), scan.array.shape)
        if distance > _DISAGREE_MM:
            findings.append(
                Finding(
                    where,
                    "warning",
                    "two_geometries",
                    "The header places the scan in two ways (qform and sform)",
                    "both the same",
                    f"up to {distance:.1f} mm apart; the sform is used here",
                    "let --fix write both alike, if the sform is the right one",
                )
            )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope != 0 and (slope, intercept) != (1.0, 0.0):
        findings.append(
            Finding(
                where,
                "info",
                "stored_scaled",
                "The values are stored with a slope and an intercept",
                "stored as they are",
                f"{slope:g} and {intercept:g}",
                "nothing to do; --fix stores the values themselves for tools that forget to scale",
            )
        )
    return findings


def _distance_mm(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(shape) - 1
    distance = np.abs(corners @ (first - second).T).max()
    return float(distance) if np.isfinite(distance) else np.inf


def check_duplicates(entries: Sequence[Entry], prints: Sequence[Prints | None], names: Sequence[str]) -> list[Finding]:
    """Find scans that are one, by content.

    Args:
        entries: The cases.
        prints: Of each; None where it could not be read.
        names: What findings call each.
    """
    findings = []
    first: dict[str, int] = {}
    for index, known in enumerate(prints):
        if known is None:
            continue
        other = first.setdefault(known.content, index)
        mirrored = False
        if other == index:
            other = first.setdefault(known.values, index)
            mirrored = other != index
        if other == index:
            continue
        apart = entries[index].split != entries[other].split
        findings.append(
            Finding(
                names[index],
                "error" if apart else "warning",
                "duplicate_flipped" if mirrored else "duplicate",
                "The scan occurs twice, mirrored or with axes exchanged" if mirrored else "The scan occurs twice",
                "every scan once" + (", and never in two splits" if apart else ""),
                f"the voxels of {names[other]}" + (f" (in {entries[other].split})" if apart else ""),
                "remove one of the two",
            )
        )
    return findings


def check_subjects(entries: Sequence[Entry], where: str) -> list[Finding]:
    """Find people who are in two splits, and ids that occur twice."""
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        splits[entry.subject_id].setdefault(entry.split, entry.case_id)
    findings = []
    for cases in splits.values():
        if len(cases) > 1:
            findings.append(
                Finding(
                    where,
                    "error",
                    "subject_in_two_splits",
                    "Scans of one person are in two splits",
                    "every person in one split",
                    " and ".join(f"{case} in {split}" for split, case in cases.items()),
                    "split by person: scores on people seen in training are too good",
                )
            )
    return findings
