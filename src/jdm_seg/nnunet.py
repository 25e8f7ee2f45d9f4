"""A data set as nnU-Net v2 reads it, so that nnU-Net can be trained on the same cases and scored by the same command.

Layout: ``Dataset501_Calcinosis/{imagesTr,labelsTr,imagesTs,labelsTs}``; scans carry the channel in their name,
``<case_id>_0000.nii.gz``, labels do not. ``labelsTs`` is not read by nnU-Net; ``jdm-seg evaluate`` scores with it.

Source: nnU-Net documentation/dataset_format.md and, for ``splits_final.json``, manual_data_splits.md.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jdm_seg.cases import Case, Manifest
from jdm_seg.errors import InputError
from jdm_seg.lesions import read_mask
from jdm_seg.volume import read_volume, write_text, write_volume

FILE_ENDING = ".nii.gz"
LABELS = {"background": 0, "calcinosis": 1}
CHANNELS = {"ct": "CT", "stir": "STIR"}
"""nnU-Net normalises a channel called CT by the foreground's HU, any other by its own mean and spread."""


def write_nnunet(
    manifest: Manifest,
    out: Path,
    *,
    dataset_id: int = 501,
    name: str = "Calcinosis",
    on_case: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write labelled cases as an nnU-Net v2 raw data set.

    Training and validation cases go to ``imagesTr``, with ``splits_final.json`` saying which are which; testing cases
    to ``imagesTs``. Scans stay as they are; labels become 0 and 1. Copy ``splits_final.json`` into the folder that
    ``nnUNetv2_plan_and_preprocess`` makes.

    Args:
        manifest: Cases of one modality; training and validation cases need a label.
        out: ``nnUNet_raw``: the data set's folder is made in it.
        dataset_id: 1 to 999.
        name: Letters, digits and hyphens.
        on_case: Called with the id of each case written.

    Returns:
        The data set's folder.

    Raises:
        InputError: For another id or name, cases of two modalities, a case without a label, no training case, a label
            on another grid, or a folder that exists.
    """
    training, validation, testing = (manifest.cases.get(split, ()) for split in ("training", "validation", "testing"))
    modality = _check(manifest, training + validation, dataset_id, name)
    folder = out / f"Dataset{dataset_id:03d}_{name}"
    if folder.exists():
        raise InputError(folder, expected="a new folder", found="one that exists", remedy="remove it or choose an id")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for case in (*training, *validation, *testing):
            suffix = "Ts" if case in testing else "Tr"
            _write_case(case, partial / f"images{suffix}", partial / f"labels{suffix}")
            on_case(case.case_id)
        facts = {
            "channel_names": {"0": CHANNELS[modality]},
            "labels": LABELS,
            "numTraining": len(training) + len(validation),
            "file_ending": FILE_ENDING,
            "name": name,
        }
        write_text(partial / "dataset.json", json.dumps(facts, indent=1) + "\n")
        if validation:
            split = {"train": [case.case_id for case in training], "val": [case.case_id for case in validation]}
            write_text(partial / "splits_final.json", json.dumps([split], indent=1) + "\n")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check(manifest: Manifest, labelled: tuple[Case, ...], dataset_id: int, name: str) -> str:
    """Return the modality of all cases."""
    if not 1 <= dataset_id <= 999:
        raise InputError("data set id", expected="1 to 999", found=str(dataset_id), remedy="choose another")
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise InputError("name", expected="letters, digits and hyphens", found=repr(name), remedy="choose another")
    if not labelled:
        raise InputError("data set", expected="at least one training case", found="none", remedy="add labelled cases")
    modalities = sorted({case.modality for case in manifest.all})
    if len(modalities) > 1:
        raise InputError(
            "data set", expected="one modality", found=" and ".join(modalities), remedy="write one data set of each"
        )
    for case in labelled:
        if case.label is None:
            raise InputError(
                case.case_id, expected="a label", found="none", remedy="label it or move it to the testing split"
            )
    return modalities[0]


def _write_case(case: Case, images: Path, labels: Path) -> None:
    scan = read_volume(case.image)
    images.mkdir(parents=True, exist_ok=True)
    target = images / f"{case.case_id}_0000{FILE_ENDING}"
    if case.image.name.endswith(FILE_ENDING):
        shutil.copyfile(case.image, target)
    else:
        write_volume(target, scan.array, scan)
    if case.label is None:
        return
    label = read_mask(case.label)
    scan.check_same_grid(label)
    # on the scan's own header: nnU-Net refuses labels whose geometry differs in the last digit
    write_volume(labels / f"{case.case_id}{FILE_ENDING}", label.array, scan, np.uint8)
