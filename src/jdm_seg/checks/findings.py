"""What a check has to say about a scan or a file: one record, one wording, for people, tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from jdm_seg.errors import InputError

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[str, ...] = get_args(Severity)
"""``info``: good to know. ``warning``: results suffer. ``error``: a result would be meaningless."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        where: Case id or file at fault; never a full path, whose folders may name a patient.
        severity: One of :data:`SEVERITIES`.
        code: Short fixed name for machines, such as ``not_hu``.
        reason: What is the matter, a sentence in plain words, without a full stop.
        expected: What would have been right.
        found: What is there instead.
        remedy: What the reader can do, an imperative phrase in lower case.
    """

    where: str
    severity: Severity
    code: str
    reason: str
    expected: str
    found: str
    remedy: str

    def sentence(self) -> str:
        """Return reason, figures and remedy in one readable line, without the place."""
        return f"{self.reason}: found {self.found}, expected {self.expected}; {self.remedy}."

    def error(self) -> InputError:
        """Return an exception that says the same."""
        return InputError(self.where, expected=self.expected, found=self.found, remedy=self.remedy)


def warnings_of(findings: Iterable[Finding]) -> list[str]:
    """Return the sentences of the warnings: what ``burden.json`` lists."""
    return [finding.sentence() for finding in findings if finding.severity == "warning"]


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raise the first error among findings, if there is one.

    Raises:
        InputError: Saying what the finding says.
    """
    for finding in findings:
        if finding.severity == "error":
            raise finding.error()
