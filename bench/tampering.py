"""`python -m bench.tampering`: what fine-tuning changes in a method's effect, and what of the effect it leaves.

For each method that is followed by a fine-tuning, or switched on during one (`experiment=tamper`), this compares the
headline metric, item by item, with two other rows of its table:

before   the method without the fine-tuning, with the same data and strength: does fine-tuning undo the method?
alone    the same fine-tuning of the unsteered model (examples, settings and strength alike): does the method still do
         anything after it?

Values are means over the fits of a row. The changes have 95% intervals over items and, where a row has several fits,
over fits. The p values of paired tests are corrected by Holm's method, over all tests of one kind in a table.
tampering.csv holds the lines.

Exit code 0: done; 2: something the user must fix; 130: stopped by Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table as Printed

from bench.console import command, escape
from bench.console.escape import terminal
from bench.files.atomic import write_whole
from bench.leaderboard.frame import Table, own_value, tables
from bench.leaderboard.grouping import Row
from bench.leaderboard.pairing import change, difference, paired, pairwise_ps
from bench.plots.sweeps import Place, curve_names
from bench.plots.tampering import ALONE, beginning, of_examples
from bench.records.table import read_records
from bench.stats.significance import holm
from methods.errors import SetupError

KINDS = ("before", "alone")
TRAINING = ("learning_rate", "epochs", "batch_size", "max_tokens", "optimizer")
"""The options of a fine-tuning that have to agree; the loss of a penalty has to agree as well."""
COLUMNS = ["table", "model", "metric", "method", "texts", "examples", "value",
           *(f"{kind}{end}" for kind in KINDS for end in ("", "_change", "_low", "_high", "_p"))]  # fmt: skip
LEGEND = (
    "after, before: with and without the fine-tuning; change: after - before. alone: the unsteered model fine-tuned; "
    "difference: after - alone. p: Holm's correction over the column."
)
ABOUT = "Test how much of each method's effect is left after the steered model is fine-tuned."


class Tampered(NamedTuple):
    """A fine-tuned method, and the rows that it is compared with; None for a row that was not computed."""

    place: Place
    before: Row | None
    alone: Row | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write; returns the exit code."""
    return command.run(_run, command.parser("tampering", ABOUT, parents=[command.shared()]).parse_args(arguments))


def _run(given: argparse.Namespace) -> None:
    results, skipped = read_records(given.results / "runs")
    for line in skipped:
        command.console.print(terminal(f"warning: {line}"))
    found = pd.concat([pd.DataFrame(columns=COLUMNS), *map(changes, tables(results))], ignore_index=True)
    if found.empty:
        raise SetupError(
            f"{given.results} has no record of a steered model that was fine-tuned afterwards; run `python -m bench "
            f"experiment=tamper --results {given.results}`, or name another folder by --results"
        )
    for number, own in found.groupby("table", sort=False):
        show(own, f"Table {number}: {own['metric'].iloc[0]}, {own['model'].iloc[0]}")
    path = given.results / "tampering.csv"
    write_whole(path, escape.csv(found[COLUMNS]))
    command.console.print(terminal(str(path)))


def changes(table: Table) -> pd.DataFrame:
    """Return a line with the values of COLUMNS for each fine-tuned method of a table, if there is any."""
    metric = table.aims.headline
    found = [one for one in tampered(table) if metric in one.place.row.metrics]
    lines = [
        {
            "table": table.number, "model": table.about.model.name, "metric": metric, "method": name,
            "texts": one.place.unit, "examples": int(one.place.x), "value": _mean(one.place.row, metric),
        }
        for one, name in zip(found, curve_names([one.place for one in found]), strict=True)
    ]  # fmt: skip
    for kind in KINDS:
        there = [i for i, one in enumerate(found) if (other := getattr(one, kind)) and metric in other.metrics]
        both = [(found[i].place.row, getattr(found[i], kind)) for i in there]
        transform = table.metrics[metric].transform
        corrected = holm(pairwise_ps(both, metric, transform))
        for i, (row, other), p in zip(there, both, corrected, strict=True):
            single = len(row.fits) == len(other.fits) == 1
            effect = (
                change(paired(row.fits, other, metric), metric, transform)
                if single
                else difference(row, other, metric, transform)
            )
            value, low, high = effect.estimate() if effect else (None, None, None)
            named = {"": _mean(other, metric), "_change": value, "_low": low, "_high": high, "_p": p}
            lines[i] |= {f"{kind}{end}": one for end, one in named.items()}
    return pd.DataFrame(lines, columns=COLUMNS).sort_values(["method", "texts", "examples"], ignore_index=True)


def tampered(table: Table) -> Iterator[Tampered]:
    """Yield the rows of methods with a fine-tuning, and those that each is compared with."""
    places = [place for row in table.rows if (place := of_examples(row)) is not None]
    alone = {training(place): place.row for place in places if place.row.about.method == ALONE}
    for place in places:
        if place.row.about.method != ALONE:
            before = beginning(table.rows, place)
            yield Tampered(place, before and before.row, alone.get(training(place)))


def training(place: Place) -> str | None:
    """Return a text that two rows share if they were fine-tuned alike; None for a stack that ends otherwise."""
    method, strength = place.row.method, place.row.strengths[0]
    own, share, kl = method.settings, float(strength), 0.0
    if method.parts:
        name, last = list(method.parts.items())[-1]
        if last.name != ALONE:
            return None
        own, share = last.settings, float(method.strength_of(name, strength) or 0.0)
    if method.parts or method.name == ALONE:  # a defence has a penalty of its own, on something else
        kl = float(own.get("kl_weight") or 0.0)  # type: ignore[arg-type]
    return json.dumps([place.x, place.unit, share, kl, [own.get(name) for name in TRAINING]])


def _mean(row: Row, metric: str) -> float:
    return float(own_value(metric, row.metrics[metric], row, frozenset())[metric])


def show(found: pd.DataFrame, heading: str) -> None:
    """Print the lines of one table."""
    printed = Printed(box=None, padding=(0, 1), title=terminal(heading), title_justify="left", caption=LEGEND)
    for name in ("method", "fine-tuned on"):
        printed.add_column(name)
    for name in ("after", "before", "change", "p", "alone", "difference", "p"):
        printed.add_column(name, justify="right", no_wrap=True)
    for row in found.to_dict("records"):
        texts = f"{row['examples']} {row['texts'].removesuffix(' fine-tuned on')}"
        told = [cell for kind in KINDS for cell in _cells(row, kind)]
        method = row["method"].removesuffix(", then fine-tuning")
        printed.add_row(*map(terminal, (method, texts, f"{row['value']:.2f}", *told)))
    command.overview().print(printed)


def _cells(row: Mapping[Any, Any], kind: str) -> tuple[str, str, str]:
    if pd.isna(row[f"{kind}_change"]):
        return ("" if pd.isna(row[kind]) else f"{row[kind]:.2f}"), "", ""
    ends = f"[{row[f'{kind}_low']:+.2f}, {row[f'{kind}_high']:+.2f}]" if not pd.isna(row[f"{kind}_low"]) else ""
    p = "" if pd.isna(row[f"{kind}_p"]) else f"{row[f'{kind}_p']:.3f}"
    return f"{row[kind]:.2f}", f"{row[f'{kind}_change']:+.2f} {ends}".strip(), p


if __name__ == "__main__":
    command.leave(main(sys.argv[1:]))
