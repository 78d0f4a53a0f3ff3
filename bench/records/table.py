"""Records from a results folder: read and checked, and as one tidy table. No torch here."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.console import escape
from bench.records import record
from bench.stats.metrics import ITEM_COLUMNS, Metric
from methods.errors import SetupError

START = "compute some with `make leaderboard` or `python -m bench`, or name another folder with --results"


class Record(NamedTuple):
    """One suite's result of one cell: record.json and its items (metrics.ITEM_COLUMNS)."""

    facts: dict[str, Any]
    items: pd.DataFrame

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return str(self.facts["suite"])


def read_records(runs: Path) -> tuple[list[Record], list[str]]:
    """All whole records under `runs`/records by id, and a line for each folder that was skipped.

    Raises:
        SetupError: there is no whole record at all.
    """
    folder = runs / "records"
    if not folder.is_dir():
        raise SetupError(f"no records: {folder} is no folder; {START}")
    found, skipped = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():  # being written by a run
            continue
        try:
            facts = record.checked(path)
            items = record.table(path, "items")
        except record.NotWholeError as error:
            skipped.append(f"record {path.name} skipped: {error}")
            continue
        if problem := wrong_items(items, facts["metrics"]):
            skipped.append(f"record {path.name} skipped: items.parquet {problem}; run its cell again")
            continue
        found.append(Record(encodable(facts), items))
    if not found:
        raise SetupError("\n".join([*skipped, f"no whole record in {folder}; {START}"]))
    return found, skipped


def wrong_items(items: pd.DataFrame, metrics: Mapping[str, Any]) -> str | None:
    """What is wrong with a record's items, in words; None: nothing."""
    if list(items.columns) != ITEM_COLUMNS or not all(is_numeric_dtype(items[name]) for name in ("value", "weight")):
        return f"has not the columns {', '.join(ITEM_COLUMNS)}, of which the last two are numbers"
    if not all(isinstance(one, str) for name in ("metric", "item") for one in items[name]):
        return "holds names that are no texts"
    if items.duplicated(["metric", "item"]).any():
        return "is no table of one row per metric and item"
    if not np.isfinite(items[["value", "weight"]].to_numpy(float)).all():
        return "holds NaN or infinity"
    if (items["weight"] < 0).any():
        return "holds a negative weight"
    unknown = sorted(set(items["metric"]) - set(metrics))
    return f"holds the metric {unknown[0]!r}, of which record.json says nothing" if unknown else None


def encodable(value: Any) -> Any:
    """Plain values with halves of surrogates in their texts written out, which no table and no file could hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in value.items()}
    return [encodable(one) for one in value] if isinstance(value, list) else value


def scorers_used(
    report: list[str] | None, data: Mapping[str, Any] | None, tuning: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the scorers of a result did: `report`, and where one did it `tune` for its strength, `pairs` for its pairs.

    Other texts that it learnt from and that a scorer chose go by their field of FitData, `harmful`.

    data: what the record says of the data that was learnt from. tuning: how its strength was chosen.
    """
    used = {"tune": tuning, "pairs": data} | {key: one for key, one in (data or {}).items() if isinstance(one, Mapping)}
    named = {use: (about or {}).get("scorer") for use, about in used.items()}
    return {"report": report or []} | {use: name for use, name in named.items() if isinstance(name, str)}


def scorers_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As `scorers_used`, of a record: by what it says was done, since early ones named the config's scorers always."""
    report = (facts.get("scorers") or {}).get("report") or []
    judged = (facts.get("info") or {}).get("scorers") or [
        name for name in report if any(metric.startswith(f"{name}.") for metric in facts["metrics"])
    ]
    return scorers_used(judged, facts.get("data"), facts.get("tuning"))


def names(values: list[str] | None) -> str | None:
    """A list as one field of a table."""
    return "; ".join(values) if values else None


def source_names(facts: dict[str, Any]) -> list[str]:
    """The sources of a record's data, as `name (where from)`."""
    sources = facts.get("sources") or []
    return list(dict.fromkeys(f"{source['name']} ({source['source']})" for source in sources))


def identity_columns(facts: dict[str, Any]) -> dict[str, Any]:
    """What names a record's cell, as columns."""
    method = facts["method"]
    return {
        "model": facts["model"]["name"],
        "method": method["name"],
        "family": method["family"],
        "version": method["version"],
        "parameters": json.dumps(method["parameters"], sort_keys=True),
        "strength": method["strength"],
        "strength_unit": method.get("strength_unit"),
        "fit_id": facts.get("fit_id"),
        "fit_seed": facts["seed"].get("fit"),
    }


def collect(runs: Path) -> pd.DataFrame:
    """A tidy table: a row per record and metric, with the columns that identify the cell. Warns of skipped records.

    Only rows with equal `suite`, `metric` and `comparison` were measured on the same items of the same model.

    Raises:
        SetupError: there is no record in `runs`/records.
    """
    records, skipped = read_records(runs)
    for line in skipped:
        warnings.warn(escape.visible(line), stacklevel=2)
    rows = []
    for facts, _ in records:
        data, scorers = facts.get("data") or {}, scorers_of(facts)
        common = {
            "id": facts["id"],
            "suite": facts["suite"],
            "split": facts["split"],
            "comparison": facts["comparison"],
            **identity_columns(facts),
            "generation_id": facts.get("generation_id"),
            "sample_seed": facts["seed"].get("sample"),
            "data": data.get("name"),
            "pairs": data.get("pairs"),
            "feasible": (facts.get("tuning") or {}).get("feasible"),
            "scorers_report": names(scorers.get("report")),
            "scorer_tune": scorers.get("tune"),
            "scorer_pairs": scorers.get("pairs"),
            "sources": names(source_names(facts)),
            "computed": (facts.get("provenance") or {}).get("time"),
        }
        rows += [
            {**common, "metric": name, **{key: metric.get(key) for key in Metric._fields}}
            for name, metric in facts["metrics"].items()
        ]
    frame = pd.DataFrame(rows)
    whole = {name: "Int64" for name in ("version", "fit_seed", "sample_seed", "pairs", "n", "unscored")}
    return frame.astype({**whole, "feasible": "boolean", "value": float, "standard_error": float})
