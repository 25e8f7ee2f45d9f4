"""A tissue map seen through the slices of a scan, which may be thicker than the map's layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.tissue import Tissue, TissueMap

FloatArray = NDArray[np.float32]

_SLAB_VOXELS = 4_000_000


class Slices:
    """What mixes linearly in a slice: signals and shares of tissues, on the scan's grid.

    Attributes:
        shape: Voxels of the scan along x, y, z.
        spacing: Their size in mm.
    """

    def __init__(self, tissue: TissueMap, axis: int, split: int = 1, gap: float = 0.0) -> None:
        """Set how the map is cut.

        Args:
            tissue: The body.
            axis: Axis across the slices.
            split: Layers of the map that make one slice.
            gap: Gap between slices as a share of their distance.

        Raises:
            ValueError: If ``split`` does not divide the layers.
        """
        layers = tissue.first.shape[axis]
        if split < 1 or layers % split:
            raise ValueError(f"expected split to divide the {layers} layers, but got {split}")
        self._tissue, self._axis = tissue, axis
        self._weights = slice_profile(split, gap)
        sizes = [n // (split if a == axis else 1) for a, n in enumerate(tissue.first.shape)]
        steps = [s * (split if a == axis else 1) for a, s in enumerate(tissue.spacing)]
        self.shape = (sizes[0], sizes[1], sizes[2])
        self.spacing = (steps[0], steps[1], steps[2])

    def mean_of(self, values: Mapping[str, float]) -> FloatArray:
        """Return the mean over each voxel of what tissues have by name; 0 for those not named."""
        table = np.zeros(256, np.float32)
        for name, value in values.items():
            table[Tissue[name]] = value
        result = np.empty(self.shape, np.float32)
        split = len(self._weights)
        deep = split if self._axis == 2 else 1
        depth = max(1, _SLAB_VOXELS // (self._tissue.first[..., 0].size * deep))
        for start in range(0, self.shape[2], depth):
            stop = min(start + depth, self.shape[2])
            layers = self._tissue.mix(table, slice(start * deep, stop * deep))
            result[..., start:stop] = self._across(layers)
        return result

    def share_of(self, *tissues: Tissue) -> FloatArray:
        """Return the share of each voxel that some tissues fill together."""
        return self.mean_of({tissue.name: 1.0 for tissue in tissues})

    def _across(self, layers: FloatArray) -> FloatArray:
        """Weigh the layers of each slice together."""
        split = len(self._weights)
        if split == 1:
            return layers
        every = [slice(None)] * 3
        every[self._axis] = slice(0, None, split)
        result = self._weights[0] * layers[tuple(every)]
        for index in range(1, split):
            every[self._axis] = slice(index, None, split)
            result += self._weights[index] * layers[tuple(every)]
        return np.asarray(result, np.float32)


def slice_profile(split: int, gap: float) -> FloatArray:
    """Return the weights of the layers of a slice: a box with the gap left out and soft edges."""
    at = np.abs((np.arange(split) + 0.5) / split - 0.5)
    weights = np.clip((0.5 * (1 - gap) - at) * split + 0.5, 0, 1) + 1e-6
    profile: FloatArray = (weights / weights.sum()).astype(np.float32)
    return profile
