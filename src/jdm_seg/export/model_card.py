"""The page that travels with a model: what it is for, what it saw, and how far it can be trusted."""

from __future__ import annotations

from typing import Any

from jdm_seg.inference.candidates import FEATURES, CandidateClassifier
from jdm_seg.inference.outlines import REACH_MM, OutlineRefiner
from jdm_seg.model_folder import OUTLINES_FILE, ModelFolder, ModelSpec

MB = 1_000_000
_OUTLINES = f"**Outlines** (`{OUTLINES_FILE}`)"
_PARITY = "**Parity with the trained network**"


def model_card(model: ModelFolder, record: dict[str, Any]) -> str:
    """Return the card in Markdown.

    Args:
        model: The folder, its graphs written and its sidecar final.
        record: The run's ``run.json``.
    """
    spec = model.spec
    validation = "\n".join(f"| {name} | {_shown(value)} |" for name, value in (record.get("validation") or {}).items())
    size = model.onnx.stat().st_size / MB
    stored = "weights stored in float16, computed in float32" if spec.weights == "f16" else "weights in float32"
    return f"""# {spec.name}

Segments calcinosis on {spec.preprocess.modality.upper()}. Research use only; not a medical device.

{f"**Caution.** {spec.caution}{chr(10) * 2}" if spec.caution else ""}**Trained on.** {spec.training_data}

**Input.** One channel, RAS, {" x ".join(f"{s:g}" for s in spec.preprocess.spacing)} mm{_slices(spec)}, windows of
{" x ".join(map(str, spec.patch_size))} voxels. A voxel counts from a probability of {spec.threshold:g};
probability = sigmoid(logit / {spec.temperature:g}).

**File.** `model.onnx`, {size:.1f} MB, {stored}, opset {spec.parity.get("opset", "?")},
{"any window" if spec.parity.get("any_window") else "this window alone"}.

**Figures while training** (a progress bar, not a benchmark):

| figure | value |
| --- | --- |
{validation}

**Calibration.** {_calibration(spec)}

{_second_stage(model)}{_PARITY}, on windows and {spec.parity.get("scans", 0)} whole
scans; all of it is in `parity.json`:

| engine | precision | largest logit difference | lesion F1 of the masks | offered |
| --- | --- | --- | --- | --- |
{_parity(spec)}

Made by jdm_seg {record["jdm_seg"]}, seed {record["seed"]}, {record.get("steps", "?")} steps.
"""


def _slices(spec: ModelSpec) -> str:
    if not spec.preprocess.follow_slices:
        return ""
    across = max(zip(spec.preprocess.spacing, "xyz", strict=True))[1]
    return f" (thick slices of any orientation are turned to lie across {across} and keep their distance)"


def _calibration(spec: ModelSpec) -> str:
    facts = spec.calibration
    data = f"{facts['scans']} scans ({', '.join(facts['data'])})"
    low, high = facts["plateau"]
    threshold = (
        f"Lesion F1 {_shown(facts['lesion_f1'])} at the default threshold, as good from {low:g} to {high:g}, on {data}."
    )
    before, after = facts["before"], facts["after"]
    if before is None:
        return f"{threshold} {facts['note'].capitalize()}."
    note = f" Note: {facts['note']}." if facts["note"] else ""
    return (
        f"{threshold} Expected calibration error {before['ece']:.3f} before and {after['ece']:.3f} after the "
        f"temperature, Brier score {before['brier']:.3f} and {after['brier']:.3f}, on the same scans: an optimistic "
        f"figure.{note}"
    )


def _second_stage(model: ModelFolder) -> str:
    if not model.candidates.is_file():
        return ""
    classifier = CandidateClassifier.read(model.candidates)
    facts = classifier.fitted
    return f"""**A second stage** (`candidates.json`) judges each lesion as a whole by {len(FEATURES)} properties and
drops those below a score of {classifier.min_score:g}. Fitted on {facts["deposits"]} deposits and {facts["false"]} false
lesions that the network found in {facts["scans"]} training scans. On {facts["chosen_on"]} validation scans, where the
score was chosen, lesion F1 is {facts["lesion_f1"]:.3f}, and {facts["lesion_f1_by_peak"]:.3f} by the peak of the
probability alone. A runner of `model.onnx` without the second stage drops lesions with a peak below
{model.spec.min_peak:g}.

"""


def with_outlines(card: str, refiner: OutlineRefiner) -> str:
    """Return a card that tells of outlines fitted to its model; what an earlier fit wrote there is replaced."""
    facts = refiner.fitted
    told = f"""{_OUTLINES} are drawn anew on the scan's own voxels within {REACH_MM:g} mm of what the network
found, by a perceptron fitted on {facts["voxels"]:,} voxels of {facts["cases"]} cases. How far it is trusted (share
{refiner.share:g}, cut {refiner.cut:g}) was chosen on {facts["chosen_on"]} validation cases: Dice
{facts["dice_before"]:.3f} before, {facts["dice"]:.3f} after. A runner of `model.onnx`
alone has the network's outlines."""
    paragraphs = [part for part in card.split("\n\n") if not part.startswith(_OUTLINES)]
    places = [number for number, part in enumerate(paragraphs) if part.startswith(_PARITY)]
    paragraphs.insert(places[0] if places else len(paragraphs), told)
    return "\n\n".join(paragraphs)


def _parity(spec: ModelSpec) -> str:
    return "\n".join(
        f"| {engine} | {precision} | {_small(row['max_logit_difference'])} | {_shown(row['lesion_f1'])} "
        f"| {'yes' if row['offered'] else 'no'} |"
        for engine, rows in spec.parity["engines"].items()
        for precision, row in rows.items()
    )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _small(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1e}"
