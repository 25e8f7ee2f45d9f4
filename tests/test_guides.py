"""Every command of the README and the guides, typed: block by block, each block in a folder of its own, on tiny data.

Verbs and options stay as written; cases are fewer and smaller, training is one short epoch, and a GPU becomes the CPU.
What a block takes for given (``leg.nii.gz``, ``export/``, ``models/mine``) is put where it names it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from test_docs import COMMANDS, Command

from jdm_seg.config import compose
from jdm_seg.volume import read_volume

MAY_FIND = {"check", "benchmark"}
"""Verbs whose exit code 1 says what they found."""
NEEDS_A_CLUSTER = {"--launch", "hydra/launcher=slurm"}
"""Typed by test_slurm.py, on a scheduler of its own."""
MADE_BY = {
    "synthesize": 0, "predict": 1, "export": 1, "convert": 1, "report": 1, "benchmark": 1,
    "sweep": 0, "evaluate": 2, "track": 2, "burden": 2,
}  # fmt: skip
"""Which argument a verb makes; the others are there before."""
TINY = (
    "trainer.max_epochs=1", "trainer.accelerator=cpu", "data.patch_size=[32,32,32]", "data.patches_per_epoch=4",
    "data.batch_size=2", "data.folds=2", "data.workers=0", "network.channels=[8,16]", "trainer.progress=false",
)  # fmt: skip
SCANS = {"leg.nii.gz", "scan.nii.gz", "a.nii.gz", "b.nii.gz"}
SETS = {"set", "labelled", "few", "my_cases", "held_out", "try"}
FOLDERS = {
    "scans": "scans", "other_scans": "scans",
    "calcified": "set/images", "masks": "set/labels", "nnunet_masks": "set/labels",
    "export": "dicom", "dicom_folder": "dicom", "first": "first",
}  # fmt: skip

_context = get_context("forkserver")
_context.set_forkserver_preload(["jdm_seg.train", "jdm_seg.export.run", "jdm_seg.inference.batch", "jdm_seg.cli"])


def _type(words: Sequence[str], folder: str, log: str) -> None:
    """Be the program, in a process of its own."""
    from jdm_seg.cli import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.argv = ["jdm-seg", *words]
    main()


def typed(words: Sequence[str], folder: Path, log: Path) -> tuple[int, str]:
    """Return the exit code of a command and what it printed."""
    log.unlink(missing_ok=True)
    process = _context.Process(target=_type, args=(list(words), str(folder), str(log)))
    process.start()
    process.join(900)
    assert process.exitcode is not None, f"still running: {shlex.join(words)}"
    return process.exitcode, log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """What users have: a labelled set, a DICOM export, a run folder, a model, results of it."""
    sys.path.insert(0, str(Path(__file__).parent / "unit"))
    from dicom_phantom import positions, write_series

    folder = tmp_path_factory.mktemp("world")
    for line in (
        "synthesize set --modality ct --cases 5 --seed 1 --preset smoke",
        f"train data=labelled data.root=set run_dir=run {' '.join(TINY)}",
        "export run model",
        "predict set/images results --model threshold",
    ):
        code, said = typed(shlex.split(line), folder, folder / "log")
        assert code == 0, f"{line}\n{said}"
    (folder / "scans").mkdir()  # unlabelled: other people than those of the set
    for name, image in zip(("leg", "s2", "s3", "s4", "s5"), sorted((folder / "set" / "images").iterdir()), strict=True):
        shutil.copy(image, folder / "scans" / f"{name}.nii.gz")
    leg = folder / "scans" / "leg.nii.gz"
    code, said = typed(["predict", str(leg), "first", "--model", "threshold"], folder, folder / "log")
    assert code == 0, said
    scan = read_volume(leg)
    stored = np.rot90(scan.array, axes=(0, 1)).transpose(2, 0, 1)  # slices, rows, columns
    dx, dy, dz = scan.spacing
    write_series(
        folder / "dicom", np.ascontiguousarray(stored), positions(len(stored), dz), PixelSpacing=[dy, dx],
        SliceThickness=dz, RescaleIntercept=0, RescaleSlope=1,
    )  # fmt: skip
    return folder


def given(name: str, world: Path) -> Path | None:
    """Return what a name stands for among what users have."""
    if name in SCANS:
        return sorted((world / "set" / "images").iterdir())[0]
    if name == "mask.nii.gz":
        return sorted((world / "set" / "labels").iterdir())[0]
    top, _, rest = name.partition("/")
    if re.fullmatch(r"model|models/\w+", name):
        return world / "model"
    if top == "runs":
        return world / "run"
    if top in SETS:
        return world / "set"
    if top == "results" and rest:
        return sorted(path for path in (world / "results").iterdir() if path.is_dir())[0]
    return world / FOLDERS[top] if top in FOLDERS else None


def provide(command: Command, folder: Path, world: Path) -> None:
    """Put what a command names and does not make into its folder, if it is not there."""
    verb, *words = command.words
    made = (
        [word for word in words if not word.startswith("-")][MADE_BY[verb] : MADE_BY[verb] + 1]
        if verb in MADE_BY
        else []
    )
    for word in words:
        name = word.rpartition("=")[2].rstrip("/")
        source = given(name, world)
        if word in made or word.startswith(("name=", "run_dir=")) or source is None:
            continue
        # a file in a set is there with the set
        place = folder / (name.partition("/")[0] if name.partition("/")[0] in SETS else name)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place)


def _small_synthesis(overrides: list[str]) -> list[str]:
    """Return overrides for a data set of two small cases, if a run makes one."""
    made = compose(overrides).data.synthesize is not None
    return ["data.synthesize.cases=2", "data.synthesize.preset=smoke"] if made else []


def tiny(words: tuple[str, ...]) -> list[str]:
    """Make a command small: fewer cases of the smallest preset, one short epoch of a small network, no GPU."""
    verb, arguments = words[0], list(words[1:])
    if verb == "synthesize":
        arguments[arguments.index("--cases") + 1] = "2"
        arguments += ["--preset", "smoke"]
    if verb == "benchmark":
        arguments += ["--cases", "1"]
    if "--device" in arguments:
        arguments[arguments.index("--device") + 1] = "cpu"
    if verb == "sweep":
        arguments += ["--trials", "2", *TINY, *_small_synthesis([w for w in arguments if w.startswith("data")])]
    if verb == "train":
        sweep = "-m" in arguments
        arguments = [re.sub(r"=([^\[,]+),([^,]+).*", r"=\1,\2" if "seed" in a else r"=\1", a) for a in arguments]
        network = [word for word in TINY if not (sweep and word.startswith("network."))]
        arguments += [word for word in network if word.partition("=")[0] not in " ".join(arguments)]
        plain = [word for word in arguments if not word.startswith("-") and not re.search(r"=[^\[]*,", word)]
        arguments += _small_synthesis(plain)
    return [verb, *arguments]


BLOCKS: dict[tuple[str, int], list[Command]] = {}
for _command in COMMANDS:
    if not NEEDS_A_CLUSTER & set(_command.words):
        BLOCKS.setdefault((_command.page, _command.block), []).append(_command)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS.values(), ids=lambda block: str(block[0]))
def test_a_block_of_commands_runs(block, world, tmp_path):
    for command in block:
        provide(command, tmp_path, world)
        code, said = typed(tiny(command.words), tmp_path, tmp_path.parent / f"{tmp_path.name}.log")
        allowed = {0, 1} if command.words[0] in MAY_FIND else {0}
        where = f"{command}: {shlex.join(tiny(command.words))}\n{said}"
        assert code in allowed, where
        assert "Traceback" not in said, where
