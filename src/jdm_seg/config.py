"""The values of one run, as dataclasses that are checked once.

Hydra composes YAML against these classes, so a misspelt key or a wrong type fails before anything starts. Below
:func:`to_config` there is no ``DictConfig`` left. ``_target_`` appears in five groups only (network, loss, optimizer,
callbacks, logger), where it chooses an implementation by dotted path from an allow-list.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jdm_seg.errors import InputError

ALLOWED_TARGETS = (
    "torch.nn.",
    "torch.optim.",
    "monai.",
    "lightning.",
    "jdm_seg.networks.",
    "jdm_seg.losses.",
    "jdm_seg.callbacks.",
)
"""Where a target's class must be defined. Hydra alone would call anything; a config or a model folder that came by mail
must not be a program."""

RUNS_ROOT = "runs"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


def _check(ok: bool, where: str, expected: str, found: object) -> None:
    if not ok:
        raise InputError(where, expected=expected, found=repr(found), remedy=f"change {where}")


def _triple(values: Any, where: str) -> tuple[Any, Any, Any]:
    values = tuple(values)
    _check(len(values) == 3, where, "three values, along x, y, z", values)
    return values[0], values[1], values[2]


@dataclass
class SynthesizeConfig:
    """A synthetic data set that is made where ``data.root`` has none."""

    preset: str = "smoke"
    """Kind of case, or several joined by ``+`` that take turns."""
    cases: int = 24
    """How many."""
    seed: int = 0
    """Same seed, same bytes."""
    validation: float = 0.15
    """Share of the cases that are kept for validation."""
    testing: float = 0.15
    """The same, for testing: never trained on."""
    workers: int = 2
    """Processes that make cases."""
    root: str | None = None
    """Where to keep it; null: it is ``data.root`` itself, and there are no other labelled cases."""


@dataclass
class MixConfig:
    """Relative shares of patches by where they come from; a source that a run has not is left out."""

    labelled: float = 1.0
    """Cases of ``data.root``."""
    inserted: float = 1.0
    """Scans of ``data.backgrounds``."""
    procedural: float = 1.0
    """The synthetic set of ``data.synthesize.root``, beside labelled cases or scans."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("labelled", "inserted", "procedural"):
            _check(getattr(self, name) >= 0, f"data.mix.{name}", "0 or more", getattr(self, name))


@dataclass
class DataConfig:
    """Where cases come from and how patches are taken from them."""

    root: str | None = None
    """Folder with a ``datalist.json``, or a manifest file. Labelled cases."""
    backgrounds: str | None = None
    """Folder of unlabelled scans; deposits are inserted into their patches on the fly."""
    mix: MixConfig = field(default_factory=MixConfig)
    cache: str = "data/cache"
    """Folder for prepared cases, read by patch; shared by runs, and safe to delete."""
    synthesize: SynthesizeConfig | None = None
    fold: int = 0
    """Which of the folds is validation, from 0."""
    folds: int = 5
    """Used where the manifest names no validation cases."""
    validation: list[str] = field(default_factory=list)
    """Case ids to validate on instead of a fold, so that cases can be added without moving anyone; with them goes
    everything else of their subjects."""
    patch_size: tuple[int, int, int] = (96, 96, 96)
    """Voxels along x, y, z; multiples of 8. Zeros: planned from the scans and the memory."""
    batch_size: int = 2
    """Patches a step, on each device. 0: planned."""
    patches_per_epoch: int = 200
    """Over all devices together."""
    foreground_share: float = 0.75
    """Share of patches that hold a deposit: placed around one, or with deposits inserted."""
    hard_share: float = 0.25
    """Share of the patches without a deposit in their middle that are placed on something bright instead of anywhere:
    bone ends, contrast, metal. These are what networks take for calcium."""
    by_size: bool = False
    """Visit cases in proportion to their size, rather than alike: a chest holds more than a calf."""
    skeleton: bool = False
    """CT: label bone as a second class, found by CT number and shape. It fills a hundred times more voxels than
    deposits and is what they are mistaken for. The network needs three classes (``network.out_channels=3``)."""
    oedema: bool = False
    """STIR: label oedema as a second class, where the data set has a mask of it. It needs three classes too."""
    anatomy: bool = False
    """Synthetic bodies: label bone, fat with skin, fascia with tendons, and blood with other fluid as classes 2 to 5.
    On STIR a deposit in muscle is as dark as all of these but the last. The network needs six classes."""
    workers: int = 0
    """Processes that make patches; 0: the training process itself."""
    repeat_one: bool = False
    """Give one patch again and again, to tell what a step costs without its data."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(0 <= self.hard_share <= 1, "data.hard_share", "0 to 1", self.hard_share)
        self.patch_size = _triple(self.patch_size, "data.patch_size")
        whole = all(n > 0 and n % 8 == 0 for n in self.patch_size) or not any(self.patch_size)
        _check(whole, "data.patch_size", "multiples of 8, or zeros to be planned", self.patch_size)
        _check(0 <= self.foreground_share <= 1, "data.foreground_share", "0 to 1", self.foreground_share)
        _check(self.batch_size >= 0, "data.batch_size", "at least 1, or 0 to be planned", self.batch_size)
        enough = self.patches_per_epoch >= self.batch_size
        _check(enough, "data.patches_per_epoch", "at least data.batch_size", self.patches_per_epoch)
        _check(self.workers >= 0, "data.workers", "0 or more", self.workers)


@dataclass
class IntensityConfig:
    """How voxel values become network input: ``low`` maps to -1 and ``high`` to 1, clipped.

    ``window``: low and high are HU. ``percentile``: low and high are percentiles of the scan's own body. ``median``:
    they are multiples of its median, which bright fluid does not move: in 24 synthetic STIR limbs the median lay at
    0.1 to 1.1 times the signal of muscle (half of them 0.6 to 0.9), the 99.5th percentile at 1.7 to 10 times.

    Attributes:
        kind: ``window``, ``percentile`` or ``median``.
        low: Lower end, HU, percentile or multiple.
        high: Upper end.
    """

    kind: str = "window"
    low: float = -200.0
    high: float = 1300.0

    def __post_init__(self) -> None:
        """Check the rule's name and order."""
        kinds = ("window", "percentile", "median")
        _check(self.kind in kinds, "preprocess.intensity.kind", "window, percentile or median", self.kind)
        _check(self.low < self.high, "preprocess.intensity", "low below high", (self.low, self.high))


@dataclass
class PreprocessConfig:
    """One preprocessing for training, validation and prediction; travels with the model."""

    modality: str = "ct"
    """``ct`` or ``stir``."""
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    """Voxel size in mm along x, y, z that the network works at. Zeros: planned."""
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    order: int = 1
    """Interpolation to this spacing: 1 linear, 3 cubic. A model is to be used with the one it was trained with."""
    follow_slices: bool = False
    """Turn scans of thick slices so that these lie as the grid's do, be they axial, coronal or sagittal, and leave them
    as far apart as they are: blended slices hide what fills one of them. (Figures while training take all voxels to
    be of ``spacing``.)"""

    def __post_init__(self) -> None:
        """Check ranges."""
        self.spacing = _triple(self.spacing, "preprocess.spacing")
        given = all(s > 0 for s in self.spacing) or not any(self.spacing)
        _check(given, "preprocess.spacing", "positive mm, or zeros to be planned", self.spacing)
        _check(self.modality in ("ct", "stir"), "preprocess.modality", "ct or stir", self.modality)
        _check(self.order in (1, 3), "preprocess.order", "1 (linear) or 3 (cubic)", self.order)


@dataclass
class AugmentConfig:
    """Random changes of training patches. Probabilities 0 to 1.

    Attributes:
        flip: Of mirroring, for each axis.
        affine: Of turning and scaling.
        rotation_deg: Largest angle about each axis.
        scale: Largest relative change of size.
        noise: Of added Gaussian noise.
        noise_std: Its standard deviation, in network input (-1 to 1).
        smooth: Of Gaussian blur.
        contrast: Of scaled values (by up to 10 %), and of shifted ones (by up to 0.03); on MRI of another gain (by up
            to 25 %) instead of both.
    """

    flip: float = 0.5
    affine: float = 0.3
    rotation_deg: float = 15.0
    scale: float = 0.15
    noise: float = 0.3
    noise_std: float = 0.04
    smooth: float = 0.15
    contrast: float = 0.3

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("flip", "affine", "noise", "smooth", "contrast"):
            _check(0 <= getattr(self, name) <= 1, f"augment.{name}", "a probability", getattr(self, name))


@dataclass
class InferenceConfig:
    """Sliding window. ``roi_size`` null: the training patch.

    Attributes:
        roi_size: Window in voxels, along x, y, z.
        overlap: Least share of a window shared with its neighbour, 0 to below 1.
        batch_size: Windows at once.
        threshold: Probability from which a voxel counts; export calibrates it.
        min_lesion_mm3: Smaller lesions are dropped.
        min_peak: Lesions of which no voxel has this probability are dropped; export calibrates it.
    """

    roi_size: tuple[int, int, int] | None = None
    overlap: float = 0.25
    batch_size: int = 1
    threshold: float = 0.5
    min_lesion_mm3: float = 0.0
    min_peak: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.min_lesion_mm3 >= 0, "inference.min_lesion_mm3", "0 or more", self.min_lesion_mm3)
        _check(0 <= self.min_peak < 1, "inference.min_peak", "0 to below 1", self.min_peak)
        if self.roi_size is not None:
            self.roi_size = _triple(self.roi_size, "inference.roi_size")
        _check(0 <= self.overlap < 1, "inference.overlap", "0 to below 1", self.overlap)
        _check(0 < self.threshold < 1, "inference.threshold", "between 0 and 1", self.threshold)


@dataclass
class EvaluationConfig:
    """The protocol of lesion metrics while training; the same defaults as ``jdm-seg evaluate``.

    Attributes:
        connectivity: 6, 18 or 26 neighbours make one component.
        grouping_mm: Pieces closer than this are one lesion.
        min_volume_mm3: Smallest lesion that counts.
    """

    connectivity: int = 26
    grouping_mm: float = 1.0
    min_volume_mm3: float = 10.0

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.connectivity in (6, 18, 26), "evaluation.connectivity", "6, 18 or 26", self.connectivity)
        _check(self.grouping_mm >= 0, "evaluation.grouping_mm", "0 or more", self.grouping_mm)
        _check(self.min_volume_mm3 >= 0, "evaluation.min_volume_mm3", "0 or more", self.min_volume_mm3)


@dataclass
class TrainerConfig:
    """Length, hardware and numerics."""

    max_epochs: int = 10
    """After these, or ``max_minutes``, whichever comes first."""
    max_minutes: float | None = None
    """Of wall time; null: no limit."""
    accelerator: str = "auto"
    """``cpu``, ``gpu``, or ``auto``: a GPU where there is one."""
    devices: int = 1
    """Processes on each machine, one a GPU or, on a CPU, several that share it."""
    nodes: int = 1
    """Machines, each with ``devices``; SLURM starts the processes."""
    precision: str = "auto"
    """``32-true``, ``bf16-mixed``, ``16-mixed``, or ``auto``: bf16 where the hardware computes in it."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of a step."""
    warmup_steps: int = 20
    """Over which the learning rate rises to its peak."""
    schedule: str = "cosine"
    """How the learning rate falls after the warm-up: ``cosine``, ``poly`` or ``constant``."""
    compile: bool = False
    """``torch.compile`` the network, on CPUs with channels last: a minute at the start, faster steps after it."""
    accumulate: int = 1
    """Batches a step; a larger batch than the memory holds."""
    validate_every: int = 1
    """Epochs between validations on whole scans."""
    deterministic: bool = True
    """The same losses on the same machine, at some cost in speed on GPUs."""
    progress: bool = True
    """Draw a progress bar where there is a terminal."""

    def __post_init__(self) -> None:
        """Check ranges."""
        known = ("auto", "32-true", "bf16-mixed", "16-mixed")
        _check(self.precision in known, "trainer.precision", f"one of {', '.join(known)}", self.precision)
        schedules = ("cosine", "poly", "constant")
        _check(self.schedule in schedules, "trainer.schedule", f"one of {', '.join(schedules)}", self.schedule)
        _check(self.accumulate >= 1, "trainer.accumulate", "at least 1", self.accumulate)
        _check(self.max_epochs >= 1, "trainer.max_epochs", "at least 1", self.max_epochs)
        _check(self.validate_every >= 1, "trainer.validate_every", "at least 1", self.validate_every)


@dataclass
class TrainConfig:
    """Everything one training run depends on."""

    name: str = "unnamed"
    """Of the experiment; runs and the model are called by it."""
    seed: int = 0
    """Of everything random."""
    runs_root: str = RUNS_ROOT
    """Where run folders are made."""
    run_dir: str = ""
    """The run folder; by default a new one under ``runs_root``, named by experiment and time."""
    ckpt: str | None = None
    """``last``: go on with the newest run of this name (or the one in ``run_dir``); or a checkpoint's path."""
    data: DataConfig = field(default_factory=DataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    init: str | None = None
    """Weights to begin with: a shipped model, a model folder, or a run folder. Its network and preprocessing are taken
    over, as weights mean nothing without them."""
    init_channels: list[int] | None = None
    """Begin with a wider copy of ``init`` that answers alike: widths of a space-to-depth U-Net by level."""
    init_classes: int | None = None
    """Begin with a copy of ``init`` that has more classes (``data.skeleton``, ``data.anatomy``), all rare at first."""
    init_spacing: tuple[float, float, float] | None = None
    """Begin with ``init`` on voxels of another size, mm: to go on learning on a finer grid costs little at first."""
    network: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    logger: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what no field can know alone."""
        made = self.data.synthesize is not None and self.data.synthesize.root is not None
        some = self.data.root is not None or self.data.backgrounds is not None or made
        _check(self.seed >= 0, "seed", "0 or more", self.seed)
        for name in ("init_channels", "init_classes", "init_spacing"):
            alone = self.init is None and getattr(self, name) is not None
            _check(not alone, name, "init, which it changes", "none")
        channels = int(self.network.get("out_channels", 3))
        beside = {"skeleton": (3, "bone"), "oedema": (3, "oedema"), "anatomy": (6, "four tissues")}
        on = [name for name in beside if getattr(self.data, name)]
        for name in on:
            least, others = beside[name]
            wanted = f"at least {least}, for background, deposit and {others} (data.{name})"
            _check(channels >= least, "network.out_channels", wanted, channels)
        one = "one of them: they give the same numbers to classes"
        _check(len(on) <= 1, " and ".join(f"data.{name}" for name in on), one, "all on")
        known = not (self.data.oedema and self.data.backgrounds)
        _check(known, "data.oedema", "no data.backgrounds: nobody marked oedema in them", self.data.backgrounds)
        _check(some, "data", "data.root (labelled cases), data.backgrounds (unlabelled scans) or both", "neither")


def configs_folder() -> Path:
    """Return the folder of the shipped YAML: inside the installed package, or beside ``src`` in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parents[1] / "configs"


def plain(value: Any) -> Any:
    """Return dataclasses, tuples and paths as dicts, lists and strings: what JSON and checkpoints may hold."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return str(value) if isinstance(value, Path) else value


def preprocess_from(values: dict[str, Any]) -> PreprocessConfig:
    """Rebuild the preprocessing that a checkpoint or a model folder holds as plain values."""
    values = dict(values)
    return PreprocessConfig(**{**values, "intensity": IntensityConfig(**values["intensity"])})


def instantiate(spec: dict[str, Any], group: str, **arguments: Any) -> Any:
    """Build what a ``_target_`` names.

    Args:
        spec: ``{"_target_": dotted path, **arguments}``; nested targets are built too.
        group: Config group, for messages.
        arguments: Added to the target's arguments.

    Raises:
        InputError: If a target is missing, outside :data:`ALLOWED_TARGETS`, unknown, or refuses its arguments.
    """
    import hydra.errors
    import hydra.utils

    if not isinstance(spec, dict) or "_target_" not in spec:
        raise InputError(
            group, expected="a _target_", found=repr(spec), remedy=f"choose a {group} from configs/{group}"
        )
    _check_targets(spec, group)
    try:
        return hydra.utils.instantiate(spec, **arguments, _convert_="all")
    except hydra.errors.InstantiationException as error:
        package = _missing_package(error)
        remedy = f"pip install {package}" if package else f"check the arguments in configs/{group}"
        raise InputError(
            group,
            expected=f"a target that can be built from {spec['_target_']} and its arguments",
            found=f"{package} not installed" if package else str(error).replace("\n", " "),
            remedy=remedy,
        ) from error


def _missing_package(error: BaseException | None) -> str | None:
    """Return the package whose absence is behind an error, or None."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            # Lightning raises it with a sentence and no name: Requirement 'wandb>=0.12.10' not met
            return error.name or re.split(r"[<>=']", str(error).partition("'")[2])[0]
        error = error.__cause__ or error.__context__
    return None


def _is_allowed(target: str) -> bool:
    """Tell whether a dotted path leads to a class that an allowed package defines.

    The path alone proves nothing: modules re-export what they import, ``os`` among it.
    """
    from hydra.utils import get_object

    if not target.startswith(ALLOWED_TARGETS):
        return False
    try:
        found = get_object(target)
    except Exception:
        return True  # no such class: instantiation says so in better words, and cannot run what is not there
    return isinstance(found, type) and f"{found.__module__}.".startswith(ALLOWED_TARGETS)


def _check_targets(value: Any, group: str) -> None:
    if isinstance(value, dict):
        target = value.get("_target_")
        if target is not None and not _is_allowed(str(target)):
            raise InputError(
                group,
                expected=f"a _target_ that is a class of {', '.join(t.rstrip('.') for t in ALLOWED_TARGETS)}",
                found=repr(target),
                remedy="use a class of these packages",
            )
        for member in value.values():
            _check_targets(member, group)
    elif isinstance(value, list | tuple):
        for member in value:
            _check_targets(member, group)


def to_config(composed: Any) -> TrainConfig:
    """Turn a composed ``DictConfig`` into checked dataclasses.

    Raises:
        InputError: If a value is out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        # OmegaConf wraps what __post_init__ raises; the plain message is ours
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(
            "config", expected="values of the right type", found=str(error), remedy="check the override"
        ) from error
    assert isinstance(config, TrainConfig)
    return config


def register() -> None:
    """Give Hydra the schema and the resolver of run folders; calling it again changes nothing."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=TrainConfig)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)


def _run_dir(root: str, name: str, ckpt: str | None) -> str:
    """Return a new dated folder, or with ``ckpt=last`` the newest run of this name that has a checkpoint."""
    parent = Path(root) / name
    if ckpt == "last":
        with_checkpoint = [folder for folder in parent.glob("*") if (folder / LAST_CHECKPOINT).is_file()]
        if with_checkpoint:
            return str(max(with_checkpoint, key=lambda folder: (folder / LAST_CHECKPOINT).stat().st_mtime))
    job = os.environ.get("SLURM_JOB_ID")
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0  # from the queue: it finds its folder
    if job is not None and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # the processes of a step start at different moments and must name one folder, so time and mere existence tell
        # nothing; a checkpoint does: none is written before all of them are there
        step = os.environ.get("SLURM_STEP_ID", "0")
        folder = parent / (f"slurm-{job}" if step == "0" else f"slurm-{job}-{step}")
        taken = 1
        while (folder / LAST_CHECKPOINT).is_file() and not again:
            taken += 1
            folder = folder.with_name(f"slurm-{job}-{step}-{taken}")
        return str(folder)
    if job is not None and ckpt is None and (again or not (parent / f"slurm-{job}").exists()):
        return str(parent / f"slurm-{job}")
    return str(parent / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def compose(overrides: list[str]) -> TrainConfig:
    """Compose ``train.yaml`` with overrides outside a Hydra run, for tests and notebooks."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
        return to_config(hydra_compose("train", overrides=overrides))


def run_with_hydra(task: Callable[[TrainConfig, Path], None], arguments: list[str]) -> None:
    """Run ``task`` once, or once a combination with ``-m``, from Hydra's command line.

    Args:
        task: Gets the checked config and the run folder.
        arguments: Overrides and Hydra flags, as typed.

    Raises:
        InputError: The first of those that jobs ended with, after all jobs have run.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    register()
    mistakes: list[InputError] = []
    launcher = os.getpid()

    @hydra.main(config_path=str(configs_folder().resolve()), config_name="train", version_base="1.3")  # type: ignore[untyped-decorator]
    def main(composed: DictConfig) -> None:
        try:
            task(to_config(composed), Path(HydraConfig.get().runtime.output_dir))
        except InputError as error:  # Hydra would print a traceback around the message
            if os.getpid() != launcher:
                raise  # in a cluster's job this list is a copy that nobody reads: the job itself must fail
            mistakes.append(error)

    # hydra.main reads the command line itself and offers no other way to -m and --cfg; Lightning starts the script that
    # stands there once more for every further device
    before, sys.argv = sys.argv, [str(Path(__file__).parent / "processes" / "train_rank.py"), *arguments]
    try:
        main()
    finally:
        sys.argv = before
    if mistakes:
        raise mistakes[0]
