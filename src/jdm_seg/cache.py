"""Prepared cases on disk: made once, read by patch through memory maps, shared by workers, ranks and runs.

A case lies in a folder named by a hash of everything its content depends on: files, preprocessing and version. So a
changed setting never meets an old array, an interrupted build goes on where it stopped, and several runs may share one
cache folder. Deleting it loses nothing but time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jdm_seg import __version__
from jdm_seg.cases import Case
from jdm_seg.config import plain
from jdm_seg.volume import write_text

_VERSION = 2
"""Raised when prepared arrays change their meaning without a new version of the package."""
_DONE = "sample.json"
"""Written last."""
_DISK_BYTES = 4096
"""Arrays below it live in the JSON: opening a file costs more."""


class CaseCache:
    """Samples of prepared cases under one folder."""

    def __init__(self, root: Path | str, load: Callable[[Case], dict[str, Any]], settings: Any) -> None:
        """Keep the settings; nothing is read or made before :meth:`prepare`.

        Args:
            root: Folder, shared by any number of runs.
            load: Prepares one case: arrays and plain values by key.
            settings: Everything besides the files that ``load`` depends on; plain values or a config dataclass.
        """
        self.root = Path(root)
        self._load = load
        self._settings = json.dumps(plain(settings), sort_keys=True)

    def prepare(self, cases: Sequence[Case], workers: int = 2) -> list[Path]:
        """Make what is missing and return the folder of each case.

        Safe to call from several processes at once: each folder appears whole, and the first one stays.
        """
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self._prepare, cases))

    def _prepare(self, case: Case) -> Path:
        folder = self.root / self._key(case)
        if (folder / _DONE).is_file():
            return folder
        partial = self.root / f".{folder.name}.{os.getpid()}.part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(partial, self._load(case))
            if not (folder / _DONE).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        except OSError:
            if not (folder / _DONE).is_file():  # else another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _key(self, case: Case) -> str:
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files(case)]
        facts = json.dumps([_VERSION, __version__, case.case_id, case.modality, files, self._settings])
        return hashlib.sha256(facts.encode()).hexdigest()[:24]


def read_sample(folder: Path) -> dict[str, Any]:
    """Return a prepared sample; large arrays are memory maps, read where they are touched."""
    content = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    sample: dict[str, Any] = dict(content["values"])
    for key, (dtype, shape, values) in content["small"].items():
        sample[key] = np.array(values, dtype=dtype).reshape(shape)
    for key in content["arrays"]:
        sample[key] = np.load(folder / f"{key}.npy", mmap_mode="r")
    return sample


def sample_size(folder: Path) -> int:
    """Return how many voxels the image of a prepared sample has."""
    return int(read_sample(folder)["image"].size)


def _files(case: Case) -> list[Path]:
    return list(case.files.values())


def _write(folder: Path, sample: dict[str, Any]) -> None:
    values, small, arrays = {}, {}, []
    for key, value in sample.items():
        if not isinstance(value, np.ndarray):
            values[key] = value
        elif value.nbytes < _DISK_BYTES:
            small[key] = (value.dtype.str, value.shape, value.ravel().tolist())
        else:
            np.save(folder / f"{key}.npy", value)
            arrays.append(key)
    write_text(folder / _DONE, json.dumps({"values": values, "small": small, "arrays": arrays}))
