"""The rows of the table of speed: the measured work, the work it is compared with, and how fast it is."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from bench.console import command, escape
from bench.console.escape import terminal
from bench.console.progress import Bar
from bench.files.atomic import write_whole
from bench.model.lm import LM
from bench.speed import fitting, likelihood, sampling
from bench.speed.turns import Compared, compared, in_turns
from methods.base import Method
from methods.errors import SetupError

MATRICES = "matrix products alone"
METHODS = ("caa", "detox")  # a vector that is added, and edited weights
FITTED = ("caa", "repe", "ablation", "aura", "sadi", "itic", "detox", "eigenshift", "act")  # in closed form, from pairs
FIT_TASK = "PIQA"  # whose questions, each with two answers, they learn from
PIPE_WIDTH = 140  # columns of the output if there is no terminal


class Size(NamedTuple):
    """The size of a measurement. documents: the number for each task. slow_rounds: rounds of `generate`."""

    prompts: int
    together: tuple[int, ...]
    documents: int
    rounds: int
    slow_rounds: int


FULL = Size(prompts=12, together=(1, 5), documents=40, rounds=4, slow_rounds=3)
QUICK = Size(prompts=3, together=(1, 3), documents=3, rounds=2, slow_rounds=1)


class Task(NamedTuple):
    """A task of lm-eval, with a number of shots. goal: how many times as fast as HFLM it should be."""

    title: str
    name: str
    shots: int
    goal: float

    def settings(self, size: Size) -> list[str]:
        """Return the settings of the suite that asks this task."""
        mine = "suite.capability"
        return [f"{mine}.tasks=[{self.name}]", f"{mine}.documents={size.documents}", f"{mine}.fewshot={self.shots}"]


TASKS = (
    Task("PIQA", "piqa", 0, 1.0),
    Task("CommonsenseQA", "commonsense_qa", 0, 1.0),
    Task("HellaSwag", "hellaswag", 0, 1.0),
    Task("BoolQ", "boolq", 0, 1.0),
    Task("MMLU anatomy, 5-shot", "mmlu_anatomy", 5, 4.0),
)


class Row(NamedTuple):
    """A line of the table. tokens: the tokens sampled per round, or the distinct ones that a likelihood needs.

    goal: the ratio that this project aims at. note: a text on what else was compared.
    """

    work: str
    against: str
    tokens: int
    rounds: int
    found: Compared
    goal: float | None = None
    note: str = ""


def planned(size: Size, requests: Mapping[str, Sequence[Any]]) -> Mapping[str, float]:
    """Return the units of each stage, for the progress bar."""
    works = 2 + len(size.together)
    tasks = {f"round {task}": 3.0 * size.rounds + 2 for task in requests}
    fits = {"round fits": 2.0 * size.rounds * len(FITTED)} if FIT_TASK in requests else {}
    return {"round sampling": works * size.slow_rounds + 6.0 * size.rounds} | tasks | fits


def sampling_rows(lm: LM, size: Size, methods: Sequence[Method], bar: Bar) -> Iterator[Row]:
    """Compare our sampling with the matrix products and with `generate`, and steered sampling with unsteered."""
    with bar.stage("round sampling", "sampling"):
        tokens, ours = sampling.count(lm, size.prompts), sampling.ours(lm, size.prompts)
        title = f"sampling, {size.prompts} prompts x {sampling.SAMPLES} x {sampling.NEW_TOKENS}"
        works = {"ours": ours, MATRICES: sampling.matrices(lm, size.prompts)}
        taken = in_turns(works, size.rounds)
        yield Row(title, MATRICES, tokens, size.rounds, compared(taken["ours"], taken[MATRICES]), 0.8)
        slow = {
            f"generate, {rows * sampling.SAMPLES} rows": sampling.Generate(lm, size.prompts, rows)
            for rows in size.together
        }
        taken = in_turns({"ours": ours} | slow, size.slow_rounds)
        for (name, work), goal in zip(slow.items(), (4.5, 3.5), strict=True):
            equal = [seconds * tokens / made for seconds, made in zip(taken[name], work.made, strict=True)]
            told = f"{work.made[0]} tokens there, for equal tokens"
            yield Row(title, name, tokens, size.slow_rounds, compared(taken["ours"], equal), goal, told)
        for method in methods:
            steered = sampling.Steered(lm, method, size.prompts)
            taken = in_turns({"steered": steered, "unsteered": ours}, size.rounds, inside={"steered": steered.on})
            found = compared(taken["steered"], taken["unsteered"])
            goal = 1.0 if method.family == "weights" else 1 / 1.02
            yield Row(f"{title}, steered by {method.title}", "unsteered", tokens, size.rounds, found, goal)


def likelihood_rows(lm: LM, size: Size, requests: Mapping[str, Sequence[Any]], bar: Bar) -> Iterator[Row]:
    """Compare each task with HFLM, and with the matrix products of its distinct tokens."""
    for title, asked in requests.items():
        goal = next(task.goal for task in TASKS if task.title == title)
        with bar.stage(f"round {title}", title):
            read, predicted = likelihood.distinct_tokens(lm, asked)
            hflm = f"HFLM, batch {likelihood.HFLM_BATCH}"
            works = {"ours": likelihood.ours(lm, asked), hflm: likelihood.hflm(lm, asked)}
            alike = likelihood.agreement(asked, works["ours"](), works[hflm]())
            taken = in_turns(works | {MATRICES: likelihood.matrices(lm, read, predicted)}, size.rounds)
        told = (
            f"{alike.documents - alike.other_choices} of {alike.documents} choices equal, log-probabilities within "
            f"{alike.difference:.1g}"
        )
        yield Row(title, hflm, read, size.rounds, compared(taken["ours"], taken[hflm]), goal, told)
        share = compared(taken["ours"], taken[MATRICES])
        yield Row(title, MATRICES, read, size.rounds, share, 0.8, f"{predicted} tokens predicted")


def fit_rows(lm: LM, size: Size, methods: Sequence[Method], requests: Sequence[Any], bar: Bar) -> Iterator[Row]:
    """Compare each fit, on pairs of answers to these requests, with the matrix products of reading the pairs once.

    A method that refuses the model or the pairs is left out, with a message.
    """
    learnt_from = fitting.pairs(requests)
    read = fitting.distinct_tokens(lm, learnt_from)
    with bar.stage("round fits", "fits"):
        for method in methods:
            works = {"ours": fitting.ours(lm, method, learnt_from), MATRICES: fitting.matrices(lm, read)}
            try:
                taken = in_turns(works, size.rounds)
            except SetupError as error:
                command.console.print(terminal(f"the fit of {method.name} is left out: {error}", "yellow"))
                continue
            found = compared(taken["ours"], taken[MATRICES])
            title = f"fit of {method.title}, {len(learnt_from.prompt)} pairs"
            yield Row(title, MATRICES, read, size.rounds, found, 1 / 1.3, f"{method.passes():g} passes over the pairs")


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the table. Times are seconds per round; ratio = other time / our time, per token if the tokens differ."""
    return pd.DataFrame(
        {
            "work": row.work,
            "against": row.against,
            "tokens": row.tokens,
            "seconds": row.found.seconds,
            "tokens_per_second": row.tokens / row.found.seconds,
            "other_seconds": row.found.other_seconds,
            "other_tokens_per_second": row.tokens / row.found.other_seconds,
            "ratio": row.found.ratio,
            "ratio_low": row.found.low,
            "ratio_high": row.found.high,
            "goal": row.goal,
            "rounds": row.rounds,
            "note": row.note,
        }
        for row in rows
    ).astype({"ratio_low": float, "ratio_high": float, "goal": float})


def show(table: pd.DataFrame) -> None:
    """Print the table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    shown = RichTable(box=box.SIMPLE, padding=0, pad_edge=False, collapse_padding=True)
    for name in ("work", "against", "tokens/s", "against's", "ratio", "goal", "note"):
        shown.add_column(name, justify="left" if name in ("work", "against", "note") else "right", overflow="fold")
    for row in table.to_dict("records"):
        interval = "" if pd.isna(row["ratio_low"]) else f" [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        speeds = (f"{row['tokens_per_second']:.0f}", f"{row['other_tokens_per_second']:.0f}")
        cells = (
            row["work"],
            row["against"],
            *speeds,
            f"{row['ratio']:.2f}{interval}",
            f"{row['goal']:.2f}",
            row["note"],
        )
        shown.add_row(*(terminal(one) for one in cells))
    console.print(shown)
    console.print("ratio: how many times as fast as the reference; 1 is as fast. In turns, medians, 95% intervals.")


def write(table: pd.DataFrame, results: Path) -> Path:
    """Write speed.csv. Raises SetupError if the folder cannot be written."""
    path = results / "speed.csv"
    try:
        write_whole(path, escape.csv(table))
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}; give another --results") from error
    return path
