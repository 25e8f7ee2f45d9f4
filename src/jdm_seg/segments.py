"""Named segments of a mask file: 3D Slicer, DICOM SEG and nnU-Net all number them and give each a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jdm_seg.errors import InputError

_OURS = re.compile(r"calcinos|calcif", re.IGNORECASE)
ALL = "all"


@dataclass(frozen=True)
class Segment:
    """One named segment of a mask file.

    Attributes:
        number: Its number in the file.
        name: Its label.
        meaning: What it codes for, in words; empty if the file does not say.
        value: Voxel value in its layer; the number itself in files without layers.
        layer: Layer of the array (Slicer writes overlapping segments into several).
    """

    number: int
    name: str
    meaning: str = ""
    value: int = 1
    layer: int = 0

    def __str__(self) -> str:
        """Return number, name and meaning in one phrase."""
        return f"{self.number} {self.name!r}" + (f" ({self.meaning})" if self.meaning else "")


def choose_segments(segments: Sequence[Segment], wanted: str | None, where: str) -> tuple[Segment, ...]:
    """Return the segments that are calcinosis.

    Args:
        segments: What the file holds, at least one.
        wanted: A segment's name or number, or ``all``; None takes those whose name or code speaks of calcinosis or
            calcification, and where there is one segment only, that one.
        where: What messages call the file.

    Raises:
        InputError: If none fits; the message lists what was found.
    """
    if wanted is None:
        chosen = [segment for segment in segments if _OURS.search(f"{segment.name} {segment.meaning}")]
        chosen = list(segments) if not chosen and len(segments) == 1 else chosen
    elif wanted == ALL:
        chosen = list(segments)
    else:
        chosen = [one for one in segments if wanted.casefold() == one.name.casefold()]
        chosen = chosen or [one for one in segments if wanted == str(one.number)]
    if not chosen:
        raise InputError(
            where,
            expected="a segment named calcinosis" if wanted is None else f"a segment {wanted!r}",
            found=", ".join(str(segment) for segment in segments) or "no segment",
            remedy=f"choose with --segment NAME, or --segment {ALL}",
        )
    return tuple(chosen)
