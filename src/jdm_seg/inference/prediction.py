"""What every method of segmentation gives, a network or not; a batch knows no more of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jdm_seg.cases import Modality
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Spacing, Volume


@dataclass(frozen=True)
class ScanPrediction:
    """A segmented scan.

    Attributes:
        mask: True where calcinosis is predicted, on the scan's own grid and axes.
        probability: Probability at the voxels of the mask, or at more where asked for, on the same grid; float16.
            None from a method that has none.
        seconds: Wall time of each stage.
        notes: What a reader of the result should know.
    """

    mask: NDArray[np.bool_]
    probability: SparseArray | None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingGrid:
    """What a network saw when it was trained.

    Attributes:
        spacing: Voxel size in mm, along RAS.
        window_mm: Size of its window in mm, along RAS.
        caution: What its results should be read with; empty if nothing stands out.
    """

    spacing: Spacing
    window_mm: Spacing
    caution: str = ""


class Segmenter(Protocol):
    """A method, loaded once, for any number of scans."""

    @property
    def modality(self) -> Modality:
        """What it segments."""

    @property
    def training(self) -> TrainingGrid | None:
        """What it was trained on, for warnings about other scans; None where nothing was trained."""

    def describe(self) -> dict[str, Any]:
        """Return what was asked and what runs, for ``run.json``; another value makes a result another one."""

    def __call__(self, scan: Volume) -> ScanPrediction:
        """Segment one scan of any orientation and spacing."""
