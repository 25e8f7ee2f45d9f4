"""Fit how a CT model's lesions are drawn on the scan's own grid, and put it into the model folder.

    python scripts/fit_outlines.py MODEL --training SET [SET ...] --validation SET

SET is a data set of labelled cases on their scans' own grids (``jdm-seg synthesize OUT --backgrounds SCANS``); those
for validation are of other scans. Writes MODEL/outlines.json, which ``predict`` uses without being asked for, and
tells of it in the model's card.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jdm_seg.cases import manifest_path, read_manifest
from jdm_seg.export.model_card import with_outlines
from jdm_seg.export.outlines import fit_outlines
from jdm_seg.model_folder import CARD_FILE, open_model
from jdm_seg.volume import write_text


def main() -> None:
    """Fit, write, say what it does to Dice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--training", type=Path, nargs="+", required=True)
    parser.add_argument("--validation", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    model = open_model(arguments.model)
    training, validation = (
        [case for path in paths for case in read_manifest(manifest_path(path)).all]
        for paths in (arguments.training, arguments.validation)
    )
    refiner = fit_outlines(model, training, validation, on_case=lambda case_id: print(case_id, flush=True))
    refiner.write(model.outlines)
    card = model.path / CARD_FILE
    if card.is_file():
        write_text(card, with_outlines(card.read_text(encoding="utf-8"), refiner))
    facts = refiner.fitted
    print(
        f"share {refiner.share:g}, cut {refiner.cut:g}; Dice on {facts['chosen_on']} validation cases "
        f"{facts['dice_before']:.3f} before, {facts['dice']:.3f} after"
    )


if __name__ == "__main__":
    main()
