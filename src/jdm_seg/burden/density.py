"""How dense a deposit itself is, and so how large: its CT number before the scanner blurred it.

Integrated intensity is the product of volume and density, and blur leaves it alone. To part the two, the density must
be known apart from the outline. Three ways, the first that applies:

    core: voxels so far inside that no blur reaches them; their mean.
    ellipsoid: a compact lesion without such a core is an ellipsoid blurred as the scanner blurs; its size follows from
        how widely the signal is spread. Along thick slices that spread is the scanner's, so the lesion is taken to be
        as long there as it is wide.
    mask: of anything else (thin sheets, nets) the mask, blurred, is scaled to the signal. As good as the mask is.

How the scanner blurs is read from the scan's own skin, see :mod:`jdm_seg.sharpness`. Of a 5 mm deposit, 0.3 mm more or
less in the blur change the volume by 8 %, and a sharp kernel's overshoot, if not known, by 20 %.

Memory follows the box around one lesion (its voxels and the shell around them), about 50 bytes a voxel, never the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from jdm_seg.sharpness import FWHM_TO_SIGMA, Blur
from jdm_seg.volume import Spacing, slice_axis

_CORE_FWHM = 1.1
"""A core voxel lies so many widths inside half of the maximum; a flat edge is then felt by less than 1 %."""
_CORE_VOXELS = 12
_FIT_VOXELS = 40_000
_FIT_EXPLAINED = 0.93
"""Share of the signal's energy that the ellipsoid must explain, apart from noise; thin sheets stay below (assumed)."""
_SCALES = np.geomspace(0.55, 1.8, 15)
_EVERY = 3
"""The size is searched for on every third scale first, then beside the best."""
_HOPELESS = 0.3
"""Share of the energy by which a scale next to the best explains less, at most; what lacks more cannot be mended."""
_ORDERS = (6, 20)
"""Chords from the centre to the rim. With the blur's width between them the template is right to 4 % of its maximum
(measured against 60, on ellipsoids of 1 to 8 mm and voxels of 0.6 to 5 mm), and its amplitude to 0.01 %."""
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


def estimate_contrast(
    excess: FloatArray,
    lesion: NDArray[np.bool_],
    weight: FloatArray,
    spacing: Spacing,
    noise_hu: float = 0.0,
    blur: Blur | None = None,
) -> Contrast | None:
    """Estimate the density of one lesion.

    Args:
        excess: CT numbers above background around the lesion, shape (X, Y, Z).
        lesion: Its mask, same shape, not empty.
        weight: 1 where a voxel holds this lesion's signal, same shape.
        spacing: Voxel size in mm.
        noise_hu: Standard deviation of the background, which no model need explain.
        blur: Of the scan; None assumes one.

    Returns:
        The contrast; None where no voxel is brighter than the background.
    """
    top = float(np.percentile(excess[lesion], 95))
    if top <= 0:
        return None
    blur = Blur() if blur is None else blur
    core = _core(excess, lesion, top, blur.sigmas(spacing), spacing)
    if core is not None:
        return core
    fitted = _fit_ellipsoid(excess, weight, blur, spacing, noise_hu)
    return fitted if fitted is not None else _scaled_mask(excess, lesion, weight, blur, spacing)


def _core(
    excess: FloatArray, lesion: NDArray[np.bool_], top: float, sigmas: Float64, spacing: Spacing
) -> Contrast | None:
    dense = lesion & (excess > 0.5 * top)
    width_mm = np.hypot(sigmas, np.array(spacing) * 0.2887) / FWHM_TO_SIGMA
    steps = np.ceil(_CORE_FWHM * width_mm / spacing - 0.5).astype(int)
    if int(dense.sum()) < np.prod(2 * np.maximum(steps, 1) + 1) / 4:
        return None
    # a running count is as good as an erosion by a box and costs the same for any width
    size = 2 * np.maximum(steps, 1) + 1
    full = ndimage.minimum_filter(dense, size=tuple(size), mode="constant", cval=False)
    if int(full.sum()) < _CORE_VOXELS:
        return None
    return Contrast(float(excess[full].mean(dtype=np.float64)), "core")


@lru_cache(maxsize=32)
def _disc_nodes(order: int) -> tuple[Float64, Float64, Float64]:
    """Return chords that integrate smooth functions over the unit ball.

    Returns:
        Where they cross the disc of radius 1, shape (K, 2), half their lengths, shape (K,), and their weights, (K,).
    """
    roots, radial = np.polynomial.legendre.leggauss(order)
    halves = (roots + 1) / 2  # in the half length, not the radius, nothing has a corner at the rim
    angles = (np.arange(3 * order) + 0.5) * 2 * np.pi / (3 * order)
    radii = np.sqrt(1 - halves**2)
    points = np.stack([np.outer(radii, np.cos(angles)), np.outer(radii, np.sin(angles))], axis=-1).reshape(-1, 2)
    weights = np.repeat(radial * halves**2, 3 * order)
    return points, np.repeat(halves, 3 * order), weights / weights.sum()


def _fit_ellipsoid(
    excess: FloatArray, weight: FloatArray, blur: Blur, spacing: Spacing, noise_hu: float
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
    axes = _unblurred_axes(covariance, blur.edge_sigmas(spacing), spacing)
    if axes is None:
        return None
    values = signal[used]
    edges = [(np.arange(n + 1) - 0.5) * step for n, step in zip(signal.shape, spacing, strict=True)]
    parts = blur.parts(spacing)
    # chords must lie closer than blur and voxels are wide, or the template gets lumps
    finest = float(np.hypot(parts[0][1], np.array(spacing) * 0.2887)[:2].min())
    order = int(np.clip(np.ceil(np.linalg.norm(axes, axis=0).max() / finest), *_ORDERS))

    def fit(scale: float) -> tuple[float, float, float]:
        """Return what stays unexplained, the amplitude in HU times mm³, and the template's sum per mm³."""
        inside = _blurred_ellipsoid(edges, centre, scale * axes, parts, order)[used].astype(np.float64)
        amplitude = float(values @ inside / (inside @ inside))
        return float(((values - amplitude * inside) ** 2).sum()), amplitude, float(inside.sum())

    energy = float(values @ values)
    allowed = (1 - _FIT_EXPLAINED) * energy + 1.5 * noise_hu**2 * len(values)
    loss = _search(lambda scale: fit(scale)[0], allowed + _HOPELESS * energy)
    place = int(loss.argmin())
    if loss[place] > allowed or place in (0, len(_SCALES) - 1):
        return None
    scale = _vertex(np.log(_SCALES), loss, place)
    _, amplitude, total = fit(scale)
    volume = 4 / 3 * np.pi * scale**3 * abs(float(np.linalg.det(axes)))
    captured = float(total * np.prod(spacing))
    if amplitude <= 0 or captured < _CAPTURED_MIN:
        return None
    return Contrast(amplitude / volume, "ellipsoid", min(1.0, captured))


def _search(loss_of: Callable[[float], float], hopeless: float) -> Float64:
    """Return the loss at :data:`_SCALES` where it was asked for, infinite elsewhere; both neighbours of the least are.

    Stops after the first look when even that is over ``hopeless``.
    """
    loss = np.full(len(_SCALES), np.inf)
    for place in range(_EVERY // 2, len(_SCALES), _EVERY):
        loss[place] = loss_of(float(_SCALES[place]))
    if loss.min() > hopeless:
        return loss
    while True:
        best = int(loss.argmin())
        missing = [n for n in (best - 1, best + 1) if 0 <= n < len(_SCALES) and np.isinf(loss[n])]
        if not missing:
            return loss
        for place in missing:
            loss[place] = loss_of(float(_SCALES[place]))


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
        known = np.arange(3) != slice_axis(spacing)
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


def _blurred_ellipsoid(
    edges: list[Float64], centre: Float64, axes: Float64, parts: list[tuple[float, Float64]], order: int
) -> FloatArray:
    """Return an ellipsoid of unit integral, blurred and averaged over voxels, per mm³.

    It is cut into chords along the last axis. A chord's blurred profile is known in closed form; across it, it is as
    wide as the blur.

    Args:
        edges: Borders of the voxels along each axis in mm.
        centre: In mm.
        axes: Semi-axes as columns.
        parts: The blur, see :meth:`~jdm_seg.sharpness.Blur.parts`.
        order: Chords from the centre to the rim.
    """
    points, halves, weights = _disc_nodes(order)
    # the same ellipsoid, of axes such that the last runs along z and the first alone has a part along x
    turned = np.linalg.cholesky(axes @ axes.T)
    across = centre[:2] + points @ turned[:2, :2].T
    middle = centre[2] + points @ turned[2, :2]
    half_mm = halves * turned[2, 2]
    result = np.zeros([len(edge) - 1 for edge in edges], np.float32)
    for share, sigmas in parts:
        x, y = (
            (np.diff(special.ndtr((edge - at[:, None]) / sigma), axis=1) / (edge[1] - edge[0])).astype(np.float32)
            for edge, at, sigma in zip(edges[:2], across.T, sigmas[:2], strict=True)
        )
        z = _blurred_chords(edges[2], middle, half_mm, float(sigmas[2]))
        x *= (share * weights[:, None]).astype(np.float32)
        planes = (x[:, :, None] * y[:, None, :]).reshape(len(weights), -1)
        result += (planes.T @ z).reshape(result.shape)
    return result


def _blurred_chords(edges: Float64, middle: Float64, half_mm: Float64, sigma: float) -> FloatArray:
    """Return chords (K,) of unit integral, blurred along themselves and averaged over voxels, per mm, shape (K, Z)."""
    begin, end = ((edges - at[:, None]) / sigma for at in (middle - half_mm, middle + half_mm))
    profile = np.diff(_ramp(begin) - _ramp(end), axis=1)
    profile *= (sigma / (2 * half_mm * (edges[1] - edges[0])))[:, None]
    return np.asarray(profile, dtype=np.float32)


def _ramp(x: Float64) -> Float64:
    """Return the integral of the normal distribution function from -infinity."""
    return np.asarray(x * special.ndtr(x) + np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi), dtype=np.float64)


def _vertex(x: Float64, y: Float64, place: int) -> float:
    """Return exp of where a parabola through three neighbours is lowest."""
    step = x[place + 1] - x[place]
    before, here, after = y[place - 1 : place + 2]
    bend = before - 2 * here + after
    shift = 0.0 if bend <= 0 else 0.5 * (before - after) / bend
    return float(np.exp(x[place] + np.clip(shift, -1, 1) * step))


def _scaled_mask(
    excess: FloatArray, lesion: NDArray[np.bool_], weight: FloatArray, blur: Blur, spacing: Spacing
) -> Contrast | None:
    if excess.size > _MASK_VOXELS:
        return Contrast(float(excess[lesion].mean(dtype=np.float64)), "mask") if excess[lesion].mean() > 0 else None
    filled = lesion.astype(np.float32)
    blurred = np.zeros_like(filled)
    for share, sigmas in blur.parts(spacing):
        blurred += np.float32(share) * ndimage.gaussian_filter(filled, sigmas / np.array(spacing), truncate=3)
    used = weight > 0
    hu = float((excess[used] * blurred[used]).sum() / (blurred[used] ** 2).sum())
    return Contrast(hu, "mask") if hu > 0 else None
