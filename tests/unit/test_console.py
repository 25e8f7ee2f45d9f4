"""What verbs say while they work."""

from __future__ import annotations

import pytest

from jdm_seg.cli.console import Pace, progress, say_next, shown_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"),
     (3590, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations_are_in_the_unit_a_reader_would_choose(seconds, text):
    assert shown_time(seconds) == text


def ticking(*times: float):
    left = iter(times)
    return lambda: next(left)


def test_pace_is_seconds_an_item_and_what_is_left():
    pace = Pace(4, ticking(0, 10, 30, 60, 70))
    assert pace.step() == "10 s each, 30 s left"
    assert pace.step() == "15 s each, 30 s left"
    assert pace.step() == "20 s each, 20 s left"
    assert pace.step() == ""  # nothing is left


def test_cases_that_were_complete_do_not_make_the_rest_look_fast():
    kept, slow = [0.0] * 101, [30.0 * n for n in range(1, 21)]
    pace = Pace(1000, ticking(*kept, *slow))
    told = [pace.step() for _ in range(120)]
    assert told[99].startswith("0.0 s each")
    assert told[-1].startswith("30 s each")


def test_lines_where_there_is_no_terminal(capsys):
    with progress("scans", 2, quiet=False) as advance:
        advance("a done")
        advance("b done")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("scans 1/2: a done (")
    assert first.endswith("left)")
    assert second == "scans 2/2: b done"


def test_quiet_says_nothing(capsys):
    with progress("scans", 1, quiet=True) as advance:
        advance("a")
    say_next("anything", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_shows_pace_and_brackets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress("scans", 2, quiet=False) as advance:
        advance("leg [1]")
    shown = capsys.readouterr().err
    assert "1/2" in shown
    assert "left" in shown
    assert "leg [1]" in shown
