"""Losses on logits: levels and ignored voxels around any loss of MONAI, and one that sees lesions."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from jdm_seg.config import instantiate
from jdm_seg.networks import foreground_logit
from jdm_seg.synthesis.insert import IGNORE

_LEAST_VOXELS = 5
"""Of a false lesion: on 1 x 1 x 2 mm the 10 mm³ below which lesions are dropped after prediction."""
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
            said = logits.float()
            if not counts.all():
                silent, background = _background(logits)
                said, here = torch.where(counts, said, silent), torch.where(counts, here, background)
            total = total + weight * self.loss(said, here)
        return total / sum(weights)


def _targets(label: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return the soft target (B, C, X, Y, Z) and where it counts (B, 1, X, Y, Z), both float32."""
    counted = (label != IGNORE).float()
    known = torch.where(label == IGNORE, 0, label)
    if channels == 1:
        return (known == 1).float(), counted
    classes = torch.arange(channels, dtype=known.dtype, device=known.device).view(1, -1, 1, 1, 1)
    return (known == classes).float(), counted


def _background(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits that say background with certainty, and the target that agrees with them."""
    silent = torch.full_like(logits, -_FAR, dtype=torch.float32)
    target = torch.zeros_like(silent)
    if logits.shape[1] > 1:
        silent[:, 0], target[:, 0] = _FAR, 1
    return silent, target


class ComponentDiceCELoss(nn.Module):
    """Dice and cross-entropy of the whole, plus the same of every lesion in its own surroundings.

    The mean over lesions makes a nodule of ten voxels weigh as much as a plaque of ten thousand, which Dice over the
    whole patch does not: there the nodule can be missed for free.

    Every voxel belongs to the lesion nearest to it (or, with ``regions="blob"``, to each lesion's patch without the
    other lesions), as found by connected components of the target. Patches without a lesion have the first part only.

    With ``false_from`` a false lesion weighs as much as a true one, too: what exceeds that probability and touches no
    deposit is parted into lesions, and each of some size joins the mean with its own probability and cross-entropy.
    Without it a network that has learnt where deposits are finds them in ribs and vessels for next to nothing: a few
    hundred voxels of a patch of a million.

    Source: CC-DiceCE, arXiv 2511.17146; blob loss, Kofler et al., arXiv 2205.08209. False lesions: ours.
    """

    def __init__(
        self,
        weight: float = 0.5,
        regions: str = "nearest",
        smooth: float = 1e-5,
        batch: bool = True,
        classes: int = 1,
        false_from: float | None = None,
    ) -> None:
        """Set the parts.

        Args:
            weight: Share of the mean over lesions, 0 to 1; the rest is the loss of the whole.
            regions: ``nearest`` (CC-DiceCE) or ``blob``.
            smooth: Added to numerator and denominator of Dice.
            batch: Whether the first part takes Dice over the whole batch, as a patch without deposits has no Dice.
            classes: Channels of the logits: 1, or more with 0 as background and 1 as deposits.
            false_from: Probability from which what is no deposit makes a false lesion; None leaves these out.
        """
        super().__init__()
        if regions not in ("nearest", "blob"):
            raise ValueError(f"expected regions to be nearest or blob, but got {regions!r}")
        if not 0 <= weight <= 1:
            raise ValueError(f"expected weight to be between 0 and 1, but got {weight}")
        if false_from is not None and not 0 < false_from < 1:
            raise ValueError(f"expected false_from to be None or between 0 and 1, but got {false_from}")
        self.false_from = false_from
        self.weight = weight
        self.regions = regions
        self.smooth = smooth
        self.classes = classes
        several = classes > 1
        self.whole = DiceCELoss(sigmoid=not several, softmax=several, include_background=not several, batch=batch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (B, classes, X, Y, Z) logits against a soft target of the same shape.

        Raises:
            ValueError: If there are more or fewer channels.
        """
        if logits.shape[1] != self.classes:
            raise ValueError(f"expected {self.classes} channels of logits, but got {logits.shape[1]}")
        total: Tensor = self.whole(logits, target)
        deposit, wanted = (logits, target) if self.classes == 1 else (foreground_logit(logits), target[:, 1:2])
        region, lesions = self._regions(wanted)
        each = [logits.new_zeros(0)]
        if lesions.any():
            each.append(self._lesions(deposit.reshape(-1), wanted.reshape(-1), region.to(logits.device), lesions))
        if self.false_from is not None:
            each.append(_false_lesions(deposit, wanted, self.false_from))
        costs = torch.cat(each)
        return (1 - self.weight) * total + self.weight * costs.mean() if len(costs) else total

    def _regions(self, target: Tensor) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return the region of every voxel of the batch, flat, and which regions are lesions.

        Of regions that are none there is one a patch: what belongs to no lesion.
        """
        regions, lesions = [], np.zeros(0, bool)
        for truth in target[:, 0]:
            labels = _components(truth)
            number = _nearest(labels) if self.regions == "nearest" else labels
            regions.append(torch.from_numpy(number).ravel() + len(lesions))
            lesions = np.concatenate([lesions, np.arange(int(labels.max(initial=0)) + 1) > 0])
        return torch.cat(regions), lesions

    def _lesions(self, logits: Tensor, target: Tensor, region: Tensor, lesions: NDArray[np.bool_]) -> Tensor:
        """Return the loss of every lesion, (N,); the other arguments are flat over the batch."""
        probability = torch.sigmoid(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        inside = torch.nonzero(target).squeeze(1)
        rows = [(region[inside], probability[inside] * target[inside])]
        rows += [(region, column) for column in (probability + target, entropy, torch.ones_like(target))]
        sums = torch.stack([logits.new_zeros(len(lesions)).index_add_(0, at, column) for at, column in rows])
        first = torch.from_numpy(np.maximum.accumulate(np.where(lesions, 0, np.arange(len(lesions)))))
        if self.regions == "blob":  # what is no lesion belongs to each
            sums = sums + sums[:, first.to(sums.device)]
        both, either, cost, voxels = sums[:, torch.from_numpy(lesions).to(sums.device)]
        losses: Tensor = 1 - (2 * both + self.smooth) / (either + self.smooth) + cost / voxels
        return losses


def _false_lesions(logits: Tensor, target: Tensor, least: float) -> Tensor:
    """Return mean probability and cross-entropy of every false lesion of a batch, (M,).

    Args:
        logits: Of deposits, (B, 1, X, Y, Z).
        target: Soft, same shape.
        least: Probability from which a voxel is part of a lesion.
    """
    said = torch.sigmoid(logits.detach()) > least
    numbers, count = [], 0
    for found, truth in zip(said[:, 0], target[:, 0], strict=True):
        parts = _components(found)
        false = np.bincount(parts.ravel()) >= _LEAST_VOXELS
        false[parts[(truth > 0).cpu().numpy()]] = False
        false[0] = False  # where nothing is found
        numbers.append(torch.from_numpy(np.where(false, np.cumsum(false) + count, 0)[parts]).ravel())
        count += int(false.sum())
    number = torch.cat(numbers).to(logits.device)
    where = torch.nonzero(number).squeeze(1)
    values = logits.reshape(-1)[where]
    cost = torch.sigmoid(values) + F.softplus(values)
    voxels = torch.bincount(number[where], minlength=count + 1)[1:]
    return logits.new_zeros(count + 1).index_add_(0, number[where], cost)[1:] / voxels


def _components(target: Tensor) -> NDArray[np.int64]:
    """Number the lesions of a soft target (X, Y, Z) from 1."""
    found = cc3d.connected_components((target > 0).cpu().numpy(), connectivity=26)
    return np.asarray(found, dtype=np.int64)


def _nearest(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give every voxel the number of the lesion nearest to it, in voxels.

    Found for blocks of 2x2x2 voxels, which is six times as fast; far from both lesions, where two regions meet, a block
    may fall to either.
    """
    even = np.pad(labels, [(0, n % 2) for n in labels.shape])
    blocks = np.zeros([n // 2 for n in even.shape], labels.dtype)
    for x, y, z in np.ndindex(2, 2, 2):
        np.maximum(blocks, even[x::2, y::2, z::2], out=blocks)
    at = ndimage.distance_transform_edt(blocks == 0, return_distances=False, return_indices=True)
    region = blocks[tuple(at)].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    region = region[tuple(slice(n) for n in labels.shape)]
    return np.where(labels > 0, labels, region)
