"""Is this installation sound? Looks at machine, packages, engines and models, and works once on a tiny case.

Imports nothing heavy at its top: a package that is broken must become a line with a remedy, not a traceback.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jdm_seg
from jdm_seg.errors import reason_of
from jdm_seg.machine import available_memory, free_disk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

State = Literal["ok", "note", "broken"]

EXTRAS: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "dicom": ("pydicom", "highdicom", "pylibjpeg", "openjpeg", "libjpeg"),
    "track": ("SimpleITK",),
    "nrrd": ("nrrd",),
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "sweep": ("optuna",),
    "bundle": ("ignite", "fire"),
    "swin": ("einops",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "notebooks": ("jupytext", "nbclient", "ipykernel"),
}
"""Modules behind every extra of pyproject.toml."""
_LOW_MEMORY = 4e9
_LOW_DISK = 2e9
_LEAST_F1 = 0.5
"""The threshold finds 0.84 of the self test's deposits (lesion F1); far below it something computes wrongly. Assumed:
wide enough for changes of the generator."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: What it belongs to: machine, packages, engines, ...
        name: What was looked at.
        state: ``ok``; ``note``: something optional is not there, or scarce; ``broken``: no work without it.
        found: What was found, in words.
        remedy: What to do; empty if all is well.
    """

    group: str
    name: str
    state: State
    found: str
    remedy: str = ""


def examine(*, self_test: bool = True, work: Path | None = None) -> Iterator[Check]:
    """Look at everything, cheapest first.

    Args:
        self_test: Work once too (about ten seconds): make a case, segment it with the threshold, score it.
        work: Folder whose disk is looked at; None: the current one.

    Yields:
        A check as soon as it is done. Nothing is raised: what fails becomes a check that is broken.
    """
    yield from _machine(work or Path.cwd())
    yield from _packages()
    yield _guarded("packages", "configs", _configs)
    yield from _engines()
    yield _guarded("engines", "cuda", _cuda)
    yield _guarded("models", "shipped", _models)
    yield from _extras()
    if self_test:
        yield _guarded("self test", "synthesise, segment, score", _self_test)


def _guarded(group: str, name: str, look: Callable[[], Check]) -> Check:
    """Run one look; whatever it raises is its finding."""
    try:
        return look()
    except Exception as error:  # a broken installation may raise anything
        return Check(group, name, "broken", reason_of(error), "see the packages above; if they are well, report it")


def _machine(work: Path) -> Iterator[Check]:
    yield Check("machine", "jdm_seg", "ok", f"{jdm_seg.__version__}, Python {platform.python_version()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("machine", "cores", "ok", f"{cores} on {platform.system()} {platform.machine()}")
    memory = available_memory()
    if memory is None:
        yield Check("machine", "memory", "ok", "the system does not say")
    elif memory < _LOW_MEMORY:
        yield Check("machine", "memory", "note", f"{memory / 1e9:.1f} GB free", "close other programs")
    else:
        yield Check("machine", "memory", "ok", f"{memory / 1e9:.1f} GB free")
    free = free_disk(work)
    scarce = free < _LOW_DISK
    remedy = "make room, or work in another folder" if scarce else ""
    yield Check("machine", "disk here", "note" if scarce else "ok", f"{free / 1e9:.0f} GB free", remedy)


def _packages() -> Iterator[Check]:
    """Compare what is installed with what the package's own metadata ask for."""
    try:
        from packaging.requirements import Requirement

        needed = [Requirement(text) for text in metadata.requires("jdm-seg") or []]
    except (ImportError, metadata.PackageNotFoundError) as error:
        yield Check("packages", "core", "broken", reason_of(error), "pip install jdm-seg, or make install")
        return
    core = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = 0
    for one in core:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not one.specifier.contains(version or "0", prereleases=True) or not version:
            wrong += 1
            found = version or "not installed"
            yield Check("packages", one.name, "broken", f"{found}, needs {one.specifier}", f'pip install "{one}"')
    if not wrong:
        shown = ("torch", "monai", "lightning", "numpy", "onnxruntime")
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in shown)
        yield Check("packages", "core", "ok", f"all {len(core)} as needed: {versions}")


def _configs() -> Check:
    from jdm_seg.config import compose

    config = compose([])
    return Check("packages", "configs", "ok", f"composed; network {config.network['_target_'].rpartition('.')[2]}")


def _engines() -> Iterator[Check]:
    """Run one small convolution in every engine; all must agree with SciPy."""
    yield _guarded("engines", "torch", lambda: _same_as_scipy("torch", _convolve_torch))
    yield _guarded("engines", "onnxruntime", lambda: _same_as_scipy("onnxruntime", _convolve_onnxruntime))
    if find_spec("openvino") is None:
        yield Check("engines", "openvino", "note", "not installed", 'fastest on CPUs: pip install "jdm-seg[openvino]"')
    else:
        yield _guarded("engines", "openvino", lambda: _same_as_scipy("openvino", _convolve_openvino))


Convolve = Callable[["NDArray[np.float32]", "NDArray[np.float32]"], Any]


def _same_as_scipy(engine: str, convolve: Convolve) -> Check:
    import numpy as np
    from scipy.ndimage import correlate

    rng = np.random.default_rng(0)
    volume, kernel = (rng.normal(size=(n, n, n)).astype(np.float32) for n in (8, 3))
    expected = correlate(volume.astype(np.float64), kernel.astype(np.float64), mode="constant")[1:-1, 1:-1, 1:-1]
    worst = float(np.abs(np.asarray(convolve(volume, kernel)).squeeze() - expected).max())
    version = metadata.version(engine)
    if worst > 1e-4:  # float32 sums of 27 products round near 1e-6; bf16 would be off by 0.1
        return Check("engines", engine, "broken", f"{version}, off by {worst:.1e}", f"pip install --force {engine}")
    return Check("engines", engine, "ok", f"{version}, a convolution is right to {worst:.0e}")


def _convolve_torch(volume: NDArray[np.float32], kernel: NDArray[np.float32]) -> Any:
    import torch

    return torch.nn.functional.conv3d(torch.from_numpy(volume)[None, None], torch.from_numpy(kernel)[None, None])


def _convolve_onnxruntime(volume: NDArray[np.float32], kernel: NDArray[np.float32]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(_graph(kernel), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": volume[None, None]})[0]


def _convolve_openvino(volume: NDArray[np.float32], kernel: NDArray[np.float32]) -> Any:
    from jdm_seg.inference.engines import openvino_core

    core = openvino_core()
    compiled = core.compile_model(core.read_model(_graph(kernel)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(volume[None, None])[0]


def _graph(kernel: NDArray[np.float32]) -> bytes:
    """Return an ONNX file of one convolution of an 8 × 8 × 8 volume."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, n, n, n]) for name, n in (("x", 8), ("y", 6))]
    node = helper.make_node("Conv", ["x", "k"], ["y"])
    graph = helper.make_graph([node], "doctor", ends[:1], ends[1:], [numpy_helper.from_array(kernel[None, None], "k")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def _cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("engines", "cuda", "note", "no GPU that torch can use; the CPU is enough to predict")
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return Check("engines", "cuda", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")


def _models() -> Check:
    from jdm_seg.model_folder import open_model, shipped_models

    names = shipped_models()
    if not names:
        return Check("models", "shipped", "note", "none in this version", "use --model threshold, or train one")
    for name in names:
        open_model(name)
    return Check("models", "shipped", "ok", ", ".join(names))


def _extras() -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if not _is_there(module)]
        if missing:
            yield Check("extras", extra, "note", f"without {', '.join(missing)}", f'pip install "jdm-seg[{extra}]"')
        else:
            yield Check("extras", extra, "ok", "installed")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a dotted name the parent is missing
        return False


def _self_test() -> Check:
    """Make a case, segment it with the threshold, score it: the way that every scan goes, without a model."""
    from jdm_seg.baseline import ThresholdSegmenter
    from jdm_seg.evaluate import evaluate_folders
    from jdm_seg.inference.batch import predict_batch
    from jdm_seg.synthesis.dataset import synthesize_dataset

    begin = time.perf_counter()
    name = "synthesise, segment, score"
    with tempfile.TemporaryDirectory(prefix="jdm_seg_doctor_") as folder:
        data, results = Path(folder) / "data", Path(folder) / "results"
        synthesize_dataset(data, modality="ct", cases=1, seed=0, preset="smoke")
        batch = predict_batch(data / "images", results, ThresholdSegmenter("ct"))
        if batch.failed:
            return Check("self test", name, "broken", batch.failed[0]["error"], "report it, with this output")
        figures = evaluate_folders(results, data / "labels", Path(folder) / "scores")["figures"]
    f1 = figures["lesion_f1"]["mean"]
    found = f"lesion F1 {'undefined' if f1 is None else f'{f1:.2f}'}, {time.perf_counter() - begin:.0f} s"
    if f1 is None or f1 < _LEAST_F1:
        return Check("self test", name, "broken", f"{found}; at least {_LEAST_F1} is expected", "report it")
    return Check("self test", name, "ok", found)
