"""A zone in which nothing counts: where nobody knows, or nobody could see, whether there is calcinosis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.components import LesionVoxels

MOSTLY = 0.5
"""Share of a predicted lesion that must lie outside the zone, and more, before it can be false."""
IGNORE_RULE = (
    "Voxels of the ignore zone leave the reference before lesions are formed. Predicted lesions are formed and grouped "
    "first; then their voxels in the zone leave them, so that volumes, overlaps and distances are of what lies "
    "outside. A predicted lesion that matches nothing is false only if more than half of its voxels lie outside the "
    "zone; else it is left out altogether, with all its voxels."
)
"""Written into every ``summary.json``."""


@dataclass(frozen=True)
class OutsideLesions:
    """The predicted lesions of a mask as far as they lie outside an ignore zone.

    Attributes:
        lesions: Their voxels outside the zone, numbered without gaps; lesions wholly inside are gone.
        excused: Whether half or more of each lay in the zone, shape (count,): such a one is never false.
    """

    lesions: LesionVoxels
    excused: NDArray[np.bool_]

    def without(self, numbers: NDArray[np.bool_]) -> OutsideLesions:
        """Return the others, numbered without gaps.

        Args:
            numbers: True for the lesions to leave out, shape (count,).
        """
        return OutsideLesions(_kept(self.lesions, ~numbers), self.excused[~numbers])


def outside_lesions(lesions: LesionVoxels, ignore: NDArray[np.bool_] | None) -> OutsideLesions:
    """Take the voxels of a zone out of predicted lesions.

    Args:
        lesions: As formed from the whole prediction.
        ignore: The zone, shape (X, Y, Z); None without one.

    Raises:
        ValueError: If the zone has another shape.
    """
    if ignore is None:
        return OutsideLesions(lesions, np.zeros(lesions.count, dtype=bool))
    if ignore.shape != lesions.shape:
        raise ValueError(f"expected an ignore zone of shape {lesions.shape}, but got {ignore.shape}")
    outside = ~ignore[tuple(lesions.indices.T)]
    left = np.bincount(lesions.numbers[outside], minlength=lesions.count + 1)[1:]
    rest = LesionVoxels(lesions.shape, lesions.indices[outside], lesions.numbers[outside])
    excused = left <= MOSTLY * lesions.sizes_vox
    return OutsideLesions(_kept(rest, left > 0), excused[left > 0])


def _kept(lesions: LesionVoxels, kept: NDArray[np.bool_]) -> LesionVoxels:
    """Return the lesions chosen by number, shape (n,) with n at least their count, numbered without gaps."""
    new = np.concatenate([[0], np.cumsum(kept) * kept]).astype(np.int64)
    numbers = new[lesions.numbers]
    chosen = numbers > 0
    return LesionVoxels(lesions.shape, lesions.indices[chosen], numbers[chosen])
