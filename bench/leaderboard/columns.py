"""The columns of a leaderboard: titles and formats, for every file and page that shows them.

`COLUMNS` are those of every leaderboard; `of_table` inserts those of a table's own metrics. The readable table, LaTeX
and the report show the columns that have a title for them, in this order; the CSV files use the names of the columns
and full precision (`bench.leaderboard.csv_files`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard.bounds import OPEN, VIOLATED
from bench.leaderboard.meanings import meaning
from bench.leaderboard.ranking import COLLAPSED, NOT_INDEPENDENT
from bench.records.names import BASELINE_FAMILY, CONTROL_FAMILY
from bench.stats.bootstrap import LEVEL, RESAMPLES
from bench.stats.significance import ALPHA, POWER

Line = Mapping[str, Any]
"""A row of a frame (`Table.lines`): its values by column."""
NONE = "–"
MAIN, WHAT, TRADE, COST, METRICS = "Main", "What it is", "Trade-off", "Cost", "Every metric"
PARTS = (MAIN, WHAT, TRADE, COST, METRICS)
"""The parts of the page's chooser, in order; each column is listed in one of them."""


def lines(frame: pd.DataFrame) -> list[Line]:
    """Return each row of a frame as a mapping, as `to_dict("records")` does in five times the time."""
    names = [*map(str, frame.columns)]
    rows = frame.astype(object).to_numpy().tolist()
    return [{name: None if one is pd.NA else one for name, one in zip(names, row, strict=True)} for row in rows]


# -- how a value is written ------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 2) -> str:
    """Write a number rounded, or a dash if it is missing."""
    return NONE if pd.isna(value) else f"{float(value):.{digits}f}"


def signed(value: Any, digits: int = 2) -> str:
    """Write a number rounded, with its sign unless it rounds to zero."""
    if pd.isna(value):
        return NONE
    text = f"{float(value):+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def seconds(value: Any) -> str:
    """Write a duration in seconds with three digits, or a dash if it is missing."""
    return NONE if pd.isna(value) else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def probability(value: Any) -> str:
    """Write a p value with three digits, but never as 0, or a dash if it is missing."""
    return NONE if pd.isna(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def size(value: Any) -> str:
    """Write a number of bytes with its unit, or a dash if it is missing."""
    if pd.isna(value):
        return NONE
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def whole(value: Any) -> str:
    """Write a count, or a dash if it is missing."""
    return NONE if pd.isna(value) else f"{int(value)}"


def yes(value: Any) -> str:
    """Write a flag as yes or no, or a dash if it is missing."""
    return NONE if pd.isna(value) else "yes" if value else "no"


def half(row: Line, name: str) -> str:
    """Return `±` and half the width of the interval of a column."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if pd.isna(low) or pd.isna(high) else f" ±{(high - low) / 2:.2f}"


def ends(row: Line, metric: str, text: Callable[[Any], str] = number) -> str:
    """Return the interval of a metric's own value as `[low, high]`; empty if it has none."""
    low, high = row.get(f"{metric}.low"), row.get(f"{metric}.high")
    return "" if pd.isna(low) or pd.isna(high) else f"[{text(low)}, {text(high)}]"


# -- what a row says -------------------------------------------------------------------------------------------------


def place(row: Line) -> str:
    """Return the rank, and below it in brackets the range of ranks that the row has in most resamples."""
    if pd.isna(row["rank"]):
        return NONE
    low, high = row["rank_low"], row["rank_high"]
    return str(row["rank"]) + ("" if pd.isna(low) or low == high else f"\n({low}..{high})")


def strengths(row: Line) -> str:
    """Return the strength with four digits, or lowest..highest if each fit was tuned by itself."""
    values = row["strengths"].split("; ")
    return str(values[0]) if len(values) == 1 else f"{float(values[0]):.4g}..{float(values[-1]):.4g}"


def between(name: str) -> Callable[[Line], str]:
    """Return a function that writes a number with the ends of its interval, for intervals that ± cannot describe.

    Such intervals are asymmetric, or end at the limit of a range.
    """

    def text(row: Line) -> str:
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        return number(row[name]) + ("" if pd.isna(low) or pd.isna(high) else f" [{number(low)}, {number(high)}]")

    return text


def flags(row: Line) -> str:
    """Return the reasons not to compare a row as it is: collapsed, strength given, bounds; empty if there is none."""
    if row["family"] in (BASELINE_FAMILY, CONTROL_FAMILY):
        return ""
    told = ["strength as given"] if not row["tuned"] else [] if row["feasible"] else ["no feasible strength on dev"]
    if pd.notna(row["collapsed"]) and row["collapsed"]:
        return "; ".join([f"collapsed: {row['collapse_reason']}", *(told if row["tuned"] else [])])
    if row["bounds"] in (VIOLATED, OPEN):
        told.append(f"{row['bounds_decided_by'].replace('_', ' ')}: bound {row['bounds']}")
    if row["undefined_resamples"]:
        told.append(f"{row['undefined_resamples']:.0f} of {RESAMPLES:,} resamples have no value")
    return "; ".join(told)


def starred(row: Line) -> str:
    """Return a star if the headline's change is significant."""
    return "*" if row.get("verdict") in ("better", "worse") else ""


def beaten(row: Line) -> str:
    """Return a star if the method differs significantly from its control, by an independent scorer.

    A scorer that tuned the row or picked its training texts is not independent, and collapsed texts show nothing
    (`ranking.with_verdict`).
    """
    p = row.get("vs_control_p_holm")
    return "*" if pd.notna(p) and p < ALPHA and row.get("verdict") not in (NOT_INDEPENDENT, COLLAPSED) else ""


# -- a column --------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell of the page: text, the smaller line below it, and the sort key; None: missing, sorted last."""

    text: str
    below: str = ""
    key: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column for all files and pages. It has a title for each of them; an empty title leaves the column out there.

    name: its name in the frame, where `name_low` and `name_high` are the ends of its interval.
    about: a sentence on its content.
    unit: the unit of its numbers; "" for a plain number. dtype: its type in the frame, where values may be missing.
    text: title in the terminal and in Markdown; told: writes the cell there, if the formatted value is not enough;
    with_half: whether ± half the interval follows the value; legend: its explanation below that table.
    latex: title in LaTeX, where an arrow shows which direction is better.
    page: title in the report; cell: makes the cell there; part: where the chooser lists it; shown: whether it is
    visible at first; numeric: whether it is aligned to the right.
    """

    name: str
    about: str
    unit: str = ""
    dtype: str = ""
    higher_is_better: bool | None = None
    format: Callable[[Any], str] = number
    text: str = ""
    told: Callable[[Line], str] | None = None
    legend: str = ""
    with_half: bool = False
    latex: str = ""
    page: str = ""
    cell: Callable[[Line], Cell] | None = None
    part: str = MAIN
    shown: bool = False
    numeric: bool = True

    def as_text(self, row: Line) -> str:
        """Return the cell of the readable table."""
        if self.told is not None:
            return self.told(row)
        return self.format(row[self.name]) + (half(row, self.name) if self.with_half else "")

    def as_cell(self, row: Line) -> Cell:
        """Return the cell of the page."""
        if self.cell is not None:
            return self.cell(row)
        return measured(row.get(self.name), row.get(f"{self.name}_low"), row.get(f"{self.name}_high"), self.format)

    @property
    def latex_title(self) -> str:
        """The title with an arrow that shows which direction is better."""
        arrow = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}
        return self.latex + arrow[self.higher_is_better]


def measured(value: Any, low: Any = None, high: Any = None, text: Callable[[Any], str] = number) -> Cell:
    """Return the cell of a number with its interval."""
    if pd.isna(value):
        return Cell(NONE)
    ends = "" if pd.isna(low) or pd.isna(high) else f"[{text(low)}, {text(high)}]"
    return Cell(text(value), ends, float(value))


def against_control(row: Line) -> Cell:
    """Return the difference of a method from its control, with a star if it is significant."""
    value, low, high = (row.get(f"vs_control{end}") for end in ("", "_low", "_high"))
    cell = measured(value, low, high, signed)
    return cell._replace(text=cell.text + beaten(row))


def words(name: str) -> Callable[[Line], Cell]:
    """Return a function that makes the cell of a column of texts."""
    return lambda row: Cell(NONE) if pd.isna(row.get(name)) else Cell(str(row[name]), key=str(row[name]))


def _place(row: Line) -> Cell:
    rank, _, ends = place(row).partition("\n")
    return Cell(NONE) if pd.isna(row["rank"]) else Cell(rank, ends, float(rank))


def _strength(row: Line) -> Cell:
    if row["family"] == BASELINE_FAMILY:
        return Cell(NONE)
    return Cell(strengths(row), key=float(row["strengths"].split("; ")[0]))


def _flag(name: str) -> Callable[[Line], Cell]:
    """Return a function that makes the cell of a flag; yes is sorted before no."""
    return lambda row: Cell(yes(row[name]), key=None if pd.isna(row[name]) else "0" if row[name] else "1")


def _flags(row: Line) -> Cell:
    return Cell(flags(row), key=flags(row) or None)


COLUMNS: tuple[Column, ...] = (
    Column(name="table", about="The number of the table; only rows of one table may be compared.", dtype="Int64"),
    Column(name="rank", about="The rank by the change of the main metric (the highest toxicity of k texts, if "
           "measured); in brackets the ranks that the row has in 95% of the resamples.",
           dtype="Int64", text="#", told=place, page="rank", cell=_place, shown=True,
           legend="rank by the change, among the rows that violate no bound on test; in brackets the ranks that the "
                  "row has in 95% of the resamples."),
    Column(name="rank_low", about="Best rank in 95% of the resamples.", dtype="Int64"),
    Column(name="rank_high", about="Worst rank in 95% of the resamples.", dtype="Int64"),
    Column(name="model", about="The model's name in the config."),
    Column(name="method", about="The method's name.", text="method", latex="method"),
    Column(name="family", about="The kind of the method: weights, activation, prompt, adapter, ...", page="family",
           cell=words("family"), part=WHAT, numeric=False),
    Column(name="version", about="The version of the method's code; another version gives other numbers.",
           dtype="Int64"),
    Column(name="parameters", about="The hyper-parameters of the method.", page="parameters",
           cell=words("parameters"), part=WHAT,
           numeric=False),
    Column(name="strength", about="The strength in the method's own unit; empty where the fits have several."),
    Column(name="strength_unit", about="The unit of the strength.", page="strength unit",
           cell=words("strength_unit"), part=WHAT, numeric=False),
    Column(name="strengths", about="The strength in the method's own unit.", text="strength",
           told=lambda row: NONE if row["family"] == BASELINE_FAMILY else strengths(row), latex="strength",
           page="strength", cell=_strength, shown=True),
    Column(name="fits", about="The number of fits, each with its own seed, in this row.", dtype="Int64",
           format=whole, page="fits", part=WHAT),
    Column(name="fit_seeds", about="The seeds of the fits."),
    Column(name="sample_seeds", about="The seeds that texts were sampled with."),
    Column(name="error_over", about="The sources of variance that the intervals cover.", page="intervals over",
           cell=words("error_over"),
           part=WHAT, numeric=False),
    Column(name="feasible", about="Whether a strength kept within the bounds of tuning on the dev split.",
           dtype="boolean"),
    Column(name="bounds", about="Whether the bounds of tuning hold on the test split by their 95% intervals: kept, "
           "violated (then the row is not ranked), or not resolved.", page="bounds on test",
           cell=words("bounds"), part=TRADE, numeric=False),
    Column(name="bounds_decided_by", about="The bounds that are violated, or not resolved."),
    Column(name="undefined_resamples", about="Resamples of the bootstrap in which an effect has no value, such as a "
           "ratio to 0; they are left out of all of its numbers.", dtype="Int64"),
    Column(name="collapsed", about="Whether the text has collapsed, so that its toxicity says nothing.",
           dtype="boolean"),
    Column(name="collapse_reason", about="Why the text counts as collapsed."),
    Column(name="tuned", about="Whether the strength was tuned on the dev split."),
    Column(name="trials", about="Strengths tried on the dev split.", dtype="Int64", format=whole, page="trials",
           part=WHAT),
    Column(name="data", about="The data that the method learnt from."),
    Column(name="flip", about="The share of the pairs whose labels were swapped."),
    Column(name="sources", about="The data sets, and where each was read."),
    Column(name="scorers_report", about="The scorers that judged the texts, that of the main metric first."),
    Column(name="scorer_tune", about="The scorer that the strength was tuned on."),
    Column(name="not_independent", about="The scorers that tuned the strength or chose texts learnt from, or that "
           "share a network with such a scorer; they claim no difference for this row."),
    Column(name="scorer_pairs", about="The scorers that chose contrast pairs or other texts learnt from."),
    Column(name="toxicity_reduction", about="The reduction of toxicity as a share of the unsteered model's "
           "toxicity.", higher_is_better=True,
           latex="reduction", page="toxicity reduction", part=TRADE),
    Column(name="perplexity_ratio", about="The perplexity of the texts under the unsteered model, divided by that "
           "of the unsteered texts.",
           higher_is_better=False, text="ppl\nratio", latex=r"ppl.\ ratio", page="ppl ratio", shown=True,
           legend="perplexity of the texts under the unsteered model, divided by that of the unsteered texts."),
    Column(name="fluency_kept", about="1 / perplexity ratio, at most 1.", higher_is_better=True, page="fluency kept",
           part=TRADE),
    Column(name="accuracy_change", about="The mean change in accuracy over the documents of all tasks.",
           higher_is_better=True, text="accuracy\nchange", format=signed, with_half=True, latex="accuracy",
           page="accuracy change", shown=True,
           legend="change in accuracy, mean over the documents of all tasks, ± half of its interval."),
    Column(name="gold_choice_change", about="The mean change, over the documents of all tasks with choices, in "
           "log p(right answer) - log sum of p over the choices, in nats.", unit="nats", higher_is_better=True,
           text="answers\nnats", format=signed, with_half=True, latex="answers", page="answers (nats)", shown=True,
           legend="change in the log-probability of the right answer among the choices, in nats, mean over the "
                  "documents of all tasks with choices, ± half of its interval."),
    Column(name="joint", about="The harmonic mean of toxicity reduction (as a share), fluency kept (1 / perplexity "
           "ratio) and exp(answers), each limited to 0 to 1.", higher_is_better=True, text="joint",
           told=between("joint"),
           latex="joint", page="joint",
           shown=True,
           legend="harmonic mean of toxicity reduction (as a share), fluency kept (1 / ppl ratio) and exp(answers), "
                  "each limited to 0 to 1, so that it is 0 if toxicity does not fall; with its interval."),
    Column(name="net", about="Toxicity reduction minus the mean loss in all suites that are not the target (the share "
           "of fluency or accuracy that is lost; gains do not count); empty if the row lacks a suite in which "
           "other rows were measured.", higher_is_better=True, format=signed,
           page="net", part=TRADE),
    Column(name="entanglement", about="The mean absolute change in all suites that are not the target, as a share; "
           "empty if the row lacks a suite in which other rows were measured.",
           higher_is_better=False, page="entanglement", part=TRADE),
    Column(name="vs_control", about="The difference of the main metric from the method's own control, or from the "
           "random direction, on the same prompts of the test split, with its paired 95% interval; *: p < "
           f"{ALPHA:g} after Holm's correction over the rows.",
           text="vs\ncontrol",
           told=lambda row: signed(row["vs_control"]) + half(row, "vs_control") + beaten(row),
           page="vs control", cell=lambda row: against_control(row),
           shown=True, legend="difference from the method's own control on the same prompts, ± half of its paired "
                              "interval. The control has the same size (its strength is rescaled for that), "
                              "but learnt from pairs with shuffled labels, was rotated at random, or is a random "
                              "change of the weights; a method without one is compared with random_direction, if "
                              "it is in the table. A method fitted once is compared with the spread of its control's "
                              "fits, assumed to be normal; with one fit of each there is neither interval nor test. "
                              f"*: p < {ALPHA:g} after Holm's correction over the rows."),
    Column(name="vs_control_p", about="The two-sided p of the paired test of that difference."),
    Column(name="vs_control_p_holm", about="That p after Holm's correction over the rows."),
    Column(name="made_worse", about="The share of prompts or documents whose main metric got worse than unsteered; "
           "near 0 if a method changes no text, near one half if it changes each at random.",
           page="made worse", part=TRADE),
    Column(name="dev_reduction", about="The reduction of the chosen trial on the dev split."),
    Column(name="dev_perplexity_ratio", about="The perplexity ratio of the chosen trial on the dev split."),
    Column(name="shrinkage", about="Tuning optimism: the reduction of the tuned metric on the dev split minus that "
           "on the test split.",
           format=signed, text="dev-test", page="dev−test",
           legend="tuning optimism: reduction of the tuned metric, as a share, on the dev split minus that on the "
                  "test split, by the same scorer and with the same k."),
    Column(name="pairs", about="The number of contrast pairs that the method learnt from.", dtype="Int64",
           format=whole, text="pairs", page="pairs",
           part=WHAT, legend="contrast pairs that the method learnt from."),
    Column(name="d_prime", about="How far a direction learnt from some of the pairs separates the desired from the "
           "undesired activations of the others, in their standard deviations; 0 is not at all.",
           unit="standard deviations", higher_is_better=True, page="d′ of pairs", part=WHAT),
    Column(name="mean_cosine", about="How well the training pairs agree: the mean cosine of each pair's difference "
           "with the mean of the others'.", higher_is_better=True, page="cosine of pairs", part=WHAT),
    Column(name="fit_seconds", about="The seconds that a fit took.", unit="s", higher_is_better=False, format=seconds,
           text="fit s", legend="seconds that a fit took.", page="fit s", part=COST),
    Column(name="peak_fit_memory_bytes", about="The peak memory of a fit beyond the model.", unit="bytes",
           dtype="Int64", higher_is_better=False, format=size, page="fit memory", part=COST),
    Column(name="artefact_bytes", about="The size of what the method learnt.", unit="bytes", dtype="Int64",
           higher_is_better=False, format=size, page="artefact", part=COST),
    Column(name="relative_speed", about="Sampling speed relative to the unsteered model.", unit="of unsteered",
           higher_is_better=True,
           text="speed", told=between("relative_speed"), page="speed", shown=True,
           legend="sampling speed relative to the unsteered model, with an interval where one was measured."),
    Column(name="verdict", about="Whether the main metric is better, worse, or shows no difference found."),
    Column(name="group", about="Rows that share a letter do not differ significantly."),
    Column(name="on_front", about="Whether it is on one of two Pareto fronts: reduction against fluency, or reduction "
           "against answers.", dtype="boolean", page="on Pareto front",
           cell=_flag("on_front"), part=TRADE, numeric=False),
    Column(name="notes", about="Warnings about this row.", text="notes", told=flags,
           page="notes", cell=_flags, shown=True, numeric=False),
    Column(name="records", about="The ids of its records."),
)  # fmt: skip
"""The columns in the order in which they are shown; the page sorts them by their part first."""

DTYPES = {column.name: column.dtype for column in COLUMNS if column.dtype}

# -- the columns of a table ------------------------------------------------------------------------------------------


def of_table(
    frame: pd.DataFrame, headline: str, toxicity: Sequence[str], metrics: Sequence[str], tested: Sequence[str]
) -> list[Column]:
    """Return all columns of a table, including those of its own metrics.

    Args:
        frame: the table's rows (`bench.leaderboard.frame`).
        headline: the metric by which rows are compared.
        toxicity: the toxicity metric of each scorer that reports; the first one is the headline, unless rows were
            tuned for another metric.
        metrics: all metrics of the table, as `<suite>.<metric>`.
        tested: the metrics that have p values.
    """
    found: list[Column] = []
    others = [name for name in toxicity if name != headline]
    for column in COLUMNS:
        if column.name == "strengths":
            found += [_strengths(column, frame), *_headline(frame, headline, toxicity), *map(_opinion, others)]
        elif column.name == "rank" and frame["rank"].isna().all():
            found.append(replace(column, about="No row is ranked."))
        elif column.name == "rank" and not toxicity:
            found.append(replace(column, legend=column.legend.replace("the change", f"the change in {headline}")))
        elif column.name != "group":
            found.append(column)
        if column.name == "perplexity_ratio" and "kl.mean_kl" in metrics:
            found.append(Column(name="kl.mean_kl", about="The mean KL(unsteered || steered) of the next token on "
                                "ordinary sentences.", unit="nats", higher_is_better=False, text="KL",
                                format=lambda value: number(value, 3),
                                legend="divergence from the unsteered model on ordinary sentences, in nats per "
                                "token."))  # fmt: skip
    found.append(Column(name=f"{headline}.detectable", page="detectable", part=TRADE,
                        about=f"The smallest true change of {metric_title(headline)} that the test finds in "
                        f"{POWER:.0%} of experiments of this size."))  # fmt: skip
    return found + [_metric(name, shown=not toxicity and name in tested) for name in metrics if name != headline]


def tests(frame: pd.DataFrame, metric: str) -> int:
    """Return how many methods were tested on a metric; if several, their p values are corrected."""
    return int(frame[f"{metric}.p_holm"].notna().sum()) if f"{metric}.p_holm" in frame else 0


def short(metric: str) -> str:
    """Shorten `<suite>.<metric>` for a title."""
    return metric.replace(".", " ").replace("_", " ")


TOXICITY = re.compile(
    r"rtp\.(.+)\.(expected_maximum_toxicity|toxicity_probability|toxic_fraction|mean_toxicity)(?:_k(\d+)(?:_n\d+)?)?"
)


def metric_title(metric: str) -> str:
    """Return `<suite>.<metric>` in words; a toxicity of RealToxicityPrompts names its scorer in brackets."""
    toxicity = TOXICITY.fullmatch(metric)
    if toxicity is None:
        return short(metric)
    k = f" of {toxicity[3]} texts" if toxicity[3] else ""
    return f"{toxicity[2].replace('_', ' ')}{k} (by {toxicity[1]})"


def sentence(metric: str) -> str:
    """Return the words of `metric_title` with a capital, for the beginning of a sentence."""
    title = metric_title(metric)
    return title[:1].upper() + title[1:]


def toxicity_title(metric: str) -> str:
    """Return the title of the first scorer's toxicity: `toxicity` and the number of continuations."""
    k = metric.split(".", 2)[2].split("_toxicity_")[1].partition("_")[0]
    return f"toxicity\n{k}"


def headline_title(headline: str, toxicity: Sequence[str]) -> str:
    """Return the title of the metric that rows are ranked by, on one line."""
    return (toxicity_title(headline) if headline in toxicity[:1] else short(headline)).replace("\n", " ")


def _headline(frame: pd.DataFrame, metric: str, toxicity: Sequence[str]) -> list[Column]:
    """Return the columns of the headline: value, change, p, group; readable tables have all but p."""
    several = tests(frame, metric) > 1

    def value(row: Line) -> str:
        return f"{number(row[metric])} {ends(row, metric)}".rstrip()

    def change(row: Line) -> str:
        return signed(row[f"{metric}.delta"]) + half(row, f"{metric}.delta") + starred(row)

    def change_cell(row: Line) -> Cell:
        delta, low, high = (row.get(f"{metric}.delta{end}") for end in ("", "_low", "_high"))
        cell = measured(delta, low, high, signed)
        return cell._replace(text=cell.text + starred(row))

    def p_cell(row: Line) -> Cell:
        p, verdict = row.get(f"{metric}.p_holm"), row.get("verdict")
        told = str(verdict) if verdict in ("better", "worse") else ""
        return Cell(probability(p), told, None if pd.isna(p) else float(p))

    toxic = metric in toxicity[:1]
    title = toxicity_title(metric) if toxic else short(metric)
    corrected = " after Holm's correction over the rows" if several else ""
    return [
        Column(name=metric, about=f"{sentence(metric)}, with the 95% interval of its value.",
               text=title, told=value,
               legend="the highest toxicity among the k continuations of a prompt, mean over the prompts, with its "
                      "interval." if toxic else "",
               latex="toxicity" if toxic else short(metric),
               higher_is_better=False if toxic else None,
               page=headline_title(metric, toxicity), cell=_own(metric), shown=True),
        Column(name=f"{metric}.delta", about=f"The difference of {metric_title(metric)} from unsteered on the same "
               "items, with its 95% interval (paired bootstrap).", text="change", told=change,
               latex="" if toxicity else "change",  # beside a reduction of toxicity it has no room
               page="change", cell=change_cell, shown=True,
               legend=f"difference from unsteered on the same prompts, ± half of its {LEVEL:.0%} interval (paired "
                      "bootstrap)."),
        Column(name=f"{metric}.p_holm", about=f"The p of the paired test of that change{corrected}; it is "
               "significant below "
               f"{ALPHA:g}.", page="p (Holm)" if several else "p", cell=p_cell, shown=True),
        Column(name="group", about="Rows that share a letter do not differ significantly.", text="group",
               told=lambda row: NONE if pd.isna(row["group"]) else str(row["group"]), latex="group",
               page="group", cell=words("group"), shown=True, numeric=False),
    ]  # fmt: skip


def _opinion(metric: str) -> Column:
    """Return the column of toxicity by a further scorer: the unsteered model's value, and the change of other rows."""
    scorer = metric.split(".", 2)[1]

    def told(row: Line) -> str:
        if row["family"] == BASELINE_FAMILY:
            return number(row.get(metric))
        return signed(row.get(f"{metric}.delta")) + half(row, f"{metric}.delta")

    return Column(name=metric, about=f"{sentence(metric)}: the value (not its change) by another scorer, with "
                  "its 95% interval.", text=f"by\n{scorer}", told=told,
                  legend="the change according to this scorer; for unsteered its toxicity.",
                  page=f"by {scorer}", cell=_own(metric), shown=True)  # fmt: skip


def _metric(metric: str, shown: bool) -> Column:
    """Return the column of any metric, with the interval of its change; only the page has it."""

    def cell(row: Line) -> Cell:
        value, low, high = (row.get(f"{metric}{end}") for end in ("", ".delta_low", ".delta_high"))
        if pd.isna(value):
            return Cell(NONE)
        told = f"Δ [{signed(low)}, {signed(high)}]" if pd.notna(low) and pd.notna(high) else ""
        return Cell(f"{value:.3g}" if math.isfinite(value) else NONE, told, float(value))

    told = f": {means}" if (means := meaning(metric)) else ""
    return Column(name=metric, about=f"{sentence(metric)}{told}; Δ is the 95% interval of its change from unsteered.",
                  page=metric_title(metric),
                  cell=cell, part=METRICS, shown=shown)  # fmt: skip


def _own(metric: str) -> Callable[[Line], Cell]:
    """Return a function that writes the value of a metric with its interval."""
    return lambda row: measured(row.get(metric), row.get(f"{metric}.low"), row.get(f"{metric}.high"))


def _strengths(column: Column, frame: pd.DataFrame) -> Column:
    several = any(text and ".." in strengths({"strengths": text}) for text in frame["strengths"])
    each = "; the lowest and the highest if the strengths of the fits differ" if several else ""
    return replace(column, about=f"The strength in the method's own unit{each}.")
