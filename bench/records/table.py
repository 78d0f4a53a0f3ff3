"""Records from a results folder: read and checked, and as one tidy table."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from bench.console import escape
from bench.console.children import Children
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


def read_records(runs: Path, processes: int = 0) -> tuple[list[Result], list[str]]:
    """Return all whole records under `runs`/records with their items, sorted by id, and a line per skipped folder.

    processes: if it is not 0, a forked child reads half of MANY records or more (`bench.console.children`).

    Raises:
        SetupError: there is no whole record at all.
    """
    folder = runs / "records"
    if not folder.is_dir():
        raise SetupError(f"no records: {folder} is not a folder; {START}")
    paths = [one for one in sorted(folder.iterdir()) if one.is_dir() and one.name[0] != "."]  # . is half-written
    first = len(paths) // 2 if processes and len(paths) >= MANY else len(paths)
    second = Children(processes).start(partial(_read, paths[first:])) if first < len(paths) else None
    parts = [_read(paths[:first]), *([second.result()] if second is not None else [])]
    names = {key: frame for part in reversed(parts) for key, (frame, _) in part.names.items()}  # one frame for a key
    found = [Result(record, _items(names[key], numbers)) for part in parts for record, key, numbers in part.records]
    skipped = [line for part in parts for line in part.skipped]
    if not found:
        raise SetupError("\n".join([*skipped, f"no whole record in {folder}; {START}"]))
    return found, skipped


MANY = 1000


class _Found(NamedTuple):
    """Records, each with the key of its names and with its numbers, and a line per skipped folder.

    names: frames of metrics and items, and the metrics in them. Records of the same setting share their names, which
    are kept, and sent by a child, only once.
    """

    records: list[tuple[Record, bytes, list[np.ndarray]]]
    names: dict[bytes, tuple[pd.DataFrame, frozenset[str]]]
    skipped: list[str]


def _read(paths: Sequence[Path]) -> _Found:
    """Read and check the records in these folders."""
    found = _Found([], {}, [])
    for path in paths:
        try:
            one = checked(path)
            items = arrow(path, "items")
        except NotWholeError as error:
            found.skipped.append(f"record {escape.visible(path.name)} skipped: {error}")
            continue
        key, problem = known(items, one.metrics, found.names)
        if problem:
            name = escape.visible(path.name)
            found.skipped.append(f"record {name} skipped: items.parquet {problem}; run its cell again")
            continue
        record = one if is_encodable(path) else Record.from_json(encodable(one.stored))
        found.records.append((record, key, [items[name].to_numpy() for name in NUMBERS]))
    return found


def known(
    items: "pyarrow.Table", metrics: Mapping[str, Any], names: dict[bytes, tuple[pd.DataFrame, frozenset[str]]]
) -> tuple[bytes, str | None]:
    """Return the key under which `names` holds a table's metrics and items, and an error text for a wrong table.

    The error text is None if nothing is wrong. metrics: those of the table's record. If `names` lacks the metrics
    and items of this table, they are added.
    """
    own = items.select([name for name in NAMES if name in items.column_names])
    key = str([items.column_names, items.schema.types]).encode() + stream(own)
    if key not in names:
        frame = items.to_pandas()
        if problem := wrong_names(frame):
            return key, problem
        names[key] = frame, frozenset(frame["metric"])
    if problem := wrong_numbers(*(items[name].to_numpy().astype(float) for name in NUMBERS)):
        return key, problem
    unknown = sorted(names[key][1] - set(metrics))
    return key, f"holds the metric {unknown[0]!r}, of which record.json says nothing" if unknown else None


def _items(names: pd.DataFrame, numbers: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return a frame of items with these names, which it shares, and numbers."""
    items = names.copy(deep=False)  # `assign` would take five times as long
    for name, own in zip(NUMBERS, numbers, strict=True):
        items.isetitem(ITEM_COLUMNS.index(name), own)
    return items


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
    """The facts that identify a record's cell. Tables show each fact as a column with the name of its field here.

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
