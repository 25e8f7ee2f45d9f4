"""The pages in a real browser with the network off: what a click, a key and the printer meet.

``JDM_SEG_DOCS=1 pytest tests/unit/test_report_page.py`` draws a whole body instead of a limb and writes the pictures
that README shows. ``JDM_SEG_AXE`` names ``axe.min.js`` (npm ``axe-core``) for the check of accessibility.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chromium import BINARY, Browser

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.inference.batch import predict_batch
from jdm_seg.report import write_report
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.volume import read_volume, write_volume

DOCS = Path(__file__).parents[2] / "docs"
WRITE_DOCS = bool(os.environ.get("JDM_SEG_DOCS"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BINARY is None, reason="no chromium")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    preset = "whole" if WRITE_DOCS else "limb"
    synthesize_dataset(root / "set", modality="ct", cases=1, seed=3, preset=preset, workers=1)
    predict_batch(root / "set" / "images", root / "out", ThresholdSegmenter("ct"))
    (case,) = (path for path in (root / "out").iterdir() if path.is_dir())
    mask = read_volume(case / "mask.nii.gz")  # a map such as a network would give
    write_volume(case / "probability.nii.gz", (mask.array > 0).astype(np.uint8) * 80, mask)
    write_report(root / "out", root / "set" / "images")
    return case


@pytest.fixture(scope="module")
def browser(made):
    with Browser(1280, 1180) as one:
        one.open(made / "report.html")
        yield one


def open_viewer(browser) -> None:
    """Open it unless an earlier test did."""
    if not browser.run("document.querySelector('[data-open]').hidden"):
        browser.click("[data-open]")
        browser.until(
            "document.querySelector('#viewer').dataset.ready === 'true'"
            " || /cannot start/.test(document.querySelector('[data-location]').textContent)"
        )
    assert "cannot" not in browser.run("document.querySelector('[data-location]').textContent")


def test_the_page_asks_nothing_of_a_network(made, browser):
    assert [url for url in browser.requests if not url.startswith(("data:", "file:"))] == []
    assert browser.errors == []


def test_a_click_on_a_row_shows_its_slices(browser):
    browser.click('button[aria-label="Show deposit 2"]')
    assert browser.run("document.querySelector('[data-chosen]').textContent") == "2"
    assert browser.run("document.querySelectorAll('[data-slices] svg').length") == 3
    label = browser.run("document.querySelector('[data-slices] svg').getAttribute('aria-label')")
    assert label == "axial slice through deposit 2"


def test_keys_go_through_the_table(browser):
    browser.run("document.querySelector('button[aria-label=\"Show deposit 1\"]').focus()")
    browser.press("ArrowDown")
    assert browser.run("report.chosen") == 2
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "Show deposit 2"
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.press("ArrowUp")
    browser.press("Enter")
    assert browser.run("report.chosen") == 1


def test_columns_sort_both_ways_and_unknown_comes_last(browser):
    column = "[...document.querySelectorAll('table[data-lesions] tbody tr')].map(r => r.cells[4].dataset.value)"
    head = "table[data-lesions] thead th:nth-child(5) button"
    for falling in (False, True):
        browser.click(head)
        values = [float(text) for text in browser.run(column) if text]
        assert values == sorted(values, reverse=falling)
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    browser.click("table[data-lesions] thead th:nth-child(1) button")


def test_the_viewer_goes_where_the_table_says(made, browser):
    open_viewer(browser)
    image = nib.load(made / "lesions.nii.gz")
    labels = np.asarray(image.dataobj)
    spacing = np.max(image.header.get_zooms())
    for number in (3, 1, 2):
        browser.click(f'button[aria-label="Show deposit {number}"]')
        place = np.array(browser.run("[...viewer.frac2mm(viewer.scene.crosshairPos)].slice(0, 3)"))
        voxels = np.argwhere(labels == number)
        world = voxels @ image.affine[:3, :3].T + image.affine[:3, 3]
        assert np.linalg.norm(world - place, axis=1).min() <= spacing
        text = browser.run("document.querySelector('[data-location]').textContent")
        assert re.search(rf"; deposit {number}$", text)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("data:", "file:", "blob:"))] == []


def test_a_click_in_the_viewer_chooses_the_deposit(browser):
    open_viewer(browser)
    browser.run("report.choose(1)")
    place = browser.run("report.place(2)")
    # what a click does, without depending on where the browser lays out the slices
    browser.run(
        f"(viewer.scene.crosshairPos = viewer.mm2frac({place}), viewer.drawScene(), viewer.createOnLocationChange())"
    )
    assert browser.run("report.chosen") == 2


def test_probability_is_shown_when_asked(browser):
    open_viewer(browser)
    assert browser.run("viewer.volumes.length") == 3
    browser.click("[name=probability]")
    assert browser.run("viewer.volumes[2].opacity") > 0


def test_it_prints(browser):
    data = browser.pdf()
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", data)) >= 2


@pytest.mark.skipif("JDM_SEG_AXE" not in os.environ, reason="JDM_SEG_AXE names no axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report.html", "../report.html"])
def test_pages_are_accessible(made, name, scheme):
    with Browser() as one:
        one.open(made / name)
        one.prefer(scheme)
        one.run(Path(os.environ["JDM_SEG_AXE"]).read_text(encoding="utf-8") + ";1")
        result = one.run(
            "axe.run().then(r => [r.passes.length, r.violations.map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`)])"
        )
        assert result[0] > 10
        assert result[1] == []


def test_pictures(browser, tmp_path):
    """Both schemes differ, the viewer shows something; with JDM_SEG_DOCS they go where README shows them."""
    target = DOCS if WRITE_DOCS else tmp_path
    open_viewer(browser)
    browser.run("(box => box.checked && box.click())(document.querySelector('[name=probability]'))")
    browser.run("report.choose(Math.min(6, document.querySelectorAll('.choose').length))")
    browser.run("document.querySelector('table[data-lesions]').parentElement.style.maxHeight = '16rem'")
    browser.resize(1280, 1640)
    browser.run("scrollTo(0, 0)")
    browser.prefer("dark")
    browser.screenshot(tmp_path / "dark.png")
    browser.prefer("light")
    browser.screenshot(target / "report.png")
    assert (tmp_path / "dark.png").read_bytes() != (target / "report.png").read_bytes()
    browser.run("document.querySelector('#deposits').scrollIntoView()")
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    browser.run("new Promise(done => setTimeout(done, 1000))")
    browser.screenshot(target / "viewer.png")
    shades = browser.run(
        "(() => { viewer.drawScene(); const c = document.createElement('canvas'); c.width = c.height = 200;"
        " const g = c.getContext('2d'); g.drawImage(document.querySelector('#viewer'), 0, 0, 200, 200);"
        " return new Set(g.getImageData(0, 0, 200, 200).data).size; })()"
    )
    assert shades > 20
