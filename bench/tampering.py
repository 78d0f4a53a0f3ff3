"""`python -m bench.tampering`: what fine-tuning changes in a method's effect, and what of the effect it leaves.

For each method that is followed by a fine-tuning, or switched on during one (`experiment=tamper`), this compares the
headline metric, item by item, with two other rows of its table:

before   the method without the fine-tuning, with the same data and strength: does fine-tuning undo the method?
alone    the unsteered model after the same fine-tuning (equal examples, settings and strength): does the method still
         have an effect after the fine-tuning?

Two rows have the same data if their records state the same about these. A comparison is left empty, with a warning, if
several rows match equally well, and if the fits of the method have different strengths. A stack (`methods.Stack`) is
left out, with a warning, if its last part is not the fine-tuning, and if its parts were fine-tuned on different
examples.

Values are means over fits, on the sampling seeds and items that the compared rows share. The change between single fits
has a 95% interval over items, and p is of a paired test. With several fits, interval and p are from the same draws over
items and fits, as for the controls of the leaderboard: a single fit beside several counts as one more of them. The p
values are corrected by Holm's method, over all tests of one kind in a table. tampering.csv holds the lines.

Exit code 0: done; 2: something the user must fix; 130: stopped by Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table as Printed

from bench.console import command, escape
from bench.console.escape import terminal
from bench.files.atomic import write_whole
from bench.leaderboard.frame import Table, own_value, tables
from bench.leaderboard.grouping import Fit, Row, rows
from bench.leaderboard.pairing import change, difference, p_value, paired
from bench.leaderboard.tradeoff import BootstrapEstimate
from bench.plots.sweeps import Place, curve_names, named, settings
from bench.plots.tampering import ALONE, first_part, has_data_of, of_examples
from bench.records.fields import MethodPart
from bench.records.table import Result, read_records
from bench.stats.metrics import Transform
from bench.stats.significance import bootstrap_p, holm
from methods.errors import SetupError

KINDS = ("before", "alone")
TRAINING = ("learning_rate", "epochs", "batch_size", "max_tokens", "optimizer")
"""The options of a fine-tuning that have to agree; `training` adds more, such as the weight of a KL penalty."""
READ_AT = ("source", "revision", "verified", "unverified")  # where data were read; their fingerprint says what they are
ENDING = " fine-tuned on"  # of the texts of a `Place`
COLUMNS = ["table", "model", "metric", "method", "texts", "examples", "value",
           *(f"{kind}{end}" for kind in KINDS for end in ("", "_change", "_low", "_high", "_p"))]  # fmt: skip
LEGEND = (
    "after, before: with and without the fine-tuning; change: after - before. alone: the unsteered model fine-tuned; "
    "difference: after - alone. p: Holm's correction over the column."
)
SEVERAL = " With several fits, interval and p are over items and fits; a single fit beside several is one more of them."
ABOUT = "Test how much of each method's effect is left after the steered model is fine-tuned."


class Tampered(NamedTuple):
    """A fine-tuned method and the rows that it is compared with, on the items that all have; None: there is no row."""

    place: Place
    before: Row | None = None
    alone: Row | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write; returns the exit code."""
    return command.run(_run, command.parser("tampering", ABOUT, parents=[command.shared()]).parse_args(arguments))


def _run(given: argparse.Namespace) -> None:
    results, skipped = read_records(given.results / "runs")
    for line in skipped:
        warn(line)
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


def warn(text: str) -> None:
    """Print a warning to stderr."""
    command.console.print(terminal(f"warning: {text}"))


def changes(table: Table) -> pd.DataFrame:
    """Return the values of COLUMNS for each fine-tuned method of a table, and whether a row has several fits."""
    metric = table.aims.headline
    transform = table.metrics[metric].transform
    found = list(tampered(table))
    after = [one.place.row for one in found]
    called = curve_names([one.place for one in found])
    lines: list[dict[str, Any]] = [
        {
            "table": table.number, "model": table.about.model.name, "metric": metric, "method": name, "texts": texts,
            "examples": int(one.place.x), "value": own_value(metric, row.metrics[metric], row, frozenset())[metric],
        }
        for one, row, name, texts in zip(found, after, called, told_apart(found, called), strict=True)
    ]  # fmt: skip
    for kind in KINDS:
        there = [i for i, one in enumerate(found) if getattr(one, kind)]
        tests = [compared(after[i], getattr(found[i], kind), metric, transform) for i in there]
        corrected = holm([p for _, p in tests])
        for i, (effect, _), p in zip(there, tests, corrected, strict=True):
            if effect:
                moved, low, high = effect.estimate()
                cells = {"": lines[i]["value"] - moved, "_change": moved, "_low": low, "_high": high, "_p": p}
                lines[i] |= {f"{kind}{end}": one for end, one in cells.items()}
                lines[i]["several"] = len(after[i].fits) > 1 or len(getattr(found[i], kind).fits) > 1
    columns = [*COLUMNS, "several"]
    return pd.DataFrame(lines, columns=columns).sort_values(["method", "texts", "examples"], ignore_index=True)


def compared(row: Row, other: Row, metric: str, transform: Transform) -> tuple[BootstrapEstimate | None, float | None]:
    """Return the change of a row from another one on the same items, and its p; None if there is no item."""
    pairs = paired(row.fits, other, metric)
    if len(row.fits) == len(other.fits) == 1:
        return change(pairs, metric, transform), p_value(pairs, metric, transform)
    found = difference(row, other, metric, transform)
    return found, bootstrap_p(found.draws, found.n) if found else None


def told_apart(found: Sequence[Tampered], called: Sequence[str]) -> Iterator[str]:
    """Yield the column "texts" of each line; lines that would read the same also name what differs in their examples.

    If nothing differs there, they name the record.
    """
    heads = [(name, one.place.unit, one.place.x) for one, name in zip(found, called, strict=True)]
    facts = [stated(one.place.row, "examples") for one in found]
    for one, head, own in zip(found, heads, facts, strict=True):
        twins = [other for other, its_head in zip(facts, heads, strict=True) if its_head == head]
        told = {key: fact for key, fact in own.items() if any(other.get(key) != fact for other in twins)}
        if twins.count(own) > 1:
            told["record"] = one.place.row.records[0].id
        more = ", ".join(f"{key.removeprefix('sources.0.')} {fact}" for key, fact in told.items())
        yield f"{one.place.unit.removesuffix(ENDING)} ({more}){ENDING}" if told else one.place.unit


# -- which rows are compared ------------------------------------------------------------------------------------------


def tampered(table: Table) -> Iterator[Tampered]:
    """Yield the rows of methods with a fine-tuning, and those that each is compared with; warn of what is left out."""
    metric = table.aims.headline
    every = measured(table, metric)
    places = [place for row in every if (place := of_examples(row)) is not None]
    plain = [place.row for place in places if place.row.about.method == ALONE]
    for place in places:
        row = place.row
        if row in plain:
            continue
        texts = f"{place.x:g} {place.unit.removesuffix(ENDING)}"
        name = f"{curve_names([place])[0]}, {texts} (record {row.records[0].id})"
        if why := left_out(row):
            warn(f"{name} is left out, since {why}")
        elif len(row.strengths) > 1:
            several = " and ".join(f"{one:g}" for one in row.strengths)
            warn(f"{name}: before and alone are left empty, since its fits have the strengths {several}")
            yield Tampered(place)
        else:
            fitting = {"before": untouched(every, place), "alone": [one for one in plain if trained_alike(one, row)]}
            yield beside(name, place, fitting, metric)


def measured(table: Table, metric: str) -> tuple[Row, ...]:
    """Return a table's rows, made of only the records with a metric, so that other suites put no fit in another row."""
    suite, _, name = metric.partition(".")
    fits = [fit for row in table.rows for fit in row.fits if metric in fit.items()]
    return rows(
        Fit(one for one in fit.results if one.record.suite == suite and name in one.record.metrics) for fit in fits
    )


def left_out(row: Row) -> str | None:
    """Return why a stack is not a method followed by a fine-tuning; None if it is, and for any other method."""
    parts = list(row.method.parts.values())
    if parts and parts[-1].name != ALONE:
        return "its last part is not the fine-tuning"
    read = [flat(one) for key, one in row.data.stored.items() if f".{key}".endswith(".examples")] if row.data else []
    return "its parts were fine-tuned on different examples" if any(one != read[0] for one in read) else None


def untouched(every: Sequence[Row], place: Place) -> list[Row]:
    """Return the rows of a two-part stack's first part alone, at the strength and on the data that it has in the stack.

    A strength that was tuned matches as well as one that was given.
    """
    wanted = first_part(place)
    if wanted is None or place.row.data is None:
        return []
    data = flat(place.row.data.of_part(next(iter(place.row.method.parts))).stored)
    found = []
    for row in every:
        is_part = named(row) | {"strength": f"{row.strengths[0]:g}"} | settings(row) == wanted
        if is_part and len(row.strengths) == 1 and has_data_of(row, place):
            own = {key: one for key, one in row.data.stored.items() if key != "sources"} if row.data else {}
            found += [row] if flat(own).items() <= data.items() else []
    return found


def trained_alike(plain: Row, row: Row) -> bool:
    """Return whether the unsteered model was fine-tuned (`plain`) in the same way as the row."""
    return len(plain.strengths) == 1 and training(row).items() <= training(plain).items()


def training(row: Row) -> dict[str, Any]:
    """Return settings, strength and data of a row's fine-tuning, and for the method ALONE the method's version."""
    name, part = fine_tuning(row)
    strength = row.method.strength_of(name, row.strengths[0]) if name else row.strengths[0]
    found = {key: part.settings.get(key) for key in TRAINING}
    found |= {"strength": None if strength is None else f"{strength:g}", "penalty": 0.0}
    if part.name == ALONE:  # a defence has a penalty of its own, on something else
        found |= {"penalty": part.settings.get("kl_weight") or 0.0, "version": part.version}
    read = ("examples", "background") if found["penalty"] else ("examples",)
    return {**found, "data": [stated(row, kind) for kind in read]}


def fine_tuning(row: Row) -> tuple[str, MethodPart]:
    """Return the last part of a stack and its name; for any other method, the method itself and no name."""
    return list({"": row.method, **row.method.parts}.items())[-1]


def stated(row: Row, kind: str) -> dict[str, Any]:
    """Return the facts about the texts of one kind, such as "examples", of a row's fine-tuning."""
    return flat(row.data.of_part(fine_tuning(row)[0]).stored.get(kind, {})) if row.data else {}


def flat(facts: Any, path: str = "") -> dict[str, Any]:
    """Return each fact about data by its path; measured numbers have four digits, since machines round differently."""
    if not isinstance(facts, Mapping | list | tuple):
        return {path: f"{facts:.4g}" if isinstance(facts, float) else facts}
    inside = facts.items() if isinstance(facts, Mapping) else enumerate(facts)
    each = [flat(one, f"{path}.{key}" if path else str(key)) for key, one in inside if key not in READ_AT]
    return {key: one for found in each for key, one in found.items()}


def beside(name: str, place: Place, fitting: Mapping[str, Sequence[Row]], metric: str) -> Tampered:
    """Return a row and the row of each kind to compare it with, on the same items.

    Warn if several rows match, and if no item is shared. name: what warnings call the row. fitting: the rows that
    match, by kind ("before", "alone").
    """
    kept = {"after": place.row}
    for kind, found in fitting.items():
        ids = " and ".join(row.records[0].id for row in found)
        if len(found) > 1:
            warn(f"{name}: {kind} is left empty, since the records {ids} fit alike by all that they state")
        elif found and (same := on_same_items([*kept.values(), *found], metric)):
            kept = dict(zip([*kept, kind], same, strict=True))
        elif found:
            warn(f"{name}: {kind} is left empty, since it shares no sampling seed or item with the record {ids}")
    after, whole = ((len(row.records), len(row.items()[metric])) for row in (kept["after"], place.row))
    if after != whole:
        warn(f"{name}: values are over the sampling seeds and items that all its rows have")
    return Tampered(place._replace(row=kept["after"]), kept.get("before"), kept.get("alone"))


def on_same_items(several: Sequence[Row], metric: str) -> list[Row]:
    """Return the rows with only the sampling seeds and items that all their fits share; no row if they share none."""
    seeds = set.intersection(*(row.comparisons for row in several))
    measured_on = [fit.items(seeds).get(metric) for row in several for fit in row.fits]
    shared = set.intersection(*(set(one.index) if one is not None else set() for one in measured_on))

    def narrowed(fit: Fit) -> Fit:
        inside = (one for one in fit.results if one.record.comparison in seeds)
        return Fit(Result(record, items[items["item"].isin(shared)]) for record, items in inside)

    return [Row(map(narrowed, row.fits)) for row in several] if shared else []


def show(found: pd.DataFrame, heading: str) -> None:
    """Print the lines of one table."""
    legend = LEGEND + (SEVERAL if found["several"].eq(True).any() else "")
    printed = Printed(box=None, padding=(0, 1), title=terminal(heading), title_justify="left", caption=legend)
    for name in ("method", "fine-tuned on"):
        printed.add_column(name)
    for name in ("after", "before", "change", "p", "alone", "difference", "p"):
        printed.add_column(name, justify="right", no_wrap=True)
    for row in found.to_dict("records"):
        texts = f"{row['examples']} {row['texts'].removesuffix(ENDING)}"
        told = [cell for kind in KINDS for cell in _cells(row, kind)]
        method = row["method"].removesuffix(", then fine-tuning")
        printed.add_row(*map(terminal, (method, texts, f"{row['value']:.2f}", *told)))
    command.overview().print(printed)


def _cells(row: Mapping[Any, Any], kind: str) -> tuple[str, str, str]:
    if pd.isna(row[f"{kind}_change"]):
        return "", "", ""
    ends = f"[{row[f'{kind}_low']:+.2f}, {row[f'{kind}_high']:+.2f}]" if not pd.isna(row[f"{kind}_low"]) else ""
    p = "" if pd.isna(row[f"{kind}_p"]) else f"{row[f'{kind}_p']:.3f}"
    return f"{row[kind]:.2f}", f"{row[f'{kind}_change']:+.2f} {ends}".strip(), p


if __name__ == "__main__":
    command.leave(main(sys.argv[1:]))
