"""Calcinosis: deposits drawn by morphological pattern, and rendered to the calcium and occupancy of every voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.tissue import Region
from jdm_seg.synthesis.deposits.fields import Box
from jdm_seg.synthesis.deposits.forms import Filled
from jdm_seg.synthesis.deposits.layers import fill_layer, fill_net
from jdm_seg.synthesis.deposits.lumps import fill_cluster, fill_mass, fill_nodule
from jdm_seg.synthesis.deposits.priors import PATTERNS, SOLID_MG, Deposit, Priors
from jdm_seg.synthesis.deposits.sites import Pool, choose, draw_pool, fits, mirror
from jdm_seg.volume import Spacing

__all__ = ["LABEL_RULE", "PATTERNS", "Calcinosis", "Deposit", "Priors", "render_deposits", "sample_deposits"]

FloatArray = NDArray[np.float32]

LABEL_RULE = "1 where calcinosis (mineral, paste or fluid of a deposit) fills at least half of the voxel, else 0"
_NODULE_MM3 = (0.5, 30_000.0)
"""A micro-nodule of 1 mm to a lump of 4 cm; beyond, a deposit counts as tumoral."""
_FILL: dict[str, Callable[[Deposit, Host], Filled | None]] = {
    "nodule": fill_nodule,
    "plaque": fill_layer,
    "sheet": fill_layer,
    "tumoral": fill_mass,
    "net": fill_net,
    "periarticular": fill_cluster,
    "band": fill_layer,
}
_LAYERS = ("plaque", "sheet", "band", "net")
"""Patterns that are described as symmetrical."""
_NEW_PATTERN = 3.0
"""How readily a scan shows one more pattern, as the strength of a Chinese restaurant process (assumed)."""
_CROWDING = 0.35
"""Each further mass, sheet or net of a scan has this much less room to be large, relative to the first (assumed)."""


@dataclass(frozen=True)
class Calcinosis:
    """Rendered deposits, all arrays of shape (X, Y, Z).

    Attributes:
        occupancy: Share of each voxel that is deposit (mineral, paste or liquid), 0 to 1.
        calcium: Mean mg HA / cm³ over each voxel.
        dominant: Number of the deposit (1..n, in the order of ``deposits``) that fills most of a voxel, 0 without any.
        deposits: What was rendered.
        fluid: Share of each voxel that is liquid above a fluid-calcium level; None where no deposit has one.
        boxes: Where each deposit lies on the grid, None for one that fills nothing; empty where nobody noted it.
    """

    occupancy: FloatArray
    calcium: FloatArray
    dominant: NDArray[np.uint16]
    deposits: tuple[Deposit, ...]
    fluid: FloatArray | None = None
    boxes: tuple[Box | None, ...] = ()

    @property
    def instances(self) -> NDArray[np.uint16]:
        """Number of the deposit at every labelled voxel, 0 elsewhere."""
        return self.dominant * (self.occupancy >= 0.5)

    @property
    def label(self) -> NDArray[np.uint8]:
        """The binary truth by :data:`LABEL_RULE`."""
        return (self.occupancy >= 0.5).view(np.uint8)


def sample_deposits(host: Host, rng: np.random.Generator, priors: Priors | None = None) -> tuple[Deposit, ...]:
    """Draw the deposits of one scan or patch.

    Returns:
        One to many deposits, and none where the host offers no soft tissue. A mirrored partner follows the deposit it
        mirrors.
    """
    priors = priors or Priors()
    pool = draw_pool(host, rng)
    possible = np.array([fits(pool, pattern, host.spacing).any() for pattern in PATTERNS])
    weights = np.asarray(priors.weights) * possible
    if weights.sum() == 0:
        weights = possible.astype(float)
    if not possible.any():
        return ()
    deposits: list[Deposit] = []
    for pattern in _sample_patterns(priors, weights / weights.sum(), rng):
        allowed = fits(pool, pattern, host.spacing, deep=pattern == "nodule" and rng.random() < 0.25)
        chosen = choose(pool, allowed, priors.sites, rng)
        if chosen is None:  # a deep nodule where nothing is deep
            allowed = fits(pool, pattern, host.spacing)
            chosen = choose(pool, allowed, priors.sites, rng)
        if chosen is None:
            continue
        earlier = sum(deposit.pattern == pattern for deposit in deposits)
        deposit = _sample_deposit(pool, chosen, pattern, host, priors, rng, earlier)
        deposits.append(deposit)
        if rng.random() < (priors.mirrored if pattern in _LAYERS else priors.mirrored_nodule):
            partner = mirror(pool, chosen, allowed, host.spacing)
            if partner is not None:
                deposits.append(_mirrored(deposit, len(deposits), pool, partner, host, rng))
    return tuple(deposits)


def _sample_patterns(priors: Priors, weights: NDArray[np.float64], rng: np.random.Generator) -> list[str]:
    """Draw the pattern of every deposit of a scan.

    Each either takes up a pattern that the scan shows already or is drawn anew, so every one follows the weights and a
    scan shows few kinds. Scans are drawn again until their number of kinds, one or more, is as :attr:`Priors.mixed`
    asks; a scan with one deposit has one.
    """
    count = priors.draw_count(rng)
    several = (weights > 0).sum() > 1 and rng.random() < min(1.0, priors.mixed / (1 - priors.single_chance))
    edges = np.cumsum(weights)
    first = PATTERNS[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
    if not several or count == 1:
        return [first] * count
    while True:
        drawn: list[str] = []
        for number in range(count):
            if rng.random() * (number + _NEW_PATTERN) < number:
                drawn.append(drawn[int(rng.integers(number))])
            else:
                drawn.append(PATTERNS[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))])
        if len(set(drawn)) > 1:
            return drawn


def _sample_deposit(
    pool: Pool, chosen: int, pattern: str, host: Host, priors: Priors, rng: np.random.Generator, earlier: int
) -> Deposit:
    centre = _somewhere_in(pool, chosen, host, rng)
    volume = float(np.clip(np.exp(rng.normal(np.log(priors.median_mm3), priors.sigma)), *_NODULE_MM3))
    low, high = np.log(priors.calcium)
    calcium = float(np.exp(rng.uniform(low, high)))
    granular = rng.random() < priors.granular_share
    plain = Deposit(
        pattern=pattern,
        centre=centre,
        radius=(3 * volume / (4 * np.pi)) ** (1 / 3),
        thickness=0.0,
        level=0.0,
        calcium=calcium,
        texture=float(rng.uniform(0.05, 0.5)),
        seed=int(rng.integers(2**31)),
        core=float(np.exp(rng.uniform(np.log(1100), np.log(SOLID_MG)))) if rng.random() < priors.core_share else 0.0,
        fill=float(rng.uniform(0.35, 0.8)) if granular else 1.0,
        grain_mm=float(rng.uniform(0.9, 3.0)),
        region=Region(int(pool.region[chosen])).name,
    )
    largest = 1 / (1 + _CROWDING * earlier)
    return _formed(plain, float(pool.depth_mm[chosen]), float(pool.muscle_mm[chosen]), largest, priors, rng)


def _formed(
    deposit: Deposit, depth: float, muscle: float, largest: float, priors: Priors, rng: np.random.Generator
) -> Deposit:
    """Give a deposit the size of its pattern. Ranges: after case reports and atlases, by the authors (assumed).

    Args:
        deposit: Without size yet.
        depth: Under the skin at its centre, in mm.
        muscle: Signed distance to the muscle surface there, in mm.
        largest: Shrinks the upper end of the range of sizes.
        priors: Give the share of fluid levels.
        rng: Draws.
    """

    def size(low: float, high: float) -> float:
        return _log_uniform(rng, low, low + (high - low) * largest)

    if deposit.pattern == "plaque":
        length, thickness = size(3, 22), float(rng.uniform(1, 3))
        width = length * float(rng.uniform(0.45, 1))
        axis = _direction(rng, 0.0)
        return replace(deposit, radius=length, width=width, thickness=thickness, level=max(depth, 1.2), axis=axis)
    if deposit.pattern in ("sheet", "band"):
        band = deposit.pattern == "band"
        length = size(12, 60) if band else size(15, 100)
        return replace(
            deposit,
            radius=length,
            width=float(rng.uniform(1.5, 5)) if band else length * float(rng.uniform(0.15, 0.5)),
            thickness=float(rng.uniform(1, 4)) if band else _log_uniform(rng, 0.5, 3),
            level=float(np.clip(muscle, -0.5, 0.5)),
            axis=_direction(rng, 1.0),
        )
    if deposit.pattern == "net":
        length, thickness = size(12, 80), float(rng.uniform(0.7, 2.0))
        width, meshes = length * float(rng.uniform(0.4, 0.9)), float(rng.uniform(7, 16))
        axis = _direction(rng, 0.7)
        return replace(deposit, radius=length, width=width, thickness=thickness, grain_mm=meshes, axis=axis)
    if deposit.pattern == "tumoral":
        # not much wider than the soft tissue it lies in: a mass of 10 cm needs a trunk
        radius = min(size(10, 45), max(8.0, 1.4 * depth))
        septa = float(rng.uniform(0.4, 1.2))
        if rng.random() >= priors.fluid_level:
            return replace(deposit, radius=radius, thickness=septa)
        return replace(deposit, radius=radius, thickness=septa, fluid_level=float(rng.uniform(0.25, 0.7)), fill=1.0)
    if deposit.pattern == "periarticular":
        return replace(deposit, radius=_log_uniform(rng, 6, 22), thickness=_log_uniform(rng, 1.5, 5.0), fill=1.0)
    return replace(deposit, thickness=2 * deposit.radius)


def _mirrored(deposit: Deposit, number: int, pool: Pool, chosen: int, host: Host, rng: np.random.Generator) -> Deposit:
    """Return a partner on the other side: alike in kind, size and density, not in outline."""
    size = float(np.exp(rng.normal(0, 0.25)))
    x, y, z = deposit.axis
    layer = deposit.width > 0
    return replace(
        deposit,
        centre=_somewhere_in(pool, chosen, host, rng),
        radius=deposit.radius * size,
        width=deposit.width * size,
        thickness=deposit.thickness if layer or deposit.pattern == "tumoral" else deposit.thickness * size,
        level=max(float(pool.depth_mm[chosen]), 1.2) if deposit.pattern == "plaque" else deposit.level,
        calcium=float(np.clip(deposit.calcium * np.exp(rng.normal(0, 0.2)), 40, SOLID_MG)),
        axis=(-x, y, z),
        seed=int(rng.integers(2**31)),
        mirrors=number,
    )


def _somewhere_in(pool: Pool, chosen: int, host: Host, rng: np.random.Generator) -> Spacing:
    x, y, z = ((i + rng.random()) * s for i, s in zip(pool.index[chosen], host.spacing, strict=True))
    return float(x), float(y), float(z)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _direction(rng: np.random.Generator, along_z: float) -> Spacing:
    """Draw a unit vector; the nearer ``along_z`` is to 1, the nearer to the long axis of body and limbs."""
    vector = rng.normal(size=3) * (1 - 0.65 * along_z)
    vector[2] += np.copysign(along_z, rng.random() - 0.5)
    vector /= np.linalg.norm(vector)
    return float(vector[0]), float(vector[1]), float(vector[2])


def render_deposits(deposits: tuple[Deposit, ...], host: Host) -> Calcinosis:
    """Fill voxels with calcium.

    Only boxes around deposits are touched, and of layers only the voxels near them. Voxels that are not soft tissue
    stay empty: deposits abut bone and air, they never overwrite them.

    Args:
        deposits: As drawn by :func:`sample_deposits`, or read back from a case's record.
        host: Tissue and distances on the target grid.
    """
    shape = host.tissue.shape
    occupancy = np.zeros(shape, np.float32)
    calcium = np.zeros(shape, np.float32)
    dominant = np.zeros(shape, np.uint16)
    fluid = np.zeros(shape, np.float32) if any(deposit.fluid_level for deposit in deposits) else None
    boxes: list[Box | None] = []
    for number, deposit in enumerate(deposits, start=1):
        filled = _FILL[deposit.pattern](deposit, host)
        boxes.append(None if filled is None else filled.box)
        if filled is None:
            continue
        before = occupancy[filled.where]
        more = filled.occupancy > before
        occupancy[filled.where] = np.where(more, filled.occupancy, before)
        calcium[filled.where] = np.maximum(calcium[filled.where], filled.calcium)
        dominant[filled.where] = np.where(more, np.uint16(number), dominant[filled.where])
        if fluid is not None:
            # where a second deposit lies in the liquid, there is that much less of it
            liquid = fluid[filled.where] * (1 - filled.occupancy)
            fluid[filled.where] = liquid if filled.fluid is None else np.maximum(liquid, filled.fluid)
    return Calcinosis(occupancy, calcium, dominant, deposits, fluid, tuple(boxes))
