"""Ctrl-C, SIGTERM and a closed terminal: a true sentence within seconds, the right exit code, and nothing lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.__main__ import main
from bench.console import command, stopping
from tests.run.test_smoke import arguments, contents, world

__all__ = ["world"]  # a fixture

UNHEEDED = """
import sys, time, threading, hashlib
from bench.console import command, stopping
stopping.GRACE_SECONDS = 1.0
def work():
    print("ready", flush=True)
    {work}
sys.stderr.reconfigure(line_buffering=True)
command.leave(command.run(work, stopped="a true sentence"))
"""
HEEDS = """import signal
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the tests may be run by nohup
    signal.signal(one, signal.SIG_DFL)
"""
IN_A_LIBRARY = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)"
SWALLOWED = """
    while True:
        try:
            time.sleep(0.1)
        except BaseException:
            pass
"""
RAISED = "time.sleep(100)"
FORKS = """
    import os
    child = os.fork()
    if child == 0:
        time.sleep(100)
    os.kill(child, 15)
    _, status = os.waitpid(child, 0)
    time.sleep(1.3)
    print(os.waitstatus_to_exitcode(status))
"""


def started(work: str, *, ignored: bool = False) -> "subprocess.Popen[str]":
    script = HEEDS + UNHEEDED.format(work=work)
    if ignored:
        script = script.replace(HEEDS, HEEDS + "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.every(2)
@pytest.mark.parametrize(("number", "name", "code"), [
    (signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130), (signal.SIGHUP, "SIGHUP", 129),
])  # fmt: skip
@pytest.mark.parametrize("work", [RAISED, IN_A_LIBRARY, SWALLOWED], ids=["raised", "in a library", "swallowed"])
def test_a_signal_ends_the_command_within_seconds(work, number, name, code):
    process = started(work)
    begin = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "", f"stopped by {name}; a true sentence\n")
    assert time.monotonic() - begin < 5


def test_a_second_signal_does_not_wait(monkeypatch):
    process = started("stopping.GRACE_SECONDS = 60.0\n" + SWALLOWED)
    begin = time.monotonic()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.communicate(timeout=20)[1] == "stopped by Ctrl-C; a true sentence\n"
    assert process.returncode == 130 and time.monotonic() - begin < 10


def test_a_second_signal_ends_the_children_too():
    """As joblib's workers, which Ctrl-C does not reach."""
    process = started("import subprocess\n    print(subprocess.Popen(['sleep', '100']).pid, flush=True)" + SWALLOWED)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.wait(10) == 130 and child.wait(10) is None  # it is nobody's child any more


def test_nohup_is_heeded():
    process = started("time.sleep(1.2)", ignored=True)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20) == ("", "") and process.returncode == 0


def test_a_signal_to_a_forked_child_is_not_the_parents():
    process = started(FORKS)
    assert process.communicate(timeout=20) == ("-15\n", "") and process.returncode == 0


def test_handlers_are_as_before_when_the_command_ends():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    inside = []
    assert command.run(lambda: inside.extend(signal.getsignal(one) for one in stopping.SIGNALS)) == 0
    assert {signal.getsignal(one) for one in stopping.SIGNALS} == set(before.values()) != set(inside)


def test_whoever_reads_the_output_may_go(tmp_path):
    script = (
        "from bench.console import command\ncommand.leave(command.run(lambda: [print(i) for i in range(10**6)] and 0))"
    )
    done = subprocess.run(
        f"{sys.executable} -c '{script}' | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_whoever_reads_a_table_of_rich_may_go_as_well():
    """`bench --help | head` told that something had called sys.exit."""
    script = (
        "from bench.console import command\nout = command.overview()\n"
        "command.leave(command.run(lambda: [out.print(i) for i in range(10**5)] and 0))"
    )
    done = subprocess.run(
        f"{sys.executable} -c '{script}' | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_what_the_system_refuses_has_a_next_step(tmp_path, capsys):
    def full() -> None:
        raise OSError(28, "No space left on device", "results/runs/x")

    assert command.run(full) == 2
    assert capsys.readouterr().err == (
        "error: results/runs/x: No space left on device; free some space there, or write elsewhere "
        "(runtime.results, runtime.cache, --results), and run the same command again\n"
    )
    assert command.run(lambda: (tmp_path / "no/file").read_text() and 0) == 2
    assert "No such file" in capsys.readouterr().err


def test_what_calls_exit_does_not_end_well(capsys):
    assert command.run(lambda: sys.exit(0)) == 1
    assert "sys.exit(0)" in capsys.readouterr().err


def run(given: list[str], log: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "STEERBENCH_TEST_SLOW": "1"}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "bench", *given], stdout=file, stderr=subprocess.STDOUT, env=environment, text=True
        )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_same_tables(world, tmp_path, number, code):
    """At ten random moments; the resumed command goes on, and its records are those of a run that was never stopped."""
    given = arguments(world, tmp_path / "whole", "method=unsteered,caa", "strength=2", "suite.rtp.k=8")
    assert main(given) == 0
    given = arguments(world, tmp_path / "killed", "method=unsteered,caa", "strength=2", "suite.rtp.k=8")
    chance, codes = random.Random(int(number)), []
    for _ in range(10):
        process = run(given, tmp_path / "log")
        try:
            process.wait(chance.uniform(0.5, 12.0))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        begin = time.monotonic()
        codes.append(process.wait(15))
        assert time.monotonic() - begin < 10
    assert set(codes) <= {code, 0, -15} and code in codes
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert main(given) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed/runs/unfinished").glob("*"))
    assert not list((tmp_path / "killed").rglob("*.part"))


# -- what an attack found ----------------------------------------------------------------------------------------------


CONVERTED = """
    try:
        time.sleep(100)
    except BaseException:
        raise ValueError("a library made this of it")
"""
SETUP = """
    from methods.errors import SetupError
    try:
        time.sleep(100)
    except BaseException:
        raise SetupError("as a setting that cannot be read")
"""


@pytest.mark.parametrize("work", [CONVERTED, SETUP], ids=["defect", "setting"])
def test_a_signal_that_a_library_rewrapped_is_a_signal(work):
    process = started(work)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("", "stopped by SIGTERM; a true sentence\n")
    assert process.returncode == 143


def test_an_unread_terminal_does_not_keep_the_process_alive():
    """As after Ctrl-S, or where the connection is dead: what is printed waits for ever."""
    waits = "sys.stderr.write('x' * 2_000_000)\n    sys.stderr.flush()"
    process = started(waits)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


def test_a_signal_inside_a_cell_is_no_failure_of_the_cell(world, tmp_path, monkeypatch, capsys):
    """A library inside may catch it and raise what it likes; the other cells are not begun."""
    from methods.caa import CAA

    def fit(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException:
            raise ValueError("a library made this of it") from None

    monkeypatch.setattr(CAA, "fit", fit)
    assert main(arguments(world, tmp_path, "method=caa,random_direction", "strength=2", "suite=[rtp]")) == 143
    told = capsys.readouterr().err
    assert "stopped by SIGTERM" in told and "failed" not in told
    assert not (tmp_path / "runs/failures").exists() and not list((tmp_path / "runs").glob("records/*"))


@pytest.mark.parametrize("name", ["bench", "bench.selftest", "bench.plots", "bench.report", "bench.agreement"])
def test_a_signal_while_libraries_are_imported(name):
    """The first line of each command heeds it; torch and matplotlib take seconds to come."""
    code = (
        "import runpy, sys, os, signal, builtins\nreal = builtins.__import__\n"
        "def late(name, *rest, **more):\n"
        "    if name in ('numpy', 'pandas', 'torch', 'rich.console', 'rich.table', 'rich.text'):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(name, *rest, **more)\n"
        f"builtins.__import__ = late\nsys.argv = [{name!r}]\n"
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM; nothing was begun\n")


def test_without_standard_output_the_work_is_done():
    script = "from bench.console import command\ncommand.leave(command.run(lambda: print('x', flush=True)))"
    done = subprocess.run(["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-c", script],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_path_with_a_tilde_is_no_folder_of_that_name(world, tmp_path, capsys):
    given = [one for one in arguments(world, tmp_path, "method=unsteered") if not one.startswith("runtime.results=")]
    assert main([*given, 'runtime.results="~/brk"']) == 2
    assert f"write the whole path, {Path.home() / 'brk'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["records", "generations", "unfinished"])
def test_a_file_in_the_place_of_a_folder_of_results(name, world, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / name).write_text("")
    assert main(arguments(world, tmp_path, "method=unsteered", "suite=[rtp]")) == 2
    assert f"{tmp_path / 'runs' / name} is not a folder" in capsys.readouterr().err
