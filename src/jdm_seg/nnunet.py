"""A data set as nnU-Net v2 reads it, so that nnU-Net can be trained on the same cases and scored by the same command.

Layout: ``Dataset501_Calcinosis/{imagesTr,labelsTr,imagesTs,labelsTs}``; scans carry the channel in their name,
``<case_id>_0000.nii.gz``, labels do not. ``labelsTs`` is not read by nnU-Net; ``jdm-seg evaluate`` scores with it.
``cases.csv`` beside ``dataset.json``, which nnU-Net passes by, keeps what the layout has no place for: subject,
modality, split.

Source: nnU-Net documentation/dataset_format.md, ignore_label.md and, for ``splits_final.json``, manual_data_splits.md.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from jdm_seg.cases import SPLITS, Manifest, Modality
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.layouts.files import DataSet, Entry, labels_of, new_folder, store_image
from jdm_seg.masks import read_labels
from jdm_seg.segments import Segment, choose_segments
from jdm_seg.volume import write_table, write_text, write_volume

FILE_ENDING = ".nii.gz"
LABELS = {"background": 0, "calcinosis": 1}
IGNORE = 2
"""nnU-Net wants the ignore label to be the highest; it is declared only where a case has one."""
CHANNELS = {"ct": "CT", "stir": "STIR"}
"""nnU-Net normalises a channel called CT by the foreground's HU, any other by its own mean and spread."""
CASES = "cases.csv"
_COLUMNS = ("case_id", "subject_id", "modality", "split", "stratum")


def write_nnunet(
    manifest: Manifest | DataSet,
    out: Path,
    *,
    link: bool = False,
    dataset_id: int = 501,
    name: str = "Calcinosis",
    on_case: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write labelled cases as an nnU-Net v2 raw data set.

    Training and validation cases go to ``imagesTr``, with ``splits_final.json`` saying which are which; testing cases
    to ``imagesTs``. Scans stay as they are, byte for byte where they are ``.nii.gz``; labels become 0 and 1. Copy
    ``splits_final.json`` into the folder that ``nnUNetv2_plan_and_preprocess`` makes.

    Args:
        manifest: Cases of one modality; training and validation cases need a label.
        link: Link to ``.nii.gz`` scans instead of copying them.
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
    data = DataSet.of(manifest) if isinstance(manifest, Manifest) else manifest
    modality = _check(data, dataset_id, name)
    folder = out / f"Dataset{dataset_id:03d}_{name}"
    if folder.exists():
        raise InputError(folder, expected="a new folder", found="one that exists", remedy="remove it or choose an id")
    members = {split: [entry for entry in data.entries if entry.split == split] for split in SPLITS}
    training, validation = members["training"], members["validation"]
    with new_folder(folder) as partial:
        for entry in (*training, *validation, *members["testing"]):
            suffix = "Ts" if entry.split == "testing" else "Tr"
            _write_case(entry, partial / f"images{suffix}", partial / f"labels{suffix}", data.wanted, link=link)
            on_case(entry.case_id)
        ignores = any(entry.ignore is not None for entry in data.entries)
        facts = {
            "channel_names": {"0": CHANNELS[modality]},
            "labels": {**LABELS, "ignore": IGNORE} if ignores else LABELS,
            "numTraining": len(training) + len(validation),
            "file_ending": FILE_ENDING,
            "name": name,
        }
        write_text(partial / "dataset.json", json.dumps(facts, indent=1) + "\n")
        write_table(
            partial / CASES, _COLUMNS, ({key: getattr(entry, key) for key in _COLUMNS} for entry in data.entries)
        )
        if validation:
            split = {"train": [entry.case_id for entry in training], "val": [entry.case_id for entry in validation]}
            write_text(partial / "splits_final.json", json.dumps([split], indent=1) + "\n")
    return folder


def read_nnunet(folder: Path, modality: Modality | None = None) -> DataSet:
    """Read an nnU-Net v2 raw data set.

    Ids are the file names without channel and ending. Subject, modality and split come from ``cases.csv`` where this
    package wrote the set; else each case is its own subject, ``imagesTr`` is training, ``imagesTs`` is testing, and the
    first fold of ``splits_final.json`` says what is validation.

    Args:
        folder: The one that holds ``dataset.json``.
        modality: Overrides what the name of the channel tells.

    Raises:
        InputError: If it is no such data set, has several channels, or no label is calcinosis.
        CaseNotFoundError: If a label is missing.
    """
    facts = _facts(folder)
    ending, channel, told = _channel(folder, facts)
    known = _known_cases(folder)
    validation = _validation_of(folder)
    entries = []
    for side, default in (("Tr", "training"), ("Ts", "testing")):
        images = folder / f"images{side}"
        for image in sorted(images.iterdir()) if images.is_dir() else []:
            if image.name.startswith(".") or not image.name.endswith(channel):
                continue
            case_id = image.name.removesuffix(channel)
            label = folder / f"labels{side}" / f"{case_id}{ending}"
            if side == "Tr" and not label.is_file():
                raise CaseNotFoundError(
                    case_id, expected=f"labelsTr/{label.name}", found="no such file", remedy="add the label"
                )
            row = known.get(case_id, {})
            entries.append(
                Entry(
                    case_id,
                    row.get("subject_id") or case_id,
                    cast(Modality, modality or row.get("modality") or told),
                    row.get("split") or ("validation" if side == "Tr" and case_id in validation else default),
                    image,
                    label if label.is_file() else None,
                    stratum=row.get("stratum") or "",
                )
            )
    if not entries:
        raise CaseNotFoundError(
            folder,
            expected=f"scans named <id>{channel} in imagesTr",
            found="none",
            remedy="pass the folder that holds dataset.json",
        )
    order = {case_id: number for number, case_id in enumerate(known)}
    entries.sort(key=lambda entry: order.get(entry.case_id, len(order)))
    return DataSet(tuple(entries), "nnU-Net raw", _wanted(folder, facts))


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        if isinstance(facts["channel_names"], dict) and isinstance(facts["labels"], dict):
            return dict(facts)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"{folder.name}/dataset.json",
        expected="the dataset.json of nnU-Net v2, with channel_names and labels",
        found="something else",
        remedy="see nnU-Net's documentation/dataset_format.md",
    )


def _channel(folder: Path, facts: dict[str, Any]) -> tuple[str, str, str]:
    """Return file ending, ending of the scans' names, and modality by the channel's name."""
    channels, ending = facts["channel_names"], str(facts.get("file_ending", FILE_ENDING))
    if len(channels) != 1:
        raise InputError(
            f"{folder.name}/dataset.json",
            expected="one channel",
            found=", ".join(str(name) for name in channels.values()),
            remedy="keep the channel that holds the CT or the STIR scans",
        )
    number, name = next(iter(channels.items()))
    return ending, f"_{int(number):04d}{ending}", "ct" if str(name).upper() == "CT" else "stir"


def _wanted(folder: Path, facts: dict[str, Any]) -> str | None:
    """Return the label value that is calcinosis."""
    segments = [
        Segment(value, name, value=value)
        for name, value in facts["labels"].items()
        if isinstance(value, int) and value > 0 and name != "ignore"
    ]
    chosen = choose_segments(segments, None, f"{folder.name}/dataset.json")
    if len(chosen) > 1:
        raise InputError(
            f"{folder.name}/dataset.json",
            expected="one label of calcinosis",
            found=", ".join(segment.name for segment in chosen),
            remedy="join them into one label",
        )
    return str(chosen[0].value)


def _known_cases(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / CASES
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream) if row.get("case_id")}


def _validation_of(folder: Path) -> set[str]:
    path = folder / "splits_final.json"
    try:
        return {str(case_id) for case_id in json.loads(path.read_text(encoding="utf-8"))[0]["val"]}
    except FileNotFoundError:
        return set()
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder.name}/{path.name}",
            expected="a list of folds with train and val",
            found="something else",
            remedy="see nnU-Net's documentation/manual_data_splits.md",
        ) from error


def _check(data: DataSet, dataset_id: int, name: str) -> str:
    """Return the modality of all cases."""
    if not 1 <= dataset_id <= 999:
        raise InputError("data set id", expected="1 to 999", found=str(dataset_id), remedy="choose another")
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise InputError("name", expected="letters, digits and hyphens", found=repr(name), remedy="choose another")
    labelled = [entry for entry in data.entries if entry.split != "testing"]
    if not labelled:
        raise InputError("data set", expected="at least one training case", found="none", remedy="add labelled cases")
    modalities = sorted({entry.modality for entry in data.entries})
    if len(modalities) > 1:
        raise InputError(
            "data set", expected="one modality", found=" and ".join(modalities), remedy="write one data set of each"
        )
    for entry in labelled:
        if entry.label is None:
            raise InputError(
                entry.case_id, expected="a label", found="none", remedy="label it or move it to the testing split"
            )
    return modalities[0]


def _write_case(entry: Entry, images: Path, labels: Path, wanted: str | None, *, link: bool) -> None:
    _, scan = store_image(entry, images / f"{entry.case_id}_0000", link=link)
    if entry.label is None:
        return
    mask = (labels_of(entry, wanted, scan.grid).array > 0).astype(np.uint8)
    if entry.ignore is not None:
        mask[(read_labels(entry.ignore, scan.grid, name=entry.case_id).array > 0) & (mask == 0)] = IGNORE
    # on the scan's own header: nnU-Net refuses labels whose geometry differs in the last digit
    write_volume(labels / f"{entry.case_id}{FILE_ENDING}", mask, scan, np.uint8)
