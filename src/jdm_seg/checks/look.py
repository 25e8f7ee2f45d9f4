"""A coarse look at a scan: every few voxels, enough to judge the whole of it in well under a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import outline_body
from jdm_seg.cases import Modality
from jdm_seg.checks.findings import Finding, Severity
from jdm_seg.volume import Spacing, Volume

LOOK_MM, LOOK_VOXELS = 4.0, 700_000
"""Voxel size of the look, coarser where it would hold more voxels than this."""
LOWEST_HU = -1100.0
"""Lower values are padding, not CT numbers."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """A coarse look at a scan, canonical axes.

    Attributes:
        scan: The scan, canonical.
        modality: What it is said to be.
        array: Every few voxels, float32, shape (x, y, z).
        spacing: Of :attr:`array` in mm.
        strides: Voxels of the scan from sample to sample, along each axis.
        low: Smallest value of the whole scan.
        high: Largest value of the whole scan.
    """

    scan: Volume
    modality: Modality
    array: FloatArray
    spacing: Spacing
    strides: tuple[int, int, int]
    low: float
    high: float

    @classmethod
    def at(cls, scan: Volume, modality: Modality) -> Look:
        """Sample a scan of any orientation."""
        canonical = scan.to_canonical()
        shape = canonical.array.shape
        volume_mm3 = float(np.prod(canonical.spacing)) * canonical.array.size
        step_mm = max(LOOK_MM, (volume_mm3 / LOOK_VOXELS) ** (1 / 3))
        # a slab of few slices is looked at in more than one of them
        strides = [max(1, min(round(step_mm / s), n // 8)) for s, n in zip(canonical.spacing, shape, strict=True)]
        coarse = canonical.array[tuple(slice(None, None, stride) for stride in strides)].astype(np.float32)
        x, y, z = (stride * step for stride, step in zip(strides, canonical.spacing, strict=True))
        ends = float(scan.array.min()), float(scan.array.max())
        steps = strides[0], strides[1], strides[2]
        return cls(canonical, modality, np.ascontiguousarray(coarse), (x, y, z), steps, *ends)

    @cached_property
    def body(self) -> NDArray[np.bool_]:
        """Body, shape (x, y, z); all true when none is found."""
        return outline_body(self.array, self.spacing, self.modality)

    @cached_property
    def is_padding(self) -> NDArray[np.bool_]:
        """What lies below any CT number and repeats one value: outside the scanner's round field of view."""
        lowest = np.float32(self.low)
        if lowest > LOWEST_HU:
            return np.zeros(self.array.shape, bool)
        return np.asarray(self.array == lowest)

    def share(self, mask: NDArray[np.bool_]) -> float:
        """Return the share of voxels, padding left out, that a mask holds."""
        inside = ~self.is_padding
        return float((mask & inside).sum()) / max(1, int(inside.sum()))

    def say(
        self, severity: Severity, code: str, reason: str, *, expected: str, found: str, remedy: str
    ) -> list[Finding]:
        """Return one finding about this scan, in a list.

        Args:
            severity: How bad it is.
            code: Short name of the finding, stable for machines.
            reason: What is wrong, in words.
            expected: What would have been right.
            found: What is there instead.
            remedy: What to do.
        """
        return [Finding(self.scan.name, severity, code, reason, expected, found, remedy)]
