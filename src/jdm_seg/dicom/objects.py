"""What a picture archive takes of a result: the mask as DICOM SEG, the lesions as SEG and as structured report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.files import Reader, open_source
from jdm_seg.dicom.read import DicomScan
from jdm_seg.dicom.segmentation import SOURCE_KEYWORDS, Method, write_segmentation
from jdm_seg.dicom.sr import write_structured_report
from jdm_seg.lesions import Lesion
from jdm_seg.volume import Volume

SEGMENTATION = "segmentation.dcm"
LESIONS = "lesions.dcm"
MEASUREMENTS = "measurements.dcm"


def write_dicom_results(
    folder: Path,
    scan: DicomScan,
    labels: NDArray[np.unsignedinteger[Any]],
    lesions: Sequence[Lesion],
    *,
    method: Method,
    case_id: str,
    report: bool = False,
    keep_patient: bool = False,
) -> None:
    """Write ``segmentation.dcm``; with a report also ``lesions.dcm``, a segment a lesion, and ``measurements.dcm``.

    Args:
        folder: Where to; it exists.
        scan: As read, with the files it came from.
        labels: Lesion numbers on the scan's own grid.
        lesions: Rows of ``lesions.csv``; without any there is nothing to report.
        method: What made the mask.
        case_id: Written as the patient's id.
        report: Write the report and the segments it refers to.
        keep_patient: See :func:`~jdm_seg.dicom.segmentation.write_segmentation`.

    Raises:
        InputError: If highdicom is missing, or the series lacks what a SEG must refer to.
    """
    files = {frame.file: None for series in scan.series for frame in series.frames}  # a dict keeps the order
    with Reader() as reader:
        sources = [open_source(reader, file, SOURCE_KEYWORDS) for file in files]
    shared: dict[str, Any] = {"method": method, "patient_id": case_id, "keep_patient": keep_patient}
    affine = scan.volume.affine
    write_segmentation(folder / SEGMENTATION, Volume(labels > 0, affine, case_id), sources, **shared)
    if report and lesions:
        numbered = Volume(labels, affine, case_id)
        segmentation = write_segmentation(folder / LESIONS, numbered, sources, encoding="lesions", **shared)
        write_structured_report(folder / MEASUREMENTS, segmentation, lesions, method=method)
