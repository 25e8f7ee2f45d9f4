"""Bodies: solids against geometry, volumes of organs against reference people, and what a skeleton must show."""

from dataclasses import replace

import cc3d
import numpy as np
import pytest

from jdm_seg.synthesis.anatomy.body import Plan, sample_body
from jdm_seg.synthesis.anatomy.canvas import Canvas, Paint, Warp
from jdm_seg.synthesis.anatomy.scene import Scene, render_scene, sample_scene
from jdm_seg.synthesis.anatomy.shapes import Capsule, Ellipsoid, Frame, Loft, look_along
from jdm_seg.synthesis.anatomy.surroundings import EXTRAS, Surroundings, draw_extras
from jdm_seg.synthesis.anatomy.tissue import BONE, OUTSIDE, Region, Side, Tissue

STRAIGHT = Warp(((), (), ()))
BARE = Surroundings(table=None, sheet=0.0, clothes=None, cast=None, extras=(), seed=1)


def canvas(size=60, spacing=1.0):
    first = -0.5 * spacing * (size - 1)
    return Canvas((first,) * 3, (size,) * 3, (spacing,) * 3, STRAIGHT)


def filled_mm3(drawn, tissue, spacing=1.0):
    """Volume of a tissue, partial volume counted."""
    table = np.zeros(256, np.float32)
    table[tissue] = 1
    return float(drawn.map.mix(table).sum()) * spacing**3


@pytest.mark.parametrize(
    ("solid", "volume"),
    [
        (Ellipsoid((0.3, 0.1, -0.4), (8, 8, 8)), 4 / 3 * np.pi * 8**3),
        (Ellipsoid((0, 0, 0), (12, 6, 9), look_along((0, 0, 0), (1, 1, 1))), 4 / 3 * np.pi * 12 * 6 * 9),
        (Capsule((-9, 0, 0), (9, 2, 1), 4, 4), np.pi * 4**2 * np.sqrt(329) + 4 / 3 * np.pi * 4**3),
        # half as thick along z
        (Capsule((-9, 0, 0), (9, 0, 0), 4, 4, ((0, 0, 1), 2.0)), (np.pi * 4**2 * 18 + 4 / 3 * np.pi * 4**3) / 2),
        (
            Loft(Frame((0, 0, -10), ((1, 0, 0), (0, 1, 0), (0, 0, 1))), (0, 20), (8, 8), (5, 5), cap=0.0),
            np.pi * 8 * 5 * 20,
        ),
    ],
)
def test_a_painted_solid_has_its_volume(solid, volume):
    drawn = canvas()
    drawn.paint(Paint(solid, Tissue.MUSCLE, over=(Tissue.AIR,)))
    assert filled_mm3(drawn, Tissue.MUSCLE) == pytest.approx(volume, rel=0.02)
    low, high = solid.bounds
    where = np.argwhere(drawn.first == Tissue.MUSCLE) - 29.5
    assert (where.min(axis=0) >= low - 0.5).all()
    assert (where.max(axis=0) <= high + 0.5).all()


@pytest.mark.parametrize("thickness", [0.4, 1.0, 3.0])
def test_a_thin_layer_keeps_its_thickness(thickness):
    drawn = canvas()
    box = tuple(slice(0, 60) for _ in range(3))
    x, y, _ = drawn.coordinates(box)
    plane = np.broadcast_to(0.6 * x + 0.8 * y - 0.27, drawn.shape)
    drawn.cover(box, plane.astype(np.float32), Tissue.FASCIA, thickness=thickness)
    # the plane's area inside the cube: its cross-section with the square of 60 mm, times 60 mm
    area = 60 * 60 / 0.8
    assert filled_mm3(drawn, Tissue.FASCIA) == pytest.approx(area * thickness, rel=0.05)


def test_pieces_of_one_tissue_leave_no_seam():
    drawn = canvas()
    for x in (-4.2, 4.2):
        drawn.paint(
            Paint(Capsule((x - 4.2, 0, 0), (x + 4.2, 0, 0), 5, 5), Tissue.CORTEX, over=(Tissue.AIR, Tissue.CORTEX))
        )
    whole = canvas()
    whole.paint(Paint(Capsule((-8.4, 0, 0), (8.4, 0, 0), 5, 5), Tissue.CORTEX, over=(Tissue.AIR,)))
    assert filled_mm3(drawn, Tissue.CORTEX) == pytest.approx(filled_mm3(whole, Tissue.CORTEX), rel=0.01)


def whole_body(seed, spacing=4.0, **changes):
    scene = sample_scene(np.random.default_rng(seed), "whole")
    down = {"arm": 0.15, "arm_forward": 0.0, "elbow": 0.1, "knee": 0.05}
    body = replace(
        scene.body, right=replace(scene.body.right, **down), left=replace(scene.body.left, **down), **changes
    )
    return Scene(body, BARE, None, "whole"), render_scene(Scene(body, BARE, None, "whole"), (spacing,) * 3)


def volumes_ml(rendered):
    voxel = np.prod(rendered.host.spacing) / 1000
    return np.bincount(rendered.host.tissue.ravel(), minlength=256) * voxel


@pytest.mark.parametrize("age", [5.0, 10.0, 15.0, 35.0])
def test_bodies_weigh_what_their_height_and_index_say(age):
    table = {5.0: (1100, 15.4), 10.0: (1380, 16.7), 15.0: (1650, 20.0), 35.0: (1700, 23.0)}
    height, bmi = table[age]
    _, rendered = whole_body(int(age), age=age, height=height, bmi=bmi, fat=1.0, wasting=0.0, sex="male")
    inside = ~np.isin(rendered.host.tissue, OUTSIDE)
    litres = inside.sum() * np.prod(rendered.host.spacing) / 1e6
    kilograms = bmi * (height / 1000) ** 2
    # a body's density is near that of water, with some litres of air in its lungs
    assert litres == pytest.approx(kilograms, rel=0.12)
    volume = volumes_ml(rendered) / 1000
    # ICRP publication 89, reference values: skeleton about 10 % of the mass at 1.3 to 1.4 kg/l, muscle 30 to 40 %
    assert 0.055 < volume[list(BONE)].sum() / litres < 0.11
    assert 0.22 < volume[Tissue.MUSCLE] / litres < 0.5
    assert 0.1 < volume[Tissue.FAT] / litres < 0.42


def test_an_adults_organs_have_the_size_of_a_reference_man():
    _, rendered = whole_body(4, spacing=3.0, age=35.0, height=1760, bmi=23.5, fat=1.0, sex="male")
    ml = volumes_ml(rendered)
    # ICRP publication 89: liver 1800 g, kidneys 310 g, brain 1450 g; lungs hold 3 to 5 litres of air and tissue
    assert ml[Tissue.LIVER] == pytest.approx(1700, rel=0.35)
    assert ml[Tissue.KIDNEY] == pytest.approx(300, rel=0.4)
    assert ml[Tissue.BRAIN] == pytest.approx(1450, rel=0.35)
    assert 2800 < ml[Tissue.LUNG] < 5500


@pytest.fixture(scope="module")
def child():
    """A child of eight."""
    return whole_body(2, spacing=2.5, age=8.0, height=1270, bmi=16.0, fat=1.0)


def test_a_whole_body_has_every_region_on_both_sides(child):
    _, rendered = child
    host = rendered.host
    inside = host.depth_mm > 0
    for region in (r for r in Region if r):
        for side in (Side.RIGHT, Side.LEFT):
            assert ((host.region == region) & (host.side == side) & inside).sum() > 50, (region.name, side.name)
    x = rendered.origin[0] + np.arange(host.tissue.shape[0]) * host.spacing[0]
    at = np.broadcast_to(x[:, None, None], host.tissue.shape)
    thigh = host.region == Region.THIGH
    assert at[thigh & (host.side == Side.RIGHT)].min() > -10  # +x is the patient's right
    height = np.arange(host.tissue.shape[2])
    middle = {r: np.average(height, weights=(host.region == r).sum(axis=(0, 1))) for r in Region if r}
    order = [Region.FOOT, Region.LOWER_LEG, Region.KNEE, Region.THIGH, Region.HIP, Region.ABDOMEN, Region.CHEST]
    assert all(middle[a] < middle[b] for a, b in zip(order, [*order[1:], Region.HEAD], strict=True))


def test_every_organ_is_there_and_bone_lies_inside_the_body(child):
    _, rendered = child
    seen = set(np.unique(rendered.host.tissue))
    wanted = set(Tissue) - {Tissue.DENSE, Tissue.METAL, Tissue.PLASTIC, Tissue.STONE, Tissue.CONTRAST}
    wanted -= {Tissue.TABLE, Tissue.CLOTH, Tissue.CAST}
    assert not {t.name for t in wanted} - {Tissue(t).name for t in seen}
    bone = np.isin(rendered.host.tissue, BONE)
    assert (rendered.host.depth_mm[bone] > 0).mean() > 0.998


def test_the_body_is_covered_by_skin_then_fat_then_muscle(child):
    _, rendered = child
    host = rendered.host
    limb = np.isin(host.region, (Region.THIGH, Region.LOWER_LEG, Region.UPPER_ARM))
    depth = {t: np.median(host.depth_mm[limb & (host.tissue == t)]) for t in (Tissue.SKIN, Tissue.FAT, Tissue.MUSCLE)}
    assert depth[Tissue.SKIN] < depth[Tissue.FAT] < depth[Tissue.MUSCLE]
    muscle = limb & (host.tissue == Tissue.MUSCLE)
    assert (host.muscle_mm[muscle] < 1.5).mean() > 0.99
    assert (host.muscle_mm[limb & (host.tissue == Tissue.FAT)] > -1.5).mean() > 0.95


def knee_bones(age):
    """Bones in a field of view around one knee, counted as connected parts of more than 0.2 mL."""
    body = replace(sample_body(np.random.default_rng(5)), age=age, height=1300.0, bmi=17.0, prone=False)
    centre = Plan(body).legs[Side.RIGHT].shank.frame.origin
    rendered = render_scene(Scene(body, BARE, centre, "knee"), (1.0, 1.0, 1.0), (110, 120, 130))
    parts = cc3d.connected_components(np.isin(rendered.host.tissue, BONE).astype(np.uint8), connectivity=6)
    return int((np.bincount(parts.ravel())[1:] > 200).sum())


def test_growth_plates_part_a_childs_bones_and_close_in_adults():
    child, adult = knee_bones(8.0), knee_bones(30.0)
    # femur and tibia come apart into shaft and end, the fibula's head and the patella stand alone
    assert child >= adult + 2


def test_sides_are_alike_but_not_mirror_images(child):
    _, rendered = child
    tissue = rendered.host.tissue
    middle = round(-rendered.origin[0] / rendered.host.spacing[0])
    reach = min(middle, tissue.shape[0] - middle) - 1
    right, left = tissue[middle + 1 : middle + reach], tissue[middle - 1 : middle - reach : -1]
    both = (right != Tissue.AIR) & (left != Tissue.AIR)
    assert 0.4 < (right == left)[both].mean() < 0.97


def test_a_part_of_the_body_is_cut_from_the_same_body():
    scene, whole = whole_body(3, spacing=3.0, age=9.0)
    corner = (int(whole.host.tissue.shape[0] * 0.2), 4, 120)
    shape = (48, 40, 40)
    first = np.add(whole.origin, np.multiply(corner, 3.0))
    centre = tuple(first + 0.5 * 3.0 * (np.array(shape) - 1))
    part = render_scene(replace(scene, centre=centre), (3.0, 3.0, 3.0), shape)
    cut = whole.host.tissue[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))]
    assert (cut != Tissue.AIR).mean() > 0.1
    assert (part.host.tissue == cut).mean() > 0.999


def test_thick_slices_are_drawn_in_layers():
    scene = sample_scene(np.random.default_rng(1), "limb")
    axial = render_scene(scene, (1.0, 1.0, 5.0), (60, 60, 8))
    coronal = render_scene(scene, (1.5, 6.0, 1.5), (60, 10, 60))
    assert (axial.axis, axial.split, axial.tissue.first.shape) == (2, 5, (60, 60, 40))
    assert (coronal.axis, coronal.split, coronal.tissue.first.shape) == (1, 4, (60, 40, 60))
    assert coronal.host.tissue.shape == (60, 10, 60)


def test_surroundings_never_replace_the_body_but_where_they_enter_it():
    scene, bare = whole_body(6, spacing=4.0, age=12.0)
    around = Surroundings(5.0, 1.5, (0.8, 4.0), (Region.FOREARM, Side.LEFT), ("electrodes", "buttons"), 3)
    dressed = render_scene(replace(scene, surroundings=around), (4.0, 4.0, 4.0))
    tissue, before = dressed.tissue, bare.tissue.first
    for code in (Tissue.TABLE, Tissue.CLOTH, Tissue.CAST):
        here = (tissue.first == code) | (tissue.second == code)
        assert here.any()
        assert np.isin(before[here], (*OUTSIDE, Tissue.SKIN, Tissue.FAT)).all()  # lying flattens the back
    cast = tissue.first == Tissue.CAST
    assert set(np.unique(dressed.host.side[cast])) == {Side.LEFT}


def test_lines_tubes_and_metal_are_seen():
    scene, bare = whole_body(9, spacing=3.0, age=14.0)
    dressed = render_scene(replace(scene, surroundings=replace(BARE, extras=tuple(EXTRAS))), (3.0, 3.0, 3.0))
    for code in (Tissue.METAL, Tissue.PLASTIC):
        there, before = ((r.tissue.first == code) | (r.tissue.second == code) for r in (dressed, bare))
        assert there.sum() > 100
        assert not before.any()


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_every_extra_lies_at_the_body(name):
    body = replace(sample_body(np.random.default_rng(9)), age=14.0)
    plan = Plan(body)
    steps = draw_extras(plan, replace(BARE, extras=(name,)))
    assert steps
    bounds = [part.solid.bounds for part in plan.parts]
    low, high = np.min([b[0] for b in bounds], axis=0) - 40, np.max([b[1] for b in bounds], axis=0) + 40
    for step in steps:
        assert (step.solid.bounds[0] > low).all()
        assert (step.solid.bounds[1] < high).all()


def test_a_scene_is_drawn_and_rendered_the_same_again():
    scenes = [sample_scene(np.random.default_rng(8), "trunk") for _ in range(2)]
    assert scenes[0] == scenes[1]
    first, second = (render_scene(s, (3.0, 3.0, 5.0), (60, 50, 12)) for s in scenes)
    for a, b in ((first.tissue.first, second.tissue.first), (first.tissue.share, second.tissue.share)):
        assert np.array_equal(a, b)
    assert np.array_equal(first.host.muscle_mm, second.host.muscle_mm)
