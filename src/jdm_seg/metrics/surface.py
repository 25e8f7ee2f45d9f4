"""Distance between outlines, and overlap of skeletons for sheets.

Distances are searched between surface voxels only, so their cost follows the lesions' surface and not the box around
all of them, which in a whole-body scan is the whole body.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.morphology import skeletonize

from jdm_seg.body_mask import bounding_box
from jdm_seg.metrics.voxel import check_same_shape, empty_score, ratio
from jdm_seg.neighbourhood import HERE, ROUNDING_MM, dilation, foreground_indices, on_surface
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
    decided = empty_score(prediction, reference, one_empty=0.0)
    if decided is not None:
        return SurfaceDistances(np.zeros(0), np.zeros(0), decided)
    points = [_surface_mm(mask, spacing) for mask in (prediction, reference)]
    trees = [KDTree(side) for side in points]
    return SurfaceDistances(trees[1].query(points[0])[0], trees[0].query(points[1])[0])


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
    prediction_line, reference_line = skeleton(prediction), skeleton(reference)
    precision = ratio(int((prediction_line & reference).sum()), int(prediction_line.sum()))
    recall = ratio(int((reference_line & prediction).sum()), int(reference_line.sum()))
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
    box = bounding_box(mask)
    view = result[box]
    parts = cc3d.connected_components(np.ascontiguousarray(mask[box]), connectivity=26, binary_image=True)
    for number, part_box in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[part_box] == number
        thin = skeletonize(part) if part.size > 1 else part
        if not thin.any():
            depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
            thin = depth == depth.max()
        view[part_box] |= thin
    return result


def _surface_mm(mask: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.float64]:
    indices = foreground_indices(mask)
    padded, origin = dilation(indices, HERE)
    return np.asarray(indices[on_surface(padded, indices - origin)] * np.array(spacing), dtype=np.float64)
