"""An estimate of a sweep's memory and hours, printed before it begins.

Tokens are counted as in `bench.run.runner.plan`: every text is as long as it may be, and what cells share counts once.
Hours follow from two speeds that are measured on the spot with the unsteered model: sampling and reading.
"""

import time
from dataclasses import replace
from typing import NamedTuple

import torch

from bench.model.lm import LM, Request
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import continuations
from bench.records import unfinished
from bench.run import memory_needed
from bench.run.cell import Cell
from bench.run.cost import PROMPTS
from bench.run.memory_needed import Planned
from bench.run.runner import Failure, bounded
from bench.run.session import torch_threads
from methods.progress import listening

WORTH_TELLING = 2e6  # planned tokens below which no estimate is made, since loading and measuring need seconds
NEW_TOKENS = 8  # new tokens of each text that is sampled to measure the speed
READ_TEXTS, READ_TOKENS = 32, 64  # texts, and tokens of each, that are read to measure the speed


class Work(NamedTuple):
    """The numbers of tokens that a model samples and that it reads."""

    sampled: float
    read: float


class Speeds(NamedTuple):
    """Sampling and reading speed, in tokens per second."""

    sampling: float
    reading: float

    def hours(self, work: Work) -> float:
        """Return the hours that the work takes at these speeds."""
        return (work.sampled / self.sampling + work.read / self.reading) / 3600


def work(planned: Planned) -> Work:
    """Return the tokens of all stages; a stage that several cells share counts once."""
    stages = {key: (_is_sampled(cell, key), tokens) for cell, own in planned for key, tokens in own.items()}
    sampled = sum(tokens for is_sampled, tokens in stages.values() if is_sampled)
    return Work(sampled, sum(tokens for _, tokens in stages.values()) - sampled)


def _is_sampled(cell: Cell, key: str) -> bool:
    """Return whether a stage samples rather than reads, as in suites whose texts are judged and sources that sample."""
    kind = key.partition(" ")[0]
    if kind in cell.parts.suites:
        suite = cell.parts.suites[kind]
        return suite.samples and bool(suite.judged_by())
    return kind in cell.parts.fit_sources


def speeds(lm: LM) -> Speeds:
    """Measure the unsteered model's speeds, each in a burst after a shorter one; texts that end early count fully."""
    words = int(lm.model.config.get_text_config().vocab_size)
    drawn = torch.randint(words, (READ_TEXTS, READ_TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    samples = -(-lm.sampling.batch_size // len(PROMPTS))

    def sampled(new: int) -> None:
        continuations(lm, PROMPTS, samples, replace(lm.sampling, max_new_tokens=new))

    def read(texts: list[list[int]]) -> None:
        likelihoods(lm, [Request([lm.end_of_text], text) for text in texts])

    with listening(None), unfinished.keeping(None):  # what is timed has to be computed
        sampled(1)
        read(drawn[:1])
        start = time.perf_counter()
        sampled(NEW_TOKENS)
        middle = time.perf_counter()
        read(drawn)
        end = time.perf_counter()
    return Speeds(samples * len(PROMPTS) * NEW_TOKENS / (middle - start), READ_TEXTS * READ_TOKENS / (end - middle))


def hours_told(cells: int, todo: Work, found: Speeds, rows: int, device: str) -> str:
    """Return a line with the time that the work takes, and what the estimate assumes."""
    hours = found.hours(todo)
    takes = f"{hours:.2g} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return (
        f"time: {cells} cell{'s' if cells != 1 else ''}, {todo.sampled / 1e6:.3g} million tokens to sample, at "
        f"{found.sampling:,.0f} a second ({rows} texts at once), and {todo.read / 1e6:.3g} million to read, at "
        f"{found.reading:,.0f}: about {takes} on {device}. Measured just now with the unsteered "
        "model; texts that end early make it less, scorers and slower methods more"
    )


def told(planned: Planned) -> list[str]:
    """Return the estimate's lines; none if there is little to compute, or if the model cannot be loaded.

    If a model cannot be loaded, its cells say why when they run. Of several models the first one is measured.
    """
    busy = [(cell, stages) for cell, stages in planned if stages]
    todo = work(busy)
    if sum(todo) < WORTH_TELLING:
        return []
    cell = busy[0][0]
    of_it = [one for one in busy if one[0].model.key == cell.model.key]
    needed = bounded(cell.cfg, cell.label(), lambda: memory_needed.told(of_it))

    def measured() -> str:
        with torch_threads(cell.threads):
            found = speeds(cell.model.lm)
        rows = cell.model.lm.sampling.batch_size
        return hours_told(len(busy), todo, found, rows, cell.model.card or str(cell.model.lm.device))

    hours = bounded(cell.cfg, cell.label(), measured)
    if isinstance(hours, Failure):  # the cell reports the error, too
        return [] if isinstance(needed, Failure) else needed
    return [*([f"memory: no estimate: {needed.message}"] if isinstance(needed, Failure) else needed), hours]
