"""Rebuild the report from records alone, in seconds; this needs no torch.

python -m bench.report [--results results]
"""

import gc

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()
    gc.set_threshold(200_000, 20, 100)  # a tenth of the time goes into looking for garbage otherwise

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.console import command
from bench.console.children import spare
from bench.console.escape import visible
from bench.leaderboard.columns import size
from bench.report.page import rebuild
from bench.report.texts import PROMPTS, SAMPLES


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and print its path; returns the exit code."""
    parser = command.parser(
        "report",
        "Write report.html from records: leaderboards, figures, a page per method, texts side by side. "
        "It opens from disk and needs no network. It shows sampled texts where they are stored; --prompts 0 leaves "
        "them out.",
        parents=[command.shared()],
    )
    parser.add_argument(
        "--prompts",
        type=count,
        default=PROMPTS,
        help="prompts of each suite whose texts are shown (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=count, default=SAMPLES, help="texts shown of each prompt (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    return command.run(_run, given.results, given.prompts, given.samples)


def _run(results: Path, prompts: int, samples: int) -> None:
    built = rebuild(results, prompts=prompts, samples=samples, processes=spare())
    for line in built.skipped:
        print(visible(line), file=sys.stderr)
    print(visible(f"{built.path} ({size(built.path.stat().st_size)}, {built.texts} texts inside)"))


def count(text: str) -> int:
    """Read a whole number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    command.leave(main())
