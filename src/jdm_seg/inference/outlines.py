"""Outlines on the scan's own grid: where does a deposit that was found end?

A network works on a grid of its own, coarser than most scans in the plane. What it finds is drawn anew here from the
scan's voxels, where it matters: within a few millimetres of what was found. A small perceptron looks at each voxel
there (how bright, against what lies around it at several distances, and how likely the network calls it), and its
answer is mixed with the network's. It was fitted on deposits with known truth (:mod:`jdm_seg.export.outlines`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.components import LesionRule, find_lesions
from jdm_seg.inference.candidates import keep_likely_pieces
from jdm_seg.inference.fitted_file import read_fitted, write_fitted
from jdm_seg.neighbourhood import ball_steps, dilation, foreground_indices
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.floating[Any]]
Box = tuple[slice, slice, slice]
Measured = tuple[NDArray[np.intp], NDArray[np.float32]]
"""Indices of voxels, shape (n, 3), and their features, shape (n, F)."""

KNOWN_FROM = 0.02
"""Probability of the network from which it is told; below it all is alike."""
REACH_MM = 3.0
"""From a voxel that was found: outlines are drawn anew no farther away."""
_LOGITS = (-3.9, 7.5)
"""What probabilities from :data:`KNOWN_FROM` kept in float16 can say."""
_HU_RANGE = (-200.0, 2000.0)
_WIDTHS_MM = (1.0, 2.0, 4.0)
_NEAR_MM, _FAR_MM = 2.0, 5.0
_TRUNCATE = 2.5
_HALO_MM = _TRUNCATE * _WIDTHS_MM[-1]
"""How far the widest filter looks: a tile cut with it gives the values of the whole scan."""
_TILE = 64
_LEAST_STEP_HU = 30.0
"""Keeps the height between dark and bright neighbours defined where there is no step."""

FEATURES = (
    "hu",
    *(f"above_mean_{width:g}mm" for width in _WIDTHS_MM),
    f"mean_{_WIDTHS_MM[-1]:g}mm",
    *(f"{name}_{mm:g}mm" for mm in (_NEAR_MM, _FAR_MM) for name in ("highest", "lowest", "height")),
    *(f"step_{axis}{side}" for axis in "xyz" for side in "-+"),
    "logit",
    "logit_highest",
    "logit_mean",
    "spacing_x",
    "spacing_z",
)


@dataclass(frozen=True)
class OutlineRefiner:
    """Draws lesions of a network anew on the scan's grid.

    Attributes:
        mean: Of the features it was fitted on, shape (F,).
        scale: Their standard deviation.
        layers: Weights (inputs, outputs) and biases (outputs,) of a perceptron with SiLU between its layers.
        share: Of the perceptron's logit in the mixture with the network's, 0 to 1.
        cut: Logit of the mixture from which a voxel counts.
        fitted: On what, and how well it does, in plain values.
    """

    mean: FloatArray
    scale: FloatArray
    layers: tuple[tuple[FloatArray, FloatArray], ...]
    share: float
    cut: float
    fitted: dict[str, Any]

    def logits(self, features: FloatArray) -> FloatArray:
        """Return the perceptron's answer for features (n, F), shape (n,)."""
        values: NDArray[np.float32] = np.clip((features - self.mean) / self.scale, -6, 6).astype(np.float32)
        for number, (weights, bias) in enumerate(self.layers):
            if number:
                values = values * (np.tanh(values / 2) + 1).astype(np.float32) / np.float32(2)  # SiLU without overflow
            values = values @ weights.astype(np.float32) + bias.astype(np.float32)
        answer: FloatArray = values[:, 0]
        return answer

    def mixed(self, features: FloatArray) -> FloatArray:
        """Return the mixture of the perceptron's logits with the network's, which is one of the features (n, F)."""
        said = features[:, FEATURES.index("logit")]
        mixture: FloatArray = self.share * self.logits(features) + (1 - self.share) * said
        return mixture

    def draw(
        self,
        mask: NDArray[np.bool_],
        probability: Any,
        measured: Iterable[Measured],
        spacing: Spacing,
        rule: LesionRule,
        *,
        shift: float = 0.0,
    ) -> None:
        """Draw the lesions of a mask anew, in place. None vanishes: one of which nothing is left stays as it was.

        Args:
            mask: On the canonical scan, shape (X, Y, Z).
            probability: Of the network, same shape.
            measured: The mask's surroundings, by :func:`measure_voxels`.
            spacing: Voxel size in mm.
            rule: What pieces that a lesion falls into must be, but for its likeliest.
            shift: Added to :attr:`cut`: more for a mask that shall be surer.
        """
        if not mask.any():
            return
        lesions = find_lesions(mask, spacing)
        inside = np.concatenate([voxels[self.mixed(seen) > self.cut + shift] for voxels, seen in measured])
        mask[tuple(lesions.indices.T)] = False
        mask[tuple(inside.T)] = True
        pieces = find_lesions(mask, spacing)
        likely = probability[tuple(pieces.indices.T)]
        keep_likely_pieces(mask, lesions, pieces, likely, spacing, rule)
        left = np.bincount(lesions.numbers, mask[tuple(lesions.indices.T)], lesions.count + 1)
        mask[tuple(lesions.indices[left[lesions.numbers] == 0].T)] = True

    def write(self, path: Path) -> None:
        """Write JSON."""
        write_fitted(path, FEATURES, asdict(self))

    @classmethod
    def read(cls, path: Path) -> OutlineRefiner:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: If it is not that, or of a version that measures other features.
        """

        def build(values: dict[str, Any]) -> OutlineRefiner:
            layers = tuple((np.array(weights), np.array(bias)) for weights, bias in values["layers"])
            mean, scale = np.array(values["mean"]), np.array(values["scale"])
            return cls(mean, scale, layers, float(values["share"]), float(values["cut"]), values["fitted"])

        return read_fitted(
            path,
            FEATURES,
            build,
            expected="a complete description of how outlines are drawn",
            remedy="fit it again with scripts/fit_outlines.py, or delete it",
        )


def measure_voxels(mask: NDArray[np.bool_], probability: Any, hu: NDArray[Any], spacing: Spacing) -> Iterator[Measured]:
    """Measure :data:`FEATURES` of every voxel within :data:`REACH_MM` of a mask, a tile at a time.

    Nothing is read before the first tile is asked for.

    Args:
        mask: What was found, not empty, on the canonical scan, shape (X, Y, Z).
        probability: Of the network, same shape; a :class:`~jdm_seg.sparse.SparseArray` does.
        hu: CT numbers, same shape.
        spacing: Voxel size in mm.

    Yields:
        Indices of voxels, shape (n, 3), and their features, shape (n, F); each voxel once.
    """
    zone, origin = dilation(foreground_indices(mask), ball_steps(REACH_MM, spacing))
    halo = [int(np.ceil(_HALO_MM / step)) + 1 for step in spacing]
    for corner in np.ndindex(*(-(-n // _TILE) for n in zone.shape)):
        low = np.array(corner) * _TILE
        tile = zone[tuple(slice(a, a + _TILE) for a in low)]
        voxels = np.argwhere(tile) + low + origin
        voxels = voxels[((voxels >= 0) & (voxels < mask.shape)).all(axis=1)]
        if not len(voxels):
            continue
        start = np.maximum(0, voxels.min(axis=0) - halo)
        stop = np.minimum(mask.shape, voxels.max(axis=0) + 1 + halo)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        yield voxels, _features(hu[x, y, z], _logits_in(probability, (x, y, z)), spacing, voxels - start)


def _logits_in(probability: Any, box: Box) -> NDArray[np.float32]:
    known = np.asarray(probability[np.ix_(*(np.arange(side.start, side.stop) for side in box))], np.float32)
    bounded = np.clip(known, 1e-6, 1 - 1e-6)
    logits: NDArray[np.float32] = np.clip(np.log(bounded / (1 - bounded)), *_LOGITS).astype(np.float32)
    return logits


def _features(
    hu: NDArray[Any], logits: NDArray[np.float32], spacing: Spacing, voxels: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the features of voxels (n, 3) of a box, shape (n, F); CT numbers in units of 300 HU."""
    at = tuple(voxels.T)
    image: NDArray[np.float32] = np.clip(hu.astype(np.float32), *_HU_RANGE) / np.float32(300)
    means = [_mean(image, width, spacing) for width in _WIDTHS_MM]
    own = image[at]
    columns = [own, *(own - mean[at] for mean in means), means[-1][at]]
    for source, reach in ((image, _NEAR_MM), (means[0], _FAR_MM)):
        high, low = (
            flt(source, _sides(reach, spacing))[at] for flt in (ndimage.maximum_filter, ndimage.minimum_filter)
        )
        columns += [high, low, (own - low) / (high - low + _LEAST_STEP_HU / 300)]
    for axis in range(3):
        for step in (-1, 1):
            beside = voxels.copy()
            beside[:, axis] = np.clip(beside[:, axis] + step, 0, image.shape[axis] - 1)
            columns.append(image[tuple(beside.T)] - own)
    highest = ndimage.maximum_filter(logits, _sides(REACH_MM, spacing))
    columns += [values[at] for values in (logits, highest, _mean(logits, _NEAR_MM, spacing))]
    columns += [np.full_like(own, np.log(spacing[axis])) for axis in (0, 2)]
    return np.stack(columns, axis=1).astype(np.float32)


def _mean(image: NDArray[np.float32], width: float, spacing: Spacing) -> NDArray[np.float32]:
    """Return the Gaussian mean of a width in mm."""
    mean: NDArray[np.float32] = ndimage.gaussian_filter(image, [width / s for s in spacing], truncate=_TRUNCATE)
    return mean


def _sides(reach: float, spacing: Spacing) -> list[int]:
    """Return the sides in voxels of a box that reaches so many mm from its centre, at least one voxel thick."""
    return [2 * round(reach / step) + 1 for step in spacing]
