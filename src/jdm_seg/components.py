"""Lesions as lists of voxels: which voxels of a mask belong together, without an array the size of the scan.

Terms:
    lesion: one connected component of the mask after a small dilation that bridges gaps (``grouping_mm``), restricted
        to the mask. Sheets break into pieces on a voxel grid; without grouping their count means little.

Cost follows the number of lesion voxels and, for finding components, the box around all of them: 5 bytes a voxel of
that box, and about 100 bytes a lesion voxel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from jdm_seg.neighbourhood import ROUNDING_MM, Indices, ball_steps, dilation, foreground_indices
from jdm_seg.volume import Spacing

CONNECTIVITY = 26
GROUPING_MM = 1.0
CONNECTIVITIES = (6, 18, 26)
GROUPING_SHAPES = ("ball", "cuboctahedron")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LesionVoxels:
    """The numbered voxels of one mask.

    Attributes:
        shape: Of the mask, (X, Y, Z).
        indices: The lesion voxels, shape (N, 3), in C order.
        numbers: Lesion of each of them, 1 to ``count``, shape (N,).
    """

    shape: Shape
    indices: Indices
    numbers: NDArray[np.int64]

    @classmethod
    def from_labels(cls, labels: NDArray[Any]) -> LesionVoxels:
        """List the voxels of a label array.

        Args:
            labels: Shape (X, Y, Z), 0 outside, lesions numbered 1 to n.

        Raises:
            ValueError: If a number between 1 and n has no voxels: it would count as a lesion.
        """
        indices = foreground_indices(labels)
        lesions = cls(labels.shape, indices, labels[tuple(indices.T)].astype(np.int64))
        if not lesions.sizes_vox.all():
            raise ValueError(f"expected lesions numbered 1 to n without gaps, but got {np.unique(lesions.numbers)}")
        return lesions

    @cached_property
    def count(self) -> int:
        """The largest lesion number; 0 without lesions."""
        return int(self.numbers.max(initial=0))

    @cached_property
    def sizes_vox(self) -> NDArray[np.int64]:
        """Voxels of each lesion, shape (count,); entry 0 belongs to lesion 1."""
        return np.bincount(self.numbers, minlength=self.count + 1)[1:]

    def centroids(self) -> NDArray[np.float64]:
        """Return the mean index of each lesion, shape (count, 3)."""
        sums = [np.bincount(self.numbers, axis, self.count + 1)[1:] for axis in self.indices.T]
        return np.asarray(np.stack(sums, axis=1) / self.sizes_vox[:, None], dtype=np.float64)

    def at(self, indices: Indices) -> NDArray[np.int64]:
        """Return the lesion at each index of shape (M, 3); 0 where there is none."""
        if not len(self.indices) or not len(indices):
            return np.zeros(len(indices), dtype=np.int64)
        mine, asked = (np.ravel_multi_index(tuple(side.T), self.shape) for side in (self.indices, indices))
        place = np.minimum(np.searchsorted(mine, asked), len(mine) - 1)
        return np.where(mine[place] == asked, self.numbers[place], 0)

    def parts(self, chosen: NDArray[np.bool_] | None = None) -> list[Indices]:
        """Return the voxels of each lesion, all or those ``chosen`` (N,): ``count`` arrays of shape (n, 3)."""
        indices, numbers = self.indices, self.numbers
        if chosen is not None:
            indices, numbers = indices[chosen], numbers[chosen]
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=self.count + 1)[1:])
        return np.split(indices[order], ends[:-1]) if self.count else []


@dataclass(frozen=True)
class LesionRule:
    """Which of the lesions that a model finds are kept.

    A single voxel over the threshold, or a shadow that never becomes likely, is more often noise than a deposit.

    Attributes:
        min_volume_mm3: Smaller ones are dropped.
        min_peak: Those whose most probable voxel is below this are dropped; 0 to 1.
    """

    min_volume_mm3: float = 0.0
    min_peak: float = 0.0

    @property
    def keeps_all(self) -> bool:
        """Whether there is nothing to drop."""
        return self.min_volume_mm3 <= 0 and self.min_peak <= 0

    def kept(self, lesions: LesionVoxels, probability: NDArray[Any], spacing: Spacing) -> NDArray[np.bool_]:
        """Tell which lesions stay, shape (count,).

        Args:
            lesions: All of them.
            probability: Of each lesion voxel, shape (N,).
            spacing: Voxel size in mm.
        """
        peak = np.zeros(lesions.count + 1)
        np.maximum.at(peak, lesions.numbers, probability)
        large = lesions.sizes_vox * float(np.prod(spacing)) >= self.min_volume_mm3 * (1 - 1e-6)
        sure: NDArray[np.bool_] = large & (peak[1:] >= self.min_peak)
        return sure

    def clear(self, mask: NDArray[np.bool_], probability: Any, spacing: Spacing) -> None:
        """Drop lesions from a mask, in place.

        Args:
            mask: Shape (X, Y, Z).
            probability: Of the same shape; only asked for at the voxels of the mask.
            spacing: Voxel size in mm.
        """
        if self.keeps_all or not mask.any():
            return
        lesions = find_lesions(mask, spacing)
        kept = self.kept(lesions, probability[tuple(lesions.indices.T)], spacing)
        mask[tuple(lesions.indices[~kept[lesions.numbers - 1]].T)] = False


def find_lesions(
    mask: NDArray[Any],
    spacing: Spacing,
    *,
    connectivity: int = CONNECTIVITY,
    grouping_mm: float = GROUPING_MM,
    grouping_shape: str = "ball",
) -> LesionVoxels:
    """Find the lesions of a mask, the largest first.

    A lesion is a connected component of the mask dilated by a ball (every voxel whose centre lies within
    ``grouping_mm`` of a foreground voxel's centre), restricted to the mask. Foreground that far apart that the dilated
    parts do not touch stays separate.

    Args:
        mask: Foreground, shape (X, Y, Z); non-zero counts.
        spacing: Voxel size in mm.
        connectivity: 6, 18 or 26 neighbours.
        grouping_mm: Radius of the dilation; 0 gives plain components.
        grouping_shape: ``ball``, or ``cuboctahedron``: what BraTS dilates by, see :func:`grouping_steps`.

    Returns:
        Lesions numbered 1 to n by falling volume, ties by the first voxel in C order.

    Raises:
        ValueError: For another connectivity or shape, or a negative radius.

    Source: grouping before counting as in BraTS 2023 lesion-wise evaluation (rachitsaluja/BraTS-2023-Metrics).
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"expected connectivity to be one of {CONNECTIVITIES}, but got {connectivity}")
    steps = grouping_steps(grouping_mm, spacing, grouping_shape)
    indices = foreground_indices(mask)
    if len(indices) == 0:
        return LesionVoxels(mask.shape, indices, np.zeros(0, dtype=np.int64))
    dilated, origin = dilation(indices, steps)
    components = cc3d.connected_components(dilated, connectivity=connectivity, binary_image=True)
    return LesionVoxels(mask.shape, indices, _by_falling_volume(components[tuple((indices - origin).T)]))


def grow_lesions(
    lesions: LesionVoxels,
    spacing: Spacing,
    *,
    connectivity: int = CONNECTIVITY,
    grouping_mm: float = GROUPING_MM,
    grouping_shape: str = "ball",
) -> LesionVoxels:
    """Grow each lesion by the radius it was grouped with; grown voxels beyond the scan are dropped.

    Args:
        lesions: From :func:`find_lesions` with the same settings: two grown lesions do not touch then.
        spacing: Voxel size in mm.
        connectivity: As there, like the next two.
        grouping_mm: Radius.
        grouping_shape: ``ball`` or ``cuboctahedron``.
    """
    if not lesions.count:
        return lesions
    dilated, origin = dilation(lesions.indices, grouping_steps(grouping_mm, spacing, grouping_shape))
    components = cc3d.connected_components(dilated, connectivity=connectivity, binary_image=True)
    number_of = np.zeros(int(components.max()) + 1, dtype=np.int64)
    number_of[components[tuple((lesions.indices - origin).T)]] = lesions.numbers
    cells = foreground_indices(dilated)
    numbers = number_of[components[tuple(cells.T)]]
    cells += origin
    inside = ((cells >= 0) & (cells < lesions.shape)).all(axis=1)
    return LesionVoxels(lesions.shape, cells[inside], numbers[inside])


def grouping_steps(grouping_mm: float, spacing: Spacing, grouping_shape: str = "ball") -> Indices:
    """Return the steps of a dilation, shape (K, 3).

    A cuboctahedron of radius n holds every step of at most n along each axis and 2 n along all three together: the
    18-neighbourhood dilated n times on a 1 mm grid, as in BraTS. On other grids it has the same size in mm.

    Raises:
        ValueError: For a negative radius or another shape.
    """
    if grouping_mm < 0:
        raise ValueError(f"expected grouping_mm to be at least 0, but got {grouping_mm}")
    if grouping_shape not in GROUPING_SHAPES:
        raise ValueError(f"expected grouping_shape to be one of {GROUPING_SHAPES}, but got {grouping_shape!r}")
    if grouping_shape == "ball":
        return ball_steps(grouping_mm, spacing)
    reach = [int((grouping_mm + ROUNDING_MM) // step) for step in spacing]
    box = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))), dtype=np.int64)
    inside: Indices = box[np.abs(box * np.array(spacing)).sum(axis=1) <= 2 * grouping_mm + ROUNDING_MM]
    return inside


def _by_falling_volume(components: NDArray[Any]) -> NDArray[np.int64]:
    """Renumber the component of each foreground voxel (in C order) by falling size, ties by first voxel."""
    counts = np.bincount(components)
    first = np.zeros(len(counts), dtype=np.int64)
    first[components[::-1]] = np.arange(len(components))[::-1]  # the last one written stays: no sort of all voxels
    order = np.lexsort((first, -counts))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)  # numbers without voxels come last and are never asked for
    numbers: NDArray[np.int64] = rank[components]
    return numbers
