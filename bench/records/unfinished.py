"""Batches of an unfinished result, kept on disk, so that a stopped run can go on from there.

A piece of work (the texts of some prompts, the log-probabilities of some requests, the scores of some texts) is a list
of batches. Computed batches are kept in chunks, one file every few seconds, and once more when the run is stopped or
fails. A resumed run computes only the batches that no chunk holds, and keeps the batch size that the work began with,
so its numbers are bit-equal to those of a run that was never stopped.

Chunks are found again only by the same code, the same versions of torch and transformers, and the same inputs. They
lie in `runs/unfinished/<id of the result>` and are removed when the result is stored. Several processes may do the same
work at the same time; each writes its own chunks.
"""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bench.console import stopping
from bench.console.escape import visible
from bench.files import atomic, plain_json
from bench.records import identity, record
from methods.progress import counting, skip

EVERY_SECONDS = 15.0
"""How long what was computed may be held in memory alone; a single batch may take longer."""
BRIEF_SECONDS = 1.0  # work that took less is not worth a file

Result = TypeVar("Result")


class _Place(NamedTuple):
    folder: Path
    files: frozenset[str]  # files with code that the numbers depend on


_place: ContextVar[_Place | None] = ContextVar("place", default=None)
_own: set[Path] = set()
"""Folders of results that this process has begun and not finished."""


@contextmanager
def keeping(folder: Path | None, *parts: Any) -> Iterator[None]:
    """Let `batches` keep in this folder what is computed inside the block; remove the folder when the block ends well.

    folder: None: nothing is kept, and nothing is found.
    parts: objects whose classes may be from other packages, on whose code the numbers then depend too.
    """
    outer = _place.get()
    files = code_files(parts) | (outer.files if outer is not None else frozenset())
    token = _place.set(None if folder is None else _Place(folder, files))
    if folder is not None:
        _own.add(folder)
    try:
        yield
    finally:
        _place.reset(token)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        _own.discard(folder)


class Batches:
    """Results of the batches of one piece of work, by number; see `batches`."""

    def __init__(self, batch_size: int, folder: Path | None = None) -> None:
        self.batch_size = batch_size
        self._folder = folder
        self._found: dict[int, tuple[Any, float]] = _read(folder) if folder is not None else {}
        self._fresh: dict[int, tuple[Any, float]] = {}
        self._kept_at = time.monotonic()

    def once(self, number: int, compute: Callable[[], Result]) -> Result:
        """Return the result of this batch, kept from an earlier run or computed now; it must be plain JSON values."""
        stopping.check()
        if number in self._found:
            result, tokens = self._found[number]
            skip(tokens)
            return result  # type: ignore[no-any-return]
        with counting() as count:
            computed = compute()
        if self._folder is not None:
            self._fresh[number] = computed, count.tokens
            if time.monotonic() - self._kept_at > EVERY_SECONDS:
                self.keep()
        return computed

    def rows(self, start: int, planned: int) -> int:
        """Return the number of rows in the batch from row `start` on, for batches that are numbered by their first row.

        A batch that an earlier run kept has its old size, whatever memory is free now; a new batch ends before the next
        kept one.
        """
        if start in self._found:
            return len(self._found[start][0])
        following = min((number for number in self._found if number > start), default=start + planned)
        return min(planned, following - start)

    def keep(self) -> None:
        """Write a chunk of what was computed since the last one."""
        fresh, self._fresh, self._kept_at = self._fresh, {}, time.monotonic()
        if self._folder is None or not fresh:
            return
        rows = [[number, tokens, result] for number, (result, tokens) in sorted(fresh.items())]
        chunk = record.sealed({"work": self._folder.name, "batches": rows})
        try:
            atomic.write_whole(self._folder / f"{rows[0][0]:06d}-{chunk['sha256'][:12]}.json", json.dumps(chunk))
        except OSError as error:
            self._folder = None
            why = error.strerror or type(error).__name__
            _warn(f"parts of unfinished work cannot be kept ({why}); this run goes on without keeping them")

    @property
    def brief(self) -> bool:
        """Whether only a short time has passed since the last chunk."""
        return time.monotonic() - self._kept_at < BRIEF_SECONDS


@contextmanager
def batches(what: Callable[[], Any], batch_size: int) -> Iterator[Batches]:
    """Yield the batches of a piece of work; those that an earlier run computed are not computed again (`Batches.once`).

    what: returns plain JSON values that name everything that can change a result, except the batch size. Use the batch
    size of the yielded object: if an earlier run began the work, this is the batch size of the earlier run.

    Outside `keeping` nothing is found and nothing kept.
    """
    place = _place.get()
    if place is None:
        yield Batches(batch_size)
        return
    named = hashlib.sha256(json.dumps([_code(place.files), what()], sort_keys=True).encode()).hexdigest()[:16]
    own = place.folder / f"{named}-{batch_size}"
    others = [path for path in sorted(place.folder.glob(f"{named}-*")) if re.fullmatch(r".*-[1-9]\d{0,8}", path.name)]
    began = own if own.is_dir() or not others else others[0]
    work = Batches(int(began.name.rpartition("-")[2]), began)
    try:
        yield work
    except BaseException:
        work.keep()
        raise
    if not work.brief:
        work.keep()


def told(runs: Path, written: int) -> str:
    """Return the message on what a stopped run keeps, and how to go on. written: how many results it computed."""
    whole = f"{written} finished {'result is' if written == 1 else 'results are'} kept" if written else ""
    begun = f"unfinished work is kept, except for its last few seconds, in {runs / 'unfinished'}"
    found = any(
        path.is_file() for folder in _own if folder.parent == runs / "unfinished" for path in folder.rglob("[!.]*")
    )
    kept = " and ".join([*([whole] if whole else []), *([begun] if found else [])])
    if not kept:
        return "nothing had been computed yet; the same command starts from the beginning"
    return f"{kept}; the same command goes on from there"


def _read(folder: Path) -> dict[int, tuple[Any, float]]:
    """Read results and tokens of the kept batches, by number; a damaged chunk is set aside with a warning."""
    found: dict[int, tuple[Any, float]] = {}
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            chunk = plain_json.load(path)
            if chunk["sha256"] != record.sealed(chunk)["sha256"] or chunk["work"] != folder.name:
                raise ValueError("it is not what was written")
            found |= {int(number): (result, float(tokens)) for number, tokens, result in chunk["batches"]}
        except FileNotFoundError:  # another process has finished this work
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            atomic.set_aside(path)
            _warn(f"{path} is damaged ({error}); it is set aside, and its batches are computed again")
    return found


@cache
def _code(files: frozenset[str]) -> str:
    """Return a digest of the code that computes: every file of bench and methods, these files, and library versions."""
    digest = hashlib.sha256()
    for path in sorted((project_files() | files) - {""}):
        digest.update(Path(path).read_bytes())
    return identity.digest([digest.hexdigest(), version("torch"), version("transformers")])


def project_files() -> frozenset[str]:
    """Return every Python file of bench and methods, which lie side by side."""
    own = Path(__file__).parents[2]
    return frozenset(str(path) for package in ("bench", "methods") for path in (own / package).rglob("*.py"))


def code_files(parts: Iterable[Any]) -> frozenset[str]:
    """Return the Python files that may hold code of these objects, or of objects in their fields.

    For a class in a package these are all files of the package; for a class in a single module, every file beside it.
    Python's own files are left out, and so are this project's, which `_code` adds.
    """
    files: set[str] = set()
    for part in _inside(parts):
        for kind in type(part).__mro__:
            path = _source(kind)
            if path is not None and (kind is type(part) or "site-packages" not in path.parts):
                found = path.parent.rglob("*.py") if path.name == "__init__.py" else path.parent.glob("*.py")
                files |= {str(one) for one in found}
    return frozenset(files)


def _source(kind: type) -> Path | None:
    """Return the `__init__.py` of a class's package, or its module's file; None for Python's and this project's."""
    top = kind.__module__.partition(".")[0]
    if top in {"bench", "methods", *sys.stdlib_module_names}:
        return None
    for name in (top, kind.__module__):
        if file := getattr(sys.modules.get(name), "__file__", None):
            return Path(file)
    return None


def _inside(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield objects, and the objects in their fields, at any depth."""
    for part in parts:
        yield part
        if isinstance(part, Mapping):
            yield from _inside(part.values())
        elif isinstance(part, list | tuple):
            yield from _inside(part)
        elif is_dataclass(part):
            yield from _inside(getattr(part, one.name) for one in fields(part))


def _warn(told: str) -> None:
    print(visible(f"warning: {told}"), file=sys.stderr)
