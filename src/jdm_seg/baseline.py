"""What a user has without a network: a threshold, and bone taken out.

It is the method that others must beat, run by the same commands. What it cannot do is known: it loses deposits that
touch bone or make up a mass as large as a bone, and keeps whatever else is dense and small: ossification centres,
contrast, vessel calcium, stones, metal.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import bounding_box, outline_body
from jdm_seg.burden.agatston import agatston_edges_hu
from jdm_seg.burden.detectability import estimate_noise_hu
from jdm_seg.cases import Modality, check_modality
from jdm_seg.errors import InputError
from jdm_seg.inference.prediction import ScanPrediction
from jdm_seg.physics import HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.synthesis.anatomy.host import distance
from jdm_seg.synthesis.estimate import estimate_stir_tissue
from jdm_seg.volume import Spacing, Volume

MODEL = "threshold"
"""Its name where a model is asked for."""
_CELL_MM = 3.0
_MUSCLE_HU = (10.0, 100.0)
_DEFAULT_MUSCLE_HU = 55.0
_STIR_DARK = (0.2, 0.5)
_WINDOW_MM = 40.0

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ThresholdSettings:
    """How the baseline decides.

    Attributes:
        noise_sd: A deposit is so many standard deviations of the noise from muscle. 5: one voxel in millions is not.
        min_voxels: Smaller clusters are noise.
        bone_part_ml: A connected part at least so large and as bright as cortex may be bone.
        bone_cortex_hu: Bright as cortex, at 120 kV.
        bone_cortex_share: Share of such voxels in bone.
        bone_ml: Parts that lie within 3 mm of each other and add up to this are bone; a mass alone is not.
        max_void_ml: Larger dark parts on STIR are bone, tendon or fat.
        enclosed: Share of what surrounds a void on STIR that must be as bright as muscle.
        min_depth_mm: A void on STIR lies deeper than the skin, which is dark itself.
    """

    noise_sd: float = 5.0
    min_voxels: int = 5
    bone_part_ml: float = 0.8
    bone_cortex_hu: float = 320.0
    bone_cortex_share: float = 0.05
    bone_ml: float = 10.0
    max_void_ml: float = 5.0
    enclosed: float = 0.7
    min_depth_mm: float = 4.0


class ThresholdSegmenter:
    """The baseline as a method that a batch can run."""

    def __init__(self, modality: Modality, *, kv: str | None = None, settings: ThresholdSettings | None = None) -> None:
        """Choose what to run.

        Args:
            modality: ``ct`` or ``stir``.
            kv: Tube voltage; None assumes 120 kV. A batch's own ``kv`` only measures.
            settings: How it decides.

        Raises:
            InputError: For an unknown voltage.
        """
        try:
            hu_per_mg_ha(kv)
        except ValueError as error:
            raise InputError("--kv", expected="a tube voltage", found=str(error), remedy="give it in kV") from error
        self._modality: Modality = modality
        self.kv, self.settings = kv, settings or ThresholdSettings()

    @property
    def modality(self) -> Modality:
        """What it segments."""
        return self._modality

    @property
    def training(self) -> None:
        """Nothing was trained."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return what was asked and what runs, for ``run.json``."""
        return {"model": MODEL, "modality": self.modality, "threshold_kv": self.kv, **asdict(self.settings)}

    def __call__(self, scan: Volume) -> ScanPrediction:
        """Segment one scan.

        Raises:
            InputError: If the scan cannot be of the modality.
        """
        begin = time.perf_counter()
        check_modality(scan, self.modality)
        canonical = scan.to_canonical()
        if self.modality == "ct":
            mask = segment_ct(canonical.array, canonical.spacing, kv=self.kv, settings=self.settings)
        else:
            mask = segment_stir(canonical.array, canonical.spacing, settings=self.settings)
        seconds = {"threshold": round(time.perf_counter() - begin, 3)}
        return ScanPrediction(scan.from_canonical(mask), None, seconds)


def threshold_hu(hu: NDArray[Any], spacing: Spacing, *, kv: str | float | None, noise_sd: float) -> float:
    """Return from which CT number a voxel counts: what calcium scoring takes, or muscle and noise if that is more.

    Args:
        hu: CT numbers, canonical axes, shape (X, Y, Z).
        spacing: Voxel size in mm.
        kv: Tube voltage; None means 120 kV.
        noise_sd: How many standard deviations of the noise over muscle.
    """
    noise = estimate_noise_hu(hu, np.zeros(hu.shape, dtype=bool), Volume(hu, np.diag([*spacing, 1.0])).grid)
    every = tuple(slice(None, None, max(1, n // 64)) for n in hu.shape)
    soft = hu[every]
    soft = soft[(soft > _MUSCLE_HU[0]) & (soft < _MUSCLE_HU[1])]
    muscle = float(np.median(soft)) if soft.size > 100 else _DEFAULT_MUSCLE_HU
    return max(float(agatston_edges_hu(kv)[0]), muscle + noise_sd * (noise or 0.0))


def segment_ct(
    hu: NDArray[Any], spacing: Spacing, *, kv: str | float | None = None, settings: ThresholdSettings | None = None
) -> NDArray[np.bool_]:
    """Segment what is dense and not bone.

    Args:
        hu: CT numbers, canonical axes, shape (X, Y, Z).
        spacing: Voxel size in mm.
        kv: Tube voltage; None means 120 kV.
        settings: How to decide.

    Returns:
        The mask, shape (X, Y, Z).
    """
    settings = settings or ThresholdSettings()
    cut = threshold_hu(hu, spacing, kv=kv, noise_sd=settings.noise_sd)
    mask = np.zeros(hu.shape, dtype=bool)
    dense = hu >= cut
    box = bounding_box(dense)
    if not box[0].stop:
        return mask
    dense &= outline_body(hu, spacing, "ct")
    parts = cc3d.connected_components(np.ascontiguousarray(dense[box]), connectivity=26, binary_image=True)
    indices = np.flatnonzero(parts)
    numbers = parts.ravel()[indices]
    counts = np.bincount(numbers)
    cortex_hu = settings.bone_cortex_hu * hu_per_mg_ha(kv) / HU_PER_MG_HA["120"]
    where = np.stack(np.unravel_index(indices, parts.shape))
    crop = hu[box]
    cortex = np.bincount(numbers, crop[tuple(where)] >= cortex_hu)
    voxel_ml = float(np.prod(spacing)) / 1000
    large = (counts * voxel_ml >= settings.bone_part_ml) & (cortex >= settings.bone_cortex_share * counts)
    removed = _bone(parts.shape, where, numbers, counts * voxel_ml, large, spacing, settings.bone_ml)
    kept = (counts >= settings.min_voxels) & ~removed
    kept[0] = False
    chosen = where[:, kept[numbers]]
    mask[box][tuple(chosen)] = True
    return mask


def _bone(
    shape: tuple[int, ...],
    where: NDArray[np.intp],
    numbers: NDArray[Any],
    volumes_ml: NDArray[np.floating[Any]],
    large: NDArray[np.bool_],
    spacing: Spacing,
    bone_ml: float,
) -> NDArray[np.bool_]:
    """Tell which parts are bone, or lie against it. Neighbourhood is judged on cells of about 3 mm.

    Args:
        shape: Of the crop that the parts were found in.
        where: Index of every dense voxel, shape (3, N).
        numbers: Its part, shape (N,).
        volumes_ml: Volume of each part.
        large: Parts that may be bone.
        spacing: Voxel size in mm.
        bone_ml: Least volume of a group of them.

    Returns:
        By part number.
    """
    strides = np.maximum(1, np.round(_CELL_MM / np.array(spacing))).astype(int)
    cells = np.zeros(-(-np.array(shape) // strides), dtype=bool)
    in_large = large[numbers]
    coarse = where // strides[:, None]
    cells[tuple(coarse[:, in_large])] = True
    groups = cc3d.connected_components(cells, connectivity=26, binary_image=True)
    of_part = np.zeros(len(large), dtype=np.int64)
    of_part[numbers[in_large]] = groups[tuple(coarse[:, in_large])]
    group_ml = np.bincount(of_part[large], volumes_ml[large], minlength=int(groups.max()) + 1)
    bone = large & (group_ml[of_part] >= bone_ml)
    cells[:] = False
    in_bone = bone[numbers]
    cells[tuple(coarse[:, in_bone])] = True
    near = ndimage.binary_dilation(cells)[tuple(coarse)]
    # specks along bone are its own partial volume; a deposit beside it is larger than the strip they lie in
    beside = np.bincount(numbers, near) > 0.5 * np.maximum(np.bincount(numbers), 1)
    result: NDArray[np.bool_] = bone | (beside & ~large)
    return result


def segment_stir(
    signal: NDArray[Any], spacing: Spacing, *, settings: ThresholdSettings | None = None
) -> NDArray[np.bool_]:
    """Segment dark spots in muscle: mineral gives no signal.

    Deposits in suppressed fat are as dark as it is and cannot be found this way; nor is paste, which is bright.

    Args:
        signal: Magnitudes, canonical axes, shape (X, Y, Z).
        spacing: Voxel size in mm.
        settings: How to decide.

    Returns:
        The mask, shape (X, Y, Z).
    """
    settings = settings or ThresholdSettings()
    body = outline_body(signal, spacing, "stir")
    _, (level, noise) = estimate_stir_tissue(signal, spacing)
    relative = _relative_to_around(signal.astype(np.float32), body, spacing)
    cut = float(np.clip(1 - settings.noise_sd * noise / max(level, 1e-6), *_STIR_DARK))
    deep = distance(body, spacing) > settings.min_depth_mm
    parts = cc3d.connected_components(deep & (relative < cut), connectivity=26, binary_image=True)
    statistics = cc3d.statistics(parts)
    most = settings.max_void_ml * 1000 / float(np.prod(spacing))
    mask = np.zeros(signal.shape, dtype=bool)
    counts = statistics["voxel_counts"]
    for number in range(1, len(counts)):
        if not settings.min_voxels <= counts[number] <= most:
            continue
        near = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in statistics["bounding_boxes"][number])
        spot = parts[near] == number
        around = ndimage.binary_dilation(spot, iterations=2) & ~ndimage.binary_dilation(spot)
        if around.any() and (relative[near][around] > 0.5 * (1 + cut)).mean() >= settings.enclosed:
            mask[near] |= spot
    return mask


def _relative_to_around(values: FloatArray, body: NDArray[np.bool_], spacing: Spacing) -> FloatArray:
    """Return the signal over its mean within 2 cm: muscle is about 1 whatever the receive field."""
    size = [2 * max(1, round(_WINDOW_MM / 2 / step)) + 1 for step in spacing]
    capped = np.where(body, np.minimum(values, np.percentile(values[body], 90)), np.float32(0))
    total = ndimage.uniform_filter(capped, size, mode="constant")
    share = ndimage.uniform_filter(body.astype(np.float32), size, mode="constant")
    result: FloatArray = values * share / np.maximum(total, 1e-3)
    return result
