"""Deposits: what is drawn follows its priors, and what is rendered has the volume, shape and place that was drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.synthesis.calcinosis import PATTERNS, Deposit, Priors, render_deposits, sample_deposits
from jdm_seg.synthesis.fields import Noise, Walls, axes_of, blur_box, layer_share, sub_voxel_values
from jdm_seg.synthesis.host import Host, build_host
from jdm_seg.synthesis.sites import JOINTS, draw_pool, fits
from jdm_seg.synthesis.tissue import Region, Side, Tissue

SPACING = (1.0, 1.0, 1.0)


def block(shape=(60, 60, 60), spacing=SPACING):
    """Fat above a muscle half, a rod of bone in the muscle, air around."""
    tissue = np.full(shape, Tissue.FAT, np.uint8)
    tissue[:, : shape[1] // 2] = Tissue.MUSCLE
    tissue[shape[0] // 6 : shape[0] // 4, shape[1] // 6 : shape[1] // 4] = Tissue.CORTEX
    for axis in range(3):
        np.moveaxis(tissue, axis, 0)[[0, -1]] = Tissue.AIR
    return build_host(tissue, spacing)


def uniform(shape=(48, 48, 48), spacing=SPACING):
    """Nothing but fat: room for a deposit to be measured in."""
    far = np.full(shape, 50, np.float32)
    return Host(np.full(shape, Tissue.FAT, np.uint8), spacing, far, far, far)


def deposit(**changes):
    base = Deposit("nodule", (24.0, 24.0, 24.0), radius=6, thickness=2, level=0, calcium=400, texture=0, seed=4)
    return replace(base, **changes)


def placed(pattern):
    """A deposit of each pattern where :func:`block` has room for it."""
    centre = {"plaque": (30.0, 54.0, 30.0), "sheet": (30.0, 30.0, 30.0), "band": (30.0, 30.0, 30.0)}
    level = {"plaque": 5.0}.get(pattern, 0.0)
    width = {"plaque": 8.0, "sheet": 9.0, "band": 4.0, "net": 9.0}.get(pattern, 0.0)
    return deposit(pattern=pattern, centre=centre.get(pattern, (30.0, 44.0, 30.0)), level=level, radius=10, width=width)


@pytest.mark.parametrize("fill", [1.0, 0.6])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_fills_soft_tissue_only_and_follows_its_label_rule(pattern, fill):
    host = block()
    calcinosis = render_deposits((replace(placed(pattern), fill=fill),), host)
    assert calcinosis.label.sum() > 5
    assert (calcinosis.occupancy[~host.soft] == 0).all()
    assert 0 <= calcinosis.occupancy.min() <= calcinosis.occupancy.max() <= 1 + 1e-6
    assert ((calcinosis.occupancy >= 0.5) == (calcinosis.label == 1)).all()
    assert ((calcinosis.instances > 0) == (calcinosis.label == 1)).all()
    assert (calcinosis.calcium[calcinosis.occupancy == 0] == 0).all()
    assert (calcinosis.occupancy > 0)[calcinosis.boxes[0]].sum() == (calcinosis.occupancy > 0).sum()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (1.0, 1.0, 3.0), (0.7, 0.9, 5.0)])
@pytest.mark.parametrize("radius", [1.0, 2.0, 4.0, 9.0])
def test_a_nodule_has_the_volume_that_was_drawn(spacing, radius):
    """Stretch and waves change the outline, not the volume; the mean over seeds is within 2 %, each within 6 %."""
    host = uniform(tuple(round(48 / s) for s in spacing), spacing)
    ratios = []
    for seed in range(6):
        nodule = deposit(radius=radius, seed=seed, centre=(23.7 + 0.1 * seed, 24.0, 24.2))
        filled = render_deposits((nodule,), host).occupancy.sum() * np.prod(spacing)
        ratios.append(filled / (4 / 3 * np.pi * radius**3))
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
    assert np.ptp(ratios) < 0.06


def test_a_granular_nodule_has_the_mineral_that_was_drawn():
    host = uniform()
    ratios = []
    for seed in range(12):
        nodule = deposit(radius=6, seed=seed, fill=0.5, grain_mm=1.2)
        ratios.append(render_deposits((nodule,), host).occupancy.sum() / (4 / 3 * np.pi * 216))
    assert np.mean(ratios) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize("pattern", ["nodule", "periarticular", "tumoral"])
def test_shares_of_voxels_agree_with_brute_force(pattern, spacing):
    """The same deposit on a grid six times as fine along x and y, counted: the truth of partial volume."""
    split = (6, 6, round(6 * spacing[2] / spacing[0]))
    shape = tuple(round(36 / s) for s in spacing)
    fine = tuple(s / n for s, n in zip(spacing, split, strict=True))
    mass = pattern == "tumoral"
    lump = deposit(pattern=pattern, radius=12 if mass else 5, thickness=0.8 if mass else 3, centre=(18.0, 18.3, 17.6))
    coarse = render_deposits((lump,), uniform(shape, spacing)).occupancy
    counted = render_deposits((lump,), uniform(tuple(n * k for n, k in zip(shape, split, strict=True)), fine))
    x, y, z = shape
    truth = (counted.occupancy >= 0.5).reshape(x, split[0], y, split[1], z, split[2]).mean(axis=(1, 3, 5))
    touched = (coarse > 0) | (truth > 0)
    assert coarse.sum() == pytest.approx(truth.sum(), rel=0.03 if pattern == "periarticular" else 0.02)
    # septa thinner than a voxel are placed to within a part of it
    assert np.abs(coarse - truth)[touched].mean() < (0.08 if mass else 0.02)


def test_a_sheet_follows_the_muscle_surface():
    host = block()
    sheet = deposit(pattern="sheet", centre=(30.0, 30.0, 30.0), radius=12, width=9, thickness=2)
    rendered = render_deposits((sheet,), host)
    assert np.abs(host.muscle_mm[rendered.label == 1]).max() <= 2.5
    extent = np.ptp(np.argwhere(rendered.label), axis=0)
    assert extent[0] > 10
    assert extent[2] > 12
    assert extent[1] <= 5


@pytest.mark.parametrize(
    "spacing", [(0.5, 0.5, 0.5), (1.0, 1.0, 3.0), (1.5, 1.5, 1.5), (1.5, 5.0, 1.5), (2.0, 2.0, 2.0)]
)
def test_sheets_are_centred_on_the_muscle_surface_at_every_spacing(spacing):
    shape = tuple(round(60 / s) for s in spacing)
    tissue = np.full(shape, Tissue.FAT, np.uint8)
    tissue[: shape[0] // 2] = Tissue.MUSCLE
    host = build_host(tissue, spacing)
    pool = draw_pool(host, np.random.default_rng(0))
    where = pool.index[fits(pool, "sheet", spacing), 0]
    assert set(where) >= {shape[0] // 2 - 1, shape[0] // 2}
    assert np.abs((where + 0.5) * spacing[0] - shape[0] // 2 * spacing[0]).max() < 3


@pytest.mark.parametrize("thickness", [0.5, 2.0])
@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_a_sheet_is_as_thick_as_asked(step, thickness):
    tissue = np.full((round(60 / step),) * 3, Tissue.FAT, np.uint8)
    tissue[: round(30 / step)] = Tissue.MUSCLE
    host = build_host(tissue, (step, step, step))
    thicknesses = []
    for seed in range(10):  # the thickness varies along a sheet; its mean does not
        sheet = deposit(pattern="sheet", centre=(30.0, 30.0, 30.0), radius=28, width=28, thickness=thickness, seed=seed)
        columns = render_deposits((sheet,), host).occupancy.sum(axis=0) * step
        middle = slice(round(22 / step), round(38 / step))
        thicknesses.append(columns[middle, middle].mean())
    assert np.mean(thicknesses) == pytest.approx(thickness, rel=0.12)


def test_a_net_stays_in_the_subcutis_and_is_lace():
    host = block((80, 80, 80))
    net = deposit(pattern="net", centre=(40.0, 60.0, 40.0), radius=25, width=25, thickness=1.2, grain_mm=8)
    rendered = render_deposits((net,), host)
    assert (host.tissue[rendered.occupancy > 0] == Tissue.FAT).all()
    middle = rendered.occupancy[30:50, 50:70, 30:50]
    assert 0.08 < middle.mean() < 0.35
    assert (middle == 0).mean() > 0.25  # meshes are open
    assert ndimage.label(middle > 0.2, np.ones((3, 3, 3)))[0].max() < 12  # and strands hang together


def test_a_fluid_level_is_flat_and_follows_gravity():
    host = replace(uniform((90, 90, 90)), down=(1.0, 0.0, 0.0))
    mass = deposit(pattern="tumoral", centre=(45.0, 45.0, 45.0), radius=30, thickness=0.6, fluid_level=0.5)
    rendered = render_deposits((mass,), host)
    assert rendered.fluid is not None
    liquid = rendered.fluid > 0.9
    sediment = (rendered.occupancy > 0.99) & (rendered.fluid < 0.05) & (rendered.calcium > 300)
    assert liquid.sum() > 200
    concentration = rendered.calcium[liquid] / rendered.occupancy[liquid]
    assert 10 < concentration.min() <= concentration.max() < 90  # 20 to 100 HU at 120 kV
    # along gravity (x grows) liquid gives way to sediment within a few voxels; the other way round only where the
    # sediment of a locule lies on the septum above another one
    sinking = liquid[:-5] & sediment[5:]
    rising = sediment[:-5] & liquid[5:]
    assert sinking.sum() > 200
    assert rising.sum() < 0.3 * sinking.sum()
    upright = render_deposits((mass,), replace(host, down=(0.0, -1.0, 0.0)))
    assert ndimage.center_of_mass(rendered.fluid)[0] < ndimage.center_of_mass(upright.fluid)[0] - 1
    assert ndimage.center_of_mass(upright.fluid)[1] > ndimage.center_of_mass(rendered.fluid)[1] + 1


def test_no_fluid_is_no_array():
    assert render_deposits((deposit(),), uniform()).fluid is None


def test_a_core_reaches_the_density_asked_and_never_more_than_apatite():
    rendered = render_deposits((deposit(radius=8, core=3000.0, calcium=900, texture=0.5),), uniform())
    assert rendered.calcium.max() == pytest.approx(3000, rel=0.02)
    dense = render_deposits((deposit(radius=8, calcium=3000, texture=0.5),), uniform())
    assert dense.calcium.max() <= 3160


def test_overlapping_deposits_keep_their_numbers():
    first, second = deposit(radius=6), deposit(radius=4, centre=(31.0, 24.0, 24.0), seed=9)
    rendered = render_deposits((first, second), uniform())
    assert rendered.dominant[24, 24, 24] == 1
    assert rendered.dominant[33, 24, 24] == 2
    assert rendered.occupancy.max() <= 1 + 1e-6


def test_a_deposit_beyond_the_grid_fills_nothing():
    rendered = render_deposits((deposit(centre=(500.0, 0.0, 0.0)),), uniform())
    assert rendered.occupancy.sum() == 0
    assert rendered.boxes == (None,)


def test_same_seed_same_deposits_and_a_record_replays_them():
    host = block()
    first, second = (sample_deposits(host, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert sample_deposits(host, np.random.default_rng(8)) != first
    read = [
        {**d, "centre": tuple(d["centre"]), "axis": tuple(d["axis"])}
        for d in json.loads(json.dumps([asdict(d) for d in first]))
    ]
    again = render_deposits(tuple(Deposit(**d) for d in read), host)
    assert (again.calcium == render_deposits(first, host).calcium).all()


def test_a_host_without_soft_tissue_gets_nothing():
    bone = np.full((10, 10, 10), Tissue.CORTEX, np.uint8)
    assert sample_deposits(build_host(bone, SPACING), np.random.default_rng(0)) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"count_mean": 0.5}, "count_mean to be at least 1"), ({"weights": (1.0,)}, "weights of 7")],
)
def test_impossible_priors_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Priors(**changes)


# --- statistics of 500 drawn cases ---

CASES = 500


def everywhere_host():
    """Every region on both sides, and every pattern possible in each: right is x above the middle."""
    shape = (60, 45, 64)
    rng = np.random.default_rng(0)
    tissue = np.where(np.arange(shape[1])[None, :, None] % 9 < 5, Tissue.FAT, Tissue.MUSCLE)
    tissue = np.broadcast_to(tissue, shape).astype(np.uint8)
    region = np.broadcast_to(np.arange(shape[2]) // 4, shape).astype(np.uint8)  # 0 is NONE, 1..15 as coded
    side = np.where(np.arange(shape[0])[:, None, None] < 30, Side.LEFT, Side.RIGHT)
    depth = rng.uniform(2.5, 4.5, shape).astype(np.float32)
    muscle = np.where(tissue == Tissue.FAT, rng.uniform(0.6, 0.9, shape), rng.uniform(-0.9, 0, shape))
    near_bone = np.full(shape, 4, np.float32)
    return Host(
        tissue,
        SPACING,
        depth,
        muscle.astype(np.float32),
        near_bone,
        np.ascontiguousarray(region),
        np.broadcast_to(side, shape).astype(np.uint8),
    )


@pytest.fixture(scope="module")
def drawn():
    host = everywhere_host()
    return [sample_deposits(host, np.random.default_rng((11, case))) for case in range(CASES)]


@pytest.fixture(scope="module")
def primary(drawn):
    """Without mirrored partners."""
    return [[d for d in case if d.mirrors is None] for case in drawn]


def test_counts_follow_the_negative_binomial(primary):
    counts = np.array([len(case) for case in primary])
    priors = Priors()
    mean = priors.count_mean
    assert counts.min() == 1
    assert counts.mean() == pytest.approx(mean, rel=0.1)
    variance = (mean - 1) + (mean - 1) ** 2 / priors.count_dispersion
    assert counts.var() == pytest.approx(variance, rel=0.3)
    assert (counts == 1).mean() == pytest.approx(priors.single_chance, abs=0.04)


def test_four_of_five_scans_mix_patterns(primary):
    mixed = np.mean([len({d.pattern for d in case}) > 1 for case in primary])
    assert mixed == pytest.approx(0.8, abs=0.05)


def test_patterns_follow_their_weights(primary):
    patterns = [d.pattern for case in primary for d in case]
    shares = np.array([patterns.count(name) / len(patterns) for name in PATTERNS])
    assert np.abs(shares - Priors().weights).max() < 0.045


def test_nodules_are_log_normal_in_volume(primary):
    volumes = np.array([4 / 3 * np.pi * d.radius**3 for case in primary for d in case if d.pattern == "nodule"])
    assert len(volumes) > 300
    assert np.exp(np.mean(np.log(volumes))) == pytest.approx(210, rel=0.2)
    assert np.std(np.log(volumes)) == pytest.approx(1.5, rel=0.1)


def test_calcium_is_log_uniform(primary):
    calcium = np.array([d.calcium for case in primary for d in case])
    place = (np.log(calcium) - np.log(70)) / (np.log(1100) - np.log(70))
    assert 0 <= place.min() <= place.max() <= 1
    assert np.histogram(place, 4, (0, 1))[0] / len(place) == pytest.approx(0.25, abs=0.03)
    cores = np.array([d.core for case in primary for d in case])
    assert (cores > 0).mean() == pytest.approx(Priors().core_share, abs=0.03)


def test_sites_follow_their_weights(primary):
    everywhere = [d for case in primary for d in case if d.pattern != "periarticular"]
    weights = Priors().sites
    for name, weight in weights.items():
        share = np.mean([d.region == name for d in everywhere])
        assert share == pytest.approx(weight / sum(weights.values()), abs=0.025), name
    joints = {region.name for region in JOINTS}
    assert {d.region for case in primary for d in case if d.pattern == "periarticular"} <= joints


def test_partners_lie_mirrored_on_the_other_side(drawn):
    layers = {"plaque", "sheet", "band", "net"}
    counts = {True: [0, 0], False: [0, 0]}
    for case in drawn:
        partners = {d.mirrors for d in case} - {None}
        for number, each in enumerate(case, start=1):
            if each.mirrors is None:
                counts[each.pattern in layers][0] += 1
                counts[each.pattern in layers][1] += number in partners
            else:
                model = case[each.mirrors - 1]
                assert each.pattern == model.pattern
                assert each.region == model.region
                assert (each.centre[0] < 30) != (model.centre[0] < 30)
                # mirrored in x about the middle, the same along the body: as near as the pool has voxels
                assert abs(each.centre[0] - (60 - model.centre[0])) < 9
    assert counts[True][1] / counts[True][0] == pytest.approx(Priors().mirrored, abs=0.04)
    assert counts[False][1] / counts[False][0] == pytest.approx(Priors().mirrored_nodule, abs=0.04)


def test_a_region_without_the_other_side_gets_no_partner():
    host = everywhere_host()
    half = replace(host, side=np.full(host.tissue.shape, Side.RIGHT, np.uint8))
    assert all(d.mirrors is None for case in range(20) for d in sample_deposits(half, np.random.default_rng(case)))


def test_regions_are_unknown_where_the_host_knows_none():
    assert {d.region for d in sample_deposits(block(), np.random.default_rng(1))} == {Region.NONE.name}


# --- the machinery ---


def test_noise_is_the_same_on_every_grid_and_of_unit_variance():
    noise = Noise(3, 4.0)
    box = (slice(10, 74), slice(0, 60), slice(5, 60))
    values = noise.on(axes_of(box, SPACING))
    assert values.mean() == pytest.approx(0, abs=0.15)
    assert values.std() == pytest.approx(1, abs=0.12)
    some = (np.array([0, 5, 63]), np.array([1, 50, 59]), np.array([3, 7, 50]))
    assert noise.at(axes_of(box, SPACING), some).tolist() == values[some].tolist()
    part = noise.on(axes_of((slice(20, 30), slice(4, 9), slice(5, 9)), SPACING))
    assert (part == values[10:20, 4:9, 0:4]).all()
    neighbours = np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]
    far = np.corrcoef(values[:-16].ravel(), values[16:].ravel())[0, 1]
    assert neighbours > 0.9
    assert abs(far) < 0.2


def test_walls_are_as_far_apart_as_asked():
    """A line meets 1.46 walls a cell width in a Poisson-Voronoi foam (stereology), fewer in a more regular one."""
    step = 10.0 * 4 / 64  # as fine as the table
    axes = axes_of((slice(0, 640), slice(0, 1), slice(0, 1)), (step, step, step))
    line = (np.arange(640), np.zeros(640, int), np.zeros(640, int))
    crossings = []
    for seed in range(20):
        values = Walls(seed, 10.0).at(axes, line)
        assert values.min() >= 0
        minima = (values[1:-1] < values[:-2]) & (values[1:-1] <= values[2:]) & (values[1:-1] < 0.7 * step)
        crossings.append(minima.sum() / (640 * step) * 10)
    assert 1.1 < np.mean(crossings) < 1.55


@pytest.mark.parametrize("thickness", [0.3, 1.0, 2.5])
def test_a_layer_keeps_its_volume_whatever_the_voxel(thickness):
    distance = np.linspace(-6, 6, 4001, dtype=np.float32)
    for width in (0.5, 1.0, 3.0):
        assert np.trapezoid(layer_share(distance, thickness, width), distance) == pytest.approx(thickness, rel=0.01)


def test_sub_voxels_are_interpolated_linearly():
    values = np.random.default_rng(0).random((6, 7, 8), np.float32)
    voxels = (np.array([2, 0, 5]), np.array([3, 6, 0]), np.array([4, 0, 7]))
    found = sub_voxel_values(values, voxels, (2, 3, 2))
    offsets = np.stack(np.meshgrid((-0.25, 0.25), (-1 / 3, 0, 1 / 3), (-0.25, 0.25), indexing="ij"), -1).reshape(-1, 3)
    for row, voxel in zip(found, np.transpose(voxels), strict=True):
        points = (voxel + offsets).T
        assert row == pytest.approx(ndimage.map_coordinates(values, points, order=1, mode="nearest"), abs=1e-5)
    assert sub_voxel_values(values[::2, :, ::2], (np.array([1]),) * 3, (1, 1, 1)) == values[2, 1, 2]


def test_blurring_a_box_is_blurring_the_whole():
    """Against SciPy, at the border of the grid and inside it."""
    grid = np.zeros((50, 40, 70), np.float32)
    grid[0:4, 20:25, 30:36] = np.random.default_rng(0).random((4, 5, 6))
    fwhm, spacing = (3.0, 2.0, 4.0), (1.0, 1.0, 1.5)
    box = (slice(0, 14), slice(10, 35), slice(20, 46))
    blurred = blur_box(grid[box], box, grid.shape, fwhm, spacing)
    sigma = [f / 2.3548 / s for f, s in zip(fwhm, spacing, strict=True)]
    radius = [int(np.ceil(3 * s + 0.5)) for s in sigma]
    assert np.abs(blurred - ndimage.gaussian_filter(grid, sigma, mode="nearest", radius=radius)[box]).max() < 1e-6
