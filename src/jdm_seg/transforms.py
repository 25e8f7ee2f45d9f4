"""One preprocessing for training, validation and prediction, the way back to the scan's grid, and augmentation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import cc3d
import monai.transforms as mt
import numpy as np
import torch
from numpy.typing import NDArray

from jdm_seg.body_mask import bounding_box, find_body
from jdm_seg.cases import Case, as_modality
from jdm_seg.config import AugmentConfig, IntensityConfig, PreprocessConfig
from jdm_seg.resample import axis_weights, resample
from jdm_seg.synthesis.insert import HOST_KEYS, host_arrays
from jdm_seg.volume import Spacing, Volume, read_volume

FloatArray = NDArray[np.float32]
_MARGIN_MM = 6.0
_LESION_POINTS = 64


@dataclass(frozen=True)
class Placement:
    """How a model-grid array lies in its scan; what the way back needs.

    Attributes:
        box: The body's box in the canonical scan.
        canonical_shape: Shape of the whole canonical scan.
        shape: Shape on the model's grid.
        step: Model spacing over scan spacing along each axis.
        body: The body on the canonical scan, bool.
    """

    box: tuple[slice, slice, slice]
    canonical_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    step: Spacing
    body: NDArray[np.bool_]

    @property
    def box_shape(self) -> tuple[int, int, int]:
        """Shape of the box in scan voxels."""
        x, y, z = (s.stop - s.start for s in self.box)
        return x, y, z

    def to_model(self) -> list[FloatArray]:
        """Return the weights from the box to the model's grid."""
        return [axis_weights(n, m, step) for n, m, step in zip(self.box_shape, self.shape, self.step, strict=True)]

    def to_scan(self) -> list[FloatArray]:
        """Return the weights from the model's grid back to the box."""
        return [axis_weights(m, n, 1 / step) for n, m, step in zip(self.box_shape, self.shape, self.step, strict=True)]


def preprocess(scan: Volume, config: PreprocessConfig) -> tuple[FloatArray, Placement]:
    """Bring a scan to the model's grid: canonical axes, cropped to the body, at the model's spacing.

    Args:
        scan: On its own grid, any orientation.
        config: Gives modality and spacing.

    Returns:
        Values in the scan's units, shape (X, Y, Z), and the way back.
    """
    canonical = scan.to_canonical()
    body = find_body(canonical.array, canonical.spacing, config.modality)
    margin = [int(np.ceil(_MARGIN_MM / s)) for s in canonical.spacing]
    box = bounding_box(body, margin)
    step = tuple(m / s for m, s in zip(config.spacing, canonical.spacing, strict=True))
    shape = tuple(max(1, round((s.stop - s.start) / f)) for s, f in zip(box, step, strict=True))
    placement = Placement(
        box=box,
        canonical_shape=canonical.grid.shape,
        shape=(shape[0], shape[1], shape[2]),
        step=(step[0], step[1], step[2]),
        body=body,
    )
    return resample(canonical.array[box], placement.to_model()), placement


def preprocess_label(label: Volume, placement: Placement) -> NDArray[np.uint8]:
    """Bring a mask to the model's grid: 1 where foreground fills at least half of the voxel."""
    foreground = label.to_canonical().array[placement.box] > 0
    return (resample(foreground, placement.to_model()) >= 0.5).astype(np.uint8)


def intensity_range(image: NDArray[Any], config: IntensityConfig) -> tuple[float, float]:
    """Return the values that become -1 and 1.

    Args:
        image: The whole scan on the model's grid; percentiles are taken where it is brighter than its own mean,
            which is the body.
        config: The rule.
    """
    if config.kind == "window":
        return config.low, config.high
    bright = image[image > image.mean()]
    low, high = np.percentile(bright if bright.size else image, (config.low, config.high))
    return min(0.0, float(low)), max(float(high), 1e-3)


def normalize(image: FloatArray, limits: tuple[float, float]) -> FloatArray:
    """Map ``limits`` linearly to -1 and 1 and clip."""
    low, high = limits
    scaled = (image - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    return np.clip(scaled, -1, 1, out=scaled)


def air_value(config: PreprocessConfig) -> float:
    """Return what surrounds a body: the value that patches and windows are padded with, before normalisation."""
    return -1024.0 if config.modality == "ct" else 0.0


class LoadCase(mt.Transform):  # type: ignore[misc]
    """Case → sample on the model's grid; deterministic, so its result is cached.

    Keys: ``case_id``; ``image`` (1, X, Y, Z) float32 in the scan's units; ``label`` (1, X, Y, Z) uint8; ``limits`` of
    the intensity rule; ``points`` (N, 4): voxels of deposits as (lesion, x, y, z); ``acquired_spacing`` in mm;
    with ``host=True`` also what insertion needs, by :data:`~jdm_seg.synthesis.insert.HOST_KEYS`.
    """

    def __init__(self, config: PreprocessConfig, *, host: bool = False) -> None:
        """Set the preprocessing, and whether deposits will be inserted."""
        self.config = config
        self.host = host

    def __call__(self, case: Case) -> dict[str, Any]:
        """Read and preprocess one case; see the class for the keys."""
        scan = read_volume(case.image)
        image, placement = preprocess(scan, self.config)
        label = np.zeros(image.shape, np.uint8)
        if case.label is not None:
            mask = read_volume(case.label)
            scan.check_same_grid(mask)
            label = preprocess_label(mask, placement)
        sample = {
            "case_id": case.case_id,
            "image": image[None],
            "label": label[None],
            "limits": intensity_range(image, self.config.intensity),
            "points": _lesion_points(label),
            "acquired_spacing": scan.to_canonical().spacing,
        }
        return sample | (
            host_arrays(image, self.config.spacing, as_modality(self.config.modality)) if self.host else {}
        )


def _lesion_points(label: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return up to 64 voxels of every lesion, so that a small one is met as often as a large one."""
    labels = cc3d.connected_components(label, connectivity=26)
    rng = np.random.default_rng(0)
    points = []
    for number, voxels in enumerate(_voxels_by_label(labels)):
        chosen = voxels if len(voxels) <= _LESION_POINTS else rng.permutation(voxels)[:_LESION_POINTS]
        points.append(np.column_stack([np.full(len(chosen), number), chosen]))
    return np.concatenate(points).astype(np.int32) if points else np.zeros((0, 4), np.int32)


def _voxels_by_label(labels: NDArray[Any]) -> list[NDArray[np.intp]]:
    where = np.argwhere(labels)
    numbers = labels[tuple(where.T)]
    order = np.argsort(numbers, kind="stable")
    return np.split(where[order], np.flatnonzero(np.diff(numbers[order])) + 1) if len(where) else []


class CropPatchd(mt.MapTransform, mt.Randomizable):  # type: ignore[misc]
    """Cut one patch; a share of them around a deposit, with a random offset.

    A deposit always in the centre would teach the network that deposits lie in centres.
    """

    def __init__(self, patch_size: tuple[int, int, int], foreground_share: float, air: float) -> None:
        """Set the patch size in voxels, the share of patches with a deposit, and the padding value of images."""
        mt.MapTransform.__init__(self, ("image", "label", *HOST_KEYS), allow_missing_keys=True)
        self.patch_size = patch_size
        self.foreground_share = foreground_share
        self.air = air

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its arrays cut to the patch size, padded where the scan ends."""
        sample = dict(data)
        shape = sample["image"].shape[1:]
        points = sample["points"]
        if len(points) and self.R.random() < self.foreground_share:
            lesion = self.R.choice(np.unique(points[:, 0]))
            members = points[points[:, 0] == lesion, 1:]
            at = members[self.R.randint(len(members))]
            start = [int(p - self.R.uniform(0.15, 0.85) * n) for p, n in zip(at, self.patch_size, strict=True)]
        else:
            start = [
                int(self.R.uniform(-0.1, 1.1) * max(0, s - n)) for s, n in zip(shape, self.patch_size, strict=True)
            ]
        start = [
            min(max(a, 0), s - n) if s > n else -((n - s) // 2)
            for a, s, n in zip(start, shape, self.patch_size, strict=True)
        ]
        for key in self.key_iterator(sample):
            sample[key] = _cut(sample[key], start, self.patch_size, self.air if key == "image" else 0)
        return sample


def _cut(array: NDArray[Any], start: list[int], size: tuple[int, int, int], fill: float) -> NDArray[Any]:
    patch = np.full((array.shape[0], *size), fill, array.dtype)
    source, target = [slice(None)], [slice(None)]
    for a, n, extent in zip(start, size, array.shape[1:], strict=True):
        low, high = max(a, 0), min(a + n, extent)
        source.append(slice(low, high))
        target.append(slice(low - a, high - a))
    patch[tuple(target)] = array[tuple(source)]
    return patch


class Normalized(mt.MapTransform):  # type: ignore[misc]
    """Apply the intensity rule with the limits of the whole scan, and keep only what a batch needs."""

    def __init__(self) -> None:
        """Act on ``image``."""
        super().__init__(("image",))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return case id, normalised image and label as tensors."""
        image = normalize(np.asarray(data["image"]).astype(np.float32), data["limits"])
        label = torch.as_tensor(np.asarray(data["label"]))
        return {"case_id": data["case_id"], "image": torch.from_numpy(image), "label": label}


class Plain(mt.Transform):  # type: ignore[misc]
    """Return plain tensors: image float32, label uint8. MONAI's own tensor type would travel on into the network."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return case id, image and label."""
        image, label = (torch.as_tensor(np.asarray(data[key])) for key in ("image", "label"))
        return {"case_id": data["case_id"], "image": image.float(), "label": label.to(torch.uint8)}


def build_augment(config: AugmentConfig, spacing: Spacing) -> list[mt.Transform]:
    """Return MONAI transforms on normalised ``image`` and ``label`` patches, plain tensors at the end.

    Left-right flips are allowed: a limb's deposits know no side.
    """
    both = ("image", "label")
    radians = float(np.deg2rad(config.rotation_deg))
    # voxels are rotated, not mm: only in a plane of equal spacings is that a rotation of the body
    planes = ((1, 2), (0, 2), (0, 1))
    rotation = tuple(radians if np.isclose(spacing[a], spacing[b], rtol=0.1) else 0.0 for a, b in planes)
    return [
        *(mt.RandFlipd(both, prob=config.flip, spatial_axis=axis) for axis in range(3)),
        mt.RandAffined(
            both,
            prob=config.affine,
            rotate_range=rotation,
            scale_range=(config.scale,) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        mt.RandGaussianSmoothd("image", (0.3, 0.8), (0.3, 0.8), (0.3, 0.8), prob=config.smooth),
        mt.RandScaleIntensityd("image", 0.1, prob=config.contrast),
        mt.RandShiftIntensityd("image", 0.03, prob=config.contrast),
        mt.RandGaussianNoised("image", prob=config.noise, std=config.noise_std),
        Plain(),
    ]
