"""The doctor finds what is broken, names a remedy, and never falls over what it looks at."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from jdm_seg import doctor
from jdm_seg.cli import app

ROOT = Path(__file__).parents[2]


def checks(**arguments) -> dict[str, doctor.Check]:
    return {f"{check.group}/{check.name}": check for check in doctor.examine(self_test=False, **arguments)}


def test_this_installation_is_sound():
    found = checks()
    assert [check for check in found.values() if check.state == "broken"] == []
    assert {"packages/core", "packages/configs", "engines/torch", "engines/onnxruntime", "engines/cuda"} <= set(found)


def test_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"dev"}


def test_whatever_is_not_well_has_a_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = checks()
    assert found["engines/openvino"].state == "note"
    assert 'pip install "jdm-seg[dicom]"' in found["extras/dicom"].remedy
    assert all(found[f"extras/{extra}"].state == "note" for extra in doctor.EXTRAS)


def test_an_old_or_missing_package_is_broken(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=99", "no-such-thing>=1", 'wandb>=99; extra == "w"'])
    found = checks()
    assert found["packages/numpy"].state == "broken"
    assert found["packages/numpy"].remedy == 'pip install "numpy>=99"'
    assert found["packages/no-such-thing"].found.startswith("not installed")
    assert "packages/core" not in found
    assert "packages/wandb" not in found  # of an extra nobody asked for


def test_an_engine_that_computes_wrongly_is_broken(monkeypatch):
    right = doctor._convolve_torch
    monkeypatch.setattr(doctor, "_convolve_torch", lambda volume, kernel: np.asarray(right(volume, kernel)) + 0.01)
    assert checks()["engines/torch"].state == "broken"


def test_an_engine_that_cannot_be_loaded_is_a_line(monkeypatch):
    def fail(*_):
        raise OSError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "_convolve_onnxruntime", fail)
    found = checks()["engines/onnxruntime"]
    assert found.state == "broken"
    assert found.remedy


@pytest.mark.parametrize(("free", "state"), [(1e9, "note"), (16e9, "ok"), (None, "ok")])
def test_scarce_memory_is_pointed_out(monkeypatch, free, state):
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    found = {check.name: check for check in doctor._machine(Path.cwd())}
    assert found["memory"].state == state


@pytest.mark.parametrize(("f1", "state"), [(None, "broken"), (0.49, "broken"), (0.51, "ok")])
def test_the_self_test_is_judged_by_what_it_found(monkeypatch, f1, state):
    batch = SimpleNamespace(failed=[])
    monkeypatch.setattr("jdm_seg.synthesis.dataset.synthesize_dataset", lambda *_, **__: None)
    monkeypatch.setattr("jdm_seg.inference.batch.predict_batch", lambda *_, **__: batch)
    figures = {"figures": {"lesion_f1": {"mean": f1}}}
    monkeypatch.setattr("jdm_seg.evaluate.evaluate_folders", lambda *_, **__: figures)
    assert doctor._self_test().state == state
    batch.failed.append({"error": "scan: expected a body, found none; ..."})
    assert doctor._self_test().found.startswith("scan: expected a body")


def test_the_self_test_passes_here():
    check = doctor._self_test()
    assert check.state == "ok", check
    assert check.found.startswith("lesion F1 0.")


def test_the_verb_leaves_with_1_if_something_is_broken(monkeypatch):
    runner = CliRunner()
    well = [doctor.Check("machine", "cores", "ok", "2")]
    monkeypatch.setattr(doctor, "examine", lambda **_: iter(well))
    assert runner.invoke(app, ["doctor"]).exit_code == 0
    assert runner.invoke(app, ["doctor", "--quiet"]).stdout == ""
    broken = doctor.Check("packages", "torch", "broken", "not installed", "pip install torch")
    monkeypatch.setattr(doctor, "examine", lambda **_: iter([*well, broken]))
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "BROKEN" in done.stdout
    assert "pip install torch" in done.stdout
