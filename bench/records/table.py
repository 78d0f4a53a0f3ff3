"""Records from a results folder: read and checked, and as one tidy table."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.console import escape
from bench.records.names import CONTROL, CONTROL_FAMILY
from bench.records.record import NotWholeError, Record, checked, table
from bench.stats.metrics import ITEM_COLUMNS
from methods.errors import SetupError

START = "compute some with `make leaderboard` or `python -m bench`, or name another folder with --results"


class Result(NamedTuple):
    """A record with its items, a row per metric and item (`bench.stats.metrics.ITEM_COLUMNS`)."""

    record: Record
    items: pd.DataFrame


def read_records(runs: Path) -> tuple[list[Result], list[str]]:
    """All whole records with their items under `runs`/records by id, and a line for each folder that was skipped.

    Raises:
        SetupError: there is no whole record at all.
    """
    folder = runs / "records"
    if not folder.is_dir():
        raise SetupError(f"no records: {folder} is not a folder; {START}")
    found, skipped = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():  # being written by a run
            continue
        try:
            one = checked(path)
            items = table(path, "items")
        except NotWholeError as error:
            skipped.append(f"record {path.name} skipped: {error}")
            continue
        if problem := wrong_items(items, one.metrics):
            skipped.append(f"record {path.name} skipped: items.parquet {problem}; run its cell again")
            continue
        found.append(Result(one if is_encodable(one.stored) else Record.from_json(encodable(one.stored)), items))
    if not found:
        raise SetupError("\n".join([*skipped, f"no whole record in {folder}; {START}"]))
    return found, skipped


def wrong_items(items: pd.DataFrame, metrics: Mapping[str, Any]) -> str | None:
    """What is wrong with a record's items, in words; None: nothing."""
    if list(items.columns) != ITEM_COLUMNS or not all(is_numeric_dtype(items[name]) for name in ("value", "weight")):
        return f"has not the columns {', '.join(ITEM_COLUMNS)}, of which the last two are numbers"
    if not all(_texts(items[name]) for name in ("metric", "item")):
        return "holds names that are not texts"
    if items.duplicated(["metric", "item"]).any():
        return "is not a table with one row per metric and item"
    if not all(np.isfinite(items[name].to_numpy(float)).all() for name in ("value", "weight")):
        return "holds NaN or infinity"
    if (items["weight"] < 0).any():
        return "holds a negative weight"
    unknown = sorted(set(items["metric"]) - set(metrics))
    return f"holds the metric {unknown[0]!r}, of which record.json says nothing" if unknown else None


def _texts(values: "pd.Series[Any]") -> bool:
    """Whether every value of the column is a string."""
    if isinstance(values.dtype, pd.StringDtype):
        return not values.isna().any()
    return all(isinstance(one, str) for one in values)


def is_encodable(facts: Mapping[str, Any]) -> bool:
    """Whether a file can hold all texts of a record: none has half of a surrogate pair."""
    try:
        json.dumps(facts, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(value: Any) -> Any:
    """Plain values with halves of surrogates in their texts written out, which no table and no file could hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in value.items()}
    return [encodable(one) for one in value] if isinstance(value, list) else value


def listed(values: Sequence[str] | None) -> str | None:
    """Texts as one field of a table; None where there are none."""
    return "; ".join(values) if values else None


def source_names(record: Record) -> list[str]:
    """The sources of a record's data, as `name (where from)`."""
    return list(dict.fromkeys(f"{source.name} ({source.source})" for source in record.sources or ()))


def identity_columns(record: Record) -> dict[str, Any]:
    """The columns that identify a record's cell: its model, method, strength and fit."""
    method = record.method
    return {
        "model": record.model.name,
        "method": method.name + (CONTROL if method.family == CONTROL_FAMILY else ""),
        "family": method.family,
        "version": method.version,
        "parameters": json.dumps(method.parameters, sort_keys=True),
        "strength": method.strength,
        "strength_unit": method.strength_unit,
        "fit_id": record.fit_id,
        "fit_seed": record.fit_seed,
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
    for one, _ in records:
        scorers = one.judged_by
        common = {
            "id": one.id,
            "suite": one.suite,
            "split": one.split,
            "comparison": one.comparison,
            **identity_columns(one),
            "generation_id": one.generation_id if one.generations is None else listed(one.generations),
            "sample_seed": one.seed.sample,
            "data": one.data.name if one.data else None,
            "pairs": one.data.pairs if one.data else None,
            "feasible": one.tuning.feasible if one.tuning else None,
            "scorers_report": listed(scorers.report),
            "scorer_tune": scorers.chose.get("tune"),
            "scorer_pairs": scorers.picked,
            "sources": listed(source_names(one)),
            "computed": one.provenance.time if one.provenance else None,
        }
        rows += [{**common, "metric": name, **metric._asdict()} for name, metric in one.metrics.items()]
    frame = pd.DataFrame(rows)
    whole = {name: "Int64" for name in ("version", "fit_seed", "sample_seed", "pairs", "n", "unscored")}
    return frame.astype({**whole, "feasible": "boolean", "value": float, "standard_error": float})
