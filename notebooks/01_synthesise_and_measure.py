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
# # Synthesise a limb, look at it, and measure its deposits
#
# **Purpose.** See what the package trains on, and check that what it measures is what was put in.
# **Inputs.** None: every voxel here is synthetic. **Runtime.** Under half a minute.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from jdm_seg.burden import analyse_mask
from jdm_seg.metrics.lesion import count_lesions
from jdm_seg.metrics.voxel import dice
from jdm_seg.pictures import project
from jdm_seg.synthesis.dataset import PRESETS, synthesize_body
from jdm_seg.volume import Volume

# %% [markdown]
# ## One case of each modality
#
# A case is drawn from a pair of numbers, the seed of the data set and the number of the case. The record holds
# everything that was drawn: body, scanner, and each deposit with its pattern.

# %%
cases = {m: synthesize_body(m, replace(PRESETS[m, "smoke"], negatives=0.0), (1, 4)) for m in ("ct", "stir")}
for modality, case in cases.items():
    patterns = ", ".join(d["pattern"] for d in case.record["deposits"])
    print(f"{modality}: {case.image.shape} voxels of {case.record['spacing']} mm, deposits: {patterns}")

# %%
figure, rows = plt.subplots(1, 2, figsize=(8, 4), facecolor="black")
for axes, (modality, case) in zip(rows, cases.items(), strict=True):
    picture, outline = project(case.image, case.label, axis=1, maximum=modality == "ct")
    axes.imshow(picture, cmap="gray", vmin=-100 if modality == "ct" else 0, vmax=900 if modality == "ct" else 700)
    if outline.any():
        axes.contour(outline, [0.5], colors="tab:orange", linewidths=0.8)
    axes.set_title(f"{modality}: truth in orange", color="white")
    axes.set_axis_off()

# %% [markdown]
# On CT deposits are bright; on STIR they are dark, unless inflamed or fluid.
#
# ## Measure with the true mask
#
# `mass_mg_ha` sums the CT numbers above the local background, so it does not depend on where a threshold cuts the
# blurred edge. The synthesis knows the tube voltage; in your own scans pass it with `--kv`.

# %%
case = cases["ct"]
scan = Volume(case.image, case.affine, "demo")
kv = case.record["acquisition"]["kv"]
truth = analyse_mask(scan, case.label > 0, case_id="demo", modality="ct", kv=kv)
print({key: truth.burden[key] for key in ("lesion_count", "volume_ml", "mass_mg_ha", "agatston", "mean_hu")})

# %% [markdown]
# ## What a threshold does to the same scan
#
# A threshold at 130 HU takes bone for deposits: the reason why this package exists.

# %%
threshold = case.image > 130
counts = count_lesions(threshold, case.label > 0, scan.spacing)
volumes = {name: mask.sum() * scan.grid.voxel_volume_mm3 / 1000 for name, mask in (("threshold", threshold),)}
print(f"Dice {dice(threshold, case.label > 0):.2f}, {counts}")
print(f"threshold {volumes['threshold']:.1f} mL, truth {truth.burden['volume_ml']:.1f} mL")

# %%
assert np.isclose(truth.burden["volume_ml"], case.label.sum() * scan.grid.voxel_volume_mm3 / 1000)
assert volumes["threshold"] > 2 * truth.burden["volume_ml"]
assert count_lesions(case.label > 0, case.label > 0, scan.spacing).f1 == 1.0
