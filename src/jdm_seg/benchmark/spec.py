"""What a benchmark is: a YAML file with its data, its strata and how it is scored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import cattrs
import yaml
from cattrs.v import format_exception

from jdm_seg.cases import Modality
from jdm_seg.config import configs_folder
from jdm_seg.errors import InputError
from jdm_seg.metrics.protocol import LesionProtocol, protocol_named
from jdm_seg.synthesis.conditions import Conditions, Range
from jdm_seg.synthesis.recipe import Preset, preset_of
from jdm_seg.volume import Spacing

Kind = Literal["phantom", "hybrid", "negative", "real"]


@dataclass(frozen=True)
class Stratum:
    """One kind of synthetic case.

    Attributes:
        name: Goes into case ids and tables.
        cases: How many in the full benchmark.
        preset: Where its cases come from, a name in :data:`~jdm_seg.synthesis.recipe.PRESETS`.
        spacing: Voxel sizes in mm instead of the preset's.
        extent_mm: Field of view instead of the preset's.
        negatives: Share of cases without a deposit.
        conditions: What is held of body and scanner.
    """

    name: str
    cases: int
    preset: str = "benchmark"
    spacing: tuple[Spacing, ...] | None = None
    extent_mm: tuple[Range, Range, Range] | None = None
    negatives: float = 0.0
    conditions: Conditions = field(default_factory=Conditions)

    def preset_for(self, modality: Modality) -> Preset:
        """Return what its cases are made with.

        Raises:
            InputError: If there is no such preset.
        """
        preset = replace(preset_of(modality, self.preset), negatives=self.negatives, conditions=self.conditions)
        own = {name: getattr(self, name) for name in ("spacing", "extent_mm")}
        return replace(preset, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, as its YAML says.

    Attributes:
        name: Of the file.
        kind: ``phantom``: synthetic from a seed; ``hybrid``: deposits with known truth in scans of a folder;
            ``negative``: scans without calcinosis; ``real``: scans with reference masks.
        modality: ``ct`` or ``stir``.
        about: One sentence.
        seed: Of the data.
        cases: Number of cases of a hybrid; scans are used in turn.
        preset: Priors of a hybrid's deposits.
        strata: Of a phantom.
        protocol: How lesions are counted, a name in :data:`~jdm_seg.metrics.protocol.PROTOCOLS`.
        reference_suffix: Reference mask of a scan, behind its id, in the folder of references.
        near_suffix: Wider mask of the same calcification, for the ignore zone of ``real``.
        zone_mm: What lies so near to either mask does not count.
        zone_hu: Nor does anything brighter outside bone.
    """

    name: str
    kind: Kind
    modality: Modality
    about: str
    seed: int = 0
    cases: int = 0
    preset: str = "benchmark"
    strata: tuple[Stratum, ...] = ()
    protocol: str = "default"
    reference_suffix: str = "_calc_hu200"
    near_suffix: str = "_calc_hu150"
    zone_mm: float = 3.0
    zone_hu: float = 150.0

    def __post_init__(self) -> None:
        """Check what no field can know alone.

        Raises:
            InputError: Naming the benchmark and the field.
        """
        names = [stratum.name for stratum in self.strata]
        for holds, expected, found in (
            ((self.kind == "phantom") == bool(names), "strata for a phantom and for nothing else", str(names)),
            (len(set(names)) == len(names), "every stratum once", str(names)),
            (all(s.cases >= 1 for s in self.strata), "at least one case in every stratum", str(names)),
            ((self.kind == "hybrid") == (self.cases > 0), "cases for a hybrid and for nothing else", str(self.cases)),
            (self.modality == "ct" or self.kind != "real", "modality ct for real calcification", self.modality),
        ):
            if not holds:
                raise InputError(f"benchmark {self.name}", expected=expected, found=found, remedy="correct its file")
        self.lesion_protocol()
        for stratum in self.strata:
            stratum.preset_for(self.modality)

    @property
    def total(self) -> int:
        """Number of synthetic cases of the full benchmark; 0 where the scans decide."""
        return self.cases + sum(stratum.cases for stratum in self.strata)

    @property
    def digest(self) -> str:
        """Hash of everything that decides the data and the scoring; the words about it do not."""
        values = {key: value for key, value in asdict(self).items() if key not in ("name", "about")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def lesion_protocol(self) -> LesionProtocol:
        """Return how lesions are counted."""
        return protocol_named(self.protocol)


def benchmarks() -> list[str]:
    """Return the names of the shipped benchmarks."""
    return sorted(path.stem for path in (configs_folder() / "benchmark").glob("*.yaml"))


def benchmark_path(name: str) -> Path:
    """Return the file of a shipped benchmark, or the file itself that a path names.

    Raises:
        InputError: Naming those that exist.
    """
    path = Path(name)
    if path.suffix == ".yaml" and path.is_file():
        return path
    if name not in benchmarks():
        raise InputError(
            f"benchmark {name}", expected=f"one of {', '.join(benchmarks())}", found="another name", remedy="choose one"
        )
    return configs_folder() / "benchmark" / f"{name}.yaml"


def read_benchmark(path: Path) -> Benchmark:
    """Read and check a benchmark.

    Raises:
        InputError: If it is no YAML, a key is unknown or missing, or a value cannot be.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return converter.structure({**values, "name": path.stem}, Benchmark)
    except InputError:
        raise
    except (yaml.YAMLError, TypeError, ValueError, cattrs.BaseValidationError) as error:
        if isinstance(error, cattrs.BaseValidationError):
            ours = _checks_in(error)
            if ours:
                raise ours[0] from error
            found = "; ".join(cattrs.transform_error(error, format_exception=_words_of))
        else:
            found = str(error).replace("\n", " ")
        raise InputError(
            path, expected="a benchmark", found=found or type(error).__name__, remedy="see configs/benchmark"
        ) from error


def _checks_in(error: BaseException) -> list[InputError]:
    """Return the finished messages of our own checks that cattrs has gathered."""
    if isinstance(error, BaseExceptionGroup):
        return [found for member in error.exceptions for found in _checks_in(member)]
    return [error] if isinstance(error, InputError) else []


def _words_of(error: BaseException, kind: type | None) -> str:
    """Return the message of a check of ours; cattrs has words for the rest only."""
    return str(error) if isinstance(error, ValueError) else format_exception(error, kind)
