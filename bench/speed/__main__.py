"""How fast sampling and likelihood are on this machine, beside transformers, lm-eval and the matrix products alone.

python -m bench.speed [--quick] [--results results] [model=... runtime.mirror=FOLDER ...]
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import argparse
import sys
from collections.abc import Sequence
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any

from bench.console import command
from bench.console.escape import terminal
from methods.errors import SetupError

if TYPE_CHECKING:
    from bench.speed.table import Size

ABOUT = (
    "Compare the speed of sampling and likelihood with transformers' generate, lm-eval's HFLM and bare matrix "
    "products, all timed in turn. Writes speed.csv and figures/speed.pdf, .svg, .png. Nothing else should run "
    "meanwhile."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    parser = command.parser("speed", ABOUT, parents=[command.shared()])
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds: two minutes instead of twenty")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="options of the configuration, for example model=local model.path=FOLDER",
    )
    given = parser.parse_intermixed_args(arguments)
    return command.run(_run, given)


def _run(given: argparse.Namespace) -> None:
    from bench.config import command_line, compose
    from bench.run import validate

    settings = command_line.with_results([*given.settings, "--results", str(given.results)])
    (cfg,) = validate.validate_all(compose.jobs(settings, multirun=False))

    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the one bar is ours
    getLogger("lm_eval").setLevel(ERROR)  # it warns of a model that is loaded already, as is meant here

    from bench.speed import figure, table

    size = table.QUICK if given.quick else table.FULL
    rows = _measured(cfg, settings, size)
    frame = table.frame(rows)
    table.show(frame)
    for path in (table.write(frame, given.results), *figure.write(frame, given.results / "figures")):
        print(terminal(path))


def _measured(cfg: Any, settings: Sequence[str], size: "Size") -> list[Any]:
    """Measure every row of the table; a task without data is left out, with a message."""
    from bench.config import compose
    from bench.config.build import build
    from bench.console.progress import Bar
    from bench.run.cell import Cell
    from bench.run.session import Session, torch_threads
    from bench.speed import table

    session = Session()
    with torch_threads(cfg.runtime.threads or session.threads):
        lm = Cell(cfg, session).model.lm
        requests = {}
        for task in table.TASKS:
            own = [*settings, "suite=[capability]", *task.settings(size)]
            try:
                suite: Any = Cell(compose.compose(own), session).parts.suites["capability"]
                requests[task.title] = suite.requests(lm, "test")
            except SetupError as error:
                command.console.print(terminal(f"{task.title} is left out: {error}", "yellow"))
        with Bar(table.planned(size, requests)) as bar:
            methods, fitted = (
                [build(compose.compose([*settings, f"method={name}"]).method) for name in names]
                for names in (table.METHODS, table.FITTED)
            )
            rows = [*table.sampling_rows(lm, size, methods, bar), *table.likelihood_rows(lm, size, requests, bar)]
            if table.FIT_TASK in requests:
                rows += table.fit_rows(lm, size, fitted, requests[table.FIT_TASK], bar)
            return rows


if __name__ == "__main__":
    command.leave(main(sys.argv[1:]))
