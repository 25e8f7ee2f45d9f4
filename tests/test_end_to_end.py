"""The whole way on a small network: learn, go on, export, segment, measure; the same numbers every time."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from jdm_seg.config import compose
from jdm_seg.data import CaseDataModule
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.evaluate import evaluate_folders
from jdm_seg.export.parity import LOGIT_TOLERANCE
from jdm_seg.export.run import ExportOptions, export_run
from jdm_seg.inference.batch import predict_batch
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.model_folder import open_model, read_spec
from jdm_seg.module import SegmentationModule
from jdm_seg.report import write_report
from jdm_seg.train import load_module, train
from jdm_seg.volume import Volume, read_volume, write_volume

SMALL = [
    "network.channels=[16,32]",
    "data.patch_size=[32,32,32]",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.progress=false",
    "data.batch_size=2",
]


def write_phantom(folder: Path) -> None:
    """Two cases: a cylinder of soft tissue with a bone rod, and bright deposits in it on one side."""
    rng = np.random.default_rng(0)
    datalist: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    x, y, z = np.meshgrid(*(np.arange(n) for n in (48, 48, 40)), indexing="ij")
    affine = np.diag([-1.5, -1.5, 1.5, 1.0])  # LPS, as most CT is stored
    for number, split in enumerate(datalist):
        r = np.hypot(x - 24, y - 24)
        hu = np.select([r < 4, r < 20], [700, 50], -1000).astype(float)
        label = np.zeros(hu.shape, np.uint8)
        for cx, cy, cz in ((34, 26, 10 + number), (14, 18, 28), (24, 37, 20 - number)):
            label[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < 12] = 1
        hu[label == 1] = 500
        hu += rng.normal(0, 15, hu.shape)
        for kind, array in (("images", hu.astype(np.int16)), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / kind / f"p{number}.nii.gz")
        datalist[split].append({"image": f"images/p{number}.nii.gz", "label": f"labels/p{number}.nii.gz"})
    (folder / "datalist.json").write_text(json.dumps({"modality": "ct", **datalist}))


def run_config(folder: Path, run: Path, *overrides: str):
    kept = [f"data.root={folder}", f"data.cache={folder / 'cache'}", f"run_dir={run}"]
    return compose(["data=labelled", *kept, *SMALL, *overrides])


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder)
    return folder


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory) -> Path:
    """A network that has learnt the phantom."""
    folder = tmp_path_factory.mktemp("runs") / "learnt"
    config = run_config(
        phantom, folder, "data.patches_per_epoch=60", "trainer.max_epochs=5", "optimizer.lr=1e-2", "augment=none"
    )
    return train(config, folder)


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    return export_run(run, tmp_path_factory.mktemp("models") / "learnt")


@pytest.fixture(scope="module")
def results(model, phantom, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert not predict_batch(phantom / "images", out, ScanPredictor(model)).failed
    return out


def losses_of(run: Path) -> list[float]:
    rows = [row for part in sorted(run.glob("metrics*.csv"), reverse=True) for row in csv.DictReader(part.open())]
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


def test_a_run_folder_tells_what_made_it(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "run.json", "splits.json", "checkpoints", "metrics.csv"} <= names
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["steps"] == 5 * 30
    assert facts["seed"] == 0
    assert facts["packages"]["torch"]
    assert json.loads((run / "splits.json").read_text()) == {"training": ["p0"], "validation": ["p1"]}


def test_a_checkpoint_is_plain_values(run):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["preprocess"]["spacing"] == [1.5, 1.5, 1.5]
    assert not load_module(run / "checkpoints" / "best.ckpt").training


def test_what_was_learnt_is_found_on_the_scans_own_grid(results, phantom, tmp_path):
    summary = evaluate_folders(results, phantom / "labels", tmp_path / "evaluation")
    assert summary["figures"]["dice"]["mean"] > 0.9
    assert summary["figures"]["lesion_f1"]["mean"] == 1.0
    for case in ("p0", "p1"):
        mask, scan = nib.load(results / case / "mask.nii.gz"), nib.load(phantom / "images" / f"{case}.nii.gz")
        assert (mask.affine == scan.affine).all()
        assert mask.shape == scan.shape
        assert mask.get_data_dtype() == np.uint8
        lesions = np.asarray(nib.load(results / case / "lesions.nii.gz").dataobj)
        assert ((lesions > 0) == (np.asarray(mask.dataobj) > 0)).all()
        rows = list(csv.DictReader((results / case / "lesions.csv").open()))
        assert len(rows) == lesions.max() == 3
        assert all(0.5 < float(row["mean_probability"]) <= 1 for row in rows)


def test_a_reoriented_scan_gives_the_same_lesions(model, phantom):
    scan = read_volume(phantom / "images" / "p1.nii.gz")
    predictor = ScanPredictor(model)
    plain = predictor(scan).mask
    turned = Volume(
        scan.array.transpose(2, 0, 1)[::-1], scan.affine[:, [2, 0, 1, 3]] @ flip(scan.array.shape[2]), "turned"
    )
    assert (predictor(turned).mask == plain.transpose(2, 0, 1)[::-1]).mean() > 0.9999


def flip(extent: int):
    matrix = np.eye(4)
    matrix[0, 0], matrix[0, 3] = -1, extent - 1
    return matrix


def test_engines_agree_on_a_whole_scan(model, phantom):
    scan = read_volume(phantom / "images" / "p1.nii.gz")
    masks = {
        e: ScanPredictor(model, PredictSettings(engine=e))(scan).mask for e in ("torch", "onnxruntime", "openvino")
    }
    assert masks["torch"].sum() > 50
    for engine in ("onnxruntime", "openvino"):
        assert (masks[engine] == masks["torch"]).mean() >= 0.9999
    for engine in masks:
        assert model.spec.parity["engines"][engine]["f32"]["max_logit_difference"] <= LOGIT_TOLERANCE
        assert model.spec.parity["engines"][engine]["f32"]["lesion_f1"] == 1


AFTER_TWO_ENGINES = """
import gc, os, signal, sys
from jdm_seg.inference.engines import build_engine
from jdm_seg.model_folder import open_model

engines = [build_engine(open_model(sys.argv[1]), "openvino") for _ in range(2)]
while engines:
    del engines[0]
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_a_signal_after_several_engines_is_heard(model):
    """OpenVINO runtimes that end in the order they began leave an unmapped signal stack behind."""
    command = [sys.executable, "-c", AFTER_TWO_ENGINES, str(model.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, ["heard", "alive"]), done.stderr


def test_a_model_folder_is_all_that_inference_needs(model, tmp_path, phantom):
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("model.onnx", "model.json", "MODEL_CARD.md"):
        (copy / name).write_bytes((model.path / name).read_bytes())
    scan = read_volume(phantom / "images" / "p0.nii.gz")
    assert ScanPredictor(open_model(copy))(scan).mask.any()
    assert "not a medical device" in (copy / "MODEL_CARD.md").read_text()


def test_a_higher_threshold_finds_less(model, phantom):
    scan = read_volume(phantom / "images" / "p1.nii.gz")
    sizes = [ScanPredictor(model, PredictSettings(threshold=t))(scan).mask.sum() for t in (0.1, 0.5, 0.9)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_a_batch_goes_on_past_bad_scans_and_keeps_what_is_complete(model, phantom, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    good = (phantom / "images" / "p0.nii.gz").read_bytes()
    (scans / "a.nii.gz").write_bytes(good)
    (scans / "b.nii.gz").write_text("a letter")
    (scans / "c.nii.gz").write_bytes(good[: len(good) // 2])
    write_volume(scans / "d.nii.gz", np.full((9, 9, 9), 7, np.int16), Volume(np.zeros((9, 9, 9)), np.eye(4)))
    write_volume(scans / "e.nii.gz", np.random.default_rng(0).integers(0, 900, (9, 9, 9)).astype(np.int16),
                 Volume(np.zeros((9, 9, 9)), np.eye(4)))  # fmt: skip
    predictor = ScanPredictor(model)
    first = predict_batch(scans, out, predictor)
    assert [row["status"] for row in first.rows] == ["done", "failed", "failed", "failed", "failed"]
    reasons = [row["error"] for row in first.failed]
    assert "expected a single-file NIfTI" in reasons[0]
    assert "expected" in reasons[1]
    assert "one value, 7, everywhere" in reasons[2]
    assert "expected CT numbers in HU" in reasons[3]
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == ["a", "cohort.csv", "run.json"]
    stamp = (out / "a" / "mask.nii.gz").stat().st_mtime_ns
    (scans / "b.nii.gz").write_bytes(good)
    second = predict_batch(scans, out, predictor)
    assert [row["status"] for row in second.rows] == ["kept", "done", "failed", "failed", "failed"]
    assert (out / "a" / "mask.nii.gz").stat().st_mtime_ns == stamp
    rows = list(csv.DictReader((out / "cohort.csv").open()))
    assert rows[0]["volume_ml"] == rows[1]["volume_ml"] != ""
    facts = json.loads((out / "run.json").read_text())
    assert facts["failed"] == 3
    assert {"read", "preprocess", "network", "back_to_scan", "measure", "write"} <= set(facts["stage_seconds"]["b"])


def test_a_folder_that_is_no_result_is_never_replaced(model, phantom, tmp_path):
    (tmp_path / "p0").mkdir()
    (tmp_path / "p0" / "IM0001.dcm").write_text("the only copy")
    (row,) = predict_batch(phantom / "images" / "p0.nii.gz", tmp_path, ScanPredictor(model), overwrite=True).failed
    assert "p0: expected a new folder for the case" in row["error"]
    assert (tmp_path / "p0" / "IM0001.dcm").read_text() == "the only copy"


def test_other_settings_redo_a_case_and_the_cohort_keeps_the_others(model, phantom, tmp_path):
    predict_batch(phantom / "images", tmp_path, ScanPredictor(model))
    one = phantom / "images" / "p1.nii.gz"
    assert predict_batch(one, tmp_path, ScanPredictor(model)).rows[0]["status"] == "kept"
    other = ScanPredictor(model, PredictSettings(threshold=0.1))
    assert predict_batch(one, tmp_path, other).rows[0]["status"] == "done"
    (tmp_path / "p1" / "burden.json").write_text("")  # as a broken disk leaves it
    assert predict_batch(one, tmp_path, other).rows[0]["status"] == "done"
    rows = list(csv.DictReader((tmp_path / "cohort.csv").open()))
    assert sorted(row["case_id"] for row in rows) == ["p0", "p1"]
    with pytest.raises(InputError, match=r"--kv: expected a tube voltage"):
        predict_batch(one, tmp_path, other, kv="60")


def test_a_damaged_model_is_named(model, tmp_path):
    for name in ("model.onnx", "model.json"):
        (tmp_path / name).write_bytes((model.path / name).read_bytes()[: 10**6 if name == "model.json" else 5000])
    for engine in ("torch", "onnxruntime", "openvino"):
        with pytest.raises(InputError, match=f"a network that {engine} can load"):
            ScanPredictor(open_model(tmp_path), PredictSettings(engine=engine))
    with pytest.raises(InputError, match="--device: expected cpu, cuda or cuda:N, found 'gpu'"):
        ScanPredictor(model, PredictSettings(engine="torch", device="gpu"))


def test_a_reason_never_holds_a_path(model, phantom, tmp_path, monkeypatch):
    folder = tmp_path / "Doe^Jane"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes((phantom / "images" / "p0.nii.gz").read_bytes())

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("jdm_seg.inference.batch.read_volume", refuse)
    (row,) = predict_batch(folder, tmp_path / "out", ScanPredictor(model)).failed
    assert row["error"] == "a: PermissionError: Permission denied"
    assert not any("Doe" in path.read_text() for path in (tmp_path / "out").iterdir())


def test_the_report_is_one_offline_page(results):
    page = write_report(results).read_text()
    assert "p0" in page
    assert "not a medical device" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page
    assert "<script src" not in page


def test_the_same_seed_gives_the_same_losses_and_going_on_gives_the_rest(phantom, tmp_path, monkeypatch):
    """An undisturbed run of three epochs, the same again, and one stopped after two and resumed."""
    settings = ("data.patches_per_epoch=4", "trainer.validate_every=1")
    whole = train(run_config(phantom, tmp_path / "a", *settings, "trainer.max_epochs=3"), tmp_path / "a")
    again = train(run_config(phantom, tmp_path / "b", *settings, "trainer.max_epochs=3"), tmp_path / "b")
    assert losses_of(whole) == losses_of(again)
    other = train(run_config(phantom, tmp_path / "c", *settings, "trainer.max_epochs=1", "seed=1"), tmp_path / "c")
    assert losses_of(other)[0] != losses_of(whole)[0]

    step = SegmentationModule.training_step

    def power_cut(self, batch, batch_index):
        if self.global_step == 4:
            raise RuntimeError("power cut")
        return step(self, batch, batch_index)

    cut = run_config(phantom, tmp_path / "d", *settings, "trainer.max_epochs=3")
    monkeypatch.setattr(SegmentationModule, "training_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, tmp_path / "d")
    monkeypatch.setattr(SegmentationModule, "training_step", step)
    assert json.loads((tmp_path / "d" / "run.json").read_text())["status"] == "failed"
    assert len(losses_of(tmp_path / "d")) == 4
    resumed = train(replace(cut, ckpt="last"), tmp_path / "d")
    assert losses_of(resumed) == losses_of(whole)


def test_going_on_with_other_splits_is_refused(phantom, tmp_path):
    run = tmp_path / "run"
    train(run_config(phantom, run, "data.patches_per_epoch=2", "trainer.max_epochs=1"), run)
    (run / "splits.json").write_text('{"training": ["p1"], "validation": ["p0"]}')
    with pytest.raises(InputError, match="expected the same training and validation cases as before"):
        train(run_config(phantom, run, "data.patches_per_epoch=2", "trainer.max_epochs=2", "ckpt=last"), run)


def small_scan(path: Path, seed: int) -> None:
    """A limb of fat and muscle with a bone, as an unlabelled CT scan."""
    x, y = np.meshgrid(np.arange(48) - 24, np.arange(48) - 24, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(30)
    hu = np.select([r < 4, r < 14, r < 20], [900, 55, -100], -1000) + np.random.default_rng(seed).normal(0, 15, r.shape)
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(hu.astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0])), path)


def test_training_on_unlabelled_scans_runs_and_says_so(tmp_path):
    for number in range(3):
        small_scan(tmp_path / "scans" / f"s{number}.nii.gz", number)
    overrides = [
        f"data.backgrounds={tmp_path / 'scans'}",
        f"data.cache={tmp_path / 'cache'}",
        "data.folds=3",
        f"run_dir={tmp_path / 'run'}",
        *SMALL,
    ]
    overrides += ["data.workers=0", "data.patches_per_epoch=4", "trainer.max_epochs=2", "trainer.validate_every=1"]
    config = compose(["experiment=ct_inserted", *overrides])
    data = CaseDataModule(config.data, config.preprocess, config.augment, config.seed)
    data.setup()
    patches = [data._patches[0, number] for number in range(12)]
    assert {patch["image"].shape for patch in patches} == {(1, 32, 32, 32)}
    shown = [patch for patch in patches if (patch["label"] == 1).any()]
    assert len(shown) > 4
    bright = [float(p["image"][p["label"] == 1].mean() - p["image"][p["label"] == 0].mean()) for p in shown]
    assert np.median(bright) > 0.1
    first, second = (data._scans[0]["label"] for _ in range(2))
    assert (first == 1).any()
    assert torch.equal(first, second)  # validation deposits are the same every time
    run = train(config, tmp_path / "run")
    assert len(losses_of(run)) == 4
    model = export_run(run, tmp_path / "model")
    assert "inserted on the fly into unlabelled scans: 2 training and 1 validation" in model.spec.training_data


def test_stir_runs_the_whole_way(tmp_path):
    small = [
        f"data.root={tmp_path / 'set'}",
        f"data.cache={tmp_path / 'cache'}",
        f"run_dir={tmp_path / 'run'}",
        "data.synthesize.cases=4",
    ]
    small += ["data.synthesize.validation=0.25", "data.synthesize.testing=0.25", "data.patches_per_epoch=4"]
    small += ["network.channels=[8,16]", "trainer.max_epochs=1", "trainer.validate_every=1", "trainer.progress=false"]
    config = compose(["experiment=stir_smoke", *small])
    model = export_run(train(config, tmp_path / "run"), tmp_path / "model")
    assert "No real scan was seen" in model.spec.training_data
    batch = predict_batch(tmp_path / "set" / "images", tmp_path / "out", ScanPredictor(model))
    assert not batch.failed
    burden = json.loads((tmp_path / "out" / batch.rows[0]["case_id"] / "burden.json").read_text())
    assert burden["modality"] == "stir"
    assert burden["mass_mg_ha"] is None
    other = replace(config, data=replace(config.data, synthesize=replace(config.data.synthesize, seed=5)))
    with pytest.raises(InputError, match=r"data\.root: expected no data set, or the synthetic one"):
        train(other, tmp_path / "run2")


def test_resuming_from_nothing_is_named(phantom, tmp_path):
    with pytest.raises(CaseNotFoundError, match="expected a checkpoint to go on from"):
        train(run_config(phantom, tmp_path / "none", "ckpt=last"), tmp_path / "none")


def test_wandb_logs_offline(phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = train(
        run_config(phantom, tmp_path / "w", "logger=wandb", "data.patches_per_epoch=2", "trainer.max_epochs=1"),
        tmp_path / "w",
    )
    assert list((out / "wandb").glob("offline-run-*/*.wandb"))
    assert "train/loss" in (out / "metrics.csv").read_text()


def test_a_patch_the_network_cannot_halve_is_named(phantom, tmp_path):
    config = run_config(phantom, tmp_path / "x", "data.patch_size=[40,40,40]", "network.channels=[8,8,8,8]")
    with pytest.raises(InputError, match=r"data\.patch_size: expected sides that the network can halve"):
        train(config, tmp_path / "x")


def test_a_sidecar_of_another_version_is_named(model, tmp_path):
    content = json.loads((model.path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(InputError, match="expected schema version 1, found 99"):
        read_spec(tmp_path / "model.json")
    del content["preprocess"]
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected a complete model sidecar"):
        read_spec(tmp_path / "model.json")


def test_a_second_stage_judges_what_the_network_finds(run, phantom, tmp_path, monkeypatch):
    """The phantom has too few lesions to learn from; allowed to, it learns that all are deposits."""
    with pytest.raises(InputError, match=r"--candidates: expected at least 30 deposits .* found \d+ and \d+"):
        export_run(run, tmp_path / "model", ExportOptions(candidates=True))
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr("jdm_seg.export.candidates.MIN_DEPOSITS", 0)
    model = export_run(run, tmp_path / "model", ExportOptions(candidates=True))
    facts = json.loads(model.candidates.read_text())["fitted"]
    assert facts["scans"] == facts["chosen_on"] == 1
    assert facts["deposits"] > 0
    assert "second stage" in (model.path / "MODEL_CARD.md").read_text()
    predictor = ScanPredictor(model)
    assert "min_peak" not in predictor.describe()
    scan = read_volume(phantom / "images" / "p1.nii.gz")
    assert predictor(scan).mask.any()
    values = json.loads(model.candidates.read_text())
    model.candidates.write_text(json.dumps({**values, "min_score": 1.1}))
    strict = ScanPredictor(model)
    assert not strict(scan).mask.any()
    assert strict.describe()["candidates_sha256"] != predictor.describe()["candidates_sha256"]


def test_export_overwrites_models_but_nothing_else(run, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(InputError, match="expected a new folder or a model folder"):
        export_run(run, tmp_path / "thesis")
    with pytest.raises(CaseNotFoundError, match="expected a run folder with a checkpoint"):
        export_run(tmp_path / "thesis", tmp_path / "model")
