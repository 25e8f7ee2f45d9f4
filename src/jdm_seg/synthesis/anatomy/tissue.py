"""What a body is made of: tissue codes, body regions, and a map that knows partial volume.

Axes are canonical (RAS): x grows to the patient's right, y to anterior, z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
WHOLE = 254
"""``share`` counts in 254ths, so that a half is exact."""


class Tissue(IntEnum):
    """Codes of a tissue map."""

    AIR = 0
    SKIN = 1
    FAT = 2
    FASCIA = 3
    """Between muscles: a sheet of collagen with a little fat; also septa of the subcutis."""
    MUSCLE = 4
    BLOOD = 5
    CORTEX = 6
    MARROW = 7
    """Shaft marrow: fatty in adults, red in children."""
    TRABECULA = 8
    """Spongy bone of bone ends, vertebrae, flat bones and unfused ossification centres."""
    CARTILAGE = 9
    """Joint, growth-plate and costal cartilage, discs."""
    TABLE = 10
    DENSE = 11
    """Dense in a real scan and not known to be bone: neither a place for deposits nor a negative."""
    TENDON = 12
    LUNG = 13
    GAS = 14
    """Air inside the body: airways, bowel gas."""
    LIVER = 15
    KIDNEY = 16
    ORGAN = 17
    """Other soft organs: heart muscle, spleen, pancreas, thyroid, glands."""
    BOWEL = 18
    """Wall and unremarkable content of stomach and gut."""
    CONTRAST = 19
    """Gut content or vessel that holds contrast medium, tablets or bismuth."""
    FLUID = 20
    """Urine, cerebrospinal fluid, joint fluid, eye."""
    BRAIN = 21
    TOOTH = 22
    METAL = 23
    PLASTIC = 24
    """Tubes, lines, leads, buttons."""
    CLOTH = 25
    """Clothing, blanket, dressing."""
    CAST = 26
    """Plaster or splint."""
    STONE = 27
    """Calcium that is not calcinosis: phlebolith, vessel wall, lymph node, granuloma, cartilage calcification."""

    VISCERAL_FAT = 28
    """Fat inside chest and abdomen, which deposits hardly ever reach."""


SOFT_TISSUE = (Tissue.SKIN, Tissue.FAT, Tissue.FASCIA, Tissue.MUSCLE, Tissue.TENDON)
"""Where deposits may lie."""
BONE = (Tissue.CORTEX, Tissue.MARROW, Tissue.TRABECULA, Tissue.TOOTH)
OUTSIDE = (Tissue.AIR, Tissue.TABLE, Tissue.CLOTH, Tissue.CAST)
"""Not body."""


def is_soft(tissue: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a deposit may lie, for any part of a tissue map."""
    return is_one_of(tissue, SOFT_TISSUE)


def is_one_of(tissue: NDArray[np.uint8], codes: Sequence[Tissue]) -> NDArray[np.bool_]:
    """Return where a tissue map shows one of the codes; comparing is ten times as fast as looking up in a table."""
    found: NDArray[np.bool_] = tissue == np.uint8(codes[0])
    for code in codes[1:]:
        found |= tissue == np.uint8(code)
    return found


class Region(IntEnum):
    """Fifteen body regions; right and left are told apart by :class:`Side`.

    The number follows the 15 regions read in trials of fibrodysplasia ossificans progressiva (Calcif Tissue Int 2022,
    10.1007/s00223-021-00877-6); their borders here are the authors'.
    """

    NONE = 0
    HEAD = 1
    NECK = 2
    SHOULDER = 3
    UPPER_ARM = 4
    ELBOW = 5
    FOREARM = 6
    HAND = 7
    CHEST = 8
    ABDOMEN = 9
    BACK = 10
    HIP = 11
    """Hip, buttock, groin and pelvis."""
    THIGH = 12
    KNEE = 13
    LOWER_LEG = 14
    FOOT = 15


class Side(IntEnum):
    """The patient's side."""

    NONE = 0
    RIGHT = 1
    LEFT = 2


@dataclass(frozen=True)
class TissueMap:
    """Tissue of every voxel, with partial volume of at most two tissues in a voxel.

    Attributes:
        first: The tissue that fills most of a voxel, :class:`Tissue` codes, shape (X, Y, Z), uint8.
        second: The other one, same shape and type.
        share: How much of the voxel is ``second``, in 1 / :data:`WHOLE`, at most half, same shape and type.
        spacing: Voxel size in mm.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    share: NDArray[np.uint8]
    spacing: Spacing

    def mix(self, table: NDArray[np.float32], z: slice = slice(None)) -> FloatArray:
        """Return a quantity that mixes linearly, such as HU, for a slab of axial slices.

        Args:
            table: Its value for each code, shape (256,), float32.
            z: The slab.

        Returns:
            Shape (X, Y, slab), float32.
        """
        result: FloatArray = table[self.first[..., z]]
        mixed = np.flatnonzero(self.share[..., z])
        share = self.share[..., z].ravel()[mixed] * np.float32(1 / WHOLE)
        flat = result.reshape(-1)
        flat[mixed] += share * (table[self.second[..., z].ravel()[mixed]] - flat[mixed])
        return result

    def blend(self, box: tuple[slice, slice, slice], cover: FloatArray, tissue: Tissue) -> None:
        """Let a tissue fill a share of the voxels of a box.

        A voxel keeps its first tissue while that fills at least half of it; of three tissues the smallest goes.

        Args:
            box: Where on the grid.
            cover: Share of each voxel that becomes ``tissue``, 0 to 1, shape of the box; nothing below 1 / 254.
            tissue: What fills it.
        """
        wanted = cover > 1 / WHOLE
        if not wanted.any():
            return
        cover = cover[wanted]
        first, second, share = (plane[box][wanted] for plane in (self.first, self.second, self.share))
        full, code = cover >= 0.5, np.uint8(tissue)
        part = np.rint(cover * WHOLE).astype(np.uint8)
        rest = WHOLE - part
        same = first == code  # a neighbouring piece of the same thing: the larger cover counts
        np.minimum(share, rest, out=share, where=full & same)
        new = full & ~same
        np.copyto(second, first, where=new)
        np.copyto(share, rest, where=new)
        np.copyto(first, code, where=new)
        before = np.where(second == code, share, 0)
        thin = ~full & ~same & (part > before) & ((before > 0) | (share < part))
        np.copyto(second, code, where=thin)
        np.copyto(share, part, where=thin)
        for plane, values in ((self.first, first), (self.second, second), (self.share, share)):
            plane[box][wanted] = values
