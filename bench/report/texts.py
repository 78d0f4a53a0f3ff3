"""Find the stored continuations of the same prompts by their records.

A set of texts is in a folder whose name follows from model, steering, prompts and decoding
(`bench.records.identity.generation_id`). A record holds the names of the folders that it read. A record of an older
version lacks these names; it holds model, steering and decoding, while the prompts are in the folder. A folder belongs
to such a record if its name follows from the record and the folder's prompts, and if these prompts are items of the
record.
"""

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.console.escape import visible
from bench.files import digests
from bench.leaderboard.grouping import Fit, Row
from bench.records import identity
from bench.records import record as records
from bench.records.fields import plain
from bench.records.record import Record
from methods.broken import reading
from methods.errors import SetupError

PROMPTS, SAMPLES = 40, 3  # of each suite and method, so that a page stays at some MB
FILE = "samples.jsonl.gz"  # as bench.model.generation_cache writes it, which needs torch
PLACE = "{prompt}"  # in the `template` of suites that word their prompts


class Asked(NamedTuple):
    """The prompts of a stored set, and the number of continuations of each."""

    prompts: tuple[str, ...]
    samples: int


@dataclass(frozen=True)
class Store:
    """The folder runs/generations, whose prompts are read once."""

    folder: Path

    @cached_property
    def _read(self) -> tuple[dict[str, Asked], list[str]]:
        found, skipped = {}, []
        for path in sorted(self.folder.glob(f"[!.]*/{FILE}")):
            if not identity.ID.fullmatch(path.parent.name):  # set aside, or somebody else's
                continue
            told = f"{FILE} cannot be read"
            try:
                digests.verified(path.parent)
                with reading(lambda error: SetupError(f"{told} ({type(error).__name__})")):  # noqa: B023
                    found[path.parent.name] = _asked(lines(path))
            except SetupError as error:
                skipped.append(f"texts {path.parent.name} skipped: {str(error).partition(';')[0]}")
        return found, skipped

    @property
    def asked(self) -> dict[str, Asked]:
        """The prompts in each folder, by the folder's name."""
        return self._read[0]

    @property
    def skipped(self) -> list[str]:
        """A line for each set that cannot be read."""
        return self._read[1]

    def texts(self, name: str, prompts: int, samples: int, answers: bool) -> list[list[str]]:
        """Read the first texts of the first prompts of a set. answers: of a model that thinks, only the answers."""
        found: list[list[str]] = []
        for row in lines(self.folder / name / FILE):
            if len(found) == prompts:
                break
            some = row["continuations"][:samples]
            found.append([str(one[3][0] if answers and len(one) > 3 else one[0]) for one in some])
        return found


def _asked(rows: Iterable[dict[str, Any]]) -> Asked:
    """Read the prompts of a set. Raises an error for anything but texts, and for unequal numbers of texts."""
    prompts, counts = [], set()
    for row in rows:
        prompts.append(str(row["prompt"]))
        counts.add(len(row["continuations"]))
        if not all(isinstance(one[0], str) for one in row["continuations"]):
            raise TypeError("a text is none")
    (samples,) = counts
    return Asked(tuple(prompts), samples)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a dictionary per prompt, in the order in which they were asked."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_scores(runs: Path, record: Record) -> pd.DataFrame:
    """Read a row per text: item, sample, and a column for each scorer, of a record that is known to be whole.

    Raises NotWholeError for a table that cannot be read, and for scores that are not numbers.
    """
    scores = records.table(runs / "records" / record.id, "scores")
    for name in record.info.scorers or ():
        if name in scores and (pd.to_numeric(scores[name], errors="coerce").isna() & scores[name].notna()).any():
            raise records.NotWholeError(
                f"scores.parquet holds scores of {name} that are not numbers; run its cell again"
            )
    return scores


class Block(NamedTuple):
    """A stored set that holds prompts of a record: its folder, and the place of its first prompt among the items."""

    start: int
    folder: str
    asked: Asked


def blocks(store: Store, record: Record, scores: pd.DataFrame) -> list[Block]:
    """Return the stored sets that a record read, in the order of its prompts.

    scores: the record's scores, a row per text.
    """
    items = prompts_of(scores)
    if not record.sampling or not items:
        return []
    template = record.template or PLACE
    fitting = {name: one for name, one in store.asked.items() if one.samples == scores["sample"].nunique()}
    if record.generations is None:
        return looked_for(fitting, record, items, template)
    found: list[Block] = []
    at = 0
    for name in record.generations:
        if name not in fitting or place(fitting[name].prompts, items[at:], template) != 0:
            break  # what follows is after other prompts
        found.append(Block(at, name, fitting[name]))
        at += len(fitting[name].prompts)
    return found


def looked_for(
    stored: Mapping[str, Asked], record: Record, items: Sequence[tuple[str, str]], template: str
) -> list[Block]:
    """Find the sets of an older record, which does not name them, by the ids that follow from record and prompts.

    A run with fewer prompts may have left a set with the same first prompts, so the longest set is taken at each place.
    """
    longest: dict[int, Block] = {}
    for asked in dict.fromkeys(stored.values()):  # the methods of a table share their prompts
        name = identity.generation_id(
            record.model.identity, record.steering, asked.prompts, asked.samples, plain(record.sampling)
        )
        if name in stored and (start := place(asked.prompts, items, template)) is not None:
            known = longest.get(start)
            if known is None or len(known.asked.prompts) < len(asked.prompts):
                longest[start] = Block(start, name, asked)
    found: list[Block] = []
    at = 0
    while block := longest.get(at):
        found.append(block)
        at += len(block.asked.prompts)
    return found


def place(prompts: Sequence[str], items: Sequence[tuple[str, str]], template: str) -> int | None:
    """Return where these prompts begin among the items; None if they do not occur consecutively."""
    for start in range(len(items) - len(prompts) + 1):
        run = items[start : start + len(prompts)]
        if all(item in ids(prompt, group, template) for prompt, (item, group) in zip(prompts, run, strict=True)):
            return start
    return None


def ids(prompt: str, group: str, template: str) -> set[str]:
    """Return the possible ids of a prompt (bench.data.prompts): hashes of its text, plain, worded or with its group."""
    before, _, after = template.partition(PLACE)
    plain = prompt.removeprefix(before).removesuffix(after)
    named = {prompt, plain, f"{group} {prompt}"}
    return {hashlib.sha256(one.strip().encode(errors="surrogatepass")).hexdigest()[:12] for one in named}


class Written(NamedTuple):
    """The texts of one fit: texts[i][j] is sample j of prompt i; scores[i][j] has a number for each scorer, or None."""

    label: str
    texts: list[list[str]]
    scores: list[list[list[float | None]]]


class Side(NamedTuple):
    """Texts of several methods after the same prompts.

    total, samples: how many prompts, and texts of each, are stored, whether the page holds them or not. labels: the
    rows of the leaderboard that have texts. left, right: the places in `written` that are shown at first.
    """

    suites: list[str]
    prompts: list[str]
    total: int
    samples: int
    scorers: list[str]
    written: list[Written]
    labels: list[str]
    left: int
    right: int

    def data(self) -> dict[str, Any]:
        """Return all this as plain JSON values; invisible characters are escaped in names, not in texts and prompts."""
        written = [one._asdict() | {"label": visible(one.label)} for one in self.written]
        named = {key: list(map(visible, getattr(self, key))) for key in ("suites", "scorers", "labels")}
        return self._asdict() | named | {"written": written}


class _Sampled(NamedTuple):
    """A record of one fit with its stored sets, its prompts and its scores. row: its row of the leaderboard."""

    row: str
    label: str
    control: bool
    record: Record
    blocks: list[Block]
    items: list[tuple[str, str]]
    scores: pd.DataFrame


def side_by_side(named: Sequence[tuple[Row, str]], runs: Path, store: Store, prompts: int, samples: int) -> list[Side]:
    """Return the stored texts of named rows, for each set of prompts that the suites asked.

    Only the first sampling seed is used. prompts, samples: the most prompts, and texts of each, that are taken, from
    the first on; if the suite orders its prompts by a hash, the first ones are a fixed pseudo-random sample. Two
    methods are shown at first: the unsteered model, and the first row that is not a control.
    """
    if not prompts or not samples or not store.asked:
        return []
    together: dict[tuple[Any, ...], list[_Sampled]] = defaultdict(list)
    for row, name in named:
        control = row.is_baseline or row.is_control
        for fit in row.fits:
            label = f"{name}, fit seed {fit.about.fit_seed}" if len(row.fits) > 1 else name
            for record in first_seeds(fit):
                try:
                    scores = read_scores(runs, record)
                except records.NotWholeError as error:
                    store.skipped.append(f"texts of record {record.id} skipped: {error}")
                    continue
                if found := blocks(store, record, scores):
                    key = (identity.digest(plain(record.sampling)), *(block.asked for block in found))
                    together[key].append(_Sampled(name, label, control, record, found, prompts_of(scores), scores))
    return [side(store, sampled, prompts, samples) for sampled in together.values()]


def first_seeds(fit: Fit) -> list[Record]:
    """Return a record of the first sampling seed for each suite that samples."""
    found: dict[str, Record] = {}
    for record in fit.records:
        if record.sample_seed is not None:
            found.setdefault(record.suite, record)
    return list(found.values())


def prompts_of(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Return id and group of each prompt, in the order in which they were asked."""
    if not {"item", "sample"} <= set(scores):
        return []
    groups = scores["group"] if "group" in scores else pd.Series("", index=scores.index)
    return list(dict.fromkeys(zip(scores["item"].astype(str), groups.astype(str), strict=True)))


def side(store: Store, sampled: Sequence[_Sampled], prompts: int, samples: int) -> Side:
    """Collect the texts of all fits after one set of prompts, with the scores of all suites."""
    suites = list(dict.fromkeys(one.record.suite for one in sampled))
    scorers = list(dict.fromkeys(name for one in sampled for name in one.record.info.scorers or ()))
    by_label: dict[str, list[_Sampled]] = defaultdict(list)
    for one in sampled:
        by_label[one.label].append(one)
    stored = [block.asked for block in sampled[0].blocks]
    asked = [prompt for one in stored for prompt in one.prompts]
    written = []
    for label, own in by_label.items():
        texts: list[list[str]] = []
        for block in own[0].blocks:
            answers = own[0].record.model.judges_answers
            texts += store.texts(block.folder, prompts - len(texts), samples, answers)
        written.append(Written(label, texts, scores_of(own, scorers, texts)))
    methods = [i for i, own in enumerate(by_label.values()) if not own[0].control]
    right = methods[0] if methods else len(written) - 1
    rows = list(dict.fromkeys(one.row for one in sampled))
    return Side(suites, asked[:prompts], len(asked), stored[0].samples, scorers, written, rows, 0, right)


def scores_of(
    sampled: Sequence[_Sampled], scorers: Sequence[str], texts: list[list[str]]
) -> list[list[list[float | None]]]:
    """Return for each text its score by each scorer; None if it was not judged."""
    found: list[list[list[float | None]]] = [[[] for _ in row] for row in texts]
    for scorer in scorers:
        values: dict[tuple[str, int], float] = {}
        judged = next((one for one in sampled if scorer in one.scores), sampled[0])
        start = judged.blocks[0].start
        items = [item for item, _ in judged.items[start : start + len(texts)]]
        if scorer in judged.scores:
            rows = judged.scores[judged.scores["item"].isin(items)]
            keys = zip(rows["item"].astype(str), rows["sample"].astype(int), strict=True)
            values = dict(zip(keys, rows[scorer].astype(float), strict=True))
        for item, row in zip(items, found, strict=True):
            for sample, one in enumerate(row):
                value = values.get((item, sample))
                one.append(None if value is None or pd.isna(value) else round(value, 3))
    return found
