"""Deposits by morphological pattern, rendered to the calcium fraction of every voxel.

Patterns follow the vocabulary of the dermatomyositis literature (superficial plaques and nodules, tumoral
masses, fascial sheets, reticular nets). Frequencies are assumptions unless a source is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.synthesis.host import Host
from jdm_seg.synthesis.tissue import Tissue
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
Field = Callable[[FloatArray], FloatArray]
"""Maps points (N, 3) in mm to a value in mm that is negative inside a deposit and grows about 1 per mm."""

PATTERNS = ("nodule", "plaque", "sheet", "tumoral", "net", "granular")
LABEL_RULE = "1 where calcinosis fills at least half of the voxel, else 0"
_SUPERSAMPLING_MM = 0.45
"""Edge of the sub-voxels that measure how much of a border voxel a deposit fills."""
_ROUGHEST = 1.5
"""Largest outline of a deposit over its radius."""
_FAR_MM = 6.0
"""Farther outside than any border voxel's sub-voxels reach."""


@dataclass(frozen=True)
class Priors:
    """How deposits are drawn.

    Attributes:
        count_mean, count_dispersion: Negative binomial count, at least 1. Dispersion 1.1 is derived from hand CT in
            systemic sclerosis (mean 6.3, SD 6.5), the only published per-scan counts.
        median_mm3, sigma: Log-normal volume of nodules: median 210 mm³, sigma 1.5, derived from the same series.
        calcium: Range of mg hydroxyapatite per cm³, drawn log-uniformly (assumed).
        weights: Share of each pattern (assumed).
        mixed: Share of scans with deposits that show two or more patterns; 80 % in a paediatric cohort (Pediatr
            Rheumatol 2011;9 Suppl 1:P55).
    """

    count_mean: float = 4.0
    count_dispersion: float = 1.1
    median_mm3: float = 210.0
    sigma: float = 1.5
    calcium: tuple[float, float] = (120.0, 1100.0)
    weights: tuple[float, ...] = (0.3, 0.2, 0.2, 0.1, 0.1, 0.1)
    mixed: float = 0.8


@dataclass(frozen=True)
class Deposit:
    """One deposit, as drawn. Positions and lengths in mm of the host's grid, calcium in mg HA / cm³."""

    pattern: str
    centre: Spacing
    radius: float
    thickness: float
    level: float
    calcium: float
    texture: float
    seed: int


@dataclass(frozen=True)
class Calcinosis:
    """Rendered deposits, all arrays of shape (X, Y, Z).

    Attributes:
        occupancy: Share of each voxel that is deposit, 0 to 1.
        calcium: Mean mg HA / cm³ over each voxel.
        dominant: Number of the deposit (1..n, in the order of ``deposits``) that fills most of a voxel, 0 without any.
        deposits: What was rendered.
    """

    occupancy: FloatArray
    calcium: FloatArray
    dominant: NDArray[np.uint16]
    deposits: tuple[Deposit, ...]

    @property
    def instances(self) -> NDArray[np.uint16]:
        """Number of the deposit at every labelled voxel, 0 elsewhere."""
        return np.where(self.occupancy >= 0.5, self.dominant, 0).astype(np.uint16)

    @property
    def label(self) -> NDArray[np.uint8]:
        """The binary truth by :data:`LABEL_RULE`."""
        return (self.occupancy >= 0.5).astype(np.uint8)


def sample_deposits(host: Host, rng: np.random.Generator, priors: Priors | None = None) -> tuple[Deposit, ...]:
    """Draw the deposits of one scan or patch.

    Returns:
        None to many deposits; none only where the host offers no soft tissue.
    """
    priors = priors or Priors()
    success = priors.count_dispersion / (priors.count_dispersion + priors.count_mean)
    count = 1 + int(rng.negative_binomial(priors.count_dispersion, success))
    weights = np.asarray(priors.weights) / np.sum(priors.weights)
    kinds = 1 if rng.random() > priors.mixed else int(rng.integers(2, 4))
    patterns = rng.choice(PATTERNS, size=min(kinds, count), replace=False, p=weights)
    deposits = []
    for index in range(count):
        pattern = str(patterns[index] if index < len(patterns) else rng.choice(patterns))
        deposit = _sample_deposit(host, rng, priors, pattern)
        if deposit is not None:
            deposits.append(deposit)
    return tuple(deposits)


def _sample_deposit(host: Host, rng: np.random.Generator, priors: Priors, pattern: str) -> Deposit | None:
    where = _candidates(host, pattern)
    if where.size == 0:
        where = np.flatnonzero(host.soft)
    if where.size == 0:
        return None
    index = np.unravel_index(int(rng.choice(where)), host.tissue.shape)
    centre = tuple(float((i + rng.random()) * s) for i, s in zip(index, host.spacing, strict=True))
    volume = float(np.clip(np.exp(rng.normal(np.log(priors.median_mm3), priors.sigma)), 8, 40_000))
    radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
    thickness, level = 2 * radius, 0.0
    if pattern == "plaque":
        thickness, radius, level = rng.uniform(1.2, 3.5), rng.uniform(4, 18), float(host.depth_mm[index])
    elif pattern == "sheet":
        thickness, radius, level = rng.uniform(1.0, 3.0), rng.uniform(8, 35), float(host.muscle_mm[index])
    elif pattern == "net":
        thickness, radius = rng.uniform(1.2, 2.2), rng.uniform(8, 25)
    elif pattern == "tumoral":
        radius = float(np.clip(radius * 2, 6, 25))
        thickness = rng.uniform(0.4, 1.2)
    elif pattern == "granular":
        radius, thickness = rng.uniform(4, 12), rng.uniform(1.5, 4)
    low, high = np.log(priors.calcium)
    return Deposit(
        pattern=pattern,
        centre=(centre[0], centre[1], centre[2]),
        radius=float(radius),
        thickness=float(thickness),
        level=level,
        calcium=float(np.exp(rng.uniform(low, high))),
        texture=float(rng.uniform(0.05, 0.5)),
        seed=int(rng.integers(2**31)),
    )


def _candidates(host: Host, pattern: str) -> NDArray[np.intp]:
    """Return flat indices of voxels where a pattern may be centred."""
    fat = (host.tissue == Tissue.FAT) | (host.tissue == Tissue.SKIN)
    if pattern == "plaque":
        where = fat & (host.depth_mm > 1) & (host.depth_mm < 6)
    elif pattern == "sheet":
        where = host.soft & (np.abs(host.muscle_mm) <= max(1.5, min(host.spacing))) & (host.depth_mm > 2)
    elif pattern in ("net", "nodule"):
        where = fat & (host.depth_mm > 1)
    else:
        where = host.soft & (host.depth_mm > 2)
    return np.flatnonzero(where)


def render_deposits(deposits: tuple[Deposit, ...], host: Host) -> Calcinosis:
    """Fill voxels with calcium.

    Only border voxels are sub-sampled (edge of at most 0.45 mm), so thin sheets keep their true share of a voxel at
    little cost. Voxels that are not soft tissue stay empty: deposits abut bone and air, they never overwrite them.

    Args:
        deposits: As drawn by :func:`sample_deposits`, or read back from a case's record.
        host: Tissue and distances on the target grid.
    """
    shape = host.tissue.shape
    occupancy = np.zeros(shape, np.float32)
    calcium = np.zeros(shape, np.float32)
    largest = np.zeros(shape, np.float32)
    dominant = np.zeros(shape, np.uint16)
    soft = host.soft
    for number, deposit in enumerate(deposits, start=1):
        box = _box_of(deposit, host)
        filled = _occupancy(_field_of(deposit, host), box, host.spacing) * soft[box]
        if not filled.any():
            continue
        grain = 1 + deposit.texture * _noise(_centres(box, host.spacing), deposit.seed + 1, 3.0).reshape(filled.shape)
        occupancy[box] = np.maximum(occupancy[box], filled)
        calcium[box] = np.maximum(calcium[box], filled * deposit.calcium * np.clip(grain, 0.3, 2))
        dominant[box] = np.where(filled > largest[box], number, dominant[box])
        largest[box] = np.maximum(largest[box], filled)
    return Calcinosis(occupancy, calcium, dominant, deposits)


def _box_of(deposit: Deposit, host: Host) -> tuple[slice, slice, slice]:
    reach = _ROUGHEST * deposit.radius + deposit.thickness
    low, high = (
        [int(np.floor((c + sign * reach) / s)) for c, s in zip(deposit.centre, host.spacing, strict=True)]
        for sign in (-1, 1)
    )
    x, y, z = (slice(max(0, a), max(1, min(n, b + 2))) for a, b, n in zip(low, high, host.tissue.shape, strict=True))
    return x, y, z


def _centres(box: tuple[slice, ...], spacing: Spacing) -> FloatArray:
    axes = [(np.arange(s.start, s.stop, dtype=np.float32) + 0.5) * d for s, d in zip(box, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _occupancy(inside: Field, box: tuple[slice, slice, slice], spacing: Spacing) -> FloatArray:
    """Return the share of each voxel of ``box`` where ``inside`` is negative."""
    shape = tuple(s.stop - s.start for s in box)
    centres = _centres(box, spacing)
    value = inside(centres)
    half_diagonal = 0.5 * float(np.linalg.norm(spacing))
    filled = (value < 0).astype(np.float32)
    border = np.flatnonzero(np.abs(value) < 1.5 * half_diagonal)
    parts = [max(1, int(np.ceil(s / _SUPERSAMPLING_MM))) for s in spacing]
    offsets = np.stack(
        np.meshgrid(
            *[((np.arange(n) + 0.5) / n - 0.5) * s for n, s in zip(parts, spacing, strict=True)], indexing="ij"
        ),
        axis=-1,
    ).reshape(-1, 3)
    for chunk in np.array_split(border, max(1, border.size * len(offsets) // 2_000_000)):
        points = (centres[chunk, None, :] + offsets[None].astype(np.float32)).reshape(-1, 3)
        filled[chunk] = (inside(points) < 0).reshape(len(chunk), len(offsets)).mean(axis=1)
    return filled.reshape(shape)


def _field_of(deposit: Deposit, host: Host) -> Field:
    """Return the function that is negative inside the deposit."""
    centre = np.asarray(deposit.centre, np.float32)
    rng = np.random.default_rng(deposit.seed)

    def ball(points: FloatArray) -> FloatArray:
        rough = 0.3 * _noise(points, deposit.seed, max(3.0, 0.6 * deposit.radius))
        roughness = np.clip(1 + rough, 2 - _ROUGHEST, _ROUGHEST)
        result: FloatArray = np.linalg.norm(points - centre, axis=1) - deposit.radius * roughness
        return result

    if deposit.pattern in ("plaque", "sheet"):
        values = host.depth_mm if deposit.pattern == "plaque" else host.muscle_mm

        def layer(points: FloatArray) -> FloatArray:
            thick = deposit.thickness * (1 + 0.3 * _noise(points, deposit.seed + 2, 8.0))
            result: FloatArray = np.abs(_at(values, points, host.spacing) - deposit.level) - thick / 2
            return result

        return _both(ball, layer)
    if deposit.pattern == "net":

        def net(points: FloatArray) -> FloatArray:
            # zero levels of a noise: a mesh of walls, as thick as asked because the noise grows about 1 per scale
            walls = np.abs(_noise(points, deposit.seed + 3, 7.0)) * 7.0 - deposit.thickness / 2
            return np.maximum(walls, -_at(host.muscle_mm, points, host.spacing))

        return _both(ball, net)
    if deposit.pattern in ("tumoral", "granular"):
        return _lobules(deposit, rng)
    stretch = np.exp(rng.normal(0, 0.25, 3)).astype(np.float32)
    stretch /= np.prod(stretch) ** (1 / 3)

    def ellipsoid(points: FloatArray) -> FloatArray:
        return ball(centre + (points - centre) / stretch)

    return ellipsoid


def _both(first: Field, second: Field) -> Field:
    """Return the intersection; the second, dearer field is asked only where the first leaves it to decide."""

    def field(points: FloatArray) -> FloatArray:
        value = first(points)
        open_points = value < _FAR_MM
        value[open_points] = np.maximum(value[open_points], second(points[open_points]))
        return value

    return field


def _lobules(deposit: Deposit, rng: np.random.Generator) -> Field:
    """Many balls: touching and parted by thin septa (tumoral), or scattered (granular)."""
    tumoral = deposit.pattern == "tumoral"
    number = int(rng.integers(5, 14))
    directions = rng.normal(size=(number, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    reach = deposit.radius * (0.6 if tumoral else 0.9) * rng.random((number, 1)) ** (1 / 3)
    seeds = np.asarray(deposit.centre) + directions * reach
    if tumoral:
        radii = deposit.radius * rng.uniform(0.3, 0.55, number)
    else:
        radii = deposit.thickness / 2 * np.exp(rng.normal(0, 0.35, number))

    def field(points: FloatArray) -> FloatArray:
        nearest = np.full(len(points), np.inf, np.float32)
        second = np.full(len(points), np.inf, np.float32)
        for seed, radius in zip(seeds.astype(np.float32), radii, strict=True):
            value = (np.linalg.norm(points - seed, axis=1) - radius).astype(np.float32)
            second = np.minimum(second, np.maximum(nearest, value))
            nearest = np.minimum(nearest, value)
        return np.maximum(nearest, deposit.thickness - (second - nearest)) if tumoral else nearest

    return field


def _at(values: FloatArray, points: FloatArray, spacing: Spacing) -> FloatArray:
    """Interpolate a field of the host's grid at points in mm; beyond the border the border's value."""
    index = (points / np.asarray(spacing, np.float32) - 0.5).T
    result: FloatArray = ndimage.map_coordinates(values, index, order=1, mode="nearest", prefilter=False)
    return result


def _noise(points: FloatArray, seed: int, scale_mm: float, waves: int = 10) -> FloatArray:
    """Return smooth noise of about unit variance that changes over ``scale_mm``: a sum of random plane waves."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    frequency = rng.uniform(0.6, 1.6, (waves, 1)) / scale_mm
    phase = rng.uniform(0, 2 * np.pi, waves)
    total = np.zeros(len(points), np.float32)
    for wave, shift in zip((direction * frequency).astype(np.float32), phase.astype(np.float32), strict=True):
        total += np.cos(points @ wave + shift)
    return total * np.float32(np.sqrt(2 / waves))
