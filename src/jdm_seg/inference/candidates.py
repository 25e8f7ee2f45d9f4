"""False-positive reduction on CT: is a lesion that the network found a deposit?

The network looks through a window of some centimetres at 1.5 mm and answers for voxels. What tells a valve, an inlet of
contrast medium or the end of a rib from a deposit is the whole of it: how large, how bright, what lies around it and in
which part of the body. A few of these properties and a small perceptron that was fitted on what the network found in
scans with known deposits judge each lesion as one (a second stage as in nodule detection: Setio et al., LUNA16, Med
Image Anal 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import edt
import numpy as np
from numpy.typing import NDArray

from jdm_seg.components import LesionRule, LesionVoxels, find_lesions
from jdm_seg.inference.fitted_file import read_fitted, write_fitted
from jdm_seg.model_grid import Placement
from jdm_seg.neighbourhood import Indices
from jdm_seg.resample import resample, support
from jdm_seg.volume import Spacing, Volume

FloatArray = NDArray[np.floating[Any]]

_KINDS = ("air", "fat", "soft", "dense", "bone")
_KIND_EDGES_HU = (-195.0, -30.0, 120.0, 250.0)
_RINGS_MM = ((0.0, 3.0), (3.0, 8.0), (8.0, 25.0))
_RIM_MM, _RIM_HU = 1.6, 150.0
_PART_MM = 50.0
"""Half the edge of the cube that tells which part of the body it is."""
_COARSE_MM = 6.0
_HU_RANGE = (-200.0, 1300.0)
_LARGEST_VOXELS = 8_000_000
"""Of the box around a lesion, on the model's grid (27 litres at 1.5 mm): nothing that wide is judged, nor dropped."""
_LOGIT_BOUND = 7.5
"""Where float16, in which probabilities are kept, ends."""

FEATURES = (
    *("peak_logit", "mean_logit", "log_mm3", "max_hu", "mean_hu", "p10_hu", "std_hu", "elongation", "flatness"),
    *("bright_rim", "ring_max_hu", "contrast_hu"),
    *(f"{kind}_{low:g}_{high:g}mm" for low, high in _RINGS_MM for kind in _KINDS),
    *(f"{kind}_part" for kind in _KINDS),
)
"""What is measured of a lesion. Rings are shares of a kind of tissue at a distance from it, the part of the body the
shares in a cube around it."""
_SAID = 3
"""Of them, those for which the image is not asked."""


@dataclass(frozen=True)
class Perceptron:
    """One hidden layer.

    Attributes:
        inward: Weights, shape (F, H).
        bias: Of the hidden layer, shape (H,).
        outward: Weights, shape (H,).
        offset: Of the answer.
    """

    inward: FloatArray
    bias: FloatArray
    outward: FloatArray
    offset: float

    def logit(self, standard: FloatArray) -> FloatArray:
        """Return the answer for features (n, F) of mean 0 and deviation 1, shape (n,)."""
        answer: FloatArray = np.tanh(standard @ self.inward + self.bias) @ self.outward + self.offset
        return answer


@dataclass(frozen=True)
class Outline:
    """How lesions that were found from a low probability are drawn.

    Attributes:
        threshold: Probability that voxels of a lesion reach, if enough of them do; a fainter lesion is kept as found.
        min_volume_mm3: How much is enough; what is smaller by then is dropped.
        min_peak: Of the pieces that a lesion falls into by then, its likeliest stays and those that reach this.
    """

    threshold: float
    min_volume_mm3: float
    min_peak: float

    def draw(
        self,
        mask: NDArray[np.bool_],
        lesions: LesionVoxels,
        probability: FloatArray,
        kept: NDArray[np.bool_],
        spacing: Spacing,
    ) -> None:
        """Leave in a mask the outlines of lesions that are kept, in place.

        Args:
            mask: Shape (X, Y, Z), of which ``lesions`` are the lesions.
            lesions: All of them.
            probability: Of each lesion voxel, shape (N,).
            kept: Which stay, shape (count,).
            spacing: Voxel size in mm.
        """
        inside = probability >= self.threshold
        reaching = np.bincount(lesions.numbers, inside, lesions.count + 1) * float(np.prod(spacing))
        bright = reaching >= max(self.min_volume_mm3 * (1 - 1e-6), 1e-6)
        stays = kept[lesions.numbers - 1] & (inside | ~bright[lesions.numbers])
        mask[tuple(lesions.indices[~stays].T)] = False
        pieces = find_lesions(mask, spacing)
        likely = np.zeros(len(pieces.numbers))
        likely[np.lexsort(pieces.indices.T[::-1])] = probability[stays][np.lexsort(lesions.indices[stays].T[::-1])]
        keep_likely_pieces(mask, lesions, pieces, likely, spacing, LesionRule(self.min_volume_mm3, self.min_peak))


def keep_likely_pieces(
    mask: NDArray[np.bool_],
    lesions: LesionVoxels,
    pieces: LesionVoxels,
    probability: FloatArray,
    spacing: Spacing,
    rule: LesionRule,
) -> None:
    """Drop pieces that lesions fell into when they were drawn anew, in place.

    Of each lesion its likeliest piece stays, and those that the rule would keep as lesions; small ones go, and what
    holds nothing of a lesion.

    Args:
        mask: Shape (X, Y, Z), of which ``pieces`` are the lesions now.
        lesions: What they were before.
        pieces: What there is now.
        probability: Of each voxel of a piece, shape (N,).
        spacing: Voxel size in mm.
        rule: What a lesion must be.
    """
    owner = lesions.at(pieces.indices)
    peak, best = np.zeros(pieces.count + 1), np.zeros(lesions.count + 1)
    np.maximum.at(peak, pieces.numbers, probability)
    np.maximum.at(best, owner, probability)
    owned = np.bincount(pieces.numbers, owner > 0, pieces.count + 1) > 0
    best[0] = np.inf
    least = np.full(pieces.count + 1, rule.min_peak)
    np.minimum.at(least, pieces.numbers, best[owner])
    large = np.append(True, pieces.sizes_vox * float(np.prod(spacing)) >= rule.min_volume_mm3 * (1 - 1e-6))
    mask[tuple(pieces.indices[~(large & owned & (peak >= least))[pieces.numbers]].T)] = False


@dataclass(frozen=True)
class CandidateClassifier:
    """Tells deposits from other lesions of a network.

    Attributes:
        mean: Of the features in the scans it was fitted on, shape (F,).
        scale: Their standard deviation.
        members: Perceptrons; the mean of their logits counts.
        threshold: Probability of the network from which voxels make a lesion that is judged. It is lower than that of
            outlines: faint deposits are found, and bright ones not drawn too wide.
        min_score: Probability of being a deposit below which a lesion is dropped.
        fitted: On what, and how well it does, in plain values.
    """

    mean: FloatArray
    scale: FloatArray
    members: tuple[Perceptron, ...]
    threshold: float
    min_score: float
    fitted: dict[str, Any]

    def score(self, features: FloatArray) -> FloatArray:
        """Return the probability of being a deposit, shape (n,), of lesions with features (n, F); NaN of NaN."""
        standard = np.clip((features - self.mean) / self.scale, -5, 5)
        logit = np.mean([member.logit(standard) for member in self.members], axis=0)
        score: FloatArray = 1 / (1 + np.exp(-logit))
        return score

    def clear(
        self, mask: NDArray[np.bool_], probability: Any, canonical: Volume, placement: Placement, outline: Outline
    ) -> None:
        """Drop lesions that are no deposits from a mask, and cut the others back to their outlines, in place.

        Args:
            mask: Where the probability exceeds :attr:`threshold`, on the canonical scan, shape (X, Y, Z).
            probability: Of the same shape; only asked for at the voxels of the mask.
            canonical: CT numbers.
            placement: The model's grid in it.
            outline: How lesions are drawn.
        """
        LesionRule(outline.min_volume_mm3).clear(mask, probability, canonical.spacing)
        if not mask.any():
            return
        lesions = find_lesions(mask, canonical.spacing)
        likely = probability[tuple(lesions.indices.T)].astype(np.float64)
        image = ImageOfScan(canonical, placement)
        features = measure_candidates(lesions, _logit(likely), canonical.spacing, image, image.parts(lesions))
        outline.draw(mask, lesions, likely, ~(self.score(features) < self.min_score), canonical.spacing)

    def write(self, path: Path) -> None:
        """Write JSON."""
        write_fitted(path, FEATURES, asdict(self))

    @classmethod
    def read(cls, path: Path) -> CandidateClassifier:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: If it is not that, or of a version that measures other features.
        """

        def build(values: dict[str, Any]) -> CandidateClassifier:
            members = tuple(
                Perceptron(np.array(one["inward"]), np.array(one["bias"]), np.array(one["outward"]), one["offset"])
                for one in values["members"]
            )
            mean, scale = np.array(values["mean"]), np.array(values["scale"])
            return cls(mean, scale, members, float(values["threshold"]), float(values["min_score"]), values["fitted"])

        return read_fitted(
            path, FEATURES, build, expected="a complete classifier of lesions", remedy="export the model again"
        )


class GridImage(Protocol):
    """CT numbers on the model's grid, of which a part is asked for at a time.

    Attributes:
        shape: Of the grid, (X, Y, Z).
        spacing: Of the grid, mm.
        kinds: Tissue of every n-th voxel.
        strides: n along each axis.
    """

    shape: tuple[int, int, int]
    spacing: Spacing
    kinds: NDArray[np.int8]
    strides: NDArray[np.intp]

    def box(self, low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return voxels ``low`` to ``high``."""


class WholeImage:
    """An image that is there, on the model's grid."""

    def __init__(self, hu: NDArray[np.float32], spacing: Spacing) -> None:
        """Take CT numbers (X, Y, Z)."""
        self._hu = hu
        self.spacing = spacing
        self.shape = (hu.shape[0], hu.shape[1], hu.shape[2])
        self.strides = _strides(spacing)
        self.kinds = _kinds(hu[tuple(slice(n // 2, None, n) for n in self.strides)])

    def box(self, low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return voxels ``low`` to ``high``."""
        box: NDArray[np.float32] = np.clip(self._hu[tuple(map(slice, low, high))], *_HU_RANGE)
        return box


class ImageOfScan:
    """A scan of which only what is asked for is brought to the model's grid, as the network saw it."""

    def __init__(self, canonical: Volume, placement: Placement) -> None:
        """Take a canonical scan and where the model's grid lies in it."""
        self._array = canonical.array[placement.box]
        self._weights = placement.to_model()
        self._step = np.array(placement.step)
        self._corner = np.array([side.start for side in placement.box])
        self.shape = placement.shape
        self.spacing = placement.spacing
        self.strides = _strides(self.spacing)
        # one voxel of the scan for each: a hundred of them tell a part of the body without being resampled
        sides = zip(self.strides, self.shape, placement.step, self._array.shape, strict=True)
        at = [
            np.minimum((np.arange(n // 2, size, n) + 0.5) * step, last - 1).astype(int) for n, size, step, last in sides
        ]
        self.kinds = _kinds(self._array[np.ix_(*at)])

    def box(self, low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return voxels ``low`` to ``high``."""
        sides, weights = self._support(low, high)
        crop = resample(self._array[sides], weights)
        np.clip(crop, *_HU_RANGE, out=crop)
        return crop

    def parts(self, lesions: LesionVoxels) -> list[Indices]:
        """Bring lesions of the scan to the model's grid: the voxels that one fills by half, or else the most."""
        parts = []
        for part in lesions.parts():
            own = part - self._corner
            edge = np.array([own.min(axis=0), own.max(axis=0) + 1]) / self._step
            low, high = np.floor(edge[0]).astype(np.intp) - 1, np.ceil(edge[1]).astype(np.intp) + 1
            low, high = np.maximum(low, 0), np.minimum(high, self.shape)
            sides, weights = self._support(low, high)
            corner = np.array([side.start for side in sides])
            within = np.zeros([side.stop - side.start for side in sides], np.float32)
            seen = ((own >= corner) & (own < corner + within.shape)).all(axis=1)
            within[tuple((own[seen] - corner).T)] = 1
            filled = resample(within, weights)
            parts.append(np.argwhere(filled >= min(0.5, float(filled.max()))) + low)
        return parts

    def _support(
        self, low: NDArray[np.intp], high: NDArray[np.intp]
    ) -> tuple[tuple[slice, slice, slice], list[NDArray[np.float32]]]:
        """Return what of the scan's box voxels ``low`` to ``high`` of the grid are made of, and the weights."""
        rows = [weights[a:b] for weights, a, b in zip(self._weights, low, high, strict=True)]
        x, y, z = (slice(*support(row)) for row in rows)
        return (x, y, z), [np.ascontiguousarray(row[:, side]) for row, side in zip(rows, (x, y, z), strict=True)]


def measure_candidates(
    lesions: LesionVoxels, logits: FloatArray, spacing: Spacing, image: GridImage, parts: Sequence[Indices]
) -> NDArray[np.float32]:
    """Measure :data:`FEATURES` of lesions.

    Args:
        lesions: On the scan's grid, or on the model's.
        logits: Of each of their voxels after the temperature, shape (N,).
        spacing: Of that grid, mm.
        image: The scan on the model's grid.
        parts: Voxels of each lesion on the model's grid, shape (n, 3).

    Returns:
        Shape (lesions, features); NaN for a lesion that is too large to be judged.
    """
    bounded = np.clip(logits, -_LOGIT_BOUND, _LOGIT_BOUND)
    peak = np.full(lesions.count + 1, -np.inf)
    np.maximum.at(peak, lesions.numbers, bounded)
    mean = np.bincount(lesions.numbers, bounded, lesions.count + 1)[1:] / lesions.sizes_vox
    said = np.stack([peak[1:], mean, np.log(lesions.sizes_vox * float(np.prod(spacing)))], axis=1)
    seen = np.array([_around(part, image) for part in parts]).reshape(-1, len(FEATURES) - _SAID)
    rows: NDArray[np.float32] = np.concatenate([said, seen], axis=1).astype(np.float32)
    return rows


def _around(voxels: Indices, image: GridImage) -> list[float]:
    """Return the features of one lesion that the image gives, NaN if its box is too large.

    Args:
        voxels: On the model's grid, shape (n, 3).
        image: The scan on it.
    """
    spacing = np.array(image.spacing)
    reach = np.ceil(_RINGS_MM[-1][1] / spacing).astype(np.intp)
    low = np.maximum(0, voxels.min(axis=0) - reach)
    high = np.minimum(image.shape, voxels.max(axis=0) + 1 + reach)
    if np.prod(high - low) > _LARGEST_VOXELS:
        return [np.nan] * (len(FEATURES) - _SAID)
    crop = image.box(low, high)
    own = np.zeros(crop.shape, bool)
    own[tuple((voxels - low).T)] = True
    distance = edt.edt(~own, anisotropy=image.spacing, black_border=False)
    kinds = _kinds(crop)
    hu = crop[own]
    rim, ring = crop[(distance > 0) & (distance <= _RIM_MM)], crop[(distance > 0) & (distance <= _RINGS_MM[0][1])]
    if not ring.size:  # it fills the scan
        rim = ring = hu
    points = voxels * spacing
    points = points - points.mean(axis=0)
    # a voxel's own extent keeps one voxel and a line of them from having no breadth
    axes = np.sqrt(np.linalg.eigvalsh(points.T @ points / len(points) + np.diag(spacing**2 / 12)))
    half = np.round(_PART_MM / (spacing * image.strides)).astype(np.intp)
    centre = np.round(voxels.mean(axis=0) / image.strides).astype(np.intp)
    part = image.kinds[tuple(slice(max(0, c - h), c + h + 1) for c, h in zip(centre, half, strict=True))]
    return [
        *(float(hu.max()), float(hu.mean()), float(np.percentile(hu, 10)), float(hu.std())),
        *(float(axes[2] / axes[1]), float(axes[1] / axes[0])),
        *(float((rim > _RIM_HU).mean()), float(ring.max()), float(hu.mean() - np.median(ring))),
        *(share for a, b in _RINGS_MM for share in _shares(kinds[(distance > a) & (distance <= b)])),
        *_shares(part),
    ]


def _strides(spacing: Spacing) -> NDArray[np.intp]:
    return np.maximum(1, np.round(_COARSE_MM / np.array(spacing))).astype(np.intp)


def _kinds(hu: NDArray[Any]) -> NDArray[np.int8]:
    return np.searchsorted(np.array(_KIND_EDGES_HU, np.float32), hu).astype(np.int8)


def _shares(kinds: NDArray[np.int8]) -> FloatArray:
    shares: FloatArray = np.bincount(kinds.ravel(), minlength=len(_KINDS)) / max(1, kinds.size)
    return shares


def _logit(probability: FloatArray) -> FloatArray:
    bounded = np.clip(probability, 1e-6, 1 - 1e-6)
    logit: FloatArray = np.log(bounded / (1 - bounded))
    return logit
