"""Overlap and volume of two masks, and the one policy for empty masks that every metric follows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import bounding_box

EMPTY_POLICY = (
    "A figure is undefined (NaN) only where it would divide nothing by nothing, and is then counted and its cases are "
    "named, never replaced. Overlap scores (dice, surface_dice, cl_dice) are NaN when both masks are empty and 0 when "
    "one is. lesion_recall is NaN without a counted reference lesion, lesion_precision without a true or false "
    "positive, lesion_f1, lesion_dice, recognition_quality and panoptic_quality without any of tp, fp and fn: a false "
    "lesion in a calcinosis-free scan gives 0. segmentation_quality is NaN without a true positive. hd95_mm is NaN "
    "when either mask is empty, since there is no distance to nothing. scan_specificity is 1 or 0 for scans without a "
    "reference lesion and NaN for the others."
)
"""Written into every ``summary.json``. The functions below are the only place that implements it."""


def ratio(numerator: float, denominator: float) -> float:
    """Divide; nothing by nothing is NaN."""
    return numerator / denominator if denominator else math.nan


def empty_score(prediction: NDArray[Any], reference: NDArray[Any], *, one_empty: float) -> float | None:
    """Apply the empty policy before anything is measured.

    Args:
        prediction: Mask or index list; empty when it holds nothing.
        reference: The other side.
        one_empty: Score when exactly one side is empty: 0 for an overlap, NaN for a distance.

    Returns:
        NaN when both are empty, ``one_empty`` when one is, None when the score must be computed.
    """
    has_prediction, has_reference = bool(np.any(prediction)), bool(np.any(reference))
    if has_prediction and has_reference:
        return None
    return one_empty if has_prediction or has_reference else math.nan


def check_same_shape(prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    """Raise unless two masks have one shape.

    Raises:
        ValueError: With both shapes.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"expected masks of one shape, but got {prediction.shape} and {reference.shape}")


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Compute twice the intersection over the sum of sizes.

    Args:
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.

    Returns:
        In [0, 1]; NaN when both masks are empty.

    Raises:
        ValueError: If the shapes differ.

    Source: Dice 1945, Ecology 26:297.
    """
    check_same_shape(prediction, reference)
    box = bounding_box(reference)
    intersection = int(np.count_nonzero(prediction[box] & reference[box]))
    return ratio(2.0 * intersection, int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference)))


def volume_ml(mask: NDArray[np.bool_], voxel_volume_mm3: float) -> float:
    """Return the volume of a mask in mL; 0 when it is empty."""
    return int(np.count_nonzero(mask)) * voxel_volume_mm3 / 1000.0
