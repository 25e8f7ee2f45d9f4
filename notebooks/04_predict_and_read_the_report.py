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
# # Segment scans and read what comes out
#
# **Purpose.** A folder of scans goes in; masks, tables, pictures and a report come out. What each figure means, in
# which unit, and what to look at before believing it.
# **Inputs.** None: a drawn child and a drawn knee stand in for your scans. **Runtime.** Under a minute.
#
# The method is the threshold that needs no network, so that this runs anywhere. With a model it is the same line, and
# the same files come out: a shipped one by its name (`jdm-seg models` lists what your version has), one of yours by its
# folder, `--model models/mine`.
#
# **Research use only.** Nothing here is a finding about a patient before a person has looked at it.

# %%
import csv
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.inference.batch import predict_batch
from jdm_seg.report import write_report
from jdm_seg.report.words import BURDEN
from jdm_seg.synthesis.conditions import Conditions
from jdm_seg.synthesis.recipe import PRESETS, synthesize_body
from jdm_seg.volume import Volume, read_volume, write_volume

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # every path below is relative to a folder that is removed at the end

# %% [markdown]
# ## Three files
#
# A child from head to foot, a knee, and a file that is no CT: someone exported a picture. File names become case ids
# and stand in every table, so call files `sub-001`, not after people.

# %%
held = {"negatives": 0.0, "conditions": Conditions(age=(5.0, 6.0), kv=("100",))}
presets = {
    "child": (replace(PRESETS["ct", "whole"], spacing=((2.5, 2.5, 2.5),), **held), (1, 3)),
    "knee": (replace(PRESETS["ct", "smoke"], **held), (31, 13)),
}
for name, (preset, seed) in presets.items():
    case = synthesize_body("ct", preset, seed)
    scan = Volume(case.image, case.affine, name)
    write_volume(f"scans/{name}.nii.gz", scan.array, like=scan)
    write_volume(f"truth/{name}.nii.gz", case.label, like=scan)
picture = np.clip(scan.array / 8 + 30, 0, 255).astype(np.uint8)
write_volume("scans/picture.nii.gz", picture, like=scan)

# %% [markdown]
# ## Predict
#
# ```
# jdm-seg predict scans results --model threshold --kv 100 --report
# ```
#
# `--kv` is the tube voltage: calcium is brighter at low voltage, so without it no mass can be trusted. DICOM holds it,
# NIfTI does not. One bad file stops nothing; the command says so at the end and leaves with exit code 1.

# %%
batch = predict_batch(Path("scans"), Path("results"), ThresholdSegmenter("ct", kv="100"), kv="100")
for row in batch.rows:
    print(row["case_id"], "|", row["status"], "|", row["error"] or f"{row['lesion_count']} lesions")

# %%
for path in sorted(path for path in Path("results").rglob("*") if path.is_file() and path.name[0] != "."):
    print(path)

# %% [markdown]
# ## First of all, look
#
# `preview.png` shows what was marked. Is it calcinosis? Bone ends, growth plates, vessels, contrast and metal are as
# bright: here ribs, breastbone and kneecaps were taken for deposits. No figure says that for you.

# %%
figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
axes.imshow(plt.imread("results/child/preview.png"))
axes.set_axis_off()

# %% [markdown]
# These scans are drawn, so the truth is known. **Orange** is what the threshold marked, **blue** the truth.

# %%
scan = read_volume("scans/child.nii.gz")
found, truth = (read_volume(path).array > 0 for path in ("results/child/mask.nii.gz", "truth/child.nii.gz"))
figure, row = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
shown = {"most that is false": found & ~truth, "most that is right": found & truth}
for axes, (title, part) in zip(row, shown.items(), strict=True):
    level = int(part.sum(axis=(0, 1)).argmax())
    slices = (array[::-1, ::-1, level].T for array in (scan.array, truth, found))  # front on top, the right on the left
    picture, *outlines = slices
    axes.imshow(picture, cmap="gray", vmin=-160, vmax=600)
    for outline, colour, width in zip(outlines, ("tab:blue", "tab:orange"), (3, 1.2), strict=True):
        if outline.any():
            axes.contour(outline, [0.5], colors=colour, linewidths=width)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()

# %% [markdown]
# ## One row a lesion: `lesions.csv`
#
# A lesion is a connected part of the mask; parts within 1 mm are one. Numbers are those in `lesions.nii.gz` and on the
# pages. Empty means undefined, never 0.


# %%
def read_table(path):
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rounded(text):
    return f"{float(text):.4g}" if "." in text and text.replace(".", "").isdigit() else text


def show(rows, columns):
    widths = [max(len(name), *(len(rounded(row[name])) for row in rows)) for name in columns]
    for row in ({name: name for name in columns}, *rows):
        print("  ".join(f"{rounded(row[name]):>{width}}" for name, width in zip(columns, widths, strict=True)))


lesions = read_table("results/child/lesions.csv")
largest = sorted(lesions, key=lambda row: -float(row["volume_mm3"]))[:8]
show(largest, ["lesion", "volume_mm3", "longest_axis_mm", "mean_hu", "mass_mg_ha", "depth_class", "side", "region"])

# %% [markdown]
# | column | unit | is |
# | --- | --- | --- |
# | `volume_mm3` | mm³ | voxels of the mask times their size; depends on where the mask's edge is drawn |
# | `volume_integrated_mm3`, `volume_sd_mm3` | mm³ | volume from the summed signal, and its uncertainty by noise |
# | `equivalent_diameter_mm`, `longest_axis_mm` | mm | diameter of a ball of that volume; longest distance inside |
# | `centroid_x_mm`, `_y_`, `_z_` | mm | scanner position: x to the patient's right, y to the front, z to the head |
# | `mean_hu`, `max_hu` | HU | CT numbers; muscle is about 50, calcinosis 150 to 2000 |
# | `clipped_fraction` | 0 to 1 | share at the scanner's ceiling: truly denser than told |
# | `mass_mg_ha` | mg | mineral (hydroxyapatite), above what lies around; the figure to follow over time |
# | `density_mg_ha_cm3`, `density_basis` | mg/cm³ | mass over volume, and how it was found; `mask` is the weakest |
# | `depth_mm`, `bone_mm` | mm | to the skin's surface; to the next bone |
# | `depth_class`, `region`, `side` | | skin to muscle; body region; the *patient's* side; `unknown` if nothing tells |
# | `mean_probability` | 0 to 1 | how sure a network was; empty for the threshold |

# %%
sizes, masses = (np.array([float(row[name] or "nan") for row in lesions]) for name in ("volume_mm3", "mass_mg_ha"))
depth = [row["depth_class"] for row in lesions]
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for kind in sorted(set(depth)):
    chosen = np.array([name == kind for name in depth])
    axes.loglog(sizes[chosen], masses[chosen], "o", label=kind, alpha=0.8)
axes.set(xlabel="volume of the mask, mm³", ylabel="mass, mg hydroxyapatite")
axes.legend(frameon=False, fontsize=8)
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## One scan: `burden.json`

# %%
burden = json.loads(Path("results/child/burden.json").read_text())
for figure in BURDEN:  # the words of the report's pages
    value = burden.get(figure.key)
    if isinstance(value, float):
        value = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    print(f"{figure.label:22} {value if value is not None else 'undefined':>9} {figure.unit:15} {figure.meaning}")

# %%
for region, figures in burden["by_region"].items():
    mass = figures["mass_mg_ha"] or 0
    print(f"{region:12} {figures['lesion_count']:3} lesions {figures['volume_ml']:7.2f} mL {mass:8.0f} mg")

# %% [markdown]
# **Warnings** say in plain words what limits these figures. Read them before the figures.

# %%
for warning in burden["warnings"]:
    print("-", warning)

# %% [markdown]
# ## All scans: `cohort.csv`
#
# One row a scan, those that failed with their reason: a table for statistics must not lose people silently.

# %%
show(
    read_table("results/cohort.csv"),
    ["case_id", "status", "lesion_count", "volume_ml", "mass_mg_ha", "mean_hu", "seconds"],
)
print("reason:", *(row["error"] for row in read_table("results/cohort.csv") if row["error"]))

# %% [markdown]
# ## The report
#
# ```
# jdm-seg report results --scans scans
# ```
#
# ![A page of a report](../docs/report.png)
#
# One page for the cohort and one a scan: the figures above, pictures with numbered lesions, a body map, a viewer to
# scroll through, the warnings on top. The pages open from disk, need no network and hold nothing of a person but the
# case id.

# %%
page = write_report(Path("results"), Path("scans"))
for path in sorted(Path("results").rglob("*.html")):
    print(f"{path!s:32} {path.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## When the mask is wrong
#
# Correct it by hand and measure again; the method does not matter to the figures:
#
# ```
# jdm-seg convert results/ correct/ --to slicer --images scans/   # then save over each .seg.nrrd in 3D Slicer
# jdm-seg convert correct/ corrected/ --to monai
# jdm-seg burden scans/child.nii.gz corrected/labels/child.nii.gz measured/ --kv 100
# ```

# %%
right = (found & truth).sum() * scan.grid.voxel_volume_mm3 / 1000
print(
    f"marked {burden['volume_ml']:.1f} mL, of which {right:.1f} mL is calcinosis; true volume "
    f"{truth.sum() * scan.grid.voxel_volume_mm3 / 1000:.1f} mL"
)

# %%
assert [row["status"] for row in batch.rows].count("failed") == 1
assert np.isclose(burden["volume_ml"], found.sum() * scan.grid.voxel_volume_mm3 / 1000)
assert len(lesions) == burden["lesion_count"]
assert page.is_file()
