"""Which deposits a reader could see. The others are part of the truth, but teach nothing.

Teaching a network that a faint grey streak is calcium teaches it to see calcium in every tendon. Every piece of the
label is judged by itself, as it is counted: a sheet that shows in places is not for that seen everywhere.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.components import CONNECTIVITY
from jdm_seg.neighbourhood import foreground_indices
from jdm_seg.volume import Spacing

_VISIBLE_HU = 110.0
"""A deposit that reads less on average is as grey as muscle, vessels and tendons in fat."""
_VISIBLE_CHANGE_HU = 80.0
"""One that adds less on average drowns in the noise of a low-dose scan."""
_ROSE = 5.0
"""Signal-to-noise ratio that an object needs over its whole area to be told from noise."""
_LEAST_OF_MUSCLE = 0.25
"""On STIR: septa, vessels and oedema change the signal by as much of muscle's from place to place (assumed)."""
_ALL_AROUND = 0.6
"""Share of what lies around a piece that it differs from: one that borders on fat with half of it passes for fat."""


def seen_on_ct(label: NDArray[Any], image: NDArray[Any], before: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """Tell which pieces of a label are brighter than soft tissue, and than the scan without them if that is at hand.

    Args:
        label: Not 0 at deposits, (X, Y, Z); pieces are what neighbours join, see :mod:`~jdm_seg.components`.
        image: HU, (X, Y, Z).
        before: The same scan without deposits.

    Returns:
        The voxels of these pieces, (X, Y, Z).
    """
    shown = np.zeros(label.shape, bool)
    at = foreground_indices(label)
    if not len(at):
        return shown
    low, high = at.min(axis=0), at.max(axis=0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    pieces = cc3d.connected_components(label[box] != 0, connectivity=CONNECTIVITY, binary_image=True)
    where = tuple(at.T)
    number = pieces[tuple((at - low).T)]
    seen: NDArray[np.bool_] = _means(number, image[where]) >= _VISIBLE_HU
    if before is not None:
        seen &= _means(number, image[where].astype(np.float64) - before[where]) >= _VISIBLE_CHANGE_HU
    shown[where] = seen[number]
    return shown


def seen_on_stir(
    label: NDArray[Any], image: NDArray[Any], before: NDArray[Any], muscle: float, noise: float, spacing: Spacing
) -> NDArray[np.bool_]:
    """Tell which pieces of a label change the scan beyond its noise, and differ from what lies around them.

    A void in muscle does, one in suppressed fat or flush with it does not, nor does a speck in a noisy scan. A rim of
    fluid shows a void that fat would hide.

    Args:
        label: Not 0 at deposits, (X, Y, Z); pieces are what neighbours join, see :mod:`~jdm_seg.components`.
        image: Magnitudes in the scanner's units, (X, Y, Z).
        before: The same scan, with the same noise, without deposits.
        muscle: Signal of muscle in these units.
        noise: Standard deviation of the noise in these units.
        spacing: Voxel size in mm; what lies around is looked at in the plane of the finer two.

    Returns:
        The voxels of these pieces, (X, Y, Z).

    Source: Rose, J. Opt. Soc. Am. 38, 196 (1948): detection needs contrast / noise * sqrt(area) of about 5.
    """
    pieces = cc3d.connected_components(label != 0, connectivity=CONNECTIVITY, binary_image=True)
    inside = np.nonzero(pieces)
    least = _LEAST_OF_MUSCLE * muscle
    level = _means(pieces[inside], image[inside])
    changed, apart = np.zeros((2, len(level)), bool)
    thick = int(np.argmax(spacing))
    near = pieces
    for width in (3, 5):
        wide = ndimage.maximum_filter(pieces, [1 if axis == thick else width for axis in range(3)])
        ring = np.nonzero((wide > 0) & (near == 0))
        differs = np.abs(image[ring] - level[wide[ring]]) >= least
        share = _means(wide[ring], differs)
        apart[: len(share)] |= share >= _ALL_AROUND
        near = wide
    rim = np.where(pieces == 0, ndimage.maximum_filter(pieces, 3), 0)
    for part in (pieces, rim):
        where = np.nonzero(part)
        number = part[where]
        change = _means(number, np.abs(image[where].astype(np.float64) - before[where]))
        voxels = np.bincount(number, minlength=len(change))
        found = (change * np.sqrt(voxels) >= _ROSE * noise) & (change >= least) & (voxels > 0)
        changed[: len(found)] |= found
    shown: NDArray[np.bool_] = (changed & apart)[pieces]
    return shown


def _means(number: NDArray[np.unsignedinteger[Any]], values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean value of each number, 0 where there is none."""
    voxels = np.bincount(number, minlength=1)
    means: NDArray[np.float64] = np.bincount(number, weights=values, minlength=1) / np.maximum(voxels, 1)
    return means
