"""DICOM in and out (extra ``dicom``). This package alone touches pydicom and highdicom.

Reading, from the outside in:
    :func:`~jdm_seg.dicom.cases.find_dicom_cases`: a folder or a zip to :class:`~jdm_seg.cases.Case`, one a study.
    :func:`~jdm_seg.dicom.cases.read_case`: a case to a :class:`~jdm_seg.dicom.read.DicomScan`, best series chosen.
    :func:`~jdm_seg.dicom.series.find_series`: every :class:`~jdm_seg.dicom.series.Series` of a folder, file or zip, by
        headers only; ``listing()`` puts one in words, ``set_aside`` says why it is no candidate.
    :func:`~jdm_seg.dicom.choose.choose_series`: the series (or stations) for a modality, with the reason in words.
    :func:`~jdm_seg.dicom.read.read_series`: one series, or stations, to a :class:`~jdm_seg.dicom.read.DicomScan`:
        ``volume`` (array (X, Y, Z): columns, rows, slices; affine RAS mm), ``acquisition``, ``notes`` and ``sources``,
        one :class:`~jdm_seg.dicom.headers.Frame` a slice in the order of the third axis (None for a filled slice,
        empty where stations were joined). :func:`~jdm_seg.dicom.files.open_source` reads a frame's whole data set.

Privacy: of a header only geometry, acquisition physics and codes that choose a series are kept. Names, dates, numbers
of persons and free text are never stored; a series description is shown with every word of them removed.
"""
