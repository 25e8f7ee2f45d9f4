"""A search draws what it was told to, goes on where it stopped, and survives trials that fail."""

from __future__ import annotations

import csv
import io

import pytest

from jdm_seg import sweep
from jdm_seg.errors import InputError
from jdm_seg.sweep import Setting, TrialFailedError, run_sweep, scores_of

SEARCHED = [Setting.parse("optimizer.lr=1e-5:1e-1:log"), Setting.parse("loss=dice_ce,blob"), Setting.parse("folds=2:5")]


def test_settings_are_read_as_written():
    assert Setting.parse("lr=1e-4:1e-2:log") == Setting("lr", (), 1e-4, 1e-2, log=True)
    assert Setting.parse("share=0.25:0.75") == Setting("share", (), 0.25, 0.75)
    assert Setting.parse("epochs=2:8") == Setting("epochs", (), 2, 8, whole=True)
    assert Setting.parse("loss=dice_ce,blob") == Setting("loss", ("dice_ce", "blob"))


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1", "lr=2:1", "lr=0:1:log", "lr=a:b", "lr=1:2:lin", "lr=1:2:3:log"])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(InputError, match="--search: expected key=a,b,c"):
        Setting.parse(text)


def pretend(monkeypatch, score):
    """Let trials score without training; returns the overrides of each."""
    ran = []

    def train(run_dir, overrides, trial):
        ran.append(dict(word.split("=") for word in overrides))
        return score(ran[-1], len(ran))

    monkeypatch.setattr(sweep, "_train", train)
    return ran


def test_a_search_nears_the_best_and_goes_on_where_it_stopped(monkeypatch, tmp_path):
    import math

    ran = pretend(monkeypatch, lambda o, _: -((math.log10(float(o["optimizer.lr"])) + 3) ** 2) - (o["loss"] == "blob"))
    first = run_sweep(tmp_path, SEARCHED, ["data.root=set"], trials=10)
    best = run_sweep(tmp_path, SEARCHED, ["data.root=set"], trials=30)
    assert len(ran) == 30
    assert all(o["data.root"] == "set" and 2 <= int(o["folds"]) <= 5 for o in ran)
    assert all(1e-5 <= float(o["optimizer.lr"]) <= 1e-1 for o in ran)
    assert best.value >= first.value
    assert best.params["loss"] == "dice_ce"
    assert 2e-4 < best.params["optimizer.lr"] < 5e-3
    rows = list(csv.DictReader(io.StringIO((tmp_path / sweep.TABLE).read_text())))
    assert [int(row["trial"]) for row in rows] == list(range(30))
    assert max(float(row["score"]) for row in rows) == pytest.approx(best.value, abs=1e-4)


def test_a_trial_that_fails_is_counted_and_the_search_goes_on(monkeypatch, tmp_path):
    def score(_, number):
        if number == 2:
            raise TrialFailedError("no memory")
        return number / 10

    pretend(monkeypatch, score)
    told = []
    assert run_sweep(tmp_path, SEARCHED, [], trials=3, on_trial=told.append).value == 0.3
    assert [line.split(",")[0] for line in told] == ["trial 0 complete", "trial 1 fail", "trial 2 complete"]


def test_a_search_in_which_nothing_works_says_where_to_look(monkeypatch, tmp_path):
    def score(*_):
        raise TrialFailedError("no")

    pretend(monkeypatch, score)
    with pytest.raises(InputError, match=r"expected a trial that succeeded.*sweep\.log"):
        run_sweep(tmp_path, SEARCHED, [], trials=2)


def test_scores_are_those_of_validations(tmp_path):
    assert scores_of(tmp_path) == []
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/score\n0,1,0.9,\n0,2,,0.25\n1,4,,nan\n2,6,,0.5\n")
    assert scores_of(tmp_path) == [(0, 0.25), (2, 0.5)]


def test_a_bad_trial_is_stopped_by_the_stop_file_and_an_error_is_told(tmp_path, monkeypatch):
    """The process is a stand-in that validates, and waits for the stop file as a training run does."""
    stand_in = (
        "import pathlib, sys, time; folder = pathlib.Path(sys.argv[-1].partition('=')[2])\n"
        "(folder / 'metrics.csv').write_text('epoch,val/score\\n0,0.5\\n1,0.1\\n')\n"
        "end = time.time() + 60\n"
        "while not (folder / 'stop').exists() and time.time() < end: time.sleep(0.05)\n"
        "sys.exit(0 if (folder / 'stop').exists() else 3)\n"
    )
    script = tmp_path / "stand_in.py"
    script.write_text(stand_in)
    popen = sweep.subprocess.Popen
    monkeypatch.setattr(sweep, "_POLL_S", 0.05)
    monkeypatch.setattr(
        sweep.subprocess, "Popen", lambda command, **k: popen([command[0], str(script), command[-1]], **k)
    )

    class Trial:
        reported: list = []  # noqa: RUF012

        def report(self, score, epoch):
            self.reported.append((epoch, score))

        def should_prune(self):
            return True

    import optuna

    with pytest.raises(optuna.TrialPruned):
        sweep._train(tmp_path / "trial", [], Trial())
    assert Trial.reported == [(0, 0.5), (1, 0.1)]
    script.write_text("raise SystemExit(3)")
    with pytest.raises(TrialFailedError, match="says why"):
        sweep._train(tmp_path / "other", [], Trial())
