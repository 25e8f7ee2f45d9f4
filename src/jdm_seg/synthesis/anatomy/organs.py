"""What lies inside a posed body besides bone: cavities, lungs, heart, gut, glands, vessels, airways.

Shapes and places are those of a textbook adult (assumed), scaled with the body; +x is the patient's right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.body import Plan
from jdm_seg.synthesis.anatomy.canvas import Paint
from jdm_seg.synthesis.anatomy.shapes import Capsule, Ellipsoid, Frame, Loft, Vector, look_along, tube
from jdm_seg.synthesis.anatomy.skeleton import sternum_y
from jdm_seg.synthesis.anatomy.tissue import Side, Tissue

_UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_CAVITY = (Tissue.VISCERAL_FAT, Tissue.LUNG)
_BELLY = (Tissue.VISCERAL_FAT,)
_SOFT = (Tissue.FAT, Tissue.FASCIA, Tissue.MUSCLE, Tissue.TENDON, Tissue.VISCERAL_FAT)


def organs(plan: Plan) -> list[Paint]:
    """Return the steps that draw what the skeleton is drawn over."""
    rng = np.random.default_rng((plan.body.seed, 3))
    return [*_cavities(plan), *_chest(plan, rng), *_abdomen(plan, rng), *_throat(plan), *_vessels(plan, rng)]


def _cavities(plan: Plan) -> list[Paint]:
    """Hollow the trunk's muscle: wall about as thick as the ribs' path above, thinner in front of the belly."""
    g, top = plan.body.girth, plan.shoulder_z
    stations = ((-0.09, 60, 45, 8), (0.02, 74, 62, 2), (0.14, 96, 74, 14), (0.25, 122, 82, 12), (0.4, 120, 84, 14))
    high = ((0.6, 126, 88, 6), (0.8, 132, 90, 0), (0.92, 98, 74, -8), (1.0, 56, 50, -10))
    rows = [*stations, *high]
    cavity = Loft(
        Frame((0, 0, 0), _UPRIGHT),
        at=tuple(t * top for t, *_ in rows),
        a=tuple(a * g for _, a, *_ in rows),
        b=tuple(b * g for *_, b, _ in rows),
        dv=tuple(dv * g for *_, dv in rows),
        cap=0.4,
    )
    steps = [Paint(cavity, Tissue.VISCERAL_FAT, over=_SOFT)]
    for s in (1.0, -1.0):  # erector spinae and psoas stand out into the hollow
        beside = [(s * 30 * g, plan.spine(float(z))[1] - 14 * g, float(z)) for z in np.linspace(0.1, 0.95, 8) * top]
        steps += [Paint(c, Tissue.MUSCLE, over=_BELLY) for c in tube(beside, 20 * g)]
        psoas = [
            (s * 30 * g, plan.spine(0.48 * top)[1], 0.48 * top),
            (s * 42 * g, plan.spine(0.3 * top)[1] + 4 * g, 0.3 * top),
            (s * 62 * g, 12 * g, 0.12 * top),
            (s * 78 * g, 28 * g, 0.0),
        ]
        steps += [Paint(c, Tissue.MUSCLE, over=_BELLY) for c in tube(psoas, [9 * g, 17 * g, 20 * g, 15 * g])]
    return steps


def _chest(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    g, top = plan.body.girth, plan.shoulder_z
    steps = []
    for s in (1.0, -1.0):
        rows = ((0.5, 46, 64, -6), (0.58, 50, 80, 0), (0.8, 50, 82, 0), (0.93, 38, 62, -6), (1.0, 22, 30, -10))
        lung = Loft(
            Frame((s * (68 if s > 0 else 72) * g, 0, 0), _UPRIGHT),
            at=tuple(t * top for t, *_ in rows),
            a=tuple(a * g for _, a, *_ in rows),
            b=tuple(b * g for *_, b, _ in rows),
            dv=tuple(dv * g for *_, dv in rows),
            du=tuple(-s * d * g for d in (-8, -4, 0, 14, 30)),
            cap=0.5,
        )
        steps.append(Paint(lung, Tissue.LUNG, over=_CAVITY))
        steps += _bronchi(plan, rng, s)
    lie = look_along((0, 0, 0), (-0.55, 0.6, -0.6))
    heart, y = (-16 * g, 22 * g, 0.665 * top), 0.665 * top
    steps.append(Paint(Ellipsoid(heart, (48 * g, 44 * g, 60 * g), lie), Tissue.ORGAN, over=_CAVITY))
    for dx, dy, r in ((14, -4, 24), (-14, 4, 22), (10, 20, 18)):
        chamber = Ellipsoid((heart[0] + dx * g, heart[1] + dy * g, y), (r * g, r * g, 1.3 * r * g), lie)
        steps.append(Paint(chamber, Tissue.BLOOD, over=(Tissue.ORGAN,)))
    thymus = float(np.interp(plan.body.age, [2, 12, 20], [1.0, 0.7, 0.0]))
    if thymus > 0.1:
        at = (0.0, sternum_y(plan)(0.85 * top) - 18 * g, 0.86 * top)
        steps.append(Paint(Ellipsoid(at, (30 * g, 12 * g, 36 * g * thymus)), Tissue.ORGAN, over=_CAVITY))
    return steps


def _bronchi(plan: Plan, rng: np.random.Generator, side: float) -> list[Paint]:
    """Draw lung vessels: a few branching tubes, which the network must learn to leave alone."""
    g, top = plan.body.girth, plan.shoulder_z
    steps = []
    root = np.array([side * 26 * g, -8 * g, 0.78 * top])
    for _ in range(16):
        way = rng.normal(size=3) * (1.0, 0.9, 1.3) + (side * 0.9, 0, -0.1)
        way /= np.linalg.norm(way)
        reach = rng.uniform(50, 95) * g
        bend = rng.normal(0, 6 * g, (4, 3)) * np.array([[0], [1], [1], [1]])
        points = root + np.outer(np.linspace(0, 1, 4), way * reach) + bend
        radii = rng.uniform(3.0, 4.5) * g * np.array([1, 0.7, 0.45, 0.25])
        steps += [Paint(c, Tissue.BLOOD, over=(Tissue.LUNG,)) for c in tube(points, radii.tolist())]
    return steps


def _abdomen(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    g, top = plan.body.girth, plan.shoulder_z
    big = 1.15 if plan.body.age < 6 else 1.0
    liver = Ellipsoid((56 * g, 8 * g, 0.5 * top), (74 * g * big, 72 * g, 66 * g * big))
    left_lobe = Ellipsoid((-14 * g, 38 * g, 0.53 * top), (56 * g, 34 * g, 30 * g))
    steps = [Paint(liver, Tissue.LIVER, over=_CAVITY), Paint(left_lobe, Tissue.LIVER, over=_CAVITY)]
    for _ in range(5):
        points = np.array([56, 0, 0.5 * top / g]) * g + rng.normal(0, 26 * g, (3, 3))
        steps += [Paint(c, Tissue.BLOOD, over=(Tissue.LIVER,)) for c in tube(points, [4 * g, 3 * g, 2 * g])]
    steps.append(
        Paint(
            Ellipsoid((40 * g, 34 * g, 0.44 * top), (11 * g, 24 * g, 18 * g)),
            Tissue.FLUID,
            over=(*_BELLY, Tissue.LIVER),
        )
    )
    steps.append(Paint(Ellipsoid((-92 * g, -34 * g, 0.52 * top), (24 * g, 38 * g, 46 * g)), Tissue.ORGAN, over=_CAVITY))
    for s in (1.0, -1.0):
        y = plan.spine(0.36 * top)[1] - 4 * g
        kidney = Ellipsoid((s * 60 * g, y, (0.37 if s < 0 else 0.35) * top), (29 * g, 26 * g, 56 * g))
        steps.append(Paint(kidney, Tissue.KIDNEY, over=_BELLY))
        hilum = Ellipsoid((s * 48 * g, y + 6 * g, kidney.centre[2]), (13 * g, 9 * g, 24 * g))
        steps.append(Paint(hilum, Tissue.VISCERAL_FAT, over=(Tissue.KIDNEY,)))
    pancreas = [(-70 * g, -8 * g, 0.46 * top), (-20 * g, 16 * g, 0.44 * top), (24 * g, 14 * g, 0.4 * top)]
    steps += [Paint(c, Tissue.ORGAN, over=_BELLY) for c in tube(pancreas, [9 * g, 10 * g, 14 * g])]
    steps += _gut(plan, rng)
    full = rng.uniform(0.4, 1.1)
    bladder = Ellipsoid((0, 28 * g, 0.03 * top), (34 * g * full, 28 * g * full, 30 * g * full))
    steps.append(Paint(bladder, Tissue.ORGAN, over=_BELLY))
    steps.append(Paint(bladder, Tissue.FLUID, grow=-3 * g))
    organ = Ellipsoid((0, -8 * g, 0.03 * top), (22 * g, 18 * g, 26 * g))
    steps.append(Paint(organ, Tissue.ORGAN, over=_BELLY))
    return steps


def _gut(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    """Draw stomach, colon and small bowel; gas rises against gravity, contrast or tablets fill some stretches."""
    g, top = plan.body.girth, plan.shoulder_z
    up = -1.0 if plan.body.prone else 1.0
    dense = Tissue.CONTRAST if rng.random() < 0.2 else Tissue.BOWEL
    stomach = [(-60 * g, -6 * g, 0.55 * top), (-62 * g, 24 * g, 0.46 * top), (-24 * g, 44 * g, 0.4 * top)]
    colon = [
        (88 * g, 4 * g, 0.14 * top),
        (96 * g, 2 * g, 0.28 * top),
        (92 * g, 20 * g, 0.4 * top),
        (40 * g, 56 * g, 0.36 * top),
        (-40 * g, 56 * g, 0.38 * top),
        (-98 * g, 4 * g, 0.47 * top),
        (-102 * g, -12 * g, 0.3 * top),
        (-88 * g, 0 * g, 0.14 * top),
        (-36 * g, 14 * g, 0.08 * top),
        (-4 * g, -34 * g, 0.1 * top),
        (0 * g, -44 * g, -0.02 * top),
    ]
    steps = []
    for points, radii in ((stomach, [30 * g, 32 * g, 18 * g]), (colon, [rng.uniform(15, 25) * g for _ in colon])):
        for piece in tube(points, radii):
            steps += _loop(piece, rng, up, dense)
    at = np.array([0.0, 30 * g, 0.24 * top])
    way = rng.normal(size=3)
    for _ in range(110):
        way = 0.6 * way + rng.normal(size=3)
        new = at + 22 * g * way / np.linalg.norm(way)
        home = np.array([0.0, 30 * g, 0.22 * top])
        new = home + np.clip(
            new - home, -np.array([96 * g, 52 * g, 0.14 * top]), np.array([96 * g, 52 * g, 0.14 * top])
        )
        radius = rng.uniform(10, 15) * g
        piece = Capsule(_vector(at), _vector(new), radius, radius)
        steps += _loop(piece, rng, up, dense, gas=0.12)
        at = new
    return steps


def _loop(piece: Capsule, rng: np.random.Generator, up: float, dense: Tissue, gas: float = 0.5) -> list[Paint]:
    steps = [Paint(piece, Tissue.BOWEL, over=_BELLY)]
    inside = -2.0
    if dense == Tissue.CONTRAST and rng.random() < 0.45:
        steps.append(Paint(piece, Tissue.CONTRAST, grow=inside, over=(Tissue.BOWEL,)))
    elif rng.random() < 0.03:  # a tablet, a pellet, bismuth
        at = tuple(np.asarray(piece.start) + rng.normal(0, 3, 3))
        steps.append(Paint(Ellipsoid(_vector(at), (3.5, 3.5, 2.0)), Tissue.CONTRAST, over=(Tissue.BOWEL,)))
    if rng.random() < gas:
        lift = up * 0.55 * piece.start_radius
        start, end = (tuple(np.add(p, (0, lift, 0))) for p in (piece.start, piece.end))
        bubble = Capsule(_vector(start), _vector(end), 0.62 * piece.start_radius, 0.62 * piece.end_radius)
        steps.append(Paint(bubble, Tissue.GAS, over=(Tissue.BOWEL, Tissue.CONTRAST)))
    return steps


def _throat(plan: Plan) -> list[Paint]:
    g, s, top, v = plan.body.girth, plan.head_scale, plan.shoulder_z, plan.vertex
    trachea = [
        (0.0, 40 * s, v - 168 * s),
        (0.0, 26 * s, v - 190 * s),
        (0.0, 22 * g, 0.5 * (v - 200 * s + 1.05 * top)),
        (0.0, 14 * g, 1.0 * top),
        (2 * g, 0.0, 0.82 * top),
    ]
    wide = [7 * s, 7 * s, 7.5 * g, 7.5 * g, 7.5 * g]
    steps = [Paint(c, Tissue.CARTILAGE, grow=1.5) for c in tube(trachea[2:], wide[2:])]
    tongue = Ellipsoid((0, 46 * s, v - 190 * s), (24 * s, 30 * s, 20 * s))
    steps.append(Paint(tongue, Tissue.MUSCLE, over=_SOFT))
    steps += [Paint(c, Tissue.GAS) for c in tube(trachea, wide)]
    for x in (1, -1):
        main = [trachea[-1], (x * 24 * g, -8 * g, 0.78 * top), (x * 44 * g, -12 * g, 0.73 * top)]
        steps += [Paint(c, Tissue.GAS) for c in tube(main, [6 * g, 5 * g, 3.5 * g])]
        thyroid = Ellipsoid((x * 15 * g, 24 * g, 1.03 * top), (8 * g, 8 * g, 18 * g))
        steps.append(Paint(thyroid, Tissue.ORGAN, over=_SOFT))
        gland = Ellipsoid((x * 50 * s, 8 * s, v - 178 * s), (10 * s, 14 * s, 20 * s))
        steps.append(Paint(gland, Tissue.ORGAN, over=_SOFT))
    larynx = Ellipsoid((0, 30 * g, 0.35 * top + 0.65 * (v - 200 * s)), (13 * g, 11 * g, 13 * g))
    steps.insert(0, Paint(larynx, Tissue.CARTILAGE, over=_SOFT))
    return steps


def _vector(values: Sequence[float] | NDArray[np.float64]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _vessels(plan: Plan, rng: np.random.Generator) -> list[Paint]:
    """Draw the great vessels, those of the limbs, and veins under the skin."""
    g, top = plan.body.girth, plan.shoulder_z
    front = [plan.spine(float(z))[1] + 24 * g for z in np.array([0.24, 0.4, 0.6, 0.78]) * top]
    aorta = [
        (-6 * g, front[0], 0.24 * top),
        (-8 * g, front[1], 0.4 * top),
        (-14 * g, front[2], 0.6 * top),
        (-20 * g, front[3] - 10 * g, 0.78 * top),
        (-14 * g, front[3] + 8 * g, 0.87 * top),
        (6 * g, 18 * g, 0.88 * top),
        (8 * g, 22 * g, 0.75 * top),
    ]
    cava = [
        (12 * g, front[0], 0.24 * top),
        (14 * g, front[1], 0.4 * top),
        (20 * g, 4 * g, 0.62 * top),
        (24 * g, 8 * g, 0.9 * top),
    ]
    lines: list[tuple[list[Vector], float]] = [(aorta, 10 * g), (cava, 10 * g)]
    for side, s in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
        thigh, shank, arm = plan.legs[side].thigh, plan.legs[side].shank, plan.arms[side]
        groin = thigh.point(0.02 * plan.legs[side].thigh_length, np.pi / 2, 0.62)
        lines.append(([aorta[0], (s * 38 * g, -4 * g, 0.12 * top), groin], 6 * g))
        lines.append(([cava[0], (s * 36 * g, -14 * g, 0.12 * top), groin], 7 * g))
        lines += [_along(thigh, rng, 0.5, 4.5 * g, turn=-2.0 * s), _along(shank, rng, 0.35, 2.5 * g)]
        lines += [_along(arm.upper, rng, 0.5, 3.0 * g), _along(arm.fore, rng, 0.45, 2.0 * g)]
        shoulder = arm.upper.frame.world(0, 0, 0.1 * arm.upper_length)
        lines.append(([(s * 10 * g, 20 * g, 0.93 * top), (s * 60 * g, 10 * g, 1.0 * top), shoulder], 5 * g))
        for front_y, radius in ((10, 4.0), (4, 6.0)):
            neck = [
                (s * 16 * g, front_y * g, 0.97 * top),
                (s * 26 * g, front_y * g, plan.vertex - 165 * plan.head_scale),
            ]
            lines.append((neck, radius * g))
        for loft in (thigh, shank, arm.upper, arm.fore):
            lines += [_along(loft, rng, 0.92, rng.uniform(1.2, 2.2) * g) for _ in range(2)]
    over = (*_SOFT, Tissue.LUNG, Tissue.ORGAN)
    return [Paint(c, Tissue.BLOOD, over=over) for points, radius in lines for c in tube(points, radius)]


def _along(
    loft: Loft, rng: np.random.Generator, reach: float, radius: float, turn: float = 0.0
) -> tuple[list[Vector], float]:
    """Return a vessel along a limb, slowly turning about its axis."""
    angle, twist = rng.uniform(0, 2 * np.pi), turn or rng.normal(0, 0.8)
    share = np.linspace(0.03, 0.97, 9)
    wave = reach + 0.04 * np.sin(share * rng.uniform(4, 9) + angle)
    at = loft.at[0] + share * (loft.at[-1] - loft.at[0])
    return [loft.point(float(w), angle + twist * t, float(r)) for w, t, r in zip(at, share, wave, strict=True)], radius
