"""Look-alikes: each kind is drawn where it belongs, has the volume and structure of its kind, and spares bone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from jdm_seg.synthesis.host import Host, build_host
from jdm_seg.synthesis.lookalikes import AMBIGUOUS, KINDS, ON_SKIN, LookAlike, sample_lookalikes
from jdm_seg.synthesis.overlay import render_lookalike
from jdm_seg.synthesis.tissue import Region, Tissue

SPACING = (1.0, 1.0, 1.0)


def limb(shape=(90, 90, 90), spacing=SPACING, region=None):
    """A fat block with a muscle core and a rod of bone, air around."""
    tissue = np.full(shape, Tissue.AIR, np.uint8)
    tissue[5:-5, 5:-5] = Tissue.SKIN
    tissue[7:-7, 7:-7] = Tissue.FAT
    tissue[25:-25, 25:-25] = Tissue.MUSCLE
    tissue[40:50, 40:50] = Tissue.CORTEX
    host = build_host(tissue, spacing)
    return host if region is None else replace(host, region=np.full(shape, region, np.uint8))


def fat(shape, spacing):
    far = np.full(shape, 50, np.float32)
    return Host(np.full(shape, Tissue.FAT, np.uint8), spacing, far, far, far)


def item(**changes):
    base = LookAlike(
        kind="ossicle",
        centre=(20.0, 20.0, 20.0),
        radius=6.0,
        wall=1.5,
        length=0.0,
        axis=(0.0, 0.0, 1.0),
        flat=1.0,
        bend=(0.0, 0.0, 0.0),
        broken=0.0,
        hu={"CORTEX": 800.0, "TRABECULA": 220.0},
        seed=3,
    )
    return replace(base, **changes)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize("flat", [1.0, 0.5])
def test_an_ossicle_is_a_shell_around_a_core_of_the_right_volumes(spacing, flat):
    overlay = render_lookalike(item(flat=flat), fat(tuple(round(40 / s) for s in spacing), spacing))
    (shell, outer), (core, inner) = overlay.layers
    assert (shell, core) == (Tissue.CORTEX, Tissue.TRABECULA)
    whole = 4 / 3 * np.pi * 6**3  # of a flat one too: flattening keeps the volume
    assert overlay.coverage.sum() * np.prod(spacing) == pytest.approx(whole, rel=0.03)
    assert overlay.coverage.max() <= 1 + 1e-5
    assert outer.min() >= -1e-6
    if flat == 1:
        assert inner.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * 4.5**3, rel=0.05)


@pytest.mark.parametrize("radius", [0.6, 1.5, 4.0])
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8)])
def test_a_tube_has_the_volume_of_its_cross_section(radius, axis):
    tube = item(kind="contrast", radius=radius, wall=9.0, length=40.0, axis=axis, hu={"CONTRAST": 300.0})
    host, rng = fat((80, 80, 80), SPACING), np.random.default_rng(0)
    volumes = []
    for _ in range(16):  # wherever its axis lies between voxels, it is right on average
        x, y, z = 40 + rng.random(3)
        volumes.append(render_lookalike(replace(tube, centre=(x, y, z)), host).coverage.sum())
    cylinder, ends = np.pi * radius**2 * 40, 4 / 3 * np.pi * radius**3
    assert 0.96 * cylinder < np.mean(volumes) < 1.04 * cylinder + 1.5 * ends


def test_a_line_has_a_lumen_and_crosses_the_skin_but_not_bone():
    host = limb()
    line = item(
        kind="line", centre=(45.0, 10.0, 45.0), radius=2.5, wall=0.8, length=60.0, axis=(0.0, 1.0, 0.0),
        hu={"PLASTIC": 900.0, "GAS": -900.0},
    )  # fmt: skip
    overlay = render_lookalike(line, host)
    outside = host.tissue[overlay.box] == Tissue.AIR
    assert overlay.coverage[outside].max() > 0.5
    assert overlay.coverage[host.tissue[overlay.box] == Tissue.CORTEX].max(initial=0) == 0
    assert overlay.layers[1][1].max() > 0.9  # gas in the middle
    assert (overlay.code[overlay.layers[1][1] > 0.6] == Tissue.GAS).all()


def test_what_lies_inside_leaves_air_alone():
    host = limb()
    vessel = item(kind="contrast", centre=(45.0, 8.0, 45.0), radius=4.0, wall=9.0, length=50.0, hu={"CONTRAST": 300.0})
    overlay = render_lookalike(vessel, host)
    assert overlay.coverage[~host.soft[overlay.box]].max() == 0


def test_a_broken_wall_misses_its_share():
    tube = item(kind="vessel_wall", centre=(40.0, 40.0, 40.0), radius=4.0, wall=1.0, length=70.0)
    tube = replace(tube, hu={"STONE": 700.0, "BLOOD": 40.0})
    host = fat((80, 80, 80), SPACING)
    whole = render_lookalike(tube, host).layers[0][1].sum()
    shares = [render_lookalike(replace(tube, broken=0.5, seed=s), host).layers[0][1].sum() / whole for s in range(12)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_beyond_the_grid_there_is_nothing():
    host = fat((20, 20, 20), SPACING)
    assert render_lookalike(item(centre=(200.0, 0.0, 0.0)), host) is None
    assert render_lookalike(item(centre=(200.0, 0.0, 0.0), length=30.0), host) is None


def test_every_kind_is_drawn_where_it_belongs_and_can_be_rendered():
    seen: dict[str, list[LookAlike]] = {}
    hosts = [limb(), limb(region=Region.HIP), limb(region=Region.ABDOMEN), limb(region=Region.CHEST)]
    for number, host in enumerate(hosts):
        for case in range(120):
            for each in sample_lookalikes(host, np.random.default_rng((number, case)), 3.0):
                seen.setdefault(each.kind, []).append(each)
                overlay = render_lookalike(each, host)
                if overlay is not None:
                    assert overlay.coverage.min() >= 0
                    assert overlay.coverage.max() <= 1 + 1e-5
                    assert overlay.coverage[host.tissue[overlay.box] == Tissue.CORTEX].max(initial=0) == 0
                    assert {t.name for t, _ in overlay.layers} == set(each.hu)
    assert set(seen) == set(KINDS)
    assert set(AMBIGUOUS) <= set(KINDS)
    for each in seen["phlebolith"]:
        assert 1 <= each.radius <= 3  # 2 to 6 mm
    for each in seen["ossicle"]:
        assert 1 <= each.wall <= 2
        assert 109 <= each.hu["TRABECULA"] <= 357  # children's spongy bone
        index = tuple(int(c) for c in each.centre)
        assert 0 < hosts[0].bone_mm[index] < 12
    for each in seen["clip"]:
        assert each.hu["METAL"] > 2500
    assert all(150 <= each.hu["CONTRAST"] <= 500 for kind in ("contrast", "bowel") for each in seen[kind])


def test_a_lead_lies_on_the_skin_flat_against_it():
    host = limb()
    drawn = [
        each
        for case in range(300)
        for each in sample_lookalikes(host, np.random.default_rng(case), 2.0)
        if each.kind in ON_SKIN
    ]
    assert len(drawn) > 10
    for each in drawn:
        x, y, _ = each.centre
        assert min(abs(x - 5), abs(x - 85), abs(y - 5), abs(y - 85)) < 2
    normal = [max(abs(each.axis[0]), abs(each.axis[1])) for each in drawn]
    assert np.median(normal) > 0.8


def test_the_mean_number_is_the_one_asked_for():
    host = limb()
    counts = [len(sample_lookalikes(host, np.random.default_rng(case), 2.5)) for case in range(200)]
    assert min(counts) == 1
    assert np.mean(counts) == pytest.approx(2.5, abs=0.3)


def test_no_soft_tissue_no_lookalike():
    assert sample_lookalikes(build_host(np.zeros((9, 9, 9), np.uint8), SPACING), np.random.default_rng(0)) == ()


def test_a_record_replays_a_lookalike():
    host = limb()
    first = sample_lookalikes(host, np.random.default_rng(5), 2.0)
    for each, row in zip(first, json.loads(json.dumps([asdict(each) for each in first])), strict=True):
        again = LookAlike(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        assert again == each
        one, two = render_lookalike(each, host), render_lookalike(again, host)
        assert (one is None) == (two is None)
        assert one is None or (one.coverage == two.coverage).all()
