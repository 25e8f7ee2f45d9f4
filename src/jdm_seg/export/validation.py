"""Labelled whole scans that a run was not trained on, ready for its network: what calibration and parity measure on."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.cases import Case, as_modality, find_scans, read_manifest
from jdm_seg.config import PreprocessConfig
from jdm_seg.errors import InputError
from jdm_seg.synthesis.insert import IGNORE, InsertCalcinosisd
from jdm_seg.synthesis.recipe import preset_of, synthesize_body
from jdm_seg.transforms import LoadCase, Normalized, intensity_range, normalize, preprocess, preprocess_label
from jdm_seg.volume import Spacing, Volume

MAX_VOXELS = 120_000_000
"""Of all calibration scans together, on the model's grid: minutes of a laptop."""
_DRAWS = 3
"""How often deposits are put into a validation scan without a label: one draw of five deposits says little."""
_AIR = -1.0
SYNTHETIC = "synthetic body"
LABELLED = "validation case"
_SYNTHETIC_SEED = 90_001
"""Far from the seeds of data sets: bodies that no run was trained on."""
_SYNTHETIC_CASES = 2


@dataclass(frozen=True)
class ValidationScan:
    """One scan on the model's grid.

    Attributes:
        case_id: Which.
        image: Normalised, shape (X, Y, Z), float32.
        label: 1 at deposits, 255 where nothing is known, 0 elsewhere; same shape.
        spacing: Voxel size in mm.
        origin: Where scan and label are from, in words.
    """

    case_id: str
    image: Tensor
    label: NDArray[np.uint8]
    spacing: Spacing
    origin: str

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Where the label is known and the network is asked: in the body, but for what is to be ignored."""
        counted: NDArray[np.bool_] = (self.image.numpy() > _AIR) & (self.label != IGNORE)
        return counted


def validation_scans(run: Path, config: PreprocessConfig, max_scans: int) -> list[ValidationScan]:
    """Return validation scans of a run, deposits inserted where they have no label, and synthetic bodies.

    Where nothing is labelled, or nothing is left, synthetic bodies fill up: one odd scan among three real ones would
    settle alone from which probability lesions count.

    Args:
        run: Run folder of ``jdm-seg train``.
        config: The run's preprocessing.
        max_scans: At most so many, the first ones of the split that fit into :data:`MAX_VOXELS`. One without a label
            counts once, and comes in several draws of deposits.

    Returns:
        At least one: a folder that has been moved or deleted is no reason to ship a model unmeasured.
    """
    scans: list[ValidationScan] = []
    voxels = 0
    cases = _cases_of(run, config)
    taken = 0
    for case in cases:
        if taken == max_scans:
            break
        draws = [_load(case, config, draw) for draw in range(_DRAWS if case.label is None else 1)]
        if voxels + sum(scan.image.numel() for scan in draws) <= MAX_VOXELS:
            scans += draws
            voxels += sum(scan.image.numel() for scan in draws)
            taken += 1
    if not scans:
        return list(synthetic_scans(config, min(max_scans, _SYNTHETIC_CASES)))
    missing = 0 if any(case.label is not None for case in cases) else max_scans - taken
    return [*scans, *synthetic_scans(config, missing)]


def synthetic_scans(config: PreprocessConfig, count: int, seed: int = _SYNTHETIC_SEED) -> Iterator[ValidationScan]:
    """Yield procedural limbs of a seed, with deposits."""
    modality = as_modality(config.modality)
    preset = preset_of(modality, "smoke")
    number = made = 0
    while made < count:
        case = synthesize_body(modality, preset, (seed, number))
        number += 1
        if not case.label.any():  # a share of bodies has none
            continue
        made += 1
        name = f"synthetic-{seed}-{number - 1}"
        image, placement = preprocess(Volume(case.image, case.affine, name), config)
        label = preprocess_label(Volume(case.label, case.affine, name), placement)
        if case.faint is not None:
            label[preprocess_label(Volume(case.faint, case.affine, name), placement) > 0] = IGNORE
        values = normalize(image, intensity_range(image, config.intensity))
        yield ValidationScan(name, torch.from_numpy(values), label, config.spacing, SYNTHETIC)


def random_windows(scans: list[ValidationScan], size: tuple[int, int, int], count: int, seed: int = 0) -> list[Tensor]:
    """Cut windows (1, 1, *size) out of scans, every second around a deposit; padded with air.

    Args:
        scans: To cut from, in turn.
        size: Voxels of a window along x, y, z.
        count: How many.
        seed: Draws the places.

    Returns:
        The windows, values as the network takes them.
    """
    rng = np.random.default_rng(seed)
    windows = []
    for number in range(count):
        scan = scans[number % len(scans)]
        where = np.argwhere(scan.label == 1) if number % 2 == 0 else np.zeros((0, 3), int)
        shape = np.array(scan.image.shape)
        centre = where[rng.integers(len(where))] if len(where) else rng.integers(shape)
        start = np.clip(centre - np.array(size) // 2, 0, np.maximum(shape - size, 0))
        window = torch.full((1, 1, *size), _AIR)
        part = scan.image[tuple(slice(int(a), int(a) + n) for a, n in zip(start, size, strict=True))]
        x, y, z = part.shape
        window[0, 0, :x, :y, :z] = part
        windows.append(window)
    return windows


def drawn_scans(run: Path, config: PreprocessConfig, split: str, draws: int) -> Iterator[ValidationScan]:
    """Yield the scans of a split that are still at hand, without synthetic bodies.

    Args:
        run: Run folder of ``jdm-seg train``.
        config: The run's preprocessing.
        split: ``training`` or ``validation``.
        draws: How often deposits are put into a scan without a label, elsewhere each time; others come once.
    """
    for case in _cases_of(run, config, split):
        for draw in range(draws if case.label is None else 1):
            yield _load(case, config, draw)


def _cases_of(run: Path, config: PreprocessConfig, split: str = "validation") -> list[Case]:
    """Return the cases of a run's split that are still at hand, labelled ones first."""
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    names = json.loads((run / "splits.json").read_text(encoding="utf-8"))[split]
    found: dict[str, Case] = {}
    if data.get("backgrounds") is not None:
        found |= _by_name(lambda: find_scans(data["backgrounds"], as_modality(config.modality)))
    if data.get("root") is not None:
        found |= _by_name(lambda: list(read_manifest(data["root"]).all))
    cases = [found[name] for name in names if name in found and found[name].image.is_file()]
    return sorted(cases, key=lambda case: case.label is None)


def _by_name(find: Any) -> dict[str, Case]:
    try:
        return {case.case_id: case for case in find()}
    except InputError:  # moved or deleted since
        return {}


def _load(case: Case, config: PreprocessConfig, draw: int = 0) -> ValidationScan:
    inserting = case.label is None
    sample: dict[Hashable, Any] = dict(LoadCase(config, host=inserting)(case).items())
    if inserting:
        modality = as_modality(config.modality)
        insert = InsertCalcinosisd(config.spacing, probability=1.0, modality=modality)
        # of the case and the draw alone: the same deposits at every export
        key = [*case.case_id.encode(), draw] if draw else [*case.case_id.encode()]
        insert.set_random_state(int(np.random.default_rng(key).integers(2**31)))
        sample = insert(sample)
    normal = Normalized()(sample)
    origin = "validation scan, deposits inserted" if inserting else LABELLED
    image, label = normal["image"][0], normal["label"][0].numpy()
    return ValidationScan(case.case_id, image, label, config.spacing, origin)
