"""Volume and mass by integrated intensity, on balls that the scanner model blurs: the bars of the package."""

from __future__ import annotations

import numpy as np
import pytest

from jdm_seg.body_mask import outline_body
from jdm_seg.burden.density import _blurred_ellipsoid, estimate_contrast
from jdm_seg.burden.mass import MATRIX_HU, Contrast, Signal, mass_mg
from jdm_seg.lesions import label_lesions, measure_lesions
from jdm_seg.physics import HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.sharpness import estimate_sharpness
from jdm_seg.synthesis.anatomy.tissue import Tissue, TissueMap
from jdm_seg.synthesis.ct.acquisition import CtAcquisition, acquire_ct
from jdm_seg.volume import Grid

EXTENT_MM = (56.0, 56.0, 46.0)
LIMB_MM, MUSCLE_MM = 26.0, 22.0
VOLTAGES = ("70", "80", "100", "120", "140", "Sn100", "Sn150")
SLICES = ((1.0, 1.0, 1.0), (0.98, 0.98, 2.0), (0.9, 0.9, 3.0), (1.0, 1.0, 5.0))


KERNELS = {"soft 1.0": (1.0, 0.0, 12.0), "soft 1.6": (1.6, 0.0, 12.0), "sharp 0.7": (0.7, 0.7, 30.0),
           "sharp 0.9": (0.9, 1.0, 30.0), "sharp 1.1": (1.1, 1.5, 30.0)}  # fmt: skip
"""Width in mm, overshoot, noise in HU; the ends of what the synthesis draws."""


def ball_in_a_limb(diameter, spacing, kv, mg, seed, host=Tissue.MUSCLE, noise=8.0, fwhm=1.3, overshoot=0.0):
    """A ball of even density somewhere near the middle of a round limb.

    Returns the scan, the mask of voxels that are at least half ball, its true volume in mm³ and mass in mg.
    """
    rng = np.random.default_rng(seed)
    split = max(1, round(spacing[2]))
    shape = [int(extent / step) for extent, step in zip(EXTENT_MM, spacing, strict=True)]
    fine = (shape[0], shape[1], shape[2] * split)
    step = np.array([spacing[0], spacing[1], spacing[2] / split])
    x, y = ((np.arange(n) + 0.5) * s - 28 for n, s in zip(fine[:2], step[:2], strict=True))
    radius = np.hypot(x[:, None], y)
    plane = np.where(radius < MUSCLE_MM, host, np.where(radius < LIMB_MM, Tissue.FAT, Tissue.AIR)).astype(np.uint8)
    first = np.repeat(plane[:, :, None], fine[2], axis=2)
    tissue = TissueMap(first, first.copy(), np.zeros_like(first), tuple(step.tolist()))
    centre = np.array(fine) * step / 2 + rng.uniform(-0.5, 0.5, 3) * spacing
    parts = 5
    axes = [(np.arange(n * parts) + 0.5) * s / parts - c for n, s, c in zip(fine, step, centre, strict=True)]
    near = [slice(*(np.flatnonzero(np.abs(a) < diameter)[[0, -1]] // parts * parts + (0, parts))) for a in axes]
    inside = sum((a[n] ** 2).reshape([-1 if i == k else 1 for i in range(3)]) for k, (a, n) in
                 enumerate(zip(axes, near, strict=True))) < (diameter / 2) ** 2  # fmt: skip
    blocks = [size for n in inside.shape for size in (n // parts, parts)]
    occupancy = np.zeros(fine, np.float32)
    occupancy[tuple(slice(n.start // parts, n.stop // parts) for n in near)] = inside.reshape(blocks).mean(
        axis=(1, 3, 5), dtype=np.float32
    )
    bright = HU_PER_MG_HA[kv] / 1.42
    acquisition = CtAcquisition(
        kv=kv,
        psf_mm=(fwhm, fwhm, max(0.8 * fwhm, 0.9 * spacing[2])),
        noise_hu=noise,
        grain_mm=0.4,
        overshoot=overshoot,
        hu={"AIR": -1000.0, "FAT": -105.0, "MUSCLE": 55.0, "CORTEX": 1200 * bright},
        matrix_hu=MATRIX_HU,
        uneven=0.5,
    )
    image = acquire_ct(tissue, occupancy * np.float32(mg), occupancy, acquisition, rng, split_z=split)
    volume = np.pi / 6 * diameter**3
    share = occupancy.reshape(*shape, split).mean(axis=-1)
    return image, share >= 0.5, volume, volume * mg / 1000


def limb_diameter_cm():
    # fat of -105 HU around muscle of 55 HU, as water
    area = np.pi * (MUSCLE_MM**2 * 1.055 + (LIMB_MM**2 - MUSCLE_MM**2) * 0.895)
    return 2 * np.sqrt(area / np.pi) / 10


def measured(image, mask, spacing, kv):
    labels = label_lesions(mask, spacing)
    slope = hu_per_mg_ha(kv, limb_diameter_cm())
    grid = Grid(labels.shape, np.diag([*spacing, 1.0]))
    blur = estimate_sharpness(image, outline_body(image, spacing, "ct"), spacing)
    return measure_lesions(labels, grid, image=image, slope_hu_per_mg=slope, blur=blur)[0]


@pytest.mark.parametrize("spacing", SLICES, ids=lambda s: f"{s[2]:g} mm")
@pytest.mark.parametrize("kv", VOLTAGES)
def test_volume_within_5_and_mass_within_10_percent(kv, spacing):
    """From 5 mm, at every voltage and slice thickness; the volume by mask may be off by half."""
    for diameter, mg in ((5.0, 450.0), (8.0, 250.0)):
        ratios = []
        for seed in range(3):
            image, mask, volume, mass = ball_in_a_limb(diameter, spacing, kv, mg, seed)
            if not mask.any():
                mask = image > 0.5 * image[20:36, 20:36].max()
            lesion = measured(image, mask, spacing, kv)
            ratios.append((lesion.volume_integrated_mm3 / volume, lesion.mass_mg_ha / mass))
        assert np.mean(ratios, axis=0)[0] == pytest.approx(1.0, abs=0.05), diameter
        assert np.mean(ratios, axis=0)[1] == pytest.approx(1.0, abs=0.10), diameter


@pytest.mark.parametrize("spacing", SLICES, ids=lambda s: f"{s[2]:g} mm")
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel(kernel, spacing):
    """The same bars where the kernel is not the assumed one: it is read from the skin."""
    fwhm, overshoot, noise = KERNELS[kernel]
    for diameter, mg, kv in ((5.0, 450.0, "80"), (8.0, 250.0, "120")):
        ratios = []
        for seed in range(4):
            image, mask, volume, mass = ball_in_a_limb(
                diameter, spacing, kv, mg, seed, noise=noise, fwhm=fwhm, overshoot=overshoot
            )
            if not mask.any():
                mask = image > 0.5 * image[20:36, 20:36].max()
            lesion = measured(image, mask, spacing, kv)
            ratios.append((lesion.volume_integrated_mm3 / volume, lesion.mass_mg_ha / mass))
        assert np.mean(ratios, axis=0)[0] == pytest.approx(1.0, abs=0.055), diameter
        assert np.mean(ratios, axis=0)[1] == pytest.approx(1.0, abs=0.10), diameter


@pytest.mark.parametrize("spacing", SLICES, ids=lambda s: f"{s[2]:g} mm")
def test_mass_of_3_mm_deposits(spacing):
    """Dense ones within 10 % also in slices thicker than they are."""
    ratios = []
    for seed in range(6):
        image, _, _, mass = ball_in_a_limb(3.0, spacing, "120", 700.0, seed)
        lesion = measured(image, image > 150, spacing, "120")
        ratios.append(lesion.mass_mg_ha / mass)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.10)


@pytest.mark.parametrize("spacing", SLICES[::2], ids=lambda s: f"{s[2]:g} mm")
def test_fat_that_a_deposit_replaces_is_no_calcium(spacing):
    """250 mg HA/cm³ in fat: its water alone is 145 HU brighter than the fat, as 100 mg of calcium would be."""
    image, mask, volume, mass = ball_in_a_limb(8.0, spacing, "120", 250.0, 1, host=Tissue.FAT)
    lesion = measured(image, mask, spacing, "120")
    assert lesion.mass_mg_ha == pytest.approx(mass, rel=0.05)
    assert lesion.volume_integrated_mm3 == pytest.approx(volume, rel=0.05)
    assert lesion.density_mg_ha_cm3 == pytest.approx(250, rel=0.08)


def test_the_matrix_by_hand():
    # 100 voxels of 400 HU in fat of -100: a tenth of the 500 HU each ... 140 of them are matrix
    fat = Signal(50_000.0, -100.0, 1.0, Contrast(500.0, "core"))
    assert fat.mineral_hu() == pytest.approx(100 * (500 - 140))
    assert fat.volume_vox() == pytest.approx(100.0)
    assert mass_mg(fat, 2.0, 1.5) == pytest.approx(36_000 * 2 / 1000 / 1.5)
    muscle = Signal(50_000.0, 55.0, 0.0, Contrast(500.0, "core"))
    assert muscle.mineral_hu() == pytest.approx(50_000)
    assert Signal(-10.0, 55.0, 0.0, None).mineral_hu() == 0.0
    assert Signal(10.0, 55.0, 0.0, None).volume_vox() is None


class TestBasis:
    def signal_of(self, inside, hu=600.0):
        return np.where(inside, np.float32(hu), np.float32(0)), np.ones(inside.shape, np.float32)

    def test_core(self):
        x, y, z = np.ogrid[-20:21, -20:21, -20:21]
        inside = x**2 + y**2 + z**2 < 12**2
        excess, weight = self.signal_of(inside)
        found = estimate_contrast(excess, inside, weight, (1.0, 1.0, 1.0))
        assert found.basis == "core"
        assert found.hu == pytest.approx(600)

    def test_a_thin_sheet_follows_its_mask(self):
        inside = np.zeros((41, 41, 21), bool)
        inside[5:36, 5:36, 10] = True
        excess, weight = self.signal_of(inside, 200.0)
        assert estimate_contrast(excess, inside, weight, (1.0, 1.0, 1.0)).basis == "mask"

    def test_nothing_brighter(self):
        inside = np.ones((5, 5, 5), bool)
        assert (
            estimate_contrast(np.full((5, 5, 5), -3, np.float32), inside, np.ones((5, 5, 5), np.float32), (1, 1, 1))
            is None
        )


class TestTheTemplate:
    """Against points drawn inside the ellipsoid, each moved as the blur does, and counted in voxels."""

    @pytest.mark.parametrize("sigma", [0.5, 0.9])
    def test_a_turned_ellipsoid(self, sigma):
        rng = np.random.default_rng(0)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        axes = turn * np.array([4.0, 2.5, 1.5])
        centre = np.array([6.2, 7.9, 7.0])
        points = rng.normal(size=(2_000_000, 3))
        points *= (rng.random(len(points)) ** (1 / 3) / np.linalg.norm(points, axis=1))[:, None]
        points = centre + points @ axes.T + rng.normal(0, sigma, points.shape)
        steps = (1.0, 1.0, 1.5)
        edges = [(np.arange(n + 1) - 0.5) * step for n, step in zip((14, 16, 11), steps, strict=True)]
        expected = np.histogramdd(points, edges)[0] / len(points) / np.prod(steps)
        found = _blurred_ellipsoid(edges, centre, axes, [(1.0, np.full(3, sigma))], 12)
        assert np.abs(found - expected).max() < 0.03 * expected.max()
        assert found.sum() * np.prod(steps) == pytest.approx(expected.sum() * np.prod(steps), abs=1e-3)

    def test_parts_add_up(self):
        edges = [(np.arange(13) - 0.5)] * 3
        centre, axes = np.full(3, 5.5), np.diag([3.0, 2.0, 2.0])
        narrow, wide = np.full(3, 0.5), np.full(3, 0.9)
        both = _blurred_ellipsoid(edges, centre, axes, [(2.0, narrow), (-1.0, wide)], 10)
        one = [_blurred_ellipsoid(edges, centre, axes, [(1.0, sigmas)], 10) for sigmas in (narrow, wide)]
        assert np.allclose(both, 2 * one[0] - one[1], atol=1e-6)
