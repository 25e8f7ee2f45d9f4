"""Tissue and calcium to CT numbers, and a low-dose acquisition of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.physics import HU_MAX, hu_per_mg_ha
from jdm_seg.synthesis.anatomy.tissue import TissueMap
from jdm_seg.synthesis.coarse import SmoothNoise
from jdm_seg.synthesis.ct.blur import FWHM_TO_SIGMA, blur_in_plane, gaussian_weights
from jdm_seg.synthesis.ct.noise import NoiseField, survey_body
from jdm_seg.synthesis.ct.streaks import Streaks
from jdm_seg.synthesis.ct.tissue import sample_hu, table_at, unevenness_of
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
HU_MIN = -1024

_KV_SHARE = {"70": 0.05, "80": 0.15, "100": 0.30, "120": 0.35, "140": 0.05, "Sn100": 0.10}
"""How often each tube voltage is drawn (assumed: paediatric practice is mostly 70-100 kV)."""
_SLAB_VOXELS = 3_000_000
_UNEVEN_MM = 6.0
"""Half of the distance over which muscle and fat change their CT number (assumed)."""


@dataclass(frozen=True)
class Motion:
    """A move during part of a scan: these slices show the body twice.

    Attributes:
        start, stop: Where, as shares of the scan's length.
        shift_mm: Distance between the two contours along x and y.
        share: Weight of the moved body.
    """

    start: float
    stop: float
    shift_mm: tuple[float, float]
    share: float


@dataclass(frozen=True)
class CtAcquisition:
    """One scanner setting. Lengths in mm.

    Attributes:
        kv: Tube voltage, a key of :data:`~jdm_seg.physics.HU_PER_MG_HA`.
        psf_mm: Full width at half maximum of the blur along x, y, z, on top of the average over a voxel.
        noise_hu: Standard deviation in muscle: the median over the body's muscle.
        grain_mm: Standard deviation of the reconstruction kernel's Gaussian, which sets the grain of the noise.
        overshoot: Gain of the unsharp mask of sharp kernels; 0.7 raises the rim of an edge by 5 % of it, 1.5 by 15 %.
        hu: CT number of each tissue in 20 cm of water before noise, by name.
        iterative: Blobbiness of the noise: 0 for filtered back-projection, 1 for strongly iterative.
        modulation: Share of a longer way through the body that the tube current makes up for.
        starvation_cm: Water on a ray beyond which electronic noise outweighs the photons'.
        hardening: Beam hardening by bone, calcium and metal: 1 uncorrected, less with a correction for bone, 0 for
            neither bands nor stars.
        matrix_hu: CT number of what lies between the calcium of a deposit.
        uneven: Strength of the tissues' own unevenness, 1 for the assumed one.
        motion: A move of the patient, if any.
    """

    kv: str
    psf_mm: Spacing
    noise_hu: float
    grain_mm: float
    overshoot: float
    hu: dict[str, float]
    iterative: float = 0.0
    modulation: float = 0.5
    starvation_cm: float = 50.0
    hardening: float = 0.6
    matrix_hu: float = 40.0
    uneven: float = 1.0
    motion: Motion | None = None


def sample_ct(rng: np.random.Generator, spacing: Spacing, age: float) -> CtAcquisition:
    """Draw a scanner setting and the tissues' CT numbers.

    Noise: 12 to 25 HU with soft and 25 to 45 HU with sharp kernels, a third of them sharp (assumed for low dose).

    Args:
        rng: Draws.
        spacing: Voxel size of the scan; z is the slice thickness.
        age: In years: marrow, and how likely a child moves.
    """
    sharp = bool(rng.random() < 0.3)
    in_plane = float(rng.uniform(0.7, 1.1) if sharp else rng.uniform(1.0, 1.6))
    kv = str(rng.choice(list(_KV_SHARE), p=list(_KV_SHARE.values())))
    iterative = float(rng.uniform(0.2, 1.0)) if not sharp and rng.random() < 0.5 else 0.0
    return CtAcquisition(
        kv=kv,
        psf_mm=(in_plane, in_plane, float(max(0.8 * in_plane, spacing[2] * rng.uniform(0.7, 1.1)))),
        noise_hu=float(rng.uniform(25, 45) if sharp else rng.uniform(12, 28)),
        # a matrix of large voxels is averaged from a finer one
        grain_mm=float(max(in_plane * FWHM_TO_SIGMA * rng.uniform(0.6, 1.0), 0.3 * spacing[0])),
        overshoot=float(rng.uniform(0.7, 1.5)) if sharp else 0.0,
        hu=sample_hu(rng, kv, age),
        iterative=iterative,
        modulation=float(rng.uniform(0.3, 0.8)),
        starvation_cm=float(rng.uniform(32, 60)),
        hardening=float(rng.uniform(0.2, 1.0)),
        matrix_hu=float(rng.uniform(20, 70)),
        uneven=float(rng.uniform(0.5, 1.5)),
        motion=_sample_motion(rng, age),
    )


def _sample_motion(rng: np.random.Generator, age: float) -> Motion | None:
    """Draw a move: one young child in four, one adult in twenty-five (assumed)."""
    if rng.random() > (0.25 if age < 6 else 0.12 if age < 12 else 0.04):
        return None
    start = float(rng.uniform(0, 0.9))
    return Motion(
        start=start,
        stop=float(min(1.0, start + rng.uniform(0.03, 0.2))),
        shift_mm=(float(rng.normal(0, 1.5)), float(rng.normal(0, 1.5))),
        share=float(rng.uniform(0.2, 0.5)),
    )


def acquire_ct(
    tissue: TissueMap,
    calcium: FloatArray | None,
    occupancy: FloatArray | None,
    acquisition: CtAcquisition,
    rng: np.random.Generator,
    *,
    split_z: int = 1,
    slab: int | None = None,
) -> NDArray[np.int16]:
    """Scan a body.

    CT numbers follow the tube voltage and the water-equivalent diameter of each slice; a deposit gives
    HU = (1 - v) HU_tissue + v HU_matrix + slope c for its share v of a voxel and its calcium c. Then follow slice
    profile, point spread, streaks, motion, noise, and storage as whole numbers from -1024 to 3071. Works in slabs
    along z: beside the image it needs a few hundred MB, whatever the size of the body.

    Args:
        tissue: The body, shape (X, Y, Z * split_z); z to the head, x from side to side, y from back to front.
        calcium: Mean mg HA / cm³ of each voxel, shape (X, Y, Z) or that of ``tissue``; None without deposits.
        occupancy: Share of each voxel that is deposit, same shape; None without deposits.
        acquisition: The setting.
        rng: Draws noise and unevenness.
        split_z: Layers of the tissue map that make one slice of the scan.
        slab: Slices worked on at a time; the image does not depend on it.

    Returns:
        The scan, shape (X, Y, Z), int16 HU.

    Raises:
        ValueError: If ``split_z`` does not divide the layers, or the deposits lie on another grid.
    """
    x, y, layers = tissue.first.shape
    if split_z < 1 or layers % split_z:
        raise ValueError(f"expected split_z to divide the {layers} layers of the tissue map, but got {split_z}")
    scan = _Scan(tissue, calcium, occupancy, acquisition, split_z, int(rng.integers(2**63)))
    image = np.empty((x, y, layers // split_z), np.int16)
    group = scan.streaks.group
    size = slab or max(1, _SLAB_VOXELS // (x * y * split_z))
    size = -(-size // group) * group  # streaks are shared by a group of slices
    for start in range(0, image.shape[2], size):
        z = slice(start, min(start + size, image.shape[2]))
        image[..., z] = quantise(scan.slices(z)).transpose(1, 2, 0)
    return image


class _Scan:
    """One acquisition, asked for slabs. Arrays of a slab have shape (slab, X, Y): slices are contiguous."""

    def __init__(
        self,
        tissue: TissueMap,
        calcium: FloatArray | None,
        occupancy: FloatArray | None,
        acquisition: CtAcquisition,
        split_z: int,
        seed: int,
    ) -> None:
        self.tissue, self.acquisition, self.split_z, self.seed = tissue, acquisition, split_z, seed
        self.calcium = _layers_per_slice(calcium, tissue, split_z)
        self.occupancy = _layers_per_slice(occupancy, tissue, split_z)
        if (self.calcium is None) != (self.occupancy is None):
            raise ValueError("expected calcium and occupancy together, but got one of them")
        x, y, layers = tissue.first.shape
        self.shape = (x, y, layers // split_z)
        self.spacing = (tissue.spacing[0], tissue.spacing[1], tissue.spacing[2] * split_z)
        survey = survey_body(tissue, table_at(acquisition.hu, acquisition.kv, 20.0))
        self.diameter_cm = survey.diameter_cm
        self.smooth_spread, self.fine_spread = unevenness_of(acquisition.uneven)
        self.uneven = SmoothNoise(np.random.default_rng((seed, 0)), tissue.first.shape, tissue.spacing, _UNEVEN_MM)
        self.profile = gaussian_weights(acquisition.psf_mm[2], tissue.spacing[2])
        self.streaks = Streaks(
            self.shape,
            self.spacing,
            kv=acquisition.kv,
            hardening=acquisition.hardening,
            diameter_cm=survey.diameter_cm[split_z // 2 :: split_z],
        )
        self.noise = None
        if acquisition.noise_hu > 0:
            self.noise = NoiseField(
                survey,
                self.shape,
                self.spacing,
                kv=acquisition.kv,
                noise_hu=acquisition.noise_hu,
                grain_mm=acquisition.grain_mm,
                iterative=acquisition.iterative,
                modulation=acquisition.modulation,
                starvation_cm=acquisition.starvation_cm,
                seed=seed,
            )

    def slices(self, z: slice) -> FloatArray:
        """Return CT numbers of a slab before they are stored."""
        halo, layers = len(self.profile) // 2, self.tissue.first.shape[2]
        fine = slice(z.start * self.split_z, z.stop * self.split_z)
        around = slice(max(0, fine.start - halo), min(layers, fine.stop + halo))
        hu = self._object(around)
        hu = ndimage.correlate1d(hu, self.profile, axis=0, mode="nearest")
        hu = hu[fine.start - around.start : fine.stop - around.start]
        if self.split_z > 1:
            hu = hu.reshape(z.stop - z.start, self.split_z, *self.shape[:2]).mean(axis=1)
        hu = blur_in_plane(hu, self.acquisition.psf_mm, self.acquisition.overshoot, self.spacing, axes=(1, 2))
        self.streaks.add(hu, z.start)
        self._move(hu, z.start)
        if self.noise is not None:
            hu += self.noise.slices(z)
        return hu

    def _object(self, layers: slice) -> FloatArray:
        """Return CT numbers of layers of the tissue map with their deposits, before any blur."""
        maps = (self.tissue.first, self.tissue.second, self.tissue.share)
        first, second, share = (np.ascontiguousarray(codes[..., layers].transpose(2, 0, 1)) for codes in maps)
        hu = np.empty(first.shape, np.float32)
        for index, layer in enumerate(range(layers.start, layers.stop)):
            table = table_at(self.acquisition.hu, self.acquisition.kv, float(self.diameter_cm[layer]))
            one = TissueMap(first[index], second[index], share[index], self.tissue.spacing)
            hu[index] = one.mix(table)
            grained = np.flatnonzero(self.fine_spread[first[index]])
            generator = np.random.Generator(np.random.SFC64((self.seed, 1, layer)))
            grain = generator.standard_normal(grained.size, np.float32)
            hu[index].reshape(-1)[grained] += self.fine_spread[first[index].ravel()[grained]] * grain
        hu += self.smooth_spread[first] * self.uneven.slices(layers)
        if self.calcium is not None and self.occupancy is not None:
            self._add_deposits(hu, self.calcium, self.occupancy, layers)
        return hu

    def _add_deposits(self, hu: FloatArray, calcium: FloatArray, occupancy: FloatArray, layers: slice) -> None:
        per_layer = self.tissue.first.shape[2] // calcium.shape[2]
        known = slice(layers.start // per_layer, -(-layers.stop // per_layer))
        filled, mineral = (np.ascontiguousarray(a[..., known].transpose(2, 0, 1)) for a in (occupancy, calcium))
        for index, layer in enumerate(range(layers.start, layers.stop)):
            at = layer // per_layer - known.start
            where = np.flatnonzero(filled[at])
            if where.size:
                slope = np.float32(hu_per_mg_ha(self.acquisition.kv, float(self.diameter_cm[layer])))
                share, flat = filled[at].ravel()[where], hu[index].reshape(-1)
                matrix = np.float32(self.acquisition.matrix_hu)
                flat[where] = (1 - share) * flat[where] + share * matrix + slope * mineral[at].ravel()[where]

    def _move(self, hu: FloatArray, start: int) -> None:
        motion = self.acquisition.motion
        if motion is None:
            return
        moved = slice(round(motion.start * self.shape[2]), round(motion.stop * self.shape[2]))
        for index in range(max(0, moved.start - start), min(len(hu), moved.stop - start)):
            shift = [mm / s for mm, s in zip(motion.shift_mm, self.spacing, strict=False)]
            twin = ndimage.shift(hu[index], shift, order=1, mode="nearest")
            hu[index] += np.float32(motion.share) * (twin - hu[index])


def _layers_per_slice(deposits: FloatArray | None, tissue: TissueMap, split_z: int) -> FloatArray | None:
    """Check that deposits lie on the tissue map's grid or on the scan's."""
    if deposits is None:
        return None
    x, y, layers = tissue.first.shape
    if deposits.shape not in ((x, y, layers), (x, y, layers // split_z)):
        raise ValueError(
            f"expected deposits of shape {(x, y, layers // split_z)} or {(x, y, layers)}, but got {deposits.shape}"
        )
    return deposits


def quantise(hu: FloatArray) -> NDArray[np.int16]:
    """Clip to the 12-bit range and round, as a scanner stores it."""
    return np.clip(np.rint(hu), HU_MIN, HU_MAX).astype(np.int16)
