"""The threshold baseline, and the data set that nnU-Net is trained on: what others are compared with."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jdm_seg.baseline import ThresholdSegmenter, ThresholdSettings, segment_ct, segment_stir, threshold_hu
from jdm_seg.cases import Case, Manifest, read_manifest, write_manifest
from jdm_seg.errors import InputError
from jdm_seg.inference.batch import predict_batch
from jdm_seg.inference.prediction import Segmenter
from jdm_seg.nnunet import write_nnunet
from jdm_seg.volume import Volume, write_volume

SPACING = (1.0, 1.0, 2.0)
SHAPE = (110, 110, 60)


def limb(noise=8.0, seed=0):
    """Muscle around a bone of 12 mL of cortex, with a nodule, a mass of 3 mL, a speck of noise and a table."""
    x, y, z = np.ogrid[:110, :110, :60]
    hu = np.full(SHAPE, -1000.0)
    hu[np.broadcast_to((x - 55) ** 2 + (y - 60) ** 2 < 44**2, SHAPE)] = 55.0
    radius = np.sqrt((x - 55) ** 2 + (y - 60) ** 2) + 0 * z
    hu[radius < 11] = 20.0
    hu[(radius < 11) & (radius > 7)] = 1200.0
    nodule, mass = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    nodule[80:85, 60:65, 30:33] = True
    mass[20:36, 52:66, 20:27] = True
    hu[nodule], hu[mass] = 300.0, 500.0
    hu[90, 60, 10] = 400.0
    hu[5:105, 4:7, :] = 300.0
    return hu + np.random.default_rng(seed).normal(0, noise, SHAPE), nodule, mass


class TestCt:
    def test_threshold(self):
        hu, _, _ = limb(noise=8.0)
        assert threshold_hu(hu, SPACING, kv=120, noise_sd=5) == 130
        assert threshold_hu(hu, SPACING, kv=80, noise_sd=5) == 177  # Gräni et al. 2018
        noisy, _, _ = limb(noise=40.0)
        assert threshold_hu(noisy, SPACING, kv=120, noise_sd=5) == pytest.approx(55 + 5 * 40, rel=0.1)

    def test_bone_goes_and_deposits_stay(self):
        hu, nodule, mass = limb()
        found = segment_ct(hu, SPACING, kv=120)
        assert_array_equal(found, nodule | mass)

    def test_a_deposit_on_bone_is_lost(self):
        """What connected bone removal cannot do, and the reason for a better method."""
        hu, nodule, _ = limb()
        hu[66:80, 60:65, 30:33] = 300.0
        assert not segment_ct(hu, SPACING, kv=120)[nodule].any()

    def test_a_short_piece_of_bone_alone_is_not_known_as_bone(self):
        hu, _, _ = limb()
        hu[:, :, 8:] = 55
        settings = ThresholdSettings(bone_ml=10.0)
        assert segment_ct(hu, SPACING, settings=settings)[55, 51, 4]
        assert not segment_ct(hu, SPACING, settings=ThresholdSettings(bone_ml=1.0))[55, 51, 4]

    def test_noise_makes_few_voxels(self):
        hu, nodule, mass = limb(noise=30.0, seed=3)
        found = segment_ct(hu, SPACING, kv=120)
        assert not (found & ~(nodule | mass)).any()
        assert found[mass].mean() > 0.95

    def test_air_and_nothing(self):
        assert not segment_ct(np.full((20, 20, 20), -1000), (1, 1, 1)).any()


class TestStir:
    def test_a_void_in_muscle(self):
        x, y = np.ogrid[:80, :80]
        signal = np.zeros((80, 80, 24))
        signal[np.hypot(x - 40, y - 40) < 36] = 100.0
        void = np.zeros(signal.shape, bool)
        void[50:54, 38:42, 10:14] = True
        signal[void] = 4.0
        rng = np.random.default_rng(0)
        signal = np.hypot(signal + rng.normal(0, 5, signal.shape), rng.normal(0, 5, signal.shape))
        found = segment_stir(signal, (1.5, 1.5, 5.0))
        assert found[void].mean() > 0.9
        assert not found[~void].any()


class TestBatch:
    def test_runs_like_any_model(self, tmp_path):
        hu, nodule, mass = limb()
        turned = Volume(hu.astype(np.int16)[::-1], np.diag([-1.0, 1.0, 2.0, 1.0]))
        write_volume(tmp_path / "scans" / "leg.nii.gz", turned.array, turned)
        segmenter: Segmenter = ThresholdSegmenter("ct", kv="120")
        result = predict_batch(tmp_path / "scans", tmp_path / "out", segmenter, kv="120")
        assert [row["status"] for row in result.rows] == ["done"]
        mask = np.asarray(nib.load(tmp_path / "out" / "leg" / "mask.nii.gz").dataobj)
        assert_array_equal(mask > 0, (nodule | mass)[::-1])
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert (run["model"], run["threshold_kv"], run["noise_sd"]) == ("threshold", "120", 5.0)
        with (tmp_path / "out" / "leg" / "lesions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 2
        assert rows[0]["mean_probability"] == ""
        again = predict_batch(tmp_path / "scans", tmp_path / "out", segmenter, kv="120")
        assert [row["status"] for row in again.rows] == ["kept"]

    def test_messages(self):
        with pytest.raises(InputError, match="--kv: expected a tube voltage"):
            ThresholdSegmenter("ct", kv="fast")
        with pytest.raises(InputError, match="air or fat below -50"):
            ThresholdSegmenter("ct")(Volume(np.arange(27).reshape(3, 3, 3), np.eye(4), "mr"))


class TestNnunet:
    @pytest.fixture
    def manifest(self, tmp_path):
        """Four cases on an oblique grid; one scan is not gzipped, one label numbers its lesions."""
        rng = np.random.default_rng(0)
        cases = {"training": [], "validation": [], "testing": []}
        affine = np.diag([0.9, 0.9, 2.0, 1.0])
        affine[:3, :3] = np.array([[0.99, -0.14, 0], [0.14, 0.99, 0], [0, 0, 1]]) @ affine[:3, :3]
        for number, split in enumerate(("training", "training", "validation", "testing")):
            ending = ".nii" if number == 1 else ".nii.gz"
            image, label = tmp_path / "data" / f"case-{number}{ending}", tmp_path / "data" / f"label-{number}.nii.gz"
            scan = Volume(rng.integers(-900, 900, (8, 7, 6)).astype(np.int16), affine)
            write_volume(image, scan.array, scan)
            write_volume(label, (rng.random((8, 7, 6)) < 0.2).astype(np.uint16) * (1 + number), scan)
            cases[split].append(Case(f"case-{number}", f"s{number}", "ct", image, label))
        return Manifest({split: tuple(members) for split, members in cases.items()})

    def test_follows_the_format(self, manifest, tmp_path):
        """The rules of nnU-Net's documentation/dataset_format.md, one by one."""
        folder = write_nnunet(manifest, tmp_path / "raw", dataset_id=42)
        assert folder.name == "Dataset042_Calcinosis"
        facts = json.loads((folder / "dataset.json").read_text())
        assert facts["labels"] == {"background": 0, "calcinosis": 1}
        assert sorted(facts["labels"].values()) == list(range(len(facts["labels"])))  # consecutive, 0 is background
        assert facts["channel_names"] == {"0": "CT"}
        images = sorted(path.name for path in (folder / "imagesTr").iterdir())
        labels = sorted(path.name for path in (folder / "labelsTr").iterdir())
        assert facts["numTraining"] == len(labels) == 3
        ending = facts["file_ending"]
        assert all(re.fullmatch(rf".+_\d{{4}}{re.escape(ending)}", name) for name in images)
        assert [name.replace("_0000", "") for name in images] == labels
        assert [path.name for path in (folder / "imagesTs").iterdir()] == ["case-3_0000.nii.gz"]
        for case in manifest.all:
            side = "Ts" if case in manifest.cases["testing"] else "Tr"
            image = nib.load(folder / f"images{side}" / f"{case.case_id}_0000.nii.gz")
            label = nib.load(folder / f"labels{side}" / f"{case.case_id}.nii.gz")
            assert image.shape == label.shape
            assert_array_equal(image.affine, label.affine)
            assert_array_equal(np.asarray(image.dataobj), np.asarray(nib.load(case.image).dataobj))
            values = np.asarray(label.dataobj)
            assert label.get_data_dtype() == np.uint8
            assert_array_equal(values, np.asarray(nib.load(case.label).dataobj) > 0)
        splits = json.loads((folder / "splits_final.json").read_text())
        assert splits == [{"train": ["case-0", "case-1"], "val": ["case-2"]}]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dataset_id": 0}, "1 to 999"),
            ({"name": "a b"}, "letters, digits and hyphens"),
        ],
    )
    def test_arguments(self, manifest, tmp_path, change, message):
        with pytest.raises(InputError, match=message):
            write_nnunet(manifest, tmp_path / "raw", **change)

    def test_what_cannot_be_written(self, manifest, tmp_path):
        first = manifest.cases["training"][0]
        for cases, message in (
            ({"testing": (first,)}, "at least one training case"),
            ({"training": (Case("a", "a", "ct", first.image),)}, "a: expected a label"),
            ({"training": (first, Case("a", "a", "stir", first.image, first.label))}, "one modality"),
        ):
            with pytest.raises(InputError, match=message):
                write_nnunet(Manifest(cases), tmp_path / "raw")
        write_nnunet(manifest, tmp_path / "raw")
        with pytest.raises(InputError, match="a new folder"):
            write_nnunet(manifest, tmp_path / "raw")

    def test_nothing_is_left_of_a_failed_attempt(self, manifest, tmp_path):
        other = Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4))
        write_volume(manifest.cases["testing"][0].label, other.array, other)
        with pytest.raises(InputError, match="grid"):
            write_nnunet(manifest, tmp_path / "raw")
        assert list((tmp_path / "raw").iterdir()) == []

    def test_script(self, manifest, tmp_path):
        write_manifest(tmp_path / "data" / "datalist.json", manifest)
        assert read_manifest(tmp_path / "data") == manifest
        script = Path(__file__).parents[2] / "scripts" / "write_nnunet.py"
        command = [sys.executable, str(script), str(tmp_path / "data"), str(tmp_path / "raw"), "--id", "7"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "raw" / "Dataset007_Calcinosis" / "dataset.json").is_file()
        again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (again.returncode, again.stderr[:6]) == (1, "error:")
