"""Lesions between the lungs are dropped, on the scan's own axes, and said to be."""

import numpy as np
import pytest

from jdm_seg.inference.chest import between_lungs, drop_between_lungs
from jdm_seg.volume import Volume

SPACING = (1.5, 1.5, 4.0)
PLACES = {"valve": (100, 80), "node": (122, 76), "sternum": (100, 132), "by the spine": (86, 40), "breast": (60, 138)}


def chest(lung_hu: int = -850) -> np.ndarray:
    """An elliptic chest, y to the front, table behind; small blocks of 400 HU at each place."""
    x, y, _ = np.meshgrid(np.arange(200) - 100, np.arange(160) - 80, np.arange(20), indexing="ij")
    hu = np.where((x / 90) ** 2 + (y / 65) ** 2 < 1, 50, -1000).astype(np.int16)
    for side in (-1, 1):
        hu[((x - side * 43) / 30) ** 2 + ((y + 4) / 42) ** 2 < 1] = lung_hu
    hu[:, 5:8] = 120
    for px, py in PLACES.values():
        hu[px - 2 : px + 3, py - 2 : py + 3, 8:11] = 400
    return hu


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_what_lies_between_the_lungs_goes_and_all_else_stays(axes, flips):
    hu = chest()
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for own, world in enumerate(axes):
        matrix[world, own] = SPACING[world] * flips[own]
    scan = Volume(np.ascontiguousarray(hu.transpose(axes)[tuple(slice(None, None, f) for f in flips)]), matrix, "chest")
    mask = scan.array == 400
    notes = drop_between_lungs(mask, scan)
    kept = Volume(mask, matrix, "chest").to_canonical().array
    assert {name for name, (x, y) in PLACES.items() if kept[x, y, 9]} == {"sternum", "by the spine", "breast"}
    assert kept.sum() == 3 * 75  # whole lesions go or stay
    assert notes == ("2 lesions lay between the lungs and went: calcinosis lies in skin, fat, fascia and muscle",)


@pytest.mark.parametrize("lung_hu", [-1000, 20], ids=["gas of the gut", "no lung"])
def test_without_lungs_all_stays(lung_hu):
    scan = Volume(chest(lung_hu), np.diag([*SPACING, 1.0]), "belly")
    mask = scan.array == 400
    before = mask.copy()
    assert drop_between_lungs(mask, scan) == ()
    np.testing.assert_array_equal(mask, before)
    assert not between_lungs(scan.array, SPACING)[0].any()


def test_air_between_legs_is_no_lung():
    x, y, _ = np.meshgrid(np.arange(160) - 80, np.arange(100) - 50, np.arange(30), indexing="ij")
    hu = np.full(x.shape, -1000, np.int16)
    for side in (-1, 1):
        hu[np.hypot(x - side * 41, y) < 40] = 50
    hu[np.hypot(x, y - 30) < 12] = 60  # the legs touch in front
    assert not between_lungs(hu, SPACING)[0].any()
