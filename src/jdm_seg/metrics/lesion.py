"""Detection of lesions: found, missed and false, counted lesion by lesion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jdm_seg.components import LesionVoxels, find_lesions
from jdm_seg.metrics.matching import FloatArray, Overlaps, Pairs, find_overlaps, match_pairs, pairs_by_iou
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.metrics.voxel import check_same_shape, ratio
from jdm_seg.volume import Grid, Spacing


@dataclass(frozen=True)
class LesionCounts:
    """Found, false and missed lesions of one case, or of several added up.

    Attributes:
        tp: Counted reference lesions that are matched.
        fp: Predicted lesions that match no reference lesion of any size.
        fn: Counted reference lesions that are not matched.
    """

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float:
        """``tp / (tp + fp)``; NaN when both are 0."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """``tp / (tp + fn)``; NaN when both are 0."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """``2 tp / (2 tp + fp + fn)``; NaN when there is nothing to find and nothing was found."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class PanopticQuality:
    """How well lesions are recognised and how well the recognised ones are outlined, one to one.

    Attributes:
        segmentation: SQ: mean intersection over union of the true positives; NaN without any.
        recognition: RQ: F1 of the pairs; NaN when there is nothing to find and nothing was found.
        panoptic: PQ: their product, which is 0 without a true positive; NaN where RQ is.
    """

    segmentation: float
    recognition: float
    panoptic: float


@dataclass(frozen=True)
class MatchedLesions:
    """Both sides of one case after matching, before counting.

    Attributes:
        protocol: What it was matched by.
        overlaps: Shared voxels, whatever the matching rule.
        pairs: The matches, shape (P, 2): prediction number, reference number.
        voxel_volume_mm3: Volume of one voxel.
        excused: Predicted lesions that are never false, shape (n_prediction,), see :mod:`jdm_seg.metrics.ignore`; None
            without an ignore zone.
    """

    protocol: LesionProtocol
    overlaps: Overlaps
    pairs: Pairs
    voxel_volume_mm3: float
    excused: NDArray[np.bool_] | None = None

    @property
    def prediction_mm3(self) -> FloatArray:
        """Volume of each predicted lesion; entry 0 is lesion 1."""
        return np.asarray(self.overlaps.prediction_vox * self.voxel_volume_mm3, dtype=np.float64)

    @property
    def reference_mm3(self) -> FloatArray:
        """Volume of each reference lesion."""
        return np.asarray(self.overlaps.reference_vox * self.voxel_volume_mm3, dtype=np.float64)

    @property
    def prediction_hits(self) -> NDArray[np.bool_]:
        """Whether each predicted lesion is matched."""
        return _member(self.pairs[:, 0], len(self.overlaps.prediction_vox))

    @property
    def prediction_false(self) -> NDArray[np.bool_]:
        """Whether each predicted lesion is false: not matched, and not excused."""
        missed = ~self.prediction_hits
        return missed if self.excused is None else missed & ~self.excused

    @property
    def reference_found(self) -> NDArray[np.bool_]:
        """Whether each reference lesion is matched."""
        return _member(self.pairs[:, 1], len(self.overlaps.reference_vox))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Whether each reference lesion is large enough to count."""
        return self.protocol.counted(self.reference_mm3)

    def count(self) -> LesionCounts:
        """Count after matching, so that a small lesion can be a match although it cannot be a miss."""
        counted, found = self.counted, self.reference_found
        return LesionCounts(
            tp=int((counted & found).sum()),
            fp=int(self.prediction_false.sum()),
            fn=int((counted & ~found).sum()),
        )

    def rematched(self, min_iou: float, *, one_to_one: bool) -> MatchedLesions:
        """Return the same lesions matched by intersection over union."""
        protocol = replace(self.protocol, matching="iou", min_iou=min_iou, one_to_one=one_to_one, match_grown=False)
        pairs = pairs_by_iou(self.overlaps, min_iou, one_to_one=one_to_one)
        return replace(self, protocol=protocol, pairs=pairs)

    def quality(self) -> PanopticQuality:
        """Compute SQ, RQ and PQ from one-to-one pairs of at least ``protocol.quality_iou``.

        Reference lesions too small to count are left out with the predictions matched to them.

        Source: Kirillov et al. 2019, CVPR, Panoptic Segmentation; instance matching as in panoptica.
        """
        matched = self.rematched(self.protocol.quality_iou, one_to_one=True)
        of_counted = matched.pairs[self.counted[matched.pairs[:, 1] - 1]]
        shared = self.overlaps.of(of_counted)
        sizes = self.overlaps.prediction_vox[of_counted[:, 0] - 1] + self.overlaps.reference_vox[of_counted[:, 1] - 1]
        total = float((shared / (sizes - shared)).sum())
        counts = matched.count()
        return PanopticQuality(
            segmentation=ratio(total, counts.tp),
            recognition=counts.f1,
            panoptic=ratio(total, counts.tp + 0.5 * (counts.fp + counts.fn)),
        )

    def dice_by_reference(self) -> FloatArray:
        """Return Dice of each reference lesion and all predicted lesions matched to it; 0 where there is none."""
        n = len(self.overlaps.reference_vox)
        numbers = self.pairs[:, 1]
        shared = np.bincount(numbers, self.overlaps.of(self.pairs), n + 1)[1:]
        predicted = np.bincount(numbers, self.overlaps.prediction_vox[self.pairs[:, 0] - 1], n + 1)[1:]
        return np.asarray(2.0 * shared / (predicted + self.overlaps.reference_vox), dtype=np.float64)

    def mean_dice(self) -> float:
        """Return the mean of :meth:`dice_by_reference` over counted lesions and false ones, which add 0.

        NaN with neither. Source: lesion-wise Dice of BraTS 2023.
        """
        counted = self.counted
        return ratio(float(self.dice_by_reference()[counted].sum()), int(counted.sum()) + self.count().fp)

    @property
    def false_positive_ml(self) -> float:
        """Volume of the predicted lesions that match no reference lesion, in mL (as in autoPET)."""
        return float(self.prediction_mm3[self.prediction_false].sum()) / 1000.0

    @property
    def false_negative_ml(self) -> float:
        """Volume of the reference lesions that are not matched, in mL, whatever their size (as in autoPET)."""
        return float(self.reference_mm3[~self.reference_found].sum()) / 1000.0


def find_both(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Spacing, protocol: LesionProtocol
) -> tuple[LesionVoxels, LesionVoxels]:
    """Find the lesions of both masks, shape (X, Y, Z) each, as a protocol forms them.

    Args:
        prediction: Foreground found.
        reference: Foreground of the reference.
        spacing: Voxel size in mm.
        protocol: Connectivity and grouping, and whether predictions are grouped too.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(prediction, reference)
    grouping_mm = protocol.grouping_mm if protocol.group_prediction else 0.0
    predicted, expected = (
        find_lesions(
            mask,
            spacing,
            connectivity=protocol.connectivity,
            grouping_mm=radius,
            grouping_shape=protocol.grouping_shape,
        )
        for mask, radius in ((prediction, grouping_mm), (reference, protocol.grouping_mm))
    )
    return predicted, expected


def match_lesions(
    prediction: LesionVoxels, reference: LesionVoxels, grid: Grid, protocol: LesionProtocol
) -> MatchedLesions:
    """Match the lesions of two masks.

    Args:
        prediction: Predicted lesions.
        reference: Reference lesions, on the same grid.
        grid: That grid.
        protocol: How they are matched.

    Raises:
        ValueError: If the shapes differ.
    """
    overlaps = find_overlaps(prediction, reference)
    pairs = match_pairs(prediction, reference, overlaps, grid, protocol)
    return MatchedLesions(protocol, overlaps, pairs, grid.voxel_volume_mm3)


def count_lesions(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Spacing,
    protocol: LesionProtocol | None = None,
) -> LesionCounts:
    """Count found, missed and false lesions in one case.

    Lesions are matched first and filtered by size after. A predicted lesion is false only if it matches no reference
    lesion of *any* size; a reference lesion below ``min_volume_mm3`` is neither found nor missed. So a perfect
    prediction scores 1 whatever its small lesions.

    Args:
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.
        spacing: Voxel size in mm.
        protocol: Connectivity, grouping, matching and size cut; default :class:`LesionProtocol`.

    Returns:
        Counts; ``f1`` is NaN when there is nothing to find and nothing was found.

    Raises:
        ValueError: If the shapes differ.

    Source: Maier-Hein et al., Metrics Reloaded, Nat. Methods 2024; match-then-filter as in BraTS-2023 metrics.
    """
    protocol = LesionProtocol() if protocol is None else protocol
    x, y, z = reference.shape
    grid = Grid((x, y, z), np.diag([*spacing, 1.0]))
    return match_lesions(*find_both(prediction, reference, spacing, protocol), grid, protocol).count()


def _member(numbers: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    flags = np.zeros(count, dtype=bool)
    flags[numbers - 1] = True
    return flags
