"""How dense a deposit itself is, and so how large: its CT number before the scanner blurred it.

Integrated intensity is the product of volume and density, and blur leaves it alone. To part the two, the density must
be known apart from the outline. Three ways, the first that applies:

    core: voxels so far inside that no blur reaches them; their mean.
    ellipsoid: a compact lesion without such a core is an ellipsoid blurred as the scanner blurs; its size follows from
        how widely the signal is spread. Along thick slices that spread is the scanner's, so the lesion is taken to be
        as long there as it is wide.
    mask: of anything else (thin sheets, nets) the mask, blurred, is scaled to the signal. As good as the mask is.

Sharp kernels blur less than assumed here and undershoot beside a deposit; volumes of small lesions on them come out
too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from jdm_seg.volume import Spacing

BLUR_FWHM_MM = 1.3
"""Width of the point spread function in the plane of the slices (assumed: soft kernels of 1.0 to 1.6 mm)."""
SLICE_FWHM = 0.9
"""Width of the slice profile in slices (assumed), on top of the average over a slice; at least 0.8 of the in-plane."""
_SIGMA = 1 / 2.3548
_CORE_FWHM = 1.1
"""A core voxel lies so many widths inside half of the maximum; a flat edge is then felt by less than 1 %."""
_CORE_VOXELS = 12
_FIT_VOXELS = 40_000
_FIT_EXPLAINED = 0.93
"""Share of the signal's energy that the ellipsoid must explain, apart from noise; thin sheets stay below (assumed)."""
_SCALES = np.geomspace(0.55, 1.8, 15)
_MASK_VOXELS = 4_000_000
_CAPTURED_MIN = 0.6

FloatArray = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """The CT number of a deposit above its background.

    Attributes:
        hu: Above 0.
        basis: ``core``, ``ellipsoid`` or ``mask``.
        captured: Share of the signal that lesion and ring hold, by the ellipsoid; 1 for the others.
    """

    hu: float
    basis: str
    captured: float = 1.0


def blur_sigmas(spacing: Spacing) -> Float64:
    """Return the standard deviation of the assumed point spread function along each axis in mm, shape (3,).

    The axis of the largest voxel is across the slices; the average over a voxel is not included.
    """
    fwhm = np.full(3, BLUR_FWHM_MM)
    across = _slice_axis(spacing)
    fwhm[across] = max(0.8 * BLUR_FWHM_MM, SLICE_FWHM * spacing[across])
    return np.asarray(fwhm * _SIGMA, dtype=np.float64)


def estimate_contrast(
    excess: FloatArray, lesion: NDArray[np.bool_], weight: FloatArray, spacing: Spacing, noise_hu: float = 0.0
) -> Contrast | None:
    """Estimate the density of one lesion.

    Args:
        excess: CT numbers above background around the lesion, shape (X, Y, Z).
        lesion: Its mask, same shape, not empty.
        weight: 1 where a voxel holds this lesion's signal, same shape.
        spacing: Voxel size in mm.
        noise_hu: Standard deviation of the background, which no model need explain.

    Returns:
        The contrast; None where no voxel is brighter than the background.
    """
    top = float(np.percentile(excess[lesion], 95))
    if top <= 0:
        return None
    sigmas = blur_sigmas(spacing)
    core = _core(excess, lesion, top, sigmas, spacing)
    if core is not None:
        return core
    fitted = _fit_ellipsoid(excess, weight, sigmas, spacing, noise_hu)
    return fitted if fitted is not None else _scaled_mask(excess, lesion, weight, sigmas, spacing)


def _slice_axis(spacing: Spacing) -> int:
    return 2 - int(np.argmax(np.round(spacing[::-1], 3)))  # of equal ones the last


def _core(
    excess: FloatArray, lesion: NDArray[np.bool_], top: float, sigmas: Float64, spacing: Spacing
) -> Contrast | None:
    dense = lesion & (excess > 0.5 * top)
    steps = np.ceil(_CORE_FWHM * np.hypot(sigmas, np.array(spacing) * 0.2887) / _SIGMA / spacing - 0.5).astype(int)
    if int(dense.sum()) < np.prod(2 * np.maximum(steps, 1) + 1) / 4:
        return None
    # a running count is as good as an erosion by a box and costs the same for any width
    size = 2 * np.maximum(steps, 1) + 1
    full = ndimage.minimum_filter(dense, size=tuple(size), mode="constant", cval=False)
    if int(full.sum()) < _CORE_VOXELS:
        return None
    return Contrast(float(excess[full].mean(dtype=np.float64)), "core")


@lru_cache(maxsize=1)
def _ball_nodes() -> tuple[Float64, Float64]:
    """Return points of the unit ball, shape (K, 3), and their weights, shape (K,), that integrate smooth functions."""
    roots, radial = np.polynomial.legendre.leggauss(4)
    radii = (roots + 1) / 2
    cosines, polar = np.polynomial.legendre.leggauss(6)
    angles = (np.arange(12) + 0.5) * np.pi / 6
    sines = np.sqrt(1 - cosines**2)
    sphere = np.stack(
        [np.outer(sines, np.cos(angles)), np.outer(sines, np.sin(angles)), np.outer(cosines, np.ones(12))], axis=-1
    ).reshape(-1, 3)
    points = (radii[:, None, None] * sphere).reshape(-1, 3)
    weights = ((radial * radii**2)[:, None] * np.repeat(polar, 12)).ravel()
    return points, weights / weights.sum()


def _fit_ellipsoid(
    excess: FloatArray, weight: FloatArray, sigmas: Float64, spacing: Spacing, noise_hu: float
) -> Contrast | None:
    """Fit a blurred ellipsoid of the signal's own centre and proportions; only its size is searched for."""
    box = ndimage.find_objects((weight > 0).astype(np.uint8))[0]
    signal, used = excess[box].astype(np.float64), weight[box] > 0
    if signal.size > _FIT_VOXELS:
        return None
    moments = _moments(np.where(used, signal, 0.0), spacing)
    if moments is None:
        return None
    centre, covariance = moments
    axes = _unblurred_axes(covariance, sigmas, spacing)
    if axes is None:
        return None
    values = signal[used]
    edges = [(np.arange(n + 1) - 0.5) * step for n, step in zip(signal.shape, spacing, strict=True)]
    best: list[tuple[float, float, float]] = []
    for scale in _SCALES:
        template = _blurred_ellipsoid(edges, centre, scale * axes, sigmas)
        inside = template[used]
        amplitude = float(values @ inside / (inside @ inside))
        best.append((float(((values - amplitude * inside) ** 2).sum()), amplitude, float(inside.sum())))
    loss = np.array([entry[0] for entry in best])
    place = int(loss.argmin())
    allowed = (1 - _FIT_EXPLAINED) * float(values @ values) + 1.5 * noise_hu**2 * len(values)
    if loss[place] > allowed or place in (0, len(_SCALES) - 1):
        return None
    scale = _vertex(np.log(_SCALES), loss, place)
    template = _blurred_ellipsoid(edges, centre, scale * axes, sigmas)
    inside = template[used]
    amplitude = float(values @ inside / (inside @ inside))  # in HU times mm³: the template sums to one per mm³
    volume = 4 / 3 * np.pi * scale**3 * abs(float(np.linalg.det(axes)))
    captured = float(inside.sum() * np.prod(spacing))
    if amplitude <= 0 or captured < _CAPTURED_MIN:
        return None
    return Contrast(amplitude / volume, "ellipsoid", min(1.0, captured))


def _moments(signal: Float64, spacing: Spacing) -> tuple[Float64, Float64] | None:
    """Return centre and covariance in mm of the signal over a quarter of its maximum."""
    positive = np.where(signal > 0.25 * signal.max(), signal, 0.0)
    where = np.argwhere(positive > 0)
    if len(where) < 2:
        return None
    mass = positive[tuple(where.T)]
    points = where * np.array(spacing)
    centre = mass @ points / mass.sum()
    away = points - centre
    return centre, (away * mass[:, None]).T @ away / mass.sum()


def _unblurred_axes(covariance: Float64, sigmas: Float64, spacing: Spacing) -> Float64 | None:
    """Return semi-axes of the ellipsoid before blur, as columns in mm, shape (3, 3).

    Where an axis' spread is mostly the scanner's, the lesion is taken to be as long along it as along the others.
    """
    blur = sigmas**2 + np.array(spacing) ** 2 / 12
    # the signal under a quarter of the maximum is missing from the moments; blur's share of it is about a tenth less
    left = covariance - np.diag(0.85 * blur)
    known = np.diag(left) > np.diag(covariance) * 0.7
    if not known.any():
        known = np.arange(3) != _slice_axis(spacing)
    floor = 0.15 * np.diag(covariance)[known].mean()
    typical = max(float(np.diag(left)[known].mean()), float(floor))
    for axis in np.flatnonzero(~known):
        left[axis, :] = left[:, axis] = 0.0
        left[axis, axis] = typical
    lengths, directions = np.linalg.eigh(left)
    lengths = np.maximum(lengths, 0.05 * lengths.max())
    if lengths.max() <= 0:
        return None
    return np.asarray(directions * np.sqrt(5 * lengths), dtype=np.float64)  # a ball's variance is a fifth of R²


def _blurred_ellipsoid(edges: list[Float64], centre: Float64, axes: Float64, sigmas: Float64) -> Float64:
    """Return an ellipsoid of unit integral, blurred and averaged over voxels, per mm³.

    Args:
        edges: Borders of the voxels along each axis in mm.
        centre: In mm.
        axes: Semi-axes as columns.
        sigmas: Blur along each array axis in mm.
    """
    points, weights = _ball_nodes()
    places = centre + points @ axes.T
    shares = []
    for axis, sigma in enumerate(sigmas):
        step = special.ndtr((edges[axis] - places[:, axis, None]) / sigma)
        shares.append(np.diff(step, axis=1) / (edges[axis][1] - edges[axis][0]))
    x, y, z = shares
    across = ((weights[:, None] * x)[:, :, None] * y[:, None, :]).reshape(len(weights), -1)
    result: Float64 = (across.T @ z).reshape(x.shape[1], y.shape[1], z.shape[1])
    return result


def _vertex(x: Float64, y: Float64, place: int) -> float:
    """Return exp of where a parabola through three neighbours is lowest."""
    step = x[place + 1] - x[place]
    before, here, after = y[place - 1 : place + 2]
    bend = before - 2 * here + after
    shift = 0.0 if bend <= 0 else 0.5 * (before - after) / bend
    return float(np.exp(x[place] + np.clip(shift, -1, 1) * step))


def _scaled_mask(
    excess: FloatArray, lesion: NDArray[np.bool_], weight: FloatArray, sigmas: Float64, spacing: Spacing
) -> Contrast | None:
    if excess.size > _MASK_VOXELS:
        return Contrast(float(excess[lesion].mean(dtype=np.float64)), "mask") if excess[lesion].mean() > 0 else None
    blurred = ndimage.gaussian_filter(lesion.astype(np.float32), sigmas / np.array(spacing), truncate=3)
    used = weight > 0
    hu = float((excess[used] * blurred[used]).sum() / (blurred[used] ** 2).sum())
    return Contrast(hu, "mask") if hu > 0 else None
