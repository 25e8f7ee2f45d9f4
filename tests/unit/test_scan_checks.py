"""Checks of one scan: hand-made bodies with one fault each, and public scans that must pass."""

from __future__ import annotations

import json
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.checks.findings import Finding, raise_errors, warnings_of
from jdm_seg.checks.scan import check_scan
from jdm_seg.errors import InputError
from jdm_seg.inference.batch import predict_batch
from jdm_seg.volume import Volume, read_volume

SHAPE = (60, 56, 40)


def grid_of(shape=SHAPE):
    return np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")


def limb(noise=15.0):
    """A leg of 2 mm voxels in air: fat around muscle around a bone. HU, float."""
    x, y, _ = grid_of()
    radius = np.hypot(x, y)
    hu = np.full(SHAPE, -1000.0)
    hu[radius < 22] = -100
    hu[radius < 17] = 55
    hu[radius < 5] = 900
    return hu + np.random.default_rng(0).normal(0, noise, SHAPE)


def stir(fat=10.0):
    x, y, _ = grid_of()
    radius = np.hypot(x, y)
    signal = np.zeros(SHAPE)
    signal[radius < 22] = fat
    signal[(radius < 22) & (radius > 21)] = 60
    signal[radius < 14] = 90
    return 5 * np.abs(signal + np.random.default_rng(0).normal(0, 4, SHAPE))


def scan_of(values, dtype=np.int16, spacing=(2.0, 2.0, 2.0)):
    return Volume(np.asarray(values).astype(dtype), np.diag([*spacing, 1.0]), "sub-1")


def codes(volume, modality="ct", **options):
    return {finding.code: finding.severity for finding in check_scan(volume, modality, **options)}


def test_sound_scans_raise_nothing():
    assert codes(scan_of(limb())) == {}
    assert codes(scan_of(stir()), "stir") == {}


@pytest.mark.parametrize(
    ("values", "dtype", "code"),
    [
        (limb() + 1024, np.int16, "rescale_forgotten"),
        (limb() - 1024, np.int16, "rescaled_twice"),
        (np.clip((limb() + 160) / 400 * 255, 0, 255), np.uint8, "picture"),
        (np.clip((limb() + 1000) / 4000, 0, 1), np.float32, "normalised"),
        (limb() * 4, np.int16, "not_hu"),
        (np.clip(limb(), 0, 3071), np.int16, "not_hu"),
        (stir(), np.int16, "not_hu"),
        (np.clip(limb(), -1000, 100), np.int16, "cut_above"),
        (np.full(SHAPE, -1000), np.int16, "constant"),
        (limb() > 100, np.uint8, "mask_not_scan"),
        (np.random.default_rng(1).normal(-1000, 10, SHAPE), np.int16, "no_body"),
    ],
)
def test_what_cannot_be_measured_as_ct_is_refused(values, dtype, code):
    scan = scan_of(values, dtype)
    assert codes(scan)[code] == "error"
    with pytest.raises(InputError, match=r"^sub-1: expected "):
        raise_errors(check_scan(scan, "ct"))


@pytest.mark.parametrize(
    ("values", "dtype", "code"),
    [
        (limb(), np.int16, "ct_not_mr"),
        (np.random.default_rng(0).uniform(-3.14, 3.14, SHAPE), np.float32, "not_magnitude"),
        ((stir() - 200) / 200, np.float32, "not_magnitude"),
        (stir() > 50, np.uint8, "mask_not_scan"),
    ],
)
def test_what_cannot_be_measured_as_stir_is_refused(values, dtype, code):
    assert codes(scan_of(values, dtype), "stir")[code] == "error"


def test_nan_is_refused():
    values = limb().astype(np.float32)
    values[3, 4, 5] = np.nan
    assert codes(Volume(values, np.eye(4), "sub-1")) == {"not_finite": "error"}


def test_the_ringing_of_a_resampled_magnitude_image_is_no_phase():
    values = stir()
    values[values < 1] = -40
    assert "not_magnitude" not in codes(scan_of(values), "stir")


@pytest.mark.parametrize(
    ("values", "options", "code"),
    [
        (np.clip(limb(), -1000, 400), {}, "cut_above"),
        (np.clip(limb(), -200, 3071), {}, "cut_below"),
        (limb(noise=90), {}, "noisy"),
        (limb()[14:46, 12:44], {}, "body_cut"),
        (limb()[:, :, :3], {}, "few_slices"),
        (limb() + np.where(np.hypot(*grid_of()[:2]) > 22, 300, 0), {}, "air_offset"),
        (limb(), {"spacing": (2.0, 2.0, 6.0)}, "thick"),
        (limb(), {"spacing": (0.2, 0.2, 0.2)}, "size_implausible"),
    ],
)
def test_what_makes_a_result_worse_is_a_warning(values, options, code):
    scan = scan_of(values, **options)
    assert codes(scan)[code] == "warning"
    assert any(finding.found in text for finding in check_scan(scan, "ct") for text in warnings_of([finding]))


@pytest.mark.parametrize(("seed_hu", "size", "code"), [(3000, 5, "metal"), (300, 14, "contrast")])
def test_hints_are_information_only(seed_hu, size, code):
    values = limb()
    x, y, z = grid_of()
    values[(np.abs(x) < size) & (np.abs(y) < size) & (np.abs(z) < size + 4)] = seed_hu
    assert codes(scan_of(values))[code] == "info"


def test_padding_around_the_round_field_of_view_is_told_and_not_taken_for_values():
    values = limb()
    x, y, _ = grid_of()
    values[np.hypot(x, y) > 27] = -2048
    assert codes(scan_of(values)) == {"padding": "info"}


def test_bright_fat_under_the_skin_is_no_stir():
    found = codes(scan_of(stir(fat=300)), "stir")
    assert found["fat_bright"] == "warning"


def test_a_header_without_orientation_is_named(tmp_path):
    image = nib.Nifti1Image(limb().astype(np.int16), None)
    image.header.set_zooms((2, 2, 2))
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    assert codes(read_volume(tmp_path / "a.nii.gz"))["no_orientation"] == "warning"


def test_orientation_of_the_file_does_not_matter():
    scan = scan_of(limb(noise=90))
    flipped = Volume(scan.array[::-1].transpose(2, 0, 1), np.eye(4), "sub-1")
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], [0, 1, 2, 3]] = 2, -2, 2, 1
    affine[0, 3] = 2 * (SHAPE[0] - 1)
    flipped = Volume(flipped.array, affine, "sub-1")
    assert (flipped.to_canonical().array == scan.array).all()
    assert check_scan(flipped, "ct") == check_scan(scan, "ct")


def trunk():
    """A chest and belly in 4 mm voxels: lungs above, a thick liver on the right below, spine behind."""
    shape = (90, 60, 90)
    x, y, z = grid_of(shape)
    hu = np.full(shape, -1000.0)
    body = (x / 42) ** 2 + (y / 27) ** 2 < 1
    hu[body] = -90
    lungs = ((np.abs(x) - 17) / 13) ** 2 + (y / 20) ** 2 < 1
    hu[lungs & (z > 0)] = -850
    liver = ((x - 16) / 17) ** 2 + (y / 18) ** 2 + ((z + 14) / 13) ** 2 < 1
    hu[liver] = 60
    hu[(np.abs(x) < 5) & (np.abs(y + 17) < 5)] = 400
    return hu + np.random.default_rng(0).normal(0, 10, shape)


@pytest.mark.parametrize(
    ("axes", "words"),
    [((), None), ((0,), "left for right"), ((1,), "back to front"), ((0, 1), "back to front"), ((2,), "upside down")],
)
def test_a_mirrored_trunk_is_suspected(axes, words):
    scan = scan_of(np.flip(trunk(), axes), spacing=(4.0, 4.0, 4.0))
    found = [finding for finding in check_scan(scan, "ct") if finding.code == "orientation_suspected"]
    assert [words in finding.reason for finding in found] == ([] if words is None else [True])


def test_a_limb_raises_no_suspicion():
    assert "orientation_suspected" not in codes(scan_of(limb()[::-1]))


def test_a_whole_body_is_looked_at_in_little_memory():
    shape = (512, 512, 400)
    scan = Volume(np.zeros(shape, np.int16, order="F"), np.diag([0.98, 0.98, 3.0, 1.0]), "big")
    scan.array[...] = -1000
    scan.array[150:350, 180:330] = 50
    tracemalloc.start()
    check_scan(scan, "ct")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # the scan itself has 210e6 bytes


def test_a_batch_refuses_what_cannot_be_measured_and_warns_of_the_rest(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    (tmp_path / "scans").mkdir()
    for name, values in {"forgotten": limb() + 1024, "noisy": limb(noise=90), "sound": limb()}.items():
        nib.save(nib.Nifti1Image(values.astype(np.int16), affine), tmp_path / "scans" / f"{name}.nii.gz")
    result = predict_batch(tmp_path / "scans", tmp_path / "out", ThresholdSegmenter("ct"))
    assert {row["case_id"]: row["error"] for row in result.failed} == {
        "forgotten": "forgotten: expected CT numbers in HU, with air or fat below -50, found values from "
        f"{(limb() + 1024).astype(np.int16).min()} to {(limb() + 1024).astype(np.int16).max()}; "
        "apply the rescale intercept (usually -1024), or export the scan again."
    }

    def warned(name):
        warnings = json.loads((tmp_path / "out" / name / "burden.json").read_text())["warnings"]
        return any("noisier than any" in text for text in warnings)

    assert warned("noisy")
    assert not warned("sound")


def test_a_finding_reads_as_a_sentence():
    finding = Finding("sub-1", "warning", "thick", "Slices are thick", "3 mm", "7 mm", "use thinner ones")
    assert finding.sentence() == "Slices are thick: found 7 mm, expected 3 mm; use thinner ones."
    assert str(finding.error()) == "sub-1: expected 3 mm, found 7 mm; use thinner ones."
    assert warnings_of([finding]) == [finding.sentence()]


CT = ("ct/limbs/sts-001", "ct/limbs/sts-019", "ct/limbs_calcified/sts-028", "ct/trunk/4dlung-113", "ct/trunk/crlm-1006",
      "ct/reference/example_ct", "ct/reference/cta_pulmonary", "mr/other/tptbox-vert/sub-ct_label-22_ct")  # fmt: skip
MR = ("mr/stir/cc0-lspine_stir", "mr/other/cc0-lspine_t2", "mr/other/qmri-legs_calves", "ct/reference/example_mr_sm",
      "mr/other/tptbox-vert/sub-mri_label-6_T2w")  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("name", [*CT, *MR])
def test_real_scans_are_taken_for_what_they_are(real_data, name):
    path = real_data / f"{name}.nii.gz"
    if not path.is_file():
        pytest.skip(f"no {name}")
    own, other = ("ct", "stir") if name in CT else ("stir", "ct")
    scan = read_volume(path)
    assert "error" not in codes(scan, own).values()
    assert "error" in codes(scan, other).values()


@pytest.mark.real
@pytest.mark.parametrize(("name", "contrast"), [("crlm-1006", True), ("pancreas-cb-001", True), ("lidc-0314", False)])
def test_real_trunks_lie_right_and_their_mirror_images_do_not(real_data, name, contrast):
    scan = read_volume(real_data / "ct" / "trunk" / f"{name}.nii.gz").to_canonical()
    assert ("contrast" in codes(scan)) == contrast
    assert "orientation_suspected" not in codes(scan)
    assert "orientation_suspected" in codes(Volume(scan.array[::-1], scan.affine, "mirrored"))
