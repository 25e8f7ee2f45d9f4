"""Parallel-beam projection of coarse axial slices, and filtered back-projection: enough physics for artefacts.

Noise and streaks of CT are born in line integrals. Computed on cells of a few millimetres they cost next to nothing,
and they vary slowly enough (noise strength) or are coarse enough (streaks) to be interpolated to the scan's voxels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse

FloatArray = NDArray[np.float32]


class Projector:
    """Line integrals over a square-celled grid, at views spread evenly over half a turn.

    Attributes:
        angles: Direction of each view's detector in radians from x; its rays run at right angles to it, so rays run
            left-right at an angle of half pi. Shape (views,).
        bins: Number of rays of a view; they lie one cell apart.
    """

    def __init__(self, shape: tuple[int, ...], step_mm: float, views: int) -> None:
        """Build the system matrix for slices of ``shape`` cells (x, y) with edges of ``step_mm``."""
        self.shape = shape
        self.step_mm = step_mm
        self.angles = (np.arange(views) + 0.5) * np.pi / views
        self.bins = int(np.ceil(np.hypot(shape[0], shape[1]))) + 4
        x, y = (np.arange(n) - (n - 1) / 2 for n in shape)
        at = np.cos(self.angles)[:, None, None] * x[:, None] + np.sin(self.angles)[:, None, None] * y
        at = at.reshape(views, -1) + (self.bins - 1) / 2
        # quadratic splines: with linear ones, cells beat against rays near 45 degrees
        nearest = np.rint(at).astype(np.int32)
        offset = (at - nearest).astype(np.float32)
        rays = nearest + np.arange(views, dtype=np.int32)[:, None] * self.bins
        rows = np.concatenate([(rays + shift).ravel() for shift in (-1, 0, 1)])
        columns = np.tile(np.arange(at.shape[1], dtype=np.int32), 3 * views)
        before, after = 0.5 * (0.5 - offset) ** 2, 0.5 * (0.5 + offset) ** 2
        weights = np.concatenate([before.ravel(), (0.75 - offset**2).ravel(), after.ravel()])
        size = (views * self.bins, at.shape[1])
        self._forward = sparse.csr_matrix((weights, (rows, columns)), size)
        self._back = self._forward.T.tocsr()

    def forward(self, slices: FloatArray) -> FloatArray:
        """Return line integrals in units times mm.

        Args:
            slices: Shape (slices, x, y).

        Returns:
            Shape (views, bins, slices).
        """
        flat = np.ascontiguousarray(slices.reshape(len(slices), -1).T)
        result: FloatArray = (self._forward @ flat) * np.float32(self.step_mm)
        return result.reshape(len(self.angles), self.bins, len(slices))

    def back(self, values: FloatArray) -> FloatArray:
        """Return the sum over views of the rays through each cell.

        Args:
            values: Shape (views, bins, slices).

        Returns:
            Shape (slices, x, y).
        """
        slices = values.shape[2]
        summed: FloatArray = self._back @ np.ascontiguousarray(values.reshape(-1, slices))
        return np.ascontiguousarray(summed.T).reshape(slices, *self.shape)

    def reconstruct(self, integrals: FloatArray) -> FloatArray:
        """Return slices from line integrals by filtered back-projection, the inverse of :meth:`forward`.

        The ramp filter is sampled in space (Kak and Slaney 1988, eq. 3.61), so that means are kept.
        """
        size = fft.next_fast_len(2 * self.bins, real=True)
        n = np.arange(size)
        n = np.minimum(n, size - n)
        ramp = np.where(n % 2 == 1, -1 / (np.pi * np.maximum(n, 1)) ** 2, 0.0)
        ramp[0] = 0.25
        response = np.real(fft.rfft(ramp)).astype(np.float32) / np.float32(self.step_mm)
        spectrum = fft.rfft(integrals, size, axis=1, workers=2)
        spectrum *= response[:, None]
        filtered = fft.irfft(spectrum, size, axis=1, workers=2)[:, : self.bins]
        return self.back(filtered.astype(np.float32)) * np.float32(np.pi / len(self.angles))
