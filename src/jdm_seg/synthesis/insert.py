"""Deposits into real scans: on the fly in patches, as a MONAI transform, or in a whole scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms import MapTransform, Randomizable
from numpy.typing import NDArray
from scipy import ndimage
from threadpoolctl import ThreadpoolController

from jdm_seg.body_mask import bounding_box
from jdm_seg.cases import Modality
from jdm_seg.neighbourhood import foreground_indices
from jdm_seg.synthesis.anatomy.host import Host, build_host, chest_wall
from jdm_seg.synthesis.anatomy.tissue import BONE, Tissue, is_one_of
from jdm_seg.synthesis.blend import (
    background_hu,
    estimate_blur,
    insert_ct,
    insert_overlays,
    insert_stir,
    sample_scan_blur,
)
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis, Priors, render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.lookalikes import AMBIGUOUS, KINDS_IN_SCANS, sample_lookalikes
from jdm_seg.synthesis.deposits.overlay import render_lookalike
from jdm_seg.synthesis.estimate import estimate_stir_tissue, estimate_tissue
from jdm_seg.synthesis.stir.acquisition import sample_stir
from jdm_seg.synthesis.visibility import seen_on_ct, seen_on_stir
from jdm_seg.volume import Spacing, slice_axis

__all__ = [
    "ANATOMY",
    "HOST_KEYS",
    "IGNORE",
    "OEDEMA",
    "SKELETON",
    "SPACING_KEY",
    "InsertCalcinosisd",
    "estimate_stir_tissue",
    "estimate_tissue",
    "host_arrays",
    "host_of_scan",
    "insert_ct",
    "insert_stir",
    "sample_scan_blur",
    "unclear_in_scan",
]

SKELETON = 2
"""Label of bone where a network learns it beside deposits (``data.skeleton``)."""
OEDEMA = 2
"""The same on STIR (``data.oedema``)."""
ANATOMY = {
    2: (*BONE, Tissue.CARTILAGE),
    3: (Tissue.SKIN, Tissue.FAT, Tissue.VISCERAL_FAT),
    4: (Tissue.FASCIA, Tissue.TENDON),
    5: (Tissue.BLOOD, Tissue.FLUID),
}
"""Labels of tissues where a network learns them beside deposits (``data.anatomy``)."""
IGNORE = 255
"""Label of voxels that neither teach nor count: dense in the original scan, and nobody knows what they are."""
HOST_KEYS = ("tissue", "depth_mm", "muscle_mm", "bone_mm", "background")
"""What insertion needs to know of every voxel of a scan."""
SPACING_KEY = "spacing"
"""Where a sample states its voxel size in mm, if that is not the same in all."""
SCAN_KEY = "scan_levels"
"""What it needs to know of the scan as a whole: blur in mm for CT (0 unknown); muscle and noise for STIR."""

_SMOOTH_MM = 0.8
"""Takes the steps of voxels out of the surfaces that sheets and plaques follow."""


def host_of_scan(image: NDArray[Any], spacing: Spacing, modality: Modality = "ct") -> Host:
    """Find where deposits may lie in an unlabelled scan.

    Args:
        image: HU or STIR magnitudes, shape (X, Y, Z), canonical axes.
        spacing: Voxel size in mm.
        modality: ``ct`` or ``stir``.
    """
    tissue = estimate_tissue(image, spacing) if modality == "ct" else estimate_stir_tissue(image, spacing)[0]
    # where organs begin is no surface of a muscle, nor what is dense within: sheets would follow the border of a guess
    whole = np.where(is_one_of(tissue, (Tissue.ORGAN, Tissue.DENSE)), Tissue.MUSCLE, tissue).astype(np.uint8)
    # nor is the border of what was scanned the skin
    view = bounding_box(image) if modality == "stir" else (slice(None),) * 3
    part = build_host(np.ascontiguousarray(whole[view]), spacing)
    sigma = [_SMOOTH_MM / s for s in spacing]
    depth, muscle, bone = np.zeros((3, *tissue.shape), np.float32)
    depth[view] = np.where(part.depth_mm > 0, ndimage.gaussian_filter(part.depth_mm, sigma, truncate=2), 0)
    muscle[view] = ndimage.gaussian_filter(part.muscle_mm, sigma, truncate=2)
    bone[view] = part.bone_mm
    return Host(tissue, spacing, depth, muscle, bone)


def host_arrays(image: NDArray[Any], spacing: Spacing, modality: Modality = "ct") -> dict[str, NDArray[Any]]:
    """Return what insertion needs to know of a scan, by :data:`HOST_KEYS`, each (1, X, Y, Z), and :data:`SCAN_KEY`.

    Measured once on the whole scan: a patch does not know how deep under the skin it lies.

    Args:
        image: HU or STIR magnitudes, shape (X, Y, Z), canonical axes.
        spacing: Voxel size in mm.
        modality: ``ct`` or ``stir``.
    """
    host = host_of_scan(image, spacing, modality)
    assert host.bone_mm is not None
    if modality == "ct":
        background = background_hu(image, host.soft, spacing)
        levels = np.array([estimate_blur(image, host.tissue, spacing) or 0.0, 0.0])
    else:
        background = np.zeros(image.shape, np.float32)
        levels = np.array(estimate_stir_tissue(image, spacing)[1])
    return {
        "tissue": host.tissue[None],
        "depth_mm": host.depth_mm[None],
        "muscle_mm": host.muscle_mm[None],
        "bone_mm": host.bone_mm[None],
        "background": background[None].astype(np.float16),
        SCAN_KEY: levels,
    }


class InsertCalcinosisd(MapTransform, Randomizable):  # type: ignore[misc]
    """MONAI dictionary transform: draw deposits and look-alikes into an unlabelled patch and write its label.

    Reads ``image`` (HU or STIR magnitudes, (1, X, Y, Z)) and what :func:`host_arrays` made of the whole scan, cut to
    the same patch; where that is missing it is measured on the patch. Writes ``image`` and ``label`` (0, 1,
    255 = ignore, 2 = bone if asked for; other classes of a label that the sample has stay beside the deposits). A share
    of patches receives no deposit, so that the network meets negatives.
    """

    def __init__(
        self,
        spacing: Spacing,
        acquired_key: str = "acquired_spacing",
        probability: float = 0.85,
        priors: Priors | None = None,
        keys: KeysCollection = ("image",),
        *,
        modality: Modality = "ct",
        lookalikes: float = 0.5,
        skeleton: bool = False,
    ) -> None:
        """Set what is constant over patches.

        Args:
            spacing: Voxel size of the patches in mm, where a sample does not state its own by :data:`SPACING_KEY`.
            acquired_key: Where a sample states the voxel size it was scanned with (mm); blur cannot be finer.
            probability: Share of patches that receive deposits.
            priors: How deposits are drawn; by default fewer than in a whole scan.
            keys: The image key.
            modality: ``ct`` or ``stir``.
            lookalikes: Share of patches that receive look-alikes; CT only.
            skeleton: Whether to label bone as :data:`SKELETON`; CT only.
        """
        MapTransform.__init__(self, keys)
        self.spacing = spacing
        self.acquired_key = acquired_key
        self.probability = probability
        self.priors = priors or Priors(count_mean=4.0)
        self.modality = modality
        self.lookalikes = lookalikes if modality == "ct" else 0.0
        self.skeleton = skeleton and modality == "ct"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the sample with deposits in its image and a label beside it."""
        # products of small matrices by the hundred: threads of a BLAS cost three times what they compute
        with _blas().limit(limits=1, user_api="blas"):
            return self._inserted(dict(data))

    def _inserted(self, sample: dict[Hashable, Any]) -> dict[Hashable, Any]:
        rng = np.random.default_rng(self.R.randint(2**31))
        image = np.asarray(sample[self.keys[0]])[0]
        x, y, z = (float(mm) for mm in sample.get(SPACING_KEY, self.spacing))
        spacing = x, y, z
        if not all(key in sample for key in HOST_KEYS):
            sample.update(host_arrays(image, spacing, self.modality))
        arrays = {key: np.asarray(sample[key])[0] for key in HOST_KEYS}
        host = Host(arrays["tissue"], spacing, *(arrays[key] for key in HOST_KEYS[1:4]))
        # what is dense among ribs is cartilage that turns into bone, or contrast medium; calcinosis lies farther out
        label = np.array(sample["label"])[0] if "label" in sample else np.zeros(image.shape, np.uint8)
        label[(host.tissue == Tissue.DENSE) & ~chest_wall(host)] = IGNORE
        if self.skeleton:
            label[host.tissue == Tissue.CORTEX] = SKELETON
        first, second = np.asarray(sample.get(SCAN_KEY, (0.0, 0.0))).tolist()
        if self.modality == "stir":
            if rng.random() < self.probability:
                image = self._insert_stir(image, label, host, (first, second), rng)
        else:
            acquisition = sample_scan_blur(rng, sample.get(self.acquired_key, spacing), first or None)
            background = arrays["background"]
            if rng.random() < self.lookalikes:
                image, host = self._insert_lookalikes(image, label, host, acquisition, background, rng)
            if rng.random() < self.probability:
                calcinosis = render_deposits(sample_deposits(host, rng, self.priors), host)
                path = float(rng.uniform(10, 30))
                inserted = insert_ct(image, calcinosis, host, acquisition, background=background, path_cm=path)
                _write_label(label, calcinosis, seen_on_ct(calcinosis.label, inserted, image))
                image = inserted
        sample[self.keys[0]] = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
        sample["label"] = torch.from_numpy(label)[None]
        return sample

    def _insert_stir(
        self,
        image: NDArray[Any],
        label: NDArray[np.uint8],
        host: Host,
        levels: tuple[float, float],
        rng: np.random.Generator,
    ) -> NDArray[Any]:
        calcinosis = render_deposits(sample_deposits(host, rng, self.priors), host)
        acquisition = sample_stir(
            rng, calcinosis.deposits, float(rng.uniform(3, 30)), slice_axis=slice_axis(host.spacing)
        )
        inserted = insert_stir(image, calcinosis, host, acquisition, levels, rng)
        _write_label(label, calcinosis, seen_on_stir(calcinosis.label, inserted, image, *levels, host.spacing))
        return inserted

    def _insert_lookalikes(
        self,
        image: NDArray[Any],
        label: NDArray[np.uint8],
        host: Host,
        acquisition: Any,
        background: NDArray[Any],
        rng: np.random.Generator,
    ) -> tuple[NDArray[Any], Host]:
        """Draw look-alikes; the host that comes back offers their place to no deposit."""
        overlays = []
        tissue = host.tissue.copy()
        for item in sample_lookalikes(host, rng, kinds=KINDS_IN_SCANS):
            overlay = render_lookalike(item, host)
            if overlay is None:
                continue
            overlays.append((overlay, item.hu))
            filled = overlay.coverage > 0.2
            tissue[overlay.box][filled] = overlay.code[filled]
            if item.kind in AMBIGUOUS:
                label[overlay.box][filled] = IGNORE
        return insert_overlays(image, overlays, host, acquisition, background), replace(host, tissue=tissue)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _write_label(label: NDArray[np.uint8], calcinosis: Calcinosis, seen: NDArray[np.bool_]) -> None:
    """Write 1 where deposits can be seen, and :data:`IGNORE` at the others."""
    where = tuple(foreground_indices(calcinosis.label).T)
    label[where] = np.where(seen[where], 1, IGNORE)


def unclear_in_scan(calcinosis: Calcinosis, tissue: NDArray[np.uint8], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mark what neither teaches nor counts in a scan with deposits inserted.

    That is: what was dense already, for nobody knows what it is, and deposits too faint to see. What can be seen of a
    deposit is never marked.

    Args:
        calcinosis: What was inserted, shape (X, Y, Z).
        tissue: :class:`Tissue` codes of the scan.
        seen: Voxels of deposits that can be seen, (X, Y, Z), see :mod:`~jdm_seg.synthesis.visibility`.

    Returns:
        Mask, uint8 {0, 1}, shape (X, Y, Z).
    """
    label = (tissue == Tissue.DENSE).view(np.uint8) * np.uint8(IGNORE)
    _write_label(label, calcinosis, seen)
    ignored: NDArray[np.uint8] = (label == IGNORE).view(np.uint8)
    return ignored
