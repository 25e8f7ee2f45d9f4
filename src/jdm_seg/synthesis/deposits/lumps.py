"""Deposits that are lumps: a nodule, a cluster of small ones around a joint, a tumoral mass of lobules.

They are evaluated on sub-voxels of their box, so that a micro-nodule of 1 mm keeps its volume in voxels of 5 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.tissue import is_soft
from jdm_seg.synthesis.deposits.fields import (
    Axes,
    Box,
    Noise,
    axes_of,
    block_mean,
    box_around,
    box_shape,
    layer_share,
    mean_width,
    parts_for,
    share_inside,
)
from jdm_seg.synthesis.deposits.forms import Filled, calcium_inside, mineral_share
from jdm_seg.synthesis.deposits.priors import Deposit
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

_STEP_MM = 0.5
"""Sub-voxels of small lumps are no longer than this; of large ones, a tenth of the radius."""
_MOST_POINTS = 60_000
_ROUGH = 0.12
"""Standard deviation of a lump's outline, as a share of its radius (assumed: nodules are round)."""
_WALL_MM = 1.5
"""Dense wall around the liquid of a locule (assumed)."""
_SUPERNATANT_MG = (15.0, 70.0)
"""Calcium of the liquid above the sediment: 20 to 100 HU at 120 kV (assumed)."""


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


def fill_nodule(deposit: Deposit, host: Host) -> Filled | None:
    """Return what one nodule fills."""
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
        share *= mineral_share(Noise(deposit.seed + 1, deposit.grain_mm).on(axes), deposit, deposit.grain_mm, width)
    occupancy = block_mean(share, parts) * is_soft(host.tissue[box])
    calcium = calcium_inside(deposit, axes_of(box, host.spacing))
    if deposit.core:  # in the middle, as far as half the radius
        core = np.clip((-block_mean(distance, parts) / ball.radius - 0.35) * 4, 0, 1)
        calcium += core * (deposit.core - calcium)
    return Filled(box, occupancy, occupancy * calcium)


def fill_cluster(deposit: Deposit, host: Host) -> Filled | None:
    """Return what many small nodules around a joint fill."""
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
    return Filled(whole, occupancy, occupancy * calcium_inside(deposit, axes_of(whole, host.spacing)))


def _hull(boxes: list[Box]) -> Box:
    x, y, z = (slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
    return x, y, z


def fill_mass(deposit: Deposit, host: Host) -> Filled | None:
    """Return what touching lobules with thin lucent septa fill, each perhaps with liquid over sediment."""
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
        grain = max(2.0, deposit.grain_mm)
        share *= mineral_share(Noise(deposit.seed + 1, grain).on(axes), deposit, grain, width)
    calcium = calcium_inside(deposit, axes)
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
