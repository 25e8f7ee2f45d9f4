"""Random changes of training batches, in torch, on the device that trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.config import AugmentConfig
from jdm_seg.volume import Spacing

_SMOOTH_VOXELS = (0.3, 0.8)
_RADIUS = 3
_SCALED, _SHIFTED = 0.1, 0.03
_GAIN = 0.25
"""Largest relative change of magnitudes: so much the median of a body differs from the signal of muscle (assumed)."""
_THICK = 3.0
"""An axis of voxels so many times as long as the finest is one of slices, and nothing is mixed along it (the factor is
nnU-Net's, Isensee et al., Nat. Methods 2021)."""
_NO_BLUR = 1e-3
_STREAM = 2
"""Tells these random numbers from those of cropping and insertion, which have the same seed, epoch and patch."""


class BatchAugment:
    """Mirrors, turns, scales, blurs, brightens and roughens patches, a batch at once.

    What happens to a patch depends on (seed, epoch, number of the patch) alone: not on the batch it is in, on ranks,
    or on where a run was taken up again. The noise is drawn on the device, so CPU and GPU differ in it.
    """

    def __init__(self, config: AugmentConfig, spacing: Spacing, seed: int, *, magnitudes: bool = False) -> None:
        """Set what may happen.

        Args:
            config: Probabilities and ranges.
            spacing: Voxel size in mm. Voxels are turned, not mm: only in a plane of equal spacings is that a rotation
                of the body, so others are left out. Thick slices are neither scaled nor blurred into each other.
            seed: Of the run.
            magnitudes: Values are those of MRI, -1 is no signal: they get another gain, never another zero.
        """
        self.config = config
        self.seed = seed
        self.magnitudes = magnitudes
        self._thick = [axis for axis in range(3) if spacing[axis] >= _THICK * min(spacing)]
        self._planes = [(a, b) for a, b in ((0, 1), (0, 2), (1, 2)) if np.isclose(spacing[a], spacing[b], rtol=0.1)]

    def __call__(self, image: Tensor, label: Tensor, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return changed copies.

        Args:
            image: (B, C, X, Y, Z) float32, normalised.
            label: (B, 1, X, Y, Z) uint8.
            keys: (epoch, number) of every patch.

        Left-right mirrors are allowed: a limb's deposits know no side.
        """
        rngs = [np.random.default_rng((self.seed, *key, _STREAM)) for key in keys]
        changed = [self._changed(*patch) for patch in zip(image, label, rngs, strict=True)]
        return torch.stack([new for new, _ in changed]), torch.stack([new for _, new in changed])

    def _changed(self, image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return changed copies of an image (C, X, Y, Z) and its label (1, X, Y, Z)."""
        config = self.config
        axes = [axis + 1 for axis in range(3) if rng.random() < config.flip]
        image, label = image.flip(axes), label.flip(axes)  # copies, also along no axis
        if rng.random() < config.affine:
            image, label = _turned(image, label, self._matrix(rng))
        if rng.random() < config.smooth:
            sigma = rng.uniform(*_SMOOTH_VOXELS, 3)
            sigma[self._thick] = _NO_BLUR
            image = _smoothed(image, sigma)
        self._change_level(image, rng)
        if rng.random() < config.noise:
            generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**62)))
            noise = torch.randn(image.shape, generator=generator, device=image.device)
            image.add_(noise, alpha=float(rng.uniform(0, config.noise_std)))
        return image, label

    def _change_level(self, values: Tensor, rng: np.random.Generator) -> None:
        contrast = self.config.contrast
        if self.magnitudes:
            if rng.random() < contrast:
                values.add_(1).mul_(1 + float(rng.uniform(-_GAIN, _GAIN))).sub_(1)
            return
        if rng.random() < contrast:
            values.mul_(1 + float(rng.uniform(-_SCALED, _SCALED)))
        if rng.random() < contrast:
            values.add_(float(rng.uniform(-_SHIFTED, _SHIFTED)))

    def _matrix(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw a matrix (3, 3) from voxels of the new patch to those of the old one, about the middle."""
        scale = 1 + rng.uniform(-self.config.scale, self.config.scale, 3)
        scale[self._thick] = 1
        matrix = np.diag(scale)
        largest = np.deg2rad(self.config.rotation_deg)
        for a, b in self._planes:
            angle = rng.uniform(-largest, largest)
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = np.cos(angle)
            turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
        return matrix


def _turned(image: Tensor, label: Tensor, matrix: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Resample: image linearly, label by the nearest voxel; what comes from outside repeats the border.

    On a CPU in half the time of torch's own sampler, which has no vectorised code for volumes.

    Args:
        image: (C, X, Y, Z).
        label: (1, X, Y, Z), on the same device.
        matrix: (3, 3), from voxels of the new patch to those of the old one, about the middle.
    """
    shape = image.shape[1:]
    last = [n - 1 for n in shape]
    middle = np.array(last) / 2
    offset = middle - matrix @ middle
    points = []
    for row, start, most in zip(matrix, offset, last, strict=True):
        x, y, z = (
            torch.arange(n, dtype=image.dtype, device=image.device) * float(step)
            for n, step in zip(shape, row, strict=True)
        )
        points.append((((x + float(start))[:, None] + y)[:, :, None] + z).clamp_(0, most))
    strides = (shape[1] * shape[2], shape[2], 1)
    nearest = _flat([(point + 0.5).to(torch.int32) for point in points], strides)
    floors = [point.clamp(0, max(0, most - 1)).to(torch.int32) for point, most in zip(points, last, strict=True)]
    first = _flat(floors, strides)
    shares = [point - floor for point, floor in zip(points, floors, strict=True)]

    def between(values: Tensor, start: int, axis: int) -> Tensor:
        """Return the values at the points, linear in this axis and those after it; at voxels in those before."""
        if axis == 3:
            return values[start:].index_select(0, first).view(shape)
        low = between(values, start, axis + 1)
        if last[axis] == 0:  # a single voxel has no neighbour
            return low
        return torch.lerp(low, between(values, start + strides[axis], axis + 1), shares[axis])

    turned = torch.stack([between(channel.reshape(-1), 0, 0) for channel in image])
    return turned, label.reshape(-1).index_select(0, nearest).view(label.shape)


def _flat(at: list[Tensor], strides: tuple[int, int, int]) -> Tensor:
    """Return numbers of voxels in memory, (X * Y * Z,), from their numbers along each axis."""
    return ((at[0] * strides[0] + at[1] * strides[1]) + at[2] * strides[2]).reshape(-1)


def _smoothed(image: Tensor, widths: NDArray[np.float64]) -> Tensor:
    """Blur (C, X, Y, Z) by standard deviations in voxels, (3,)."""
    at = np.arange(-_RADIUS, _RADIUS + 1)
    for axis in range(3):
        kernel = np.exp(-0.5 * (at / widths[axis]) ** 2)
        kernel /= kernel.sum()
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = _RADIUS
        padded = F.pad(image[None], padding, mode="replicate")[0]
        extent = image.shape[axis + 1]
        image = torch.zeros_like(image)
        for start, weight in enumerate(kernel.tolist()):  # a convolution of torch's is less exact on GPUs
            image.add_(padded.narrow(axis + 1, start, extent), alpha=weight)
    return image
