"""A wider copy of a trained network, or one of more classes, that answers alike: nothing has to be learnt again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jdm_seg.errors import InputError
from jdm_seg.networks import SpaceToDepthUNet, build_network


class _Layer(NamedTuple):
    """A layer by the levels whose channels it writes and reads; None where they stay as they are."""

    name: str
    writes: int | None
    reads: tuple[int, ...] = ()
    transposed: bool = False


def widen(
    network: dict[str, Any], weights: dict[str, Tensor], channels: Sequence[int], seed: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Widen a space-to-depth U-Net so that it gives the same logits.

    Every channel becomes one or more equal ones, and what reads them divides its weights among the copies. It divides
    them unevenly: copies that are read alike would be changed alike, and never part.

    Args:
        network: Its ``_target_`` and arguments.
        weights: Its state; heads that only training uses may be missing.
        channels: New width at each level, none below the old one.
        seed: Of the uneven shares.

    Returns:
        The wider network's arguments, and its state.

    Raises:
        InputError: If the network is of another kind, or would become narrower, deeper or shallower.

    Source: Chen, Goodfellow, Shlens, Net2Net, ICLR 2016 (their wider operator).
    """
    built = build_network(network)
    # copies would fall into other groups, and the figures of a group would change
    grouped = network.get("norm") == "group"
    if grouped or not isinstance(built, SpaceToDepthUNet):
        raise InputError(
            "init_channels",
            expected="a space-to-depth U-Net to widen, without group norms",
            found=f"{network['_target_']}{' with them' if grouped else ''}",
            remedy="leave init_channels out, or choose another model for init",
        )
    old = [len(norm) for name, norm in weights.items() if name.startswith("encoder.") and name.endswith("norm1.weight")]
    new = [int(width) for width in channels]
    if len(new) != len(old) or any(wide < narrow for wide, narrow in zip(new, old, strict=True)):
        raise InputError(
            "init_channels",
            expected=f"{len(old)} widths, at least {old}",
            found=str(new),
            remedy="give one width for each level, none below that of the model",
        )
    # which old channel each new one is a copy of, by level
    copies = [torch.arange(wide) % narrow for wide, narrow in zip(new, old, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    wider: dict[str, Tensor] = {}
    for layer in _layers(len(new)):
        for name in (name for name in weights if name.startswith(f"{layer.name}.")):
            value = weights[name].transpose(0, 1) if layer.transposed else weights[name]
            if layer.writes is not None and value.ndim:  # a batch norm counts its batches in a single number
                value = value[copies[layer.writes]]
            if layer.reads and value.ndim > 1:  # a bias reads nothing
                starts = [sum(old[level] for level in layer.reads[:place]) for place in range(len(layer.reads))]
                read = torch.cat([copies[level] + start for level, start in zip(layer.reads, starts, strict=True)])
                value = _divided(value, read, generator)
            wider[name] = (value.transpose(0, 1) if layer.transposed else value).contiguous()
    return {**network, "channels": new}, wider


def add_classes(
    network: dict[str, Any], weights: dict[str, Tensor], classes: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give a space-to-depth U-Net more classes, each of one voxel in a hundred at first.

    A network of one class has its logit; of more it has the background's, the deposits' and those of further classes in
    this order. So the logit of deposits against the rest changes by what the new classes take: 0.04 for four of them.

    Args:
        network: Its ``_target_`` and arguments.
        weights: Its state; heads that only training uses may be missing.
        classes: How many there are to be, with the background.

    Returns:
        The network's arguments and its state, with the new classes.

    Raises:
        InputError: If the network is of another kind, or has as many classes already.
    """
    old = int(network.get("out_channels", 1))
    if not isinstance(build_network(network), SpaceToDepthUNet) or classes <= max(2, old):
        raise InputError(
            "init_classes",
            expected=f"a space-to-depth U-Net, and more than {max(2, old)} classes",
            found=f"{network['_target_']} and {classes}",
            remedy="leave init_classes out, or choose another model for init",
        )
    grown = dict(weights)
    for name in (name for name in weights if name.startswith(("head.", "coarse_heads."))):
        value = weights[name]
        known = value.reshape(-1, old, *value.shape[1:])  # a block's voxels are the slow axis
        first = 1 if old == 1 else 0  # the background of a single logit is 0
        every = known.new_zeros(len(known), classes, *value.shape[1:])
        every[:, first : first + old] = known
        if name.endswith("bias"):
            every[:, first + old :] = -math.log(99)
        grown[name] = every.flatten(0, 1)
    return {**network, "out_channels": classes}, grown


def _layers(depth: int) -> Iterator[_Layer]:
    """Yield the layers of a space-to-depth U-Net that have weights."""
    yield _Layer("stem", 0)
    for level in range(depth):
        for part in ("1", "2"):
            yield _Layer(f"encoder.{level}.conv{part}", level, (level,))
            yield _Layer(f"encoder.{level}.norm{part}", level)
    for fine, coarse in pairwise(range(depth)):
        yield _Layer(f"down.{fine}", coarse, (fine,))
        yield _Layer(f"up.{fine}", fine, (coarse,), transposed=True)
        yield _Layer(f"decoder.{fine}.0", fine, (fine, fine))
        yield _Layer(f"decoder.{fine}.1", fine)
    yield _Layer("head", None, (0,))
    for level in range(1, depth - 1):
        yield _Layer(f"coarse_heads.{level - 1}", None, (level,))


def _divided(weight: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
    """Return weights (O, I, …) for inputs that are copies: the shares of an input's copies sum to 1 in each output."""
    wide = weight[:, copies]
    # before they are brought to 1, from a half to one and a half
    share = 0.5 + torch.rand(wide.shape[:2], generator=generator)
    total = torch.zeros(weight.shape[:2]).index_add_(1, copies, share)
    share /= total[:, copies]
    return wide * share.view(*share.shape, *[1] * (weight.ndim - 2)).to(wide)
