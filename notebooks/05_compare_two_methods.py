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
# # Is one method better than another?
#
# **Purpose.** Score two methods against the same truth, lesion by lesion, with intervals; test the difference in pairs;
# see which deposits each of them misses.
# **Inputs.** None: eight drawn cases with known truth. **Runtime.** Under a minute.
#
# The methods are two thresholds. Yours may be networks, other tools or two readers: whatever writes masks is scored by
# the same code, from files.

# %%
import csv
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.evaluate import compare_folders
from jdm_seg.inference.batch import predict_batch
from jdm_seg.report import write_report
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.volume import read_volume, write_volume

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # every path below is relative to a folder that is removed at the end

# %% [markdown]
# ## Cases with known truth
#
# ```
# jdm-seg synthesize set --modality ct --cases 8 --seed 2 --preset smoke
# ```
#
# With cases of your own: scans, masks that somebody drew without seeing the methods' masks, and people whom no training
# saw. `datalist.json` says who is who, so that two scans of one person do not count as two people.

# %%
manifest = synthesize_dataset(Path("set"), modality="ct", cases=8, seed=2, preset="smoke", workers=1)
print(*sorted(path.name for path in Path("set").iterdir()))

# %% [markdown]
# ## Two methods
#
# The first is the package's baseline: a threshold, then connected bone is taken out.
#
# ```
# jdm-seg predict set/images bone_out --model threshold
# ```

# %%
predict_batch(Path("set/images"), Path("bone_out"), ThresholdSegmenter("ct"))
print(Path("bone_out/cohort.csv").read_text().count("done"), "scans done")

# %% [markdown]
# The second is anything that writes `<case>.nii.gz` on the scan's grid. Here: everything over 500 HU.

# %%
for path in sorted(Path("set/images").iterdir()):
    scan = read_volume(path)
    write_volume(f"plain/{path.name}", (scan.array > 500).astype(np.uint8), like=scan)

# %% [markdown]
# ## Score both
#
# ```
# jdm-seg evaluate bone_out set/labels scores --compare plain
# ```

# %%
first, second, rows = compare_folders(Path("bone_out"), Path("plain"), Path("set/labels"), Path("scores"))
print(*sorted(str(path) for path in Path("scores").rglob("*.*")), sep="\n")

# %% [markdown]
# A **lesion** is a connected part of a mask; parts within 1 mm are one. It is **found** if the prediction overlaps it
# anywhere. Lesions under 10 mm³ do not count, on either side.
#
# | figure | asks |
# | --- | --- |
# | `lesion_recall` | which share of the true lesions was found |
# | `lesion_precision` | which share of the predicted ones is true |
# | `lesion_f1` | both in one: the harmonic mean |
# | `dice` | overlap of voxels: good for large lesions, unkind to small ones |
#
# `scores/summary.json` has the whole protocol in words, and 20 further figures. Intervals are from a bootstrap over
# people: with eight of them they are wide, and that is the truth about eight people.

# %%
names = ["dice", "lesion_precision", "lesion_recall", "lesion_f1"]
methods = {"bone_out": (first, "tab:orange"), "plain": (second, "tab:gray")}
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for shift, (method, (summary, colour)) in zip((-0.12, 0.12), methods.items(), strict=True):
    for place, name in enumerate(names):
        one = summary["figures"][name]
        interval = f"{one['mean']:.2f} ({one['ci_low']:.2f} to {one['ci_high']:.2f})"
        print(f"{method:9} {name:17} {interval} in {one['n']} cases")
        label = method if place == 0 else None
        axes.plot([one["ci_low"], one["ci_high"]], [place + shift] * 2, color=colour, linewidth=2)
        axes.plot(one["mean"], place + shift, "o", color=colour, label=label)
axes.set(xlim=(0, 1), ylim=(3.5, -0.5), yticks=range(4), yticklabels=names, xlabel="mean and 95 % interval")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# **Undefined is not zero.** One case has no deposits. Its Dice is 0 as soon as anything is marked and undefined when
# nothing is, and its recall asks about no lesion at all. Undefined figures are counted, and left out of means.

# %%
for method, (summary, _) in methods.items():
    print(method, {name: summary["undefined"].get(name, []) for name in names})

# %% [markdown]
# ## Case by case
#
# Two intervals that overlap say little, for both methods saw the same cases. Look at pairs.


# %%
def read_column(path, name):
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return {row["case_id"]: float(row[name] or "nan") for row in csv.DictReader(stream)}


figure, axes = plt.subplots(figsize=(4, 3), layout="constrained")
before, after = read_column("scores/compared/cases.csv", "lesion_f1"), read_column("scores/cases.csv", "lesion_f1")
for case_id in before:
    colour = "tab:orange" if after[case_id] > before[case_id] else "tab:gray"
    axes.plot([0, 1], [before[case_id], after[case_id]], "o-", color=colour, linewidth=1, markersize=4)
axes.set(xlim=(-0.3, 1.3), ylim=(-0.03, 1), xticks=[0, 1], xticklabels=["plain", "bone_out"], ylabel="lesion F1")
axes.spines[["top", "right"]].set_visible(False)

# %%
shown = [row for row in rows if row["figure"] in names]
for row in shown:
    print(
        f"{row['figure']:17} {row['difference']:+.2f} ({row['ci_low']:+.2f} to {row['ci_high']:+.2f})  "
        f"p {row['p']:.3f}  after Holm {row['p_holm']:.3f}  effect {row['effect']:+.2f}  n {row['n']}"
    )

# %% [markdown]
# - **Difference**: mean of first minus second over cases where both are defined, with its interval.
# - **p**: how often chance alone gives as much, from swapping the methods in each person. With eight people it cannot
#   be below 2 in 2⁸ = 0.008, however clear the difference: a small study cannot give a small p.
# - **p after Holm**: for having looked at all figures. Name *one* figure before you look, and this correction is for
#   the others.
# - **Effect**: -1 to 1; 1 if the first method is better in every pair.
#
# ## Which deposits are missed?
#
# Here every lesion is asked for, also those under 10 mm³.

# %%
groups = [
    ("size", first["recall_by_size"], second["recall_by_size"]),
    ("pattern", first["recall_by"]["pattern"], second["recall_by"]["pattern"]),
]
figure, row = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharex=True)
for axes, (name, ours, theirs) in zip(row, groups, strict=True):
    strata = [stratum for stratum in ours if ours[stratum]["lesions"]]
    for shift, side, (method, (_, colour)) in zip((0.17, -0.17), (ours, theirs), methods.items(), strict=True):
        recall = [side[stratum]["found"] / side[stratum]["lesions"] for stratum in strata]
        axes.barh(np.arange(len(strata)) + shift, recall, height=0.32, color=colour, label=method)
    axes.set_yticks(range(len(strata)), [f"{stratum} (n={ours[stratum]['lesions']})" for stratum in strata])
    axes.set(title=f"recall by {name}", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
_ = row[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

# %% [markdown]
# Patterns come from the `records/` of the synthesis. For your cases give a table with `--attributes FOLDER`: one
# `<case>.csv` with the position of each lesion and whatever you know of it (pattern, site, reader's confidence).
#
# ## The page
#
# ```
# jdm-seg report scores --scans set/images --predictions bone_out --references set/labels
# ```
#
# Figures with intervals, the worst cases with pictures, and the comparison; one file that opens from disk.

# %%
page = write_report(Path("scores"), Path("set/images"), predictions=Path("bone_out"), references=Path("set/labels"))
print(page, f"{page.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## For real
#
# ```
# jdm-seg evaluate results/ held_out/labels scores/ --compare before/ --protocol brats2023   # as that challenge counts
# jdm-seg benchmark ct_phantom bench/ --method threshold --method models/mine
# jdm-seg benchmark ct_negative negative/ --scans scans/ --method threshold --method models/mine
# ```
#
# The benchmark compares any number of methods on cases made from a seed, in strata of scanner and body. `ct_negative`
# counts what is invented in scans without calcinosis, where recall has nothing to say. A method is better when it is
# better there too.

# %%
by_name = {row["figure"]: row for row in rows}
mean = np.nanmean([after[case_id] - before[case_id] for case_id in before])
assert np.isclose(by_name["lesion_f1"]["difference"], mean)
assert by_name["lesion_f1"]["p_holm"] >= by_name["lesion_f1"]["p"] >= 2 / 2**8 - 1e-3
assert first["n_failed"] == second["n_failed"] == 0
assert page.is_file()
