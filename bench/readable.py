"""A table as people read it: rounded text, with what must be known before it is read. No torch here."""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bench import standing
from bench.comparable import BASELINE_FAMILY, RANDOM
from bench.significance import ALPHA, PERMUTATIONS, POWER
from bench.statistics import LEVEL
from bench.tables import Table

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
    facts = table.about.facts
    model, frame = facts["model"], table.frame
    rtp = next((one for line in table.lines for one in line.records if one.suite == "rtp"), None)
    lines = []
    if rtp is not None:
        sampling = rtp.facts.get("sampling") or {}
        info = rtp.facts["info"]
        decoding = ", ".join(f"{key.replace('_', ' ')} {sampling[key]:g}" for key in
                             ("max_new_tokens", "temperature", "top_p") if key in sampling)  # fmt: skip
        k = re.search(r"_k(\d+)(?:_n\d+)?$", table.toxicity[0]) if table.toxicity else None
        size = f"{info.get('prompts', rtp.items['item'].nunique())} prompts x {k.group(1) if k else '?'} continuations"
        lines.append(f"{model['name']}: {size} ({decoding})")
    else:
        lines.append(f"{model['name']}: no toxicity was measured")
    sources = dict.fromkeys(name for text in frame["sources"].dropna() for name in text.split("; "))
    lines.append("Data: " + (", ".join(sources) or "not recorded"))
    reported = facts["scorers"]["report"]
    used = {key: scorers_for(table, key) for key in ("tune", "pairs")}
    lines.append(f"Scorers: reported {', '.join(reported)}; strengths tuned on {' and '.join(used['tune']) or NONE}; "
                 f"pairs chosen by {' and '.join(used['pairs']) or NONE}")  # fmt: skip
    if len(used["tune"]) > 1:
        lines.append("Warning: strengths were tuned on different scorers, so the rows had not the same aim.")
    same = [use for use, key in (("tuned the strengths", "tune"), ("chose the pairs", "pairs"))
            if reported[0] in used[key]]  # fmt: skip
    if same:
        others = ", ".join(reported[1:])
        see = f"see also {others}" if others else "no second opinion was asked for"
        lines.append(f"Warning: {reported[0]} reports and also {' and '.join(same)}, so it flatters; {see}.")
    return [*lines, errors(table)]


def scorers_for(table: Table, use: str) -> list[str]:
    """The scorers that tuned the strengths (`tune`) or chose the pairs (`pairs`) of any method; else the baseline's."""
    fits = [fit for line in table.lines if not line.is_baseline for fit in line.fits]
    named = [fit.first("scorers").get(use) for fit in fits] or [table.about.facts["scorers"].get(use)]
    return sorted({one for one in named if one})


def errors(table: Table) -> str:
    """What the intervals speak about: other items alone, or other fits as well."""
    frame = table.frame
    several = frame[frame["fits"] > 1]
    told = [f"{name} {fits} fit seeds" for name, fits in zip(several["method"], several["fits"], strict=True)]
    seeds = max((len(text.split("; ")) for text in frame["sample_seeds"].dropna()), default=0)
    lines = f"Intervals ({LEVEL:.0%}) are over prompts and documents"
    lines += f", and over the fits of {', '.join(dict.fromkeys(told))}" if told else ""
    lines += "; fit seed and chosen strength of every other row are held fixed" if told else (
        "; fit seed and chosen strength are held fixed")  # fmt: skip
    return f"{lines}. Sampling seeds: {seeds or NONE}, averaged within a prompt."


def notes(table: Table) -> list[str]:
    """Lines below the table: how to read it, tasks with their chance."""
    frame = table.frame
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
    lines.append(
        "toxicity: expected maximum over the k continuations of a prompt. change: to unsteered on the same prompts, "
        f"± half its paired-bootstrap {LEVEL:.0%} interval. ppl: perplexity of the texts under the unsteered model "
        "over that of its own texts. capability kept: share of (accuracy - chance). joint: harmonic mean of toxicity "
        "reduction, fluency kept and capability kept; below a rank, where it lies in 95 % of the resamples. dev-test: "
        "reduction of what was tuned on the dev split less that on the test split. pairs: learnt from. speed: relative "
        "to unsteered."
    )
    lines += found_out(table)
    if (frame["method"] == RANDOM).any():
        lines.append("vs random: is the reduction on the dev split above, within or below what random directions reach "
                     "at the method's own perplexity there (draws that were tried that far).")  # fmt: skip
    return lines


def found_out(table: Table) -> list[str]:
    """How the tests went, what they could have found, and how much of the trade-off plane the methods cover."""
    frame, metric = table.frame, table.headline
    lines = []
    if table.baseline is not None and f"{metric}.p" in frame and frame[f"{metric}.p"].notna().any():
        test = "McNemar's test" if metric.endswith(".accuracy") else "paired permutation test"
        if (frame["fits"] > 1).any():
            test += ", over several fits the bootstrap"
        least = frame.get(f"{metric}.detectable", pd.Series(dtype=float)).dropna()
        tests = int(frame[f"{metric}.p"].notna().sum())
        if table.toxicity:
            lines.append(f"*: {metric} differs from unsteered, p < {ALPHA:g} ({test}; Holm over {tests} rows). group: "
                         "rows that share a letter are not told apart, Holm over all pairs of rows.")  # fmt: skip
        pairs = math.comb(len(frame), 2)
        if table.toxicity and pairs * 2 / (PERMUTATIONS + 1) >= ALPHA:
            lines.append(f"With {pairs} pairs of rows even the smallest p of {PERMUTATIONS} permutations is too large "
                         "after Holm: that no group is told apart says nothing here; choose fewer rows.")  # fmt: skip
        if len(least):
            lines.append(f"A true change of {least.median():.2f} (median of the rows; {least.min():.2f} to "
                         f"{least.max():.2f}) is found in {POWER:.0%} of such samples before correction; a smaller one "
                         "may be there unseen.")  # fmt: skip
    for plane in standing.PLANES:
        mine, control = (standing.hypervolume(table, plane, random) for random in (False, True))
        if mine is not None and not pd.isna(mine.value):
            other = f"; random directions {control.value:.2f}" if control else ""
            ends = "" if mine.low is None or mine.high is None else f" [{mine.low:.2f}, {mine.high:.2f}]"
            lines.append(f"Pareto front of toxicity reduction and {plane.replace('_', ' ')}: hypervolume "
                         f"{mine.value:.2f}{ends}{other}.")  # fmt: skip
    return lines


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


def markdown(tables: Sequence[Table], below: Callable[[Table], Sequence[str]] = lambda _: ()) -> str:
    """All tables as one Markdown page; `below`: what follows each of them."""
    parts = ["# Leaderboard", CONTENT]
    for table in tables:
        text = readable(table)
        titles = [title.replace("\n", " ") for title in text.columns]
        body = [[cell.replace("\n", " ").replace("|", "\\|") for cell in row] for row in text.to_numpy().tolist()]
        lines = [titles, ["---"] * len(titles), *body]
        parts += [] if len(tables) == 1 else [f"## Table {table.number}"]
        parts.append("  \n".join(heading(table)))
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in lines))
        parts += ["\n".join(f"- {note}" for note in notes(table)), *below(table)]
    if len(tables) > 1:
        parts.insert(2, SEPARATE)
    return "\n\n".join(parts) + "\n"
