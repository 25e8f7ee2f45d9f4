"""Lesion-wise metrics of one large pair of masks beside panoptica, in one process: read the ratio.

A whole body at about 1 mm: 400×512×512 voxels with about 400 lesions on each side. Ours finds the components, matches
them, counts, computes F1 and panoptic quality and lists every lesion; panoptica computes Dice and intersection over
union of the matched instances. The median of our runs is set against the fastest of theirs.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jdm_seg.lesions import label_lesions, measure_lesions
from jdm_seg.metrics.lesion import LesionCounts, PanopticQuality, find_both, match_lesions
from jdm_seg.metrics.protocol import PROTOCOLS
from jdm_seg.scoring import lesion_rows, score_case
from jdm_seg.volume import Grid

SHAPE = (400, 512, 512)
LESIONS = 430
TARGET = 8.0
MEMORY_GB = 3.0

Mask = NDArray[np.bool_]


def make_pair(shape: tuple[int, int, int], lesions: int, seed: int = 0) -> tuple[Mask, Mask]:
    """Draw balls of 3 to 16 mm on both sides: most moved a little, some on one side alone."""
    rng = np.random.default_rng(seed)
    sides = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for _ in range(lesions):
        radius = rng.uniform(1.5, 8.0)
        reach = int(np.ceil(radius))
        ball = ((np.indices((2 * reach + 1,) * 3) - reach) ** 2).sum(axis=0) <= radius**2
        centre = rng.integers(reach + 3, np.array(shape) - reach - 3)
        for side in sides:
            if rng.random() < 0.95:
                low = centre + rng.integers(-1, 2, 3) - reach
                side[tuple(slice(start, start + 2 * reach + 1) for start in low)] |= ball
    return sides


def seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Return how long each call took."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return times


def peak_gb() -> float:
    """Return the largest memory this process has held so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main(shape: tuple[int, int, int] = SHAPE, lesions: int = LESIONS) -> None:
    """Run both and print the ratio."""
    prediction, reference = make_pair(shape, lesions)
    grid = Grid(shape, np.eye(4))

    def score(name: str) -> tuple[LesionCounts, PanopticQuality, int]:
        both = find_both(prediction, reference, grid.spacing, PROTOCOLS[name])
        matched = match_lesions(*both, grid, PROTOCOLS[name])
        return matched.count(), matched.quality(), len(lesion_rows("case", both, matched, grid))

    def tables() -> None:
        for mask in (prediction, reference):
            measure_lesions(label_lesions(mask, grid.spacing), grid)

    counts, quality, rows = score("panoptica")
    print(f"{'x'.join(map(str, shape))} voxels, {rows} lesions on both sides, {counts.tp} matched")
    mine = {}
    for name in ("panoptica", "default"):
        mine[name] = float(np.median(seconds(lambda name=name: score(name), 5)))  # type: ignore[misc]
        print(f"components to lesion table, {name:9}    {mine[name]:7.2f} s, peak {peak_gb():.2f} GB")
    print(f"tables of jdm-seg predict, both sides    {min(seconds(tables, 2)):7.2f} s")
    whole = seconds(lambda: score_case("case", prediction, reference, grid, PROTOCOLS["default"]), 1)
    print(f"every figure of jdm-seg evaluate         {whole[0]:7.2f} s")
    memory = peak_gb()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import panoptica

    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(),
        instance_metrics=[panoptica.Metric.DSC, panoptica.Metric.IOU],
        global_metrics=[panoptica.Metric.DSC],
    )
    sides = [mask.astype(np.uint8) for mask in (prediction, reference)]
    results: list[object] = []
    theirs = seconds(lambda: results.append(evaluator.evaluate(*sides, verbose=False)), 2)
    result = next(iter(results[0].values()))  # type: ignore[attr-defined]
    same = result.tp == counts.tp and np.allclose((result.rq, result.pq), (counts.f1, quality.panoptic), atol=1e-6)
    print(f"panoptica, DSC and IoU                   {min(theirs):7.2f} s, same counts, F1 and PQ: {same}")
    ratios = {name: min(theirs) / value for name, value in mine.items()}
    verdict = "met" if min(ratios.values()) >= TARGET and memory < MEMORY_GB else "MISSED"
    print(f"{ratios['panoptica']:.1f} times faster by its protocol, {ratios['default']:.1f} by ours, {memory:.2f} GB")
    print(f"target {TARGET:.0f} times under {MEMORY_GB:.0f} GB: {verdict}")


if __name__ == "__main__":
    main()
