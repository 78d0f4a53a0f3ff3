"""An estimate of the memory that cells of one model take, made before its weights are loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from bench.model import checkpoint, devices, memory
from bench.run.cell import Cell
from bench.suites.continued import Continued
from methods.base import Demand
from methods.training_memory import readable

PROMPT_TOKENS = 100  # of a prompt in the estimate of a batch: those of the suite with the longest prompts

Planned = Sequence[tuple[Cell, Mapping[str, float]]]
"""Cells, each with the tokens that it has to compute, by stage."""


class Batch(NamedTuple):
    """The number of rows that are sampled at once, of prompts among them, and of new tokens for each row."""

    rows: int = 0
    prompts: int = 0
    new: int = 0

    def bytes(self, model: PreTrainedModel, device: torch.device, demand: Demand = memory.UNSTEERED) -> int:
        """Return the peak memory of this batch, with its cache and its logits, without the weights."""
        return memory.estimate(model, self.rows, self.prompts, PROMPT_TOKENS, self.new, demand, device).total


def told(busy: Planned) -> list[str]:
    """Return a line on the weights and the largest batch, and lines on methods whose steering or training adds memory.

    busy: cells of one model that have something to compute.
    """
    cell = busy[0][0]
    cfg = cell.cfg
    model = checkpoint.skeleton(cfg.model, cell.fetch_model(), cell.model.revision, cfg.runtime.offline)
    weights = sum(one.nbytes for one in model.parameters())
    places = _places(str(cfg.runtime.device))
    device = torch.device(places[0])
    batch = max(
        (one for of in busy for one in _batches(*of)), key=lambda one: one.bytes(model, device), default=Batch()
    )
    taken = partial(batch.bytes, model, device)
    sampled = (
        f", a batch of {batch.rows} texts of {PROMPT_TOKENS} + {batch.new} tokens takes {readable(taken())} (batches "
        "are smaller if less is free)"
        if batch.rows
        else ""
    )
    free = sum(devices.free_bytes(torch.device(place)) for place in places)
    lines = [
        f"memory: {cfg.model.name}: {sum(one.numel() for one in model.parameters()) / 1e9:.3g} billion weights in "
        f"{cfg.model.dtype} take {readable(weights)}{sampled}; {', '.join(places)}: {readable(free)} free"
    ]
    if more := _steering(busy, taken, weights):
        lines.append(f"memory of steering, besides these: {_listed(more)}")
    needed, unknown = _training(busy, model)
    if needed:
        over = [name for name, size in needed.items() if size > free]
        lines.append(
            f"memory of training, weights included, at most: {_listed(needed)}"
            + (f"; more than is free: {', '.join(over)}" if over else "")
        )
    return [*lines, *([f"memory of training: no estimate of {', '.join(unknown)} on this model"] if unknown else [])]


def _listed(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {readable(size)}" for name, size in sizes.items())


def _places(device: str) -> list[str]:
    cards = [one for one in devices.available() if ":" in one]
    return cards if device == devices.AUTO and cards else [devices.single(device)]


def _batches(cell: Cell, stages: Mapping[str, float]) -> Iterator[Batch]:
    """Yield the largest batches of each suite that samples and is to be computed."""
    for suite in cell.parts.suites.values():
        if isinstance(suite, Continued) and any(key.partition(" ")[0] == suite.name for key in stages):
            sampling = suite.decoded(cell.parts.sampling)
            for prompts, samples in _asked(cell, suite):
                rows = min(sampling.batch_size, prompts * samples)
                yield Batch(rows, -(-rows // samples), sampling.max_new_tokens)


def _asked(cell: Cell, suite: Continued) -> Iterator[tuple[int, int]]:
    """Yield the suite's numbers of prompts and of texts for each: on the test split and, if tuning uses it, on dev."""
    unsteered = cell.cfg.strength == 0 or not cell.method.strengths
    test = suite.unsteered_samples("test") if unsteered else suite.samples_a_prompt("test")
    yield len(suite.texts("test")[0]), test
    if cell.cfg.strength == "auto" and not unsteered and suite.name in cell.parts.tuning.suites:
        yield len(suite.texts("dev")[0]), suite.samples_a_prompt("dev")


def _steering(busy: Planned, taken: Callable[..., int], weights: int) -> dict[str, float]:
    """Return how many bytes more than the unsteered model each method takes with a batch.

    taken: returns the bytes of the batch under a demand.
    """
    found = dict[str, float]()
    for cell, _ in busy:
        demand, name = cell.method.demand(), cell.method.name
        if cell.cfg.strength != 0 and demand != Demand():
            more = demand.copies * weights + taken(demand) - taken()
            found[name] = max(more, found.get(name, 0.0))
    return found


def _training(busy: Planned, model: PreTrainedModel) -> tuple[dict[str, float], list[str]]:
    """Return the bytes that fits take, by training method, and the methods that cannot be estimated without weights."""
    needed, unknown = dict[str, float](), dict[str, None]()
    fits = [cell for cell, stages in busy if any(key.startswith("fit ") for key in stages)]
    for cell in {_but_for_seed(cell): cell for cell in fits}.values():
        name = cell.method.name
        try:
            found = cell.method.training(model)
        except RuntimeError:  # the device "meta" lacks an operation, such as some that experts need in fp32
            unknown[name] = None
            continue
        if found is not None:
            needed[name] = max(found.peak, needed.get(name, 0))
    return needed, list(unknown)


def _but_for_seed(cell: Cell) -> str:
    return str({key: value for key, value in cell.cfg.method.items() if key != "seed"})
