"""Small DICOM series for tests, written by pydicom from plain numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)
FEET_FIRST = (-1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
STUDY = generate_uid(entropy_srcs=["study"])
FRAME = generate_uid(entropy_srcs=["frame"])
SYNTAX = ExplicitVRLittleEndian


def values(slices: int, rows: int = 6, columns: int = 5, seed: int = 1) -> np.ndarray:
    """Stored values, shape (slices, rows, columns), every slice another."""
    return np.random.default_rng(seed).integers(0, 3000, (slices, rows, columns)).astype(np.int16)


def positions(count: int, step, start=(-20.0, -30.0, 100.0)) -> list[np.ndarray]:
    """Positions (LPS mm) a constant step apart; a number steps along z."""
    step = np.array((0, 0, step) if np.isscalar(step) else step, dtype=float)
    return [np.array(start) + n * step for n in range(count)]


def data_set(stored: np.ndarray, position, number: int, **tags) -> Dataset:
    """One CT slice; ``tags`` override by keyword, None removes."""
    one = Dataset()
    one.SOPClassUID = CTImageStorage
    one.SOPInstanceUID = generate_uid()
    one.StudyInstanceUID = STUDY
    one.SeriesInstanceUID = "1.2.3.4"
    one.FrameOfReferenceUID = FRAME
    one.Modality = "CT"
    one.SeriesNumber = 1
    one.InstanceNumber = number
    one.PatientID = "p1"
    one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.Rows, one.Columns = stored.shape
    one.PixelSpacing = [0.8, 0.7]  # rows, then columns
    one.ImageOrientationPatient = list(AXIAL)
    one.ImagePositionPatient = [float(x) for x in position]
    one.SamplesPerPixel = 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.PixelRepresentation = int(stored.dtype.kind == "i")
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.KVP, one.ConvolutionKernel, one.SliceThickness = 100, "B30f", 2
    one.PixelData = stored.tobytes()
    if tags.get("Modality") == "MR":
        one.SOPClassUID = MRImageStorage
        del one.RescaleSlope, one.RescaleIntercept, one.KVP, one.ConvolutionKernel
    for keyword, value in tags.items():
        if value is None:
            delattr(one, keyword)
        else:
            setattr(one, keyword, value)
    return one


def save(path: Path, one: Dataset, syntax=SYNTAX) -> Path:
    """Write one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = syntax
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, stored: np.ndarray, places, each=None, name="s", **tags) -> list[Path]:
    """Write a slice a file, names in an order that is not the slices'. ``each(n)`` gives tags of slice n."""
    paths = []
    for n, (plane, position) in enumerate(zip(stored, places, strict=True)):
        one = data_set(plane, position, n + 1, **{**tags, **(each(n) if each else {})})
        paths.append(save(folder / f"{name}{(n * 7) % 101:03}-{n}.dcm", one))
    return paths
