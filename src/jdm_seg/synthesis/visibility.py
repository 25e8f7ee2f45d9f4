"""Which deposits a reader could see. The others are part of the truth, but teach nothing.

Teaching a network that a faint grey streak is calcium teaches it to see calcium in every tendon. On CT every piece of
the label is judged by itself, as it is counted: a sheet that is bright in places is not for that seen everywhere.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_VISIBLE_HU = 110.0
"""A deposit that reads less on average is as grey as muscle, vessels and tendons in fat."""
_VISIBLE_CHANGE_HU = 80.0
"""One that adds less on average drowns in the noise of a low-dose scan."""
_ROSE = 5.0
"""Signal-to-noise ratio that an object needs over its whole area to be told from noise."""
_LEAST_OF_MUSCLE = 0.25
"""On STIR: septa, vessels and oedema change the signal by as much of muscle's from place to place (assumed)."""


def seen_on_ct(label: NDArray[Any], image: NDArray[Any], before: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """Tell which pieces of a label are brighter than soft tissue, and than the scan without them if that is at hand.

    Args:
        label: Not 0 at deposits, (X, Y, Z); pieces are what 26 neighbours join.
        image: HU, (X, Y, Z).
        before: The same scan without deposits.

    Returns:
        The voxels of these pieces, (X, Y, Z).
    """
    pieces = cc3d.connected_components(label != 0, connectivity=26, binary_image=True)
    where = np.nonzero(pieces)
    number = pieces[where]
    seen: NDArray[np.bool_] = _means(number, image[where]) >= _VISIBLE_HU
    if before is not None:
        seen &= _means(number, image[where].astype(np.float64) - before[where]) >= _VISIBLE_CHANGE_HU
    shown = np.zeros(label.shape, bool)
    shown[where] = seen[number]
    return shown


def seen_on_stir(
    instances: NDArray[np.uint16], image: NDArray[Any], before: NDArray[Any], muscle: float, noise: float
) -> NDArray[np.bool_]:
    """Tell which deposits change the scan, inside or at their rim, beyond its noise and what muscle varies by itself.

    A void in muscle does, one in suppressed fat or along a dark septum does not, nor does a speck in a noisy scan.

    Args:
        instances: Number of the deposit at every labelled voxel, 0 elsewhere, (X, Y, Z).
        image: Magnitudes in the scanner's units, (X, Y, Z).
        before: The same scan, with the same noise, without deposits.
        muscle: Signal of muscle in these units.
        noise: Standard deviation of the noise in these units.

    Returns:
        By number, up to the largest; entry 0 is no deposit and False.

    Source: Rose, J. Opt. Soc. Am. 38, 196 (1948): detection needs contrast / noise * sqrt(area) of about 5.
    """
    seen = np.zeros(int(instances.max(initial=0)) + 1, bool)
    rim = np.where(instances == 0, ndimage.maximum_filter(instances, 3), 0)
    for part in (instances, rim):
        where = np.nonzero(part)
        number = part[where]
        change = _means(number, np.abs(image[where].astype(np.float64) - before[where]))
        voxels = np.bincount(number, minlength=len(change))
        found = (change * np.sqrt(voxels) >= _ROSE * noise) & (change >= _LEAST_OF_MUSCLE * muscle) & (voxels > 0)
        seen[: len(found)] |= found
    return seen


def _means(number: NDArray[np.unsignedinteger[Any]], values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean value of each number, 0 where there is none."""
    voxels = np.bincount(number, minlength=1)
    means: NDArray[np.float64] = np.bincount(number, weights=values, minlength=1) / np.maximum(voxels, 1)
    return means
