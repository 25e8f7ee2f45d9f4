"""Benchmarks: their files, their data, the ignore zone of real scans, the tables, and recorded figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from jdm_seg.baseline import segment_ct
from jdm_seg.benchmark.data import Sources, ignore_zone, plans_of, prepare_data
from jdm_seg.benchmark.records import (
    TOLERANCES,
    compare_with_record,
    figures_of,
    read_record,
    record_path,
    tolerance_of,
    write_record,
)
from jdm_seg.benchmark.run import methods_named, run_benchmark
from jdm_seg.benchmark.spec import Benchmark, Stratum, benchmark_path, benchmarks, read_benchmark
from jdm_seg.benchmark.table import table_lines
from jdm_seg.cases import read_manifest
from jdm_seg.cli import app
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.evaluate import evaluate_folders
from jdm_seg.synthesis.conditions import Conditions
from jdm_seg.volume import Volume, read_volume, write_volume

SMALL = {
    "kind": "phantom",
    "modality": "ct",
    "about": "Two small strata.",
    "seed": 3,
    "strata": [
        {"name": "usual", "cases": 2, "preset": "smoke", "conditions": {"kv": ["100"]}},
        {"name": "noisy", "cases": 1, "preset": "smoke", "conditions": {"kv": ["140"], "noise_hu": [60, 60]}},
    ],
}


def write_yaml(folder: Path, content, name="small") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def cylinder_scan(path: Path, spots=(), *, shape=(40, 40, 20)) -> None:
    """A noisy limb of muscle in air at 2 mm, with bright cubes of 2 voxels a side: ((x, y, z), HU)."""
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    inside = (x - 20) ** 2 + (y - 20) ** 2 < 16**2
    hu = np.where(inside[..., None], 60, -1000) + np.random.default_rng(0).normal(0, 5, shape)
    for (i, j, k), value in spots:
        hu[i : i + 2, j : j + 2, k : k + 2] = value
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    write_volume(path, hu.astype(np.int16), Volume(hu, affine, "scan"))


class TestFiles:
    @pytest.mark.parametrize("name", benchmarks())
    def test_every_shipped_benchmark_is_read(self, name):
        benchmark = read_benchmark(benchmark_path(name))
        assert benchmark.name == name
        assert name.startswith(benchmark.modality)

    def test_the_five_of_the_contract_ship(self):
        assert benchmarks() == ["ct_hybrid", "ct_negative", "ct_phantom", "ct_real", "stir_phantom"]

    @pytest.mark.parametrize("name", benchmarks())
    def test_shipped_records_are_of_the_shipped_definition(self, name):
        path = benchmark_path(name)
        record = read_record(record_path(path))
        if record is not None:
            assert record["definition"] == read_benchmark(path).digest
            for method in record["methods"].values():
                assert {f: e["tolerance"] for f, e in method["figures"].items()} == {
                    f: tolerance_of(f) for f in method["figures"]
                }

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kin": "phantom"}, "kin"),
            ({"kind": "ghost"}, "ghost"),
            ({"strata": []}, "strata for a phantom"),
            ({"strata": [{"name": "a", "cases": 1, "conditions": {"kv": ["90"]}}]}, "expected kv to be some of"),
            ({"strata": [{"name": "a", "cases": 1, "conditions": {"noise_hu": [9, 3]}}]}, "from low to high"),
            ({"strata": [{"name": "a", "cases": 1, "preset": "limbs"}]}, "one of smoke, limb"),
            ({"strata": [{"name": "a", "cases": 0}]}, "at least one case"),
            ({"strata": [{"name": "a", "cases": 1}, {"name": "a", "cases": 1}]}, "every stratum once"),
            ({"protocol": "mine"}, "one of default"),
            ({"cases": 4}, "cases for a hybrid"),
        ],
    )
    def test_a_mistake_is_named(self, tmp_path, change, message):
        with pytest.raises(InputError, match=message):
            read_benchmark(write_yaml(tmp_path, {**SMALL, **change}))

    def test_an_unknown_name_lists_the_known(self):
        with pytest.raises(InputError, match="one of ct_hybrid, ct_negative"):
            benchmark_path("ct_fantom")

    def test_words_do_not_change_the_definition_but_values_do(self, tmp_path):
        first = read_benchmark(write_yaml(tmp_path, SMALL))
        words = read_benchmark(write_yaml(tmp_path, {**SMALL, "about": "Others."}))
        seed = read_benchmark(write_yaml(tmp_path, {**SMALL, "seed": 4}))
        assert first.digest == words.digest != seed.digest


class TestPlans:
    def test_strata_take_turns_and_fewer_cases_are_among_more(self, tmp_path):
        benchmark = read_benchmark(write_yaml(tmp_path, SMALL))
        every = plans_of(benchmark, [])
        assert [plan.case_id for plan in every] == ["usual-00", "noisy-00", "usual-01"]
        assert plans_of(benchmark, [], 2) == every[:2]
        assert len({plan.seed for plan in every}) == 3

    def test_another_stratum_disturbs_none(self, tmp_path):
        more = {**SMALL, "strata": [{"name": "new", "cases": 5}, *SMALL["strata"]]}
        first, second = (
            {plan.case_id: plan.seed for plan in plans_of(read_benchmark(write_yaml(tmp_path, c)), [])}
            for c in (SMALL, more)
        )
        assert {name: second[name] for name in first} == first


class TestIgnoreZone:
    def test_by_hand(self):
        hu = np.full((30, 30, 12), -1000, np.int16)
        hu[3:27, 3:27] = 60
        hu[10, 10, 5] = 300  # the deposit
        hu[20, 20, 5] = 200  # something bright far from it
        reference = hu == 300
        near = reference.copy()
        near[11, 10, 5] = True
        zone = ignore_zone(hu, reference, near, (1.0, 1.0, 1.0), mm=2.0, over=150.0)
        assert not zone[10, 10, 5]
        assert zone[11, 10, 5]
        assert zone[13, 10, 5]  # 2 mm from the wider mask
        assert not zone[14, 10, 5]
        assert zone[8, 10, 5]
        assert not zone[7, 10, 5]
        assert zone[20, 20, 5]
        assert zone[20, 21, 5]  # partial volume
        assert not zone[20, 22, 5]

    def test_no_deposit_and_nothing_bright_is_no_zone(self):
        hu = np.full((20, 20, 8), 50, np.int16)
        empty = np.zeros(hu.shape, bool)
        assert not ignore_zone(hu, empty, empty, (1.0, 1.0, 1.0), mm=3.0, over=150.0).any()


@pytest.fixture(scope="module")
def negative(tmp_path_factory):
    """Two scans without calcinosis: ``a`` with two bright spots, one of them excused; ``b`` clean."""
    folder = tmp_path_factory.mktemp("negative")
    cylinder_scan(folder / "scans/a.nii.gz", [((12, 12, 8), 400), ((26, 26, 8), 400)])
    cylinder_scan(folder / "scans/b.nii.gz")
    zone = np.zeros((40, 40, 20), np.uint8)
    zone[26:28, 26:28, 8:10] = 1
    write_volume(folder / "zones/a.nii.gz", zone, Volume(zone, np.diag([2.0, 2.0, 2.0, 1.0]), "a"))
    return folder


class TestNegative:
    def test_every_lesion_found_is_false(self, negative, tmp_path):
        benchmark = read_benchmark(benchmark_path("ct_negative"))
        methods = methods_named("ct", ["threshold"])
        results = run_benchmark(benchmark, tmp_path / "out", methods, Sources(negative / "scans"))
        figures = results["methods"]["threshold"]["figures"]
        assert figures["lesion_fp"]["mean"] == 1.0  # two in one of two scans
        assert figures["false_positive_volume_ml"]["mean"] == pytest.approx(2 * 8 * 8 / 1000 / 2)
        assert figures["scan_specificity"]["mean"] == 0.5
        assert "| method | false lesions a scan |" in (tmp_path / "out/table.md").read_text()
        zoned = run_benchmark(
            benchmark, tmp_path / "zoned", methods, Sources(negative / "scans", ignore=negative / "zones")
        )
        assert zoned["methods"]["threshold"]["figures"]["lesion_fp"]["mean"] == 0.5
        # the same as evaluate on the same folders, by hand
        again = evaluate_folders(
            tmp_path / "zoned/threshold/predictions", tmp_path / "zoned/data/labels", tmp_path / "e"
        )
        assert again["figures"] == zoned["methods"]["threshold"]["figures"]

    def test_no_scans_says_what_to_give(self, tmp_path):
        result = CliRunner().invoke(app, ["benchmark", "ct_negative", str(tmp_path / "out")])
        assert isinstance(result.exception, CaseNotFoundError)
        assert "--scans" in str(result.exception)
        (tmp_path / "empty").mkdir()
        benchmark = read_benchmark(benchmark_path("ct_real"))
        with pytest.raises(CaseNotFoundError, match="expected"):
            prepare_data(benchmark, tmp_path / "out", Sources(tmp_path / "empty"))
        cylinder_scan(tmp_path / "empty/a.nii.gz")
        with pytest.raises(CaseNotFoundError, match="_calc_hu200"):
            prepare_data(benchmark, tmp_path / "out", Sources(tmp_path / "empty"))

    def test_a_folder_of_other_data_is_left_alone(self, negative, tmp_path):
        benchmark = read_benchmark(benchmark_path("ct_negative"))
        prepare_data(benchmark, tmp_path, Sources(negative / "scans"))
        with pytest.raises(InputError, match="another benchmark, version, number of cases or scans"):
            prepare_data(benchmark, tmp_path, Sources(negative / "scans"), cases=1)
        (tmp_path / "other").mkdir()
        (tmp_path / "other/file.txt").write_text("mine")
        with pytest.raises(InputError, match="other files"):
            prepare_data(benchmark, tmp_path / "other", Sources(negative / "scans"))


class TestReal:
    def test_masks_beside_the_scans(self, tmp_path):
        """One deposit found with its fringe, one bright spot beside no reference: nothing false."""
        scans = tmp_path / "scans"
        cylinder_scan(scans / "p.nii.gz", [((12, 12, 8), 400), ((26, 26, 8), 300)])
        scan = read_volume(scans / "p.nii.gz")
        mask = np.zeros(scan.array.shape, np.uint8)
        mask[12:14, 12:14, 8:10] = 1
        write_volume(scans / "p_calc_hu200.nii.gz", mask, scan)
        write_volume(scans / "p_ct_gtv.nii.gz", mask, scan)
        benchmark = read_benchmark(benchmark_path("ct_real"))
        results = run_benchmark(benchmark, tmp_path / "out", methods_named("ct", ["threshold"]), Sources(scans))
        assert segment_ct(scan.array, scan.spacing).sum() == 16  # voxels of both spots
        figures = results["methods"]["threshold"]["figures"]
        assert [figures[f"lesion_{name}"]["mean"] for name in ("tp", "fp", "fn")] == [1, 0, 0]
        assert figures["dice"]["mean"] == 1.0
        cases = read_manifest(tmp_path / "out/data").all
        assert [case.case_id for case in cases] == ["p"]
        assert cases[0].ignore is not None

    @pytest.mark.real
    def test_the_public_limbs(self, real_data, tmp_path):
        benchmark = read_benchmark(benchmark_path("ct_real"))
        data = prepare_data(benchmark, tmp_path, Sources(real_data / "ct/limbs_calcified"), cases=1)
        case = read_manifest(data.references.parent).all[0]
        scan, label, zone = (read_volume(path).array for path in (case.image, case.label, case.ignore))
        wider = read_volume(real_data / "ct/limbs_calcified" / f"{case.case_id}_calc_hu150.nii.gz").array > 0
        assert label.any()
        assert not (zone & label).any()
        assert ((zone | label)[wider] == 1).all()
        assert scan.shape == zone.shape


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """The small phantom, run once with the threshold and with its own truth as a second method."""
    folder = tmp_path_factory.mktemp("phantom")
    path = write_yaml(folder, SMALL)
    benchmark = read_benchmark(path)
    data = prepare_data(benchmark, folder / "out/data", Sources())
    methods = methods_named("ct", ["threshold"], [f"truth={data.references}"])
    return folder, benchmark, run_benchmark(benchmark, folder / "out", methods)


class TestPhantom:
    def test_the_truth_is_perfect_and_figures_are_those_of_evaluate(self, phantom):
        folder, _, results = phantom
        truth = results["methods"]["truth"]["figures"]
        assert truth["lesion_f1"]["mean"] == truth["dice"]["mean"] == 1.0
        assert truth["lesion_fp"]["mean"] == 0.0
        again = evaluate_folders(folder / "out/threshold/predictions", folder / "out/data/labels", folder / "again")
        assert again["figures"] == results["methods"]["threshold"]["figures"]
        assert results["methods"]["threshold"]["seconds_per_scan"]["n"] == 3
        assert results["methods"]["truth"]["seconds_per_scan"]["n"] == 0

    def test_strata_hold_what_they_name(self, phantom):
        folder, _, results = phantom
        assert results["data"]["strata"] == {"noisy": 1, "usual": 2}
        for case in read_manifest(folder / "out/data").all:
            drawn = json.loads((folder / "out/data/records" / f"{case.case_id}.json").read_text())["recipe"]["ct"]
            assert drawn["kv"] == ("140" if case.stratum == "noisy" else "100")
            assert (drawn["noise_hu"] == 60) == (case.stratum == "noisy")

    def test_a_stratum_mean_is_the_mean_of_its_cases(self, phantom):
        folder, _, results = phantom
        with (folder / "out/threshold/evaluation/cases.csv").open() as stream:
            rows = {row["case_id"]: float(row["lesion_fp"]) for row in csv.DictReader(stream)}
        usual = results["methods"]["threshold"]["by_stratum"]["usual"]["figures"]["lesion_fp"]["mean"]
        assert usual == pytest.approx((rows["usual-00"] + rows["usual-01"]) / 2)

    def test_tables(self, phantom):
        folder, _, results = phantom
        text = (folder / "out/table.md").read_text()
        assert text == "\n".join(table_lines(results)) + "\n"
        assert "| truth | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00)" in text
        assert "| threshold | truth |" in text
        with (folder / "out/table.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert {row["stratum"] for row in rows} == {"all", "usual", "noisy"}
        pair = results["comparisons"][0]
        difference = [results["methods"][n]["figures"]["dice"]["mean"] for n in ("threshold", "truth")]
        assert pair["figures"]["dice"]["difference"] == pytest.approx(difference[0] - difference[1])

    def test_a_second_run_keeps_what_is_there(self, phantom):
        folder, benchmark, results = phantom
        files = [p for p in (folder / "out").rglob("*.nii.gz") if "data" in p.parts or "predictions" in p.parts]
        before = {path: path.stat().st_mtime_ns for path in files}
        steps: list[str] = []
        again = run_benchmark(benchmark, folder / "out", methods_named("ct", ["threshold"]), on_step=steps.append)
        assert {path: path.stat().st_mtime_ns for path in files} == before
        assert not [step for step in steps if step.startswith("data")]
        assert figures_of(again["methods"]["threshold"]) == figures_of(results["methods"]["threshold"])


class TestRecords:
    def test_a_run_agrees_with_its_own_record(self, phantom, tmp_path):
        _, benchmark, results = phantom
        path = tmp_path / "recorded/small.json"
        write_record(path, benchmark, results)
        verdict = compare_with_record(benchmark, results, read_record(path))
        assert verdict.deviations == ()
        assert verdict.compared == 2 * (3 * len([f for f in TOLERANCES if f != "recall"]) + 3)
        assert "bit for bit" in verdict.notes[0]

    def test_a_doctored_record_ends_with_1_and_names_the_figure(self, phantom):
        folder, benchmark, results = phantom
        path = record_path(folder / "small.yaml")
        write_record(path, benchmark, results)
        command = ["benchmark", str(folder / "small.yaml"), str(folder / "out"), "--method", "threshold", "-q"]
        agreed = CliRunner().invoke(app, command)
        assert agreed.exit_code == 0, agreed.output
        content = json.loads(path.read_text())
        entry = content["methods"]["threshold"]["figures"]["all/lesion_fp"]
        entry["value"] += 1.5 * entry["tolerance"]
        path.write_text(json.dumps(content))
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 1
        assert f"threshold: all/lesion_fp expected {entry['value']:.4g} within {entry['tolerance']:g}" in refused.output
        entry["value"] -= 1.0 * entry["tolerance"]
        path.write_text(json.dumps(content))
        assert CliRunner().invoke(app, command).exit_code == 0
        path.unlink()

    def test_what_is_not_recorded_is_said_and_does_not_fail(self, phantom, tmp_path):
        _, benchmark, results = phantom
        path = tmp_path / "small.json"
        only = {**results, "methods": {"threshold": results["methods"]["threshold"]}}
        write_record(path, benchmark, only)
        verdict = compare_with_record(benchmark, results, read_record(path))
        assert verdict.deviations == ()
        assert "truth: not recorded" in verdict.notes
        assert compare_with_record(benchmark, results, None).notes == ("no figures are recorded for this benchmark",)

    def test_a_figure_that_became_undefined_is_outside(self, phantom, tmp_path):
        _, benchmark, results = phantom
        write_record(tmp_path / "r.json", benchmark, results)
        changed = json.loads(json.dumps(results))
        changed["methods"]["truth"]["figures"]["dice"]["mean"] = None
        verdict = compare_with_record(benchmark, changed, read_record(tmp_path / "r.json"))
        assert [str(d) for d in verdict.deviations] == ["truth: all/dice expected 1 within 0.005, found undefined"]

    def test_other_bits_of_a_phantom_are_compared_and_of_scans_are_not(self, phantom, tmp_path):
        _, benchmark, results = phantom
        write_record(tmp_path / "r.json", benchmark, results)
        changed = {**results, "data": {**results["data"], "sha256": "0"}}
        verdict = compare_with_record(benchmark, changed, read_record(tmp_path / "r.json"))
        assert verdict.compared
        assert "differ" in verdict.notes[0]
        scans = Benchmark("negative", "negative", "ct", "")
        record = {**(read_record(tmp_path / "r.json") or {}), "definition": scans.digest}
        assert compare_with_record(scans, changed, record).compared == 0

    def test_a_record_of_another_definition_is_refused(self, phantom, tmp_path):
        _, benchmark, results = phantom
        write_record(tmp_path / "r.json", benchmark, results)
        other = Benchmark("small", "phantom", "ct", "", strata=(Stratum("a", 1),))
        with pytest.raises(InputError, match="record them again"):
            compare_with_record(other, results, read_record(tmp_path / "r.json"))

    def test_a_part_of_the_cases_is_neither_recorded_nor_compared(self, phantom, tmp_path):
        _, benchmark, results = phantom
        part = {**results, "cases_asked": 2}
        with pytest.raises(InputError, match="leave it out"):
            write_record(tmp_path / "r.json", benchmark, part)
        write_record(tmp_path / "r.json", benchmark, results)
        assert compare_with_record(benchmark, part, read_record(tmp_path / "r.json")).compared == 0


class TestMethods:
    def test_default_is_the_threshold_and_shipped_models(self):
        assert next(method.name for method in methods_named("stir", [])) == "threshold"

    @pytest.mark.parametrize(
        ("names", "predictions", "message"),
        [
            (["threshold", "threshold"], [], "two of one name"),
            (["nothing"], [], "model folder"),
            ([], ["folder"], "NAME=FOLDER"),
            ([], ["a/b=."], "NAME=FOLDER"),
            ([], ["mine=nowhere"], "no such folder"),
            ([], ["data=."], "that name"),
        ],
    )
    def test_mistakes(self, names, predictions, message):
        with pytest.raises(InputError, match=message):
            methods_named("ct", names, predictions)


def test_conditions_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="phenotypes"):
        Conditions(phenotypes=("dark",))
    with pytest.raises(ValueError, match="field_t"):
        Conditions(field_t=(7.0,))
