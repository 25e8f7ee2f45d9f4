"""One call for every engine: normalised windows in, foreground logits out."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from jdm_seg.errors import InputError, reason_of
from jdm_seg.inference.sliding_window import Predictor
from jdm_seg.model_folder import ModelFolder

EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]
Precision = Literal["f32", "bf16"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)


def resolve_engine(name: str, device: str) -> EngineName:
    """Return the engine that ``auto`` stands for: torch on a GPU, else OpenVINO if installed, else ONNX Runtime.

    Raises:
        InputError: If the name is unknown, or the engine is not installed.
    """
    if name not in ENGINES:
        raise InputError("--engine", expected=f"one of {', '.join(ENGINES)}", found=repr(name), remedy="choose one")
    if name == "auto":
        if device.startswith("cuda"):
            return "torch"
        return "openvino" if find_spec("openvino") else "onnxruntime"
    if find_spec(name) is None:
        raise InputError(
            "--engine",
            expected=f"{name} to be installed",
            found="no such package",
            remedy=f'pip install "jdm-seg[{name}]", or use another engine',
        )
    return cast(EngineName, name)


def build_engine(model: ModelFolder, name: EngineName, *, device: str = "cpu", precision: str = "f32") -> Predictor:
    """Load a model into an engine.

    Args:
        model: The model folder.
        name: A resolved engine.
        device: ``cpu`` or, with torch, ``cuda``.
        precision: ``f32``, or ``bf16`` with torch or OpenVINO. What is asked for is what runs, never less.

    Returns:
        (B, 1, X, Y, Z) float32 tensor → (B, 1, X, Y, Z) float32 foreground logits.

    Raises:
        InputError: If the engine cannot do that.
    """
    if precision not in PRECISIONS:
        raise InputError("--precision", expected=" or ".join(PRECISIONS), found=repr(precision), remedy="choose one")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError("--device", expected="cpu, cuda or cuda:N", found=repr(device), remedy="choose one")
    if device != "cpu" and name != "torch":
        raise InputError("--device", expected=f"cpu with --engine {name}", found=device, remedy="use --engine torch")
    if name == "onnxruntime" and precision != "f32":
        raise InputError(
            "--precision", expected="f32 with onnxruntime", found=precision, remedy="use --engine torch or openvino"
        )
    try:
        if name == "torch":
            return _torch_engine(model, device, precision)
        return _openvino_engine(model, precision) if name == "openvino" else _onnxruntime_engine(model)
    except InputError:
        raise
    except Exception as error:  # each engine has its own errors, of plain Exception
        raise InputError(
            f"model {model.path.name}",
            expected=f"a network that {name} can load",
            found=reason_of(error),
            remedy="copy or export the model again",
        ) from error


def _torch_engine(model: ModelFolder, device: str, precision: str) -> Predictor:
    from jdm_seg.networks import as_levels, build_network, foreground_logit

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device", expected="a CUDA GPU", found="none", remedy="use --device cpu")
    network = build_network(model.spec.network)
    # not strict: heads that only training uses are not in the graph; parity at export proves that the rest is enough
    network.load_state_dict(torch_weights(model), strict=False)
    network.to(device).eval()

    def predict(windows: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            return foreground_logit(as_levels(network(windows.to(device)))[0]).float()

    return predict


def torch_weights(model: ModelFolder) -> dict[str, Tensor]:
    """Return the network's weights by their torch names.

    The ONNX file is their home. Only where its optimiser has folded some away (group normalisation) does the folder
    hold a second copy.
    """
    if model.weights.is_file():
        state: dict[str, Tensor] = torch.load(model.weights, map_location="cpu", weights_only=True)
        return state
    import onnx
    from onnx import numpy_helper

    # export wraps the network, which prefixes its names
    return {
        tensor.name.removeprefix("network."): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(model.onnx).graph.initializer
        if tensor.name.startswith("network.")
    }


def _onnxruntime_engine(model: ModelFolder) -> Predictor:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(model.onnx), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(windows: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: windows.numpy()})[0])

    return predict


def _openvino_engine(model: ModelFolder, precision: str) -> Predictor:
    import openvino as ov

    # the hint is a must: on CPUs with AMX or AVX512-BF16 the default silently is bf16
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(str(model.onnx), "CPU", settings)

    def predict(windows: Tensor) -> Tensor:
        return torch.from_numpy(compiled(windows.numpy())[0].copy())

    return predict
