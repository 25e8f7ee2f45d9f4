"""A search over settings: one training run a trial, chosen by what earlier ones came to (extra ``sweep``)."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdm_seg.callbacks import STOP_FILE
from jdm_seg.errors import InputError
from jdm_seg.volume import write_table

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

SCORE = "val/score"
JOURNAL = "study.journal"
TABLE = "trials.csv"
_POLL_S = 2.0
_STARTUP = 4
"""Trials that run to their end before any is stopped early."""


@dataclass(frozen=True)
class Setting:
    """A setting that is searched: values to choose from, or a range.

    Attributes:
        key: Name of the override, such as ``optimizer.lr``.
        choices: Values; empty for a range.
        low, high: Ends of the range.
        log: Whether it is searched by orders of magnitude.
        whole: Whether only whole numbers are drawn.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``key=a,b,c``, ``key=1e-4:1e-2:log`` or ``key=2:8`` (whole numbers where both ends are).

        Raises:
            InputError: If it is none of these.
        """
        key, equals, values = text.partition("=")
        if equals and "," in values:
            return cls(key, tuple(values.split(",")))
        ends = values.split(":")
        log = len(ends) == 3 and ends[2] == "log"
        try:
            if not equals or len(ends) != 2 + log:
                raise ValueError
            low, high = float(ends[0]), float(ends[1])
            if not low < high or (log and low <= 0):
                raise ValueError
        except ValueError as error:
            raise InputError(
                "--search",
                expected="key=a,b,c or key=low:high or key=low:high:log",
                found=repr(text),
                remedy="such as optimizer.lr=1e-4:1e-2:log or loss=dice_ce,blob",
            ) from error
        return cls(key, (), low, high, log, all(end.lstrip("-").isdigit() for end in ends[:2]))

    def draw(self, trial: Trial) -> str:
        """Let the search choose a value; return it as an override."""
        if self.choices:
            return f"{self.key}={trial.suggest_categorical(self.key, self.choices)}"
        if self.whole:
            return f"{self.key}={trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)}"
        return f"{self.key}={trial.suggest_float(self.key, self.low, self.high, log=self.log):.6g}"


class TrialFailedError(RuntimeError):
    """A training run of a search ended with an error; the search goes on without it."""


def run_sweep(
    folder: Path,
    settings: Sequence[Setting],
    overrides: Sequence[str],
    *,
    trials: int,
    seed: int = 0,
    on_trial: Callable[[str], None] = lambda _: None,
) -> FrozenTrial:
    """Search until ``trials`` have run, and return the best.

    Trials that look worse than the median of the others half-way are stopped by the run's own stop file. The journal
    makes the search go on after a crash with the same call, and lets several machines search together in one folder.

    Args:
        folder: Gets ``study.journal``, ``trials.csv`` and a run folder a trial.
        settings: What is searched.
        overrides: Of every run, as ``jdm-seg train`` takes them.
        trials: How many shall have run in all, those of earlier calls included.
        seed: Of the search.
        on_trial: Called with a line on each finished trial.

    Raises:
        InputError: If Optuna is not installed, nothing is searched, or no trial succeeded.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise InputError(
            "sweep", expected="Optuna", found="none installed", remedy='pip install "jdm-seg[sweep]"'
        ) from error
    if not settings:
        raise InputError("--search", expected="at least one setting", found="none", remedy="name what to search")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that failed is told in one line
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP, multivariate=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=1),
    )
    ran = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)

    def objective(trial: Trial) -> float:
        chosen = [setting.draw(trial) for setting in settings]
        return _train(folder / f"trial-{trial.number:04d}", [*overrides, *chosen], trial)

    def after(study: Study, trial: FrozenTrial) -> None:
        write_trials(folder / TABLE, study.trials)
        score = "no score" if trial.value is None else f"score {trial.value:.3f}"
        on_trial(f"trial {trial.number} {trial.state.name.lower()}, {score}: {shown(trial)}")

    while len(study.get_trials(deepcopy=False, states=ran)) < trials:  # others may search along
        study.optimize(objective, n_trials=1, callbacks=[after], catch=(TrialFailedError,))
    if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        raise InputError(
            folder,
            expected="a trial that succeeded",
            found=f"{trials} that did not",
            remedy=f"read {folder}/trial-0000/sweep.log",
        )
    return study.best_trial


def shown(trial: FrozenTrial) -> str:
    """Return what a trial drew, as overrides."""
    return " ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items()
    )


def write_trials(path: Path, trials: Sequence[FrozenTrial]) -> None:
    """Write trials as CSV: number, state, score, and a column a setting."""
    keys = sorted({key for trial in trials for key in trial.params})
    rows = (
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "score": None if trial.value is None else f"{trial.value:.4f}",
            **trial.params,
        }
        for trial in trials
    )
    write_table(path, ("trial", "state", "score", *keys), rows)


def _train(run_dir: Path, overrides: Sequence[str], trial: Any) -> float:
    """Train in a process of its own, and return the best score it validated with."""
    from optuna import TrialPruned

    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "train", *overrides, f"run_dir={run_dir}"]
    seen, pruned = 0, False
    with (run_dir / "sweep.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                scores = scores_of(run_dir)
                for epoch, score in scores[seen:]:
                    trial.report(score, epoch)
                if len(scores) > seen and not pruned and trial.should_prune():
                    pruned = True
                    (run_dir / STOP_FILE).touch()
                seen = max(seen, len(scores))
        except BaseException:
            process.terminate()  # it saves what it has
            process.wait()
            raise
    scores = scores_of(run_dir)
    if process.returncode != 0 or not scores:
        raise TrialFailedError(f"{run_dir / 'sweep.log'} says why")
    if pruned:
        raise TrialPruned
    return max(score for _, score in scores)


def scores_of(run_dir: Path) -> list[tuple[int, float]]:
    """Return (epoch, score) of every validation of a run so far."""
    try:
        with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            rows = [(row.get("epoch"), row.get(SCORE)) for row in csv.DictReader(stream)]
    except FileNotFoundError:
        return []
    found = [(int(epoch), float(score)) for epoch, score in rows if epoch and score]
    return [(epoch, score) for epoch, score in found if math.isfinite(score)]
