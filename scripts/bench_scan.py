"""The whole way of one large scan but the network: read, measure, draw, write; seconds and peak memory of every stage.

Without arguments on a figure of a trunk on two legs, 512 x 512 x 800 voxels of 0.98 x 0.98 x 1.5 mm, with 15 deposits
and with 400 false ones of 2 million voxels; or on a scan and a mask of one's own: ``bench_scan.py SCAN MASK``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jdm_seg.burden.analysis import analyse_mask, write_analysis, write_probability
from jdm_seg.lesions import read_mask
from jdm_seg.neighbourhood import ball_steps
from jdm_seg.pictures import PREVIEW, write_preview
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Volume, read_volume, write_volume

SHAPE, SPACING = (512, 512, 800), (0.98, 0.98, 1.5)
BAR_SECONDS, BAR_GB = 20.0, 2.25
DEPOSITS = {"15 deposits": (15, 4_000), "400 false ones": (400, 2_000_000)}
"""Name: number, and voxels together."""


def make_figure(rng: np.random.Generator) -> NDArray[np.int16]:
    """Return a trunk with lungs on two legs with bones, HU, with noise that gzip cannot shrink."""
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    tile = rng.normal(0, 18, (*SHAPE[:2], 8)).astype(np.float32)
    hu = np.empty(SHAPE, np.int16, order="F")
    for z in range(SHAPE[2]):
        plane = np.full(SHAPE[:2], -1000, np.float32)
        trunk = z > 420
        for middle in (256,) if trunk else (186, 326):
            wide, deep = (150, 105) if trunk else (35 + z // 12, 35 + z // 12)
            for share, value in ((1.0, 20), (0.98, -100), (0.85, 55)):
                plane[((x - middle) / (wide * share)) ** 2 + ((y - 256) / (deep * share)) ** 2 < 1] = value
            bone = (x - middle) ** 2 + (y - (170 if trunk else 256)) ** 2
            plane[bone < 14**2] = 900
            plane[bone < 8**2] = 0
        if 560 < z < 720:
            for middle in (190, 322):
                plane[((x - middle) / 50) ** 2 + ((y - 262) / 70) ** 2 < 1] = -850
        hu[:, :, z] = np.clip(np.rint(plane + np.roll(tile[:, :, z % 8], 31 * z, axis=0)), -1024, 3071)
    return hu


def add_deposits(hu: NDArray[np.int16], number: int, voxels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a mask of balls in the body; the few of a true case become bright."""
    mask = np.zeros_like(hu, dtype=np.uint8)
    places = np.argwhere(hu[20:-20:8, 20:-20:8, 20:-20:8] > -150) * 8 + 20
    sizes = rng.lognormal(0, 0.6, number)
    for place, size in zip(rng.permutation(places)[:number], sizes * voxels / sizes.sum(), strict=True):
        radius = float(np.cbrt(size * np.prod(SPACING) * 3 / (4 * np.pi)))
        ball = place + ball_steps(radius, SPACING)
        ball = ball[((ball >= 0) & (ball < SHAPE)).all(axis=1)]
        mask[tuple(ball.T)] = 1
        if number < 100:
            hu[tuple(ball.T)] = 500
    return mask


def measure_stages(scan_path: Path, mask_path: Path, out: Path) -> dict[str, float]:
    """Go the whole way once and return the seconds of each stage and the peak memory of this process in GB."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        seconds[stage] = time.perf_counter() - last
        last = time.perf_counter()

    scan = read_volume(scan_path)
    lap("read")
    mask = read_mask(mask_path).array
    found = SparseArray.of(mask)
    probability = SparseArray(found.shape, found.places, np.full(len(found.places), 0.8, np.float16))
    last = time.perf_counter()  # a network would have given both
    analysis = analyse_mask(scan, mask, case_id="figure", modality="ct", kv=120, probability=probability)
    lap("measure")
    write_volume(out / "mask.nii.gz", mask, scan, np.uint8)
    write_analysis(out, scan, analysis)
    lap("write")
    write_preview(out / PREVIEW, scan, mask, modality="ct")
    lap("preview")
    total, processor = sum(seconds.values()), time.process_time()
    write_probability(out, probability, scan)
    lap("(probability)")
    return {
        **seconds,
        "total": total,
        "processor": processor,
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def report(name: str, scan: Path, mask: Path) -> None:
    """Measure in a process of its own, which tells its own peak memory, and print one line."""
    call = [sys.executable, __file__, "--stages", str(scan), str(mask)]
    stages = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    parts = ", ".join(
        f"{stage} {value:.1f}" for stage, value in stages.items() if stage not in ("total", "processor", "GB")
    )
    within = stages["total"] <= BAR_SECONDS and stages["GB"] <= BAR_GB
    print(
        f"{name:16} {stages['total']:6.1f} s of {BAR_SECONDS:g} ({parts}); "
        f"{stages['processor']:.1f} s of processor time with start; peak {stages['GB']:.1f} of {BAR_GB:g} GB"
        f"{'' if within else '   OVER'}"
    )


def main(arguments: list[str]) -> None:
    """Measure a figure, or what was given."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments[:1] == ["--stages"]:
            print(json.dumps(measure_stages(Path(arguments[1]), Path(arguments[2]), folder)))
        elif arguments:
            report(Path(arguments[0]).name[:16], Path(arguments[0]), Path(arguments[1]))
        else:
            affine = np.diag([*SPACING, 1.0])
            for case, (number, voxels) in DEPOSITS.items():
                rng = np.random.default_rng(0)
                hu = make_figure(rng)
                mask = add_deposits(hu, number, voxels, rng)
                volume = Volume(hu, affine, "figure")
                write_volume(folder / "scan.nii.gz", hu, volume)
                write_volume(folder / "mask.nii.gz", mask, volume)
                del hu, mask, volume
                report(case, folder / "scan.nii.gz", folder / "mask.nii.gz")


if __name__ == "__main__":
    main(sys.argv[1:])
