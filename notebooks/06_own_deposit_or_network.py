# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A deposit pattern or a network of your own
#
# **Purpose.** Draw deposits as you know them from your patients, insert them into a scan and look; then train with
# another network, by config.
# **Inputs.** None: a drawn knee stands in for your scan. **Runtime.** Under a minute.

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from jdm_seg.config import compose
from jdm_seg.errors import InputError
from jdm_seg.networks import as_levels, build_network
from jdm_seg.pictures import project
from jdm_seg.synthesis.blend import sample_scan_blur
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis, render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.priors import PATTERNS, Deposit, Priors
from jdm_seg.synthesis.insert import InsertCalcinosisd, host_of_scan, insert_ct
from jdm_seg.synthesis.recipe import PRESETS, synthesize_body
from jdm_seg.train import train

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # every path below is relative to a folder that is removed at the end

# %% [markdown]
# ## A scan, and where deposits may lie in it
#
# `host_of_scan` finds tissue in an unlabelled CT, and the distances by which deposits are placed: depth under the skin,
# distance to the surface of muscle, distance to bone.

# %%
knee = synthesize_body("ct", replace(PRESETS["ct", "smoke"], negatives=1.0), (21, 2))
scan, spacing = knee.image, tuple(knee.record["spacing"])
host = host_of_scan(scan, spacing)
blur = sample_scan_blur(np.random.default_rng(1), spacing)  # of this scan: deposits are blurred like everything else


def show(axes, image, label, title, high=700):
    level = int(label.sum(axis=(0, 1)).argmax()) if label.any() else image.shape[2] // 2
    axes.imshow(image[::-1, ::-1, level].T, cmap="gray", vmin=-160, vmax=high)
    if label.any():
        axes.contour(label[::-1, ::-1, level].T, [0.5], colors="tab:orange", linewidths=1)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


figure, row = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
nothing, middle = np.zeros(scan.shape, np.uint8), scan.shape[2] // 2
show(row[0], scan, nothing, "scan")
for axes, name in zip(row[1:], ("depth_mm", "bone_mm"), strict=True):
    picture = axes.imshow(getattr(host, name)[::-1, ::-1, middle].T, vmax=25)
    axes.set_title(name, fontsize=9)
    axes.set_axis_off()
    figure.colorbar(picture, ax=axes, shrink=0.7)

# %% [markdown]
# ## Other priors
#
# How many, how large, how dense, which patterns: `Priors` says it, with the source or the assumption beside every
# number. Here a patient with many small and dense nodules, and one with plaques under the skin only.

# %%
print("patterns:", *PATTERNS)
small_and_dense = Priors(
    count_mean=25, median_mm3=60, sigma=0.6, calcium=(500, 1100), weights=tuple(float(p == "nodule") for p in PATTERNS)
)
plaques = Priors(count_mean=6, mixed=0.0, weights=tuple(float(p == "plaque") for p in PATTERNS))

figure, row = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
kinds = {"as usual": Priors(), "nodules": small_and_dense, "plaques": plaques}
for axes, (name, priors) in zip(row, kinds.items(), strict=True):
    deposits = sample_deposits(host, np.random.default_rng(4), priors)  # what is drawn: plain values
    rendered = render_deposits(deposits, host)  # the same for the same deposits
    inserted = insert_ct(scan, rendered, host, blur, path_cm=12)
    picture, shadow = project(inserted, rendered.label, axis=1, maximum=True)
    axes.imshow(picture, cmap="gray", vmin=-100, vmax=1300, aspect=spacing[2] / spacing[0])
    axes.contour(shadow, [0.5], colors="tab:orange", linewidths=1)
    axes.set_title(f"{name}: {len(deposits)} drawn", fontsize=9)
    axes.set_axis_off()

# %% [markdown]
# While a network trains, the transform draws anew for every patch. It takes priors too, so it fits into any MONAI
# pipeline of yours. `jdm-seg train` uses the usual ones.

# %%
insert = InsertCalcinosisd(spacing, probability=1.0, priors=small_and_dense, lookalikes=0.0)
insert.set_random_state(0)
sample = insert({"image": scan[None].astype(np.float32)})
print({int(value): int(count) for value, count in zip(*np.unique(sample["label"], return_counts=True), strict=True)})

# %% [markdown]
# `1` is deposit, `255` is left out of account: too faint to see, or dense before.
#
# ## One deposit, by hand
#
# A `Deposit` is plain values in mm and mg hydroxyapatite per cm³. Change what you like and render it again.

# %%
inside = np.argwhere((host.muscle_mm > 2) & (host.depth_mm > 5) & host.soft)  # fat, not too shallow
centre = tuple(float(v) for v in inside[len(inside) // 2] * np.array(spacing))
one = Deposit("nodule", centre, radius=6.0, thickness=12.0, level=0.0, calcium=500.0, texture=0.2, seed=1)
variants = {"solid": one, "granular": replace(one, fill=0.4), "dense core": replace(one, core=2500.0)}
figure, row = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axes, (name, deposit) in zip(row, variants.items(), strict=True):
    rendered = render_deposits((deposit,), host)
    show(axes, insert_ct(scan, rendered, host, blur, path_cm=12), rendered.label, name, high=1500)

# %% [markdown]
# ## A form that the package does not have
#
# What is inserted is `Calcinosis`: which share of each voxel is deposit, and how much calcium it holds. So any form
# that you can write as a distance will do. An eggshell: a thin calcified wall around soft contents.

# %%
axes_mm = np.meshgrid(*(np.arange(n) * s for n, s in zip(scan.shape, spacing, strict=True)), indexing="ij")
radius = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes_mm, centre, strict=True)))
wall = np.clip(0.5 - (np.abs(radius - 8.0) - 1.2) / min(spacing), 0, 1)  # a shell of 8 mm, 2.4 mm thick
occupancy = (wall * host.soft).astype(np.float32)  # deposits never overwrite bone or air
shell = Calcinosis(occupancy, 600 * occupancy, (occupancy > 0).astype(np.uint16), deposits=())
with_shell = insert_ct(scan, shell, host, blur, path_cm=12)

figure, row = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
show(row[0], with_shell, shell.label, "eggshell, with its label")
level = int(shell.label.sum(axis=(0, 1)).argmax())
show(row[1], with_shell[..., level : level + 1], nothing[..., :1], "without")

# %% [markdown]
# For training it needs a place in the package: a function from `Deposit` and `Host` to `Filled` beside those in
# `synthesis/deposits/lumps.py`, its name in `PATTERNS`, a weight in `Priors`, a size in `calcinosis.py`.
#
# ## Another network
#
# A network is a class and its arguments, by name. On the command line `network=unet` chooses a file of
# `configs/network`; any network of MONAI is a YAML of five lines there and no code:
#
# ```yaml
# _target_: monai.networks.nets.AttentionUnet
# spatial_dims: 3
# in_channels: 1
# ...
# ```

# %%
attention = {
    "_target_": "monai.networks.nets.AttentionUnet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [8, 16, 32],
    "strides": [2, 2],
}
network = build_network(attention)
with torch.inference_mode():
    logits = as_levels(network.eval()(torch.zeros(1, 1, 32, 32, 32)))[0]
print(f"{sum(p.numel() for p in network.parameters()):,} weights, logits {tuple(logits.shape)}")

# %% [markdown]
# The contract: plain values in, logits of the image's size out (no sigmoid), 1 channel or one a class.
#
# A config or a model folder may come by mail, so `_target_` names classes of torch, MONAI, Lightning and this package
# only. A class of your own goes into `jdm_seg/networks.py`; elsewhere it is refused:

# %%
try:
    build_network({"_target_": "my_project.MyNetwork"})
except InputError as error:
    print(error)

# %% [markdown]
# ## Train with it
#
# ```
# jdm-seg train experiment=ct_smoke network=attention_unet
# ```
#
# A few steps prove that it trains, and no more. Compare with the default over several seeds and with
# `jdm-seg benchmark` (notebook 05): one seed differs from the next by as much as many ideas do.

# %%
settings = ["experiment=ct_smoke", "data.root=limbs", "data.cache=cache", "trainer.max_epochs=1"]
settings += ["data.synthesize.cases=3", "data.synthesize.validation=0.34", "data.synthesize.workers=1"]
settings += ["data.patch_size=[32,32,32]", "data.batch_size=2", "data.patches_per_epoch=16"]
run = train(replace(compose(settings), network=attention), Path("run"))
print(*sorted(path.name for path in run.iterdir()))

# %%
assert shell.label.sum() > 0
assert (with_shell[~host.soft] == scan[~host.soft]).all()
assert (run / "checkpoints" / "last.ckpt").is_file()
