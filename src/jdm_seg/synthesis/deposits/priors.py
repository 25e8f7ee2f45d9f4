"""What is drawn of calcinosis before anything is rendered: priors, and deposits as plain values.

Patterns follow the vocabulary of the dermatomyositis literature: superficial nodules and plaques, tumoral masses,
fascial sheets, reticular nets (universalis), and periarticular and linear forms (Pediatr Rheumatol 2011;9 Suppl 1:P55;
Ann Rheum Dis 2017;76 Suppl 2:1386). Frequencies are assumptions unless a source is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jdm_seg.volume import Spacing

PATTERNS = ("nodule", "plaque", "sheet", "tumoral", "net", "periarticular", "band")
SOLID_MG = 3160.0
"""Pure hydroxyapatite in mg/cm³: no deposit holds more."""
OFF_BONE_MM = 2.0
"""A fascia lies on muscle; a sheet nearer to bone would be periosteum, which nobody could tell from the bone itself."""


def _sites() -> dict[str, float]:
    return {
        "ELBOW": 0.10,
        "FOREARM": 0.08,
        "THIGH": 0.18,
        "KNEE": 0.14,
        "HIP": 0.14,
        "CHEST": 0.04,
        "ABDOMEN": 0.04,
        "BACK": 0.06,
        "HAND": 0.08,
        "SHOULDER": 0.03,
        "UPPER_ARM": 0.03,
        "LOWER_LEG": 0.03,
        "FOOT": 0.03,
        "HEAD": 0.005,
        "NECK": 0.005,
    }


@dataclass(frozen=True)
class Priors:
    """How deposits are drawn.

    Attributes:
        count_mean: Mean count of a scan with deposits, mirrored partners not counted. 6.3 with SD 6.5 is read for hand
            CT in systemic sclerosis (10.1016/j.semarthrit.2019.03.001), the only published per-scan counts.
        count_dispersion: The count is 1 plus a negative binomial of this dispersion; 1.1 is derived from that series.
        median_mm3, sigma: Log-normal volume of nodules: median 210 mm³, sigma 1.5, derived from the same series.
        calcium: Range of mg hydroxyapatite per cm³, drawn log-uniformly (assumed; about 100-1500 HU at 120 kV).
        core_share: Share of deposits with cores as dense as enamel, which reach the ceiling of 12-bit CT (assumed;
            dense patches: Arthritis Res Ther 2009;11:R159).
        granular_share: Share of deposits made of scattered grains instead of one block (assumed; both exist: same).
        weights: Share of each of :data:`PATTERNS` (assumed).
        mixed: Share of scans with deposits that show two or more patterns; 80 % in a paediatric cohort (Pediatr
            Rheumatol 2011;9 Suppl 1:P55).
        fluid_level: Share of tumoral masses with a fluid-calcium level (assumed).
        mirrored: Chance of a partner on the other side for sheets, bands, plaques and nets (assumed; universalis is
            described as symmetrical).
        mirrored_nodule: The same for the other patterns (assumed).
        sites: Weight of each :class:`~jdm_seg.synthesis.anatomy.tissue.Region` by name, where the host knows regions
            (assumed, after the order in which reports name sites; thighs and forearms most often in Pediatr Rheumatol
            2011;9 Suppl 1:P55).
    """

    count_mean: float = 6.3
    count_dispersion: float = 1.1
    median_mm3: float = 210.0
    sigma: float = 1.5
    calcium: tuple[float, float] = (70.0, 1100.0)
    core_share: float = 0.2
    granular_share: float = 0.3
    weights: tuple[float, ...] = (0.22, 0.15, 0.25, 0.12, 0.12, 0.08, 0.06)
    mixed: float = 0.8
    fluid_level: float = 0.15
    mirrored: float = 0.6
    mirrored_nodule: float = 0.3
    sites: Mapping[str, float] = field(default_factory=_sites)

    def __post_init__(self) -> None:
        """Check what would otherwise fail far from here.

        Raises:
            ValueError: If a scan could have no deposit, or a pattern no weight.
        """
        if self.count_mean < 1:
            raise ValueError(f"expected count_mean to be at least 1, but got {self.count_mean}")
        if len(self.weights) != len(PATTERNS):
            raise ValueError(f"expected weights of {len(PATTERNS)} patterns, but got {len(self.weights)}")

    @property
    def single_chance(self) -> float:
        """Share of scans with one deposit only."""
        return float((self.count_dispersion / (self.count_dispersion + self.count_mean - 1)) ** self.count_dispersion)

    def draw_count(self, rng: np.random.Generator) -> int:
        """Draw how many deposits a scan has, at least 1."""
        success = self.count_dispersion / (self.count_dispersion + self.count_mean - 1)
        return 1 + int(rng.negative_binomial(self.count_dispersion, success))


@dataclass(frozen=True)
class Deposit:
    """One deposit, as drawn. Positions and lengths in mm of the host's grid, calcium in mg HA / cm³.

    Attributes:
        pattern: One of :data:`PATTERNS`.
        centre: Where it lies.
        radius: Of the ball of the same volume for a nodule, of the outline for other lumps, half the length of layers.
        thickness: Of a layer or of a net's strands; of the septa of a mass; median width of the grains of a cluster.
        level: Depth under the skin (plaque) or signed distance to the muscle surface (sheet, band) of the middle.
        calcium: In the bulk.
        texture: Spread of the calcium inside, as the standard deviation of its logarithm.
        seed: Of everything that has no field here: outline, lobules, noise.
        width: Half the width of a layer; 0 for other patterns.
        axis: Long axis of a layer, unit vector.
        core: Calcium of dense cores, 0 without any.
        fill: Share of the deposit that is mineral: 1 is solid, less is granular.
        grain_mm: Width of the grains of a granular deposit.
        fluid_level: 0 without; else the share of the height of every locule that is sediment, with liquid above it.
        region: Name of the body region, "NONE" where unknown.
        mirrors: Number (from 1) of the deposit that this one mirrors, or None.
    """

    pattern: str
    centre: Spacing
    radius: float
    thickness: float
    level: float
    calcium: float
    texture: float
    seed: int
    width: float = 0.0
    axis: Spacing = (0.0, 0.0, 1.0)
    core: float = 0.0
    fill: float = 1.0
    grain_mm: float = 1.5
    fluid_level: float = 0.0
    region: str = "NONE"
    mirrors: int | None = None
