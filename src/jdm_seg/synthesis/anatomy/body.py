"""A child or adult as drawn: age, size, build, pose, and from them joints and the outlines of the body's parts.

Origin is the middle between the hip joints; lengths in mm, angles in radians. Segment lengths follow Drillis and
Contini (as in Winter, Biomechanics and Motor Control of Human Movement), heights and body mass index by age the
medians of the CDC growth charts, both rounded; girths and layer thicknesses are the authors' assumptions for an adult
of 1.75 m and a body mass index of 22, scaled with size and build.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.canvas import Warp, sample_warp
from jdm_seg.synthesis.anatomy.shapes import Ellipsoid, Frame, Loft, Vector, look_along
from jdm_seg.synthesis.anatomy.tissue import Region, Side

_AGES = (2, 4, 6, 8, 10, 12, 14, 16, 18)
_HEIGHT = {
    "female": (860, 1010, 1150, 1270, 1380, 1510, 1600, 1620, 1630),
    "male": (870, 1020, 1150, 1280, 1390, 1490, 1640, 1730, 1760),
}
_BMI = (16.4, 15.5, 15.3, 15.8, 16.7, 18.0, 19.4, 20.6, 21.5)
_SITTING = (0.57, 0.56, 0.55, 0.54, 0.53, 0.52, 0.52, 0.52, 0.52)
"""Sitting height over height."""
_HEAD = (0.205, 0.18, 0.165, 0.155, 0.15, 0.143, 0.137, 0.132, 0.13)
"""Chin to vertex over height."""
ADULT = 18.0


@dataclass(frozen=True)
class Limbs:
    """How one side is posed, in radians.

    Attributes:
        arm: Angle of the upper arm from straight down, outwards; about 3 is raised beside the head.
        arm_forward: Its turn to the front.
        elbow: Flexion of the elbow; contractures reach 1 and more.
        palm: Turn of forearm and hand about their axis.
        hip, knee: Abduction of the thigh, flexion of the knee.
        rotation: Outward turn of the leg.
        foot: Plantar flexion.
        girth: Thickness relative to the other side.
    """

    arm: float
    arm_forward: float
    elbow: float
    palm: float
    hip: float
    knee: float
    rotation: float
    foot: float
    girth: float


@dataclass(frozen=True)
class Body:
    """All that was drawn for one body but its small details, which ``seed`` fixes.

    Attributes:
        age: Years.
        sex: ``female`` or ``male``.
        height: mm.
        bmi: kg/m².
        fat: Thickness of the subcutis relative to the usual one for that size.
        wasting: Share of muscle replaced by fat, 0 to about 0.3.
        right, left: The pose.
        prone: Lies on the belly; gravity then points to +y.
        warp: Bend of space that takes symmetry away.
        seed: Draws details: outlines, muscle borders, vessels, bowel, bones.
    """

    age: float
    sex: str
    height: float
    bmi: float
    fat: float
    wasting: float
    right: Limbs
    left: Limbs
    prone: bool
    warp: Warp
    seed: int

    @property
    def girth(self) -> float:
        """Transverse size relative to the adult of 1.75 m and 22 kg/m²: volume grows with BMI times height squared."""
        return float(np.sqrt(self.bmi * self.height / 1000 / (22 * 1.75)))

    @property
    def length(self) -> float:
        """Size along the body relative to the adult of 1.75 m."""
        return self.height / 1750

    @property
    def frame_size(self) -> float:
        """Size of the skeleton's width relative to the adult."""
        return 0.6 * self.length + 0.4 * min(self.girth, 1.15)

    def at_age(self, values: tuple[float, ...]) -> float:
        """Return a table's value at this age."""
        return float(np.interp(self.age, _AGES, values))


def sample_body(rng: np.random.Generator, *, child: float = 0.75) -> Body:
    """Draw a body.

    Args:
        rng: Randomness.
        child: Share of bodies of 2 to 18 years; the others are adults.
    """
    age = float(rng.uniform(2, ADULT) if rng.random() < child else rng.uniform(ADULT, 65))
    sex = "female" if rng.random() < 0.6 else "male"  # more girls than boys fall ill
    height = float(np.interp(age, _AGES, _HEIGHT[sex])) * float(np.clip(rng.normal(1, 0.045), 0.88, 1.12))
    bmi = float(np.interp(age, _AGES, _BMI)) * float(np.exp(np.clip(rng.normal(0.04, 0.14), -0.25, 0.45)))
    if age >= ADULT:
        bmi *= float(rng.uniform(1.0, 1.25))
    raised, prone = bool(rng.random() < 0.3), bool(rng.random() < 0.05)
    right = _sample_limbs(rng, raised, prone)
    left = right if rng.random() < 0.3 else _sample_limbs(rng, raised, prone)
    return Body(
        age=age,
        sex=sex,
        height=height,
        bmi=bmi,
        fat=float(np.exp(rng.normal(0, 0.3)) * (1.15 if sex == "female" else 0.9)),
        wasting=float(np.clip(rng.exponential(0.06), 0, 0.3)),
        right=right,
        left=dataclasses.replace(left, girth=float(rng.normal(1, 0.03))),
        prone=prone,
        warp=sample_warp(rng, height / 1750),
        seed=int(rng.integers(2**31)),
    )


def _sample_limbs(rng: np.random.Generator, raised: bool, prone: bool) -> Limbs:
    contracture = rng.random() < 0.15 and not prone  # the table is in the way
    return Limbs(
        arm=float(rng.uniform(2.5, 3.0) if raised else rng.uniform(0.08, 0.3)),
        arm_forward=float(rng.uniform(-0.1, 0.0) if prone else rng.uniform(-0.05, 0.15)),
        elbow=float(rng.uniform(0.6, 1.4) if contracture else rng.uniform(0.05, 0.2 if prone else 0.45)),
        palm=float(rng.uniform(-0.3, 1.6)),
        hip=float(rng.uniform(0.02, 0.16)),
        knee=float(rng.uniform(0.3, 0.9) if contracture else rng.uniform(0.0, 0.15)),
        rotation=float(rng.uniform(-0.1, 0.7)),
        foot=float(rng.uniform(0.2, 0.9)),
        girth=1.0,
    )


@dataclass(frozen=True)
class Part:
    """A piece of the outline.

    Attributes:
        name: What it is called.
        solid: Its outer surface.
        regions: (w, region) from where along the solid's w a region begins; one entry with -inf for one region.
        side: Of the whole piece; NONE for the trunk, where the sign of x tells.
        fat: Thickness of the subcutis in mm.
        group: Pieces of one group flow into each other; others only where ``blend`` mm of ``joint`` allow.
        muscles: (angle, reach) of muscle seed lines, empty for pieces without muscle bellies.
    """

    name: str
    solid: Ellipsoid | Loft
    regions: tuple[tuple[float, Region], ...]
    side: Side
    fat: float
    group: str
    muscles: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Arm:
    """Frames and lengths of one arm; u points away from the thumb side, v to the back of the hand's other side.

    Attributes:
        upper: Upper arm.
        fore: Forearm.
        hand: Frame of the hand.
        hand_length: In mm, wrist to finger tips.
        upper_length: In mm, shoulder to elbow.
        fore_length: In mm, elbow to wrist.
    """

    upper: Loft
    fore: Loft
    hand: Frame
    hand_length: float
    upper_length: float
    fore_length: float


@dataclass(frozen=True)
class Leg:
    """Frames and lengths of one leg; the foot's w runs from heel to toes, its v to the instep.

    Attributes:
        thigh: Thigh.
        shank: Lower leg.
        foot: Frame of the foot.
        foot_length: In mm, heel to toes.
        thigh_length: In mm, hip to knee.
        shank_length: In mm, knee to ankle.
    """

    thigh: Loft
    shank: Loft
    foot: Frame
    foot_length: float
    thigh_length: float
    shank_length: float


class Plan:
    """Joints and outlines of a body, from its parameters alone."""

    def __init__(self, body: Body) -> None:
        """Pose the body."""
        self.body = body
        self.rng_details = np.random.default_rng((body.seed, 1))
        g, height = body.girth, body.height
        self.hip_height = height * (1.05 - body.at_age(_SITTING))
        self.vertex = height - self.hip_height
        self.head = height * body.at_age(_HEAD)
        self.shoulder_z = self.vertex - self.head - 0.052 * height
        self.head_scale = self.head / 228
        self.hip_x = 88 * body.frame_size
        self.shoulder_x = 172 * body.frame_size
        details = self.rng_details
        self._wobble: list[Vector] = [_three(details.normal(0, 0.018, 3)) for _ in range(16)]
        self._seeds = [self._muscle_seeds(details, int(details.integers(6, 10))) for _ in range(4)]
        self.trunk = self._trunk()
        self.neck = self._neck()
        self.arms = {Side.RIGHT: self._arm(Side.RIGHT, g), Side.LEFT: self._arm(Side.LEFT, g)}
        self.legs = {Side.RIGHT: self._leg(Side.RIGHT, g), Side.LEFT: self._leg(Side.LEFT, g)}

    @staticmethod
    def _muscle_seeds(rng: np.random.Generator, number: int) -> tuple[tuple[float, float], ...]:
        angles = 2 * np.pi * (np.arange(number) + rng.uniform(-0.3, 0.3, number)) / number
        ring = [(float(a), float(rng.uniform(0.5, 0.75))) for a in angles]
        deep = [
            (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.15, 0.4))) for _ in range(int(rng.integers(1, 4)))
        ]
        return tuple(ring + deep)

    def limbs(self, side: Side) -> Limbs:
        """Return one side's pose."""
        return self.body.right if side == Side.RIGHT else self.body.left

    def spine(self, z: float) -> tuple[float, float]:
        """Return x and y of the middle of the vertebral bodies at a height: lordosis below, kyphosis above."""
        t = z / self.shoulder_z
        y = np.interp(t, [-0.1, 0.1, 0.3, 0.7, 1.0, 1.2, 1.4], [-62, -40, -28, -52, -42, -30, -22])
        return 0.0, float(y) * self.body.girth

    def _trunk(self) -> Loft:
        g, top = self.body.girth, self.shoulder_z
        belly = 1 + 0.25 * max(0.0, self.body.bmi / 24 - 1) + (0.06 if self.body.age < 6 else 0)
        narrow = 0.94 if self.body.age < 10 else 1.0
        wide = 1.06 if self.body.sex == "female" and self.body.age > 12 else 1.0
        stations = (
            (-0.17, 70, 62, 0),
            (-0.08, 140, 92, -4),
            (0.0, 166 * wide, 104, -6),
            (0.12, 163 * wide, 106, -2),
            (0.25, 147, 104 * belly, 2),
            (0.4, 137, 103 * belly, 4),
            (0.6, 146, 110, 2),
            (0.8, 157, 113, -2),
            (0.92, 152, 102, -8),
            (1.02, 122, 78, -14),
            (1.1, 84, 62, -16),
            (1.16, 60, 55, -14),
        )
        return Loft(
            Frame((0, 0, 0), ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
            at=tuple(t * top for t, *_ in stations),
            a=tuple(a * g * narrow for _, a, *_ in stations),
            b=tuple(b * g for *_, b, _ in stations),
            dv=tuple(dv * g for *_, dv in stations),
            harmonics=(0.0, 0.0, 0.0),
            cap=0.6,
        )

    def _neck(self) -> Loft:
        s, g = self.head_scale, self.body.girth
        base, skull = self.shoulder_z * 1.0, self.vertex - 0.62 * self.head
        return Loft(
            look_along((0, -18 * g, base), (0, -2 * s, skull)),
            at=(0.0, 0.5 * (skull - base), skull - base),
            a=(60 * g, 54 * g**0.5, 55 * s),
            b=(58 * g, 56 * g**0.5, 62 * s),
            harmonics=self._wobble[8],
        )

    def _arm(self, side: Side, g: float) -> Arm:
        pose, sign = self.limbs(side), 1.0 if side == Side.RIGHT else -1.0
        g = g * pose.girth
        height = self.body.height
        upper, fore, hand = 0.186 * height, 0.146 * height, 0.108 * height
        shoulder = (sign * self.shoulder_x, -12 * g, self.shoulder_z - 18 * self.body.length)
        out = np.array([sign * np.sin(pose.arm), np.sin(pose.arm_forward), -np.cos(pose.arm)])
        out /= np.linalg.norm(out)
        front = np.array([0.0, 1.0, 0.0])
        first = look_along(shoulder, tuple(np.add(shoulder, out)), tuple(front))
        elbow = first.world(0, 0, upper)
        v = np.asarray(first.axes[1])
        bent = out * np.cos(pose.elbow) + v * np.sin(pose.elbow)
        across = np.asarray(first.axes[0])
        second_v = v * np.cos(pose.elbow) - out * np.sin(pose.elbow)
        turned = second_v * np.cos(pose.palm) + sign * across * np.sin(pose.palm)
        second = look_along(elbow, tuple(np.add(elbow, bent)), tuple(turned))
        wrist = second.world(0, 0, fore)
        upper_loft = Loft(
            first,
            at=tuple(t * upper for t in (0, 0.12, 0.35, 0.6, 0.85, 1.0)),
            a=tuple(r * g for r in (50, 56, 47, 43, 41, 43)),
            b=tuple(r * g for r in (52, 57, 50, 46, 38, 36)),
            harmonics=self._wobble[side],
        )
        fore_loft = Loft(
            second,
            at=tuple(t * fore for t in (0, 0.1, 0.25, 0.55, 0.85, 1.0)),
            a=tuple(r * g for r in (42, 44, 45, 38, 29, 29)),
            b=tuple(r * g for r in (36, 39, 40, 33, 22, 20)),
            harmonics=self._wobble[2 + side],
            cap=0.7,
        )
        hand_frame = Frame(wrist, second.axes)
        return Arm(upper_loft, fore_loft, hand_frame, hand, upper, fore)

    def _leg(self, side: Side, g: float) -> Leg:
        pose, sign = self.limbs(side), 1.0 if side == Side.RIGHT else -1.0
        g = g * pose.girth
        total = self.hip_height
        thigh, shank = 0.462 * total, 0.464 * total
        hip = (sign * self.hip_x, 0.0, 0.0)
        flex = 0.5 * pose.knee
        down = np.array([sign * np.sin(pose.hip), np.sin(flex), -np.cos(pose.hip) * np.cos(flex)])
        front = (sign * np.sin(pose.rotation), np.cos(pose.rotation), 0.0)
        first = look_along(hip, tuple(np.add(hip, down)), front)
        knee = first.world(0, 0, thigh)
        w, v = np.asarray(first.axes[2]), np.asarray(first.axes[1])
        second = look_along(knee, tuple(np.add(knee, w * np.cos(pose.knee) - v * np.sin(pose.knee))), front)
        ankle = second.world(0, 0, shank)
        thigh_loft = Loft(
            first,
            at=tuple(t * thigh for t in (-0.05, 0.08, 0.2, 0.45, 0.7, 0.88, 1.0)),
            a=tuple(r * g for r in (74, 90, 90, 80, 65, 57, 55)),
            b=tuple(r * g for r in (78, 92, 93, 82, 67, 60, 58)),
            dv=tuple(d * g for d in (-8, -8, -2, 2, 0, -3, -4)),
            harmonics=self._wobble[4 + side],
        )
        shank_loft = Loft(
            second,
            at=tuple(t * shank for t in (0, 0.1, 0.28, 0.5, 0.8, 0.95, 1.0)),
            a=tuple(r * g for r in (54, 52, 56, 47, 34, 33, 34)),
            b=tuple(r * g for r in (58, 55, 58, 49, 36, 36, 38)),
            dv=tuple(d * g for d in (-4, -8, -16, -12, -5, -4, -4)),
            harmonics=self._wobble[6 + side],
            cap=0.7,
        )
        v, w = np.asarray(second.axes[1]), np.asarray(second.axes[2])
        toes = v * np.cos(pose.foot) + w * np.sin(pose.foot)
        instep = v * np.sin(pose.foot) - w * np.cos(pose.foot)
        length = 0.152 * self.body.height
        heel = np.asarray(ankle) - 0.24 * length * toes - 0.026 * self.body.height * instep
        foot = look_along(tuple(heel), tuple(heel + toes), tuple(instep))
        return Leg(thigh_loft, shank_loft, foot, length, thigh, shank)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Return the outline of the whole body."""
        fat = 1.3 * self.body.fat * self.body.girth**0.7 * (self.body.bmi / 22) ** 0.8
        parts = [*self._core_parts(fat)]
        for side in (Side.RIGHT, Side.LEFT):
            parts += [*self._arm_parts(side, fat), *self._leg_parts(side, fat)]
        return tuple(parts)

    def _core_parts(self, fat: float) -> list[Part]:
        g, s, body = self.body.girth, self.head_scale, self.body
        mirrored = tuple((a, r) for angle, r in _TRUNK_MUSCLES for a in (angle, np.pi - angle))
        everywhere = ((-np.inf, Region.HEAD),)
        cranium = Ellipsoid((0, -4 * s, self.vertex - 100 * s), (76 * s, 97 * s, 100 * s))
        face = Ellipsoid((0, 38 * s, self.vertex - 152 * s), (60 * s, 58 * s, 80 * s))
        parts = [
            Part("trunk", self.trunk, ((-np.inf, Region.CHEST),), Side.NONE, 13 * fat, "core", mirrored),
            Part("neck", self.neck, ((-np.inf, Region.NECK),), Side.NONE, 5 * fat, "core", self._seeds[3]),
            Part("cranium", cranium, everywhere, Side.NONE, 2.5 + fat, "core"),
            Part("face", face, everywhere, Side.NONE, 3 + 2 * fat, "core"),
        ]
        for sign, side in ((1, Side.RIGHT), (-1, Side.LEFT)):
            buttock = Ellipsoid((sign * 76 * g, -62 * g, -25 * body.length), (80 * g, 56 * g, 92 * g))
            parts.append(Part("buttock", buttock, ((-np.inf, Region.HIP),), side, 26 * fat, "core"))
            if body.sex == "female" and body.age > 12:
                grown = g * float(np.interp(body.age, [12, 17], [0.4, 1.0])) * fat**0.3
                at = (sign * 76 * g, 92 * g, 0.74 * self.shoulder_z)
                breast = Ellipsoid(at, (58 * grown, 40 * grown, 60 * grown))
                parts.append(Part("breast", breast, ((-np.inf, Region.CHEST),), side, 40 * grown, "core"))
        return parts

    def _arm_parts(self, side: Side, fat: float) -> list[Part]:
        arm, group = self.arms[side], f"arm{side.name}"
        upper_regions = ((-np.inf, Region.SHOULDER), (0.18 * arm.upper_length, Region.UPPER_ARM))
        elbow = (0.85 * arm.upper_length, Region.ELBOW)
        fore_regions = ((-np.inf, Region.ELBOW), (0.17 * arm.fore_length, Region.FOREARM))
        wrist = (0.9 * arm.fore_length, Region.HAND)
        g, frame, length = self.body.girth, arm.hand, arm.hand_length
        palm = Loft(
            frame,
            at=tuple(t * length for t in (-0.03, 0.12, 0.35, 0.5)),
            a=tuple(r * g for r in (27, 34, 42, 40)),
            b=tuple(r * g for r in (18, 16, 14, 11)),
            cap=0.8,
        )
        parts = [
            Part("upper arm", arm.upper, (*upper_regions, elbow), side, 7 * fat, group, self._seeds[0]),
            Part("forearm", arm.fore, (*fore_regions, wrist), side, 4 * fat, group, self._seeds[1]),
            Part("hand", palm, ((-np.inf, Region.HAND),), side, 2 + 0.5 * fat, group),
        ]
        for number, (points, radius) in enumerate(self.fingers(side)):
            start = points[0]
            finger = Loft(
                look_along(start, points[-1], frame.axes[1]),
                at=(0.0, float(np.linalg.norm(np.subtract(points[-1], start)))),
                a=(radius, 0.8 * radius),
                b=(0.95 * radius, 0.75 * radius),
            )
            parts.append(Part(f"finger {number}", finger, ((-np.inf, Region.HAND),), side, 2.0, group))
        return parts

    def fingers(self, side: Side) -> list[tuple[list[Vector], float]]:
        """Return for each finger, thumb first, its joints from the carpus to the tip, and its radius."""
        arm, g = self.arms[side], self.body.girth
        sign = 1.0 if side == Side.RIGHT else -1.0
        frame, length = arm.hand, arm.hand_length
        fingers = []
        for number in range(5):
            steps: tuple[float, ...] = (0.05, 0.28, 0.47, 0.6)
            lean, base = 0.75, -26 * g
            if number > 0:
                reach = (0.95, 1.0, 0.96, 0.82)[number - 1]
                steps = (0.12, 0.47, 0.72 * reach, 0.88 * reach, reach)
                lean, base = 0.04 * (number - 2.5), (number - 2.5) * 17 * g
            joints = []
            for t in steps:
                along = (t - steps[0]) * length
                u = sign * (
                    base * (1 if number == 0 else 0.75 + 0.25 * min(1.0, t / 0.45))
                    + (-along * np.sin(lean) if number == 0 else along * np.sin(lean))
                )
                joints.append(frame.world(u, (4 * g if number == 0 else 0.0), steps[0] * length + along * np.cos(lean)))
            fingers.append((joints, (10.5 if number == 0 else 9.0) * g))
        return fingers

    def _leg_parts(self, side: Side, fat: float) -> list[Part]:
        leg, g = self.legs[side], self.body.girth
        thigh_regions = (
            (-np.inf, Region.HIP),
            (0.17 * leg.thigh_length, Region.THIGH),
            (0.86 * leg.thigh_length, Region.KNEE),
        )
        shank_regions = (
            (-np.inf, Region.KNEE),
            (0.15 * leg.shank_length, Region.LOWER_LEG),
            (0.92 * leg.shank_length, Region.FOOT),
        )
        length = leg.foot_length
        foot = Loft(
            leg.foot,
            at=tuple(t * length for t in (0.0, 0.1, 0.3, 0.5, 0.72, 0.8)),
            a=tuple(r * g for r in (24, 31, 33, 38, 46, 44)),
            b=tuple(r * g for r in (22, 34, 40, 29, 17, 13)),
            dv=tuple(d * g for d in (0, 6, 14, 8, -6, -9)),
        )
        parts = [
            Part("thigh", leg.thigh, thigh_regions, side, 12 * fat, "core", self._seeds[2]),
            Part("shank", leg.shank, shank_regions, side, 6 * fat, "core", self._seeds[0][::-1]),
            Part("foot", foot, ((-np.inf, Region.FOOT),), side, 3 + fat, "core"),
        ]
        for number, (points, radius) in enumerate(self.toes(side)):
            start = points[1]
            toe = Loft(
                look_along(start, points[-1], leg.foot.axes[1]),
                at=(0.0, float(np.linalg.norm(np.subtract(points[-1], start)))),
                a=(radius, 0.85 * radius),
                b=(radius, 0.8 * radius),
            )
            parts.append(Part(f"toe {number}", toe, ((-np.inf, Region.FOOT),), side, 2.0, "core"))
        return parts

    def toes(self, side: Side) -> list[tuple[list[Vector], float]]:
        """Return for each toe, the great one first, its joints from the tarsus to the tip, and its radius."""
        leg, g = self.legs[side], self.body.girth
        sign = 1.0 if side == Side.RIGHT else -1.0
        length = leg.foot_length
        toes = []
        for number in range(5):
            # the great toe lies towards the other foot
            u = sign * (28 - 14.5 * number) * g
            tip = (1.0, 0.98, 0.94, 0.89, 0.84)[number]
            knuckle = (0.72, 0.73, 0.7, 0.67, 0.63)[number]
            joints = [
                leg.foot.world(0.7 * u, 4 * g, 0.42 * length),
                leg.foot.world(u, -8 * g, knuckle * length),
                leg.foot.world(u, -9 * g, (knuckle + 0.55 * (tip - knuckle)) * length),
                leg.foot.world(u, -10 * g, tip * length),
            ]
            toes.append((joints, (12.5 if number == 0 else 8.5) * g))
        return toes


def _three(values: NDArray[np.float64]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


_TRUNK_MUSCLES = (
    (np.deg2rad(-75), 0.72),  # erector spinae
    (np.deg2rad(-50), 0.6),  # quadratus lumborum, gluteus
    (np.deg2rad(-25), 0.85),  # latissimus
    (np.deg2rad(15), 0.85),  # obliques, serratus
    (np.deg2rad(50), 0.8),  # obliques, pectorals
    (np.deg2rad(78), 0.85),  # rectus
    (np.deg2rad(-60), 0.3),  # psoas
)
