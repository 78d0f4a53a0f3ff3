"""What a result holds, and the folder it lives in. No torch here: the leaderboard reads records with this file.

`runs/records/<id>/` holds record.json, items.parquet and scores.parquet. A record exists whole or not at all: it is
written to a temporary folder and renamed. record.json holds the sha256 of the tables and of itself.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.console.escape import visible
from bench.files import atomic
from bench.files.atomic import whole_folder, write_whole
from bench.files.digests import sha256
from bench.files.plain_json import dumps, load
from bench.records import schema
from bench.records.identity import ID, SCHEMA

TABLES = ("items", "scores")
VOLATILE = ("provenance", "cost", "fit", "tuning", "schema", "sha256")


def write(folder: Path, record: Mapping[str, Any], items: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """Write a record and its tables under `folder`/<id>; returns the record with the tables' hashes.

    The same result, as another process may have written it meanwhile, stays, and is returned; another one gives way.

    Raises ValueError for an id that is none (`identity.ID`), which could be a path out of the folder, and for a field
    that no reader would take (`bench.records.schema`).
    """
    if not ID.fullmatch(record["id"]):
        raise ValueError(f"{record['id']!r} is no id")
    if found := schema.wrong(json.loads(dumps(record))):
        raise ValueError(f"a record whose {found} is not written")
    target = folder / record["id"]
    written = {name: table.to_parquet(index=False) for name, table in zip(TABLES, (items, scores), strict=True)}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    full = json.loads(dumps(sealed({**record, "schema": SCHEMA, "files": files})))
    there = _room(target)
    with whole_folder(target, replace=there is not None and _result(there) != _result(full)) as temporary:
        for name, content in written.items():
            (temporary / f"{name}.parquet").write_bytes(content)
        (temporary / "record.json").write_text(dumps(full), encoding="utf-8")
    return checked(target)


def _room(target: Path) -> dict[str, Any] | None:
    """The record that is in this place; what is there and is none is set aside, with a warning."""
    if not target.exists() and not target.is_symlink():
        return None
    try:
        return checked(target)
    except NotWholeError as error:
        if (moved := atomic.set_aside(target, target.parent.parent)) is not None:  # out of the folder of records
            told = f"warning: record {target.name}: {str(error).partition(';')[0]}; it is set aside as {moved}"
            print(visible(told), file=sys.stderr)
        return None


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of the same cell have alike, which is not when and how fast they ran."""
    return {key: value for key, value in record.items() if key not in VOLATILE}


class NotWholeError(ValueError):
    """A folder that holds no record; the message says what is wrong with it."""


def read(path: Path) -> dict[str, Any] | None:
    """The record in this folder, or None where there is none, as `checked` says."""
    try:
        return checked(path)
    except NotWholeError:
        return None


def checked(path: Path) -> dict[str, Any]:
    """The record in this folder.

    Raises NotWholeError where it is not whole (missing, unreadable, other schema, other bytes), where the folder is a
    link, so that what is written there would land elsewhere, where it is not named by the record's id, and where a
    field is not what it has to be (`bench.records.schema`).
    """
    if path.is_symlink():
        raise NotWholeError("its folder is a link; copy the folder itself")
    try:
        record = load(path / "record.json")
        whole = (
            record["schema"] == SCHEMA
            and record.get("sha256") in (None, sealed(record)["sha256"])  # None: written by an older version
            and all(sha256(path / f"{name}.parquet") == record["files"][name] for name in TABLES)
        )
    except NotWholeError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise NotWholeError("a file is missing or not what was written; run its cell again")
    if record.get("id") != path.name or not ID.fullmatch(path.name):
        raise NotWholeError(f"the id inside, {record.get('id')!r}, is not the folder's name; was it copied or edited?")
    if found := schema.wrong(record):
        raise NotWholeError(f"its {found}; was it edited? Run its cell again")
    return record


def table(path: Path, name: str) -> pd.DataFrame:
    """The `items` or `scores` in the folder of a record. Raises NotWholeError for a file that is no table."""
    try:
        return pd.read_parquet(path / f"{name}.parquet")
    except (OSError, ValueError, TypeError, KeyError) as error:  # ArrowInvalid is a ValueError
        raise NotWholeError(f"{name}.parquet is no table; run its cell again") from error


def amend(path: Path, **changes: Any) -> dict[str, Any]:
    """Add facts that are no numbers of the result (how its strength was chosen) to a record that is there."""
    record = sealed(load(path / "record.json") | changes)
    write_whole(path / "record.json", dumps(record))
    return record


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the sha256 of everything else in it."""
    facts = {key: value for key, value in record.items() if key != "sha256"}
    return facts | {"sha256": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}
