"""The log of a sweep: damaged files, folders that cannot be written or locked, and what `status` says of them."""

import errno
import json
import os
import time

import pytest

from bench import status
from bench.files import atomic, locks
from bench.records import sweep_state
from bench.records.sweep_state import Log
from methods.errors import SetupError

CELLS = [("unsteered", False), ("caa x1", False), ("caa x2", False)]


def begun(runs, command=("-m", "method=caa")):
    log = Log.begin(runs, command, CELLS, "joblib")
    for number in (0, 1):
        with log.working(number):
            log.ended(number)
    return log


def shown(tmp_path, capsys, *more):
    code = status.main(["--results", str(tmp_path), *more])
    said = capsys.readouterr()
    return code, said.out, said.err


DAMAGED = [
    "", "null", "[1]", "{", '{"state": "foo"}', '{"state": null}', '{"state": "done", "since": "x"}',
    '{"state": "done", "since": NaN}', '{"state": "done", "until": 1e999}', '{"host": "a"}', "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_cell_whose_file_is_damaged_is_unknown(text, tmp_path, capsys):
    log = begun(tmp_path / "runs")
    (log.folder / "1.json").write_text(text)
    code, out, _ = shown(tmp_path, capsys)
    assert code == 0 and "1 done, 1 waiting, 1 unknown" in out and "1.json cannot be read" in " ".join(out.split())
    (found,) = json.loads(shown(tmp_path, capsys, "--json")[1])
    assert [one["state"] for one in found["cells"]] == ["done", "unknown", "waiting"]


def test_more_in_a_file_than_is_known_is_no_damage(tmp_path):
    log = begun(tmp_path)
    (log.folder / "1.json").write_text('{"state": "done", "label": "x", "of a later version": 1}')
    found = sweep_state.read(log.folder)
    assert found is not None and found.cells[1].state == "done" and found.cells[1].label == "caa x1"


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '{"command": [], "launcher": null, "began": 1e999, "cells": []}',
     '{"command": [], "launcher": null, "began": 1, "cells": [null]}', '{"command": [1]}', "[" * 100_000],
)  # fmt: skip
def test_a_sweep_that_cannot_be_read_hides_no_older_one(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    begun(tmp_path / "runs", ["older"])
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102-000000")
    newest = begun(tmp_path / "runs", ["newer"])
    monkeypatch.undo()
    (newest.folder / "sweep.json").write_text(text)
    for more in ((), ("--all",), ("--json",)):
        code, out, err = shown(tmp_path, capsys, *more)
        assert code == 0 and "older" in out and "newer" not in out
        assert err.count(f"{newest.folder / 'sweep.json'} cannot be read") == 1
    (newest.folder.parent / "20260101-000000-1").mkdir()  # a stopped process had only made the folder
    assert shown(tmp_path, capsys)[0] == 0


def test_time_and_next_step_of_a_stopped_cell(tmp_path, capsys):
    log = begun(tmp_path / "runs")
    long_ago = {"state": "running", "host": "a", "pid": 1, "since": time.time() - 7200}
    (log.folder / "2.json").write_text(json.dumps(long_ago))
    out = shown(tmp_path, capsys)[1]
    assert "1 stopped" in out and "120 min" not in out and "nothing runs: the same command goes on" in out
    with log.going_on():
        assert "1 stopped; it waits for its jobs" in shown(tmp_path, capsys)[1]


@pytest.mark.parametrize(("ahead", "words"), [("shared", "what cells share"), ("fits", "its fit")])
def test_work_ahead_of_the_cells_is_running(ahead, words, tmp_path, capsys):
    log = begun(tmp_path / "runs")
    with log.going_on(), log.working_ahead(2, ahead):
        out = shown(tmp_path, capsys)[1]
        (found,) = json.loads(shown(tmp_path, capsys, "--json")[1])
    assert "2 done, 1 running\n" in out and f"running: {words}" in out and f"process {os.getpid()}" in out
    assert found["cells"][2]["ahead"] == ahead and found["cells"][2]["since"] > time.time() - 60
    assert "1 waiting; nothing runs" in shown(tmp_path, capsys)[1]


def test_a_fit_whose_process_died_is_told_until_its_cell_begins(tmp_path, capsys):
    log = begun(tmp_path / "runs")
    with pytest.raises(SystemExit), log.working_ahead(2, "fits"):
        raise SystemExit  # as a killed process, it holds the lock no more and has not logged an end
    out = shown(tmp_path, capsys)[1]
    assert "2 done, 1 stopped" in out and "stopped: its fit" in out
    with log.working(2):
        sweep = sweep_state.read(log.folder)
        assert sweep is not None and sweep.cells[2].ahead is None and sweep.count("running") == 1


def test_work_ahead_makes_no_estimate_of_the_time_left(tmp_path):
    log = begun(tmp_path)
    with log.working_ahead(2, "fits"):
        sweep = sweep_state.read(log.folder)
        assert sweep is not None and sweep.count("running") == 1 and sweep.seconds_left is None


def test_cells_that_cannot_run_are_told_as_failed(tmp_path, capsys):
    Log.begin(tmp_path / "runs", [], CELLS, None, [("detox", "layer 40 out of range"), ("repe", "no pairs")])
    out = shown(tmp_path, capsys)[1]
    assert "2 failed, 3 waiting" in out and "layer 40 out of range" in out


def test_where_locks_cannot_be_asked_for_the_state_is_unknown(tmp_path, capsys, monkeypatch):
    log = begun(tmp_path / "runs")

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with log.going_on(), log.working(2):
        with monkeypatch.context() as patch:
            patch.setattr(locks.fcntl, "flock", none)
            out = shown(tmp_path, capsys)[1]
    assert "1 unknown; whether it goes on cannot be found out from here" in out
    assert "whether its process lives cannot be found out" in " ".join(out.split())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SetupError("held for too long")])
def test_a_log_that_cannot_be_written_stops_no_cell(error, tmp_path, monkeypatch):
    def full(*_, **__):
        raise error

    log = begun(tmp_path)
    monkeypatch.setattr(locks, "alone", full)
    if isinstance(error, OSError):
        monkeypatch.setattr(atomic, "write_whole", full)
    done = []
    with log.going_on(), log.working(2):
        done.append(2)
        log.ended(2)
    assert done == [2]


def test_an_error_of_the_work_is_not_taken_for_one_of_the_log(tmp_path):
    with pytest.raises(OSError, match="of the work"), begun(tmp_path).working(2):
        raise OSError(errno.ENOSPC, "of the work")
