"""A widened network answers as the narrow one did, and its copies part when it trains."""

import pytest
import torch

from jdm_seg.errors import InputError
from jdm_seg.networks import as_levels, build_network, foreground_logit
from jdm_seg.widening import add_classes, widen

SPEC = {
    "_target_": "jdm_seg.networks.SpaceToDepthUNet",
    "out_channels": 3,
    "channels": [4, 6, 8],
    "windows": [[-1.0, 1.0], [-0.9, -0.2]],
}


@pytest.fixture
def narrow():
    torch.manual_seed(0)
    network = build_network(SPEC)
    with torch.no_grad():
        for weight in network.parameters():  # norms begin with ones and zeros, which a mistake would not move
            weight += 0.3 * torch.randn_like(weight)
    return network


def _wide(narrow, channels, norm="instance"):
    spec, weights = widen({**SPEC, "norm": norm}, narrow.state_dict(), channels)
    network = build_network(spec)
    network.load_state_dict(weights)
    return network


@pytest.mark.parametrize("channels", [[4, 6, 8], [8, 12, 16], [7, 6, 19], [13, 20, 9]])
def test_every_level_answers_alike(narrow, channels):
    image = 2 * torch.rand(2, 1, 16, 24, 16) - 1
    wide = _wide(narrow, channels)
    assert [conv.out_channels for conv in (wide.stem, *wide.down)] == channels
    for new, old in zip(as_levels(wide(image)), as_levels(narrow(image)), strict=True):
        torch.testing.assert_close(new, old, atol=2e-4, rtol=1e-4)


def test_running_figures_of_batch_norms_come_along():
    torch.manual_seed(1)
    narrow = build_network({**SPEC, "norm": "batch"})
    for _ in range(3):
        narrow(torch.rand(2, 1, 16, 16, 16))
    wide = _wide(narrow, [6, 6, 10], "batch")
    image = torch.rand(1, 1, 16, 16, 16)
    torch.testing.assert_close(wide.eval()(image), narrow.eval()(image), atol=1e-4, rtol=1e-4)


def test_copies_part_when_they_train(narrow):
    wide = _wide(narrow, [8, 12, 16])
    assert torch.equal(wide.stem.weight[:4], wide.stem.weight[4:])
    image = torch.rand(1, 1, 16, 16, 16)
    as_levels(wide(image))[0][:, 1].square().mean().backward()
    with torch.no_grad():
        for weight in wide.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    assert (wide.stem.weight[:4] - wide.stem.weight[4:]).abs().min() > 0


def test_heads_that_a_model_folder_lacks_are_left_out(narrow):
    weights = {name: value for name, value in narrow.state_dict().items() if not name.startswith("coarse_heads")}
    spec, wider = widen(SPEC, weights, [8, 8, 8])
    missing = build_network(spec).load_state_dict(wider, strict=False)
    assert missing.missing_keys == ["coarse_heads.0.weight", "coarse_heads.0.bias"]
    assert not missing.unexpected_keys


@pytest.mark.parametrize("channels", [[4, 6], [4, 5, 8], [4, 6, 8, 8]])
def test_other_shapes_are_refused(narrow, channels):
    with pytest.raises(InputError, match=r"init_channels: expected 3 widths, at least \[4, 6, 8\]"):
        widen(SPEC, narrow.state_dict(), channels)


def test_other_networks_are_refused():
    spec = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1}
    spec |= {"channels": [4, 8], "strides": [2]}
    with pytest.raises(InputError, match="init_channels: expected a space-to-depth U-Net"):
        widen(spec, build_network(spec).state_dict(), [8, 16])


def test_group_norms_are_refused(narrow):
    with pytest.raises(InputError, match=r"without group norms, found .* with them"):
        widen({**SPEC, "norm": "group"}, narrow.state_dict(), [8, 12, 16])


@pytest.mark.parametrize("known", [1, 3])
@pytest.mark.parametrize("block", [(2, 2, 2), (2, 1, 2)])
def test_new_classes_are_rare_and_the_old_ones_as_before(known, block):
    torch.manual_seed(2)
    spec = {**SPEC, "out_channels": known, "block": list(block)}
    old = build_network(spec)
    with torch.no_grad():
        for weight in old.parameters():
            weight += 0.1 * torch.randn_like(weight)
    grown, weights = add_classes(spec, old.state_dict(), 6)
    new = build_network(grown)
    new.load_state_dict(weights)
    image = 2 * torch.rand(1, 1, 16, 16, 16) - 1
    for before, after in zip(as_levels(old(image)), as_levels(new(image)), strict=True):
        logits = before if known > 1 else torch.cat([torch.zeros_like(before), before], 1)
        torch.testing.assert_close(after[:, : logits.shape[1]], logits, atol=1e-5, rtol=1e-5)
        change = foreground_logit(before) - foreground_logit(after)
        assert float(change.detach().min()) + 1e-5 >= 0
        assert float(change.detach().max()) < 0.06
    assert grown["out_channels"] == 6


def test_a_model_of_as_many_classes_is_refused(narrow):
    with pytest.raises(InputError, match="more than 3 classes"):
        add_classes(SPEC, narrow.state_dict(), 3)
