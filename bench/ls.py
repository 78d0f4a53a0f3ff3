"""`python -m bench.ls`: list what a results folder holds, one line per cell."""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.cells import cell_len

from bench.api import collect
from bench.console import command
from bench.console.escape import terminal, visible
from methods.errors import SetupError

CELL = ["model", "method", "version", "strength", "fit_seed", "fit_id", "parameters"]
TITLES = ("model", "method", "strength", "fit seed", "fit", "test", "dev", "computed")
NONE = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per cell; returns the exit code."""
    parser = command.parser(
        "ls",
        "List what was computed: a line per cell, with its suites by split and when the last of them was done (UTC).",
        epilog="Strengths that only tuning tried have dev results only. The column `fit` names the artefact's folder. "
        "Example: {prog} --method caa,detox --suite rtp",
        parents=[command.shared(*command.FILTERS)],
    )
    given = vars(parser.parse_args(arguments))
    return command.run(_run, given.pop("results"), given)


def _run(results: Path, wanted: Mapping[str, Sequence[str] | None]) -> None:
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        found = collect(results)
    for one in skipped:
        command.console.print(terminal(str(one.message), "yellow"))
    for line in aligned([TITLES, *cells(_selected(found, wanted))]):
        print(line)


def _selected(frame: pd.DataFrame, wanted: Mapping[str, Sequence[str] | None]) -> pd.DataFrame:
    """The rows with one of the wanted values. Raises SetupError for a value that no record has."""
    allowed = {name: sorted(frame[name].astype(str).unique()) for name in wanted}
    for name, values in wanted.items():
        if unknown := [value for value in values or () if value not in allowed[name]]:
            raise SetupError(f"--{name} {','.join(unknown)}: no record has it; there are {', '.join(allowed[name])}")
        frame = frame[frame[name].isin(values)] if values else frame
    return frame


def cells(frame: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield for each cell a row with the values of TITLES; the cells are sorted by CELL."""
    for _, rows in frame.groupby(CELL, dropna=False):
        first = rows.iloc[0].astype(object)
        suites = [" ".join(sorted(rows.loc[rows["split"] == split, "suite"].unique())) for split in ("test", "dev")]
        when = pd.to_datetime(rows["computed"], utc=True, errors="coerce").max()
        told = [first["model"], first["method"], f"{first['strength']:g}", first["fit_seed"], first["fit_id"], *suites]
        told.append(None if pd.isna(when) else f"{when:%Y-%m-%d %H:%M}")
        yield tuple(NONE if pd.isna(one) or one == "" else visible(one) for one in told)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows as lines with aligned columns; the last column is not padded."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    command.leave(main())
