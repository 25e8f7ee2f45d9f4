"""Put what benchmarks found, and pictures of the worst cases, into a model's card.

    python scripts/card_figures.py src/jdm_seg/models/ct bench/ct_phantom bench/ct_hybrid ...

Each folder is the output of ``jdm-seg benchmark ... --method threshold --method <model>``. Replaces the section of an
earlier call. Pictures are drawn of synthetic benchmarks only: a card that travels must not hold a person's scan.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jdm_seg.benchmark.table import table_lines
from jdm_seg.model_folder import CARD_FILE, open_model
from jdm_seg.pictures import fullest_slice, grey_limits
from jdm_seg.volume import read_volume, write_text

HEADING = "## Benchmarks"
PICTURE = "failures.png"
_WORST = 4
_WINDOW_HU = (-200.0, 600.0)


def main() -> None:
    """Read the results, write the card and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("benchmarks", type=Path, nargs="+")
    arguments = parser.parse_args()
    card = arguments.model / CARD_FILE
    text = card.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
    modality = open_model(arguments.model).spec.preprocess.modality
    parts = [HEADING, "Mean over cases with 95 % intervals, beside the threshold that needs no network."]
    for folder in arguments.benchmarks:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        lines = table_lines(results)
        parts.append("\n".join(["#" + line if line.startswith("#") else line for line in lines]).replace("## ", "### "))
        if results["kind"] == "phantom":
            worst = _worst_cases(folder / arguments.model.name / "evaluation" / "cases.csv")
            _draw_failures(folder, arguments.model.name, worst, arguments.model / PICTURE, modality)
            shown = "; ".join(f"{row['case_id']}: {_short(row)}" for row in worst)
            parts.append(
                f"![The {_WORST} worst cases of {results['benchmark']}]({PICTURE})\n\n"
                f"*The worst cases by lesion F1, each in the slice with most of truth and prediction: truth in orange, "
                f"prediction in blue. {shown}.*"
            )
    write_text(card, text + "\n\n" + "\n\n".join(parts) + "\n")


def _worst_cases(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("lesion_f1") not in (None, "", "nan")]
    return sorted(rows, key=lambda row: (float(row["lesion_f1"]), -float(row["lesion_fp"])))[:_WORST]


def _short(row: dict[str, str]) -> str:
    found, missed, false = (int(float(row[f"lesion_{name}"])) for name in ("tp", "fn", "fp"))
    return f"{found} found, {missed} missed, {false} false"


def _draw_failures(folder: Path, method: str, rows: list[dict[str, str]], path: Path, modality: str) -> None:
    figure = Figure(figsize=(3.2 * len(rows), 3.4), dpi=80, facecolor="black", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        case = row["case_id"]
        scan, truth, said = (read_volume(path).to_canonical() for path in _files(folder, method, case))
        both = (truth.array > 0) | (said.array > 0)
        picture, _, aspect = fullest_slice(scan.array, both, scan.spacing)
        low, high = grey_limits(picture, modality, _WINDOW_HU)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        for mask, colour in ((truth, "orange"), (said, "deepskyblue")):
            outline, _, _ = fullest_slice(mask.array > 0, both, scan.spacing)
            if outline.any():
                axes.contour(outline.astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
        axes.set_title(case, color="white", fontsize=7)
        axes.set_axis_off()
    canvas.print_figure(path, facecolor="black")


def _files(folder: Path, method: str, case: str) -> list[Path]:
    data = folder / "data"
    prediction = folder / method / "predictions" / case / "mask.nii.gz"
    return [data / "images" / f"{case}.nii.gz", data / "labels" / f"{case}.nii.gz", prediction]


if __name__ == "__main__":
    main()
