"""Training data from a user's files: an object of strings in each line (JSONL), or a table with a header (CSV)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.data.splits import Learnt
from bench.data.text_sets import learnt_file
from bench.files.digests import file_sha256
from bench.files.rows import RowsFile
from bench.fit_data.base import FitSource
from bench.model.lm import LM
from methods.base import Examples, Pairs


@dataclass(frozen=True, kw_only=True)
class TextsFile(FitSource):
    """Ordinary texts: {"text": "..."} in each line."""

    name: ClassVar[str] = "texts"
    keys: ClassVar[tuple[str, ...]] = ("text",)
    tokens_a_line: ClassVar[int] = 30

    path: str

    def identity(self) -> dict[str, Any]:
        """Return the file's content; where it lies does not matter."""
        self.check()
        return {"name": self.name, "sha256": file_sha256(Path(self.path))}

    def check(self) -> None:
        """Raises SetupError for a file that is not in this format, naming the first bad line."""
        self.read()

    def learnt(self) -> Learnt:
        """Return the file, whose texts a suite may not ask."""
        return learnt_file(self.path)

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Return the number of lines times a typical length."""
        return len(self.read()) * self.tokens_a_line

    def load(self, lm: LM) -> tuple[Pairs | Examples | list[str], dict[str, Any]]:  # noqa: ARG002
        """Return what the file holds; the model is not run."""
        rows = self.read()
        source = {"name": Path(self.path).name, "source": "file", "fingerprint": file_sha256(Path(self.path))[:12]}
        return self.made(*([row[key] for row in rows] for key in self.keys)), {
            self.name: len(rows),
            "sources": [source],
        }

    def made(self, *columns: list[str]) -> Pairs | Examples | list[str]:
        """Return the training data that a method gets; columns: the texts of the file, a list for each of `keys`."""
        return columns[0]

    def problem(self, row: dict[str, str]) -> str | None:
        """Return what is wrong with a line whose values are all strings; None if nothing is."""
        for key in self.keys:
            if key != "prompt" and not row[key].strip():
                return f"{key} is blank"
        return None

    def read(self) -> list[dict[str, str]]:
        """Return the rows. Raises SetupError for a value that is not a string, and for a row with a `problem`."""
        file = RowsFile(self.path, self.keys)
        rows = file.read()
        for number, row in rows:
            wrong = next((f"{key} is not a string" for key in self.keys if not isinstance(row[key], str)), None)
            if wrong := wrong or self.problem(row):
                raise file.bad(number, wrong)
        return [row for _, row in rows]


@dataclass(frozen=True, kw_only=True)
class ExamplesFile(TextsFile):
    """Examples to fine-tune on: {"prompt": "...", "completion": "..."} in each line; a prompt may be empty."""

    name: ClassVar[str] = "examples"
    keys: ClassVar[tuple[str, ...]] = Examples._fields
    tokens_a_line: ClassVar[int] = 40

    def made(self, *columns: list[str]) -> Examples:
        """Return the columns as examples."""
        return Examples(*columns)


@dataclass(frozen=True, kw_only=True)
class PairsFile(TextsFile):
    """Contrast pairs: {"prompt": "...", "desired": "...", "undesired": "..."} in each line; a prompt may be empty."""

    name: ClassVar[str] = "pairs"
    keys: ClassVar[tuple[str, ...]] = Pairs._fields
    tokens_a_line: ClassVar[int] = 72

    def made(self, *columns: list[str]) -> Pairs:
        """Return the columns as pairs."""
        return Pairs(*columns)

    def problem(self, row: dict[str, str]) -> str | None:
        """Return what is wrong if a text is blank or both texts of a pair are equal; otherwise None."""
        if row["desired"] == row["undesired"]:
            return "desired and undesired are the same text"
        return super().problem(row)
