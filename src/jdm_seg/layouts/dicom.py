"""DICOM folders: studies as scans, with the DICOM SEG objects that refer to their series as masks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from jdm_seg.cases import Modality
from jdm_seg.dicom.cases import find_dicom_cases
from jdm_seg.dicom.files import Reader, find_files, is_zip, open_source
from jdm_seg.dicom.segmentation import SEG_CLASSES
from jdm_seg.dicom.segmentation_read import list_segments, referenced_series
from jdm_seg.dicom.series import find_series
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.layouts.files import DataSet, Entry
from jdm_seg.segments import choose_segments


def read_dicom(source: Path, modality: Modality, *, wanted: str | None = None) -> DataSet:
    """List the studies of a folder with their masks; segmentations without their scan stand alone.

    Args:
        source: Folder of DICOM files, nested at will, or a zip of scans.
        modality: What the scans are.
        wanted: Which segments are calcinosis; decides between several segmentations of a study.

    Raises:
        CaseNotFoundError: If there is neither a scan nor a segmentation.
        InputError: If several segmentations of one study fit, or the extra ``dicom`` is missing.
    """
    masks = _find_segmentations(source)
    studies: dict[str, set[str]] = defaultdict(set)
    for series in find_series(source):
        if series.set_aside is None:
            studies[series.study].add(series.uid)
    # an object that refers to a scan, such as a mask, may count as a study of its own
    cases = [case for case in find_dicom_cases(source, modality) if case.study in studies] if studies else []
    entries, used = [], set()
    for case in cases:
        own = [path for path, series in masks.items() if series & studies[case.study]]
        used.update(own)
        label = _choose(own, wanted, case.case_id)
        entries.append(Entry(case.case_id, case.subject_id, modality, "training", case.image, label, study=case.study))
    for path in masks:
        if path not in used:
            name = path.stem if path.parent == source else path.parent.relative_to(source).as_posix().replace("/", "_")
            entries.append(Entry(name, name, modality, "training", None, path))
    if not entries:
        raise CaseNotFoundError(
            source, expected="DICOM scans or segmentations", found="neither", remedy="check the path"
        )
    ids = [entry.case_id for entry in entries]
    for case_id in ids:
        if ids.count(case_id) > 1:
            raise InputError(
                source, expected="every case id once", found=f"{case_id} twice", remedy="give each case its own folder"
            )
    return DataSet(tuple(entries), "DICOM", wanted)


def _find_segmentations(source: Path) -> dict[Path, set[str]]:
    """Return the DICOM SEG files of a folder with the series that each refers to."""
    found: dict[Path, set[str]] = {}
    if is_zip(source):
        return found
    with Reader() as reader:
        for file in find_files(source):
            try:
                dataset = open_source(reader, file, ("SOPClassUID", "ReferencedSeriesSequence"))
                if dataset.get("SOPClassUID") in SEG_CLASSES:
                    found[file.path] = set(referenced_series(dataset))
            except (InputError, AttributeError, KeyError):
                continue  # damaged files are reported with the series they belong to
    return found


def _choose(paths: list[Path], wanted: str | None, case_id: str) -> Path | None:
    """Return the one segmentation that holds calcinosis."""
    if len(paths) <= 1:
        return paths[0] if paths else None
    fitting: list[Path] = []
    found: list[str] = []
    with Reader() as reader:
        for path in paths:
            (file,) = find_files(path)
            segments = list_segments(open_source(reader, file, ("SegmentSequence",)))
            found.extend(str(segment) for segment in segments)
            try:
                chosen = choose_segments(segments, wanted, case_id)
            except InputError:
                continue
            # one unnamed segment is no reason to prefer a file among several
            if wanted is not None or any("calci" in f"{one.name}{one.meaning}".lower() for one in chosen):
                fitting.append(path)
    if len(fitting) != 1:
        raise InputError(
            case_id,
            expected="one segmentation of calcinosis",
            found=f"{len(fitting) or 'none'} among {len(paths)}, with the segments {', '.join(found)}",
            remedy="choose with --segment NAME, or leave one segmentation beside the scan",
        )
    return fitting[0]
