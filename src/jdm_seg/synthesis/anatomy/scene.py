"""A body in its surroundings, seen through a field of view: drawn parameters, and their rendering on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.synthesis.anatomy.body import Body, Plan, sample_body
from jdm_seg.synthesis.anatomy.canvas import Canvas
from jdm_seg.synthesis.anatomy.envelope import measure_envelope, paint_compartments, paint_layers
from jdm_seg.synthesis.anatomy.host import Host, distance
from jdm_seg.synthesis.anatomy.organs import organs
from jdm_seg.synthesis.anatomy.shapes import FloatArray, Vector
from jdm_seg.synthesis.anatomy.skeleton import skeleton
from jdm_seg.synthesis.anatomy.surroundings import Surroundings, paint_surroundings, sample_surroundings, table_plane
from jdm_seg.synthesis.anatomy.tissue import BONE, Side, TissueMap
from jdm_seg.volume import Spacing

VIEWS = ("limb", "trunk", "whole")
_NOISE = 64
_MARGIN_MM = 14.0
_VIEW_MM = 500.0


@dataclass(frozen=True)
class Scene:
    """Everything that was drawn for one scan's anatomy.

    Attributes:
        body: The body.
        surroundings: What is scanned along.
        centre: Middle of the field of view in mm; None to take in the whole body.
        where: What the view was aimed at, for the record.
    """

    body: Body
    surroundings: Surroundings
    centre: Vector | None
    where: str


def sample_scene(rng: np.random.Generator, view: str, body: Body | None = None) -> Scene:
    """Draw a body and where to look.

    Args:
        rng: Randomness.
        view: One of :data:`VIEWS`: a stretch of limb, a stretch of trunk, or the whole body.
        body: Drawn already; None draws one.
    """
    body = sample_body(rng) if body is None else body
    surroundings = sample_surroundings(rng)
    plan = Plan(body)
    if view == "whole":
        return Scene(body, surroundings, None, "whole")
    where, centre = _aim_at_limb(plan, rng) if view == "limb" else _aim_at_trunk(plan, rng)
    return Scene(body, surroundings, centre, where)


def _aim_at_limb(plan: Plan, rng: np.random.Generator) -> tuple[str, Vector]:
    side = Side.RIGHT if rng.random() < 0.5 else Side.LEFT
    leg, arm = plan.legs[side], plan.arms[side]
    targets = {
        "thigh": (leg.thigh, 0.45, 0.24),
        "knee": (leg.shank, 0.0, 0.2),
        "calf": (leg.shank, 0.4, 0.14),
        "foot": (leg.shank, 1.0, 0.08),
        "elbow": (arm.fore, 0.0, 0.14),
        "forearm": (arm.fore, 0.5, 0.08),
        "hand": (arm.fore, 1.15, 0.06),
        "upper arm": (arm.upper, 0.5, 0.06),
    }
    names = list(targets)
    where = str(rng.choice(names, p=[targets[n][2] for n in names]))
    loft, share, _ = targets[where]
    along = (share + rng.normal(0, 0.08)) * loft.at[-1]
    x, y, z = loft.frame.world(0, 0, float(along))
    if where in ("thigh", "knee", "calf") and rng.random() < 0.4:
        x = 0.0  # both legs
    return where, (x, y, z)


def _aim_at_trunk(plan: Plan, rng: np.random.Generator) -> tuple[str, Vector]:
    where = str(rng.choice(["hips", "abdomen", "chest", "shoulders", "neck"], p=[0.3, 0.25, 0.25, 0.15, 0.05]))
    share = {"hips": 0.02, "abdomen": 0.35, "chest": 0.7, "shoulders": 0.95, "neck": 1.15}[where]
    z = (share + rng.normal(0, 0.05)) * plan.shoulder_z
    return where, (float(rng.normal(0, 10)), 0.0, float(z))


def whole_extent(plan: Plan) -> tuple[Vector, Vector]:
    """Return the corners of the field of view of a whole-body scan, in mm.

    The body with a little air; what sticks out of the usual circle of 500 mm is cut, as it is on a scanner.
    """
    bounds = [part.solid.bounds for part in plan.parts]
    margin = _MARGIN_MM + plan.body.warp.reach
    low = np.min([b[0] for b in bounds], axis=0) - margin
    high = np.max([b[1] for b in bounds], axis=0) + margin
    low[:2] = np.maximum(low[:2], (-_VIEW_MM / 2, -0.32 * _VIEW_MM))
    high[:2] = np.minimum(high[:2], (_VIEW_MM / 2, 0.32 * _VIEW_MM))
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))


@dataclass(frozen=True)
class RenderedScene:
    """A scene on a grid.

    Attributes:
        tissue: With ``split`` layers for every slice of the host.
        host: Where deposits may lie, on the scan's own grid.
        origin: Position of the scan's first voxel centre in mm.
        axis: Across the slices: that of the largest voxel size.
        split: Layers of ``tissue`` in one slice of the scan.
    """

    tissue: TissueMap
    host: Host
    origin: Vector
    axis: int
    split: int


def render_scene(scene: Scene, spacing: Spacing, shape: tuple[int, int, int] | None = None) -> RenderedScene:
    """Draw a scene on a grid.

    Slices thicker than the pixels are drawn in several layers, so that a thick slice averages what it should.

    Args:
        scene: What to draw.
        spacing: Voxel size in mm.
        shape: Voxels along x, y, z; None fits the whole body.
    """
    plan = Plan(scene.body)
    low, high = whole_extent(plan)
    if shape is None:
        nx, ny, nz = (int(np.ceil((h - lo) / s)) for lo, h, s in zip(low, high, spacing, strict=True))
        shape = (nx, ny, nz)
    if scene.centre is None:
        origin = low
    else:
        a, b, c = (m - 0.5 * s * (n - 1) for m, s, n in zip(scene.centre, spacing, shape, strict=True))
        origin = (a, b, c)
    axis = int(np.argmax(spacing[::-1]))
    axis = 2 - axis  # the last one of equals: axial slices
    split = max(1, round(spacing[axis] / np.sqrt(np.prod(spacing) / spacing[axis])))
    parts = [split if a == axis else 1 for a in range(3)]
    fine = (spacing[0] / parts[0], spacing[1] / parts[1], spacing[2] / parts[2])
    start = [o - 0.5 * (n - 1) * f for o, n, f in zip(origin, parts, fine, strict=True)]
    fine_shape = (shape[0] * parts[0], shape[1] * parts[1], shape[2] * parts[2])
    canvas = Canvas((start[0], start[1], start[2]), fine_shape, fine, scene.body.warp)
    noise = periodic_noise(np.random.default_rng((scene.body.seed, 5)))
    lying = table_plane(plan) if scene.surroundings.table is not None else None
    envelope = measure_envelope(plan, canvas, lying)
    depth_mm, muscle_mm = paint_layers(plan, canvas, envelope, noise)
    paint_compartments(plan, canvas, envelope, muscle_mm)
    for step in (*organs(plan), *skeleton(plan)):
        canvas.paint(step)
    paint_surroundings(plan, scene.surroundings, canvas, envelope, noise)
    x, y, z = (slice(n // 2, None, n) for n in parts)
    whole = (x, y, z)
    tissue = np.ascontiguousarray(canvas.first[whole])
    host = Host(
        tissue=tissue,
        spacing=spacing,
        depth_mm=np.ascontiguousarray(depth_mm[whole]),
        muscle_mm=np.ascontiguousarray(muscle_mm[whole]),
        bone_mm=_coarse_distance(tissue, spacing),
        region=envelope.codes(envelope.region, whole),
        side=envelope.codes(envelope.side, whole),
        down=(0.0, 1.0 if scene.body.prone else -1.0, 0.0),
    )
    return RenderedScene(canvas.map, host, origin, axis, split)


def periodic_noise(rng: np.random.Generator) -> FloatArray:
    """Return smooth noise of unit variance that repeats, shape (64, 64, 64)."""
    noise = ndimage.gaussian_filter(rng.standard_normal((_NOISE,) * 3, np.float32), 2, mode="wrap")
    result: FloatArray = noise / noise.std()
    return result


def _coarse_distance(tissue: NDArray[np.uint8], spacing: Spacing) -> FloatArray:
    """Return the distance to bone, measured on every few voxels: who is near a joint need not know it exactly."""
    steps = [max(1, round(2.5 / s)) for s in spacing]
    x, y, z = (slice(step // 2, None, step) for step in steps)
    sampled = ~np.isin(tissue[x, y, z], BONE)
    coarse = (spacing[0] * steps[0], spacing[1] * steps[1], spacing[2] * steps[2])
    field = distance(sampled, coarse)
    nearest = [
        np.minimum(np.arange(m) // step, n - 1) for n, m, step in zip(field.shape, tissue.shape, steps, strict=True)
    ]
    result: FloatArray = field[np.ix_(*nearest)]
    return result
