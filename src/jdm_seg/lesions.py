"""From a mask to a table of lesions: how large and dense each one is, and where.

Terms:
    lesion: see :mod:`jdm_seg.components`.
    labels: the mask with each voxel numbered by its lesion, 0 outside, 1 for the largest.

Cost follows the number of lesion voxels and, for labelling, the box around all of them; never lesions times volume.
Memory beside scan and mask: about 150 bytes a lesion voxel, and 2 bytes a voxel of the scan only where labels are
painted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from jdm_seg.body_mask import Body
from jdm_seg.burden.body_map import UNKNOWN, BodyMap
from jdm_seg.burden.mass import Signal, mass_mg, measure_signal
from jdm_seg.components import CONNECTIVITY, GROUPING_MM, LesionVoxels, find_lesions
from jdm_seg.errors import InputError
from jdm_seg.neighbourhood import Indices, ball_steps, distance_to_outside, foreground_indices
from jdm_seg.physics import HU_MAX
from jdm_seg.sharpness import Blur
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Grid, Spacing, Volume, case_id_of, read_volume, write_table

SIZE_STRATA = ("<3 mm", "3-10 mm", ">10 mm")
"""Strata of the equivalent diameter; 3 and 10 mm belong to the middle one."""

DEPTH_CLASSES = ("skin", "subcutis", "fascia", "muscle", "periarticular", "visceral", UNKNOWN)
SKIN_MM = 3.0
"""A lesion whose centre is no deeper lies in the skin (assumed: skin is 1 to 2 mm thick)."""
_PURE = 0.8
"""Share of fat, or of muscle, around a lesion from which it lies in the one and not between the two (assumed)."""

Labels = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Lesion:
    """One row of ``lesions.csv``. A field that does not apply is None and written empty.

    Attributes:
        lesion: Number, as in ``lesions.nii.gz``.
        volume_mm3: Voxel count times voxel volume.
        equivalent_diameter_mm: Diameter of the ball of that volume.
        longest_axis_mm: Largest distance between two of its voxel centres; 0 for a single voxel.
        centroid_x_mm: Mean position, RAS.
        centroid_y_mm: Mean position, RAS.
        centroid_z_mm: Mean position, RAS.
        mean_hu: Mean CT number (CT only, like the next three).
        max_hu: Largest CT number.
        clipped_fraction: Share of its voxels at the scanner's ceiling, whose true value is unknown.
        mass_mg_ha: Background-corrected mass in mg hydroxyapatite, see :mod:`jdm_seg.burden.mass`.
        depth_mm: Distance from its nearest voxel to outside the body.
        region: One of :data:`jdm_seg.burden.body_map.REGIONS`.
        side: One of :data:`jdm_seg.burden.body_map.SIDES`: the patient's.
        mean_probability: Mean of the network's probability over its voxels.
        volume_integrated_mm3: Volume by background-corrected integrated intensity (CT only, like the next four).
        volume_sd_mm3: Standard deviation of that volume by the noise of the scan.
        density_mg_ha_cm3: Mass over that volume.
        density_basis: How the density was found, see :mod:`jdm_seg.burden.density`; ``mask`` is the weakest.
        bone_mm: Distance to bone on a map of about 3 mm; 0 for a lesion that touches it.
        depth_class: One of :data:`DEPTH_CLASSES`.
    """

    lesion: int
    volume_mm3: float
    equivalent_diameter_mm: float
    longest_axis_mm: float
    centroid_x_mm: float
    centroid_y_mm: float
    centroid_z_mm: float
    mean_hu: float | None = None
    max_hu: float | None = None
    clipped_fraction: float | None = None
    mass_mg_ha: float | None = None
    depth_mm: float | None = None
    region: str = UNKNOWN
    side: str = UNKNOWN
    mean_probability: float | None = None
    volume_integrated_mm3: float | None = None
    volume_sd_mm3: float | None = None
    density_mg_ha_cm3: float | None = None
    density_basis: str | None = None
    bone_mm: float | None = None
    depth_class: str = UNKNOWN


def read_mask(path: Path, name: str | None = None) -> Volume:
    """Read a mask: every value above 0 is foreground, so masks that number their lesions work too.

    Args:
        path: NIfTI file.
        name: What messages call it; default the file's case id.

    Returns:
        Boolean volume on its own grid.

    Raises:
        InputError: If it cannot be read, or holds fractions or negative values: a probability map or a scan.
    """
    volume = read_volume(path)
    name = case_id_of(path) if name is None else name
    array = volume.array
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(
            name, expected="a mask of whole numbers", found="fractions", remedy="threshold the probabilities first"
        )
    if array.dtype.kind != "u" and array.size and array.min() < 0:
        raise InputError(
            name, expected="a mask", found="negative values", remedy="check that this is the mask and not the scan"
        )
    return Volume(array > 0, volume.affine, name, volume.header)


def label_lesions(
    mask: NDArray[Any], spacing: Spacing, *, connectivity: int = CONNECTIVITY, grouping_mm: float = GROUPING_MM
) -> Labels:
    """Number the lesions of a mask, the largest first.

    Args:
        mask: Foreground, shape (X, Y, Z); non-zero counts.
        spacing: Voxel size in mm.
        connectivity: 6, 18 or 26 neighbours.
        grouping_mm: Radius of the dilation; 0 gives plain components.

    Returns:
        Labels of the mask's shape and memory order, 1 to n by falling volume, ties by the first voxel in C order.
        All zero for an empty mask.

    Raises:
        ValueError: For another connectivity or a negative radius.
    """
    return paint_lesions(find_lesions(mask, spacing, connectivity=connectivity, grouping_mm=grouping_mm), mask)


def paint_lesions(lesions: LesionVoxels, like: NDArray[Any]) -> Labels:
    """Return a list of lesions as a label array of the shape and memory order of ``like``."""
    labels: Labels = np.zeros_like(like, dtype=label_type(lesions.count))
    labels[tuple(lesions.indices.T)] = lesions.numbers
    return labels


def label_type(count: int) -> type[np.uint16 | np.uint32]:
    """Return the type of labels of so many lesions."""
    return np.uint16 if count < 2**16 else np.uint32


def measure_lesions(
    labels: NDArray[Any],
    grid: Grid,
    *,
    image: NDArray[Any] | None = None,
    slope_hu_per_mg: float | NDArray[np.float64] | None = None,
    probability: NDArray[Any] | SparseArray | None = None,
    body: Body | None = None,
    body_map: BodyMap | None = None,
    blur: Blur | None = None,
    voxels: LesionVoxels | None = None,
) -> list[Lesion]:
    """Measure every lesion of a label array.

    Args:
        labels: Lesion numbers, shape (X, Y, Z), 0 outside; with ``voxels`` their mask is enough.
        grid: Where the labels lie.
        image: CT numbers in HU on the same grid; None for MRI, whose HU fields and mass stay None.
        slope_hu_per_mg: HU per mg HA / cm³ of the scan's tube voltage, one for all or one an axial slice, shape (Z,);
            None leaves mass and integrated volume None.
        probability: Network output in [0, 1] on the same grid, at least at the lesions' voxels.
        body: Body mask on the same grid; its outside is skin and beyond, the end of the scan is not.
        body_map: Of the same scan, canonical axes; None leaves region, side and depth class unknown.
        blur: How the scan blurs, see :func:`~jdm_seg.sharpness.estimate_sharpness`; None assumes a soft kernel.
        voxels: The same lesions as a list, where it is at hand: spares a search through ``labels``.

    Returns:
        One row per lesion by number; empty without lesions. ``mass_mg_ha`` is None for a lesion with no background
        to measure, ``depth_mm`` when the body mask has no outside.
    """
    lesions = _grouped(labels) if voxels is None else _grouped_by(voxels.indices, voxels.numbers)
    if not lesions.numbers.size:
        return []
    volumes = np.asarray(lesions.counts * grid.voxel_volume_mm3, dtype=np.float64)
    middle = lesions.mean(lesions.indices)
    centroids = middle @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    columns: dict[str, list[Any] | None] = {
        "lesion": lesions.numbers.tolist(),
        "volume_mm3": volumes.tolist(),
        "equivalent_diameter_mm": equivalent_diameter_mm(volumes).tolist(),
        "longest_axis_mm": [longest_axis_mm(part, grid.affine) for part in lesions.parts()],
        "centroid_x_mm": centroids[:, 0].tolist(),
        "centroid_y_mm": centroids[:, 1].tolist(),
        "centroid_z_mm": centroids[:, 2].tolist(),
    }
    signals: list[Signal | None] = [None] * len(lesions.numbers)
    if image is not None:
        values = image[tuple(lesions.indices.T)].astype(np.float64)
        columns["mean_hu"] = lesions.mean(values).tolist()
        columns["max_hu"] = np.maximum.reduceat(values, lesions.starts).tolist()
        columns["clipped_fraction"] = lesions.mean(values >= HU_MAX).tolist()
        if slope_hu_per_mg is not None:
            signals = [measure_signal(labels, image, part, grid.spacing, blur) for part in lesions.parts()]
            slopes = lesions.mean(np.broadcast_to(slope_hu_per_mg, labels.shape[2:])[lesions.indices[:, 2]])
            columns |= _signal_columns(signals, volumes, grid.voxel_volume_mm3, slopes)
    if probability is not None:
        columns["mean_probability"] = lesions.mean(probability[_axes(lesions.indices)]).tolist()
    in_skin = [False] * len(signals)
    if body is not None:
        depth = distance_to_outside(body, lesions.indices, grid.spacing)
        if depth is not None:
            nearest = np.minimum.reduceat(depth, lesions.starts)
            columns["depth_mm"] = nearest.tolist()
            centres = np.rint(middle).astype(np.int64)
            in_skin = [
                mm <= SKIN_MM and _is_shallow(body, centre, grid.spacing)
                for mm, centre in zip(nearest, centres, strict=True)
            ]
    if body_map is not None:
        columns |= _place_columns(body_map, lesions.parts(), signals, in_skin)
    columns = {name: values for name, values in columns.items() if values is not None}
    rows = zip(*columns.values(), strict=True)
    return [Lesion(**dict(zip(columns, row, strict=True))) for row in rows]


def _signal_columns(
    signals: list[Signal | None], mask_mm3: NDArray[np.float64], voxel_mm3: float, slopes: NDArray[np.float64]
) -> dict[str, list[Any] | None]:
    """Return what follows from integrated intensity."""
    rows: list[tuple[float | None, float | None, float | None, float | None, str | None]] = []
    for signal, own_mm3, slope in zip(signals, mask_mm3, slopes, strict=True):
        if signal is None:
            rows.append((None,) * 5)
            continue
        mass = mass_mg(signal, voxel_mm3, float(slope))
        vox = signal.volume_vox()
        if not vox or signal.contrast is None:  # no brighter than what is around it: only the mask knows its size
            rows.append((mass, float(own_mm3), None, 1000 * mass / float(own_mm3), "mask"))
            continue
        volume, spread = vox * voxel_mm3, signal.noise_hu / signal.contrast.hu * voxel_mm3
        rows.append((mass, volume, spread, 1000 * mass / volume, signal.contrast.basis))
    names = ("mass_mg_ha", "volume_integrated_mm3", "volume_sd_mm3", "density_mg_ha_cm3", "density_basis")
    return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def _place_columns(
    body_map: BodyMap,
    parts: list[Indices],
    signals: list[Signal | None],
    in_skin: list[bool],
) -> dict[str, list[Any] | None]:
    return {
        "region": [body_map.region_of(part) for part in parts],
        "side": [body_map.side_of(part) for part in parts],
        "bone_mm": [_finite(body_map.nearest(body_map.bone_mm, part)) for part in parts],
        "depth_class": [
            depth_class(body_map, part, signal, in_skin=skin)
            for part, signal, skin in zip(parts, signals, in_skin, strict=True)
        ],
    }


def depth_class(body_map: BodyMap, indices: Indices, signal: Signal | None, *, in_skin: bool) -> str:
    """Tell which layer a lesion lies in; the first that applies of skin, visceral, periarticular, and the layers.

    Args:
        body_map: Of the scan.
        indices: The lesion's voxels, shape (N, 3).
        signal: What it adds to the scan: holds how much fat is around it.
        in_skin: Its centre lies no deeper than :data:`SKIN_MM`.

    Returns:
        One of :data:`DEPTH_CLASSES`; ``fascia`` where both fat and muscle are around it.
    """
    if in_skin:
        return "skin"
    if body_map.is_inner(indices):
        return "visceral"
    if body_map.is_periarticular(indices):
        return "periarticular"
    if signal is None:
        return UNKNOWN
    if signal.fat_share >= _PURE:
        return "subcutis"
    return "muscle" if signal.fat_share <= 1 - _PURE else "fascia"


def _is_shallow(body: Body, centre: NDArray[np.int64], spacing: Spacing) -> bool:
    """Tell whether air lies within :data:`SKIN_MM` of a voxel."""
    steps = centre + ball_steps(SKIN_MM, spacing)
    inside = ((steps >= 0) & (steps < body.shape)).all(axis=1)
    return not body[_axes(steps[inside])].all()


def _axes(indices: Indices) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return indices (N, 3) as arrays are indexed."""
    return indices[:, 0], indices[:, 1], indices[:, 2]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def equivalent_diameter_mm(volume_mm3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the diameter in mm of the ball of each volume."""
    return np.cbrt(6.0 / np.pi * volume_mm3)


def size_stratum(diameter_mm: float) -> str:
    """Return the name in :data:`SIZE_STRATA` for an equivalent diameter in mm."""
    return SIZE_STRATA[int(diameter_mm >= 3.0) + int(diameter_mm > 10.0)]


def write_lesion_table(path: Path, lesions: list[Lesion]) -> None:
    """Write ``lesions.csv``, whole or not at all. No lesions give a table with a header and no rows."""
    names = [field.name for field in fields(Lesion)]
    write_table(path, names, (asdict(lesion) for lesion in lesions))


@dataclass(frozen=True)
class _Grouped:
    """Lesion voxels sorted by lesion: ``indices[starts[i] : starts[i] + counts[i]]`` belong to ``numbers[i]``."""

    numbers: NDArray[np.int64]
    indices: Indices
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    def parts(self) -> list[Indices]:
        return np.split(self.indices, self.starts[1:])

    def mean(self, values: NDArray[Any]) -> NDArray[np.float64]:
        total = np.add.reduceat(values.astype(np.float64, copy=False), self.starts, axis=0)
        return np.asarray(total / (self.counts[:, None] if values.ndim == 2 else self.counts), dtype=np.float64)

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        return zip(self.numbers.tolist(), self.parts(), strict=True)


def _grouped(labels: NDArray[Any]) -> _Grouped:
    indices = foreground_indices(labels)
    return _grouped_by(indices, labels[tuple(indices.T)])


def _grouped_by(indices: Indices, values: NDArray[Any]) -> _Grouped:
    order = np.argsort(values, kind="stable")
    numbers, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    return _Grouped(numbers.astype(np.int64), indices[order], starts, counts)


def longest_axis_mm(indices: Indices, affine: NDArray[np.float64]) -> float:
    """Return the largest distance in mm between two of the voxel centres, shape (N, 3); 0 for one voxel.

    Only corners of the convex hull can be that far apart; voxels in one line or plane have no hull in 3-D and are
    treated in their own dimension.
    """
    points = _ends_of_runs(indices) @ affine[:3, :3].T
    if len(points) > 64:
        centred = points - points.mean(axis=0)
        _, scale, axes = np.linalg.svd(centred.T @ centred)
        flat = centred @ axes[np.sqrt(scale) > 1e-6 * np.sqrt(scale[0])].T
        if flat.shape[1] == 1:
            return float(np.ptp(flat))
        points = flat[ConvexHull(flat).vertices]
    return float(pdist(points).max(initial=0.0))


def _ends_of_runs(indices: Indices) -> Indices:
    """Leave out voxels that lie between the one before and the one after along z: no corner of a hull is among them."""
    step = np.zeros((len(indices) + 1, 3), dtype=np.int64)
    step[1:-1] = np.diff(indices, axis=0)
    goes_on = (step == (0, 0, 1)).all(axis=1)
    kept: Indices = indices[~(goes_on[:-1] & goes_on[1:])]
    return kept
