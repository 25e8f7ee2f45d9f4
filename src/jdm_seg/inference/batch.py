"""A folder of scans: one model load, each case whole or not at all, one bad scan stops nothing, finished cases stay.

While the network works on a scan, one thread reads the next and another measures and writes the one before, so that the
network does not wait. At most one scan is read ahead and one is behind: beside what the method itself needs, memory
holds three scans, two masks and one table of lesions. A scan is read ahead only when it fits into what is left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import jdm_seg
from jdm_seg.burden.analysis import PROBABILITY, Analysis, analyse_mask, write_analysis
from jdm_seg.cases import Case
from jdm_seg.checks.findings import Finding, raise_errors, warnings_of
from jdm_seg.checks.scan import check_scan
from jdm_seg.dicom.cases import CaseScan, read_case
from jdm_seg.dicom.objects import SEGMENTATION, write_dicom_results
from jdm_seg.dicom.read import DicomScan
from jdm_seg.dicom.segmentation import Method
from jdm_seg.errors import InputError, reason_of
from jdm_seg.inference.case_folder import (
    PATIENT,
    REPORT,
    REPORTED,
    content_hash,
    find_result,
    fingerprint,
    names_other_method,
    remove_leftovers,
    whole_folder,
)
from jdm_seg.inference.cohort import COHORT_COLUMNS as COHORT_COLUMNS
from jdm_seg.inference.cohort import Cohort, busy, row_of
from jdm_seg.inference.plan import (
    Refused,
    Shard,
    check_readable,
    fits_beside,
    is_disk_error,
    prepare_out,
    shard_of,
)
from jdm_seg.inference.plan import scans_of as scans_of
from jdm_seg.inference.prediction import ScanPrediction, Segmenter
from jdm_seg.physics import hu_per_mg_ha
from jdm_seg.pictures import PREVIEW, write_preview
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Volume, read_volume, write_volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchResult:
    """What a batch did.

    Attributes:
        rows: One a case as in ``cohort.csv``; ``kept`` where an earlier result was found.
        stopped: Why the rest was not begun, or None.
    """

    rows: list[dict[str, Any]]
    stopped: str | None = None

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of the cases that have no result."""
        return [row for row in self.rows if row["status"] == "failed"]


@dataclass(frozen=True)
class BatchOptions:
    """How to go through the scans.

    Attributes:
        kv: Tube voltage of the scans, if known.
        overwrite: Redo cases that are complete.
        probability: Write the probability map of every scan too.
        overlap: Read ahead and write behind; the results are the same without.
        memory_limit: Bytes that the process may take, for reading ahead; None: what the machine has left.
        series: DICOM series to read instead of the best one, see :func:`~jdm_seg.dicom.choose.choose_series`.
        hash_ids: Call cases by a hash instead of their name.
        dicom_seg: Write the mask of scans from DICOM as DICOM SEG too.
        dicom_sr: Likewise, with a segment a lesion and a structured report of their measurements.
        keep_patient: Copy the patient's and study's tags into those, as an archive needs.
    """

    kv: str | None = None
    overwrite: bool = False
    probability: bool = False
    overlap: bool = True
    memory_limit: int | None = None
    series: str | None = None
    hash_ids: bool = False
    dicom_seg: bool = False
    dicom_sr: bool = False
    keep_patient: bool = False


def predict_batch(
    source: Path,
    out: Path,
    predictor: Segmenter,
    *,
    kv: str | None = None,
    overwrite: bool = False,
    options: BatchOptions | None = None,
    shard: Shard | None = None,
    on_case: Callable[[dict[str, Any]], None] = lambda _: None,
) -> BatchResult:
    """Segment and measure every scan of ``source``.

    Args:
        source: A NIfTI file or a folder of them, however deep.
        out: Gets a folder a case, ``cohort.csv`` and ``run.json``.
        predictor: The method: a loaded model or the threshold baseline.
        kv: Tube voltage of the scans, if known; short for ``options``.
        overwrite: Redo cases that are complete; short for ``options``.
        options: Everything else.
        shard: The part of the scans to do; None: all.
        on_case: Called with each case's row as it ends.

    Raises:
        InputError: Before any work: no scans, an unknown voltage, an ``out`` that cannot be written or is too small.
        KeyboardInterrupt: On Ctrl-C, when what was being written is whole and the tables are up to date.
    """
    options = options or BatchOptions(kv=kv, overwrite=overwrite)
    try:
        hu_per_mg_ha(options.kv)
    except ValueError as error:
        raise InputError("--kv", expected="a tube voltage", found=str(error), remedy="give it in kV") from error
    everything = scans_of(source, predictor.modality, leave_out=out, hash_ids=options.hash_ids)
    scans = shard_of(everything, shard or Shard())
    prepare_out(out, scans.cases, with_probability=options.probability)
    settings = {**predictor.describe(), "kv": options.kv, **({"series": options.series} if options.series else {})}
    cohort = Cohort(out, everything.ids, shard or Shard(), settings)
    batch = _Batch(out, predictor, options, settings, cohort, on_case)
    status = "interrupted"
    try:
        batch.run(scans.cases, scans.refused)
        status = "complete" if batch.stopped is None else "stopped"
    finally:
        try:
            cohort.close(status)
        except OSError:
            if status == "complete":
                raise
            log.debug("the tables cannot be written", exc_info=True)  # a full disk, which is said already
    return BatchResult(batch.rows, batch.stopped)


@dataclass
class _Work:
    """A case on its way; ``row`` is set when its outcome is known."""

    case: Case
    scan: Volume | None = None
    dicom: CaseScan | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    warnings: list[str] = field(default_factory=list)
    prediction: ScanPrediction | None = None
    stages: dict[str, float] = field(default_factory=dict)
    row: dict[str, Any] | None = None
    is_ours: bool = True

    def fail(self, error: Exception) -> None:
        """Note why this case has no result; whatever one scan does, the others are still to be done."""
        case_id = self.case.case_id
        log.debug("%s failed", case_id, exc_info=True)
        reason = reason_of(error)
        self.row = row_of(
            case_id, "failed", {"error": reason if reason.startswith(case_id) else f"{case_id}: {reason}"}
        )
        self.scan = self.prediction = None


class _Batch:
    def __init__(
        self,
        out: Path,
        predictor: Segmenter,
        options: BatchOptions,
        settings: dict[str, Any],
        cohort: Cohort,
        on_case: Callable[[dict[str, Any]], None],
    ) -> None:
        self._out = out
        self._predictor = predictor
        self._options = options
        self._settings = settings
        self._cohort = cohort
        self._on_case = on_case
        self.rows: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self._behind: Future[_Work] | None = None
        self._said_replaced = False

    def run(self, cases: Sequence[Case], refused: Sequence[Refused]) -> None:
        """Go through the cases; on an interrupt, what is being read and written is ended first."""
        for one in refused:
            row = row_of(one.case_id, "failed", {"error": one.reason})
            self._cohort.record(row, {})
            self._note(row)
        try:
            # leaving the block waits for both threads: on an interrupt too, what is being written becomes whole
            with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
                self._run(cases, reader, writer)
        finally:
            self._note_behind()
        if self.stopped:
            rest = len(cases) + len(refused) - len(self.rows)
            self.stopped += f" {rest} scans were not begun." if rest else ""

    def _run(self, cases: Sequence[Case], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor) -> None:
        ahead: Future[_Work] | None = None
        for number, case in enumerate(cases):
            work = (ahead or reader.submit(self._load, case)).result()
            following = cases[number + 1 : number + 2]
            ahead = reader.submit(self._load, following[0]) if following and self._may_read(following[0]) else None
            self._segment(work)
            self._note_behind()
            if self.stopped:
                return
            self._behind = writer.submit(self._finish, work)
            del work  # the writer's alone: this scan's memory is free when it has ended
            if ahead is None:
                self._note_behind()

    def _may_read(self, case: Case) -> bool:
        return self._options.overlap and fits_beside(case.image, self._options.memory_limit)

    def _note_behind(self) -> None:
        """Wait for the case that is being written and pass its row on."""
        behind, self._behind = self._behind, None
        if behind is not None:
            row = behind.result().row
            assert row is not None
            self._note(row)

    def _note(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._on_case(row)

    def _load(self, case: Case) -> _Work:
        """Find the earlier result of a case, or read its scan."""
        work = _Work(case)
        folder = self._out / case.case_id
        try:
            work.is_ours = self._cohort.locks.take(case.case_id)
            if not work.is_ours:
                raise busy(case.case_id)
            remove_leftovers(folder)
            if not case.study:
                check_readable(case.image)
            kept = find_result(folder, case.image, self._settings, self._needed(case))
            self._say_if_replaced(folder)
            if kept is not None and not self._options.overwrite:
                seconds = round(sum(kept.stages.values()), 2)
                work.stages = kept.stages
                work.row = row_of(case.case_id, "kept", {**kept.burden, "seconds": seconds})
                return work
            begin = time.perf_counter()
            work.fingerprint, work.sha256 = fingerprint(case.image), content_hash(case.image)
            self._read(work)
            assert work.scan is not None
            findings = self._check(work.scan, work.case.modality)
            raise_errors(findings)
            work.warnings += warnings_of(findings)
            trained = self._predictor.training
            work.warnings += [trained.caution] if trained is not None and trained.caution else []
            work.stages["read"] = round(time.perf_counter() - begin, 3)
        except Exception as error:
            work.fail(error)
        return work

    def _needed(self, case: Case) -> tuple[str, ...]:
        """Return files without which an earlier result does not do."""
        options = self._options
        needed: tuple[str, ...] = (PROBABILITY,) if options.probability else ()
        if case.study and (options.dicom_seg or options.dicom_sr):
            needed += (PATIENT,) if options.keep_patient else ()
            needed += (SEGMENTATION, REPORTED) if options.dicom_sr else (SEGMENTATION,)
        return needed

    def _say_if_replaced(self, folder: Path) -> None:
        """Say once that results of another method or other settings are made anew: hours may go with them."""
        other = None if self._said_replaced else names_other_method(folder, self._settings)
        if other is not None:
            self._said_replaced = True
            log.warning("%s holds results of %s; they are made anew with these settings", self._out.name, other)

    def _read(self, work: _Work) -> None:
        """Read the scan, from DICOM with what its header says of the acquisition."""
        if work.case.study:
            work.dicom = read_case(work.case, self._options.series)
            work.scan = work.dicom.scan.volume
            work.warnings += work.dicom.scan.notes
        else:
            work.scan = read_volume(work.case.image)

    def _check(self, scan: Volume, modality: str) -> list[Finding]:
        training = self._predictor.training
        if training is None:
            return check_scan(scan, modality)
        return check_scan(scan, modality, training_spacing=training.spacing, window_mm=training.window_mm)

    def _segment(self, work: _Work) -> None:
        if work.row is not None:
            return
        assert work.scan is not None
        try:
            work.prediction = self._predictor(work.scan)
            work.stages |= work.prediction.seconds
            work.warnings += work.prediction.notes
        except Exception as error:
            work.fail(error)

    def _finish(self, work: _Work) -> _Work:
        """Measure and write a case and put it into the tables."""
        try:
            if work.row is None:
                self._write(work)
        except Exception as error:
            work.fail(error)
            self._check_disk(error)
        assert work.row is not None
        if work.is_ours:
            try:
                self._cohort.record(work.row, work.stages)
            except OSError as error:
                self._check_disk(error)
                if not self.stopped:
                    raise
            self._cohort.locks.release(work.case.case_id)
        work.scan = work.prediction = None
        return work

    def _check_disk(self, error: Exception) -> None:
        if is_disk_error(error):
            self.stopped = (
                f"{self._out.name}: expected a disk that takes the results, found {reason_of(error)}; "
                "free some room and run the same command again: complete cases are kept."
            )

    def _write(self, work: _Work) -> None:
        case, scan, prediction = work.case, work.scan, work.prediction
        assert scan is not None
        assert prediction is not None
        begin = time.perf_counter()
        analysis = analyse_mask(
            scan,
            prediction.mask,
            case_id=case.case_id,
            modality=case.modality,
            kv=self._options.kv or (work.dicom.kv if work.dicom else None),
            probability=prediction.probability,
        )
        analysis.burden["warnings"][:0] = work.warnings
        if work.dicom is not None:
            analysis.burden["acquisition"] = work.dicom.facts
        analysis.burden["prediction"] = {**self._settings, "scan_sha256": work.sha256}
        work.stages["measure"] = round(time.perf_counter() - begin, 3)
        begin = time.perf_counter()
        written = [PATIENT] * self._options.keep_patient + [REPORTED] * self._options.dicom_sr
        (self._out / REPORT).unlink(missing_ok=True)  # it tells of what was here before
        with whole_folder(self._out / case.case_id, work.fingerprint, work.stages, written) as partial:
            write_volume(partial / "mask.nii.gz", prediction.mask, scan, np.uint8)
            write_analysis(partial, scan, analysis, probability=self._map_of(prediction))
            write_preview(partial / PREVIEW, scan, prediction.mask, modality=case.modality)
            if work.dicom is not None and (self._options.dicom_seg or self._options.dicom_sr):
                self._write_dicom(partial, work.dicom.scan, analysis, case.case_id)
            work.stages["write"] = round(time.perf_counter() - begin, 3)
        seconds = round(sum(work.stages.values()), 2)
        work.row = row_of(case.case_id, "done", {**analysis.burden, "seconds": seconds})

    def _map_of(self, prediction: ScanPrediction) -> SparseArray | None:
        """Return the probability map if it is to be written."""
        if not self._options.probability:
            return None
        if prediction.probability is None:
            raise InputError(
                "--probability",
                expected="a method that gives probabilities",
                found="one that does not",
                remedy="leave --probability out, or use a network",
            )
        return prediction.probability

    def _write_dicom(self, folder: Path, scan: DicomScan, analysis: Analysis, case_id: str) -> None:
        # the version of the code alone would not tell two trainings of one model apart
        weights = str(self._settings.get("model_sha256", ""))[:12]
        version = jdm_seg.__version__ + (f"+{weights}" if weights else "")
        write_dicom_results(
            folder,
            scan,
            analysis.labels,
            analysis.lesions,
            method=Method(str(self._settings.get("model", "jdm_seg")), version),
            case_id=case_id,
            report=self._options.dicom_sr,
            keep_patient=self._options.keep_patient,
        )
