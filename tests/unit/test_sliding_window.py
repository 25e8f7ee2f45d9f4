"""Windows: every voxel seen, blending worked out by hand, air skipped."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from jdm_seg.inference.sliding_window import (
    EMPTY_LOGIT,
    gaussian_importance,
    predict_logits,
    stream_logits,
    window_starts,
)


def predict(image, predictor, roi=(8, 8, 8), overlap=0.25, batch=1):
    return predict_logits(image, predictor, roi_size=roi, overlap=overlap, batch_size=batch)


@pytest.mark.parametrize(
    ("extent", "window", "overlap", "expected"),
    [
        (8, 8, 0.5, [0]),
        (5, 8, 0.5, [0]),
        (16, 8, 0.0, [0, 8]),
        (16, 8, 0.5, [0, 4, 8]),
        (17, 8, 0.0, [0, 4, 9]),
        (9, 8, 0.25, [0, 1]),
    ],
)
def test_starts_by_hand(extent, window, overlap, expected):
    assert window_starts(extent, window, overlap) == expected


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 9, 20), (17, 8, 30)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_a_voxelwise_network_comes_back_unchanged(shape, overlap):
    image = torch.rand(shape)
    assert torch.allclose(predict(image, lambda x: 3 * x - 1, overlap=overlap), 3 * image - 1, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 5])
def test_batches_change_nothing(batch):
    image = torch.rand(20, 17, 12)

    def network(x):
        return torch.nn.functional.avg_pool3d(x, 3, 1, 1)

    assert torch.allclose(predict(image, network), predict(image, network, batch=batch), atol=1e-6)


def test_two_windows_blend_by_their_gaussians():
    """Windows [0, 8) and [4, 12): the first says 1, the second 3; between them the weighted mean, by hand."""
    answers = iter((1.0, 3.0))
    logits = predict(torch.ones(12, 8, 8), lambda x: torch.full_like(x, next(answers)), overlap=0.5)[:, 4, 4]
    at_centre = np.exp(-0.5 * 0.5**2) ** 2  # the other two axes, half a voxel from the window's centre
    weight = np.exp(-0.5 * ((np.arange(8) - 3.5) / 1) ** 2)
    first, second = (np.maximum(w * at_centre, 1e-3) for w in (weight[4:], weight[:4]))
    expected = (first * 1 + second * 3) / (first + second)
    assert np.allclose(logits[:4], 1.0)
    assert np.allclose(logits[8:], 3.0)
    assert np.allclose(logits[4:8].numpy(), expected, atol=1e-5)


def test_windows_of_air_are_not_asked():
    asked = []

    def network(x):
        asked.append(x.shape[0])
        return torch.zeros_like(x)

    image = torch.full((32, 8, 8), -1.0)
    image[3, 3, 3] = 0.5
    logits = predict(image, network, overlap=0.0)
    assert sum(asked) == 1
    assert (logits[:8] == 0).all()
    assert (logits[8:] == EMPTY_LOGIT).all()


def test_close_to_monai_with_the_same_weights():
    """MONAI's inferer with Gaussian weights is the independent reference; window positions agree when they tile."""
    torch.manual_seed(0)
    image = torch.rand(16, 24, 16)
    layer = torch.nn.Conv3d(1, 1, 3, padding=1)
    with torch.inference_mode():
        ours = predict(image, layer, overlap=0.5)
        theirs = sliding_window_inference(
            image[None, None], (8, 8, 8), 4, layer, overlap=0.5, mode="gaussian", sigma_scale=0.125
        )
    assert torch.allclose(ours, theirs[0, 0], atol=1e-4)


def test_importance_peaks_in_the_centre_and_never_vanishes():
    weights = gaussian_importance((8, 6, 4))
    assert weights.shape == (8, 6, 4)
    assert weights.max() == weights[3, 2, 1]
    assert weights.min() >= 1e-3
    assert torch.equal(weights, weights.flip(0, 1, 2))


class Planes:
    """An image that counts what is asked of it."""

    def __init__(self, image, body=None):
        self.image, self.mask, self.asked = image.permute(2, 1, 0), body, []
        self.shape = tuple(image.shape)

    def planes(self, start, stop):
        self.asked.append((start, stop))
        return self.image[start:stop]

    def body(self, start, stop):
        return None if self.mask is None else self.mask.permute(2, 1, 0)[start:stop]


def test_a_stream_asks_for_every_plane_once_and_gives_what_the_whole_gives():
    image = torch.rand(13, 10, 37) - 0.3
    source = Planes(image)

    def network(x):
        return torch.nn.functional.avg_pool3d(x, 3, 1, 1)

    parts = list(stream_logits(source, network, roi_size=(8, 8, 8), overlap=0.5))
    assert max(len(part) for part in parts) <= 8
    assert source.asked[0] == (0, 8)
    assert all(stop == start for (_, stop), (start, _) in pairwise(source.asked))
    assert source.asked[-1][1] == 37
    assert torch.allclose(torch.cat(parts).permute(2, 1, 0), predict(image, network, overlap=0.5), atol=1e-6)


def test_windows_follow_two_legs_and_leave_out_the_table():
    """Two legs far apart over a table: the network sees the legs only, and every voxel of them."""
    image = torch.full((80, 30, 16), -1.0)
    body = torch.zeros(image.shape, dtype=torch.bool)
    for leg in (slice(4, 14), slice(62, 74)):
        body[leg, 8:18] = True
    image[body] = 0.5
    image[:, 26:28] = 0.1  # the table
    asked = []

    def network(x):
        asked.append(x)
        return x * 2

    logits = torch.cat(list(stream_logits(Planes(image, body), network, roi_size=(16, 16, 16), overlap=0.25)))
    logits = logits.permute(2, 1, 0)
    assert len(asked) == 2
    assert torch.allclose(logits[body], image[body] * 2)
    assert (logits[20:58] == EMPTY_LOGIT).all()


def test_an_image_smaller_than_the_window_is_padded_with_air():
    seen = []
    logits = predict(torch.rand(5, 6, 3), lambda x: (seen.append(x), x)[1])
    assert logits.shape == (5, 6, 3)
    assert seen[0].shape == (1, 1, 8, 8, 8)
    assert (seen[0][0, 0, 5:] == -1).all()
    assert (seen[0][0, 0, :, :, 3:] == -1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_accumulates_where_the_predictor_answers():
    image = torch.rand(20, 17, 12)
    parts = list(stream_logits(Planes(image), lambda x: 2 * x.cuda(), roi_size=(8, 8, 8), overlap=0.5))
    assert all(part.is_cuda for part in parts)
    assert torch.allclose(torch.cat(parts).permute(2, 1, 0).cpu(), 2 * image, atol=1e-5)
