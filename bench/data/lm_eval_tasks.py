"""lm-eval's task definitions over our sources: the documents, how they are asked, and what an answer scores.

The definitions (prompt, choices, metrics) are lm-eval's; only where the data comes from is overridden.
"""

import functools
import hashlib
import importlib.util
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import UndefinedError

from bench.data.sources import Located, arrow_cache, check_text, files_of, readable, rows_at, splits_at
from bench.stats import metrics
from methods.broken import reading
from methods.errors import SetupError

FIELD_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}  # lm-eval's names of metrics, spelled out
HUB_FILE = re.compile(r"hf://datasets/([^/]+/[^/]+)/")
GROUPS = {"mmlu": "mmlu/default", "bbh_cot": "bbh/cot_fewshot", "arithmetic": "arithmetic", "tydiqa_goldp": "tydiqa"}
"""Folders of lm-eval's tasks; all tasks of a folder are asked under one name."""
ORDERED_BY: dict[str, tuple[str, ...]] = {
    "arc_challenge": ("question",),
    "arc_easy": ("question",),
    "asdiv": ("body", "question"),
    "boolq": ("question",),
    "commonsense_qa": ("question",),
    "hellaswag": ("query",),
    "openbookqa": ("question_stem",),
}
"""The columns that identify a task's document, for data sets whose copies differ in other columns (ids, titles, how an
answer is written). So a mirror, a wheel and the hub give the same documents. In all other tasks, all columns count."""


EXAMPLES_FROM = ("fewshot_split", "training_split", "validation_split", "test_split")
"""lm-eval's own rule: solved examples are taken from the first of these splits that a task has."""
OPTION = re.compile(r"^\(?[A-Za-z0-9][.):]\s*")  # "A. ", "(b) ": a letter before an answer to choose


class Definition(NamedTuple):
    """The part of a task that lm-eval ships: its YAML file, and where its documents are on the hub."""

    file: Path
    dataset: str
    config: str | None
    split: str
    version: str
    splits: tuple[tuple[str, str], ...]  # (setting, split that it names), in the order of EXAMPLES_FROM
    shots: int  # solved examples that the task's own file asks for
    fixed_examples: bool  # whether the file itself contains the solved examples


@functools.cache
def task_files() -> dict[str, Path]:
    """Return the YAML file of each task that lm-eval ships. Raises SetupError if lm-eval is not installed.

    lm-eval's own index parses all 14,000 files, which takes many seconds; reading only the names takes one second.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise SetupError("lm_eval is not installed; run: pip install lm-eval")
    name = re.compile(rb"^[\"']?task[\"']?:\s*[\"']?([\w.+-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)
    files: dict[str, Path] = {}
    for file in sorted((Path(found.origin).parent / "tasks").rglob("*.yaml")):
        named = name.search(file.read_bytes())
        if named:
            files.setdefault(named[1].decode(), file)
    return files


@functools.cache
def members(name: str) -> tuple[str, ...]:
    """Return the lm-eval tasks that are asked under this name: the task itself, or all tasks of a group's folder."""
    if name not in GROUPS:
        return (name,)
    return tuple(sorted(task for task, file in task_files().items() if file.parent.parts[-2:] == _folder(name)))


def _folder(name: str) -> tuple[str, ...]:
    return ("tasks", *GROUPS[name].split("/"))[-2:]


@functools.cache
def _manager(folder: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=str(folder))


@functools.cache
def definitions(tasks: tuple[str, ...]) -> dict[str, Definition]:
    """Return lm-eval's definitions of these tasks. Raises SetupError for an unknown name or a task without data."""
    import difflib

    from lm_eval.tasks import TaskManager

    files = task_files()
    for task in tasks:
        if task not in files:
            near = ", ".join(difflib.get_close_matches(task, files, 4)) or "see lm-eval's list: lm-eval ls tasks"
            raise SetupError(f"tasks: lm-eval has no task {task!r}; close to it: {near}. Groups: {', '.join(GROUPS)}")
    manager = TaskManager(include_defaults=False, include_path=sorted({str(files[task].parent) for task in tasks}))
    return {task: _definition(task, files[task], manager.task_index[task].cfg or {}) for task in tasks}


def _definition(task: str, file: Path, cfg: dict[str, Any]) -> Definition:
    split = cfg.get("test_split") or cfg.get("validation_split")  # lm-eval's own rule
    dataset, config = cfg.get("dataset_path"), cfg.get("dataset_name")
    remote = HUB_FILE.match(str((cfg.get("dataset_kwargs") or {}).get("data_files", {}).get(split, "")))
    if dataset == "json" and remote:  # arithmetic_*: one file of a hub data set whose configs are named like the tasks
        dataset, config = remote[1], task
    if not dataset or not split or not isinstance(cfg.get("metric_list", []), list):
        raise SetupError(f"lm-eval's task {task} names no data set and split, so no source can be found for it")
    number = (cfg.get("metadata") or {}).get("version", "unknown")
    splits = tuple((key, str(cfg[key])) for key in EXAMPLES_FROM if cfg.get(key))
    fixed = bool((cfg.get("fewshot_config") or {}).get("samples"))
    return Definition(file, dataset, config, split, str(number), splits, int(cfg.get("num_fewshot") or 0), fixed)


def examples_split(definition: Definition, where: Located, shots: int | None) -> str | None:
    """Return the split of this source that solved examples are taken from.

    None if no examples are shown, or if the task's definition itself contains the examples. lm-eval's own rule chooses
    among the splits that the source has. shots: as in `load_task`.
    """
    if not (definition.shots if shots is None else shots):
        return None
    there = dict(_there(definition, where))
    if definition.fixed_examples and "fewshot_split" not in there:
        return None
    return next(iter(there.values()))


def _there(definition: Definition, where: Located) -> list[tuple[str, str]]:
    held = splits_at(where)
    return [(key, split) for key, split in definition.splits if split in held]


@functools.cache
def load_task(task: str, definition: Definition, where: Located, shots: int | None = 0) -> Any:
    """Return lm-eval's task object over a source; it is kept, so that the cells of a process load it only once.

    shots: number of solved examples before each question; None: as many as the task's own file says. With examples,
    every split that the source has is kept. lm-eval's own rule says which split the examples are taken from
    (`examples_split`), and `Examples` picks them so that none gives its question away. Without examples, only the split
    that is asked is kept.

    Raises SetupError for files that cannot be read, and for rows that the task's definition cannot ask.
    """
    changed: dict[str, Any] = {"task": task, "dataset_path": where.path, "dataset_name": where.config}
    changed["dataset_kwargs"] = {"cache_dir": arrow_cache()}
    with_examples = bool(definition.shots if shots is None else shots)
    named = [key for key, _ in definition.splits]
    asked = "test_split" if "test_split" in named else "validation_split"
    kept = {asked, *(key for key, _ in _there(definition, where))} if with_examples else {asked}
    changed |= {key: None for key in named if key not in kept}
    with reading(lambda error: _cannot_ask(task, where, error), *OF_ROWS):
        with readable(where):
            loaded = _manager(definition.file.parent).load({"group": "local", "task": [changed]})["tasks"][task]
            for rows in loaded.dataset.values():
                check_text(rows)
    if shots is not None:
        loaded.set_config(key="num_fewshot", value=shots)
    if with_examples:
        if not hasattr(loaded, "sampler"):
            raise SetupError(f"lm-eval's task {task} chooses its examples in its own way; set fewshot=0")
        loaded.sampler = Examples(loaded)
    loaded.documents = Documents(loaded, where)
    return loaded


OF_ROWS = (UndefinedError, SyntaxError)
"""Errors that lm-eval raises for rows that it cannot ask, besides the errors that a broken file causes."""


def _cannot_ask(task: str, where: Located, error: BaseException) -> SetupError:
    """Return the error for rows that a task's definition cannot ask; it names a row with an empty value, if any."""
    rows = rows_at(where)
    usual = {key for row in rows for key, value in row.items() if not _lacks(value)}
    lacking = ((number, [key for key in usual if _lacks(row[key])]) for number, row in enumerate(rows))
    told = next(
        (f"row {number} lacks something in {', '.join(sorted(keys))}; " for number, keys in lacking if keys), ""
    )
    return SetupError(
        f"lm-eval's task {task} cannot ask the rows of {where} ({type(error).__name__}: {error}); {told}the columns "
        f"are {', '.join(rows.column_names)}: give a copy with the hub's of {files_of(where)}"
    )


def _lacks(value: Any) -> bool:
    """Return whether a value of a row, or any part of the value, is empty."""
    if isinstance(value, dict | list):
        return not value or any(map(_lacks, value.values() if isinstance(value, dict) else value))
    return value is None or value == ""


class Documents:
    """Watches a task's documents: if lm-eval cannot ask or judge one, a SetupError tells the document's number.

    The number is the document's place in the split, counted from 0. Without this class, lm-eval would raise an
    IndexError or a KeyError of its own, or count an invalid label as a wrong answer.
    """

    def __init__(self, task: Any, where: Located) -> None:
        self.task, self.where = task, where
        self._documents, self._build = task.doc_iterator, task.construct_requests
        self._numbers: dict[int, int] = {}  # by the document's id in memory
        task.doc_iterator, task.construct_requests = self._iterated, self._constructed
        for name in ("fewshot_context", "process_results"):
            setattr(task, name, self._naming(getattr(task, name)))

    def _iterated(self, **settings: Any) -> Iterator[tuple[int, Any]]:
        self._numbers.clear()
        for number, document in self._documents(**settings):
            self._numbers[id(document)] = number
            yield number, document

    def _constructed(self, doc: dict[str, Any], ctx: Any, **settings: Any) -> Any:
        with self.reading(self._numbers.get(id(doc))):
            built = self._build(doc, ctx, **settings)
            if problem := _problem(self.task, doc):
                raise ValueError(problem)
            return built

    def _naming(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def named(doc: Any, *given: Any, **settings: Any) -> Any:
            with self.reading(self._numbers.get(id(doc))):
                return call(doc, *given, **settings)

        return named

    def reading(self, number: int | None) -> AbstractContextManager[None]:
        """Turn an error in reading a document inside the `with` into a SetupError that gives the document's number."""
        return reading(lambda error: self._told(number, error), *OF_ROWS)

    def _told(self, number: int | None, error: BaseException) -> SetupError:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        which = "a document" if number is None else f"document {number}"
        examples = ", or an example before it," if self.task.config.num_fewshot else ""
        return SetupError(
            f"lm-eval's task {self.task.config.task}: {which} of {self.where}{examples} cannot be asked "
            f"({kind}{error}); give a whole copy of {files_of(self.where)}"
        )


def _problem(task: Any, document: dict[str, Any]) -> str | None:
    """Return what is wrong with a document's choices, right answer or text; None if nothing is."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling" and not str(task.doc_to_target(document)).strip():
        return "it has no text"
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices, gold = task.doc_to_choice(document), _gold(task, document)
    if not all(isinstance(one, str) for one in choices):
        return f"its choices are {choices!r}; expected texts"
    for one in gold:
        if isinstance(one, str) and one not in choices:
            return f"its right answer is {one!r}, which is none of {choices!r}"
        if not isinstance(one, str) and not (isinstance(one, int | np.integer) and 0 <= one < len(choices)):
            return f"its label is {one!r}, and there are {len(choices)} choices, 0 to {len(choices) - 1}"
    return None if gold else "it has no right answer"


class Examples:
    """Picks the solved examples of a task as lm-eval's own sampler does, but none that gives the asked question away.

    An example that asks the same question, whether it is the asked document itself or a copy of it, is left out. The
    first document of the split that asks another question, and is not yet an example, is added at the end instead; if
    there is none, there are fewer examples. A document whose examples do not give it away keeps the examples of
    lm-eval.
    """

    def __init__(self, task: Any) -> None:
        self.task, self._sampler, self._build = task, task.sampler, task.fewshot_context
        self._asked: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        task.fewshot_context = self._context
        self.begin()

    def begin(self) -> None:
        """Restart the random draws and the count, as in a process that asks nothing else."""
        self.set_rnd(0)
        self.counts.clear()

    def set_rnd(self, seed: int | None) -> None:
        """Seed the random draws."""
        self._sampler.set_rnd(seed)

    def _context(self, doc: dict[str, Any], *rest: Any, **settings: Any) -> Any:
        self._asked = doc
        return self._build(doc, *rest, **settings)

    def sample(self, n: int, eval_doc: dict[str, Any] | None = None, **_: Any) -> list[dict[str, Any]]:
        """Return at most n solved examples for the question that lm-eval is wording.

        eval_doc: the asked document; lm-eval gives it if it knows that the document may be among the examples. Raises
        SetupError if the split has fewer than n documents.
        """
        every = list(self._sampler.fewshot_docs())
        if n > len(every):
            raise SetupError(
                f"lm-eval's task {self.task.config.task} has {len(every)} documents to take examples from, and "
                f"{n} were asked for; lower fewshot"
            )
        asked = _questions(self.task, self._asked)
        # given the asked document, lm-eval draws one more than it needs, and fails if that is too many
        enough = eval_doc is None or (n < len(every) and n <= sum(one != eval_doc for one in every))
        drawn = list(self._sampler.sample(n, eval_doc)) if enough else every
        kept = [one for one in drawn if not self._gives_away(one, asked)]
        if len(kept) < len(drawn):
            self.counts["left_out"] += len(drawn) - len(kept)
            others = (one for one in every if one not in drawn and not self._gives_away(one, asked))
            kept = list(itertools.islice(itertools.chain(kept, others), n))
        self.counts["lacking"] += n - len(kept)
        return kept

    def _gives_away(self, example: dict[str, Any], asked: list[list[str]]) -> bool:
        columns = ORDERED_BY.get(self.task.config.task, ())
        named = columns and all(_alike(example.get(column), self._asked[column]) for column in columns)
        if example == self._asked or named:
            return True
        return any(one and one == other for one, other in zip(_questions(self.task, example), asked, strict=True))


def _questions(task: Any, document: dict[str, Any]) -> list[list[str]]:
    """Return the question in two forms: as it is, and with each text of the document on one line ([] if that fails)."""
    try:
        on_one_line = _question(task, _plain(document))
    except (UndefinedError, LookupError, AttributeError, TypeError, ValueError):  # the task may need line breaks
        on_one_line = []
    return [_question(task, document), on_one_line]


def _question(task: Any, document: dict[str, Any]) -> list[str]:
    """Return the question: the lines of the prompt or, if it is empty, of the choices, sorted to hide their order.

    Letters before options, case, blanks and how Unicode writes a letter do not count either. If the choices are prompts
    (WinoGrande), the text that follows each of them is a line as well.
    """
    try:
        text = task.doc_to_text(document)
    except (UndefinedError, AttributeError, KeyError, TypeError):  # a fixed example may have columns of its own
        text = task.doc_to_text(document, task.fewshot_cfg.doc_to_text)
    if not isinstance(text, str) or not text.strip():
        choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else []
        text = "\n".join(map(str, [*choices, task.doc_to_target(document)] if task.multiple_input else choices))
    lines = (_plain(OPTION.sub("", line.strip()).casefold()) for line in text.splitlines())
    return sorted(line for line in lines if line)


def _plain(value: Any) -> Any:
    """Return the value with every text in Unicode's NFKC, without zero-width characters and with single blanks."""
    if isinstance(value, str):
        seen = "".join(letter for letter in value if unicodedata.category(letter) != "Cf")
        return " ".join(unicodedata.normalize("NFKC", seen).split())
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _alike(one: Any, other: Any) -> bool:
    """Return whether two columns have the same text, except for case and what `_plain` removes."""
    first, second = (_plain(text.casefold()) if isinstance(text, str) else _plain(text) for text in (one, other))
    return bool(first == second)


@functools.cache
def ranking(
    task: str, definition: Definition, where: Located, seed: int, columns: tuple[str, ...] = ()
) -> list[tuple[str, int]]:
    """Return (hash of seed and content, number) of each distinct document of a task, in ascending order.

    columns: the columns that are hashed; (): all.
    """
    distinct: dict[str, tuple[str, int]] = {}
    documents = load_task(task, definition, where).eval_docs
    for column in columns:
        if len(documents) and column not in documents[0]:
            raise _cannot_ask(task, where, KeyError(column))
    for number, document in enumerate(documents):
        named = {column: document[column] for column in columns or document}
        distinct.setdefault(_digest(document), (_digest(named, str(seed)), number))
    return sorted(distinct.values())


FOR_FITTING = 0.45  # share of a task's documents; the same share of RealToxicityPrompts' prompts is for fitting


def is_for_fitting(document: Any) -> bool:
    """Return whether fine-tuning examples may be made of this document, by a hash of its content."""
    return int(_digest(document, "fit")[:8], 16) / 16**8 < FOR_FITTING


def questions(task: str, definition: Definition, where: Located) -> list[tuple[str, str]]:
    """Return prompt and right answer of each document for fitting, worded as lm-eval asks them.

    They are in the order of `ranking` with seed 0.

    Raises SetupError for a task whose documents are not questions with one prompt and several answers.
    """
    loaded = load_task(task, definition, where)
    if loaded.OUTPUT_TYPE != "multiple_choice" or loaded.multiple_input:
        raise SetupError(f"{task} is not a multiple-choice task, so its answers cannot be trained on; choose another")
    delimiter = loaded.config.target_delimiter
    found = []
    for _, number in ranking(task, definition, where, 0):
        document = loaded.eval_docs[number]
        if is_for_fitting(document):
            with loaded.documents.reading(number):
                if problem := _problem(loaded, document):
                    raise ValueError(problem)
                answer = loaded.doc_to_choice(document)[gold_answers(loaded, document)[0]]
                found.append((loaded.doc_to_text(document), delimiter + answer))
    return found


def _digest(document: Any, salt: str = "") -> str:
    text = json.dumps(document, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(f"{salt}\x00{text}".encode()).hexdigest()


# -- numbers -----------------------------------------------------------------------------------------------------------


def task_items(name: str, loaded: Any, samples: Sequence[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return items (metrics.ITEM_COLUMNS) and scores (a row per answer asked) of a task's documents, under `name`.

    Metrics that are not a mean over documents (F1, the perplexity of a corpus) are left out.
    """
    items, scores = [], []
    means = {name for name, fold in loaded.aggregation().items() if fold.__name__ == "mean"}
    for sample in samples:
        item = _digest(sample["doc"])[:12]
        kind = "" if sample["filter"] == "none" else f".{sample['filter']}"
        for one in sample["metrics"]:
            if one in means and isinstance(sample[one], bool | int | float | np.number):
                items.append((f"{name}.{FIELD_NAMES.get(one, one)}{kind}", item, float(sample[one]), 1.0))
        if loaded.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
            continue
        gold = gold_answers(loaded, sample["doc"])
        answers = [response[0] for response in sample["resps"]]
        best = max(answers[i][0] for i in gold)
        items.append((f"{name}.gold_logprob", item, best, 1.0))
        if len(answers) > 1:
            every = float(np.logaddexp.reduce([logprob for logprob, *_ in answers]))
            items.append((f"{name}.gold_choice_logprob", item, best - every, 1.0))
        scores += [(name, item, i, logprob, bool(greedy), i in gold) for i, (logprob, greedy, *_) in enumerate(answers)]
    columns = ["task", "item", "answer", "logprob", "greedy", "gold"]
    return pd.DataFrame(items, columns=metrics.ITEM_COLUMNS), pd.DataFrame(scores, columns=columns)


def gold_answers(loaded: Any, document: dict[str, Any]) -> list[int]:
    """Return the numbers of the right answers among those asked; if there are several, the most probable one counts."""
    if loaded.OUTPUT_TYPE == "loglikelihood":
        return [0]
    several = _gold(loaded, document)
    return [loaded.doc_to_choice(document).index(one) if isinstance(one, str) else int(one) for one in several]


def _gold(loaded: Any, document: dict[str, Any]) -> list[Any]:
    """Return the right answers as the document has them; a single answer becomes a list of one."""
    gold = loaded.doc_to_text(document) if loaded.multiple_input else loaded.doc_to_target(document)
    return gold if isinstance(gold, list) else [gold]


def chance(loaded: Any, scores: pd.DataFrame) -> float | None:
    """Return the accuracy of blind guessing: the mean share of right choices; 0 if there are no choices.

    None for a task that computes its accuracy in its own way (truthfulqa_mc2), since chance is then not known.
    """
    if loaded.config.process_results is not None:
        return None
    if loaded.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    return float(scores.groupby("item")["gold"].mean().mean())


def higher_is_better(loaded: Any, name: str) -> bool:
    """Return whether a higher value of a metric, named as in `task_items`, is better."""
    known = {FIELD_NAMES.get(key, key): value for key, value in loaded.higher_is_better().items()}
    return bool(known.get(name.split(".")[1], True))
