"""Training data from a user's JSONL files, with an object of strings in each line.

A file is read a line at a time, and each error names the line. A byte order mark at the beginning of the file, which
some editors put there, is passed over.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO

from bench.files.digests import file_sha256
from bench.fit_data.base import FitSource
from bench.model.lm import LM
from methods.base import Examples, Pairs
from methods.errors import SetupError

LONGEST = 10_000_000  # bytes of a line; what is longer is not a text for a model, but many in one line
NO_UTF8 = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as "surrogateescape" reads it; of sound UTF-8 nothing is read so."""
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can write it, as an escape, but it is not a character, and UTF-8 cannot hold it."""


@dataclass(frozen=True, kw_only=True)
class TextsFile(FitSource):
    """Ordinary texts: {"text": "..."} in each line."""

    name: ClassVar[str] = "texts"
    keys: ClassVar[tuple[str, ...]] = ("text",)
    tokens_a_line: ClassVar[int] = 30

    path: str

    def identity(self) -> dict[str, Any]:
        """The file's content; where it lies does not matter."""
        self.check()
        return {"name": self.name, "sha256": file_sha256(Path(self.path))}

    def check(self) -> None:
        """Raises SetupError for a file that cannot be read so, naming the first bad line."""
        self.read()

    def tokens(self) -> int:
        """Always 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """The number of lines times a typical length."""
        return len(self.read()) * self.tokens_a_line

    def load(self, lm: LM) -> tuple[Pairs | Examples | list[str], dict[str, Any]]:  # noqa: ARG002
        """What the file holds; nothing is asked of the model."""
        rows = self.read()
        source = {"name": Path(self.path).name, "source": "file", "fingerprint": file_sha256(Path(self.path))[:12]}
        return self.made(*([row[key] for row in rows] for key in self.keys)), {
            self.name: len(rows),
            "sources": [source],
        }

    def made(self, *columns: list[str]) -> Pairs | Examples | list[str]:
        """The training data that a method gets; columns: the texts of the file, a list for each of `keys`."""
        return columns[0]

    def problem(self, row: dict[str, str]) -> str | None:
        """What is wrong with a line whose strings are all there."""
        for key in self.keys:
            if key != "prompt" and not row[key].strip():
                return f"{key} is blank"
        return None

    def read(self) -> list[dict[str, str]]:
        """The objects, one a line; blank lines are passed over."""
        path = Path(self.path)
        try:
            if path.exists() and not path.is_file():
                raise self._unreadable("this is a folder" if path.is_dir() else "this can be read only once, as a pipe")
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                rows = [self._row(line, number) for number, line in self._lines(file) if line.strip()]
        except SetupError:
            raise
        except (OSError, ValueError) as error:
            why = str(getattr(error, "strerror", None) or error)
            if isinstance(error, FileNotFoundError):
                why += f" (from {Path.cwd()}{', and ~ is not expanded here' if self.path.startswith('~') else ''})"
            raise self._unreadable(why) from error
        if not rows:
            raise SetupError(f"{self.path}: nothing in it; {self._expected()}")
        return rows

    def _lines(self, file: TextIO) -> Iterator[tuple[int, str]]:
        """Each line with its number. Raises SetupError for one that is too long, and for one that is not a text."""
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if (size := _bytes(line)) > LONGEST:
                while not line.endswith("\n") and (line := file.readline(LONGEST)):
                    size += _bytes(line)
                raise self._bad(
                    number, f"it has {size:,} bytes, at most {LONGEST:,} are read; one text a line is wanted"
                )
            if "\0" in line or not line.isascii() and NO_UTF8.search(line):
                raise self._bad(number, _no_text(line))
            yield number, line.removesuffix("\n")

    def _row(self, line: str, number: int) -> dict[str, str]:
        try:
            row = json.loads(line, object_pairs_hook=_once_each, parse_constant=_no_number, parse_int=_whole)
        except json.JSONDecodeError as error:
            raise self._bad(number, f"no JSON, at column {error.colno}: {_no_json(line, error)}") from error
        except ValueError as error:
            raise self._bad(number, str(error)) from error
        except RecursionError as error:
            raise self._bad(number, "brackets in brackets, more than can be read") from error
        if not isinstance(row, dict):
            raise self._bad(number, f"a JSON {type(row).__name__}, no object")
        for key, text in _texts(row) if "\\u" in line else ():
            if half := HALF.search(text):
                raise self._bad(number, _half(key, half))
        for key in self.keys:
            if not isinstance(row.get(key), str):
                raise self._bad(number, f"{key} is {'missing' if key not in row else 'no string'}")
        found = self.problem(row)
        if found:
            raise self._bad(number, found)
        return row

    def _unreadable(self, why: str) -> SetupError:
        return SetupError(f"{self.path}: {why}; give a readable JSONL file in UTF-8; {self._expected()}")

    def _bad(self, number: int, what: str) -> SetupError:
        return SetupError(f"{self.path}, line {number}: {what}; {self._expected()}")

    def _expected(self) -> str:
        return "each line has to be {" + ", ".join(f'"{key}": "..."' for key in self.keys) + "}"


@dataclass(frozen=True, kw_only=True)
class ExamplesFile(TextsFile):
    """What to fine-tune on: {"prompt": "...", "completion": "..."} in each line; a prompt may be empty."""

    name: ClassVar[str] = "examples"
    keys: ClassVar[tuple[str, ...]] = Examples._fields
    tokens_a_line: ClassVar[int] = 40

    def made(self, *columns: list[str]) -> Examples:
        """The columns as keyword arguments."""
        return Examples(*columns)


@dataclass(frozen=True, kw_only=True)
class PairsFile(TextsFile):
    """Contrast pairs: {"prompt": "...", "desired": "...", "undesired": "..."} in each line; a prompt may be empty."""

    name: ClassVar[str] = "pairs"
    keys: ClassVar[tuple[str, ...]] = Pairs._fields
    tokens_a_line: ClassVar[int] = 72

    def made(self, *columns: list[str]) -> Pairs:
        """The columns as keyword arguments."""
        return Pairs(*columns)

    def problem(self, row: dict[str, str]) -> str | None:
        """Whether a text is blank, or both texts of a pair are equal."""
        if row["desired"] == row["undesired"]:
            return "desired and undesired are the same text"
        return super().problem(row)


# -- what is wrong with a line -----------------------------------------------------------------------------------------


def _bytes(line: str) -> int:
    """Bytes of a line in its file, without its end."""
    line = line.removesuffix("\n")
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _no_text(line: str) -> str:
    """What is wrong with a line that holds a NUL byte, or a byte that is not UTF-8."""
    if line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        return "the file is in UTF-16 or UTF-32; save it in UTF-8"
    place = next(place for place, sign in enumerate(line) if sign == "\0" or NO_UTF8.match(sign))
    at = f"at byte {_bytes(line[:place]) + 1} of the line"
    if line[place] == "\0":
        return f"a NUL byte {at}: the file is in UTF-16, or no text at all; save it in UTF-8"
    return f"no UTF-8 (0x{ord(line[place]) - 0xDC00:02x} {at}); save the file in UTF-8"


def _no_json(line: str, error: json.JSONDecodeError) -> str:
    """Why a line is not JSON; of what cannot be seen, what it is."""
    sign = line[error.pos : error.pos + 1]
    if sign == "\ufeff":
        return "a byte order mark inside the file, as where files were put together; remove it"
    if "" < sign < " " and sign != "\n":
        return f"a control character, 0x{ord(sign):02x}, which a text in JSON holds as {json.dumps(sign)[1:-1]}"
    return error.msg.rstrip(" :").removesuffix(" at")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, count),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {_shown(twice)} is there {count} times in one object; leave one of them")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has; write null, or leave the key out")


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python's limit
        raise ValueError(f"a number of {len(digits)} digits, more than are read; write it as a text") from error


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text in a row with the path of keys to it; a key is a text as well."""
    left: list[tuple[str, Any]] = [("", row)]
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, list):
            left += [(path, one) for one in value]
        elif isinstance(value, dict):
            for key, inner in value.items():
                below = f"{path}.{key}" if path else key
                left += [(below, key), (below, inner)]


def _half(key: str, found: re.Match[str]) -> str:
    escape = f"\\u{ord(found[0]):04x}"
    return (
        f"{escape} in {_shown(key)}, its character {found.start() + 1}, is half of a surrogate pair, which is no "
        "character; write both halves, or the letter itself"
    )


def _shown(key: str) -> str:
    """A key as JSON writes it in ASCII, cut where it is long."""
    return json.dumps(key if len(key) <= 60 else f"{key[:60]}...")
