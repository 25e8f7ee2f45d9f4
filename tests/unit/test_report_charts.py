"""Charts put marks where the numbers say, and say the numbers in words too."""

from __future__ import annotations

import re

import pytest

from jdm_seg.report.body import body_diagram
from jdm_seg.report.charts import Interval, bars, bland_altman, forest, histogram, number, strip
from jdm_seg.report.evaluation import lesion_map, worst_cases


def attributes(chart: str, name: str) -> list[float]:
    return [float(text) for text in re.findall(rf' {name}="(-?[\d.]+)"', chart)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12345.6, "12346"), (0.00012345, "0.0001"), (0.12345, "0.123"), (-3.456, "-3.46"), (1000.0, "1000")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_the_histogram_counts_each_diameter_once():
    chart = str(histogram([0.5, 2.9, 3.0, 9.9, 10.0, 10.0, 80.0]))
    label = re.search(r'aria-label="([^"]+)"', chart)[1]
    assert label == (
        "Number of deposits by diameter: 1 of 0 to 1 mm, 1 of 2 to 3 mm, 1 of 3 to 5 mm, 1 of 7 to 10 mm, "
        "2 of 10 to 15 mm, 1 of 50 to inf mm"
    )
    tall = attributes(chart, "height")
    assert tall == [60, 60, 60, 60, 120, 60]  # 120 for the most
    assert re.findall(r'rect class="size-(\d)"', chart) == list("001122")


def test_the_forest_is_linear_from_0_to_1():
    chart = str(forest([Interval("a", 0.5, 0.25, 1.0), Interval("b", None, None, None)], "Scores"))
    assert attributes(chart, "cx") == [320.0]  # half-way from 190 to 450
    assert 'x1="255.0" x2="450.0"' in chart
    assert "a 0.50 (0.25 to 1.00); b undefined" in chart


def test_bland_altman_puts_cases_and_limits_on_one_scale():
    lines = {name: {"value": v} for name, v in (("bias", 0.0), ("upper_limit", 2.0), ("lower_limit", -2.0))}
    chart = str(bland_altman({"a": (5.0, 3.0), "b": (3.0, 5.0), "c": (8.0, 8.0)}, lines))
    points = dict(zip("abc", zip(attributes(chart, "cx"), attributes(chart, "cy"), strict=True), strict=True))
    ys = [float(y) for y in re.findall(r'class="mark[^"]*" x1="60" x2="430" y1="([\d.]+)"', chart)]
    assert points["a"][1] == ys[0]  # 2 mL too much: on the upper limit
    assert points["c"][1] == ys[1]
    assert points["b"][1] == ys[2]
    assert points["a"][0] == points["b"][0]  # both have a mean of 4
    assert (points["c"][0] - 60) == pytest.approx(2 * (points["a"][0] - 60), abs=0.2)
    assert "bias 0 mL" in chart


def test_bland_altman_without_limits_still_draws():
    chart = str(bland_altman({"a": (1.0, 1.0), "b": (1.0, 1.0)}, {"bias": {"value": None}}))
    assert chart.count("<circle") == 2


def test_strips_keep_equal_values_apart():
    chart = str(strip({"a": 4.0, "b": 4.0, "c": 1.0}, "Volume", "mL"))
    places = list(zip(attributes(chart, "cx"), attributes(chart, "cy"), strict=True))
    assert len(set(places)) == 3
    assert places[2][0] == pytest.approx(10 + (places[0][0] - 10) / 2, abs=0.1)  # square root of a quarter


def test_bars_grow_from_zero():
    chart = str(bars([("x", 10.0, 5.0), ("y", -5.0, 1.0)], "Change", "mm³"))
    assert attributes(chart, "width") == [145.0, 72.5]
    assert re.findall(r'rect class="(\w+)"', chart) == ["gain", "loss"]


def test_the_body_names_every_region_that_holds_something():
    regions = {
        "chest": {"lesion_count": 2, "volume_ml": 4.0},
        "leg": {"lesion_count": 1, "volume_ml": 1.0},
        "unknown": {"lesion_count": 3, "volume_ml": 0.5},
    }
    chart = str(body_diagram(regions))
    for text in ("chest: 2, 4 mL", "leg: 1, 1 mL", "not known: 3, 0.5 mL"):
        assert f">{text}</text>" in chart
    shades = re.findall(r'class="region shade-(\d)"', chart)
    # head, chest, abdomen, hip, two arms, then both thighs, knees, lower legs and feet, which "leg" stands for
    assert "".join(shades) == "0" + "4" + "00" + "00" + "11111111"


def test_worst_cases_are_failed_ones_then_low_scores_then_many_false():
    def row(name, f1, false, status="ok"):
        return {"case_id": name, "lesion_f1": f1, "lesion_fp": false, "status": status}

    rows = [row("good", "0.9", "1"), row("none", "nan", "0"), row("bad", "0.1", "0"), row("failed", "0", "", "failed")]
    rows += [row("false", "0.1", "7")]
    assert [one["case_id"] for one in worst_cases(rows)] == ["failed", "false", "bad", "good", "none"]


def test_the_map_shows_right_on_the_left():
    def row(role, matched, x, z):
        place = {"centroid_x_mm": x, "centroid_z_mm": z, "equivalent_diameter_mm": "5"}
        return {"role": role, "matched": matched, **place}

    chart = str(lesion_map("c", [row("reference", "true", "50", "10"), row("reference", "true", "-50", "90")]))
    right, left = zip(attributes(chart, "cx"), attributes(chart, "cy"), strict=True)
    assert right[0] < left[0]
    assert right[1] > left[1]  # nearer to the feet
    assert "2 found, 0 missed, 0 false" in chart
