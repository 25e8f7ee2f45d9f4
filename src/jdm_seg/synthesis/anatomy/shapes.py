"""Solids that anatomy is built from: each gives a signed distance and a box. Lengths in mm, axes as in ``tissue``.

Distances are exact for spheres and capsules and right to first order near the surface for the others (Quilez,
"ellipsoid distance bound"), which is what partial volume needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

FloatArray = NDArray[np.float32]
Vector = tuple[float, float, float]
Coordinates = tuple[FloatArray, FloatArray, FloatArray]
"""x, y, z in mm, of one shape or broadcastable to one."""

_STEPS = 512
"""Entries of a profile's table."""
_TINY = np.float32(1e-3)


@dataclass(frozen=True)
class Frame:
    """A place and three unit vectors, in the rows of ``axes``: across (u), front (v) and along (w)."""

    origin: Vector
    axes: tuple[Vector, Vector, Vector]

    def world(self, u: float, v: float, w: float) -> Vector:
        """Return the world position of a local one."""
        p = np.asarray(self.origin) + np.array([u, v, w]) @ np.asarray(self.axes)
        return float(p[0]), float(p[1]), float(p[2])

    def local(self, at: Coordinates) -> Coordinates:
        """Return local coordinates of world positions."""
        x, y, z = (c - np.float32(o) for c, o in zip(at, self.origin, strict=True))
        u, v, w = (np.float32(a[0]) * x + np.float32(a[1]) * y + np.float32(a[2]) * z for a in self.axes)
        return u, v, w


def look_along(origin: Vector, target: Vector, front: Vector = (0, 1, 0)) -> Frame:
    """Return the frame at ``origin`` whose w points to ``target`` and whose v is as near to ``front`` as can be."""
    w = np.subtract(target, origin)
    w = w / np.linalg.norm(w)
    v = np.asarray(front, float) - np.dot(front, w) * w
    v /= np.linalg.norm(v)
    u = np.cross(v, w)
    return Frame(origin, (_vector(u), _vector(v), _vector(w)))


def _vector(values: Sequence[float] | NDArray[np.floating]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid; ``frame`` turns it, world axes when None. ``cuts`` keep n · p <= c.

    Attributes:
        centre: In mm.
        radii: Half axes in mm.
        frame: Directions of the half axes.
        cuts: (n, c) of planes that cut it.
    """

    centre: Vector
    radii: Vector
    frame: Frame | None = None
    cuts: tuple[tuple[Vector, float], ...] = ()

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners of a box around it."""
        reach = np.asarray(self.radii, float)
        if self.frame is not None:
            reach = np.abs(np.asarray(self.frame.axes)).T @ reach
        return np.asarray(self.centre) - reach, np.asarray(self.centre) + reach

    def distance(self, at: Coordinates) -> FloatArray:
        """Return the distance to the surface, negative inside."""
        if self.frame is None:
            local = [c - np.float32(o) for c, o in zip(at, self.centre, strict=True)]
        else:
            local = list(Frame(self.centre, self.frame.axes).local(at))
        result = _ellipsoid(local, [np.asarray(r, np.float32) for r in self.radii])
        for normal, offset in self.cuts:
            n = np.asarray(normal, np.float32)
            result = np.maximum(result, n[0] * at[0] + n[1] * at[1] + n[2] * at[2] - np.float32(offset))
        return result


def _ellipsoid(local: Sequence[FloatArray], radii: Sequence[FloatArray]) -> FloatArray:
    k: FloatArray = np.zeros((), np.float32)
    g: FloatArray = np.zeros((), np.float32)
    for c, r in zip(local, radii, strict=True):
        scaled = (c + _TINY) / r
        k = k + scaled * scaled
        scaled = scaled / r
        g = g + scaled * scaled
    k = np.sqrt(k)
    result: FloatArray = k * (k - 1) / np.sqrt(g)
    return result


@dataclass(frozen=True)
class Capsule:
    """A rounded cone between two points; ``flat`` shortens it across the given direction (ribs, bands)."""

    start: Vector
    end: Vector
    start_radius: float
    end_radius: float
    flat: tuple[Vector, float] | None = None
    """Direction and factor: 2 makes it half as thick along the direction."""

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners of a box around it."""
        ends = np.array([self.start, self.end])
        radius = max(self.start_radius, self.end_radius)
        return ends.min(axis=0) - radius, ends.max(axis=0) + radius

    def distance(self, at: Coordinates) -> FloatArray:
        """Return the distance to the surface, negative inside."""
        x, y, z = (c - np.float32(o) for c, o in zip(at, self.start, strict=True))
        along = np.subtract(self.end, self.start)
        length2 = float(along @ along)
        t = np.float32(0)
        if length2 > 0:
            a = (along / length2).astype(np.float32)
            t = np.clip(a[0] * x + a[1] * y + a[2] * z, 0, 1)
        x, y, z = (c - t * np.float32(d) for c, d in zip((x, y, z), along, strict=True))
        squared = x * x + y * y + z * z
        radius = np.float32(self.start_radius) + t * np.float32(self.end_radius - self.start_radius)
        if self.flat is None:
            return np.asarray(np.sqrt(squared) - radius)
        n, factor = np.asarray(self.flat[0], np.float32), self.flat[1]
        across = n[0] * x + n[1] * y + n[2] * z
        stretched = np.sqrt(squared + np.float32(factor**2 - 1) * across * across) + _TINY
        # the gradient grows up to ``factor`` across: divide by it so that a millimetre stays one
        slope = np.sqrt(squared + np.float32(factor**4 - 1) * across * across) / stretched
        return np.asarray((stretched - radius) / np.maximum(slope, 1))


def tube(
    points: Sequence[Vector] | NDArray[np.floating],
    radii: float | Sequence[float],
    flat: tuple[Vector, float] | None = None,
) -> list[Capsule]:
    """Return the capsules along a polyline."""
    at = [_vector(p) for p in points]
    r = [float(radii)] * len(at) if isinstance(radii, (int, float)) else [float(v) for v in radii]
    return [Capsule(at[i], at[i + 1], r[i], r[i + 1], flat) for i in range(len(at) - 1)]


@dataclass(frozen=True)
class Loft:
    """An elliptic cross-section that changes along w: limbs, trunk, shafts of bones.

    Attributes:
        frame: Where it starts and how it lies.
        at: Positions along w in mm, ascending; between them a monotone cubic runs.
        a, b: Half widths along u and v at those positions.
        du, dv: Sideways shift of the centre at those positions.
        harmonics: Amplitudes of cos 2θ, sin 2θ, cos 3θ on the outline.
        cap: Length of the rounded ends over the half width there; 0 cuts flat.
    """

    frame: Frame
    at: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]
    du: tuple[float, ...] | None = None
    dv: tuple[float, ...] | None = None
    harmonics: Vector = (0.0, 0.0, 0.0)
    cap: float = 1.0

    @cached_property
    def _tables(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        grid = np.linspace(self.at[0], self.at[-1], _STEPS)
        zero = (0.0,) * len(self.at)
        a, b, du, dv = (
            PchipInterpolator(self.at, values)(grid).astype(np.float32)
            for values in (self.a, self.b, self.du or zero, self.dv or zero)
        )
        return a, b, du, dv

    def section(self, w: float) -> tuple[float, float, float, float]:
        """Return half widths and shift (a, b, du, dv) at a position along w."""
        index = int(np.clip(round((w - self.at[0]) / (self.at[-1] - self.at[0]) * (_STEPS - 1)), 0, _STEPS - 1))
        a, b, du, dv = (float(table[index]) for table in self._tables)
        return a, b, du, dv

    def point(self, w: float, angle: float, reach: float) -> Vector:
        """Return the world position at a share ``reach`` of the way from the centre line to the outline.

        ``angle`` (radians) runs from u to v.
        """
        a, b, du, dv = self.section(w)
        return self.frame.world(du + reach * a * np.cos(angle), dv + reach * b * np.sin(angle), w)

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners of a box around it."""
        a, b, du, dv = self._tables
        swell = 1 + sum(abs(h) for h in self.harmonics)
        reach_u = float(np.max(a * swell + np.abs(du)))
        reach_v = float(np.max(b * swell + np.abs(dv)))
        end = self.cap * max(float(min(a[0], b[0])), float(min(a[-1], b[-1])))
        axes = np.asarray(self.frame.axes)
        ends = np.array([self.frame.world(0, 0, self.at[0] - end), self.frame.world(0, 0, self.at[-1] + end)])
        spread = np.abs(axes[0]) * reach_u + np.abs(axes[1]) * reach_v
        return ends.min(axis=0) - spread, ends.max(axis=0) + spread

    def along(self, at: Coordinates) -> FloatArray:
        """Return w of world positions."""
        return self.frame.local(at)[2]

    def normal(self, at: Coordinates) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return u and v from the centre line, w, and the half widths a and b there, for world positions."""
        u, v, w = self.frame.local(at)
        first, last = np.float32(self.at[0]), np.float32(self.at[-1])
        scale = np.float32((_STEPS - 1) / (last - first))
        index = ((np.clip(w, first, last) - first) * scale + np.float32(0.5)).astype(np.int16)
        table_a, table_b, table_u, table_v = self._tables
        a, b = table_a[index], table_b[index]
        if self.du is not None:
            u = u - table_u[index]
        if self.dv is not None:
            v = v - table_v[index]
        if any(self.harmonics):
            swell = self._swell(u, v)
            a, b = a * swell, b * swell
        return u, v, w, a, b

    def distance(self, at: Coordinates) -> FloatArray:
        """Return the distance to the surface, negative inside."""
        u, v, w, a, b = self.normal(at)
        first, last = np.float32(self.at[0]), np.float32(self.at[-1])
        if self.cap == 0:
            ends: FloatArray = np.maximum(first - w, w - last)
            return np.asarray(np.maximum(_ellipsoid([u, v], [a, b]), ends))
        over = w - np.clip(w, first, last)
        return _ellipsoid([u, v, over], [a, b, np.float32(self.cap) * np.minimum(a, b)])

    def _swell(self, u: FloatArray, v: FloatArray) -> FloatArray:
        r = np.sqrt(u * u + v * v) + _TINY
        c, s = u / r, v / r
        two, two_s, three = (np.float32(h) for h in self.harmonics)
        result: FloatArray = 1 + two * (2 * c * c - 1) + two_s * 2 * c * s + three * c * (4 * c * c - 3)
        return result


Solid = Ellipsoid | Capsule | Loft
