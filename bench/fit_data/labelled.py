"""Single texts labelled desired or undesired, for methods that need neither pairs nor classes of equal size."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.data.sources import Sources, loaded
from bench.data.splits import Learnt, rank
from bench.data.text_sets import learnt_file
from bench.files.digests import file_sha256
from bench.files.rows import RowsFile
from bench.fit_data.base import FitSource
from bench.fit_data.fine_tuning import too_few
from bench.model.lm import LM
from methods.base import DESIRED, UNDESIRED, Labelled
from methods.errors import SetupError

TEXT_TOKENS = 40  # tokens of a text, roughly
WHOLE = re.compile(r"^(-?\d+)\.0+$")  # a table with gaps writes 1 as 1.0
SHOWN = 8  # values of a column that a message lists
Values = Sequence[str | int]


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(FitSource):
    """Texts labelled by columns of a table; a text is undesired if one of its label columns has a value in `undesired`.

    text: the column of the text. label: the column of the label, or several columns (the comments of Jigsaw have six);
    if a value is a list, each of its entries counts. desired: the values of desired texts; None: all other values.
    limit: the number of texts, which are the first in the order of a hash; None: all. A row is left out, and counted in
    the record, if its values are in neither list, if it has no label at all (empty, null, NaN), if it has no text, or
    if its text occurs with both labels; of equal rows only one is read. Outer blanks and the case of labels do not
    count: "Toxic " is "toxic", and 1.0 is 1.
    """

    name: ClassVar[str] = "labelled"
    version: ClassVar[int] = 2  # 2: rows without a label are left out; outer blanks and case do not count

    text: str = "text"
    label: str | Sequence[str] = "label"
    undesired: Values = (1,)
    desired: Values | None = None
    limit: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, first the column of the text."""
        return (self.text, *([self.label] if isinstance(self.label, str) else self.label))

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return the part of an id that changes with the table's content, such as a hash of the file."""

    @abstractmethod
    def rows(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the rows of the table, and what a record says about their source."""

    def check(self) -> None:
        """Raises SetupError if no column or no value is named, and for a value in both lists."""
        if len(self.columns) < 2 or not self.undesired:
            raise SetupError("labelled.label and labelled.undesired: name a column, and a value of the undesired texts")
        if both := set(written(self.undesired)) & set(written(self.desired or ())):
            raise SetupError(f"labelled.undesired and labelled.desired: both hold {', '.join(sorted(both))}")

    def identity(self) -> dict[str, Any]:
        """Return the content, the columns and the values."""
        self.check()
        return {
            "name": self.name,
            "version": self.version,
            "columns": list(self.columns),
            "undesired": sorted(set(written(self.undesired))),
            "desired": None if self.desired is None else sorted(set(written(self.desired))),
            "limit": self.limit,
            **self.content(),
        }

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Return the number of texts times a typical length."""
        return (self.limit or len(self.rows()[0])) * TEXT_TOKENS

    def load(self, lm: LM) -> tuple[Labelled, dict[str, Any]]:  # noqa: ARG002  the texts are there already
        """Return the texts with their labels. Raises SetupError for fewer than `limit`, and if all are of one class."""
        self.check()
        rows, source = self.rows()
        labels = self._labels(rows)
        known = {text: one for text, (one, *others) in labels.items() if not others}
        if self.limit is not None and len(known) < self.limit:
            raise too_few("labelled.limit", self.limit, len(known), "lower it, or set null for all")
        texts = sorted(known, key=rank)[: self.limit]
        found = Labelled(texts, [known[text] for text in texts])
        if len(set(found.label)) < 2:
            raise self._one_class(found, rows, len(known))
        about = {"texts": len(texts), "undesired": sum(found.label), "left_out": len(rows) - len(known)}
        return found, about | {"sources": [source]}

    def _labels(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, set[int]]:
        """Return the distinct texts that have a label, each with its labels."""
        found: dict[str, set[int]] = {}
        undesired, desired = set(written(self.undesired)), set(written(self.desired or ()))
        for row in rows:
            cells = [row[name] for name in self.columns[1:]]
            values, text = set(written(cells)), (row[self.text] or "").strip()
            is_desired = values & desired if desired else values or [] in cells
            label = UNDESIRED if values & undesired else DESIRED if is_desired else None
            if label is not None and text:
                found.setdefault(text, set()).add(label)
        return found

    def _one_class(self, texts: Labelled, rows: Sequence[Mapping[str, Any]], known: int) -> SetupError:
        if not any((row[self.text] or "").strip() for row in rows):
            return SetupError(f"labelled.text={self.text}: every text of this column is empty; name another column")
        seen = Counter(value for row in rows for value in written(row[name] for name in self.columns[1:]))
        values = [f"{value[:20]} ({count})" for value, count in seen.most_common(SHOWN)]
        lacking = "undesired" if UNDESIRED not in texts.label else "desired"
        if len(texts.text) < known:
            return SetupError(f"labelled.limit={self.limit}: none of so few texts is {lacking}; raise it")
        return SetupError(
            f"labelled: of {len(texts.text)} texts none is {lacking}; the values of {', '.join(self.columns[1:])} are "
            f"{', '.join(values)}: set labelled.{lacking} to some of these"
        )


@dataclass(frozen=True, kw_only=True)
class LabelledFile(LabelledTexts):
    """The rows of a file: JSONL, or CSV whose first line names the columns."""

    path: str

    def learnt(self) -> Learnt:
        """Return the file, whose texts a suite may not ask."""
        return learnt_file(self.path)

    def check(self) -> None:
        """Raises SetupError for wrong options, and for a file that cannot be read, naming the bad line."""
        super().check()
        self.rows()

    def content(self) -> dict[str, Any]:
        """Return the file's content; where it lies does not matter."""
        return {"sha256": file_sha256(Path(self.path))}

    def rows(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the rows of the file. Raises SetupError for a text that is not a string."""
        file = RowsFile(self.path, self.columns)
        rows = file.read()
        for number, row in rows:
            if not isinstance(row[self.text], str):
                raise file.bad(number, f"{self.text} is not a string")
        source = {"name": Path(self.path).name, "source": "file", "fingerprint": file_sha256(Path(self.path))[:12]}
        return [row for _, row in rows], source


@dataclass(frozen=True, kw_only=True)
class LabelledSet(LabelledTexts):
    """The rows of a split of a data set, named as on the hub."""

    sources: Sources
    data: str
    config: str | None = None
    split: str = "train"

    def learnt(self) -> Learnt:
        """Return the split, which a suite may not ask."""
        return Learnt(sets=[(self.data, self.split)])

    def content(self) -> dict[str, Any]:
        """Return the split and its source."""
        return {"source": self.sources.locate(self.data, self.config, self.split).identity()}

    def rows(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the rows of the split, and facts about it.

        Raises SetupError if no source has the split, or if it lacks the columns or texts.
        """
        located, rows = loaded(self.sources, self.data, self.config, self.split, self.columns)
        if not all(isinstance(row[self.text], str | None) for row in rows):
            raise SetupError(f"labelled.text={self.text}: this column of {located} holds no texts; name another")
        return rows, located.facts()


def written(values: Iterable[Any]) -> Iterator[str]:
    """Yield values as a file has them as text: of a list each entry, of a missing value (empty, null, NaN) nothing."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from written(value)
        elif value is not None and (text := WHOLE.sub(r"\1", str(value).strip().casefold())) not in ("", "nan"):
            yield text
