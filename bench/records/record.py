"""A record: the content of one result, and the folder that stores it.

`runs/records/<id>/` holds record.json, items.parquet and scores.parquet. A record exists whole or not at all: it is
written to a temporary folder and renamed. record.json holds the sha256 of the tables and of itself.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from bench.console.escape import visible
from bench.files import atomic
from bench.files.atomic import whole_folder, write_whole
from bench.files.digests import sha256
from bench.files.plain_json import NestedError, dumps, load
from bench.records import schema
from bench.records.fields import (
    Cost,
    Decoding,
    Fields,
    FitFacts,
    Info,
    Json,
    LearntFrom,
    MethodFacts,
    ModelFacts,
    Provenance,
    Scorers,
    Seeds,
    Source,
    Tuned,
    each,
    metrics_from,
    some,
    texts,
)
from bench.records.identity import ID, SCHEMA, steering_identity
from bench.records.names import Split
from bench.stats.metrics import Metric

if TYPE_CHECKING:
    import pyarrow

TABLES = ("items", "scores")
VOLATILE = ("provenance", "cost", "fit", "tuning", "generations", "schema", "sha256")


@dataclass(frozen=True, kw_only=True)
class Record(Fields):
    """One suite's result of one cell, without the tables of its items.

    comparison: an id that is shared by records that differ only in their steering. fit_id: None for the unsteered
    model. generations: ids of the stored texts that the suite read, in their order; None in records of older versions.
    unverified: folders that were read and have no digest. system_role: whether the chat template has this role.
    thinking: the value of model.thinking, for a model that thinks in its chats. limit: the N of `limit=N`, if it cut
    the suite.
    """

    READ = {
        "model": ModelFacts.from_json, "method": MethodFacts.from_json, "seed": Seeds.from_json,
        "data": some(LearntFrom), "fit": some(FitFacts), "cost": some(Cost), "tuning": some(Tuned),
        "scorers": some(Scorers), "sampling": some(Decoding), "provenance": some(Provenance), "metrics": metrics_from,
        "info": Info.from_json, "sources": each(Source), "generations": texts,
        "unverified": texts, "unexpected_weights": texts,
    }  # fmt: skip

    id: str
    suite: str
    split: Split
    comparison: str
    model: ModelFacts
    method: MethodFacts
    fit_id: str | None
    seed: Seeds
    data: LearntFrom | None
    fit: FitFacts | None
    cost: Cost | None
    tuning: Tuned | None
    scorers: Scorers | None = None
    sampling: Decoding | None
    settings: Mapping[str, Json] | None = None
    provenance: Provenance | None = None
    metrics: Mapping[str, Metric]
    info: Info
    sources: tuple[Source, ...] | None
    unverified: tuple[str, ...] | None = None
    unexpected_weights: tuple[str, ...] | None = None
    system_role: bool | None = None
    thinking: str | None = None
    limit: int | None = None
    generations: tuple[str, ...] | None = None
    generation_id: str | None = None  # of older versions

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Make the record from a JSON mapping. Raises ValueError for a field that breaks the schema."""
        if wrong := schema.wrong(found):
            raise ValueError(wrong)
        return super().from_json(found)

    @property
    def judges(self) -> Sequence[str]:
        """The scorers that judged its texts: early records name all scorers of the config."""
        report = (self.scorers.report if self.scorers else None) or ()
        return self.info.scorers or [
            name for name in report if any(metric.startswith(f"{name}.") for metric in self.metrics)
        ]

    @property
    def judged_by(self) -> Scorers:
        """The roles of the scorers, by what was done with them."""
        return Scorers.used(self.judges, self.data, self.tuning, self.scorers.networks if self.scorers else None)

    @property
    def steering(self) -> dict[str, Any] | None:
        """Identity of the steering; None for the unsteered model."""
        return steering_identity(self.fit_id, self.method.to_json(), self.method.strength)

    @property
    def template(self) -> str | None:
        """The text around each prompt of the suite; None if the suite has none."""
        template = (self.settings or {}).get("template")
        return template if isinstance(template, str) else None

    @property
    def dev_k(self) -> int | None:
        """The number of texts that the suite samples for each prompt on the dev split; None if it samples none."""
        return self._count("dev_k")

    @property
    def unsteered_k(self) -> int | None:
        """The number of texts of each test prompt that the unsteered model gives; None if as many as a steered one."""
        return self._count("unsteered_k")

    def _count(self, option: str) -> int | None:
        count = (self.settings or {}).get(option)
        return count if isinstance(count, int) else None

    @property
    def fit_seed(self) -> int | None:
        """The seed of the fit or, if fitting draws nothing, the seed by which its pairs were drawn or swapped."""
        return self.seed.fit if self.seed.fit is not None or self.data is None else self.data.seed

    @property
    def sample_seed(self) -> int | None:
        """The seed of sampling; None for a suite that samples nothing, whose record is the same for every seed."""
        return self.seed.sample if self.sampling else None


def write(folder: Path, record: Record, items: pd.DataFrame, scores: pd.DataFrame, *, anew: bool = False) -> Record:
    """Write a record and its tables under `folder`/<id>, and return the record that is read back from there.

    If the same result is stored already, perhaps by another process, it stays and is returned; a different result is
    replaced, and with `anew` an equal one too.

    Raises ValueError for an invalid id (`identity.ID`), which could be a path out of the folder, and for a field
    that breaks the schema (`bench.records.schema`).
    """
    if not ID.fullmatch(record.id):
        raise ValueError(f"{record.id!r} is not an id")
    facts = record.to_json()
    if found := schema.wrong(json.loads(dumps(facts))):
        raise ValueError(f"a record whose {found} is not written")
    target = folder / record.id
    written = {name: table.to_parquet(index=False) for name, table in zip(TABLES, (items, scores), strict=True)}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    full = json.loads(dumps(sealed({**facts, "schema": SCHEMA, "files": files})))
    there = _room(target)
    replaces = there is not None and (anew or _result(there.to_json()) != _result(full))
    with whole_folder(target, replace=replaces) as temporary:
        for name, content in written.items():
            (temporary / f"{name}.parquet").write_bytes(content)
        (temporary / "record.json").write_text(dumps(full), encoding="utf-8")
    return checked(target)


def _room(target: Path) -> Record | None:
    """Return the record that is stored in this place; anything else there is set aside, with a warning."""
    if not target.exists() and not target.is_symlink():
        return None
    try:
        return checked(target)
    except NotWholeError as error:
        if (moved := atomic.set_aside(target, target.parent.parent)) is not None:  # out of the folder of records
            told = f"warning: record {target.name}: {str(error).partition(';')[0]}; it is set aside as {moved}"
            print(visible(told), file=sys.stderr)
        return None


def _result(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that is equal for two runs of the same cell, unlike time and speed."""
    return {key: value for key, value in facts.items() if key not in VOLATILE}


class NotWholeError(ValueError):
    """A folder that holds no record; the message says what is wrong with it."""


def read(path: Path) -> Record | None:
    """Return the record in this folder; None if `checked` finds none."""
    try:
        return checked(path)
    except NotWholeError:
        return None


def checked(path: Path) -> Record:
    """Return the record in this folder.

    Raises NotWholeError if the record is not whole (`damage`), if the folder is a link, so that files written into it
    would land elsewhere, if the folder is not named by the record's id, and if a field breaks the schema
    (`bench.records.schema`).
    """
    if path.is_symlink():
        raise NotWholeError("its folder is a link; copy the folder itself")
    try:
        facts = load(path / "record.json")
    except NestedError as error:
        raise NotWholeError(str(error)) from error
    except OSError as error:
        raise NotWholeError(f"record.json {_unread(error)}; run its cell again") from error
    except ValueError as error:
        raise NotWholeError("record.json is not valid JSON; run its cell again") from error
    if wrong := damage(path, facts):
        raise NotWholeError(f"{wrong}{_cell(facts)}; run its cell again")
    if facts.get("id") != path.name or not ID.fullmatch(path.name):
        raise NotWholeError(f"the id inside, {facts.get('id')!r}, is not the folder's name; was it copied or edited?")
    try:
        return Record.from_json(facts)
    except ValueError as error:
        raise NotWholeError(f"its {error}; was it edited? Run its cell again") from error


def damage(path: Path, facts: Any) -> str:
    """Say which file of a record is missing or was changed, and how; empty if none was. facts: its record.json."""
    if not isinstance(facts, dict) or "schema" not in facts:
        return "record.json holds no record"
    if facts["schema"] != SCHEMA:
        return f"record.json has the schema {facts['schema']!r:.40}, where {SCHEMA!r} is expected"
    if facts.get("sha256") not in (None, sealed(facts)["sha256"]):  # None: written by an older version
        return "record.json was changed after it was written"
    files = facts.get("files")
    for name in TABLES:
        try:
            found = sha256(path / f"{name}.parquet")
        except OSError as error:
            return f"{name}.parquet {_unread(error)}"
        if not isinstance(files, dict) or found != files.get(name):
            return f"{name}.parquet was changed after it was written"
    return ""


def _unread(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def _cell(facts: Any) -> str:
    """Return method, strength and suite in brackets, as far as a damaged record states them."""
    if not isinstance(facts, dict):
        return ""
    method = facts.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    told = [one for one in (name, facts.get("suite")) if isinstance(one, str)]
    return f" ({', suite '.join(told)})" if len(told) == 2 else ""


def table(path: Path, name: str) -> pd.DataFrame:
    """Read the `items` or `scores` in the folder of a record. Raises NotWholeError for a file that is not a table."""
    with _reading(name):
        found: pd.DataFrame = arrow(path, name).to_pandas()
        return found


def arrow(path: Path, name: str) -> "pyarrow.Table":
    """Read the `items` or `scores` in the folder of a record as a table of pyarrow, in less time than `table`."""
    from pyarrow import BufferReader
    from pyarrow.parquet import ParquetFile

    with _reading(name):  # from memory: column by column from the file it would take three times as long
        return ParquetFile(BufferReader((path / f"{name}.parquet").read_bytes())).read(use_threads=False)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn pyarrow's errors about a file that is no table into NotWholeError."""
    try:
        yield
    except NotWholeError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:  # ArrowInvalid is a ValueError
        raise NotWholeError(f"{name}.parquet is not a table; run its cell again") from error


def amend(path: Path, **changes: Any) -> Record:
    """Change fields of a record that are not numbers of the result, such as how its strength was chosen."""
    record = replace(Record.from_json(load(path / "record.json")), **changes)
    facts = sealed(record.to_json())
    write_whole(path / "record.json", dumps(facts))
    return Record.from_json(facts)


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's JSON with the sha256 of all its other content."""
    rest = {key: value for key, value in facts.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
