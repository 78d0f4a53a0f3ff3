"""What steering costs: lm-eval's own tasks, as it ships them, on a fixed sample of documents.

The task definitions (prompt, choices, metrics) are lm-eval's; only where the data comes from is overridden. The tasks
are zero-shot, unless `fewshot` says otherwise. A chat model (model.chat=true) is asked through its template, as lm-eval
does it with --apply_chat_template; the steering is on wherever the model reads. If the model thinks (model.thinking), a
choice is judged by its likelihood right after the prompt, without a thought. With model.thinking=strip, a generated
answer is the text after the thinking; a text whose thinking was cut is a wrong answer, and the record counts such texts
(unfinished_thinking of the task). Sets of tasks that papers report have a name and a file of their own in conf/suite:

capability            Ours: the tasks that the wheels carry; a leaderboard's capability columns are made of this suite.
capability_detox      RTE, BoolQ, HellaSwag, WinoGrande, OpenBookQA, ARC-e, ARC-c zero-shot: DeTox/ProFS (arXiv
                      2405.13967; its code runs lm-eval too). Differs: a sample of the documents, unless documents=null;
                      it is not known whether the paper averaged accuracy or accuracy_norm; both are reported here,
                      without an average.
capability_surgery    GSM8K 8-shot, BBH with examples, MMLU zero-shot, TydiQA 1-shot: Model Surgery (2407.08770, table
                      2), which ran them in another code base (open-instruct). Differs: lm-eval's wording,
                      examples and stops; the paper takes 40 documents of each of BBH's 27 tasks, we a sample of all.
                      So the paper's levels do not compare; a change against the unsteered model may.
commonsense           PIQA, SIQA, CommonsenseQA, HellaSwag, WinoGrande, zero-shot: a set of ours.
qa                    BoolQ, OpenBookQA, ARC, MMLU, zero-shot: ours.
math                  GSM8K 8-shot with worked answers (2201.11903's examples), ASDiv and the arithmetic of GPT-3
                      (2005.14165 section 3.9.1) zero-shot by likelihood: ours. lm-eval has no task SVAMP.
truthfulqa            TruthfulQA's mc1 and mc2 (2109.07958) after its six fixed examples.

What compares: with documents=null a task's number is the one that lm-eval gives in the version that the record names.
So it may be compared with published numbers of lm-eval if these have the same number of solved examples, and the same
use of a chat template. Numbers of other harnesses (model cards made with lighteval, papers of their own) differ in
wording, or score letters rather than answers. Copies of a data set may differ from the hub's (BoolQ's passage lacks the
title in one mirror); their source says how.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Literal, NamedTuple

import pandas as pd

from bench.data.lm_eval_tasks import (  # fmt: skip
    ORDERED_BY,
    Definition,
    Examples,
    chance,
    definitions,
    examples_split,
    higher_is_better,
    is_for_fitting,
    load_task,
    members,
    ranking,
    task_items,
)
from bench.data.sources import Located, NowhereError, Sources, beside
from bench.data.splits import Learnt
from bench.model.lm import LM
from bench.stats import metrics
from bench.suites.base import Answers, Split, Suite, SuiteError, SuiteResult
from methods.errors import SetupError

TOKENS_A_DOCUMENT = 100  # read by the model, roughly: BoolQ has 150, CommonsenseQA 60


class Asked(NamedTuple):
    """A task of lm-eval and where its documents are."""

    task: str
    definition: Definition
    where: Located


class Evaluated(NamedTuple):
    """lm-eval's notes on each document (`samples`), by task.

    loaded: lm-eval's task objects. examples: counts of solved examples that were left out or are lacking, by task.
    unanswered: for each task, the number of texts without an answer, since their thinking was never closed.
    """

    asked: dict[str, list[Asked]]
    loaded: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    examples: Mapping[str, Mapping[str, int]]
    unanswered: Mapping[str, int] = {}


@dataclass(frozen=True, kw_only=True)
class Capability(Suite[Evaluated]):
    """Per task: `accuracy` (and `accuracy_norm` or whatever else lm-eval reports) and `gold_logprob`.

    `<task>.gold_logprob` is the mean over documents of the gold answer's log-probability, summed over its tokens, in
    nats. It can fall even if accuracy is at chance, and changes before a choice flips. If a document has several
    answers to choose from, `<task>.gold_choice_logprob` is log p(gold) - log sum over the choices of p: how probable
    the right one is among them, whatever steering does to the probability of all of them. A group of tasks (mmlu) has
    these numbers over all its documents.

    documents: how many documents of each task (for a group, of its tasks together), one number or one per task; None
    for all. They are those that come first in the order of a hash of `document_seed` and their content, so a larger
    sample contains a smaller one, and the source's order does not matter; a document that occurs twice counts once.
    Content is what all copies of the data share (`lm_eval_tasks.ORDERED_BY`): a mirror, a wheel and the hub give the
    same documents, in the same order, as far as they have them. The dev documents are taken from the other end of that
    order.

    fewshot: solved examples before each question, one number or one per task; None: as many as the task's file says.
    They are taken from one of the splits that the source has, chosen by lm-eval's rule. They are the same in every run,
    but an example that asks the very question which the prompt ends with is left out (`lm_eval_tasks.Examples`). The
    record says how many were left out for that reason (`left_out`), and how many are missing because the split had no
    further examples (`lacking`). missing: "skip" leaves out the tasks whose documents no source has, and says so in the
    record. configs: the config of the data set, by task, if a source keeps the documents under another name than the
    task's file; if several are given, the first that a source has is taken.

    held_out: leave out the documents that fine-tuning examples may be taken from (`is_for_fitting`). Set it for every
    row of a table in which some method was trained on a task's answers.
    """

    version: ClassVar[int] = 2  # 2: a token that spans the join of question and answer is the answer's

    name: str = "capability"
    sources: Sources
    tasks: Sequence[str] = ("commonsense_qa", "piqa", "social_iqa", "openbookqa", "boolq", "asdiv")
    documents: int | None | Mapping[str, int | None] = 100
    dev_documents: int = 20
    document_seed: int = 0
    fewshot: int | Mapping[str, int | None] = 0
    missing: Literal["error", "skip"] = "error"
    configs: Mapping[str, str | Sequence[str]] | None = None
    held_out: bool | None = None

    def __post_init__(self) -> None:
        """Raises SetupError for settings without any document or task."""
        mine = f"suite.{self.name}"
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise SetupError(f"{mine}.tasks={list(self.tasks)}: name at least one task, each once")
        for option in ("documents", "fewshot"):
            value = getattr(self, option)
            if isinstance(value, Mapping) and set(value) != set(self.tasks):
                raise SetupError(f"{mine}.{option} names {list(value)}, but tasks {list(self.tasks)}")
        if any(count is not None and count < 1 for count in map(self.count, self.tasks)) or self.dev_documents < 1:
            raise SetupError(f"{mine}.documents and dev_documents must be at least 1 (documents: null for all)")
        if any(shots is not None and shots < 0 for shots in map(self.shots, self.tasks)):
            raise SetupError(f"{mine}.fewshot={self.fewshot}: expected 0 or more; null for a task means its own number")
        if self.missing not in ("error", "skip"):
            raise SetupError(f"{mine}.missing={self.missing!r}: allowed are error, skip")

    def count(self, task: str) -> int | None:
        """Return the number of test documents of this task; None for all."""
        return self.documents[task] if isinstance(self.documents, Mapping) else self.documents

    def shots(self, task: str) -> int | None:
        """Return the number of solved examples; None for the task's own."""
        return self.fewshot[task] if isinstance(self.fewshot, Mapping) else self.fewshot

    def asked(self) -> dict[str, list[Asked]]:
        """Return the lm-eval tasks under each name. Raises SetupError if documents cannot be found, unless skipped."""
        found: dict[str, list[Asked]] = {}
        for name in self.tasks:
            known = definitions(members(name))
            try:
                found[name] = [Asked(task, known[task], self._locate(task, known[task])) for task in members(name)]
            except NowhereError:
                if self.missing == "error":
                    raise
        if not found:
            raise SetupError(
                f"suite.{self.name}: no source has any of {', '.join(self.tasks)}; set runtime.mirror=FOLDER"
            )
        return found

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the tasks with lm-eval's version, the content that they read, and how many documents of it."""
        return {
            "tasks": {
                name: {
                    "version": _one_or_all([one.definition.version for one in asked]),
                    "source": _one_or_all([one.where.fingerprint for one in asked]),
                    "documents": (self.count(name) or "all") if split == "test" else self.dev_documents,
                    "kept_from_dev": self.count(name) if split == "dev" else None,
                    "fewshot": "own" if self.shots(name) is None else self.shots(name) or None,
                    "examples": self._examples_of(name, asked),
                    "ordered_by": list(ORDERED_BY.get(name, ())) or None if self.count(name) is not None else None,
                }
                for name, asked in self.asked().items()
            },
            "document_seed": self.document_seed,
            "held_out": self.held_out or None,
            "lm_eval": version("lm_eval"),
        }

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from documents of a task asked here must not be measured; None if it may."""
        for task in learnt.tasks:
            if task in self.tasks and not self.held_out:
                return (
                    f"is trained on answers of {task}, and suite.{self.name} asks it: set suite.{self.name}.held_out="
                    "true, which leaves out every document that training may take"
                )
        return None

    def tokens(self, split: Split) -> int:
        """Return roughly how many tokens the documents have; a solved example counts as long as a document."""
        total = 0
        for task in self.tasks:
            count = (self.count(task) or 1000) if split == "test" else self.dev_documents
            shots = self.shots(task)
            total += count * TOKENS_A_DOCUMENT * (1 + (5 if shots is None else shots))
        return total

    def ask(self, lm: LM, split: Split) -> Answers[Evaluated]:
        """Let lm-eval ask the model."""
        asked = self.asked()
        from bench.model.lm_eval_adapter import evaluated, quiet, untouched_randomness

        with quiet(), untouched_randomness():
            loaded, chosen = self._loaded(asked, split)
            samplers = {task: getattr(loaded[task], "sampler", None) for task in chosen}
            pickers = {task: one for task, one in samplers.items() if isinstance(one, Examples)}
            for picker in pickers.values():
                picker.begin()
            unanswered: Counter[str] = Counter()
            samples = evaluated(lm, {task: loaded[task] for task in chosen}, chosen, unanswered)
        examples = {task: one.counts for task, one in pickers.items()}
        return Answers(split, Evaluated(asked, loaded, samples, examples, unanswered))

    def requests(self, lm: LM, split: Split) -> list[Any]:
        """Return the likelihood requests that lm-eval would make, as its Instances; the model is not run."""
        from bench.model.lm_eval_adapter import quiet, requests, untouched_randomness

        with quiet(), untouched_randomness():
            loaded, chosen = self._loaded(self.asked(), split)
            return requests(lm, {task: loaded[task] for task in chosen}, chosen)

    def _loaded(self, asked: Mapping[str, list[Asked]], split: Split) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """Return lm-eval's tasks, and the numbers of the documents to ask of each."""
        loaded = {one.task: load_task(*one, self.shots(name)) for name, under in asked.items() for one in under}
        return loaded, {task: numbers for name in asked for task, numbers in self._chosen(name, asked, split).items()}

    def score(self, answers: Answers[Evaluated], baseline: LM) -> SuiteResult:
        """Return the numbers of each task. Raises SuiteError for a task without a number for each document."""
        del baseline
        asked, loaded, samples, examples, unanswered = answers.said
        items, scores, results = [], [], {}
        about: dict[str, dict[str, Any]] = {}
        for name, under in asked.items():
            tasks = [one.task for one in under if one.task in samples]
            parts = [task_items(name, loaded[task], samples[task]) for task in tasks]
            of_task, of_scores = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
            if of_task.empty:
                raise SuiteError(
                    f"lm-eval's task {name} reports no metric document by document; leave it out of the suite"
                )
            items.append(of_task)
            scores.append(of_scores)
            first = loaded[tasks[0]]
            for metric, table in of_task.groupby("metric", sort=False):
                better = higher_is_better(first, str(metric))
                results[str(metric)] = metrics.metric(table, higher_is_better=better)
            about[name] = {
                "documents": sum(len({one["doc_id"] for one in samples[task]}) for task in tasks),
                "available": sum(len(loaded[one.task].eval_docs) for one in under),
                "chance": chance(first, of_scores),
                "version": _one_or_all([one.definition.version for one in under]),
                "fewshot": int(first.config.num_fewshot or 0),
            }
            if cut := sum(unanswered.get(task, 0) for task in tasks):
                about[name]["unfinished_thinking"] = cut
            if counted := [examples[task] for task in tasks if task in examples]:
                sums = {key: sum(one[key] for one in counted) for key in ("left_out", "lacking")}
                about[name]["examples"] = {"from": self._examples_of(name, under), **sums}
        info = {
            "tasks": about,
            "chance": {task: facts["chance"] for task, facts in about.items() if facts["chance"] is not None},
            "skipped": [task for task in self.tasks if task not in asked],
            "lm_eval": version("lm_eval"),
            "sources": [source for name, under in asked.items() for source in self._sources(name, under)],
        }
        return SuiteResult(results, pd.concat(items, ignore_index=True), pd.concat(scores, ignore_index=True), info)

    def _examples(self, name: str, asked: Sequence[Asked]) -> list[Located]:
        """Return the splits that these tasks take solved examples from; [] if they are fixed or not wanted."""
        splits = [(one.where, examples_split(one.definition, one.where, self.shots(name))) for one in asked]
        return [beside(where, split) for where, split in splits if split is not None]

    def _examples_of(self, name: str, asked: Sequence[Asked]) -> str | list[str] | None:
        """Return the names and fingerprints of the splits that solved examples come from; None without examples."""
        found = [f"{where.split} {where.fingerprint}" for where in self._examples(name, asked)]
        return _one_or_all(found) if found else None

    def _sources(self, name: str, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """Return what a record says about the sources: an entry for the documents, and one for examples from elsewhere.

        A group of tasks has no more entries than one task.
        """
        found = [one.where for one in asked]
        examples = [where for where in self._examples(name, asked) if where not in found]
        return [_together(several) for several in (found, examples) if several]

    def _locate(self, task: str, definition: Definition) -> Located:
        own = (self.configs or {}).get(task, definition.config)
        several = [own] if own is None or isinstance(own, str) else list(own)
        for config in several[:-1]:
            try:
                return self.sources.locate(definition.dataset, config, definition.split)
            except NowhereError:
                continue
        return self.sources.locate(definition.dataset, several[-1], definition.split)

    def _chosen(self, name: str, asked: Mapping[str, list[Asked]], split: Split) -> dict[str, list[int]]:
        """Return the numbers of the documents to ask of each task, ascending, as lm-eval numbers its samples."""
        ranked: list[tuple[str, str, int]] = []
        for one in asked[name]:
            documents = load_task(*one).eval_docs
            for digest, number in ranking(*one, self.document_seed, ORDERED_BY.get(one.task, ())):
                if not (self.held_out and is_for_fitting(documents[number])):
                    ranked.append((digest, one.task, number))
        ranked.sort()
        if (
            len(asked[name]) > 1
        ):  # a document of several tasks of a group counts once, too: their digests are equal then
            ranked = [one for place, one in enumerate(ranked) if place == 0 or one[0] != ranked[place - 1][0]]
        if split == "test":
            mine = ranked[: self.count(name)]
        else:
            left = ranked[self.count(name) :] if self.count(name) is not None else []
            if not left:
                raise SetupError(
                    f"the test split takes all {len(ranked)} documents of {name}, so none is left for the dev split; "
                    f"set suite.{self.name}.documents to a number below {len(ranked)}"
                )
            mine = left[-self.dev_documents :]
        numbers: dict[str, list[int]] = {}
        for _, task, number in sorted(mine, key=lambda one: one[1:]):
            numbers.setdefault(task, []).append(number)
        return numbers


def _one_or_all(values: Sequence[str]) -> str | list[str]:
    """Return a task's own value; for a group the value that all its tasks share, or else a list."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else list(values)


def _together(where: Sequence[Located]) -> dict[str, Any]:
    facts = [one.facts() for one in where]
    if len(facts) == 1:
        return facts[0]
    together = hashlib.sha256("".join(str(one["fingerprint"]) for one in facts).encode()).hexdigest()[:12]
    return facts[0] | {"config": f"{len(facts)} configs", "fingerprint": together}
