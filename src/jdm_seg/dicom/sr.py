"""The lesions' measurements as a DICOM structured report that refers to their segments.

Source: DICOM PS3.16 TID 1500 (Measurement Report) and TID 1411 (Volumetric ROI Measurements); units in UCUM.
Volume SCT 118565006 in mm3; longest axis SCT 103339001 "Long Axis" in mm; mean CT number DCM 112031 "Attenuation
Coefficient" with the derivation SCT 373098007 "Mean" in [hnsf'U].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jdm_seg
from jdm_seg.dicom.segmentation import CATEGORY, TYPE, Method, import_highdicom, uid_of
from jdm_seg.errors import InputError
from jdm_seg.lesions import Lesion
from jdm_seg.volume import atomic_write

_SERIES_NUMBER = 9101


def write_structured_report(path: Path, segmentation: Any, lesions: Sequence[Lesion], *, method: Method) -> Any:
    """Write one measurement group a lesion, whole or not at all.

    Args:
        path: File to write.
        segmentation: The SEG that :func:`~jdm_seg.dicom.segmentation.write_segmentation` returned with the encoding
            ``lesions`` or ``labelmap``: its segments are numbered as the lesions are.
        lesions: Rows of ``lesions.csv``.
        method: What found them.

    Returns:
        The data set as written.

    Raises:
        InputError: If highdicom is missing, or a lesion has no segment.
    """
    hd = import_highdicom()
    from pydicom.sr.codedict import codes

    numbers = {int(item.SegmentNumber) for item in segmentation.SegmentSequence}
    for lesion in lesions:
        if lesion.lesion not in numbers:
            raise InputError(
                "structured report",
                expected=f"a segment for lesion {lesion.lesion}",
                found=f"{len(numbers)} segments",
                remedy="write the segmentation with one segment a lesion",
            )
    seed = [str(segmentation.SOPInstanceUID), "report"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the patient's name
        observer = hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid_of(seed, "device"), name="jdm_seg", model_name=method.name[:64]
        )
        report = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(
                observer_device_context=hd.sr.ObserverContext(
                    observer_type=codes.DCM.Device, observer_identifying_attributes=observer
                )
            ),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=[_group(hd, segmentation, lesion, method, seed) for lesion in lesions],
            title=codes.DCM.ImagingMeasurementReport,
        )
        document = hd.sr.Comprehensive3DSR(
            evidence=[segmentation, *_sources(segmentation)],
            content=report[0],
            series_instance_uid=uid_of(seed, "series"),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=uid_of(seed, "instance"),
            instance_number=1,
            manufacturer="jdm_seg",
            series_description="Calcinosis measurements (jdm_seg)",
            software_versions=jdm_seg.__version__,
            device_serial_number="0",
            manufacturer_model_name="jdm_seg",
        )
    with atomic_write(path) as temporary:
        document.save_as(temporary, enforce_file_format=True)
    return document


def _sources(segmentation: Any) -> list[Any]:
    """Return what a report must know of the slices that the segments refer to: their UIDs."""
    from pydicom.dataset import Dataset

    sources = []
    for series in segmentation.ReferencedSeriesSequence:
        for instance in series.ReferencedInstanceSequence:
            source = Dataset()
            source.StudyInstanceUID = segmentation.StudyInstanceUID
            source.SeriesInstanceUID = series.SeriesInstanceUID
            source.SOPClassUID = instance.ReferencedSOPClassUID
            source.SOPInstanceUID = instance.ReferencedSOPInstanceUID
            sources.append(source)
    return sources


def _group(hd: Any, segmentation: Any, lesion: Lesion, method: Method, seed: list[str]) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    measurements = [
        hd.sr.Measurement(codes.SCT.Volume, lesion.volume_mm3, codes.UCUM.CubicMillimeter),
        hd.sr.Measurement(codes.SCT.LongAxis, lesion.longest_axis_mm, codes.UCUM.Millimeter),
    ]
    if lesion.mean_hu is not None:
        measurements.append(
            hd.sr.Measurement(
                codes.DCM.AttenuationCoefficient, lesion.mean_hu, codes.UCUM.HounsfieldUnit, derivation=codes.SCT.Mean
            )
        )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid_of(seed, f"lesion {lesion.lesion}"), identifier=f"lesion {lesion.lesion}"
        ),
        referenced_segment=hd.sr.ReferencedSegment.from_segmentation(segmentation, lesion.lesion),
        finding_category=Code(*CATEGORY),
        finding_type=Code(*TYPE),
        algorithm_id=hd.sr.AlgorithmIdentification(name=method.name, version=method.version),
        measurements=measurements,
    )
