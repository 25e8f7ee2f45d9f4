"""Pages from tables on disk; nothing is computed again."""

from jdm_seg.report.page import write_report

__all__ = ["write_report"]
