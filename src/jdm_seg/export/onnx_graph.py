"""A network as an ONNX file: any batch, any window, one output, and what it is written into the file itself."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from jdm_seg.networks import as_levels, foreground_logit

OPSET = 20
_SMALL = 256
"""Tensors of fewer numbers stay in f32: they are nothing to save, and norms are where rounding would tell."""
_MULTIPLES = (16, 32, 8)
"""Sides that networks of this package need: 16 at four levels with space to depth, 32 at five or six."""


class ForegroundNetwork(nn.Module):
    """A network that answers with one logit, that of the foreground, so that one volume leaves the graph."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network of one or several classes."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 1, X, Y, Z) to (B, 1, X, Y, Z)."""
        return foreground_logit(as_levels(self.network(image))[0])


def write_graph(network: ForegroundNetwork, path: Path, patch_size: tuple[int, int, int]) -> bool:
    """Export a network.

    Args:
        network: In evaluation mode.
        path: File to write.
        patch_size: The model's window.

    Returns:
        Whether windows of other sizes pass through the graph; a network whose layers depend on the window (attention
        with tables of positions) is exported for this one alone. The batch is free either way.
    """
    batch = torch.export.Dim("batch")
    stride = _stride(network.network, patch_size)
    sides = {2 + axis: stride * torch.export.Dim(f"{name}_blocks") for axis, name in enumerate("xyz")}
    # sides that differ from each other and a batch of 2: equal sizes or a 1 would be taken for constants
    free = torch.zeros(2, 1, *(stride * n for n in (3, 4, 5)))
    try:
        _export(network, path, free, {0: batch, **sides})
    except Exception:  # the exporter has many errors of its own; the fixed window raises what is not about shapes
        logging.getLogger(__name__).debug("no free window", exc_info=True)
        _export(network, path, torch.zeros(2, 1, *patch_size), {0: batch})
        return False
    return True


def _export(network: nn.Module, path: Path, example: Tensor, dims: dict[int, Any]) -> None:
    with _silent():
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["image"],
            output_names=["logit"],
            dynamic_shapes={"image": dims},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=True,
        )


def _stride(network: nn.Module, patch_size: tuple[int, int, int]) -> int:
    """Return what every side of a window must be a multiple of."""
    known = getattr(network, "divisor", None)
    if isinstance(known, int):
        return known
    return next((n for n in _MULTIPLES if all(side % n == 0 for side in patch_size)), 8)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's progress remarks off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def round_weights(network: nn.Module) -> int:
    """Round weights to float16 in place, so that storing them so loses nothing more.

    Small tensors (norms, biases) and values beyond float16 stay as they are.

    Returns:
        How many numbers were rounded.
    """
    count = 0
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() >= _SMALL:
                rounded = parameter.to(torch.float16).to(parameter.dtype)
                if torch.isfinite(rounded).all():
                    parameter.copy_(rounded)
                    count += parameter.numel()
    return count


def compact_graph(path: Path) -> None:
    """Store weights that are exact in float16 in float16, each followed by a cast: the graph computes as before.

    Engines fold the casts when they load the file, so nothing is slower; half the bytes travel.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16) if values.dtype == np.float32 and values.size >= _SMALL else None
        if half is None or not np.array_equal(half.astype(np.float32), values):
            continue
        # the initializer keeps its name: by it, torch finds the weight
        wide = f"{tensor.name}_f32"
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[place] = wide
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
        casts.append(helper.make_node("Cast", [tensor.name], [wide], f"{tensor.name}_cast", to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    # the exporter lists shapes and types of everything; those of the weights are no longer true
    halved = {cast.input[0] for cast in casts}
    for info in [info for info in graph.value_info if info.name in halved]:
        graph.value_info.remove(info)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_half_graph(source: Path, target: Path) -> None:
    """Write a graph that computes in float16; input and output stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _silent():
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
        onnx.save(model, target)


def write_int8_graph(source: Path, target: Path, windows: Iterable[Tensor]) -> None:
    """Write a graph whose convolutions multiply in int8, with ranges measured on windows (1, 1, X, Y, Z)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Windows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(windows)

        def get_next(self) -> dict[str, Any] | None:
            window = next(self._left, None)
            return None if window is None else {"image": window.numpy()}

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing that the exporter has done
    try:
        with _silent():
            quantize_static(
                str(source),
                str(target),
                Windows(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    finally:
        logger.setLevel(level)


def stamp(path: Path, facts: dict[str, str]) -> None:
    """Write facts about the model into the file's metadata."""
    model = onnx.load(path)
    helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, **facts})
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # the exporter's: calls with the paths of the machine it ran on
        part.doc_string = ""
    onnx.save(model, path)


def read_stamp(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights: names, shapes, and values in float32, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()


def centred_before_norms(path: Path) -> bytes:
    """Return a graph that takes the mean off before each instance normalisation, which changes nothing but rounding.

    OpenVINO's normalisation adds a channel up in one float32 sum. Around a mean far from 0 that costs three digits:
    the largest logit difference of a trained network was 1.4e-3, and is half of it or less this way, for 5 % of time.
    """
    model = onnx.load(path)
    graph = model.graph
    nodes = []
    for node in graph.node:
        if node.op_type == "InstanceNormalization":
            source, own = node.input[0], f"{node.output[0]}_centred"
            nodes.append(helper.make_node("ReduceMean", [source, "spatial_axes"], [f"{own}_mean"]))
            nodes.append(helper.make_node("Sub", [source, f"{own}_mean"], [own]))
            node.input[0] = own
        nodes.append(node)
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array([2, 3, 4]), "spatial_axes"))
        del graph.node[:]
        graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content
