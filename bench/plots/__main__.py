"""Draw figures for papers from records alone; this needs no torch.

python -m bench.plots [NAME] [--results results] [--width single|double] [--model MODEL]
"""

import gc

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()
    gc.disable()  # a tenth of the time goes into looking for garbage otherwise

import sys
from collections.abc import Sequence

from bench.console import command
from bench.console.escape import visible
from bench.plots.draw import KINDS, Source, write
from bench.plots.style import WIDTHS, Width

PROCESSES = 2
"""The number of processes that write files while this one draws; more of them would wait for the drawing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures, print their paths and what is missing; returns the exit code, 2 if a named one has no data."""
    longest = max(map(len, KINDS))
    parser = command.parser(
        "plots",
        "Draw figures from records, as PDF, SVG and PNG: one, or all that the records allow.",
        epilog="figures:\n" + "\n".join(f"  {name:{longest}}  {kind.about}" for name, kind in KINDS.items()),
        parents=[command.shared()],
        raw=True,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", choices=KINDS, help="one of the figures below; none: all")
    parser.add_argument("--width", choices=WIDTHS, default="double", help="columns of a paper (default: %(default)s)")
    parser.add_argument("--model", help="only records of this model; files go to figures/MODEL")
    given = parser.parse_args(arguments)
    source = Source(given.results, model=given.model)
    return command.run(_run, source, given.name, given.width, stopped="the files that are already written are whole")


def _run(source: Source, name: str | None, width: Width) -> int:
    paths, missing = write(source, [name] if name else KINDS, width, PROCESSES)
    for path in paths:
        print(visible(path))
    for one in missing:
        print(visible(f"{one.name} not drawn: {one.missing}"), file=sys.stderr if name else sys.stdout)
    return 2 if name and missing else 0


if __name__ == "__main__":
    command.leave(main())
