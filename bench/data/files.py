"""What methods learn from, brought by a user: JSONL files with an object of strings in each line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.data.wheels import file_sha256
from bench.lm import LM
from methods.base import Examples, Pairs
from methods.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class TextsFile:
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
        """Nothing is sampled."""
        return 0

    def size(self) -> int:
        """As many lines, of which each is some tokens long."""
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
        """What a method gets, of the texts under each key."""
        return columns[0]

    def problem(self, row: dict[str, str]) -> str | None:
        """What is wrong with a line whose strings are all there."""
        for key in self.keys:
            if key != "prompt" and not row[key].strip():
                return f"{key} is blank"
        return None

    def read(self) -> list[dict[str, str]]:
        """The objects, one a line; blank lines are passed over."""
        try:
            lines = Path(self.path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"{self.path}: {error}; give a JSONL file in UTF-8, {self._expected()}") from error
        rows = [self._row(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise SetupError(f"{self.path}: nothing in it; {self._expected()}")
        return rows

    def _row(self, line: str, number: int) -> dict[str, str]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise self._bad(number, f"no JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict):
            raise self._bad(number, f"a JSON {type(row).__name__}, no object")
        for key in self.keys:
            if not isinstance(row.get(key), str):
                raise self._bad(number, f"{key} is {'missing' if key not in row else 'no string'}")
        found = self.problem(row)
        if found:
            raise self._bad(number, found)
        return row

    def _bad(self, number: int, what: str) -> SetupError:
        return SetupError(f"{self.path}, line {number}: {what}; {self._expected()}")

    def _expected(self) -> str:
        return "expected is {" + ", ".join(f'"{key}": "..."' for key in self.keys) + "} in each line"


@dataclass(frozen=True, kw_only=True)
class ExamplesFile(TextsFile):
    """What to fine-tune on: {"prompt": "...", "completion": "..."} in each line; a prompt may be empty."""

    name: ClassVar[str] = "examples"
    keys: ClassVar[tuple[str, ...]] = Examples._fields
    tokens_a_line: ClassVar[int] = 40

    def made(self, *columns: list[str]) -> Examples:
        """The columns by their names."""
        return Examples(*columns)


@dataclass(frozen=True, kw_only=True)
class PairsFile(TextsFile):
    """Contrast pairs: {"prompt": "...", "desired": "...", "undesired": "..."} in each line; a prompt may be empty."""

    name: ClassVar[str] = "pairs"
    keys: ClassVar[tuple[str, ...]] = Pairs._fields
    tokens_a_line: ClassVar[int] = 72

    def made(self, *columns: list[str]) -> Pairs:
        """The columns by their names."""
        return Pairs(*columns)

    def problem(self, row: dict[str, str]) -> str | None:
        """A blank or a pair that is none."""
        if row["desired"] == row["undesired"]:
            return "desired and undesired are the same text"
        return super().problem(row)
