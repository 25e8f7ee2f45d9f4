"""A wider copy of a trained network that answers alike: more to learn with, and nothing to learn again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from jdm_seg.errors import InputError
from jdm_seg.networks import SpaceToDepthUNet, build_network

_TARGET = "jdm_seg.networks.SpaceToDepthUNet"


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
    if not isinstance(built, SpaceToDepthUNet):
        raise InputError(
            "init_channels",
            expected="a space-to-depth U-Net to widen",
            found=str(network["_target_"]),
            remedy="leave init_channels out, or choose another model for init",
        )
    old = [int(conv.out_channels) for conv in (built.stem, *built.down)]  # type: ignore[union-attr]
    new = [int(width) for width in channels]
    if len(new) != len(old) or any(wide < narrow for wide, narrow in zip(new, old, strict=True)):
        raise InputError(
            "init_channels",
            expected=f"{len(old)} widths, at least {old}",
            found=str(new),
            remedy="give one width for each level, none below that of the model",
        )
    generator = torch.Generator().manual_seed(seed)
    # which old channel each new one is a copy of, by level
    levels = [torch.arange(wide) % narrow for wide, narrow in zip(new, old, strict=True)]

    def conv(name: str, out: Tensor | None, read: Sequence[Tensor], *, transposed: bool = False) -> None:
        weight = weights[f"{name}.weight"]
        weight = weight.transpose(0, 1) if transposed else weight
        weight = weight if out is None else weight[out]
        if read:
            start, copies = 0, []
            for level in read:
                copies.append(level + start)
                start += int(level.max()) + 1
            weight = _divided(weight, torch.cat(copies), generator)
        wider[f"{name}.weight"] = (weight.transpose(0, 1) if transposed else weight).contiguous()
        if f"{name}.bias" in weights:
            bias = weights[f"{name}.bias"]
            wider[f"{name}.bias"] = bias if out is None else bias[out]

    def norm(name: str, copies: Tensor) -> None:
        wider.update({key: value[copies] for key, value in weights.items() if key.startswith(f"{name}.") and value.ndim})
        wider.update({key: value for key, value in weights.items() if key.startswith(f"{name}.") and not value.ndim})

    wider: dict[str, Tensor] = {}
    conv("stem", levels[0], ())
    for number, level in enumerate(levels):
        for part in ("1", "2"):
            conv(f"encoder.{number}.conv{part}", level, (level,))
            norm(f"encoder.{number}.norm{part}", level)
    for number, (fine, coarse) in enumerate(pairwise(levels)):
        conv(f"down.{number}", coarse, (fine,))
        conv(f"up.{number}", fine, (coarse,), transposed=True)
        conv(f"decoder.{number}.0", fine, (fine, fine))
        norm(f"decoder.{number}.1", fine)
    conv("head", None, (levels[0],))
    for number, level in enumerate(levels[1:-1]):
        if f"coarse_heads.{number}.weight" in weights:
            conv(f"coarse_heads.{number}", None, (level,))
    return {**network, "channels": new}, wider


def _divided(weight: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
    """Return (O, I, …) weights for inputs that are copies: for each output the shares of one input's copies sum to 1."""
    wide = weight[:, copies]
    # between a half and one and a half times an even share
    share = 0.5 + torch.rand(wide.shape[:2], generator=generator)
    total = torch.zeros(weight.shape[:2]).index_add_(1, copies, share)
    share /= total[:, copies]
    return wide * share.view(*share.shape, *[1] * (weight.ndim - 2)).to(wide)
