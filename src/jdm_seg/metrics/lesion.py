"""Detection of lesions: found, missed and false, counted lesion by lesion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.lesions import (
    CONNECTIVITIES,
    CONNECTIVITY,
    GROUPING_MM,
    LesionMatches,
    label_lesions,
    lesion_volumes_mm3,
    match_lesions,
)
from jdm_seg.metrics.voxel import check_same_shape, ratio
from jdm_seg.volume import Spacing

MATCHING_RULES = ("any_overlap",)
_ROUNDING = 1e-4
"""Ten voxels of 1 mm³ are 10 mm³, also when a rotated affine makes them 9.99999."""


@dataclass(frozen=True)
class LesionProtocol:
    """How lesions are formed, matched and counted. Written into every result.

    Attributes:
        connectivity: 6, 18 or 26 neighbours.
        grouping_mm: Parts that meet after a dilation by this radius are one lesion.
        matching: ``any_overlap``: one shared voxel is a match, many to many.
        min_volume_mm3: Smallest reference lesion that counts as found or missed. False lesions count at any size.
    """

    connectivity: int = CONNECTIVITY
    grouping_mm: float = GROUPING_MM
    matching: str = "any_overlap"
    min_volume_mm3: float = 10.0

    def __post_init__(self) -> None:
        """Reject what no function below implements."""
        if self.connectivity not in CONNECTIVITIES:
            raise ValueError(f"expected connectivity to be one of {CONNECTIVITIES}, but got {self.connectivity}")
        if self.matching not in MATCHING_RULES:
            raise ValueError(f"expected matching to be one of {MATCHING_RULES}, but got {self.matching!r}")
        for name in ("grouping_mm", "min_volume_mm3"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} to be at least 0, but got {getattr(self, name)}")


@dataclass(frozen=True)
class LesionCounts:
    """Found, false and missed lesions of one case, or of several added up.

    Attributes:
        tp: Counted reference lesions that some predicted voxel touches.
        fp: Predicted lesions that touch no reference lesion of any size.
        fn: Counted reference lesions that no predicted voxel touches.
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
class MatchedLesions:
    """Both sides of one case after matching, before counting.

    Attributes:
        prediction_mm3: Volume of each predicted lesion; entry 0 is lesion 1.
        reference_mm3: Volume of each reference lesion.
        prediction_hits: Whether each predicted lesion touches a reference lesion.
        reference_found: Whether each reference lesion is touched.
        matches: The pairs.
    """

    prediction_mm3: NDArray[np.float64]
    reference_mm3: NDArray[np.float64]
    prediction_hits: NDArray[np.bool_]
    reference_found: NDArray[np.bool_]
    matches: LesionMatches

    def counted(self, protocol: LesionProtocol) -> NDArray[np.bool_]:
        """Tell which reference lesions are large enough to count."""
        return self.reference_mm3 >= protocol.min_volume_mm3 * (1 - _ROUNDING)

    def count(self, protocol: LesionProtocol) -> LesionCounts:
        """Count after matching, so that a small lesion can be a match although it cannot be a miss."""
        counted = self.counted(protocol)
        return LesionCounts(
            tp=int((counted & self.reference_found).sum()),
            fp=int((~self.prediction_hits).sum()),
            fn=int((counted & ~self.reference_found).sum()),
        )

    @property
    def false_positive_ml(self) -> float:
        """Volume of the predicted lesions that touch no reference lesion, in mL (as in autoPET)."""
        return float(self.prediction_mm3[~self.prediction_hits].sum()) / 1000.0

    @property
    def false_negative_ml(self) -> float:
        """Volume of the reference lesions that are not touched, in mL, whatever their size (as in autoPET)."""
        return float(self.reference_mm3[~self.reference_found].sum()) / 1000.0


def match_labels(
    prediction_labels: NDArray[Any], reference_labels: NDArray[Any], voxel_volume_mm3: float
) -> MatchedLesions:
    """Match two label arrays from :func:`~jdm_seg.lesions.label_lesions`, shape (X, Y, Z) each."""
    matches = match_lesions(prediction_labels, reference_labels)
    prediction_mm3 = lesion_volumes_mm3(prediction_labels, voxel_volume_mm3)
    reference_mm3 = lesion_volumes_mm3(reference_labels, voxel_volume_mm3)
    hits, found = np.zeros(len(prediction_mm3), dtype=bool), np.zeros(len(reference_mm3), dtype=bool)
    hits[matches.predictions - 1] = True
    found[matches.references - 1] = True
    return MatchedLesions(prediction_mm3, reference_mm3, hits, found, matches)


def count_lesions(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Spacing,
    protocol: LesionProtocol | None = None,
) -> LesionCounts:
    """Count found, missed and false lesions in one case.

    Lesions are matched first and filtered by size after. A predicted lesion is false only if it touches no reference
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
    check_same_shape(prediction, reference)
    protocol = LesionProtocol() if protocol is None else protocol
    labels = [
        label_lesions(mask, spacing, connectivity=protocol.connectivity, grouping_mm=protocol.grouping_mm)
        for mask in (prediction, reference)
    ]
    return match_labels(labels[0], labels[1], float(np.prod(spacing))).count(protocol)
