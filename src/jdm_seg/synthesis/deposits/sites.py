"""Where deposits may be centred.

A random pool of the host's soft-tissue voxels is drawn once, so that no deposit makes a mask of a whole body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.host import Host, chest_wall
from jdm_seg.synthesis.anatomy.tissue import Region, Side, Tissue, is_one_of, is_soft
from jdm_seg.synthesis.deposits.priors import OFF_BONE_MM
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

JOINTS = (Region.ELBOW, Region.KNEE, Region.HIP, Region.SHOULDER, Region.HAND)
"""Where periarticular deposits are drawn when regions are known."""
_POOL_SHARE = 0.01
_POOL_SIZE = (8_000, 600_000)
_FATTY = (Tissue.SKIN, Tissue.FAT)
_NEAR_BONE_MM = 9.0


@dataclass(frozen=True)
class Pool:
    """Soft-tissue voxels drawn at random, with what decides whether a pattern fits; arrays of N entries.

    Attributes:
        index: Voxel numbers along each axis, shape (N, 3).
        fatty: Skin or fat.
        depth_mm, muscle_mm, bone_mm: As in :class:`Host`; ``bone_mm`` is infinite where nobody measured it.
        region, side: Codes, 0 where unknown.
        host: Where they were drawn from.
    """

    index: NDArray[np.intp]
    fatty: NDArray[np.bool_]
    depth_mm: FloatArray
    muscle_mm: FloatArray
    bone_mm: FloatArray
    region: NDArray[np.uint8]
    side: NDArray[np.uint8]
    host: Host = field(repr=False)

    def __len__(self) -> int:
        """Return the number of voxels."""
        return len(self.index)

    @cached_property
    def chest(self) -> NDArray[np.bool_]:
        """Which lie in the wall of the chest: by region, or where regions are unknown by lungs nearby.

        Looked for when asked: deposits do not ask.
        """
        known = self.host.region is not None
        wall: NDArray[np.bool_] = self.region == Region.CHEST if known else chest_wall(self.host)[tuple(self.index.T)]
        return wall


def draw_pool(host: Host, rng: np.random.Generator) -> Pool:
    """Draw a pool; it is empty only where the host has no soft tissue."""
    size = host.tissue.size
    tissue = host.tissue
    drawn = rng.integers(0, size, int(np.clip(_POOL_SHARE * size, *_POOL_SIZE)))
    x, y, z = np.unravel_index(drawn, tissue.shape)
    soft = np.flatnonzero(is_soft(tissue[x, y, z]))
    if len(soft) < 200:  # little to choose from: take it all
        x, y, z = np.nonzero(host.soft)
    else:
        x, y, z = x[soft], y[soft], z[soft]
    unknown = np.zeros(len(x), np.uint8)
    return Pool(
        index=np.stack([x, y, z], axis=1),
        fatty=is_one_of(tissue[x, y, z], _FATTY),
        depth_mm=host.depth_mm[x, y, z],
        muscle_mm=host.muscle_mm[x, y, z],
        bone_mm=np.full(len(x), np.inf, np.float32) if host.bone_mm is None else host.bone_mm[x, y, z],
        region=unknown if host.region is None else host.region[x, y, z],
        side=unknown if host.side is None else host.side[x, y, z],
        host=host,
    )


def fits(pool: Pool, pattern: str, spacing: Spacing, deep: bool = False) -> NDArray[np.bool_]:
    """Return which voxels of the pool a pattern may be centred on.

    Args:
        pool: To choose from.
        pattern: One of :data:`~jdm_seg.synthesis.deposits.priors.PATTERNS`.
        spacing: Voxel size in mm; a surface is no thinner than a voxel.
        deep: For nodules: under the subcutis instead of in it.
    """
    depth, muscle = pool.depth_mm, pool.muscle_mm
    if pattern == "plaque":
        return pool.fatty & (depth > 1) & (depth < 5)
    if pattern in ("sheet", "band"):
        return (np.abs(muscle) <= max(1.0, min(spacing))) & (depth > 2) & (pool.bone_mm > OFF_BONE_MM)
    if pattern == "net":
        return pool.fatty & (depth > 1.5) & (muscle > 0.5)
    if pattern == "periarticular":
        near: NDArray[np.bool_] = (pool.bone_mm > 0.5) & (pool.bone_mm < _NEAR_BONE_MM) & (depth > 1)
        joint = near & np.isin(pool.region, JOINTS)
        return joint if joint.any() else near
    if pattern == "tumoral":
        return depth > 3
    superficial: NDArray[np.bool_] = (depth > 4) & ~pool.fatty if deep else pool.fatty & (depth > 1)
    return superficial


def choose(
    pool: Pool, allowed: NDArray[np.bool_], weights: Mapping[str, float], rng: np.random.Generator
) -> int | None:
    """Choose a voxel of the pool: first its region by weight among those present, then evenly within.

    Args:
        pool: Voxels where deposits can be.
        allowed: Which of them may be taken, shape (N,).
        weights: Relative frequency of each region.
        rng: Draws.

    Returns:
        Its number in the pool, None where nothing is allowed.
    """
    where = np.flatnonzero(allowed)
    if where.size == 0:
        return None
    present = np.flatnonzero(np.bincount(pool.region[where]))
    weight = np.array([weights.get(Region(int(code)).name, 0.0) for code in present])
    if weight.sum() > 0:
        region = present[np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(), side="right")]
        where = where[pool.region[where] == region]
    return int(where[rng.integers(len(where))])


def mirror(pool: Pool, chosen: int, allowed: NDArray[np.bool_], spacing: Spacing) -> int | None:
    """Return the voxel of the other side that mirrors a chosen one best.

    Each side's part of the region is taken as the other's mirror image in x, about their own centres: limbs are
    seldom posed alike.

    Args:
        pool: Voxels where deposits can be.
        chosen: Number of the voxel in the pool.
        allowed: Which of them may be taken, shape (N,).
        spacing: Voxel size in mm.

    Returns:
        Its number in the pool, None where the host does not know sides or lacks the other one.
    """
    region, side = pool.region[chosen], pool.side[chosen]
    if side == Side.NONE:
        return None
    here = (pool.region == region) & (pool.side == side)
    there = (pool.region == region) & (pool.side != side) & (pool.side != Side.NONE)
    target = np.flatnonzero(there & allowed)
    if target.size == 0:
        return None
    offset = pool.index[chosen] - pool.index[here].mean(axis=0)
    wanted = pool.index[there].mean(axis=0) + offset * (-1, 1, 1)
    away = ((pool.index[target] - wanted) * spacing) ** 2
    return int(target[np.argmin(away.sum(axis=1))])
