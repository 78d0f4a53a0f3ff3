"""One cell's trouble stays one cell's: the others have their records, the command's exit code is not 0, and each error
is told with what to do."""

import errno
import gc
import sys
import weakref
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.data.prompts import rtp_prompts
from bench.data.sources import Sources
from bench.files import atomic
from bench.run import cell_model, runner
from bench.run.cell import Cell
from bench.scorers.profanity_check import ProfanityCheck
from methods import layout_search
from methods.caa import CAA
from methods.random_direction import RandomDirection
from tests.run.test_smoke import arguments, without_figures, world

__all__ = ["without_figures", "world"]  # fixtures
pytestmark = pytest.mark.usefixtures("without_figures")


class Panic(BaseException):
    """An error that is no `Exception`, such as the panic of a library in Rust."""


def ends(*_: object, **__: object) -> None:
    sys.exit(0)


def panics(*_: object, **__: object) -> None:
    raise Panic("index out of bounds")


def breaks(*_: object, **__: object) -> None:
    raise RuntimeError("a defect\nof two lines")


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "results/x")


TROUBLES = {
    ends: "ended the program by sys.exit(0)",
    panics: "Panic: index out of bounds",
    breaks: "RuntimeError: a defect",
    full: "results/x: No space left on device; free some space",
}


def methods_done(results: Path) -> set[str]:
    from bench.records.table import read_records

    return {one.record.method.name for one in read_records(results / "runs")[0]}


def sweep(world: Path, results: Path, *more: str) -> list[str]:
    given = ["method=caa,random_direction", "strength=2", "suite.rtp.prompts=2", "tuning.scorer=profanity_check"]
    return arguments(world, results, *given, "suite=[rtp]", *more)


@pytest.mark.every(10)
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("place", ["fit", "plan", "cell", "check"])
def test_the_other_cell_has_its_records(place, trouble, world, tmp_path, monkeypatch, capsys):
    def of_caa(real):
        def maybe(first, *rest, **more):
            mine = isinstance(first, CAA) or isinstance(getattr(first, "method", None), CAA)
            return trouble() if mine else real(first, *rest, **more)

        return maybe

    def made(self, cfg, session, **more):
        if cfg.method._target_.endswith("CAA"):
            trouble()
        real_init(self, cfg, session, **more)

    real_init = Cell.__init__
    if place == "cell":
        monkeypatch.setattr(Cell, "__init__", made)
    elif place == "plan":
        monkeypatch.setattr(runner, "plan", of_caa(runner.plan))
    else:
        monkeypatch.setattr(CAA, place, of_caa(getattr(CAA, place)))
    code = main(sweep(world, tmp_path))
    told = capsys.readouterr().err
    assert code == (2 if trouble is full else 1)  # the user must free some space
    assert TROUBLES[trouble] in told and "1 of 2 cells failed" in told and "Traceback" not in told
    assert methods_done(tmp_path) == {"random_direction"}
    (failure,) = (tmp_path / "runs/failures").iterdir()
    assert "Traceback" in failure.read_text() and str(failure) in told


@pytest.mark.every(2)
@pytest.mark.parametrize("trouble", [ends, panics])
def test_a_scorer_that_ends_the_program(trouble, world, tmp_path, monkeypatch, capsys):
    real = ProfanityCheck.__call__
    calls: list[int] = []

    def once(self, prompts, completions):
        calls.append(1)
        return trouble() if len(calls) == 1 else real(self, prompts, completions)

    monkeypatch.setattr(ProfanityCheck, "__call__", once)
    assert main(sweep(world, tmp_path)) == 1
    told = capsys.readouterr().err
    assert TROUBLES[trouble] in told and "1 of 2 cells failed" in told
    assert methods_done(tmp_path) == {"random_direction"}


def test_a_full_disk_while_the_failure_itself_is_written(world, tmp_path, monkeypatch, capsys):
    real = atomic.write_whole

    def write(target: Path, content: str | bytes) -> None:
        if target.parent.name == "failures":
            full()
        real(target, content)

    monkeypatch.setattr(atomic, "write_whole", write)
    monkeypatch.setattr(CAA, "fit", breaks)
    assert main(sweep(world, tmp_path)) == 1
    told = capsys.readouterr().err
    assert "its traceback could not be kept" in told and "RuntimeError: a defect" in told
    assert methods_done(tmp_path) == {"random_direction"}


def test_on_a_full_disk_no_traceback_is_printed(world, tmp_path, monkeypatch, capsys):
    rtp_prompts(Sources(mirror=str(world / "mirror"), cache=world / "cache", offline=True), "test", None)  # are cached
    monkeypatch.setattr(CAA, "fit", full)
    monkeypatch.setattr(atomic, "write_whole", full)  # neither can anything else be written
    assert main(arguments(world, tmp_path, "method=caa", "strength=2", "suite=[rtp]")) == 2
    told = capsys.readouterr().err
    assert "results/x: No space left on device; free some space" in told and "Traceback" not in told


@pytest.mark.slow
def test_the_same_command_computes_what_is_missing(world, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(CAA, "fit", full)
        assert main(sweep(world, tmp_path)) == 2
    assert main(sweep(world, tmp_path)) == 0
    assert methods_done(tmp_path) == {"caa", "random_direction"}


def test_all_that_fail_leave_no_table(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CAA, "fit", breaks)
    monkeypatch.setattr(RandomDirection, "fit", breaks)
    assert main(sweep(world, tmp_path)) == 1
    assert "2 of 2 cells failed" in capsys.readouterr().err and not (tmp_path / "leaderboard.csv").exists()


# -- what a method checks needs no weights -----------------------------------------------------------------------------


@pytest.fixture
def unknown(monkeypatch) -> str:
    """In no model the blocks are found; what is told of that."""
    monkeypatch.setattr(layout_search, "_like_blocks", lambda _: False)
    return "LlamaForCausalLM: no list of 5 blocks of one class was found, only none; name the one to steer"


def never(*_: object, **__: object) -> None:
    raise AssertionError("weights were loaded")


def test_an_unknown_architecture_fails_before_any_cell_runs(world, unknown, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell_model, "load_lm", never)
    given = arguments(world, tmp_path, "method=unsteered,caa")
    assert main(given) == 2
    told = capsys.readouterr().err
    assert unknown in told and "the remaining cells are not steered" in told
    assert not (tmp_path / "runs/records").exists()


def test_where_something_is_left_that_steers_it_goes_on(world, unknown, tmp_path, capsys):
    given = arguments(world, tmp_path, "method=unsteered,caa,prompt", "strength=1")
    assert main([*given, "suite.rtp.prompts=2"]) == 2
    told = capsys.readouterr().err
    assert told.index(unknown) < told.index("the other cells go on")
    assert methods_done(tmp_path) == {"unsteered", "prompt"}


@pytest.mark.parametrize("more", [
    ["method.layer=40"], ["method.layer=0.5", "tuning.options={layer: [0.5, 40]}", "tuning.trials=10"],
])  # fmt: skip
def test_options_are_held_against_the_model_first(more, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell_model, "load_lm", never)
    more = [one.replace("tuning.options", "tuning.options") for one in more]
    assert main(arguments(world, tmp_path, "method=caa", *more)) == 2
    assert "layer 40 out of range: this model of type llama has 5 blocks (0-4)" in capsys.readouterr().err


def test_known_results_need_no_check(world, tmp_path, monkeypatch):
    given = arguments(world, tmp_path, "method=unsteered", "suite.rtp.prompts=2")
    assert main(given) == 0
    monkeypatch.setattr(cell_model.checkpoint, "skeleton", never)
    assert main(given) == 0


def test_a_cell_that_has_ended_keeps_no_memory(world, tmp_path, monkeypatch):
    seen = []

    def run(cell):
        gc.collect()
        assert [one() for one in seen] == [None] * len(seen)
        seen.append(weakref.ref(cell))
        return real(cell)

    real = runner.run_cell
    monkeypatch.setattr(runner, "run_cell", run)
    assert main(sweep(world, tmp_path)) == 0
    assert len(seen) == 2
