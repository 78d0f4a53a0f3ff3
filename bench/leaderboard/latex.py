r"""A table as LaTeX, ready to paste: the best of each column is bold, with what does not differ significantly from it.

Needs \usepackage{booktabs}.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.console import escape
from bench.leaderboard import formatting
from bench.leaderboard.columns import Column, flags, starred, strengths, tests
from bench.leaderboard.comparison import DERIVED
from bench.leaderboard.frame import Table, record_names
from bench.leaderboard.ranking import controls, eligible
from bench.records.names import BASELINE_FAMILY
from bench.stats import significance
from bench.stats.significance import ALPHA, bootstrap_p


def best(table: Table, column: str, higher_is_better: bool) -> set[int]:
    """Rows of `table.frame` to set bold: the best method of a column and what does not differ significantly from it.

    Two methods are told apart where the interval of their difference, over the same resamples, leaves 0 out, corrected
    by Holm for the methods that are held against the best. What may not be ranked takes no part
    (`ranking.eligible`). Nothing is bold where no method differs significantly from the best.
    """
    frame = table.frame
    estimates = {record_names(row): one for row, found in table.effects.items() if (one := found[column]) is not None}
    sign = 1 if higher_is_better else -1
    able = frame.index[eligible(frame) & frame[column].notna()]
    rows = [i for i in able if frame["records"][i] in estimates]
    if len(rows) < 2:
        return set()
    values = frame[column].astype(float)
    first = max(rows, key=lambda i: sign * values[i])
    others = [i for i in rows if i != first]
    top, p = estimates[frame["records"][first]], []
    for i in others:
        mine = estimates[frame["records"][i]]
        difference = top.draws - mine.draws
        p.append(bootstrap_p(difference, min(top.n, mine.n)) if np.ptp(difference) else None)
    corrected = significance.holm(p)
    tied = {i for i, one in zip(others, corrected, strict=True) if one is None or one >= ALPHA}
    return {first, *tied} if len(tied) < len(others) else set()


def tabular(table: Table) -> str:
    """One table in a `table` environment with a caption that says how it was measured."""
    frame = table.frame
    columns = [one for one in table.columns if one.latex and (one.name not in DERIVED or frame[one.name].notna().any())]
    effects = [one for one in columns if one.name in DERIVED]
    bold = {one.name: best(table, one.name, bool(one.higher_is_better)) for one in effects}
    lines = [
        r"\begin{table}",
        r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"  \caption{{{escape.latex(caption(table, any(bold.values())))}}}",
        rf"  \label{{tab:steering-{table.number}}}",
        rf"  \begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}",
        r"    \toprule",
        "    " + " & ".join(one.latex_title for one in columns) + r" \\",
        r"    \midrule",
    ]
    control = controls(frame)
    for i, (name, (_, row)) in enumerate(zip(formatting.labels(frame), frame.iterrows(), strict=True)):
        if i and control[i - 1] and not control[i]:
            lines.append(r"    \midrule")
        cells = [cell(one, row, name, bold=i in bold.get(one.name, ())) for one in columns]
        lines.append("    " + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"


def cell(column: Column, row: "pd.Series[Any]", name: str, *, bold: bool) -> str:
    """A cell of the table. name: what the row is called."""
    if column.name == "method":
        return escape.latex(name + ("†" if flags(row) else ""))
    if column.name == "strengths":
        return "--" if row["family"] == BASELINE_FAMILY else escape.latex(strengths(row)).replace("..", "--")
    if column.name == "group":
        return "" if pd.isna(row["group"]) else str(row["group"])
    if column.name in DERIVED:
        return number(row[column.name], bold=bold) + interval(row, column.name)
    return number(row[column.name]) + ("$^{*}$" if starred(row) else "")


def number(value: Any, bold: bool = False) -> str:
    """Rounded to two digits; a dash where it is missing."""
    if pd.isna(value):
        return "--"
    return rf"$\mathbf{{{float(value):.2f}}}$" if bold else f"${float(value):.2f}$"


def interval(row: "pd.Series[Any]", column: str) -> str:
    """The interval in small brackets behind a value, where there is one."""
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if pd.isna(low) or pd.isna(high):
        return ""
    return rf" {{\scriptsize $[{float(low):.2f}, {float(high):.2f}]$}}"


def caption(table: Table, bold: bool = True) -> str:
    """How the numbers were made, as a sentence or two; of what the table does not hold it says nothing.

    bold: whether any number of it is.
    """
    frame, metric = table.frame, table.headline
    told = formatting.heading(table)[0]
    if metric in table.toxicity:
        told += f"; toxicity: {metric.split('.', 1)[1].replace('.', ', ').replace('_', ' ')}"
    told += "."
    ends = [f"{one.name}_low" for one in table.columns if one.latex and one.name in DERIVED]
    if any(end in frame and frame[end].notna().any() for end in ends):
        told += f" Brackets: 95 % intervals over {_units(table)}."
    count = tests(frame, metric) if table.toxicity else 0
    if count:
        told += f" *: differs from unsteered, p < .05{' after Holm' if count > 1 else ''}."
    if table.toxicity and frame["group"].notna().sum() > 1:
        told += " Methods that share a letter do not differ significantly."
    told += " Bold: the best of a column and what does not differ significantly from it." if bold else ""
    return told + daggers(table)


def daggers(table: Table) -> str:
    """The sentence below a table that explains its daggers; empty where no row has one."""
    found = dict.fromkeys(flag for _, row in table.frame.iterrows() if (flag := flags(row)))
    return f" †: {'; '.join(found)}." if found else ""


def _units(table: Table) -> str:
    several = (table.frame["fits"] > 1).any()
    return formatting.units(table) + (", and over fit seeds where there are several" if several else "")


def document(tables: Sequence[Table]) -> str:
    """All tables, one below the other, with a comment that says what they need."""
    head = (
        "% Made by python -m bench.leaderboard. Needs \\usepackage{booktabs}; numbers of two tables do not compare.\n"
    )
    return head + "\n".join(map(tabular, tables))
