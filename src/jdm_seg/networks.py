"""Networks: logits out, no activation inside, and nothing here knows of training.

Any MONAI network can be chosen by config (``_target_: monai.networks.nets.DynUNet``). The default is
:class:`SpaceToDepthUNet`, which keeps every convolution off the full resolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jdm_seg.config import instantiate

Logits = Tensor | list[Tensor]
"""(B, C, X, Y, Z), or under deep supervision in training mode a list of it from fine to coarse."""


def build_network(spec: dict[str, Any]) -> nn.Module:
    """Build a network from ``{"_target_": dotted path, **arguments}``.

    Args:
        spec: Plain values only, as stored in a checkpoint or a model folder.

    Returns:
        A module that maps (B, in_channels, X, Y, Z) to :data:`Logits`.

    Raises:
        InputError: If the target is outside the allow-list or does not accept the arguments.
        TypeError: If the target is no network.
    """
    network = instantiate(spec, "network")
    if not isinstance(network, nn.Module):
        raise TypeError(f"{spec['_target_']} is not a torch.nn.Module")
    return network


def as_levels(output: Any) -> list[Tensor]:
    """Return a network's output as a list from fine to coarse, whichever way it does deep supervision.

    MONAI's DynUNet stacks its heads, all brought to full resolution, along dimension 1 while training.
    """
    if isinstance(output, Tensor):
        return [output] if output.ndim == 5 else list(output.unbind(1))
    return list(output)


def foreground_logit(logits: Tensor, foreground: int = 1) -> Tensor:
    """Reduce class logits to the logit of one foreground class.

    Args:
        logits: (B, C, X, Y, Z). With C = 1 the channel already is that logit.
        foreground: Channel of the foreground class where C > 1.

    Returns:
        (B, 1, X, Y, Z) with sigmoid(result) = softmax(logits)[foreground]: one volume to resample and threshold
        instead of C.
    """
    if logits.shape[1] == 1:
        return logits
    parts = torch.split(logits, 1, dim=1)
    others = [part for channel, part in enumerate(parts) if channel != foreground]
    return parts[foreground] - functools.reduce(torch.logaddexp, others)


class SpaceToDepthUNet(nn.Module):
    """A residual 3-D U-Net that works at half resolution and answers at full resolution.

    Each block of 2x2x2 voxels becomes 8 channels before the first convolution (space to depth), and the last 1x1x1
    convolution gives 8 logits a block that are shuffled back to voxels (``block`` sets other sides). No layer runs at
    full resolution, which is where a plain U-Net spends most of its time and memory; no voxel is averaged away, so
    single-voxel deposits reach the first convolution intact.

    Patch sides must be multiples of ``2 ** len(channels)``.

    Source: sub-voxel shuffle after Shi et al., CVPR 2016; U-Net after Isensee et al., Nat. Methods 2021.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 192),
        norm: str = "instance",
        deep_supervision: bool = True,
        foreground_prior: float = 0.01,
        windows: Sequence[tuple[float, float]] = ((-1.0, 1.0),),
        surroundings: Sequence[tuple[int, int, int]] = (),
        block: tuple[int, int, int] = (2, 2, 2),
    ) -> None:
        """Build the layers.

        Args:
            in_channels: Image channels.
            out_channels: 1 for binary logits, else one per class with 0 as background.
            channels: Width at 1/2, 1/4, … of the input resolution.
            norm: ``instance``, ``batch`` or ``group``.
            deep_supervision: In training mode also return logits of the coarser decoder levels.
            foreground_prior: Initial probability of foreground. Deposits fill far less than 1 % of a scan; starting
                near that saves the steps a network would spend on learning to say no.
            windows: Ranges of the normalised image, each stretched to -1…1 and clipped into a channel of its own. Over
                1,500 HU the step from fat to muscle is a fifteenth of the range; a narrow window shows it whole.
            surroundings: Boxes in voxels (odd sides), each for four channels more: how far a voxel lies above the mean
                of the box around it, below its highest and above its lowest voxel, all relative to the signal, and the
                mean. On MRI dark means darker than what is around; a network finds that by itself, in many times as
                many steps. Wants an image whose -1 is no signal.
            block: Voxels along x, y, z that become channels. 1 across thick slices: there a voxel is no finer than two
                are along the others.
        """
        super().__init__()
        self.deep_supervision = deep_supervision
        self.divisor = 2 ** len(channels)  # enough along every axis, whatever the block
        self.out_channels = out_channels
        self.windows = [(float(low), float(high)) for low, high in windows]
        self.surroundings = [(int(x), int(y), int(z)) for x, y, z in surroundings]
        self.block = (int(block[0]), int(block[1]), int(block[2]))
        inputs = in_channels * (len(self.windows) + 4 * len(self.surroundings))
        self.stem = nn.Conv3d(math.prod(self.block) * inputs, channels[0], 3, padding=1, bias=False)
        self.encoder = nn.ModuleList([_Residual(channels[0], norm)])
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for fine, coarse in pairwise(channels):
            self.down.append(nn.Conv3d(fine, coarse, 2, stride=2, bias=False))
            self.encoder.append(_Residual(coarse, norm))
            self.up.append(nn.ConvTranspose3d(coarse, fine, 2, stride=2, bias=False))
            # one convolution a level: a light decoder costs no accuracy (Isensee et al., MICCAI 2024) and half the time
            self.decoder.append(
                nn.Sequential(
                    nn.Conv3d(2 * fine, fine, 3, padding=1, bias=False),
                    _norm(norm, fine),
                    nn.LeakyReLU(0.01, inplace=True),
                )
            )
        self.head = nn.Conv3d(channels[0], math.prod(self.block) * out_channels, 1)
        self.coarse_heads = nn.ModuleList(
            nn.Conv3d(width, out_channels, 1) for width in (channels[1:-1] if deep_supervision else ())
        )
        prior = float(torch.logit(torch.tensor(foreground_prior)))
        for head in (self.head, *self.coarse_heads):
            # one channel: the logit itself; several: the background class leads by as much
            nn.init.constant_(head.bias, prior if out_channels == 1 else 0.0)
            if out_channels > 1:
                head.bias.data.view(-1, out_channels)[:, 0] = -prior

    def forward(self, image: Tensor) -> Logits:
        """Map an image to logits.

        Args:
            image: (B, in_channels, X, Y, Z), sides divisible by :attr:`divisor`.

        Returns:
            (B, out_channels, X, Y, Z); in training mode with deep supervision a list [1/1, 1/4, 1/8, …].
        """
        seen = torch.cat([self._windowed(image), *(_beside(image, box) for box in self.surroundings)], dim=1)
        features = self.stem(_space_to_depth(seen, self.block))
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            if level:
                features = self.down[level - 1](features)
            features = block(features)
            skips.append(features)
        coarse: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            features = self.decoder[level](torch.cat([self.up[level](features), skips[level]], dim=1))
            if self.deep_supervision and self.training and level > 0:
                coarse.append(self.coarse_heads[level - 1](features))
        logits = _depth_to_space(self.head(features), self.block)
        return [logits, *reversed(coarse)] if coarse else logits

    def _windowed(self, image: Tensor) -> Tensor:
        if self.windows == [(-1.0, 1.0)]:
            return image
        parts = [((2 * image - low - high) / (high - low)).clamp(-1, 1) for low, high in self.windows]
        return torch.cat(parts, dim=1)


class _Residual(nn.Module):
    """Two 3x3x3 convolutions with normalisation around an identity shortcut."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, channels)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        out = self.act(self.norm1(self.conv1(features)))
        result: Tensor = self.act(self.norm2(self.conv2(out)) + features)
        return result


def _beside(image: Tensor, box: tuple[int, int, int]) -> Tensor:
    """Return (B, 4 C, X, Y, Z): contrast with the mean of the box, and with its highest and lowest voxel; the mean."""
    signal = image + 1
    mean = _over_box(signal, box, _running_mean)
    high = _over_box(signal, box, _running_max) - signal
    low = signal + _over_box(-signal, box, _running_max)
    own = signal + 2 * _NO_SIGNAL
    contrast = ((signal - mean) / (mean + _NO_SIGNAL)).clamp(-1, 2)
    return torch.cat([contrast, (high / own).clamp_max(3) - 1, (low / own).clamp_max(1) * 2 - 1, mean - 1], dim=1)


_NO_SIGNAL = 0.025
"""Keeps what is relative to a signal from blowing up in air; of a range of 2."""


def _over_box(values: Tensor, box: tuple[int, int, int], running: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """Apply a running figure along the three axes; at the border it is that of the part inside."""
    for axis, side in enumerate(box, start=2):
        if side > 1:
            values = running(values, axis, side)
    return values


def _running_max(values: Tensor, axis: int, side: int) -> Tensor:
    """Double the width until it is reached: a tenth of the time of max pooling on a CPU."""
    length = values.shape[axis]
    values = _padded(values, axis, side // 2, side // 2, -_BELOW_ALL)
    width = 1
    while 2 * width <= side:
        rest = values.shape[axis] - width
        values = torch.maximum(values.narrow(axis, 0, rest), values.narrow(axis, width, rest))
        width *= 2
    if width < side:
        values = torch.maximum(values.narrow(axis, 0, length), values.narrow(axis, side - width, length))
    return values


_BELOW_ALL = 1e4


def _running_mean(values: Tensor, axis: int, side: int) -> Tensor:
    length, half = values.shape[axis], side // 2
    sums = _padded(values, axis, half + 1, half, 0.0).cumsum(axis)
    at = torch.arange(length, device=values.device)
    inside = (at + half).clamp_max(length - 1) - (at - half).clamp_min(0) + 1
    shape = [1] * values.ndim
    shape[axis] = -1
    return (sums.narrow(axis, side, length) - sums.narrow(axis, 0, length)) / inside.to(values.dtype).view(shape)


def _padded(values: Tensor, axis: int, before: int, after: int, value: float) -> Tensor:
    pads = [0] * (2 * (values.ndim - axis))
    pads[-2:] = [before, after]
    return F.pad(values, pads, value=value)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    raise ValueError(f"expected norm to be instance, batch or group, but got {kind}")


def _space_to_depth(image: Tensor, block: tuple[int, int, int]) -> Tensor:
    """(B, C, X, Y, Z) -> (B, i j k C, X/i, Y/j, Z/k)."""
    b, c, x, y, z = image.shape
    i, j, k = block
    blocks = image.reshape(b, c, x // i, i, y // j, j, z // k, k)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, i * j * k * c, x // i, y // j, z // k)


def _depth_to_space(features: Tensor, block: tuple[int, int, int]) -> Tensor:
    """(B, i j k C, X, Y, Z) -> (B, C, i X, j Y, k Z); the inverse, with the voxels of a block as the slow axis."""
    b, c, x, y, z = features.shape
    i, j, k = block
    classes = c // (i * j * k)
    blocks = features.reshape(b, i, j, k, classes, x, y, z)
    return blocks.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(b, classes, i * x, j * y, k * z)
