"""The soft outside of a body: skin, subcutis, muscles in compartments, and which region every place belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.resample import axis_weights, resample
from jdm_seg.synthesis.anatomy.body import Part, Plan
from jdm_seg.synthesis.anatomy.canvas import Box, Canvas
from jdm_seg.synthesis.anatomy.shapes import Ellipsoid, FloatArray, Loft
from jdm_seg.synthesis.anatomy.tissue import Region, Side, Tissue

_COARSE_MM = 3.0
"""Outlines are smooth: they are evaluated this coarsely and interpolated."""
_REACH_MM = 45.0
"""How far outside a part still has a say in thickness and region."""
_FAR = np.float32(1e3)
_ADULT_SKIN_AGE = 14.0
"""When skin has its full thickness (assumed)."""


@dataclass(frozen=True)
class Envelope:
    """Smooth fields on a coarse lattice that covers a canvas, and the way to its voxels.

    Attributes:
        outline: Signed distance to the skin's surface in mm, negative inside.
        fat: Thickness of the subcutis in mm.
        owner: Index of the nearest part, shape of the lattice.
        region, side: :class:`Region` and :class:`Side` codes.
        steps: Voxels of the canvas in one cell of the lattice, along each axis.
        weights: Interpolation from the lattice to the canvas, one matrix an axis.
        nearest: Lattice index of every voxel, one array an axis.
    """

    outline: FloatArray
    fat: FloatArray
    owner: NDArray[np.uint8]
    region: NDArray[np.uint8]
    side: NDArray[np.uint8]
    steps: tuple[int, int, int]
    weights: tuple[FloatArray, FloatArray, FloatArray]
    nearest: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]

    def smooth(self, field: FloatArray, box: Box) -> FloatArray:
        """Interpolate a field at the voxels of a box."""
        rows = [w[s] for w, s in zip(self.weights, box, strict=True)]
        used = [np.flatnonzero(r.any(axis=0)) for r in rows]
        near = tuple(slice(int(u[0]), int(u[-1]) + 1) for u in used)
        return resample(field[near], [r[:, n] for r, n in zip(rows, near, strict=True)])

    def codes(self, field: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
        """Look up codes at the voxels of a box."""
        x, y, z = (n[s] for n, s in zip(self.nearest, box, strict=True))
        result: NDArray[np.uint8] = field[np.ix_(x, y, z)]
        return result


def measure_envelope(plan: Plan, canvas: Canvas, table: float | None) -> Envelope:
    """Evaluate the outline of every part on the coarse lattice.

    Args:
        plan: The posed body.
        canvas: Where it will be drawn.
        table: y of the plane the body lies on, which flattens it; None to leave it round.
    """
    steps = [max(1, round(_COARSE_MM / s)) for s in canvas.spacing]
    counts = [(n + step - 1) // step for n, step in zip(canvas.shape, steps, strict=True)]
    axes = [
        (axis[0] + s * (step * np.arange(n) + 0.5 * (step - 1))).astype(np.float32)
        for axis, s, step, n in zip(canvas.axes, canvas.spacing, steps, counts, strict=True)
    ]
    shape = (counts[0], counts[1], counts[2])
    groups: dict[str, FloatArray] = {}
    nearest = np.full(shape, _REACH_MM, np.float32)
    owner = np.full(shape, 255, np.uint8)
    fat, weight = np.zeros(shape, np.float32), np.full(shape, 1e-6, np.float32)
    region, side = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for index, part in enumerate(plan.parts):
        low, high = part.solid.bounds
        box = _box(axes, low, high, _REACH_MM + canvas.warp.reach)
        if any(s.stop <= s.start for s in box):
            continue
        at = canvas.warp(*(axis[s] for axis, s in zip(axes, box, strict=True)))
        distance = part.solid.distance(at)
        field = groups.setdefault(part.group, np.full(shape, _FAR, np.float32))
        field[box] = smooth_min(field[box], distance, np.float32(14 * plan.body.girth))
        pull = np.exp(-np.clip(distance, -30, _REACH_MM) / np.float32(12))
        fat[box] += pull * np.float32(part.fat)
        weight[box] += pull
        closer = distance < nearest[box]
        nearest[box] = np.where(closer, distance, nearest[box])
        owner[box] = np.where(closer, index, owner[box])
        region[box] = np.where(closer, _region(plan, part, at), region[box])
        side[box] = np.where(closer, part.side if part.side else np.where(at[0] > 0, Side.RIGHT, Side.LEFT), side[box])
    outline = _join(plan, groups, canvas, axes, shape)
    if table is not None:
        outline = -smooth_min(-outline, -_table_side(plan, axes[1], table), np.float32(8))
    weights = tuple(axis_weights(n, m, 1 / step) for n, m, step in zip(counts, canvas.shape, steps, strict=True))
    lattice = tuple(np.arange(m) // step for m, step in zip(canvas.shape, steps, strict=True))
    return Envelope(
        outline,
        fat / weight,
        owner,
        region,
        side,
        (steps[0], steps[1], steps[2]),
        (weights[0], weights[1], weights[2]),
        (lattice[0], lattice[1], lattice[2]),
    )


def _table_side(plan: Plan, y: FloatArray, table: float) -> FloatArray:
    """Return the signed distance to the table's plane, negative on the body's side."""
    side = y[None, :, None] - np.float32(table)
    return np.asarray(side if plan.body.prone else -side, np.float32)


def smooth_min(first: FloatArray, second: FloatArray, k: np.float32 | FloatArray) -> FloatArray:
    """Return the smaller of two distances, rounded over ``k`` mm where they meet (Quilez, polynomial)."""
    h = np.maximum(k - np.abs(first - second), 0)
    result: FloatArray = np.minimum(first, second) - h * h / (4 * np.maximum(k, np.float32(1e-3)))
    return result


def _join(
    plan: Plan, groups: dict[str, FloatArray], canvas: Canvas, axes: list[FloatArray], shape: tuple[int, int, int]
) -> FloatArray:
    """Join the arms to the trunk at the shoulders alone: an arm at the side touches, it does not grow together."""
    outline = groups.get("core", np.full(shape, _FAR, np.float32))
    for side in (Side.RIGHT, Side.LEFT):
        arm = groups.get(f"arm{side.name}")
        if arm is None:
            continue
        centre = np.asarray(plan.arms[side].upper.frame.origin)
        width = np.float32(85 * plan.body.girth)
        box = _box(axes, centre, centre, 2.5 * float(width))
        joint = smooth_min(outline[box], arm[box], _joint_width(plan, canvas, axes, box, centre, width))
        outline = np.minimum(outline, arm)
        outline[box] = joint
    return outline


def _joint_width(
    plan: Plan, canvas: Canvas, axes: list[FloatArray], box: Box, centre: NDArray[np.float64], width: np.float32
) -> FloatArray:
    at = canvas.warp(*(axis[s] for axis, s in zip(axes, box, strict=True)))
    squared = sum((c - np.float32(o)) ** 2 for c, o in zip(at, centre, strict=True))
    result: FloatArray = np.float32(55 * plan.body.girth) * np.exp(-squared / (width * width))
    return result


def _box(axes: list[FloatArray], low: NDArray[np.float64], high: NDArray[np.float64], reach: float) -> Box:
    x, y, z = (
        slice(int(np.searchsorted(axis, lo - reach)), int(np.searchsorted(axis, hi + reach)))
        for axis, lo, hi in zip(axes, low, high, strict=True)
    )
    return x, y, z


def _region(plan: Plan, part: Part, at: tuple[FloatArray, FloatArray, FloatArray]) -> NDArray[np.uint8]:
    if part.name == "trunk":
        t = at[2] / np.float32(plan.shoulder_z)
        behind = at[1] < np.float32(-52 * plan.body.girth)
        region = np.where(t > 0.55, Region.CHEST, np.where(t > 0.2, Region.ABDOMEN, Region.HIP))
        region = np.where(behind & (t > 0.2), Region.BACK, region)
        return region.astype(np.uint8)
    if isinstance(part.solid, Ellipsoid) or len(part.regions) == 1:
        return np.full(np.broadcast_shapes(*(c.shape for c in at)), part.regions[0][1], np.uint8)
    w = part.solid.along(at)
    result = np.full(w.shape, part.regions[0][1], np.uint8)
    for begin, code in part.regions[1:]:
        result[w >= begin] = code
    return result


def paint_layers(plan: Plan, canvas: Canvas, envelope: Envelope, noise: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Draw skin, subcutis with septa, and muscle.

    Args:
        plan: The posed body.
        canvas: Changed in place.
        envelope: Of the same canvas.
        noise: Periodic noise, shape (n, n, n), unit variance.

    Returns:
        Depth under the skin, 0 outside, and signed distance to the surface of the muscle layer, negative inside, both
        in mm and of the canvas' shape.
    """
    depth_mm = np.zeros(canvas.shape, np.float32)
    muscle_mm = np.full(canvas.shape, _FAR, np.float32)
    skin = np.float32(1.1 + 0.8 * min(1.0, plan.body.age / _ADULT_SKIN_AGE))
    for box in canvas.tiles(envelope.outline < 2 * max(canvas.spacing), envelope.steps):
        outline = envelope.smooth(envelope.outline, box)
        depth = outline + skin + envelope.smooth(envelope.fat, box)
        muscle_mm[box] = depth
        np.maximum(-outline, 0, out=depth_mm[box])
        canvas.cover(box, outline, Tissue.SKIN)
        if float((outline + skin).min()) > canvas.spacing[0]:
            continue
        canvas.cover(box, outline + skin, Tissue.FAT)
        _paint_septa(canvas, box, outline + skin, depth, noise)
        canvas.cover(box, depth, Tissue.MUSCLE)
    return depth_mm, muscle_mm


def _paint_septa(canvas: Canvas, box: Box, under_skin: FloatArray, to_muscle: FloatArray, noise: FloatArray) -> None:
    """Draw the walls between fat lobules and the membranous layer half way down: thin, so always partial volume."""
    fat = canvas.first[box] == Tissue.FAT
    at = tabulated(noise, canvas, box, 9.0)
    canvas.cover(box, at * 3, Tissue.FASCIA, fat, thickness=0.35)
    deep = to_muscle + np.float32(0.35) * (under_skin - to_muscle)
    thick = np.where(at > -0.4, np.float32(0.5), np.float32(0))
    canvas.cover(box, deep, Tissue.FASCIA, fat & (under_skin - to_muscle > 6), thickness=thick)


def tabulated(noise: FloatArray, canvas: Canvas, box: Box, scale: float) -> FloatArray:
    """Look up periodic noise whose table steps are ``scale`` / 4 mm, at the voxels of a box.

    Args:
        noise: One period, cubic.
        canvas: Gives the coordinates of voxels in mm.
        box: Voxels to look up.
        scale: Four steps of the table in mm.

    Returns:
        Noise at the voxels, shape of the box.
    """
    n = noise.shape[0]
    index = [
        np.floor(axis[s] / np.float32(scale / 4)).astype(np.intp) % n for axis, s in zip(canvas.axes, box, strict=True)
    ]
    result: FloatArray = noise[np.ix_(*index)]
    return result


def paint_compartments(plan: Plan, canvas: Canvas, envelope: Envelope, muscle_mm: FloatArray) -> None:
    """Part the muscle layer into compartments with fascia and fat between them, and tendons at their ends.

    Args:
        plan: The posed body.
        canvas: Changed in place.
        envelope: Of the same canvas.
        muscle_mm: Signed distance to muscle, changed to be zero at every compartment's surface.
    """
    inside = envelope.outline < 0
    for index, part in enumerate(plan.parts):
        if not part.muscles or isinstance(part.solid, Ellipsoid):
            continue
        for box in canvas.tiles((envelope.owner == index) & inside, envelope.steps):
            mine = (canvas.first[box] == Tissue.MUSCLE) & (envelope.codes(envelope.owner, box) == index)
            if mine.any():
                _part_muscle(plan, part.solid, part.muscles, canvas, box, mine, muscle_mm)


def _part_muscle(
    plan: Plan,
    solid: Loft,
    muscles: tuple[tuple[float, float], ...],
    canvas: Canvas,
    box: Box,
    mine: NDArray[np.bool_],
    muscle_mm: FloatArray,
) -> None:
    at = canvas.coordinates(box)
    x, y, z = (np.broadcast_to(c, mine.shape)[mine] for c in at)
    u, v, w, a, b = solid.normal((x, y, z))
    p, q = u / a, v / b
    # muscles do not run straight, and their borders are not planes
    p, q = p + 0.07 * np.sin(5 * q + w / 45), q + 0.07 * np.sin(6 * p + 1 + w / 60)
    seeds = np.array([(r * np.cos(angle), r * np.sin(angle)) for angle, r in muscles], np.float32)
    nearest = np.full(p.shape, np.inf, np.float32)
    second = np.full(p.shape, np.inf, np.float32)
    for seed in seeds:
        squared = (p - seed[0]) ** 2 + (q - seed[1]) ** 2
        second = np.minimum(second, np.maximum(nearest, squared))
        nearest = np.minimum(nearest, squared)
    scale = np.sqrt(a * b)
    nearest = np.sqrt(nearest)
    # half the difference: the distance to the plane between two seeds, less where three muscles meet around fat
    seam = np.float32(0.5) * (np.sqrt(second) - nearest) * scale
    length = np.float32(solid.at[-1] - solid.at[0])
    end = np.minimum(w - np.float32(solid.at[0]), np.float32(solid.at[-1]) - w)
    near_end = np.exp(-np.clip(end, 0, None) / (0.08 * length))
    girth = np.float32(plan.body.girth)
    gap = girth * (0.5 + 2.5 * near_end + 12 * plan.body.wasting * (0.3 + near_end))
    field = np.full(mine.shape, _FAR, np.float32)
    for tissue, half in ((Tissue.FAT, gap), (Tissue.FASCIA, np.float32(0.35))):
        field[mine] = seam - half
        canvas.cover(box, field, tissue, mine)
    core = nearest * scale
    field[mine] = np.where(end < 0.16 * length, core - girth * 3.0 * near_end, _FAR)
    canvas.cover(box, field, Tissue.TENDON, mine)
    part = muscle_mm[box]
    part[mine] = np.maximum(part[mine], gap - seam)
    muscle_mm[box] = part
