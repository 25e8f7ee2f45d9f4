"""Every shipped YAML composes; wrong values fail at the start and say why."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from jdm_seg.config import compose, configs_folder, instantiate, plain, preprocess_from
from jdm_seg.errors import InputError
from jdm_seg.export.onnx_graph import ForegroundNetwork, write_graph
from jdm_seg.losses import build_loss
from jdm_seg.networks import as_levels, build_network

GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in configs_folder().glob("*/*.yaml")
    if path.parent.name not in ("experiment", "benchmark")
)
EXPERIMENTS = sorted(path.stem for path in (configs_folder() / "experiment").glob("*.yaml"))
GIVEN = {
    ("data", "labelled"): ["data.root=somewhere"],
    ("data", "backgrounds"): ["data.backgrounds=somewhere"],
    ("experiment", "ct_inserted"): ["data.backgrounds=somewhere"],
    ("experiment", "finetune"): ["init=somewhere", "data.root=somewhere"],
}


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_group_file_composes(group, name):
    config = compose([f"{group}={name}", *GIVEN.get((group, name), [])])
    assert plain(config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_names_itself(name):
    config = compose([f"experiment={name}", *GIVEN.get(("experiment", name), [])])
    assert config.name == name
    assert preprocess_from(plain(config.preprocess)) == config.preprocess


NETWORKS = [name for group, name in GROUPS if group == "network"]
LOSSES = [
    ("space_to_depth_slim" if name.endswith("_classes") else "space_to_depth_unet", name)
    for group, name in GROUPS
    if group == "loss"
]


@pytest.mark.parametrize(("name", "loss"), LOSSES)
def test_every_loss_takes_a_step(name, loss):
    config = compose([f"network={name}", f"loss={loss}"])
    network = build_network(config.network)
    image = torch.randn(1, 1, 32, 32, 32)
    label = (torch.rand(1, 1, 32, 32, 32) > 0.9).to(torch.uint8)
    if loss.endswith("_classes"):
        label[..., 16:] *= 2
    value = build_loss(config.loss)(as_levels(network(image)), label)
    value.backward()
    assert torch.isfinite(value)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_a_step_and_is_exported(name, tmp_path):
    """What ONNX Runtime answers is what the network answers after the step."""
    config = compose([f"network={name}"])
    torch.manual_seed(0)
    network = build_network(config.network)
    side = 64 if name == "swin_unetr" else 32  # it halves five times, and normalises what is left
    image = torch.rand(2, 1, side, side, side) * 2 - 1
    label = (image > 0.9).to(torch.uint8)
    optimizer = instantiate(config.optimizer, "optimizer", params=list(network.parameters()))
    build_loss(config.loss)(as_levels(network(image)), label).backward()
    slopes = [weight.grad for weight in network.parameters()]
    assert all(slope is not None and torch.isfinite(slope).all() and slope.any() for slope in slopes)
    optimizer.step()
    wrapped = ForegroundNetwork(network).eval()
    write_graph(wrapped, tmp_path / "model.onnx", (side,) * 3)
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        wanted = wrapped(image)
    answer = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    assert (answer - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("name", [name for group, name in GROUPS if group == "optimizer"])
def test_every_optimizer_is_built(name):
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    assert isinstance(
        instantiate(compose([f"optimizer={name}"]).optimizer, "optimizer", params=parameters), torch.optim.Optimizer
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.patch_size=[64,64]"], "data.patch_size: expected three values"),
        (["data.patch_size=[64,64,65]"], "data.patch_size: expected multiples of 8"),
        (["preprocess.spacing=[1,1,0]"], "preprocess.spacing: expected positive mm"),
        (["data.oedema=true"], "network.out_channels: expected at least 3, for background, deposit and oedema"),
        (
            ["data.oedema=true", "network.out_channels=3", "data.backgrounds=x"],
            "data.oedema: expected no data.backgrounds",
        ),
        (["data.anatomy=true", "network.out_channels=3"], "network.out_channels: expected at least 6"),
        (
            ["data.anatomy=true", "data.skeleton=true", "network.out_channels=6"],
            r"data\.skeleton and data\.anatomy: expected one of them",
        ),
        (["init_classes=6"], "init_classes: expected init"),
        (["data.skeleton=true"], "network.out_channels: expected at least 3, for background, deposit and bone"),
        (["preprocess.modality=pet"], "preprocess.modality: expected ct or stir, found 'pet'"),
        (["preprocess.intensity.low=2000"], "preprocess.intensity: expected low below high"),
        (["inference.threshold=1.5"], "inference.threshold: expected between 0 and 1"),
        (["evaluation.connectivity=8"], "evaluation.connectivity: expected 6, 18 or 26"),
        (["trainer.precision=fp8"], "trainer.precision: expected one of auto"),
        (
            ["data.batch_size=4", "data.patches_per_epoch=2"],
            "data.patches_per_epoch: expected at least data.batch_size",
        ),
        (["augment.flip=7"], "augment.flip: expected a probability"),
        (["seed=-1"], "seed: expected 0 or more"),
        (["data.root=null", "data.synthesize=null"], r"data: expected data\.root"),
        (["data.mix.inserted=-1"], r"data\.mix\.inserted: expected 0 or more"),
        (["data.foreground_share=2"], "data.foreground_share: expected 0 to 1"),
    ],
)
def test_values_out_of_range_are_named(overrides, message):
    with pytest.raises(InputError, match=message):
        compose(overrides)


@pytest.mark.parametrize(
    "override", ["trainer.max_epoch=3", "trainer.max_epochs=three", "experiment=nope", "network=nope"]
)
def test_misspelt_overrides_fail_at_composition(override):
    with pytest.raises(Exception, match=r"(max_epoch|three|nope)"):
        compose([override])


def test_configs_are_found_from_the_checkout():
    assert configs_folder().resolve() == Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("alone", ["init_spacing=[1,1,2]", "init_channels=[32,64,128,192]"])
def test_what_changes_the_first_weights_wants_some(alone):
    with pytest.raises(InputError, match="expected init, which it changes"):
        compose(["experiment=ct_smoke", alone])
