"""Insertion into finished scans: physics, what stays untouched, what a network is taught, and whether seams show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from jdm_seg.physics import HU_MAX, hu_per_mg_ha
from jdm_seg.synthesis.anatomy.host import Host, build_host
from jdm_seg.synthesis.anatomy.tissue import BONE, Tissue, is_soft
from jdm_seg.synthesis.blend import background_hu, estimate_blur, insert_overlays
from jdm_seg.synthesis.ct.acquisition import CtAcquisition
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis, Deposit, Priors, render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.lookalikes import LookAlike
from jdm_seg.synthesis.deposits.overlay import render_lookalike
from jdm_seg.synthesis.estimate import estimate_stir_tissue, estimate_tissue
from jdm_seg.synthesis.insert import (
    HOST_KEYS,
    IGNORE,
    SCAN_KEY,
    InsertCalcinosisd,
    host_arrays,
    host_of_scan,
    insert_ct,
    insert_stir,
    sample_scan_blur,
)
from jdm_seg.synthesis.stir.acquisition import sample_stir
from jdm_seg.volume import read_volume

SPACING = (1.0, 1.0, 1.0)


def deposit(**changes):
    base = Deposit("nodule", (20.0, 20.0, 20.0), radius=6, thickness=2, level=0, calcium=400, texture=0, seed=4)
    return replace(base, **changes)


def acquisition(**changes):
    base = CtAcquisition("120", (1.2, 1.2, 1.2), 20.0, 0.8, 0.0, {}, matrix_hu=15.0)
    return replace(base, **changes)


def uniform(tissue=Tissue.FAT, shape=(40, 40, 40), spacing=SPACING):
    far = np.full(shape, 50, np.float32)
    return Host(np.full(shape, tissue, np.uint8), spacing, far, far, far)


def phantom_ct(noise=12):
    """Fat cylinder with a muscle core and a bone rod, as HU."""
    x, y = np.meshgrid(np.arange(80) - 40, np.arange(80) - 40, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(40)
    hu = np.select([r < 6, r < 8, r < 25, r < 34], [30, 900, 55, -100], -1000).astype(np.int16)
    return hu + np.random.default_rng(0).normal(0, noise, hu.shape).astype(np.int16)


# --- tissue of unlabelled scans ---


def test_tissue_is_told_apart_by_itself():
    tissue = estimate_tissue(phantom_ct(), SPACING)
    middle = tissue[40, :, 20]
    assert middle[40] == Tissue.CORTEX  # marrow enclosed by cortex counts as bone
    assert middle[40 + 15] == Tissue.MUSCLE
    assert middle[40 + 29] == Tissue.FAT
    assert middle[40 + 33] == Tissue.SKIN
    assert middle[2] == Tissue.AIR


def test_nothing_is_placed_on_the_table():
    hu = np.full((100, 100, 60), -1000, np.int16)
    hu[:, 20:24] = -50  # a padded table top, thin and long
    x, y = np.meshgrid(np.arange(100) - 50, np.arange(100) - 60, indexing="ij")
    hu[np.hypot(x, y) < 30] = 40
    tissue = estimate_tissue(hu, (2.0, 2.0, 3.0))
    assert (tissue[:, 20:24] == Tissue.AIR).all()
    assert (tissue[50, 60] == Tissue.MUSCLE).all()


def phantom_trunk():
    """An elliptic trunk: lungs, heart, spine, gas in gut, an enhanced kidney; a spot in an artery, one in the wall."""
    x, y, z = np.meshgrid(np.arange(160) - 80, np.arange(120) - 60, np.arange(60), indexing="ij")
    x, y = 2.0 * x, 2.0 * y
    inside = (x / 140) ** 2 + (y / 95) ** 2
    hu = np.select([inside < 0.75, inside < 1], [50, -100], -1000)
    upper = z >= 30
    for side in (-1, 1):
        hu[upper & (((x - side * 65) / 42) ** 2 + (y / 55) ** 2 < 1)] = -850
    hu[upper & (np.hypot(x - 65, y) < 5)] = 40  # a vessel in the lung
    hu[~upper & (np.hypot(x, y - 20) < 12)] = -950
    hu[~upper & (np.hypot(x - 60, y + 20) < 22)] = 210
    hu[(np.hypot(x + 60, y + 20) < 6) & (z > 8) & (z < 12)] = 220
    hu[(np.hypot(x + 60, y - 70) < 6) & (z > 8) & (z < 12)] = 230
    spine = np.hypot(x, y + 60)
    hu[spine < 20] = 180
    hu[(spine < 20) & (spine > 15)] = 600
    return hu.astype(np.int16), upper


def test_a_trunk_is_wall_around_organs():
    hu, upper = phantom_trunk()
    tissue = estimate_tissue(hu, (2.0, 2.0, 3.0))
    assert (tissue[upper & (hu == -850)] == Tissue.LUNG).mean() > 0.9
    assert (tissue[(~upper) & (hu == -950)] == Tissue.GAS).mean() > 0.7
    assert (tissue[hu == 600] == Tissue.CORTEX).mean() > 0.99
    assert (tissue[hu == 210] == Tissue.ORGAN).mean() > 0.8  # contrast medium: no bone, and a negative
    assert (tissue[hu == 220] == Tissue.ORGAN).all()  # an artery's wall: calcium, and a negative
    assert (tissue[hu == 230] == Tissue.DENSE).all()  # in the wall of the trunk nobody knows what it is
    assert tissue[112, 60, 45] == Tissue.ORGAN  # the vessel in the lung
    assert tissue[80, 60, 45] == Tissue.ORGAN  # between the lungs
    assert tissue[80, 60, 10] == Tissue.ORGAN
    for place in ((80, 98, 10), (80, 17, 45), (16, 60, 20)):
        assert tissue[place] in (Tissue.FAT, Tissue.MUSCLE), place


def test_what_the_skull_encloses_is_no_place_for_deposits():
    x, y, z = np.meshgrid(np.arange(60) - 30, np.arange(70) - 35, np.arange(30), indexing="ij")
    radius = np.hypot(x / 24, y / 30)
    hu = np.select([radius < 0.75, radius < 0.88, radius < 1], [35, 900, 50], -1000)
    hu[(np.hypot(x - 5, y) < 3) & (z > 10) & (z < 15)] = 210  # calcium of the choroid plexus
    tissue = estimate_tissue(hu.astype(np.int16), (3.0, 3.0, 3.0))
    assert (tissue[radius < 0.65] == Tissue.ORGAN).all()
    assert (tissue[hu == 210] == Tissue.ORGAN).all()
    assert (tissue[hu == 900] == Tissue.CORTEX).all()
    assert np.isin(tissue[hu == 50], (Tissue.SKIN, Tissue.MUSCLE, Tissue.CORTEX)).all()


def test_the_gap_between_legs_is_outside():
    """Enclosed by skin in its upper slices, open below: air, and neither gas nor a sign of a trunk."""
    x, y, z = np.meshgrid(np.arange(150) - 75, np.arange(90) - 45, np.arange(40), indexing="ij")
    hu = np.full(x.shape, -1000, np.int16)
    for side in (-1, 1):
        hu[np.hypot(x - side * 38, y) < 30] = 50
    hu[(np.abs(x) < 40) & (np.abs(np.abs(y) - 26) < 6) & (z > 25)] = 50  # front and back close above
    assert hu[75, 45, 35] == -1000
    tissue = estimate_tissue(hu, (1.0, 1.0, 3.0))
    assert tissue[75, 45, 35] == Tissue.AIR
    assert not np.isin(tissue, (Tissue.ORGAN, Tissue.LUNG)).any()


def test_a_ring_of_bone_is_not_filled():
    """Pelvis and sacrum close a ring in some slices; what it holds is no marrow."""
    x, y = np.meshgrid(np.arange(140) - 70, np.arange(140) - 70, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(12)
    hu = np.select([r < 35, r < 40, r < 65], [50, 700, 50], -1000).astype(np.int16)
    tissue = estimate_tissue(hu, (1.5, 1.5, 3.0))
    assert tissue[70, 70, 6] == Tissue.ORGAN
    assert tissue[70 + 37, 70, 6] == Tissue.CORTEX


@pytest.mark.parametrize("fwhm", [1.0, 1.6, 2.2])
def test_the_blur_of_a_scan_is_measured_at_the_skin(fwhm):
    fine, step = 4, 0.98
    axis = (np.arange(160 * fine) + 0.5) / fine * step - 80 * step
    r = np.hypot(axis[:, None], 1.3 * axis)
    image = np.select([r < 45, r < 58, r < 60], [50, -100, 30], -1000).astype(np.float32)
    image = ndimage.gaussian_filter(image, fwhm / 2.3548 / step * fine).reshape(160, fine, 160, fine).mean(axis=(1, 3))
    noise = np.random.default_rng(0).normal(0, 15, (160, 160, 24))
    hu = np.clip(image[..., None] + noise, -1024, 3071).astype(np.int16)
    measured = estimate_blur(hu, estimate_tissue(hu, (step, step, 3.0)), (step, step, 3.0))
    assert measured == pytest.approx(fwhm, rel=0.15)


def test_no_skin_no_blur():
    assert estimate_blur(np.full((20, 20, 20), 40, np.int16), np.full((20, 20, 20), Tissue.MUSCLE), SPACING) is None


def test_the_background_is_the_soft_tissue_around_without_noise_and_without_bone():
    hu = phantom_ct()
    host = build_host(estimate_tissue(hu, SPACING), SPACING)
    background = background_hu(hu, host.soft, SPACING)
    assert background[40 + 16, 40, 20] == pytest.approx(55, abs=4)
    assert background[40, 40 + 10, 20] == pytest.approx(55, abs=8)  # beside bone, and not raised by it
    assert background[40 + 30, 40, 20] == pytest.approx(-100, abs=8)


# --- CT ---


@pytest.mark.parametrize(("host_hu", "tissue"), [(-100, Tissue.FAT), (55, Tissue.MUSCLE)])
@pytest.mark.parametrize("path_cm", [10.0, 30.0])
def test_a_large_deposit_reads_matrix_plus_calcium_whatever_it_replaces(host_hu, tissue, path_cm):
    """HU = HU_background (1 - v) + v HU_matrix + slope c; by hand 15 + 400 slope where v is 1."""
    host = uniform(tissue)
    hu = np.full(host.tissue.shape, host_hu, np.int16)
    result = insert_ct(hu, render_deposits((deposit(radius=10),), host), host, acquisition(), path_cm=path_cm)
    assert result[20, 20, 20] == pytest.approx(15 + 400 * hu_per_mg_ha("120", path_cm), abs=2)
    assert result.dtype == hu.dtype


@pytest.mark.parametrize("overshoot", [0.0, 0.8])
def test_blur_and_overshoot_keep_the_mass(overshoot):
    host = uniform(Tissue.MUSCLE)
    hu = np.full(host.tissue.shape, 55, np.float32)
    calcinosis = render_deposits((deposit(radius=5),), host)
    added = insert_ct(hu, calcinosis, host, acquisition(overshoot=overshoot)) - hu
    expected = 1.42 * calcinosis.calcium.sum() - calcinosis.occupancy.sum() * (55 - 15)
    assert added.sum() == pytest.approx(expected, rel=0.01)
    assert (added.min() < -5) == (overshoot > 0)  # a dark rim of 5 to 15 % of the edge
    assert added.min() > -0.2 * added.max()


@pytest.mark.parametrize(
    ("diameter", "peak", "above_130", "tolerance"),
    [(2, 427, 1.11, 0.12), (3, 689, 1.39, 0.1), (5, 799, 1.34, 0.1), (10, 800, 1.20, 0.1)],
)
def test_spheres_bloom_as_computed(diameter, peak, above_130, tolerance):
    """800 HU in fat of -90 HU, 1 mm voxels, blur of 1.0 to 1.2 mm: peak and volume over 130 HU, computed independently.

    The balls are counted on 8 x 8 x 8 parts of each voxel, so that insertion alone is tested.
    """
    host = uniform()
    hu = np.full(host.tissue.shape, -90, np.float32)
    rng, peaks, volumes = np.random.default_rng(0), [], []
    for _ in range(60 if diameter < 5 else 15):
        share = counted_ball(20 + rng.random(3), diameter / 2)
        calcinosis = Calcinosis(share, share * np.float32((800 - 15) / 1.42), (share > 0).astype(np.uint16), ())
        result = insert_ct(hu, calcinosis, host, acquisition(psf_mm=(1.1, 1.1, 1.1)))
        peaks.append(result.max())
        volumes.append((result >= 130).sum() / (np.pi / 6 * diameter**3))
    assert np.mean(peaks) == pytest.approx(peak, rel=tolerance)
    assert np.mean(volumes) == pytest.approx(above_130, rel=tolerance)


def counted_ball(centre, radius, parts=8):
    low, high = np.floor(centre - radius - 1).astype(int), np.ceil(centre + radius + 1).astype(int)
    axes = [(np.arange(a * parts, b * parts) + 0.5) / parts - c for a, b, c in zip(low, high, centre, strict=True)]
    inside = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 < radius**2
    x, y, z = high - low
    share = np.zeros((40, 40, 40), np.float32)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    share[box] = inside.reshape(x, parts, y, parts, z, parts).mean(axis=(1, 3, 5))
    return share


def test_bone_air_and_untouched_voxels_stay_exactly_as_they_were():
    hu = phantom_ct()
    host = build_host(estimate_tissue(hu, SPACING), SPACING)
    deposits = (deposit(centre=(40.0, 62.0, 20.0)), deposit(centre=(47.0, 47.0, 12.0), radius=5))
    calcinosis = render_deposits(deposits, host)
    result = insert_ct(hu, calcinosis, host, acquisition())
    changed = result != hu
    assert changed.sum() > 300
    assert not changed[~host.soft].any()
    assert not changed[ndimage.distance_transform_edt(calcinosis.occupancy == 0) > 6].any()
    assert (result[calcinosis.occupancy == 1] > 400).mean() > 0.9
    nothing = render_deposits((), host)
    assert (insert_ct(hu, nothing, host, acquisition()) == hu).all()


def test_the_scans_own_noise_stays_underneath():
    rng = np.random.default_rng(0)
    host = uniform(Tissue.MUSCLE)
    noise = rng.normal(0, 20, host.tissue.shape)
    calcinosis = render_deposits((deposit(radius=9),), host)
    inside = calcinosis.occupancy == 1
    result = insert_ct((55 + noise).astype(np.float32), calcinosis, host, acquisition())
    clean = insert_ct(np.full(noise.shape, 55, np.float32), calcinosis, host, acquisition())
    left = (result - clean)[inside]
    assert np.corrcoef(left, noise[inside])[0, 1] > 0.97
    assert left.std() == pytest.approx(20, rel=0.1)


def test_ct_numbers_are_clipped_and_whole():
    host = uniform()
    hu = np.full(host.tissue.shape, -100, np.int16)
    result = insert_ct(hu, render_deposits((deposit(radius=9, calcium=3100),), host), host, acquisition(kv="80"))
    assert result.max() == HU_MAX
    assert result.dtype == np.int16


def test_a_calcinosis_made_by_hand_needs_no_boxes():
    host = uniform()
    whole = render_deposits((deposit(),), host)
    bare = Calcinosis(whole.occupancy, whole.calcium, whole.dominant, ())
    hu = np.full(host.tissue.shape, -100, np.float32)
    assert insert_ct(hu, bare, host, acquisition()).max() > 300


def test_blur_is_never_much_finer_than_the_scan():
    rng = np.random.default_rng(0)
    drawn = [sample_scan_blur(rng, (0.9, 0.9, 5.0)) for _ in range(100)]
    assert min(a.psf_mm[0] for a in drawn) > 0.8
    assert min(a.psf_mm[2] for a in drawn) >= 4
    measured = [sample_scan_blur(rng, (0.9, 0.9, 1.0), 1.4).psf_mm[0] for _ in range(100)]
    assert np.mean(measured) == pytest.approx(1.43, rel=0.05)


def test_a_metal_clip_saturates_and_spares_bone():
    hu = phantom_ct()
    host = build_host(estimate_tissue(hu, SPACING), SPACING)
    clip = LookAlike(
        "clip", (50.0, 40.0, 20.0), 2.5, 2.5, 12.0, (0.0, 0.0, 1.0), 1.0, (0.0, 0.0, 0.0), 0.0, {"METAL": 8000.0}, 0
    )
    overlay = render_lookalike(clip, host)
    result = insert_overlays(hu, [(overlay, clip.hu)], host, acquisition(), background_hu(hu, host.soft, SPACING))
    assert result.max() == HU_MAX
    assert (result == hu)[np.isin(host.tissue, BONE)].all()


# --- the transform ---


def sample(noise=12):
    hu = phantom_ct(noise).astype(np.float32)
    return {"image": hu[None], "acquired_spacing": (1.0, 1.0, 1.0), **host_arrays(hu, SPACING)}


def run(transform, data, seed):
    transform.set_random_state(seed)
    return transform(data)


def test_a_patch_gets_deposits_and_their_label():
    data = sample()
    before = data["image"].copy()
    transform = InsertCalcinosisd(SPACING, probability=1.0, lookalikes=0.0)
    results = [run(transform, data, seed) for seed in range(8)]
    assert (data["image"] == before).all()  # the cached sample stays
    ones = np.zeros(0)
    for result in results:
        assert set(np.unique(result["label"])) <= {0, 1, IGNORE}
        assert result["image"].shape == result["label"].shape == before.shape
        added = result["image"].numpy() - before
        ones = np.append(ones, added[result["label"].numpy() == 1])
    assert ones.size > 500
    assert ones.mean() > 80
    again = run(transform, data, 3)
    assert (again["image"] == results[3]["image"]).all()
    assert (again["label"] == results[3]["label"]).all()


def test_a_share_of_patches_stays_negative_and_bit_identical():
    data = sample()
    transform = InsertCalcinosisd(SPACING, probability=0.0, lookalikes=0.0)
    result = run(transform, data, 0)
    assert (result["image"].numpy() == data["image"]).all()
    assert not (result["label"] == 1).any()
    half = InsertCalcinosisd(SPACING, probability=0.5, lookalikes=0.0)
    changed = [bool((run(half, data, seed)["image"].numpy() != data["image"]).any()) for seed in range(40)]
    assert 8 < sum(changed) < 32


def test_lookalikes_change_the_image_and_teach_nothing_but_background():
    data = sample()
    transform = InsertCalcinosisd(SPACING, probability=0.0, lookalikes=1.0)
    changed = ignored = 0
    for seed in range(30):
        result = run(transform, data, seed)
        label = result["label"].numpy()
        assert not (label == 1).any()
        changed += bool((result["image"].numpy() != data["image"]).any())
        ignored += bool((label == IGNORE).any())
    assert changed > 20
    assert 0 < ignored < 15  # nodes and granulomas


def test_a_patch_measures_its_host_where_nobody_did():
    hu = phantom_ct().astype(np.float32)
    result = run(InsertCalcinosisd(SPACING, probability=1.0), {"image": hu[None]}, 1)
    assert (result["image"].numpy() != hu).any()


def test_host_arrays_hold_every_key_on_the_scans_grid():
    arrays = host_arrays(phantom_ct(), SPACING)
    assert set(arrays) == {*HOST_KEYS, SCAN_KEY}
    assert {arrays[key].shape for key in HOST_KEYS} == {(1, 80, 80, 40)}
    host = host_of_scan(phantom_ct(), SPACING)
    assert (arrays["depth_mm"][0] == host.depth_mm).all()
    assert host.depth_mm[0, 0, 0] == 0


def test_a_faint_deposit_is_ignored_and_not_taught():
    data = sample()
    faint = Priors(calcium=(20.0, 25.0), core_share=0.0)
    label = run(InsertCalcinosisd(SPACING, probability=1.0, priors=faint, lookalikes=0.0), data, 2)["label"]
    assert not (label == 1).any()
    assert (label == IGNORE).any()


# --- STIR ---


def phantom_stir(sigma=8.0):
    """Magnitudes: muscle 200, suppressed fat 30, bright skin, Rician noise."""
    x, y = np.meshgrid(np.arange(90) - 45, np.arange(90) - 45, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(50)
    clean = np.select([r < 22, r < 36, r < 39], [200, 30, 150], 0.0)
    rng = np.random.default_rng(0)
    noisy = np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape))
    return noisy.astype(np.int16)


def test_tissue_is_told_apart_on_stir():
    signal = phantom_stir()
    tissue, (muscle, noise) = estimate_stir_tissue(signal, SPACING)
    assert tissue[45, 45, 25] == Tissue.MUSCLE
    assert tissue[45 + 29, 45, 25] == Tissue.FAT
    assert (tissue[45 + 36 : 45 + 43, 45, 25] == Tissue.SKIN).any()
    assert tissue[1, 1, 25] == Tissue.AIR
    assert muscle == pytest.approx(200, rel=0.08)
    assert noise == pytest.approx(8, rel=0.15)


def test_the_border_of_a_stir_scan_is_no_skin():
    """Planes of zeros around what was scanned: depth goes on into them, and the noise is found without air."""
    rng = np.random.default_rng(0)
    signal = np.zeros((60, 60, 40), np.int16)
    signal[10:-10] = np.hypot(200 + rng.normal(0, 10, (40, 60, 40)), rng.normal(0, 10, (40, 60, 40)))
    host = host_of_scan(signal, SPACING, "stir")
    assert host.depth_mm[12, 30, 20] > 20
    assert (host.tissue[:10] == Tissue.AIR).all()
    assert estimate_stir_tissue(signal, SPACING)[1][1] == pytest.approx(10, rel=0.15)
    assert estimate_stir_tissue(np.zeros((9, 9, 9), np.int16), SPACING)[1] == (0.0, 0.0)


@pytest.mark.parametrize(("phenotype", "sign"), [("void", -1), ("void_rim", -1), ("fluid", 1)])
def test_phenotypes_show_in_muscle_and_noise_has_a_floor(phenotype, sign):
    signal = phantom_stir()
    host = host_of_scan(signal, SPACING, "stir")
    calcinosis = render_deposits((deposit(centre=(45.0, 45.0, 25.0), radius=8),), host)
    rng = np.random.default_rng(1)
    drawn = sample_stir(rng, calcinosis.deposits, 10.0)
    sharp = replace(drawn.readout, matrix=(1.0, 1.0), filtered=False)
    setting = replace(drawn, phenotypes=(phenotype,), readout=sharp)
    result = insert_stir(signal, calcinosis, host, setting, (200.0, 8.0), rng)
    inside = calcinosis.occupancy > 0.999
    assert sign * (result[inside].mean() - 200) > 100
    if sign < 0:  # Rayleigh noise: mean 1.253 and standard deviation 0.655 of its strength
        assert result[inside].mean() == pytest.approx(1.253 * 8, rel=0.12)
        assert result[inside].std() == pytest.approx(0.655 * 8, rel=0.2)
    far = ndimage.distance_transform_edt(calcinosis.occupancy == 0) > 12
    assert (result == signal)[far].all()
    rim = ndimage.binary_dilation(calcinosis.occupancy > 0, iterations=1) & (calcinosis.occupancy == 0)
    assert (result[rim].mean() > 240) == (phenotype == "void_rim")
    assert result.dtype == signal.dtype
    assert result.min() >= 0


def test_a_deposit_is_as_blurred_as_the_read_out_leaves_it():
    """Constant muscle without noise: along the phase axis the change has no frequency that was not acquired."""
    signal = np.full((64, 64, 24), 200.0, np.float32)
    tissue = np.full(signal.shape, Tissue.MUSCLE, np.uint8)
    host = Host(tissue, SPACING, *np.full((2, *signal.shape), 20.0, np.float32))
    calcinosis = render_deposits((deposit(centre=(32.0, 32.0, 12.0), radius=6),), host)
    drawn = sample_stir(np.random.default_rng(0), calcinosis.deposits, 10.0, slice_axis=2)
    changes = []
    for share in (0.5, 1.0):
        readout = replace(drawn.readout, phase_axis=0, matrix=(share, 1.0), filtered=False)
        setting = replace(drawn, phenotypes=("fluid",), readout=readout)
        changes.append(insert_stir(signal, calcinosis, host, setting, (200.0, 0.0), np.random.default_rng(1)) - signal)
    beyond, before = (np.abs(np.fft.fft(change, axis=0))[17:48] ** 2 for change in changes)  # half of 64 acquired: 16
    assert beyond.sum() < 0.02 * before.sum()
    assert changes[0][32, 32, 12] == pytest.approx(changes[1][32, 32, 12], rel=0.15)


def test_the_transform_works_on_stir_and_does_not_ask_for_what_cannot_be_seen():
    signal = phantom_stir().astype(np.float32)
    data = {"image": signal[None], **host_arrays(signal, SPACING, "stir")}
    transform = InsertCalcinosisd(SPACING, probability=1.0, modality="stir")
    seen = ignored = 0
    for seed in range(10):
        result = run(transform, data, seed)
        label = result["label"].numpy()
        added = result["image"].numpy() - data["image"]
        assert (added[label == 0] == 0).mean() > 0.7
        if (label == 1).any():
            assert np.abs(added[label == 1]).mean() > 12
        seen += bool((label == 1).any())
        ignored += bool((label == IGNORE).any())
    assert seen > 4
    assert ignored > 0  # voids in suppressed fat


# --- real scans ---


def scan_of(real_data, name):
    return read_volume(real_data / "ct" / f"{name}.nii.gz").to_canonical()


@pytest.mark.real
@pytest.mark.parametrize("name", ["limbs/sts-001", "limbs/sts-009", "limbs/sts-016", "trunk/crlm-1006"])
def test_insertion_in_real_scans(real_data, name):
    """Bone is found where it is, and deposits change soft tissue alone; 3 mm and 5 mm slices."""
    scan = scan_of(real_data, name)
    host = host_of_scan(scan.array, scan.spacing)
    limb = name.startswith("limbs")
    assert np.isin(host.tissue[scan.array > 600], BONE).mean() > (0.9 if limb else 0.8)
    if limb:
        assert (host.tissue == Tissue.DENSE).mean() < 0.01
        assert not np.isin(host.tissue, (Tissue.LUNG, Tissue.ORGAN)).any()
    rng = np.random.default_rng(2)
    calcinosis = render_deposits(sample_deposits(host, rng), host)
    measured = estimate_blur(scan.array, host.tissue, scan.spacing)
    assert 0.6 < measured < 2.5
    result = insert_ct(scan.array, calcinosis, host, sample_scan_blur(rng, scan.spacing, measured))
    assert (result == scan.array)[~host.soft].all()
    assert calcinosis.label.any()
    assert (result[calcinosis.occupancy > 0.99] > scan.array[calcinosis.occupancy > 0.99]).mean() > 0.9


@pytest.mark.real
def test_a_real_chest_is_wall_lung_and_organs(real_data):
    scan = scan_of(real_data, "trunk/lungfcp-0001")
    tissue = estimate_tissue(scan.array, scan.spacing)
    body = tissue != Tissue.AIR
    assert 0.1 < (tissue[body] == Tissue.LUNG).mean() < 0.5
    assert (tissue[body] == Tissue.ORGAN).mean() > 0.03
    assert (tissue[body] == Tissue.MUSCLE).mean() > 0.1
    assert (scan.array[tissue == Tissue.FAT].astype(float) < 30).mean() > 0.95


@pytest.mark.real
@pytest.mark.parametrize(
    ("organ", "codes", "soft"),
    [
        ("liver", (5,), (0.0, 0.2)),
        ("spleen", (1,), (0.0, 0.25)),
        ("kidneys", (2, 3), (0.0, 0.01)),
        ("gluteus maximus", (80, 81), (0.7, 1.0)),
    ],
)
def test_organs_are_no_place_for_deposits_as_another_program_marked_them(real_data, organ, codes, soft):
    """The marks are TotalSegmentator's, of its own test scan; before the subcutis was traced, 0.47 of the liver was."""
    scan = scan_of(real_data, "reference/example_ct")
    marks = scan_of(real_data, "reference/example_seg_fast_force_split").array
    there = np.isin(marks, codes)
    low, high = soft
    assert low <= is_soft(estimate_tissue(scan.array, scan.spacing)[there]).mean() <= high, organ


# the seam test: can a classifier tell where something was put in?


def border_features(hu, centre, radius, angle, spacing):
    """Local statistics at a lesion's border: an axial patch of 9 x 9 voxels, split along the border's normal."""
    direction = np.array([np.cos(angle), np.sin(angle)])
    at = np.round(np.asarray(centre) / spacing - 0.5 + [*(radius * direction / spacing[:2]), 0]).astype(int)
    patch = hu[at[0] - 4 : at[0] + 5, at[1] - 4 : at[1] + 5, at[2]].astype(np.float32)
    offset = np.arange(-4, 5)
    along = offset[:, None] * direction[0] + offset * direction[1]
    inner, outer, border = patch[along < -1], patch[along > 1], patch[np.abs(along) <= 1.5]
    gx, gy = np.gradient(patch)
    normal, across = gx * direction[0] + gy * direction[1], gx * direction[1] - gy * direction[0]
    curved = np.abs(ndimage.laplace(patch))
    return [
        inner.mean() - outer.mean(), inner.std(), outer.std(), border.std(), inner.std() - outer.std(),
        border.mean() - patch.mean(), np.abs(normal).mean(), np.abs(across).mean(),
        np.abs(normal[np.abs(along) <= 1.5]).mean(), normal[np.abs(along) <= 1.5].mean(),
        curved.mean(), curved[np.abs(along) <= 1.5].mean(), patch.std(), np.ptp(patch),
    ]  # fmt: skip


def seam_auc(scans, paste):
    """Cross-validated by scan: places where ``paste`` put a null lesion against untouched ones of the same muscle."""
    rows, truth, groups = [], [], []
    for group, (hu, host) in enumerate(scans):
        rng = np.random.default_rng(group)
        inside = host.soft & (host.muscle_mm < -9) & (host.tissue == Tissue.MUSCLE)
        margin = [12, 12, 3]
        core = np.zeros_like(inside)
        core[tuple(slice(m, -m) for m in margin)] = True
        places = np.argwhere(inside & core)
        for number in range(120):
            centre = (places[rng.integers(len(places))] + rng.random(3)) * host.spacing
            radius, angle, null = rng.uniform(3, 5.5), rng.uniform(0, 2 * np.pi), number % 2 == 0
            image = paste(hu, host, tuple(centre.tolist()), float(radius), number) if null else hu
            rows.append(border_features(image, centre, radius, angle, np.asarray(host.spacing)))
            truth.append(null)
            groups.append(group)
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, min_samples_leaf=15, random_state=0)
    folds = GroupKFold(len(scans))
    score = cross_val_predict(model, np.array(rows), truth, groups=groups, cv=folds, method="predict_proba")[:, 1]
    return roc_auc_score(truth, score)


def null_lesion(hu, host, centre, radius, seed):
    """As much calcium as makes a lesion of the muscle's own brightness, through the whole machinery."""
    setting = sample_scan_blur(np.random.default_rng(seed), host.spacing, 1.3)
    index = tuple(int(c / s) for c, s in zip(centre, host.spacing, strict=True))
    near = tuple(slice(max(0, i - 12), i + 13) for i in index)
    muscle = float(hu[near][host.tissue[near] == Tissue.MUSCLE].mean())
    calcium = (muscle - setting.matrix_hu) / hu_per_mg_ha(setting.kv)
    lesion = deposit(centre=centre, radius=radius, calcium=max(calcium, 0.0), texture=0.2, seed=seed)
    return insert_ct(hu, render_deposits((lesion,), host), host, setting)


def hard_paste(hu, host, centre, radius, seed):
    """What must not happen: the same brightness, without the scan's noise and without blur."""
    result = hu.copy()
    filled = render_deposits((deposit(centre=centre, radius=radius, seed=seed),), host).label == 1
    result[filled] = np.rint(hu[filled].mean())
    return result


@pytest.fixture(scope="module")
def muscles(real_data):
    scans = []
    for name in ("sts-001", "sts-009", "sts-011", "sts-016", "sts-022", "sts-027"):
        scan = scan_of(real_data, f"limbs/{name}")
        third = scan.array.shape[2] // 3
        hu = np.ascontiguousarray(scan.array[..., third : 2 * third])
        scans.append((hu, host_of_scan(hu, scan.spacing)))
    return scans


@pytest.mark.real
@pytest.mark.slow
def test_seams_of_inserted_lesions_cannot_be_found(muscles):
    assert seam_auc(muscles, null_lesion) <= 0.60


@pytest.mark.real
@pytest.mark.slow
def test_seams_of_pasted_lesions_can_be_found(muscles):
    assert seam_auc(muscles, hard_paste) >= 0.8
