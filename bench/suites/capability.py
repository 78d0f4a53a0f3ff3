"""What steering costs: lm-eval's own tasks, as it ships them, on a fixed sample of documents.

The task definitions (prompt, choices, metrics) are lm-eval's; only where the data comes from is overridden. Zero-shot.
"""

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from bench import metrics
from bench.data.sources import Located, Sources
from bench.lm import LM
from bench.suites.base import Split, SuiteError, SuiteResult
from methods.errors import SetupError

FIELD_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}  # lm-eval's names in words
TOKENS_A_DOCUMENT = 100  # read by the model, roughly: BoolQ has 150, CommonsenseQA 60
HUB_FILE = re.compile(r"hf://datasets/([^/]+/[^/]+)/")


class Definition(NamedTuple):
    """What lm-eval ships of a task: its YAML file and where its documents are on the hub."""

    file: Path
    dataset: str
    config: str | None
    split: str
    version: str
    splits: tuple[str, ...]  # settings that name a split


@dataclass(frozen=True, kw_only=True)
class Capability:
    """Per task: `accuracy` (and `accuracy_norm` or whatever else lm-eval reports) and `gold_logprob`.

    `<task>.gold_logprob` is the mean over documents of the gold answer's log-probability, summed over its tokens, in
    nats. It has room to fall where accuracy is at chance, and moves before a choice flips.

    documents: how many of each task's, one number or one per task; None for all. They are those that come first in
    the order of a hash of `document_seed` and their content, so a larger number contains a smaller one, and the
    source's order is no part of it; a document that occurs twice counts once. The dev documents are taken from the
    other end of that order.

    held_out: leave out the documents that fine-tuning examples may be taken from (`is_for_fitting`). Set it for every
    row of a table in which some method was trained on a task's answers.
    """

    version: ClassVar[int] = 1
    samples: ClassVar[bool] = False

    name: str = "capability"
    sources: Sources
    tasks: Sequence[str] = ("commonsense_qa", "piqa", "social_iqa", "openbookqa", "boolq", "asdiv")
    documents: int | None | Mapping[str, int] = 100
    dev_documents: int = 20
    document_seed: int = 0
    held_out: bool | None = None

    def __post_init__(self) -> None:
        """Raises SetupError for settings without any document or task."""
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise SetupError(f"suite.capability.tasks={list(self.tasks)}: name at least one task, each once")
        if isinstance(self.documents, Mapping) and set(self.documents) != set(self.tasks):
            raise SetupError(f"suite.capability.documents names {list(self.documents)}, but tasks {list(self.tasks)}")
        if any(count is not None and count < 1 for count in map(self.count, self.tasks)) or self.dev_documents < 1:
            raise SetupError(
                "suite.capability.documents and dev_documents must be at least 1 (documents: null for all)"
            )

    def count(self, task: str) -> int | None:
        """Test documents of this task; None for all."""
        return self.documents[task] if isinstance(self.documents, Mapping) else self.documents

    def identity(self, split: Split) -> dict[str, Any]:
        """Tasks with lm-eval's version, the content they read, and how many documents of it."""
        found = definitions(tuple(self.tasks))
        return {
            "tasks": {
                task: {
                    "version": found[task].version,
                    "source": self._locate(found[task]).fingerprint,
                    "documents": (self.count(task) or "all") if split == "test" else self.dev_documents,
                    "kept_from_dev": self.count(task) if split == "dev" else None,
                }
                for task in self.tasks
            },
            "document_seed": self.document_seed,
            "held_out": self.held_out or None,
            "lm_eval": version("lm_eval"),
        }

    def tokens(self, split: Split) -> int:
        """Roughly what the documents have."""
        counts = [(self.count(task) or 1000) if split == "test" else self.dev_documents for task in self.tasks]
        return TOKENS_A_DOCUMENT * sum(counts)

    def run(self, lm: LM, split: Split) -> SuiteResult:
        """Let lm-eval ask the model. Raises SuiteError for a task that yields no number a document."""
        found = definitions(tuple(self.tasks))
        located = {task: self._locate(found[task]) for task in self.tasks}
        from bench.likelihood import evaluated, quiet, untouched_randomness

        with quiet(), untouched_randomness():
            loaded = {task: load_task(task, found[task], where) for task, where in located.items()}
            chosen = {task: self._chosen(task, found[task], located[task], split) for task in self.tasks}
            samples = evaluated(lm, loaded, chosen)
        items, scores, about, results = [], [], {}, {}
        for task in self.tasks:
            of_task, of_scores = task_items(task, loaded[task], samples[task])
            if of_task.empty:
                raise SuiteError(f"lm-eval's task {task} yields no number a document; leave it out of the suite")
            items.append(of_task)
            scores.append(of_scores)
            for name, table in of_task.groupby("metric", sort=False):
                results[str(name)] = metrics.metric(table, higher_is_better=_higher_is_better(loaded[task], str(name)))
            about[task] = {
                "documents": len(chosen[task]),
                "available": len(loaded[task].eval_docs),
                "chance": chance(loaded[task], of_scores),
                "version": found[task].version,
            }
        info = {
            "tasks": about,
            "chance": {task: facts["chance"] for task, facts in about.items() if facts["chance"] is not None},
            "lm_eval": version("lm_eval"),
            "sources": [where.facts() for where in located.values()],
        }
        return SuiteResult(results, pd.concat(items, ignore_index=True), pd.concat(scores, ignore_index=True), info)

    def _locate(self, definition: Definition) -> Located:
        return self.sources.locate(definition.dataset, definition.config, definition.split)

    def _chosen(self, task: str, definition: Definition, where: Located, split: Split) -> list[int]:
        """Numbers of the documents to ask, ascending (lm-eval numbers its samples in that order)."""
        ranked = ranking(task, definition, where, self.document_seed)
        if self.held_out:
            documents = load_task(task, definition, where).eval_docs
            ranked = [number for number in ranked if not is_for_fitting(documents[number])]
        if split == "test":
            return sorted(ranked[: self.count(task)])
        left = ranked[self.count(task) :] if self.count(task) is not None else []
        if not left:
            raise SetupError(f"no document of {task} is left for the dev split; lower suite.capability.documents")
        return sorted(left[-self.dev_documents :])


# -- lm-eval's tasks ---------------------------------------------------------------------------------------------------


@functools.cache
def task_files() -> dict[str, Path]:
    """The YAML file of each task that lm-eval ships. Raises SetupError where lm-eval is not installed.

    lm-eval's own index parses all 14,000 files, which takes many seconds; the names alone are read off in one.
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
def definitions(tasks: tuple[str, ...]) -> dict[str, Definition]:
    """What lm-eval ships of these tasks. Raises SetupError for a name that is no task, and for a task without data."""
    import difflib

    from lm_eval.tasks import TaskManager

    files = task_files()
    for task in tasks:
        if task not in files:
            near = ", ".join(difflib.get_close_matches(task, files, 4)) or "see lm-eval's list: lm-eval ls tasks"
            raise SetupError(
                f"suite.capability.tasks: lm-eval has no task {task!r} (groups such as mmlu are not taken: name their "
                f"tasks); close to it: {near}"
            )
    manager = TaskManager(include_defaults=False, include_path=sorted({str(files[task].parent) for task in tasks}))
    return {task: _definition(task, files[task], manager.task_index[task].cfg or {}) for task in tasks}


def _definition(task: str, file: Path, cfg: dict[str, Any]) -> Definition:
    split = cfg.get("test_split") or cfg.get("validation_split")  # lm-eval's own rule
    dataset, config = cfg.get("dataset_path"), cfg.get("dataset_name")
    remote = HUB_FILE.match(str((cfg.get("dataset_kwargs") or {}).get("data_files", {}).get(split, "")))
    if dataset == "json" and remote:  # arithmetic_*: one file of a hub data set whose configs are named as the tasks
        dataset, config = remote[1], task
    if not dataset or not split or not isinstance(cfg.get("metric_list", []), list):
        raise SetupError(f"lm-eval's task {task} names no data set and split, so no source can be found for it")
    number = (cfg.get("metadata") or {}).get("version", "unknown")
    splits = tuple(key for key in ("training_split", "validation_split", "test_split", "fewshot_split") if cfg.get(key))
    return Definition(file, dataset, config, split, str(number), splits)


@functools.cache
def load_task(task: str, definition: Definition, where: Located) -> Any:
    """lm-eval's task object over a source; kept, so that the cells of a process pay once.

    Splits that are not asked are switched off: a source may lack them, and zero-shot needs none.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(definition.file.parent))
    changed: dict[str, Any] = {"task": task, "dataset_path": where.path, "dataset_name": definition.config}
    changed["dataset_kwargs"] = {"revision": where.revision} if where.source == "hub" else {}
    asked = "test_split" if "test_split" in definition.splits else "validation_split"
    changed |= {key: None for key in definition.splits if key != asked}
    loaded = manager.load({"group": "local", "task": [changed]})["tasks"][task]  # type: ignore[arg-type]
    loaded.set_config(key="num_fewshot", value=0)
    loaded.set_fewshot_seed(seed=0)
    return loaded


@functools.cache
def ranking(task: str, definition: Definition, where: Located, seed: int) -> list[int]:
    """Numbers of a task's distinct documents in the order of a hash of seed and content."""
    digests: dict[str, int] = {}
    for number, document in enumerate(load_task(task, definition, where).eval_docs):
        digests.setdefault(_digest(document, str(seed)), number)
    return [number for _, number in sorted(digests.items())]


FOR_FITTING = 0.45  # share of a task's documents; the prompts of RealToxicityPrompts are parted alike


def is_for_fitting(document: Any) -> bool:
    """Whether fine-tuning examples may be made of this document, by a hash of its content."""
    return int(_digest(document, "fit")[:8], 16) / 16**8 < FOR_FITTING


def questions(task: str, definition: Definition, where: Located) -> list[tuple[str, str]]:
    """Prompt and right answer of each document for fitting, worded as lm-eval asks them; `ranking`'s order, seed 0.

    Raises SetupError for a task whose documents are no questions with one prompt and several answers.
    """
    loaded = load_task(task, definition, where)
    if loaded.OUTPUT_TYPE != "multiple_choice" or loaded.multiple_input:
        raise SetupError(f"{task} is no multiple-choice task, so its answers cannot be trained on; choose another")
    delimiter = loaded.config.target_delimiter
    found = []
    for number in ranking(task, definition, where, 0):
        document = loaded.eval_docs[number]
        if is_for_fitting(document):
            answer = loaded.doc_to_choice(document)[gold_answers(loaded, document)[0]]
            found.append((loaded.doc_to_text(document), delimiter + answer))
    return found


def _digest(document: Any, salt: str = "") -> str:
    text = json.dumps(document, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(f"{salt}\x00{text}".encode()).hexdigest()


# -- numbers -----------------------------------------------------------------------------------------------------------


def task_items(task: str, loaded: Any, samples: Sequence[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items (metrics.ITEM_COLUMNS) and scores (a row per answer asked) of one task's documents.

    Metrics that are no mean over documents (F1, the perplexity of a corpus) are left out.
    """
    items, scores = [], []
    means = {name for name, fold in loaded.aggregation().items() if fold.__name__ == "mean"}
    for sample in samples:
        item = _digest(sample["doc"])[:12]
        kind = "" if sample["filter"] == "none" else f".{sample['filter']}"
        for name in sample["metrics"]:
            if name in means and isinstance(sample[name], bool | int | float | np.number):
                items.append((f"{task}.{FIELD_NAMES.get(name, name)}{kind}", item, float(sample[name]), 1.0))
        if loaded.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
            continue
        gold = gold_answers(loaded, sample["doc"])
        answers = [response[0] for response in sample["resps"]]
        items.append((f"{task}.gold_logprob", item, max(answers[i][0] for i in gold), 1.0))
        scores += [(task, item, i, logprob, bool(greedy), i in gold) for i, (logprob, greedy, *_) in enumerate(answers)]
    columns = ["task", "item", "answer", "logprob", "greedy", "gold"]
    return pd.DataFrame(items, columns=metrics.ITEM_COLUMNS), pd.DataFrame(scores, columns=columns)


def gold_answers(loaded: Any, document: dict[str, Any]) -> list[int]:
    """Which of the answers asked are right; where a task has several, the most probable one counts."""
    if loaded.OUTPUT_TYPE == "loglikelihood":
        return [0]
    gold = loaded.doc_to_text(document) if loaded.multiple_input else loaded.doc_to_target(document)
    several = gold if isinstance(gold, list) else [gold]
    return [loaded.doc_to_choice(document).index(one) if isinstance(one, str) else int(one) for one in several]


def chance(loaded: Any, scores: pd.DataFrame) -> float | None:
    """Accuracy of blind guessing: the share of right answers, averaged over documents; 0 where nothing is chosen.

    None for a task that computes its accuracy in its own way (truthfulqa_mc2), since chance is then not known.
    """
    if loaded.config.process_results is not None:
        return None
    if loaded.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    return float(scores.groupby("item")["gold"].mean().mean())


def _higher_is_better(loaded: Any, name: str) -> bool:
    known = {FIELD_NAMES.get(key, key): value for key, value in loaded.higher_is_better().items()}
    return bool(known.get(name.split(".")[1], True))
