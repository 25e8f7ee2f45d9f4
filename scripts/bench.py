"""Timings of the parts that matter, each beside what one would use instead, in one run: read the ratios."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from scipy import ndimage

from jdm_seg.inference.sliding_window import predict_logits
from jdm_seg.lesions import label_lesions
from jdm_seg.networks import SpaceToDepthUNet, as_levels
from jdm_seg.resample import axis_weights, resample
from jdm_seg.synthesis.anatomy.host import Host
from jdm_seg.synthesis.anatomy.scene import render_scene, sample_scene
from jdm_seg.synthesis.anatomy.tissue import Tissue
from jdm_seg.synthesis.insert import HOST_KEYS, SCAN_KEY, InsertCalcinosisd
from jdm_seg.volume import Volume, read_volume, write_volume


def median_ms(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the median time of a call in ms, after one call that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append((time.perf_counter() - begin) * 1000)
    return float(np.median(times))


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], what: str) -> None:
    """Print both medians and their ratio."""
    a, b = median_ms(ours), median_ms(theirs)
    print(f"{name:34} {a:9.1f} ms   {what:34} {b:9.1f} ms   {b / a:6.1f} times faster")


def bench_files(folder: Path) -> None:
    """Write and read one CT of 96 MB."""
    rng = np.random.default_rng(0)
    array = ndimage.gaussian_filter(rng.normal(0, 400, (300, 400, 200)), 1).astype(np.int16)
    volume, path = Volume(array, np.eye(4)), folder / "scan.nii.gz"
    image = nib.Nifti1Image(array, np.eye(4))
    compare("write .nii.gz", lambda: write_volume(path, array, volume), lambda: nib.save(image, path), "nibabel")
    compare("read .nii.gz", lambda: read_volume(path), lambda: nib.load(path).get_fdata(), "nibabel get_fdata")


def bench_network() -> None:
    """Run one 96³ patch forward, and forward and backward."""
    patch = torch.randn(1, 1, 96, 96, 96)
    ours = SpaceToDepthUNet()
    theirs = DynUNet(3, 1, 1, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[32, 64, 128, 192])

    def forward(network: torch.nn.Module, bf16: bool) -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network.eval()(patch)

    def step(network: torch.nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(level.float().square().mean() for level in as_levels(network.train()(patch)))
        loss.backward()

    compare("space-to-depth f32", lambda: forward(ours, False), lambda: forward(theirs, False), "DynUNet f32")
    compare("space-to-depth bf16", lambda: forward(ours, True), lambda: forward(theirs, True), "DynUNet bf16")
    compare("space-to-depth bf16 step", lambda: step(ours), lambda: step(theirs), "DynUNet bf16 step")


def bench_window() -> None:
    """Slide a window over a scan that is half air."""
    image = torch.full((192, 160, 160), -1.0)
    image[:96, 30:130, 30:130] = torch.rand(96, 100, 100)
    network = SpaceToDepthUNet((1), channels=(16, 32)).eval()
    with torch.inference_mode():
        compare(
            "sliding window",
            lambda: predict_logits(image, network, roi_size=(64, 64, 64), overlap=0.25),
            lambda: sliding_window_inference(image[None, None], (64,) * 3, 1, network, 0.25, "gaussian"),
            "MONAI sliding_window_inference",
        )


def bench_grid() -> None:
    """Bring logits from 1.5 mm to a finer grid."""
    logits = np.random.default_rng(0).normal(size=(120, 120, 120)).astype(np.float32)
    weights = [axis_weights(120, 180, 2 / 3)] * 3
    compare(
        "logits to the scan's grid",
        lambda: resample(logits, weights),
        lambda: ndimage.zoom(logits, 1.5, order=1),
        "scipy zoom",
    )


def bench_lesions() -> None:
    """Label a mask of many small lesions."""
    mask = np.zeros((300, 300, 300), bool)
    points = np.random.default_rng(0).integers(10, 290, (400, 3))
    for x, y, z in points:
        mask[x : x + 4, y : y + 4, z : z + 4] = True
    grouped = ndimage.generate_binary_structure(3, 1)

    def plain() -> object:
        return ndimage.label(ndimage.binary_dilation(mask, grouped), np.ones((3, 3, 3)))[0] * mask

    compare(
        "label lesions, 1 mm grouping", lambda: label_lesions(mask, (1.0, 1.0, 1.0)), plain, "scipy dilate and label"
    )


def bench_insertion() -> None:
    """Draw, render, blend and label deposits and look-alikes in 96³ patches of drawn bodies, as a loader does."""
    for step in (1.5, 1.0):
        spacing, rng = (step, step, step), np.random.default_rng(0)
        samples = [
            insertion_sample(render_scene(sample_scene(rng, view), spacing, (96, 96, 96)).host, rng)
            for view in ("limb", "limb", "limb", "trunk")
        ]
        transform = InsertCalcinosisd(spacing).set_random_state(0)
        insert = partial(_insert_next, transform, cycle(samples))
        print(f"{f'insert in a 96³ patch of {step} mm':34} {median_ms(insert, 200):9.1f} ms")


def _insert_next(transform: InsertCalcinosisd, patches: Iterator[dict[Hashable, object]]) -> object:
    return transform(next(patches))


def insertion_sample(host: Host, rng: np.random.Generator) -> dict[Hashable, object]:
    """Return a host as a loader hands it over, with CT numbers made up for it."""
    background = np.select([host.tissue == Tissue.AIR, host.tissue == Tissue.FAT], [-1000, -100], 50)
    arrays = dict(zip(HOST_KEYS, (host.tissue, host.depth_mm, host.muscle_mm, host.bone_mm, background), strict=True))
    image = (background + rng.normal(0, 12, background.shape)).astype(np.float32)
    sample: dict[Hashable, object] = {key: np.asarray(array)[None] for key, array in arrays.items()}
    return {**sample, "image": image[None], SCAN_KEY: np.array([1.2, 0.0])}


_ONE_CASE = """
import json, resource, sys, time
from jdm_seg.synthesis.recipe import PRESETS, synthesize_body
begin = time.perf_counter()
case = synthesize_body(sys.argv[1], PRESETS[sys.argv[1], sys.argv[2]], (int(sys.argv[3]), 0))
seconds = time.perf_counter() - begin
body = case.record["recipe"]["scene"]["body"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([seconds, peak, list(case.image.shape), round(body["age"])]))
"""


def bench_synthesis() -> None:
    """Make whole cases, each in a process of its own, which also tells its peak memory."""
    for modality, preset, seeds in (("ct", "limb", 5), ("ct", "trunk", 3), ("ct", "whole", 3), ("stir", "whole", 1)):
        rows = []
        for seed in range(seeds):
            call = [sys.executable, "-c", _ONE_CASE, modality, preset, str(seed)]
            rows.append(json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
        seconds, peaks = [r[0] for r in rows], [r[1] for r in rows]
        name = f"synthesize one {modality} {preset}"
        print(
            f"{name:34} {np.median(seconds):9.1f} s    (slowest {max(seconds):.1f} s; peak {max(peaks):.1f} GB; "
            f"{rows[-1][2]}, {rows[-1][3]} years)"
        )


def main() -> None:
    """Run every benchmark."""
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        bench_files(Path(folder))
    bench_insertion()
    bench_synthesis()
    bench_network()
    bench_window()
    bench_grid()
    bench_lesions()


if __name__ == "__main__":
    main()
