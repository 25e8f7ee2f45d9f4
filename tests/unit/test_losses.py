"""Levels, ignored voxels and soft targets around MONAI's losses."""

from __future__ import annotations

import pytest
import torch

from jdm_seg.losses import build_loss

DICE_CE = {"_target_": "monai.losses.DiceCELoss", "sigmoid": True, "batch": True}


@pytest.fixture
def label():
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    label[0, 0, 2:5, 2:5, 2:5] = 1
    return label


def sure(label):
    return (label.float() - 0.5) * 40


def test_a_right_answer_costs_nothing_and_a_wrong_one_much(label):
    loss = build_loss(DICE_CE)
    assert loss([sure(label)], label) < 1e-3
    assert loss([-sure(label)], label) > 10


def test_ignored_voxels_cost_nothing_whatever_is_said_there(label):
    loss = build_loss(DICE_CE)
    label[0, 0, 6:] = 255
    right = sure((label == 1).to(torch.uint8))
    wrong = right.clone()
    wrong[0, 0, 6:] = 40
    assert torch.isclose(loss([wrong], label), loss([right], label), atol=1e-6)
    wrong.requires_grad_()
    loss([wrong], label).backward()
    assert wrong.grad[0, 0, 6:].abs().max() == 0


def test_coarse_levels_see_the_share_of_foreground():
    """One voxel of eight: a coarse logit of log(1/7) is the best answer, by hand."""
    label = torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8)
    label[0, 0, 0, 0, 0] = 1
    loss = build_loss({"_target_": "torch.nn.BCEWithLogitsLoss"})
    fine = sure(label)

    def cost(logit):
        return loss([fine, torch.full((1, 1, 1, 1, 1), logit)], label)

    best = torch.log(torch.tensor(1 / 7)).item()
    assert cost(best) < cost(best + 0.3)
    assert cost(best) < cost(best - 0.3)


def test_levels_weigh_half_as_much_each(label):
    loss = build_loss({"_target_": "torch.nn.BCEWithLogitsLoss"})
    good, bad = sure(label), -sure(label)
    assert torch.isclose(loss([bad, good], label) / loss([good, bad], label), torch.tensor(2.0), rtol=1e-3)


def test_several_classes(label):
    label[0, 0, 6, 6, 6] = 2
    loss = build_loss({"_target_": "monai.losses.DiceCELoss", "softmax": True})
    logits = torch.nn.functional.one_hot(label[:, 0].long(), 3).movedim(-1, 1).float() * 40
    right = loss([logits], label)
    assert right < 0.05  # MONAI smooths classes of few voxels
    label[0, 0, 0] = 255
    assert torch.isclose(loss([logits], label), right, atol=1e-3)
    assert loss([-logits], label) > 10
