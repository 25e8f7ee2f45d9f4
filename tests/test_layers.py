"""The architecture, held true: imports point one way, heavy packages stay in place, the core needs no extra."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "jdm_seg"

# a file imports only from files above it
ORDER = (
    "errors",
    "machine",
    "physics",
    "volume",
    "pictures",
    "cases",
    "checks.findings",
    "placement",
    "segments",
    "nrrd",
    "dicom.files",
    "dicom.acquisition",
    "dicom.headers",
    "dicom.geometry",
    "dicom.pixels",
    "dicom.series",
    "dicom.stations",
    "dicom.choose",
    "dicom.read",
    "dicom.cases",
    "dicom.planes",
    "dicom.segmentation",
    "dicom.segmentation_read",
    "config",
    "provenance",
    "resample",
    "sparse",
    "body_mask",
    "neighbourhood",
    "sharpness",
    "components",
    "model_folder",
    "statistics",
    "synthesis.anatomy.tissue",
    "synthesis.anatomy.host",
    "synthesis.anatomy.shapes",
    "synthesis.anatomy.canvas",
    "synthesis.anatomy.body",
    "synthesis.anatomy.envelope",
    "synthesis.anatomy.skeleton",
    "synthesis.anatomy.organs",
    "synthesis.anatomy.surroundings",
    "synthesis.anatomy.scene",
    "synthesis.coarse",
    "synthesis.ct.projection",
    "synthesis.ct.blur",
    "synthesis.ct.tissue",
    "synthesis.ct.noise",
    "synthesis.ct.streaks",
    "synthesis.ct.acquisition",
    "synthesis.deposits.fields",
    "synthesis.deposits.priors",
    "synthesis.deposits.sites",
    "synthesis.deposits.forms",
    "synthesis.deposits.lumps",
    "synthesis.deposits.layers",
    "synthesis.deposits.calcinosis",
    "synthesis.deposits.lookalikes",
    "synthesis.deposits.overlay",
    "synthesis.stir.signal",
    "synthesis.stir.slices",
    "synthesis.stir.oedema",
    "synthesis.stir.scan",
    "synthesis.stir.acquisition",
    "synthesis.estimate",
    "synthesis.blend",
    "synthesis.visibility",
    "synthesis.insert",
    "synthesis.conditions",
    "synthesis.recipe",
    "synthesis.dataset",
    "burden.landmarks",
    "burden.body_map",
    "burden.density",
    "burden.mass",
    "lesions",
    "masks",
    "layouts.files",
    "nnunet",
    "layouts.bids",
    "layouts.dicom",
    "layouts.read",
    "layouts.write",
    "layouts.convert",
    "dicom.sr",
    "dicom.objects",
    "burden.agatston",
    "burden.stir",
    "burden.detectability",
    "checks.look",
    "checks.values",
    "checks.orientation",
    "checks.scan",
    "metrics.voxel",
    "metrics.protocol",
    "metrics.matching",
    "metrics.lesion",
    "metrics.ignore",
    "metrics.surface",
    "metrics.attributes",
    "burden.analysis",
    "tracking.registration",
    "tracking.correspondence",
    "tracking.fates",
    "tracking.files",
    "tracking.simulate",
    "scoring",
    "summary",
    "evaluate",
    "model_grid",
    "transforms",
    "networks",
    "widening",
    "plan",
    "losses",
    "cache",
    "patches",
    "augment",
    "data",
    "inference.prediction",
    "baseline",
    "inference.sliding_window",
    "inference.chest",
    "inference.clock",
    "inference.scan_grid",
    "inference.memory",
    "export.onnx_graph",
    "inference.engines",
    "inference.test_time",
    "inference.fitted_file",
    "inference.candidates",
    "inference.outlines",
    "inference.predict",
    "inference.ensemble",
    "inference.plan",
    "inference.case_folder",
    "inference.cohort",
    "inference.batch",
    "inference.launch",
    "benchmark.spec",
    "benchmark.data",
    "benchmark.records",
    "benchmark.table",
    "benchmark.run",
    "module",
    "callbacks",
    "train",
    "sweep",
    "export.calibration",
    "export.validation",
    "export.candidates",
    "export.outlines",
    "export.parity",
    "export.bundle",
    "export.model_card",
    "export.run",
    "report.words",
    "report.drawing",
    "report.pictures",
    "report.viewer",
    "report.charts",
    "report.body",
    "report.tables",
    "report.html",
    "report.case",
    "report.cohort",
    "report.change",
    "report.evaluation",
    "report.page",
    "report",
    "demo",
    "checks.files",
    "checks.labels",
    "checks.paths",
    "checks.fix",
    "doctor",
    "cli.app",
    "cli.console",
    "cli.start",
    "cli.data",
    "cli.learn",
    "cli.segment",
    "cli.measure",
    "cli",
    "processes.train_rank",
)
EXTRAS = (
    "wandb",
    "pydicom",
    "highdicom",
    "nrrd",
    "SimpleITK",
    "submitit",
    "openvino",
    "jupytext",
    "nbclient",
    "optuna",
)
ONLY_IN = {
    "nibabel": {"volume"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "lightning": {"data", "module", "callbacks", "train"},
}
WITHOUT_TORCH = (
    "volume",
    "pictures",
    "cases",
    "lesions",
    "nnunet",
    "burden.agatston",
    "burden.stir",
    "burden.detectability",
    "metrics.voxel",
    "metrics.lesion",
    "metrics.surface",
    "metrics.attributes",
    "statistics",
    "evaluate",
    "burden.analysis",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Return every module that a file imports, at its top or inside a function, by full dotted name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def known_module(name: str, modules: set[str]) -> str | None:
    inner = name.removeprefix("jdm_seg.")
    while inner:
        if inner in modules:
            return inner
        inner = inner.rpartition(".")[0]
    return None


PACKAGES = {module_of(path) for path in SRC.rglob("__init__.py")} - {"report", "cli"}
"""Folders of modules that hold nothing themselves."""
FILES = {module_of(path): path for path in sorted(SRC.rglob("*.py"))}
LAYERED = {name: path for name, path in FILES.items() if name not in PACKAGES}


def test_every_module_has_a_place_in_the_order():
    assert sorted(LAYERED) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_up(module):
    rank = {name: place for place, name in enumerate(ORDER)}
    for name in imports_of(LAYERED[module]):
        if name.startswith("jdm_seg."):
            imported = known_module(name, set(ORDER))
            if imported is not None and imported != module:
                assert rank[imported] < rank[module], f"{module} imports {imported}, which lies below it"


@pytest.mark.parametrize("package", ONLY_IN)
def test_package_stays_where_it_belongs(package):
    users = {name for name, path in FILES.items() if any(i.split(".")[0] == package for i in imports_of(path))}
    assert users == ONLY_IN[package]


@pytest.mark.parametrize("package", ["pydicom", "highdicom", "pylibjpeg"])
def test_dicom_stays_in_its_package(package):
    users = {name for name, path in FILES.items() if any(i.split(".")[0] == package for i in imports_of(path))}
    assert all(name.startswith("dicom.") for name in users), users


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light():
    heavy = run_python("import sys, jdm_seg; print([m for m in ('torch', 'monai', 'numpy') if m in sys.modules])")
    assert heavy.strip() == "[]"


def test_the_core_imports_without_extras():
    """Blocks every extra, then imports every module of the package."""
    names = [f"jdm_seg.{name}" for name in ORDER]
    code = (
        "import importlib, sys\n"
        f"for name in {EXTRAS}: sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print('imported')"
    )
    assert run_python(code).strip() == "imported"


def test_measuring_needs_no_torch():
    names = [f"jdm_seg.{name}" for name in WITHOUT_TORCH]
    code = (
        "import importlib, sys\nsys.modules['torch'] = None\n"
        f"for name in {names}: importlib.import_module(name)\nprint('imported')"
    )
    assert run_python(code).strip() == "imported"


def test_a_logger_without_its_package_says_what_to_install():
    code = (
        "from jdm_seg.config import compose, instantiate\n"
        "from jdm_seg.errors import InputError\n"
        "import lightning.pytorch.loggers.wandb as module\n"
        "from lightning_utilities.core.imports import RequirementCache\n"
        "module._WANDB_AVAILABLE = RequirementCache('wandb>=999')\n"
        "try:\n    instantiate(compose(['logger=wandb']).logger['wandb'], 'logger', save_dir='.')\n"
        "except InputError as error:\n    print(error)"
    )
    assert "found wandb not installed; pip install wandb" in run_python(code)
