r"""The leaderboard as LaTeX that fits a two-column paper: `\input{leaderboard}` with `\usepackage{booktabs}`.

A table that fits the narrowest column of the field's styles is a `table`, any other a `table*`. A table that does not
fit a page is split. Methods have the titles by which papers know them, with a `\cite` of methods.bib. The tables are
written here and not by pandas' Styler, which knows no widths: it can neither choose between the two nor split a table.

"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bench.console import escape
from bench.leaderboard import formatting, latex_cells, latex_names
from bench.leaderboard.columns import Column, flags, short, tests
from bench.leaderboard.effects import DERIVED
from bench.leaderboard.frame import Table, record_names
from bench.leaderboard.latex_layout import ONE_COLUMN, Block, Part, parts
from bench.leaderboard.latex_text import written
from bench.leaderboard.ranking import controls, eligible
from bench.leaderboard.suite_tables import SHOWN
from bench.records import titles
from bench.records.table import source_names
from bench.stats import significance
from bench.stats.significance import ALPHA, bootstrap_p

HEAD = "% Made by python -m bench.leaderboard. Needs \\usepackage{booktabs} and \\bibliography{methods}.\n"
BEGIN = r"""  \vskip4pt\centering\fontsize{8}{9.6}\selectfont\setlength{\tabcolsep}{2.5pt}%
  \providecommand{\steername}[1]{\raggedright\let\\\tabularnewline\hangindent=6pt\hangafter=1 #1}%
  \providecommand{\steerinterval}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-1.5pt]\fontsize{7}{8}\selectfont#2\end{tabular}}%
  \setbox0\hbox{%
"""
END = r"}\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\leavevmode\box0\fi"
r"""Each table defines its commands, for a wrapped name and for a value above its interval, so it can be pasted alone.

On a page that is narrower than those of `latex_layout` the table is shrunk, for which \usepackage{graphicx} is needed.
"""


def best(table: Table, column: str, higher_is_better: bool) -> set[int]:
    """Return the rows of `table.frame` to set bold: a column's best method, and those that do not differ from it.

    Two methods differ significantly if the interval of their difference, over the same resamples, excludes 0, after
    Holm's correction for the methods that are compared with the best. Rows that may not be ranked (`ranking.eligible`)
    and attacks take no part. Nothing is bold if no method differs significantly from the best.
    """
    frame = table.frame
    estimates = {record_names(row): one for row, found in table.effects.items() if (one := found[column]) is not None}
    attacks = {name for name, one in latex_names.methods(table).items() if titles.of_method(one).attack}
    sign = 1 if higher_is_better else -1
    able = frame.index[eligible(frame) & frame[column].notna() & ~frame["records"].isin(attacks)]
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


def document(tables: Sequence[Table]) -> str:
    """Return all tables, one below the other, with comments on what they need and what they do not show."""
    separate = f"% {formatting.SEPARATE}\n" if len(tables) > 1 else ""
    return HEAD + separate + "\n" + "\n".join(map(tabular, tables))


def tabular(table: Table) -> str:
    """Return one leaderboard in as many `table` or `table*` environments as needed, below comments that explain it."""
    columns = shown(table)
    bold = {one.name: best(table, one.name, bool(one.higher_is_better)) for one in columns if one.name in DERIVED}
    marks = latex_cells.marks(table.lines)
    blocks = [latex_cells.block(one, table, bold.get(one.name, set()), marks) for one in columns]
    names = [one for one, column in zip(blocks, columns, strict=True) if column.name in ("method", "strengths")]
    numbers = [one for one in blocks if one not in names]
    found = parts(names, numbers)
    below = notes(table, columns, any(bold.values()), marks)
    title, label = caption(table), f"tab:steering-{table.number}"
    made = [environment(table.frame, found, i, title, label, below) for i in range(len(found))]
    return "".join([comments(table, columns), *made])


def shown(table: Table) -> list[Column]:
    """Return the table's columns that have a title in LaTeX and at least one value, and always the headline."""
    frame, found = table.frame, []
    for one in table.columns:
        if one.name == table.aims.headline and not one.latex:
            one = replace(one, latex=written(short(one.name)))
        empty = {
            "group": lambda: frame["group"].notna().sum() < 2,
            "strengths": lambda: not latex_cells.has_strength(frame).any(),
        }.get(one.name, lambda one=one: one.name in DERIVED and frame[one.name].isna().all())
        found += [one] if one.latex and not empty() else []
    return found


def environment(
    frame: pd.DataFrame, found: Sequence[Part], number: int, title: str, label: str, below: Sequence[str]
) -> str:
    """Return one part of a table as an environment of its own. title, label: the title and label of the whole table."""
    part = found[number]
    wide = "*" if part.width > ONE_COLUMN else ""
    several = f" (part {number + 1} of {len(found)})" if len(found) > 1 else ""
    lines = [
        rf"\begin{{table{wide}}}",
        rf"  \caption{{{title}{several}.}}",
        rf"  \label{{{label}{f'-{number + 1}' if number else ''}}}",
        BEGIN + rf"  \begin{{tabular}}{{@{{}}{''.join(one.declared for one in part.columns)}@{{}}}}",
        r"    \toprule",
        "    " + " & ".join(one.head.latex for one in part.columns) + r" \\",
        r"    \midrule",
        *rows(frame, part.columns, part.rows),
        r"    \bottomrule",
        r"  \end{tabular}" + END,
        *foot(below),
        rf"\end{{table{wide}}}",
    ]
    return "\n".join(lines) + "\n"


def rows(frame: pd.DataFrame, columns: Sequence[Block], chosen: range) -> list[str]:
    """Return the lines of these rows, with a rule between the controls and the methods."""
    control, lines = controls(frame), []
    for i in chosen:
        if i > chosen[0] and control[i - 1] and not control[i]:
            lines.append(r"    \midrule")
        lines.append("    " + " & ".join(one.cells[i].latex for one in columns) + r" \\")
    return lines


def foot(notes: Sequence[str]) -> list[str]:
    """Return the note below a table, as wide as a column or the page."""
    if not notes:
        return []
    text = " ".join(notes)
    return [r"  \par\smallskip", rf"  \parbox{{\linewidth}}{{\fontsize{{7}}{{8.4}}\selectfont {text}}}"]


def caption(table: Table) -> str:
    """Return the caption: what is shown, the model, the data, the number of items, and how texts were sampled."""
    suite, _, name = table.aims.headline.partition(".")
    records = [one for row in table.rows for one in row.records if one.suite == suite]
    data = list(dict.fromkeys(_data(source) for one in records for source in source_names(one)))
    if table.aims.headline in table.aims.toxicity:
        what, size = f"Expected maximum toxicity ({table.aims.scorer})", formatting.sampled(table)
    else:
        n = int(table.frame[f"{table.aims.headline}.n"].max())
        decoding = formatting.told_decoding(next((one.sampling for one in records if one.sampling), None))
        what, size = short(table.aims.headline), f"n = {n}" + (f" ({decoding})" if decoding else "")
        what = what[:1].upper() + what[1:]
    listed = ", ".join(data) if len(data) <= 3 else f"{len(data)} data sets"
    limits = formatting.limits_of(table)
    cut = f"cut by limit={limits}" if limits else ""
    return written("; ".join(one for one in (what, table.about.model.name, listed, size, cut) if one))


def _data(source: str) -> str:
    """Return the name of a data set, without its owner and without the place that it was read from."""
    return source.partition(" (")[0].rpartition("/")[2]


def notes(table: Table, columns: Sequence[Column], bold: bool, marks: dict[str, str]) -> list[str]:
    """Return the legend of the marks that the table has, a short phrase for each."""
    frame, metric = table.frame, table.aims.headline
    told = []
    if any(latex_cells.interval(row, one.name) for one in columns for row in table.lines):
        told.append(r"[\,]: 95\% intervals.")
    if over := [one.latex for one in columns if one.name in ("accuracy_change", "gold_choice_change")]:
        several = "s" if len(table.tasks) > 1 else ""
        told.append(f"{', '.join(over).capitalize()}: mean change over {len(table.tasks)} task{several}.")
    if count := tests(frame, metric):
        told.append(rf"$^{{*}}$: differs from unsteered, $p < {ALPHA:g}${' (Holm)' if count > 1 else ''}.")
    if any(one.name == "group" for one in columns):
        told.append("A common letter: no significant difference.")
    if bold:
        told.append("Bold: the best and what does not differ significantly from it.")
    return told + [f"{mark}: {written(reason)}." for reason, mark in marks.items()]


def comments(table: Table, columns: Sequence[Column]) -> str:
    """Return comments that say how the table was made, what columns mean, and which suites have their own tables."""
    lines = [f"Table {table.number}. {formatting.heading(table)[0]}", *formatting.heading(table)[1:]]
    lines += [f"{one.latex}: {one.about}" for one in columns if one.name in DERIVED]
    lines += [f"tasks: {', '.join(task.name for task in table.tasks)}"] if table.tasks else []
    others = dict.fromkeys(name.partition(".")[0] for name in table.metrics if name != table.aims.headline)
    missing = [suite for suite in others if suite not in (*SHOWN, "capability", table.aims.headline.partition(".")[0])]
    lines += [f"not here but in the file that ends in _suites.tex: {', '.join(missing)}"] if missing else []
    reasons = zip(latex_names.alone(table), table.lines, strict=True)
    lines += [f"{''.join(one.text for one in name)}: {flags(row)}" for name, row in reasons if flags(row)]
    return "".join(f"% {escape.visible(line)}\n" for line in lines)
