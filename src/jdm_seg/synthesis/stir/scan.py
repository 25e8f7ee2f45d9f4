"""What a scanner makes of STIR signal: stations, coils, k-space, noise.

A whole body is scanned in stations along z. Each has its own receive field, gain and noise, is distorted and fades at
its ends, and is reconstructed from a k-space that does not reach as far as the stored matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from jdm_seg.synthesis.coarse import SmoothNoise
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

_PAD = 8
"""Voxels around a station that keep its far side from ringing into it."""
_COIL_MM = 90.0
"""Half of the distance over which the receive field changes (assumed)."""


@dataclass(frozen=True)
class Readout:
    """How signal becomes an image. Lengths in mm, noise relative to the signal of muscle.

    Attributes:
        snr: Signal-to-noise ratio of muscle.
        bias: Strength of the receive field's slow change.
        g_factor: Largest amplification of the noise by parallel imaging, in the middle; 1 for none.
        slice_axis: Axis across the slices: 1 is coronal.
        phase_axis: In-plane axis of phase encoding: ghosts and the coarser matrix lie along it.
        matrix: Share of the stored matrix that was acquired, along phase and read-out.
        filtered: Whether k-space was filtered against ringing.
        ghost: Share of the signal that each motion ghost shows.
        ghost_shift: Its distance, as a share of the field of view.
        station_mm: Length of a station.
        overlap_mm: Overlap of neighbours.
        gains: Receiver gain of each station from the feet up, used in turn.
        drift_mm: Displacement along z at the ends of each station, used in turn.
        fade: Share of the signal that is lost at the ends of a station.
        blended: Whether neighbours are blended over their overlap or cut in its middle.
        scale: Stored value of muscle at unit gain.
    """

    snr: float
    bias: float
    g_factor: float = 1.0
    slice_axis: int = 1
    phase_axis: int = 0
    matrix: tuple[float, float] = (1.0, 1.0)
    filtered: bool = False
    ghost: float = 0.0
    ghost_shift: float = 0.3
    station_mm: float = 450.0
    overlap_mm: float = 45.0
    gains: tuple[float, ...] = (1.0,)
    drift_mm: tuple[float, ...] = (0.0,)
    fade: float = 0.0
    blended: bool = True
    scale: float = 200.0


def sample_readout(rng: np.random.Generator, slice_axis: int = 1) -> Readout:
    """Draw a scanner's way of reading out; ranges are assumed from common whole-body protocols."""
    in_plane = [axis for axis in (0, 1, 2) if axis != slice_axis]
    gains = [1.0]
    for _ in range(7):
        step = float(rng.uniform(0.05, 0.2)) * (1 if rng.random() < 0.5 else -1)
        gains.append(float(np.clip(gains[-1] * (1 + step), 0.6, 1.6)))
    return Readout(
        snr=float(rng.uniform(8, 30)),
        bias=float(rng.uniform(0.05, 0.35)),
        g_factor=float(rng.uniform(1.1, 1.7)) if rng.random() < 0.6 else 1.0,
        slice_axis=slice_axis,
        phase_axis=in_plane[0] if rng.random() < 0.7 else in_plane[1],
        matrix=(float(rng.uniform(0.55, 0.95)), float(rng.uniform(0.8, 1.0))),
        filtered=bool(rng.random() < 0.5),
        ghost=float(rng.uniform(0.01, 0.06)) if rng.random() < 0.4 else 0.0,
        ghost_shift=float(rng.uniform(0.1, 0.5)),
        station_mm=float(rng.uniform(400, 500)),
        overlap_mm=float(rng.uniform(30, 60)),
        gains=tuple(gains),
        drift_mm=tuple(float(d) for d in rng.uniform(-2, 2, 8)),
        fade=float(rng.uniform(0, 0.35)),
        blended=bool(rng.random() < 0.7),
        scale=float(np.exp(rng.uniform(np.log(60), np.log(500)))),
    )


def read_out(signal: FloatArray, spacing: Spacing, readout: Readout, rng: np.random.Generator) -> NDArray[np.int16]:
    """Turn signal into an image, station by station.

    Args:
        signal: Relative to muscle and with its sign, shape (X, Y, Z).
        spacing: Voxel size in mm.
        readout: The scanner.
        rng: Draws receive fields and noise.

    Returns:
        Magnitude, shape (X, Y, Z), non-negative int16.
    """
    height = signal.shape[2]
    image = np.zeros(signal.shape, np.float32)
    weight = np.zeros(height, np.float32)
    places = station_places(height, spacing[2], readout)
    for number, (place, generator) in enumerate(zip(places, rng.spawn(len(places)), strict=True)):
        gain = readout.gains[number % len(readout.gains)]
        drift = readout.drift_mm[number % len(readout.drift_mm)] if len(places) > 1 else 0.0
        station = _station(_drifted(signal, place, drift / spacing[2]), spacing, readout, generator)
        share = _blend(places, number, readout.blended)
        image[..., place] += np.float32(gain * readout.scale) * share * station
        weight[place] += share
    image /= weight
    return np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16)


def station_places(height: int, spacing_z: float, readout: Readout) -> list[slice]:
    """Return the voxels along z of every station from the feet up; neighbours overlap as asked or a little more."""
    length = min(height, max(2, round(readout.station_mm / spacing_z)))
    step = max(1, length - round(readout.overlap_mm / spacing_z))
    count = 1 + -(-(height - length) // step)
    starts = np.rint(np.linspace(0, height - length, count)).astype(int)
    return [slice(int(start), int(start) + length) for start in starts]


def _blend(places: list[slice], number: int, blended: bool) -> FloatArray:
    """Return the weight of a station's slices along z: less where a neighbour overlaps."""
    place = places[number]
    weight = np.ones(place.stop - place.start, np.float32)
    for other, ascending in ((number - 1, True), (number + 1, False)):
        if not 0 <= other < len(places):
            continue
        overlap = min(place.stop, places[other].stop) - max(place.start, places[other].start)
        if overlap <= 0:
            continue
        ramp: FloatArray = ((np.arange(overlap) + 0.5) / overlap).astype(np.float32)
        if not blended:
            ramp = np.where(ramp > 0.5, np.float32(1), np.float32(0))
        if ascending:
            weight[:overlap] *= ramp
        else:
            weight[-overlap:] *= 1 - ramp
    return weight


def _drifted(signal: FloatArray, place: slice, drift: float) -> FloatArray:
    """Return a station, displaced along z by up to ``drift`` voxels at its ends: gradients weaken there.

    The truth is not displaced: near a join it may be off by that little, as it is in a drawn one.
    """
    if drift == 0:
        return signal[..., place].copy()
    at: FloatArray = np.arange(place.start, place.stop).astype(np.float32)
    from_middle = np.abs(np.linspace(-1, 1, at.size, dtype=np.float32))
    at = np.clip(at + drift * np.clip(4 * from_middle - 3, 0, 1) ** 2, 0, signal.shape[2] - 1)
    low = np.minimum(at.astype(np.intp), signal.shape[2] - 2) if signal.shape[2] > 1 else np.zeros(at.size, np.intp)
    high = np.minimum(low + 1, signal.shape[2] - 1)
    share = (at - low).astype(np.float32)
    result: FloatArray = signal[..., low] * (1 - share) + signal[..., high] * share
    return result


def _station(signal: FloatArray, spacing: Spacing, readout: Readout, rng: np.random.Generator) -> FloatArray:
    """Return the magnitude image of one station, relative to muscle."""
    along = np.abs(np.linspace(-1, 1, signal.shape[2], dtype=np.float32))
    signal *= 1 - np.float32(readout.fade) * np.clip(5 * along - 4, 0, 1) ** 2
    if readout.bias:
        coil_mm = max(_COIL_MM, max(spacing))
        field = SmoothNoise(rng, signal.shape, spacing, coil_mm).volume()
        signal *= np.exp(np.float32(readout.bias) * field)
    sigma: Any = np.float32(1 / readout.snr)
    if readout.g_factor > 1:
        sigma = sigma * _g_map(signal.shape, readout)
    noisy = _white(signal.shape, rng)
    noisy *= sigma
    # what k-space leaves out takes its noise with it; the asked noise is that of the image
    noisy /= np.float32(_kept_noise(signal.shape, readout))
    noisy.real += signal
    if readout.ghost:
        shift = round(readout.ghost_shift * signal.shape[readout.phase_axis])
        for way in (shift, -shift):
            noisy.imag += np.float32(readout.ghost) * np.roll(signal, way, readout.phase_axis)
    magnitude: FloatArray = np.abs(truncated(noisy, readout))
    return magnitude


def _g_map(shape: tuple[int, ...], readout: Readout) -> FloatArray:
    """Return the noise amplification of parallel imaging: largest in the middle along the phase axis."""
    at = np.linspace(-1, 1, shape[readout.phase_axis], dtype=np.float32)
    profile = 1 + (readout.g_factor - 1) * np.cos(0.5 * np.pi * at) ** 2
    return np.moveaxis(profile.reshape(-1, 1, 1), 0, readout.phase_axis).astype(np.float32)


def _windows(shape: tuple[int, ...], readout: Readout) -> list[tuple[int, FloatArray]]:
    """Return (axis, weights of spatial frequencies) for the in-plane axes whose k-space was cut or filtered."""
    read_axis = 3 - readout.slice_axis - readout.phase_axis
    windows = []
    for axis, share in ((readout.phase_axis, readout.matrix[0]), (read_axis, readout.matrix[1])):
        if share >= 1 and not readout.filtered:
            continue
        frequency = 2 * np.abs(fft.fftfreq(shape[axis] + 2 * _PAD))
        window = (frequency <= share).astype(np.float32)
        if readout.filtered:
            window *= 0.5 + 0.5 * np.cos(np.pi * np.clip(frequency / share, 0, 1)).astype(np.float32)
        windows.append((axis, window))
    return windows


def _kept_noise(shape: tuple[int, ...], readout: Readout) -> float:
    """Return the share of white noise (as standard deviation) that passes k-space."""
    return float(np.prod([np.sqrt(np.mean(window**2)) for _, window in _windows(shape, readout)]))


def complex_noise(shape: tuple[int, ...], readout: Readout, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Return noise as a read-out leaves it: standard deviation 1 in each of both parts, the grain of its k-space."""
    noise = truncated(_white(shape, rng), readout)
    noise /= np.float32(_kept_noise(shape, readout))
    return noise


def _white(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex64]:
    noise = np.empty(shape, np.complex64)
    noise.real = rng.standard_normal(shape, np.float32)
    noise.imag = rng.standard_normal(shape, np.float32)
    return noise


def truncated(image: NDArray[Any], readout: Readout) -> NDArray[Any]:
    """Cut k-space to what was acquired and fill with zeros: blur, ringing at edges, and noise with a grain.

    Args:
        image: Complex or real, (X, Y, Z).
        readout: Says what was acquired.

    Returns:
        The same shape, real for a real image.
    """
    whole = np.iscomplexobj(image)
    for axis, window in _windows(image.shape, readout):
        pad = [(_PAD, _PAD) if a == axis else (0, 0) for a in range(3)]
        spectrum = fft.fft(np.pad(image, pad, mode="edge"), axis=axis, workers=2)
        spectrum *= np.moveaxis(window.reshape(-1, 1, 1), 0, axis)
        restored = fft.ifft(spectrum, axis=axis, workers=2, overwrite_x=True)
        image = np.take(restored if whole else restored.real, np.arange(_PAD, _PAD + image.shape[axis]), axis)
    return image
