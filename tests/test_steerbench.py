"""The console script: every command under one name, and what `ls` lists."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import ls, steerbench
from bench.console import command, stopping
from tests import record_files

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "results" / "published" / "quickstart"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_every_command(arguments, capsys):
    assert steerbench.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert list(told) == list(steerbench.COMMANDS)
    assert all(len(told[name]) < 80 and one.about in told[name] for name, one in steerbench.COMMANDS.items())


def test_every_command_of_bench_is_one_of_them():
    """Whatever can be run as `python -m bench...` has a main and a name here."""
    files = [path for path in (ROOT / "bench").rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()]
    modules = {".".join(path.relative_to(ROOT / "bench").with_suffix("").parts) for path in files}
    assert modules == {one.module for one in steerbench.COMMANDS.values()} | {"steerbench"}
    for one in steerbench.COMMANDS.values():
        assert callable(importlib.import_module(f"bench.{one.module}").main)


def test_the_installed_program_is_this():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["steerbench"].partition(":")
    assert getattr(importlib.import_module(module), name) is steerbench.script


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("leaderbord", "no command 'leaderbord'; did you mean leaderboard?"),
        ("x", "no command 'x'; there are run, leaderboard, plots,"),
        ("method=caa", "no command 'method=caa'; to compute a cell, begin with `steerbench run`"),
        ("\x1b[31m", r"no command '\\x1b[31m'"),
    ],
)
def test_an_unknown_command_is_told_with_the_nearest(name, told, capsys):
    assert steerbench.main([name]) == 2
    assert f"steerbench: error: {told}" in capsys.readouterr().err


def test_the_rest_of_the_line_and_the_exit_code_are_the_commands(monkeypatch):
    seen = []
    main = importlib.import_module("bench.__main__")
    monkeypatch.setattr(main, "main", lambda arguments: seen.append(arguments) or 1)
    assert steerbench.main(["run", "-m", "experiment=ci"]) == 1
    assert seen == [["-m", "experiment=ci"]]


def test_signals_are_seen_to_before_anything_is_imported(monkeypatch):
    order = []
    monkeypatch.setattr(stopping, "begin", lambda: order.append("begin"))
    monkeypatch.setattr(command, "leave", lambda code: order.append(f"leave {code}"))
    monkeypatch.setattr(steerbench, "main", lambda: order.append("main") or 2)
    steerbench.script()
    assert order == ["begin", "main", "leave 2"]
    code = "import bench.steerbench, sys; print([one for one in ('rich', 'pandas', 'torch') if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [name for name in steerbench.COMMANDS if name != "run"])
def test_help_names_the_program_that_was_called(name, monkeypatch, capsys):
    module = importlib.import_module(f"bench.{steerbench.COMMANDS[name].module}")
    for program, wanted in (
        ("/usr/bin/steerbench", f"steerbench {name}"),
        ("x/__main__.py", f"python -m bench.{name}"),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        try:
            assert module.main(["--help"]) == 0
        except SystemExit as end:  # argparse's way
            assert end.code == 0
        out = capsys.readouterr().out
        assert re.match(rf"(usage: )?{re.escape(wanted)} ", out)
        assert ("python -m" in out) == wanted.startswith("python -m")


def test_the_help_of_run_names_it_too(monkeypatch, capsys):
    main = importlib.import_module("bench.__main__").main
    for program, wanted in (("steerbench", "steerbench run"), ("x/__main__.py", "python -m bench")):
        monkeypatch.setattr(sys, "argv", [program])
        assert main(["--help"]) == 0
        assert capsys.readouterr().out.startswith(f"{wanted} [-m] key=value ...")


@pytest.mark.slow
def test_run_composes_what_python_m_bench_does(capsys):
    asked = ["experiment=ci", "--cfg", "job"]
    assert importlib.import_module("bench.__main__").main(asked) == 0
    wanted = capsys.readouterr().out
    assert steerbench.main(["run", *asked]) == 0
    assert capsys.readouterr().out == wanted and "method:" in wanted


# -- ls ------------------------------------------------------------------------------------------------------------


def listed(results: Path, *arguments: str, capsys) -> list[list[str]]:
    """The table's rows as its columns; columns are two spaces apart."""
    assert ls.main(["--results", str(results), *arguments]) == 0
    return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_per_cell_with_its_suites_by_split(tmp_path, capsys):
    value = {"share": [0.5]}
    for suite, split, hour in (("rtp", "test", 10), ("fluency", "test", 12), ("rtp", "dev", 11)):
        when = {"time": f"2026-01-02T{hour}:30:00+01:00"}
        record_files.write(tmp_path, suite, "caa", value, split=split, provenance=when)
    record_files.write(tmp_path, "rtp", "unsteered", value)
    record_files.write(tmp_path, "rtp", "random_direction", value, fit_seed=3, strength=0.25)
    header, *rows = listed(tmp_path, capsys=capsys)
    assert header == list(ls.TITLES)
    assert [[*row[:4], *row[5:]] for row in rows] == [
        ["tiny", "caa", "4", "-", "fluency rtp", "rtp", "2026-01-02 11:30"],
        ["tiny", "random_direction", "0.25", "3", "rtp", "-", "-"],
        ["tiny", "unsteered", "0", "-", "rtp", "-", "-"],
    ]
    assert [row[4] == "-" for row in rows] == [False, False, True], "the unsteered model has no fit"


def test_filters_are_those_of_the_leaderboard_and_exact(tmp_path, capsys):
    for method in ("caa", "unsteered", "prompt"):
        for suite in ("rtp", "fluency"):
            record_files.write(tmp_path, suite, method, {"share": [0.5]})
    rows = listed(tmp_path, "--method", "caa,prompt", "--suite", "rtp", capsys=capsys)[1:]
    assert [(row[1], row[5]) for row in rows] == [("caa", "rtp"), ("prompt", "rtp")]
    assert [row[1] for row in listed(tmp_path, "--family", "none", capsys=capsys)[1:]] == ["unsteered"]
    assert ls.main(["--results", str(tmp_path), "--model", "big"]) == 2
    assert capsys.readouterr().err == "error: --model big: no record has it; there are tiny\n"
    assert ls.main(["--results", str(tmp_path / "none")]) == 2
    assert "no records" in capsys.readouterr().err


def test_foreign_names_are_inert(tmp_path, capsys):
    record_files.write(tmp_path, "rtp", "caa", {"share": [0.5]}, model={"name": "\x1b[31mred", "sha256": "0" * 12})
    assert listed(tmp_path, capsys=capsys)[1][0] == r"\x1b[31mred"


def test_the_quickstart_is_listed_without_torch():
    code = f"""
from bench import ls
import sys
assert ls.main(['--results', {str(QUICKSTART)!r}, '--method', 'caa']) == 0
assert not {{'torch', 'transformers', 'hydra'}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 3, "three strengths were tried"
