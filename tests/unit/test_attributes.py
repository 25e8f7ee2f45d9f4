from __future__ import annotations

import json

import numpy as np
import pytest

from jdm_seg.components import LesionVoxels
from jdm_seg.errors import InputError
from jdm_seg.metrics.attributes import lesion_attributes, read_faint, read_instances, read_rows
from jdm_seg.volume import Grid, Volume, write_volume

GRID = Grid((20, 4, 4), np.array([[2.0, 0, 0, -10], [0, 1, 0, 5], [0, 0, 1, 7], [0, 0, 0, 1]]))


def three() -> LesionVoxels:
    """Lesions at x index 0-3, 8-9 and 19: RAS x of -10 to -4, 6 to 8 and 28."""
    labels = np.zeros(GRID.shape, dtype=np.uint16)
    labels[0:4, 1, 1], labels[8:10, 1, 1], labels[19, 1, 1] = 1, 2, 3
    return LesionVoxels.from_labels(labels)


def patterns(rows, instances=None):
    return [row.get("pattern") for row in lesion_attributes(three(), GRID, rows, instances)]


class TestPoints:
    def test_ras_point_in_or_near_a_lesion(self):
        def at(x, pattern):
            return {"centroid_x_mm": x, "centroid_y_mm": 6, "centroid_z_mm": 8, "pattern": pattern}

        assert patterns([at(-5, "sheet"), at(7, "nodule")]) == ["sheet", "nodule", "unknown"]
        assert patterns([at(12.5, "nodule")]) == ["unknown", "nodule", "unknown"]  # 4.5 mm off
        assert patterns([at(14, "nodule")]) == ["unknown"] * 3  # 6 mm off
        assert patterns([at(14, "nodule") | {"radius": 6.5}]) == ["unknown", "nodule", "unknown"]

    def test_centre_is_in_mm_from_the_corner(self):
        # voxel 8 spans 16 to 18 mm along x; y and z index 1 span 1 to 2 mm
        assert patterns([{"centre": [17, 1.5, 1.5], "pattern": "net"}]) == ["unknown", "net", "unknown"]
        assert patterns([{"centre": [39.9, 1.5, 1.5], "pattern": "net"}]) == ["unknown", "unknown", "net"]

    def test_largest_deposit_of_a_lesion_counts(self):
        rows = [
            {"centre": [1, 1.5, 1.5], "pattern": "nodule", "labelled_mm3": 5.0},
            {"centre": [5, 1.5, 1.5], "pattern": "plaque", "labelled_mm3": 9.0},
            {"centre": [3, 1.5, 1.5], "pattern": "granular", "labelled_mm3": 1.0},
        ]
        assert patterns(rows)[0] == "plaque"

    def test_nowhere(self):
        empty = dict.fromkeys(("centroid_x_mm", "centroid_y_mm", "centroid_z_mm"), "")
        assert patterns([{"pattern": "sheet"}, {"pattern": "net", **empty}]) == ["unknown"] * 3
        assert lesion_attributes(three(), GRID, [{"centre": [1, 1, 1], "level": 0.5}]) == [{}, {}, {}]
        assert lesion_attributes(LesionVoxels.from_labels(np.zeros((2, 2, 2), int)), GRID, [{"pattern": "net"}]) == []


class TestInstances:
    def test_most_voxels_decide(self):
        instances = np.zeros(GRID.shape, dtype=np.uint16)
        instances[0, 1, 1], instances[1:4, 1, 1], instances[8, 1, 1] = 1, 2, 7
        rows = [{"pattern": "nodule", "host": "fat"}, {"pattern": "sheet", "host": "fascia"}]
        assert patterns(rows, instances) == ["sheet", "unknown", "unknown"]
        assert patterns([{"instance": 7, "pattern": "net"}], instances) == ["unknown", "net", "unknown"]
        assert lesion_attributes(three(), GRID, rows, instances)[0] == {"pattern": "sheet", "host": "fascia"}

    def test_read(self, tmp_path):
        labels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
        write_volume(tmp_path / "instances" / "a.nii.gz", labels, Volume(labels, np.eye(4)))
        assert np.array_equal(read_instances(tmp_path / "labels", "a", Grid((2, 3, 4), np.eye(4))), labels)
        assert read_instances(tmp_path / "labels", "b", GRID) is None
        with pytest.raises(InputError, match=r"a.nii.gz: expected instances on the reference's grid"):
            read_instances(tmp_path / "labels", "a", GRID)


class TestContrast:
    def test_most_of_a_lesion_decides(self):
        faint = np.zeros(GRID.shape, np.uint8)
        faint[0:2, 1, 1], faint[8:10, 1, 1], faint[15] = 1, 1, 1  # half of the first, all of the second
        contrast = [{"contrast": "seen"}, {"contrast": "none"}, {"contrast": "seen"}]
        assert lesion_attributes(three(), GRID, [], faint=faint) == contrast
        rows = [{"pattern": "sheet", "centre": [1, 1.5, 1.5], "contrast": "said elsewhere"}]
        described = lesion_attributes(three(), GRID, rows, faint=faint)
        assert described[0] == {"pattern": "sheet", "contrast": "seen"}
        assert described[1] == {"pattern": "unknown", "contrast": "none"}

    def test_read(self, tmp_path):
        assert read_faint(tmp_path / "labels", "a", GRID) is None
        mask = np.ones(GRID.shape, np.uint8)
        write_volume(tmp_path / "faint" / "a.nii.gz", mask, Volume(mask, GRID.affine))
        assert read_faint(tmp_path / "labels", "a", GRID).all()
        assert not read_faint(tmp_path / "labels", "b", GRID).any()  # all of that case can be seen
        with pytest.raises(InputError, match=r"a.nii.gz: expected faint on the reference's grid"):
            read_faint(tmp_path / "labels", "a", Grid((2, 3, 4), np.eye(4)))


class TestFiles:
    def test_table_and_record(self, tmp_path):
        (tmp_path / "a.csv").write_text("instance,pattern,centroid_x_mm\n3,sheet,-1.5\n,nodule,\n")
        assert read_rows(tmp_path, "a") == [
            {"instance": 3.0, "pattern": "sheet", "centroid_x_mm": -1.5},
            {"instance": "", "pattern": "nodule", "centroid_x_mm": ""},
        ]
        rows = [{"pattern": "sheet"}]
        for name, content in (("b", rows), ("c", {"lesions": rows}), ("d", {"seed": 1, "deposits": rows})):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
            assert read_rows(tmp_path, name) == rows
        (tmp_path / "e.json").write_text('{"seed": 1}')
        assert read_rows(tmp_path, "e") == []
        assert read_rows(tmp_path, "nowhere") == []

    @pytest.mark.parametrize("content", ["{", "3", '{"lesions": 3}', "[1, 2]"])
    def test_no_table(self, tmp_path, content):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=r"a.json: expected a list of rows"):
            read_rows(tmp_path, "a")
