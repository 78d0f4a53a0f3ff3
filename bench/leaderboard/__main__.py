"""Rebuild the leaderboard from records alone, in seconds; this needs no torch.

python -m bench.leaderboard [--results results] [--model M] [--suite S] [--family F] [--method X]
"""

import gc

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()
    gc.set_threshold(200_000, 20, 100)  # a tenth of the time goes into looking for garbage otherwise

from collections.abc import Sequence

from bench.console import command
from bench.console.children import spare
from bench.leaderboard.build import rebuild
from bench.leaderboard.terminal import show, shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild and print; returns the exit code."""
    parser = command.parser(
        "leaderboard",
        "Rebuild leaderboard.csv (a row per method), leaderboard_tidy.csv (a row per method and metric), "
        "leaderboard.md, leaderboard.tex, leaderboard_suites.tex (a table of each further suite) and methods.bib from "
        "the records. With an option that chooses rows, the files are called selection.* and leaderboard.* stays as it "
        "is.",
        epilog="Example: {prog} --family weights,prompt --suite rtp,fluency",
        parents=[command.shared(*command.FILTERS, stays=("family", "method"))],
    )
    parser.add_argument(
        "--each-fit", action="store_true", help="a row for each fit seed, instead of the mean over them"
    )
    given = vars(parser.parse_args(arguments))
    results = given.pop("results")
    name = "selection" if any(given.values()) else "leaderboard"
    return command.run(lambda: show(shown(rebuild(results, name, processes=spare(), **given))))


if __name__ == "__main__":
    command.leave(main())
