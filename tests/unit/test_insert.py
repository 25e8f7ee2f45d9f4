"""Insertion into finished scans: what changes, by how much, and that nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from jdm_seg.physics import hu_per_mg_ha
from jdm_seg.synthesis import blend
from jdm_seg.synthesis.calcinosis import Deposit, Priors, render_deposits
from jdm_seg.synthesis.ct import CtAcquisition
from jdm_seg.synthesis.fields import blur_reach
from jdm_seg.synthesis.host import build_host
from jdm_seg.synthesis.insert import (
    HOST_KEYS,
    IGNORE,
    SCAN_KEY,
    InsertCalcinosisd,
    estimate_stir_tissue,
    estimate_tissue,
    host_arrays,
    host_of_scan,
    insert_ct,
    insert_stir,
    sample_scan_blur,
)
from jdm_seg.synthesis.stir import sample_stir
from jdm_seg.synthesis.tissue import BONE, SOFT_TISSUE, Tissue
from jdm_seg.volume import read_volume

SPACING = (1.0, 1.0, 1.0)
THICK = (1.0, 1.0, 3.0)
CLINICAL = (1.0, 1.0, 5.0)
NOISE_HU = 12


def phantom_ct(spacing=SPACING, blur_mm=0.0):
    """Fat cylinder with a muscle core and a bone rod along z, as HU, 40 mm long."""
    x, y = np.meshgrid(np.arange(80) - 40, np.arange(80) - 40, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(round(40 / spacing[2]))
    hu = np.select([r < 6, r < 8, r < 25, r < 34], [30.0, 900.0, 55.0, -100.0], -1000.0)
    if blur_mm:
        hu = ndimage.gaussian_filter(hu, [blur_mm, blur_mm, 0])
    return np.rint(hu + np.random.default_rng(0).normal(0, NOISE_HU, hu.shape)).astype(np.int16)


def phantom_stir():
    """The same cylinder as STIR magnitudes: muscle 300, fat 40, noise 10."""
    x, y = np.meshgrid(np.arange(80) - 40, np.arange(80) - 40, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(24)
    signal = np.select([r < 25, r < 34], [300.0, 40.0], 0.0)
    rng = np.random.default_rng(0)
    return np.rint(np.hypot(signal + rng.normal(0, 10, r.shape), rng.normal(0, 10, r.shape))).astype(np.int16)


def deposit(**changes):
    base = Deposit("nodule", (40.0, 57.0, 20.0), radius=5, thickness=10, level=0, calcium=400, texture=0, seed=4)
    return replace(base, **changes)


def acquisition(**changes):
    return replace(CtAcquisition("120", (1.6, 1.6, 1.6), 20.0, 0.8, 0.0, {}, matrix_hu=20.0), **changes)


def block(tissue=Tissue.FAT, shape=(48, 48, 48)):
    """One tissue from side to side."""
    return build_host(np.full(shape, tissue, np.uint8), SPACING)


# --- what stays as it was ---


@pytest.mark.parametrize("spacing", [SPACING, THICK, CLINICAL])
def test_bone_and_air_and_what_no_calcium_reaches_stay_exactly_as_they_were(spacing):
    hu = phantom_ct(spacing)
    host = build_host(estimate_tissue(hu, spacing), spacing)
    # one abuts bone, one abuts the air, one lies free
    deposits = (
        deposit(centre=(40.0, 50.0, 20.0)),
        deposit(centre=(40.0, 72.0, 10.0)),
        deposit(centre=(58.0, 40.0, 28.0)),
    )
    calcinosis = render_deposits(deposits, host)
    setting = acquisition(psf_mm=(1.6, 1.6, max(1.6, spacing[2])), overshoot=0.8)
    result = insert_ct(hu, calcinosis, host, setting)
    changed = result != hu
    assert changed.sum() > 500 / spacing[2]
    assert not changed[~host.soft].any()
    # three standard deviations of the widest blur that is drawn, and its unsharp mask
    reach = 2.2 * blur_reach(setting.psf_mm) / spacing
    size = [2 * int(np.ceil(r)) + 1 for r in reach]
    near = ndimage.maximum_filter(calcinosis.occupancy, size) > 0
    assert not changed[~near].any()


def test_a_scan_without_deposits_is_bit_identical():
    hu = phantom_ct()
    host = build_host(estimate_tissue(hu, SPACING), SPACING)
    result = insert_ct(hu, render_deposits((), host), host, acquisition())
    assert result.dtype == hu.dtype
    assert (result == hu).all()


@pytest.mark.parametrize(("modality", "phantom"), [("ct", phantom_ct), ("stir", phantom_stir)])
def test_with_probability_0_the_transform_returns_the_image_as_it_was(modality, phantom):
    image = phantom()
    transform = InsertCalcinosisd(SPACING, probability=0, modality=modality, lookalikes=0)
    for seed in range(3):
        sample = transform.set_random_state(seed)({"image": image[None]})
        assert (sample["image"].numpy()[0] == image).all()
        assert not (sample["label"] == 1).any()


# --- what changes, and by how much ---


@pytest.mark.parametrize("kv", ["80", "120"])
def test_inside_a_deposit_the_scan_reads_its_calcium_and_keeps_its_noise(kv):
    rng = np.random.default_rng(1)
    host = block()
    hu = rng.normal(-100, NOISE_HU, host.tissue.shape).astype(np.float32)
    calcinosis = render_deposits((deposit(centre=(24.0, 24.0, 24.0), radius=12.0, calcium=300.0),), host)
    result = insert_ct(hu, calcinosis, host, acquisition(kv=kv), path_cm=15)
    core = ndimage.binary_erosion(calcinosis.occupancy == 1, iterations=3)
    assert core.sum() > 500
    assert result[core].mean() == pytest.approx(300 * hu_per_mg_ha(kv, 15) + 20, abs=2)
    assert result[core].std() == pytest.approx(NOISE_HU, rel=0.15)


def test_blur_moves_calcium_and_loses_none():
    """The change sums to slope x calcium less the tissue that was replaced, whatever the blur."""
    host = block()
    hu = np.full(host.tissue.shape, -100, np.float32)
    calcinosis = render_deposits((deposit(centre=(24.0, 23.0, 25.0), radius=4.0),), host)
    wanted = 400 * hu_per_mg_ha("120", 20) + 120
    for fwhm in (0.5, 2.0, 5.0):
        result = insert_ct(hu, calcinosis, host, acquisition(psf_mm=(fwhm, fwhm, fwhm)))
        assert (result - hu).sum() == pytest.approx(wanted * calcinosis.occupancy.sum(), rel=0.02)


def test_blur_is_the_scans_own(monkeypatch):
    """Against SciPy's filter on the whole grid."""
    monkeypatch.setattr(blend, "_BLUR_SPREAD", 0.0)
    host = block()
    hu = np.full(host.tissue.shape, 50, np.float32)
    calcinosis = render_deposits((deposit(centre=(24.0, 23.0, 25.0), radius=4.0),), host)
    result = insert_ct(hu, calcinosis, host, acquisition(psf_mm=(2.0, 2.0, 4.0)))
    added = hu_per_mg_ha("120", 20) * calcinosis.calcium - calcinosis.occupancy * (50 - 20)
    wanted = ndimage.gaussian_filter(added, np.array([2.0, 2.0, 4.0]) / 2.3548, truncate=6)
    np.testing.assert_allclose(result - hu, wanted, atol=0.01 * wanted.max())


def test_two_lesions_of_a_scan_are_not_equally_sharp():
    host = block()
    hu = np.full(host.tissue.shape, 50, np.float32)
    twins = tuple(deposit(centre=(24.0, 24.0, 24.0), seed=seed) for seed in range(40))
    peaks = []
    for twin in twins:
        calcinosis = render_deposits((replace(twin, radius=1.5),), host)
        around = np.minimum(calcinosis.occupancy, 1)
        peaks.append(insert_ct(hu, calcinosis, host, acquisition(psf_mm=(3.0,) * 3)).max() / around.max())
    assert np.std(peaks) / np.mean(peaks) > 0.08


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_the_type_is_kept_and_the_scale_of_12_bits_saturates(kind):
    host = block()
    hu = np.full(host.tissue.shape, 50, kind)
    solid = deposit(centre=(24.0, 24.0, 24.0), calcium=3000.0, radius=8.0)
    result = insert_ct(hu, render_deposits((solid,), host), host, acquisition(kv="80"))
    assert result.dtype == kind
    assert result.max() == 3071
    assert (result == 3071).sum() > 100


def test_the_background_is_the_mean_of_the_tissue_around_without_its_noise():
    hu = phantom_ct()
    tissue = estimate_tissue(hu, SPACING)
    near = blend.background_hu(hu, np.isin(tissue, SOFT_TISSUE), SPACING)
    muscle, fat = near[40, 40 + 17], near[40, 40 + 29]
    assert muscle.mean() == pytest.approx(55, abs=3)
    assert fat.mean() == pytest.approx(-100, abs=8)
    assert muscle.std() < NOISE_HU / 5


@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.4])
def test_the_blur_of_a_scan_is_measured_at_its_skin(sigma):
    hu = phantom_ct(blur_mm=sigma)
    measured = blend.estimate_blur(hu, estimate_tissue(hu, SPACING), SPACING)
    assert measured == pytest.approx(2.3548 * sigma, rel=0.25)


def test_blur_is_never_finer_than_the_voxels_a_scan_was_made_with():
    for seed in range(50):
        x, y, z = sample_scan_blur(np.random.default_rng(seed), (0.9, 0.9, 5.0)).psf_mm
        assert x == y
        assert x >= 0.8 * 0.9
        assert z >= 0.8 * 5


# --- STIR ---


def test_a_void_in_muscle_is_dark_but_never_darker_than_noise():
    signal = phantom_stir()
    tissue, levels = estimate_stir_tissue(signal, SPACING)
    assert levels == pytest.approx((300, 10), rel=0.1)
    host = build_host(tissue, SPACING)
    calcinosis = render_deposits((deposit(centre=(40.0, 52.0, 12.0), radius=6.0),), host)
    rng = np.random.default_rng(3)
    setting = replace(sample_stir(rng, calcinosis.deposits, 8.0), phenotypes=("void",))
    result = insert_stir(signal, calcinosis, host, setting, levels, rng)
    assert result.dtype == signal.dtype
    full = calcinosis.occupancy > 0.99
    # magnitudes of pure noise follow Rayleigh: their mean is 1.25 standard deviations
    assert result[full].mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.15)
    assert result[full].std() == pytest.approx(10 * np.sqrt(2 - np.pi / 2), rel=0.2)
    assert (result == signal)[calcinosis.occupancy == 0].all()


@pytest.mark.parametrize(("phenotype", "inside", "around"), [("void_rim", -1, 1), ("fluid", 1, 0)])
def test_fluid_is_bright_and_a_rim_surrounds_its_void(phenotype, inside, around):
    signal = phantom_stir()
    tissue, levels = estimate_stir_tissue(signal, SPACING)
    host = build_host(tissue, SPACING)
    calcinosis = render_deposits((deposit(centre=(40.0, 54.0, 12.0), radius=5.0),), host)
    rng = np.random.default_rng(3)
    setting = replace(sample_stir(rng, calcinosis.deposits, 8.0), phenotypes=(phenotype,), rim=3.0, fluid=4.0)
    result = insert_stir(signal, calcinosis, host, setting, levels, rng).astype(float)
    change = result - signal
    shell = ndimage.binary_dilation(calcinosis.occupancy > 0, iterations=2) & (calcinosis.occupancy == 0) & host.soft
    assert np.sign(change[calcinosis.occupancy > 0.99].mean()) == inside
    assert np.sign(np.round(change[shell].mean(), 3)) == around
    assert not change[~host.soft].any()


# --- the transform ---


@pytest.mark.parametrize(("modality", "phantom"), [("ct", phantom_ct), ("stir", phantom_stir)])
def test_a_patch_is_replayed_by_its_seed_with_what_was_measured_or_without(modality, phantom):
    image = phantom()
    measured = {"image": image[None], **host_arrays(image, SPACING, modality)}
    assert {*HOST_KEYS, SCAN_KEY} < set(measured)
    transform = InsertCalcinosisd(SPACING, probability=1, modality=modality)
    first = transform.set_random_state(5)(measured)
    second = transform.set_random_state(5)({"image": image[None]})
    assert (first["image"] == second["image"]).all()
    assert (first["label"] == second["label"]).all()
    other = transform.set_random_state(6)(measured)
    assert (other["image"] != first["image"]).any()
    assert (measured["image"][0] == image).all()


def test_labels_say_where_calcium_can_be_seen():
    image = phantom_ct()
    sample = {"image": image[None], **host_arrays(image, SPACING)}
    transform = InsertCalcinosisd(SPACING, probability=1, lookalikes=0).set_random_state(2)
    positives = 0
    for _ in range(12):
        result = transform(sample)
        change, label = result["image"].numpy()[0] - image, result["label"].numpy()[0]
        assert set(np.unique(label)) <= {0, 1, IGNORE}
        assert np.isin(sample["tissue"][0][label == 1], SOFT_TISSUE).all()
        positives += label.max() == 1
        if (label == 1).any():
            assert change[label == 1].mean() > 80
    assert positives >= 10


def test_a_deposit_that_drowns_is_ignored_and_not_taught():
    image = phantom_ct()
    sample = {"image": image[None], **host_arrays(image, SPACING)}
    faint = Priors(calcium=(5.0, 6.0), core_share=0.0, weights=(0, 0, 1.0, 0, 0, 0, 0), granular_share=0.0)
    transform = InsertCalcinosisd(SPACING, probability=1, lookalikes=0, priors=faint).set_random_state(0)
    labels = [transform(sample)["label"] for _ in range(5)]
    assert any((label == IGNORE).any() for label in labels)
    assert not any((label == 1).any() for label in labels)


# --- tissue of unlabelled scans ---


def test_tissue_is_told_apart_by_itself():
    middle = estimate_tissue(phantom_ct(), SPACING)[40, :, 20]
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


# --- real scans ---

LIMBS = ("001", "002", "004", "005", "008", "010", "011", "016")


def real_limb(folder, name, slices=14):
    scan = read_volume(folder / "ct" / "limbs" / f"sts-{name}.nii.gz").to_canonical()
    middle = scan.array.shape[2] // 2
    return np.ascontiguousarray(scan.array[:, :, middle - slices // 2 : middle + slices // 2]), scan.spacing


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "modality"),
    [
        ("ct/limbs/sts-009.nii.gz", "ct"),
        ("ct/trunk/crlm-1006.nii.gz", "ct"),
        ("mr/stir/cc0-lspine_stir.nii.gz", "stir"),
    ],
    ids=["limb 3 mm", "trunk 5 mm", "spine STIR"],
)
def test_in_real_scans_soft_tissue_alone_changes(real_data, file, modality):
    scan = read_volume(real_data / file).to_canonical()
    keep = tuple(
        slice(max(0, n // 2 - half), n // 2 + half) for n, half in zip(scan.array.shape, (100, 100, 8), strict=True)
    )
    image = np.ascontiguousarray(scan.array[keep])
    sample = {"image": image[None], **host_arrays(image, scan.spacing, modality)}
    transform = InsertCalcinosisd(scan.spacing, probability=1, modality=modality, lookalikes=0).set_random_state(1)
    soft = np.isin(sample["tissue"][0], SOFT_TISSUE)
    seen = 0
    for _ in range(3):
        result = transform(sample)
        changed = result["image"].numpy()[0] != image
        assert not changed[~soft].any()
        seen += int((result["label"] == 1).sum())
    assert seen > 20
    if modality == "ct":
        assert np.isin(sample["tissue"][0], (*BONE, Tissue.DENSE))[image > 600].mean() > 0.95


@pytest.mark.real
def test_bone_is_found_in_real_limbs(real_data):
    for name in ("001", "009", "016"):
        hu, spacing = real_limb(real_data, name)
        tissue = estimate_tissue(hu, spacing)
        assert (tissue[hu > 600] == Tissue.CORTEX).mean() > 0.9
        assert (tissue == Tissue.DENSE).mean() < 0.01


def spots_of(host, rng, count):
    """Lumps of 2 to 5 mm radius that lie in one tissue, apart from one another."""
    size = [2 * int(np.ceil(7 / s)) + 1 for s in host.spacing[:2]] + [3]
    pure = [ndimage.minimum_filter((host.tissue == code).view(np.uint8), size) for code in (Tissue.FAT, Tissue.MUSCLE)]
    centres, deposits = np.zeros((0, 3)), []
    for voxel in rng.permutation(np.argwhere(pure[0] | pure[1]))[:2000]:
        at = (voxel + 0.5) * host.spacing
        if len(deposits) < count and (np.linalg.norm(centres - at, axis=1) > 16).all():
            centres = np.vstack([centres, at])
            deposits.append(deposit(centre=tuple(at), radius=float(rng.uniform(2, 5)), seed=int(rng.integers(2**31))))
    return tuple(deposits)


def features(part, inside):
    """What gives an edit away: a step, another noise, another grain, inside a lump, at its border and around it."""
    plane = np.ones((3, 3, 1), bool)
    wide = ndimage.binary_dilation(inside, plane)
    outside = ndimage.binary_dilation(inside, plane, 3) & ~wide
    border = wide & ~ndimage.binary_erosion(inside, plane)
    rough = np.abs(part - ndimage.uniform_filter(part, (3, 3, 1)))
    slope = np.hypot(*np.gradient(part, axis=(0, 1)))
    row = [part[inside].mean() - part[outside].mean()]
    for where in (inside, border, outside):
        row += [part[where].std(), rough[where].mean(), slope[where].mean(), slope[where].max()]
    return [*row, *(np.array(row[1:9]) / (row[9:13] * 2))]


def null_lesions(rendered, background, setting):
    """Give deposits just the calcium that makes each read as the tissue around it does on average."""
    calcium = np.zeros_like(rendered.calcium)
    for number, box in enumerate(rendered.boxes, start=1):
        share = rendered.occupancy[box] * (rendered.dominant[box] == number)
        level = np.average(background[box], weights=share)
        calcium[box] += share * (level - setting.matrix_hu) / hu_per_mg_ha(setting.kv, 20.0)
    return replace(rendered, calcium=calcium)


@pytest.mark.real
def test_inserted_lesions_have_no_seam(real_data):
    """Insertion must not be what gives a lesion away: one as bright as its surroundings cannot be found.

    A classifier tells such lesions from untouched places of the same tissue, cross-validated by scan. Where the
    background keeps its noise, so that insertion wipes it out, it succeeds: the test can fail.
    """
    rows = {"as it is": [], "noise wiped out": []}
    truth, groups = [], []
    for group, name in enumerate(LIMBS):
        rng = np.random.default_rng(group)
        hu, spacing = real_limb(real_data, name, slices=10)
        host = host_of_scan(hu, spacing)
        spots = render_deposits(spots_of(host, rng, 50), host)
        touched = rng.random(len(spots.deposits)) < 0.5
        lesions = render_deposits(tuple(d for d, t in zip(spots.deposits, touched, strict=True) if t), host)
        setting = sample_scan_blur(rng, spacing, blend.estimate_blur(hu, host.tissue, spacing))
        smooth = blend.background_hu(hu, host.soft, spacing)
        wiped = replace(setting, psf_mm=(0.3, 0.3, 0.3), overshoot=0.0)
        images = {
            "as it is": insert_ct(hu, null_lesions(lesions, smooth, setting), host, setting, background=smooth),
            "noise wiped out": insert_ct(hu, null_lesions(lesions, hu, wiped), host, wiped, background=hu),
        }
        for number, (x, y, z) in enumerate(spots.boxes, start=1):
            box = (slice(max(0, x.start - 5), x.stop + 5), slice(max(0, y.start - 5), y.stop + 5), z)
            inside = (spots.dominant[box] == number) & (spots.occupancy[box] >= 0.5)
            for kind, image in images.items():
                rows[kind].append(features(image[box].astype(np.float32), inside))
        truth += touched.tolist()
        groups += [group] * len(touched)
    model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=6, min_samples_leaf=15, random_state=0)
    auc = {}
    for kind, table in rows.items():
        score = cross_val_predict(model, table, truth, groups=groups, cv=GroupKFold(4), method="predict_proba")
        auc[kind] = roc_auc_score(truth, score[:, 1])
    print(auc, len(truth)); assert len(truth) > 200
    assert auc["as it is"] <= 0.60
    assert auc["noise wiped out"] >= 0.80
