"""A grid that solids are painted on with partial volume; see :class:`~jdm_seg.synthesis.anatomy.tissue.TissueMap`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.shapes import Coordinates, FloatArray, Solid, Vector
from jdm_seg.synthesis.anatomy.tissue import OUTSIDE, Tissue, TissueMap
from jdm_seg.volume import Spacing

Box = tuple[slice, slice, slice]
_CHUNK = 300_000
"""Voxels evaluated at once: what stays in the processor's cache."""


@dataclass(frozen=True)
class Paint:
    """One step of drawing: a solid, or a layer on its surface, in one tissue.

    Attributes:
        solid: What is drawn.
        tissue: What it is made of.
        grow: The solid is made larger by this many mm, smaller if negative.
        over: Tissues it may replace; None for all but what is outside the body.
    """

    solid: Solid
    tissue: Tissue
    grow: float = 0.0
    over: tuple[Tissue, ...] | None = None


@dataclass(frozen=True)
class Warp:
    """A smooth bend of space that takes symmetry and straightness from anatomy.

    Every coordinate shifts by a sum of waves that run along the other two, which costs two additions a voxel.

    Attributes:
        waves: For each axis, (amplitude mm, wave vector over the other two axes in 1/mm, phase).
    """

    waves: tuple[tuple[tuple[float, float, float, float], ...], ...]

    @property
    def reach(self) -> float:
        """Largest shift in mm."""
        return max(sum(abs(wave[0]) for wave in axis) for axis in self.waves)

    def __call__(self, x: FloatArray, y: FloatArray, z: FloatArray) -> Coordinates:
        """Return where the points of a grid, given by its three axes (1-D, mm), lie in unbent space."""
        x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
        return (
            x + _waves(self.waves[0], y, z),
            y + _waves(self.waves[1], x, z),
            z + _waves(self.waves[2], x, y),
        )


def _waves(waves: tuple[tuple[float, float, float, float], ...], p: FloatArray, q: FloatArray) -> FloatArray:
    total = np.zeros(np.broadcast_shapes(p.shape, q.shape), np.float32)
    for amplitude, kp, kq, phase in waves:
        total += np.float32(amplitude) * np.sin(np.float32(kp) * p + np.float32(kq) * q + np.float32(phase))
    return total


def sample_warp(rng: np.random.Generator, scale: float) -> Warp:
    """Draw a bend of up to a few mm times ``scale``, over 120 mm and more (assumed)."""

    def wave() -> tuple[float, float, float, float]:
        k = 2 * np.pi / (rng.uniform(120, 400, 2) * scale) * rng.choice([-1, 1], 2)
        return float(rng.normal(0, 1.5 * scale)), float(k[0]), float(k[1]), float(rng.uniform(0, 2 * np.pi))

    return Warp(tuple(tuple(wave() for _ in range(3)) for _ in range(3)))


class Canvas:
    """A tissue map that is being drawn.

    Attributes:
        map: What has been drawn so far.
        axes: Positions of the voxel centres along x, y, z in mm.
    """

    def __init__(self, origin: Vector, shape: tuple[int, int, int], spacing: Spacing, warp: Warp) -> None:
        """Start with air.

        Args:
            origin: Centre of the first voxel in mm.
            shape: Voxels along x, y, z.
            spacing: Voxel size in mm; partial volume is right where voxels are about cubic.
            warp: Applied to every position before a solid is asked.
        """
        self.spacing = spacing
        self.warp = warp
        self.axes = tuple(
            (o + s * np.arange(n)).astype(np.float32) for o, s, n in zip(origin, spacing, shape, strict=True)
        )
        first, second, share = (np.zeros(shape, np.uint8) for _ in range(3))
        self.map = TissueMap(first, second, share, spacing)
        self._voxel = np.float32(np.prod(spacing) ** (1 / 3))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.first.shape
        return x, y, z

    @property
    def first(self) -> NDArray[np.uint8]:
        """Tissue that fills most of each voxel."""
        return self.map.first

    def boxes(self, low: NDArray[np.float64], high: NDArray[np.float64], margin: float = 0.0) -> Iterator[Box]:
        """Yield slabs of at most about :data:`_CHUNK` voxels that cover a region of space (mm)."""
        reach = self.warp.reach + margin + max(self.spacing)
        edges = []
        for axis, lo, hi in zip(self.axes, low - reach, high + reach, strict=True):
            edges.append((int(np.searchsorted(axis, lo)), int(np.searchsorted(axis, hi))))
        (x0, x1), (y0, y1), (z0, z1) = edges
        if x1 <= x0 or y1 <= y0:
            return
        step = max(1, _CHUNK // ((x1 - x0) * (y1 - y0)))
        for z in range(z0, z1, step):
            yield slice(x0, x1), slice(y0, y1), slice(z, min(z + step, z1))

    def tiles(self, wanted: NDArray[np.bool_], step: tuple[int, int, int]) -> Iterator[Box]:
        """Yield boxes of about 40³ voxels that hold a wanted cell of a coarse lattice.

        Args:
            wanted: Coarse cells, shape (X', Y', Z').
            step: Voxels a cell has along each axis.
        """
        cells = [max(1, 40 // s) for s in step]
        counts = [range(0, n, c) for n, c in zip(wanted.shape, cells, strict=True)]
        for start in itertools.product(*counts):
            coarse = tuple(slice(a, a + c) for a, c in zip(start, cells, strict=True))
            if wanted[coarse].any():
                x, y, z = (
                    slice(a * s, min(n, (a + c) * s)) for a, c, s, n in zip(start, cells, step, self.shape, strict=True)
                )
                yield x, y, z

    def coordinates(self, box: Box) -> Coordinates:
        """Return where the voxels of a box lie in unbent space, in mm."""
        x, y, z = (axis[s] for axis, s in zip(self.axes, box, strict=True))
        return self.warp(x, y, z)

    def paint(self, step: Paint) -> None:
        """Draw one solid."""
        low, high = step.solid.bounds
        for box in self.boxes(low, high, max(step.grow, 0.0)):
            allowed = _replaceable(step.over)[self.first[box]]
            if allowed.any():
                distance = step.solid.distance(self.coordinates(box)) - np.float32(step.grow)
                self.cover(box, distance, step.tissue, allowed)

    def cover(
        self,
        box: Box,
        distance: FloatArray,
        tissue: Tissue,
        allowed: NDArray[np.bool_] | None = None,
        thickness: float | FloatArray | None = None,
    ) -> None:
        """Fill where a distance is negative; voxels at the surface become mixed.

        Args:
            box: Where on the grid.
            distance: Signed distance in mm, shape of the box.
            tissue: What is filled in.
            allowed: Voxels that may change.
            thickness: Instead of a solid draw a layer of this many mm (number, or shape of the box) around distance 0.
        """
        h = self._voxel
        if thickness is None:
            cover = np.clip(np.float32(0.5) - distance / h, 0, 1)
        else:
            half = np.float32(0.5) * thickness
            upper = np.minimum(distance + np.float32(0.5) * h, half)
            cover = np.maximum(upper - np.maximum(distance - np.float32(0.5) * h, -half), 0) / h
        if allowed is not None:
            cover = np.where(allowed, cover, 0)
        self.map.blend(box, cover, tissue)


@lru_cache(maxsize=64)
def _replaceable(over: tuple[Tissue, ...] | None) -> NDArray[np.bool_]:
    table = np.full(256, over is None)
    table[list(OUTSIDE if over is None else over)] = over is not None
    return table
