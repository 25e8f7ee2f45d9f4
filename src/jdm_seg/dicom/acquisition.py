"""How a scan was taken: the physics of a DICOM header that matters to the figures, and nothing about the person."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

KEYWORDS = (
    "KVP",
    "ConvolutionKernel",
    "XRayTubeCurrent",
    "Exposure",
    "CTDIvol",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ReconstructionDiameter",
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "FilterMaterial",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "ScanningSequence",
)
_CODE = re.compile(r"[^A-Za-z0-9 +\-.]")
_ENHANCED = {
    "XRayTubeCurrent": "XRayTubeCurrentInmA",
    "Exposure": "ExposureInmAs",
    "EchoTime": "EffectiveEchoTime",
    "InversionTime": "InversionTimes",
}
"""Facts that enhanced multi-frame objects keep under another keyword in their functional groups."""


@dataclass(frozen=True)
class Acquisition:
    """Facts of one slice, or of a scan; None where the header does not say.

    Attributes:
        kv: Tube voltage in kV.
        tin_filter: Whether the beam went through tin; None where the header names no filter.
        kernel: Reconstruction kernel, as the vendor codes it.
        tube_current_ma: Tube current in mA.
        exposure_mas: Exposure in mAs.
        ctdi_vol_mgy: Dose index in mGy. The noise index itself has no public tag.
        slice_thickness_mm: Nominal thickness, not the distance between slices.
        slice_spacing_mm: Stated distance between slices.
        field_of_view_mm: Diameter of the reconstruction.
        contrast_agent: Whether one was given; its name is free text and is not kept.
        field_strength_t: Of the magnet in tesla.
        repetition_time_ms: TR.
        echo_time_ms: TE.
        inversion_time_ms: TI.
        flip_angle_deg: Flip angle.
        scanning_sequence: Codes such as ``SE+IR``.
    """

    kv: float | None = None
    tin_filter: bool | None = None
    kernel: str | None = None
    tube_current_ma: float | None = None
    exposure_mas: float | None = None
    ctdi_vol_mgy: float | None = None
    slice_thickness_mm: float | None = None
    slice_spacing_mm: float | None = None
    field_of_view_mm: float | None = None
    contrast_agent: bool | None = None
    field_strength_t: float | None = None
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    scanning_sequence: str | None = None

    @property
    def kv_name(self) -> str | None:
        """Return the tube voltage as :mod:`~jdm_seg.physics` names it, ``Sn100`` behind tin; None if not known."""
        if self.kv is None:
            return None
        return f"Sn{self.kv:g}" if self.tin_filter else f"{self.kv:g}"


def value_of(dataset: Any, keyword: str) -> Any:
    """Return a header value, or None where it is missing or cannot be decoded: no optional fact is worth a failure."""
    try:
        value = dataset.get(keyword)
        # an empty value and an absent one mean the same
        return None if value is None or value == "" else value
    except Exception:  # damaged bytes raise many types while pydicom decodes a value
        return None


def number_of(dataset: Any, keyword: str) -> float | None:
    """Return a header value, or the first of several, as a finite number, else None."""
    return _finite(value_of(dataset, keyword))


def numbers_of(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite numbers of a header value, else None."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != count:
        return None
    numbers = [_finite(one) for one in value]
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def code_of(dataset: Any, keyword: str, length: int = 32) -> str | None:
    """Return a coded header value as plain text, several joined by ``+``, cut to ``length``."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, bytes):
        return None
    parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    text = "+".join(_CODE.sub("", str(part)).strip() for part in parts)[:length]
    return text or None


def acquisition_of(dataset: Any, groups: Sequence[Any] = ()) -> Acquisition:
    """Collect the facts of a header.

    Args:
        dataset: The file's data set.
        groups: Functional group items of an enhanced frame, which win over the file's own.
    """

    def number(keyword: str) -> float | None:
        found = (number_of(group, _ENHANCED.get(keyword, keyword)) for group in groups)
        inside = next((value for value in found if value is not None), None)
        return number_of(dataset, keyword) if inside is None else inside

    def code(keyword: str) -> str | None:
        found = (code_of(group, keyword) for group in (*groups, dataset))
        return next((text for text in found if text is not None), None)

    filters = code("FilterMaterial")
    agent = value_of(dataset, "ContrastBolusAgent") or value_of(dataset, "ContrastBolusAgentSequence")
    return Acquisition(
        kv=_positive(number("KVP")),
        tin_filter=None if filters is None else "TIN" in filters.upper().split("+"),
        kernel=code("ConvolutionKernel"),
        tube_current_ma=_positive(number("XRayTubeCurrent")),
        exposure_mas=_positive(number("Exposure")),
        ctdi_vol_mgy=_positive(number("CTDIvol")),
        slice_thickness_mm=_positive(number("SliceThickness")),
        slice_spacing_mm=_positive(number("SpacingBetweenSlices")),
        field_of_view_mm=_positive(number("ReconstructionDiameter")),
        contrast_agent=None if agent is None else bool(str(agent).strip().upper() not in ("", "NONE", "NO")),
        field_strength_t=_tesla(number("MagneticFieldStrength")),
        repetition_time_ms=_positive(number("RepetitionTime")),
        echo_time_ms=number("EchoTime"),
        inversion_time_ms=_positive(number("InversionTime")),
        flip_angle_deg=number("FlipAngle"),
        scanning_sequence=code("ScanningSequence"),
    )


def summarize(slices: Sequence[Acquisition]) -> Acquisition:
    """Sum up slices: the median of what varies along the body (tube current), the most frequent of codes."""
    facts: dict[str, Any] = {}
    for one in fields(Acquisition):
        values = [value for value in (getattr(item, one.name) for item in slices) if value is not None]
        middle: Callable[[list[Any]], Any] = median if values and type(values[0]) is float else _most_frequent
        facts[one.name] = middle(values) if values else None
    return Acquisition(**facts)


def _most_frequent(values: list[Any]) -> Any:
    return max(sorted(set(values)), key=values.count)


def _finite(value: Any) -> float | None:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def _tesla(value: float | None) -> float | None:
    # some old headers state gauss
    value = _positive(value)
    return value / 10_000 if value is not None and value > 100 else value
