"""How lesions are formed, matched and counted: our default, and what others in the field do, by name.

Figures of two protocols are not comparable: the same masks score differently in each. A protocol is written into every
result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from jdm_seg.components import CONNECTIVITIES, CONNECTIVITY, GROUPING_MM, GROUPING_SHAPES
from jdm_seg.errors import InputError

MATCHING_RULES = ("any_overlap", "iou", "centroid")
_ROUNDING = 1e-4
"""Ten voxels of 1 mm³ are 10 mm³, also when a rotated affine makes them 9.99999."""


@dataclass(frozen=True)
class EmptyRule:
    """What a figure is where a protocol departs from our policy for empty cases.

    Attributes:
        when: ``both_empty``, ``reference_empty`` (alone), ``prediction_empty`` (alone), ``nothing_counted`` (neither
            a counted reference lesion nor a false one) or ``nothing_matched`` (no true positive, but something there).
        figure: Its name, as in ``cases.csv``.
        value: What it is then.
    """

    when: str
    figure: str
    value: float

    def __str__(self) -> str:
        """Return the rule in words."""
        return f"{self.figure} is {self.value:g} when {self.when.replace('_', ' ')}"


_BRATS = (
    EmptyRule("both_empty", "dice", 1.0),
    EmptyRule("both_empty", "hd95_mm", 0.0),
    EmptyRule("reference_empty", "hd95_mm", 374.0),
    EmptyRule("prediction_empty", "hd95_mm", 374.0),
    EmptyRule("nothing_counted", "lesion_dice", 1.0),
    EmptyRule("nothing_counted", "lesion_hd95_mm", 0.0),
)
_AUTOPET = tuple(
    EmptyRule(when, figure, math.nan)
    for when in ("both_empty", "reference_empty")
    for figure in ("dice", "false_negative_volume_ml")
)
_PANOPTICA = (
    EmptyRule("reference_empty", "hd95_mm", math.inf),
    EmptyRule("prediction_empty", "hd95_mm", math.inf),
    EmptyRule("nothing_matched", "segmentation_quality", 0.0),
)
EMPTY_RULES: Mapping[str, tuple[EmptyRule, ...]] = MappingProxyType(
    {
        "undefined": (),
        "brats2023": _BRATS,
        "isles22": (EmptyRule("both_empty", "dice", 1.0), EmptyRule("both_empty", "lesion_f1", 1.0)),
        "autopet": _AUTOPET,
        "panoptica": _PANOPTICA,
    }
)
"""By the name of a policy: where it departs from ours (``undefined``), which leaves nothing over nothing NaN."""


@dataclass(frozen=True)
class LesionProtocol:
    """How lesions are formed, matched and counted. Lesions are matched first and filtered by size after.

    Attributes:
        connectivity: 6, 18 or 26 neighbours.
        grouping_mm: Parts that meet after a dilation by this radius are one lesion.
        grouping_shape: ``ball`` or ``cuboctahedron``, see :func:`jdm_seg.components.grouping_steps`.
        group_prediction: Whether the prediction is grouped as well, or the reference alone.
        matching: ``any_overlap``: one shared voxel; ``iou``: intersection over union of at least ``min_iou``;
            ``centroid``: centroids at most ``max_distance_mm`` apart.
        one_to_one: False: every pair that the rule allows is a match, many to many. True: each lesion is in one match
            at most, by the assignment with the largest sum of intersection over union; for ``centroid`` by the one
            with the most matches and, among those, the smallest sum of distances.
        min_iou: For ``iou``.
        max_distance_mm: For ``centroid``.
        match_grown: For ``any_overlap``: a predicted lesion also matches when it only touches the reference lesion
            grown by the grouping radius.
        min_volume_mm3: Smallest reference lesion that counts as found or missed. False lesions count at any size.
        cut_inclusive: Whether a lesion of exactly that volume counts.
        quality_iou: Least intersection over union of the one-to-one pairs behind ``panoptic_quality``.
        missed_hd95_mm: What a missed and a false lesion add to ``lesion_hd95_mm``; None leaves them out.
        empty: Policy for empty cases, a name in :data:`EMPTY_RULES`.
    """

    connectivity: int = CONNECTIVITY
    grouping_mm: float = GROUPING_MM
    grouping_shape: str = "ball"
    group_prediction: bool = True
    matching: str = "any_overlap"
    one_to_one: bool = False
    min_iou: float = 0.5
    max_distance_mm: float = 10.0
    match_grown: bool = False
    min_volume_mm3: float = 10.0
    cut_inclusive: bool = True
    quality_iou: float = 0.5
    missed_hd95_mm: float | None = None
    empty: str = "undefined"

    def __post_init__(self) -> None:
        """Reject what no function implements."""
        for name, known in (
            ("connectivity", CONNECTIVITIES),
            ("grouping_shape", GROUPING_SHAPES),
            ("matching", MATCHING_RULES),
            ("empty", tuple(EMPTY_RULES)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} to be one of {known}, but got {getattr(self, name)!r}")
        for name in ("grouping_mm", "min_volume_mm3", "max_distance_mm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} to be at least 0, but got {getattr(self, name)}")
        for name in ("min_iou", "quality_iou"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"expected {name} to be above 0 and at most 1, but got {getattr(self, name)}")
        if self.match_grown and self.matching != "any_overlap":
            raise ValueError(f"expected matching to be 'any_overlap' with match_grown, but got {self.matching!r}")

    @property
    def name(self) -> str:
        """Its name in :data:`PROTOCOLS`, or ``custom``."""
        return next((name for name, known in PROTOCOLS.items() if known == self), "custom")

    def counted(self, volume_mm3: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which reference lesions are large enough to count, by their volumes, shape (n,)."""
        if self.cut_inclusive:
            return np.asarray(volume_mm3 >= self.min_volume_mm3 * (1 - _ROUNDING))
        return np.asarray(volume_mm3 > self.min_volume_mm3 * (1 + _ROUNDING))


_BRATS_2023 = LesionProtocol(
    grouping_mm=3.0,
    grouping_shape="cuboctahedron",
    group_prediction=False,
    match_grown=True,
    min_volume_mm3=50.0,
    cut_inclusive=False,
    missed_hd95_mm=374.0,
    empty="brats2023",
)
_COMPONENTS = LesionProtocol(grouping_mm=0.0, min_volume_mm3=0.0)
PROTOCOLS: Mapping[str, LesionProtocol] = MappingProxyType(
    {
        "default": LesionProtocol(),
        "brats2023": _BRATS_2023,
        "brats2023_met": replace(_BRATS_2023, grouping_mm=1.0, min_volume_mm3=2.0),
        "isles22": replace(_COMPONENTS, empty="isles22"),
        "autopet": replace(_COMPONENTS, connectivity=18, empty="autopet"),
        "panoptica": replace(_COMPONENTS, matching="iou", one_to_one=True, empty="panoptica"),
    }
)
"""Presets by name.

default: ours. Any overlap after grouping at 1 mm; lesions of at least 10 mm³ count.
brats2023, brats2023_met: the settings of the glioma tasks (GLI, SSA, PED) and of the metastases. The original weighs
    surface elements by area where ours counts surface voxels, so ``lesion_hd95_mm`` agrees to about a voxel; counts
    and ``lesion_dice`` agree exactly on 1 mm grids. Source: rachitsaluja/BraTS-2023-Metrics, ``metrics.py``.
isles22: Source: ezequieldlrosa/isles22, ``utils/eval_utils.py``.
autopet: Source: ClinicalDataScience/autoPETIII, ``evaluation-metrics/evaluation_metrics.py``; it uses Dice and the
    false volumes only.
panoptica: the package's default evaluator, on semantic masks. Source: BrainLesion/panoptica,
    ``configs/panoptica_evaluator_default.yaml``.
"""


def protocol_named(name: str) -> LesionProtocol:
    """Return a preset.

    Raises:
        InputError: Naming those that exist.
    """
    if name not in PROTOCOLS:
        raise InputError(
            "protocol", expected=f"one of {', '.join(PROTOCOLS)}", found=repr(name), remedy="choose one of them"
        )
    return PROTOCOLS[name]


def apply_empty_rules(
    figures: dict[str, float],
    protocol: LesionProtocol,
    *,
    prediction_empty: bool,
    reference_empty: bool,
    tp: int,
    fp: int,
    fn: int,
) -> dict[str, float]:
    """Replace the figures of an empty case where the protocol's policy differs from ours.

    Args:
        figures: Figures of one case.
        protocol: Names the policy.
        prediction_empty: Whether the predicted mask holds nothing.
        reference_empty: Whether the reference mask holds nothing.
        tp: Lesions found, like the next two under the protocol.
        fp: False lesions.
        fn: Missed lesions.

    Returns:
        A copy.
    """
    holds = {
        "both_empty": prediction_empty and reference_empty,
        "reference_empty": reference_empty and not prediction_empty,
        "prediction_empty": prediction_empty and not reference_empty,
        "nothing_counted": tp + fp + fn == 0,
        "nothing_matched": tp == 0 and fp + fn > 0,
    }
    changed = {rule.figure: rule.value for rule in EMPTY_RULES[protocol.empty] if holds[rule.when]}
    return {name: changed.get(name, value) for name, value in figures.items()}
