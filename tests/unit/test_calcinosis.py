"""Deposits: what is drawn follows its priors, and what is rendered is what was drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import cc3d
import numpy as np
import pytest
from scipy import ndimage, stats

from jdm_seg.synthesis.anatomy.host import build_host
from jdm_seg.synthesis.anatomy.tissue import Region, Side, Tissue
from jdm_seg.synthesis.deposits.calcinosis import PATTERNS, Deposit, Priors, render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.fields import layer_share
from jdm_seg.synthesis.deposits.priors import OFF_BONE_MM
from jdm_seg.synthesis.deposits.sites import JOINTS

SPACING = (1.0, 1.0, 1.0)
LAYERS = ("plaque", "sheet", "band", "net")


def deposit(**changes):
    base = Deposit("nodule", (20.0, 30.0, 20.0), radius=6, thickness=2, level=0, calcium=400, texture=0, seed=4)
    if changes.get("pattern") in LAYERS:
        base = replace(base, width=6.0)
    return replace(base, **changes)


def fat_block(shape=(40, 40, 40), spacing=SPACING):
    """A block of fat with a muscle half below the middle of y and air around."""
    tissue = np.full(shape, Tissue.FAT, np.uint8)
    tissue[:, : shape[1] // 2] = Tissue.MUSCLE
    for axis in range(3):
        np.moveaxis(tissue, axis, 0)[[0, -1]] = Tissue.AIR
    return build_host(tissue, spacing)


def two_limbs():
    """A right and a left column of bone, muscle and fat; along z each of the fifteen regions in turn. 3 mm."""
    x, y = np.meshgrid(np.arange(28) - 13.5, np.arange(28) - 13.5, indexing="ij")
    r = 3 * np.hypot(x, y)
    column = np.select([r < 7, r < 26, r < 38, r < 40], [Tissue.CORTEX, Tissue.MUSCLE, Tissue.FAT, Tissue.SKIN], 0)
    tissue = np.repeat(np.concatenate([column, column])[..., None], 75, axis=2).astype(np.uint8)
    host = build_host(tissue, (3.0, 3.0, 3.0))
    region = np.broadcast_to(1 + np.arange(75) // 5, tissue.shape).astype(np.uint8)
    side = np.where(np.arange(56) < 28, Side.LEFT, Side.RIGHT).astype(np.uint8)[:, None, None]
    return replace(host, region=region, side=np.broadcast_to(side, tissue.shape))


@pytest.fixture(scope="module")
def drawn():
    """The deposits of 500 positive scans."""
    host = two_limbs()
    return [sample_deposits(host, np.random.default_rng((7, number))) for number in range(500)]


@pytest.fixture(scope="module")
def first_drawn(drawn):
    """Those of them that mirror no other."""
    return [[d for d in scan if d.mirrors is None] for scan in drawn]


# --- what is drawn ---


def test_counts_are_overdispersed_as_in_the_priors(first_drawn):
    counts = np.array([len(scan) for scan in first_drawn])
    assert counts.min() >= 1
    assert counts.mean() == pytest.approx(6.3, abs=0.8)
    # a negative binomial has a variance of mean + mean² / dispersion; every scan has one more than it
    more = counts - 1
    assert more.mean() ** 2 / (more.var() - more.mean()) == pytest.approx(1.1, abs=0.35)


def test_four_of_five_scans_mix_patterns(drawn):
    assert np.mean([len({d.pattern for d in scan}) > 1 for scan in drawn]) == pytest.approx(0.80, abs=0.05)


def test_patterns_follow_their_weights(first_drawn):
    patterns = [d.pattern for scan in first_drawn for d in scan]
    for pattern, weight in zip(PATTERNS, Priors().weights, strict=True):
        assert patterns.count(pattern) / len(patterns) == pytest.approx(weight, abs=0.035), pattern


def test_nodules_have_log_normal_volumes(first_drawn):
    logs = np.log([4 / 3 * np.pi * d.radius**3 for scan in first_drawn for d in scan if d.pattern == "nodule"])
    assert np.exp(np.median(logs)) == pytest.approx(210, rel=0.2)
    assert logs.std() == pytest.approx(1.5, abs=0.15)
    assert stats.kstest(logs, stats.norm(np.log(210), 1.5).cdf).pvalue > 0.01


def test_calcium_is_log_uniform(first_drawn):
    logs = np.log([d.calcium for scan in first_drawn for d in scan])
    assert stats.kstest(logs, stats.uniform(np.log(70), np.log(1100 / 70)).cdf).pvalue > 0.01
    cores = [d.core for scan in first_drawn for d in scan]
    assert np.mean(np.array(cores) > 0) == pytest.approx(0.2, abs=0.03)
    assert max(cores) > 2800


def test_sites_follow_their_weights(first_drawn):
    """Periarticular ones lie at joints, whatever the weights."""
    sites = Priors().sites
    regions = [d.region for scan in first_drawn for d in scan if d.pattern != "periarticular"]
    for name, weight in sites.items():
        assert regions.count(name) / len(regions) == pytest.approx(weight / sum(sites.values()), abs=0.025), name
    joints = {d.region for scan in first_drawn for d in scan if d.pattern == "periarticular"}
    assert joints <= {joint.name for joint in JOINTS}


def test_partners_lie_on_the_other_side_of_the_same_region(drawn):
    chances = {True: [], False: []}
    host, away = two_limbs(), []
    middle = 28 * 3.0
    for scan in drawn:
        mirrored = {d.mirrors for d in scan}
        for number, each in enumerate(scan, start=1):
            if each.mirrors is None:
                chances[each.pattern in LAYERS].append(number in mirrored)
                continue
            twin = scan[each.mirrors - 1]
            assert (twin.pattern, twin.region) == (each.pattern, each.region)
            assert (twin.centre[0] - middle) * (each.centre[0] - middle) < 0
            reflected = np.array([2 * middle - twin.centre[0], *twin.centre[1:]])
            away.append(np.linalg.norm(reflected - each.centre))
    assert np.mean(chances[True]) == pytest.approx(0.6, abs=0.05)
    assert np.mean(chances[False]) == pytest.approx(0.3, abs=0.05)
    assert np.median(away) < 10  # a region is 15 mm long and 80 mm wide
    assert np.quantile(away, 0.95) < 25
    without_sides = replace(host, side=None)
    assert all(d.mirrors is None for s in range(5) for d in sample_deposits(without_sides, np.random.default_rng(s)))


def test_patterns_are_centred_where_they_belong(drawn):
    host = two_limbs()
    for scan in drawn[:200]:
        for each in scan:
            at = tuple((np.array(each.centre) / 3).astype(int))
            assert host.soft[at]
            if each.pattern in ("plaque", "net"):
                assert host.tissue[at] in (Tissue.SKIN, Tissue.FAT)
            if each.pattern in ("sheet", "band"):
                assert abs(host.muscle_mm[at]) <= 3
                assert host.bone_mm[at] > OFF_BONE_MM
            if each.pattern == "periarticular":
                assert host.bone_mm[at] < 9
            assert Region(host.region[at]).name == each.region


def test_sheets_lie_on_muscle_and_not_on_bone():
    """A leg whose bone lies in muscle, and touches the subcutis as a shin does: fascia is where muscle meets fat."""
    x, y = np.meshgrid(np.arange(80) - 39.5, np.arange(80) - 39.5, indexing="ij")
    r, bone = np.hypot(x, y), np.hypot(x - 14, y) < 12
    column = np.select([r < 24, r < 34, r < 36], [Tissue.MUSCLE, Tissue.FAT, Tissue.SKIN], 0)
    column[bone] = Tissue.CORTEX
    host = build_host(np.repeat(column[..., None], 40, axis=2).astype(np.uint8), SPACING)
    at = tuple(s * (n - 0.5) for s, n in zip(SPACING, (63.0, 40.0, 20.0), strict=True))  # in the fat before the shin
    sheet = deposit(pattern="sheet", centre=at, radius=60, width=60.0, thickness=2, level=0.0, fill=1.0)
    filled = render_deposits((sheet,), host).label == 1
    assert filled.sum() > 500
    assert host.bone_mm[filled].min() > OFF_BONE_MM
    radius = np.broadcast_to(r[..., None], filled.shape)[filled]
    assert np.abs(radius - 24).max() < 3  # none where muscle meets bone


def test_same_seed_same_deposits_and_a_record_replays_them():
    host = two_limbs()
    first, second = (sample_deposits(host, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert sample_deposits(host, np.random.default_rng(8)) != first
    record = json.loads(json.dumps([asdict(d) for d in first]))
    read = tuple(Deposit(**{k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}) for d in record)
    assert read == first
    a, b = render_deposits(first, host), render_deposits(read, host)
    assert (a.occupancy == b.occupancy).all()
    assert (a.calcium == b.calcium).all()


def test_a_host_without_soft_tissue_gets_none():
    host = build_host(np.full((20, 20, 20), Tissue.CORTEX, np.uint8), SPACING)
    assert sample_deposits(host, np.random.default_rng(0)) == ()


def test_priors_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="expected count_mean to be at least 1, but got 0"):
        Priors(count_mean=0)
    with pytest.raises(ValueError, match="expected weights of 7 patterns, but got 2"):
        Priors(weights=(0.5, 0.5))


# --- what is rendered ---


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_fills_soft_tissue_only_and_follows_its_label_rule(pattern):
    host = fat_block()
    centre = (20.0, {"plaque": 34.0, "sheet": 20.0, "band": 20.0}.get(pattern, 29.0), 20.0)
    item = deposit(pattern=pattern, centre=centre, level=5.0 if pattern == "plaque" else 0.0, radius=8)
    calcinosis = render_deposits((item,), host)
    assert calcinosis.label.sum() > 5
    assert ((calcinosis.occupancy >= 0) & (calcinosis.occupancy <= 1 + 1e-5)).all()
    assert ((calcinosis.occupancy >= 0.5) == (calcinosis.label == 1)).all()
    assert ((calcinosis.instances > 0) == (calcinosis.label == 1)).all()
    assert (calcinosis.calcium[calcinosis.occupancy == 0] == 0).all()


def test_bone_and_air_hold_nothing(drawn):
    host = two_limbs()
    for scan in drawn[:40]:
        rendered = render_deposits(scan, host)
        assert not rendered.occupancy[~host.soft].any()
        assert not rendered.calcium[~host.soft].any()
        assert rendered.occupancy.max() <= 1 + 1e-5
        outside = np.ones(host.tissue.shape, bool)
        for box in rendered.boxes:
            if box is not None:
                outside[box] = False
        assert not rendered.occupancy[outside].any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (2.0, 2.0, 2.0), (0.7, 0.9, 5.0)])
@pytest.mark.parametrize("fill", [1.0, 0.5])
def test_nodules_have_the_volume_that_was_drawn(spacing, fill):
    tissue = np.full([round(60 / s) for s in spacing], Tissue.FAT, np.uint8)
    host = build_host(tissue, spacing)
    ratios = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        radius = float(np.exp(rng.uniform(np.log(1.0), np.log(12.0))))
        item = deposit(centre=tuple(rng.uniform(28, 32, 3)), radius=radius, seed=seed, fill=fill)
        measured = render_deposits((item,), host).occupancy.sum() * np.prod(spacing)
        ratios.append(measured / (4 / 3 * np.pi * radius**3))
    # grains are as many as chance has it in a small nodule; a solid one is what it is
    assert np.mean(ratios) == pytest.approx(1, abs=0.03 if fill == 1 else 0.1)
    if fill == 1:
        assert np.abs(np.array(ratios) - 1).max() < 0.12


@pytest.mark.parametrize("pattern", ["nodule", "periarticular", "tumoral"])
def test_occupancy_is_the_share_of_a_voxel_that_is_inside(pattern):
    """Against counting the points of a grid six times as fine, yes or no each."""
    parts = 6
    errors = []
    for seed in range(3):
        item = deposit(pattern=pattern, radius=9.0 if pattern == "tumoral" else 5.0, thickness=3.0, seed=seed)
        item = replace(item, centre=(20.3, 20.6, 19.9), thickness=1.0 if pattern == "tumoral" else 3.0)
        coarse = build_host(np.full((20, 20, 20), Tissue.FAT, np.uint8), (2.0, 2.0, 2.0))
        fine = build_host(np.full((20 * parts,) * 3, Tissue.FAT, np.uint8), (2.0 / parts,) * 3)
        counted = render_deposits((item,), fine).occupancy >= 0.5
        counted = counted.reshape(20, parts, 20, parts, 20, parts).mean(axis=(1, 3, 5))
        got = render_deposits((item,), coarse).occupancy
        errors.append(np.abs(got - counted)[(got > 0) | (counted > 0)].mean())
        assert got.sum() == pytest.approx(counted.sum(), rel=0.05)
    assert np.mean(errors) < 0.03


def test_a_layer_thinner_than_a_voxel_fills_its_share():
    distance = np.linspace(-4, 4, 801, dtype=np.float32)
    for thickness in (0.3, 1.0, 3.0):
        for width in (0.5, 1.0, 2.0):
            assert layer_share(distance, thickness, width).sum() * 0.01 == pytest.approx(thickness, rel=0.02)
            assert layer_share(distance, thickness, width).max() == pytest.approx(min(1, thickness / width), rel=0.01)


@pytest.mark.parametrize("thickness", [0.7, 2.0])
@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_a_sheet_is_as_thick_as_drawn(step, thickness):
    tissue = np.full((round(60 / step),) * 3, Tissue.FAT, np.uint8)
    tissue[: round(30 / step)] = Tissue.MUSCLE
    host = build_host(tissue, (step, step, step))
    middle = slice(round(25 / step), round(35 / step))
    found = []
    for seed in range(12):  # the thickness varies along a sheet; its mean does not
        sheet = deposit(pattern="sheet", centre=(30.0,) * 3, radius=25, width=22.0, thickness=thickness, seed=seed)
        found.append(render_deposits((sheet,), host).occupancy.sum(axis=0)[middle, middle].mean() * step)
    assert np.mean(found) == pytest.approx(thickness, rel=0.1)


@pytest.mark.parametrize(
    "spacing", [(0.5, 0.5, 0.5), (1.0, 1.0, 3.0), (1.5, 1.5, 1.5), (1.5, 5.0, 1.5), (2.0, 2.0, 2.0)]
)
def test_sheets_lie_on_the_muscle_surface_at_every_spacing(spacing):
    tissue = np.full([round(60 / s) for s in spacing], Tissue.FAT, np.uint8)
    surface = tissue.shape[0] // 2
    tissue[:surface] = Tissue.MUSCLE
    host = build_host(tissue, spacing)
    sheet = deposit(pattern="sheet", centre=(30.0,) * 3, radius=20, width=15.0, thickness=1.5)
    filled = render_deposits((sheet,), host).occupancy
    x = (np.arange(tissue.shape[0]) + 0.5) * spacing[0]
    profile = filled.sum(axis=(1, 2))
    assert np.average(x, weights=profile) == pytest.approx(surface * spacing[0], abs=0.35)
    assert np.ptp(x[profile > 0.02 * profile.max()]) <= 1.5 * 1.5 + 2 * max(spacing)


def test_a_sheet_is_long_and_its_extent_as_drawn():
    host = fat_block((60, 60, 60))
    sheet = deposit(pattern="sheet", centre=(30.0,) * 3, radius=16, width=7.0, thickness=3.0)
    filled = np.argwhere(render_deposits((sheet,), host).label)
    across, through, along = np.ptp(filled, axis=0)
    assert 22 < along < 46
    assert 10 < across < along
    assert through <= 6


def test_a_net_is_lace_in_the_subcutis():
    host = fat_block((60, 60, 60))
    net = deposit(pattern="net", centre=(30.0, 45.0, 30.0), radius=25, width=20.0, thickness=1.2, grain_mm=9.0)
    rendered = render_deposits((net,), host)
    filled = rendered.occupancy > 0.2
    assert (host.muscle_mm[filled] > 0).all()
    hull = ndimage.binary_closing(filled, iterations=6)
    assert 0.05 < rendered.occupancy[hull].mean() < 0.4
    # strands hang together, and meshes are open
    assert cc3d.statistics(cc3d.connected_components(filled))["voxel_counts"][1:].max() > 0.5 * filled.sum()


def test_a_plaque_follows_the_skin():
    host = fat_block()
    plaque = deposit(pattern="plaque", centre=(20.0, 36.0, 20.0), radius=10, width=7.0, level=3.0, thickness=1.5)
    filled = render_deposits((plaque,), host).occupancy
    depth = np.average(host.depth_mm, weights=filled)
    assert depth == pytest.approx(3.0, abs=0.4)


@pytest.mark.parametrize("down", [(0.0, -1.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)])
def test_liquid_stands_level_over_its_sediment(down):
    host = replace(build_host(np.full((60,) * 3, Tissue.FAT, np.uint8), SPACING), down=down)
    mass = deposit(pattern="tumoral", centre=(30.0,) * 3, radius=22, thickness=1.0, fluid_level=0.5, calcium=800)
    rendered = render_deposits((mass,), host)
    axis, sign = int(np.argmax(np.abs(down))), -np.sign(sum(down))
    height = sign * np.moveaxis(np.broadcast_to(np.arange(60.0), (60,) * 3), -1, axis)
    liquid, sediment = rendered.fluid > 0.9, (rendered.occupancy > 0.9) & (rendered.fluid < 0.05)
    assert liquid.sum() > 500
    assert rendered.calcium[liquid].mean() < 100 < 600 < rendered.calcium[sediment].mean()
    level = []
    parts = cc3d.connected_components(liquid, connectivity=6)
    for number in range(1, int(parts.max()) + 1):
        inside = parts == number
        if inside.sum() < 150:
            continue
        lowest = np.where(inside, height, np.inf).min(axis=axis)
        lowest = lowest[np.isfinite(lowest)]
        level.append(np.mean(np.abs(lowest - lowest.min()) <= 1))
    assert np.median(level) > 0.55  # the rest stands on the walls of the locule
    # the same mass has its liquid where up is
    assert (height[liquid].mean() - height[rendered.occupancy > 0.9].mean()) > 2


def test_masses_have_lucent_septa():
    host = build_host(np.full((60,) * 3, Tissue.FAT, np.uint8), SPACING)
    masses = [deposit(pattern="tumoral", centre=(30.0,) * 3, radius=20, thickness=t, seed=3) for t in (0.0, 1.2)]
    without, parted = (render_deposits((mass,), host).occupancy for mass in masses)
    inner = ndimage.binary_erosion(without > 0.99, iterations=3)
    assert without[inner].mean() > 0.99
    assert 0.4 < parted[inner].mean() < 0.97
    assert parted[inner].min() < 0.4


def test_cores_are_denser_than_the_rest_and_texture_keeps_the_mean():
    host = build_host(np.full((40,) * 3, Tissue.FAT, np.uint8), SPACING)
    core = render_deposits((deposit(centre=(20.0,) * 3, radius=12, core=2900.0),), host)
    full = core.occupancy > 0.999
    assert core.calcium[20, 20, 20] > 2500
    assert np.median(core.calcium[full]) < 2000
    uneven = []
    for seed in range(12):
        item = render_deposits((deposit(centre=(20.0,) * 3, radius=12, texture=0.4, seed=seed),), host)
        uneven.append(item.calcium[item.occupancy > 0.999])
    assert np.log(uneven[0]).std() == pytest.approx(0.4, rel=0.2)
    assert np.mean([values.mean() for values in uneven]) == pytest.approx(400, rel=0.06)


def test_a_voxel_belongs_to_the_deposit_that_fills_most_of_it():
    host = build_host(np.full((40,) * 3, Tissue.FAT, np.uint8), SPACING)
    pair = (deposit(centre=(14.0, 20.0, 20.0)), deposit(centre=(26.0, 20.0, 20.0), seed=9))
    rendered = render_deposits(pair, host)
    alone = np.stack([render_deposits((each,), host).occupancy for each in pair])
    np.testing.assert_array_equal(rendered.occupancy, alone.max(axis=0))
    apart = alone[0] != alone[1]
    assert (rendered.dominant[apart] == alone.argmax(axis=0)[apart] + 1).all()
    assert set(np.unique(rendered.instances)) == {0, 1, 2}
