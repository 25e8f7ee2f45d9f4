"""How much memory one scan takes, known before it is taken.

With a scan of X x Y x Z voxels of b bytes, whose body's box is x x y x z voxels on the model's grid, and windows of
n planes, segmenting holds beside the scan itself (XYZ b) and the loaded model:

=========================================  ==========================================================================
the layer of windows                       13 xyn bytes, and 12 xyn for a moment when it moves on
planes on their way to the model's grid    8 bytes a voxel of n planes of the body's box on the scan's grid
logits on their way to the scan            12 bytes a voxel of n + 16 planes on the model's grid
the mask                                   up to XYZ; the system gives only pages that hold lesions, of up to 2 MB
its probabilities                          10 bytes a voxel of the mask (or of the map that is asked for), 40 for a
                                           moment
the body                                   1 byte every 3.5 mm, and 16 for a moment before the rest is taken
the network                                measured, see :func:`window_memory`
=========================================  ==========================================================================

Nothing but the scan, its mask and its probabilities grows with the length of a scan. STIR is normalised by its median,
which needs 4 xyz more: its scans are small.

Measuring comes after that and needs, beside scan and mask, about 150 bytes a voxel of the mask, and for a moment 5
bytes a voxel of the box around all lesions; the body, labels and maps are worked out a part at a time.

Measured on 512 x 512 x 800 voxels of int16 with windows of 64³ and a mask of 1.9 million voxels all over the body:
0.34 GB with the model loaded, 0.78 with the scan, 1.25 at most while segmenting, 1.67 while measuring, 1.32 at the end.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from math import prod

from jdm_seg.machine import resident_memory
from jdm_seg.model_grid import Placement

_PLANES = 16
_NAMED = 1
"""Bytes a voxel of the scan for probabilities: room for every 40th voxel (assumed; a bad mask of a whole body named
every 110th)."""


def scan_memory(placement: Placement, depth: int, *, whole: bool = False) -> int:
    """Return the bytes that segmenting one scan takes at most, without scan, model and network.

    Args:
        placement: The scan on the model's grid.
        depth: Of a window, in voxels along z.
        whole: The intensity rule needs the whole image.
    """
    x, y, z = placement.shape
    box_x, box_y, box_z = placement.box_shape
    planes = min(box_z, int(depth * placement.step[2]) + 2)
    layer = x * y * depth * 25
    resampling = box_x * box_y * planes * 8
    back = x * y * (depth + _PLANES) * 12
    mask = (1 + _NAMED) * prod(placement.canonical_shape)
    body = placement.body.samples.size
    return layer + max(resampling, back) + mask + body + (4 * x * y * z if whole else 0)


def window_memory(run: Callable[[], object]) -> int:
    """Return the bytes that a call takes while it runs, as far as the system tells; best measured before any scan."""
    before, peak_before = resident_memory(), _peak()
    run()
    after, peak_after = resident_memory(), _peak()
    # the peak tells only if it was passed just now
    return max(after, peak_after if peak_after > peak_before else 0) - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
