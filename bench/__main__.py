"""`python -m bench`: run any cell or sweep. See `--help`.

Every cell of a command is composed and checked before the first one runs. Exit code 0: all is well; 1: a cell failed;
2: something the user must fix; 130: stopped by Ctrl-C; 143: by SIGTERM.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.console import command
from bench.console.command import console
from bench.console.escape import terminal, visible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bench.run.runner import Failure
    from bench.run.session import Session


ALONE = 5
"""For each reason of failure, at most so many commands of its cells are printed."""


def all_cached(cells: int) -> str:
    """Return the line that a command prints if the results of all its cells are stored."""
    return f"{cells} cell{'s' if cells != 1 else ''} cached; nothing to run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if command.asks_help(given):
        return command.run(_help, given)
    if "--version" in given:
        return command.run(command.show_versions)
    multirun = bool({"-m", "--multirun"} & set(given))
    overrides = [argument for argument in given if argument not in ("-m", "--multirun")]
    sweep = Sweep()
    return command.run(sweep.run, overrides, multirun, stopped=sweep.kept)


def _help(given: Sequence[str]) -> None:
    """Print the page that `--help [all|GROUP]` asks for."""
    from bench.config import folders, help, plugins

    words = [one for one in given if not one.startswith("-") and "=" not in one]
    help.show(folders.folder(), plugins.installed(folders.folder()), words[0] if words else None)


class Sweep:
    """One command, which can say at any time how much of its work is stored."""

    def __init__(self) -> None:
        self.results: Path | None = None
        self.session: Session | None = None
        self.launcher: Sequence[str] = ()

    def kept(self) -> str:
        """Return a sentence that says, when the command is stopped, which results are kept."""
        if self.results is None:
            return "nothing had been computed yet"
        if self.launcher:
            queued = "; jobs that are in Slurm's queue go on, and scancel ends them"
            told = "what its jobs have computed is kept, and the same command goes on from there"
            return told + queued * any("slurm" in one for one in self.launcher)
        from bench.records import unfinished

        return unfinished.told(self.results / "runs", self.session.written if self.session is not None else 0)

    def run(self, overrides: Sequence[str], multirun: bool) -> int:
        """Compose, check, compute, show; returns the exit code."""
        from bench.config import command_line, compose, hydra_launcher, item_limit, launch_arguments, no_effect
        from bench.hub import network
        from bench.run import finished, validate

        typed = [*(["-m"] if multirun else []), *overrides]
        overrides, printed = command_line.without_cfg(command_line.with_results(overrides))
        overrides, launcher = launch_arguments.split(overrides)
        if printed is None and not launcher and (known := finished.known(overrides, multirun)) is not None:
            self.results, cells = known
            console.print(all_cached(cells))
            _show(self.results)
            return 0
        named = finished.key(overrides, multirun)
        jobs = compose.jobs(overrides, multirun)
        configs = validate.validate_all(jobs)
        if printed is not None:
            if printed.part == "job":
                text = compose.as_yaml(configs, printed.resolved)
            else:
                text = compose.as_yaml(hydra_launcher.with_hydra(configs, launcher, *printed), resolved=False)
            print(text, end="")
            return 0
        self.results = Path(configs[0].runtime.results)
        for line in [item_limit.told(configs), *no_effect.told(overrides, configs)]:
            if line is not None:
                console.print(terminal(line))
        if all(cfg.runtime.offline for cfg in configs):
            network.forbid()
        alone = [command_line.alone(command.called("run"), job) for job in jobs] if len(jobs) > 1 else [""]
        if any(cfg.runtime.get("dry_run") for cfg in configs):
            from bench.run import dry_run, launch

            if launcher:
                launch.check(configs, launcher)
            tell(failures := dry_run.show(configs))
            return exit_code(failures)
        if launcher:
            self.launcher = launcher
            failures = _launch(configs, launcher, typed, alone)
        else:
            from bench.run.session import Session

            self.session = Session()
            failures = _compute(configs, self.session, typed, alone)
        if failures:
            tell(failures)
            again = (
                "correct the cause above and run the command again; "
                if exit_code(failures) == 2
                else "run the command again: "
            )
            console.print(f"{len(failures)} of {len(configs)} cells failed; {again}only what is missing is computed")
        else:
            finished.note(overrides, named, map(compose.plain, configs))
        if len(failures) < len(configs) and any((self.results / "runs" / "records").glob("*/record.json")):
            _show(self.results)
        return exit_code(failures)


def exit_code(failures: Sequence["Failure"]) -> int:
    """0 if nothing failed, 2 if the user must fix every failure, else 1."""
    return (2 if all(failure.setup for failure in failures) else 1) if failures else 0


def _launch(
    configs: Sequence["DictConfig"], launcher: Sequence[str], typed: Sequence[str], alone: Sequence[str]
) -> list["Failure"]:
    """Run the cells through a launcher."""
    from bench.run import launch, runner

    runner.tidy(configs[0])
    return launch.run(configs, launcher, typed, alone)


def _compute(
    configs: Sequence["DictConfig"],
    session: "Session | None" = None,
    typed: Sequence[str] = (),
    alone: Sequence[str] = (),
) -> list["Failure"]:
    """Prepare every cell, then run each one that can run; what stops a cell is printed at once.

    They run in one process, so that they share model, pairs and unsteered generations. alone: a command for each cell
    that runs only that cell.
    """
    from transformers.utils import logging

    from bench.console.progress import Bar
    from bench.records.sweep_state import Log
    from bench.run import forecast, other_threads, told_apart
    from bench.run.runner import Failure, by_model, ready, run_cell, tidy
    from bench.run.session import Session

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the one bar is ours
    tidy(configs[0])
    session = session or Session()
    cells, failures = ready(configs, session, alone)
    planned = {key: tokens for _, stages in cells for key, tokens in stages.items()}
    if failures and planned:
        tell(failures)
        console.print("the other cells go on")
    if not planned:
        if cells:
            console.print(all_cached(len(cells)))
        return failures
    if line := other_threads.told([cell for cell, stages in cells if stages]):
        console.print(line)
    for line in forecast.told(cells):
        console.print(terminal(line))
    in_order = by_model([cell for cell, _ in cells])
    stages = {id(cell): own for cell, own in cells}
    labels = zip(told_apart.labels(in_order), [not stages[id(one)] for one in in_order], strict=True)
    log = Log.begin(in_order[0].runs, typed, list(labels), None, [(one.label, one.message) for one in failures])
    del cells  # a cell that has ended is given up, with its fit and its variants
    in_order.reverse()
    with log.going_on(), Bar(planned) as session.bar:
        for number in range(len(in_order)):
            cell = in_order.pop()
            with log.working(number):
                found = run_cell(cell)
                if isinstance(found, Failure):
                    failures.append(replace(found, alone=cell.command))
                log.ended(number, found.message if isinstance(found, Failure) else None)
    return failures


def tell(failures: Sequence["Failure"]) -> None:
    """Print each reason of failure on a line of its own, with the cells that it stopped."""
    for message in dict.fromkeys(failure.message for failure in failures):  # one reason may stop many cells
        stopped = [failure for failure in failures if failure.message == message]
        names = visible(", ".join(dict.fromkeys(failure.label for failure in stopped)))
        where = f"; traceback in {stopped[0].traceback}" if stopped[0].traceback else ""
        told = "\n  ".join(f"{names}: {message}{where}".split("\n"))  # no line of a message begins as ours do
        console.print(terminal("failed:", "bold red"), terminal(told, lines=True))
        commands = list(dict.fromkeys(failure.alone for failure in stopped if failure.alone))
        for line in commands[:ALONE]:
            console.print(terminal(f"  to run it alone: {line}"))
        if len(commands) > ALONE:
            console.print(f"  and {len(commands) - ALONE} more cells of this reason")


def _show(results: Path) -> None:
    """Print the table and where the files are; table and figures are rebuilt if the records have changed."""
    from bench.leaderboard import kept
    from bench.leaderboard import terminal as printed

    found = kept.read(results)
    if found is not None:
        shown, figures = found
        printed.show(shown)
    else:
        from bench.leaderboard import build
        from bench.plots import draw

        built = build.rebuild(results)
        printed.show(shown := printed.shown(built))
        figures = draw.rebuild(results, built.tables)
        kept.write(results, shown, figures)
    if figures:
        names, kinds = (
            ", ".join(dict.fromkeys(part)) for part in zip(*((p.stem, p.suffix[1:]) for p in figures), strict=True)
        )
        console.print(terminal(f"figures      {figures[0].parent}: {names} (each as {kinds})"))


if __name__ == "__main__":
    command.leave(main())
