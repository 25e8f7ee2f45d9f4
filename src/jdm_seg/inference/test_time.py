"""Wrappers of a :data:`~jdm_seg.inference.sliding_window.Predictor`: mirrored windows, and a temperature."""

from __future__ import annotations

import itertools

from torch import Tensor

from jdm_seg.inference.sliding_window import Predictor

AXES = "xyz"


def with_flips(predictor: Predictor, axes: str) -> Predictor:
    """Return a predictor whose answer is the mean logit over all mirrorings of a window along some axes.

    Flip only what training flipped (``flip_axes`` of the model folder): this package's augmentation mirrors along
    all three axes, because a deposit in fat or muscle has no up, front or side; a network that never saw a mirrored
    body would answer a mirrored one with something else, and the mean would be worse than the plain answer.

    Args:
        predictor: (B, 1, X, Y, Z) → logits of the same shape.
        axes: Letters of ``xyz``; empty: the predictor itself. n letters ask the network 2^n times.

    Raises:
        ValueError: If ``axes`` holds another letter.

    Source: test-time mirroring as in nnU-Net (Isensee et al., Nat. Methods 2021), with logits in place of softmax.
    """
    if not set(axes) <= set(AXES) or len(set(axes)) != len(axes):
        raise ValueError(f"expected axes to be letters of {AXES}, each once, but got {axes!r}")
    if not axes:
        return predictor
    dims = [2 + AXES.index(axis) for axis in axes]
    flips = [chosen for count in range(len(dims) + 1) for chosen in itertools.combinations(dims, count)]

    def predict(windows: Tensor) -> Tensor:
        total = predictor(windows)
        for chosen in flips[1:]:  # the first mirrors nothing
            # contiguous: ONNX engines take arrays, and a mirrored view has no memory order of its own
            total = total + predictor(windows.flip(chosen).contiguous()).flip(chosen)
        return total / len(flips)

    return predict


def with_temperature(predictor: Predictor, temperature: float) -> Predictor:
    """Return a predictor whose logits are divided by a temperature, so that their sigmoid is a calibrated probability.

    Windows are averaged linearly, so it does not matter that they are divided before.

    Raises:
        ValueError: If the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"expected temperature to be above 0, but got {temperature}")
    if temperature == 1:
        return predictor
    return lambda windows: predictor(windows) / temperature
