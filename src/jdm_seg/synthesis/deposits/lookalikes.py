"""What looks like calcinosis and is none: hard negatives, placed in a host like deposits and without a label.

Kinds and CT numbers follow the differential diagnosis of soft-tissue calcification (Insights Imaging 2018,
10.1007/s13244-018-0619-0); where no source is named, sizes and CT numbers are textbook ranges (assumed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.tissue import Region
from jdm_seg.synthesis.deposits.sites import Pool, draw_pool
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

AMBIGUOUS = ("node", "granuloma")
"""Calcified lymph nodes and injection granulomas: a reader cannot always tell them from calcinosis, so they are neither
a negative nor a positive."""
ON_SKIN = ("lead", "hub")
THROUGH_SKIN = ("line",)
"""Kinds that may reach into the air."""
IN_BONE = ("implant",)
"""Kinds that lie in bone as well as beside it."""


@dataclass(frozen=True)
class LookAlike:
    """One look-alike, as drawn. Positions and lengths in mm of the host's grid.

    Attributes:
        kind: A key of :data:`KINDS_IN_SCANS`.
        centre: Its middle; of a tube, the middle of its length.
        radius: Outer radius; of an ellipsoid, the mean one.
        wall: Thickness of what lies around the core; as much as the radius where there is no core.
        length: Of a tube; 0 for an ellipsoid.
        axis: Of a tube, or the short axis of an ellipsoid; unit vector.
        flat: Short axis of an ellipsoid over the others.
        bend: Sideways departure of a tube from a straight line, relative to half its length, in x, y, z.
        broken: Share of a tube's wall that is missing.
        hu: CT number of each tissue it is made of, by name: first around, then inside.
        seed: Of the gaps in a wall.
    """

    kind: str
    centre: Spacing
    radius: float
    wall: float
    length: float
    axis: Spacing
    flat: float
    bend: Spacing
    broken: float
    hu: dict[str, float]
    seed: int


@dataclass(frozen=True)
class _Form:
    """What is drawn of a kind wherever it lies: the fields of :class:`LookAlike`; ``bend`` is its spread."""

    hu: dict[str, float]
    radius: float
    wall: float = np.inf
    length: float = 0.0
    flat: float = 1.0
    bend: float = 0.0
    broken: float = 0.0


@dataclass(frozen=True)
class _Kind:
    """How often a kind is drawn, where it may lie, and how it is drawn there."""

    weight: float
    fits: Callable[[Pool], NDArray[np.bool_]]
    draw: Callable[[np.random.Generator], _Form]


def _in(pool: Pool, *regions: Region) -> NDArray[np.bool_]:
    """Return which voxels lie in the regions; all where the host knows none."""
    inside: NDArray[np.bool_] = np.isin(pool.region, regions) | (pool.region == Region.NONE)
    return inside


def _phlebolith(rng: np.random.Generator) -> _Form:
    """2 to 6 mm, round, lucent in the middle."""
    radius = rng.uniform(1, 3)
    hu = {"STONE": rng.uniform(250, 1100), "BLOOD": rng.uniform(40, 120)}
    return _Form(hu, radius, radius * rng.uniform(0.5, 0.9))


def _vessel_wall(rng: np.random.Generator) -> _Form:
    """Tram-tracks: two lines along an artery, with gaps."""
    hu = {"STONE": rng.uniform(250, 1000), "BLOOD": rng.uniform(30, 60)}
    length, broken = rng.uniform(10, 80), rng.uniform(0.2, 0.7)
    return _Form(hu, rng.uniform(1.5, 5), rng.uniform(0.5, 1.2), length, bend=0.15, broken=broken)


def _node(rng: np.random.Generator) -> _Form:
    radius = rng.uniform(2.5, 8)
    hu = {"STONE": rng.uniform(200, 900), "ORGAN": rng.uniform(30, 90)}
    return _Form(hu, radius, radius * rng.uniform(0.3, 1), flat=0.7)


def _granuloma(rng: np.random.Generator) -> _Form:
    radius = rng.uniform(2, 9)
    hu = {"STONE": rng.uniform(150, 800), "FAT": rng.uniform(-90, 20)}
    return _Form(hu, radius, max(1.0, radius * rng.uniform(0.15, 0.6)))


def _ossicle(rng: np.random.Generator) -> _Form:
    """Sesamoid, accessory bone or growth centre: smooth, with a cortex of 1-2 mm around spongy bone.

    Spongy bone of children: 109 to 357 HU (Spine 2024;49(3):214-219).
    """
    hu = {"CORTEX": rng.uniform(450, 1100), "TRABECULA": rng.uniform(109, 357)}
    return _Form(hu, rng.uniform(2, 9), rng.uniform(1, 2), flat=rng.uniform(0.55, 1))


def _line(rng: np.random.Generator) -> _Form:
    """Catheter, drain or feeding tube: a thin wall around a lumen."""
    radius, length = rng.uniform(0.6, 2.5), rng.uniform(30, 200)
    lumen = {"GAS": rng.uniform(-1000, -600)} if rng.random() < 0.5 else {"FLUID": rng.uniform(0, 30)}
    hu = {"PLASTIC": rng.uniform(150, 1500), **lumen}
    return _Form(hu, radius, max(0.4, radius * rng.uniform(0.25, 0.45)), length, bend=0.4)


def _lead(rng: np.random.Generator) -> _Form:
    """Electrode, button or clip on the skin."""
    metal = rng.random() < 0.5
    hu = {"METAL": rng.uniform(1500, 4000)} if metal else {"PLASTIC": rng.uniform(150, 900)}
    return _Form(hu, rng.uniform(2, 7), flat=rng.uniform(0.15, 0.4))


def _hub(rng: np.random.Generator) -> _Form:
    """Connector, clamp or tap of a line, needle of a port: plastic around metal."""
    radius = rng.uniform(4, 12)
    hu = {"PLASTIC": rng.uniform(100, 700), "METAL": rng.uniform(1500, 9000)}
    return _Form(hu, radius, radius * rng.uniform(0.2, 0.6), flat=rng.uniform(0.4, 1))


def _implant(rng: np.random.Generator) -> _Form:
    """Wire of a breastbone that was opened, pin, screw or nail in bone."""
    radius = rng.uniform(0.4, 0.9) if rng.random() < 0.5 else rng.uniform(0.9, 4)
    return _Form({"METAL": rng.uniform(4000, 9000)}, radius, length=rng.uniform(10, 60), bend=0.2)


def _clip(rng: np.random.Generator) -> _Form:
    """Surgical clip, wire or screw: saturates the scale."""
    length = rng.uniform(4, 12) if rng.random() < 0.6 else rng.uniform(15, 45)
    return _Form({"METAL": rng.uniform(4000, 9000)}, rng.uniform(0.4, 2.5), length=length)


def _contrast(rng: np.random.Generator) -> _Form:
    """An enhanced vessel."""
    return _Form({"CONTRAST": rng.uniform(150, 450)}, rng.uniform(1.5, 6), length=rng.uniform(30, 150), bend=0.25)


def _bowel(rng: np.random.Generator) -> _Form:
    """A loop of gut filled with contrast medium."""
    hu = {"BOWEL": rng.uniform(30, 70), "CONTRAST": rng.uniform(150, 500)}
    return _Form(hu, rng.uniform(6, 14), rng.uniform(1.5, 3), rng.uniform(30, 90), bend=0.6)


def _cartilage(rng: np.random.Generator) -> _Form:
    """A costal cartilage calcified along its rim."""
    hu = {"STONE": rng.uniform(150, 500), "CARTILAGE": rng.uniform(60, 120)}
    length, broken = rng.uniform(20, 60), rng.uniform(0.3, 0.7)
    return _Form(hu, rng.uniform(3.5, 6), rng.uniform(0.8, 1.8), length, bend=0.2, broken=broken)


def _ossified_cartilage(rng: np.random.Generator) -> _Form:
    """A costal cartilage with a row of lumps of bone in its middle: up to 1,400 HU in public scans of adults."""
    hu = {"CARTILAGE": rng.uniform(60, 140), "STONE": rng.uniform(200, 1400)}
    radius, length = rng.uniform(3, 8), rng.uniform(15, 70)
    return _Form(hu, radius, radius * rng.uniform(0.15, 0.7), length, bend=0.2, broken=rng.uniform(0.1, 0.7))


KINDS: dict[str, _Kind] = {
    "phlebolith": _Kind(
        0.12, lambda p: p.fatty & (p.depth_mm > 8) & _in(p, Region.HIP, Region.ABDOMEN, Region.LOWER_LEG), _phlebolith
    ),
    "vessel_wall": _Kind(0.12, lambda p: (p.depth_mm > 8) & (np.abs(p.muscle_mm) < 5), _vessel_wall),
    "node": _Kind(
        0.08,
        lambda p: p.fatty & (p.depth_mm > 6) & _in(p, Region.HIP, Region.NECK, Region.SHOULDER, Region.CHEST),
        _node,
    ),
    "granuloma": _Kind(0.08, lambda p: p.fatty & (p.depth_mm > 4) & (p.muscle_mm > 1) & _in(p, Region.HIP), _granuloma),
    "ossicle": _Kind(0.2, lambda p: (p.bone_mm > 1.5) & (p.bone_mm < 10) & (p.depth_mm > 3), _ossicle),
    "line": _Kind(0.1, lambda p: p.depth_mm > 1, _line),
    "lead": _Kind(0.08, lambda p: p.depth_mm < 2.5, _lead),
    "clip": _Kind(0.06, lambda p: p.depth_mm > 4, _clip),
    "contrast": _Kind(0.12, lambda p: p.depth_mm > 6, _contrast),
    "bowel": _Kind(0.02, lambda p: (p.depth_mm > 20) & (p.region == Region.ABDOMEN), _bowel),
    "cartilage": _Kind(0.02, lambda p: (p.depth_mm > 6) & (p.region == Region.CHEST), _cartilage),
}
"""Kinds, with their share (assumed)."""
KINDS_IN_SCANS: dict[str, _Kind] = {
    **KINDS,
    "hub": _Kind(0.05, lambda p: p.depth_mm < 2.5, _hub),
    "cartilage": _Kind(0.1, lambda p: p.chest & (p.bone_mm > 0.5) & (p.bone_mm < 15), _ossified_cartilage),
    "implant": _Kind(0.06, lambda p: (p.bone_mm < 3) & (p.depth_mm > 3), _implant),
}
"""Kinds for scans of people; a procedural body has lines and metal of its own (``anatomy.surroundings``)."""


def sample_lookalikes(
    host: Host, rng: np.random.Generator, mean: float = 1.5, kinds: Mapping[str, _Kind] = KINDS
) -> tuple[LookAlike, ...]:
    """Draw at least one look-alike, ``1 + Poisson(mean - 1)`` of them, of the kinds that have a place in the host.

    Args:
        host: Where they may lie.
        rng: Draws.
        mean: How many on average, at least 1.
        kinds: To choose from.
    """
    pool = draw_pool(host, rng)
    allowed = {name: np.flatnonzero(kind.fits(pool)) for name, kind in kinds.items()} if len(pool) else {}
    names = [name for name, where in allowed.items() if where.size]
    if not names:
        return ()
    weight = np.array([kinds[name].weight for name in names])
    items = []
    for _ in range(1 + int(rng.poisson(max(mean - 1, 0)))):
        name = names[int(rng.choice(len(names), p=weight / weight.sum()))]
        index = pool.index[allowed[name][rng.integers(len(allowed[name]))]]
        items.append(_draw(name, kinds[name].draw(rng), index, host, rng))
    return tuple(items)


def _draw(name: str, form: _Form, index: NDArray[np.intp], host: Host, rng: np.random.Generator) -> LookAlike:
    centre = (index + rng.random(3)) * host.spacing
    axis = rng.normal(size=3)
    if form.length:
        axis *= (0.5, 0.5, 1.0)  # vessels and tubes run along the body more often than across
    axis /= np.linalg.norm(axis)
    if name in ON_SKIN:
        outward = _outward(host, index)
        axis = axis if outward is None else outward
        centre += axis * float(host.depth_mm[tuple(index)])
    bend = rng.normal(0, 1, 3) * form.bend
    return LookAlike(
        kind=name,
        centre=_triple(centre),
        radius=float(form.radius),
        wall=float(min(form.radius, form.wall)),
        length=float(form.length),
        axis=_triple(axis),
        flat=float(form.flat),
        bend=_triple(bend),
        broken=float(form.broken),
        hu={key: float(value) for key, value in form.hu.items()},
        seed=int(rng.integers(2**31)),
    )


def _triple(values: NDArray[np.float64]) -> Spacing:
    return float(values[0]), float(values[1]), float(values[2])


def _outward(host: Host, index: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """Return the direction to the air, None where it is not clear."""
    near = tuple(slice(max(0, i - 2), i + 3) for i in index)
    patch = host.depth_mm[near]
    if min(patch.shape) < 2:
        return None
    slope = np.array([-g.mean() for g in np.gradient(patch, *host.spacing)])
    length = float(np.linalg.norm(slope))
    return slope / length if length > 0.1 else None
