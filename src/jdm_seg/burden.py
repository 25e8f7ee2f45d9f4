"""The clinical figures of one scan: how much calcinosis, how dense, where, and what could have been missed.

Everything is computed on the canonical (RAS) scan and written on the scan's own grid. A figure that depends on CT
numbers is None for STIR.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import bounding_box, outline_body
from jdm_seg.cases import as_modality, check_modality
from jdm_seg.errors import InputError
from jdm_seg.lesions import (
    SIZE_STRATA,
    Labels,
    Lesion,
    label_lesions,
    measure_lesions,
    read_mask,
    size_stratum,
    write_lesion_table,
)
from jdm_seg.physics import DEFAULT_KV, HU_MAX, HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.volume import Grid, Volume, case_id_of, read_volume, write_text, write_volume

SCHEMA_VERSION = 1

AGATSTON_EDGES_HU: dict[str, tuple[float, float, float, float]] = {
    "70": (207, 318, 477, 636),
    "80": (177, 271, 408, 544),
    "100": (145, 222, 334, 446),
    "120": (130, 199, 299, 399),
}
"""Entry threshold and upper ends of weights 1 to 3, by tube voltage. Source: Gräni et al. 2018, Eur. Heart J.
Cardiovasc. Imaging, doi 10.1093/ehjci/jey019. Other voltages scale the 120 kV row by the slope of hydroxyapatite,
which reproduces the rows above within 3 %."""
AGATSTON_MIN_ISLAND_MM2 = 1.0
AGATSTON_SLICE_MM = 3.0

REFERENCE_MG_HA_PER_CM3 = 200.0
"""Density of the deposit that the detectability floor is stated for: soft, about 280 HU at 120 kV."""
_FLOOR_SD = 5.0
_FLOOR_BLUR_VOXELS = 8.0
_FLOOR_MIN_VOXELS = 5.0
_THICK_MM = 2.5
_NOISE_PLANES = 24
_NOISE_LAG = 2
_TISSUE_HU = (-50.0, 100.0)
_DEFAULT_NOISE_HU = 25.0
"""Low-dose CT of soft tissue; assumed only where a scan holds too little soft tissue to measure."""


@dataclass(frozen=True)
class Analysis:
    """What is known about one segmented scan.

    Attributes:
        labels: Lesion numbers on the scan's own grid.
        lesions: One row per lesion, by number.
        burden: The figures of ``burden.json``.
    """

    labels: Labels
    lesions: list[Lesion]
    burden: dict[str, Any]


def analyse_mask(
    scan: Volume,
    mask: NDArray[Any],
    *,
    case_id: str,
    modality: str,
    kv: str | float | None = None,
    probability: NDArray[Any] | None = None,
) -> Analysis:
    """Turn a mask into lesions, their table and the burden figures.

    Args:
        scan: The scan, HU for CT.
        mask: Foreground on the scan's own grid, shape (X, Y, Z).
        case_id: Goes into the figures.
        modality: ``ct`` or ``stir``.
        kv: Tube voltage, see :func:`~jdm_seg.physics.hu_per_mg_ha`; None assumes 120 kV and says so.
        probability: Network output on the scan's own grid.

    Returns:
        Labels on the scan's own grid, lesions with RAS centroids, figures. An empty mask is a valid case.

    Raises:
        InputError: For an unknown modality or voltage.
        GridMismatchError: If the mask's or the probability's shape is not the scan's.
    """
    canonical = scan.to_canonical()
    modality = as_modality(modality)
    labels = label_lesions(_canonical(mask, scan), canonical.spacing)
    is_ct = modality == "ct"
    lesions = measure_lesions(
        labels,
        canonical.grid,
        image=canonical.array if is_ct else None,
        slope_hu_per_mg=_slope(kv) if is_ct else None,
        probability=None if probability is None else _canonical(probability, scan),
        body=outline_body(canonical.array, canonical.spacing, modality) if labels.any() else None,
    )
    burden = compute_burden(case_id, modality, lesions, labels, canonical.array, canonical.grid, kv=kv)
    return Analysis(scan.from_canonical(labels), lesions, burden)


def compute_burden(
    case_id: str,
    modality: str,
    lesions: list[Lesion],
    labels: NDArray[Any],
    image: NDArray[Any],
    grid: Grid,
    *,
    kv: str | float | None = None,
) -> dict[str, Any]:
    """Sum up one scan.

    Args:
        case_id: Goes into the figures.
        modality: ``ct`` or ``stir``.
        lesions: Rows of :func:`~jdm_seg.lesions.measure_lesions`.
        labels: Lesion numbers, shape (X, Y, Z).
        image: The scan on the same grid.
        grid: That grid.
        kv: Tube voltage; None assumes 120 kV and says so.

    Returns:
        The keys of ``burden.json``, ready for JSON. ``mass_mg_ha``, ``agatston`` and ``mean_hu`` are None for STIR,
        ``mean_hu`` also without lesions.

    Raises:
        InputError: For an unknown modality or voltage.
    """
    is_ct = as_modality(modality) == "ct"
    noise = estimate_noise_hu(image, labels != 0, grid) if is_ct else None
    slope = _slope(kv) if is_ct else None
    floor = detectability_floor_mm3(grid, noise, slope)
    volume = sum(lesion.volume_mm3 for lesion in lesions)
    hu = sum(lesion.mean_hu * lesion.volume_mm3 for lesion in lesions if lesion.mean_hu is not None)
    return {
        "schema_version": SCHEMA_VERSION,
        "case_id": case_id,
        "modality": modality,
        **_total(lesions, is_ct),
        "agatston": agatston_score(labels != 0, image, grid, kv=kv) if is_ct else None,
        "mean_hu": hu / volume if is_ct and volume else None,
        "largest_lesion_ml": max((lesion.volume_mm3 for lesion in lesions), default=0.0) / 1000.0,
        "by_region": {
            region: _total((lesion for lesion in lesions if lesion.region == region), is_ct)
            for region in sorted({lesion.region for lesion in lesions})
        },
        "by_size": {
            stratum: _total((one for one in lesions if size_stratum(one.equivalent_diameter_mm) == stratum), is_ct)
            for stratum in SIZE_STRATA
        },
        "detectability_floor_mm3": floor,
        "noise_sd_hu": noise,
        "kv": _kv_name(kv) if is_ct else None,
        "hu_per_mg_ha": slope,
        "warnings": _warnings(lesions, grid, floor, is_ct=is_ct, kv_is_known=kv is not None),
    }


def agatston_score(mask: NDArray[np.bool_], image: NDArray[Any], grid: Grid, *, kv: str | float | None = None) -> float:
    """Compute the Agatston score of a mask, for comparison with earlier work; it caps density and needs 3 mm slices.

    Per axial slice, each island of masked voxels at or over the entry threshold (8 neighbours, at least 1 mm²) counts
    its area in mm² times a weight of 1 to 4 by its largest CT number. The sum is scaled by slice distance / 3 mm.

    Args:
        mask: Foreground, shape (X, Y, Z).
        image: CT numbers in HU, same shape.
        grid: Where they lie; the axial axis is the one closest to superior.
        kv: Tube voltage; None means 120 kV.

    Returns:
        The score; 0 for an empty mask.

    Source: Agatston et al. 1990, JACC 15:827; thresholds by voltage as :data:`AGATSTON_EDGES_HU` says.
    """
    axis = next(i for i, code in enumerate(grid.orientation) if code in "SI")
    edges = np.array(agatston_edges_hu(kv))
    box = bounding_box(mask)
    values = np.moveaxis(image[box], axis, 0)
    dense = np.moveaxis(mask[box], axis, 0) & (values >= edges[0])
    slice_mm = grid.spacing[axis]
    pixel_mm2 = grid.voxel_volume_mm3 / slice_mm
    score = 0.0
    for plane, hu in zip(dense, values, strict=True):
        if not plane.any():
            continue
        islands = cc3d.connected_components(np.ascontiguousarray(plane), connectivity=8, binary_image=True)[plane]
        peak = np.zeros(int(islands.max()) + 1)
        np.maximum.at(peak, islands, hu[plane])
        area = np.bincount(islands) * pixel_mm2
        area[area < AGATSTON_MIN_ISLAND_MM2 * (1 - 1e-4)] = 0.0
        weight = 1 + (peak[:, None] > edges[1:]).sum(axis=1)
        score += float((area * weight).sum())
    return score * slice_mm / AGATSTON_SLICE_MM


def agatston_edges_hu(kv: str | float | None) -> tuple[float, ...]:
    """Return entry threshold and weight edges in HU, scaled from 120 kV where no published row exists."""
    published = AGATSTON_EDGES_HU.get(_kv_name(kv))
    if published is not None:
        return published
    ratio = _slope(kv) / HU_PER_MG_HA["120"]
    return tuple(round(edge * ratio) for edge in AGATSTON_EDGES_HU["120"])


def estimate_noise_hu(image: NDArray[Any], exclude: NDArray[np.bool_], grid: Grid) -> float | None:
    """Estimate the noise SD of soft tissue from differences of nearby voxels.

    In up to 24 axial slices, voxels two apart whose mean lies between -50 and 100 HU are subtracted;
    SD = 1.4826 MAD / √2. Differences cancel anatomy, the median ignores edges, two voxels' distance escapes most of
    the kernel's correlation (what is left makes this a lower bound).

    Args:
        image: CT numbers in HU, shape (X, Y, Z).
        exclude: Lesions, same shape.
        grid: Where they lie.

    Returns:
        SD in HU; None when fewer than 100 pairs qualify.
    """
    axis = next(i for i, code in enumerate(grid.orientation) if code in "SI")
    every = -(-image.shape[axis] // _NOISE_PLANES)
    planes = (slice(None),) * axis + (slice(None, None, every),)  # a view: only these slices are read
    hu, usable = image[planes].astype(np.float32), ~exclude[planes]
    along = 0 if axis != 0 else 1
    first = tuple(slice(None, -_NOISE_LAG) if i == along else slice(None) for i in range(3))
    second = tuple(slice(_NOISE_LAG, None) if i == along else slice(None) for i in range(3))
    mean = (hu[first] + hu[second]) / 2
    pairs = usable[first] & usable[second] & (mean >= _TISSUE_HU[0]) & (mean <= _TISSUE_HU[1])
    difference = (hu[first] - hu[second])[pairs]
    if difference.size < 100:
        return None
    spread = np.median(np.abs(difference - np.median(difference)))
    return float(1.4826 * spread / np.sqrt(2))


def detectability_floor_mm3(grid: Grid, noise_sd_hu: float | None, slope_hu_per_mg: float | None) -> float:
    """Estimate the smallest deposit that could have been seen: a rule of thumb, not a measurement.

    ``floor = voxel volume x max(5, 8 x 5 SD / contrast)``, where the contrast is that of a soft deposit of 200 mg
    HA/cm³. Blur spreads a small deposit over about 2 x 2 x 2 voxels, so its peak is its contrast times its volume over
    8 voxels, and that must reach 5 noise SDs; whatever the noise, fewer than 5 voxels are no finding. Denser deposits
    are seen smaller, thin sheets along the slices only larger.

    Args:
        grid: The scan's grid.
        noise_sd_hu: Noise of soft tissue; None (not measurable) takes 25 HU on CT.
        slope_hu_per_mg: HU per mg HA / cm³; None on STIR, where only the voxel count decides.

    Returns:
        Volume in mm³.
    """
    voxels = _FLOOR_MIN_VOXELS
    if slope_hu_per_mg is not None:
        noise = _DEFAULT_NOISE_HU if noise_sd_hu is None else noise_sd_hu
        contrast = REFERENCE_MG_HA_PER_CM3 * slope_hu_per_mg
        voxels = max(voxels, _FLOOR_BLUR_VOXELS * _FLOOR_SD * noise / contrast)
    return voxels * grid.voxel_volume_mm3


def burden_of_files(scan: Path, mask: Path, out: Path, *, modality: str, kv: str | float | None = None) -> Analysis:
    """Measure one scan with a mask from any source and write ``lesions.nii.gz``, ``lesions.csv``, ``burden.json``.

    Args:
        scan: NIfTI scan, HU for CT; its file name is the case id.
        mask: NIfTI mask on the scan's grid; every value above 0 is foreground.
        out: Folder for the results.
        modality: ``ct`` or ``stir``.
        kv: Tube voltage; None assumes 120 kV and says so.

    Raises:
        InputError: If a file cannot be read or is no mask.
        GridMismatchError: If the mask lies on another grid.
    """
    volume = read_volume(scan)
    check_modality(volume, modality)
    foreground = read_mask(mask)
    volume.check_same_grid(foreground, "mask")
    analysis = analyse_mask(volume, foreground.array, case_id=case_id_of(scan), modality=modality, kv=kv)
    write_analysis(out, volume, analysis)
    return analysis


def write_analysis(folder: Path, scan: Volume, analysis: Analysis) -> None:
    """Write ``lesions.nii.gz`` (on the grid of ``scan``), ``lesions.csv`` and ``burden.json`` into a folder."""
    write_volume(folder / "lesions.nii.gz", analysis.labels, scan)
    write_lesion_table(folder / "lesions.csv", analysis.lesions)
    write_burden(folder / "burden.json", analysis.burden)


def write_burden(path: Path, burden: dict[str, Any]) -> None:
    """Write the figures as JSON, whole or not at all."""
    write_text(path, json.dumps(burden, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _canonical(array: NDArray[Any], scan: Volume) -> NDArray[Any]:
    companion = Volume(array, scan.affine, scan.name)
    scan.check_same_grid(companion, "mask")
    return companion.to_canonical().array


def _kv_name(kv: str | float | None) -> str:
    return DEFAULT_KV if kv is None else str(kv).removesuffix(".0")


def _slope(kv: str | float | None) -> float:
    try:
        return hu_per_mg_ha(kv)
    except ValueError as error:
        raise InputError(
            "kv",
            expected=f"a tube voltage from 70 to 140, or one of {', '.join(HU_PER_MG_HA)}",
            found=repr(kv),
            remedy="take it from the scan's DICOM header, or leave it out to assume 120 kV",
        ) from error


def _total(lesions: Iterable[Lesion], is_ct: bool) -> dict[str, Any]:
    rows = list(lesions)
    masses = [row.mass_mg_ha for row in rows]
    known = [mass for mass in masses if mass is not None]
    return {
        "lesion_count": len(rows),
        "volume_ml": sum((row.volume_mm3 for row in rows), 0.0) / 1000.0,
        # one lesion without a measurable background leaves the total unknown, not smaller
        "mass_mg_ha": sum(known, 0.0) if is_ct and len(known) == len(masses) else None,
    }


def _warnings(lesions: list[Lesion], grid: Grid, floor_mm3: float, *, is_ct: bool, kv_is_known: bool) -> list[str]:
    """Say in plain words what limits the figures."""
    warnings = []
    longest = max(grid.spacing)
    if is_ct and not kv_is_known:
        warnings.append(
            f"The tube voltage is not known; {DEFAULT_KV} kV was assumed. The same deposit is up to 60 % brighter at "
            "70 kV: pass the voltage for a mass and an Agatston score that can be compared."
        )
    clipped = sum(1 for lesion in lesions if lesion.clipped_fraction)
    if clipped:
        warnings.append(
            f"{clipped} of {len(lesions)} lesions hold voxels at the scanner's ceiling of {HU_MAX} HU; "
            "their density and mass are lower bounds."
        )
    if longest > _THICK_MM:
        warnings.append(
            f"Voxels are {longest:.1f} mm long: small deposits and thin sheets are averaged with what lies around "
            "them, so volumes depend on the mask's threshold (mass less so), and a sheet along the slices may not show."
        )
    small = sum(1 for lesion in lesions if lesion.volume_mm3 < floor_mm3)
    if small:
        warnings.append(
            f"{small} of {len(lesions)} lesions are smaller than this scan's estimated detectability floor of "
            f"{floor_mm3:.0f} mm³ and may be noise."
        )
    if is_ct and any(lesion.mass_mg_ha is None for lesion in lesions):
        warnings.append("Some lesions have no tissue around them to measure a background on; their mass is missing.")
    return warnings
