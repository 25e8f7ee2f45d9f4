"""The model's grid: one preprocessing for training, validation and prediction, and what the way back needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.body_mask import CoarseMask, locate_body
from jdm_seg.config import IntensityConfig, PreprocessConfig
from jdm_seg.resample import axis_weights, resample, resample_planes
from jdm_seg.volume import Spacing, Volume

FloatArray = NDArray[np.float32]
_MARGIN_MM = 6.0


@dataclass(frozen=True)
class Placement:
    """How a model-grid array lies in its scan; what the way back needs.

    Attributes:
        box: The body's box in the canonical scan.
        canonical_shape: Shape of the whole canonical scan.
        shape: Shape on the model's grid.
        spacing: Voxel size of the model's grid in this scan, in mm.
        step: The same over the scan's voxel size.
        body: The body on the canonical scan.
        order: Of the interpolation to the model's grid; the way back is linear.
        swapped: Directions that changed names, see :func:`follow_slices`; twice the same where none did.
    """

    box: tuple[slice, slice, slice]
    canonical_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    spacing: Spacing
    step: Spacing
    body: CoarseMask
    order: int = 1
    swapped: tuple[int, int] = (0, 0)

    @property
    def box_shape(self) -> tuple[int, int, int]:
        """Shape of the box in scan voxels."""
        x, y, z = (s.stop - s.start for s in self.box)
        return x, y, z

    def to_model(self) -> list[FloatArray]:
        """Return the weights from the box to the model's grid."""
        return [
            axis_weights(n, m, step, order=self.order)
            for n, m, step in zip(self.box_shape, self.shape, self.step, strict=True)
        ]

    def to_scan(self) -> list[FloatArray]:
        """Return the weights from the model's grid back to the box."""
        return [axis_weights(m, n, 1 / step) for n, m, step in zip(self.box_shape, self.shape, self.step, strict=True)]

    def body_planes(self, start: int, stop: int) -> Tensor:
        """Return the body on axial planes of the model's grid, shape (stop - start, Y, X), bool: the nearest voxel."""
        at = [
            np.clip(np.floor((np.arange(m) + 0.5) * step).astype(np.intp) + s.start, s.start, s.stop - 1)
            for m, step, s in zip(self.shape, self.step, self.box, strict=True)
        ]
        return torch.from_numpy(np.ascontiguousarray(self.body.at(at[0], at[1], at[2][start:stop]).T))


_THICKER = 1.2
"""A scan whose axes differ by less has no slices to follow."""
_ALIKE = 2.0
"""Slices up to so many times as far apart as the grid's, or as close, are taken as they are."""


def follow_slices(scan: Volume, config: PreprocessConfig) -> Volume:
    """Turn a scan so that its slices lie as those of the model's grid do, if the config asks for that.

    The direction across the scan's slices and the one across the grid's swap names (left-right, front-back,
    head-foot), so that axial, coronal and sagittal slices all keep their resolution on one grid. Its voxels stay where
    they are: a mask goes back by this volume's own ``from_canonical``. A scan turned already stays as it is.

    Args:
        scan: Any orientation.
        config: With ``follow_slices``; else the scan is returned.

    Returns:
        A view with another affine: of use on its own grid only.
    """
    return _renamed(scan, _swapped(scan, config))


def _swapped(scan: Volume, config: PreprocessConfig) -> tuple[int, int]:
    spacing = scan.to_canonical().spacing
    across, wanted = int(np.argmax(spacing)), int(np.argmax(config.spacing))
    if not config.follow_slices or spacing[across] <= _THICKER * spacing[wanted]:
        return 0, 0
    return across, wanted


def _renamed(scan: Volume, swapped: tuple[int, int]) -> Volume:
    first, second = swapped
    if first == second:
        return scan
    affine = scan.affine.copy()
    affine[[first, second]] = affine[[second, first]]
    return replace(scan, affine=affine)


def _spacing(canonical: Volume, config: PreprocessConfig) -> Spacing:
    """Return the grid's voxel size in this scan: across slices the scan's own, where slices are followed."""
    spacing = list(config.spacing)
    across = int(np.argmax(spacing))
    own = canonical.spacing[across]
    if config.follow_slices and 1 / _ALIKE <= own / spacing[across] <= _ALIKE:
        spacing[across] = own
    return spacing[0], spacing[1], spacing[2]


def place(canonical: Volume, config: PreprocessConfig) -> Placement:
    """Find the body of a canonical scan and lay the model's grid over its box."""
    body = locate_body(canonical.array, canonical.spacing, config.modality)
    box = body.box([int(np.ceil(_MARGIN_MM / s)) for s in canonical.spacing])
    spacing = _spacing(canonical, config)
    step = tuple(m / s for m, s in zip(spacing, canonical.spacing, strict=True))
    shape = tuple(max(1, round((s.stop - s.start) / f)) for s, f in zip(box, step, strict=True))
    return Placement(
        box=box,
        canonical_shape=canonical.grid.shape,
        spacing=spacing,
        shape=(shape[0], shape[1], shape[2]),
        step=(step[0], step[1], step[2]),
        body=body,
        order=config.order,
    )


def preprocess(scan: Volume, config: PreprocessConfig) -> tuple[FloatArray, Placement]:
    """Bring a scan to the model's grid: canonical axes, cropped to the body, at the model's spacing.

    Where the config follows slices, axes are those of :func:`follow_slices`.

    Args:
        scan: On its own grid, any orientation.
        config: Gives modality, spacing and interpolation.

    Returns:
        Values in the scan's units, shape (X, Y, Z), and the way back.
    """
    swapped = _swapped(scan, config)
    canonical = _renamed(scan, swapped).to_canonical()
    placement = replace(place(canonical, config), swapped=swapped)
    return resample(canonical.array[placement.box], placement.to_model()), placement


def preprocess_label(label: Volume, placement: Placement) -> NDArray[np.uint8]:
    """Bring a mask to the model's grid: 1 where foreground fills at least half of the voxel."""
    foreground = _renamed(label, placement.swapped).to_canonical().array[placement.box] > 0
    weights = [
        axis_weights(n, m, step)
        for n, m, step in zip(placement.box_shape, placement.shape, placement.step, strict=True)
    ]
    return (resample(foreground, weights) >= 0.5).astype(np.uint8)


def intensity_range(image: NDArray[Any], config: IntensityConfig) -> tuple[float, float]:
    """Return the values that become -1 and 1.

    Args:
        image: The whole scan on the model's grid; percentiles and the median are taken where it is brighter than its
            own mean, which is the body.
        config: The rule.
    """
    if config.kind == "window":
        return config.low, config.high
    bright = image[image > image.mean()]
    body = bright if bright.size else image
    if config.kind == "median":
        middle = max(float(np.median(body)), 1e-3)
        return config.low * middle, config.high * middle
    low, high = np.percentile(body, (config.low, config.high))
    return min(0.0, float(low)), max(float(high), 1e-3)


def normalize(image: FloatArray, limits: tuple[float, float]) -> FloatArray:
    """Map ``limits`` linearly to -1 and 1 and clip."""
    low, high = limits
    scaled = (image - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    return np.clip(scaled, -1, 1, out=scaled)


def denormalize(values: FloatArray, limits: tuple[float, float]) -> FloatArray:
    """Map -1 and 1 back to ``limits``; what :func:`normalize` clipped stays at them."""
    low, high = limits
    result: FloatArray = (values + np.float32(1)) * np.float32((high - low) / 2) + np.float32(low)
    return result


def air_value(config: PreprocessConfig) -> float:
    """Return what surrounds a body: the value that patches and windows are padded with, before normalisation."""
    return -1024.0 if config.modality == "ct" else 0.0


class ModelGridScan:
    """A scan on the model's grid, normalised, made a few axial planes at a time: what :func:`preprocess` makes whole.

    A rule that looks at the whole scan (percentiles) needs it whole once; only then is it kept.

    Attributes:
        shape: (X, Y, Z) on the model's grid.
        placement: The way back.
    """

    def __init__(self, scan: Volume, config: PreprocessConfig) -> None:
        """Find the body of a scan of any orientation."""
        canonical = follow_slices(scan, config).to_canonical()
        self.placement = place(canonical, config)
        self.shape = self.placement.shape
        self._array: NDArray[Any] = canonical.array[self.placement.box]
        self._weights = self.placement.to_model()
        self._whole: FloatArray | None = None
        if config.intensity.kind != "window":
            self._whole = resample(self._array, self._weights)
        self._limits = intensity_range(self._array if self._whole is None else self._whole, config.intensity)

    def planes(self, start: int, stop: int) -> Tensor:
        """Return normalised planes ``start`` to ``stop`` along z, shape (stop - start, Y, X), float32; air is -1."""
        if self._whole is None:
            planes = resample_planes(self._array, self._weights, start, stop)
        else:
            planes = torch.from_numpy(np.ascontiguousarray(self._whole[:, :, start:stop].T))
        low, high = self._limits
        # the operations of `normalize` in their order; the first one not in place: planes may be the scan's own memory
        return planes.sub(low).mul_(float(np.float32(2 / (high - low)))).sub_(1).clamp_(-1, 1)

    def body(self, start: int, stop: int) -> Tensor:
        """Return where the body may be on these planes, shape (stop - start, Y, X), bool."""
        return self.placement.body_planes(start, stop)
