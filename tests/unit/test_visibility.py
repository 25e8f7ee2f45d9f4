"""Which deposits can be seen, by hand-made scans in which the answer follows from contrast, size and noise."""

import numpy as np
import pytest

from jdm_seg.synthesis.visibility import seen_on_ct, seen_on_stir

SHAPE = (40, 12, 40)
SPACING = (1.5, 5.0, 1.5)


def box(side):
    """Deposit 1, a box of ``side`` voxels in plane and two slices, and deposit 3 without a voxel."""
    instances = np.zeros(SHAPE, np.uint16)
    instances[10 : 10 + side, 5:7, 10 : 10 + side] = 1
    return instances


@pytest.mark.parametrize(
    ("side", "change", "noise", "expected"),
    [
        (8, -100, 10, True),  # a void in muscle of 100
        (8, 0, 10, False),  # the same in suppressed fat
        (8, 300, 40, True),  # fluid
        (8, -20, 1, False),  # clear of the noise, but muscle itself varies as much
        (8, -30, 60, True),  # half of the noise, 128 voxels of it: 5.7
        (2, -30, 60, False),  # 8 voxels of it: 1.4
        (1, -100, 60, False),  # a speck of two voxels: 2.4
        (1, -100, 10, True),
    ],
)
def test_contrast_times_the_root_of_the_size_over_noise(side, change, noise, expected):
    instances = box(side)
    before = np.full(SHAPE, 120, np.int16)
    after = np.where(instances, before + change, before).astype(np.int16)
    assert np.array_equal(seen_on_stir(instances, after, before, 100.0, noise, SPACING), (instances == 1) & expected)


def test_a_rim_shows_a_void_that_fat_hides():
    instances = box(6)
    before = np.full(SHAPE, 10, np.int16)
    after = before.copy()
    after[8:18, 5:7, 8:18] = 200
    after[instances == 1] = 10
    assert np.array_equal(seen_on_stir(instances, after, before, 100.0, 10.0, SPACING), instances == 1)
    assert not seen_on_stir(instances, before, before, 100.0, 10.0, SPACING).any()


def test_a_void_flush_with_fat_passes_for_fat():
    """The same void in muscle, in the middle and at its border with suppressed fat."""
    instances = np.zeros(SHAPE, np.uint16)
    before = np.full(SHAPE, 100, np.int16)
    before[20:] = 5
    instances[8:13, 5, 4:34] = 1
    instances[17:20, 7, 4:34] = 2
    after = np.where(instances, 0, before).astype(np.int16)
    assert np.array_equal(seen_on_stir(instances, after, before, 100.0, 5.0, SPACING), instances == 1)


def test_each_piece_is_judged_alone():
    instances = box(8)
    instances[30:33, 3, 30:33] = 2
    instances[30:33, 8, 30:33] = 4
    before = np.full(SHAPE, 100, np.int16)
    after = np.where((instances == 1) | (instances == 4), 0, before).astype(np.int16)
    seen = seen_on_stir(instances, after, before, 100.0, 10.0, SPACING)
    assert np.array_equal(seen, (instances == 1) | (instances == 4))
    hu = np.where(instances == 1, 300, np.where(instances == 2, 105, 60)).astype(np.int16)
    assert np.array_equal(seen_on_ct(instances, hu), instances == 1)
    # as bright, but it was there before
    assert not seen_on_ct(instances, hu, np.where(instances == 1, 250, 60)).any()


def test_a_faint_piece_of_a_bright_sheet_is_not_seen_on_ct():
    sheet = np.zeros(SHAPE, np.uint8)
    sheet[5:15, 5, 5:30] = 1
    sheet[17:20, 5, 5:30] = 1  # a gap of two voxels away
    hu = np.full(SHAPE, 40, np.int16)
    hu[5:15][sheet[5:15] == 1] = 400
    hu[17:20][sheet[17:20] == 1] = 90
    bright = sheet.astype(bool)
    bright[16:] = False
    assert np.array_equal(seen_on_ct(sheet, hu), bright)
    sheet[15:17, 5, 5:8] = 1  # joined it is one lesion, and seen
    assert np.array_equal(seen_on_ct(sheet, hu), sheet == 1)


def test_no_deposit_is_none_seen():
    nothing = np.zeros(SHAPE, np.uint16)
    assert not seen_on_ct(nothing, nothing).any()
    assert not seen_on_stir(nothing, nothing, nothing, 100.0, 10.0, SPACING).any()
