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
# # Synthesise calcinosis, look at it, and measure it
#
# **Purpose.** See what the package trains on (bodies, deposit patterns, the physics of CT and STIR) and check that what
# it measures is what was put in.
# **Inputs.** None: every voxel here is synthetic. **Runtime.** Under a minute.

# %%
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from jdm_seg.burden.analysis import analyse_mask
from jdm_seg.metrics.lesion import count_lesions
from jdm_seg.metrics.voxel import dice
from jdm_seg.physics import hu_per_mg_ha
from jdm_seg.pictures import project
from jdm_seg.synthesis.anatomy.scene import render_scene, sample_scene
from jdm_seg.synthesis.deposits.calcinosis import render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.priors import PATTERNS, Priors
from jdm_seg.synthesis.recipe import PRESETS, replay, synthesize_body
from jdm_seg.volume import Volume


def show(axes, picture, outline, title, low, high, aspect=1.0):
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect)
    if outline is not None and outline.any():
        axes.contour(outline, [0.5], colors="tab:orange", linewidths=0.8)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


# %% [markdown]
# ## A body
#
# Age, size, build and pose are drawn; the anatomy follows from them and one seed for details. Here as a tissue map at
# 4 mm, with its fifteen regions, from which sites of deposits are drawn.

# %%
scene = sample_scene(np.random.default_rng(3), "whole")
body = render_scene(scene, (4.0, 4.0, 4.0))
print(f"{scene.body.sex}, {scene.body.age:.0f} years, {scene.body.height / 10:.0f} cm, {scene.body.bmi:.1f} kg/m²")
middle = round(-body.origin[1] / 4)
figure, row = plt.subplots(1, 3, figsize=(9, 7))
show(row[0], body.host.tissue[::-1, middle].T[::-1], None, "tissue, coronal slice", 0, 28)
show(row[1], (body.host.region * (body.host.depth_mm > 0)).max(axis=1)[::-1].T[::-1], None, "regions", 0, 15)
show(row[2], body.host.depth_mm.max(axis=1)[::-1].T[::-1], None, "depth under the skin", 0, 60)

# %% [markdown]
# ## Deposit patterns
#
# The same knee, once with each pattern. What is drawn is the calcium of every voxel on a super-sampled grid; the label
# is 1 where a deposit fills at least half of a voxel.

# %%
limb = render_scene(sample_scene(np.random.default_rng(1), "limb"), (1.5, 1.5, 1.5), (110, 110, 90))
figure, row = plt.subplots(1, len(PATTERNS), figsize=(2.4 * len(PATTERNS), 3))
for axes, pattern in zip(row, PATTERNS, strict=True):
    only = Priors(weights=tuple(float(p == pattern) for p in PATTERNS), mixed=0.0, count_mean=4)
    drawn = render_deposits(sample_deposits(limb.host, np.random.default_rng(2), only), limb.host)
    show(axes, drawn.calcium.max(axis=1)[::-1].T[::-1], None, pattern, 0, 600)

# %% [markdown]
# ## One case of each modality
#
# A case is drawn from a pair of numbers, the seed of the data set and the number of the case. The record holds
# everything that was drawn, so a case can be made again from it, or made again with one thing changed.

# %%
cases = {m: synthesize_body(m, replace(PRESETS[m, "smoke"], negatives=0.0), (1, 4)) for m in ("ct", "stir")}
figure, row = plt.subplots(1, 2, figsize=(8, 4))
for axes, (modality, case) in zip(row, cases.items(), strict=True):
    patterns = ", ".join(sorted({d["pattern"] for d in case.record["deposits"]}))
    print(f"{modality}: {case.image.shape} voxels of {case.record['spacing']} mm, deposits: {patterns}")
    picture, outline = project(case.image, case.label, axis=1, maximum=modality == "ct")
    aspect = case.record["spacing"][2] / case.record["spacing"][0]
    show(axes, picture, outline, f"{modality}: truth in orange", 0, 900 if modality == "ct" else 700, aspect)

# %% [markdown]
# On CT deposits are bright; on STIR they are dark, unless inflamed or fluid, and in suppressed fat they cannot be seen.
#
# ## Physics: the same case at three tube voltages, and without noise
#
# The CT number of calcium depends on the tube voltage; noise, blur and streaks are the scanner's.

# %%
record = json.loads(json.dumps(cases["ct"].record))
level = int(cases["ct"].label.sum(axis=(0, 1)).argmax())
figure, row = plt.subplots(1, 4, figsize=(12, 3.2))
brightest = {}
for axes, kv in zip(row, ("80", "120", "140"), strict=False):
    changed = json.loads(json.dumps(record))
    changed["recipe"]["ct"] |= {"kv": kv, "noise_hu": 0.0}
    again = replay(changed)
    brightest[kv] = float(np.percentile(again.image[again.label > 0], 75))
    title = f"{kv} kV: {hu_per_mg_ha(kv):.2f} HU per mg/cm³"
    show(axes, again.image[..., level].T[::-1], again.label[..., level].T[::-1], title, -160, 600)
show(row[3], cases["ct"].image[..., level].T[::-1], None, "as scanned", -160, 600)
print("upper quartile of the deposits' CT numbers:", brightest)

# %% [markdown]
# ## Measure with the true mask
#
# `mass_mg_ha` sums the CT numbers above the local background, so it does not depend on where a threshold cuts the
# blurred edge. The synthesis knows the tube voltage; in your own scans pass it with `--kv`.

# %%
case = cases["ct"]
scan = Volume(case.image, case.affine, "demo")
kv = case.record["recipe"]["ct"]["kv"]
truth = analyse_mask(scan, case.label > 0, case_id="demo", modality="ct", kv=kv)
print({key: truth.burden[key] for key in ("lesion_count", "volume_ml", "mass_mg_ha", "agatston", "mean_hu")})

# %% [markdown]
# ## What a threshold does to the same scan
#
# A threshold at 130 HU takes bone for deposits: the reason why this package exists.

# %%
threshold = case.image > 130
counts = count_lesions(threshold, case.label > 0, scan.spacing)
volume = threshold.sum() * scan.grid.voxel_volume_mm3 / 1000
print(f"Dice {dice(threshold, case.label > 0):.2f}, {counts}")
print(f"threshold {volume:.1f} mL, truth {truth.burden['volume_ml']:.1f} mL")

# %%
assert np.isclose(truth.burden["volume_ml"], case.label.sum() * scan.grid.voxel_volume_mm3 / 1000)
assert volume > 2 * truth.burden["volume_ml"]
assert brightest["80"] > brightest["120"] > brightest["140"]
assert count_lesions(case.label > 0, case.label > 0, scan.spacing).f1 == 1.0
