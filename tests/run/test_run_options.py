"""limit=N, runtime.dry_run, runtime.overwrite, and the command that runs a failed cell alone."""

import json
import os
import shlex

import pandas as pd
import pytest

from bench.__main__ import main
from bench.config import compose
from bench.files.overwrite import Overwrite
from bench.records import record
from bench.run import speeds, validate
from tests.run.test_smoke import arguments, contents, without_figures, world  # noqa: F401

pytestmark = pytest.mark.usefixtures("without_figures")


def records(results):
    return {path.name: record.read(path) for path in sorted((results / "runs/records").iterdir())}


def stamps(results):
    return {path: path.stat().st_mtime_ns for path in (results / "runs").rglob("*") if path.is_file()}


def test_results_under_a_limit_are_others_and_say_so(world, tmp_path, capsys):  # noqa: F811
    asked = ("method=unsteered,caa", "strength=2", "suite=[rtp,capability]")
    assert main(arguments(world, tmp_path, *asked)) == 0
    whole = records(tmp_path)
    capsys.readouterr()
    assert main(arguments(world, tmp_path, *asked, "limit=2")) == 0
    told = capsys.readouterr()
    line = "limit=2 cuts rtp (prompts from 5, dev_prompts from 3), capability (documents from 4)"
    assert told.err.count(line) == 1
    assert told.out.count("Warning: cut by limit=2") == 1
    few = {name: one for name, one in records(tmp_path).items() if name not in whole}
    assert len(few) == len(whole) == 4 and {one.limit for one in few.values()} == {2}
    assert {one.limit for one in whole.values()} == {None}
    assert not {one.comparison for one in few.values()} & {one.comparison for one in whole.values()}
    rtp = next(one for one in few.values() if one.suite == "rtp")
    assert rtp.info.prompts == 2 and any(name.endswith("_n2") for name in rtp.metrics)
    assert "cut by limit=2" in (tmp_path / "leaderboard.tex").read_text()
    assert "limit" not in json.loads((tmp_path / "runs/records" / next(iter(whole)) / "record.json").read_text())


def test_a_dry_run_tells_and_computes_nothing(world, tmp_path, capsys):  # noqa: F811
    asked = ("method=unsteered,caa", "strength=2", "suite=[rtp,capability]")
    assert main(arguments(world, tmp_path, *asked, "runtime.dry_run=true")) == 0
    told = capsys.readouterr().out
    assert "2 cells can run, 0 already computed" in told and "time: no estimate" in told and "memory: " in told
    assert not (tmp_path / "runs").exists()

    assert main(arguments(world, tmp_path, *asked)) == 0
    before = stamps(tmp_path)
    capsys.readouterr()
    more = arguments(world, tmp_path, "method=unsteered,caa,random_direction", *asked[1:], "runtime.dry_run=true")
    assert main(more) == 0
    told = capsys.readouterr().out
    assert (
        "3 cells can run, 2 already computed" in told and "time: about" in told and "nothing, already computed" in told
    )
    assert stamps(tmp_path) == before
    assert main(arguments(world, tmp_path, *asked, "runtime.dry_run=true")) == 0
    told = capsys.readouterr().out
    assert "2 cells can run, 2 already computed" in told and "time:" not in told


def test_a_dry_run_needs_no_right_to_write(world, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(validate.os, "access", lambda _, mode: not mode & os.W_OK)
    asked = ("method=unsteered", "suite=[capability]")
    assert main(arguments(world, tmp_path, *asked, "runtime.dry_run=true")) == 0
    assert "1 cell can run" in capsys.readouterr().out
    assert main(arguments(world, tmp_path, *asked)) == 2
    assert "cannot be written; choose another folder" in capsys.readouterr().err


def test_a_dry_run_tells_cells_that_are_the_same(world, tmp_path, capsys):  # noqa: F811
    assert main(arguments(world, tmp_path, "-m", "method=unsteered,caa", "strength=1,2", "runtime.dry_run=true")) == 0
    told = capsys.readouterr().out
    assert "nothing, the same as cell 0" in told
    assert "4 cells can run, 0 already computed, 1 the same as another" in told


def test_a_dry_run_tells_cells_of_one_name_apart(world, tmp_path, capsys):  # noqa: F811
    asked = ("-m", "method=caa", "strength=2", "seed.sample=0,1", "method.layer=1", "runtime.dry_run=true")
    assert main(arguments(world, tmp_path, *asked)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "caa seed.sample=0 " in told and "caa seed.sample=1 " in told and "method.layer" not in told


def test_a_strength_that_a_method_lacks_is_refused(world, tmp_path, capsys):  # noqa: F811
    assert main(arguments(world, tmp_path, "method=prompt", "strength=9", "runtime.dry_run=true")) == 2
    assert "strength=9: prompt has only the strengths 1, 2, 3, 4, 5" in capsys.readouterr().err


def test_a_dry_run_with_a_cell_that_cannot_run_says_so(world, tmp_path, capsys):  # noqa: F811
    asked = arguments(world, tmp_path, "method=caa,detox", "method.layer=40", "strength=2", "runtime.dry_run=true")
    assert main(asked) == 2
    told = capsys.readouterr()
    assert "layer" in told.err and not (tmp_path / "runs").exists()


def test_an_estimate_is_by_the_speed_of_each_kind(tmp_path):
    own = {"rtp": (100.0, 5.0), "fit": (10.0, 1.0)}
    assert speeds.estimate({"rtp dev 1": 40.0, "rtp 2": 60.0, "fit 3": 20.0}, own) == (7.0, [])
    assert speeds.estimate({"kl 1": 5.0, "rtp 1": 20.0, "kl 2": 1.0, "ab 1": 0.0}, own) == (1.0, ["kl"])
    speeds._add(tmp_path, "m", {"rtp": (100.0, 5.0), "kl": (0.0, 3.0)})
    speeds._add(tmp_path, "m", {"rtp": (50.0, 5.0)})
    speeds._add(tmp_path, "other", {"rtp": (1.0, 1.0)})
    assert speeds.read(tmp_path) == {"m": {"rtp": (150.0, 10.0)}, "other": {"rtp": (1.0, 1.0)}}
    for text in ("{", "[]", '{"m": {"rtp": 1}}', '{"m": 2}'):
        (tmp_path / speeds.FILE).write_text(text)
        assert speeds.read(tmp_path) == {}


# -- runtime.overwrite -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_damaged_results_stay_and_are_named_with_never(world, tmp_path, capsys):  # noqa: F811
    asked = ("method=unsteered,caa", "strength=2", "suite=[rtp,capability]")
    assert main(arguments(world, tmp_path, *asked)) == 0
    first, second, *_ = sorted((tmp_path / "runs/records").iterdir())
    for path in (first, second):
        (path / "items.parquet").write_bytes(b"cut")
    before = stamps(tmp_path)
    capsys.readouterr()
    assert main(arguments(world, tmp_path, *asked, "runtime.overwrite=never")) == 2
    told = capsys.readouterr().err
    for path in (first, second):
        assert f"{path}: items.parquet was changed after it was written (" in told
    assert "runtime.overwrite=never" in told and stamps(tmp_path) == before
    assert main(arguments(world, tmp_path, *asked)) == 0
    assert all(records(tmp_path).values()) and len(list((tmp_path / "runs").glob(".*.damaged"))) == 2
    assert main(arguments(world, tmp_path, *asked, "runtime.overwrite=never")) == 0  # all is whole


def test_a_damaged_fit_is_not_set_aside_with_never(world, tmp_path, capsys):  # noqa: F811
    asked = ("method=caa", "strength=2", "suite=[rtp]")
    assert main(arguments(world, tmp_path, *asked)) == 0
    (fit,) = (tmp_path / "runs/artefacts").iterdir()
    (fit / "fit.json").write_text("{")
    asked = ("method=caa", "strength=3", "suite=[rtp]", "runtime.overwrite=never")
    assert main(arguments(world, tmp_path, *asked)) == 2
    assert "nothing is set aside" in capsys.readouterr().err and (fit / "fit.json").read_text() == "{"


@pytest.mark.slow
def test_always_computes_everything_once_more(world, tmp_path, capsys, monkeypatch):  # noqa: F811
    asked = ("method=unsteered,caa,random_direction", "suite=[rtp,capability]", "method.strengths=[2]")
    asked = (*asked[:2], "strength=2", "control=null")
    assert main(arguments(world, tmp_path, *asked)) == 0
    before, numbers = stamps(tmp_path), contents(tmp_path)
    asked_of = []
    from bench.suites.rtp import RTP

    ask = RTP.ask
    monkeypatch.setattr(RTP, "ask", lambda *given: asked_of.append(given[1].steering_identity) or ask(*given))
    assert main(arguments(world, tmp_path, *asked, "runtime.overwrite=always")) == 0
    after = stamps(tmp_path)
    renewed = [path for path in before if path.parts[-3] in ("records", "artefacts", "generations")]
    assert len(renewed) > 10 and all(after[path] > before[path] for path in renewed)
    assert contents(tmp_path) == numbers and len(asked_of) == 3  # the unsteered model once
    assert not [path for path in after if "damaged" in str(path) or ".part" in str(path)]
    asked_of.clear()
    assert main(arguments(world, tmp_path, *asked, "runtime.overwrite=always")) == 0
    assert len(asked_of) == 3  # it is no command whose results are known
    asked_of.clear()
    assert main(arguments(world, tmp_path, *asked)) == 0
    assert asked_of == [] and "nothing to run" in capsys.readouterr().err


@pytest.mark.slow
def test_always_makes_tuned_strengths_and_controls_again(world, tmp_path):  # noqa: F811
    asked = ("method=caa", "control=null,0", "suite=[rtp,fluency,capability]", "method.strengths=[1,2]")
    assert main(arguments(world, tmp_path, *asked)) == 0
    before, numbers = stamps(tmp_path), contents(tmp_path)
    assert main(arguments(world, tmp_path, *asked, "runtime.overwrite=always")) == 0
    after = stamps(tmp_path)
    assert contents(tmp_path) == numbers
    assert all(after[path] > before[path] for path in before if path.parts[-3] in ("records", "artefacts"))


def test_old_records_stay_until_the_new_one_is_whole(world, tmp_path, monkeypatch):  # noqa: F811
    asked = ("method=unsteered", "suite=[rtp]")
    assert main(arguments(world, tmp_path, *asked)) == 0
    before = records(tmp_path)

    def full(*_, **__):
        assert records(tmp_path) == before
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.suites.rtp.RTP.ask", full)
    assert main(arguments(world, tmp_path, *asked, "runtime.overwrite=always")) == 2
    assert records(tmp_path) == before


def test_what_counts_with_always(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    rule = Overwrite("always", began=old.stat().st_mtime + 1e-3)
    assert not rule.counts(old) and not rule.counts(new)
    rule.made.add("old")
    assert rule.counts(old)
    assert Overwrite("damaged", began=rule.began).counts(tmp_path / "old")
    assert Overwrite("always", began=old.stat().st_mtime).counts(old)
    rule.made.clear()
    rule.forget(old)
    assert not old.exists()


# -- a failed cell -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_cell_is_told_with_its_own_command(world, tmp_path, capsys, monkeypatch):  # noqa: F811
    def broken(*_, **__):
        raise RuntimeError("no such thing")

    monkeypatch.setattr("methods.random_direction.RandomDirection.fit", broken)
    asked = arguments(world, tmp_path, "method=unsteered,caa,random_direction", "strength=1,2", "suite=[rtp]")
    assert main(asked) == 1
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip().startswith("alone: ")]
    commands = [shlex.split(line.removeprefix("alone: ")) for line in lines]
    assert len(commands) == 2 and all(one[:3] == ["python", "-m", "bench"] for one in commands)
    cells = [compose.jobs(one[3:], multirun=False) for one in commands]
    assert [len(one) for one in cells] == [1, 1]
    assert [{"method=random_direction", f"strength={n}"} <= set(cells[n - 1][0]) for n in (1, 2)] == [True, True]
    monkeypatch.undo()
    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])
    for one in commands:
        assert main(one[3:]) == 0
    assert set(pd.read_csv(tmp_path / "leaderboard.csv")["method"]) == {"unsteered", "caa", "random_direction"}
