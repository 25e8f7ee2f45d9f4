"""Levels, ignored voxels and soft targets around MONAI's losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jdm_seg.losses import _nearest, build_loss

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


COMPONENTS = "jdm_seg.losses.ComponentDiceCELoss"


def by_hand(logits, target, regions):
    """Return Dice plus cross-entropy of each region, looped in NumPy."""
    probability = 1 / (1 + np.exp(-logits))
    entropy = -(target * np.log(probability) + (1 - target) * np.log1p(-probability))
    return np.mean(
        [
            1
            - (2 * (probability * target)[r].sum() + 1e-5) / ((probability + target)[r].sum() + 1e-5)
            + entropy[r].mean()
            for r in regions
        ]
    )


def two_lesions():
    target = np.zeros((12, 6, 6))
    target[1:4, 1:4, 1:4] = 1
    target[10, 3, 3] = 1
    return target, np.random.default_rng(0).normal(0, 2, target.shape)


def test_every_lesion_weighs_the_same_in_its_own_surroundings():
    target, logits = two_lesions()
    # the distance of every voxel to every voxel of each lesion; none is as near to both
    inside = [
        np.argwhere(target * (np.arange(12)[:, None, None] < 6)),
        np.argwhere(target * (np.arange(12)[:, None, None] > 6)),
    ]
    grid = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)[..., None, :]
    near = [np.linalg.norm(grid - lesion, axis=-1).min(-1) for lesion in inside]
    assert not (near[0] == near[1]).any()
    loss = build_loss({"_target_": COMPONENTS, "weight": 1.0})
    found = loss(
        [torch.tensor(logits, dtype=torch.float32)[None, None]], torch.tensor(target, dtype=torch.uint8)[None, None]
    )
    # regions are found in blocks of two voxels: only where both lesions are about as far may they differ
    region = _nearest(np.where(np.arange(12)[:, None, None] < 6, 1, 2) * (target > 0))
    clear = np.abs(near[0] - near[1]) > 2 * np.sqrt(3)
    assert (region == np.where(near[0] < near[1], 1, 2))[clear].all()
    assert (region[target > 0] == np.where(near[0] < near[1], 1, 2)[target > 0]).all()
    assert float(found) == pytest.approx(by_hand(logits, target, [region == 1, region == 2]), rel=1e-5)
    assert float(found) == pytest.approx(by_hand(logits, target, [near[0] < near[1], near[1] < near[0]]), rel=0.02)


def test_blob_loss_hides_the_other_lesions():
    target, logits = two_lesions()
    first = (target > 0) & (np.arange(12)[:, None, None] < 6)
    second = (target > 0) & ~first
    loss = build_loss({"_target_": COMPONENTS, "weight": 1.0, "regions": "blob"})
    found = loss(
        [torch.tensor(logits, dtype=torch.float32)[None, None]], torch.tensor(target, dtype=torch.uint8)[None, None]
    )
    assert float(found) == pytest.approx(by_hand(logits, target, [~second, ~first]), rel=1e-5)


def with_false_lesions():
    """Return a target of two lesions and logits that find the first, three voxels too many, and two false lesions."""
    target = np.zeros((24, 8, 8))
    target[1:4, 1:4, 1:4] = 1
    target[20, 6, 6] = 1
    logits = np.where(target > 0, 3.0, -5.0)
    logits[20, 6, 6] = -5
    logits[4, 1:4, 2] = 2  # touches a deposit: too large an outline, no lesion
    logits[8:10, 2:5, 2] = 1.5  # six voxels
    logits[12:14, 2:5, 2:6] = -0.5  # 24 voxels, at a probability of 0.38
    logits[17, 1, 1:5] = 4  # too few
    return target, logits


def test_false_lesions_weigh_as_much_as_true_ones():
    target, logits = with_false_lesions()
    given = [torch.tensor(logits, dtype=torch.float32)[None, None].requires_grad_()]
    label = torch.tensor(target, dtype=torch.uint8)[None, None]
    true, both, surer = (
        build_loss({"_target_": COMPONENTS, "weight": 1.0, "false_from": least})(given, label)
        for least in (None, 0.3, 0.5)
    )
    probability = 1 / (1 + np.exp(-np.array([1.5, -0.5])))
    costs = probability - np.log(1 - probability)  # of each voxel of the two
    assert both.item() == pytest.approx((2 * true.item() + costs.sum()) / 4, rel=1e-5)
    assert surer.item() == pytest.approx((2 * true.item() + costs[0]) / 3, rel=1e-5)
    # the larger one is pushed down as a whole as hard as the smaller one
    (4 * both - 2 * true).backward()
    slope = given[0].grad[0, 0].numpy()
    steps = probability * (1 - probability) + probability
    assert slope[8:10, 2:5, 2].sum() == pytest.approx(steps[0], rel=1e-5)
    assert slope[12:14, 2:5, 2:6].sum() == pytest.approx(steps[1], rel=1e-5)
    assert np.abs(slope).sum() == pytest.approx(steps.sum(), rel=1e-5)


def test_a_patch_without_deposits_teaches_its_false_lesions():
    target, logits = with_false_lesions()
    given, empty = [torch.tensor(logits, dtype=torch.float32)[None, None]], torch.zeros(1, 1, *target.shape).byte()
    loss = build_loss({"_target_": COMPONENTS, "weight": 1.0, "false_from": 0.3})
    values = np.array([3.0, 2.0, 1.5, -0.5])
    probability = 1 / (1 + np.exp(-values))
    costs = probability - np.log(1 - probability)
    first = (27 * costs[0] + 3 * costs[1]) / 30
    assert float(loss(given, empty)) == pytest.approx((first + costs[2] + costs[3]) / 3, rel=1e-5)
    empty[...] = 255
    plain = build_loss({"_target_": COMPONENTS, "weight": 1.0})
    assert loss(given, empty) == plain(given, empty)  # where nobody knows there is nothing false


def test_missing_a_small_lesion_costs_more_than_in_dice_of_the_whole(label):
    label[0, 0, 7, 7, 7] = 1
    missed = sure(label)
    missed[0, 0, 7, 7, 7] = -20
    plain, component = build_loss(DICE_CE), build_loss({"_target_": COMPONENTS, "weight": 0.5})
    assert component([missed], label) > 3 * plain([missed], label)


def test_a_patch_without_lesions_has_the_loss_of_the_whole(label):
    empty = torch.zeros_like(label)
    logits = torch.randn(1, 1, 8, 8, 8)
    assert build_loss({"_target_": COMPONENTS})([logits], empty) == build_loss(DICE_CE)([logits], empty)
