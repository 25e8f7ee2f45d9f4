"""One call for every engine: normalised windows in, foreground logits out.

What is asked for is what runs: an engine is never given a precision that it would quietly lower. TF32 on NVIDIA GPUs
and bf16 on CPUs that have it are such lowerings, and are switched off unless asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from jdm_seg.errors import InputError, reason_of
from jdm_seg.export.onnx_graph import centred_before_norms
from jdm_seg.inference.sliding_window import Predictor
from jdm_seg.model_folder import ModelFolder, ModelSpec

EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]
Precision = Literal["f32", "bf16", "f16", "int8"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
CAN = {
    "torch": ("f32", "bf16", "f16"),
    "openvino": ("f32", "bf16"),
    "onnxruntime": ("f32", "f16", "int8"),
}
"""What engines compute in. ONNX Runtime needs a model that was exported in f16 or int8; torch has f16 on GPUs only."""
FASTEST_FIRST = {"cpu": ("openvino", "onnxruntime", "torch"), "cuda": ("torch", "onnxruntime")}
"""By scripts/bench_inference.py on CPUs; on GPUs assumed."""
_LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EngineChoice:
    """An engine and why it was chosen, in words for ``run.json``."""

    name: EngineName
    reason: str


def choose_engine(spec: ModelSpec, name: str, device: str, precision: str = "f32") -> EngineChoice:
    """Return the engine that a name stands for; ``auto``: the fastest that is installed and passed parity.

    Args:
        spec: The model, which knows what passed when it was exported.
        name: One of :data:`ENGINES`.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: One of :data:`PRECISIONS`.

    Raises:
        InputError: If the name is unknown, the engine is not installed, or none can do what is asked.
    """
    if name not in ENGINES:
        raise InputError("--engine", expected=f"one of {', '.join(ENGINES)}", found=repr(name), remedy="choose one")
    if name != "auto":
        if find_spec(name) is None:
            raise InputError(
                "--engine",
                expected=f"{name} to be installed",
                found="no such package",
                remedy=f'pip install "jdm-seg[{name}]", or use another engine',
            )
        passed = passed_parity(spec, name, precision)
        known = {True: "it passed parity", False: "it did not pass parity", None: "parity was not measured"}[passed]
        return EngineChoice(cast(EngineName, name), f"asked for; {known} when the model was exported")
    _check_precision(precision)
    skipped: list[str] = []
    for engine in FASTEST_FIRST[device.split(":")[0] if device.startswith("cuda") else "cpu"]:
        why_not = _why_not(spec, engine, precision)
        if why_not is None:
            because = "the fastest that is installed and passed parity when the model was exported"
            return EngineChoice(cast(EngineName, engine), "; ".join([because, *skipped]))
        skipped.append(f"{engine}: {why_not}")
    if precision == "f32" and not spec.parity:
        # a folder that says nothing of parity: the network in it is what ONNX Runtime runs
        engine = "torch" if device.startswith("cuda") else "onnxruntime"
        return EngineChoice(cast(EngineName, engine), "parity was not measured when the model was exported")
    raise InputError(
        f"--precision {precision}",
        expected="an engine that passed parity in it",
        found="; ".join(skipped),
        remedy="use --precision f32, or name an engine with --engine to take it all the same",
    )


def _why_not(spec: ModelSpec, engine: str, precision: str) -> str | None:
    if find_spec(engine) is None:
        return "not installed"
    if precision not in CAN[engine]:
        return f"has no {precision}"
    passed = passed_parity(spec, engine, precision)
    return None if passed else ("parity not measured" if passed is None else "did not pass parity")


def passed_parity(spec: ModelSpec, engine: str, precision: str = "f32") -> bool | None:
    """Tell whether an engine answered as the trained network when the model was exported; None: not measured."""
    offered = spec.offers(engine, precision)
    if offered is not None or precision != "f32":
        return offered
    patch = spec.parity.get("patch", {})  # folders of the first version of the report
    largest = patch.get(f"{engine}_max_logit_difference") if isinstance(patch, dict) else None
    return None if largest is None else bool(largest <= _LOGIT_TOLERANCE)


def build_engine(
    model: ModelFolder, name: EngineName, *, device: str = "cpu", precision: str = "f32", compiled: bool = False
) -> Predictor:
    """Load a model into an engine.

    Args:
        model: The model folder.
        name: An engine, not ``auto``.
        device: ``cpu``; ``cuda`` or ``cuda:N`` with torch and ONNX Runtime; ``tensorrt`` or ``tensorrt:N`` with ONNX
            Runtime, which builds its own program for the GPU when the first window comes (minutes).
        precision: One that the engine has, see :data:`CAN`.
        compiled: Let torch compile the network when the first window comes (a minute); worth it on GPUs.

    Returns:
        (B, 1, X, Y, Z) float32 tensor → (B, 1, X, Y, Z) float32 foreground logits.

    Raises:
        InputError: If the engine cannot do that.
    """
    _check_precision(precision)
    if not re.fullmatch(r"cpu|(cuda|tensorrt)(:\d+)?", device):
        raise InputError("--device", expected="cpu, cuda or cuda:N", found=repr(device), remedy="choose one")
    if precision not in CAN[name]:
        raise InputError(
            "--precision",
            expected=f"{' or '.join(CAN[name])} with {name}",
            found=precision,
            remedy="use another --engine or --precision",
        )
    wrong = (name == "openvino" and device != "cpu") or (name == "torch" and device.startswith("tensorrt"))
    if wrong:
        raise InputError(
            "--device", expected=f"another engine than {name}", found=device, remedy="use --engine torch or onnxruntime"
        )
    if name == "torch" and precision == "f16" and device == "cpu":
        raise InputError("--precision", expected="f16 on a GPU", found="cpu", remedy="use --device cuda or bf16")
    try:
        if name == "torch":
            return _torch_engine(model, device, precision, compiled)
        return _openvino_engine(model, precision) if name == "openvino" else _onnxruntime(model, device, precision)
    except InputError:
        raise
    except Exception as error:  # each engine has its own errors, of plain Exception
        raise InputError(
            f"model {model.path.name}",
            expected=f"a network that {name} can load",
            found=reason_of(error),
            remedy="copy or export the model again",
        ) from error


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise InputError("--precision", expected=" or ".join(PRECISIONS), found=repr(precision), remedy="choose one")


def _torch_engine(model: ModelFolder, device: str, precision: str, compiled: bool) -> Predictor:
    from jdm_seg.networks import as_levels, build_network, foreground_logit

    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise InputError("--device", expected="a CUDA GPU", found="none", remedy="use --device cpu")
    network = build_network(model.spec.network)
    # not strict: heads that only training uses are not in the graph; parity at export proves that the rest is enough
    network.load_state_dict(torch_weights(model), strict=False)
    network.to(device).eval()
    # tensor cores want channels last; on CPUs it measured slower
    channels_last = on_gpu and precision != "f32"
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    run = torch.compile(network) if compiled else network
    lower = torch.float16 if precision == "f16" else torch.bfloat16

    def predict(windows: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(device.split(":")[0], lower, enabled=precision != "f32"),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
        ):
            windows = windows.to(device)
            if channels_last:
                windows = windows.contiguous(memory_format=torch.channels_last_3d)
            return foreground_logit(as_levels(run(windows))[0]).float()

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


def _onnxruntime(model: ModelFolder, device: str, precision: str) -> Predictor:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = execution_providers(device, ort.get_available_providers())
    session = ort.InferenceSession(str(model.graph(precision)), options, providers=providers)
    name = session.get_inputs()[0].name

    def predict(windows: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: windows.cpu().numpy()})[0])

    return predict


def execution_providers(device: str, available: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return ONNX Runtime's providers for a device, best first, each with the settings that keep it in f32.

    Args:
        device: ``cpu``, ``cuda[:N]`` or ``tensorrt[:N]``.
        available: What the installed ONNX Runtime was built with.

    Raises:
        InputError: If it was built without the device.
    """
    kind, _, number = device.partition(":")
    gpu = {"device_id": int(number or 0)}
    chosen: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "cpu": [],
        "cuda": [("CUDAExecutionProvider", {**gpu, "use_tf32": 0})],
        "tensorrt": [
            ("TensorrtExecutionProvider", {**gpu, "trt_fp16_enable": False, "trt_int8_enable": False}),
            ("CUDAExecutionProvider", {**gpu, "use_tf32": 0}),
        ],
    }
    missing = [name for name, _ in chosen[kind] if name not in available]
    if missing:
        raise InputError(
            "--device",
            expected=f"an ONNX Runtime with {missing[0]}",
            found=f"one with {', '.join(available)}",
            remedy="pip install onnxruntime-gpu, or use --engine torch",
        )
    return [*chosen[kind], ("CPUExecutionProvider", {})]


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the one OpenVINO runtime of this process.

    Each gives the thread a signal stack of its own and unmaps it when it goes. Two that do not go in reverse order
    leave a stack that is no longer there, and the next signal (Ctrl-C, SIGTERM) ends the process without a word.
    """
    import openvino

    return openvino.Core()


def _openvino_engine(model: ModelFolder, precision: str) -> Predictor:
    settings: dict[str, Any] = {
        # a must: on CPUs with AMX or AVX512-BF16 the default silently is bf16
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = openvino_core()
    compiled = core.compile_model(core.read_model(centred_before_norms(model.onnx)), "CPU", settings)

    def predict(windows: Tensor) -> Tensor:
        return torch.from_numpy(compiled(windows.cpu().numpy())[0].copy())

    return predict
