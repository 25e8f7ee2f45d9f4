"""Overlapping windows with Gaussian weights, one logit volume, empty windows skipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]
"""(B, 1, *window) normalised image → (B, 1, *window) logit of the foreground."""

EMPTY_LOGIT = -10.0
"""What a window that holds only air gets without asking the network."""
_AIR = -1.0


def predict_logits(
    image: Tensor,
    predictor: Predictor,
    *,
    roi_size: tuple[int, int, int],
    overlap: float,
    batch_size: int = 1,
) -> Tensor:
    """Return the foreground logit of every voxel.

    Args:
        image: Normalised scan on the model's grid, (X, Y, Z) float32; air is -1.
        predictor: The network.
        roi_size: Window in voxels.
        overlap: Share of the window shared with its neighbour, 0 to below 1.
        batch_size: Windows a call.

    Returns:
        (X, Y, Z) float32 on the image's device: the mean over windows, weighted by a Gaussian of sigma 1/8 window.

    Source: weighting as in nnU-Net (Isensee et al., Nat. Methods 2021).
    """
    shape = image.shape
    pads = [max(0, n - s) for s, n in zip(shape, roi_size, strict=True)]
    padded = F.pad(image, [p for pad in reversed(pads) for p in (0, pad)], value=_AIR)
    total = torch.zeros(padded.shape, dtype=torch.float32, device=image.device)
    weight = torch.zeros_like(total)
    importance = gaussian_importance(roi_size).to(image.device)
    starts = [_starts(s, n, overlap) for s, n in zip(padded.shape, roi_size, strict=True)]
    windows = [
        tuple(slice(a, a + n) for a, n in zip(corner, roi_size, strict=True)) for corner in itertools.product(*starts)
    ]
    occupied = [window for window in windows if bool((padded[window] > _AIR).any())]
    for first in range(0, len(occupied), batch_size):
        batch = occupied[first : first + batch_size]
        logits = predictor(torch.stack([padded[window] for window in batch])[:, None])[:, 0].float()
        for window, logit in zip(batch, logits, strict=True):
            total[window] += logit * importance
            weight[window] += importance
    result = torch.where(weight > 0, total / weight.clamp_min(1e-12), EMPTY_LOGIT)
    return result[tuple(slice(0, s) for s in shape)]


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


def _starts(extent: int, window: int, overlap: float) -> list[int]:
    """Return where windows start along one axis, evenly spread from border to border."""
    if extent <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(extent - window) // step) + 1
    return [round(i * (extent - window) / (count - 1)) for i in range(count)]
