"""STIR physics: signals against the worked table, deposits, oedema, and what a scanner makes of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.cases import read_manifest
from jdm_seg.config import PreprocessConfig
from jdm_seg.physics import FAT_T1_MS, T1_MS, T2_MS
from jdm_seg.synthesis.anatomy.tissue import WHOLE, Tissue, TissueMap
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis, Deposit
from jdm_seg.synthesis.stir.acquisition import acquire_stir, add_deposits, body_signal, sample_stir
from jdm_seg.synthesis.stir.oedema import Oedema, add_oedema
from jdm_seg.synthesis.stir.scan import Readout, complex_noise, read_out, station_places
from jdm_seg.synthesis.stir.signal import fat_null_ti, inversion_recovery, relative_signal, tissue_signals
from jdm_seg.synthesis.stir.slices import Slices
from jdm_seg.transforms import LoadCase
from jdm_seg.volume import read_volume, write_volume

SPACING = (1.5, 5.0, 1.5)
TIMES = {1.5: {"ti": 160.0, "te": 60.0, "tr": 5000.0}, 3.0: {"ti": 220.0, "te": 60.0, "tr": 5000.0}}
NO_OEDEMA = Oedema(0.0, 0.0, 0.0, 30.0, 0.5, 2.5, 5.0)
CLEAN = Readout(snr=1e6, bias=0.0, station_mm=1e6)


def deposit(**changes):
    return replace(Deposit("nodule", (20.0, 30.0, 20.0), 6.0, 2.0, 0.0, 400.0, 0.0, 4), **changes)


def setting(deposits=(), **changes):
    """A scanner and patient without any unevenness: what is left is exact."""
    plain = replace(
        sample_stir(np.random.default_rng(0), deposits, 8.0),
        oedema=NO_OEDEMA,
        inversion_loss=0.0,
        shading=0.0,
        flow_void=0.0,
        uneven=0.0,
        cross_talk=0.0,
        readout=CLEAN,
    )
    return replace(plain, **changes)


def body_of(codes, spacing=SPACING):
    return TissueMap(codes, codes, np.zeros_like(codes), spacing)


def muscle_in_air(shape=(80, 12, 90)):
    codes = np.zeros(shape, np.uint8)
    codes[10:-10, 2:-2, 5:-5] = Tissue.MUSCLE
    return codes


@pytest.mark.parametrize(
    ("substance", "at_1_5", "at_3"),
    [
        ("cortex", 0.00, 0.00),
        ("muscle", 1, 1),
        ("oedema", 3.0, 2.7),
        ("milk_of_calcium", 5.2, 4.4),
        ("fluid", 9.2, 8.8),
        ("blood", 8.7, 8.0),
    ],
)
def test_stir_signals_match_the_worked_table(substance, at_1_5, at_3):
    """TR 5000, TE 60, TI 160 and 220: ratios to muscle as computed independently for the project's dossier."""
    for field, expected in ((1.5, at_1_5), (3.0, at_3)):
        assert relative_signal(substance, field, **TIMES[field]) == pytest.approx(expected, rel=0.1, abs=0.005)


@pytest.mark.parametrize(("field", "t1_fat", "fat", "marrow"), [(1.5, 290, 1.5, 2.0), (3.0, 370, 0.92, 1.1)])
def test_fat_and_marrow_match_the_worked_table(field, t1_fat, fat, marrow):
    """Fat of the tabulated T1, which real scanners do not have, is not nulled; marrow is half of it."""
    times = TIMES[field]
    t2 = T2_MS["fat"][0 if field == 1.5 else 1]
    muscle = inversion_recovery(1.0, T1_MS["muscle"][0 if field == 1.5 else 1], 27 if field == 1.5 else 29, **times)
    assert muscle == pytest.approx(0.071, rel=0.02)
    assert inversion_recovery(1.0, t1_fat, t2, **times) / muscle == pytest.approx(fat, rel=0.1)
    signal, _ = tissue_signals(field, **times, t1_fat=t1_fat, red_marrow=(0.5, 0.5))
    assert abs(signal["MARROW"]) == pytest.approx(marrow, rel=0.1)


def test_fat_is_nulled_at_its_own_inversion_time():
    ti = fat_null_ti(220, 5000)
    assert ti == pytest.approx(220 * np.log(2), rel=0.001)
    assert inversion_recovery(1.0, 220, 165, ti=ti, te=60, tr=5000) < 1e-6
    before, after = (tissue_signals(1.5, ti=ti * factor, te=60, tr=5000, t1_fat=220)[0]["FAT"] for factor in (0.9, 1.1))
    assert before > 0 > after  # water and fat lie on either side of the null


def test_every_tissue_has_a_signal_and_drawn_scans_null_fat():
    rng = np.random.default_rng(0)
    drawn = [sample_stir(rng, (), 8.0) for _ in range(200)]
    for one in drawn:
        assert set(one.signal) == set(one.lost) == {code.name for code in Tissue}
        assert abs(one.ti / fat_null_ti(one.t1_fat, one.tr) - 1) <= 0.1001
        low, high = FAT_T1_MS[one.field_t]
        assert low <= one.t1_fat <= high
        for silent in ("AIR", "CORTEX", "TENDON", "METAL", "STONE", "GAS"):
            assert abs(one.signal[silent]) < 0.15
    assert np.median([abs(one.signal["FAT"]) for one in drawn]) < 0.5
    assert {one.field_t for one in drawn} == {1.5, 3.0}


def test_water_and_residual_fat_cancel_in_a_voxel():
    """Past the null, fat has the other sign: half muscle and half fat is dark, by hand 0.5 - 0.5 * 0.6."""
    codes = np.full((4, 4, 4), Tissue.MUSCLE, np.uint8)
    mixed = TissueMap(codes, np.full_like(codes, Tissue.FAT), np.full_like(codes, WHOLE // 2), SPACING)
    plain = setting()
    recovered = replace(plain, signal={**plain.signal, "FAT": -0.6})
    signal, _ = body_signal(Slices(mixed, 1), recovered, np.random.default_rng(0))
    assert signal == pytest.approx(0.5 - 0.5 * 0.6)


def test_lost_inversion_lets_fat_shine():
    """Half of the inversion lost, by hand: longitudinal magnetisation is 1 - 1.5 exp(-TI/T1) + 0.5 exp(-TR/T1)."""
    ti, te, tr, t1 = 150.0, 60.0, 4000.0, 220.0
    signal, lost = tissue_signals(1.5, ti=ti, te=te, tr=tr, t1_fat=t1)
    part = signal["FAT"] + 0.5 * lost["FAT"]

    def at(t1, t2, inverted):
        return (1 - (1 + inverted) * np.exp(-ti / t1) + inverted * np.exp(-tr / t1)) * np.exp(-te / t2)

    fat, water = at(t1, 165, 0.5), at(856, 27, 0.5)
    muscle = at(856, 27, 1.0)
    assert part == pytest.approx(0.95 * fat / muscle + 0.05 * water / muscle, rel=1e-6)
    assert abs(part) > 3 * abs(signal["FAT"])


def ball_in(codes, phenotype, fluid_level=0.0):
    """A ball of 9 mm in the middle of a grid, half of it liquid where there is a level (front is up)."""
    x, y, z = (np.arange(n) + 0.5 - n / 2 for n in codes.shape)
    r = np.sqrt((x[:, None, None] * 1.5) ** 2 + (y[:, None] * 5) ** 2 + (z * 1.5) ** 2)
    occupancy = np.clip(9.5 - r, 0, 1).astype(np.float32)
    fluid = occupancy * (y[:, None] > 0) if fluid_level else None
    one = deposit(fluid_level=fluid_level)
    calcinosis = Calcinosis(occupancy, 300 * occupancy, (occupancy > 0).astype(np.uint16), (one,), fluid)
    return calcinosis, setting((one,), phenotypes=(phenotype,), fluid=5.0, rim=3.0)


def test_a_void_in_muscle_is_dark_and_as_large_as_it_is():
    codes = np.full((40, 8, 40), Tissue.MUSCLE, np.uint8)
    calcinosis, acquisition = ball_in(codes, "void")
    image, _ = acquire_stir(body_of(codes), calcinosis, acquisition, np.random.default_rng(0))
    assert (image[calcinosis.occupancy == 1] == 0).all()
    assert (image[calcinosis.occupancy == 0] == 200).all()
    assert ((image < 100) == (calcinosis.occupancy > 0.5)).all()


def test_a_void_in_nulled_fat_cannot_be_seen():
    """The contrast trap: the same deposit that is plain in muscle does not show in fat without a signal."""
    codes = np.full((40, 8, 40), Tissue.FAT, np.uint8)
    calcinosis, acquisition = ball_in(codes, "void")
    nulled = replace(
        acquisition, signal={**acquisition.signal, "FAT": 0.0}, readout=Readout(snr=15, bias=0.0, station_mm=1e6)
    )
    image, _ = acquire_stir(body_of(codes), calcinosis, nulled, np.random.default_rng(0))
    inside = calcinosis.occupancy == 1
    assert image[inside].mean() == pytest.approx(image[~inside].mean(), rel=0.1)


def test_a_rim_surrounds_the_void_but_does_not_fill_it():
    codes = np.full((40, 8, 40), Tissue.MUSCLE, np.uint8)
    calcinosis, acquisition = ball_in(codes, "void_rim")
    image, _ = acquire_stir(body_of(codes), calcinosis, acquisition, np.random.default_rng(0))
    shell = ndimage.binary_dilation(calcinosis.occupancy > 0) & (calcinosis.occupancy == 0)
    assert (image[calcinosis.occupancy == 1] == 0).all()
    assert image[shell].mean() > 300
    assert image[0, 0, 0] == 200


def test_a_fluid_deposit_has_no_dark_rim():
    """A voxel half filled with fluid lies between the tissue's signal and the fluid's, by hand: 1 - v + 4.8 v."""
    occupancy = np.array([0, 0.2, 0.45, 0.55, 1], np.float32).reshape(-1, 1, 1)
    calcinosis = Calcinosis(occupancy, occupancy * 100, (occupancy > 0).astype(np.uint16), (deposit(),))
    fluid = setting((deposit(),), phenotypes=("fluid",), fluid=4.8)
    signal = add_deposits(np.ones_like(occupancy), calcinosis, fluid, SPACING)
    assert signal.ravel().tolist() == pytest.approx([1, 1.76, 2.71, 3.09, 4.8])


def test_liquid_is_bright_above_its_level_and_sediment_dark_below():
    codes = np.full((40, 8, 40), Tissue.MUSCLE, np.uint8)
    calcinosis, acquisition = ball_in(codes, "fluid", fluid_level=0.5)
    image, _ = acquire_stir(body_of(codes), calcinosis, acquisition, np.random.default_rng(0))
    inside = calcinosis.occupancy == 1
    front = np.broadcast_to(np.arange(8)[:, None] >= 4, inside.shape)
    assert (image[inside & front] == 1000).all()
    assert (image[inside & ~front] == 0).all()


def test_a_deposit_with_a_level_is_always_fluid():
    deposits = (deposit(fluid_level=0.4), *[deposit() for _ in range(199)])
    drawn = sample_stir(np.random.default_rng(1), deposits, 8.0).phenotypes
    assert drawn[0] == "fluid"
    shares = [np.mean([p == name for p in drawn]) for name in ("void", "void_rim", "fluid")]
    assert shares == pytest.approx([0.55, 0.30, 0.15], abs=0.08)


def test_deposits_that_do_not_belong_to_the_scan_are_refused():
    codes = np.full((10, 4, 10), Tissue.MUSCLE, np.uint8)
    calcinosis, acquisition = ball_in(codes, "void")
    with pytest.raises(ValueError, match="expected a phenotype for each of 1 deposits, but got 0"):
        acquire_stir(body_of(codes), calcinosis, setting(), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"expected deposits of shape \(12, 4, 10\)"):
        acquire_stir(body_of(codes.repeat(2, 0)[:12]), calcinosis, acquisition, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected split to divide the 4 layers"):
        acquire_stir(body_of(codes), None, acquisition, np.random.default_rng(0), split=3)


def limb():
    """A cylinder with skin, fat, muscle and planes of fascia, coronal slices."""
    x, y = (np.arange(100) + 0.5 - 50) * 1.5, (np.arange(24) + 0.5 - 12) * 5
    r = np.hypot(x[:, None], y)
    section = np.select([r < 40, r < 55, r < 57], [Tissue.MUSCLE, Tissue.FAT, Tissue.SKIN], Tissue.AIR).astype(np.uint8)
    section[(np.abs(x) % 20 < 1)[:, None] & (section == Tissue.MUSCLE)] = Tissue.FASCIA
    return np.repeat(section[..., None], 110, axis=2)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"muscle": 0.3}, (Tissue.MUSCLE,)),
        ({"fascia": 0.5}, (Tissue.FASCIA, Tissue.MUSCLE)),
        ({"subcutis": 0.6}, (Tissue.FAT,)),
    ],
)
def test_oedema_is_labelled_where_the_signal_rises(changes, where):
    codes = limb()
    healthy = setting(signal={**setting().signal, "FAT": 0.1, "FASCIA": 0.3})
    ill = replace(healthy, oedema=replace(NO_OEDEMA, **changes))
    before, none = acquire_stir(body_of(codes), None, healthy, np.random.default_rng(2))
    after, oedema = acquire_stir(body_of(codes), None, ill, np.random.default_rng(2))
    assert not none.any()
    assert oedema.dtype == np.uint8
    assert oedema.sum() > 100
    assert set(np.unique(codes[oedema == 1])) <= set(where)
    rise = after.astype(int) - before
    assert rise[oedema == 1].min() > 40
    assert (rise >= 0).all()
    # half of the rise or more is labelled, and what is not is faint
    full = 200 * (NO_OEDEMA.muscle_signal if "muscle" in changes else NO_OEDEMA.fluid_signal)
    assert rise[oedema == 0].max() < 0.36 * full


def test_oedema_of_muscle_covers_the_share_that_was_asked():
    codes = np.full((120, 40, 120), Tissue.MUSCLE, np.uint8)
    body = Slices(body_of(codes, (2.0, 4.0, 2.0)), 1)
    oedema = replace(NO_OEDEMA, muscle=0.3, patch_mm=20.0)
    amounts = [add_oedema(np.ones(codes.shape, np.float32), body, oedema, np.random.default_rng(s)) for s in range(2)]
    assert np.mean(amounts) == pytest.approx(0.3, abs=0.06)
    mirrored = np.corrcoef(amounts[0].ravel(), amounts[0][::-1].ravel())[0, 1]
    alone = add_oedema(np.ones(codes.shape, np.float32), body, replace(oedema, symmetry=0.0), np.random.default_rng(0))
    assert mirrored > 0.5 > 0.2 > np.corrcoef(alone.ravel(), alone[::-1].ravel())[0, 1]


def test_noise_is_rician_and_a_void_never_falls_below_its_floor():
    """In air the magnitude has mean sigma sqrt(pi / 2) and spread sigma sqrt(2 - pi / 2)."""
    codes = muscle_in_air((90, 20, 90))
    readout = Readout(snr=12.0, bias=0.0, station_mm=1e6, matrix=(0.7, 0.9), scale=1200.0)
    image, _ = acquire_stir(body_of(codes), None, setting(readout=readout), np.random.default_rng(0))
    air = ndimage.distance_transform_edt(codes == Tissue.AIR)
    air[:, ~(codes > 0).any(axis=(0, 2))] = 99  # whole slices of air: in the others the body rings
    empty = image[air == 99].astype(float)
    assert empty.mean() == pytest.approx(100 * np.sqrt(np.pi / 2), rel=0.02)
    assert empty.std() == pytest.approx(100 * np.sqrt(2 - np.pi / 2), rel=0.03)
    muscle = image[20:70, 4:-4, 15:75].astype(float)
    assert muscle.std() == pytest.approx(100, rel=0.05)
    occupancy = np.zeros(codes.shape, np.float32)
    occupancy[30:50, 5:15, 30:60] = 1
    calcinosis = Calcinosis(occupancy, 300 * occupancy, (occupancy > 0).astype(np.uint16), (deposit(),))
    void, _ = acquire_stir(
        body_of(codes),
        calcinosis,
        setting((deposit(),), phenotypes=("void",), readout=readout),
        np.random.default_rng(0),
    )
    assert void[34:46, 7:13, 34:56].mean() > 1.2 * 100


def test_parallel_imaging_amplifies_noise_in_the_middle():
    signal = np.zeros((90, 12, 60), np.float32)
    readout = Readout(snr=10.0, bias=0.0, g_factor=1.8, scale=1000.0, station_mm=1e6)
    image = read_out(signal, SPACING, readout, np.random.default_rng(0)).astype(float)
    assert image[40:50].mean() / image[:5].mean() == pytest.approx(1.8, rel=0.05)


def test_stations_cover_the_body_and_step_in_gain():
    readout = Readout(snr=1e6, bias=0.0, station_mm=300.0, overlap_mm=45.0, gains=(1.0, 1.15, 0.95))
    places = station_places(500, 1.5, readout)
    assert places[0].start == 0
    assert places[-1].stop == 500
    assert all(b.start < a.stop - 20 for a, b in pairwise(places))
    signal = np.ones((20, 4, 500), np.float32)
    for blended in (True, False):
        image = read_out(signal, SPACING, replace(readout, blended=blended), np.random.default_rng(0))
        profile = image.mean(axis=(0, 1))
        middles = [profile[(p.start + p.stop) // 2] for p in places]
        assert middles == pytest.approx([200, 230, 190], abs=1)
        steps = np.abs(np.diff(profile))
        assert steps.max() < 5 if blended else steps.max() == pytest.approx(40, abs=2)


def test_a_receive_field_is_smooth_and_each_station_has_its_own():
    readout = Readout(snr=1e6, bias=0.3, station_mm=300.0)
    image = read_out(np.ones((120, 20, 400), np.float32), SPACING, readout, np.random.default_rng(1)).astype(float)
    assert 0.15 < np.log(image).std() < 0.5
    assert np.abs(np.diff(np.log(image), axis=0)).max() < 0.03
    assert image.min() > 0


def test_noise_has_the_grain_of_what_was_acquired():
    """Half of k-space: neighbours along the phase axis share sinc(1/2) of their noise, along the others none."""
    readout = Readout(snr=1.0, bias=0.0, matrix=(0.5, 1.0), phase_axis=2)
    noise = complex_noise((40, 40, 200), readout, np.random.default_rng(0))
    for part in (noise.real, noise.imag):
        assert part.std() == pytest.approx(1, rel=0.03)
        along = np.corrcoef(part[..., 1:].ravel(), part[..., :-1].ravel())[0, 1]
        assert along == pytest.approx(np.sinc(0.5), abs=0.03)
        assert abs(np.corrcoef(part[1:].ravel(), part[:-1].ravel())[0, 1]) < 0.02


def test_a_k_space_that_is_cut_rings_and_a_filter_calms_it():
    signal = np.zeros((128, 2, 40), np.float32)
    signal[40:90] = 1
    cut = Readout(snr=1e6, bias=0.0, matrix=(0.6, 1.0), station_mm=1e6)
    sharp, filtered = (
        read_out(signal, SPACING, replace(cut, filtered=f), np.random.default_rng(0))[:, 0, 20].astype(float)
        for f in (False, True)
    )
    assert sharp[40:90].max() == pytest.approx(200 * 1.09, rel=0.03)  # Gibbs: 9 % beyond an edge
    assert filtered[40:90].max() < 203
    assert np.abs(np.diff(np.sign(np.diff(sharp[45:85])))).sum() > 8  # it swings


def test_ghosts_lie_along_the_phase_axis():
    signal = np.zeros((60, 2, 60), np.float32)
    signal[30, :, 30] = 10
    for axis in (0, 2):
        readout = Readout(snr=1e6, bias=0.0, phase_axis=axis, ghost=0.05, ghost_shift=0.25, station_mm=1e6)
        image = read_out(signal, SPACING, readout, np.random.default_rng(0))[:, 0]
        ghosts = {tuple(int(i) for i in p) for p in np.argwhere(image > 50)}
        shifted = {(15, 30), (45, 30)} if axis == 0 else {(30, 15), (30, 45)}
        assert ghosts == {(30, 30), *shifted}
        assert [image[p] for p in shifted] == [100, 100]


def test_stations_fade_and_bend_at_their_ends_only():
    signal = np.zeros((8, 2, 400), np.float32)
    signal[..., ::10] = 1
    readout = Readout(snr=1e6, bias=0.0, station_mm=330.0, overlap_mm=60.0, blended=False)
    plain, bent = (
        read_out(signal, SPACING, r, np.random.default_rng(0))
        for r in (readout, replace(readout, drift_mm=(2.0, -2.0), fade=0.3))
    )
    first = station_places(400, 1.5, readout)[0]
    third = first.stop // 3
    assert (plain[..., third : 2 * third] == bent[..., third : 2 * third]).all()
    assert (plain != bent).any()


def test_layers_of_a_slice_are_weighed_without_the_gap():
    """Ten layers a slice, a fifth of it gap: what lies in the gap is not seen."""
    codes = np.full((12, 40, 12), Tissue.MUSCLE, np.uint8)
    codes[:, 10:11] = Tissue.CORTEX  # the first tenth of the second slice
    plain = setting(slice_gap=0.2, signal={**setting().signal, "CORTEX": 0.0})
    body = body_of(codes, (1.5, 0.5, 1.5))
    gapped, _ = acquire_stir(body, None, plain, np.random.default_rng(0), split=10)
    whole, _ = acquire_stir(body, None, replace(plain, slice_gap=0.0), np.random.default_rng(0), split=10)
    assert gapped.shape == (12, 4, 12)
    assert gapped[6, :, 6].tolist() == [200, 200, 200, 200]
    assert whole[6, 1, 6] == pytest.approx(200 * (1 - 0.1), abs=6)
    talk, _ = acquire_stir(body_of(muscle_in_air()), None, replace(plain, cross_talk=0.05), np.random.default_rng(0))
    assert talk[40, :3, 40].tolist() == [0, 10, 190]


def test_blood_is_void_where_it_flows_fast():
    codes = np.full((30, 8, 200), Tissue.MUSCLE, np.uint8)
    codes[10:16, 3:5] = Tissue.BLOOD
    bright = setting().signal["BLOOD"]
    for share in (0.3, 0.8):
        signal, _ = body_signal(Slices(body_of(codes), 1), setting(flow_void=share), np.random.default_rng(0))
        blood = signal[codes == Tissue.BLOOD]
        assert (blood < 0.54 * bright).mean() == pytest.approx(share, abs=0.03)
        assert blood.min() == pytest.approx(0.08 * bright)
        assert blood.max() == pytest.approx(bright)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_a_scan_is_replayed_by_its_seed_whatever_its_orientation(slice_axis):
    codes = limb()[:60, :, :70]
    occupancy = np.zeros(codes.shape, np.float32)
    occupancy[25:32, 10:13, 20:30] = 0.9
    deposits = (deposit(),)
    calcinosis = Calcinosis(occupancy, 300 * occupancy, (occupancy > 0).astype(np.uint16), deposits)
    acquisition = sample_stir(np.random.default_rng(3), deposits, 8.0, slice_axis=slice_axis)
    assert acquisition == sample_stir(np.random.default_rng(3), deposits, 8.0, slice_axis=slice_axis)
    assert acquisition.readout.phase_axis != slice_axis
    (image, oedema), (again, oedema_again), (other, _) = (
        acquire_stir(body_of(codes), calcinosis, acquisition, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert image.dtype == np.int16
    assert image.shape == oedema.shape == codes.shape
    assert image.min() >= 0
    assert (image == again).all()
    assert (oedema == oedema_again).all()
    assert (image != other).any()


def test_oedema_is_a_second_class_that_gives_way_to_deposits(tmp_path):
    """A mask of half of the scan becomes class 2, but for deposits and what is ignored."""
    synthesize_dataset(tmp_path, modality="stir", cases=1, seed=3, preset="smoke")
    (case,) = read_manifest(tmp_path).all
    assert case.oedema is not None
    scan = read_volume(case.oedema)
    half = np.zeros(scan.array.shape, np.uint8)
    half[:, : half.shape[1] // 2 + 1] = 1
    write_volume(case.oedema, half, scan)
    settings = PreprocessConfig(modality="stir", spacing=scan.to_canonical().spacing)
    plain, taught = LoadCase(settings)(case)["label"], LoadCase(settings, oedema=True)(case)["label"]
    assert (plain == 1).any()
    assert ((taught == 2) <= (plain == 0)).all()
    assert np.array_equal(taught == 1, plain == 1)
    share = (taught == 2).sum() / (plain == 0).sum()
    assert 0.4 < share < 0.65
