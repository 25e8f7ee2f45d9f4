"""One data set from any layout into another: ids, subjects and splits stay, and so does every byte of a ``.nii.gz``."""

from __future__ import annotations

from pathlib import Path

from jdm_seg.cases import Modality
from jdm_seg.errors import InputError
from jdm_seg.layouts.bids import write_bids
from jdm_seg.layouts.files import DataSet, OnCase
from jdm_seg.layouts.read import read_layout
from jdm_seg.layouts.write import write_flat, write_slicer
from jdm_seg.nnunet import write_nnunet

LAYOUTS = ("nifti", "monai", "nnunet", "bids", "slicer")


def convert(
    source: Path,
    out: Path,
    layout: str,
    *,
    images: Path | None = None,
    modality: Modality | None = None,
    wanted: str | None = None,
    link: bool = False,
    instances: bool = False,
    on_case: OnCase = lambda _: None,
) -> DataSet:
    """Convert a data set.

    Args:
        source: See :func:`~jdm_seg.layouts.read.read_layout`.
        out: New folder; with ``nnunet``, the folder to make ``Dataset501_Calcinosis`` in.
        layout: One of :data:`LAYOUTS`.
        images: Folder of scans for masks that come without.
        modality: What the scans are, where the layout does not say.
        wanted: Which segments are calcinosis, where names or codes do not say.
        link: Link to ``.nii.gz`` scans instead of copying them.
        instances: Keep the numbers of lesions in the masks; ``slicer`` always does, ``nnunet`` never.
        on_case: Called with the id of each case written.

    Returns:
        The data set as it was found.

    Raises:
        InputError: If the layout is none of those, the source cannot be used, or OUT holds something. Nothing is left.
    """
    check_layout(layout)
    data = read_layout(source, images=images, modality=modality, wanted=wanted)
    write_layout(data, out, layout, link=link, instances=instances, on_case=on_case)
    return data


def check_layout(layout: str) -> None:
    """Raise unless a layout is one of :data:`LAYOUTS`.

    Raises:
        InputError: Naming them.
    """
    if layout not in LAYOUTS:
        raise InputError("--to", expected=f"one of {', '.join(LAYOUTS)}", found=repr(layout), remedy="choose one")


def write_layout(
    data: DataSet,
    out: Path,
    layout: str,
    *,
    link: bool = False,
    instances: bool = False,
    on_case: OnCase = lambda _: None,
) -> None:
    """Write a data set that was read; see :func:`convert`.

    Raises:
        InputError: If the layout is unknown, an id cannot be a file's name, or OUT holds something.
    """
    check_layout(layout)
    for entry in data.entries:
        if entry.image is not None:
            entry.as_case()  # an id that cannot be a file's name is told before anything is written
    if layout == "nnunet":
        write_nnunet(data, out, link=link, on_case=on_case)
    elif layout == "bids":
        write_bids(data, out, link=link, instances=instances, on_case=on_case)
    elif layout == "slicer":
        write_slicer(data, out, link=link, on_case=on_case)
    else:
        write_flat(data, out, datalist=layout == "monai", link=link, instances=instances, on_case=on_case)
