"""A table as people read it: rounded text, with what must be known before it is read."""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.console import escape
from bench.leaderboard import ranking
from bench.leaderboard.comparison import Table, record_names
from bench.leaderboard.grouping import Line
from bench.records.fields import Decoding, Scorers
from bench.records.names import BASELINE_FAMILY, RANDOM
from bench.stats.bootstrap import LEVEL
from bench.stats.significance import ALPHA, PERMUTATIONS, POWER

NONE = "–"
CONTENT = (
    "Content note: these numbers are about toxic text. The sampled texts under runs/generations may offend; "
    "none is shown here."
)
SEPARATE = (
    "Results of different models, data or decoding are in tables of their own; numbers of two tables do not compare."
)
Z = 1.959964  # of a 95 % normal interval, for the standard error of a single value


def number(value: Any, digits: int = 2) -> str:
    """Rounded; a dash where it is missing."""
    return NONE if pd.isna(value) else f"{float(value):.{digits}f}"


def signed(value: Any, digits: int = 2) -> str:
    """Rounded with its sign; what rounds to zero has none."""
    if pd.isna(value):
        return NONE
    text = f"{float(value):+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def half(row: "pd.Series[Any]", name: str) -> str:
    """`±` half the width of the interval of column `name`."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if pd.isna(low) or pd.isna(high) else f" ±{(high - low) / 2:.2f}"


def seconds(value: Any) -> str:
    """Three digits of a duration."""
    return NONE if pd.isna(value) else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def heading(table: Table) -> list[str]:
    """Lines above the table: what was run, on which data, who judged."""
    lines = [f"{table.about.model.name}: {sampled(table)}"]
    sources = dict.fromkeys(name for text in table.frame["sources"].dropna() for name in text.split("; "))
    lines.append("Data: " + (", ".join(sources) or "not recorded"))
    uses = scorers_for(table)
    reported = table.reported
    told = [f"reported {', '.join(reported)}" if reported else "none judged a text"]
    lines.append("Scorers: " + "; ".join([*told, *(use.told for use in uses)]))
    if any(use.name == "tune" and len(use.scorers) > 1 for use in uses):
        lines.append("Warning: strengths were tuned on different scorers, so the rows had not the same aim.")
    same = [use.did for use in uses if table.scorer in use.scorers]
    if same and reported:
        others = ", ".join(name for name in reported if name != table.scorer)
        see = f"see also {others}" if others else "no second opinion was asked for"
        lines.append(f"Warning: {table.scorer} reports and also {' and '.join(same)}, so it flatters; {see}.")
    return [*lines, errors(table)]


def sampled(table: Table) -> str:
    """What texts the numbers are of: those of the suite rtp, else of the first suite that samples any."""
    results = [one for line in table.lines for fit in line.fits for one in fit.results if one.record.sampling]
    if not results:
        return "no texts were sampled"
    one, items = next((one for one in results if one.record.suite == "rtp"), results[0])
    info, decoding = one.info, told_decoding(one.sampling)
    found = re.search(r"_k(\d+)(?:_n\d+)?$", table.toxicity[0]) if table.toxicity else None
    k = found[1] if found else "?" if info.k is None else info.k
    suite = "" if one.suite == "rtp" else f"{one.suite}, "
    prompts = items["item"].nunique() if info.prompts is None else info.prompts
    return f"{suite}{prompts} prompts x {k} continuations ({decoding})"


def told_decoding(sampling: Decoding | None) -> str:
    """How texts were sampled, as far as a record says it."""
    told = (
        {"max new tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top p": sampling.top_p}
        if sampling
        else {}
    )
    return ", ".join(f"{name} {value:g}" for name, value in told.items() if value is not None)


class Use(NamedTuple):
    """What scorers did for a table besides reporting: as a record names it, which, and in words."""

    name: str
    scorers: list[str]
    told: str
    did: str


def scorers_for(table: Table) -> list[Use]:
    """What scorers did to the methods of a table, by what their records say was done; and that strengths were given."""
    methods = [line for line in table.lines if not line.is_baseline]
    done = {line: Scorers.used((), line.data, line.tuning).chose for line in methods}
    tuned = [line for line in methods if "tune" in done[line]]
    found = []
    if tuned:
        by = sorted({done[line]["tune"] for line in tuned})
        told = f"strengths tuned on {' and '.join(by)}{given(table, methods, tuned)}"
        found.append(Use("tune", by, told, "tuned the strengths"))
    elif methods:
        found.append(Use("given", [], "strengths as given", ""))
    for field in sorted({field for one in done.values() for field in one} - {"tune"}, reverse=True):
        chosen = [line for line in methods if field in done[line]]
        learnt = [line for line in methods if line.data and field in line.data.stored]
        by = sorted({done[line][field] for line in chosen})
        what = field if field == "pairs" else f"{field} texts"
        told = f"{what} chosen by {' and '.join(by)}{given(table, learnt, chosen)}"
        found.append(Use(field, by, told, f"chose the {what}"))
    return found


def given(table: Table, lines: Sequence[Line], but: Sequence[Line]) -> str:
    """In brackets, those of the lines for which nothing was chosen."""
    ids = {record_names(line) for line in lines if line not in but}
    named = zip(labels(table.frame), table.frame["records"], strict=True)
    names = [name for name, records in named if records in ids]
    return f" (as given: {', '.join(names)})" if names else ""


def units(table: Table) -> str:
    """What the intervals are over, besides fits."""
    sampled = {one.sampling is not None for line in table.lines for one in line.records}
    return " and ".join(name for name, kind in (("prompts", True), ("documents", False)) if kind in sampled)


def errors(table: Table) -> str:
    """What the intervals speak about: other items alone, or other fits as well."""
    frame = table.frame
    methods = frame[frame["family"] != BASELINE_FAMILY]
    several, single = methods[methods["fits"] > 1], methods[methods["fits"] == 1]
    told = [f"{name} {fits} fit seeds" for name, fits in zip(several["method"], several["fits"], strict=True)]
    held = ["fit seed"] if single["fit_seeds"].notna().any() else []
    held += ["chosen strength"] if single["tuned"].any() else []
    line = f"Intervals ({LEVEL:.0%}) are over {units(table)}"
    line += f", and over the fits of {', '.join(dict.fromkeys(told))}" if told else ""
    if held:
        whose = " of every other row" if told else ""
        line += f"; {' and '.join(held)}{whose} {'is' if len(held) == 1 else 'are'} held fixed"
    seeds = max((len(text.split("; ")) for text in frame["sample_seeds"].dropna()), default=0)
    sampling = f" Sampling seeds: {seeds}" if seeds else ""
    return f"{line}.{sampling}{', averaged within a prompt' if seeds > 1 else ''}{'.' if seeds else ''}"


def tests(table: Table, metric: str) -> int:
    """How many rows were tested in a metric; with more than one their p values are corrected."""
    return int(table.frame[f"{metric}.p"].notna().sum()) if f"{metric}.p" in table.frame else 0


def notes(table: Table) -> list[str]:
    """Lines below the table: how to read it, tasks with their chance."""
    lines = []
    if table.baseline is None:
        lines.append("Not measured for the unsteered model: no differences, no ranks. Run method=unsteered.")
    counted = [task for task in table.tasks if task.counts]
    floor = [task for task in table.tasks if task.at_floor]
    unknown = [task for task in table.tasks if task.chance is None]
    for title, tasks in (
        ("Capability, unsteered accuracy (chance)", counted),
        ("At floor, left out of capability kept", floor),
        ("Chance unknown, left out of capability kept", unknown),
    ):
        if tasks:
            listed = ", ".join(f"{task.name} {task.accuracy:.2f} ({number(task.chance)}; n={task.n})" for task in tasks)
            lines.append(f"{title}: {listed}")
    if table.tasks and not counted:
        lines.append("No task is above chance, so capability kept and joint are empty and nothing is ranked.")
    shown = readable(table)
    legend = [text for title, text in LEGEND.items() if any(text_in(shown, title))]
    if any(title.startswith("toxicity") for title in shown.columns):
        legend.insert(0, "toxicity: expected maximum over the k continuations of a prompt.")
    lines += [" ".join(legend)] if legend else []
    lines += found_out(table)
    if any(text_in(shown, "vs\nrandom")):
        lines.append("vs random: is the reduction on the dev split above, within or below what random directions reach "
                     "at the method's own perplexity there (draws that were tried that far).")  # fmt: skip
    return lines


LEGEND = {
    "change": f"change: to unsteered on the same prompts, ± half its paired-bootstrap {LEVEL:.0%} interval.",
    "ppl\nratio": "ppl: perplexity of the texts under the unsteered model over that of its own texts.",
    "capability\nkept": "capability kept: share of (accuracy - chance).",
    "joint": "joint: harmonic mean of toxicity reduction, fluency kept and capability kept; below a rank, where it "
    "lies in 95 % of the resamples.",
    "dev-test": "dev-test: reduction of what was tuned on the dev split less that on the test split.",
    "pairs": "pairs: learnt from.",
    "speed": "speed: relative to unsteered.",
}
"""What a column of the readable table says; told where it says anything."""


def text_in(shown: pd.DataFrame, title: str) -> list[str]:
    """The cells of a column that are not empty; none where there is no such column."""
    return [] if title not in shown else [text for text in shown[title] if text not in ("", NONE)]


def found_out(table: Table) -> list[str]:
    """How the tests went, what they could have found, and how much of the trade-off plane the methods cover."""
    frame, metric = table.frame, table.headline
    lines = []
    count = tests(table, metric)
    if table.baseline is not None and count:
        least = frame.get(f"{metric}.detectable", pd.Series(dtype=float)).dropna()
        pairs = math.comb(int(frame["group"].notna().sum()), 2)
        if table.toxicity:
            holm = f"; Holm over {count} rows" if count > 1 else ""
            told = f"*: {metric} differs from unsteered, p < {ALPHA:g} ({tested_by(table)}{holm})."
            if pairs:
                told += " group: rows that share a letter are not told apart"
                told += ", Holm over all pairs of rows." if pairs > 1 else "."
            lines.append(told)
        if table.toxicity and pairs * 2 / (PERMUTATIONS + 1) >= ALPHA:
            lines.append(f"With {pairs} pairs of rows even the smallest p of {PERMUTATIONS} permutations is too large "
                         "after Holm: that no group is told apart says nothing here; choose fewer rows.")  # fmt: skip
        if len(least):
            over = "" if len(least) == 1 else f" (median of the rows; {least.min():.2f} to {least.max():.2f})"
            before = " before correction" if count > 1 else ""
            lines.append(f"A true change of {least.median():.2f}{over} is found in {POWER:.0%} of such "
                         f"samples{before}; a smaller one may be there unseen.")  # fmt: skip
    for plane in ranking.PLANES:
        mine, control = (ranking.hypervolume(table, plane, random) for random in (False, True))
        if mine is not None and not pd.isna(mine.value):
            other = f"; random directions {control.value:.2f}" if control else ""
            ends = "" if mine.low is None or mine.high is None else f" [{mine.low:.2f}, {mine.high:.2f}]"
            lines.append(f"Pareto front of toxicity reduction and {plane.replace('_', ' ')}: hypervolume "
                         f"{mine.value:.2f}{ends}{other}.")  # fmt: skip
    return lines


def tested_by(table: Table) -> str:
    """Which tests the headline's p values are of."""
    fits = table.frame.loc[table.frame[f"{table.headline}.p"].notna(), "fits"]
    one = "McNemar's test" if table.headline.endswith(".accuracy") else "paired permutation test"
    if (fits == 1).all():
        return one
    return "bootstrap over items and fits" if (fits > 1).all() else f"{one}, over several fits the bootstrap"


def parameters(row: "pd.Series[Any]") -> dict[str, Any]:
    """A row's hyper-parameters without the seed of its draw."""
    return {key: value for key, value in json.loads(row["parameters"]).items() if key != "seed"}


def labels(frame: pd.DataFrame) -> list[str]:
    """Name of each row's method, with the parameters that tell it from others of its name, and how many fits it is."""
    found = []
    rows = [row for _, row in frame.iterrows()]
    for row in rows:
        twins = [other for other in rows if other["method"] == row["method"]]
        differing = {
            key: value
            for key, value in parameters(row).items()
            if any(parameters(other).get(key) != value for other in twins)
        }
        told = [f"{key}={value}" for key, value in differing.items()]
        told += [f"{row['fits']} fits"] if row["fits"] > 1 else []
        if any(parameters(other) == parameters(row) and other["records"] != row["records"] for other in twins):
            told += [f"seed {row['fit_seeds']}"] if pd.notna(row["fit_seeds"]) else []
        name = row["method"].replace("_", " ") if row["method"] == RANDOM else row["method"]
        found.append(name + (f" ({', '.join(told)})" if told else ""))
    return found


def against_random(row: "pd.Series[Any]", draws: int) -> str:
    """How a method's dev reduction stands to the random directions at equal perplexity."""
    if pd.isna(row["beats_random"]):
        return NONE
    text = "within"
    if row["beats_random"]:
        text = "above"
    elif row["dev_reduction"] < row["random_reduction_low"]:
        text = "below"
    return text if row["random_draws"] == draws else f"{text} ({row['random_draws']}/{draws})"


def flags(row: "pd.Series[Any]") -> str:
    """What keeps a row from being compared as it is."""
    if row["family"] == BASELINE_FAMILY:
        return ""
    if pd.notna(row["collapsed"]) and row["collapsed"]:
        return f"collapsed: {row['collapse_reason']}"
    if not row["tuned"]:
        return "strength as given"
    return "" if row["feasible"] else "no feasible strength"


def readable(table: Table) -> pd.DataFrame:
    """The table as text."""
    frame = table.frame
    draws = int(frame.loc[(frame["method"] == RANDOM) & frame["tuned"], "fits"].sum())
    names = labels(frame)
    shown = [line(table, row, name, draws) for name, (_, row) in zip(names, frame.iterrows(), strict=True)]
    return pd.DataFrame(shown).astype(str)


def toxicity_columns(table: Table) -> dict[str, str]:
    """Column title -> metric, for the scorer that comes first and the second opinions."""
    titles: dict[str, str] = {}
    for name in table.toxicity:
        _, scorer, metric = name.split(".", 2)
        titles[f"by\n{scorer}" if titles else f"toxicity\n{metric.split('_toxicity_')[1].partition('_')[0]}"] = name
    return titles


def place(row: "pd.Series[Any]") -> str:
    """Rank, and below it the ranks that it has in most resamples."""
    if pd.isna(row["rank"]):
        return NONE
    low, high = row["rank_low"], row["rank_high"]
    return str(row["rank"]) if low == high else f"{row['rank']}\n{low}..{high}"


def line(table: Table, row: "pd.Series[Any]", name: str, draws: int) -> dict[str, str]:
    """One row of the leaderboard as text."""
    out = {"#": place(row), "method": name}
    out["strength"] = NONE if row["family"] == BASELINE_FAMILY else strengths(row)
    for i, (title, metric) in enumerate(toxicity_columns(table).items()):
        error = row[f"{metric}.se"]
        out[title] = number(row[metric]) + (f" ±{Z * error:.2f}" if i == 0 and pd.notna(error) else "")
        if i == 0:
            told = "*" if row["verdict"] in ("better", "worse") else ""
            out["change"] = signed(row[f"{metric}.delta"]) + half(row, f"{metric}.delta") + told
            out["group"] = NONE if pd.isna(row["group"]) else row["group"]
    return out | {
        "ppl\nratio": number(row["perplexity_ratio"]),
        "capability\nkept": number(row["capability_kept"]) + half(row, "capability_kept"),
        "joint": number(row["joint"]),
        "vs\nrandom": against_random(row, draws),
        "dev-test": signed(row["shrinkage"]),
        "pairs": NONE if pd.isna(row["pairs"]) else str(row["pairs"]),
        "fit s": seconds(row["fit_seconds"]),
        "speed": number(row["relative_speed"]),
        "notes": flags(row),
    }


def strengths(row: "pd.Series[Any]") -> str:
    """The strength, or lowest..highest where each fit was tuned by itself."""
    values = [one for one in row["strengths"].split("; ")]
    return values[0] if len(values) == 1 else f"{values[0]}..{values[-1]}"


def piped(text: pd.DataFrame) -> list[str]:
    """The lines of a Markdown table."""
    cells = [list(text.columns), *text.to_numpy().tolist()]
    rows = [[escape.markdown(cell) for cell in row] for row in cells]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def markdown(tables: Sequence[Table], below: Callable[[Table], Sequence[str]] = lambda _: ()) -> str:
    """All tables as one Markdown page; `below`: what follows each of them."""
    parts = ["# Leaderboard", CONTENT]
    for table in tables:
        text = readable(table)
        parts += [] if len(tables) == 1 else [f"## Table {table.number}"]
        parts.append("  \n".join(map(escape.markdown, heading(table))))
        parts.append("\n".join(piped(text)))
        parts += ["\n".join(f"- {escape.markdown(note)}" for note in notes(table)), *below(table)]
    if len(tables) > 1:
        parts.insert(2, SEPARATE)
    return "\n\n".join(parts) + "\n"
