"""Cases to patches: loading, cropping and normalisation while training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import cc3d
import monai.transforms as mt
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.cases import Case, as_modality
from jdm_seg.config import PreprocessConfig
from jdm_seg.errors import CaseNotFoundError
from jdm_seg.model_grid import Placement
from jdm_seg.model_grid import air_value as air_value
from jdm_seg.model_grid import intensity_range as intensity_range
from jdm_seg.model_grid import normalize as normalize
from jdm_seg.model_grid import preprocess as preprocess
from jdm_seg.model_grid import preprocess_label as preprocess_label
from jdm_seg.synthesis.anatomy.tissue import Tissue, is_one_of
from jdm_seg.synthesis.insert import (
    ANATOMY,
    HOST_KEYS,
    IGNORE,
    OEDEMA,
    SKELETON,
    SPACING_KEY,
    estimate_tissue,
    host_arrays,
)
from jdm_seg.volume import Spacing, Volume, read_volume

FloatArray = NDArray[np.float32]
_LESION_POINTS = 64
_HARD_HU = 150.0
"""Brighter than blood and muscle in every scan without contrast."""
_SOFT_HU = 40.0
_HARD_BLOCK = 16
"""Voxels."""


class LoadCase(mt.Transform):  # type: ignore[misc]
    """Case → sample on the model's grid; deterministic, so its result is cached.

    Keys: ``case_id``; ``image`` (1, X, Y, Z) float32 in the scan's units; ``label`` (1, X, Y, Z) uint8; ``limits`` of
    the intensity rule; ``points`` (N, 4): voxels of deposits as (lesion, x, y, z); ``hard`` (N, 3): voxels that look
    like one and are none; ``acquired_spacing`` and ``spacing``, of the model's grid in this scan, in mm;
    with ``host=True`` also what insertion needs, by :data:`~jdm_seg.synthesis.insert.HOST_KEYS`.
    """

    def __init__(
        self,
        config: PreprocessConfig,
        *,
        host: bool = False,
        skeleton: bool = False,
        oedema: bool = False,
        anatomy: bool = False,
    ) -> None:
        """Set the preprocessing, whether deposits will be inserted, and what else gets a label.

        Args:
            config: The preprocessing.
            host: Whether deposits will be inserted.
            skeleton: Bone as a class (CT).
            oedema: Oedema as a class, where the case has a mask of it (STIR).
            anatomy: Tissues as classes, by the codes that the case has.
        """
        self.config = config
        self.host = host
        self.skeleton = skeleton and config.modality == "ct"
        self.oedema = oedema and config.modality == "stir"
        self.anatomy = anatomy

    def __call__(self, case: Case) -> dict[str, Any]:
        """Read and preprocess one case; see the class for the keys."""
        scan = read_volume(case.image)
        image, placement = preprocess(scan, self.config)
        label = np.zeros(image.shape, np.uint8)
        if case.label is not None:
            mask = read_volume(case.label)
            scan.check_same_grid(mask)
            label = preprocess_label(mask, placement)
        for path, code in ((case.oedema if self.oedema else None, OEDEMA), (case.ignore, IGNORE), (case.faint, IGNORE)):
            if path is not None:
                zone = read_volume(path)
                scan.check_same_grid(zone, f"{path.parent.name} mask")
                label[(preprocess_label(zone, placement) > 0) & ((label == 0) | (code == IGNORE))] = code
        if self.anatomy:
            _label_tissues(label, case, scan, placement)
        if self.skeleton:
            label[(label == 0) & _bone(image, label == 1, placement.spacing)] = SKELETON
        sample = {
            "case_id": case.case_id,
            "image": image[None],
            "label": label[None],
            "limits": intensity_range(image, self.config.intensity),
            "points": _lesion_points((label == 1).view(np.uint8)),
            "hard": _hard_points(image, label, self.config.modality),
            "acquired_spacing": scan.to_canonical().spacing,
            SPACING_KEY: placement.spacing,
        }
        return sample | (host_arrays(image, placement.spacing, as_modality(self.config.modality)) if self.host else {})


def _label_tissues(label: NDArray[np.uint8], case: Case, scan: Volume, placement: Placement) -> None:
    """Write the classes of tissues where there is no deposit.

    Raises:
        CaseNotFoundError: If nobody knows the tissues of this scan: all of it would be taught as background.
    """
    if case.anatomy is None:
        raise CaseNotFoundError(
            case.case_id,
            expected="tissue codes (anatomy), for data.anatomy",
            found="none in the manifest",
            remedy="train on synthetic bodies alone, or leave data.anatomy off",
        )
    codes = read_volume(case.anatomy)
    scan.check_same_grid(codes, "anatomy")
    for number, tissues in ANATOMY.items():
        mask = Volume(is_one_of(np.asarray(codes.array), tissues).view(np.uint8), codes.affine, codes.name)
        label[(preprocess_label(mask, placement) > 0) & (label == 0)] = number


def _bone(image: FloatArray, deposits: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.bool_]:
    """Find the skeleton of a labelled scan. Deposits, some as dense and as large as bone, are painted over first."""
    hidden = np.where(ndimage.binary_dilation(deposits, iterations=2), _SOFT_HU, image) if deposits.any() else image
    bone: NDArray[np.bool_] = estimate_tissue(hidden, spacing) == Tissue.CORTEX
    return bone


def _lesion_points(label: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return up to 64 voxels of every lesion, so that a small one is met as often as a large one."""
    labels = cc3d.connected_components(label, connectivity=26)
    rng = np.random.default_rng(0)
    points = []
    for number, voxels in enumerate(_voxels_by_label(labels)):
        chosen = voxels if len(voxels) <= _LESION_POINTS else rng.permutation(voxels)[:_LESION_POINTS]
        points.append(np.column_stack([np.full(len(chosen), number), chosen]))
    return np.concatenate(points).astype(np.int32) if points else np.zeros((0, 4), np.int32)


def _hard_points(image: FloatArray, label: NDArray[np.uint8], modality: str) -> NDArray[np.int32]:
    """Return up to one bright voxel of every block of the scan, so that a small vessel is met as often as a femur.

    Only CT has a value that calcium is brighter than; on STIR what is dark depends on the place.
    """
    if modality != "ct":
        return np.zeros((0, 3), np.int32)
    where = np.argwhere((image > _HARD_HU) & ((label == 0) | (label == SKELETON)))
    where = np.random.default_rng(0).permutation(where)
    _, first = np.unique(where // _HARD_BLOCK, axis=0, return_index=True)
    return where[first].astype(np.int32)


def _voxels_by_label(labels: NDArray[Any]) -> list[NDArray[np.intp]]:
    where = np.argwhere(labels)
    numbers = labels[tuple(where.T)]
    order = np.argsort(numbers, kind="stable")
    return np.split(where[order], np.flatnonzero(np.diff(numbers[order])) + 1) if len(where) else []


class CropPatchd(mt.MapTransform, mt.Randomizable):  # type: ignore[misc]
    """Cut one patch; a share of them around a deposit, with a random offset.

    A deposit always in the centre would teach the network that deposits lie in centres.
    """

    def __init__(
        self, patch_size: tuple[int, int, int], foreground_share: float, air: float, *, hard_share: float = 0.0
    ) -> None:
        """Set what patches hold.

        Args:
            patch_size: In voxels.
            foreground_share: Share of patches around a deposit, in scans that have one.
            air: Padding value of images.
            hard_share: Share of the other patches around something that looks like a deposit.
        """
        mt.MapTransform.__init__(self, ("image", "label", *HOST_KEYS), allow_missing_keys=True)
        self.patch_size = patch_size
        self.foreground_share = foreground_share
        self.air = air
        self.hard_share = hard_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its arrays cut to the patch size, padded where the scan ends."""
        sample = dict(data)
        shape = sample["image"].shape[1:]
        points = sample["points"]
        hard = sample["hard"]
        at = None
        if len(points) and self.R.random() < self.foreground_share:
            lesion = self.R.choice(np.unique(points[:, 0]))
            members = points[points[:, 0] == lesion, 1:]
            at = members[self.R.randint(len(members))]
        elif len(hard) and self.R.random() < self.hard_share:
            at = hard[self.R.randint(len(hard))]
        if at is not None:
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
    if all(0 <= a <= extent - n for a, n, extent in zip(start, size, array.shape[1:], strict=True)):
        inside = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        return np.array(array[(slice(None), *inside)], order="C")
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
        label = torch.from_numpy(np.array(data["label"]))  # a copy: prepared cases are read-only maps
        return {"case_id": data["case_id"], "image": torch.from_numpy(image), "label": label}
