"""Tell which layout a folder has, and list its cases."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jdm_seg.cases import DATALIST, MODALITIES, SPLITS, Modality, manifest_path, read_manifest
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.layouts.bids import read_bids
from jdm_seg.layouts.files import DataSet, Entry
from jdm_seg.masks import MASK_SUFFIXES, mask_id_of
from jdm_seg.nnunet import read_nnunet
from jdm_seg.nrrd import SUFFIXES as NRRD_SUFFIXES
from jdm_seg.volume import NIFTI_SUFFIXES

_IMAGES = ("images", "image", "scans")
_LABELS = ("labels", "label", "masks", "segmentations")
_SCAN_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd")
_FILE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES)


def read_layout(
    source: Path, *, images: Path | None = None, modality: Modality | None = None, wanted: str | None = None
) -> DataSet:
    """List the cases of a data set in any layout.

    Known: a MONAI datalist or a table (also of the Medical Segmentation Decathlon), nnU-Net raw, BIDS, what ``predict``
    and ``convert`` wrote, ``images/`` beside ``labels/``, files in one folder, DICOM with or without DICOM SEG.

    Args:
        source: File or folder.
        images: Folder of scans for masks that come without; matched by case id.
        modality: What the scans are, where the layout does not say; default CT.
        wanted: Which segments are calcinosis; overrides what the layout says.

    Raises:
        InputError: If the layout is damaged, or masks have no scan of their id in ``images``.
        CaseNotFoundError: If nothing known is there.
    """
    if not source.exists():
        raise CaseNotFoundError(source, expected="a data set", found="no such path", remedy="check the path")
    data = _reader_of(source)(source, modality, wanted)
    if images is not None:
        data = _with_images(data, read_layout(images, modality=modality))
    return replace(data, wanted=wanted) if wanted is not None else data


def _reader_of(source: Path) -> Callable[[Path, Modality | None, str | None], DataSet]:
    """Return the reader for what is at a path; the first sign that fits decides."""
    signs: list[tuple[bool, Callable[[Path, Modality | None, str | None], DataSet]]] = [
        (source.suffix.lower() in (".json", ".csv") and source.is_file(), _manifest),
        (source.is_file() and source.name.lower().endswith(_FILE_SUFFIXES), _files),
        (_is_nnunet(source), lambda path, modality, _: read_nnunet(path, modality)),
        ((source / DATALIST).is_file(), _manifest),
        ((source / "dataset.json").is_file(), lambda path, modality, _: _manifest(path / "dataset.json", modality, _)),
        ((source / "dataset_description.json").is_file(), lambda path, modality, _: read_bids(path, modality)),
        (_is_table(source / "cases.csv"), lambda path, modality, _: _manifest(path / "cases.csv", modality, _)),
        (any(source.glob("*/mask.nii.gz")), _predictions),
        (_folder_of(source, _IMAGES) is not None or _folder_of(source, _LABELS) is not None, _flat),
        (_has(source, _FILE_SUFFIXES), _files),
        (any(source.glob("*/*.seg.nrrd")), _files),
    ]
    return next((reader for fits, reader in signs if fits), _dicom)


def _manifest(path: Path, modality: Modality | None, _: str | None) -> DataSet:
    manifest = read_manifest(path)
    data = DataSet.of(manifest)
    path = manifest_path(path)
    if path.suffix.lower() == ".json":
        facts = json.loads(path.read_text(encoding="utf-8"))
        skipped = (*SPLITS, "test", "modality", "numTraining", "numTest")
        data = replace(data, fields={key: value for key, value in facts.items() if key not in skipped})
    else:
        data = replace(data, layout="table of cases")
    if modality is not None:
        data = replace(data, entries=tuple(replace(entry, modality=modality) for entry in data.entries))
    return data


def _predictions(folder: Path, modality: Modality | None, _: str | None) -> DataSet:
    """Read what ``predict`` wrote: its lesions are numbered in a file of their own."""
    entries = []
    for mask in sorted(folder.glob("*/mask.nii.gz")):
        case_id = mask.parent.name
        lesions = mask.with_name("lesions.nii.gz")
        told = modality
        burden = mask.with_name("burden.json")
        if told is None and burden.is_file():
            value = json.loads(burden.read_text(encoding="utf-8")).get("modality")
            told = value if value in MODALITIES else None
        label = lesions if lesions.is_file() else mask
        entries.append(Entry(case_id, case_id, told or "ct", "training", None, label))
    return DataSet(tuple(entries), "results of predict")


def _flat(folder: Path, modality: Modality | None, _: str | None) -> DataSet:
    images, labels = _folder_of(folder, _IMAGES), _folder_of(folder, _LABELS)
    scans = _by_id(images, _SCAN_SUFFIXES) if images is not None else {}
    masks = _by_id(labels, MASK_SUFFIXES) if labels is not None else {}
    stray = sorted(set(masks) - set(scans)) if scans else []
    if stray:
        raise InputError(
            stray[0],
            expected=f"a scan of that name in {_IMAGES[0]}/",
            found=f"a mask alone, like {len(stray) - 1} others" if len(stray) > 1 else "a mask alone",
            remedy="name scan and mask alike",
        )
    ids = sorted(scans or masks)
    entries = tuple(
        Entry(case_id, case_id, modality or "ct", "training", scans.get(case_id), masks.get(case_id)) for case_id in ids
    )
    return DataSet(entries, "images/ and labels/")


def _files(source: Path, modality: Modality | None, _: str | None) -> DataSet:
    """Read scans in one folder, each alone or with ``<id>.seg.nrrd`` beside it, or one folder a case."""
    paths = (
        [source] if source.is_file() else [*source.iterdir(), *source.glob("*/*.seg.nrrd"), *source.glob("*/*.nii*")]
    )
    paths = [path for path in sorted(paths) if path.is_file() and not path.name.startswith(".")]
    masks = _unique([path for path in paths if path.name.lower().endswith(".seg.nrrd")], source)
    scans = [path for path in paths if path.name.lower().endswith(_SCAN_SUFFIXES) and path not in masks.values()]
    found = _unique(
        [path for path in scans if path.parent == source or mask_id_of(path) in masks or path == source], source
    )
    entries = tuple(
        Entry(case_id, case_id, modality or "ct", "training", found.get(case_id), masks.get(case_id))
        for case_id in sorted({*found, *masks})
    )
    return DataSet(entries, "files")


def _dicom(source: Path, modality: Modality | None, wanted: str | None) -> DataSet:
    from jdm_seg.layouts.dicom import read_dicom

    return read_dicom(source, modality or "ct", wanted=wanted)


def _with_images(masks: DataSet, images: DataSet) -> DataSet:
    """Give masks the scans of another data set, with its subjects and splits."""
    scans = {entry.case_id: entry for entry in images.entries}
    entries = []
    for entry in masks.entries:
        scan = scans.get(entry.case_id)
        if scan is None:
            raise InputError(
                entry.case_id, expected="a scan of that id in --images", found="none", remedy="name both alike"
            )
        # a folder of plain files holds masks as well as scans: without a scan of its own, the file is the mask
        label = entry.label or entry.image
        entries.append(replace(scan, label=label))
    return replace(masks, entries=tuple(entries), fields={**images.fields, **masks.fields})


def _is_nnunet(folder: Path) -> bool:
    try:
        return "channel_names" in json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _is_table(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        return "image" in next(csv.reader(stream), [])


def _folder_of(source: Path, names: tuple[str, ...]) -> Path | None:
    folders = [source / name for name in names if (source / name).is_dir()]
    # a folder of that name may hold the slices of a DICOM series; masks are one file each there too
    endings = MASK_SUFFIXES if names == _LABELS else _FILE_SUFFIXES
    return next((folder for folder in folders if _has(folder, endings)), None)


def _has(source: Path, endings: tuple[str, ...]) -> bool:
    return source.is_dir() and any(path.name.lower().endswith(endings) for path in source.iterdir())


def _by_id(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    found = _unique([path for path in paths if path.name.lower().endswith(suffixes)], folder)
    if not found:
        raise CaseNotFoundError(
            folder, expected=f"files ending in {', '.join(suffixes)}", found="none", remedy="check the folder"
        )
    return found


def _unique(paths: list[Path], where: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        case_id = mask_id_of(path)
        if case_id in found:
            raise InputError(
                where, expected="every case id once", found=f"{case_id} twice", remedy="rename or remove one file"
            )
        found[case_id] = path
    return found
