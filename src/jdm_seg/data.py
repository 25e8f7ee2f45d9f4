"""Cases to batches. A patch depends on (seed, epoch, number) alone: not on workers, order or what ran before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
from lightning import LightningDataModule
from monai.data import CacheDataset
from torch.utils.data import DataLoader, Dataset, Sampler

from jdm_seg.cases import Case, as_modality, check_disjoint, find_scans, manifest_path, read_manifest, split_by_subject
from jdm_seg.config import AugmentConfig, DataConfig, PreprocessConfig
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.synthesis.dataset import origin_of, synthesize_dataset, synthetic_origin
from jdm_seg.synthesis.insert import InsertCalcinosisd
from jdm_seg.transforms import CropPatchd, LoadCase, Normalized, air_value, build_augment

Key = tuple[int, int]
"""Epoch, and number of the patch in it."""


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches of cached cases, addressed by :data:`Key`.

    Every pass over the cases visits each once, in a shuffled order of its own.
    """

    def __init__(self, cached: CacheDataset, transforms: list[mt.Transform], seed: int) -> None:
        """Take cached samples, the random transforms to apply, and the run's seed."""
        self.cached = cached
        self.transform = mt.Compose(transforms)
        self.seed = seed

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Return ``image`` and ``label`` tensors (1, *patch_size) and the case id."""
        epoch, number = key
        cases = len(self.cached)
        rng = np.random.default_rng((self.seed, epoch, number // cases))
        case = int(rng.permutation(cases)[number % cases])
        self.transform.set_random_state(int(np.random.default_rng((self.seed, epoch, number, 1)).integers(2**31)))
        result: dict[str, Any] = self.transform(dict(self.cached[case]))
        return result


class EpochSampler(Sampler[Key]):
    """Keys of one epoch; Lightning tells it which."""

    def __init__(self, patches: int) -> None:
        """Set the number of patches an epoch."""
        self.patches = patches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (called by Lightning before each)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Key]:
        """Yield (epoch, 0), (epoch, 1) and so on."""
        return zip(itertools.repeat(self.epoch), range(self.patches), strict=False)

    def __len__(self) -> int:
        """Return the number of patches an epoch."""
        return self.patches


class CaseDataModule(LightningDataModule):
    """Training patches and whole validation scans of one data set.

    Labelled cases (``data.root``) are cut around their deposits; unlabelled scans (``data.backgrounds``) receive
    deposits on the fly, in training by chance and in validation the same ones every time.
    """

    def __init__(self, config: DataConfig, preprocess: PreprocessConfig, augment: AugmentConfig, seed: int) -> None:
        """Keep the settings; nothing is read before :meth:`setup`."""
        super().__init__()
        self.config = config
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        self.training: list[Case] = []
        self.validation: list[Case] = []

    def prepare_data(self) -> None:
        """Make the synthetic data set if the config asks for one and it is not there."""
        made = self.config.synthesize
        if made is None or self.config.root is None:
            return
        wanted = origin_of(modality=self.preprocess.modality, seed=made.seed, preset=made.preset)
        wanted["cases"] = made.cases
        path = manifest_path(self.config.root)
        if path.is_file():
            found = synthetic_origin(path)
            if found != wanted:
                raise InputError(
                    "data.root",
                    expected=f"no data set, or the synthetic one of {wanted}",
                    found="another data set" if found is None else str(found),
                    remedy="train on your own cases with data=labelled, or choose another data.root",
                )
            return
        synthesize_dataset(
            Path(self.config.root),
            modality=as_modality(self.preprocess.modality),
            cases=made.cases,
            seed=made.seed,
            preset=made.preset,
            workers=made.workers,
            validation=made.validation,
            testing=made.testing,
        )

    def split(self) -> tuple[list[Case], list[Case]]:
        """Return training and validation cases, by the manifest's splits or else by fold.

        Raises:
            InputError: If a person is on both sides, or a labelled set lacks labels.
        """
        config = self.config
        modality = as_modality(self.preprocess.modality)
        if config.backgrounds is not None:
            return split_by_subject(find_scans(config.backgrounds, modality), config.fold, config.folds, self.seed)
        assert config.root is not None
        manifest = manifest_path(config.root)
        if not manifest.is_file():
            raise CaseNotFoundError(
                manifest,
                expected="a manifest at data.root",
                found="no such file",
                remedy="set data.root to a folder with datalist.json; `jdm-seg synthesize` makes one",
            )
        cases = read_manifest(manifest).cases
        training, validation = list(cases.get("training", ())), list(cases.get("validation", ()))
        if not validation:
            training, validation = split_by_subject(training, config.fold, config.folds, self.seed)
        check_disjoint(training, validation)
        if not training or not validation:
            raise InputError(
                manifest,
                expected="training and validation cases",
                found=f"{len(training)} and {len(validation)}",
                remedy="add cases, or leave out the splits and set data.fold",
            )
        _check_cases([*training, *validation], modality)
        return training, validation

    def setup(self, stage: str | None = None) -> None:
        """Read and cache every case."""
        if self.training:
            return
        inserting = self.config.backgrounds is not None
        self.training, self.validation = self.split()
        load = LoadCase(self.preprocess, host=inserting)
        modality = as_modality(self.preprocess.modality)
        insert = InsertCalcinosisd(self.preprocess.spacing, probability=self.config.foreground_share, modality=modality)
        crop = CropPatchd(self.config.patch_size, self.config.foreground_share, air_value(self.preprocess))
        normal = Normalized()
        self._patches = PatchDataset(
            CacheDataset(self.training, load, progress=False, num_workers=2),
            [crop, *([insert] if inserting else []), normal, *build_augment(self.augment, self.preprocess.spacing)],
            self.seed,
        )
        fixed: list[Callable[[Any], Any]] = [load]
        if inserting:
            always = InsertCalcinosisd(self.preprocess.spacing, probability=1.0, modality=modality)
            fixed.append(_SeededByCase(always, self.seed))
        self._scans = CacheDataset(self.validation, mt.Compose([*fixed, normal]), progress=False, num_workers=2)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of patches."""
        workers = self.config.workers
        return DataLoader(
            self._patches,
            batch_size=self.config.batch_size,
            sampler=EpochSampler(self.config.patches_per_epoch),
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return whole preprocessed scans, one a batch."""
        return DataLoader(self._scans, batch_size=1)


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
        if case.modality != modality:
            raise InputError(
                case.case_id,
                expected=f"modality {modality}, as preprocess.modality says",
                found=case.modality,
                remedy="train one modality at a time",
            )
