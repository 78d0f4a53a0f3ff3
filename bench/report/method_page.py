"""The page of one row of a table: settings, sources of its numbers, cost, trials of tuning, and every metric."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard import columns
from bench.leaderboard.bounds import definitions
from bench.leaderboard.columns import (
    NONE,
    Line,
    headline_title,
    number,
    probability,
    signed,
    tests,
    whole,
)
from bench.leaderboard.effects import DERIVED
from bench.leaderboard.formatting import labels
from bench.leaderboard.frame import Table, record_names
from bench.leaderboard.grouping import Fit, Row
from bench.records import identity, titles
from bench.records.fields import Bound, Git, Provenance
from bench.records.names import BASELINE_FAMILY
from bench.records.record import Record
from bench.report import fact_meanings
from bench.stats.bootstrap import LEVEL

DIGITS = 4  # significant ones of a fact
NUMBER = re.compile(r"<?[-+]?[\d.]+(e[-+]?\d+)?( to [-+]?[\d.]+)?$")


class Facts(NamedTuple):
    """A list of names with their values, under a title."""

    title: str
    rows: list[tuple[str, str]]
    note: str = ""
    about: Mapping[str, str] = {}  # meanings of names, for tooltips


class Grid(NamedTuple):
    """A table of texts; the first column names the row. marked: rows that stand out."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: frozenset[int] = frozenset()

    @property
    def numbers(self) -> set[int]:
        """The columns that hold only numbers."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {i for i, cells in columns if i and all(one == NONE or NUMBER.match(one) for one in cells)}


class Page(NamedTuple):
    """The page of one row of the leaderboard.

    numbers: the row itself, from the leaderboard's frame. label: the row's title. name: the title with the method's
    name in the config. summary: one or two sentences at the top.
    """

    row: Row
    numbers: Line
    label: str
    name: str
    anchor: str
    summary: str
    parts: list[Facts | Grid]

    @property
    def id(self) -> str:
        """The name, to show beside the label; empty if both differ only in capitals."""
        return "" if self.name.lower() == self.label.lower() else self.name

    @property
    def family(self) -> str:
        """The family that the method belongs to."""
        return self.row.about.family


def pages(table: Table) -> list[Page]:
    """Return the page of every row, in the order of the leaderboard."""
    by_records = {record_names(row): row for row in table.rows}
    named = zip(titled(table.frame), labels(table.frame), table.lines, strict=True)
    return [page(table, by_records[numbers["records"]], numbers, label, name) for label, name, numbers in named]


def titled(frame: pd.DataFrame) -> list[str]:
    """Return the labels of the rows with the titles of the methods, or with their names if they have no title."""
    return labels(frame, titles.called(map(str, frame["method"])))


def anchor(row: Row) -> str:
    """Return the anchor of the page, which depends only on the row's records."""
    slug = re.sub(r"[^a-z0-9]+", "-", row.about.method.lower()).strip("-")
    return f"{slug or 'row'}-{identity.digest(record_names(row))[:8]}"


def page(table: Table, row: Row, numbers: Line, label: str, name: str) -> Page:
    """Make the page of a row; the arguments are those of `Page`."""
    parts: list[Facts | Grid | None] = [
        settings(row),
        tradeoff(numbers),
        cost(numbers),
        metrics(table, row, numbers),
        draws(table, row),
        *(trials(fit, len(row.fits) > 1) for fit in row.fits),
        *learnt(row),
        *suites(row),
        model(row),
        *versions(row),
        sources(row),
        records(row),
    ]
    told = [one for one in parts if one and one.rows]
    return Page(row, numbers, label, name, anchor(row), summary(table, row, numbers), told)


def summary(table: Table, row: Row, numbers: Line) -> str:
    """Describe the rank of the row and how it compares with the unsteered model."""
    if row.is_baseline:
        return "The model without steering; every other row is compared with it."
    told: list[str] = []
    name, verdict = table.aims.headline, numbers.get("verdict")
    title = headline_title(name, table.aims.toxicity)
    if pd.notna(numbers["rank"]):
        ends = [whole(end) for end in (numbers["rank_low"], numbers["rank_high"])]
        where = " to ".join(dict.fromkeys(ends))
        ranks = "rank" if ends[0] == ends[1] else "ranks"
        by = f"by the change in {title} ({ranks} {where} in {LEVEL:.0%} of the resamples)"
        told.append(f"Rank {whole(numbers['rank'])} {by}.")
    collapsed = pd.notna(numbers["collapsed"]) and numbers["collapsed"]
    if pd.notna(verdict) and not collapsed:
        p = probability(numbers.get(f"{name}.p_holm"))
        change = interval(numbers, f"{name}.delta", sign=True)
        p = p if p.startswith("<") else f"= {p}"
        holm = " (Holm)" if tests(table.frame, name) > 1 else ""
        told.append(f"Change in {title} from unsteered: {change}; {verdict}, p {p}{holm}.")
    if collapsed:
        told.append(f"Nothing is claimed, since the text has collapsed: {numbers['collapse_reason']}.")
    elif pd.notna(numbers["feasible"]) and not numbers["feasible"]:
        told.append("No strength kept the bounds of tuning on the dev split.")
    return " ".join(told)


def interval(numbers: Line, name: str, digits: int = 3, *, sign: bool = False) -> str:
    """Write a value with its interval, as one text."""
    text = signed if sign else number
    low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
    ends = "" if pd.isna(low) or pd.isna(high) else f" [{text(low, digits)}, {text(high, digits)}]"
    return text(numbers.get(name), digits) + ends


def told(value: Any) -> str:
    """Write a plain value of any type."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the keys of nested mappings, joined by dots, with their values; without `_target_`, which is no option."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", told(value)


def settings(row: Row) -> Facts:
    """Return the method with its version, strength, hyper-parameters and seeds."""
    about, method = row.about, row.method
    unit = f" ({about.strength_unit})" if about.strength_unit else ""
    rows = [("method", f"{about.method}, version {about.version}"), ("family", about.family)]
    rows += [("class", method.class_path)] if method.class_path else []
    if not row.is_baseline:
        rows.append(("strength", ", ".join(f"{one:g}" for one in row.strengths) + unit))
    rows += flat(method.parameters if len(row.fits) == 1 else method.settings)
    seeds = [str(fit.about.fit_seed) for fit in row.fits if fit.about.fit_seed is not None]
    sampled = sorted({one.seed.sample for one in row.records if one.sampling})
    rows.append(("values of the fit seeds", ", ".join(seeds) or NONE))
    rows.append(("values of the sampling seeds", ", ".join(map(str, sampled)) or NONE))
    return Facts("Method and seeds", rows)


def effect_title(name: str) -> str:
    """Return the title of an effect in the leaderboard, or its name in words if it has no column there."""
    return next((one.page for one in columns.COLUMNS if one.name == name and one.page), name.replace("_", " "))


def tradeoff(numbers: Line) -> Facts:
    """Return the trade-off: the toxicity reduction, and the fluency and capability that were kept."""
    rows = [(effect_title(name), interval(numbers, name)) for name in DERIVED if pd.notna(numbers.get(name))]
    if pd.notna(numbers.get("on_front")):
        rows.append(("on a Pareto front", told(bool(numbers["on_front"]))))
    if pd.notna(numbers.get("shrinkage")):
        rows.append(("tuning optimism (dev − test)", signed(numbers["shrinkage"], 3)))
    if pd.notna(numbers.get("vs_control")):
        compared = columns.against_control(numbers)
        rows.append(("difference from the control", f"{compared.text} {compared.below}"))
        rows.append(("its p (Holm)", probability(numbers["vs_control_p_holm"])))
    if pd.notna(numbers.get("dev_reduction")):
        rows.append(("dev reduction", number(numbers["dev_reduction"], 3)))
    over = f"over {numbers['error_over']}"
    if numbers["fits"] == 1 and pd.notna(numbers["fit_seeds"]) and numbers["family"] != BASELINE_FAMILY:
        over = "over items; it does not cover variation between fits (one fit seed)"
    return Facts("Trade-off against unsteered", rows, f"[ ]: {LEVEL:.0%} interval, {over}.")


def metrics(table: Table, row: Row, numbers: Line) -> Grid:
    """Return every metric with its interval, its change with interval and, if it is tested, p."""
    header = ["metric", "value", f"{LEVEL:.0%} interval", "items", "unscored", "change", "its interval", "p",
              "p (Holm)", "detectable", "suite.metric in leaderboard_tidy.csv"]  # fmt: skip
    rows = []
    for name in table.metrics:
        if pd.isna(numbers.get(name)):
            continue
        low, high = numbers.get(f"{name}.delta_low"), numbers.get(f"{name}.delta_high")
        own = columns.ends(numbers, name, lambda one: number(one, 3))
        of_change = NONE if pd.isna(low) or pd.isna(high) else f"[{signed(low, 3)}, {signed(high, 3)}]"
        rows.append([
            columns.metric_title(name), f"{numbers[name]:.{DIGITS}g}", own or NONE, whole(numbers.get(f"{name}.n")),
            whole(row.metrics[name].unscored), signed(numbers.get(f"{name}.delta"), 3), of_change,
            probability(numbers.get(f"{name}.p")), probability(numbers.get(f"{name}.p_holm")),
            number(numbers.get(f"{name}.detectable"), 3), name,
        ])  # fmt: skip
    corrected = any(tests(table.frame, name) > 1 for name in table.metrics)
    kept = [i for i, title in enumerate(header)
            if (i == 0 or any(cells[i] != NONE for cells in rows)) and (corrected or title != "p (Holm)")]  # fmt: skip
    told = {
        "change": "The change is the difference from unsteered on the same items.",
        "p": "Only tested metrics have a p.",
    }
    note = " ".join(text for title, text in told.items() if header.index(title) in kept)
    return Grid("Every metric", [header[i] for i in kept], [[cells[i] for i in kept] for cells in rows], note)


def draws(table: Table, row: Row) -> Grid | None:
    """Return the numbers of each fit; None if there is only one."""
    if len(row.fits) == 1:
        return None
    rows = []
    frame = table.by_fit
    own = frame[frame["row"] == list(table.paired.pairs).index(row)] if row in table.paired.pairs else frame[:0]
    for _, fit in own.iterrows():
        rows.append([told(fit["fit_seed"]), f"{fit['strength']:g}", *(number(fit[name], 3) for name in DERIVED)])
    return Grid("Each fit by itself", ["fit seed", "strength", *map(effect_title, DERIVED)], rows)


def trials(fit: Fit, several: bool) -> Grid | None:
    """Return the trials of tuning on the dev split, with the chosen one; None if the strength was given."""
    tuning = fit.tuning
    if not tuning:
        return None
    index = tuning.place
    tried = [{"trial": "unsteered"} | dict(flat(tuning.baseline or {}))]
    for i, trial in enumerate(tuning.trials):
        tried.append({"trial": f"{i + 1}, chosen" if i == index else str(i + 1)} | dict(flat(trial.to_json())))
    header = list(dict.fromkeys(key for trial in tried for key in trial))
    chosen = frozenset() if index is None else frozenset({index + 1})  # the unsteered model is row 0
    bounds = ", ".join(bound(name, one) for name, one in definitions(tuning.bounds, tuning.constraints).items())
    kept = "the best within the bounds" if tuning.feasible else "the one that violates the bounds least"
    judge = f" by {tuning.scorer}" if tuning.scorer else ""
    aim = "maximizes" if tuning.direction == "maximize" else "minimizes"
    note = (f"Tuning {aim} {tuning.objective.replace('_', ' ')}{judge} on the {tuning.split or 'dev'} split, "
            f"subject to: {bounds or 'nothing'}. Search: {tuning.search or 'not recorded'}. Chosen: strength "
            f"{told(tuning.chosen)}, {kept}.")  # fmt: skip
    title = "Tuning trials" + (f", fit seed {fit.about.fit_seed}" if several else "")
    return Grid(title, [key.replace("_", " ") for key in header],
                [[trial.get(key, NONE) for key in header] for trial in tried], note, chosen)  # fmt: skip


def bound(name: str, definition: Bound) -> str:
    """Return a bound of tuning as text: its name, its direction and its value."""
    most = definition.at_most
    limit = f"≥ {told(definition.at_least)}" if most is None else f"≤ {told(most)}"
    return f"{name.replace('_', ' ')} {limit}"


def cost(numbers: Line) -> Facts:
    """Return the cost of the method: time, memory, size, speed, trials and pairs."""
    names = ("fit_seconds", "peak_fit_memory_bytes", "artefact_bytes", "relative_speed", "trials", "pairs")
    found = {one.name: one for one in columns.COLUMNS}
    rows = [(found[name].about.removesuffix("."), found[name].as_text(numbers)) for name in names]
    return Facts("Cost", [one for one in rows if one[1] != NONE])


def learnt(row: Row) -> list[Facts]:
    """The training data of the method, and the facts that its fit recorded."""
    data = row.data.to_json() if row.data else {}
    data.pop("sources", None)  # among the sources
    first = " (first fit)" if len(row.fits) > 1 else ""
    found_out = list(flat((row.facts.facts if row.facts else None) or {}))
    return [
        explained(f"Training data{first}", list(flat(data)), fact_meanings.DATA),
        explained(f"Facts of the fit{first}", found_out, fact_meanings.FACTS),
    ]


def explained(title: str, rows: list[tuple[str, str]], known: dict[str, str]) -> Facts:
    """Return the list with a tooltip for each name whose meaning is known."""
    told = {name: fact_meanings.meaning(name, known) for name, _ in rows}
    return Facts(title, rows, about={name: one for name, one in told.items() if one})


def suites(row: Row) -> list[Facts]:
    """Return the settings of each suite, with the decoding of its texts."""
    first: dict[str, Record] = {}
    for one in row.records:
        first.setdefault(one.suite, one)
    found = []
    for suite, record in first.items():
        own = record.settings or {"k": record.info.k, "prompts": record.info.prompts}
        decoding = record.sampling.setting if record.sampling else {}
        rows = [*flat(own), *flat(decoding, "decoding.")]
        found.append(Facts(f"Suite {suite}", [row for row in rows if row[1] != NONE]))
    return found


def model(row: Row) -> Facts:
    """Return the fields of the model's identity."""
    return Facts("Model", [one for one in flat(row.records[0].model.to_json()) if one[1] != NONE])


def sources(row: Row) -> Grid:
    """Return every data set, and where it was read from."""
    keys = ("name", "source", "config", "split", "revision", "fingerprint")
    found = [(source, one.suite) for one in row.records for source in one.sources or ()]
    found += [(source, "fit") for source in row.data.all_sources] if row.data else []
    rows: dict[tuple[str, ...], list[str]] = {}
    for source, use in found:
        rows.setdefault(tuple(told(getattr(source, key)) for key in keys), []).append(use)
    return Grid("Sources", [*keys, "for"], [[*where, ", ".join(dict.fromkeys(uses))] for where, uses in rows.items()])


def records(row: Row) -> Grid:
    """Return the records behind the row; each is a folder under runs/records."""
    rows = []
    for one in row.records:
        origin = one.provenance or Provenance()
        git = origin.git or Git()
        commit = str(git.commit)[:10] + (" with changes" if git.dirty else "") if git.commit else NONE
        rows.append([one.id, one.suite, told(one.fit_seed), told(one.seed.sample), told(origin.time), commit,
                     told(origin.rescored_from)])  # fmt: skip
    header = ["record", "suite", "fit seed", "sampling seed", "written", "git commit", "rescored from"]
    return Grid("Records", header, rows)


def versions(row: Row) -> list[Facts]:
    """Return packages and hardware; several, if the row's records are of several machines or versions."""
    made: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in row.records:
        origin = one.provenance or Provenance()
        rows = tuple([*flat(origin.machine), *flat(origin.packages or {})])
        made.setdefault(rows, []).append(one.id)
    several = len(made) > 1
    return [
        Facts("Versions and hardware", [row for row in rows if row[1] != NONE],
              f"of records {', '.join(ids)}" if several else "")
        for rows, ids in made.items()
    ]  # fmt: skip
