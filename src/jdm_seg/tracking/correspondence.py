"""Which lesions of two registered scans are one and the same, merged and split ones included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from jdm_seg.metrics.matching import assign

REACH_MM = 6.0
"""Surfaces that far apart after registration may be one lesion: twice what registration leaves (assumed)."""
JOIN_MM = 3.0
JOIN_SHARE = 0.5
"""A lesion left over joins one that so much of it lies within :data:`JOIN_MM` of."""

Points = NDArray[np.float64]
Group = tuple[tuple[int, ...], tuple[int, ...]]
"""Lesion numbers at baseline and at follow-up; one side may be empty."""


def match_groups(before: dict[int, Points], after: dict[int, Points]) -> list[Group]:
    """Group lesions of two scans that are one and the same.

    Each lesion is first matched to at most one: the sum of likenesses is largest over all pairs whose surfaces come
    within :data:`REACH_MM`. Likeness falls with the distance of the centres and of the sizes. What is left over joins
    a lesion of the other scan that it lies on.

    Args:
        before: Voxel centres of each baseline lesion, brought to follow-up, by number.
        after: The same of follow-up.

    Returns:
        Numbers at baseline and follow-up of every group; every lesion is in one.
    """
    trees = ({n: KDTree(p) for n, p in before.items()}, {n: KDTree(p) for n, p in after.items()})
    pairs, scores = [], []
    for mine, other in _near_pairs(before, after):
        gap = _gap(before[mine], trees[1][other])
        if gap <= REACH_MM:
            pairs.append((mine, other))
            scores.append(_likeness(before[mine], after[other], gap))
    groups: dict[int, tuple[set[int], set[int]]] = {}
    of_before: dict[int, int] = {}
    of_after: dict[int, int] = {}
    order = np.lexsort(np.array(pairs).T[::-1]) if pairs else []
    candidates = np.array([pairs[i] for i in order], dtype=np.int64).reshape(-1, 2)
    for key, (mine, other) in enumerate(assign(candidates, np.array([scores[i] for i in order])).tolist()):
        groups[key] = ({mine}, {other})
        of_before[mine], of_after[other] = key, key
    for mine, points in before.items():
        if mine not in of_before:
            target = _lies_on(points, trees[1], set(of_after))
            key = of_after[target] if target is not None else len(groups)
            groups.setdefault(key, (set(), set()))[0].add(mine)
    for other, points in after.items():
        if other not in of_after:
            target = _lies_on(points, trees[0], set(of_before))
            key = of_before[target] if target is not None else len(groups)
            groups.setdefault(key, (set(), set()))[1].add(other)
    return [(tuple(sorted(mine)), tuple(sorted(other))) for mine, other in groups.values()]


def _near_pairs(before: dict[int, Points], after: dict[int, Points]) -> list[tuple[int, int]]:
    """Return pairs whose bounding boxes come within reach."""
    if not before or not after:
        return []
    boxes = [
        (np.array([p.min(axis=0) for p in side.values()]), np.array([p.max(axis=0) for p in side.values()]))
        for side in (before, after)
    ]
    (low0, high0), (low1, high1) = boxes
    near = (low0[:, None] <= high1[None] + REACH_MM).all(axis=2) & (low1[None] <= high0[:, None] + REACH_MM).all(axis=2)
    names = (list(before), list(after))
    return [(names[0][i], names[1][j]) for i, j in np.argwhere(near).tolist()]


def _gap(points: Points, tree: KDTree) -> float:
    return float(tree.query(points, k=1)[0].min())


def _likeness(mine: Points, other: Points, gap: float) -> float:
    """Return a score above 0: centres near each other relative to the lesions' own size, and sizes alike."""
    radius = [np.cbrt(len(points)) for points in (mine, other)]
    extent = 0.5 * max(float(np.ptp(points, axis=0).max()) for points in (mine, other))
    away = float(np.linalg.norm(mine.mean(axis=0) - other.mean(axis=0)))
    size = min(radius) / max(radius)
    return float(np.exp(-((away / (REACH_MM + extent)) ** 2)) * (0.3 + 0.7 * size) / (1 + gap / REACH_MM))


def _lies_on(points: Points, trees: dict[int, KDTree], matched: set[int]) -> int | None:
    """Return the matched lesion that most of these points lie on, None where less than half does on any."""
    best, share = None, JOIN_SHARE
    for number in matched:
        tree = trees[number]
        if (points.min(axis=0) > tree.maxes + JOIN_MM).any() or (points.max(axis=0) < tree.mins - JOIN_MM).any():
            continue
        on = float((tree.query(points, k=1, distance_upper_bound=JOIN_MM)[0] <= JOIN_MM).mean())
        if on >= share:
            best, share = number, on
    return best
