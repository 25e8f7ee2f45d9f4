"""A look-alike on a grid: how much of each voxel each of its tissues fills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.tissue import BONE, Tissue, is_one_of, is_soft
from jdm_seg.synthesis.deposits.fields import (
    Box,
    Noise,
    axes_of,
    block_mean,
    box_around,
    mean_width,
    parts_for,
    share_inside,
)
from jdm_seg.synthesis.deposits.lookalikes import IN_BONE, ON_SKIN, THROUGH_SKIN, LookAlike

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Overlay:
    """A rendered look-alike: a box of the grid, and how much of each voxel each tissue fills.

    Attributes:
        box: Where on the grid.
        layers: (tissue, coverage) pairs; coverages have the shape of the box and sum to at most 1.
        in_bone: Whether bone may change, too.
    """

    box: Box
    layers: tuple[tuple[Tissue, FloatArray], ...]
    in_bone: bool = False

    @property
    def coverage(self) -> FloatArray:
        """Share of each voxel that any of it fills."""
        total = self.layers[0][1].copy()
        for _, share in self.layers[1:]:
            total += share
        return total

    @property
    def code(self) -> NDArray[np.uint8]:
        """The tissue that fills most of each voxel, of those it is made of."""
        code = np.full(self.layers[0][1].shape, self.layers[0][0], np.uint8)
        for tissue, share in self.layers[1:]:
            code[share > self.layers[0][1]] = tissue
        return code


def render_lookalike(item: LookAlike, host: Host) -> Overlay | None:
    """Return how much of each voxel a look-alike fills, None where that is nothing.

    Bone stays as it is, but for what is screwed or sewn into it, and so does air, but for what lies on the skin or
    crosses it.

    Args:
        item: As drawn by :func:`sample_lookalikes`.
        host: Tissue on the target grid.
    """
    drawn = _render_tube(item, host) if item.length else _render_ellipsoid(item, host)
    if drawn is None:
        return None
    box, outer, inner = drawn
    tissue = host.tissue[box]
    in_bone = item.kind in IN_BONE
    bone = is_one_of(tissue, BONE)
    blocked = bone & (not in_bone)
    if item.kind not in (*ON_SKIN, *THROUGH_SKIN):
        blocked |= ~(is_soft(tissue) | bone)
    outer[blocked] = 0
    inner[blocked] = 0
    if not outer.any():
        return None
    codes = [Tissue[name] for name in item.hu]
    layers = [(codes[0], outer - inner)] + ([(codes[1], inner)] if len(codes) > 1 else [])
    return Overlay(box, tuple(layers), in_bone)


def _render_ellipsoid(item: LookAlike, host: Host) -> tuple[Box, FloatArray, FloatArray] | None:
    """Return a box, and how much of each voxel lies inside the outer surface and inside the core."""
    radius = item.radius * item.flat ** (-1 / 3)  # of the volume of a ball of the mean radius
    box = box_around(item.centre, radius, host.tissue.shape, host.spacing)
    if box is None:
        return None
    step = float(np.clip(min(item.radius * item.flat, item.wall) / 2, 0.3, 1.0))
    parts = parts_for(host.spacing, step, most=8)
    width = mean_width(s / n for s, n in zip(host.spacing, parts, strict=True))
    x, y, z = (a - np.float32(c) for a, c in zip(axes_of(box, host.spacing, parts), item.centre, strict=True))
    along = ((item.axis[0] * x)[:, None] + item.axis[1] * y)[:, :, None] + item.axis[2] * z
    squared = (x * x)[:, None, None] + (y * y)[:, None] + z * z
    squared += along * along * np.float32(1 / item.flat**2 - 1)
    distance = np.sqrt(squared, out=squared) - np.float32(radius)
    outer = block_mean(share_inside(distance, width), parts)
    if len(item.hu) == 1:
        return box, outer, np.zeros_like(outer)
    return box, outer, np.minimum(block_mean(share_inside(distance + np.float32(item.wall), width), parts), outer)


def _render_tube(item: LookAlike, host: Host) -> tuple[Box, FloatArray, FloatArray] | None:
    """The same for a curved tube: only voxels near points along it are looked at."""
    spacing = np.asarray(host.spacing)
    width = mean_width(host.spacing)
    step = max(0.5 * item.radius, 0.7 * float(spacing.min()))
    pieces = max(3, int(np.ceil(item.length / step)))
    along = (2 * np.arange(pieces) + 1) / pieces - 1  # their middles
    half = item.length / 2
    bow = along[:, None] ** 2 - 1 / 3 + 0.5 * np.sin(2.5 * along)[:, None]
    spots = np.asarray(item.centre) + half * (along[:, None] * item.axis + bow * item.bend)
    reach = item.radius + width / 2
    inside = ((spots > -reach) & (spots < np.array(host.tissue.shape) * spacing + reach)).all(axis=1)
    if not inside.any():
        return None
    tangent = np.gradient(spots, axis=0)
    apart = np.linalg.norm(tangent, axis=1, keepdims=True)
    spots, tangent, apart = spots[inside], (tangent / apart)[inside], apart[inside]
    first = np.floor((spots - reach) / spacing).astype(np.intp)
    size = np.ceil(2 * reach / spacing).astype(np.intp) + 1
    low, high = np.maximum(first.min(axis=0), 0), np.minimum((first + size).max(axis=0), host.tissue.shape)
    if (high <= low).any():
        return None
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])), slice(int(low[2]), int(high[2])))
    shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
    where, distance = _tube_distance(spots, tangent, apart[:, 0], first - low, size, low, shape, spacing)
    near = np.flatnonzero(distance < reach)
    where, distance = where[near], distance[near]
    share = _tube_share(distance, item.radius, width)
    core = np.zeros_like(share)
    if len(item.hu) > 1:
        core = np.minimum(_tube_share(distance, item.radius - item.wall, width), share)
    if item.broken:  # where the wall is missing there is nothing to see, and the core goes with it
        voxels = np.unravel_index(where, shape)
        whole = Noise(item.seed, 4.0).at(axes_of(box, host.spacing), voxels) >= ndtri(item.broken)
        share, core = share * whole, core * whole
    outer, inner = np.zeros((2, *shape), np.float32)
    outer.reshape(-1)[where], inner.reshape(-1)[where] = share, core
    return box, outer, inner


def _tube_distance(
    spots: NDArray[np.float64],
    tangent: NDArray[np.float64],
    apart: NDArray[np.float64],
    first: NDArray[np.intp],
    size: NDArray[np.intp],
    low: NDArray[np.intp],
    shape: tuple[int, int, int],
    spacing: NDArray[np.float64],
) -> tuple[NDArray[np.intp], FloatArray]:
    """Return flat numbers of the voxels of a box near a chain of short straight pieces, and their distance to it.

    Args:
        spots: Middle of each piece in mm, (P, 3).
        tangent: Its direction, (P, 3).
        apart: Its length in mm, (P,).
        first: First voxel of the box that each piece may touch, (P, 3).
        size: How many it may touch along each axis.
        low: First voxel of the box on the grid.
        shape: Of the box.
        spacing: Voxel size in mm.
    """
    away, numbers, kept = [], [], []
    for axis in range(3):
        number = first[:, axis, None] + np.arange(size[axis])
        offset = ((number + low[axis] + 0.5) * spacing[axis] - spots[:, axis, None]).astype(np.float32)
        spread = [1, 1, 1]
        spread[axis] = size[axis]
        away.append(offset.reshape(-1, *spread))
        numbers.append(number.reshape(-1, *spread))
        kept.append(((number >= 0) & (number < shape[axis])).reshape(-1, *spread))
    direction = tangent.astype(np.float32).T[:, :, None, None, None]
    half = (apart / 2).astype(np.float32)[:, None, None, None]
    along = away[0] * direction[0] + away[1] * direction[1] + away[2] * direction[2]
    beyond = np.maximum(np.abs(along) - half, 0)
    squared = away[0] ** 2 + away[1] ** 2 + away[2] ** 2 - along * along + beyond * beyond
    inside = kept[0] & kept[1] & kept[2]
    flat = ((numbers[0] * shape[1] + numbers[1]) * shape[2] + numbers[2])[inside]
    nearest = np.full(int(np.prod(shape)), np.inf, np.float32)
    np.minimum.at(nearest, flat, np.maximum(squared[inside], 0))
    where = np.flatnonzero(nearest < np.inf)
    return where, np.sqrt(nearest[where])


def _tube_share(distance: FloatArray, radius: float, width: float) -> FloatArray:
    """Return the share of voxels that a tube fills: a ramp across its surface, scaled to the tube's cross-section."""
    if radius < width / 2:
        scale = 3 * width * radius**2 / (radius + width / 2) ** 3
    else:
        scale = radius**2 / (radius**2 + width**2 / 12)
    result: FloatArray = share_inside(distance - np.float32(radius), width) * np.float32(scale)
    return result
