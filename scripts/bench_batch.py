"""How much a batch gains by reading ahead and writing behind: the same scans with and without, in turn, in one process.

    python scripts/bench_batch.py --model model/ [--cases 6] [--rounds 3]

Prints, for each way, the median wall time over the sum of the stages (1: nothing overlaps; below: something does), and
checks that the results are the same byte for byte. The gain is largest where the network runs on a GPU; on a CPU all
stages share the cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.inference.batch import BatchOptions, predict_batch
from jdm_seg.inference.prediction import Segmenter
from jdm_seg.synthesis.dataset import synthesize_dataset


def main() -> None:
    """Synthesise limbs, run the batch both ways, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="threshold", help="model folder, or threshold")
    parser.add_argument("--scans", type=Path, help="folder of scans instead of synthetic limbs")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    predictor = _predictor(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        scans = arguments.scans
        if scans is None:
            synthesize_dataset(base / "set", modality="ct", cases=arguments.cases, seed=1, preset="limb", workers=2)
            scans = base / "set" / "images"
        shares: dict[bool, list[float]] = {True: [], False: []}
        walls: dict[bool, list[float]] = {True: [], False: []}
        for number in range(arguments.rounds):
            for overlap in (True, False) if number % 2 else (False, True):
                out = base / f"{overlap}"
                begin = time.perf_counter()
                predict_batch(scans, out, predictor, options=BatchOptions(overwrite=True, overlap=overlap))
                wall = time.perf_counter() - begin
                stages = json.loads((out / "run.json").read_text())["stage_seconds"]
                walls[overlap].append(wall)
                shares[overlap].append(wall / sum(sum(one.values()) for one in stages.values()))
        for overlap in (False, True):
            print(
                f"{'overlapped' if overlap else 'in turn':10}  wall {statistics.median(walls[overlap]):6.1f} s  "
                f"wall / sum of stages {statistics.median(shares[overlap]):.2f}"
            )
        ratio = statistics.median(a / b for a, b in zip(walls[False], walls[True], strict=True))
        print(f"in turn takes {ratio:.2f} times as long as overlapped")
        same = all(
            (base / "True" / path.relative_to(base / "False")).read_bytes() == path.read_bytes()
            for path in (base / "False").rglob("*")
            if path.is_file() and path.name not in ("run.json", "cohort.csv", ".stamp.json", ".lock")
        )
        print("results are the same byte for byte" if same else "RESULTS DIFFER")


def _predictor(model: str) -> Segmenter:
    if model == "threshold":
        return ThresholdSegmenter("ct")
    from jdm_seg.inference.predict import ScanPredictor
    from jdm_seg.model_folder import open_model

    return ScanPredictor(open_model(model))


if __name__ == "__main__":
    main()
