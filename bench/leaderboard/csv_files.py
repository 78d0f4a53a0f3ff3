"""The two CSV files of a leaderboard: `leaderboard.csv`, for people to open, and `leaderboard_tidy.csv`, with all data.

`leaderboard.csv` has a row per method and at most MOST columns, whatever was measured. It always has the columns that
identify a row, its rank, the headline with its change, and the notes. As long as there is room, it also has the columns
of leaderboard.md, with the ends of an interval where that table shows one: first the trade-off, then the first metric
of each suite that no other column covers, then the other scorers, then costs. A column without any value takes no room.
Except for those of suites, columns have the same names for all results; the column `metric` names the headline.

`leaderboard_tidy.csv` has a row per method and metric, and a row per method and fact about it, so that every number of
`bench.build_leaderboard` is in it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard import columns
from bench.leaderboard.columns import COLUMNS
from bench.leaderboard.effects import PERPLEXITY
from bench.leaderboard.frame import Table
from bench.leaderboard.suite_tables import shown_metrics
from bench.records.names import BASELINE_FAMILY

MOST = 40
"""The largest number of columns in leaderboard.csv."""
ROW = ("table", "model", "method", "family", "parameters", "strengths", "fits")
RANK = ("rank", "rank_low", "rank_high")
TRADE_OFF = ("accuracy_change", "gold_choice_change", "joint")
COSTS = ("shrinkage", "relative_speed", "fit_seconds", "pairs")
ENDS = ("", "_low", "_high")
NAMED = ("table", "model", "method", "family", "parameters", "strengths", "strength_unit", "fits", "fit_seeds",
         "error_over")  # fmt: skip
"""Columns that name the row in leaderboard_tidy.csv."""
NUMBERS = {"": "value", ".low": "low", ".high": "high", ".se": "standard_error", ".n": "n", ".delta": "delta",
           ".delta_low": "delta_low", ".delta_high": "delta_high", ".p": "p", ".p_holm": "p_holm",
           ".detectable": "detectable", ".detectable_holm": "detectable_holm"}  # fmt: skip
"""The column of leaderboard_tidy.csv that gets the values of a metric's column, by the end of that column's name."""
OF_FACTS = {"_low": "low", "_high": "high", "_p": "p", "_p_holm": "p_holm"}
"""The same for columns that are not of a metric, such as `joint_low`."""


class Part(NamedTuple):
    """Columns that are in leaderboard.csv together or not at all. title: their title in leaderboard.md, or a suite."""

    title: str
    values: dict[str, "pd.Series[Any]"]
    is_suite: bool = False


class Short(NamedTuple):
    """The rows of leaderboard.csv. left_out: the names of the columns that did not fit."""

    rows: pd.DataFrame
    left_out: list[str]


def short(tables: Sequence[Table]) -> Short:
    """Return the rows of all tables with at most MOST columns, and what was left out, by the rules at the top."""
    always = pd.concat([pd.DataFrame(_always(table)) for table in tables], ignore_index=True)
    found: dict[tuple[bool, str], dict[str, list[pd.Series[Any]]]] = {}
    start = 0
    for table in tables:
        for part in _optional(table):
            for name, values in part.values.items():
                placed = values.set_axis(range(start, start + len(values)))
                found.setdefault((part.is_suite, part.title), {}).setdefault(name, []).append(placed)
        start += len(table.frame)
    kept: list[pd.DataFrame] = []
    suites: list[str] = []
    left_out: list[str] = []
    room = MOST - len(always.columns)
    for (is_suite, title), named in found.items():
        own = pd.DataFrame({name: pd.concat(values) for name, values in named.items()}).reindex(always.index)
        if own.isna().all(axis=None):
            continue
        if len(own.columns) <= room:
            kept.append(own)
            room -= len(own.columns)
        else:
            (suites if is_suite else left_out).append(title)
    left_out += [f"the first metric of the suites {', '.join(suites)}"] if suites else []
    notes = always.pop("notes")
    return Short(pd.concat([always, *kept, notes], axis=1), left_out)


def _always(table: Table) -> dict[str, "pd.Series[Any]"]:
    """Return the columns that every file has: those that identify the row, its rank, the headline and the notes."""
    frame, metric = table.frame, table.aims.headline
    numbers = {name: _column(frame, f"{metric}{end}") for end, name in NUMBERS.items()}
    shown = ("value", "low", "high", "delta", "delta_low", "delta_high", "p_holm")
    return {
        **{name: _column(frame, name) for name in (*ROW, *RANK)},
        "metric": pd.Series(metric, index=frame.index, dtype=object),
        **{name: numbers[name] for name in shown},
        "group": _column(frame, "group"),
        "notes": pd.Series([columns.flags(row) or None for row in table.lines], frame.index, dtype=object),
    }


def _optional(table: Table) -> Iterator[Part]:
    """Yield the columns that are added as long as there is room, the most important first."""
    frame = table.frame
    titles = {one.name: one.text.replace("\n", " ") for one in table.columns if one.text}
    yield Part(titles["perplexity_ratio"], {"perplexity_ratio": _column(frame, "perplexity_ratio")})
    shown = (*table.aims.toxicity, table.aims.headline)
    apart = {name: titles[name] for name in titles if "." in name and name not in shown}
    apart.pop(f"{table.aims.headline}.delta", None)
    for name, title in apart.items():
        yield Part(title, {name: _column(frame, name)})
    for name in TRADE_OFF:
        yield Part(titles[name], {f"{name}{end}": _column(frame, f"{name}{end}") for end in ENDS})
    compared = {f"vs_control{end}": _column(frame, f"vs_control{end}") for end in (*ENDS, "_p_holm")}
    yield Part(titles["vs_control"], compared)
    told = {name.partition(".")[0] for name in (table.aims.headline, *table.aims.toxicity, PERPLEXITY, *apart)}
    told |= {name.partition(".")[0] for name in table.metrics if name.endswith(".gold_choice_logprob")}
    for suite, metrics in shown_metrics(table).items():
        if suite not in told:
            ends = [f"{metrics[0]}{end}" for end in ("", ".low", ".high")]
            yield Part(suite, {name: _column(frame, name) for name in ends}, is_suite=True)
    others = frame["family"] != BASELINE_FAMILY
    for name in table.aims.toxicity:
        if name != table.aims.headline:
            scorer = f"by_{name.split('.', 2)[1]}"
            values = {f"{scorer}{end}": _column(frame, f"{name}.delta{end}").where(others) for end in ENDS}
            yield Part(titles[name], values)
    for name in COSTS:
        yield Part(titles[name], {name: _column(frame, name)})


def _column(frame: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """Return a column of the frame; if the frame has no column of this name, return one without values."""
    return frame[name] if name in frame else pd.Series(float("nan"), index=frame.index)


# -- everything --------------------------------------------------------------------------------------------------------


def tidy(tables: Sequence[Table]) -> pd.DataFrame:
    """Return a row per method and metric: value, interval, standard_error, n; change from unsteered, interval, p.

    `row` is the place in leaderboard.csv, from 1; `p_holm` is corrected over the rows of the table. A row without a
    suite is a fact about the method: `metric` names its column in `bench.build_leaderboard`, and the fact is a value (1
    and 0 for yes and no) or a text. Numbers are written with six digits, whole numbers in full.
    """
    better = {one.name: one.higher_is_better for one in COLUMNS}
    found = []
    number = 0
    for table in tables:
        facts = _facts(table.frame)
        for row in table.lines:
            number += 1
            about = {"row": number} | {name: row[name] for name in NAMED}
            for metric, entry in table.metrics.items():
                if pd.notna(row.get(metric)):
                    suite, _, name = metric.partition(".")
                    numbers = {title: row.get(f"{metric}{end}") for end, title in NUMBERS.items()}
                    told = {"suite": suite, "metric": name, "higher_is_better": entry.higher_is_better}
                    found.append({**about, **told, **numbers})
            for name, ends in facts.items():
                values = {title: row[column] for column, title in ends.items() if pd.notna(row[column])}
                if values:
                    told = {"suite": None, "metric": name, "higher_is_better": better.get(name)}
                    text = values.pop("value") if isinstance(values.get("value"), str) else None
                    found.append({**about, **told, **values, "text": text})
    order = ["row", *NAMED, "suite", "metric", "higher_is_better", *NUMBERS.values(), "text"]
    rows = pd.DataFrame(found, columns=order)
    return rows.assign(**{name: rows[name].map(_written) for name in NUMBERS.values()})


def _facts(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Map each column that is a fact, not a metric or an identifier, to the columns of its interval and p in tidy."""
    names = [str(name) for name in frame.columns if "." not in str(name)]
    of = {f"{name}{end}": (name, title) for name in names for end, title in OF_FACTS.items()}
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if name not in NAMED:
            base, title = of.get(name, (name, "value"))
            found.setdefault(base, {})[name] = title
    return found


def _written(value: Any) -> str | None:
    """Write a number with six digits, a whole number in full; None if it is missing."""
    if pd.isna(value):
        return None
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{float(value):.6g}"
