"""`python -m bench`: run any cell or sweep. See `--help`.

Every cell of a command is composed and checked before the first one runs. Exit code 0: all is well; 1: a cell failed;
2: something the user must mend; 130: stopped by Ctrl-C.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import command
from bench.command import console
from bench.escape import terminal, visible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bench.runner import Failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    multirun = bool({"-m", "--multirun"} & set(given))
    overrides = [argument for argument in given if argument not in ("-m", "--multirun")]
    if command.asks_help(given):
        return command.run(_help)
    kept = "what is finished is kept, and the same command goes on from there"
    return command.run(_run, overrides, multirun, stopped=kept)


def _help() -> None:
    from bench import config, help, plugins

    help.show(config.folder(), plugins.installed(config.folder()))


def _run(overrides: Sequence[str], multirun: bool) -> int:
    from bench import config

    cells = config.validate_all(config.jobs(overrides, multirun))
    failures = _compute(cells)
    code = 0
    if failures:
        tell(failures)
        console.print(f"{len(failures)} of {len(cells)} cells failed; the same command computes only what is missing")
        code = 2 if all(failure.setup for failure in failures) else 1
    if len(failures) < len(cells):
        _show(Path(cells[0].runtime.results))
    return code


def tell(failures: Sequence["Failure"]) -> None:
    """Print a line for each reason, with the cells that it stopped."""
    for message in dict.fromkeys(failure.message for failure in failures):  # one reason may stop many cells
        stopped = [failure for failure in failures if failure.message == message]
        names = visible(", ".join(dict.fromkeys(failure.label for failure in stopped)))
        where = f"; traceback in {stopped[0].traceback}" if stopped[0].traceback else ""
        told = "\n  ".join(f"{names}: {message}{where}".split("\n"))  # no line of a message begins as ours do
        console.print(terminal("failed:", "bold red"), terminal(told, lines=True))


def _compute(configs: Sequence["DictConfig"]) -> list["Failure"]:
    """Run the cells in one process, so that they share model, pairs and unsteered generations."""
    from transformers.utils import logging

    from bench.cell import Cell, Session
    from bench.progress import Bar
    from bench.runner import Failure, plan, run_cell

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the one bar is ours
    session = Session()
    cells = [Cell(cfg, session) for cfg in configs]
    planned: dict[str, float] = {}
    for cell in cells:
        planned |= plan(cell)
    if planned:
        for cell in cells:
            cell.fetch_model()  # prints what it fetches, so before the bar is up
    else:
        console.print(f"all {len(cells)} cells are known; nothing to compute")
    with Bar(planned) as session.bar:
        results = [run_cell(cell) for cell in cells]
    return [result for result in results if isinstance(result, Failure)]


def _show(results: Path) -> None:
    """Rebuild leaderboard and figures from all records, and print the table and where the files are."""
    from bench import leaderboard, plots

    built = leaderboard.rebuild(results)
    leaderboard.show(built)
    paths = plots.rebuild(results, built.tables)
    if paths:
        names = ", ".join(dict.fromkeys(path.stem for path in paths))
        console.print(terminal(f"figures      {paths[0].parent}: {names} (each as {', '.join(plots.FILES)})"))


if __name__ == "__main__":
    sys.exit(main())
