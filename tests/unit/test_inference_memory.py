"""Memory of one scan: independent of its length, refused in time; and the clock of the stages."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jdm_seg.config import IntensityConfig, PreprocessConfig
from jdm_seg.errors import InputError
from jdm_seg.inference.clock import StageClock
from jdm_seg.inference.memory import scan_memory
from jdm_seg.inference.predict import PredictSettings, ScanPredictor, torch_threads, with_threads
from jdm_seg.model_folder import ModelFolder, ModelSpec
from jdm_seg.model_grid import place
from jdm_seg.volume import Volume


def cylinder(length: int) -> Volume:
    x, y = np.meshgrid(np.arange(60) - 30, np.arange(60) - 30, indexing="ij")
    plane = np.where(x**2 + y**2 < 400, 50, -1000).astype(np.int16)
    return Volume(np.asfortranarray(np.repeat(plane[..., None], length, axis=2)), np.diag([1.5, 1.5, 1.5, 1.0]))


def test_only_the_mask_grows_with_length():
    short, long = (place(cylinder(n), PreprocessConfig()) for n in (100, 300))
    grown = scan_memory(long, 64) - scan_memory(short, 64)
    assert 2 * 60 * 60 * 200 <= grown < 1.1 * 2 * 60 * 60 * 200
    assert scan_memory(long, 64, whole=True) - scan_memory(long, 64) == 4 * np.prod(long.shape)


def test_the_network_keeps_its_threads_and_the_rest_runs_on_one():
    seen = []

    def network(windows):
        seen.append(torch.get_num_threads())
        return windows

    before = torch.get_num_threads()
    predictor = with_threads(network, 3)
    with torch_threads(1):
        predictor(torch.zeros(1))
        assert torch.get_num_threads() == 1
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_a_call_is_measured():
    """50 MB that are kept; in a process of its own, as what other tests leave behind may be given back meanwhile."""
    code = (
        "import numpy as np\nfrom jdm_seg.inference.memory import window_memory\nkept = []\n"
        "print(window_memory(lambda: kept.append(np.ones(50_000_000, np.uint8))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert 0.9 * 50e6 < int(done.stdout) < 2 * 50e6


@pytest.fixture
def predictor(monkeypatch, tmp_path):
    """A predictor that calls everything brighter than 400 HU calcinosis, and needs 10 MB a window."""
    spec = ModelSpec("m", PreprocessConfig(intensity=IntensityConfig()), (32, 32, 32), 0.25, 0.5, {})
    (tmp_path / "model.onnx").write_bytes(b"")
    calls = SimpleNamespace(batches=[])

    def network(windows):
        calls.batches.append(windows.shape[0])
        return (windows + 0.2) * 20

    monkeypatch.setattr("jdm_seg.inference.predict.build_engine", lambda *a, **k: network)
    monkeypatch.setattr("jdm_seg.inference.predict.window_memory", lambda run: 10_000_000)
    monkeypatch.setattr("jdm_seg.inference.predict.resident_memory", lambda: 100_000_000)

    def build(**settings):
        return ScanPredictor(ModelFolder(tmp_path, spec), PredictSettings(engine="onnxruntime", **settings))

    return SimpleNamespace(build=build, calls=calls)


def test_a_scan_is_segmented_and_every_stage_timed(predictor):
    scan = cylinder(70)
    scan.array[28:32, 28:32, 30:40] = 700
    result = predictor.build()(scan)
    assert {"preprocess", "windows", "network", "back_to_scan"} == set(result.seconds)
    assert np.array_equal(result.mask, scan.array > 400)
    assert result.probability.dense()[result.mask].min() > 0.5


def test_the_limit_takes_windows_from_the_batch_and_then_refuses(predictor):
    scan = cylinder(70)
    scan.array[28:32, 28:32, 30:40] = 700
    free = predictor.build(batch_size=4)(scan).mask
    assert max(predictor.calls.batches) == 4
    predictor.calls.batches.clear()
    needed = 100_000_000 + scan_memory(place(scan, PreprocessConfig()), 32)
    tight = predictor.build(batch_size=4, memory_limit_gb=(needed + 25_000_000) / 1e9)
    assert np.array_equal(tight(scan).mask, free)
    assert max(predictor.calls.batches) == 2
    with pytest.raises(
        InputError, match=r"limb: expected a scan that can be segmented in 0.05 GB, found one that needs"
    ):
        predictor.build(memory_limit_gb=0.05)(replace(scan, name="limb"))
    with pytest.raises(InputError, match="--memory-limit: expected more than 0"):
        PredictSettings(memory_limit_gb=0)


def test_inner_stages_do_not_count_twice(monkeypatch):
    """By a clock that is set by hand: 1 s outside, 3 s in the outer stage, 10 and 20 s in the inner one."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("jdm_seg.inference.clock.time.perf_counter", lambda: now.seconds)

    def take(seconds):
        now.seconds += seconds

    clock = StageClock()
    inner = clock.timed("inner", take)
    take(1)
    with clock.stage("outer"):
        take(1)
        inner(10)
        take(2)
        inner(20)
    assert clock.seconds == {"outer": 3.0, "inner": 30.0}


def test_a_predictor_tells_what_it_was_trained_on(predictor):
    training = predictor.build().training
    assert training.spacing == (1.5, 1.5, 1.5)
    assert training.window_mm == (48.0, 48.0, 48.0)
