"""Rows of a file that a user brings: an object in each line (JSONL), or a table with a header (CSV, TSV).

A file is read a line at a time, and each error names the line. A byte order mark at the beginning of the file, which
some editors put there, is passed over.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from methods.errors import SetupError

LONGEST = 10_000_000  # bytes of a line; a longer one holds many texts, not one text for a model
NO_UTF8 = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as the error handler "surrogateescape" reads it; valid UTF-8 never gives these."""
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can write it, as an escape, but it is not a character, and UTF-8 cannot hold it."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""The character between the cells of a table, by the end of its file's name; any other file is JSONL."""


@dataclass(frozen=True)
class RowsFile:
    """A file of rows. columns: the columns that each row must have; further columns are read too."""

    path: str
    columns: tuple[str, ...]

    @property
    def delimiter(self) -> str | None:
        """The character between two cells of a table; None for JSONL."""
        return TABLES.get(Path(self.path).suffix.lower())

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """Return all rows, each with the number of its line; blank lines are skipped. Raises SetupError for no row."""
        rows = list(self.each())
        if not rows:
            raise SetupError(f"{self.path}: the file is empty; {self._expected()}")
        return rows

    def each(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows that `read` returns, with only one in memory at a time."""
        path = Path(self.path)
        try:
            if path.exists() and not path.is_file():
                raise self._unreadable("this is a folder" if path.is_dir() else "this can be read only once, as a pipe")
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                yield from self._objects(file) if self.delimiter is None else self._cells(file, self.delimiter)
        except SetupError:
            raise
        except (OSError, ValueError) as error:
            why = str(getattr(error, "strerror", None) or error)
            if isinstance(error, FileNotFoundError):
                why += f" (from {Path.cwd()}{', and ~ is not expanded here' if self.path.startswith('~') else ''})"
            raise self._unreadable(why) from error

    def bad(self, number: int, what: str) -> SetupError:
        """Return the error for a wrong line."""
        return SetupError(f"{self.path}, line {number}: {what}; {self._expected()}")

    def _objects(self, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines(file):
            if line.strip():
                yield number, self._object(line, number)

    def _cells(self, file: TextIO, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
        lines = csv.reader((f"{line}\n" for _, line in self._lines(file)), delimiter=delimiter, strict=True)
        try:
            names = next(lines, [])
            if lacking := [name for name in self.columns if name not in names]:
                raise self.bad(1, f"it names no column {', '.join(lacking)}, but {', '.join(names) or 'none'}")
            if len(set(names)) < len(names):
                raise self.bad(1, f"it names a column twice: {', '.join(names)}")
            for cells in lines:
                if cells and len(cells) != len(names):
                    raise self.bad(
                        lines.line_num, f"{len(cells)} cells, where the first line names {len(names)} columns"
                    )
                if cells:
                    yield lines.line_num, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise self.bad(lines.line_num, f"not valid CSV: {error}") from error

    def _lines(self, file: TextIO) -> Iterator[tuple[int, str]]:
        """Yield each line with its number. Raises SetupError for a line that is too long or not a text."""
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if (size := _bytes(line)) > LONGEST:
                while not line.endswith("\n") and (line := file.readline(LONGEST)):
                    size += _bytes(line)
                raise self.bad(
                    number, f"it has {size:,} bytes, at most {LONGEST:,} are read; write one text in each line"
                )
            if "\0" in line or not line.isascii() and NO_UTF8.search(line):
                raise self.bad(number, _no_text(line))
            yield number, line.removesuffix("\n")

    def _object(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line, object_pairs_hook=_once_each, parse_constant=_no_number, parse_int=_whole)
        except json.JSONDecodeError as error:
            raise self.bad(number, f"not JSON, at column {error.colno}: {_no_json(line, error)}") from error
        except ValueError as error:
            raise self.bad(number, str(error)) from error
        except RecursionError as error:
            raise self.bad(number, "brackets are nested too deeply") from error
        if not isinstance(row, dict):
            raise self.bad(number, f"a JSON {type(row).__name__}, no object")
        for key, text in _texts(row) if "\\u" in line else ():
            if half := HALF.search(text):
                raise self.bad(number, _half(key, half))
        if lacking := next((name for name in self.columns if name not in row), None):
            raise self.bad(number, f"{lacking} is missing")
        return row

    def _unreadable(self, why: str) -> SetupError:
        kind = "JSONL" if self.delimiter is None else "CSV"
        return SetupError(f"{self.path}: {why}; give a readable {kind} file in UTF-8; {self._expected()}")

    def _expected(self) -> str:
        if self.delimiter is not None:
            return f"its first line has to name the columns {', '.join(self.columns)}"
        return "each line has to be {" + ", ".join(f'"{name}": "..."' for name in self.columns) + "}"


# -- what is wrong with a line -----------------------------------------------------------------------------------------


def _bytes(line: str) -> int:
    """Return the number of bytes of a line in its file, without the line break."""
    line = line.removesuffix("\n")
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _no_text(line: str) -> str:
    """Say what is wrong with a line that holds a NUL byte, or a byte that is not UTF-8."""
    if line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        return "the file is in UTF-16 or UTF-32; save it in UTF-8"
    place = next(place for place, sign in enumerate(line) if sign == "\0" or NO_UTF8.match(sign))
    at = f"at byte {_bytes(line[:place]) + 1} of the line"
    if line[place] == "\0":
        return f"a NUL byte {at}: the file is in UTF-16, or no text at all; save it in UTF-8"
    return f"no UTF-8 (0x{ord(line[place]) - 0xDC00:02x} {at}); save the file in UTF-8"


def _no_json(line: str, error: json.JSONDecodeError) -> str:
    """Return the reason why a line is not JSON, naming an invisible character."""
    sign = line[error.pos : error.pos + 1]
    if sign == "\ufeff":
        return "a byte order mark inside the file, as where files were put together; remove it"
    if "" < sign < " " and sign != "\n":
        return f"a control character, 0x{ord(sign):02x}, which a text in JSON holds as {json.dumps(sign)[1:-1]}"
    return error.msg.rstrip(" :").removesuffix(" at")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object. Raises ValueError for a key that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, count),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {_shown(twice)} occurs {count} times in one object; keep one of them")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has; write null, or leave the key out")


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python's limit
        raise ValueError(
            f"a number of {len(digits)} digits, which is too long to read; write it as a string"
        ) from error


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every text in a row with the path of keys to it; a key is a text as well."""
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
    """Return a key as JSON writes it in ASCII, cut if it is long."""
    return json.dumps(key if len(key) <= 60 else f"{key[:60]}...")
