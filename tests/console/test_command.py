"""Errors and Ctrl-C of every command."""

import importlib
import subprocess
import sys
from importlib import metadata

import pytest

from bench import steerbench
from bench.config import command_line
from bench.console import command
from methods.errors import SetupError

COMMANDS = (
    "agreement.__main__",
    "export.__main__",
    "leaderboard.__main__",
    "ls",
    "plots.__main__",
    "report.__main__",
    "reproduction",
    "rescore",
    "selftest.__main__",
)


def stop(*_: object, **__: object) -> int:
    raise KeyboardInterrupt


def complain(*_: object, **__: object) -> int:
    raise SetupError("runtime.mirror=[x]: no folder\nname another")


def test_a_result_is_the_exit_code():
    assert (command.run(lambda: 1), command.run(lambda: None)) == (1, 0)


def test_a_setup_error_is_printed_as_it_is_without_a_traceback(capsys):
    assert command.run(complain) == 2
    assert capsys.readouterr().err == "error: runtime.mirror=[x]: no folder\nerror: name another\n"


def test_ctrl_c_says_what_is_kept(capsys):
    assert command.run(stop, stopped="what is judged is kept") == 130
    assert capsys.readouterr().err == "stopped; what is judged is kept\n"


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 // 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stops_without_a_traceback(name, monkeypatch, capsys):
    module = importlib.import_module(f"bench.{name}")
    for work in ("_run", "rebuild"):
        if hasattr(module, work):
            monkeypatch.setattr(module, work, stop)
    assert (
        module.main(["x=1"] if name.partition(".")[0] in ("agreement", "export", "rescore", "selftest") else []) == 130
    )
    assert capsys.readouterr().err.startswith("stopped; ")


# -- one spelling of options -----------------------------------------------------------------------------------------

READS = ("leaderboard.__main__", "plots.__main__", "report.__main__", "ls")
COMPUTES = ("export.__main__", "rescore", "selftest.__main__", "agreement.__main__", "speed.__main__")


@pytest.mark.parametrize("spelling", [["--results", "x y"], ["--results=x y"], ["runtime.results=x y"]])
@pytest.mark.parametrize("name", READS)
def test_reading_commands_take_both_spellings_of_results(name, spelling, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"bench.{name}").main(spelling) == 2
    assert "x y/runs" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", [["--results", "/dev/null/a b"], ["runtime.results=/dev/null/a b"]])
@pytest.mark.parametrize("name", COMPUTES)
def test_computing_commands_take_both_spellings_of_results(name, spelling, capsys):
    module = importlib.import_module(f"bench.{name}")
    own = {"export": ["format=gguf", "strength=1", "method=caa"], "selftest": ["method=caa"],
           "rescore": ["scorer=lexicon"], "agreement": ["scorer=[lexicon]"]}  # fmt: skip
    first = own.get(name.partition(".")[0], ["runtime.threads=1"])
    assert module.main([*first, *spelling, "runtime.offline=true"]) == 2, "keys may stand on both sides of it"
    assert "/dev/null/a b" in capsys.readouterr().err


def test_a_filter_may_be_written_as_key_and_value():
    parser = command.parser("ls", "", parents=[command.shared("method")])
    assert parser.parse_args(["method=caa,detox"]).method == ["caa", "detox"]
    with pytest.raises(SystemExit):
        parser.parse_args(["metod=caa"])


def test_a_results_option_without_a_folder_is_refused():
    with pytest.raises(SetupError, match="--results: it has no value; write --results FOLDER"):
        command_line.with_results(["method=caa", "--results"])


@pytest.mark.parametrize("main", [steerbench.main, importlib.import_module("bench.__main__").main])
def test_version_prints_the_versions(main, capsys):
    assert main(["--version"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(lines) == [*command.PACKAGES, "python"]
    assert lines["torch"] == metadata.version("torch")


def test_version_and_help_do_not_import_torch():
    code = "import sys; from bench import steerbench; steerbench.main(['--version']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
