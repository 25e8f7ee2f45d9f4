"""Logits back to the scan's grid as they come, thresholded on the way.

No logit or probability volume at the scan's size is ever computed. A voxel between logits is a mean of them, so where
none of a block exceeds the threshold no voxel of it can: such blocks, nearly all of a scan, are skipped.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.model_grid import Placement
from jdm_seg.resample import support
from jdm_seg.sparse import SparseArray

_PLANES = 16
_TILE = 64


class ScanGridMask:
    """A mask on the canonical scan that grows with the logits of a stream.

    Attributes:
        mask: True where the probability exceeds the threshold and the body may be, shape of the canonical scan.
    """

    def __init__(
        self, placement: Placement, threshold: float, *, like: NDArray[Any], keep_from: float | None = None
    ) -> None:
        """Begin with nothing found.

        Args:
            placement: How the model's grid lies in the scan.
            threshold: Probability from which a voxel counts, 0 to 1.
            like: The canonical scan; the mask gets its memory order, so that it is written as fast as it was read.
            keep_from: Keep probabilities from this one on; default the threshold. Lower ones cost time.
        """
        self.mask: NDArray[np.bool_] = zeros_in_order_of(like, np.bool_)
        self._places: list[NDArray[np.int64]] = []
        self._probabilities: list[NDArray[np.float16]] = []
        self._placement = placement
        self._cut = logit_of(threshold)
        self._keep = self._cut if keep_from is None else min(self._cut, logit_of(keep_from))
        self._weights = [torch.from_numpy(weights) for weights in placement.to_scan()]
        self._support = [
            np.array([support(row[None]) for row in weights.numpy()], dtype=np.intp) for weights in self._weights
        ]
        self._waiting: Tensor | None = None
        self._first = 0  # model plane at which `_waiting` begins
        self._done = 0  # scan planes of the box that are finished

    @property
    def probability(self) -> SparseArray:
        """At the voxels that reach ``keep_from``, float16, on the canonical scan; 10 bytes each."""
        if not self._places:
            return SparseArray(self._placement.canonical_shape, np.zeros(0, np.int64), np.zeros(0, np.float16))
        places, values = np.concatenate(self._places), np.concatenate(self._probabilities)
        return SparseArray.at_places(self._placement.canonical_shape, places, values)

    def add(self, logits: Tensor) -> None:
        """Take the next axial planes of logits on the model's grid, shape (n, Y, X)."""
        self._waiting = logits if self._waiting is None else torch.cat([self._waiting.to(logits.device), logits])
        known = self._first + len(self._waiting)
        needs = self._support[2]
        while self._done < len(needs) and needs[self._done, 1] <= known:
            stop = min(self._done + _PLANES, int(np.searchsorted(needs[:, 1], known, side="right")))
            self._planes(self._done, stop)
            self._done = stop
        oldest = int(needs[self._done, 0]) if self._done < len(needs) else known
        # a copy, so that the planes that are finished leave memory
        self._waiting = self._waiting[oldest - self._first :].clone()
        self._first = oldest

    def _planes(self, start: int, stop: int) -> None:
        """Fill scan planes ``start`` to ``stop`` of the box."""
        assert self._waiting is not None
        first, last = int(self._support[2][start, 0]), int(self._support[2][stop - 1, 1])
        logits = self._waiting[first - self._first : last - self._first]
        hot: NDArray[np.bool_] = (logits > self._keep).any(dim=0).cpu().numpy()
        if not hot.any():
            return
        width, height, _ = self._placement.box_shape
        along_z = self._weights[2][start:stop, first:last].to(logits.device)
        for y in _tiles(height, self._support[1]):
            for x in _tiles(width, self._support[0]):
                if hot[y[2] : y[3], x[2] : x[3]].any():
                    self._tile(logits[:, y[2] : y[3], x[2] : x[3]], along_z, x, y, (start, stop))

    def _tile(self, logits: Tensor, along_z: Tensor, x: _Tile, y: _Tile, z: tuple[int, int]) -> None:
        """Fill one block from the logits it needs, shape (n, Y, X)."""
        along_x, along_y = (
            self._weights[axis][t[0] : t[1], t[2] : t[3]].to(logits.device) for axis, t in ((0, x), (1, y))
        )
        planes = torch.tensordot(along_z, logits, 1)
        values = (along_y @ planes @ along_x.T).permute(2, 1, 0).cpu().numpy()
        box = self._placement.box
        at = [
            slice(s.start + start, s.start + stop)
            for s, (start, stop) in zip(box, ((x[0], x[1]), (y[0], y[1]), z), strict=True)
        ]
        here = (at[0], at[1], at[2])
        body = self._placement.body.at(*(np.arange(s.start, s.stop) for s in here))
        kept = (values > self._keep) & body
        found = np.nonzero(kept)
        if len(found[0]):
            self.mask[here] = kept & (values > self._cut)
            corner = [s.start for s in here]
            indices = tuple(at + low for at, low in zip(found, corner, strict=True))
            self._places.append(np.ravel_multi_index(indices, self._placement.canonical_shape, order="F"))
            self._probabilities.append((1 / (1 + np.exp(-values[found]))).astype(np.float16))


_Tile = tuple[int, int, int, int]
"""Start and stop on the scan, start and stop of the logits they need."""


def _tiles(extent: int, needs: NDArray[np.intp]) -> list[_Tile]:
    ends = ((start, min(start + _TILE, extent)) for start in range(0, extent, _TILE))
    return [(start, stop, int(needs[start, 0]), int(needs[stop - 1, 1])) for start, stop in ends]


def logit_of(probability: float) -> float:
    """Return log(p / (1 - p))."""
    return math.log(probability / (1 - probability))


def zeros_in_order_of(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return zeros of an array's shape and axis order in memory; unlike ``zeros_like``, pages stay untouched."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    zeros = np.zeros([array.shape[axis] for axis in order], dtype)
    return zeros.transpose(np.argsort(order))
