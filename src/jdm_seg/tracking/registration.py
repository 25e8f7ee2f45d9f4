"""Where a place of one CT or STIR scan lies in another scan of the same subject.

Two steps. SimpleITK finds a rigid and then an affine transform of the whole scans, from several starts: the scanner's
own coordinates, and the shift along the body at which the slices' areas agree best, so that fields of view may differ.
Limbs bend: around every place asked for, blocks of the two scans are then matched, first large ones far away, then
small ones near. Both work on voxels of 3 to 4 mm; what is left is 2 to 3 mm.

Source: registration before matching lesions as in Phys Med Biol 2021;66:155017.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import KDTree

from jdm_seg.burden.body_map import block_means
from jdm_seg.cases import as_modality
from jdm_seg.errors import InputError
from jdm_seg.volume import Volume

GRID_MM = 3.5
"""Voxel size that registration works on."""
WINDOW_HU = (-200.0, 400.0)
"""Fat, muscle and bone; beyond, kV and contrast decide more than anatomy."""
_LEVELS = ((7.0, 10, 7), (3.5, 8, 4))
"""Block matching: grid in mm, half width of a block and reach of the search in grid points."""
_CELL_MM = 30.0
_PENALTY = 0.15
"""What a shift by the whole reach costs, in correlation: along a shaft all shifts look the same."""
_MIN_CORRELATION = 0.3
_MIN_OVERLAP = 0.3

FloatArray = NDArray[np.float32]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """A mapping from baseline to follow-up, in RAS mm.

    Attributes:
        affine: Baseline to follow-up, shape (4, 4).
        places: Where the local shift was measured, baseline RAS, shape (K, 3).
        shifts: Added to a baseline point near each place before ``affine``, shape (K, 3).
        method: What was done, in words.
        correlation: Of the two scans after the affine step; None where no scan was compared.
    """

    affine: NDArray[np.float64]
    places: Points = field(default_factory=lambda: np.zeros((0, 3)))
    shifts: Points = field(default_factory=lambda: np.zeros((0, 3)))
    method: str = "identity"
    correlation: float | None = None

    def map(self, points: Points) -> Points:
        """Return the follow-up position of baseline points, both RAS mm, shape (N, 3)."""
        if len(self.places) and len(points):
            near = min(3, len(self.places))
            distance, place = KDTree(self.places).query(points, k=near)
            weight = 1 / np.maximum(distance.reshape(len(points), near), 1.0) ** 2
            shift = (self.shifts[place.reshape(len(points), near)] * weight[..., None]).sum(axis=1)
            points = points + shift / weight.sum(axis=1, keepdims=True)
        return np.asarray(points @ self.affine[:3, :3].T + self.affine[:3, 3], dtype=np.float64)

    def unmap(self, points: Points) -> Points:
        """Return the baseline position of follow-up points, both RAS mm, shape (N, 3), good to a few mm."""
        inverse = np.linalg.inv(self.affine)
        straight = np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3], dtype=np.float64)
        # shifts change slowly: what a point's own shift moved it by is near what moved it back
        return straight - (replace(self, affine=np.eye(4)).map(straight) - straight)


def align_scans(baseline: Volume, follow_up: Volume, modality: str, places: Points) -> Alignment:
    """Register two scans of one subject.

    Args:
        baseline: Earlier scan, any grid.
        follow_up: Later scan, any grid.
        modality: ``ct`` or ``stir``.
        places: Baseline positions in RAS mm around which the mapping must hold, shape (N, 3).

    Raises:
        InputError: If SimpleITK is not installed.
    """
    fixed, moving = (_coarse(scan, as_modality(modality)) for scan in (baseline, follow_up))
    affine, correlation = _register_whole(fixed, moving)
    centres = _cell_centres(places)
    shifts = np.zeros_like(centres)
    for step, half, reach in _LEVELS:
        shifts = _match_blocks(fixed, moving, affine, centres, shifts, step, half, reach)
        shifts = _agreed(centres, shifts)
    return Alignment(affine, centres, shifts, "rigid, affine, then blocks around lesions", correlation)


@dataclass(frozen=True)
class _Image:
    """A coarse scan between 0 and 1 with its affine to RAS mm."""

    array: FloatArray
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0), dtype=np.float64)

    def at(self, points: Points) -> FloatArray:
        """Return values at RAS points (..., 3), 0 outside."""
        inverse = np.linalg.inv(self.affine)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        values: FloatArray = ndimage.map_coordinates(self.array, np.moveaxis(index, -1, 0), order=1, cval=0.0)
        return values


def _coarse(scan: Volume, modality: str) -> _Image:
    canonical = scan.to_canonical()
    strides = np.maximum(1, np.round(GRID_MM / np.array(canonical.spacing))).astype(int)
    values = block_means(canonical.array, strides)
    low, high = WINDOW_HU if modality == "ct" else (0.0, float(np.percentile(values, 99)) or 1.0)
    affine = canonical.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((strides - 1) / 2)
    affine[:3, :3] *= strides
    return _Image(((np.clip(values, low, high) - low) / (high - low)).astype(np.float32), affine)


def _register_whole(fixed: _Image, moving: _Image) -> tuple[NDArray[np.float64], float]:
    """Return the best rigid-then-affine transform over all starts, and the correlation it reaches."""
    sitk = _simpleitk()
    images = [_to_sitk(sitk, image) for image in (fixed, moving)]
    tried = []
    for start in _starts(fixed, moving):
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(images[0].TransformContinuousIndexToPhysicalPoint([n / 2 for n in images[0].GetSize()]))
        rigid.SetTranslation(start.tolist())
        tried.append(_optimise(sitk, images, rigid, (4, 2)))
    value, rigid = min(tried, key=lambda one: one[0])
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    refined, bent = _optimise(sitk, images, affine, (2, 1))
    matrix = np.array(bent.GetMatrix()).reshape(3, 3)
    stretch = np.linalg.svd(matrix, compute_uv=False)
    # children grow by a few per cent a year; more is a failed step
    chosen, value = (
        (bent, refined) if refined <= value + 0.02 and (np.abs(stretch - 1) < 0.15).all() else (rigid, value)
    )
    centre, shift = np.array(chosen.GetCenter()), np.array(chosen.GetTranslation())
    result = np.eye(4)
    result[:3, :3] = np.array(chosen.GetMatrix()).reshape(3, 3)
    result[:3, 3] = centre + shift - result[:3, :3] @ centre
    return result, float(np.sqrt(max(0.0, -value)))


def _optimise(sitk: Any, images: list[Any], transform: Any, shrink: tuple[int, ...]) -> tuple[float, Any]:
    """Return the metric (minus the squared correlation) and the transform; a start without overlap scores 0."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([GRID_MM * factor / 2 for factor in shrink])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=4.0, minStep=0.02, numberOfIterations=120, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(*images)
    except RuntimeError:  # too few points of the one scan lie in the other
        return 0.0, transform
    return float(method.GetMetricValue()), transform


def _to_sitk(sitk: Any, image: _Image) -> Any:
    """Return the image in SimpleITK, whose coordinates are taken as RAS on both sides."""
    result = sitk.GetImageFromArray(np.ascontiguousarray(image.array.transpose(2, 1, 0)))
    result.SetSpacing(image.spacing.tolist())
    result.SetOrigin(image.affine[:3, 3].tolist())
    left, _, right = np.linalg.svd(image.affine[:3, :3] / image.spacing)
    result.SetDirection((left @ right).ravel().tolist())  # the rotation nearest to a slightly sheared grid
    return result


def _starts(fixed: _Image, moving: _Image) -> list[NDArray[np.float64]]:
    """Return translations to begin with: the scanner's coordinates, and areas of slices brought into agreement."""
    profiles = [_profile(image) for image in (fixed, moving)]
    (z_fixed, area_fixed, middle_fixed), (z_moving, area_moving, middle_moving) = profiles
    step = 4.0
    shifts = np.arange(z_moving[0] - z_fixed[-1], z_moving[-1] - z_fixed[0], step)
    shortest = min(np.ptp(z_fixed), np.ptp(z_moving))
    scores = []
    for shift in shifts:
        inside = (z_fixed + shift >= z_moving[0]) & (z_fixed + shift <= z_moving[-1])
        if inside.sum() < 5 or np.ptp(z_fixed[inside]) < _MIN_OVERLAP * shortest:
            scores.append(-np.inf)
            continue
        mine, other = area_fixed[inside], np.interp(z_fixed[inside] + shift, z_moving, area_moving)
        scores.append(-float(np.abs(np.log((mine + 1) / (other + 1))).mean()) - 0.02 * (1 - inside.mean()))
    starts: list[NDArray[np.float64]] = [np.zeros(3)]
    if len(scores) and np.isfinite(max(scores)):
        best = float(shifts[int(np.argmax(scores))])
        across = [
            float(np.median(np.interp(z_fixed + best, z_moving, middle_moving[:, axis]) - middle_fixed[:, axis]))
            for axis in (0, 1)
        ]
        starts.append(np.array([*across, best]))
    return starts


def _profile(image: _Image) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return z in mm of every slice, its area of tissue in cm² with dense voxels counted thrice, and its middle."""
    tissue = (image.array > 0.1).astype(np.float64) + 2 * (image.array > 0.7)
    area = tissue.sum(axis=(0, 1))
    index = np.stack(
        [
            (tissue.sum(axis=1) * np.arange(tissue.shape[0])[:, None]).sum(axis=0) / np.maximum(area, 1),
            (tissue.sum(axis=0) * np.arange(tissue.shape[1])[:, None]).sum(axis=0) / np.maximum(area, 1),
            np.arange(tissue.shape[2]),
        ],
        axis=1,
    )
    middle = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    return middle[:, 2], area * float(np.prod(image.spacing[:2])) / 100, middle[:, :2]


def _cell_centres(places: Points) -> Points:
    """Return the mean of the places in every cell of a grid: near ones share one measurement."""
    if not len(places):
        return np.zeros((0, 3))
    _, cell = np.unique(np.floor(places / _CELL_MM), axis=0, return_inverse=True)
    counts = np.bincount(cell.ravel())
    return np.stack([np.bincount(cell.ravel(), places[:, axis]) / counts for axis in range(3)], axis=1)


def _match_blocks(
    fixed: _Image,
    moving: _Image,
    affine: NDArray[np.float64],
    centres: Points,
    shifts: Points,
    step: float,
    half: int,
    reach: int,
) -> Points:
    """Return shifts improved by the best correlation of a block around each centre; where none is found, as before."""
    block = _offsets(half) * step
    window = _offsets(half + reach) * step
    away = np.linalg.norm(_offsets(reach), axis=-1) / reach
    result = shifts.copy()
    for number, (centre, shift) in enumerate(zip(centres, shifts, strict=True)):
        reference = fixed.at(centre + block)
        points = centre + shift + window
        target = moving.at(points @ affine[:3, :3].T + affine[:3, 3])
        correlation = _correlate(reference, target)
        if correlation is None or correlation.max() < _MIN_CORRELATION:
            continue
        score = correlation - _PENALTY * away**2
        best = np.unravel_index(int(score.argmax()), score.shape)
        fine = [_peak(score, best, axis) for axis in range(3)]
        result[number] = shift + (np.array(best) - reach + fine) * step
    return result


def _offsets(half: int) -> NDArray[np.float64]:
    line = np.arange(-half, half + 1, dtype=np.float64)
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)


def _correlate(block: FloatArray, window: FloatArray) -> NDArray[np.float64] | None:
    """Return Pearson's correlation of a block with every place of a window it fits in; None for an even block."""
    block = block - block.mean()
    energy = float((block.astype(np.float64) ** 2).sum())
    if energy < 1e-3 * block.size:
        return None
    shape = [fft.next_fast_len(n, real=True) for n in window.shape]
    valid = tuple(slice(0, w - b + 1) for w, b in zip(window.shape, block.shape, strict=True))

    def correlation(kernel: FloatArray, values: NDArray[np.float64]) -> NDArray[np.float64]:
        product = np.conj(fft.rfftn(kernel, shape)) * fft.rfftn(values, shape)
        return np.asarray(fft.irfftn(product, shape)[valid])

    values = window.astype(np.float64)
    ones = np.ones_like(block)
    mean = correlation(ones, values) / block.size
    spread = correlation(ones, values**2) - block.size * mean**2
    scale = np.sqrt(np.maximum(spread, 1e-3 * block.size) * energy)
    return np.asarray(correlation(block, values) / scale, dtype=np.float64)


def _peak(score: NDArray[np.float64], best: tuple[Any, ...], axis: int) -> float:
    place = int(best[axis])
    if not 0 < place < score.shape[axis] - 1:
        return 0.0
    line = score[tuple(slice(None) if a == axis else int(best[a]) for a in range(3))]
    before, here, after = line[place - 1 : place + 2]
    bend = before - 2 * here + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))


def _agreed(centres: Points, shifts: Points) -> Points:
    """Replace each shift by the median of its nearest five: one block that went astray does not count."""
    if len(centres) < 3:
        return shifts
    _, near = KDTree(centres).query(centres, k=min(5, len(centres)), distance_upper_bound=120.0)
    padded = np.vstack([shifts, np.full(3, np.nan)])
    return np.asarray(np.nanmedian(padded[near], axis=1), dtype=np.float64)


def _simpleitk() -> Any:
    try:
        import SimpleITK  # an extra: nothing else needs it
    except ImportError as error:
        raise InputError(
            "track",
            expected="SimpleITK, which registers the scans",
            found="it is not installed",
            remedy="pip install 'jdm-seg[track]', or leave the scans out to compare in scanner coordinates",
        ) from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # a start without overlap is no news; the scores tell it
    return SimpleITK
