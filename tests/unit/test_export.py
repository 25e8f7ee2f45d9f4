"""Graphs and their proof: any window, half the bytes, and a parity check that fires."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from jdm_seg.cases import Case
from jdm_seg.config import PreprocessConfig
from jdm_seg.errors import InputError
from jdm_seg.export import validation
from jdm_seg.export.onnx_graph import (
    OPSET,
    ForegroundNetwork,
    centred_before_norms,
    compact_graph,
    read_stamp,
    round_weights,
    stamp,
    weights_sha256,
    write_graph,
    write_half_graph,
    write_int8_graph,
)
from jdm_seg.export.parity import LOGIT_TOLERANCE, ParityCheck, measure_parity, summary_of
from jdm_seg.export.run import ExportOptions, _check_reduced, _check_rounding, _stamp_of
from jdm_seg.export.validation import ValidationScan, random_windows, synthetic_scans
from jdm_seg.inference.engines import build_engine
from jdm_seg.model_folder import ModelFolder, ModelSpec, read_spec, write_spec
from jdm_seg.networks import SpaceToDepthUNet

SIZE = (32, 32, 32)
NETWORK = {"_target_": "jdm_seg.networks.SpaceToDepthUNet", "channels": [8, 16], "deep_supervision": True}


@pytest.fixture(scope="module")
def network() -> ForegroundNetwork:
    """Random weights, rounded to float16; no deposit is rare, so that masks are not empty."""
    torch.manual_seed(0)
    inner = SpaceToDepthUNet(channels=(8, 16), deep_supervision=True, foreground_prior=0.3)
    round_weights(inner)
    return ForegroundNetwork(inner).eval()


@pytest.fixture(scope="module")
def graph(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    assert write_graph(network, path, SIZE)
    return path


@pytest.fixture(scope="module")
def scans() -> list[ValidationScan]:
    """A body with two deposits and one zone to ignore."""
    rng = np.random.default_rng(0)
    image = torch.full((48, 40, 40), -1.0)
    image[4:44, 4:36, 4:36] = torch.from_numpy(rng.normal(0, 0.3, (40, 32, 32)).astype(np.float32)).clamp(-0.99, 1)
    label = np.zeros(image.shape, np.uint8)
    label[10:13, 10:13, 10:13] = label[30:33, 20:23, 20:23] = 1
    label[40:42, 5:8, 5:8] = 255
    return [ValidationScan("phantom", image, label, (1.5, 1.5, 1.5), "phantom")]


def answer(path: Path | bytes, windows: torch.Tensor) -> torch.Tensor:
    session = ort.InferenceSession(path if isinstance(path, bytes) else str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": windows.numpy()})[0])


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (3, 32, 32, 32), (2, 16, 40, 24), (1, 64, 32, 48)])
def test_any_batch_and_any_window_pass_through_the_graph(network, graph, shape):
    windows = torch.rand(shape[0], 1, *shape[1:]) * 2 - 1
    with torch.inference_mode():
        assert (answer(graph, windows) - network(windows)).abs().max() < 1e-4


def test_a_graph_that_looks_at_surroundings_takes_any_window(tmp_path):
    """Windows smaller than the box around a voxel too."""
    torch.manual_seed(1)
    boxes = [(3, 1, 3), (21, 1, 21)]
    network = ForegroundNetwork(SpaceToDepthUNet(channels=(8, 16), deep_supervision=False, surroundings=boxes)).eval()
    assert write_graph(network, tmp_path / "model.onnx", SIZE)
    for shape in ((1, 16, 16, 16), (2, 40, 16, 24)):
        windows = torch.rand(shape[0], 1, *shape[1:]) * 2 - 1
        with torch.inference_mode():
            assert (answer(tmp_path / "model.onnx", windows) - network(windows)).abs().max() < 1e-4


def test_the_graph_has_one_output_and_says_its_opset(graph):
    model = onnx.load(graph)
    assert [output.name for output in model.graph.output] == ["logit"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET


def test_a_compact_graph_is_half_the_size_and_the_same_network(network, graph, tmp_path):
    small = tmp_path / "model.onnx"
    small.write_bytes(graph.read_bytes())
    before = sum(t.ByteSize() for t in onnx.load(graph).graph.initializer)
    compact_graph(small)
    assert sum(t.ByteSize() for t in onnx.load(small).graph.initializer) < 0.6 * before
    windows = torch.rand(2, 1, *SIZE) * 2 - 1
    assert torch.equal(answer(small, windows), answer(graph, windows))
    write_spec(tmp_path, ModelSpec("n", PreprocessConfig(), SIZE, 0.25, 0.5, NETWORK))
    model = ModelFolder(tmp_path, read_spec(tmp_path / "model.json"))
    with torch.inference_mode():
        reference = network(windows)
    for engine in ("torch", "onnxruntime", "openvino"):
        assert (build_engine(model, engine)(windows) - reference).abs().max() < 1e-4


def test_only_large_weights_are_rounded_and_only_once():
    inner = SpaceToDepthUNet(channels=(8, 16))
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    assert round_weights(inner) > 0
    for name, value in inner.state_dict().items():
        exact = torch.equal(value, before[name])
        assert exact or before[name].numel() >= 256
        assert torch.allclose(value, before[name], rtol=2**-11, atol=2**-24)
    state = {name: value.clone() for name, value in inner.state_dict().items()}
    round_weights(inner)
    assert all(torch.equal(value, state[name]) for name, value in inner.state_dict().items())


def test_taking_the_mean_off_before_norms_changes_nothing(graph, network):
    windows = torch.rand(2, 1, *SIZE) * 2 - 1
    with torch.inference_mode():
        assert (answer(centred_before_norms(graph), windows) - network(windows)).abs().max() < 1e-4
    kinds = [node.op_type for node in onnx.load_from_string(centred_before_norms(graph)).graph.node]
    assert kinds.count("ReduceMean") == kinds.count("InstanceNormalization") > 0


def test_reduced_graphs_run_and_are_near(network, graph, scans, tmp_path):
    windows = random_windows(scans, SIZE, 4)
    with torch.inference_mode():
        reference = network(windows[0])
    spread = float(reference.std())
    write_half_graph(graph, tmp_path / "half.onnx")
    write_int8_graph(graph, tmp_path / "int8.onnx", windows)
    assert 0 < (answer(tmp_path / "half.onnx", windows[0]) - reference).abs().max() < 0.1 * spread
    assert 0 < (answer(tmp_path / "int8.onnx", windows[0]) - reference).abs().mean() < 0.5 * spread
    assert (tmp_path / "half.onnx").stat().st_size < graph.stat().st_size


def test_the_file_says_what_it_is(network, graph, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.read_bytes())
    spec = ModelSpec("n", PreprocessConfig(), SIZE, 0.25, 0.4, NETWORK, temperature=1.5)
    stamp(path, _stamp_of(spec, weights_sha256(network.network)))
    facts = read_stamp(path)
    assert json.loads(facts["jdm_seg.spacing_mm"]) == [1.5, 1.5, 1.5]
    assert json.loads(facts["jdm_seg.intensity"]) == {
        "kind": "window",
        "low": -200.0,
        "high": 1300.0,
        "maps_to": [-1, 1],
    }
    assert (facts["jdm_seg.threshold"], facts["jdm_seg.temperature"]) == ("0.4", "1.5")
    assert len(facts["jdm_seg.weights_sha256"]) == 64
    other = SpaceToDepthUNet(channels=(8, 16))
    assert weights_sha256(other) != weights_sha256(network.network)


def check_of(network, scans) -> ParityCheck:
    def predict(windows):
        with torch.inference_mode():
            return network(windows)

    return ParityCheck(predict, random_windows(scans, SIZE, 2), scans)


def test_parity_of_every_engine_is_measured_and_offered(network, graph, scans):
    spec = ModelSpec("n", PreprocessConfig(), SIZE, 0.25, 0.5, NETWORK)
    report = measure_parity(check_of(network, scans), ModelFolder(graph.parent, spec))
    assert set(report) == {"torch", "onnxruntime", "openvino"}
    for engine in report:
        assert report[engine]["f32"]["offered"], report[engine]
        assert report[engine]["f32"]["scan_logit"] <= LOGIT_TOLERANCE
    assert report["openvino"]["bf16"]["window_logit"] > LOGIT_TOLERANCE  # else it silently ran in f32
    told = replace(spec, parity={"engines": summary_of(report)})
    assert told.offers("openvino", "f32") is True
    assert told.offers("openvino", "int4") is None


@pytest.mark.parametrize(
    ("spoil", "precision", "reason"),
    [
        (lambda y: y, "f32", ""),
        (lambda y: y + 5e-4, "f32", ""),
        (lambda y: y + 2e-3, "f32", "logits differ by 0.002"),
        (lambda y: y * float("nan"), "f32", "logits differ by nan"),
        (lambda y: y + 2e-3, "bf16", ""),
        (lambda y: -y, "bf16", "lesion F1"),
        (lambda y: y - 1000, "bf16", "lesion F1 0.000"),
    ],
)
def test_what_differs_is_not_offered(scans, spoil, precision, reason):
    """A network that finds the noise's peaks; ``spoil`` is what an engine does to its logits."""

    def network(windows):
        return 10 * (torch.nn.functional.avg_pool3d(windows, 5, 1, 2) - 0.1)

    spec = ModelSpec("n", PreprocessConfig(), SIZE, 0.25, 0.5, NETWORK)
    check = ParityCheck(network, random_windows(scans, SIZE, 2), scans)
    found = check.compare(lambda windows: spoil(network(windows)), spec, precision)
    assert found.lesions > 0 or not found.offered
    assert found.reason.startswith(reason)
    assert found.offered == (not reason)


@pytest.mark.parametrize(("error", "offered"), [(5e-5, True), (3e-4, False)])
def test_large_logits_may_round_as_much_as_their_size(scans, error, offered):
    def network(windows):
        return 1000 * (torch.nn.functional.avg_pool3d(windows, 5, 1, 2) - 0.1)

    spec = ModelSpec("n", PreprocessConfig(), SIZE, 0.25, 0.5, NETWORK)
    check = ParityCheck(network, random_windows(scans, SIZE, 2), scans)
    found = check.compare(lambda windows: network(windows) * (1 + error), spec, "f32")
    assert found.window_logit > LOGIT_TOLERANCE
    assert found.offered == offered, found


def test_a_model_that_answers_otherwise_is_refused(graph, scans):
    torch.manual_seed(1)
    other = ForegroundNetwork(SpaceToDepthUNet(channels=(8, 16))).eval()
    spec = ModelSpec("n", PreprocessConfig(), SIZE, 0.25, 0.5, NETWORK)
    with pytest.raises(InputError, match=r"engine torch: expected the trained network's logits within 0\.001"):
        measure_parity(check_of(other, scans), ModelFolder(graph.parent, spec))


def test_a_precision_that_changes_lesions_is_refused_with_figures():
    row = {"offered": False, "reason": "lesion F1 0.900 against f32", "scan_logit": 0.5, "window_logit": 0.4}
    report = {"onnxruntime": {"int8": {**row, "lesion_f1": 0.9}}}
    with pytest.raises(InputError, match=r"--precision int8.*F1 0\.900 against f32; largest logit difference 0\.5"):
        _check_reduced(report, ["int8"])
    with pytest.raises(InputError, match="--compact: expected the trained network's lesions"):
        _check_rounding({**row, "lesion_f1": 0.9}, compact=True)
    _check_rounding({**row, "lesion_f1": 0.9}, compact=False)
    with pytest.raises(InputError, match="--precision: expected f32, f16 or int8, found 'f8'"):
        ExportOptions(precisions=("f8",))


def test_windows_are_cut_around_deposits_and_padded_with_air(scans):
    windows = random_windows(scans, (64, 32, 32), 4)
    assert [tuple(window.shape) for window in windows] == [(1, 1, 64, 32, 32)] * 4
    assert (windows[0][0, 0, 48:] == -1).all()
    deposits = torch.from_numpy((scans[0].label == 1).astype(np.float32))
    marked = [ValidationScan("m", deposits, scans[0].label, (1.5, 1.5, 1.5), "")]
    assert all(window.max() == 1 for window in random_windows(marked, SIZE, 8)[::2])
    assert not scans[0].counted[40, 5, 5]
    assert not scans[0].counted[0, 0, 0]


def test_synthetic_scans_stand_in_where_a_run_has_none():
    (scan,) = synthetic_scans(PreprocessConfig(), 1)
    (again,) = synthetic_scans(PreprocessConfig(), 1)
    assert (scan.label == 1).any()
    assert torch.equal(scan.image, again.image)
    assert float(scan.image.min()) == -1.0


def test_an_old_sidecar_opens_with_temperature_one(tmp_path):
    write_spec(tmp_path, ModelSpec("old", PreprocessConfig(), SIZE, 0.25, 0.5, NETWORK))
    content = json.loads((tmp_path / "model.json").read_text())
    for name in ("temperature", "flip_axes", "weights", "calibration"):
        del content[name]
    (tmp_path / "model.json").write_text(json.dumps(content))
    spec = read_spec(tmp_path / "model.json")
    assert (spec.temperature, spec.flip_axes, spec.weights, spec.calibration) == (1.0, "xyz", "f32", {})


def test_few_unlabelled_validation_scans_are_filled_up_with_bodies(tmp_path, monkeypatch):
    """Three real scans alone would let one odd one settle it; each comes in three draws, labelled cases once."""
    scan = next(synthetic_scans(PreprocessConfig(), 1))
    monkeypatch.setattr(validation, "_load", lambda case, config, draw: replace(scan, case_id=f"{case.case_id}-{draw}"))
    monkeypatch.setattr(validation, "synthetic_scans", lambda config, count: [scan] * count)
    draws = [f"c{case}-{draw}" for case in range(3) for draw in range(3)]
    for label, expected, bodies in ((None, draws, 5), (tmp_path / "mask.nii.gz", ["c0-0", "c1-0", "c2-0"], 0)):
        cases = [Case(f"c{n}", f"c{n}", "ct", tmp_path / "scan.nii.gz", label) for n in range(3)]
        monkeypatch.setattr(validation, "_cases_of", lambda run, config, cases=cases: cases)
        scans = validation.validation_scans(tmp_path, PreprocessConfig(), 8)
        assert [one.case_id for one in scans[: len(expected)]] == expected
        assert len(scans) == len(expected) + bodies


def test_a_stamped_graph_holds_no_path_of_the_machine(tmp_path):
    network = SpaceToDepthUNet(channels=(4, 8)).eval()
    path = tmp_path / "model.onnx"
    write_graph(ForegroundNetwork(network), path, (16, 16, 16))
    source = str(Path(__file__).parents[2]).encode()
    assert source in path.read_bytes()  # what the exporter writes
    stamp(path, {"jdm_seg.name": "x"})
    assert source not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
