"""Cases to batches: labelled ones, unlabelled ones that receive deposits, or both, mixed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import monai.transforms as mt
import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from jdm_seg.augment import BatchAugment
from jdm_seg.cache import CaseCache, read_sample, sample_size
from jdm_seg.cases import (
    Case,
    Modality,
    as_modality,
    check_disjoint,
    find_scans,
    manifest_path,
    read_manifest,
    split_by_subject,
)
from jdm_seg.config import AugmentConfig, DataConfig, PreprocessConfig
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.patches import EpochSampler, PatchDataset, PatchLoader, Source
from jdm_seg.synthesis.dataset import origin_of, synthesize_dataset, synthetic_origin
from jdm_seg.synthesis.insert import InsertCalcinosisd
from jdm_seg.transforms import CropPatchd, LoadCase, Normalized, air_value


class CaseDataModule(LightningDataModule):
    """Training patches and whole validation scans.

    Labelled cases (``data.root``) are cut around their deposits; unlabelled scans (``data.backgrounds``) receive
    deposits on the fly, in training by chance and in validation the same ones every time; a procedural set may stand
    beside both (``data.synthesize.root``). Patches are mixed by ``data.mix``. Validation is on labelled cases and
    scans, and on the procedural set where there is nothing else.
    """

    def __init__(self, config: DataConfig, preprocess: PreprocessConfig, augment: AugmentConfig, seed: int) -> None:
        """Keep the settings; nothing is read before :meth:`setup`."""
        super().__init__()
        self.config = config
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        self._splits: tuple[_Members, _Members] | None = None
        self._patches: PatchDataset | None = None
        self._augment: BatchAugment | None = None
        self._loader: PatchLoader | None = None
        self._resumed: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Make the synthetic data set if the config asks for one, and the prepared cases; once on each machine."""
        self._synthesize()
        training, validation = self._members()
        labelled, scans = self._caches()
        labelled.prepare([*training.with_labels, *validation.with_labels])
        scans.prepare([*training.scans, *validation.scans])

    def _synthesize(self) -> None:
        made = self.config.synthesize
        root = _synthetic_root(self.config)
        if made is None or root is None:
            return
        wanted = origin_of(modality=self.preprocess.modality, seed=made.seed, preset=made.preset)
        wanted["cases"] = made.cases
        path = manifest_path(root)
        if path.is_file():
            found = synthetic_origin(path)
            if found != wanted:
                raise InputError(
                    "data.root" if made.root is None else "data.synthesize.root",
                    expected=f"no data set, or the synthetic one of {wanted}",
                    found="another data set" if found is None else str(found),
                    remedy="train on your own cases with data=labelled, or choose another folder",
                )
            return
        synthesize_dataset(
            Path(root),
            modality=as_modality(self.preprocess.modality),
            cases=made.cases,
            seed=made.seed,
            preset=made.preset,
            workers=made.workers,
            validation=made.validation,
            testing=made.testing,
        )

    def training_cases(self) -> list[Case]:
        """Make the synthetic data set if one is asked for, and return what is trained on; nothing is prepared yet."""
        self._synthesize()
        return self._members()[0].all

    def split(self) -> tuple[list[Case], list[Case]]:
        """Return training and validation cases, by the manifest's splits or else by fold.

        Raises:
            InputError: If a person is on both sides, or a labelled set lacks labels.
        """
        training, validation = self._members()
        return training.all, validation.all

    def _members(self) -> tuple[_Members, _Members]:
        if self._splits is None:
            config = self.config
            modality = as_modality(self.preprocess.modality)
            labelled, scans, procedural = (_Split([], []) for _ in range(3))
            if config.root is not None:
                labelled = _labelled(manifest_path(config.root), config, self.seed, "data.root")
                _check_cases(labelled.all, modality)
            if config.backgrounds is not None:
                found = _backgrounds(config.backgrounds, modality)
                scans = _part(found, config, self.seed)
            if config.synthesize is not None and config.synthesize.root is not None:
                manifest = manifest_path(config.synthesize.root)
                if labelled.all or scans.all:  # then what is real decides, and nothing synthetic is kept back
                    procedural = _Split(list(read_manifest(manifest).all), [])
                else:
                    procedural = _labelled(manifest, config, self.seed, "data.synthesize.root")
                _check_cases(procedural.all, modality)
            parts = labelled, scans, procedural
            self._splits = _Members(*(p.training for p in parts)), _Members(*(p.validation for p in parts))
            check_disjoint(self._splits[0].all, self._splits[1].all)
        return self._splits

    def _caches(self) -> tuple[CaseCache, CaseCache]:
        """Return the caches of labelled cases and of scans."""
        settings = self.preprocess
        root = Path(self.config.cache)
        extra = {name: True for name in ("skeleton", "oedema", "anatomy") if getattr(self.config, name)}
        known = {name: True for name in extra if name == "anatomy"}
        return (
            CaseCache(root, LoadCase(settings, **extra), ["labelled", settings, *extra]),
            CaseCache(root, LoadCase(settings, host=True, **known), ["scans", settings, *known]),
        )

    def setup(self, stage: str | None = None) -> None:
        """Prepare every case that the cache does not hold yet."""
        if self._patches is not None:
            return
        training, validation = self._members()
        labelled, scans = self._caches()
        config = self.config
        spacing, modality = self.preprocess.spacing, as_modality(self.preprocess.modality)
        crop = CropPatchd(
            config.patch_size, config.foreground_share, air_value(self.preprocess), hard_share=config.hard_share
        )
        finish = [Normalized()]
        magnitudes = self.preprocess.intensity.kind != "window"
        augment = BatchAugment(self.augment, spacing, self.seed, magnitudes=magnitudes)
        self._augment = None if config.repeat_one else augment
        share = config.foreground_share
        insert = InsertCalcinosisd(spacing, probability=share, modality=modality, skeleton=config.skeleton)
        drawn = [crop, insert, *finish]
        sources = [
            Source(_by_size(folders) if config.by_size else folders, transforms, share if folders else 0.0)
            for folders, transforms, share in (
                (scans.prepare(training.scans), drawn, config.mix.inserted),
                (labelled.prepare(training.labelled), [crop, *finish], config.mix.labelled),
                (labelled.prepare(training.procedural), [crop, *finish], config.mix.procedural),
            )
        ]
        self._patches = PatchDataset(sources, self.seed, repeat_one=config.repeat_one)
        always = _SeededByCase(InsertCalcinosisd(spacing, probability=1.0, modality=modality), self.seed)
        self._scans = _Scans(
            [
                *((folder, mt.Compose([Normalized()])) for folder in labelled.prepare(validation.with_labels)),
                *((folder, mt.Compose([always, Normalized()])) for folder in scans.prepare(validation.scans)),
            ]
        )

    def train_dataloader(self) -> PatchLoader:
        """Return batches of patches; under several ranks each gets its own part of every epoch."""
        assert self._patches is not None
        rank, world_size = self._rank()
        sampler = EpochSampler(self.config.patches_per_epoch, self.config.batch_size, rank=rank, world_size=world_size)
        self._loader = PatchLoader(self._patches, sampler, workers=self.config.workers)
        if self._resumed:
            self._loader.load_state_dict(self._resumed)
            self._resumed = {}
        return self._loader

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Change training patches at random, on the device that trains; whole scans stay as they are."""
        if "key" not in batch or self._augment is None:
            return batch
        image, label = self._augment(batch["image"], batch["label"], [tuple(key) for key in batch["key"].tolist()])
        return {**batch, "image": image, "label": label}

    def _rank(self) -> tuple[int, int]:
        """Return the number of this process and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch is, for the checkpoint."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on in the middle of an epoch.

        Lightning restores loaders too, but not when the number of steps was asked for before (as schedules do).
        """
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return whole preprocessed scans, one a batch; under several ranks each gets its own part."""
        rank, world_size = self._rank()
        return DataLoader(self._scans, batch_size=1, sampler=range(rank, len(self._scans), world_size))


@dataclass(frozen=True)
class _Members:
    """Cases of one split, by where they come from."""

    labelled: list[Case]
    scans: list[Case]
    procedural: list[Case]

    @property
    def with_labels(self) -> list[Case]:
        return [*self.labelled, *self.procedural]

    @property
    def all(self) -> list[Case]:
        return [*self.labelled, *self.scans, *self.procedural]


class _Split(NamedTuple):
    """Cases of one origin."""

    training: list[Case]
    validation: list[Case]

    @property
    def all(self) -> list[Case]:
        return [*self.training, *self.validation]


class _Scans(Dataset[dict[str, Any]]):
    """Whole validation scans: the same every time, so they are kept in memory once made."""

    def __init__(self, members: Sequence[tuple[Path, mt.Compose]]) -> None:
        self.members = members
        self._made: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number not in self._made:
            folder, transform = self.members[number]
            self._made[number] = transform(read_sample(folder))
        return self._made[number]


def _by_size(folders: Sequence[Path]) -> list[Path]:
    """Return the folders, each as often as its case is larger than the smallest."""
    sizes = np.array([sample_size(folder) for folder in folders])
    times = np.maximum(1, np.round(sizes / sizes.min())).astype(int) if len(sizes) else []
    return [folder for folder, n in zip(folders, times, strict=True) for _ in range(n)]


def _synthetic_root(config: DataConfig) -> str | None:
    made = config.synthesize
    return config.root if made is None or made.root is None else made.root


def _labelled(manifest: Path, config: DataConfig, seed: int, where: str) -> _Split:
    """Return training and validation cases of a manifest."""
    if not manifest.is_file():
        raise CaseNotFoundError(
            manifest,
            expected=f"a manifest at {where}",
            found="no such file",
            remedy=f"set {where} to a folder with datalist.json; `jdm-seg synthesize` makes one",
        )
    cases = read_manifest(manifest).cases
    training, validation = list(cases.get("training", ())), list(cases.get("validation", ()))
    if not validation:
        training, validation = _part(training, config, seed)
    check_disjoint(training, validation)
    if not training or not validation:
        raise InputError(
            manifest,
            expected="training and validation cases",
            found=f"{len(training)} and {len(validation)}",
            remedy="add cases, or leave out the splits and set data.fold",
        )
    return _Split(training, validation)


def _backgrounds(path: str, modality: Modality) -> list[Case]:
    """Return the scans of a folder, or the cases of a data set without their labels."""
    if not manifest_path(path).is_file():
        return find_scans(path, modality)
    cases = [replace(case, label=None, ignore=None, faint=None, oedema=None) for case in read_manifest(path).all]
    _check_modality(cases, modality)
    return cases


def _part(cases: list[Case], config: DataConfig, seed: int) -> _Split:
    """Part cases by the names in ``data.validation``, or else by fold."""
    if not config.validation:
        return _Split(*split_by_subject(cases, config.fold, config.folds, seed))
    missing = sorted(set(config.validation) - {case.case_id for case in cases})
    if missing:
        raise InputError(
            "data.validation",
            expected="case ids of the training set",
            found=f"{', '.join(missing)}, which is none",
            remedy="correct the names, or leave data.validation empty and set data.fold",
        )
    kept = {case.subject_id for case in cases if case.case_id in config.validation}
    return _Split(
        [case for case in cases if case.subject_id not in kept], [case for case in cases if case.subject_id in kept]
    )


class _SeededByCase(mt.Transform):  # type: ignore[misc]
    """Apply a random transform with a seed of (run seed, case id): the same case, the same deposits."""

    def __init__(self, transform: InsertCalcinosisd, seed: int) -> None:
        self.transform = transform
        self.seed = seed

    def __call__(self, sample: dict[Hashable, Any]) -> dict[Hashable, Any]:
        digits = [self.seed, *sample["case_id"].encode()]
        self.transform.set_random_state(int(np.random.default_rng(digits).integers(2**31)))
        return self.transform(sample)


def _check_cases(cases: list[Case], modality: str) -> None:
    for case in cases:
        if case.label is None:
            raise InputError(
                case.case_id,
                expected="a label for every training and validation case",
                found="none",
                remedy="add its label, or move the case to testing",
            )
    _check_modality(cases, modality)


def _check_modality(cases: list[Case], modality: str) -> None:
    for case in cases:
        if case.modality != modality:
            raise InputError(
                case.case_id,
                expected=f"modality {modality}, as preprocess.modality says",
                found=case.modality,
                remedy="train one modality at a time",
            )
