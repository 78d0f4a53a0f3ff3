"""The columns of a leaderboard on the page: what each row says, with its interval, and by what it is sorted."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard import formatting
from bench.leaderboard.comparison import PERPLEXITY, Table
from bench.leaderboard.formatting import NONE, Z, number, signed
from bench.records.names import BASELINE_FAMILY, RANDOM
from bench.stats.significance import ALPHA, POWER


class Cell(NamedTuple):
    """Text, the smaller line below it (an interval, a verdict), and what it is sorted by; None: missing, so last."""

    text: str
    below: str = ""
    key: float | str | None = None


class Column(NamedTuple):
    """A column with a cell per row of `Table.frame`. part: where the chooser of columns lists it."""

    title: str
    about: str
    part: str
    shown: bool
    numeric: bool
    cells: list[Cell]


def columns(table: Table) -> list[Column]:
    """Those of the printed leaderboard first, shown; then whatever else the table knows, to be chosen.

    A column without any value is left out, but for the first three, so that a leaderboard is never without them.
    """
    rows = [row for _, row in table.frame.iterrows()]
    found = [*printed(table, rows), *further(table, rows), *metrics(table, rows)]
    return [one for i, one in enumerate(found) if i < 3 or any(cell.text not in ("", NONE) for cell in one.cells)]


def measured(value: Any, low: Any = None, high: Any = None, text: Callable[[Any], str] = number) -> Cell:
    """A number with its interval."""
    if pd.isna(value):
        return Cell(NONE)
    ends = "" if pd.isna(low) or pd.isna(high) else f"[{text(low)}, {text(high)}]"
    return Cell(text(value), ends, float(value))


def probability(value: Any) -> str:
    """A p value; never as 0."""
    return NONE if pd.isna(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def size(value: Any) -> str:
    """Bytes with a unit."""
    if pd.isna(value):
        return NONE
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def whole(value: Any) -> str:
    """A count."""
    return NONE if pd.isna(value) else f"{int(value)}"


def yes(value: Any) -> str:
    """A flag."""
    return NONE if pd.isna(value) else "yes" if value else "no"


def column(title: str, about: str, part: str, rows: list[Any], cell: Callable[[Any], Cell], *, shown: bool = False,
           numeric: bool = True) -> Column:  # fmt: skip
    """A column of one function of a row."""
    return Column(title, about, part, shown, numeric, [cell(row) for row in rows])


def field(name: str, text: Callable[[Any], str] = number) -> Callable[[Any], Cell]:
    """The cell of a column of the frame, with its interval where there is one."""
    return lambda row: measured(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), text)


def words(name: str) -> Callable[[Any], Cell]:
    """The cell of a column of texts."""
    return lambda row: Cell(NONE) if pd.isna(row.get(name)) else Cell(str(row[name]), key=str(row[name]))


def own(metric: str) -> Callable[[Any], Cell]:
    """The value of a metric with the normal interval of its standard error."""

    def cell(row: Any) -> Cell:
        value, error = row.get(metric), row.get(f"{metric}.se")
        if pd.isna(value) or pd.isna(error):
            return measured(value)
        return measured(value, value - Z * error, value + Z * error)

    return cell


def short(metric: str) -> str:
    """`<suite>.<metric>` as a title may have it."""
    return metric.replace(".", " ").replace("_", " ")


def place(row: Any) -> Cell:
    """The rank, and the ranks that it has in most resamples."""
    if pd.isna(row["rank"]):
        return Cell(NONE)
    low, high = row["rank_low"], row["rank_high"]
    told = "" if pd.isna(low) or low == high else f"{low}..{high}"
    return Cell(whole(row["rank"]), told, float(row["rank"]))


def strength(row: Any) -> Cell:
    """As the methods are tuned: one for all fits, or lowest..highest."""
    if row["family"] == BASELINE_FAMILY:
        return Cell(NONE)
    return Cell(formatting.strengths(row), key=float(row["strengths"].split("; ")[0]))


def standing(table: Table) -> Callable[[Any], Cell]:
    """The corrected p of the headline's change, and what it amounts to."""

    def cell(row: Any) -> Cell:
        p = row.get(f"{table.headline}.p_holm")
        verdict = row.get("verdict")
        told = str(verdict) if verdict in ("better", "worse") else ""
        return Cell(probability(p), told, None if pd.isna(p) else float(p))

    return cell


def headline(table: Table) -> str:
    """The metric that lines are told apart by, in short."""
    titles = {name: title for title, name in formatting.toxicity_columns(table).items()}
    return titles.get(table.headline, short(table.headline)).replace("\n", " ")


def changed(table: Table) -> Callable[[Any], Cell]:
    """The headline's change to unsteered; a star where it is told apart."""

    def cell(row: Any) -> Cell:
        found = field(f"{table.headline}.delta", signed)(row)
        return found._replace(text=found.text + "*") if row.get("verdict") in ("better", "worse") else found

    return cell


def printed(table: Table, rows: list[Any]) -> Iterator[Column]:
    """The columns of the printed leaderboard."""
    draws = sum(int(row["fits"]) for row in rows if row["method"] == RANDOM and row["tuned"])
    main, head = "Main", table.headline
    ranked = any(pd.notna(row["rank"]) for row in rows)
    about = (
        "By the joint score; below it the ranks that it has in 95 % of the resamples." if ranked else "None is ranked."
    )
    yield column("rank", about, main, rows, place, shown=True)
    each = "; lowest..highest where each fit was tuned by itself" if any(".." in formatting.strengths(row) for row in
    rows
                                                                       if row["strengths"]) else ""  # fmt: skip
    yield column("strength", f"In the method's own unit{each}.", main, rows, strength, shown=True)
    titles = {name: title for title, name in formatting.toxicity_columns(table).items()}
    yield column(headline(table), f"{head}, with the 95 % interval of its value.", main, rows, own(head), shown=True)
    yield column("change", f"Of {head} to unsteered on the same items, with the paired-bootstrap 95 % interval.", main,
                 rows, changed(table), shown=True)  # fmt: skip
    several = formatting.tests(table, head) > 1
    corrected = ", corrected over the rows" if several else ""
    yield column("p (Holm)" if several else "p", f"Of the paired test of that change{corrected}; told apart at "
                 f"{ALPHA:g}.", main, rows, standing(table), shown=True)  # fmt: skip
    yield column("group", "Rows that share a letter are not told apart.", main, rows, words("group"), shown=True,
                 numeric=False)  # fmt: skip
    for name in table.toxicity[1:]:
        yield column(titles[name].replace("\n", " "), f"{name}: a second opinion.", main, rows, own(name), shown=True)
    yield column("ppl ratio", f"{PERPLEXITY} over that of the unsteered model's own texts.", main, rows,
                 field("perplexity_ratio"), shown=True)  # fmt: skip
    yield column("capability kept", "Share of (accuracy - chance) over the tasks above chance.", main, rows,
                 field("capability_kept"), shown=True)  # fmt: skip
    yield column("joint", "Harmonic mean of toxicity reduction, fluency kept and capability kept.", main, rows,
                 field("joint"), shown=True)  # fmt: skip
    yield column("vs random", "The dev reduction against random directions at equal perplexity.", main, rows,
                 lambda row: against_random(row, draws), shown=True, numeric=False)  # fmt: skip
    yield column("dev−test", "Reduction of what was tuned on the dev split less that on the test split.", main, rows,
                 field("shrinkage", signed))  # fmt: skip
    yield column("speed", "Relative to unsteered.", main, rows, field("relative_speed"), shown=True)
    yield column("notes", "What keeps a row from being compared as it is.", main, rows,
                 lambda row: Cell(formatting.flags(row), key=formatting.flags(row) or None), shown=True,
                 numeric=False)  # fmt: skip


def against_random(row: Any, draws: int) -> Cell:
    """As the printed table says it."""
    text = formatting.against_random(row, draws)
    return Cell(text, key=None if text == NONE else text)


def further(table: Table, rows: list[Any]) -> Iterator[Column]:
    """What else is known of a row."""
    head, what, trade, cost = table.headline, "What it is", "Trade-off", "Cost"
    yield column("family", "Of the method.", what, rows, words("family"), numeric=False)
    yield column("parameters", "Hyper-parameters.", what, rows, words("parameters"), numeric=False)
    yield column("strength unit", "What one unit of strength is.", what, rows, words("strength_unit"), numeric=False)
    yield column("fits", "Fit seeds in this row.", what, rows, field("fits", whole))
    yield column("error over", "What the intervals speak about.", what, rows, words("error_over"), numeric=False)
    yield column("trials", "Strengths tried on the dev split.", what, rows, field("trials", whole))
    yield column("pairs", "Contrast pairs learnt from.", what, rows, field("pairs", whole))
    yield column("toxicity reduction", "Share of the unsteered model's toxicity.", trade, rows,
                 field("toxicity_reduction"))  # fmt: skip
    yield column("fluency kept", "1 / perplexity ratio, at most 1.", trade, rows, field("fluency_kept"))
    yield column("gold log p", "Change of the log-probability of right answers, in nats.", trade, rows,
                 field("gold_logprob_change", signed))  # fmt: skip
    yield column("on front", "On a Pareto front of reduction and what is kept.", trade, rows,
                 lambda row: flag(row["on_front"]), numeric=False)  # fmt: skip
    yield column("detectable", f"Change of {head} that {POWER:.0%} of such samples would find.", trade, rows,
                 field(f"{head}.detectable"))  # fmt: skip
    yield column("fit s", "Seconds that a fit took.", cost, rows, field("fit_seconds", formatting.seconds))
    yield column("fit memory", "Most memory that a fit took beyond the model.", cost, rows,
                 field("peak_fit_memory_bytes", size))  # fmt: skip
    yield column("artefact", "Size of what was learnt.", cost, rows, field("artefact_bytes", size))


def flag(value: Any) -> Cell:
    """Yes before no."""
    return Cell(yes(value), key=None if pd.isna(value) else "0" if value else "1")


def metrics(table: Table, rows: list[Any]) -> Iterator[Column]:
    """Every metric with the interval of its change; shown where there is no toxicity and the metric is tested."""
    for name in table.metrics:
        if name == table.headline:
            continue

        def cell(row: Any, name: str = name) -> Cell:
            value, low, high = (row.get(f"{name}{end}") for end in ("", ".delta_low", ".delta_high"))
            if pd.isna(value):
                return Cell(NONE)
            told = f"Δ [{signed(low)}, {signed(high)}]" if pd.notna(low) and pd.notna(high) else ""
            return Cell(f"{value:.3g}" if math.isfinite(value) else NONE, told, float(value))

        yield column(short(name), f"{name}; Δ: 95 % interval of its change to unsteered.", "Every metric", rows, cell,
                     shown=not table.toxicity and name in table.tested)  # fmt: skip
