"""Makes a small table for each suite of which the leaderboard shows too little: all but rtp and fluency."""

import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from bench.console import escape
from bench.leaderboard import columns
from bench.leaderboard.columns import NONE, Line, tests
from bench.leaderboard.formatting import Called, apart, labels
from bench.leaderboard.frame import Table
from bench.stats.significance import ALPHA

SHOWN = ("rtp", "fluency")  # suites that have columns of their own in the leaderboard
STAR = "* differs from unsteered"
TITLE = 14  # the most letters on a line of a column's title
METRICS = 6  # the most metrics beside each other on a page of Markdown
LEFT_OUT = re.compile(
    r"\.(gold_logprob|gold_choice_logprob|matching_accuracy)$"  # says the same as another number of its suite
    r"|\.(toxic_share|toxic_fraction|refusal_rate)\..+"  # of one group of texts
    r"|\.(expected_maximum_toxicity|toxicity_probability)_k1(_n\d+)?$"  # of one text: its mean, and its fraction
)


def shown_metrics(table: Table) -> dict[str, list[str]]:
    """Return the metrics in each suite's small table, in the order of the table's metrics, without LEFT_OUT."""
    found: dict[str, list[str]] = {}
    for metric in table.metrics:
        suite, _, name = metric.partition(".")
        if suite not in SHOWN and not LEFT_OUT.search(f".{name}"):
            found.setdefault(suite, []).append(metric)
    return found


class OtherSuite(NamedTuple):
    """The small table of one suite. rows: a row per row of the leaderboard, a column per metric, as text."""

    title: str
    rows: pd.DataFrame


def other_suites(table: Table, called: Called = None) -> Iterator[OtherSuite]:
    """Yield the small table of each suite that `SHOWN` does not name, in the order of the table's metrics.

    A value is followed by its 95% interval (`bench.stats.bootstrap.value_interval`), and by a * if it differs from the
    unsteered model's on the same items. Numbers of single groups of texts, and numbers that repeat others, are only in
    the CSV files.
    """
    names = apart(labels(table.frame, called), table.frame)
    for suite, metrics in shown_metrics(table).items():
        own = table.frame[metrics].notna().any(axis=1)
        shown = {"method": [name for name, there in zip(names, own, strict=True) if there]}
        for metric in metrics:
            cells = [value_with_interval(row, metric) for row in itertools.compress(table.lines, own)]
            shown[metric if title(metric) in shown else title(metric)] = cells
        told = about(table, metrics)
        star = f"; {STAR}" if told.starred else ""
        star += ", Holm over the rows" if told.corrected else ""
        yield OtherSuite(f"{suite} ({told.size}{star})", pd.DataFrame(shown))


class About(NamedTuple):
    """Facts for the lines around a suite's table. size: `n = ` and the numbers of items, from fewest to most.

    starred: whether any value has a star; corrected: whether the p of such a value is corrected over the rows.
    """

    size: str
    starred: bool
    corrected: bool


def about(table: Table, metrics: Sequence[str]) -> About:
    """Return how many items these metrics of one suite have, and whether stars and Holm's correction need a note."""
    counts = sorted({int(n) for metric in metrics for n in table.frame[f"{metric}.n"].dropna()})
    size = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    starred = [metric for metric in metrics if any(differs(row, metric) for row in table.lines)]
    return About(size, bool(starred), any(tests(table.frame, metric) > 1 for metric in starred))


def title(metric: str) -> str:
    """Return the title of a metric's column, in lines of at most TITLE letters."""
    words = metric.partition(".")[2].replace("_", " ").split(".")
    return "\n".join(line for word in words for line in textwrap.wrap(word, TITLE, break_long_words=False))


def differs(row: Line, metric: str) -> bool:
    """Return whether the difference from the unsteered model is significant after Holm's correction over the rows.

    A difference by a scorer that tuned the row or picked its training data never counts as significant.
    """
    p, scorer = row.get(f"{metric}.p_holm"), metric.split(".")[1]
    if p is None or pd.isna(p) or pd.isna(row[metric]):
        return False
    return bool(p < ALPHA) and scorer not in str(row.get("not_independent")).split("; ")


def value_with_interval(row: Line, metric: str) -> str:
    """Write a value with its interval; equal items do not show the width of an interval, so they have none.

    A * follows if the value `differs`.
    """
    if pd.isna(row[metric]):
        return NONE
    digits = 2 if abs(row[metric]) < 100 else 0
    ends = columns.ends(row, metric, lambda one: f"{one:.{digits}f}")
    return f"{row[metric]:.{digits}f}{ends and ' '}{ends}" + ("*" if differs(row, metric) else "")


def side_by_side(rows: pd.DataFrame, fits: Callable[[pd.DataFrame], bool]) -> Iterator[pd.DataFrame]:
    """Split the table into parts that fit; each begins with the methods and has at least one metric."""
    first, *rest = rows.columns
    taken: list[str] = []
    for title in rest:
        if taken and not fits(rows[[first, *taken, title]]):
            yield rows[[first, *taken]]
            taken = []
        taken.append(title)
    yield rows[[first, *taken]]


def markdown(table: Table, called: Called = None) -> list[str]:
    """Return each suite's table as Markdown under its title, in parts of at most METRICS metrics."""
    found = []
    for other in other_suites(table, called):
        found.append(f"**{escape.markdown(other.title)}**")
        for part in side_by_side(other.rows, lambda rows: len(rows.columns) <= METRICS + 1):
            found.append("\n".join(escape.markdown_table(list(part.columns), part.to_numpy().tolist())))
    return found
