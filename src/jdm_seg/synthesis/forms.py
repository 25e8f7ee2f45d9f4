"""The shape of one deposit: how much of each voxel it fills, and with how much calcium.

Lumps (nodules, clusters, masses) are evaluated on sub-voxels of their box; layers and nets only at the voxels near
them. No cortex and no trabeculae: deposits show no bone-like architecture (Arthritis Rheum, art.24391).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from jdm_seg.synthesis.deposits import SOLID_MG, Deposit
from jdm_seg.synthesis.fields import (
    Axes,
    Box,
    Noise,
    Walls,
    axes_of,
    block_mean,
    box_around,
    box_shape,
    layer_share,
    mean_width,
    parts_for,
    share_inside,
    sub_voxel_values,
)
from jdm_seg.synthesis.host import Host
from jdm_seg.synthesis.sites import is_soft
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
Where = tuple[slice | NDArray[np.intp], ...]

_STEP_MM = 0.5
"""Sub-voxels of small lumps are no longer than this; of large ones, a tenth of the radius."""
_MOST_POINTS = 60_000
_ROUGH = 0.12
"""Standard deviation of a lump's outline, as a share of its radius (assumed: nodules are round)."""
_LAYER_ROUGH = 0.3
_WALL_MM = 1.5
"""Dense wall around the liquid of a locule (assumed)."""
_SUPERNATANT_MG = (15.0, 70.0)
"""Calcium of the liquid above the sediment: 20 to 100 HU at 120 kV (assumed)."""


@dataclass(frozen=True)
class Filled:
    """What one deposit fills: ``where`` indexes the grid, the arrays have the shape of what it selects."""

    where: Where
    occupancy: FloatArray
    calcium: FloatArray
    fluid: FloatArray | None = None

    @property
    def box(self) -> Box:
        """The smallest box that holds it."""
        x, y, z = (
            side if isinstance(side, slice) else slice(int(side.min()), int(side.max()) + 1) for side in self.where
        )
        return x, y, z


def fill_deposit(deposit: Deposit, host: Host) -> Filled | None:
    """Return what a deposit fills of the soft tissue, None where it fills nothing of the grid.

    Args:
        deposit: As drawn.
        host: Tissue and distances on the target grid.
    """
    if deposit.pattern in ("plaque", "sheet", "band"):
        return _fill_layer(deposit, host)
    if deposit.pattern == "net":
        return _fill_net(deposit, host)
    if deposit.pattern == "tumoral":
        return _fill_mass(deposit, host)
    return _fill_cluster(deposit, host) if deposit.pattern == "periarticular" else _fill_nodule(deposit, host)


# --- lumps ---


@dataclass(frozen=True)
class _Ball:
    """A lump of known volume: a stretched ball with a wavy outline, or without ``stretch`` a plain ball."""

    centre: Spacing
    radius: float
    stretch: FloatArray | None = None
    waves: FloatArray | None = None

    @property
    def reach(self) -> float:
        """How far any of it is from the centre."""
        if self.stretch is None:
            return 1.15 * self.radius  # the ramp across its surface reaches a little farther
        return float(self.radius * (1 + 3 * _ROUGH) / np.linalg.svd(self.stretch, compute_uv=False)[-1])


def _lump(rng: np.random.Generator, centre: Spacing, volume_radius: float) -> _Ball:
    """Draw a stretched and wavy ball whose volume is that of a plain ball of the radius."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    scale = np.exp(rng.normal(0, 0.15, 3))
    stretch = (turn * (scale / np.prod(scale) ** (1 / 3))) @ turn.T  # of determinant 1: keeps volumes
    waves = rng.normal(size=(4, 3))
    waves = (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.float32)
    outline = _outline(waves @ _sphere().T)
    radius = volume_radius / float(np.mean(outline**3) ** (1 / 3))
    return _Ball(centre, radius, stretch.astype(np.float32), waves)


def _outline(along: FloatArray) -> FloatArray:
    """Return the relative radius in directions given by their cosines to four random ones, shape (4, N)."""
    # cos² bulges on two sides, cos³ on one; the numbers give each a variance of about 1
    bump = (along[0] * along[0] + along[1] * along[1] - np.float32(2 / 3)) * np.float32(3.35)
    bump += (along[2] * along[2] * along[2] + along[3] * along[3] * along[3]) * np.float32(2.65)
    bump *= np.float32(_ROUGH / 2)
    result: FloatArray = 1 + np.clip(bump, -3 * _ROUGH, 3 * _ROUGH, out=bump)
    return result


@lru_cache(maxsize=1)
def _sphere() -> FloatArray:
    """Evenly spread directions (Fibonacci lattice), shape (400, 3)."""
    number = np.arange(400) + 0.5
    height, turn = 1 - 2 * number / 400, np.pi * (1 + 5**0.5) * number
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1).astype(np.float32)


def _ball_distance(ball: _Ball, axes: Axes) -> FloatArray:
    """Return the signed distance to a lump's outline, to first order, on the outer product of the axes."""
    x, y, z = (a - np.float32(c) for a, c in zip(axes, ball.centre, strict=True))
    if ball.stretch is None or ball.waves is None:
        plain: FloatArray = np.sqrt((x * x)[:, None, None] + (y * y)[:, None] + z * z) - np.float32(ball.radius)
        return plain
    points = np.empty((3, len(x), len(y), len(z)), np.float32)
    for row, m in zip(points, ball.stretch, strict=True):
        np.add((m[0] * x)[:, None, None] + (m[1] * y)[:, None], m[2] * z, out=row)
    flat = points.reshape(3, -1)
    norm = np.sqrt(np.einsum("ij,ij->j", flat, flat))
    along = (ball.waves @ flat) / np.maximum(norm, np.float32(1e-3))
    norm -= np.float32(ball.radius) * _outline(along)
    result: FloatArray = norm.reshape(points.shape[1:])
    return result


def _excess(radius: float, width: float) -> np.float32:
    """Return how much larger a ball looks through a ramp of a width across its surface: r³ becomes r³ + r w² / 4."""
    return np.float32(width**2 / (12 * radius))


def _parts_of(radius: float, box: Box, spacing: Spacing) -> tuple[int, int, int]:
    """Return how finely to cut the voxels of a lump's box."""
    step = float(np.clip(radius / 4, 0.2, max(_STEP_MM, radius / 10)))
    volume = float(np.prod(spacing)) * float(np.prod(box_shape(box)))
    return parts_for(spacing, max(step, (volume / _MOST_POINTS) ** (1 / 3)), most=16)


def _fill_nodule(deposit: Deposit, host: Host) -> Filled | None:
    # grains leave gaps: what is drawn is the volume of the mineral
    ball = _lump(np.random.default_rng(deposit.seed), deposit.centre, deposit.radius / deposit.fill ** (1 / 3))
    box = box_around(ball.centre, ball.reach, host.tissue.shape, host.spacing)
    if box is None:
        return None
    parts = _parts_of(ball.radius, box, host.spacing)
    axes = axes_of(box, host.spacing, parts)
    width = mean_width(s / n for s, n in zip(host.spacing, parts, strict=True))
    distance = _ball_distance(ball, axes) + _excess(ball.radius, width)
    share = share_inside(distance, width)
    if deposit.fill < 1:
        share *= _grains(Noise(deposit.seed + 1, deposit.grain_mm).on(axes), deposit, width)
    occupancy = block_mean(share, parts) * is_soft(host.tissue[box])
    calcium = _calcium(deposit, axes_of(box, host.spacing))
    if deposit.core:  # in the middle, as far as half the radius
        core = np.clip((-block_mean(distance, parts) / ball.radius - 0.35) * 4, 0, 1)
        calcium += core * (deposit.core - calcium)
    return Filled(box, occupancy, occupancy * calcium)


def _fill_cluster(deposit: Deposit, host: Host) -> Filled | None:
    """Many small nodules around a joint."""
    rng = np.random.default_rng(deposit.seed)
    number = int(rng.integers(5, 18))
    spots = np.asarray(deposit.centre) + rng.normal(0, deposit.radius / 2, (number, 3))
    radii = deposit.thickness / 2 * np.exp(rng.normal(0, 0.45, number))
    parted: list[tuple[Box, FloatArray]] = []
    for (x, y, z), radius in zip(spots.tolist(), radii.tolist(), strict=True):
        ball = _Ball((x, y, z), radius)
        box = box_around(ball.centre, ball.reach, host.tissue.shape, host.spacing)
        if box is not None:
            parts = _parts_of(radius, box, host.spacing)
            width = mean_width(s / n for s, n in zip(host.spacing, parts, strict=True))
            distance = _ball_distance(ball, axes_of(box, host.spacing, parts)) + _excess(radius, width)
            parted.append((box, block_mean(share_inside(distance, width), parts)))
    if not parted:
        return None
    whole = _hull([box for box, _ in parted])
    occupancy = np.zeros(box_shape(whole), np.float32)
    for box, share in parted:
        inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, whole, strict=True))
        occupancy[inner] += share * (1 - occupancy[inner])  # as if two in one voxel lay there independently
    occupancy *= is_soft(host.tissue[whole])
    return Filled(whole, occupancy, occupancy * _calcium(deposit, axes_of(whole, host.spacing)))


def _grains(noise: FloatArray, deposit: Deposit, width: float) -> FloatArray:
    """Return the share that is mineral where a deposit is made of grains: noise above the level that ``fill`` sets."""
    # unit noise rises by about 1.2 a scale
    distance = (np.float32(ndtri(1 - deposit.fill)) - noise) * np.float32(deposit.grain_mm / 1.2)
    return share_inside(distance, width)


def _calcium(deposit: Deposit, axes: Axes, voxels: tuple[NDArray[np.intp], ...] | None = None) -> FloatArray:
    """Return mg HA / cm³ inside the deposit, uneven, on the axes or at some of their voxels."""
    noise = Noise(deposit.seed + 2, 2.5)
    uneven = noise.on(axes) if voxels is None else noise.at(axes, voxels)
    spread = np.float32(deposit.texture)
    uneven = np.exp(np.clip(uneven, -2, 2) * spread - spread**2 / 2) * np.float32(deposit.calcium)
    result: FloatArray = np.minimum(uneven, np.float32(SOLID_MG), out=uneven)
    return result


def _hull(boxes: list[Box]) -> Box:
    x, y, z = (slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
    return x, y, z


# --- tumoral masses ---


def _fill_mass(deposit: Deposit, host: Host) -> Filled | None:
    """Touching lobules with thin lucent septa, each perhaps with liquid over sediment."""
    rng = np.random.default_rng(deposit.seed)
    number = int(rng.integers(6, 14))
    directions = rng.normal(size=(number, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    spots = np.asarray(deposit.centre) + directions * (0.62 * deposit.radius * rng.random((number, 1)) ** (1 / 3))
    radii = deposit.radius * rng.uniform(0.32, 0.55, number)
    box = box_around(deposit.centre, 1.3 * deposit.radius, host.tissue.shape, host.spacing)
    if box is None:
        return None
    voxel = float(np.prod(host.spacing))
    step = max(deposit.radius / 20, (voxel * np.prod(box_shape(box)) / _MOST_POINTS) ** (1 / 3), 0.5)
    parts = parts_for(host.spacing, step)
    axes = axes_of(box, host.spacing, parts)
    first, second, above = _lobules(axes, spots, radii, deposit, host)
    width = mean_width(s / n for s, n in zip(host.spacing, parts, strict=True))
    uneven = Noise(deposit.seed + 3, max(2.0, deposit.radius / 5)).on(axes)
    # half the difference of the distances is about the distance to the seam
    septum = layer_share(np.float32(0.5) * (second - first), deposit.thickness, width)
    first += uneven * np.float32(0.035 * deposit.radius)
    share = share_inside(first, width) * (1 - septum)
    if deposit.fill < 1:
        share *= _grains(Noise(deposit.seed + 1, max(2.0, deposit.grain_mm)).on(axes), deposit, width)
    calcium = _calcium(deposit, axes)
    if deposit.core:
        calcium += np.clip((uneven - 0.7) * 2, 0, 1) * (deposit.core - calcium)
    fluid = None
    soft = is_soft(host.tissue[box])
    if above is not None:
        liquid = (1 - share_inside(above, width)) * share_inside(first + np.float32(_WALL_MM), width)
        calcium += liquid * (np.float32(rng.uniform(*_SUPERNATANT_MG)) - calcium)
        fluid = block_mean(liquid * share, parts) * soft
    return Filled(box, block_mean(share, parts) * soft, block_mean(share * calcium, parts) * soft, fluid)


def _lobules(
    axes: Axes, spots: NDArray[np.float64], radii: NDArray[np.float64], deposit: Deposit, host: Host
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Return the distance to the nearest and second nearest lobule, and the height over the nearest one's sediment."""
    shape = tuple(len(a) for a in axes)
    first: FloatArray = np.full(shape, 1e3, np.float32)
    second: FloatArray = np.full(shape, 1e3, np.float32)
    above = np.zeros(shape, np.float32) if deposit.fluid_level else None
    for spot, radius in zip(spots, radii, strict=True):
        reach = radius + deposit.thickness + 3
        near = tuple(
            slice(*np.searchsorted(a, (c - reach, c + reach)).tolist()) for a, c in zip(axes, spot, strict=True)
        )
        x, y, z = (a[s] - np.float32(c) for a, s, c in zip(axes, near, spot, strict=True))
        value = np.sqrt((x**2)[:, None, None] + (y**2)[:, None] + z**2) - np.float32(radius)
        before = first[near]
        closer = value < before
        second[near] = np.minimum(second[near], np.maximum(before, value))
        if above is not None:
            down = [np.float32(d) for d in host.down]
            height = -((down[0] * x)[:, None, None] + (down[1] * y)[:, None] + down[2] * z)
            level = np.float32((2 * deposit.fluid_level - 1) * radius)
            above[near] = np.where(closer, height - level, above[near])
        first[near] = np.where(closer, value, before)
    return first, second, above


# --- layers and nets ---


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


def _fill_layer(deposit: Deposit, host: Host) -> Filled | None:
    """A plate at a depth under the skin, or a sheet along the surface of a muscle."""
    box = _layer_box(deposit, host)
    if box is None:
        return None
    values = host.depth_mm if deposit.pattern == "plaque" else host.muscle_mm
    away = np.abs(values[box] - np.float32(deposit.level))
    reach = 0.75 * deposit.thickness + 0.5 * float(np.linalg.norm(host.spacing))
    near = _near(deposit, host, away, box, away < reach)
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


def _fill_net(deposit: Deposit, host: Host) -> Filled | None:
    """The walls of irregular meshes in the subcutis: thickened, calcified septa."""
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
        distance = (np.float32(ndtri(1 - deposit.fill)) - noise) * np.float32(grain / 1.2)
        share = share * share_inside(distance, mean_width(host.spacing))
    filled = np.flatnonzero(share > 1e-3)
    if filled.size == 0:
        return None
    inner = tuple(number[filled] for number in near.inner)
    share = share[filled].astype(np.float32)
    calcium = _calcium(deposit, axes, inner)
    if deposit.core:
        patches = Noise(deposit.seed + 6, 5.0).at(axes, inner)
        calcium += np.clip((patches - 0.8) * 2, 0, 1) * (deposit.core - calcium)
    return Filled(tuple(number[filled] for number in near.voxels), share, share * calcium)
