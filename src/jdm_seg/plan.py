"""Settings that follow from a data set and a machine, where a config leaves them open: voxels, window, depth, batch.

``experiment=auto`` leaves them open (zeros); whatever is given stays. What was measured and what follows from it
stands in ``plan.json`` in the run folder.

Source: fingerprint and rules after nnU-Net (Isensee et al., Nat. Methods 2021), with lesions instead of organs in mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jdm_seg.cases import Case
from jdm_seg.components import find_lesions
from jdm_seg.config import TrainConfig
from jdm_seg.errors import InputError
from jdm_seg.machine import available_memory
from jdm_seg.networks import as_levels, build_network
from jdm_seg.volume import Spacing, read_volume

_FINEST_MM = 1.0
"""Low-dose CT and STIR resolve no more; finer voxels cost eight times the work for each halving."""
_ANISOTROPIC = 3.0
"""Slices this much thicker than the pixels: the finer tenth of the scans decides their thickness, as in nnU-Net."""
_VIEW_MM = 144.0
"""A window shows a knee, or half a thigh with its bone: what deposits are told from."""
_CPU_VOXELS = 96**3
"""On a CPU time is short before memory is: about what a few cores train in a second."""
_OURS = "jdm_seg.networks.SpaceToDepthUNet"
_MEMORY_SHARE = 0.6
"""Of what is free; the rest is for scans, workers and what allocators waste."""
_LEAST_LEVELS = 3
_BOTTOM = 4
"""Voxels across a window where a network has halved most often, as in nnU-Net, if memory allows so wide a window for a
shallower one."""
_WORD = 16
"""Bytes a weight: itself, its gradient, two moments of Adam."""


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like.

    Attributes:
        cases: How many were read.
        spacing_mm: Voxel size along x, y, z: rows of the 10th, 50th and 90th percentile.
        extent_mm: Median size of the scans along x, y, z.
        lesions: How many deposits; 0 without labels.
        lesion_mm3: Their volumes, 10th, 50th and 90th percentile.
        lesion_values: Voxel values in them, the same.
        slices_across: How many scans have thick slices across x, y and z. Where that differs, each is described as
            if its slices lay as most do.
    """

    cases: int
    spacing_mm: tuple[Spacing, Spacing, Spacing]
    extent_mm: Spacing
    lesions: int
    lesion_mm3: tuple[float, float, float] | None
    lesion_values: tuple[float, float, float] | None
    slices_across: tuple[int, int, int] = (0, 0, 0)


def fingerprint(cases: Sequence[Case]) -> Fingerprint:
    """Read scans and labels and describe them.

    Args:
        cases: Of the training split, at least one.

    Raises:
        InputError: If a file cannot be read or a label lies on another grid.
    """
    spacings: list[NDArray[Any]] = []
    extents: list[NDArray[Any]] = []
    volumes: list[float] = []
    values: list[NDArray[Any]] = [np.zeros(0, np.float32)]
    for case in cases:
        scan = read_volume(case.image).to_canonical()
        spacings.append(np.array(scan.spacing))
        extents.append(np.multiply(scan.array.shape, scan.spacing))
        if case.label is not None:
            mask = read_volume(case.label).to_canonical()
            scan.check_same_grid(mask)
            found = find_lesions(mask.array == 1, scan.spacing)
            volumes.extend((found.sizes_vox * np.prod(scan.spacing)).tolist())
            values.append(scan.array[tuple(found.indices.T)].astype(np.float32))
    inside = np.concatenate(values)
    slices = _lay_alike(spacings, extents)
    rows = [_triple(row) for row in np.percentile(spacings, (10, 50, 90), axis=0)]
    return Fingerprint(
        cases=len(cases),
        spacing_mm=(rows[0], rows[1], rows[2]),
        extent_mm=_triple(np.median(extents, axis=0)),
        lesions=len(volumes),
        lesion_mm3=_triple(np.percentile(volumes, (10, 50, 90))) if volumes else None,
        lesion_values=_triple(np.percentile(inside, (10, 50, 90))) if inside.size else None,
        slices_across=slices,
    )


def _lay_alike(spacings: list[NDArray[Any]], extents: list[NDArray[Any]]) -> tuple[int, int, int]:
    """Swap axes, in place, so that the thick slices of all scans lie as most do; return how many lay across each."""
    across = [int(np.argmax(s)) if np.max(s) > _ANISOTROPIC * np.median(s) else None for s in spacings]
    x, y, z = (across.count(axis) for axis in range(3))
    most = int(np.argmax((x, y, z)))
    for axis, *rows in zip(across, spacings, extents, strict=True):
        if axis is not None:
            for row in rows:
                row[[axis, most]] = row[[most, axis]]
    return x, y, z


def is_open(config: TrainConfig) -> bool:
    """Tell whether a config leaves something to be planned."""
    return not (all(config.preprocess.spacing) and all(config.data.patch_size) and config.data.batch_size)


def plan(config: TrainConfig, found: Fingerprint, memory: int) -> tuple[TrainConfig, dict[str, Any]]:
    """Fill in what a config leaves open.

    Args:
        config: With zeros for voxel size, window or batch. The package's own network halves less often where scans have
            few slices, or where the memory allows small windows only.
        found: What the data set is like.
        memory: Bytes that training may take on the device it runs on.

    Returns:
        The config, and what ``plan.json`` holds: the fingerprint, the memory and the choices.

    Raises:
        InputError: If not even one small window fits into the memory.
    """
    spacing, follow = config.preprocess.spacing, config.preprocess.follow_slices
    if not all(spacing):
        spacing = _spacing(found)
        follow = follow or np.count_nonzero(found.slices_across) > 1
    cpu = not on_gpu(config.trainer.accelerator)
    batch = config.data.batch_size
    for network, divisor in _depths(config.network, _levels(found, spacing)):
        saved, weights = training_memory(network, divisor)
        budget = memory * _MEMORY_SHARE - weights
        patch = config.data.patch_size
        if not all(patch):
            limit = budget / saved / (batch or 2)
            patch = _patch(found, spacing, divisor, min(limit, _CPU_VOXELS) if cpu else limit)
        voxels = int(np.prod(patch))
        widest = _patch(found, spacing, divisor, np.inf)
        if all(config.data.patch_size) or all(
            side >= min(_BOTTOM * divisor, most) for side, most in zip(patch, widest, strict=True)
        ):
            break
    if voxels * saved > budget:
        raise InputError(
            "data.patch_size",
            expected=f"a window that is trained in {memory / 1e9:.1f} GB",
            found=f"{tuple(patch)}, which needs about {(voxels * saved + weights) / 1e9:.1f} GB a patch",
            remedy="free memory, choose a smaller window or network, or another machine",
        )
    if not batch:
        most = 2 * _CPU_VOXELS // voxels if cpu else 8
        most = min(int(np.clip(most, 2, 8)), config.data.patches_per_epoch)
        batch = int(np.clip(budget // (voxels * saved), 1, most))
    chosen = {"spacing": list(spacing), "follow_slices": follow, "patch_size": list(patch), "batch_size": batch}
    if network["_target_"] == _OURS:
        chosen["channels"] = network["channels"]
    memory_used = {
        "free_bytes": memory,
        "bytes_a_patch_voxel": round(saved, 1),
        "expected_bytes": round(weights + saved * voxels * batch),
    }
    return as_chosen(config, chosen), {"fingerprint": asdict(found), "memory": memory_used, "chosen": chosen}


def as_chosen(config: TrainConfig, chosen: dict[str, Any]) -> TrainConfig:
    """Fill in the choices of a plan, now or for a run that goes on; what the config says itself stays as it says.

    Args:
        config: With zeros for what was left open.
        chosen: As ``plan.json`` holds it.
    """
    network = dict(config.network)
    if "channels" in chosen:
        network["channels"] = list(chosen["channels"])
    preprocess, data = config.preprocess, config.data
    if not all(preprocess.spacing):
        x, y, z = chosen["spacing"]
        preprocess = replace(preprocess, spacing=(x, y, z), follow_slices=chosen["follow_slices"])
    if not all(data.patch_size):
        i, j, k = chosen["patch_size"]
        data = replace(data, patch_size=(i, j, k))
    if not data.batch_size:
        data = replace(data, batch_size=chosen["batch_size"])
    return replace(config, network=network, preprocess=preprocess, data=data)


def on_gpu(accelerator: str) -> bool:
    """Tell whether ``trainer.accelerator`` means a GPU on this machine."""
    return accelerator != "cpu" and torch.cuda.is_available()


def free_memory(accelerator: str) -> int:
    """Return how many bytes training may take: of the GPU where one is used, else of this machine."""
    if on_gpu(accelerator):
        return int(torch.cuda.mem_get_info()[0])
    return available_memory() or 8 * 10**9


def training_memory(network: dict[str, Any], divisor: int) -> tuple[float, int]:
    """Measure what a training step keeps, in one small forward pass.

    Args:
        network: ``_target_`` and arguments.
        divisor: Patch sides are multiples of it.

    Returns:
        Bytes a voxel of the patch, and bytes that do not depend on it.
    """
    module = build_network(network)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    side = 2 * divisor
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        levels = as_levels(_forward(module, torch.zeros(1, 1, side, side, side)))
    saved = sum(size for place, size in kept.items() if place not in own)
    # logits, their gradients and what the loss makes of both: about eight volumes a channel
    losses = 8 * sum(level.numel() * 4 for level in levels)
    return (saved + losses) / side**3, sum(p.numel() for p in module.parameters()) * _WORD


def _forward(module: nn.Module, image: Tensor) -> Any:
    return module.train()(image)


def _spacing(found: Fingerprint) -> Spacing:
    fine, usual, _ = (np.array(row) for row in found.spacing_mm)
    coarse = int(np.argmax(usual))
    chosen = usual.copy()
    if usual[coarse] > _ANISOTROPIC * np.delete(usual, coarse).max():
        chosen[coarse] = fine[coarse]
    return _triple(np.round(np.maximum(chosen, _FINEST_MM), 2))


def _levels(found: Fingerprint, spacing: Spacing) -> int:
    """Return how often a network halves: less where a scan has few slices."""
    least = min(np.divide(found.extent_mm, spacing))
    return int(max(_LEAST_LEVELS, np.log2(max(least, 1))))


def _depths(network: dict[str, Any], most: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield a network and what the sides of its windows are multiples of; then shallower ones, if it is our own."""
    if network["_target_"] != _OURS:
        yield dict(network), 32
        return
    channels = list(network["channels"])[:most]
    for levels in range(len(channels), min(_LEAST_LEVELS, len(channels)) - 1, -1):
        yield {**network, "channels": channels[:levels]}, 2**levels


def _patch(found: Fingerprint, spacing: Spacing, divisor: int, most_voxels: float) -> tuple[int, int, int]:
    """Return the largest window that fits: as wide in mm along each axis, no wider than scans are."""
    sides = np.divide(np.minimum(found.extent_mm, _VIEW_MM), spacing)
    steps = np.maximum(1, np.ceil(sides / divisor - 1e-6)).astype(int)
    while np.prod(steps * divisor) > most_voxels and (steps > 1).any():
        steps[np.argmax(np.where(steps > 1, steps * np.array(spacing), 0))] -= 1
    x, y, z = (int(n) * divisor for n in steps)
    return x, y, z


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
