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
        image, label = image.clone(), label.clone()
        drawn = [np.random.default_rng((self.seed, *key, _STREAM)) for key in keys]
        config = self.config
        for axis in range(3):
            chosen = _chosen(drawn, config.flip)
            if chosen.any():
                for array in (image, label):
                    array[chosen] = array[chosen].flip(axis + 2)
        chosen = _chosen(drawn, config.affine)
        if chosen.any():
            matrices = [self._matrix(rng) for rng, one in zip(drawn, chosen.tolist(), strict=True) if one]
            image[chosen], label[chosen] = _turned(image[chosen], label[chosen], np.stack(matrices))
        chosen = _chosen(drawn, config.smooth)
        if chosen.any():
            widths = [rng.uniform(*_SMOOTH_VOXELS, 3) for rng, one in zip(drawn, chosen.tolist(), strict=True) if one]
            sigma = np.stack(widths)
            sigma[:, self._thick] = _NO_BLUR
            image[chosen] = _smoothed(image[chosen], sigma)
        for number, rng in enumerate(drawn):
            self._change_level(image[number], rng)
            if rng.random() < config.noise:
                generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**62)))
                noise = torch.randn(image[number].shape, generator=generator, device=image.device)
                image[number] += float(rng.uniform(0, config.noise_std)) * noise
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


def _chosen(drawn: Sequence[np.random.Generator], probability: float) -> Tensor:
    """Return which patches something happens to, (B,) bool."""
    return torch.tensor([rng.random() < probability for rng in drawn])


def _turned(image: Tensor, label: Tensor, matrices: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Resample: image linearly, label by the nearest voxel; what comes from outside repeats the border."""
    size = np.array(image.shape[2:], dtype=np.float64)
    # torch counts from -1 to 1 over each side, last axis first
    unit = matrices * size[None, None, :] / size[None, :, None]
    theta = np.concatenate([unit[:, ::-1, ::-1], np.zeros((len(unit), 3, 1))], axis=2)
    shape = [len(unit), 1, *image.shape[2:]]
    grid = F.affine_grid(torch.tensor(theta, dtype=image.dtype, device=image.device), shape, align_corners=False)
    turned = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    nearest = F.grid_sample(label.to(image.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    return turned, nearest.to(label.dtype)


def _smoothed(image: Tensor, widths: NDArray[np.float64]) -> Tensor:
    """Blur each patch by its own standard deviations in voxels, widths (N, 3)."""
    count, channels = image.shape[:2]
    at = np.arange(-_RADIUS, _RADIUS + 1)
    for axis in range(3):
        kernels = np.exp(-0.5 * (at / widths[:, axis, None]) ** 2)
        kernels /= kernels.sum(axis=1, keepdims=True)
        weights = torch.tensor(kernels, dtype=image.dtype, device=image.device)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = _RADIUS
        padded = F.pad(image, padding, mode="replicate")
        extent = image.shape[2 + axis]
        image = sum(
            (
                weights[:, k].view(count, 1, 1, 1, 1).expand(count, channels, 1, 1, 1)
                * padded.narrow(2 + axis, k, extent)
                for k in range(len(at))
            ),
            torch.zeros_like(image),
        )
    return image
