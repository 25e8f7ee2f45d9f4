"""Timings of the parts that matter, each beside what one would use instead, in one run: read the ratios."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
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
from jdm_seg.synthesis.calcinosis import render_deposits, sample_deposits
from jdm_seg.synthesis.host import build_host
from jdm_seg.synthesis.insert import insert_ct, sample_scan_blur
from jdm_seg.synthesis.tissue import Tissue
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
    """Draw, render and insert deposits in one 96³ patch."""
    tissue = np.full((96, 96, 96), Tissue.FAT, np.uint8)
    tissue[:, 30:] = Tissue.MUSCLE
    tissue[:3] = Tissue.AIR
    host = build_host(tissue, (1.5, 1.5, 1.5))
    hu = np.zeros(tissue.shape, np.int16)
    rng = np.random.default_rng(0)

    def insert() -> object:
        calcinosis = render_deposits(sample_deposits(host, rng), host)
        return insert_ct(hu, calcinosis, host, sample_scan_blur(rng, (1.0, 1.0, 3.0)))

    print(f"{'insert deposits in a 96³ patch':34} {median_ms(insert, 30):9.1f} ms")


def main() -> None:
    """Run every benchmark."""
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        bench_files(Path(folder))
    bench_insertion()
    bench_network()
    bench_window()
    bench_grid()
    bench_lesions()


if __name__ == "__main__":
    main()
