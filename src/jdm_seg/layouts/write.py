"""Flat folders, MONAI datalists, and folders for 3D Slicer. Each is listed by a manifest that reads it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from jdm_seg.cases import DATALIST, write_manifest
from jdm_seg.layouts.files import DataSet, Entry, OnCase, labels_of, new_folder, store_image, store_label
from jdm_seg.lesions import label_lesions
from jdm_seg.masks import read_labels
from jdm_seg.nrrd import write_seg_nrrd
from jdm_seg.volume import Volume

TABLE = "cases.csv"


def write_flat(
    data: DataSet,
    out: Path,
    *,
    datalist: bool = False,
    link: bool = False,
    instances: bool = False,
    on_case: OnCase = lambda _: None,
) -> Path:
    """Write ``images/<id>.nii.gz`` and ``labels/<id>.nii.gz``, listed in ``cases.csv`` or ``datalist.json``.

    Args:
        data: Scans, masks or both; masks alone give ``labels/`` without a list.
        out: New folder.
        datalist: Write a MONAI datalist instead of a table.
        link: Link to ``.nii.gz`` scans instead of copying them.
        instances: Keep the numbers of lesions in the masks.
        on_case: Called with the id of each case written.

    Returns:
        ``out``.

    Raises:
        InputError: If the folder holds something, or a scan or mask cannot be read.
        GridMismatchError: If a mask is not on its scan's voxels.
    """
    with new_folder(out) as root:
        entries = []
        for entry in data.entries:
            entries.append(_write_entry(root, data.wanted, entry, link=link, instances=instances))
            on_case(entry.case_id)
        _write_list(root, replace(data, entries=tuple(entries)), datalist=datalist)
    return out


def _write_entry(root: Path, wanted: str | None, entry: Entry, *, link: bool, instances: bool) -> Entry:
    image = scan = None
    if entry.image is not None:
        image, scan = store_image(entry, root / "images" / entry.case_id, link=link)
    label = ignore = None
    if entry.label is not None:
        labels = labels_of(entry, wanted, None if scan is None else scan.grid)
        label = store_label(root / "labels" / entry.case_id, labels, scan or labels, instances=instances)
    if entry.ignore is not None:
        ignored = read_labels(entry.ignore, None if scan is None else scan.grid, name=entry.case_id)
        ignore = store_label(root / "ignore" / entry.case_id, ignored, scan or ignored)
    return replace(entry, image=image, label=label, ignore=ignore, study="")


def write_slicer(data: DataSet, out: Path, *, link: bool = False, on_case: OnCase = lambda _: None) -> Path:
    """Write ``<id>/<id>.nii.gz`` and ``<id>/<id>.seg.nrrd``, a segment a lesion, to look at and correct in 3D Slicer.

    Save over the segmentation in Slicer; the folder is then a source of :func:`~jdm_seg.layouts.convert.convert` with
    the same ids and splits. A mask that does not number its lesions gets them numbered, the largest first. A scan
    without a mask gets a segmentation with one empty segment to draw into.

    Args:
        data: Scans, masks or both.
        out: New folder.
        link: Link to ``.nii.gz`` scans instead of copying them.
        on_case: Called with the id of each case written.

    Returns:
        ``out``.

    Raises:
        InputError: If the folder holds something, or pynrrd is missing.
    """
    with new_folder(out) as root:
        entries = []
        for entry in data.entries:
            folder = root / entry.case_id
            image = scan = None
            if entry.image is not None:
                image, scan = store_image(entry, folder / entry.case_id, link=link)
            label = folder / f"{entry.case_id}.seg.nrrd"
            if entry.label is not None:
                labels = _numbered(labels_of(entry, data.wanted, None if scan is None else scan.grid))
            elif scan is not None:
                labels = Volume(np.zeros(scan.array.shape, np.uint8), scan.affine, entry.case_id)
            else:
                continue
            count = max(int(labels.array.max(initial=0)), 1)
            write_seg_nrrd(label, labels, [f"calcinosis {number}" for number in range(1, count + 1)])
            entries.append(replace(entry, image=image, label=label, ignore=None, study=""))
            on_case(entry.case_id)
        _write_list(root, replace(data, entries=tuple(entries)), datalist=False)
    return out


def _numbered(labels: Volume) -> Volume:
    """Return labels whose lesions are numbered 1 to n; a plain mask is labelled first."""
    values = np.unique(labels.array)
    values = values[values > 0]
    if len(values) <= 1:
        canonical = labels.to_canonical()
        return Volume(
            labels.from_canonical(label_lesions(canonical.array, canonical.spacing)), labels.affine, labels.name
        )
    numbers = np.zeros(int(values.max()) + 1, dtype=np.uint16)
    numbers[values] = np.arange(1, len(values) + 1)
    return Volume(numbers[labels.array], labels.affine, labels.name)


def _write_list(root: Path, data: DataSet, *, datalist: bool) -> None:
    if any(entry.image is None for entry in data.entries):
        return
    facts = {"modality": data.entries[0].modality, "labels": {"0": "background", "1": "calcinosis"}}
    fields = {**facts, **data.fields} if datalist else {}
    write_manifest(root / (DATALIST if datalist else TABLE), data.manifest(), **fields)
