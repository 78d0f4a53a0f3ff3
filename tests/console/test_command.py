"""Errors and Ctrl-C of every command."""

import importlib

import pytest

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
