"""Overlapping windows with Gaussian weights that slide from foot to head and leave finished logits behind.

Only one layer of windows is ever held: its planes of the image, of the weighted sum and of the weights. What no later
window can change is handed over at once, so memory does not grow with the length of a scan. In every layer windows are
laid over what is body there; air, table and the gap between two legs cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]
"""(B, 1, *window) normalised image → (B, 1, *window) logit of the foreground."""

EMPTY_LOGIT = -10.0
"""What a voxel gets that no window with any body in it reaches."""
_AIR = -1.0
_CONTEXT = 8
"""Windows begin an eighth of their size outside the body: skin is looked at with the air before it."""

Window = tuple[slice, slice]
"""Where a window lies in its layer, along (y, x)."""


class PlaneSource(Protocol):
    """An image that comes in axial planes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""

    def planes(self, start: int, stop: int) -> Tensor:
        """Return normalised planes along z, shape (stop - start, Y, X), float32; air is -1."""

    def body(self, start: int, stop: int) -> Tensor | None:
        """Return where anything is looked for on these planes, bool; None: everywhere."""


def predict_logits(
    image: Tensor,
    predictor: Predictor,
    *,
    roi_size: tuple[int, int, int],
    overlap: float,
    batch_size: int = 1,
) -> Tensor:
    """Return the foreground logit of every voxel of an image that is whole in memory; see :func:`stream_logits`.

    Args:
        image: Normalised scan on the model's grid, (X, Y, Z) float32; air is -1.
        predictor: The network.
        roi_size: Window in voxels.
        overlap: Share of the window shared with its neighbour, 0 to below 1.
        batch_size: Windows a call.

    Returns:
        (X, Y, Z) float32 on the image's device.
    """
    parts = stream_logits(_WholeImage(image), predictor, roi_size=roi_size, overlap=overlap, batch_size=batch_size)
    return torch.cat([part.to(image.device) for part in parts]).permute(2, 1, 0)


def stream_logits(
    image: PlaneSource,
    predictor: Predictor,
    *,
    roi_size: tuple[int, int, int],
    overlap: float,
    batch_size: int = 1,
) -> Iterator[Tensor]:
    """Yield the foreground logits of an image, axial planes from foot to head.

    Args:
        image: Gives planes on demand; each is asked for once, in order.
        predictor: The network.
        roi_size: Window in voxels along x, y, z.
        overlap: Least share of the window shared with its neighbour, 0 to below 1.
        batch_size: Windows a call.

    Yields:
        (n, Y, X) float32 on the device the predictor answers on (on the host if it has no room): the mean over windows,
        weighted by a Gaussian of sigma 1/8 window; :data:`EMPTY_LOGIT` where no window looked. All parts together have
        Z planes. Memory: 13 bytes a voxel of one layer, X * Y * roi_size[2].

    Source: weighting as in nnU-Net (Isensee et al., Nat. Methods 2021).
    """
    depth = image.shape[2]
    starts = window_starts(depth, roi_size[2], overlap)
    layer = _Layer(image, roi_size)
    for start, following in zip(starts, [*starts[1:], depth], strict=True):
        layer.move_to(start)
        windows = layer.windows(overlap)
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            layer.add(batch, predictor(layer.cut(batch))[:, 0])
        yield layer.finished(following - start)


class _Layer:
    """One layer of windows: its image, and the weighted sum of their logits so far."""

    def __init__(self, image: PlaneSource, roi_size: tuple[int, int, int]) -> None:
        self.image = image
        self.roi_size = roi_size
        width, height, self.depth = image.shape
        self.extent = (height, width)
        self._importance = gaussian_importance(roi_size).permute(2, 1, 0).contiguous()
        self._values = torch.empty(0)
        self._occupied = torch.empty(0)
        self._total: Tensor | None = None
        self._weight = torch.empty(0)
        self._stop = 0

    def move_to(self, start: int) -> None:
        """Take in the planes of the layer that begins at ``start``; those it shares with the last one stay."""
        stop = min(start + self.roi_size[2], self.depth)
        fresh = self.image.planes(self._stop, stop)
        body = self.image.body(self._stop, stop)
        occupied = (fresh > _AIR) if body is None else (fresh > _AIR) & body.to(fresh.device)
        missing = [max(0, n - s) for n, s in zip(self.roi_size, self.image.shape, strict=True)]
        if any(missing):
            fresh = F.pad(fresh, [pad for short in missing for pad in (0, short)], value=_AIR)
        shared = max(0, self._stop - start)
        self._values = torch.cat([self._values[len(self._values) - shared :], fresh]) if shared else fresh
        self._occupied = torch.cat([self._occupied[len(self._occupied) - shared :], occupied]) if shared else occupied
        self._stop = stop

    def windows(self, overlap: float) -> list[Window]:
        """Return windows that cover everything occupied, and none that holds nothing."""
        columns = self._occupied.any(dim=0).cpu()
        width, height = self.roi_size[:2]
        found = []
        for x in _cover(columns.any(dim=0), width, overlap):
            strip = columns[:, x : x + width]
            for y in _cover(strip.any(dim=1), height, overlap):
                found.append((slice(y, y + height), slice(x, x + width)))
        return found

    def cut(self, windows: list[Window]) -> Tensor:
        """Return the image in windows, (B, 1, *roi_size)."""
        return torch.stack([self._values[:, y, x].permute(2, 1, 0) for y, x in windows])[:, None]

    def add(self, windows: list[Window], logits: Tensor) -> None:
        """Add logits (B, *roi_size) with their weights."""
        if self._total is None:
            self._allocate(logits.device)
        assert self._total is not None
        for (y, x), logit in zip(windows, logits, strict=True):
            # transposed once here, not in each of the sums
            values = logit.permute(2, 1, 0).contiguous().to(self._total.device, torch.float32)
            self._total[:, y, x].addcmul_(values, self._importance)
            self._weight[:, y, x] += self._importance

    def _allocate(self, device: torch.device) -> None:
        shape = tuple(self._values.shape)
        try:
            total, weight = (torch.zeros(shape, device=device) for _ in range(2))
        except torch.cuda.OutOfMemoryError:
            total, weight = (torch.zeros(shape) for _ in range(2))
        self._total, self._weight = total, weight
        self._importance = self._importance.to(total.device)

    def finished(self, planes: int) -> Tensor:
        """Return the first planes of the layer, which nothing will change any more, and make room for as many."""
        height, width = self.extent
        if self._total is None:
            return torch.full((planes, height, width), EMPTY_LOGIT)
        weight = self._weight[:planes, :height, :width]
        mean = self._total[:planes, :height, :width] / weight.clamp_min(1e-12)
        result = torch.where(weight > 0, mean, EMPTY_LOGIT)
        for sums in (self._total, self._weight):
            rest = sums[planes:].clone()
            sums[: rest.shape[0]] = rest
            sums[rest.shape[0] :] = 0
        return result


class _WholeImage:
    """An image in memory as a :class:`PlaneSource`."""

    def __init__(self, image: Tensor) -> None:
        self._planes = image.permute(2, 1, 0)
        self.shape = (image.shape[0], image.shape[1], image.shape[2])

    def planes(self, start: int, stop: int) -> Tensor:
        return self._planes[start:stop]

    def body(self, start: int, stop: int) -> None:
        del start, stop


def gaussian_importance(roi_size: tuple[int, int, int]) -> Tensor:
    """Return the weight of each voxel of a window: a Gaussian around its centre, at least 1e-3 at the corners.

    The same weights as MONAI's ``mode="gaussian", sigma_scale=0.125``.
    """
    axes = []
    for n in roi_size:
        at = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        axes.append(torch.exp(-0.5 * (at / (n / 8)) ** 2))
    weights = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return weights.clamp_min(1e-3)


def window_starts(extent: int, window: int, overlap: float) -> list[int]:
    """Return where windows start along one axis, evenly spread from border to border."""
    if extent <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(extent - window) // step) + 1
    return [round(i * (extent - window) / (count - 1)) for i in range(count)]


def _cover(occupied: Tensor, window: int, overlap: float) -> list[int]:
    """Return where windows start that cover the occupied part of one axis and a little around it.

    Parts that lie apart, such as two legs, are covered one by one where that takes fewer windows.
    """
    where = torch.nonzero(occupied)[:, 0].tolist()
    if not where:
        return []
    gaps = [i for i in range(1, len(where)) if where[i] - where[i - 1] > window // 2]
    parts = [(where[a], where[b - 1] + 1) for a, b in pairwise([0, *gaps, len(where)])]
    extent = len(occupied)
    apart = [start for low, high in parts for start in _cover_part(low, high, extent, window, overlap)]
    together = _cover_part(parts[0][0], parts[-1][1], extent, window, overlap)
    needed = [start for start in together if bool(occupied[start : start + window].any())]
    return apart if len(apart) < len(needed) else needed


def _cover_part(low: int, high: int, extent: int, window: int, overlap: float) -> list[int]:
    low, high = max(0, low - window // _CONTEXT), min(extent, high + window // _CONTEXT)
    if high - low <= window:
        return [min(max(0, (low + high - window) // 2), max(0, extent - window))]
    return [low + start for start in window_starts(high - low, window, overlap)]
