"""Our way of one whole-body CT beside MONAI's sliding window and nnU-Net's predictor: same network, weights and window.

Every method runs in a process of its own, which tells its wall time and its peak memory (``ru_maxrss``, libraries
included), one after the other in one call: read the ratios, not the seconds. Loading the model and importing do not
count as time. What is in each side:

ours
    ``jdm-seg predict`` as it is: read, body crop, resample, windows, back, threshold, lesions, burden, preview, write,
    with the fastest engine. ``ours.mask`` is the part from the scan in memory to the mask on its grid.
monai
    From the scan in memory to the mask on its grid as bundles do it: float32, ``Spacing`` to the model's grid
    (bilinear), the intensity window, ``SlidingWindowInferer`` with the same window, overlap and Gaussian weights
    (torch, f32, whole field of view), trilinear interpolation of the logits back, threshold, and the model's own rule
    of what is too small or too unlikely.
monai.crop
    The same inside the box of the body that we found, which MONAI's ``CropForeground`` might find: what the crop alone
    is worth.
monai.engine
    The same as monai.crop with our engine for the network: what is left is the way around the network.
nnunet
    ``nnUNetPredictor`` of nnU-Net v2 from file to file: its reader, its preprocessing and resampling (cubic in, linear
    back), step 0.5, no mirroring, one 3d_fullres configuration at the model's spacing and window, the same network and
    weights with the background's logit as 0. Left out where the interpreter that ``--nnunet-python`` names lacks it.

Masks differ by where windows lie (ours follow the body), by how far grids are apart (a fraction of a voxel), and for
nnU-Net by its cubic interpolation and larger overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("ours", "monai", "monai.crop", "monai.engine", "nnunet")
DEFAULT_NETWORK = {"_target_": "jdm_seg.networks.SpaceToDepthUNet", "channels": [32, 64, 128, 192]}


def synthesize_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a drawn whole body at 0.98 x 0.98 x 1.5 mm, embedded in noisy air to ``shape``, cut to it if longer."""
    from jdm_seg.synthesis.recipe import preset_of, synthesize_body
    from jdm_seg.volume import Volume, write_volume

    preset = replace(preset_of("ct", "whole"), spacing=((0.98, 0.98, 1.5),))
    body = synthesize_body("ct", preset, (0, 0)).image
    rng = np.random.default_rng(0)
    # Fortran order, as in the file
    scan = np.stack([rng.normal(-1000, 12, shape[:2]).astype(np.int16) for _ in range(shape[2])]).transpose(2, 1, 0)
    inner = [min(n, m) for n, m in zip(shape, body.shape, strict=True)]
    low = [(n - m) // 2 for n, m in zip(shape, inner, strict=True)]
    scan[tuple(slice(a, a + m) for a, m in zip(low, inner, strict=True))] = body[: inner[0], : inner[1], : inner[2]]
    write_volume(path, scan, Volume(scan, np.diag([-0.98, -0.98, 1.5, 1.0])))


def crop_scan(source: Path, target: Path, planes: int) -> None:
    """Write the middle planes of a scan."""
    from jdm_seg.volume import Volume, read_volume, write_volume

    scan = read_volume(source)
    first = max(0, (scan.array.shape[2] - planes) // 2)
    part = scan.array[:, :, first : first + planes]
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    write_volume(target, part, Volume(part, affine))


def make_model(source: Path | None, out: Path, window: int, overlap: float) -> None:
    """Write a model folder of the wanted window, with the weights of another folder or random ones."""
    import torch
    from torch import Tensor, nn

    from jdm_seg.config import PreprocessConfig
    from jdm_seg.inference.engines import torch_weights
    from jdm_seg.model_folder import ModelFolder, ModelSpec, open_model, write_spec
    from jdm_seg.networks import as_levels, build_network, foreground_logit

    class Foreground(nn.Module):
        """One logit out."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            return foreground_logit(as_levels(self.network(image))[0])

    torch.manual_seed(0)
    size = (window,) * 3
    if source is None:
        spec = ModelSpec("random", PreprocessConfig(), size, overlap, 0.5, DEFAULT_NETWORK)
        network = build_network(spec.network)
    else:
        given = open_model(source)
        spec = replace(given.spec, patch_size=size, overlap=overlap, parity={})
        network = build_network(spec.network)
        network.load_state_dict(torch_weights(given), strict=False)
    out.mkdir(parents=True)
    write_spec(out, spec)
    model = ModelFolder(out, spec)
    torch.save(network.state_dict(), model.weights)
    torch.onnx.export(
        Foreground(network).eval(),
        (torch.zeros(2, 1, *size),),
        str(model.onnx),
        input_names=["image"],
        output_names=["logit"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def run_ours(scan: Path, model: Path, out: Path, engine: str) -> dict[str, Any]:
    """Segment with ``predict_batch``."""
    from jdm_seg.inference.batch import predict_batch
    from jdm_seg.inference.predict import PredictSettings, ScanPredictor
    from jdm_seg.model_folder import open_model
    from jdm_seg.volume import case_id_of, read_volume

    predictor = ScanPredictor(open_model(model), PredictSettings(engine=engine))
    begin = time.perf_counter()
    result = predict_batch(scan, out / "ours", predictor)
    seconds = time.perf_counter() - begin
    peak = peak_gb()
    if result.failed:
        raise SystemExit(str(result.failed))
    stages = next(iter(json.loads((out / "ours" / "run.json").read_text())["stage_seconds"].values()))
    np.save(out / "ours.npy", read_volume(out / "ours" / case_id_of(scan) / "mask.nii.gz").array > 0)
    on_the_way = ("preprocess", "windows", "network", "back_to_scan")
    mask_seconds = sum(stages[name] for name in on_the_way)
    return {"seconds": seconds, "mask_seconds": mask_seconds, "peak_gb": peak, "stages": stages}


def run_monai(scan: Path, model: Path, out: Path, engine: str, *, crop: bool, with_engine: bool) -> dict[str, Any]:
    """Segment with MONAI's transforms and inferer."""
    import torch
    import torch.nn.functional as F
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import ScaleIntensityRange, Spacing

    from jdm_seg.inference.engines import build_engine
    from jdm_seg.model_folder import open_model
    from jdm_seg.model_grid import place
    from jdm_seg.volume import read_volume

    folder = open_model(model)
    spec = folder.spec
    predictor = build_engine(folder, engine if with_engine else "torch")
    canonical = read_volume(scan).to_canonical()
    box = place(canonical, spec.preprocess).box if crop else (slice(None),) * 3
    inferer = SlidingWindowInferer(spec.patch_size, 1, spec.overlap, "gaussian")
    intensity = spec.preprocess.intensity
    begin = time.perf_counter()
    part = np.ascontiguousarray(canonical.array[box], dtype=np.float32)
    image = MetaTensor(torch.from_numpy(part)[None], affine=torch.from_numpy(canonical.affine))
    resampled = Spacing(spec.preprocess.spacing, mode="bilinear")(image)
    resampled = ScaleIntensityRange(intensity.low, intensity.high, -1, 1, clip=True)(resampled)
    with torch.inference_mode():
        network_begin = time.perf_counter()
        logits = inferer(resampled.as_tensor()[None], predictor)
        network = time.perf_counter() - network_begin
        back = F.interpolate(logits, part.shape, mode="trilinear", align_corners=False)[0, 0]
    mask = np.zeros(canonical.array.shape, np.bool_)
    likely = torch.sigmoid(back / spec.temperature).numpy()
    found = likely > spec.threshold
    spec.rule.clear(found, likely, canonical.spacing)
    mask[box] = found
    seconds = time.perf_counter() - begin
    name = "monai" + (".engine" if with_engine else ".crop" if crop else "")
    peak = peak_gb()
    np.save(out / f"{name}.npy", read_volume(scan).from_canonical(mask))
    return {"seconds": seconds, "mask_seconds": seconds, "peak_gb": peak, "stages": {"inferer": round(network, 2)}}


def run_nnunet(scan: Path, model: Path, out: Path) -> dict[str, Any]:
    """Segment with nnU-Net's own predictor, from file to file."""
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from torch import Tensor, nn

    from jdm_seg.inference.engines import torch_weights
    from jdm_seg.model_folder import open_model
    from jdm_seg.networks import as_levels, build_network, foreground_logit

    class TwoClasses(nn.Module):
        """nnU-Net's axes (z, y, x) of an LPS file in, background and foreground out."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            canonical = image.permute(0, 1, 4, 3, 2).flip(2, 3)
            logit = foreground_logit(as_levels(self.network(canonical))[0]).flip(2, 3).permute(0, 1, 4, 3, 2)
            return torch.cat([torch.zeros_like(logit), logit], dim=1)

    folder = open_model(model)
    network = build_network(folder.spec.network)
    network.load_state_dict(torch_weights(folder), strict=False)
    plans = PlansManager(nnunet_plans(folder.spec))
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "calcinosis": 1}, "file_ending": ".nii.gz"}
    predictor = nnUNetPredictor(
        0.5, use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    wrapped = TwoClasses(network).eval()
    configuration = plans.get_configuration("3d_fullres")
    predictor.manual_initialization(
        wrapped, plans, configuration, [wrapped.state_dict()], dataset, "nnUNetTrainer", None
    )
    begin = time.perf_counter()
    reader = SimpleITKIO()
    image, properties = reader.read_images([str(scan)])
    segmentation = predictor.predict_single_npy_array(image, properties)
    reader.write_seg(segmentation, str(out / "nnunet.nii.gz"), properties)
    seconds = time.perf_counter() - begin
    peak = peak_gb()
    np.save(out / "nnunet.npy", segmentation.transpose(2, 1, 0) > 0)
    return {"seconds": seconds, "mask_seconds": seconds, "peak_gb": peak, "stages": {}}


def nnunet_plans(spec: Any) -> dict[str, Any]:
    """Return plans of one configuration at the model's spacing, window and intensity rule."""
    low, high = spec.preprocess.intensity.low, spec.preprocess.intensity.high
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "bench",
        "plans_name": "bench",
        "original_median_spacing_after_transp": list(spec.preprocess.spacing),
        "original_median_shape_after_transp": [512, 512, 512],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            # clipped and divided so that the window becomes -1 to 1, as in our normalisation
            "0": {
                "percentile_00_5": low,
                "percentile_99_5": high,
                "mean": (low + high) / 2,
                "std": (high - low) / 2,
            }
        },
        "configurations": {
            "3d_fullres": {
                "data_identifier": "bench",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(spec.patch_size),
                "median_image_size_in_voxels": [512, 512, 512],
                "spacing": list(spec.preprocess.spacing),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {**resampling, "order": 3},
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "batch_dice": True,
                "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
            }
        },
    }


def peak_gb() -> float:
    """Return the largest memory this process has held, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run_one(method: str, scan: Path, model: Path, out: Path, engine: str) -> dict[str, Any]:
    """Run a method in this process."""
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: run_ours(scan, model, out, engine),
        "monai": lambda: run_monai(scan, model, out, engine, crop=False, with_engine=False),
        "monai.crop": lambda: run_monai(scan, model, out, engine, crop=True, with_engine=False),
        "monai.engine": lambda: run_monai(scan, model, out, engine, crop=True, with_engine=True),
        "nnunet": lambda: run_nnunet(scan, model, out),
    }
    return runs[method]()


def agreement(ours: Path, theirs: Path) -> str:
    """Return how far two masks agree, in words."""
    from jdm_seg.metrics.lesion import count_lesions
    from jdm_seg.metrics.protocol import LesionProtocol
    from jdm_seg.metrics.voxel import dice

    a, b = np.load(ours), np.load(theirs)
    equal = 1 - np.count_nonzero(a != b) / a.size
    lesions = count_lesions(a, b, (0.98, 0.98, 1.5), LesionProtocol())
    return (
        f"{100 * equal:.4f} % of voxels equal, Dice {dice(a, b):.3f}, lesion F1 {lesions.f1:.3f}, {int(b.sum())} voxels"
    )


def main() -> None:
    """Run every method that is installed and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, help="a whole-body CT; default: one is synthesised")
    parser.add_argument("--planes", type=int, default=120, help="only the middle planes of the scan; 0: all")
    parser.add_argument("--model", type=Path, help="model folder; default: random weights")
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--engine", help="ours; default: OpenVINO if installed, else ONNX Runtime")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--nnunet-python", default=sys.executable, help="interpreter that can import nnunetv2")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.scan, options.model, options.out, options.engine)))
        return
    from importlib.util import find_spec

    engine = options.engine or ("openvino" if find_spec("openvino") else "onnxruntime")
    with tempfile.TemporaryDirectory(prefix="bench_inference.") as temporary:
        out = Path(temporary)
        scan = options.scan
        if scan is None:
            scan = out / "whole.nii.gz"
            synthesize_scan(scan, (512, 512, 800))
        if options.planes:
            crop_scan(scan, out / "part.nii.gz", options.planes)
            scan = out / "part.nii.gz"
        make_model(options.model, out / "model", options.window, options.overlap)
        print(f"window {options.window}³, overlap {options.overlap}, our engine {engine}, {os.cpu_count()} CPUs")
        compare(options, engine, scan, out)


def compare(options: argparse.Namespace, engine: str, scan: Path, out: Path) -> None:
    """Run every method in a process of its own and print one line each."""
    results: dict[str, dict[str, Any]] = {}
    for method in options.methods:
        python = options.nnunet_python if method == "nnunet" else sys.executable
        if method == "nnunet" and subprocess.run([python, "-c", "import nnunetv2"], capture_output=True).returncode:
            print("nnunet       left out: nnunetv2 cannot be imported; see --nnunet-python")
            continue
        call = [python, __file__, "--one", method, "--scan", scan, "--model", out / "model", "--out", out]
        source = Path(__file__).parents[1] / "src"
        environment = {**os.environ, "PYTHONPATH": str(source), "nnUNet_raw": "", "nnUNet_results": ""}
        done = subprocess.run([*call, "--engine", engine], capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"{method:12} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        results[method] = result = json.loads(done.stdout.splitlines()[-1])
        line = f"{method:12} {result['seconds']:8.1f} s   peak {result['peak_gb']:5.2f} GB   {result['stages']}"
        ours = results.get("ours")
        if ours is not None and method != "ours":
            own = ours["seconds" if method == "nnunet" else "mask_seconds"]
            line += f"\n{'':12} we are {result['seconds'] / own:.1f} times faster"
            line += f", with {ours['peak_gb'] / result['peak_gb']:.2f} of the memory"
            line += f"; {agreement(out / 'ours.npy', out / f'{method}.npy')}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
