"""Which predicted lesion matches which reference lesion, by the rules of a protocol.

Two steps: the rule names candidate pairs, each with a score; then either all of them are matches (many to many), or an
assignment picks among them so that no lesion is matched twice. Nothing here grows with lesions times volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from jdm_seg.components import LesionVoxels, grow_lesions
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.neighbourhood import ROUNDING_MM
from jdm_seg.volume import Grid

_SLACK = 1e-9
"""Half of ten voxels is five, also in floating point."""

FloatArray = NDArray[np.float64]
Pairs = NDArray[np.int64]
"""Shape (P, 2): prediction number, reference number; sorted, each pair once."""


@dataclass(frozen=True)
class Overlaps:
    """Which predicted lesions share voxels with which reference lesions, and how much.

    Attributes:
        pairs: Shape (P, 2).
        shared_vox: Voxels that each pair shares, shape (P,).
        prediction_vox: Size of each predicted lesion, shape (n_prediction,).
        reference_vox: Size of each reference lesion, shape (n_reference,).
    """

    pairs: Pairs
    shared_vox: NDArray[np.int64]
    prediction_vox: NDArray[np.int64]
    reference_vox: NDArray[np.int64]

    def iou(self) -> FloatArray:
        """Return intersection over union of each pair, shape (P,)."""
        both = self.prediction_vox[self.pairs[:, 0] - 1] + self.reference_vox[self.pairs[:, 1] - 1]
        return np.asarray(self.shared_vox / (both - self.shared_vox), dtype=np.float64)

    def of(self, pairs: Pairs) -> NDArray[np.int64]:
        """Return the voxels shared by other pairs, shape (Q,); 0 where they do not overlap."""
        base = len(self.reference_vox) + 1
        known, asked = (side[:, 0] * base + side[:, 1] for side in (self.pairs, pairs))
        if not len(known):
            return np.zeros(len(pairs), dtype=np.int64)
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        return np.where(known[place] == asked, self.shared_vox[place], 0)


def find_overlaps(prediction: LesionVoxels, reference: LesionVoxels) -> Overlaps:
    """Count the voxels that each pair of lesions shares.

    Raises:
        ValueError: If the masks have different shapes.
    """
    pairs, shared = _touching(prediction, reference)
    return Overlaps(pairs, shared, prediction.sizes_vox, reference.sizes_vox)


def match_pairs(
    prediction: LesionVoxels, reference: LesionVoxels, overlaps: Overlaps, grid: Grid, protocol: LesionProtocol
) -> Pairs:
    """Match lesions by the rule of a protocol.

    Args:
        prediction: Predicted lesions.
        reference: Reference lesions.
        overlaps: Of the two.
        grid: Where both lie.
        protocol: Names the rule.

    Returns:
        The matched pairs, sorted.
    """
    if protocol.matching == "centroid":
        pairs, distances = _near_centroids(prediction, reference, grid, protocol.max_distance_mm)
        # any extra pair outweighs all distances together
        reward = min(prediction.count, reference.count) + 1.0
        scores = reward - distances / max(protocol.max_distance_mm, ROUNDING_MM)
        return assign(pairs, scores) if protocol.one_to_one else pairs
    if protocol.matching == "iou":
        return pairs_by_iou(overlaps, protocol.min_iou, one_to_one=protocol.one_to_one)
    if not protocol.match_grown:
        return assign(overlaps.pairs, overlaps.iou()) if protocol.one_to_one else overlaps.pairs
    grown = grow_lesions(
        reference,
        grid.spacing,
        connectivity=protocol.connectivity,
        grouping_mm=protocol.grouping_mm,
        grouping_shape=protocol.grouping_shape,
    )
    pairs, touched = _touching(prediction, grown)
    if not protocol.one_to_one:
        return pairs
    shared = overlaps.of(pairs)
    union = prediction.sizes_vox[pairs[:, 0] - 1] + reference.sizes_vox[pairs[:, 1] - 1] - shared
    # pairs that touch only the grown lesion come last
    return assign(pairs, shared / union + _SLACK * touched / touched.max(initial=1))


def pairs_by_iou(overlaps: Overlaps, min_iou: float, *, one_to_one: bool) -> Pairs:
    """Return the pairs whose intersection over union is at least ``min_iou``, all or the best assignment of them."""
    iou = overlaps.iou()
    enough = iou >= min_iou - _SLACK
    return assign(overlaps.pairs[enough], iou[enough]) if one_to_one else overlaps.pairs[enough]


def assign(pairs: Pairs, scores: FloatArray) -> Pairs:
    """Choose pairs so that no lesion is in two of them and the sum of scores is largest.

    The candidates fall into groups that share no lesion; each is solved on its own (Hungarian method), so the cost
    follows the size of the largest group and not the number of all lesions.

    Args:
        pairs: Candidates, shape (P, 2), sorted.
        scores: Above 0, shape (P,).

    Returns:
        The chosen pairs, sorted.
    """
    if not len(pairs):
        return pairs
    n_prediction = int(pairs[:, 0].max()) + 1
    size = n_prediction + int(pairs[:, 1].max()) + 1
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1] + n_prediction)), (size, size))
    group = connected_components(links, directed=False)[1][pairs[:, 0]]
    order = np.argsort(group, kind="stable")
    chosen = []
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members) == 1:
            chosen.append(members)
            continue
        rows, row = np.unique(pairs[members, 0], return_inverse=True)
        columns, column = np.unique(pairs[members, 1], return_inverse=True)
        gain, member = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
        gain[row, column], member[row, column] = scores[members], members
        picked = member[linear_sum_assignment(gain, maximize=True)]
        chosen.append(picked[picked >= 0])
    return pairs[np.sort(np.concatenate(chosen))]


def _touching(prediction: LesionVoxels, reference: LesionVoxels) -> tuple[Pairs, NDArray[np.int64]]:
    if prediction.shape != reference.shape:
        raise ValueError(f"expected masks of one shape, but got {prediction.shape} and {reference.shape}")
    numbers = reference.at(prediction.indices)
    touched = numbers > 0
    base = reference.count + 1  # one number a pair: unique rows would sort twenty times slower
    codes, shared = np.unique(prediction.numbers[touched] * base + numbers[touched], return_counts=True)
    return np.stack([codes // base, codes % base], axis=1), shared.astype(np.int64)


def _near_centroids(
    prediction: LesionVoxels, reference: LesionVoxels, grid: Grid, max_distance_mm: float
) -> tuple[Pairs, FloatArray]:
    if not prediction.count or not reference.count:
        return np.zeros((0, 2), dtype=np.int64), np.zeros(0)
    points = [side.centroids() @ grid.affine[:3, :3].T for side in (prediction, reference)]
    trees = [KDTree(side) for side in points]
    near = trees[0].query_ball_tree(trees[1], max_distance_mm + ROUNDING_MM)
    pairs = np.array([(i, j) for i, row in enumerate(near) for j in sorted(row)], dtype=np.int64).reshape(-1, 2)
    distances = np.linalg.norm(points[0][pairs[:, 0]] - points[1][pairs[:, 1]], axis=1)
    return pairs + 1, np.asarray(distances, dtype=np.float64)
