"""Maximum-intensity pictures of a scan with its mask, to look at before reading any number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.volume import Spacing, Volume, atomic_write, slice_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREVIEW = "preview.png"
CONTACT_SHEET = "contact_sheet.png"
SHEET_CASES = 12
"""Cases a contact sheet shows."""
_WINDOW_HU = (-100.0, 900.0)
_SHEET_HU = (-160.0, 400.0)
_MASK_COLOUR = "#ff7f0e"  # orange on grey: told apart with every common colour vision, and outlined for print


def write_preview(path: Path, scan: Volume, mask: NDArray[np.bool_], *, modality: str) -> None:
    """Write coronal and sagittal maximum-intensity projections with the mask's outline over them.

    For STIR, where deposits are dark, the slice that holds most of the mask is shown instead.

    Args:
        path: PNG to write, whole or not at all.
        scan: On its own grid.
        mask: On the same grid.
        modality: ``ct`` or ``stir``.
    """
    # imported here: matplotlib takes half a second that no other verb should pay
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canonical = scan.to_canonical()
    labels = Volume(mask, scan.affine, scan.name).to_canonical().array
    views = (("coronal", 1, 0), ("sagittal", 0, 1))
    figure = Figure(figsize=(9, 5), dpi=110, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, axis, across) in zip(figure.subplots(1, 2), views, strict=True):
        picture, outline = project(canonical.array, labels, axis, maximum=modality == "ct")
        limits = grey_limits(picture, modality, _WINDOW_HU)
        aspect = canonical.spacing[2] / canonical.spacing[across]
        _draw(axes, picture, outline, limits, aspect)
        axes.set_title(f"{name}, patient's right is left" if axis == 1 else name, color="white", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def write_contact_sheet(path: Path, cases: Iterable[tuple[Volume, NDArray[Any]]], *, modality: str) -> None:
    """Write one picture of many cases, each as its slice with most of the mask: bare, and with the mask's outline.

    Args:
        path: PNG to write, whole or not at all.
        cases: Scans with their masks, on canonical axes; the first :data:`SHEET_CASES` are shown.
        modality: ``ct`` or ``stir``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # only slices are kept: twelve whole bodies would not fit into memory
    tiles = [
        (scan.name, *fullest_slice(scan.array, mask, scan.spacing))
        for scan, mask in itertools.islice(cases, SHEET_CASES)
    ]
    rows = max(1, -(-len(tiles) // 2))
    figure = Figure(figsize=(15, 2.4 * rows + 0.1), dpi=80, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for number, (name, picture, outline, aspect) in enumerate(tiles):
        limits = grey_limits(picture, modality, _SHEET_HU)
        _draw(grid[2 * number], picture, np.zeros_like(outline), limits, aspect)
        _draw(grid[2 * number + 1], picture, outline, limits, aspect)
        grid[2 * number].set_title(name, color="white", fontsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def grey_limits(picture: NDArray[Any], modality: str, window_hu: tuple[float, float]) -> tuple[float, float]:
    """Return what is black and what is white in a picture: the window on CT, by its own range on STIR."""
    return window_hu if modality == "ct" else (0.0, float(np.percentile(picture, 99.5)) or 1.0)


def fullest_slice(
    image: NDArray[Any], mask: NDArray[Any], spacing: Spacing
) -> tuple[NDArray[Any], NDArray[np.bool_], float]:
    """Return the slice across the thickest axis that shows most of a mask.

    Args:
        image: Canonical axes, (X, Y, Z).
        mask: Same shape.
        spacing: Voxel size in mm.

    Returns:
        Picture and outline as of :func:`project`, and the aspect of their pixels.
    """
    axis = slice_axis(spacing)
    picture, outline = project(image, mask, axis, maximum=False)
    across, up = (s for a, s in enumerate(spacing) if a != axis)
    return np.array(picture), np.array(outline), up / across


def project(
    image: NDArray[Any], mask: NDArray[Any], axis: int, *, maximum: bool
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a picture and the mask's shadow along one axis, as rows from top to bottom.

    Args:
        image: Canonical axes, (X, Y, Z).
        mask: Same shape.
        axis: 0 for sagittal, 1 for coronal, 2 for axial.
        maximum: Project the maximum; else take the slice with most of the mask, or the middle one.

    Returns:
        Both of shape (Z or Y, X or Y), head or front on top; the patient's right is on the left.
    """
    if maximum:
        picture, shadow = image.max(axis=axis), np.asarray(mask.any(axis=axis))
    else:
        amount = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        index = int(amount.argmax()) if amount.any() else image.shape[axis] // 2
        picture, shadow = image.take(index, axis=axis), np.asarray(mask.take(index, axis=axis) > 0)
    # RAS: x grows towards the patient's right, which a radiologist expects on the left
    turn = slice(None) if axis == 0 else slice(None, None, -1)
    return picture[turn].T[::-1], shadow[turn].T[::-1]


def _draw(
    axes: Axes, picture: NDArray[Any], outline: NDArray[np.bool_], limits: tuple[float, float], aspect: float
) -> None:
    axes.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect, interpolation="nearest")
    if outline.any():
        axes.contour(outline.astype(float), levels=[0.5], colors=[_MASK_COLOUR], linewidths=0.9)
    axes.set_axis_off()
