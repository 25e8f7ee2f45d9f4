"""Which engine `auto` takes and why, and what is refused; no network is loaded."""

from __future__ import annotations

import importlib.util

import pytest

from jdm_seg.config import PreprocessConfig
from jdm_seg.errors import InputError
from jdm_seg.inference import engines
from jdm_seg.inference.engines import build_engine, choose_engine, execution_providers
from jdm_seg.model_folder import ModelFolder, ModelSpec


def spec(**parity) -> ModelSpec:
    return ModelSpec("m", PreprocessConfig(), (8, 8, 8), 0.25, 0.5, {}, parity=parity)


def report(**offered):
    """Offered by engine and precision, as in the report of an export: openvino_f32=True."""
    table: dict[str, dict[str, dict[str, bool]]] = {}
    for name, value in offered.items():
        engine, precision = name.split("_")
        table.setdefault(engine, {})[precision] = {"offered": value}
    return spec(engines=table)


ALL = {"openvino_f32": True, "onnxruntime_f32": True, "torch_f32": True, "openvino_bf16": False, "torch_bf16": True}


@pytest.fixture(autouse=True)
def _all_installed(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: importlib.util.find_spec("json"))


@pytest.mark.parametrize(
    ("changes", "device", "precision", "expected"),
    [
        ({}, "cpu", "f32", "openvino"),
        ({"openvino_f32": False}, "cpu", "f32", "onnxruntime"),
        ({"openvino_f32": False, "onnxruntime_f32": False}, "cpu", "f32", "torch"),
        ({}, "cpu", "bf16", "torch"),
        ({"openvino_bf16": True}, "cpu", "bf16", "openvino"),
        ({}, "cuda:1", "f32", "torch"),
        ({"torch_f32": False}, "cuda", "f32", "onnxruntime"),
    ],
)
def test_auto_takes_the_fastest_that_passed(changes, device, precision, expected):
    assert choose_engine(report(**{**ALL, **changes}), "auto", device, precision).name == expected


def test_the_reason_names_what_was_passed_over(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "openvino" else object())
    chosen = choose_engine(report(**ALL), "auto", "cpu")
    assert chosen.name == "onnxruntime"
    assert "passed parity" in chosen.reason
    assert "openvino: not installed" in chosen.reason


def test_folders_with_the_first_parity_report_still_tell():
    old = spec(patch={"onnxruntime_max_logit_difference": 1e-5, "openvino_max_logit_difference": 2e-3})
    chosen = choose_engine(old, "auto", "cpu")
    assert chosen.name == "onnxruntime"
    assert "openvino: did not pass parity" in chosen.reason


def test_no_other_precision_in_silence():
    with pytest.raises(InputError, match=r"expected an engine that passed parity in it, found openvino: did not pass"):
        choose_engine(report(**{**ALL, "torch_bf16": False}), "auto", "cpu", "bf16")
    assert "did not pass parity" in choose_engine(report(**ALL), "openvino", "cpu", "bf16").reason
    assert choose_engine(spec(), "auto", "cpu").reason == "parity was not measured when the model was exported"


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(InputError, match="--engine: expected one of auto, torch"):
        choose_engine(spec(), "tensorflow", "cpu")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "jdm-seg\[openvino\]"'):
        choose_engine(spec(), "openvino", "cpu")


@pytest.mark.parametrize(
    ("engine", "device", "precision", "message"),
    [
        ("onnxruntime", "cpu", "bf16", "expected f32 or f16 or int8 with onnxruntime, found bf16"),
        ("openvino", "cpu", "f16", "expected f32 or bf16 with openvino, found f16"),
        ("openvino", "cuda", "f32", "expected another engine than openvino, found cuda"),
        ("torch", "tensorrt", "f32", "expected another engine than torch, found tensorrt"),
        ("torch", "cpu", "f16", "expected f16 on a GPU, found cpu"),
        ("torch", "gpu", "f32", "expected cpu, cuda or cuda:N, found 'gpu'"),
        ("torch", "cpu", "f64", "found 'f64'"),
    ],
)
def test_impossible_wishes_are_refused_before_anything_is_loaded(engine, device, precision, message, tmp_path):
    with pytest.raises(InputError, match=message):
        build_engine(ModelFolder(tmp_path, spec()), engine, device=device, precision=precision)


def test_providers_keep_full_precision_on_gpus():
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert execution_providers("cpu", everything) == [("CPUExecutionProvider", {})]
    (cuda, settings), last = execution_providers("cuda:1", everything)
    assert (cuda, settings) == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})
    assert last[0] == "CPUExecutionProvider"
    first = execution_providers("tensorrt", everything)[0]
    assert first[0] == "TensorrtExecutionProvider"
    assert first[1]["trt_fp16_enable"] is False
    with pytest.raises(InputError, match="expected an ONNX Runtime with CUDAExecutionProvider"):
        execution_providers("cuda", ["CPUExecutionProvider"])
