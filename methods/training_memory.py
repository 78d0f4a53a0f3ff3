"""Computes how much memory a training takes, before it starts.

Weights, masters, gradients and moments are counted. Activations are measured in two short forwards of the model itself:
the tensors saved in each are added up, and the sums are scaled to the batch. This way of measuring also works on a
model without weights (device "meta").
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from methods import layout
from methods.errors import SetupError
from methods.optimiser import HALF, OptimizerName, moment_bytes
from methods.positions import Positions, at
from methods.recompute import recomputed

LENGTHS = (16, 32)  # tokens of the two forwards that are measured; both end before any sliding window does
STEP_COPIES = {"adamw": 0, "adafactor": 2}  # fp32 tensors of the largest weight's size that one step makes


class TrainingMemory(NamedTuple):
    """Bytes on the model's device; `host` is on the CPU, for the saved weights and for what was learnt."""

    weights: int
    masters: int
    gradients: int
    moments: int
    activations: int
    step: int  # temporary tensors of a step of the optimiser
    host: int

    @property
    def held(self) -> int:
        """The bytes that are held at the end of every backward pass, counted exactly."""
        return self.weights + self.masters + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """The most bytes on the model's device."""
        return self.held + max(self.activations, self.step)

    def told(self, what: str) -> str:
        """Return a line that tells the user how much memory `what` takes."""
        parts = ", ".join(
            f"{name} {readable(size)}" for name, size in self._asdict().items() if size and name != "host"
        )
        told = f"{what}: about {readable(self.peak)} of memory on the model's device ({parts})"
        return f"{told}, and {readable(self.host)} on the CPU"


def readable(size: float) -> str:
    """Return bytes with a unit, in three significant digits."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def training_memory(
    model: PreTrainedModel,
    trained: Sequence[nn.Parameter],
    optimizer: OptimizerName,
    batches: Sequence[tuple[int, int]],
    *,
    gradient_checkpointing: bool = False,
) -> TrainingMemory:
    """Return the memory of a step. The `trained` parameters must already require gradients, and no others may.

    batches: the number of rows, and of tokens per row, of each batch that is read in one step.
    """
    half = [one for one in trained if one.dtype in HALF]
    largest = max(one.numel() for one in trained)
    return TrainingMemory(
        weights=sum(one.nbytes for one in (*model.parameters(), *model.buffers())),
        masters=sum(4 * one.numel() for one in half),
        gradients=sum(one.nbytes for one in trained),
        moments=sum(moment_bytes(optimizer, one.shape) for one in trained),
        activations=sum(activation_bytes(model, *batch, gradient_checkpointing) for batch in batches),
        step=4 * (STEP_COPIES[optimizer] + bool(half)) * largest,  # a master also has its gradient in fp32
        host=2 * sum(one.nbytes for one in trained),
    )


@contextmanager
def wanting(model: PreTrainedModel, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside the `with`, let these parameters of the model require gradients, and no others."""
    before, chosen = [(one, one.requires_grad) for one in model.parameters()], set(trained)
    try:
        for one, _ in before:
            one.requires_grad_(one in chosen)
        yield
    finally:
        for one, wanted in before:
            one.requires_grad_(wanted)


def activation_bytes(model: PreTrainedModel, rows: int, tokens: int, gradient_checkpointing: bool = False) -> int:
    """Return the bytes that a backward pass over `rows` texts of `tokens` tokens needs.

    These bytes hold stored activations and the gradients of the logits. For each text, the stored activations grow as
    `a * tokens + b * tokens**2`; the quadratic part comes from attention that keeps its attention weights.
    """
    vocabulary = int(model.config.get_text_config().vocab_size)
    logits = tokens * vocabulary * (4 + 2 * model.dtype.itemsize)  # their gradients: fp32, and twice the model's dtype
    saved = _scaled(_saved(model, LENGTHS[0]), _saved(model, LENGTHS[1]), tokens)
    if not gradient_checkpointing:
        return round(rows * (saved + logits))
    with recomputed(model):
        kept = _scaled(_saved(model, LENGTHS[0]), _saved(model, LENGTHS[1]), tokens)
    block = (saved - kept) / len(layout.blocks(model))  # recomputed one at a time, when the logits are gone
    return round(rows * (kept + max(block, logits)))


def _scaled(short: float, long: float, tokens: int) -> float:
    """Return a t + b t^2 at t = `tokens`, for the a and b that give the values found at LENGTHS."""
    first, second = LENGTHS
    quadratic = max(0.0, (long / second - short / first) / (second - first))
    return tokens * (short / first + quadratic * (tokens - first))


def _saved(model: PreTrainedModel, tokens: int) -> int:
    """Return the bytes that a forward of one text keeps for the backward pass, parameters and buffers left out."""
    weights = {_storage(one) for one in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}  # by storage, which several saved tensors may share

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            found[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    none = torch.zeros(1, dtype=torch.long, device=model.device)
    here = Positions(none, none + tokens, none, none + 1)  # for hooks of a method that came before
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor), at(here):
        # with a cache transformers does not ask for the values of the positions, which "meta" lacks
        cache = DynamicCache(config=model.config) if ids.is_meta else None
        logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits[0]
        loss = functional.cross_entropy(logits[:-1].float(), ids[0, 1:])
        del loss
    return sum(found.values())


def _storage(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's storage, also on the device "meta", where no tensor has an address."""
    return int(tensor.untyped_storage()._cdata)


def announce(memory: TrainingMemory, what: str, devices: set[torch.device]) -> None:
    """Print how much memory a training takes. Raises SetupError if the GPUs cannot hold `memory.held`."""
    print(memory.told(what), file=sys.stderr)
    if any(device.type != "cuda" for device in devices):
        return
    there = sum(torch.cuda.get_device_properties(device).total_memory for device in devices)
    if memory.held > there:
        raise SetupError(
            f"{what} takes {readable(memory.held)} besides its activations, and the GPU has {readable(there)}; set "
            "method.optimizer=adafactor, model.dtype=bfloat16, or take a smaller model"
        )
