"""What each part of ``experiment=ct`` is worth: short trainings from nothing that differ in one thing.

    python scripts/ablate.py SCANS WORK [OVERRIDE ...] --apart CASE CASE ... [--steps 500] [--repeats 3]

SCANS is a folder of unlabelled CT scans; those named by ``--apart`` are not trained on. In each of them deposits are
inserted twice, and every training is measured there: threshold and peak are chosen on these scans for each alike, as
`jdm-seg export` does, so that a loss is not judged by the threshold it happens to suit. All trainings have as many
steps of four patches of 64³. The whole recipe is trained ``--repeats`` times with other seeds: what differs by less
than they do is no difference. What is there already is kept; the table is WORK/table.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch

from jdm_seg.cases import Case, Manifest, find_scans, read_manifest, write_manifest
from jdm_seg.components import LesionRule
from jdm_seg.config import LAST_CHECKPOINT, preprocess_from
from jdm_seg.export.calibration import ScanLogits, calibrate, lesion_counts
from jdm_seg.export.validation import LABELLED, drawn_scans
from jdm_seg.inference.scan_grid import logit_of
from jdm_seg.inference.sliding_window import predict_logits
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.metrics.voxel import dice
from jdm_seg.networks import as_levels, foreground_logit
from jdm_seg.statistics import bootstrap_ratio, compare_paired
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.train import load_module
from jdm_seg.volume import write_text

RECIPE = "the recipe"
ARMS = {
    RECIPE: [],
    "real scans alone": ["data.mix.procedural=0"],
    "procedural bodies alone": ["data.mix.inserted=0"],
    "deposits inserted once, two draws a scan": ["data.mix.inserted=0", "data.mix.labelled=0.75"],
    "no patches on what is bright": ["data.hard_share=0"],
    "every scan alike": ["data.by_size=false"],
    "Dice and cross-entropy": ["loss=dice_ce_classes"],
    "bone not a class": ["data.skeleton=false", "network.out_channels=1", "loss=component_dice_ce", "loss.weight=0.3"],
}
_DRAWS = 2
_SHORT = ["data.patch_size=[64,64,64]", "data.batch_size=4", "callbacks=default", "trainer.validate_every=1000000"]
_SHORT += ["data.mix.labelled=0", "optimizer.lr=4e-3"]


def main() -> None:
    """Insert deposits, train every arm, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--apart", nargs="+", required=True, help="case ids to measure on")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3, help="of the whole recipe")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    cases = insert_deposits(arguments.scans, arguments.work / "cases", set(arguments.apart))
    common = [
        "experiment=ct",
        *_SHORT,
        f"data.root={cases}",
        f"data.backgrounds={arguments.scans}",
        f"data.validation=[{','.join(arguments.apart)}]",
        f"data.synthesize.root={arguments.work}/bodies",
        f"data.cache={arguments.work}/cache",
        f"data.patches_per_epoch={4 * arguments.steps}",
        "trainer.max_epochs=1",
        *arguments.overrides,
    ]
    trainings = [(RECIPE, seed) for seed in range(arguments.repeats)] + [(name, 0) for name in ARMS if name != RECIPE]
    rows: dict[str, list[list[Score]]] = {name: [] for name in ARMS}
    subjects = {case.case_id: case.subject_id for case in read_manifest(cases).all}
    for name, seed in trainings:
        run = arguments.work / "runs" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
        if not _finished(run):
            given = [*common, *ARMS[name], f"seed={seed}", f"run_dir={run}"]
            subprocess.run([sys.executable, "-c", "from jdm_seg.cli import main; main()", "train", *given], check=True)
        rows[name].append(measure(run))
        write_text(arguments.work / "table.md", table(rows, subjects, arguments.steps))
    print((arguments.work / "table.md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Score:
    """Of one scan.

    Attributes:
        case_id: Which.
        f1: Of lesions, matched one to one.
        dice: Of voxels.
    """

    case_id: str
    f1: float
    dice: float


def insert_deposits(scans: Path, out: Path, apart: set[str]) -> Path:
    """Return a manifest of scans with deposits inserted: those kept apart are validation."""
    if not (out / "split.json").is_file():
        names = [case.case_id for case in find_scans(scans, "ct")]
        made = synthesize_dataset(
            out, modality="ct", cases=_DRAWS * len(names), seed=40, backgrounds=scans, workers=2
        ).all  # scan after scan, in the order of their names
        parts: dict[str, list[Case]] = {"training": [], "validation": []}
        for number, case in enumerate(made):
            parts["validation" if names[number % len(names)] in apart else "training"].append(case)
        write_manifest(out / "split.json", Manifest({split: tuple(members) for split, members in parts.items()}))
    return out / "split.json"


def measure(run: Path) -> list[Score]:
    """Return what a training found in scans that it was not trained on, by the threshold that suits it."""
    kept = run / "scores.json"
    if not kept.is_file():
        module = load_module(run / LAST_CHECKPOINT).eval()
        spacing, window = module.hparams["preprocess"]["spacing"], module.hparams["inference"]
        protocol = LesionProtocol(**module.hparams["evaluation"])
        scans = drawn_scans(run, preprocess_from(module.hparams["preprocess"]), "validation", 1)
        said, names = [], []
        for scan in takewhile(lambda scan: scan.origin == LABELLED, scans):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                logits = predict_logits(
                    scan.image,
                    lambda image: foreground_logit(as_levels(module(image))[0]),
                    roi_size=tuple(window["roi_size"]),
                    overlap=window["overlap"],
                ).float()
            said.append(ScanLogits(logits.numpy(), scan.label, scan.counted, spacing))
            names.append(scan.case_id)
        rule = LesionRule(window["min_lesion_mm3"])
        chosen = calibrate(said, protocol, rule=rule)
        rule = replace(rule, min_peak=chosen.min_peak)
        counts = lesion_counts(said, protocol, chosen.temperature, [(chosen.threshold, rule)])[0]
        cut = chosen.temperature * logit_of(chosen.threshold)
        rows = [
            (name, count.f1, dice((scan.logits > cut) & scan.counted, (scan.label == 1) & scan.counted))
            for name, count, scan in zip(names, counts, said, strict=True)
        ]
        write_text(kept, json.dumps(rows) + "\n")
    return [Score(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]


def table(rows: dict[str, list[list[Score]]], subjects: dict[str, str], steps: int) -> str:
    """Return the table of what was trained so far; figures of a recipe trained several times are means of them."""
    lines = [
        f"| {steps} steps from nothing | lesion F1 | Dice | F1, less that of the recipe |",
        "| --- | --- | --- | --- |",
    ]
    base = np.mean([[score.f1 for score in scores] for scores in rows[RECIPE]], axis=0)
    for name, repeats in rows.items():
        if not repeats:
            continue
        patients = [subjects[score.case_id] for score in repeats[0]]
        f1 = np.mean([[score.f1 for score in scores] for scores in repeats], axis=0)
        overlap = np.mean([[score.dice for score in scores] for scores in repeats], axis=0)
        figures = [bootstrap_ratio(values, None, patients) for values in (f1, overlap)]
        cells = [f"{e.value:.2f} ({e.ci_low:.2f} to {e.ci_high:.2f})" for e in figures]
        if name == RECIPE:
            single = sorted(float(np.nanmean([score.f1 for score in scores])) for scores in repeats)
            cells.append("single trainings: " + ", ".join(f"{value:.2f}" for value in single))
        else:
            paired = compare_paired(f1, base, patients)
            cells.append(f"{paired.difference:+.2f} ({paired.ci_low:+.2f} to {paired.ci_high:+.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _finished(run: Path) -> bool:
    record = run / "run.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("status") == "finished"


if __name__ == "__main__":
    main()
