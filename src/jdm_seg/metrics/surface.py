"""Distance between outlines, and overlap of skeletons for sheets.

Distances are searched between surface voxels only, so their cost follows the lesions' surface and not the box around
all of them, which in a whole-body scan is the whole body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.morphology import skeletonize

from jdm_seg.components import LesionVoxels, find_lesions
from jdm_seg.metrics.lesion import MatchedLesions
from jdm_seg.metrics.voxel import check_same_shape, empty_score, ratio
from jdm_seg.neighbourhood import HERE, ROUNDING_MM, Indices, dilation, foreground_indices, on_surface
from jdm_seg.volume import Spacing


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from each surface voxel of one mask to the nearest surface voxel of the other.

    A surface voxel is a foreground voxel with a background face neighbour; beyond the array is background.

    Attributes:
        from_prediction: Shape (N,); empty when either mask is.
        from_reference: Shape (M,); empty when either mask is.
        decided: Score of an overlap where the empty policy decides it; None when both masks hold something.
    """

    from_prediction: NDArray[np.float64]
    from_reference: NDArray[np.float64]
    decided: float | None = None

    def dice(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces that lies within a tolerance of the other, see :func:`surface_dice`."""
        if self.decided is not None:
            return self.decided
        near = sum(int((d <= tolerance_mm + ROUNDING_MM).sum()) for d in (self.from_prediction, self.from_reference))
        return ratio(near, len(self.from_prediction) + len(self.from_reference))

    def hausdorff(self, percentile: float) -> float:
        """Return the larger of the two directed percentiles in mm; NaN when either mask is empty."""
        if self.decided is not None:
            return float("nan")
        return float(max(np.percentile(d, percentile) for d in (self.from_prediction, self.from_reference)))


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Spacing
) -> SurfaceDistances:
    """Measure both directed surface distances.

    Args:
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.
        spacing: Voxel size in mm.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(prediction, reference)
    points = []
    for mask in (prediction, reference):
        indices = foreground_indices(mask)
        points.append(indices[on_outline(indices)] * np.array(spacing))
    return distances_between(points[0], points[1])


def distances_between(prediction_mm: NDArray[np.float64], reference_mm: NDArray[np.float64]) -> SurfaceDistances:
    """Measure both directed distances between two sets of points in mm, shape (N, 3) and (M, 3)."""
    decided = empty_score(np.ones(len(prediction_mm)), np.ones(len(reference_mm)), one_empty=0.0)
    if decided is not None:
        return SurfaceDistances(np.zeros(0), np.zeros(0), decided)
    trees = [KDTree(side) for side in (prediction_mm, reference_mm)]
    return SurfaceDistances(trees[1].query(prediction_mm)[0], trees[0].query(reference_mm)[0])


def on_outline(indices: Indices) -> NDArray[np.bool_]:
    """Tell which voxels of a mask, given by all their indices, shape (N, 3), have a background face neighbour."""
    if not len(indices):
        return np.zeros(0, dtype=bool)
    padded, origin = dilation(indices, HERE)
    return on_surface(padded, indices - origin)


def surface_dice(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Spacing, *, tolerance_mm: float
) -> float:
    """Compute the share of both surfaces that lies within a tolerance of the other.

    Args:
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.
        spacing: Voxel size in mm.
        tolerance_mm: Largest distance that counts as agreement.

    Returns:
        In [0, 1]; NaN when both masks are empty, 0 when one is.

    Raises:
        ValueError: If the shapes differ.

    Source: Nikolov et al. 2021, JMIR 23:e26151, on surface voxels (no area weights), as in MONAI.
    """
    return surface_distances(prediction, reference, spacing).dice(tolerance_mm)


def hd95(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Spacing) -> float:
    """Compute the 95th percentile of the Hausdorff distance: the larger of both directed percentiles, as in MONAI.

    Args:
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.
        spacing: Voxel size in mm.

    Returns:
        Distance in mm; NaN when either mask is empty.

    Raises:
        ValueError: If the shapes differ.
    """
    return surface_distances(prediction, reference, spacing).hausdorff(95.0)


def lesion_hd95(prediction: LesionVoxels, reference: LesionVoxels, matched: MatchedLesions, spacing: Spacing) -> float:
    """Compute the mean over lesions of :func:`hd95` between a reference lesion and all that is matched to it.

    Args:
        prediction: Predicted lesions.
        reference: Reference lesions.
        matched: Of the two.
        spacing: Voxel size in mm.

    Returns:
        Mean in mm over the counted reference lesions that are matched. Missed and false lesions have no distance: they
        add ``protocol.missed_hd95_mm`` each, or are left out where that is None. NaN when nothing is left.

    Source: lesion-wise HD95 of BraTS 2023, on surface voxels.
    """
    outlines = [
        [part * np.array(spacing) for part in side.parts(on_outline(side.indices))] for side in (prediction, reference)
    ]
    partners: dict[int, list[NDArray[np.float64]]] = {}
    for i, j in matched.pairs[matched.counted[matched.pairs[:, 1] - 1]].tolist():
        partners.setdefault(j, []).append(outlines[0][i - 1])
    distances = [
        distances_between(np.concatenate(points), outlines[1][j - 1]).hausdorff(95.0) for j, points in partners.items()
    ]
    counts = matched.count()
    missed = matched.protocol.missed_hd95_mm
    if missed is not None:
        distances += [missed] * (counts.fp + counts.fn)
    return ratio(sum(distances), len(distances))


def cl_dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Compute the harmonic mean of how much of each skeleton lies in the other mask; made for sheets and strands.

    Args:
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.

    Returns:
        In [0, 1]; NaN when both masks are empty, 0 when one is.

    Raises:
        ValueError: If the shapes differ.

    Source: Shit et al. 2021, CVPR, clDice; skeleton by Lee et al. 1994, kept non-empty as :func:`skeleton` says.
    """
    check_same_shape(prediction, reference)
    decided = empty_score(prediction, reference, one_empty=0.0)
    if decided is not None:
        return decided
    precision = float(reference[tuple(_skeleton_indices(prediction).T)].mean())
    recall = float(prediction[tuple(_skeleton_indices(reference).T)].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def skeleton(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin each 26-connected part to lines, one part at a time: parts do not influence each other's skeleton.

    scikit-image's thinning deletes some even-sized blocks altogether (2×2×2 and 4×4×4 voxels, for example). Such a
    part keeps its deepest voxels instead, so that every part has a skeleton and a perfect prediction scores 1.

    Args:
        mask: Shape (X, Y, Z).

    Returns:
        Mask of the same shape, a subset of ``mask``.
    """
    result = np.zeros_like(mask, dtype=bool)
    result[tuple(_skeleton_indices(mask).T)] = True
    return result


def _skeleton_indices(mask: NDArray[np.bool_]) -> Indices:
    """Return the indices of the skeleton, shape (N, 3)."""
    lines: list[Indices] = [np.zeros((0, 3), dtype=np.int64)]
    for indices in find_lesions(mask, (1.0, 1.0, 1.0), connectivity=26, grouping_mm=0.0).parts():
        origin = indices.min(axis=0)
        part = np.zeros(indices.max(axis=0) + 1 - origin, dtype=bool)
        part[tuple((indices - origin).T)] = True
        thin = skeletonize(part) if part.size > 1 else part
        if not thin.any():
            depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
            thin = depth == depth.max()
        lines.append(np.argwhere(thin) + origin)
    return np.concatenate(lines)
