"""The skeleton of a posed body as steps of drawing: cartilage, cortex, core, growth plates.

Sizes are those of an adult of 1.75 m (textbook, rounded) times the body's frame. When ossification centres appear and
growth plates close follows the usual textbook ages in years, rounded and without the difference between the sexes.
Lateral, front and distal are the axes of a limb: the first points away from the midline on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.body import Plan
from jdm_seg.synthesis.anatomy.canvas import Paint
from jdm_seg.synthesis.anatomy.shapes import Capsule, Ellipsoid, Frame, Loft, Solid, Vector, look_along, tube
from jdm_seg.synthesis.anatomy.tissue import Side, Tissue

Place = Callable[[float, float, float], Vector]
"""(lateral, front, distal) in mm to a world position."""

CLOSED = 17.0
"""Age at which growth plates are drawn closed."""

Profile = tuple[tuple[float, float, float], ...]
"""(share of the length, half width to the side, half width to the front) of a shaft, in mm of an adult."""
FEMUR: Profile = (
    (0, 20, 20),
    (0.12, 17, 17),
    (0.3, 13.5, 14),
    (0.6, 13.5, 14),
    (0.8, 17, 16),
    (0.93, 30, 22),
    (1, 36, 26),
)
TIBIA: Profile = (
    (0, 32, 22),
    (0.08, 26, 20),
    (0.2, 17, 17),
    (0.45, 13, 14),
    (0.75, 12, 12),
    (0.92, 18, 17),
    (1, 21, 19),
)
FIBULA: Profile = ((0, 9, 9), (0.1, 6, 6), (0.5, 6, 6.5), (0.85, 6, 6.5), (1, 8, 9))
HUMERUS: Profile = (
    (0, 20, 19),
    (0.1, 15, 15),
    (0.3, 11, 11.5),
    (0.65, 10, 10.5),
    (0.85, 15, 9.5),
    (0.97, 28, 9),
    (1, 29, 8),
)
ULNA: Profile = ((0, 10, 10), (0.15, 8, 9), (0.5, 6, 6.5), (0.85, 5, 5), (1, 6.5, 6.5))
RADIUS: Profile = ((0, 7.5, 7.5), (0.15, 8, 8), (0.5, 7, 6.5), (0.85, 8, 6.5), (0.96, 14, 9), (1, 15, 10))


class Skeleton:
    """Collects bones in the order of drawing: cartilage, all cortex, all cores, growth plates.

    Joined solids thus have no walls between them.
    """

    def __init__(self, plan: Plan) -> None:
        """Start empty."""
        self.plan = plan
        self.age = plan.body.age
        self.size = plan.body.frame_size
        self.rng = np.random.default_rng((plan.body.seed, 2))
        self.cartilage: list[Paint] = []
        self.cortex: list[Paint] = []
        self.core: list[Paint] = []
        self.plates: list[Paint] = []

    @property
    def steps(self) -> list[Paint]:
        """Return everything in drawing order."""
        return [*self.cartilage, *self.cortex, *self.core, *self.plates]

    def bone(self, solids: Sequence[Solid], cortex: float = 1.2, core: Tissue = Tissue.TRABECULA) -> None:
        """Add solids that form one bone with a cortex of some mm."""
        thick = cortex * max(0.7, self.size)
        for solid in solids:
            self.cortex.append(Paint(solid, Tissue.CORTEX))
            self.core.append(Paint(solid, core, grow=-thick))

    def gristle(self, solids: Sequence[Solid], grow: float = 0.0) -> None:
        """Add cartilage."""
        self.cartilage += [Paint(solid, Tissue.CARTILAGE, grow=grow) for solid in solids]

    def centre(
        self, solids: Sequence[Ellipsoid], appears: float, closes: float = CLOSED, plate: Ellipsoid | None = None
    ) -> None:
        """Add a bone end that ossifies from its middle.

        Args:
            solids: The full-grown shape; all of it is cartilage at first.
            appears: Age at which bone begins.
            closes: Age at which it is grown and the plate is gone.
            plate: The growth plate between it and the shaft.
        """
        self.gristle(solids, grow=0.5 if self.age >= closes else 0.0)
        if self.age <= appears:
            return
        grown = min(1.0, 0.4 + 0.6 * (self.age - appears) / (0.6 * (closes - appears)))
        self.bone([Ellipsoid(s.centre, _times(s.radii, grown), s.frame, s.cuts) for s in solids], 1.0)
        if plate is not None and self.age < closes:
            self.plates.append(Paint(plate, Tissue.CARTILAGE, over=(Tissue.CORTEX, Tissue.TRABECULA)))
            for way in (-1.0, 1.0):  # the dense lines of provisional calcification
                line = np.add(plate.centre, way * (plate.radii[2] + 0.6) * np.asarray(_axis(plate)))
                thin = (plate.radii[0], plate.radii[1], 0.6)
                edge = Ellipsoid((float(line[0]), float(line[1]), float(line[2])), thin, plate.frame)
                self.plates.append(Paint(edge, Tissue.CORTEX, over=(Tissue.TRABECULA,)))

    def shaft(self, start: Vector, end: Vector, front: Vector, profile: Profile, bow: float) -> None:
        """Add a long bone's shaft: thick cortex and marrow in the middle, thin cortex and spongy bone at the ends.

        Args:
            start: The proximal end.
            end: The distal end.
            front: Direction of v.
            profile: Half widths along u and v.
            bow: How far the middle lies to the front, in mm.
        """
        frame = look_along(start, end, front)
        length = float(np.linalg.norm(np.subtract(end, start)))
        share = [r[0] for r in profile]
        a, b = (self.size * np.array([r[i] for r in profile]) for i in (1, 2))
        middle = np.array([np.sin(np.pi * np.clip(t, 0, 1)) for t in share])
        at, dv = tuple(length * t for t in share), tuple(bow * m for m in middle)
        thin, thick = 1.0 * max(0.8, self.size), 0.33 * np.minimum(a, b)
        inner = np.maximum(np.where(middle > 0.5, thick, thin), thin)

        def loft(wall: NDArray[np.float64] | float, part: slice = slice(None)) -> Loft:
            u, v = np.maximum(a - wall, 0.6)[part], np.maximum(b - wall, 0.6)[part]
            return Loft(frame, at[part], tuple(u.tolist()), tuple(v.tolist()), dv=dv[part], cap=0.25)

        self.cortex.append(Paint(loft(0.0), Tissue.CORTEX))
        self.core.append(Paint(loft(inner), Tissue.TRABECULA))
        hollow = [i for i, m in enumerate(middle) if m > 0.4]
        self.core.append(Paint(loft(inner, slice(hollow[0], hollow[-1] + 1)), Tissue.MARROW))

    def short(self, start: Vector, end: Vector, radius: float, appears: float = 0.0) -> None:
        """Add a small long bone of hand or foot, with a joint gap at both ends and a growth centre at its base.

        Args:
            start: Its nearer end in mm.
            end: Its farther end in mm.
            radius: Of the shaft in mm.
            appears: Age in years from which it is ossified.
        """
        if self.age <= appears:
            return
        a, b = np.asarray(start), np.asarray(end)
        gap = min(0.12, 1.6 / max(float(np.linalg.norm(b - a)), 1.0))
        growing = self.age < 15
        base = gap + (0.14 if growing else 0.0)
        at = [a + t * (b - a) for t in (base, 0.3, 0.6, 1 - gap)]
        r = radius * np.array([1.15, 0.8, 0.75, 1.05])
        # a capsule's round end reaches beyond its point
        at[-1] = at[-1] - (b - a) / max(float(np.linalg.norm(b - a)), 1.0) * float(r[-1]) * 0.8
        self.bone(tube(at, r.tolist()), 1.1, Tissue.MARROW)
        if growing and self.age > 2:
            disc = look_along(start, end, (0.3, 0.9, 0.3))
            centre = a + (gap + 0.05) * (b - a)
            self.bone(
                [Ellipsoid((float(centre[0]), float(centre[1]), float(centre[2])), (radius, radius, 1.8), disc)], 0.7
            )


def _times(radii: Vector, factor: float) -> Vector:
    return radii[0] * factor, radii[1] * factor, radii[2] * factor


def _axis(solid: Ellipsoid) -> Vector:
    return (0.0, 0.0, 1.0) if solid.frame is None else solid.frame.axes[2]


def _place(frame: Frame, side: Side) -> Place:
    sign = 1.0 if side == Side.RIGHT else -1.0
    return lambda lateral, front, distal: frame.world(-sign * lateral, front, distal)


def skeleton(plan: Plan) -> list[Paint]:
    """Return the steps that draw a body's bones and cartilage."""
    bones = Skeleton(plan)
    _spine(bones)
    _skull(bones)
    _thorax(bones)
    for side in (Side.RIGHT, Side.LEFT):
        _pelvis(bones, side)
        _girdle(bones, side)
        _arm(bones, side)
        _hand(bones, side)
        _leg(bones, side)
        _foot(bones, side)
    return bones.steps


def _leg(bones: Skeleton, side: Side) -> None:
    leg, f = bones.plan.legs[side], bones.size
    thigh, shank = leg.thigh.frame, leg.shank.frame
    p, front, length = _place(thigh, side), thigh.axes[1], leg.thigh_length
    head = Ellipsoid(p(0, 0, 0), (23 * f, 23 * f, 23 * f))
    bones.centre(
        [head], 0.4, plate=Ellipsoid(p(15 * f, 0, 10 * f), (27 * f, 27 * f, 1.3), look_along(p(0, 0, 0), p(40, 0, 26)))
    )
    bones.bone([Capsule(p(12 * f, 0, 8 * f), p(42 * f, -2, 30 * f), 15 * f, 17 * f)])
    bones.centre([Ellipsoid(p(52 * f, -8 * f, 18 * f), (14 * f, 18 * f, 22 * f), thigh)], 4)
    bones.centre([Ellipsoid(p(22 * f, -18 * f, 58 * f), (10 * f, 9 * f, 12 * f), thigh)], 11)
    bones.shaft(p(42 * f, -2, 40 * f), p(2 * f, 0, length - 36 * f), front, FEMUR, 9 * f)
    condyles = [Ellipsoid(p(s * 20 * f, -8 * f, length - 20 * f), (20 * f, 29 * f, 20 * f), thigh) for s in (-1, 1)]
    condyles.append(Ellipsoid(p(0, 4 * f, length - 25 * f), (26 * f, 20 * f, 13 * f), thigh))
    bones.centre(condyles, -1, plate=Ellipsoid(p(0, -2 * f, length - 36 * f), (52 * f, 40 * f, 1.5), thigh))
    bones.centre([Ellipsoid(p(2, 44 * f, length - 4 * f), (20 * f, 9 * f, 20 * f), thigh)], 3, 14)
    p, front, length = _place(shank, side), shank.axes[1], leg.shank_length
    plateau = [Ellipsoid(p(s * 19 * f, -2 * f, 17 * f), (20 * f, 23 * f, 12 * f), shank) for s in (-1, 1)]
    bones.centre(plateau, 0, plate=Ellipsoid(p(0, 0, 28 * f), (48 * f, 36 * f, 1.5), shank))
    bones.centre([Ellipsoid(p(0, 24 * f, 36 * f), (11 * f, 7 * f, 14 * f), shank)], 10)
    bones.shaft(p(-2 * f, 1, 28 * f), p(-4 * f, 0, length - 16 * f), front, TIBIA, 5 * f)
    bones.centre(
        [
            Ellipsoid(p(-4 * f, 0, length - 10 * f), (21 * f, 18 * f, 8 * f), shank),
            Ellipsoid(p(-21 * f, 2, length), (7 * f, 11 * f, 15 * f), shank),
        ],
        0.5,
        plate=Ellipsoid(p(-4 * f, 0, length - 17 * f), (30 * f, 27 * f, 1.3), shank),
    )
    bones.shaft(
        p(33 * f, -15 * f, 32 * f),
        p(24 * f, -8 * f, length - 8 * f),
        front,
        FIBULA,
        0,
    )
    bones.centre([Ellipsoid(p(33 * f, -15 * f, 24 * f), (9 * f, 9 * f, 10 * f), shank)], 4)
    bones.centre([Ellipsoid(p(25 * f, -6 * f, length + 6 * f), (7 * f, 10 * f, 17 * f), shank)], 1)


def _foot(bones: Skeleton, side: Side) -> None:
    leg, f = bones.plan.legs[side], bones.size
    p, length = _place(leg.foot, side), leg.foot_length
    frame = leg.foot
    tarsus = (
        ((0, 0, 0.15 * length), (16, 18, 0.15 * length / f), 0),
        ((-2, 21 * f, 0.27 * length), (17, 13, 0.1 * length / f), 0),
        ((-10 * f, 16 * f, 0.385 * length), (15, 12, 7), 3),
        ((15 * f, 2 * f, 0.39 * length), (12, 12, 15), 0.5),
        ((-18 * f, 10 * f, 0.45 * length), (8, 12, 10), 2),
        ((-4 * f, 14 * f, 0.445 * length), (7, 11, 8), 3),
        ((8 * f, 11 * f, 0.445 * length), (7, 11, 9), 1),
    )
    for at, radii, appears in tarsus:
        bones.centre([Ellipsoid(p(*at), _times(radii, f), frame)], appears - 1, 12)
    bones.centre([Ellipsoid(p(0, -4 * f, 0.0 * length + 3), (12 * f, 15 * f, 5 * f), frame)], 7, 15)
    for number, (joints, _) in enumerate(bones.plan.toes(side)):
        thick = (7.5 if number == 0 else 5.0) * f
        bones.short(joints[0], joints[1], thick)
        bones.short(joints[1], joints[2], 0.75 * thick)
        bones.short(joints[2], joints[3], 0.65 * thick)
    if bones.age > 10:  # sesamoids under the great toe
        for lateral in (-34, -24):
            bones.bone([Ellipsoid(p(lateral * f, -20 * f, 0.71 * length), (4 * f, 3.5 * f, 5 * f), frame)], 0.9)


def _arm(bones: Skeleton, side: Side) -> None:
    arm, f = bones.plan.arms[side], bones.size
    upper, fore = arm.upper.frame, arm.fore.frame
    p, front, length = _place(upper, side), upper.axes[1], arm.upper_length
    plate = Ellipsoid(p(2 * f, 0, 24 * f), (30 * f, 28 * f, 1.4), upper)
    bones.centre([Ellipsoid(p(-4 * f, 0, 8 * f), (22 * f, 22 * f, 22 * f))], 0.4, plate=plate)
    bones.centre([Ellipsoid(p(15 * f, 3 * f, 14 * f), (11 * f, 15 * f, 16 * f), upper)], 2)
    bones.shaft(p(3 * f, 0, 22 * f), p(0, 0, length - 12 * f), front, HUMERUS, 0)
    bones.centre([Ellipsoid(p(13 * f, 4 * f, length - 3 * f), (10 * f, 9 * f, 9 * f), upper)], 1, 14)
    bones.centre([Ellipsoid(p(-9 * f, 1 * f, length - 3 * f), (12 * f, 8 * f, 8 * f), upper)], 9, 14)
    bones.centre([Ellipsoid(p(-27 * f, -3 * f, length - 12 * f), (7 * f, 6 * f, 9 * f), upper)], 5.5, 15)
    bones.centre([Ellipsoid(p(25 * f, 0, length - 10 * f), (5 * f, 6 * f, 8 * f), upper)], 11, 15)
    p, front, length = _place(fore, side), fore.axes[1], arm.fore_length
    bones.bone([Capsule(p(-6 * f, -11 * f, -4 * f), p(-7 * f, -10 * f, 22 * f), 9 * f, 10 * f)])
    bones.centre([Ellipsoid(p(-6 * f, -14 * f, -14 * f), (8 * f, 8 * f, 7 * f), fore)], 9, 15)
    bones.shaft(
        p(-7 * f, -9 * f, 18 * f),
        p(-15 * f, -3 * f, length - 6 * f),
        front,
        ULNA,
        3 * f,
    )
    bones.centre([Ellipsoid(p(-15 * f, -3 * f, length - 2 * f), (7 * f, 7 * f, 5 * f), fore)], 6)
    bones.centre([Ellipsoid(p(13 * f, 3 * f, 9 * f), (10 * f, 10 * f, 7 * f), fore)], 5, 15)
    bones.shaft(p(12 * f, 2 * f, 16 * f), p(10 * f, 0, length - 8 * f), front, RADIUS, -4 * f)
    plate = Ellipsoid(p(10 * f, 0, length - 9 * f), (23 * f, 16 * f, 1.2), fore)
    bones.centre([Ellipsoid(p(10 * f, 0, length - 3 * f), (15 * f, 10 * f, 6.5 * f), fore)], 1, plate=plate)


def _hand(bones: Skeleton, side: Side) -> None:
    arm, f = bones.plan.arms[side], bones.size
    p, length = _place(arm.hand, side), arm.hand_length
    ages = (5, 4.5, 2.5, 10, 5, 5.5, 0.4, 0.5)
    for number, appears in enumerate(ages):
        row, column = divmod(number, 4)
        at = p((15 - 9.5 * column) * f, (1.5 if number % 2 else -1.0) * f, (0.035 + 0.062 * row) * length)
        bones.centre([Ellipsoid(at, (6.2 * f, 7 * f, 6.2 * f), arm.hand)], appears, 12)
    for number, (joints, _) in enumerate(bones.plan.fingers(side)):
        thick = (6.0 if number == 0 else 5.2) * f
        for step in range(len(joints) - 1):
            bones.short(joints[step], joints[step + 1], thick * (1 - 0.14 * step))
    if bones.age > 12:
        bones.bone([Ellipsoid(p(44 * f, 10 * f, 0.29 * length), (2.6 * f, 2.6 * f, 3 * f))], 0.8)


def _pelvis(bones: Skeleton, side: Side) -> None:
    plan, f, g, age = bones.plan, bones.size, bones.plan.body.girth, bones.age
    s = 1.0 if side == Side.RIGHT else -1.0
    hip = plan.legs[side].thigh.frame.origin
    top = 0.24 * plan.shoulder_z
    wing_top, root = (s * 100 * f, -8 * g, top), (s * 72 * f, -22 * g, 0.05 * plan.shoulder_z)
    across = np.array([s * 0.57, 0.82, 0.0])
    up = np.subtract(wing_top, root) / np.linalg.norm(np.subtract(wing_top, root))
    normal = np.cross(across, up)
    frame = Frame(root, (tuple(across.tolist()), tuple(normal.tolist()), tuple(up.tolist())))
    height = float(np.linalg.norm(np.subtract(wing_top, root)))
    bones.bone([Ellipsoid(frame.world(0, 0, 0.5 * height), (64 * f, 5.5 * f, 0.62 * height), frame)], 1.2)
    crest = [frame.world(62 * f * np.cos(t), 0, (0.55 + 0.55 * np.sin(t)) * height) for t in np.linspace(0.25, 2.9, 8)]
    if age >= 15:
        bones.bone(tube(crest, 7 * f), 1.2)
    else:
        bones.gristle(tube(crest, 6 * f))
        if age > 12:
            bones.bone(tube([tuple(np.add(c, 3.5 * up).tolist()) for c in crest[2:6]], 2.0), 0.7)
    cup = Ellipsoid(hip, (35 * f, 35 * f, 35 * f), cuts=(((s * 0.86, 0.3, -0.42), s * 0.86 * hip[0] + 4 * f),))
    # the socket comes first, so that the joint space is carved out of it before the femoral head is drawn
    socket = (
        (cup, Tissue.CORTEX, 0.0),
        (cup, Tissue.TRABECULA, -1.5),
        (Ellipsoid(hip, (26 * f,) * 3), Tissue.CARTILAGE, 0.0),
    )
    bones.cartilage += [Paint(solid, tissue, grow=grow) for solid, tissue, grow in socket]
    pubis, tuber = (s * 13 * f, 52 * g, -14 * f), (s * 60 * f, -42 * g, -64 * f)
    bones.bone([Capsule((s * 68 * f, 18 * f, 8 * f), pubis, 11 * f, 9 * f)], 1.2)
    bones.bone([Capsule((s * 72 * f, -20 * f, -12 * f), tuber, 14 * f, 15 * f)], 1.4)
    bones.bone([Capsule(pubis, tuber, 7 * f, 8 * f)], 1.1)
    bones.gristle([Ellipsoid((0, 52 * g, -14 * f), (5 * f, 9 * f, 16 * f))])
    if age < 15:  # the three-rayed cartilage of the socket and the one between ischium and pubis
        ray = Ellipsoid((s * 62 * f, 0, 2 * f), (16 * f, 30 * f, 1.4))
        bones.plates.append(Paint(ray, Tissue.CARTILAGE, over=(Tissue.CORTEX, Tissue.TRABECULA)))
    if age < 8:
        gap = Ellipsoid((s * 42 * f, 2 * g, -44 * f), (3.0, 12 * f, 12 * f))
        bones.plates.append(Paint(gap, Tissue.CARTILAGE, over=(Tissue.CORTEX, Tissue.TRABECULA)))
    if 13 < age < 19:
        bones.bone([Ellipsoid(tuple(np.add(tuber, (0, -14 * g, -8)).tolist()), (9 * f, 2.5, 14 * f))], 0.7)


def _girdle(bones: Skeleton, side: Side) -> None:
    plan, f, g = bones.plan, bones.size, bones.plan.body.girth
    s = 1.0 if side == Side.RIGHT else -1.0
    shoulder = plan.arms[side].upper.frame.origin
    raised = plan.limbs(side).arm > 1.5
    tip = (s * (plan.shoulder_x - (22 if raised else 2) * f), -20 * g, shoulder[2] + 30 * f)
    inner = (s * 22 * f, 44 * g, 0.985 * plan.shoulder_z)
    bow = [
        inner,
        (s * 60 * f, 44 * g, inner[2] + 0.3 * (tip[2] - inner[2])),
        (s * 110 * f, 8 * g, inner[2] + 0.7 * (tip[2] - inner[2])),
        (tip[0] - s * 18 * f, -8 * g, tip[2] - 2),
    ]
    bones.bone(tube(bow, [9 * f, 6.5 * f, 6 * f, 7 * f]), 1.8)
    centre = (s * (112 if raised else 98) * f, -72 * g, 0.83 * plan.shoulder_z)
    turn = -0.5 * s
    frame = Frame(
        centre,
        ((float(np.cos(turn)), float(np.sin(turn)), 0), (float(-np.sin(turn)), float(np.cos(turn)), 0), (0, 0, 1)),
    )
    bones.bone([Ellipsoid(centre, (46 * f, 3.2 * f, 76 * f), frame)], 1.0)
    bones.bone([Capsule(frame.world(-s * 40 * f, -6 * f, 28 * f), tip, 4.5 * f, 7 * f)], 1.2)
    glenoid = (shoulder[0] - s * 32 * f, shoulder[1] - 4 * f, shoulder[2] - 6 * f)
    bones.bone([Capsule(frame.world(s * 30 * f, 0, 25 * f), glenoid, 7 * f, 11 * f)], 1.2)
    bones.bone(
        [Capsule(glenoid, (glenoid[0] + s * 6 * f, glenoid[1] + 34 * f, glenoid[2] + 12 * f), 7 * f, 5 * f)], 1.2
    )
    bones.gristle([Ellipsoid((shoulder[0] - s * 25 * f, shoulder[1], shoulder[2] - 6 * f), (4 * f, 13 * f, 17 * f))])
    bones.centre([Ellipsoid(tip, (9 * f, 10 * f, 6 * f))], 13, 18)


def _thorax(bones: Skeleton) -> None:
    plan, f, g = bones.plan, bones.size, bones.plan.body.girth
    top = plan.shoulder_z
    for s in (1.0, -1.0):
        for number in range(12):
            path = rib_path(plan, s, number)
            bony = path[: (12 if number > 0 else 9)]
            radius = (6.2 if number else 7) * f
            for a, b in pairwise(bony):
                out = np.array([0.5 * (a[0] + b[0]), 0.5 * (a[1] + b[1]) + 10 * g, 0])
                out = out / max(np.linalg.norm(out), 1e-3)
                bones.bone([Capsule(a, b, radius, radius, ((float(out[0]), float(out[1]), 0.0), 1.8))], 0.9)
            if number < 10:
                bones.gristle(tube(path[len(bony) - 1 :], 5.5 * f))
    y = sternum_y(plan)
    segments = ((0.965, 25, 22, 24), (0.87, 17, 16, 0), (0.81, 18, 16, 0), (0.75, 19, 16, 0), (0.69, 17, 16, 0))
    for t, wide, high, _ in segments:
        tall = high * f * (0.8 if bones.age < 14 and t < 0.9 else 1.25)
        bones.bone([Ellipsoid((0, y(t * top), t * top), (wide * f, 6.5 * f, tall))], 0.9)
        bones.gristle([Ellipsoid((0, y(t * top), t * top), (wide * f, 6.5 * f, 1.3 * high * f))])
    bones.gristle([Ellipsoid((0, y(0.63 * top) - 4, 0.63 * top), (10 * f, 4 * f, 18 * f))])


def sternum_y(plan: Plan) -> Callable[[float], float]:
    """Return y of the sternum's middle by height."""

    def y(z: float) -> float:
        _, b, _, dv = plan.trunk.section(z)
        return dv + b - 27 * plan.body.girth - 8 * max(0.0, z / plan.shoulder_z - 0.85) * 30 * plan.body.girth / 8

    return y


def rib_path(plan: Plan, sign: float, number: int) -> list[Vector]:
    """Return a rib from its head beside the spine to the sternum; the last points are costal cartilage."""
    top, g = plan.shoulder_z, plan.body.girth
    begin = (1.01 - 0.047 * number) * top
    drop = (0.04 + 0.19 * np.sin(np.pi * min(number + 1.5, 10) / 13)) * top
    reach = 1.0 if number < 10 else (0.62 if number == 10 else 0.45)
    wide = float(np.interp(number, [0, 1, 2, 4, 11], [0.42, 0.6, 0.72, 0.85, 0.87]))
    sternum = sternum_y(plan)
    points = []
    for i in range(15):
        t = i / 14 * reach
        angle = np.deg2rad(-78 + 158 * t)
        z = begin - drop * np.sin(0.5 * np.pi * min(1.0, t * 1.1))
        if number >= 6 and t > 0.8:  # the arch rises to the sternum
            z += (t - 0.8) / 0.2 * min(0.2, 0.035 * (number - 5)) * top
        a, b, _, dv = plan.trunk.section(float(np.clip(z, 0.35 * top, 0.93 * top)))
        x = sign * (wide * (a - 6 * g) * np.cos(angle) * (1 if t < 0.9 else 0.9) + 16 * g * (t < 0.03))
        y = dv + (b - 22 * g) * np.sin(angle) * (0.96 if number else 0.6)
        if number < 7:
            y = min(y, sternum(z) + 2)
        points.append((float(x), float(y), float(z)))
    return points


def _spine(bones: Skeleton) -> None:
    plan, f = bones.plan, bones.size
    top = plan.shoulder_z
    base, neck, skull = 0.205 * top, 1.03 * top, plan.vertex - 0.6 * plan.head
    weights = np.linspace(1.65, 1.0, 17)
    edges = [base, *(base + (neck - base) * np.cumsum(weights) / weights.sum())]
    edges += list(neck + (skull - neck) * np.arange(1, 8) / 7)
    column = [(*plan.spine(float(z)), float(z)) for z in edges]
    thick = np.interp(np.arange(len(edges)), [0, 5, 17, 24], [17, 16, 10, 8]) * f
    bones.gristle(tube(column, thick.tolist()))
    for number in range(24):
        _vertebra(bones, number, column[number], column[number + 1], lumbar=number < 5, cervical=number >= 17)
    sacrum = look_along((0, plan.spine(base)[1] + 4, base), (0, -82 * plan.body.girth, -0.06 * top))
    length = float(np.linalg.norm(np.subtract((0, -82 * plan.body.girth, -0.06 * top), sacrum.origin)))
    at, a, b = (
        (0.0, 0.3 * length, 0.7 * length, length),
        (44 * f, 42 * f, 24 * f, 9 * f),
        (20 * f, 17 * f, 11 * f, 6 * f),
    )
    bones.bone([Loft(sacrum, at, a, b, dv=(0, -6 * f, -8 * f, 0), cap=0.3)], 1.1)
    for s in (1, -1):
        bones.bone([Ellipsoid(sacrum.world(s * 34 * f, -4 * f, 0.2 * length), (20 * f, 15 * f, 26 * f), sacrum)], 1.0)
    canal = [(0.0, y - float(t) - 8 * f, z) for (_, y, z), t in zip(column, thick, strict=True)]
    bones.plates += [Paint(c, Tissue.FLUID) for c in tube(canal, 7.5 * f)]
    bones.plates += [Paint(c, Tissue.BRAIN) for c in tube(canal[6:], 4.2 * f)]


def _vertebra(bones: Skeleton, number: int, low: Vector, high: Vector, *, lumbar: bool, cervical: bool) -> None:
    f = bones.size
    height = float(np.linalg.norm(np.subtract(high, low)))
    frame = look_along(low, high)
    t = number / 23
    wide, deep = (
        float(np.interp(t, [0, 0.25, 0.7, 1], [25, 21, 13, 10])) * f,
        float(np.interp(t, [0, 0.25, 0.7, 1], [18, 16, 11, 8])) * f,
    )
    disc = (0.22 if lumbar else 0.16) * height
    at = (0.5 * disc, 0.5 * height, height - 0.5 * disc)
    bones.bone([Loft(frame, at, (wide, 0.88 * wide, wide), (deep, 0.9 * deep, deep), cap=0.0)], 0.9)
    middle, back = 0.55 * height, -deep - 8 * f
    process = (32 if lumbar else 26 if not cervical else 18) * f
    down = (0.2 if lumbar or cervical else 0.75) * height
    bones.bone(
        [
            Capsule(
                frame.world(0, back - 8 * f, middle), frame.world(0, back - process, middle - down), 4.2 * f, 4.6 * f
            )
        ],
        1.0,
    )
    for s in (1, -1):
        side = 0.55 * wide + 2 * f
        bones.bone(
            [
                Capsule(
                    frame.world(s * side, -deep + 2 * f, middle),
                    frame.world(s * 12 * f, back, middle),
                    4.2 * f,
                    4.5 * f,
                )
            ],
            1.0,
        )
        bones.bone(
            [
                Capsule(
                    frame.world(s * 12 * f, back, middle),
                    frame.world(0, back - 9 * f, middle - 0.1 * height),
                    4 * f,
                    3.6 * f,
                )
            ],
            1.0,
        )
        out = (30 if lumbar else 26 if not cervical else 17) * f
        bones.bone(
            [
                Capsule(
                    frame.world(s * 12 * f, back + 3 * f, middle),
                    frame.world(s * out, back + (3 if lumbar else -5) * f, middle),
                    3.6 * f,
                    3.2 * f,
                )
            ],
            0.9,
        )
        bones.bone([Ellipsoid(frame.world(s * 13 * f, back, height), (5 * f, 5 * f, 0.34 * height), frame)], 0.9)


def _skull(bones: Skeleton) -> None:
    plan = bones.plan
    s, v = plan.head_scale, plan.vertex
    wall = float(np.interp(bones.age, [2, 8, 18], [3.0, 4.5, 6.5]))
    centre, outer = (0.0, -4 * s, v - 100 * s), (71 * s, 92 * s, 95 * s)
    for shrink, tissue in (
        (0, Tissue.CORTEX),
        (0.3 * wall, Tissue.TRABECULA),
        (0.7 * wall, Tissue.CORTEX),
        (wall, Tissue.FLUID),
        (wall + 2, Tissue.BRAIN),
    ):
        bones.cortex.append(Paint(Ellipsoid(centre, outer), tissue, grow=-shrink))
    for x in (1, -1):
        ventricle = Ellipsoid((x * 13 * s, 0, v - 85 * s), (7 * s, 30 * s, 10 * s))
        bones.cortex.append(Paint(ventricle, Tissue.FLUID))
        bones.bone([Capsule((x * 18 * s, 8 * s, v - 150 * s), (x * 52 * s, -22 * s, v - 148 * s), 9 * s, 12 * s)], 2.5)
        cells = Ellipsoid((x * 58 * s, -24 * s, v - 160 * s), (9 * s, 11 * s, 13 * s))
        bones.bone([cells], 2.0, Tissue.GAS if bones.age > 4 else Tissue.TRABECULA)
        bones.bone([Ellipsoid((x * 30 * s, 55 * s, v - 150 * s), (22 * s, 22 * s, 26 * s))], 1.5, Tissue.GAS)
        orbit = Ellipsoid((x * 31 * s, 70 * s, v - 122 * s), (20 * s, 25 * s, 18 * s))
        bones.plates.append(
            Paint(orbit, Tissue.CORTEX, grow=1.2, over=(Tissue.TRABECULA, Tissue.GAS, Tissue.MUSCLE, Tissue.FAT))
        )
        bones.plates.append(Paint(orbit, Tissue.FAT))
        bones.plates.append(Paint(Ellipsoid((x * 31 * s, 80 * s, v - 122 * s), (12 * s, 12 * s, 12 * s)), Tissue.FLUID))
        zygoma = tube(
            [(x * 48 * s, 66 * s, v - 140 * s), (x * 62 * s, 42 * s, v - 143 * s), (x * 63 * s, 5 * s, v - 142 * s)],
            4 * s,
        )
        bones.bone(zygoma, 1.4)
        jaw = [
            (x * 50 * s, 4 * s, v - 158 * s),
            (x * 45 * s, 16 * s, v - 200 * s),
            (x * 26 * s, 54 * s, v - 212 * s),
            (0.0, 66 * s, v - 213 * s),
        ]
        bones.bone(tube(jaw, [5 * s, 7 * s, 8 * s, 8.5 * s]), 2.0)
    bones.bone([Ellipsoid((0, 30 * s, v - 150 * s), (40 * s, 30 * s, 7 * s))], 1.4)
    bones.plates.append(Paint(Ellipsoid((0, 58 * s, v - 148 * s), (11 * s, 34 * s, 20 * s)), Tissue.GAS))
    bones.plates.append(Paint(Capsule((0, 90 * s, v - 130 * s), (0, 40 * s, v - 150 * s), 0.8, 0.8), Tissue.CORTEX))
    _teeth(bones, s, v)


def _teeth(bones: Skeleton, s: float, v: float) -> None:
    """Draw both rows; in children the permanent ones wait in the bone behind the milk teeth."""
    rows = ((188, -9.0), (202, 9.0))
    for number in range(14):
        angle = np.pi * (0.06 + 0.88 * number / 13)
        x, y = 25 * s * np.cos(angle), (34 + 31 * np.sin(angle)) * s
        wide = 4.3 * s if abs(number - 6.5) > 3 else 3.0 * s
        for below, root in rows:
            crown = (float(x), float(y), v - below * s)
            bones.plates.append(
                Paint(Capsule(crown, (crown[0], crown[1] - 2 * s, crown[2] - root * s), wide, 0.6 * wide), Tissue.TOOTH)
            )
            if 3 < bones.age < 11 and bones.rng.random() < 0.8:
                bud = Ellipsoid((crown[0] * 0.9, crown[1] - 6 * s, crown[2] - 1.9 * root * s), (wide, wide, 1.3 * wide))
                bones.plates.append(Paint(bud, Tissue.TOOTH))
