"""The words of the pages: what each figure is called, in which unit, and what it means in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """How one figure is shown.

    Attributes:
        key: Its name in ``burden.json``, ``cohort.csv`` or ``summary.json``.
        label: In words.
        unit: Empty for counts and shares.
        meaning: One plain sentence.
    """

    key: str
    label: str
    unit: str
    meaning: str


BURDEN = (
    Figure("lesion_count", "Deposits", "", "Separate deposits; pieces within 1 mm of each other count as one."),
    Figure("volume_ml", "Volume", "mL", "Space that the mask covers. A teaspoon holds 5 mL."),
    Figure(
        "volume_integrated_ml",
        "Volume from intensity",
        "mL",
        "Volume from how bright the deposits and their blur are; depends less on the mask's edge than the volume. Of "
        "deposits too thin or faint to tell (a warning says how many) it follows the mask.",
    ),
    Figure(
        "mass_mg_ha",
        "Calcium mass",
        "mg HA",
        "Mineral in the deposits, as hydroxyapatite (HA), above what lies around them.",
    ),
    Figure(
        "agatston",
        "Agatston score",
        "",
        "A score from cardiac CT: area weighted by peak density. For comparison only; made for coronary arteries.",
    ),
    Figure("mean_hu", "Mean density", "HU", "Mean CT number. Muscle is about 50 HU, dense bone over 1000 HU."),
    Figure("median_hu", "Median density", "HU", "Half of the deposits' voxels are denser."),
    Figure("max_hu", "Largest density", "HU", "The densest voxel."),
    Figure("dense_fraction", "Dense share", "", "Share of voxels over 1000 HU: stone rather than paste."),
    Figure(
        "clipped_fraction", "Clipped share", "", "Share of voxels at the scanner's ceiling: truly denser than told."
    ),
    Figure("largest_lesion_ml", "Largest deposit", "mL", "Volume of the largest one."),
    Figure("median_diameter_mm", "Median diameter", "mm", "Diameter of a ball of the volume; half are larger."),
    Figure("symmetry_index", "Symmetry", "", "1: every region holds as much on both sides; 0: each deposit is alone."),
    Figure(
        "detectability_floor_mm3",
        "Detectability floor",
        "mm³",
        "Smaller soft deposits would not show in this scan, by its noise and voxels: a rule of thumb.",
    ),
    Figure("detectability_floor_diameter_mm", "Floor as a diameter", "mm", "The same as the diameter of a ball."),
    Figure("noise_sd_hu", "Noise", "HU", "Standard deviation in soft tissue: how grainy the scan is."),
    Figure("kv", "Tube voltage", "kV", "The same deposit is brighter at a lower voltage."),
    Figure("body_diameter_cm", "Body size", "cm of water", "What the body attenuates like, where the deposits lie."),
    Figure("hu_per_mg_ha", "Calibration", "HU per mg/cm³", "Brightness that a milligram of mineral gives."),
    Figure("blur_fwhm_mm", "Blur", "mm", "Width to which the scanner smears a point."),
)
"""Rows of the table of figures, in order; one that is None in a case is left out there."""
STIR = (
    Figure("void_ml", "Void", "mL", "Part of the mask darker than half of muscle: mineral gives no signal."),
    Figure("fluid_ml", "Paste or fluid", "mL", "Part of the mask at least four times as bright as muscle."),
    Figure("other_ml", "Neither", "mL", "The rest of the mask."),
    Figure("oedema_ml", "Oedema", "mL", "Two to four times as bright as muscle, outside but near the mask."),
    Figure("noise_share", "Noise", "of muscle", "How grainy the scan is, relative to muscle."),
)
"""Rows of STIR scans, from ``stir`` of ``burden.json``."""
COLUMNS = (
    Figure("volume_mm3", "Volume", "mm³", ""),
    Figure("equivalent_diameter_mm", "Diameter", "mm", ""),
    Figure("longest_axis_mm", "Longest", "mm", ""),
    Figure("mean_hu", "Mean", "HU", ""),
    Figure("mass_mg_ha", "Mass", "mg HA", ""),
    Figure("depth_mm", "Depth", "mm", ""),
    Figure("mean_probability", "Probability", "", ""),
)
"""Numeric columns of the table of deposits; one that is empty throughout is left out."""
TILES = ("lesion_count", "volume_ml", "mass_mg_ha", "largest_lesion_ml", "agatston", "detectability_floor_mm3")
"""Figures that stand large on top."""
REGIONS = {
    "head_neck": "head and neck",
    "chest": "chest",
    "abdomen": "abdomen",
    "hip": "hip",
    "trunk": "trunk",
    "arm": "arm",
    "leg": "leg",
    "thigh": "thigh",
    "knee": "knee",
    "lower_leg": "lower leg",
    "foot": "foot",
    "unknown": "not known",
}
DEPTHS = {
    "subcutis": "under the skin",
    "periarticular": "near a joint",
    "visceral": "inner organs",
    "unknown": "not known",
}
SCORES = (
    Figure("lesion_f1", "Lesion F1", "", "Harmonic mean of found and true: 1 is perfect."),
    Figure("lesion_recall", "Found", "", "Share of the reference lesions that were found."),
    Figure("lesion_precision", "True", "", "Share of the predicted lesions that are ones."),
    Figure("dice", "Dice", "", "Overlap of the voxels: 1 is perfect."),
    Figure("surface_dice_1mm", "Surface Dice, 1 mm", "", "Share of both surfaces within 1 mm of the other."),
    Figure("cl_dice", "Centreline Dice", "", "Overlap of the skeletons: for thin sheets and nets."),
    Figure("panoptic_quality", "Panoptic quality", "", "Found and well outlined in one figure."),
    Figure("lesion_dice", "Dice a lesion", "", "Mean overlap over lesions, missed and false ones at 0."),
    Figure(
        "scan_specificity", "Empty scans kept empty", "", "Share of scans without a lesion in which none was named."
    ),
    Figure("lesion_tp", "Found lesions", "a scan", "Mean number."),
    Figure("lesion_fn", "Missed lesions", "a scan", "Mean number."),
    Figure("lesion_fp", "False lesions", "a scan", "Mean number."),
    Figure("false_positive_volume_ml", "False volume", "mL a scan", "Volume of the false lesions."),
    Figure("false_negative_volume_ml", "Missed volume", "mL a scan", "Volume of the missed lesions."),
    Figure("absolute_volume_error_ml", "Volume error", "mL", "Mean distance between predicted and reference volume."),
    Figure("hd95_mm", "Surface distance, 95 %", "mm", "Nearly all of both surfaces are nearer to the other."),
)
"""Figures of an evaluation, in the order shown."""
FATES = {
    "new": "no counterpart before, and large enough that it would have shown",
    "grown": "more than 25 % larger",
    "stable": "within 25 %",
    "shrunk": "more than 25 % smaller",
    "resolved": "no counterpart any more",
    "merged": "several became one",
    "split": "one became several",
    "uncertain": "measurement alone explains it, or too small to tell",
    "out_of_view": "the other scan does not show the place",
}
