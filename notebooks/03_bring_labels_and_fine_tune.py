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
# # Bring your labels, check them, and go on with a trained model
#
# **Purpose.** From a folder of scans and masks as they come out of a reading room, with the usual mistakes in it, to a
# network that was fine-tuned on them, and to one that was planned from them.
# **Inputs.** None: procedural cases stand in for yours. **Runtime.** Under a minute.
#
# The trainings here last seconds, to show what goes in and what comes out. None of these networks is of use.

# %%
import csv
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

from jdm_seg.cases import read_manifest, split_by_subject
from jdm_seg.checks.fix import fix_copy
from jdm_seg.checks.paths import check_path
from jdm_seg.config import compose
from jdm_seg.pictures import write_contact_sheet
from jdm_seg.synthesis.recipe import PRESETS, synthesize_body
from jdm_seg.train import train
from jdm_seg.volume import Volume, read_volume, write_volume

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # every path below is relative to a folder that is removed at the end

# %% [markdown]
# ## Scans and masks as they come
#
# Five scans of four people. Two masks are wrong, as masks often are: one tool wrote 255 where it meant 1, another lost
# the origin of the grid.

# %%
visits = {"p1-may": 8, "p1-june": 13, "p2": 12, "p3": 6, "p4": 15}
calcified = replace(PRESETS["ct", "smoke"], negatives=0.0)
for name, number in visits.items():
    case = synthesize_body("ct", calcified, (31, number))
    scan = Volume(case.image, case.affine, name)
    mask = case.label * np.uint8(255 if name == "p2" else 1)
    placed = case.affine.copy()
    placed[:3, 3] += 30 * (name == "p4")
    write_volume(f"labelled/images/{name}.nii.gz", scan.array, like=scan)
    write_volume(f"labelled/labels/{name}.nii.gz", mask, like=Volume(mask, placed, name))

# %% [markdown]
# ## The manifest
#
# A table says which files belong together and **who is who**. Two visits of one person must never be split between
# training and validation: the network would be asked about someone it knows. Only the image is needed; without
# `subject_id` every scan counts as a person.

# %%
with Path("labelled/cases.csv").open("w", newline="") as stream:
    table = csv.writer(stream)
    table.writerow(["case_id", "subject_id", "modality", "image", "label"])
    for name in visits:
        table.writerow([name, name.split("-")[0], "ct", f"images/{name}.nii.gz", f"labels/{name}.nii.gz"])
print(Path("labelled/cases.csv").read_text())

# %% [markdown]
# nnU-Net, BIDS, Decathlon, 3D Slicer and DICOM SEG become such a set with `jdm-seg convert SRC set/ --to monai`.
#
# ## Check
#
# ```
# jdm-seg check labelled/ --fix mended/
# ```
#
# An **error** would make every figure meaningless; a **warning** makes results worse; an **info** is good to know.

# %%
report = check_path(Path("labelled"))
print(report.layout, report.counts())
for finding in report.findings:
    if finding.severity != "info":
        print(f"\n{finding.severity}: {finding.where}\n  {finding.sentence()}")

# %% [markdown]
# What needs no guess is mended, in a copy. The lost origin is no such thing: nobody can know where the mask belongs, so
# it is exported again from the tool that drew it (here: written again with the scan's grid).

# %%
for line in fix_copy(Path("labelled"), report.entries, Path("mended")):
    print(line)
scan, mask = (read_volume(f"mended/{kind}/p4.nii.gz") for kind in ("images", "labels"))
write_volume("mended/labels/p4.nii.gz", mask.array, like=scan)
print(check_path(Path("mended")).counts())

# %% [markdown]
# Checks cannot tell whether a mask is *right*. Look at every case: bare, and with its outline.

# %%
manifest = read_manifest("mended/cases.csv")
pairs = [(read_volume(case.image), read_volume(case.label).array) for case in manifest.all]
write_contact_sheet(Path("sheet.png"), pairs, modality="ct")
figure, axes = plt.subplots(figsize=(11, 5.4), layout="constrained")
axes.imshow(plt.imread("sheet.png"))
axes.set_axis_off()

# %% [markdown]
# What neither of two readers can tell (a calcified vessel, an unclear border) belongs into a third mask in a column
# `ignore`: nothing is learnt and nothing counts there.
#
# ## Splits are by person
#
# Where the manifest names no validation cases (column `split`), people are dealt to folds. `p1` stays whole:

# %%
for fold in range(2):
    sides = split_by_subject(manifest.all, fold, folds=2, seed=0)
    training, validation = ([case.case_id for case in side] for side in sides)
    print(f"data.fold={fold}: train on {training}, validate on {validation}")

# %% [markdown]
# ## A model to begin with
#
# Yours may be a shipped model (`jdm-seg models` lists them), a colleague's model folder, or a run of your own. Here
# a few steps on procedural limbs make one.
#
# ```
# jdm-seg train experiment=ct_smoke run_dir=first ...
# ```

# %%
small = [
    "data.cache=cache",
    "data.patch_size=[48,48,48]",
    "data.batch_size=2",
    "data.patches_per_epoch=16",
    "trainer.max_epochs=2",
    "trainer.validate_every=2",
    "trainer.accelerator=cpu",
]
synthetic = ["data.synthesize.preset=smoke", "data.synthesize.cases=3", "data.synthesize.workers=1"]
begin = ["experiment=ct_smoke", "data.root=limbs", "data.synthesize.validation=0.34", "network.channels=[8,16,32]"]
first = train(compose([*begin, *synthetic, *small]), Path("first"))

# %% [markdown]
# ## Fine-tune
#
# The network goes on with your cases, mixed one to one with synthetic ones: a handful of labels does not show
# everything that it knows already. It learns slowly, so as not to forget. With `data.backgrounds=scans/` the synthetic
# deposits lie in your own unlabelled scans instead of in drawn limbs, which is better.
#
# ```
# jdm-seg train experiment=finetune init=first data.root=mended/cases.csv data.folds=2 ...
# ```

# %%
mine = ["data.root=mended/cases.csv", "data.folds=2"]
config = compose(["experiment=finetune", "init=first", *mine, "data.synthesize.root=more_limbs", *synthetic, *small])
tuned = train(config, Path("tuned"))

# %%
used = yaml.safe_load((tuned / "config.yaml").read_text())
print(
    "begun with",
    used["init"],
    "| its network:",
    used["network"]["channels"],
    "| voxels:",
    used["preprocess"]["spacing"],
)
print(
    "learning rate",
    used["optimizer"]["lr"],
    "| shares",
    {k: used["data"]["mix"][k] for k in ("labelled", "procedural")},
)
print(json.loads((tuned / "splits.json").read_text()))
print(json.loads((tuned / "run.json").read_text())["status"])

# %% [markdown]
# Network, voxel size and intensity window come with the weights, since weights mean nothing without them. The synthetic
# cases only train: what is real decides which checkpoint is best.
#
# ## Or let the data set choose
#
# With some tens of labelled cases a network of its own may be better. `experiment=auto` reads your scans and chooses
# voxel size, window, depth and batch for them and for the memory of the machine; what you give stays as you gave it.
#
# ```
# jdm-seg train experiment=auto data.root=mended/cases.csv ...
# ```

# %%
brief = ["data.cache=cache", "data.patches_per_epoch=2", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
auto = compose(["experiment=auto", *mine, *brief, "network.channels=[8,16,32,64]", "trainer.validate_every=2"])
plan = json.loads((train(auto, Path("planned")) / "plan.json").read_text())
found = plan["fingerprint"]
print(f"read:   {found['cases']} scans of about {found['extent_mm']} mm, {found['lesions']} deposits")
print("        their volumes in mm³:", [round(volume, 1) for volume in found["lesion_mm3"]])
print("chosen:", plan["chosen"])
print(f"a step is expected to take {plan['memory']['expected_bytes'] / 1e9:.1f} GB")

# %% [markdown]
# The volumes are the 10th, 50th and 90th percentile: half of the deposits are smaller than the middle figure.
# Compare it with the volume of a voxel before you choose coarser ones.
#
# ## For real
#
# ```
# jdm-seg convert labelled/ set/ --to monai
# jdm-seg check set/ --fix mended/
# jdm-seg train experiment=finetune init=models/first data.root=mended data.backgrounds=scans/ data.synthesize=null
# jdm-seg train experiment=auto data.root=mended
# jdm-seg export runs/finetune/2026-01-31_12-00-00 models/tuned
# jdm-seg predict held_out/images results/ --model models/tuned --report
# jdm-seg predict held_out/images before/ --model models/first
# jdm-seg evaluate results/ held_out/labels evaluation/ --compare before/
# ```
#
# Whether it helped is decided on people whom no training saw; notebook 05 shows how. Masks that a model made can be
# corrected and become labels: `jdm-seg convert results/ correct/ --to slicer --images scans/`, correct in 3D Slicer,
# `jdm-seg convert correct/ corrected/ --to monai`.

# %%
splits = json.loads((tuned / "splits.json").read_text())
assert report.counts()["error"] == 1
assert not check_path(Path("mended")).counts()["error"]
assert not {name.split("-")[0] for name in splits["training"]} & {name.split("-")[0] for name in splits["validation"]}
assert used["network"]["channels"] == [8, 16, 32]
assert found["lesions"] > 0
