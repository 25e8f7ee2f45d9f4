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
# # Train on your own unlabelled scans
#
# **Purpose.** A network without a single label: deposits are drawn into your scans while it trains. See what it is
# shown, what a run leaves behind, and how the run becomes a model that segments scans.
# **Inputs.** None: four procedural limbs stand in for your folder of CT scans. **Runtime.** Under a minute.
#
# The network here is tiny and learns for a minute at most, so it finds next to nothing. The last section has the
# lines for a real one.

# %%
import csv
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from jdm_seg.config import compose
from jdm_seg.data import CaseDataModule
from jdm_seg.export.run import export_run
from jdm_seg.inference.predict import ScanPredictor
from jdm_seg.networks import build_network
from jdm_seg.pictures import project
from jdm_seg.synthesis.recipe import PRESETS, synthesize_body
from jdm_seg.train import train
from jdm_seg.volume import Volume, read_volume, write_volume

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # every path below is relative to a folder that is removed at the end

# %% [markdown]
# ## A folder of scans
#
# Any folder of `.nii.gz` files in HU will do. Scans of people *without* calcinosis are right. What is over 130 HU and
# not skeleton (vessel calcium, contrast, metal) teaches nothing, since nobody knows what it is.

# %%
without = replace(PRESETS["ct", "smoke"], negatives=1.0)
for person, number in enumerate((0, 2, 7, 8), start=1):
    case = synthesize_body("ct", without, (21, number))
    scan = Volume(case.image, case.affine, f"sub-{person:02}")
    write_volume(f"scans/{scan.name}.nii.gz", scan.array, like=scan)

# %%
figure, row = plt.subplots(1, 4, figsize=(11, 2.6))
for axes, path in zip(row, sorted(Path("scans").iterdir()), strict=True):
    scan = read_volume(path)
    picture, _ = project(scan.array, np.zeros_like(scan.array), axis=1, maximum=False)  # the middle coronal slice
    axes.imshow(picture, cmap="gray", vmin=-160, vmax=600, aspect=scan.spacing[2] / scan.spacing[0])
    axes.set_title(path.name, fontsize=9)
    axes.set_axis_off()

# %% [markdown]
# ## Settings
#
# `compose` reads the same files and overrides as the command line. The line that says the same:
#
# ```
# jdm-seg train experiment=ct_inserted data.backgrounds=scans run_dir=run network.channels=[8,16,32] ...
# ```
#
# What is changed here only makes it small. `config` is checked: a misspelt key or a wrong type fails at once.

# %%
config = compose(
    [
        "experiment=ct_inserted",
        "data.backgrounds=scans",
        "data.cache=cache",
        "data.folds=4",  # a quarter of the subjects is kept back for validation
        "data.workers=0",
        "data.patch_size=[48,48,48]",
        "data.batch_size=2",
        "data.patches_per_epoch=32",
        "network.channels=[8,16,32]",
        "trainer.max_epochs=3",
        "trainer.validate_every=3",
        "trainer.accelerator=cpu",
    ]
)

# %% [markdown]
# ## What the network is shown
#
# A patch is cut from a scan, deposits are drawn and rendered into it with the scan's own blur and noise, then it is
# mirrored, turned and made noisier now and then. No patch is ever shown twice. Labels: **orange** is deposit, **blue**
# is left out of account (dense before, or too faint to see). A share of patches holds nothing, on purpose.

# %%
data = CaseDataModule(config.data, config.preprocess, config.augment, config.seed)
data.prepare_data()  # onto the model's voxels, once; kept in data.cache
data.setup()
batches = list(data.train_dataloader())
patches = [pair for batch in batches for pair in zip(batch["image"][:, 0], batch["label"][:, 0], strict=True)]
share = np.mean([(label == 1).float().mean() for _, label in patches])
print(f"{len(patches)} patches an epoch; deposits fill {share:.2%} of their voxels")

# %%
shown = sorted(patches, key=lambda patch: -(patch[0] > -1).float().mean())[:6]  # those with least air
figure, rows = plt.subplots(2, 6, figsize=(12, 4.1), layout="constrained")
for axes, patch in zip(rows.T, shown, strict=True):
    image, label = (array.numpy() for array in patch)
    level = int((label == 1).sum(axis=(0, 1)).argmax())
    for one in axes:
        one.imshow(image[..., level].T[::-1], cmap="gray", vmin=-1, vmax=0)  # -200 to 550 HU
        one.set_axis_off()
    for value, colour in ((1, "tab:orange"), (255, "tab:blue")):
        outline = label[..., level].T[::-1] == value
        if outline.any():
            axes[1].contour(outline, [0.5], colors=colour, linewidths=1)
    axes[0].set_title(f"{(label == 1).mean():.2%} deposit", fontsize=9)

# %% [markdown]
# Even so deposits fill a few hundredths of what is seen at most. That is why the loss alone says little: a network that
# always answers "nothing" is right almost everywhere.
#
# ## Train
#
# The command prints a line for every validation; here the run is silent.

# %%
run = train(config, Path("run"))
weights = sum(p.numel() for p in build_network(config.network).parameters())
outcome = json.loads((run / "run.json").read_text())
print(f"{weights:,} weights, {outcome['steps']} steps, {outcome['status']}")

# %%
table = list(csv.DictReader((run / "metrics.csv").open()))
loss = [(int(row["step"]), float(row["train/loss"])) for row in table if row["train/loss"]]
figure, axes = plt.subplots(figsize=(7, 2.6))
steps, values = zip(*loss, strict=True)
axes.plot(steps, values, color="lightgray", linewidth=1)
axes.plot(steps[4:-4], np.convolve(values, np.ones(9) / 9, "valid"), color="tab:orange", linewidth=2)
axes.set(title="each batch, and the mean of nine", xlabel="step", ylabel="loss (Dice + cross entropy)")
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## What a run holds

# %%
for path in sorted(path for path in run.rglob("*") if path.is_file()):
    print(f"{path.relative_to(run)!s:32} {path.stat().st_size / 1000:8.1f} kB")

# %% [markdown]
# | file | holds |
# | --- | --- |
# | `config.yaml` | every value, so that the run can be done again |
# | `splits.json` | which scans trained, which validated: people, never patches, are kept apart |
# | `metrics.csv` | loss of every step, lesion F1 and Dice of every validation |
# | `checkpoints/` | `best` by validation, `last` to go on from with `ckpt=last` |
# | `examples/` | validation slices with what is predicted there |
# | `hparams.yaml` | what the network and its training were built from |
# | `run.json` | versions, seeds, outcome |
#
# The validation scan received the same deposits every time. What is found in it after so few steps:

# %%
print(json.loads((run / "splits.json").read_text()))
print({key: None if value is None else round(value, 2) for key, value in outcome["validation"].items()})
picture = plt.imread(sorted((run / "examples").iterdir())[-1])
figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
axes.imshow(picture[:, : picture.shape[1] // 2])  # the sheet has room for a second scan
axes.set_axis_off()

# %% [markdown]
# ## Export
#
# The run becomes a folder with the network as ONNX, its preprocessing and a model card. The threshold is chosen and the
# probabilities are calibrated on the validation scans, and ONNX Runtime must give the same logits as torch.
#
# ```
# jdm-seg export run model
# ```

# %%
model = export_run(run, Path("model"))
print(sorted(path.name for path in model.path.iterdir()))
for engine, precisions in model.spec.parity["engines"].items():
    for precision, row in precisions.items():
        offered = "" if row["offered"] else "; not offered"
        print(f"{engine:12} {precision:4} largest difference of logits {row['max_logit_difference']:.0e}{offered}")

# %% [markdown]
# ## Predict
#
# ```
# jdm-seg predict scans results --model model --report
# ```

# %%
scan = read_volume("scans/sub-01.nii.gz")
prediction = ScanPredictor(model)(scan)
print(f"threshold {model.spec.threshold:g}, {int(prediction.mask.sum())} of {prediction.mask.size:,} voxels marked")

# %% [markdown]
# The scan has no deposits: every marked voxel is a mistake. With so few steps that is luck either way.
#
# ## For real
#
# ```
# jdm-seg check scans/                                                    # are they CT, whole, the right way round?
# jdm-seg train experiment=ct_inserted data.backgrounds=scans/ name=mine  # half an hour on two cores; longer is better
# jdm-seg train experiment=auto data.root=null data.backgrounds=scans/    # voxels, window and batch chosen for you
# jdm-seg export runs/mine/2026-01-31_12-00-00 models/mine
# jdm-seg predict held_out/ results/ --model models/mine --report
# ```
#
# - Rather few scans of many people than many of few. Keep some people out altogether, to look at in the end.
# - `trainer.max_epochs=100` for longer, `trainer=gpu` on a GPU, `ckpt=last` after an interruption.
# - STIR: `jdm-seg train experiment=stir_smoke data=backgrounds data.backgrounds=stir_scans/`.
# - Look at `examples/` and `val/lesion_f1` after some hundred steps, and at `preview.png` of every scan before any
#   figure.
# - Notebook 03 goes on from here with labels; notebook 05 measures whether it helped.

# %%
assert outcome["status"] == "finished"
assert np.isfinite(values).all()
assert share > 0
assert prediction.mask.shape == scan.array.shape
