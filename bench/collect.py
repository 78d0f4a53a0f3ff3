"""Records from a results folder: read and checked, and as one tidy table. No torch here."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench import record
from bench.metrics import ITEM_COLUMNS
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
        facts = record.read(path)
        if facts is None:
            skipped.append(f"record {path.name} skipped: a file is missing or not what was written; run its cell again")
            continue
        items = pd.read_parquet(path / "items.parquet")
        if list(items.columns) != ITEM_COLUMNS or items.duplicated(["metric", "item"]).any():
            skipped.append(f"record {path.name} skipped: items.parquet is no table of one row per metric and item")
            continue
        found.append(Record(facts, items))
    if not found:
        raise SetupError("\n".join([*skipped, f"no whole record in {folder}; {START}"]))
    return found, skipped


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
        warnings.warn(line, stacklevel=2)
    rows = []
    for facts, _ in records:
        data, scorers = facts.get("data") or {}, facts.get("scorers") or {}
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
        }
        rows += [{**common, "metric": name, **metric} for name, metric in facts["metrics"].items()]
    frame = pd.DataFrame(rows)
    whole = {name: "Int64" for name in ("version", "fit_seed", "sample_seed", "pairs", "n", "unscored")}
    return frame.astype({**whole, "feasible": "boolean", "value": float, "standard_error": float})
