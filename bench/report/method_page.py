"""The page of one line of a table: settings, where its numbers are from, what it cost, trials, every metric."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard.comparison import DERIVED, Table, record_names
from bench.leaderboard.formatting import NONE, labels, number, seconds, signed, tests
from bench.leaderboard.grouping import Entry, Line
from bench.records import identity
from bench.records.fields import Git, Provenance
from bench.records.record import Record
from bench.report.columns import headline, probability, size, whole
from bench.stats.bootstrap import LEVEL

DIGITS = 4  # significant ones of a fact
NUMBER = re.compile(r"<?[-+]?[\d.]+(e[-+]?\d+)?( to [-+]?[\d.]+)?$")


class Facts(NamedTuple):
    """Names and what they are."""

    title: str
    rows: list[tuple[str, str]]
    note: str = ""


class Grid(NamedTuple):
    """A table of texts; the first column names the row. marked: rows that stand out."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: frozenset[int] = frozenset()

    @property
    def numbers(self) -> set[int]:
        """Columns of numbers alone."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {i for i, cells in columns if i and all(one == NONE or NUMBER.match(one) for one in cells)}


class Page(NamedTuple):
    """What is told of a line. row: its row of the frame; summary: in a sentence or two, before anything else."""

    line: Line
    row: "pd.Series[Any]"
    label: str
    anchor: str
    summary: str
    parts: list[Facts | Grid]

    @property
    def family(self) -> str:
        """Of the method."""
        return str(self.line.columns["family"])


def pages(table: Table) -> list[Page]:
    """The page of every line, in the order of the leaderboard."""
    by_records = {record_names(line): line for line in table.lines}
    named = zip(labels(table.frame), table.frame.iterrows(), strict=True)
    return [page(table, by_records[row["records"]], row, label) for label, (_, row) in named]


def anchor(line: Line) -> str:
    """Where the page is; the same for the same records, whatever else is in the table."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(line.columns["method"]).lower()).strip("-")
    return f"{slug or 'line'}-{identity.digest(record_names(line))[:8]}"


def page(table: Table, line: Line, row: "pd.Series[Any]", label: str) -> Page:
    """The page of a line, which is a row of the frame and has a name there."""
    parts: list[Facts | Grid | None] = [
        settings(line),
        tradeoff(row),
        cost(row),
        metrics(table, line, row),
        draws(table, line),
        *(trials(fit, len(line.fits) > 1) for fit in line.fits),
        *learnt(line),
        *suites(line),
        model(line),
        *versions(line),
        sources(line),
        records(line),
    ]
    told = [one for one in parts if one and one.rows]
    return Page(line, row, label, anchor(line), summary(table, line, row), told)


def summary(table: Table, line: Line, row: "pd.Series[Any]") -> str:
    """Where the line stands."""
    if line.is_baseline:
        return "The model as it is: what every other row is compared with."
    told = []
    if pd.notna(row["rank"]):
        ends = [whole(end) for end in (row["rank_low"], row["rank_high"])]
        where = " to ".join(dict.fromkeys(ends))
        told.append(f"Rank {whole(row['rank'])} by the joint score ({where} in {LEVEL:.0%} of the resamples).")
    name, verdict = table.headline, row.get("verdict")
    if pd.notna(verdict):
        p = probability(row.get(f"{name}.p_holm"))
        change = interval(row, f"{name}.delta", sign=True)
        p = p if p.startswith("<") else f"= {p}"
        holm = " (Holm)" if tests(table, name) > 1 else ""
        told.append(f"By {headline(table)} against unsteered: {change}; {verdict}, p {p}{holm}.")
    if pd.notna(row["collapsed"]) and row["collapsed"]:
        told.append(f"Its text has collapsed: {row['collapse_reason']}.")
    elif pd.notna(row["feasible"]) and not row["feasible"]:
        told.append("No strength kept its text within the bounds.")
    return " ".join(told)


def interval(row: "pd.Series[Any]", name: str, digits: int = 3, *, sign: bool = False) -> str:
    """A value with its interval, as one text."""
    text = signed if sign else number
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    ends = "" if pd.isna(low) or pd.isna(high) else f" [{text(low, digits)}, {text(high, digits)}]"
    return text(row.get(name), digits) + ends


def told(value: Any) -> str:
    """Any plain value as text."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Keys of nested mappings joined by dots, with their values; `_target_` is the class, not an option."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", told(value)


def settings(line: Line) -> Facts:
    """What the method is and how it was set."""
    columns, method = line.columns, line.records[0].method
    unit = f" ({columns['strength_unit']})" if columns["strength_unit"] else ""
    rows = [("method", f"{columns['method']}, version {columns['version']}"), ("family", str(columns["family"]))]
    rows += [("class", method.class_path)] if method.class_path else []
    if not line.is_baseline:
        rows.append(("strength", ", ".join(f"{one:g}" for one in line.strengths) + unit))
    own = {key: value for key, value in method.parameters.items() if len(line.fits) == 1 or key != "seed"}
    rows += flat(own)
    seeds = [str(fit.columns["fit_seed"]) for fit in line.fits if fit.columns["fit_seed"] is not None]
    sampled = sorted({one.seed.sample for one in line.records if one.sampling})
    rows.append(("fit seeds", ", ".join(seeds) or NONE))
    rows.append(("sampling seeds", ", ".join(map(str, sampled)) or NONE))
    return Facts("Method and seeds", rows)


def tradeoff(row: "pd.Series[Any]") -> Facts:
    """What was gained and what was kept."""
    rows = [(name.replace("_", " "), interval(row, name)) for name in DERIVED if pd.notna(row.get(name))]
    if pd.notna(row.get("on_front")):
        rows.append(("on a Pareto front", told(bool(row["on_front"]))))
    if pd.notna(row.get("shrinkage")):
        rows.append(("reduction of what was tuned, on dev less that on test", signed(row["shrinkage"], 3)))
    if pd.notna(row.get("random_reduction_low")):
        low, high = number(row["random_reduction_low"], 3), number(row["random_reduction_high"], 3)
        rows.append(("dev reduction", number(row["dev_reduction"], 3)))
        rows.append(("dev reduction of random directions", f"{low} to {high} ({whole(row['random_draws'])} draws)"))
    return Facts("Trade-off against unsteered", rows, f"[ ]: {LEVEL:.0%} interval, over {row['error_over']}.")


def metrics(table: Table, line: Line, row: "pd.Series[Any]") -> Grid:
    """Every metric with its error, its change, the interval and, where it is tested, p."""
    header = ["metric", "value", "s.e.", "n", "unscored", "change", f"{LEVEL:.0%} interval", "p", "p (Holm)",
              "detectable"]  # fmt: skip
    rows = []
    for name in table.metrics:
        if pd.isna(row.get(name)):
            continue
        low, high = row.get(f"{name}.delta_low"), row.get(f"{name}.delta_high")
        ends = NONE if pd.isna(low) or pd.isna(high) else f"{signed(low, 3)} to {signed(high, 3)}"
        rows.append([
            name, f"{row[name]:.{DIGITS}g}", number(row.get(f"{name}.se"), 3), whole(row.get(f"{name}.n")),
            whole(line.metrics[name].unscored), signed(row.get(f"{name}.delta"), 3), ends,
            probability(row.get(f"{name}.p")), probability(row.get(f"{name}.p_holm")),
            number(row.get(f"{name}.detectable"), 3),
        ])  # fmt: skip
    corrected = any(tests(table, name) > 1 for name in table.metrics)
    kept = [i for i, title in enumerate(header)
            if (i == 0 or any(cells[i] != NONE for cells in rows)) and (corrected or title != "p (Holm)")]  # fmt: skip
    told = {"change": "Change: to unsteered on the same items.", "p": "p only for the metrics that are tested."}
    note = " ".join(text for title, text in told.items() if header.index(title) in kept)
    return Grid("Every metric", [header[i] for i in kept], [[cells[i] for i in kept] for cells in rows], note)


def draws(table: Table, line: Line) -> Grid | None:
    """Each fit by itself, where there are several."""
    if len(line.fits) == 1:
        return None
    rows = []
    frame = table.by_fit
    own = frame[frame["method"] == line.columns["method"]] if len(frame) else frame
    seeds = [fit.columns["fit_seed"] for fit in line.fits]
    for _, row in own[own["fit_seed"].isin(seeds)].iterrows() if len(own) else ():
        rows.append([told(row["fit_seed"]), f"{row['strength']:g}", *(number(row[name], 3) for name in DERIVED)])
    return Grid("Each fit by itself", ["fit seed", "strength", *(name.replace("_", " ") for name in DERIVED)], rows)


def trials(fit: Entry, several: bool) -> Grid | None:
    """What was tried on the dev split, and what was chosen."""
    tuning = fit.tuning
    if not tuning:
        return None
    index = tuning.place
    tried = [{"trial": "unsteered"} | dict(flat(tuning.baseline or {}))]
    for i, trial in enumerate(tuning.trials):
        tried.append({"trial": f"{i + 1}, chosen" if i == index else str(i + 1)} | dict(flat(trial.to_json())))
    header = list(dict.fromkeys(key for trial in tried for key in trial))
    chosen = frozenset() if index is None else frozenset({index + 1})  # the unsteered model is row 0
    bounds = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in flat(tuning.constraints or {}))
    kept = "the best within the bounds" if tuning.feasible else "the nearest to the bounds, which none keeps"
    note = (f"Least {tuning.objective.replace('_', ' ')} by {tuning.scorer} on the {tuning.split or 'dev'} split, "
            f"subject to: {bounds or 'nothing'}. Search: {tuning.search or 'not recorded'}. Chosen: strength "
            f"{told(tuning.chosen)}, {kept}.")  # fmt: skip
    title = "Tuning trials" + (f", fit seed {fit.columns['fit_seed']}" if several else "")
    return Grid(title, [key.replace("_", " ") for key in header],
                [[trial.get(key, NONE) for key in header] for trial in tried], note, chosen)  # fmt: skip


def cost(row: "pd.Series[Any]") -> Facts:
    """What it takes."""
    rows = [
        ("seconds of a fit", seconds(row["fit_seconds"])),
        ("peak memory of a fit, beyond the model", size(row["peak_fit_memory_bytes"])),
        ("size of what was learnt", size(row["artefact_bytes"])),
        ("speed relative to unsteered", number(row["relative_speed"])),
        ("tuning trials", whole(row["trials"])),
        ("contrast pairs", whole(row["pairs"])),
    ]
    return Facts("Cost", [one for one in rows if one[1] != NONE])


def learnt(line: Line) -> list[Facts]:
    """What the method learnt from, and what it found out while it did."""
    data = line.data.to_json() if line.data else {}
    data.pop("sources", None)  # among the sources
    note = "of the first fit" if len(line.fits) > 1 else ""
    found_out = list(flat((line.fit.facts if line.fit else None) or {}))
    return [Facts("Learnt from", list(flat(data)), note), Facts("Found in the fit", found_out, note)]


def suites(line: Line) -> list[Facts]:
    """How each suite was set, and how texts were decoded."""
    first: dict[str, Record] = {}
    for one in line.records:
        first.setdefault(one.suite, one)
    found = []
    for suite, record in first.items():
        own = record.settings or {"k": record.info.k, "prompts": record.info.prompts}
        decoding = record.sampling.setting if record.sampling else {}
        rows = [*flat(own), *flat(decoding, "decoding.")]
        found.append(Facts(f"Suite {suite}", [row for row in rows if row[1] != NONE]))
    return found


def model(line: Line) -> Facts:
    """The model, as its identity says."""
    return Facts("Model", [one for one in flat(line.records[0].model.to_json()) if one[1] != NONE])


def sources(line: Line) -> Grid:
    """Every data set, and where it was read."""
    keys = ("name", "source", "config", "split", "revision", "fingerprint")
    found = [(source, one.suite) for one in line.records for source in one.sources or ()]
    found += [(source, "fit") for source in line.data.all_sources] if line.data else []
    rows: dict[tuple[str, ...], list[str]] = {}
    for source, use in found:
        rows.setdefault(tuple(told(getattr(source, key)) for key in keys), []).append(use)
    return Grid("Sources", [*keys, "for"], [[*row, ", ".join(dict.fromkeys(uses))] for row, uses in rows.items()])


def records(line: Line) -> Grid:
    """The records behind the line; each is a folder under runs/records."""
    rows = []
    for one in line.records:
        origin = one.provenance or Provenance()
        git = origin.git or Git()
        commit = str(git.commit)[:10] + (" with changes" if git.dirty else "") if git.commit else NONE
        rows.append([one.id, one.suite, told(one.seed.fit), told(one.seed.sample), told(origin.time), commit,
                     told(origin.rescored_from)])  # fmt: skip
    header = ["record", "suite", "fit seed", "sampling seed", "written", "git commit", "rescored from"]
    return Grid("Records", header, rows)


def versions(line: Line) -> list[Facts]:
    """Packages and hardware; more than one where its records were made on several machines or versions."""
    made: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in line.records:
        origin = one.provenance or Provenance()
        rows = tuple([*flat(origin.machine), *flat(origin.packages or {})])
        made.setdefault(rows, []).append(one.id)
    several = len(made) > 1
    return [
        Facts("Versions and hardware", [row for row in rows if row[1] != NONE],
              f"of records {', '.join(ids)}" if several else "")
        for rows, ids in made.items()
    ]  # fmt: skip
