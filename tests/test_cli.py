"""The command line as a user meets it: in a process of its own, with its exit codes and messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.model_folder import read_spec

VERBS = (
    "doctor",
    "demo",
    "check",
    "convert",
    "benchmark",
    "synthesize",
    "train",
    "export",
    "models",
    "predict",
    "burden",
    "track",
    "evaluate",
    "report",
)


def run(*arguments: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from jdm_seg.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        check=False,
    )


def assert_one_message(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_help_answers_at_once():
    """A tenth of a second, because nothing slow is imported; the time itself would depend on the machine."""
    code = (
        "import sys\nfrom jdm_seg.cli import main\nsys.argv = ['jdm-seg', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "slow = {'torch', 'monai', 'lightning', 'numpy', 'scipy', 'hydra', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(verb):
    done = run(verb, "--help")
    assert done.returncode == 0
    assert f"jdm-seg {verb}" in done.stdout


def test_version():
    assert run("--version").stdout.strip() == "0.1.0"


def test_wrong_usage_ends_with_2():
    assert run("predict").returncode == 2
    assert run("predikt", "a", "b").returncode == 2
    assert run("synthesize", "out", "--modality", "ct", "--cases", "0", "--seed", "1").returncode == 2


@pytest.mark.parametrize("override", ["trainer.max_epoch=3", "experiment=nope", "data.batch_size=many"])
def test_a_misspelt_override_is_one_message(tmp_path, override):
    done = run("train", "experiment=ct_smoke", override, cwd=tmp_path)
    assert_one_message(done, override.split("=")[0].split(".")[-1])
    assert list(tmp_path.iterdir()) == []


def test_a_value_out_of_range_is_one_message(tmp_path):
    assert_one_message(
        run("train", "data.patch_size=[63,64,64]", cwd=tmp_path), "data.patch_size: expected multiples of 8"
    )


def test_missing_data_is_one_message(tmp_path):
    done = run("train", "data=labelled", "data.root=nowhere", cwd=tmp_path)
    assert_one_message(done, "datalist.json: expected a manifest at data.root")


def test_an_unknown_model_is_one_message(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    assert_one_message(run("predict", tmp_path / "scan.nii.gz", tmp_path / "out", "--model", "nope"), "model nope")


def test_an_unknown_preset_or_modality_is_one_message(tmp_path):
    arguments = ("synthesize", tmp_path, "--cases", "1", "--seed", "0")
    assert_one_message(run(*arguments, "--modality", "pet"), "expected modality ct or stir")
    assert_one_message(run(*arguments, "--modality", "ct", "--preset", "huge"), "expected one of smoke, limb")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder in which the README's commands were typed: a data set, a short training, a model."""
    folder = tmp_path_factory.mktemp("work")
    done = run("synthesize", "set", "--modality", "ct", "--cases", "3", "--seed", "1", "--preset", "smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "3 cases in set" in done.stdout
    small = ("network.channels=[8,16]", "data.patch_size=[32,32,32]", "data.patches_per_epoch=8")
    done = run(
        "train", "data=labelled", "data.root=set", "data.folds=3", "name=tiny", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", "run_dir=run", *small, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "run folder: run" in done.stdout
    done = run("export", "run", "model", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_same_commands_go_on_from_last(made):
    small = ("network.channels=[8,16]", "data.patch_size=[32,32,32]", "data.patches_per_epoch=8")
    arguments = ("data=labelled", "data.root=set", "data.folds=3", "name=tiny", "trainer.accelerator=cpu", *small)
    first = run("train", *arguments, "trainer.max_epochs=1", cwd=made)
    second = run("train", *arguments, "trainer.max_epochs=2", "ckpt=last", cwd=made)
    assert second.returncode == 0, second.stderr
    assert first.stdout == second.stdout  # the same run folder
    folders = list((made / "runs" / "tiny").iterdir())
    assert len(folders) == 1
    assert (folders[0] / "metrics_part1.csv").is_file()


def test_a_sweep_makes_one_run_folder_a_job(made):
    done = run(
        "train", "-m", "data=labelled", "data.root=set", "data.folds=3", "name=sweep", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", "network.channels=[8,16]", "data.patch_size=[32,32,32]",
        "data.patches_per_epoch=4", "seed=0,1", cwd=made,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (made / "runs" / "sweep").glob("*/*") if p.is_dir()) == ["0", "1"]


def test_predict_writes_what_the_interface_says(made):
    done = run("predict", "set/images", "results", "--model", "model", cwd=made)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 scans segmented" in done.stdout
    case = made / "results" / "ct-smoke-s1-0000"
    assert {"mask.nii.gz", "lesions.nii.gz", "lesions.csv", "burden.json"} <= {p.name for p in case.iterdir()}
    assert (made / "results" / "cohort.csv").is_file()
    assert (made / "results" / "run.json").is_file()
    assert run("report", "results", cwd=made).returncode == 0


def test_evaluate_and_burden(made):
    done = run("evaluate", "set/labels", "set/labels", "same", cwd=made)
    assert done.returncode == 0, done.stderr
    assert "lesion_f1          1.000" in done.stdout
    image, label = (next((made / "set" / kind).glob("*0000*")) for kind in ("images", "labels"))
    done = run("burden", image, label, "measured", "--kv", "120", cwd=made)
    assert done.returncode == 0, done.stderr
    assert (made / "measured" / "burden.json").is_file()


def test_an_empty_folder_is_one_message(made):
    (made / "empty").mkdir()
    assert_one_message(run("predict", "empty", "out", "--model", "model", cwd=made), "empty: expected a folder of .nii")


def test_a_text_file_named_nii_gz_is_one_message(made):
    (made / "letter.nii.gz").write_text("Dear colleague")
    done = run("predict", "letter.nii.gz", "letter", "--model", "model", cwd=made)
    assert_one_message(done, "letter.nii.gz: expected a single-file NIfTI-1 or NIfTI-2 image")
    assert done.stderr.count("expected") == 1


def test_a_mask_on_another_grid_is_one_message(made):
    image = next((made / "set" / "images").glob("*0000*"))
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), made / "small.nii.gz")
    assert_one_message(run("burden", image, "small.nii.gz", "out2", cwd=made), "grid")


def test_paths_with_equals_and_brackets_work(made):
    folder = made / "a=[b] c"
    folder.mkdir()
    (folder / "x.nii.gz").write_bytes(next((made / "set" / "images").glob("*0000*")).read_bytes())
    done = run("predict", folder, folder / "out", "--model", "model", cwd=made)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "x" / "mask.nii.gz").is_file()


def test_quiet_prints_results_only(made):
    done = run("predict", "set/images", "quiet", "--model", "model", "--quiet", cwd=made)
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_model_folder_says_what_it_is(made):
    spec = read_spec(made / "model" / "model.json")
    assert spec.name == "tiny"
    assert spec.training_data.startswith(
        "Procedural bodies with synthetic deposits: 2 training and 1 validation cases."
    )
