"""Region, side and depth on a body of cylinders whose every level is typed in here."""

from __future__ import annotations

import numpy as np
import pytest

from jdm_seg.burden.analysis import analyse_mask
from jdm_seg.burden.body_map import map_body, water_equivalent_diameter_cm
from jdm_seg.burden.landmarks import find_parts
from jdm_seg.volume import Volume

SPACING = (4.0, 4.0, 4.0)
SHAPE = (120, 56, 300)
MIDDLE = 57.0
"""Index of the midline along x: not the middle of the scan, as no patient lies there."""
ANKLE, KNEE, ARCH, LUNG, NECK = 12, 79, 130, (195, 240), 252


def disc(x, y, rx, ry):
    gx, gy = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return ((gx - x) / rx) ** 2 + ((gy - y) / ry) ** 2 < 1


def body(noise=8.0):
    """Legs with bones and feet, a trunk with a spine and lungs, arms beside it, a neck and a head. Returns HU."""
    hu = np.full(SHAPE, -1000.0)
    for z in range(4, ARCH):
        calf = 9 + 2.0 * np.sin(np.pi * np.clip((z - ANKLE) / 60, 0, 1)) + 5 * (z > 80) * (z - 80) / 50
        width = 13 if z < ANKLE - 2 else 6.5 if z < ANKLE + 3 else calf
        for side in (-1, 1):
            leg = disc(MIDDLE + side * 20, 28, width, width)
            hu[:, :, z][leg] = -100
            hu[:, :, z][disc(MIDDLE + side * 20, 28, width - 2, width - 2)] = 55
            hu[:, :, z][disc(MIDDLE + side * 20, 28, 3.2, 3.2)] = 900
    for z in range(ARCH, NECK):
        hu[:, :, z][disc(MIDDLE, 28, 36, 24)] = -100
        hu[:, :, z][disc(MIDDLE, 28, 33, 21)] = 55
        hu[:, :, z][disc(MIDDLE, 14, 5, 5)] = 600
        for side in (-1, 1):
            if LUNG[0] <= z < LUNG[1]:
                hu[:, :, z][disc(MIDDLE + side * 15, 30, 11, 13)] = -850
            if z > ARCH + 20:
                hu[:, :, z][disc(MIDDLE + side * 48, 28, 7, 7)] = 55
                hu[:, :, z][disc(MIDDLE + side * 48, 28, 2.5, 2.5)] = 900
    for z in range(NECK, 292):
        hu[:, :, z][disc(MIDDLE, 28, 12 if z < 262 else 19, 12 if z < 262 else 22)] = 50
        hu[:, :, z][disc(MIDDLE, 22, 4, 4)] = 700
    return hu + np.random.default_rng(0).normal(0, noise, SHAPE)


@pytest.fixture(scope="module")
def mapped():
    return map_body(body(), SPACING, np.zeros((0, 3), dtype=np.int64))


@pytest.mark.parametrize(
    ("place", "region", "side"),
    [
        ((77, 33, 6), "foot", "right"),
        ((37, 33, 40), "lower_leg", "left"),
        ((77, 33, KNEE), "knee", "right"),
        ((37, 33, 110), "thigh", "left"),
        ((70, 40, ARCH + 12), "hip", "right"),
        ((57, 40, 185), "abdomen", "midline"),
        ((57, 44, 220), "chest", "midline"),
        ((25, 28, 220), "chest", "left"),
        ((105, 28, 200), "arm", "right"),
        ((9, 28, 165), "arm", "left"),
        ((58, 40, 280), "head_neck", "midline"),
    ],
)
def test_region_and_side(mapped, place, region, side):
    voxels = np.array([place])
    assert (mapped.region_of(voxels), mapped.side_of(voxels)) == (region, side)


def test_landmarks(mapped):
    marks = mapped.landmarks
    assert marks.arch == ARCH
    assert marks.lung == pytest.approx((LUNG[0], LUNG[1] - 1), abs=2)
    assert marks.ankle == pytest.approx(ANKLE, abs=4)
    assert mapped.midline == pytest.approx(np.full(SHAPE[2], MIDDLE), abs=1)


def test_without_feet_a_leg_is_a_leg():
    mapped = map_body(body()[:, :, 60:], SPACING, np.zeros((0, 3), dtype=np.int64))
    assert mapped.region_of(np.array([[37, 33, 30]])) == "leg"
    assert mapped.side_of(np.array([[37, 33, 30]])) == "left"


def test_one_limb_alone_has_neither_region_nor_side():
    limb = body()[65:90, :, 90:125]
    mapped = map_body(limb, SPACING, np.zeros((0, 3), dtype=np.int64))
    voxels = np.array([[12, 33, 10]])
    assert (mapped.region_of(voxels), mapped.side_of(voxels)) == ("unknown", "unknown")


def test_a_part_cut_by_the_scan_has_no_middle():
    parts = find_parts((body()[22:, :, 100:110] > -300).astype(np.uint8), SPACING)
    assert parts.pairs[0] is not None
    cut = find_parts((body()[38:, :, 100:110] > -300).astype(np.uint8), SPACING)
    assert cut.pairs[0] is None


def test_water_equivalent_diameter():
    x, y = np.ogrid[-60:60, -60:60]
    water = np.repeat((x**2 + y**2 < 50**2)[:, :, None], 3, axis=2)
    hu = np.where(water, 0.0, -1000.0)
    hu[:, :, 1] = np.where(water[:, :, 1], 200.0, -1000.0)
    found = water_equivalent_diameter_cm(hu, water, (2.0, 2.0, 5.0), np.array([0, 1]))
    assert found == pytest.approx([20.0, 20.0 * np.sqrt(1.2)], rel=0.01)


def deposit(hu, place, half=1, value=500.0):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(p - half, p + half + 1) for p in place)] = True
    hu[mask] = value
    return mask


@pytest.mark.parametrize(
    ("place", "depth"),
    [
        ((77, 17, 110), "subcutis"),
        ((77, 38, 110), "fascia"),
        ((82, 36, 120), "muscle"),
        ((42, 30, 215), "visceral"),
    ],
)
def test_depth(place, depth):
    hu = body()
    if depth == "subcutis":  # a wide layer of fat around one leg
        ring = disc(MIDDLE + 20, 28, 18, 18) & ~disc(MIDDLE + 20, 28, 8, 8)
        hu[:, :, 100:125][ring] = -100
    if depth == "fascia":
        hu[:, 40:, 100:125][hu[:, 40:, 100:125] > -200] = -100
    if depth == "visceral":
        hu[36:50, 24:38, 205:225] = -850
    mask = deposit(hu, place, half=0)
    lesions = analyse_mask(
        Volume(hu.astype(np.int16), np.diag([*SPACING, 1.0])), mask, case_id="b", modality="ct"
    ).lesions
    assert [lesion.depth_class for lesion in lesions] == [depth]


def test_a_large_deposit_is_not_bone():
    hu = body()
    mask = deposit(hu, (77, 38, 100), half=2, value=900.0)
    lesion = analyse_mask(
        Volume(hu.astype(np.int16), np.diag([*SPACING, 1.0])), mask, case_id="b", modality="ct"
    ).lesions[0]
    assert lesion.bone_mm > 8
    assert (lesion.region, lesion.side) == ("thigh", "right")
