"""Records from a results folder: read and checked, and as one tidy table."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.console import escape
from bench.records.names import CONTROL, CONTROL_FAMILY
from bench.records.record import NotWholeError, Record, arrow, checked
from bench.stats.metrics import ITEM_COLUMNS
from methods.errors import SetupError

if TYPE_CHECKING:
    import pyarrow

NAMES, NUMBERS = ITEM_COLUMNS[:2], ITEM_COLUMNS[2:]
START = "compute some with `make leaderboard` or `python -m bench`, or name another folder with --results"


class Result(NamedTuple):
    """A record with its items, a row per metric and item (`bench.stats.metrics.ITEM_COLUMNS`)."""

    record: Record
    items: pd.DataFrame


def read_records(runs: Path) -> tuple[list[Result], list[str]]:
    """Return all whole records under `runs`/records with their items, sorted by id, and a line per skipped folder.

    Raises:
        SetupError: there is no whole record at all.
    """
    folder = runs / "records"
    if not folder.is_dir():
        raise SetupError(f"no records: {folder} is not a folder; {START}")
    found, skipped, tables = [], [], Tables()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():  # being written by a run
            continue
        try:
            one = checked(path)
            items, problem = tables.items(arrow(path, "items"), one.metrics)
        except NotWholeError as error:
            skipped.append(f"record {escape.visible(path.name)} skipped: {error}")
            continue
        if problem:
            skipped.append(f"record {escape.visible(path.name)} skipped: items.parquet {problem}; run its cell again")
            continue
        found.append(Result(one if is_encodable(path) else Record.from_json(encodable(one.stored)), items))
    if not found:
        raise SetupError("\n".join([*skipped, f"no whole record in {folder}; {START}"]))
    return found, skipped


class Tables:
    """Frames of items. Records of the same setting share their names of metrics and items, which are kept only once."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[pd.DataFrame, frozenset[str]]] = {}

    def items(self, read: "pyarrow.Table", metrics: Mapping[str, Any]) -> tuple[pd.DataFrame, str | None]:
        """Return the items of a record that has these metrics, and an error text if they are wrong, else None."""
        names = read.select([name for name in NAMES if name in read.column_names])
        key = str([read.column_names, read.schema.types]).encode() + stream(names)
        if key not in self._known:
            items = read.to_pandas()
            if problem := wrong_names(items):
                return items, problem
            self._known[key] = items, frozenset(items["metric"])
        known, told = self._known[key]
        items = known.copy(deep=False)  # the names are shared, for which `assign` would take five times as long
        for name in NUMBERS:
            items.isetitem(ITEM_COLUMNS.index(name), read[name].to_numpy())
        problem = wrong_numbers(*(items[name].to_numpy(float) for name in NUMBERS))
        if not problem and (unknown := sorted(told - set(metrics))):
            problem = f"holds the metric {unknown[0]!r}, of which record.json says nothing"
        return items, problem


def stream(read: "pyarrow.Table") -> bytes:
    """Return the table as bytes; equal tables give equal bytes."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, read.schema) as writer:
        writer.write_table(read)
    return bytes(sink.getvalue())


def wrong_names(items: pd.DataFrame) -> str | None:
    """Return an error text if the columns of a record's items or the names in them are wrong, else None."""
    if list(items.columns) != ITEM_COLUMNS or not all(is_numeric_dtype(items[name]) for name in NUMBERS):
        return f"has not the columns {', '.join(ITEM_COLUMNS)}, of which the last two are numbers"
    if not all(_texts(items[name]) for name in NAMES):
        return "holds names that are not texts"
    return "is not a table with one row per metric and item" if items.duplicated(NAMES).any() else None


def wrong_numbers(values: np.ndarray, weights: np.ndarray) -> str | None:
    """Return an error text if values or weights of a record's items are wrong, else None."""
    if not (np.isfinite(values).all() and np.isfinite(weights).all()):
        return "holds NaN or infinity"
    return "holds a negative weight" if (weights < 0).any() else None


def _texts(values: "pd.Series[Any]") -> bool:
    """Return whether every value of the column is a string; the dtype object does not show it."""
    if isinstance(values.dtype, pd.StringDtype):
        return not values.isna().any()
    return all(isinstance(one, str) for one in values)


def is_encodable(path: Path) -> bool:
    """Return whether files can hold all texts of the record in this folder: none has an unpaired surrogate."""
    raw = (path / "record.json").read_bytes()
    if b"\\ud" not in raw and b"\\uD" not in raw:  # nearly always; parsing and writing anew takes fifty times as long
        return True
    try:
        json.dumps(json.loads(raw), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(value: Any) -> Any:
    """Return plain values whose unpaired surrogates, which no table or file can hold, are written as escapes."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in value.items()}
    return [encodable(one) for one in value] if isinstance(value, list) else value


def listed(values: Sequence[str] | None) -> str | None:
    """Join texts to one field of a table; None if there are none."""
    return "; ".join(values) if values else None


def source_names(record: Record) -> list[str]:
    """Return the sources of a record's data, each as `name (where from)`; a file's name is followed by its hash."""
    told = [
        (one, f" {one.fingerprint[:6]}" if one.source == "file" and one.fingerprint else "")
        for one in record.sources or ()
    ]
    return list(dict.fromkeys(f"{one.name} ({one.source}{digits})" for one, digits in told))


class CellFacts(NamedTuple):
    """The facts that identify a record's cell, which tables show as columns of these names.

    method: the name of the method, or that of a method's control. parameters: the hyper-parameters as JSON. fit_seed:
    None if fitting draws nothing.
    """

    model: str
    method: str
    family: str
    version: int
    parameters: str
    strength: float
    strength_unit: str | None
    fit_id: str | None
    fit_seed: int | None

    @classmethod
    def of(cls, record: Record) -> Self:
        """Read them from a record."""
        method = record.method
        return cls(
            model=record.model.name,
            method=method.name + (CONTROL if method.family == CONTROL_FAMILY else ""),
            family=method.family,
            version=method.version,
            parameters=json.dumps(method.parameters, sort_keys=True),
            strength=method.strength,
            strength_unit=method.strength_unit,
            fit_id=record.fit_id,
            fit_seed=record.fit_seed,
        )


def collect(runs: Path) -> pd.DataFrame:
    """Return a tidy table: a row per record and metric, with columns that identify the cell. Warns of skipped records.

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
            **CellFacts.of(one)._asdict(),
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
