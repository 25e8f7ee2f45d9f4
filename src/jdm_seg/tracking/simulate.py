"""Simulated follow-up scans with known changes: the test that tracking is held to.

One procedural body is scanned twice. Between the scans the patient moves (turn, shift, and a bent joint), the scanner
differs in voltage and noise, and every deposit has a known fate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jdm_seg.physics import HU_PER_MG_HA
from jdm_seg.synthesis.anatomy.scene import RenderedScene, render_scene, sample_scene
from jdm_seg.synthesis.anatomy.tissue import Tissue, TissueMap
from jdm_seg.synthesis.ct.acquisition import CtAcquisition, acquire_ct, sample_ct
from jdm_seg.synthesis.recipe import PRESETS, Preset
from jdm_seg.volume import Spacing, Volume

FloatArray = NDArray[np.float32]
Points = NDArray[np.float64]

TRUE_FATES = ("grown", "shrunk", "stable", "resolved", "new", "merged", "split")
_FACTORS = {"grown": (1.7, 3.0), "shrunk": (0.3, 0.55), "stable": (0.95, 1.05)}
"""Ratio of the volumes by fate: clear of the ±25 % that part them."""
_KEEP_MM = 10.0
"""Free tissue between two deposits, partners apart."""
_GAP_MM, _GAP_SLICES = 3.0, 2.0
"""Between partners before they merge or after a split, in mm and in slices: more than blur and the grouping of lesions
bridge."""
_MASK_HU_120 = 150.0


@dataclass(frozen=True)
class Ball:
    """One deposit: centre in mm of the body's grid, radius in mm at baseline and follow-up (0: not there), density.

    Attributes:
        number: From 1.
        fate: One of :data:`TRUE_FATES`.
        centre: In mm.
        radii: Baseline and follow-up, in mm.
        calcium: mg HA / cm³.
    """

    number: int
    fate: str
    centre: tuple[float, float, float]
    radii: tuple[float, float]
    calcium: float


@dataclass(frozen=True)
class Motion:
    """How the patient lies at follow-up: degrees about x, y and z, mm, and a joint at a share of z that bends.

    Attributes:
        turn_deg: About x, y and z.
        shift_mm: Along x, y and z.
        flexion_deg: Of the joint.
        joint_z: Where the joint is, as a share of the height.
    """

    turn_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    flexion_deg: float
    joint_z: float


@dataclass(frozen=True)
class SimulatedPair:
    """Two scans of one subject with their truth; the arrays of a scan share its grid.

    Attributes:
        scans: Baseline and follow-up.
        masks: What a segmentation finds of the deposits.
        instances: Number of the deposit of every voxel at least half of deposit.
        kv: Tube voltages.
        balls: Deposits and their fates.
        motion: Between the scans.
    """

    scans: tuple[Volume, Volume]
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    instances: tuple[NDArray[np.uint16], NDArray[np.uint16]]
    kv: tuple[str, str]
    balls: tuple[Ball, ...]
    motion: Motion


def simulate_pair(
    seed: int,
    *,
    preset: str = "limb",
    spacing: Spacing = (1.0, 1.0, 2.0),
    kv: tuple[str, str] = ("120", "100"),
    deposits: int = 14,
    noise_hu: tuple[float, float] = (15.0, 20.0),
) -> SimulatedPair:
    """Simulate a baseline and a follow-up CT.

    Args:
        seed: Draws body, deposits, fates, motion and noise.
        preset: A CT preset of :data:`jdm_seg.synthesis.recipe.PRESETS`: its view and size.
        spacing: Voxel size in mm of both scans.
        kv: Tube voltages.
        deposits: How many fates, in the order of :data:`TRUE_FATES` over and over; fewer where there is no room.
        noise_hu: Noise in muscle.
    """
    rng = np.random.default_rng((seed, 0xF0110))
    chosen = PRESETS["ct", preset]
    scene = sample_scene(rng, chosen.view)
    rendered = render_scene(scene, spacing, _shape(chosen, spacing, rng))
    balls = _place(rendered, rng, deposits)
    motion = Motion(
        turn_deg=(float(rng.uniform(-4, 4)), float(rng.uniform(-4, 4)), float(rng.uniform(-8, 8))),
        shift_mm=(float(rng.uniform(-15, 15)), float(rng.uniform(-10, 10)), float(rng.uniform(-15, 15))),
        flexion_deg=float(rng.uniform(-6, 6)),
        joint_z=float(rng.uniform(0.35, 0.65)),
    )
    age = scene.body.age
    parts = []
    for time in (0, 1):
        drawn = sample_ct(np.random.default_rng((seed, 7)), spacing, age)
        acquisition = replace(
            _at_voltage(drawn, kv[time], spacing), noise_hu=noise_hu[time], overshoot=0.0, motion=None, iterative=0.0
        )
        parts.append(_scan(rendered, balls, motion if time else None, time, acquisition, rng))
    (scan0, mask0, inst0), (scan1, mask1, inst1) = parts
    return SimulatedPair((scan0, scan1), (mask0, mask1), (inst0, inst1), kv, balls, motion)


def _shape(preset: Preset, spacing: Spacing, rng: np.random.Generator) -> tuple[int, int, int] | None:
    if preset.extent_mm is None:
        return None
    x, y, z = (round(float(rng.uniform(*mm)) / s) for mm, s in zip(preset.extent_mm, spacing, strict=True))
    return x, y, z


def _at_voltage(drawn: CtAcquisition, kv: str, spacing: Spacing) -> CtAcquisition:
    """Return the acquisition with tissue as bright as it is at another voltage, and a soft kernel."""
    ratio = HU_PER_MG_HA[kv] / HU_PER_MG_HA[drawn.kv]
    mineral = ("CORTEX", "TRABECULA", "TOOTH", "STONE", "DENSE")
    hu = {name: value * (ratio if name in mineral else 1.0) for name, value in drawn.hu.items()}
    return replace(drawn, kv=kv, hu=hu, psf_mm=(1.3, 1.3, max(1.04, 0.9 * spacing[2])), grain_mm=0.5)


def _place(rendered: RenderedScene, rng: np.random.Generator, count: int) -> tuple[Ball, ...]:
    """Put balls into soft tissue, well inside the view and apart from bone, air and each other."""
    host = rendered.host
    soft = host.soft
    allowed = soft & (host.depth_mm > 5) & (host.tissue != Tissue.SKIN)
    if host.bone_mm is not None:
        allowed &= host.bone_mm > 9
    for axis, size in enumerate(allowed.shape):  # what the moved field of view still holds
        edge = int(np.ceil(32 / host.spacing[axis])) if axis == 2 else int(np.ceil(16 / host.spacing[axis]))
        edge = min(edge, size // 4)
        allowed[tuple(slice(None) if a != axis else slice(0, edge) for a in range(3))] = False
        allowed[tuple(slice(None) if a != axis else slice(size - edge, None) for a in range(3))] = False
    places = np.argwhere(allowed)
    balls: list[Ball] = []
    taken: list[tuple[Points, float]] = []
    fate_number = 0
    for index in rng.permutation(len(places))[:4000]:
        if fate_number >= count:
            break
        fate = TRUE_FATES[fate_number % len(TRUE_FATES)]
        place = (places[index] + 0.5) * np.array(host.spacing)
        new = _draw(fate, place, len(balls) + 1, _GAP_MM + _GAP_SLICES * max(host.spacing), rng)
        spots = [(np.array(ball.centre), max(ball.radii)) for ball in new]
        if not all(_is_soft(soft, spot, host.spacing) for spot, _ in spots):
            continue
        if any(np.linalg.norm(a - b) < ra + rb + _KEEP_MM for a, ra in spots for b, rb in taken):
            continue
        balls += new
        taken += spots
        fate_number += 1
    return tuple(balls)


def _is_soft(soft: NDArray[np.bool_], spot: Points, spacing: Spacing) -> bool:
    index = (spot / np.array(spacing)).astype(int)
    inside = (index >= 0).all() and (index < np.array(soft.shape)).all()
    return bool(inside and soft[tuple(index)])


def _draw(fate: str, centre: Points, number: int, gap_mm: float, rng: np.random.Generator) -> list[Ball]:
    """Draw one deposit, or two partners that merge or were one before."""
    radius, calcium = float(rng.uniform(2.8, 6.0)), float(np.exp(rng.uniform(np.log(250), np.log(900))))
    place = (float(centre[0]), float(centre[1]), float(centre[2]))
    if fate in ("merged", "split"):
        along = rng.normal(size=3)
        along /= np.linalg.norm(along)
        apart = 2 * radius + gap_mm
        other = centre + along * apart
        joined = 1.12 * apart / 2  # large enough to touch
        radii = (radius, joined) if fate == "merged" else (joined, radius)
        second = (float(other[0]), float(other[1]), float(other[2]))
        return [Ball(number, fate, place, radii, calcium), Ball(number + 1, fate, second, radii, calcium)]
    if fate == "resolved":
        return [Ball(number, fate, place, (radius, 0.0), calcium)]
    if fate == "new":
        return [Ball(number, fate, place, (0.0, radius), calcium)]
    factor = float(rng.uniform(*_FACTORS[fate])) ** (1 / 3)
    return [Ball(number, fate, place, (radius, radius * factor), calcium)]


def _scan(
    rendered: RenderedScene,
    balls: tuple[Ball, ...],
    motion: Motion | None,
    time: int,
    acquisition: CtAcquisition,
    rng: np.random.Generator,
) -> tuple[Volume, NDArray[np.bool_], NDArray[np.uint16]]:
    fine = rendered.tissue
    points = _body_points(fine.first.shape, fine.spacing, motion)
    tissue = _warped(fine, points) if motion is not None else fine
    occupancy = np.zeros(fine.first.shape, np.float32)
    calcium = np.zeros(fine.first.shape, np.float32)
    dominant = np.zeros(fine.first.shape, np.uint16)
    width = float(np.cbrt(np.prod(fine.spacing)))
    for ball in balls:
        radius = ball.radii[time]
        if not radius:
            continue
        box = _around(points, np.array(ball.centre, np.float32), radius + 2 * width, fine.spacing)
        distance = np.linalg.norm(points[box] - np.array(ball.centre, np.float32), axis=-1)
        share = np.clip(0.5 - (distance - radius) / width, 0, 1).astype(np.float32)
        more = share > occupancy[box]
        for plane, value in ((occupancy, share), (calcium, share * np.float32(ball.calcium))):
            plane[box][more] = value[more]
        dominant[box][more] = ball.number
    image = acquire_ct(tissue, calcium, occupancy, acquisition, rng, split_z=rendered.split)
    shape = (*fine.first.shape[:2], image.shape[2], rendered.split)
    share = occupancy.reshape(shape).mean(axis=-1)
    number = dominant.reshape(shape).max(axis=-1)
    near = ndimage.binary_dilation(share > 0.02)
    level = _MASK_HU_120 * HU_PER_MG_HA[acquisition.kv] / HU_PER_MG_HA["120"]
    affine = np.diag([*rendered.host.spacing, 1.0])
    affine[:3, 3] = rendered.origin
    scan = Volume(image, affine, f"time {time}")
    return scan, near & (image > level), (number * (share >= 0.5)).astype(np.uint16)


def _body_points(shape: tuple[int, ...], spacing: Spacing, motion: Motion | None) -> FloatArray:
    """Return where in the body, in mm of its grid, every voxel of a scan lies, shape (X, Y, Z, 3)."""
    axes = [((np.arange(n) + 0.5) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    if motion is None:
        return points
    extent = np.multiply(shape, spacing)
    centre = (extent / 2).astype(np.float32)
    turn = Rotation.from_euler("xyz", motion.turn_deg, degrees=True).as_matrix().astype(np.float32)
    points = (points - centre) @ turn.T + centre + np.array(motion.shift_mm, np.float32)
    # below the joint the limb turns about x; the bend is spread over a few centimetres, as skin and muscle do
    joint = np.array([centre[0], centre[1], motion.joint_z * extent[2]], np.float32)
    bend = np.deg2rad(motion.flexion_deg) / (1 + np.exp((points[..., 2] - joint[2]) / 12))
    y, z = points[..., 1] - joint[1], points[..., 2] - joint[2]
    cosine, sine = np.cos(bend), np.sin(bend)
    points[..., 1], points[..., 2] = joint[1] + cosine * y - sine * z, joint[2] + sine * y + cosine * z
    return np.asarray(points, dtype=np.float32)


def _around(points: FloatArray, centre: FloatArray, radius: float, spacing: Spacing) -> tuple[slice, ...]:
    """Return a box of the scan that holds every voxel whose place in the body lies within a radius of a point."""
    every = 4
    thin = points[::every, ::every, ::every]
    nearest = np.unravel_index(int(((thin - centre) ** 2).sum(axis=-1).argmin()), thin.shape[:3])
    # half a stride off, and a bent joint stretches a little
    reach = [int(np.ceil(1.2 * radius / step)) + every for step in spacing]
    return tuple(slice(max(0, int(n) * every - r), int(n) * every + r + 1) for n, r in zip(nearest, reach, strict=True))


def _warped(tissue: TissueMap, points: FloatArray) -> TissueMap:
    index = [points[..., axis] / np.float32(tissue.spacing[axis]) - np.float32(0.5) for axis in range(3)]
    index[2] = np.clip(index[2], 0, tissue.first.shape[2] - 1)  # a limb goes on beyond the field of view

    def moved(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        result: NDArray[np.uint8] = ndimage.map_coordinates(plane, index, order=0, mode="constant", cval=0)
        return result

    return TissueMap(moved(tissue.first), moved(tissue.second), moved(tissue.share), tissue.spacing)


def score_fates(
    pair: SimulatedPair,
    labels: tuple[NDArray[Any], NDArray[Any]],
    fates: tuple[dict[int, str], dict[int, str]],
    *,
    min_diameter_mm: float = 5.0,
) -> list[dict[str, Any]]:
    """Compare the fates that a tracker gave with the true ones.

    Args:
        pair: The simulation.
        labels: Lesion numbers on the grids of the two scans.
        fates: Fate by lesion number, of baseline and of follow-up lesions.
        min_diameter_mm: Deposits that are smaller in every scan that shows them are left out.

    Returns:
        One row a deposit: ``number, fate, found, right``; ``found`` is what the tracker said of the lesion that covers
        most of it, None where the mask missed it.
    """
    rows = []
    for ball in pair.balls:
        if 2 * max(ball.radii) < min_diameter_mm:
            continue
        time = 1 if ball.fate in ("new", "split") else 0
        inside = labels[time][pair.instances[time] == ball.number]
        inside = inside[inside > 0]
        lesion = int(np.bincount(inside).argmax()) if inside.size else 0
        found = fates[time].get(lesion)
        rows.append({"number": ball.number, "fate": ball.fate, "found": found, "right": found == ball.fate})
    return rows
