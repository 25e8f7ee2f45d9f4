"""Tissue of an unlabelled scan, as far as deposits need it: where soft tissue is, and what must not be touched."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import bounding_box, outline_body
from jdm_seg.synthesis.anatomy.host import distance
from jdm_seg.synthesis.anatomy.tissue import Tissue
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

_SKIN_MM = 1.8
_FAT_HU = -25.0
"""Half-way between fat and muscle."""
_GAS_HU = -400.0
_LUNG_MM3 = 100_000.0
"""Less gas than this is gut or airway; it makes no difference to deposits."""
_GAP_MM = 4.0
"""Gaps of skin folds and nostrils are narrower than twice this; gut gas and airways are wider somewhere."""
_EDGE_MM = 2.5
"""As far from lung and gas, blur makes soft tissue look like fat."""
_BONE_HU = 180
_CORTEX_HU = 320
"""Bone has some of this; enhanced organs and most vessels have not."""
_BONE_MM3 = 800.0
_HOLE_MM2 = 2000.0
"""Marrow of an adult's thigh and the spinal canal are smaller; the skull and a ring of pelvis and sacrum are not."""
_DENSE_HU = 130
_ISLAND_MM3 = 60.0
"""Smaller islands of fat in muscle, or of muscle in fat, are noise."""
_DEEP_MM = 15.0
_TRUNK_Z_MM = 40.0
_STIR_SMOOTH_MM = 1.6
_WALL_MM, _WALL_SHARE = 18.0, 0.42
"""Wall of the trunk: at least so thick, and this share of the deepest point of its slice (assumed)."""
_UNDER_FAT_MM = 16.0
"""In slices of the trunk what lies deeper under the subcutis is taken for inside: liver behind ribs, say. That costs
deep parts of the muscles of back and hip (chosen on one scan that others had segmented, see the tests)."""
_SUBCUTIS_MM = 3.0
"""Fat narrower than twice this does not join the subcutis with fat between or under muscles."""

_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[:, 1, 1] = _IN_PLANE[1, :, 1] = True


def estimate_tissue(hu: NDArray[Any], spacing: Spacing) -> NDArray[np.uint8]:
    """Tell air, skin, fat, muscle, bone, lung and gas apart in an unlabelled CT, by CT number, size and place.

    Bone: connected parts over 180 HU of more than 0.8 mL that hold cortex (320 HU), with what they enclose in a slice,
    and a voxel of partial volume around. Smaller or evenly bright dense parts become :attr:`Tissue.DENSE`: in a real
    scan nobody knows whether they are vessel calcium, contrast, metal or disease, so nothing is placed there and
    nothing is learnt from them. In slices with lung or gut gas, what lies deeper than the wall of the trunk becomes
    :attr:`Tissue.ORGAN`, as what the skull or the pelvis encloses, also where it is dense: contrast medium, stones,
    calcified vessels, valves and nodes are negatives there, for calcinosis lies in skin, fat, fascia and muscle.

    Args:
        hu: CT numbers, shape (X, Y, Z), z along the patient.
        spacing: Voxel size in mm.

    Returns:
        :class:`Tissue` codes, shape (X, Y, Z), uint8. Table, clothing and air around are :attr:`Tissue.AIR`.
    """
    body = outline_body(hu, spacing, "ct")
    tissue = np.zeros(hu.shape, np.uint8)
    box = bounding_box(body, 2)
    if box[0].stop:
        tissue[box] = _tissue_of_body(np.ascontiguousarray(hu[box]), np.ascontiguousarray(body[box]), spacing)
    return tissue


def _tissue_of_body(hu: NDArray[Any], body: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.uint8]:
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), [0.8 / s for s in spacing], truncate=2.5)
    voxel = float(np.prod(spacing))
    gas = smooth < _GAS_HU
    width = distance(gas, spacing)
    outside = _outside(gas, width, spacing)
    body = body & ~outside
    gas &= body
    tissue = np.where(body, _fat_or_muscle(smooth, voxel), Tissue.AIR).astype(np.uint8)
    depth = distance(body, spacing)
    bone, enclosed, dense = _bone(hu, smooth, body, spacing)
    tissue[enclosed] = Tissue.ORGAN
    wide = gas & (width > _GAP_MM)
    if wide.any():
        lung = cc3d.dust(gas, threshold=max(1, int(_LUNG_MM3 / voxel)), connectivity=6, in_place=False) > 0
        subcutis = _subcutis(tissue == Tissue.FAT, depth, spacing)
        _mark_viscera(tissue, gas, wide, lung, bone, depth, subcutis, spacing)
    dense = dense & ~_within(dense, tissue == Tissue.ORGAN)
    tissue[body & (depth <= _SKIN_MM)] = Tissue.SKIN
    tissue[gas] = Tissue.GAS
    if wide.any():
        tissue[lung & gas] = Tissue.LUNG
    tissue[dense] = Tissue.DENSE
    tissue[bone] = Tissue.CORTEX
    return tissue


def _outside(gas: NDArray[np.bool_], width: FloatArray, spacing: Spacing) -> NDArray[np.bool_]:
    """Return air that joins the sides of the scan through gaps wider than nostrils: between legs, under an arm."""
    parts = cc3d.connected_components(width > _GAP_MM, connectivity=6, binary_image=True)
    sides = (parts[0], parts[-1], parts[:, 0], parts[:, -1])
    outer = np.zeros(int(parts.max()) + 1, bool)
    outer[np.unique(np.concatenate([side.ravel() for side in sides]))] = True
    outer[0] = False
    result: NDArray[np.bool_] = gas & (distance(~outer[parts], spacing) < _GAP_MM + 1.5 * max(spacing))
    return result


def _fat_or_muscle(smooth: FloatArray, voxel: float) -> NDArray[np.uint8]:
    fat = smooth < _FAT_HU
    smallest = max(2, int(_ISLAND_MM3 / voxel))
    fat = cc3d.dust(fat, threshold=smallest, connectivity=6, in_place=True) > 0
    muscle = cc3d.dust(~fat, threshold=smallest, connectivity=6, in_place=True) > 0
    return np.where(muscle, Tissue.MUSCLE, Tissue.FAT).astype(np.uint8)


def _bone(
    hu: NDArray[Any], smooth: FloatArray, body: NDArray[np.bool_], spacing: Spacing
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return bone with its marrow, what skull and pelvis enclose, and other dense parts."""
    voxel = float(np.prod(spacing))
    dense = body & (hu > _DENSE_HU) & (smooth > _DENSE_HU - 30)
    bright = body & (hu > _BONE_HU) & (smooth > _BONE_HU - 60)
    parts = cc3d.connected_components(bright, connectivity=18, binary_image=True)
    sizes = np.bincount(parts.ravel())
    cortex = np.bincount(parts[hu > _CORTEX_HU], minlength=len(sizes))
    large = (sizes * voxel >= _BONE_MM3) & (cortex >= 0.05 * sizes)
    large[0] = False
    bone = large[parts]
    box = bounding_box(bone, [int(np.ceil(6 / s)) for s in spacing])
    enclosed = np.zeros_like(bone)
    if not box[0].stop:
        return bone, enclosed, dense
    near = bone[box]
    steps = [max(1, round(2.0 / s)) for s in spacing]
    reach = np.ones([2 * s + 1 for s in (*steps[:2], 0)], bool)
    closed = ndimage.binary_closing(np.pad(near, 4), reach)[4:-4, 4:-4, 4:-4]
    small, large_holes = _holes(closed, spacing)
    bone[box] = ndimage.binary_dilation(closed | small, np.ones((3, 3, 1), bool)) & body[box]
    enclosed[box] = large_holes & body[box] & ~bone[box]
    return bone, enclosed, dense & ~bone


def _holes(mask: NDArray[np.bool_], spacing: Spacing) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what the mask encloses in axial slices: holes as small as marrow, and larger ones."""
    filled = np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=-1)
    holes, _ = ndimage.label(filled & ~mask, _IN_PLANE)
    small = np.bincount(holes.ravel()) * spacing[0] * spacing[1] < _HOLE_MM2
    small[0] = False
    inner: NDArray[np.bool_] = small[holes]
    return inner, (holes > 0) & ~inner


def _within(dense: NDArray[np.bool_], viscera: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the dense parts that lie, by more than half, among the organs of the trunk."""
    parts = cc3d.connected_components(dense, connectivity=6, binary_image=True)
    inside = np.bincount(parts[viscera], minlength=int(parts.max()) + 1)
    among = inside > 0.5 * np.bincount(parts.ravel())
    among[0] = False
    result: NDArray[np.bool_] = among[parts]
    return result


def _subcutis(fat: NDArray[np.bool_], depth: FloatArray, spacing: Spacing) -> NDArray[np.bool_]:
    """Return the fat of each axial slice that joins the skin by ways wider than gaps between muscles."""
    wide = distance(fat, spacing) > _SUBCUTIS_MM
    parts, count = ndimage.label(wide, _IN_PLANE)
    joined = np.zeros(count + 1, bool)
    joined[np.unique(parts[wide & (depth < _SKIN_MM + _SUBCUTIS_MM + max(spacing))])] = True
    joined[0] = False
    result: NDArray[np.bool_] = fat & (distance(~joined[parts], spacing) <= _SUBCUTIS_MM)
    return result


def _mark_viscera(
    tissue: NDArray[np.uint8],
    gas: NDArray[np.bool_],
    wide: NDArray[np.bool_],
    lung: NDArray[np.bool_],
    bone: NDArray[np.bool_],
    depth: FloatArray,
    subcutis: NDArray[np.bool_],
    spacing: Spacing,
) -> None:
    """Mark, in slices of the trunk, what is no place for deposits: inner organs, and the rim of lung and gas."""
    slices = np.flatnonzero((wide & (depth > _DEEP_MM)).any(axis=(0, 1)))
    if slices.size == 0:
        return
    z = np.arange(gas.shape[2])
    trunk = np.abs(z[:, None] - slices).min(axis=1) * spacing[2] <= _TRUNK_Z_MM
    wall = np.maximum(_WALL_MM, _WALL_SHARE * depth.max(axis=(0, 1)))
    inner = ((depth > wall) | (distance(~subcutis, spacing) > _UNDER_FAT_MM) & (depth > _UNDER_FAT_MM)) & trunk
    rim = distance(~gas, spacing) < _EDGE_MM
    if lung.any():
        # vessels in the lung, and what lies between the lungs: enclosed by air, seen from left or right
        between = np.logical_or.accumulate(lung, axis=0) & np.logical_or.accumulate(lung[::-1], axis=0)[::-1]
        inner |= between & (depth > _WALL_MM / 2)
    tissue[(inner | rim) & ~bone & (tissue != Tissue.AIR)] = Tissue.ORGAN


def estimate_stir_tissue(signal: NDArray[Any], spacing: Spacing) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Tell air, skin, fat, muscle and fluid apart in an unlabelled STIR scan, by brightness and place.

    Suppressed fat is dark, muscle grey, fluid bright; bone cannot be told from fat and marrow from muscle by
    brightness alone, and is not.

    Args:
        signal: Magnitudes in the scanner's units, shape (X, Y, Z).
        spacing: Voxel size in mm.

    Returns:
        :class:`Tissue` codes, shape (X, Y, Z), uint8; and the signal of muscle and the standard deviation of the noise
        before magnitudes were taken, both in the scanner's units.
    """
    view = bounding_box(signal)  # vendors fill what was not scanned with 0: its border is no skin
    tissue = np.zeros(signal.shape, np.uint8)
    if not view[0].stop:
        return tissue, (0.0, 0.0)
    tissue[view], levels = _stir_tissue_in_view(np.ascontiguousarray(signal[view]), spacing)
    return tissue, levels


def _stir_tissue_in_view(signal: NDArray[Any], spacing: Spacing) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    body = outline_body(signal, spacing, "stir")
    values = signal.astype(np.float32)
    smooth = ndimage.gaussian_filter(values, [min(_STIR_SMOOTH_MM / s, 2.0) for s in spacing], truncate=2.5)
    # the outline errs outwards; noise outside averages to 1.25 of its strength, skin is brighter and closes the body
    noise = _stir_noise(values, body, spacing)
    bright = body & (smooth > 2.2 * noise)
    body &= np.stack([ndimage.binary_fill_holes(bright[..., k]) for k in range(bright.shape[2])], axis=-1)
    inside = smooth[body]
    # the receive field falls with depth: compare with what is around
    around = ndimage.uniform_filter(np.where(body, np.minimum(smooth, np.percentile(inside, 95)), 0), _window(spacing))
    around /= np.maximum(ndimage.uniform_filter(body.astype(np.float32), _window(spacing)), 1e-3)
    relative = smooth / np.maximum(around, 1e-3)
    fat = body & (relative < 0.7)
    fluid = body & (relative > 2.2)
    tissue = np.where(body, Tissue.MUSCLE, Tissue.AIR).astype(np.uint8)
    tissue[fat] = Tissue.FAT
    tissue[fluid] = Tissue.FLUID
    tissue[body & (distance(body, spacing) <= _SKIN_MM + min(spacing))] = Tissue.SKIN  # blur widens the body
    muscle = values[tissue == Tissue.MUSCLE]
    return tissue, (float(np.median(muscle if muscle.size else inside)), noise)


def _window(spacing: Spacing) -> list[int]:
    return [2 * max(1, round(20 / s)) + 1 for s in spacing]


def _stir_noise(values: FloatArray, body: NDArray[np.bool_], spacing: Spacing) -> float:
    """Estimate the noise from air, whose magnitudes follow Rayleigh: the mean is 1.25 standard deviations.

    Where no air is seen, from differences in the darker half of the body; three voxels apart, because images that
    were interpolated to a finer matrix have noise that neighbours share.
    """
    air = values[~ndimage.binary_dilation(body, iterations=3)]
    air = air[air > 0]
    if air.size > 1000:
        return float(air.mean() / 1.2533)
    fine = int(np.argmin(spacing))
    along, inside = np.moveaxis(values, fine, 0), np.moveaxis(body, fine, 0)
    both = inside[3:] & inside[:-3]
    if not both.any():
        return 0.0
    dark = both & (along[3:] + along[:-3] < 2 * np.median(along[inside]))
    step = np.abs(along[3:] - along[:-3])[dark if dark.any() else both]
    return float(np.median(step) / 0.954)
