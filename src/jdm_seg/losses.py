"""Losses on logits. Any loss of MONAI can be chosen by config; this file adds levels and ignored voxels around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jdm_seg.config import instantiate
from jdm_seg.synthesis.insert import IGNORE

_FAR = 20.0
"""A logit of -20 against a target of 0 costs 2e-9: an ignored voxel weighs nothing in any of the losses."""


def build_loss(spec: dict[str, Any]) -> MultiLevelLoss:
    """Build the loss that a ``_target_`` names, applied to every level of deep supervision.

    Args:
        spec: Plain values; the target maps (logits, soft target) of equal shape to a scalar.
    """
    return MultiLevelLoss(instantiate(spec, "loss"))


class MultiLevelLoss(nn.Module):
    """Weighted sum of one loss over the levels of deep supervision: 1, 1/2, 1/4 …, normalised."""

    def __init__(self, loss: nn.Module) -> None:
        """Wrap a loss on (logits, target)."""
        super().__init__()
        self.loss = loss

    def forward(self, levels: list[Tensor], label: Tensor) -> Tensor:
        """Return the loss.

        Args:
            levels: Logits from fine to coarse, each (B, C, x, y, z).
            label: Class numbers, (B, 1, X, Y, Z) uint8; 255 is ignored.

        A coarse level is compared with the share of foreground in each of its voxels, so a deposit smaller than a
        coarse voxel is neither lost nor blown up.
        """
        target, counted = _targets(label, levels[0].shape[1])
        total = levels[0].new_zeros((), dtype=torch.float32)
        weights = [0.5**level for level in range(len(levels))]
        for weight, logits in zip(weights, levels, strict=True):
            size = (logits.shape[2], logits.shape[3], logits.shape[4])
            here, known = (
                F.adaptive_avg_pool3d(t, size) if tuple(t.shape[2:]) != size else t for t in (target, counted)
            )
            counts = known > 0.5
            silent, background = _background(logits)
            total = total + weight * self.loss(
                torch.where(counts, logits.float(), silent), torch.where(counts, here, background)
            )
        return total / sum(weights)


def _targets(label: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return the soft target (B, C, X, Y, Z) and where it counts (B, 1, X, Y, Z), both float32."""
    counted = (label != IGNORE).float()
    known = torch.where(label == IGNORE, 0, label)
    if channels == 1:
        return (known > 0).float(), counted
    one_hot = F.one_hot(known[:, 0].long(), channels).movedim(-1, 1)
    return one_hot.float(), counted


def _background(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits that say background with certainty, and the target that agrees with them."""
    silent = torch.full_like(logits, -_FAR, dtype=torch.float32)
    target = torch.zeros_like(silent)
    if logits.shape[1] > 1:
        silent[:, 0], target[:, 0] = _FAR, 1
    return silent, target
