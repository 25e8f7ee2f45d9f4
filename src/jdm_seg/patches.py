"""Which patch comes when. A patch depends on (seed, epoch, number) alone: not on workers, ranks or what ran before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from jdm_seg.cache import read_sample
from jdm_seg.machine import STOP_SIGNALS

Key = tuple[int, int]
"""Epoch, and number of the patch in it."""
_NICENESS = 10
"""Of workers: a core that the network waits for costs more than the patch that is made on it in the meantime."""
_CYCLE = 100
"""Patches after which the order of sources begins again; shares are met to a hundredth."""


@dataclass(frozen=True)
class Source:
    """Prepared cases that are cut and changed in the same way.

    Attributes:
        folders: One a case, by :class:`~jdm_seg.cache.CaseCache`.
        transforms: Random transforms from a whole sample to a patch.
        share: Share of the patches, relative to the other sources.
    """

    folders: Sequence[Path]
    transforms: Sequence[mt.Transform]
    share: float


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches of one or more sources, addressed by :data:`Key`.

    Sources take turns by their shares; every pass over the cases of a source visits each once, in a shuffled order.
    """

    def __init__(self, sources: Sequence[Source], seed: int, *, repeat_one: bool = False) -> None:
        """Take the sources and the run's seed.

        Args:
            sources: Shares are relative to each other; those without one are left out.
            seed: Of the run.
            repeat_one: Give the first patch again and again: what remains of a step's time is not the data's.
        """
        self.sources = [source for source in sources if source.share > 0]
        if not self.sources:
            raise ValueError("expected a source with a share above 0")
        total = sum(source.share for source in self.sources)
        self._order = _order_of([source.share / total for source in self.sources])
        self.seed = seed
        self.repeat_one = repeat_one
        self._transforms = [mt.Compose(list(source.transforms)) for source in self.sources]
        self._first: dict[str, Any] | None = None

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Return ``image`` and ``label`` tensors (1, *patch_size), the case id, and the key as a tensor (2,)."""
        if self._first is not None:
            return self._first
        epoch, number = key
        turn, within = self._turn(number)
        folders, transform = self.sources[turn].folders, self._transforms[turn]
        rng = np.random.default_rng((self.seed, epoch, within // len(folders), turn))
        case = int(rng.permutation(len(folders))[within % len(folders)])
        transform.set_random_state(int(np.random.default_rng((self.seed, epoch, number, 1)).integers(2**31)))
        result: dict[str, Any] = {**transform(read_sample(folders[case])), "key": torch.tensor(key)}
        if self.repeat_one:
            self._first = result
        return result

    def _turn(self, number: int) -> tuple[int, int]:
        """Return which source gives patch ``number``, and its number within that source."""
        cycle, place = divmod(number, _CYCLE)
        source = int(self._order[place])
        return source, cycle * int(np.sum(self._order == source)) + int(np.sum(self._order[:place] == source))


def _order_of(shares: Sequence[float]) -> NDArray[np.intp]:
    """Return which source gives each patch of a cycle: always the one that is furthest behind its share."""
    given = np.zeros(len(shares))
    order = np.zeros(_CYCLE, np.intp)
    for place in range(_CYCLE):
        order[place] = np.argmax((place + 1) * np.asarray(shares) - given)
        given[order[place]] += 1
    return order


class EpochSampler(Sampler[Key]):
    """Keys of one epoch, or the part of them that is this rank's; Lightning tells it which epoch."""

    def __init__(self, patches: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        """Set the number of patches an epoch over all ranks, and a batch's size on one rank."""
        self.batches = patches // (batch_size * world_size)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (called by Lightning before each)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Key]:
        """Yield (epoch, number); the numbers of a batch follow each other, and so do the batches of the ranks."""
        for batch in range(self.first_batch, self.batches):
            start = (batch * self.world_size + self.rank) * self.batch_size
            for number in range(start, start + self.batch_size):
                yield self.epoch, number

    def __len__(self) -> int:
        """Return the number of patches that one rank sees an epoch."""
        return self.batches * self.batch_size


def _give_way_to_the_trainer(_: int) -> None:
    """Begin a worker: it takes the cores that the trainer leaves idle, and leaves signals to it.

    Schedulers send those to every process of a job; the trainer saves and ends its workers.
    """
    if hasattr(os, "nice"):  # Windows has no such thing
        os.nice(_NICENESS)
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


class PatchLoader(DataLoader[dict[str, Any]]):
    """A loader that knows where it is, so that a run goes on in the middle of an epoch.

    What workers have read ahead does not count as given.
    """

    def __init__(self, dataset: PatchDataset, sampler: EpochSampler, *, workers: int) -> None:
        """Build the loader; batches are the sampler's."""
        super().__init__(
            dataset,
            batch_size=sampler.batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_give_way_to_the_trainer,
            drop_last=True,
        )
        self._given = 0
        self._start = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch that have not been given yet."""
        sampler = self.sampler
        assert isinstance(sampler, EpochSampler)
        start, self._start = self._start, 0
        sampler.first_batch = start
        for number, batch in enumerate(super().__iter__(), start=start):
            self._given = number + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were given."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out the batches that were given before; of a finished epoch none."""
        given = int(state["given"])
        self._start = 0 if given >= len(self) else given
