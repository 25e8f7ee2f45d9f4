"""The space-to-depth U-Net and the reduction of classes to one logit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jdm_seg.errors import InputError
from jdm_seg.networks import (
    SpaceToDepthUNet,
    _beside,
    _depth_to_space,
    _over_box,
    _running_max,
    _running_mean,
    _space_to_depth,
    as_levels,
    build_network,
    foreground_logit,
)

SMALL = {"_target_": "jdm_seg.networks.SpaceToDepthUNet", "channels": [8, 12, 16]}


def test_space_to_depth_moves_every_voxel_once():
    image = torch.arange(2 * 4 * 6 * 8.0).reshape(1, 2, 4, 6, 8)
    blocks = _space_to_depth(image, (2, 2, 2))
    assert blocks.shape == (1, 16, 2, 3, 4)
    # by hand: channel 0, offset (1, 0, 1) of block (1, 2, 3) is voxel (3, 4, 7)
    assert blocks[0, 0b101, 1, 2, 3] == image[0, 0, 3, 4, 7]
    assert sorted(blocks.flatten().tolist()) == sorted(image.flatten().tolist())


@pytest.mark.parametrize("block", [(2, 2, 2), (2, 1, 2), (1, 3, 4)])
def test_depth_to_space_is_the_inverse(block):
    image = torch.randn(2, 1, 4, 6, 8)
    blocks = _space_to_depth(image, block)
    assert blocks.shape[2:] == tuple(n // side for n, side in zip((4, 6, 8), block, strict=True))
    assert torch.equal(_depth_to_space(blocks, block), image)


def test_a_block_of_one_slice_keeps_slices_apart():
    network = build_network({**SMALL, "block": [2, 1, 2]}).eval()
    assert network(torch.randn(1, 1, 16, 8, 16)).shape == (1, 1, 16, 8, 16)
    assert network.stem.weight.shape[1] == 4
    assert network.head.weight.shape[0] == 4


def test_depth_to_space_keeps_channels_apart():
    features = torch.zeros(1, 16, 1, 1, 1)
    features[0, 2 * 5 + 1] = 1  # offset 5 = (1, 0, 1), class 1
    voxels = _depth_to_space(features, (2, 2, 2))
    assert voxels.shape == (1, 2, 2, 2, 2)
    assert voxels.nonzero().tolist() == [[0, 1, 1, 0, 1]]


@pytest.mark.parametrize("box", [(1, 1, 1), (3, 1, 3), (1, 5, 1), (9, 3, 7), (21, 1, 21)])
def test_figures_over_boxes_are_those_of_pooling(box):
    """Against PyTorch's pooling, borders too."""
    image = torch.randn(2, 1, 22, 8, 32)
    half = [side // 2 for side in box]
    mean = F.avg_pool3d(image, box, 1, half, count_include_pad=False)
    torch.testing.assert_close(_over_box(image, box, _running_mean), mean, atol=1e-5, rtol=0)
    assert torch.equal(_over_box(image, box, _running_max), F.max_pool3d(image, box, 1, half))


def test_a_dark_spot_stands_out_from_what_is_around_it_at_any_gain():
    """Muscle of 0.5 around a spot of 0.1, by hand: contrast with a mean of (8 * 0.5 + 0.1) / 9."""
    signal = torch.full((1, 1, 9, 4, 9), 0.5)
    signal[0, 0, 4, 2, 4] = 0.1
    contrast, high, low, mean = _beside(signal - 1, (3, 1, 3))[0]
    around = (8 * 0.5 + 0.1) / 9
    assert mean[4, 2, 4] == pytest.approx(around - 1)
    assert contrast[4, 2, 4] == pytest.approx((0.1 - around) / (around + 0.025))
    assert high[4, 2, 4] == pytest.approx(0.4 / 0.15 - 1)
    assert low[4, 2, 4] == pytest.approx(-1)
    assert low[3, 2, 4] == pytest.approx(2 * 0.4 / 0.55 - 1)
    # two slices off nothing is seen of it, and in air nothing blows up
    assert contrast[4, 0, 4] == pytest.approx(0, abs=1e-6)
    assert _beside(torch.full((1, 1, 8, 8, 8), -1.0), (9, 1, 9)).isfinite().all()


def test_surroundings_reach_the_network():
    network = build_network({**SMALL, "surroundings": [[3, 1, 3], [9, 1, 9]], "windows": [[-1, 1], [-1, 0]]})
    assert network.stem.in_channels == 8 * (2 + 2 * 4)
    assert network.eval()(torch.randn(1, 1, 16, 16, 16)).shape == (1, 1, 16, 16, 16)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_output_has_the_inputs_size_and_starts_near_the_prior(classes, norm):
    network = build_network({**SMALL, "out_channels": classes, "norm": norm}).eval()
    image = torch.randn(2, 1, 16, 24, 32)
    logits = network(image)
    assert logits.shape == (2, classes, 16, 24, 32)
    probability = torch.sigmoid(foreground_logit(logits))
    assert 0.003 < probability.mean() < 0.03


def test_deep_supervision_answers_while_training_only():
    network = build_network(SMALL)
    image = torch.randn(1, 1, 32, 32, 32)
    assert [tuple(level.shape[2:]) for level in as_levels(network(image))] == [(32,) * 3, (8,) * 3]
    assert len(as_levels(network.eval()(image))) == 1


def test_every_weight_learns():
    network = build_network(SMALL)
    sum(level.square().mean() for level in as_levels(network(torch.randn(1, 1, 32, 32, 32)))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_default_has_the_size_the_readme_says():
    count = sum(p.numel() for p in SpaceToDepthUNet().parameters())
    assert 4.5e6 < count < 5.2e6


@pytest.mark.parametrize("classes", [2, 4])
def test_foreground_logit_is_the_softmax_in_logit_form(classes):
    logits = torch.randn(2, classes, 3, 3, 3, dtype=torch.float64)
    expected = torch.softmax(logits, dim=1)[:, 1:2]
    assert torch.allclose(torch.sigmoid(foreground_logit(logits)), expected)


def test_monai_networks_answer_in_levels_too():
    spec = {
        "_target_": "monai.networks.nets.DynUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1,
        "kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2],
        "filters": [4, 8, 8, 8], "deep_supervision": True, "deep_supr_num": 2,
    }  # fmt: skip
    network = build_network(spec)
    levels = as_levels(network(torch.randn(1, 1, 32, 32, 32)))
    assert len(levels) == 3
    assert all(level.shape[:2] == (1, 1) for level in levels)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "a _target_ that is a class of"),
        ({"_target_": "monai.networks.nets.NoSuchNet"}, "a target that can be built"),
        ({"_target_": "jdm_seg.networks.torch.hub.load", "source": "local"}, "a _target_ that is a class of"),
        ({"_target_": "jdm_seg.cli.os.getcwd"}, "a _target_ that is a class of"),
        ({**SMALL, "chanels": 3}, "a target that can be built"),
        ({"channels": 3}, "expected a _target_"),
        ({**SMALL, "extra": {"_target_": "subprocess.run"}}, "a _target_ that is a class of"),
    ],
)
def test_a_wrong_network_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        build_network(spec)
