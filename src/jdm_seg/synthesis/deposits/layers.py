"""Deposits that follow a surface or its neighbourhood: plaques, fascial sheets, bands, and nets in the subcutis.

They are evaluated only at the voxels near them, a small part even of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.tissue import is_soft
from jdm_seg.synthesis.deposits.fields import (
    Box,
    Noise,
    Walls,
    axes_of,
    box_around,
    layer_share,
    mean_width,
    parts_for,
    sub_voxel_values,
)
from jdm_seg.synthesis.deposits.forms import Filled, calcium_inside, mineral_share
from jdm_seg.synthesis.deposits.priors import OFF_BONE_MM, Deposit

FloatArray = NDArray[np.float32]

_LAYER_ROUGH = 0.3
"""Waviness of a layer's outline (assumed)."""


@dataclass(frozen=True)
class _Near:
    """Voxels near a layer: their numbers in the box and on the grid, and the place of each in the outline."""

    box: Box
    inner: tuple[NDArray[np.intp], ...]
    voxels: tuple[NDArray[np.intp], ...]
    edge: FloatArray
    """1 in the middle of the outline, 0 at its border, negative outside."""


def _near(deposit: Deposit, host: Host, chosen: FloatArray, box: Box, keep: NDArray[np.bool_]) -> _Near | None:
    """Select voxels of a box, and measure where in the wavy elliptic outline they lie."""
    flat = np.flatnonzero(keep & is_soft(host.tissue[box]))
    inner = np.unravel_index(flat, chosen.shape)
    axes = axes_of(box, host.spacing)
    x, y, z = (a[number] - np.float32(c) for a, number, c in zip(axes, inner, deposit.centre, strict=True))
    along = x * np.float32(deposit.axis[0]) + y * np.float32(deposit.axis[1]) + z * np.float32(deposit.axis[2])
    across = x**2 + y**2 + z**2 - along**2
    place = np.sqrt(across / np.float32(deposit.width**2) + (along / np.float32(deposit.radius)) ** 2)
    waves = Noise(deposit.seed + 3, max(4.0, 0.5 * deposit.width)).at(axes, inner)
    edge = 1 - place * (1 + np.float32(_LAYER_ROUGH) * np.clip(waves, -2, 2))
    kept = np.flatnonzero(edge > 0)
    if kept.size == 0:
        return None
    inside = tuple(number[kept] for number in inner)
    voxels = tuple(number + side.start for number, side in zip(inside, box, strict=True))
    return _Near(box, inside, voxels, edge[kept])


def _layer_box(deposit: Deposit, host: Host) -> Box | None:
    axis = np.asarray(deposit.axis)
    # half the sides of the box around the ellipsoid, and its waves
    half = np.sqrt((deposit.radius * axis) ** 2 + deposit.width**2 * (1 - axis**2))
    return box_around(deposit.centre, half / (1 - 2 * _LAYER_ROUGH) ** 0.5 + 2, host.tissue.shape, host.spacing)


def fill_layer(deposit: Deposit, host: Host) -> Filled | None:
    """Return what a plate at a depth under the skin, or a sheet along the surface of a muscle, fills."""
    box = _layer_box(deposit, host)
    if box is None:
        return None
    values = host.depth_mm if deposit.pattern == "plaque" else host.muscle_mm
    away = np.abs(values[box] - np.float32(deposit.level))
    reach = 0.75 * deposit.thickness + 0.5 * float(np.linalg.norm(host.spacing))
    keep = away < reach
    if deposit.pattern != "plaque" and host.bone_mm is not None:
        keep &= host.bone_mm[box] > OFF_BONE_MM
    near = _near(deposit, host, away, box, keep)
    if near is None:
        return None
    axes = axes_of(box, host.spacing)
    uneven = np.clip(Noise(deposit.seed + 4, 8.0).at(axes, near.inner), -1.6, 1.6)
    taper = np.sqrt(np.minimum(near.edge * np.float32(4), 1))  # thins out towards its border
    thickness = np.float32(deposit.thickness) * (1 + np.float32(0.3) * uneven) * taper
    parts = parts_for(host.spacing, 0.8, least=2, most=5)
    distance = sub_voxel_values(values, near.voxels, parts) - np.float32(deposit.level)
    width = mean_width(s / n for s, n in zip(host.spacing, parts, strict=True))
    share = layer_share(distance, thickness[:, None], width).mean(axis=1)
    return _at_voxels(deposit, host, near, share)


def fill_net(deposit: Deposit, host: Host) -> Filled | None:
    """Return what the walls of irregular meshes in the subcutis fill: thickened, calcified septa."""
    box = _layer_box(deposit, host)
    if box is None:
        return None
    depth, muscle = host.depth_mm[box], host.muscle_mm[box]
    near = _near(deposit, host, muscle, box, (muscle > 0) & (depth > 1))
    if near is None:
        return None
    axes = axes_of(box, host.spacing)
    walls = Walls(deposit.seed + 4, deposit.grain_mm).at(axes, near.inner)
    uneven = Noise(deposit.seed + 5, deposit.grain_mm).at(axes, near.inner)
    # strands of uneven width, some missing: lace, not a honeycomb
    thickness = np.maximum(np.float32(deposit.thickness) * (np.float32(0.45) + np.float32(0.7) * uneven), 0)
    thickness *= np.sqrt(np.minimum(near.edge * np.float32(4), 1))
    return _at_voxels(deposit, host, near, layer_share(walls, thickness, mean_width(host.spacing)))


def _at_voxels(deposit: Deposit, host: Host, near: _Near, share: FloatArray) -> Filled | None:
    """Add grains, cores and unevenness to the share of voxels that a layer fills."""
    axes = axes_of(near.box, host.spacing)
    if deposit.fill < 1:
        # grains finer than a voxel would only make it noisy
        grain = max(2.0 if deposit.pattern == "net" else deposit.grain_mm, 1.2 * min(host.spacing))
        noise = Noise(deposit.seed + 1, grain).at(axes, near.inner)
        share = share * mineral_share(noise, deposit, grain, mean_width(host.spacing))
    filled = np.flatnonzero(share > 1e-3)
    if filled.size == 0:
        return None
    inner = tuple(number[filled] for number in near.inner)
    share = share[filled].astype(np.float32)
    calcium = calcium_inside(deposit, axes, inner)
    if deposit.core:
        patches = Noise(deposit.seed + 6, 5.0).at(axes, inner)
        calcium += np.clip((patches - 0.8) * 2, 0, 1) * (deposit.core - calcium)
    return Filled(tuple(number[filled] for number in near.voxels), share, share * calcium)
