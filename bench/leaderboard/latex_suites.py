r"""The tables of single suites as LaTeX, for an appendix: `\input{leaderboard_suites}` with `\usepackage{booktabs}`.

They have the content of `suite_tables` in Markdown, and the layout of the leaderboard (`bench.leaderboard.latex`).
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from bench.leaderboard import latex, latex_cells, latex_names, suite_tables
from bench.leaderboard.columns import Line
from bench.leaderboard.frame import Table
from bench.leaderboard.latex_layout import LINE, WITH_INTERVAL, Block, Cell, parts
from bench.leaderboard.latex_names import Said
from bench.leaderboard.latex_text import width, written
from bench.leaderboard.suite_tables import shown_metrics
from bench.stats.significance import ALPHA

FLOATS = 15  # an older LaTeX can hold 18 tables back until there is a page for them


def document(tables: Sequence[Table]) -> str:
    r"""Return all suites of all tables, with a \clearpage after every FLOATS tables, so that LaTeX has enough room."""
    found = [one for table in tables for one in of_table(table)]
    if not found:
        return latex.HEAD + "% No suite has a table of its own.\n"
    groups = ["\n".join(found[i : i + FLOATS]) for i in range(0, len(found), FLOATS)]
    return latex.HEAD + "\n" + "\\clearpage\n".join(groups)


def of_table(table: Table) -> Iterator[str]:
    """Yield the environments of every suite of a table."""
    said = latex_names.alone(table)
    for suite, metrics in shown_metrics(table).items():
        yield from environments(table, said, suite, metrics)


def environments(table: Table, said: Sequence[list[Said]], suite: str, metrics: Sequence[str]) -> list[str]:
    """Return the suite's table in as many `table` or `table*` environments as it needs. said: `latex_names.alone`."""
    own = table.frame[metrics].notna().any(axis=1)
    there = [i for i, has in enumerate(own) if has]
    frame = table.frame.iloc[there].reset_index(drop=True)
    rows = [table.lines[i] for i in there]
    named = [latex_names.cell(said[i], "") for i in there]
    named = [one._replace(latex=rf"\steername{{{one.latex}}}") for one in named]
    method = Block(Cell("method", width("method")), named, "")
    numbers = [Block(head(metric), [value(row, metric) for row in rows]) for metric in metrics]
    found = parts([method], numbers)
    about = suite_tables.about(table, metrics)
    title = written(f"{suite.replace('_', ' ')}; {table.about.model.name}; {about.size}")
    below = [r"[\,]: 95\% intervals."] if any(interval(row, metric) for row in rows for metric in metrics) else []
    if about.starred:
        holm = " (Holm)" if about.corrected else ""
        below.append(rf"$^{{*}}$: differs from unsteered, $p < {ALPHA:g}${holm}.")
    label = f"tab:steering-{table.number}-{suite}".replace("_", "-")
    return [latex.environment(frame, found, i, title[:1].upper() + title[1:], label, below) for i in range(len(found))]


def head(metric: str) -> Cell:
    """Return the title of a metric's column, with the same lines as in the small tables."""
    lines = suite_tables.title(metric).split("\n")
    inside = r"\\".join(map(written, lines))
    text = inside if len(lines) == 1 else rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{inside}\end{{tabular}}"
    return Cell(text, max(map(width, lines)), LINE * len(lines))


def value(row: Line, metric: str) -> Cell:
    """Write a value above its interval, with a star if it differs from the unsteered model's."""
    shown = latex_cells.number(row[metric])
    if suite_tables.differs(row, metric):
        shown = Cell(shown.latex + "$^{*}$", shown.width + 4)
    ends = interval(row, metric)
    if not ends:
        return shown
    plain = ends.strip("$").replace("-", "−").replace(r"\cdot10^{", "e1").replace("}", "")
    return Cell(rf"\steerinterval{{{shown.latex}}}{{{ends}}}", max(shown.width, width(plain, size=7)), WITH_INTERVAL)


def interval(row: Line, metric: str) -> str:
    """Return `[low, high]` of the value in math mode; empty if it has no interval."""
    low, high = row.get(f"{metric}.low"), row.get(f"{metric}.high")
    if pd.isna(low) or pd.isna(high):
        return ""
    return f"$[{latex_cells.digits(float(low))}, {latex_cells.digits(float(high))}]$"
