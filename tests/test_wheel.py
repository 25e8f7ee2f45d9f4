"""The wheel carries what a checkout has beside ``src``: configs, templates, types."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_configs_work_from_the_wheel_outside_the_checkout(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "jdm_seg" / "py.typed").is_file()
    for name in ("ct", "ct_fine", "stir"):
        model = tmp_path / "site" / "jdm_seg" / "models" / name
        assert (model / "model.json").is_file()
        assert (model / "MODEL_CARD.md").is_file()
        assert 10**6 < (model / "model.onnx").stat().st_size <= 10**7
    assert (tmp_path / "site" / "jdm_seg" / "report" / "templates" / "report.html.j2").is_file()
    code = (
        "import jdm_seg; from jdm_seg.config import compose, configs_folder\n"
        "print(jdm_seg.__file__, configs_folder(), compose(['experiment=ct_smoke']).name, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        timeout=120,
    )
    package, configs, name = done.stdout.split()
    assert Path(package).is_relative_to(tmp_path)
    assert Path(configs).is_relative_to(tmp_path)
    assert name == "ct_smoke"
