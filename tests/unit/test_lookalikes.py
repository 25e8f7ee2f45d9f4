"""Look-alikes: of the size drawn, where they belong, and never a positive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.synthesis import insert
from jdm_seg.synthesis.anatomy.host import build_host, chest_wall
from jdm_seg.synthesis.anatomy.tissue import BONE, Region, Tissue
from jdm_seg.synthesis.deposits.lookalikes import (
    AMBIGUOUS,
    IN_BONE,
    KINDS,
    KINDS_IN_SCANS,
    ON_SKIN,
    THROUGH_SKIN,
    LookAlike,
    sample_lookalikes,
)
from jdm_seg.synthesis.deposits.overlay import render_lookalike
from jdm_seg.synthesis.insert import IGNORE, SKELETON, InsertCalcinosisd, host_arrays

SPACING = (1.0, 1.0, 1.0)


def limb(spacing=SPACING):
    """A column of bone, muscle and fat, 100 mm across; chest below, abdomen above."""
    size = [round(110 / s) for s in spacing[:2]]
    x, y = (((np.arange(n) + 0.5) * s - 55) for n, s in zip(size, spacing[:2], strict=True))
    r = np.hypot(x[:, None], y)
    column = np.select([r < 8, r < 28, r < 48, r < 50], [Tissue.CORTEX, Tissue.MUSCLE, Tissue.FAT, Tissue.SKIN], 0)
    tissue = np.repeat(column[..., None], round(80 / spacing[2]), axis=2).astype(np.uint8)
    region = np.full(tissue.shape, Region.CHEST, np.uint8)
    region[..., tissue.shape[2] // 2 :] = Region.HIP
    region[..., tissue.shape[2] // 4 : tissue.shape[2] // 2] = Region.ABDOMEN
    return replace(build_host(tissue, spacing), region=region)


def item(**changes):
    base = LookAlike(
        "phlebolith", (20.0, 20.0, 20.0), 4.0, 4.0, 0.0, (0.0, 0.0, 1.0), 1.0, (0.0,) * 3, 0.0, {"STONE": 600.0}, 3
    )
    return replace(base, **changes)


def in_scan(host, seed):
    return sample_lookalikes(host, np.random.default_rng(seed), kinds=KINDS_IN_SCANS)


@pytest.fixture(scope="module")
def drawn():
    """Look-alikes of 300 patches, and their host."""
    host = limb()
    return host, [x for s in range(300) for x in in_scan(host, s)]


def test_every_kind_is_drawn_and_renders(drawn):
    host, items = drawn
    assert {x.kind for x in items} == set(KINDS_IN_SCANS)
    for kind in KINDS_IN_SCANS:
        overlays = [render_lookalike(x, host) for x in items if x.kind == kind]
        rendered = [o for o in overlays if o is not None]
        assert len(rendered) >= 0.8 * len(overlays), kind
        for overlay in rendered:
            shares = [share for _, share in overlay.layers]
            assert min(share.min() for share in shares) >= -1e-5
            assert overlay.coverage.max() <= 1 + 1e-5
            assert overlay.coverage.max() > 0.02


def test_kinds_lie_where_they_belong(drawn):
    host, items = drawn
    for x in items:
        overlay = render_lookalike(x, host)
        if overlay is None:
            continue
        filled, tissue = overlay.coverage > 0, host.tissue[overlay.box]
        bone = np.isin(tissue, BONE)
        assert x.kind in IN_BONE or not bone[filled].any(), x.kind
        if x.kind not in (*ON_SKIN, *THROUGH_SKIN):
            assert (host.soft[overlay.box] | bone)[filled].all(), x.kind
        at = tuple(np.clip((np.array(x.centre) / host.spacing).astype(int), 0, np.array(host.tissue.shape) - 1))
        if x.kind == "phlebolith":
            assert host.depth_mm[at] > 7
        if x.kind == "ossicle":
            assert host.bone_mm[at] < 11
        if x.kind == "bowel":
            assert host.region[at] == Region.ABDOMEN
        if x.kind == "implant":
            assert host.bone_mm[at] < 4
        if x.kind == "cartilage":
            assert host.region[at] == Region.CHEST
        if x.kind in ON_SKIN:
            assert abs(np.hypot(x.centre[0] - 55, x.centre[1] - 55) - 50) < 2.5


def chest():
    """A slab of lung, ribs, muscle, fat and skin along y, 60 x 80 x 60 mm."""
    edges = [(0, Tissue.LUNG), (30, Tissue.MUSCLE), (48, Tissue.FAT), (74, Tissue.SKIN), (76, Tissue.AIR)]
    column = np.zeros(80, np.uint8)
    for start, code in edges:
        column[start:] = code
    tissue = np.broadcast_to(column[:, None], (60, 80, 60)).copy()
    tissue[:20, 34:42, 20:30] = Tissue.CORTEX
    tissue[40:44, 36:40, 40:44] = Tissue.DENSE  # in the wall
    tissue[40:44, 70:73, 40:44] = Tissue.DENSE  # in the subcutis
    return build_host(tissue, SPACING)


def test_cartilage_turns_into_bone_between_ribs_of_scans():
    host = chest()
    wall = chest_wall(host)
    assert wall[30, 32:52, 30].all()
    assert not wall[:, 57:].any()  # farther from the lung
    assert not chest_wall(replace(host, tissue=np.where(host.tissue == Tissue.LUNG, Tissue.GAS, host.tissue))).any()
    items = [x for s in range(300) for x in in_scan(host, s) if x.kind == "cartilage"]
    assert len(items) > 10
    for x in items:
        at = tuple((np.array(x.centre) / SPACING).astype(int))
        assert wall[at]
        assert host.bone_mm[at] < 16
    stone = [x.hu["STONE"] for x in items]
    assert min(stone) >= 200
    assert max(stone) <= 1400


def test_what_is_dense_between_ribs_is_learnt_as_none_and_elsewhere_not_at_all():
    host = chest()
    hu = np.select(
        [host.tissue == code for code in (Tissue.LUNG, Tissue.AIR, Tissue.FAT)], [-850.0, -1000.0, -100.0], 50.0
    )
    hu = np.where(np.isin(host.tissue, (Tissue.CORTEX, Tissue.DENSE)), 500.0, hu).astype(np.float32)
    levels = {"background": hu, "depth_mm": host.depth_mm, "muscle_mm": host.muscle_mm, "bone_mm": host.bone_mm}
    sample = {"image": hu[None], "tissue": host.tissue[None], **{key: value[None] for key, value in levels.items()}}
    label = InsertCalcinosisd(SPACING, probability=0, lookalikes=0).set_random_state(0)(sample)["label"].numpy()[0]
    assert (label[40:44, 70:73, 40:44] == IGNORE).all()
    assert (label == IGNORE).sum() == 4 * 3 * 4


def test_sizes_and_ct_numbers_are_as_stated(drawn):
    radius = {k: [x.radius for x in drawn[1] if x.kind == k] for k in KINDS_IN_SCANS}
    assert min(radius["phlebolith"]) >= 1  # 2 to 6 mm across
    assert max(radius["phlebolith"]) <= 3
    ossicles = [x for x in drawn[1] if x.kind == "ossicle"]
    assert all(1 <= x.wall <= 2 for x in ossicles)
    assert all(109 <= x.hu["TRABECULA"] <= 357 for x in ossicles)
    assert all(x.hu["METAL"] > 3071 for x in drawn[1] if x.kind in ("clip", "implant"))


@pytest.mark.parametrize("spacing", [SPACING, (1.5, 1.5, 1.5), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize("flat", [1.0, 0.5])
def test_an_ellipsoid_and_its_shell_have_their_volume(spacing, flat):
    host = build_host(np.full([round(40 / s) for s in spacing], Tissue.FAT, np.uint8), spacing)
    ball = item(radius=6.0, wall=1.5, flat=flat, hu={"CORTEX": 700.0, "TRABECULA": 200.0}, axis=(0.6, 0.0, 0.8))
    overlay = render_lookalike(ball, host)
    volume = overlay.coverage.sum() * np.prod(spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.04)
    if flat == 1:
        core = overlay.layers[1][1].sum() * np.prod(spacing)
        assert core == pytest.approx(4 / 3 * np.pi * 4.5**3, rel=0.05)


@pytest.mark.parametrize("radius", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8)])
def test_a_tube_has_its_volume_thin_or_thick(radius, axis):
    host = build_host(np.full((60, 40, 60), Tissue.FAT, np.uint8), SPACING)
    tube = item(kind="contrast", centre=(30.0, 20.2, 30.3), radius=radius, wall=radius, length=36.0, axis=axis)
    volume = render_lookalike(tube, host).coverage.sum()
    assert volume == pytest.approx(np.pi * radius**2 * (36 + 4 / 3 * radius), rel=0.08)  # with round ends


def test_a_broken_wall_has_gaps():
    host = build_host(np.full((40, 40, 80), Tissue.FAT, np.uint8), SPACING)
    wall = item(kind="vessel_wall", centre=(20.0, 20.0, 40.0), radius=3.0, wall=1.0, length=60.0)
    wall = replace(wall, hu={"STONE": 600.0, "BLOOD": 40.0})
    whole = render_lookalike(wall, host).coverage.sum()
    broken = [render_lookalike(replace(wall, broken=0.5, seed=s), host) for s in range(12)]
    assert np.mean([b.coverage.sum() / whole for b in broken if b is not None]) == pytest.approx(0.5, abs=0.15)


def test_what_lies_outside_the_grid_renders_to_nothing():
    host = build_host(np.full((30, 30, 30), Tissue.FAT, np.uint8), SPACING)
    for length in (0.0, 20.0):
        assert render_lookalike(item(centre=(90.0, 20.0, 20.0), length=length), host) is None


def test_same_seed_same_look_alikes(drawn):
    host = drawn[0]
    assert in_scan(host, 3) == in_scan(host, 3)
    assert {x.kind for s in range(200) for x in sample_lookalikes(host, np.random.default_rng(s))} == set(KINDS)
    empty = build_host(np.full((20, 20, 20), Tissue.CORTEX, np.uint8), SPACING)
    assert sample_lookalikes(empty, np.random.default_rng(0)) == ()


@pytest.mark.parametrize("kind", ["phlebolith", "ossicle", "line", "hub", "implant", *AMBIGUOUS])
def test_the_transform_teaches_none_as_positive_and_ignores_the_ambiguous(kind, monkeypatch):
    host = limb()
    hu = np.select([host.tissue == Tissue.AIR, host.tissue == Tissue.FAT], [-1000.0, -100.0], 50.0)
    hu[host.tissue == Tissue.CORTEX] = 900
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    sample = {"image": hu.astype(np.float32)[None], **host_arrays(hu.astype(np.float32), SPACING)}
    items = [x for s in range(120) for x in in_scan(host, s) if x.kind == kind][:1]
    monkeypatch.setattr(insert, "sample_lookalikes", lambda *_, **__: tuple(items))
    transform = InsertCalcinosisd(SPACING, probability=0, lookalikes=1).set_random_state(0)
    before = (sample["tissue"][0] == Tissue.DENSE) * np.uint8(IGNORE)
    result = transform(sample)
    label, change = result["label"].numpy()[0], result["image"].numpy()[0] - sample["image"][0]
    assert np.abs(change).max() > 60
    assert not (label == 1).any()
    assert ((label == IGNORE) & (before == 0)).any() == (kind in AMBIGUOUS)
    if kind in AMBIGUOUS:
        dense = ndimage.binary_erosion(change > 150)
        assert (label[dense] == IGNORE).all()


def test_metal_in_bone_is_seen_there_and_bone_stays_bone(monkeypatch):
    host = limb()
    hu = np.select([host.tissue == Tissue.AIR, host.tissue == Tissue.FAT], [-1000.0, -100.0], 50.0).astype(np.float32)
    hu[host.tissue == Tissue.CORTEX] = 900
    pin = item(kind="implant", centre=(64.0, 55.0, 40.0), radius=1.5, length=30.0, axis=(1.0, 0.0, 0.0))
    pin = replace(pin, hu={"METAL": 6000.0})
    sample = {"image": hu[None], **host_arrays(hu, SPACING)}
    bone = sample["tissue"][0] == Tissue.CORTEX
    monkeypatch.setattr(insert, "sample_lookalikes", lambda *_, **__: (pin,))
    result = InsertCalcinosisd(SPACING, probability=0, lookalikes=1, skeleton=True).set_random_state(0)(sample)
    image, label = result["image"].numpy()[0], result["label"].numpy()[0]
    assert image[55, 55, 40] > 2500  # in the middle of the bone
    assert image[72, 55, 40] > 2500  # and beside it
    assert (label[bone] == SKELETON).all()
    assert not (label == 1).any()
    assert np.array_equal(image[:, :, :30], hu[:, :, :30])


def test_no_deposit_is_drawn_into_a_look_alike(monkeypatch):
    host = limb()
    hu = np.select([host.tissue == Tissue.AIR, host.tissue == Tissue.FAT], [-1000.0, -100.0], 50.0).astype(np.float32)
    stone = item(centre=(55.0, 93.0, 40.0), radius=7.0, wall=7.0)
    monkeypatch.setattr(insert, "sample_lookalikes", lambda *_, **__: (stone,))
    inside = render_lookalike(stone, host)
    transform = InsertCalcinosisd(SPACING, probability=1, lookalikes=1).set_random_state(0)
    sample = {"image": hu[None], **host_arrays(hu, SPACING)}
    for _ in range(6):
        label = transform(sample)["label"].numpy()[0]
        assert not (label[inside.box][inside.coverage > 0.5] == 1).any()
