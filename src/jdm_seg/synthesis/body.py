"""A limb as a tissue map: skin, fat, muscle compartments with fascia, bones with cortex, marrow and growth plates.

Axes are canonical: x to the right, y to anterior, z along the limb. Sizes are assumptions within the range of children
and adults, chosen by the authors; they are marked as such by being arguments of :func:`sample_limb` alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.tissue import Tissue
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Bone:
    """One long bone, possibly with a joint in the field of view. Lengths in mm, positions relative to the limb axis."""

    x: float
    y: float
    radius: float
    cortex: float
    joint_z: float | None
    growth_plate: bool
    flare: float


@dataclass(frozen=True)
class Island:
    """A patella, sesamoid or ossification centre: bone that no cortex connects to the rest. Lengths in mm."""

    x: float
    y: float
    z: float
    radii: tuple[float, float, float]


@dataclass(frozen=True)
class Limb:
    """All that was drawn for one limb. Lengths in mm, angles in radians.

    Attributes:
        x, y: Position of the axis in the field of view.
        radius: Mean outer radius.
        taper: Relative change of the radius along the field of view.
        bend: Amplitude of the axis' sideways curve in x and y.
        harmonics: (order, amplitude, phase, twist per mm) of the outline.
        fat: Mean thickness of the subcutis.
        fat_side: Where the subcutis is thickest, and by how much more.
        compartments: Muscle seeds as (angle, relative radius).
    """

    x: float
    y: float
    radius: float
    taper: float
    bend: tuple[float, float]
    harmonics: tuple[tuple[int, float, float, float], ...]
    skin: float
    fat: float
    fat_side: tuple[float, float]
    compartments: tuple[tuple[float, float], ...]
    fascia: float
    bones: tuple[Bone, ...]
    islands: tuple[Island, ...]
    vessels: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class BodyPart:
    """A field of view: extent in mm, one or two limbs, and perhaps a table."""

    extent: Spacing
    age: float
    limbs: tuple[Limb, ...]
    table_y: float | None


def sample_body_part(rng: np.random.Generator, extent: Spacing) -> BodyPart:
    """Draw one or two limbs that fill a field of view of ``extent`` mm."""
    age = float(rng.uniform(3, 18)) if rng.random() < 0.7 else float(rng.uniform(18, 60))
    width, height, _ = extent
    if rng.random() < 0.35:
        radius = 0.22 * min(width, 2 * height) * rng.uniform(0.8, 1.0)
        limb = sample_limb(rng, age, (0.25 * width, 0.5 * height), radius, extent[2])
        twin = _mirrored(limb, width, rng)
        limbs: tuple[Limb, ...] = (limb, twin)
    else:
        radius = 0.45 * min(width, height) * rng.uniform(0.6, 1.0)
        limbs = (sample_limb(rng, age, (0.5 * width, 0.5 * height), radius, extent[2]),)
    lowest = min(limb.y - 1.15 * limb.radius for limb in limbs)
    table = float(lowest - rng.uniform(0, 6)) if rng.random() < 0.5 else None
    return BodyPart(extent, age, limbs, table)


def sample_limb(
    rng: np.random.Generator, age: float, centre: tuple[float, float], radius: float, length: float
) -> Limb:
    """Draw one limb of a given mean outer radius and length (mm)."""
    fat_share = rng.uniform(0.08, 0.4)
    core = radius * (1 - fat_share)
    joint = float(rng.uniform(0.15, 0.85) * length) if rng.random() < 0.5 else None
    bones = _sample_bones(rng, age, core, joint)
    islands = _sample_islands(rng, bones, core, joint)
    number = int(rng.integers(4, 10))
    angles = np.sort(rng.uniform(0, 2 * np.pi, number))
    return Limb(
        x=centre[0],
        y=centre[1],
        radius=float(radius),
        taper=float(rng.uniform(-0.3, 0.3)),
        bend=(float(rng.uniform(-0.06, 0.06) * radius), float(rng.uniform(-0.06, 0.06) * radius)),
        harmonics=tuple(
            (order, float(rng.normal(0, 0.06 / order)), float(rng.uniform(0, 2 * np.pi)), float(rng.normal(0, 0.006)))
            for order in (2, 3, 4)
        ),
        skin=float(rng.uniform(1.0, 2.2)),
        fat=float(radius * fat_share),
        fat_side=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 0.6))),
        compartments=tuple((float(a), float(rng.uniform(0.35, 0.8))) for a in angles),
        fascia=float(rng.uniform(0.8, 2.0)),
        bones=bones,
        islands=islands,
        vessels=tuple(
            (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.45, 0.75)), float(rng.uniform(1.5, 4)))
            for _ in range(int(rng.integers(1, 5)))
        ),
    )


def _sample_bones(rng: np.random.Generator, age: float, core: float, joint: float | None) -> tuple[Bone, ...]:
    growing = age < 16
    single = rng.random() < 0.55
    offsets = [rng.normal(0, 0.12, 2) * core] if single else []
    if not single:
        angle, apart = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.45) * core
        direction = np.array([np.cos(angle), np.sin(angle)])
        offsets = [apart * direction, -apart * direction]
    bones = []
    for index, (x, y) in enumerate(offsets):
        bone_radius = core * (rng.uniform(0.17, 0.26) if single else rng.uniform(0.1, 0.2))
        bones.append(
            Bone(
                x=float(x),
                y=float(y),
                radius=float(bone_radius),
                cortex=float(max(1.2, bone_radius * rng.uniform(0.2, 0.4))),
                joint_z=None if joint is None else float(joint + (index and rng.normal(0, 4))),
                growth_plate=bool(growing and rng.random() < 0.8),
                flare=float(rng.uniform(0.4, 1.1)),
            )
        )
    return tuple(bones)


def _sample_islands(
    rng: np.random.Generator, bones: tuple[Bone, ...], core: float, joint: float | None
) -> tuple[Island, ...]:
    if joint is None or rng.random() < 0.3:
        return ()
    islands = []
    for _ in range(int(rng.integers(1, 4))):
        bone = bones[int(rng.integers(len(bones)))]
        angle = rng.uniform(0, 2 * np.pi)
        size = rng.uniform(0.06, 0.25) * core
        reach = min(bone.radius * (1 + bone.flare) + size + rng.uniform(1, 6), 0.85 * core)
        islands.append(
            Island(
                x=float(bone.x + reach * np.cos(angle)),
                y=float(bone.y + reach * np.sin(angle)),
                z=float(joint + rng.normal(0, 6)),
                radii=(float(size), float(size * rng.uniform(0.6, 1)), float(size * rng.uniform(0.8, 1.5))),
            )
        )
    return tuple(islands)


def _mirrored(limb: Limb, width: float, rng: np.random.Generator) -> Limb:
    """Return the limb of the other side: mirrored in x, with a little asymmetry."""
    return dataclasses.replace(
        limb,
        x=width - limb.x,
        radius=limb.radius * float(rng.uniform(0.95, 1.03)),
        bend=(-limb.bend[0], limb.bend[1]),
        harmonics=tuple((n, a, float(np.pi * n - p), -w) for n, a, p, w in limb.harmonics),
        fat_side=(float(np.pi - limb.fat_side[0]), limb.fat_side[1]),
        compartments=tuple((float(np.pi - a), r) for a, r in limb.compartments),
        bones=tuple(dataclasses.replace(bone, x=-bone.x) for bone in limb.bones),
        islands=tuple(dataclasses.replace(island, x=-island.x) for island in limb.islands),
        vessels=tuple((float(np.pi - a), r, size) for a, r, size in limb.vessels),
    )


def render_body_part(part: BodyPart, shape: tuple[int, int, int], spacing: Spacing) -> NDArray[np.uint8]:
    """Draw a body part on a grid.

    Args:
        part: What :func:`sample_body_part` drew.
        shape: Voxels along x, y, z.
        spacing: Voxel size in mm; the grid starts at (0, 0, 0) mm.

    Returns:
        :class:`Tissue` codes, shape (X, Y, Z), uint8.
    """
    x, y, z = ((np.arange(n, dtype=np.float32) + 0.5) * s for n, s in zip(shape, spacing, strict=True))
    tissue = np.zeros(shape, np.uint8)
    if part.table_y is not None:
        depth = part.table_y - y
        plate = (depth > 0) & (depth < 4)
        tissue[:, plate, :] = Tissue.TABLE
    for limb in part.limbs:
        _render_limb(tissue, limb, x[:, None, None], y[None, :, None], z[None, None, :], part.extent[2])
    return tissue


def _render_limb(
    tissue: NDArray[np.uint8], limb: Limb, x: FloatArray, y: FloatArray, z: FloatArray, length: float
) -> None:
    along = z / length
    px = x - limb.x - limb.bend[0] * np.sin(np.pi * along)
    py = y - limb.y - limb.bend[1] * np.sin(np.pi * along)
    r = np.sqrt(px**2 + py**2)
    theta = np.arctan2(py, px)
    outline = 1 + limb.taper * (along - 0.5)
    for order, amplitude, phase, twist in limb.harmonics:
        outline = outline + amplitude * np.cos(order * theta + phase + twist * z)
    depth = limb.radius * outline - r
    fat = limb.fat * (1 + limb.fat_side[1] * np.cos(theta - limb.fat_side[0]))
    inside = depth > 0
    tissue[inside] = Tissue.SKIN
    tissue[inside & (depth > limb.skin)] = Tissue.FAT
    muscle = depth > limb.skin + fat
    tissue[muscle] = Tissue.MUSCLE
    core = limb.radius - limb.fat
    _render_compartments(tissue, limb, px, py, muscle, core)
    for angle, at, radius in limb.vessels:
        vessel = (px - at * core * np.cos(angle)) ** 2 + (py - at * core * np.sin(angle)) ** 2 < radius**2
        tissue[vessel & inside & (depth > limb.skin + 1)] = Tissue.BLOOD
    for bone in limb.bones:
        _render_bone(tissue, bone, px, py, z, inside & (depth > limb.skin + 0.5))
    for island in limb.islands:
        a, b, c = island.radii
        q = np.sqrt(((px - island.x) / a) ** 2 + ((py - island.y) / b) ** 2 + ((z - island.z) / c) ** 2)
        room = inside & (depth > limb.skin + 0.5)
        tissue[room & (q < 1)] = Tissue.CORTEX
        tissue[room & (q < 1 - 1.3 / min(island.radii))] = Tissue.TRABECULA


def _render_compartments(
    tissue: NDArray[np.uint8], limb: Limb, px: FloatArray, py: FloatArray, muscle: NDArray[np.bool_], core: float
) -> None:
    """Divide the muscle by its seeds; the seams between them are fascia with a little fat."""
    seeds = np.array([(at * core * np.cos(angle), at * core * np.sin(angle)) for angle, at in limb.compartments])
    points = np.stack([np.broadcast_to(p, muscle.shape)[muscle] for p in (px, py)], axis=1)
    squared = (points**2).sum(axis=1)[:, None] - 2 * points @ seeds.T.astype(np.float32)
    squared += (seeds**2).sum(axis=1).astype(np.float32)
    rows = np.arange(len(points))
    first = squared.argmin(axis=1)
    nearest = squared[rows, first].copy()
    squared[rows, first] = np.inf
    second = squared.argmin(axis=1)
    apart = np.linalg.norm(seeds[first] - seeds[second], axis=1)
    # distance to the plane between the two nearest seeds
    seam = (squared[rows, second] - nearest) / np.maximum(2 * apart, 1e-3)
    inside = np.flatnonzero(muscle)
    tissue.ravel()[inside[seam < limb.fascia / 2]] = Tissue.FASCIA


def _render_bone(
    tissue: NDArray[np.uint8], bone: Bone, px: FloatArray, py: FloatArray, z: FloatArray, room: NDArray[np.bool_]
) -> None:
    r = np.sqrt((px - bone.x) ** 2 + (py - bone.y) ** 2)
    if bone.joint_z is None:
        tissue[room & (r < bone.radius)] = Tissue.CORTEX
        tissue[room & (r < bone.radius - bone.cortex)] = Tissue.MARROW
        return
    from_joint = np.abs(z - bone.joint_z)
    reach = 2.2 * bone.radius
    flare = 1 + bone.flare * np.exp(-((from_joint / reach) ** 2))
    # bone ends are round: the radius closes towards the joint space
    closing = np.sqrt(np.clip(1 - (1 - np.minimum(from_joint / bone.radius, 1)) ** 2, 0, 1))
    radius = bone.radius * flare * closing
    end = from_joint < reach
    cortex = np.where(end, 1.3, bone.cortex)
    bony = room & (r < radius) & (from_joint > 1.5)
    tissue[room & (r < bone.radius * flare) & ~bony & end] = Tissue.CARTILAGE
    tissue[bony] = Tissue.CORTEX
    inner = bony & (r < radius - cortex) & (from_joint > 1.5 + 1.3)
    tissue[inner & ~end] = Tissue.MARROW
    tissue[inner & end] = Tissue.TRABECULA
    if bone.growth_plate:
        tissue[bony & (np.abs(from_joint - 1.1 * bone.radius) < 1.2)] = Tissue.CARTILAGE
