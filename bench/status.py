"""`python -m bench.status`: the progress of a sweep, and whether it runs or was stopped. It only reads files.

The exit code is 0, even if cells failed, and 2 if there is no sweep.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from bench.console import command
from bench.console.escape import terminal
from bench.records import sweep_state
from bench.records.sweep_state import CellState, Sweep

SHOWN = 40  # cells that are listed without --all; finished ones are left out first
COLOURS = {
    "done": "green", "known": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "unknown": "yellow",
    "waiting": "",
}  # fmt: skip

AHEAD: dict[sweep_state.Ahead, str] = {"shared": "what cells share", "fits": "its fit"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the progress; returns the exit code."""
    parser = command.parser(
        "status", "Show the progress of the latest sweep, or with --all of every sweep.", parents=[command.shared()]
    )
    parser.add_argument("--all", action="store_true", help="every sweep, and all cells of each")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    given = parser.parse_args(arguments)
    return command.run(_run, given.results, given.all, given.json)


def _run(results: Path, every: bool, as_json: bool) -> int:
    found = []
    for folder in sweep_state.folders(results / "runs"):
        sweep = sweep_state.read(folder)
        if sweep is None:
            command.console.print(terminal(f"warning: {folder / 'sweep.json'} cannot be read; this sweep is left out"))
            continue
        found.append(sweep)
        if not every:
            break
    if as_json:
        print(json.dumps([sweep_state.as_json(one) for one in found], indent=1))
        return 0 if found else 2
    if not found:
        see = f"name another folder with --results, or see its records with `{command.called('ls')}`"
        command.complain(f"no sweep is recorded under {results / 'runs'}; {see}")
        return 2
    for sweep in found:
        show(sweep, every)
    return 0


def show(sweep: Sweep, every: bool) -> None:
    """Print a sweep: what was typed, a line of counts, and its cells."""
    console = command.overview()
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(sweep.began))
    console.print(terminal(f"{shlex.join(['python', '-m', 'bench', *sweep.command])}", "bold"))
    console.print(terminal(f"begun {began}, {sweep.launcher or 'in one process'}: {summary(sweep)}"))
    listed = [
        one
        for one in enumerate(sweep.cells)
        if every or len(sweep.cells) <= SHOWN or one[1].state not in ("done", "known")
    ]
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "", "state", "where", "time", "why"):
        table.add_column(name, overflow="fold")
    for number, one in listed[: None if every else SHOWN]:
        state = terminal(one.state + (f": {AHEAD[one.ahead]}" if one.ahead else ""), COLOURS[one.state])
        where = "" if one.host is None else terminal(f"{one.host}, process {one.pid}")
        table.add_row(str(number), terminal(one.label), state, where, took(one), terminal(one.message or ""))
    console.print(table)
    if not every and len(listed) > SHOWN:
        console.print(f"and {len(listed) - SHOWN} more; --all lists them")


def summary(sweep: Sweep) -> str:
    """How many cells are in which state, the time left, and whether the sweep goes on."""
    counts = [f"{sweep.count(one)} {one}" for one in STATES if sweep.count(one)]
    left = sweep.seconds_left
    parts = [*counts, *([f"about {left / 60:.0f} min left"] if left is not None else [])]
    ended = sweep.count("running") == 0 and sweep.count("waiting", "stopped", "unknown")
    return ", ".join(parts) + (f"; {NEXT[sweep.goes_on]}" if ended else "")


STATES: list[sweep_state.State] = ["known", "done", "running", "stopped", "failed", "waiting", "unknown"]
NEXT = {
    True: "it waits for its jobs",
    False: "nothing runs: the same command goes on",
    None: "whether it goes on cannot be found out from here",
}


def took(one: CellState) -> str:
    """How long a cell took, or has taken so far; nothing for a cell whose end is not known."""
    if one.since is None or (one.until is None and one.state != "running"):
        return ""
    seconds = max(0.0, (one.until or time.time()) - one.since)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    command.leave(main())
