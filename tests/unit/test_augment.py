"""Random changes of batches: what SciPy makes of the same matrix, and the same for a patch wherever it is drawn."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage

from jdm_seg.augment import BatchAugment, _smoothed, _turned
from jdm_seg.config import AugmentConfig

OFF = dict.fromkeys(("flip", "affine", "noise", "smooth", "contrast"), 0.0)
SPACING = (1.5, 1.5, 1.5)


def only(**given) -> AugmentConfig:
    return AugmentConfig(**{**asdict(AugmentConfig()), **OFF, **given})


def patches(count=3, shape=(12, 16, 20)):
    rng = np.random.default_rng(0)
    image = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(count)])[:, None]
    label = (image > 0.05).astype(np.uint8)
    return torch.tensor(image, dtype=torch.float32), torch.tensor(label)


def keys(count=3, epoch=4):
    return [(epoch, number) for number in range(count)]


def test_nothing_is_nothing():
    image, label = patches()
    new_image, new_label = BatchAugment(only(), SPACING, 0)(image, label, keys())
    assert torch.equal(new_image, image)
    assert torch.equal(new_label, label)


def test_mirrors_keep_image_and_label_together():
    image, label = patches()
    seen = set()
    for epoch in range(20):
        new_image, new_label = BatchAugment(only(flip=0.5), SPACING, 0)(image, label, keys(epoch=epoch))
        assert torch.equal((new_image > 0.05).to(torch.uint8), new_label)
        for one, new in zip(image, new_image, strict=True):
            flips = [axes for axes in POWER if torch.equal(one.flip(axes), new)]
            assert len(flips) == 1
            seen.add(flips[0])
    assert seen == set(POWER)  # every combination comes


POWER = [tuple(a + 1 for a in range(3) if number >> a & 1) for number in range(8)]


def test_turning_is_what_scipy_makes_of_the_same_matrix():
    image, label = patches(2)
    augment = BatchAugment(only(affine=1.0), SPACING, 0)
    matrices = np.stack([augment._matrix(np.random.default_rng(n)) for n in range(2)])
    assert not np.allclose(matrices[0], matrices[1])
    middle = (np.array(image.shape[2:]) - 1) / 2
    for n in range(2):
        turned, turned_label = _turned(image[n], label[n], matrices[n])
        offset = middle - matrices[n] @ middle
        expected = ndimage.affine_transform(image[n, 0].numpy(), matrices[n], offset, order=1, mode="nearest")
        np.testing.assert_allclose(turned[0].numpy(), expected, atol=2e-5)
        near = ndimage.affine_transform(label[n, 0].numpy(), matrices[n], offset, order=0, mode="nearest")
        assert (turned_label[0].numpy() == near).mean() > 0.999  # a point half-way between voxels may fall to either
        assert turned_label.dtype == torch.uint8


def test_only_planes_of_equal_spacing_are_turned():
    slices = BatchAugment(only(affine=1.0), (1.5, 5.0, 1.5), 0)._matrix(np.random.default_rng(1))
    assert slices[0, 2] != 0
    assert slices[0, 1] == slices[1, 0] == slices[1, 2] == slices[2, 1] == 0


def test_blur_is_what_scipy_makes_of_it():
    image, _ = patches(2)
    widths = np.array([[0.3, 0.8, 0.5], [0.7, 0.4, 0.6]])
    for n in range(2):
        blurred = _smoothed(image[n], widths[n])
        expected = ndimage.gaussian_filter(image[n, 0].numpy(), widths[n], mode="nearest", radius=3)
        np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-5)


def test_a_patch_is_changed_alike_in_any_batch_and_on_any_run():
    image, label = patches()
    whole = BatchAugment(AugmentConfig(), SPACING, 7)(image, label, keys())
    for n in range(3):
        alone = BatchAugment(AugmentConfig(), SPACING, 7)(image[n : n + 1], label[n : n + 1], [(4, n)])
        torch.testing.assert_close(alone[0][0], whole[0][n], rtol=0, atol=1e-6)
        assert torch.equal(alone[1][0], whole[1][n])
    other = BatchAugment(AugmentConfig(), SPACING, 8)(image, label, keys())
    assert not torch.equal(other[0], whole[0])


def test_noise_and_contrast_stay_in_their_ranges():
    image, label = torch.zeros(64, 1, 8, 8, 8), torch.zeros(64, 1, 8, 8, 8, dtype=torch.uint8)
    noisy, _ = BatchAugment(only(noise=1.0, noise_std=0.04), SPACING, 0)(image, label, keys(64))
    spread = noisy.std(dim=(1, 2, 3, 4))
    assert spread.max() < 0.045
    assert 0.01 < spread.mean() < 0.03
    bright, _ = BatchAugment(only(contrast=1.0), SPACING, 0)(image + 0.5, label, keys(64))
    assert bright.min() >= 0.5 * 0.9 - 0.03 - 1e-6
    assert bright.max() <= 0.5 * 1.1 + 0.03 + 1e-6
    assert bright.std() > 0.01


def test_slices_are_not_mixed():
    """Every slice of the patch comes from one slice, whatever is drawn."""
    image = torch.arange(16.0).view(1, 1, 1, 16, 1).expand(4, 1, 12, 16, 12).clone()
    everything = only(affine=1.0, smooth=1.0)
    new, _ = BatchAugment(everything, (1.25, 5.0, 1.25), 0)(image, torch.zeros_like(image), keys(4))
    torch.testing.assert_close(new, image, atol=1e-4, rtol=0)
    mixed, _ = BatchAugment(everything, (1.25, 2.0, 1.25), 0)(image, torch.zeros_like(image), keys(4))
    assert (mixed - image).abs().max() > 0.1


def test_no_signal_stays_no_signal_on_mri():
    """Another gain: ratios of signals stay, and so does what has none."""
    image = torch.rand(20, 1, 4, 4, 4)
    image[:, :, 0] = -1
    augment = BatchAugment(only(contrast=1.0), SPACING, 0, magnitudes=True)
    new, _ = augment(image, torch.zeros_like(image), keys(20))
    torch.testing.assert_close(new[:, :, 0], image[:, :, 0])
    gain = ((new + 1) / (image + 1))[:, 0, 1:].flatten(1)
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain), atol=1e-4, rtol=0)
    assert 0.74 < gain.min() < 0.85
    assert 1.15 < gain.max() < 1.26


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_turns_patches_as_the_cpu_does():
    image, label = patches()
    augment = BatchAugment(only(flip=0.5, affine=1.0, smooth=1.0), SPACING, 0)
    here, there = augment(image, label, keys()), augment(image.cuda(), label.cuda(), keys())
    torch.testing.assert_close(there[0].cpu(), here[0], rtol=0, atol=1e-4)
    assert (there[1].cpu() == here[1]).float().mean() > 0.999
