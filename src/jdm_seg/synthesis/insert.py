"""Deposits into a real scan: the scan stays, calcium is added where soft tissue allows it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import cc3d
import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms import MapTransform, Randomizable
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import find_body
from jdm_seg.physics import HU_MAX
from jdm_seg.synthesis.calcinosis import Calcinosis, Priors, render_deposits, sample_deposits
from jdm_seg.synthesis.ct import HU_MIN, CtAcquisition, calcium_to_hu
from jdm_seg.synthesis.host import Host, build_host
from jdm_seg.synthesis.tissue import Tissue
from jdm_seg.volume import Spacing

IGNORE = 255
"""Label of voxels that neither teach nor count: dense in the original scan, and nobody knows what they are."""

_SKIN_MM = 1.8
_BONE_HU = 180
_BONE_MM3 = 800.0
_DENSE_HU = 130
_VISIBLE_HU = 80
"""A deposit that adds less on average drowns in the noise and fat of a low-dose scan."""


def estimate_tissue(hu: NDArray[Any], spacing: Spacing) -> NDArray[np.uint8]:
    """Tell air, skin, fat, muscle and bone apart in an unlabelled CT by CT number, size and neighbourhood.

    Bone: connected parts over 180 HU of more than 0.8 mL, their enclosed marrow, and a voxel of partial volume around.
    Smaller dense parts become :attr:`Tissue.DENSE`: in a real scan nobody knows whether they are vessel calcium,
    cartilage, contrast or metal, so nothing is placed there and nothing is learnt from them.

    Args:
        hu: CT numbers, shape (X, Y, Z), z along the patient.
        spacing: Voxel size in mm.

    Returns:
        :class:`Tissue` codes, shape (X, Y, Z), uint8.
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), [0.8 / s for s in spacing])
    body = cc3d.largest_k(np.ascontiguousarray(smooth > -400), k=3, connectivity=6) > 0
    body = ndimage.binary_fill_holes(body, structure=np.ones((3, 3, 1), bool)) & (smooth > -600)
    body &= find_body(hu, spacing, "ct", margin_mm=0)  # without table and sheets
    tissue = np.where(body, np.where(smooth < -25, Tissue.FAT, Tissue.MUSCLE), Tissue.AIR).astype(np.uint8)
    depth = ndimage.distance_transform_edt(body, spacing)
    tissue[body & (depth <= _SKIN_MM)] = Tissue.SKIN
    dense = body & (hu > _DENSE_HU) & (smooth > _DENSE_HU - 30)
    bone = _bone(hu, body, spacing)
    tissue[dense] = Tissue.DENSE
    tissue[bone] = Tissue.CORTEX
    return tissue


def _bone(hu: NDArray[Any], body: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.bool_]:
    voxel = float(np.prod(spacing))
    bright = np.ascontiguousarray(body & (hu > _BONE_HU))
    parts: NDArray[np.bool_] = (
        cc3d.dust(bright, threshold=max(1, int(_BONE_MM3 / voxel)), connectivity=18, in_place=False) > 0
    )
    if not parts.any():
        return parts
    steps = [max(1, round(2.0 / s)) for s in spacing]
    reach = np.ones([2 * s + 1 for s in (*steps[:2], 0)], bool)
    closed = ndimage.binary_closing(np.pad(parts, 4), reach)[4:-4, 4:-4, 4:-4]
    filled = np.stack([ndimage.binary_fill_holes(closed[..., k]) for k in range(closed.shape[2])], axis=-1)
    result: NDArray[np.bool_] = ndimage.binary_dilation(filled, np.ones((3, 3, 1), bool)) & body
    return result


def insert_ct(hu: NDArray[Any], calcinosis: Calcinosis, host: Host, acquisition: CtAcquisition) -> NDArray[Any]:
    """Add calcium to a finished CT.

    The host's noise and texture stay underneath. Bone and air keep their values exactly, and so does every voxel
    that no calcium reaches.

    Args:
        hu: CT numbers, shape (X, Y, Z).
        calcinosis: Rendered on the same grid.
        host: Tells where soft tissue is.
        acquisition: Tube voltage and blur of this scan.

    Returns:
        HU of the type of ``hu``, changed voxels clipped to the 12-bit range.
    """
    added = np.where(host.soft, calcium_to_hu(calcinosis.calcium, acquisition, host.spacing), 0)
    reached = np.abs(added) >= 0.5
    result: NDArray[Any] = np.array(hu)
    changed = np.clip(hu[reached] + added[reached], HU_MIN, HU_MAX)
    result[reached] = np.rint(changed) if np.issubdtype(result.dtype, np.integer) else changed
    return result


HOST_KEYS = ("tissue", "depth_mm", "muscle_mm")


def host_arrays(hu: NDArray[Any], spacing: Spacing) -> dict[str, NDArray[Any]]:
    """Return what insertion needs to know of a scan, by :data:`HOST_KEYS`, each (1, X, Y, Z).

    Measured once on the whole scan: a patch does not know how deep under the skin it lies.
    """
    host = build_host(estimate_tissue(hu, spacing), spacing)
    return {"tissue": host.tissue[None], "depth_mm": host.depth_mm[None], "muscle_mm": host.muscle_mm[None]}


class InsertCalcinosisd(MapTransform, Randomizable):  # type: ignore[misc]
    """MONAI dictionary transform: draw deposits into an unlabelled CT patch and write its label.

    Reads ``image`` (HU, (1, X, Y, Z)) and what :func:`host_arrays` made of the whole scan, cut to the same patch;
    writes ``image`` and ``label`` (0, 1, 255 = ignore). A share of patches is left as it is, so that the network meets
    negatives.
    """

    def __init__(
        self,
        spacing: Spacing,
        acquired_key: str = "acquired_spacing",
        probability: float = 0.85,
        priors: Priors | None = None,
        keys: KeysCollection = ("image",),
    ) -> None:
        """Set what is constant over patches.

        Args:
            spacing: Voxel size of the patches in mm.
            acquired_key: Where a sample states the voxel size it was scanned with (mm); blur cannot be finer.
            probability: Share of patches that receive deposits.
            priors: How deposits are drawn.
            keys: The image key.
        """
        MapTransform.__init__(self, keys)
        self.spacing = spacing
        self.acquired_key = acquired_key
        self.probability = probability
        self.priors = priors or Priors()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the sample with deposits in its image and a label beside it."""
        sample = dict(data)
        rng = np.random.default_rng(self.R.randint(2**31))
        hu = np.asarray(sample[self.keys[0]])[0]
        tissue = np.asarray(sample["tissue"])[0]
        label = np.where(tissue == Tissue.DENSE, IGNORE, 0).astype(np.uint8)
        if rng.random() < self.probability:
            host = Host(tissue, self.spacing, *(np.asarray(sample[key])[0] for key in HOST_KEYS[1:]))
            calcinosis = render_deposits(sample_deposits(host, rng, self.priors), host)
            acquisition = sample_scan_blur(rng, sample.get(self.acquired_key, self.spacing))
            inserted = insert_ct(hu, calcinosis, host, acquisition)
            label = np.where(calcinosis.label > 0, _seen(calcinosis, inserted - hu), label).astype(np.uint8)
            hu = inserted
        sample[self.keys[0]] = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))[None]
        sample["label"] = torch.from_numpy(label)[None]
        return sample


def _seen(calcinosis: Calcinosis, added_hu: NDArray[Any]) -> NDArray[np.uint8]:
    """Return 1 at deposits that blur has left visible, and :data:`IGNORE` at the others.

    Teaching a network that a faint grey streak is calcium teaches it to see calcium in every tendon.
    """
    instances = calcinosis.instances.ravel()
    voxels = np.bincount(instances)
    mean = np.bincount(instances, weights=added_hu.ravel()) / np.maximum(voxels, 1)
    result: NDArray[np.uint8] = np.where(mean >= _VISIBLE_HU, 1, IGNORE).astype(np.uint8)[calcinosis.instances]
    return result


def sample_scan_blur(rng: np.random.Generator, acquired: Spacing) -> CtAcquisition:
    """Draw the blur and tube voltage to insert with, never finer than the scan's own voxels."""
    in_plane = float(max(acquired[0], acquired[1]) * rng.uniform(0.9, 1.7))
    return CtAcquisition(
        kv=str(rng.choice(["80", "100", "120", "140"])),
        psf_mm=(in_plane, in_plane, max(in_plane, float(acquired[2] * rng.uniform(0.8, 1.2)))),
        noise_hu=0.0,
        grain_mm=1.0,
        overshoot=float(rng.uniform(0.1, 0.3)) if rng.random() < 0.2 else 0.0,
        hu={},
    )
