"""The clinical figures of one scan: how much calcinosis, how dense, where, and what could have been missed.

Everything is computed on the canonical (RAS) scan and written on the scan's own grid. A figure that depends on CT
numbers is None for STIR.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import Body, BodyOutline
from jdm_seg.burden.agatston import AGATSTON_EDGES_HU as AGATSTON_EDGES_HU
from jdm_seg.burden.agatston import agatston_edges_hu as agatston_edges_hu
from jdm_seg.burden.agatston import agatston_score, kv_name
from jdm_seg.burden.body_map import BodyMap, map_body, water_equivalent_diameter_cm
from jdm_seg.burden.detectability import detectability_floor_mm3, estimate_noise_hu
from jdm_seg.burden.stir import measure_stir
from jdm_seg.cases import as_modality, check_modality
from jdm_seg.components import LesionVoxels, find_lesions
from jdm_seg.errors import GridMismatchError, InputError
from jdm_seg.lesions import (
    DEPTH_CLASSES,
    SIZE_STRATA,
    Labels,
    Lesion,
    label_type,
    measure_lesions,
    read_mask,
    size_stratum,
    write_lesion_table,
)
from jdm_seg.neighbourhood import Indices, foreground_indices
from jdm_seg.physics import DEFAULT_KV, HU_MAX, HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.sharpness import Blur, estimate_sharpness
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Grid, Spacing, Volume, case_id_of, read_volume, write_planes, write_text

SCHEMA_VERSION = 1
PROBABILITY = "probability.nii.gz"

DENSE_HU = 1000
"""``dense_fraction`` is the share of lesion voxels over it: stone rather than paste (assumed)."""
_AT_BONE_MM = 4.0
"""One step of the map that the distance to bone is read from, and a little."""
_THICK_MM = 2.5
_ASSUMED_BLUR = (
    "Too little skin is in view to read how sharp the scan is; blur is assumed to be that of a soft kernel. With a "
    "sharp one, integrated volumes of deposits under 10 mm are up to 20 % too small."
)


@dataclass(frozen=True)
class Analysis:
    """What is known about one segmented scan.

    Attributes:
        numbers: Lesion numbers on the scan's own grid.
        lesions: One row per lesion, by number.
        burden: The figures of ``burden.json``.
    """

    numbers: SparseArray
    lesions: list[Lesion]
    burden: dict[str, Any]

    @property
    def labels(self) -> Labels:
        """:attr:`numbers` as an array (X, Y, Z); 2 bytes a voxel of the scan, painted anew at every call."""
        return self.numbers.dense()


def analyse_mask(
    scan: Volume,
    mask: NDArray[Any],
    *,
    case_id: str,
    modality: str,
    kv: str | float | None = None,
    probability: NDArray[Any] | SparseArray | None = None,
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
    is_ct = modality == "ct"
    slope_hu_per_mg(kv)  # a wrong voltage is answered before anything is measured
    foreground = _canonical(mask, scan)
    voxels = find_lesions(foreground, canonical.spacing)
    indices = voxels.indices
    numbers = SparseArray.at_indices(foreground.shape, indices, voxels.numbers.astype(label_type(voxels.count)))
    own = numbers.from_canonical(scan)
    body = BodyOutline(canonical.array, canonical.spacing, modality) if len(indices) else None
    size = None if body is None or not is_ct else BodySize.of(canonical.array, body, canonical.spacing, indices)
    blur = estimate_sharpness(canonical.array, body, canonical.spacing) if is_ct and body is not None else None
    lesions = measure_lesions(
        foreground,
        canonical.grid,
        image=canonical.array if is_ct else None,
        slope_hu_per_mg=size.slopes(kv) if size is not None else None,
        probability=None if probability is None else _probability_of(own, probability, scan),
        body=body,
        body_map=_map_of(canonical.array, canonical.spacing, indices) if is_ct else None,
        blur=blur,
        voxels=voxels,
    )
    del body
    burden = compute_burden(
        case_id,
        modality,
        lesions,
        foreground,
        canonical.array,
        canonical.grid,
        kv=kv,
        size=size,
        blur=blur,
        voxels=voxels,
    )
    return Analysis(own, lesions, burden)


@dataclass(frozen=True)
class BodySize:
    """Water-equivalent size of the body in the slices that hold lesions.

    Attributes:
        diameter_cm: In every axial slice, 0 where no lesion lies, shape (Z,).
    """

    diameter_cm: NDArray[np.float64]

    @classmethod
    def of(cls, hu: NDArray[Any], body: Body, spacing: Spacing, lesions: Indices) -> BodySize:
        """Measure the slices that hold lesion voxels (N, 3) of a canonical scan (X, Y, Z).

        Args:
            hu: CT numbers.
            body: Voxels of the body, same shape.
            spacing: Voxel size in mm.
            lesions: Lesion voxels: their slices are measured.
        """
        slices = np.unique(lesions[:, 2])
        diameter = np.zeros(hu.shape[2])
        diameter[slices] = water_equivalent_diameter_cm(hu, body, spacing, slices)
        return cls(diameter)

    @property
    def typical_cm(self) -> float:
        """The median over slices with lesions."""
        return float(np.median(self.diameter_cm[self.diameter_cm > 0])) if self.diameter_cm.any() else 20.0

    def slopes(self, kv: str | float | None) -> NDArray[np.float64]:
        """Return HU per mg HA / cm³ in every axial slice, shape (Z,)."""
        known, where = np.unique(np.round(self.diameter_cm, 1), return_inverse=True)
        return np.array([slope_hu_per_mg(kv, cm) if cm else slope_hu_per_mg(kv) for cm in known.tolist()])[where]


def _box_of(indices: Indices) -> tuple[slice, ...]:
    """Return the smallest box that holds all voxels (N, 3), an empty one for none."""
    if not len(indices):
        return (slice(0, 0),) * 3
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(indices.min(axis=0), indices.max(axis=0), strict=True))


def _map_of(hu: NDArray[Any], spacing: Spacing, indices: Indices) -> BodyMap | None:
    return map_body(hu, spacing, indices) if len(indices) else None


def compute_burden(
    case_id: str,
    modality: str,
    lesions: list[Lesion],
    labels: NDArray[Any],
    image: NDArray[Any],
    grid: Grid,
    *,
    kv: str | float | None = None,
    size: BodySize | None = None,
    blur: Blur | None = None,
    voxels: LesionVoxels | None = None,
) -> dict[str, Any]:
    """Sum up one scan.

    Args:
        case_id: Goes into the figures.
        modality: ``ct`` or ``stir``.
        lesions: Rows of :func:`~jdm_seg.lesions.measure_lesions`.
        labels: Lesion numbers, shape (X, Y, Z); with ``voxels`` their mask is enough.
        image: The scan on the same grid.
        grid: That grid.
        kv: Tube voltage; None assumes 120 kV and says so.
        size: Of the body; None takes 20 cm of water.
        blur: The one that the lesions were measured with; None: an assumed one.
        voxels: The lesions as a list, where it is at hand: spares a search through ``labels``.

    Returns:
        The keys of ``burden.json``, ready for JSON. ``mass_mg_ha``, ``agatston`` and figures in HU are None for STIR,
        figures in HU also without lesions. ``symmetry_index`` is None where no lesion has a side.

    Raises:
        InputError: For an unknown modality or voltage.
    """
    is_ct = as_modality(modality) == "ct"
    indices = foreground_indices(labels) if voxels is None else voxels.indices
    box = _box_of(indices)
    blur = Blur() if blur is None else blur
    noise = estimate_noise_hu(image, labels, grid) if is_ct else None
    slope = slope_hu_per_mg(kv, 20.0 if size is None else size.typical_cm) if is_ct else None
    floor = detectability_floor_mm3(grid, noise, slope)
    stir = None if is_ct else measure_stir(image, labels != 0, grid.spacing)
    return {
        "schema_version": SCHEMA_VERSION,
        "case_id": case_id,
        "modality": modality,
        **_total(lesions, is_ct),
        "agatston": agatston_score(labels[box] != 0, image[box], grid, kv=kv) if is_ct else None,
        **_hu_figures(image[tuple(indices.T)] if is_ct else np.zeros(0)),
        "largest_lesion_ml": max((lesion.volume_mm3 for lesion in lesions), default=0.0) / 1000.0,
        "median_diameter_mm": _median([lesion.equivalent_diameter_mm for lesion in lesions]),
        "by_region": _by(lesions, "region", sorted({lesion.region for lesion in lesions}), is_ct),
        "by_side": _by(lesions, "side", sorted({lesion.side for lesion in lesions}), is_ct),
        "by_depth": _by(lesions, "depth_class", [name for name in DEPTH_CLASSES if _occurs(lesions, name)], is_ct),
        "by_size": {
            stratum: _total((one for one in lesions if size_stratum(one.equivalent_diameter_mm) == stratum), is_ct)
            for stratum in SIZE_STRATA
        },
        "symmetry_index": symmetry_index(lesions),
        "detectability_floor_mm3": floor,
        "detectability_floor_diameter_mm": float(np.cbrt(6 / np.pi * floor)),
        "noise_sd_hu": noise,
        "kv": kv_name(kv) if is_ct else None,
        "kv_is_assumed": is_ct and kv is None,
        "body_diameter_cm": None if size is None else round(size.typical_cm, 1),
        "hu_per_mg_ha": slope,
        "blur_fwhm_mm": round(blur.fwhm_mm, 2) if is_ct and lesions else None,
        "blur_overshoot": round(blur.overshoot, 2) if is_ct and lesions else None,
        "blur_is_assumed": is_ct and bool(lesions) and not blur.is_measured,
        "stir": None if stir is None else asdict(stir),
        "warnings": [
            *_warnings(lesions, grid, floor, is_ct=is_ct, kv_is_known=kv is not None),
            *([] if stir is None else stir.warnings()),
            *([_ASSUMED_BLUR] if is_ct and lesions and not blur.is_measured else []),
        ],
    }


def symmetry_index(lesions: list[Lesion]) -> float | None:
    """Return how far right and left mirror each other: twice the smaller volume of each region over all of it.

    1 where every region holds as much on both sides, 0 where each lesion stands alone. Lesions without a side or on the
    midline do not count.

    Returns:
        0 to 1; None when no lesion lies on a known side.
    """
    sides: dict[str, dict[str, float]] = {}
    for lesion in lesions:
        if lesion.side in ("left", "right"):
            region = sides.setdefault(lesion.region, {"left": 0.0, "right": 0.0})
            region[lesion.side] += lesion.volume_mm3
    total = sum(sum(region.values()) for region in sides.values())
    return 2 * sum(min(region.values()) for region in sides.values()) / total if total else None


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


def write_analysis(
    folder: Path, scan: Volume, analysis: Analysis, *, probability: NDArray[Any] | SparseArray | None = None
) -> None:
    """Write ``lesions.nii.gz`` (on the grid of ``scan``), ``lesions.csv`` and ``burden.json`` into a folder.

    Args:
        folder: For the results.
        scan: What was measured.
        analysis: The result.
        probability: Where given, it is written too, see :func:`write_probability`.
    """
    if probability is not None:
        write_probability(folder, probability, scan)
    write_planes(folder / "lesions.nii.gz", analysis.numbers.planes(), scan, analysis.numbers.dtype)
    write_lesion_table(folder / "lesions.csv", analysis.lesions)
    write_burden(folder / "burden.json", analysis.burden)


def write_probability(folder: Path, probability: NDArray[Any] | SparseArray, scan: Volume) -> None:
    """Write ``probability.nii.gz``: whole percents as uint8, which every viewer shows and gzip shrinks.

    What is above 0 never becomes 0: a voxel that a method named stays visible. Memory: a few planes.

    Args:
        folder: Gets the file.
        probability: In [0, 1], on the grid of ``scan``, shape (X, Y, Z).
        scan: Whose grid is written.

    Raises:
        GridMismatchError: If the shape is not the scan's.
        ValueError: If a value lies outside [0, 1] or is NaN.
    """
    planes = probability.planes() if isinstance(probability, SparseArray) else np.moveaxis(probability, 2, 0)
    write_planes(folder / PROBABILITY, map(_percent, planes), scan, np.uint8)


def _percent(probability: NDArray[Any]) -> NDArray[np.uint8]:
    if not probability.any():
        return np.zeros(probability.shape, np.uint8)
    values = probability.astype(np.float32)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"expected probabilities in [0, 1], but got {values.min()} to {values.max()}")
    np.rint(values * 100, out=values)
    values[(values == 0) & (probability > 0)] = 1
    return values.astype(np.uint8)


def write_burden(path: Path, burden: dict[str, Any]) -> None:
    """Write the figures as JSON, whole or not at all."""
    write_text(path, json.dumps(burden, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _probability_of(
    lesions: SparseArray, probability: NDArray[Any] | SparseArray, scan: Volume
) -> NDArray[Any] | SparseArray:
    """Return probabilities on the scan's own grid on the canonical one, at least those of the lesions."""
    if not isinstance(probability, SparseArray):
        return _canonical(probability, scan)
    if probability.shape != lesions.shape:
        raise GridMismatchError(
            scan.name,
            expected=f"probabilities of shape {lesions.shape}",
            found=f"{probability.shape}",
            remedy="pass them on the scan's own grid",
        )
    return SparseArray(lesions.shape, lesions.places, probability.take(lesions.places)).to_canonical(scan)


def _canonical(array: NDArray[Any], scan: Volume) -> NDArray[Any]:
    companion = Volume(array, scan.affine, scan.name)
    scan.check_same_grid(companion, "mask")
    return companion.to_canonical().array


def slope_hu_per_mg(kv: str | float | None, path_cm: float = 20.0) -> float:
    """Return :func:`~jdm_seg.physics.hu_per_mg_ha` for a voltage that a user gave.

    Raises:
        InputError: For an unknown voltage.
    """
    try:
        return hu_per_mg_ha(kv, path_cm)
    except ValueError as error:
        raise InputError(
            "kv",
            expected=f"a tube voltage from 70 to 140, or one of {', '.join(HU_PER_MG_HA)}",
            found=repr(kv),
            remedy="take it from the scan's DICOM header, or leave it out to assume 120 kV",
        ) from error


def _total(lesions: Iterable[Lesion], is_ct: bool) -> dict[str, Any]:
    rows = list(lesions)
    # one lesion without a measurable background leaves the total unknown, not smaller
    masses = [row.mass_mg_ha for row in rows]
    integrated = [row.volume_integrated_mm3 for row in rows]
    return {
        "lesion_count": len(rows),
        "volume_ml": sum((row.volume_mm3 for row in rows), 0.0) / 1000.0,
        "volume_integrated_ml": _sum_of(integrated, 1000.0) if is_ct else None,
        "mass_mg_ha": _sum_of(masses) if is_ct else None,
    }


def _sum_of(values: list[float | None], per: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known, 0.0) / per if len(known) == len(values) else None


def _by(lesions: list[Lesion], column: str, names: list[str], is_ct: bool) -> dict[str, Any]:
    return {name: _total((one for one in lesions if getattr(one, column) == name), is_ct) for name in names}


def _occurs(lesions: list[Lesion], name: str) -> bool:
    return any(lesion.depth_class == name for lesion in lesions)


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _hu_figures(values: NDArray[Any]) -> dict[str, float | None]:
    names = ("mean_hu", "median_hu", "max_hu", "clipped_fraction", "dense_fraction")
    if not values.size:
        return dict.fromkeys(names)
    figures = (values.mean(), np.median(values), values.max(), (values >= HU_MAX).mean(), (values > DENSE_HU).mean())
    return {name: float(figure) for name, figure in zip(names, figures, strict=True)}


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
    guessed = sum(lesion.density_basis == "mask" for lesion in lesions)
    if guessed:
        warnings.append(
            f"{guessed} of {len(lesions)} lesions are too thin or too faint to tell density and volume apart; "
            "their integrated volume follows the mask."
        )
    at_bone = [lesion for lesion in lesions if lesion.bone_mm is not None and lesion.bone_mm <= _AT_BONE_MM]
    if is_ct and at_bone:
        volume, mass = (
            sum(getattr(lesion, name) or 0.0 for lesion in at_bone) for name in ("volume_mm3", "mass_mg_ha")
        )
        numbers = ", ".join(str(lesion.lesion) for lesion in at_bone[:12]) + (", ..." if len(at_bone) > 12 else "")
        warnings.append(
            f"{len(at_bone)} of {len(lesions)} lesions lie at a bone (number {numbers}; {volume / 1000:.2f} mL, "
            f"{mass:.0f} mg together): look whether they are part of it."
        )
    if is_ct and lesions and all(lesion.region == "unknown" for lesion in lesions):
        warnings.append(
            "Body region and side are not known where the scan shows neither lungs nor the fork of the legs."
        )
    if is_ct and any(lesion.mass_mg_ha is None for lesion in lesions):
        warnings.append("Some lesions have no tissue around them to measure a background on; their mass is missing.")
    return warnings
