"""Calcium and look-alikes into a finished scan, in the image domain: the scan's own noise and texture stay underneath.

Insertion into images is an established practice whose products readers cannot tell from real lesions when blur and
partial volume are right (Acad Radiol 2016;23:1221; Eur Radiol 2006, 10.1007/s00330-006-0254-x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import bounding_box
from jdm_seg.physics import HU_MAX, hu_per_mg_ha
from jdm_seg.sharpness import axial_sample, edge_width_mm
from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.tissue import BONE, Tissue, is_one_of, is_soft
from jdm_seg.synthesis.ct.acquisition import HU_MIN, CtAcquisition
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis
from jdm_seg.synthesis.deposits.fields import Box, blur_box, blur_reach, box_shape
from jdm_seg.synthesis.deposits.overlay import Overlay
from jdm_seg.synthesis.stir.acquisition import StirAcquisition, add_deposits
from jdm_seg.synthesis.stir.scan import complex_noise, truncated
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

_BACKGROUND_MM = 2.0
_LEAST_HU = 0.5
"""A change that rounding would swallow."""
_LEAST_OF_MUSCLE = 0.01
"""On STIR: a third of the noise of the best scans, where ringing ends."""
_OWN_BLUR_VOXELS = 15_000
"""Larger boxes that overlap share one blur: one for each of several long sheets would take too long."""
_BLUR_SPREAD = 0.12
_KVS = ("80", "100", "120", "140")
_AIRY = (Tissue.GAS, Tissue.LUNG)
_UNTOUCHED = (*BONE, *_AIRY)


def background_hu(hu: NDArray[Any], soft: NDArray[np.bool_], spacing: Spacing) -> FloatArray:
    """Return the CT number of the soft tissue around every voxel, without noise: a mean over about 5 mm.

    Args:
        hu: CT numbers, shape (X, Y, Z).
        soft: Where soft tissue is; nothing else is averaged.
        spacing: Voxel size in mm.

    Returns:
        HU; 0 far from soft tissue.
    """
    sigma = [_BACKGROUND_MM / s for s in spacing]
    known = np.where(soft, np.clip(hu, -200, 200), 0).astype(np.float32)
    total = ndimage.gaussian_filter(known, sigma, truncate=2)
    weight = ndimage.gaussian_filter(soft.astype(np.float32), sigma, truncate=2)
    result: FloatArray = total / np.maximum(weight, np.float32(0.02))
    return result


def estimate_blur(hu: NDArray[Any], tissue: NDArray[np.uint8], spacing: Spacing) -> float | None:
    """Measure how sharp a scan is in the axial plane, at the edge from air to skin.

    Args:
        hu: CT numbers, shape (X, Y, Z).
        tissue: :class:`Tissue` codes; tells where the skin is.
        spacing: Voxel size in mm.

    Returns:
        Full width at half maximum in mm beyond the average over a voxel; None where too little skin is seen.
    """
    every = axial_sample(hu.shape[2])
    return edge_width_mm(hu[:, :, every], tissue[:, :, every] == Tissue.SKIN, spacing)


def sample_scan_blur(rng: np.random.Generator, acquired: Spacing, measured: float | None = None) -> CtAcquisition:
    """Draw the blur and tube voltage to insert with, never finer than the scan's own voxels.

    Args:
        rng: Draws.
        acquired: Voxel size the scan was made with, in mm.
        measured: Blur in the axial plane by :func:`estimate_blur`, in mm, where it is known.
    """
    pixel = float(max(acquired[0], acquired[1]))
    if measured is None:
        in_plane = pixel * float(rng.uniform(0.9, 1.7))
    else:
        in_plane = float(np.clip(measured, 0.7 * pixel, 2 * pixel) * rng.uniform(0.85, 1.2))
    return CtAcquisition(
        kv=str(rng.choice(_KVS)),
        psf_mm=(in_plane, in_plane, max(in_plane, float(acquired[2] * rng.uniform(0.8, 1.2)))),
        noise_hu=0.0,
        grain_mm=1.0,
        overshoot=float(rng.uniform(0.7, 1.5)) if rng.random() < 0.2 else 0.0,
        hu={},
        matrix_hu=float(rng.uniform(0, 30)),
    )


def insert_ct(
    hu: NDArray[Any],
    calcinosis: Calcinosis,
    host: Host,
    acquisition: CtAcquisition,
    *,
    background: NDArray[Any] | None = None,
    path_cm: float = 20.0,
) -> NDArray[Any]:
    """Add calcium to a finished CT.

    HU += slope c - v (HU_background - HU_matrix) for the share v of a voxel that a deposit fills with calcium c,
    blurred as the scan is, each lesion a little differently. Bone and air keep their values exactly, and so does every
    voxel that no calcium reaches.

    Args:
        hu: CT numbers, shape (X, Y, Z).
        calcinosis: Rendered on the same grid.
        host: Tells where soft tissue is.
        acquisition: Tube voltage, blur and matrix of this scan.
        background: Noise-free CT numbers around every voxel; measured near the deposits where None.
        path_cm: Water-equivalent diameter of the body, in cm; sets the slope.

    Returns:
        HU of the type of ``hu``, changed voxels clipped to the 12-bit range.
    """
    result: NDArray[Any] = np.array(hu)
    slope = np.float32(hu_per_mg_ha(acquisition.kv, path_cm))
    for numbers, box in _groups(calcinosis):
        blur = acquisition
        if len(numbers) == 1 and calcinosis.deposits:
            wider = np.random.default_rng(calcinosis.deposits[numbers[0] - 1].seed).normal(0, _BLUR_SPREAD)
            blur = replace(blur, psf_mm=_triple(np.exp(wider) * np.asarray(blur.psf_mm)))
        around = _grown(box, blur, host)
        number = calcinosis.dominant[around]
        inside = np.flatnonzero((number == numbers[0]) if len(numbers) == 1 else np.isin(number, numbers))
        if inside.size == 0:
            continue
        share = calcinosis.occupancy[around].ravel()[inside]
        if background is None:
            soft = is_soft(host.tissue[around])
            near = background_hu(hu[around], soft, host.spacing).ravel()[inside]
        else:
            near = background[around].ravel()[inside].astype(np.float32)
        added = np.zeros(box_shape(around), np.float32)
        added.reshape(-1)[inside] = slope * calcinosis.calcium[around].ravel()[inside] - share * (
            near - np.float32(acquisition.matrix_hu)
        )
        _add(result, _blurred(added, around, host, blur), around, is_soft(host.tissue[around]))
    return result


def insert_overlays(
    hu: NDArray[Any],
    overlays: Sequence[tuple[Overlay, dict[str, float]]],
    host: Host,
    acquisition: CtAcquisition,
    background: NDArray[Any],
) -> NDArray[Any]:
    """Put look-alikes into a finished CT.

    Args:
        hu: CT numbers, shape (X, Y, Z).
        overlays: Rendered look-alikes, each with the CT number of its tissues by name.
        host: Tissue of the same grid; lung and gas stay as they are, and bone where nothing is screwed or sewn into it.
        acquisition: Blur of this scan.
        background: Noise-free CT numbers around every voxel.

    Returns:
        HU of the type of ``hu``.
    """
    result: NDArray[Any] = np.array(hu)
    for overlay, numbers in overlays:
        around = _grown(overlay.box, acquisition, host)
        inner = tuple(slice(b.start - a.start, b.stop - a.start) for a, b in zip(around, overlay.box, strict=True))
        tissue = host.tissue[overlay.box]
        near = np.where(is_soft(tissue), background[overlay.box], np.float32(-1000)).astype(np.float32)
        kept = is_one_of(host.tissue[around], _AIRY if overlay.in_bone else _UNTOUCHED)
        if overlay.in_bone:
            near = np.where(is_one_of(tissue, BONE), hu[overlay.box], near).astype(np.float32)
        added = np.zeros(box_shape(around), np.float32)
        for code, coverage in overlay.layers:
            added[inner] += coverage * (np.float32(numbers[code.name]) - near)
        _add(result, _blurred(added, around, host, acquisition), around, ~kept)
    return result


def insert_stir(
    signal: NDArray[Any],
    calcinosis: Calcinosis,
    host: Host,
    acquisition: StirAcquisition,
    levels: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[Any]:
    """Let deposits show in a finished STIR scan: dark, dark with a bright rim, or fluid.

    What changes is blurred as the drawn read-out would: the scan around it went through one like it. What a void takes
    away is replaced by noise of the scan's own strength and such a grain, so it never reads less than air does.

    Args:
        signal: Magnitudes in the scanner's units, shape (X, Y, Z).
        calcinosis: Rendered on the same grid.
        host: Tells where soft tissue is.
        acquisition: Gives each deposit's phenotype, the signal of fluid and rims relative to muscle, and the blur.
        levels: Signal of muscle and standard deviation of the noise, both in the scanner's units.
        rng: Draws the noise.

    Returns:
        Magnitudes of the type of ``signal``; voxels that no deposit reaches are bit-identical.
    """
    result: NDArray[Any] = np.array(signal)
    muscle, noise = levels
    boxes = [box for box in calcinosis.boxes if box is not None] or [bounding_box(calcinosis.dominant)]
    low = [max(0, min(b[a].start for b in boxes) - round(8 / host.spacing[a])) for a in range(3)]
    high = [min(n, max(b[a].stop for b in boxes) + round(8 / host.spacing[a])) for a, n in enumerate(host.tissue.shape)]
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    part = Calcinosis(
        calcinosis.occupancy[box],
        calcinosis.calcium[box],
        calcinosis.dominant[box],
        calcinosis.deposits,
        None if calcinosis.fluid is None else calcinosis.fluid[box],
    )
    before = signal[box].astype(np.float32) / np.float32(muscle)
    change = truncated(add_deposits(before, part, acquisition, host.spacing) - before, acquisition.readout)
    reached = np.flatnonzero((np.abs(change) > _LEAST_OF_MUSCLE) & is_soft(host.tissue[box]))
    lost = part.occupancy.ravel()[reached] * np.float32(noise)
    grain = complex_noise(before.shape, acquisition.readout, rng).ravel()[reached]
    real = (before + change).ravel()[reached] * np.float32(muscle) + lost * grain.real
    values = np.hypot(real, lost * grain.imag)
    changed = result[box]
    where = np.unravel_index(reached, changed.shape)
    changed[where] = np.rint(values) if np.issubdtype(result.dtype, np.integer) else values
    return result


def _groups(calcinosis: Calcinosis) -> list[tuple[list[int], Box]]:
    """Return numbers and boxes of the deposits that are blurred together: small ones alone, large ones as one."""
    if not calcinosis.boxes:
        box = bounding_box(calcinosis.dominant)
        return [(np.unique(calcinosis.dominant[calcinosis.dominant > 0]).tolist(), box)] if box[0].stop else []
    groups: list[tuple[list[int], Box]] = []
    large: list[tuple[int, Box]] = []
    for number, each in enumerate(calcinosis.boxes, start=1):
        if each is not None and np.prod(box_shape(each)) > _OWN_BLUR_VOXELS:
            large.append((number, each))
        elif each is not None:
            groups.append(([number], each))
    if large:
        x, y, z = (
            slice(min(b[axis].start for _, b in large), max(b[axis].stop for _, b in large)) for axis in range(3)
        )
        if np.prod(box_shape((x, y, z))) < sum(np.prod(box_shape(each)) for _, each in large):
            groups.append(([number for number, _ in large], (x, y, z)))
        else:
            groups.extend(([number], each) for number, each in large)
    return groups


def _grown(box: Box, acquisition: CtAcquisition, host: Host) -> Box:
    """Return the box with a margin that blur and overshoot reach into."""
    wide = 1.5 if acquisition.overshoot else 1.0
    margin = blur_reach(_triple(wide * np.asarray(acquisition.psf_mm)), host.spacing)
    x, y, z = (
        slice(max(0, side.start - m), min(n, side.stop + m))
        for side, m, n in zip(box, margin, host.tissue.shape, strict=True)
    )
    return x, y, z


def _blurred(added: FloatArray, box: Box, host: Host, acquisition: CtAcquisition) -> FloatArray:
    shape, spacing = host.tissue.shape, host.spacing
    blurred = blur_box(added, box, shape, acquisition.psf_mm, spacing)
    if acquisition.overshoot:  # as the unsharp mask of a sharp kernel does in the axial plane
        x, y, _ = acquisition.psf_mm
        soft = blur_box(blurred, box, shape, (1.5 * x, 1.5 * y, 0.0), spacing)
        blurred += np.float32(acquisition.overshoot) * (blurred - soft)
    return blurred


def _add(result: NDArray[Any], added: FloatArray, box: Box, allowed: NDArray[np.bool_]) -> None:
    """Add to a box of a scan in place, where allowed and large enough to see."""
    changed = result[box]
    reached = np.flatnonzero(allowed & (np.abs(added) >= _LEAST_HU))
    where = np.unravel_index(reached, added.shape)  # NumPy's own nonzero takes ten times as long in three dimensions
    values = np.clip(changed[where] + added.reshape(-1)[reached], HU_MIN, HU_MAX)
    changed[where] = np.rint(values) if np.issubdtype(result.dtype, np.integer) else values


def _triple(values: NDArray[np.float64]) -> Spacing:
    return float(values[0]), float(values[1]), float(values[2])
