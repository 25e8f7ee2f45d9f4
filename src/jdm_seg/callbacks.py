"""What happens around training steps: safe stops, throughput, pictures."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from jdm_seg.config import LAST_CHECKPOINT, preprocess_from
from jdm_seg.machine import STOP_SIGNALS
from jdm_seg.pictures import write_contact_sheet
from jdm_seg.volume import Volume

log = logging.getLogger(__name__)

STOP_FILE = "stop"


class SafeStop(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` by time, at the end of every epoch, and before the process has to go.

    A signal of :data:`~jdm_seg.machine.STOP_SIGNALS` and a file named ``stop`` in the run folder end the training after
    the step at hand, whole. Under SLURM a job that was told to go is put back into the queue; there it finds its run
    folder again and goes on with ``ckpt=last``.

    Inherits from ``Checkpoint`` so that it runs after all other callbacks: what they change in a step is saved too.
    """

    def __init__(self, every_minutes: float = 10.0, every_epochs: int = 1) -> None:
        """Set how often to save.

        Args:
            every_minutes: Longest time between saves, to a step.
            every_epochs: Epochs between saves.
        """
        if every_minutes <= 0 or every_epochs < 1:
            raise ValueError("expected every_minutes above 0 and every_epochs of at least 1")
        self.every_minutes = every_minutes
        self.every_epochs = every_epochs
        self.stopped_by: str | None = None
        self._asked: str | None = None
        self._handlers: dict[int, Any] = {}
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals from here on, instead of Lightning, which would raise in the middle of an epoch."""
        self._saved_at = time.monotonic()
        (_folder(trainer) / STOP_FILE).unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to, and stop when asked to."""
        asked = self._asked or (STOP_FILE if (_folder(trainer) / STOP_FILE).exists() else None)
        due = time.monotonic() - self._saved_at > 60 * self.every_minutes
        # every rank must come to the same answer: a save is a collective call
        asked_any, due_any = _any_rank(trainer, asked is not None, due)
        if asked_any or due_any:
            self._save(trainer)
        if asked_any:
            self.stopped_by = asked or "another process"
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch."""
        if self.stopped_by is None and (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, and the job to the queue."""
        self._release()
        if self.told_to_go and trainer.is_global_zero:
            _requeue()

    @property
    def told_to_go(self) -> bool:
        """Whether the machine wanted the process to end, not the user."""
        return self.stopped_by not in (None, STOP_FILE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._asked = signal.Signals(number).name

    def _save(self, trainer: Trainer) -> None:
        path = _folder(trainer) / LAST_CHECKPOINT
        trainer.save_checkpoint(path)  # written beside and renamed
        self._saved_at = time.monotonic()


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _any_rank(trainer: Trainer, *flags: bool) -> list[bool]:
    if trainer.world_size == 1:
        return list(flags)
    counts = trainer.strategy.reduce(torch.tensor([float(f) for f in flags], device=trainer.strategy.root_device))
    assert isinstance(counts, torch.Tensor)
    return [bool(c > 0) for c in counts]


def _requeue() -> None:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    log.info("job %s %s", job, "is in the queue again" if done.returncode == 0 else f"not requeued: {done.stderr}")


class Throughput(Callback):
    """Logs ``speed/patches_per_s`` and ``speed/data_wait``: the share of time in which a step waited for its data."""

    def __init__(self, every_steps: int = 20) -> None:
        """Set over how many steps to average."""
        self.every_steps = every_steps
        self._reset()

    def _reset(self) -> None:
        self._patches, self._waited, self._worked = 0, 0.0, 0.0
        self._last = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, also where a run goes on in the middle of an epoch."""
        self._reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; validation does not count."""
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the time since the last step as waiting."""
        now = time.perf_counter()
        self._waited += now - self._last
        self._last = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time since the step's start as work, and log now and then."""
        now = time.perf_counter()
        self._worked += now - self._last
        self._last = now
        self._patches += len(batch["image"]) * trainer.world_size
        if (batch_idx + 1) % self.every_steps == 0:
            total = self._waited + self._worked
            figures = {"speed/patches_per_s": self._patches / total, "speed/data_wait": self._waited / total}
            pl_module.log_dict(figures, on_step=True, on_epoch=False)
            self._reset()


class Examples(Callback):
    """Writes ``examples/epoch_NNNN.png``: slices of the first validation scans with what is predicted there."""

    def __init__(self, scans: int = 4) -> None:
        """Set how many scans to show."""
        self.scans = scans
        self._shown: list[tuple[Volume, np.ndarray[Any, Any]]] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what :meth:`SegmentationModule.validation_step` returned for the first scans."""
        if len(self._shown) < self.scans and outputs is not None:
            preprocess = preprocess_from(pl_module.hparams["preprocess"])
            image = batch["image"][0, 0].float().cpu().numpy() / 2 + 0.5  # what was -1 to 1
            if preprocess.modality == "ct":
                image = image * (preprocess.intensity.high - preprocess.intensity.low) + preprocess.intensity.low
            scan = Volume(image, np.diag([*preprocess.spacing, 1.0]), str(batch["case_id"][0]))
            self._shown.append((scan, outputs["prediction"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, and hand the picture to the loggers that show pictures."""
        shown, self._shown = self._shown, []
        if not shown or not trainer.is_global_zero or trainer.sanity_checking:
            return
        path = _folder(trainer) / "examples" / f"epoch_{trainer.current_epoch + 1:04d}.png"
        path.parent.mkdir(exist_ok=True)
        write_contact_sheet(path, shown, modality=pl_module.hparams["preprocess"]["modality"])
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases
                logger.log_image("examples", [str(path)])
            elif isinstance(logger, TensorBoardLogger):
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                logger.experiment.add_image("examples", pixels, trainer.global_step, dataformats="HWC")
