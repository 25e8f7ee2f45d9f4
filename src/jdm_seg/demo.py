"""The whole way once, small: what ``make demo`` runs and what a new user sees first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jdm_seg.cases import Case
from jdm_seg.config import compose
from jdm_seg.errors import InputError
from jdm_seg.evaluate import evaluate_folders
from jdm_seg.export.run import export_run
from jdm_seg.inference.batch import predict_batch
from jdm_seg.inference.predict import ScanPredictor
from jdm_seg.model_folder import open_model
from jdm_seg.report import write_report
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.train import train

Figures = dict[str, dict[str, float | None]]

log = logging.getLogger(__name__)

EXPERIMENT = "ct_smoke"
SHIPPED_MODEL = "ct"
_NEW_CASES = 4
_NEW_SEED = 1000
"""Far from the training set's seed: bodies and deposits that the model has never seen."""


def run_demo(out: Path) -> Iterator[str]:
    """Synthesise, train, export, segment new scans, evaluate, report.

    A finished training is used again, so a second call only segments and measures.

    Args:
        out: Folder for everything.

    Yields:
        The closing lines: what was made and where.

    Raises:
        InputError: If a scan could not be segmented.
    """
    data = out / "data"
    composed = compose([f"experiment={EXPERIMENT}"])
    # paths do not pass through overrides, where '=' and brackets mean something
    config = replace(composed, data=replace(composed.data, root=str(data), cache=str(out / "cache")))
    run_dir, model_dir = out / "run", out / "model"
    if not (model_dir / "model.json").is_file():
        assert config.data.synthesize is not None
        log.info("1/5 synthesise %d small labelled CT cases", config.data.synthesize.cases)
        log.info("2/5 train a 3D U-Net on them (minutes on two cores)")
        train(replace(config, trainer=replace(config.trainer, progress=False)), run_dir)
        log.info("3/5 export to ONNX and compare engines")
        export_run(run_dir, model_dir)
    log.info("4/5 segment %d new scans in one batch", _NEW_CASES)
    new = synthesize_dataset(out / "new", modality="ct", cases=_NEW_CASES, seed=_NEW_SEED, preset="smoke", workers=2)
    results = out / "results"
    trained = _segment_and_evaluate(model_dir, out / "new", out / "results_trained", out / "evaluation_trained")
    shipped = _segment_and_evaluate(SHIPPED_MODEL, out / "new", results, out / "evaluation")
    log.info("5/5 write the report")
    page = write_report(results, out / "new" / "images")
    yield from _closing(out, new.all[0], {"trained just now": trained, f"shipped '{SHIPPED_MODEL}'": shipped}, page)


def _segment_and_evaluate(model: Path | str, new: Path, results: Path, evaluation: Path) -> Figures:
    """Segment the new scans in one batch and return the figures of the evaluation."""
    batch = predict_batch(new / "images", results, ScanPredictor(open_model(model)), overwrite=True)
    if batch.failed:
        raise InputError(str(batch.failed[0]["error"]))
    figures: Figures = evaluate_folders(results, new / "labels", evaluation)["figures"]
    return figures


def _closing(out: Path, first: Case, measured: dict[str, Figures], page: Path) -> Iterator[str]:
    folder = out / "results" / first.case_id
    summary = out / "evaluation" / "summary.json"
    yield ""
    yield f"model    {out / 'model'} (model.onnx, model.json, MODEL_CARD.md)"
    yield f"mask     {folder / 'mask.nii.gz'}"
    yield f"table    {folder / 'lesions.csv'}; all {_NEW_CASES} scans in {out / 'results' / 'cohort.csv'}"
    yield f"report   {page} (open it in a browser)"
    for model, figures in measured.items():
        f1, dice = (figures[name]["mean"] for name in ("lesion_f1", "dice"))
        yield f"measured lesion F1 {_shown(f1)}, Dice {_shown(dice)} on {_NEW_CASES} new synthetic scans, model {model}"
    yield f"         all figures in {summary}; mask, table and report are the shipped model's"
    yield "A model trained for minutes on synthetic limbs shows that the way works; it is not for real scans."


def _shown(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.2f}"
