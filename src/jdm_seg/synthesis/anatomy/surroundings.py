"""What is scanned along with a body: table, clothing, cast, lines, tubes, electrodes, dental work, implants.

How often each is there is assumed. None of it is calcinosis, and a network must learn so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jdm_seg.synthesis.anatomy.body import Plan
from jdm_seg.synthesis.anatomy.canvas import Canvas, Paint
from jdm_seg.synthesis.anatomy.envelope import Envelope, tabulated
from jdm_seg.synthesis.anatomy.shapes import Capsule, Ellipsoid, FloatArray, Vector, tube
from jdm_seg.synthesis.anatomy.tissue import Region, Side, Tissue

_AIR = (Tissue.AIR,)
_FLAT_MM = 9.0
"""How much lying flattens the back of an adult."""


@dataclass(frozen=True)
class Surroundings:
    """What surrounds a body, as drawn.

    Attributes:
        table: Distance of the table's top behind the skin in mm; None without a table in the field of view.
        sheet: Thickness of the sheet under the body in mm, 0 without.
        clothes: Thickness in mm and gap to the skin in mm; None if undressed.
        cast: Region and side in plaster; None without.
        extras: Names of lines, tubes and metal parts, of :data:`EXTRAS`.
        seed: Draws where exactly they are.
    """

    table: float | None
    sheet: float
    clothes: tuple[float, float] | None
    cast: tuple[int, int] | None
    extras: tuple[str, ...]
    seed: int


EXTRAS: dict[str, float] = {
    "electrodes": 0.06,
    "buttons": 0.08,
    "central line": 0.06,
    "port": 0.04,
    "gastric tube": 0.04,
    "gastrostomy": 0.03,
    "urinary catheter": 0.02,
    "cannula": 0.12,
    "braces": 0.06,
    "fillings": 0.12,
    "earrings": 0.08,
    "hip screw": 0.02,
    "bracelet": 0.05,
}
"""What may be there and how often (assumed)."""


def sample_surroundings(rng: np.random.Generator) -> Surroundings:
    """Draw what is around a body."""
    cast = None
    if rng.random() < 0.03:
        region = int(rng.choice([Region.FOREARM, Region.LOWER_LEG, Region.FOOT]))
        cast = (region, int(rng.choice([Side.RIGHT, Side.LEFT])))
    return Surroundings(
        table=float(rng.uniform(0, 12)) if rng.random() < 0.75 else None,
        sheet=float(rng.uniform(0.5, 3)) if rng.random() < 0.5 else 0.0,
        clothes=(float(rng.uniform(0.3, 1.0)), float(rng.uniform(1.5, 8))) if rng.random() < 0.5 else None,
        cast=cast,
        extras=tuple(name for name, share in EXTRAS.items() if rng.random() < share),
        seed=int(rng.integers(2**31)),
    )


def table_plane(plan: Plan) -> float:
    """Return y of the plane a body lies on, which flattens its back (or belly) by some mm."""
    way = 1 if plan.body.prone else -1
    reach = [way * part.solid.bounds[0 if way < 0 else 1][1] for part in plan.parts if part.name in _LYING]
    return way * (float(max(reach)) - _FLAT_MM * plan.body.girth)


_LYING = ("trunk", "buttock", "breast")


def paint_surroundings(
    plan: Plan, surroundings: Surroundings, canvas: Canvas, envelope: Envelope, noise: FloatArray
) -> None:
    """Draw what is outside the skin, then what enters it.

    Args:
        plan: The posed body.
        surroundings: What to draw.
        canvas: Changed in place; the body is on it already.
        envelope: Of the same canvas.
        noise: Periodic noise for folds.
    """
    if surroundings.clothes is not None or surroundings.cast is not None:
        _paint_covers(surroundings, canvas, envelope, noise)
    if surroundings.table is not None:
        _paint_table(plan, surroundings, canvas)
    for step in draw_extras(plan, surroundings):
        canvas.paint(step)


def _paint_covers(surroundings: Surroundings, canvas: Canvas, envelope: Envelope, noise: FloatArray) -> None:
    near = (envelope.outline > -2 * max(canvas.spacing)) & (envelope.outline < 25)
    for box in canvas.tiles(near, envelope.steps):
        outline = envelope.smooth(envelope.outline, box)
        air = canvas.first[box] == Tissue.AIR
        if surroundings.clothes is not None:
            thick, gap = surroundings.clothes
            region = envelope.codes(envelope.region, box)
            bare = np.isin(region, (Region.HEAD, Region.NECK, Region.HAND, Region.FOOT))
            folds = gap * (1 + 0.8 * tabulated(noise, canvas, box, 40.0))
            canvas.cover(box, outline - np.maximum(folds, thick), Tissue.CLOTH, air & ~bare, thickness=thick)
        if surroundings.cast is not None:
            where, side = surroundings.cast
            here = (envelope.codes(envelope.region, box) == where) & (envelope.codes(envelope.side, box) == side)
            canvas.cover(box, np.abs(outline - 6) - 3, Tissue.CAST, air & here)


def _paint_table(plan: Plan, surroundings: Surroundings, canvas: Canvas) -> None:
    assert surroundings.table is not None
    way = np.float32(1 if plan.body.prone else -1)
    # the table is hollowed: its sides rise towards the body
    x, y = canvas.axes[0][:, None, None], canvas.axes[1][None, :, None]
    rise = x * x / np.float32(1800)
    below = way * (y - np.float32(table_plane(plan))) + rise
    layers = (
        (Tissue.CLOTH, 0.5 * surroundings.sheet, surroundings.sheet),
        (Tissue.TABLE, surroundings.table + surroundings.sheet + 1.5, 3.0),
        (Tissue.TABLE, surroundings.table + surroundings.sheet + 45, 3.0),
    )
    plane, depth = table_plane(plan), float(layers[-1][1]) + 10
    behind, before = sorted((plane + float(way) * depth, plane - float(way) * 45))
    low = np.array([-260.0, behind, float(canvas.axes[2][0])])
    high = np.array([260.0, before, float(canvas.axes[2][-1])])
    for box in canvas.boxes(low, high):
        air = canvas.first[box] == Tissue.AIR
        for tissue, middle, thick in layers:
            if thick > 0:
                layer = np.broadcast_to(below[box[0], box[1]] - np.float32(middle), air.shape)
                canvas.cover(box, layer, tissue, air, thickness=thick)


def draw_extras(plan: Plan, surroundings: Surroundings) -> list[Paint]:
    """Return the steps that draw lines, tubes and metal parts."""
    rng = np.random.default_rng((surroundings.seed, 4))
    steps: list[Paint] = []
    for name in surroundings.extras:
        steps += _DRAWN[name](plan, rng)
    return steps


def _skin(plan: Plan, t: float, angle: float, reach: float = 1.0) -> Vector:
    """Return a place on the trunk at a share of its height and an angle in degrees from the right side."""
    return plan.trunk.point(t * plan.shoulder_z, float(np.deg2rad(angle)), reach)


def _wire(points: list[Vector], radius: float, tissue: Tissue, over: tuple[Tissue, ...] | None = None) -> list[Paint]:
    return [Paint(piece, tissue, over=over) for piece in tube(points, radius)]


def _hose(points: list[Vector], radius: float, wall: float) -> list[Paint]:
    """Draw a tube with its lumen."""
    steps = [Paint(piece, Tissue.PLASTIC) for piece in tube(points, radius)]
    return [*steps, *(Paint(piece, Tissue.FLUID, grow=-wall, over=(Tissue.PLASTIC,)) for piece in tube(points, radius))]


def _electrodes(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    steps = []
    for t, angle in ((0.9, 50), (0.9, 130), (0.62, 30), (0.6, 140)):
        at = _skin(plan, t + rng.normal(0, 0.02), angle + rng.normal(0, 5), 1.02)
        steps.append(Paint(Ellipsoid(at, (9, 4, 9)), Tissue.PLASTIC, over=_AIR))
        steps.append(Paint(Ellipsoid(at, (3, 3, 3)), Tissue.METAL, over=(Tissue.AIR, Tissue.PLASTIC)))
        end = _skin(plan, 0.3, 90 + rng.normal(0, 8), 1.05)
        half = tuple(0.5 * np.add(at, end) + (0, 18, 0))
        steps += _wire([at, (float(half[0]), float(half[1]), float(half[2])), end], 1.0, Tissue.METAL, _AIR)
    return steps


def _buttons(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    tissue = Tissue.METAL if rng.random() < 0.6 else Tissue.PLASTIC
    number, side = int(rng.integers(3, 8)), float(rng.normal(90, 6))
    at = [_skin(plan, float(t), side, 1.03) for t in np.linspace(0.15, 0.95, number)]
    return [Paint(Ellipsoid(p, (5.5, 2.5, 5.5)), tissue, over=(Tissue.AIR, Tissue.CLOTH)) for p in at]


def _central_line(plan: Plan, _rng: np.random.Generator) -> list[Paint]:
    g, top = plan.body.girth, plan.shoulder_z
    points = [
        _skin(plan, 0.86, 60, 1.04),
        (34 * g, 22 * g, 1.02 * top),
        (24 * g, 12 * g, 0.93 * top),
        (24 * g, 8 * g, 0.72 * top),
    ]
    return _hose(points, 1.4, 0.6)


def _port(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    at = _skin(plan, 0.87, 58, 0.93)
    chamber = Ellipsoid(at, (12, 5, 12))
    tissue = Tissue.METAL if rng.random() < 0.5 else Tissue.PLASTIC
    steps = [Paint(chamber, tissue), Paint(chamber, Tissue.FLUID, grow=-2.0)]
    g, top = plan.body.girth, plan.shoulder_z
    return [*steps, *_hose([at, (30 * g, 16 * g, 1.0 * top), (24 * g, 8 * g, 0.72 * top)], 1.3, 0.5)]


def _gastric_tube(plan: Plan, _rng: np.random.Generator) -> list[Paint]:
    g, s, v, top = plan.body.girth, plan.head_scale, plan.vertex, plan.shoulder_z
    back = plan.spine(0.9 * top)[1] + 20 * g
    points = [
        (8 * s, 104 * s, v - 158 * s),
        (6 * s, 60 * s, v - 152 * s),
        (0.0, 30 * s, v - 175 * s),
        (0.0, back, 1.0 * top),
        (-8 * g, back - 4 * g, 0.62 * top),
        (-60 * g, 4 * g, 0.5 * top),
    ]
    return _hose(points, 2.0, 0.7)


def _gastrostomy(plan: Plan, _rng: np.random.Generator) -> list[Paint]:
    g, top = plan.body.girth, plan.shoulder_z
    skin, inside = _skin(plan, 0.47, 112, 1.06), (-46 * g, 40 * g, 0.45 * top)
    return [*_hose([skin, inside], 3.5, 1.2), Paint(Ellipsoid(skin, (12, 4, 12)), Tissue.PLASTIC, over=_AIR)]


def _urinary_catheter(plan: Plan, _rng: np.random.Generator) -> list[Paint]:
    g, top = plan.body.girth, plan.shoulder_z
    points = [(0.0, 60 * g, -0.2 * top), (0.0, 30 * g, -0.1 * top), (0.0, 26 * g, 0.02 * top)]
    return [*_hose(points, 2.5, 0.8), Paint(Ellipsoid(points[-1], (9, 9, 9)), Tissue.FLUID)]


def _side(rng: np.random.Generator) -> Side:
    return Side.RIGHT if rng.random() < 0.5 else Side.LEFT


def _cannula(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    arm = plan.arms[_side(rng)].fore
    angle, w = float(rng.uniform(0.5, 2.5)), float(rng.uniform(0.2, 0.8)) * arm.at[-1]
    points = [arm.point(w, angle, 1.12), arm.point(w - 12, angle, 1.0), arm.point(w - 40, angle, 0.86)]
    hub = Capsule(points[0], points[1], 3.0, 2.2)
    return [*_wire(points, 0.7, Tissue.PLASTIC), Paint(hub, Tissue.PLASTIC, over=_AIR)]


def _dental(plan: Plan, share: float, rng: np.random.Generator, outwards: float, radius: float) -> list[Paint]:
    s, v = plan.head_scale, plan.vertex
    steps = []
    for number in range(14):
        angle = np.pi * (0.06 + 0.88 * number / 13)
        for z in (v - 189 * s, v - 201 * s):
            if rng.random() < share:
                at = (25 * outwards * s * np.cos(angle), (34 + 31 * outwards * np.sin(angle)) * s, z)
                metal = Ellipsoid((float(at[0]), float(at[1]), float(at[2])), (radius, radius, radius))
                steps.append(Paint(metal, Tissue.METAL, over=tuple(Tissue)))
    return steps


def _braces(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    return _dental(plan, 0.9, rng, 1.14, 1.5) if 9 < plan.body.age < 20 else []


def _fillings(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    return _dental(plan, 0.15, rng, 1.0, 2.0)


def _earrings(plan: Plan, _rng: np.random.Generator) -> list[Paint]:
    s = plan.head_scale
    at = [(x * 76 * s, 0.0, plan.vertex - 155 * s) for x in (1, -1)]
    return [Paint(Ellipsoid(p, (1.5, 3, 3)), Tissue.METAL, over=tuple(Tissue)) for p in at]


def _hip_screw(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    leg, f = plan.legs[_side(rng)], plan.body.frame_size
    frame, sign = leg.thigh.frame, np.sign(leg.thigh.frame.origin[0])
    start, end = frame.world(0, 0, 0), frame.world(-sign * 60 * f, 0, 42 * f)
    plate = frame.world(-sign * 62 * f, 0, 120 * f)
    return _wire([start, end, plate], 5.0 * f, Tissue.METAL)


def _bracelet(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    arm = plan.arms[_side(rng)].fore
    tissue = Tissue.METAL if rng.random() < 0.4 else Tissue.PLASTIC
    ring = [arm.point(0.94 * arm.at[-1], float(a), 1.12) for a in np.linspace(0, 2 * np.pi, 13)]
    return _wire(ring, 1.6, tissue, _AIR)


_DRAWN = {
    "electrodes": _electrodes,
    "buttons": _buttons,
    "central line": _central_line,
    "port": _port,
    "gastric tube": _gastric_tube,
    "gastrostomy": _gastrostomy,
    "urinary catheter": _urinary_catheter,
    "cannula": _cannula,
    "braces": _braces,
    "fillings": _fillings,
    "earrings": _earrings,
    "hip screw": _hip_screw,
    "bracelet": _bracelet,
}
