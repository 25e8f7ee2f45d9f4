"""Looks at a mask beside its scan: is it a mask, on the same grid, inside the body, and not drawn on bone?"""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.checks.findings import Finding, Severity
from jdm_seg.checks.look import Look
from jdm_seg.errors import InputError
from jdm_seg.masks import read_labels
from jdm_seg.neighbourhood import Indices, foreground_indices
from jdm_seg.volume import NIFTI_SUFFIXES, Grid, Volume, read_volume

ROUNDING = 0.1
"""Corners of two grids that differ by less than this share of a voxel differ by rounding in a header."""
_OUTSIDE_SHARE = 0.05
_BONE_SHARE = 0.5
_BONE_HU = 180
_BONE_ML = 5.0
_DEPOSIT_SHARE = 0.3
"""A bright part of which the mask holds more than this is a deposit, not skeleton (assumed)."""
_HUGE_SHARE = 0.3


def check_label(path: Path, where: str, look: Look | None, grid: Grid | None) -> list[Finding]:
    """Look at one mask.

    Args:
        path: The mask: NIfTI, NRRD or DICOM SEG.
        where: What findings call it.
        look: Of its scan; None where the scan cannot be judged.
        grid: Of its scan; None where the scan cannot be read.

    Returns:
        Findings; empty when nothing is the matter.

    Raises:
        InputError: If the mask cannot be read.
    """
    is_nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
    mask = read_volume(path) if is_nifti else read_labels(path, grid, name=where)
    findings = check_values(mask.array, where)
    if any(finding.severity == "error" for finding in findings):
        return findings
    if grid is not None:
        findings += check_grid(mask.grid, grid, where)
    if any(finding.severity == "error" for finding in findings) or look is None or not mask.array.any():
        return findings
    labels = mask.to_canonical().array != 0
    if labels.shape == look.scan.array.shape:
        findings += check_place(foreground_indices(labels), labels.size, look, where)
    return findings


def check_values(values: NDArray[np.generic], where: str) -> list[Finding]:
    """Judge what numbers a mask (X, Y, Z) holds."""

    def say(severity: Severity, code: str, reason: str, found: str, remedy: str) -> list[Finding]:
        return [Finding(where, severity, code, reason, "0, and 1 where calcinosis is", found, remedy)]

    low, high = float(values.min()), float(values.max())
    ends = f"values from {low:g} to {high:g}"
    planes = [values[:, :, z] for z in range(values.shape[2])]  # one at a time: no second copy of a whole body
    if values.dtype.kind == "f" and not all(np.array_equal(plane, np.rint(plane)) for plane in planes):
        return say(
            "error",
            "probability",
            "This is a probability map or a scan, no mask",
            f"fractions, {ends}",
            "threshold the probabilities, for example at 0.5",
        )
    if low < 0:
        return say("error", "negative_label", "This is no mask", ends, "check that this is the mask and not the scan")
    if high == 0:
        return say(
            "info", "label_empty", "The mask is empty: a case without calcinosis", "only 0", "check that this is meant"
        )
    if low > 0:
        return say(
            "error", "no_background", "The mask has no background", ends, "check that this is the mask of the scan"
        )
    findings = []
    known = np.unique(np.concatenate([np.unique(plane) for plane in planes]))
    if high > 1 and len(known) == 2:
        findings += say(
            "warning",
            "label_value",
            "The mask marks calcinosis with another number than 1",
            f"0 and {high:g}",
            "let --fix write 0 and 1; other tools may refuse the mask",
        )
    elif high > 1:
        findings += say(
            "info",
            "several_values",
            "The mask holds several values: numbered lesions, or classes",
            f"{len(known) - 1} of them, up to {high:g}",
            "nothing to do if each is calcinosis, for every value above 0 counts; else choose with convert --segment",
        )
    if values.dtype.kind == "f":
        findings += say(
            "warning",
            "float_label",
            "The mask is stored as floating-point numbers",
            str(values.dtype),
            "let --fix store it as whole numbers",
        )
    return findings


def check_grid(mask: Grid, scan: Grid, where: str) -> list[Finding]:
    """Compare where the voxels of a mask and of its scan lie."""
    remedy = "re-export the mask on the scan's grid, see data/README.md#grids"
    if mask.matches(scan):
        return []
    if mask.matches(scan, ROUNDING * min(scan.spacing)):
        return [
            Finding(
                where,
                "warning",
                "grid_rounding",
                "Mask and scan differ in the last digits of their headers",
                f"the scan's grid {scan}",
                f"{mask}, less than {ROUNDING:g} voxel away",
                "let --fix write the mask with the scan's header",
            )
        ]
    if sorted(mask.shape) == sorted(scan.shape) and _canonical(mask).matches(_canonical(scan)):
        return [
            Finding(
                where,
                "warning",
                "grid_axes",
                "The mask is stored along other axes than its scan",
                f"the scan's axes {scan.orientation}",
                mask.orientation,
                "let --fix store it along the scan's axes",
            )
        ]
    reason = "The mask lies elsewhere than its scan" if mask.shape == scan.shape else "The mask is of another size"
    return [Finding(where, "error", "grid", reason, f"the scan's grid {scan}", mask.beside(scan), remedy)]


def _canonical(grid: Grid) -> Grid:
    empty = np.broadcast_to(np.False_, grid.shape)
    return Volume(empty, grid.affine).to_canonical().grid


def check_place(indices: Indices, size: int, look: Look, where: str) -> list[Finding]:
    """Judge where the voxels (N, 3) of a mask lie in its scan.

    Args:
        indices: On the canonical scan.
        size: Number of voxels of the scan.
        look: Of the scan.
        where: What findings call the mask.

    Returns:
        Findings; none if the mask lies where calcinosis can.
    """
    findings = []
    if len(indices) > _HUGE_SHARE * size:
        findings.append(
            Finding(
                where,
                "warning",
                "label_huge",
                "The mask covers so much that it may be inverted, or of the whole body",
                f"at most {_HUGE_SHARE:.0%} of the scan",
                f"{len(indices) / size:.0%}",
                "look at it over the scan",
            )
        )
    cells = tuple(np.minimum(indices // look.strides, np.array(look.array.shape) - 1).T)
    # one cell more: the skin lies somewhere between a sample and the next
    near = ndimage.binary_dilation(look.body, np.ones((3, 3, 3), bool))
    outside = float((~near[cells]).mean())
    if outside > _OUTSIDE_SHARE:
        findings.append(
            Finding(
                where,
                "warning",
                "outside_body",
                "Part of the mask lies outside the body",
                f"at most {_OUTSIDE_SHARE:.0%} of it",
                f"{outside:.0%}",
                "check that the mask belongs to this scan, and that neither is mirrored",
            )
        )
    if look.modality == "ct":
        on_bone = float(_skeleton(look, cells)[cells].mean())
        if on_bone > _BONE_SHARE:
            findings.append(
                Finding(
                    where,
                    "warning",
                    "on_bone",
                    "Most of the mask lies on the skeleton",
                    f"at most {_BONE_SHARE:.0%} of it",
                    f"{on_bone:.0%}",
                    "check that bone was not marked, and that mask and scan belong together",
                )
            )
    return findings


def _skeleton(look: Look, cells: tuple[NDArray[np.intp], ...]) -> NDArray[np.bool_]:
    """Return large bright parts of the coarse scan that are not mostly the mask itself."""
    parts = cc3d.connected_components(look.body & (look.array > _BONE_HU), connectivity=26, binary_image=True)
    marked = np.zeros(look.array.shape, bool)
    marked[cells] = True
    sizes = np.bincount(parts.ravel())
    shares = np.bincount(parts[marked], minlength=len(sizes)) / np.maximum(1, sizes)
    bone = (sizes * (float(np.prod(look.spacing)) / 1000) >= _BONE_ML) & (shares < _DEPOSIT_SHARE)
    bone[0] = False
    skeleton: NDArray[np.bool_] = bone[parts]
    return skeleton


def finding_of(where: str, error: Exception, code: str = "unreadable") -> Finding:
    """Return an exception as a finding."""
    text = str(error)
    if isinstance(error, InputError) and ": expected " in text and ", found " in text and "; " in text:
        expected, _, rest = text.partition(": expected ")[2].partition(", found ")
        found, _, remedy = rest.rpartition("; ")
        return Finding(where, "error", code, "The file cannot be used", expected, found, remedy.rstrip("."))
    found = text.partition("\n")[0] if isinstance(error, InputError) else type(error).__name__
    return Finding(where, "error", code, "The file cannot be used", "a readable file", found, "export it again")
