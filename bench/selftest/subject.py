"""One method on one model, and the values that are compared when its promises are checked (`bench.selftest`)."""

import hashlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.model.lm import LM
from bench.model.sampling import prefill
from methods.base import Artefact, FitData, Method

PROMPTS = (  # of different lengths, so that a batch has padding
    "The quick brown fox jumps over",
    "People walk along the river and talk about work, bread and",
    "On the long road home there is",
)
CONTINUATION = " the old tree near the water"
STEPS = 4  # tokens that are read from the cache
ROUNDINGS, MOST = 4096, 0.25  # rounding explains this many units of the last place, and never more than this share
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Failure(Exception):
    """Raised if the promise is broken; the text has the numbers."""


class Skipped(Exception):
    """Raised if the promise cannot be checked here; the text says why."""


@dataclass
class Subject:
    """One method on one model, with everything that the checks share.

    make, load: make a fresh method with the same settings, and load a fresh model. strength: None: the largest of the
    grid. options: those that the method's YAML lists; None without a YAML file.
    """

    make: Callable[[], Method]
    load: Callable[[], LM]
    data: FitData
    strength: float | None = None
    options: Collection[str] | None = None
    method: Method = field(init=False)
    lm: LM = field(init=False)
    clean: dict[str, Any] = field(init=False)  # `state` of a model that nobody has touched
    _fitted: "Fitted | None" = None
    _tried: bool = False

    def __post_init__(self) -> None:
        self.method, self.lm = self.make(), self.load()
        self.clean = state(self.lm.model)

    @property
    def strongest(self) -> float:
        """The strength that the checks use: as given, else the largest of the grid, else 1."""
        return self.strength if self.strength is not None else max(self.method.strengths, key=abs, default=1)

    def fit(self, lm: LM, data: FitData | None = None) -> Artefact:
        """Fit again, on the data that the method says it needs."""
        needed = {name: getattr(data or self.data, name) for name in self.method.needs}
        return self.method.fit(lm.model, lm.tokenizer, FitData(**needed))

    def traces(self) -> list[str]:
        """The names of the parameters, buffers and hooks that differ from the model as it was loaded."""
        return differing(self.clean, state(self.lm.model))

    @property
    def fitted(self) -> "Fitted":
        """The first fit, with the traces that it left. Raises Skipped if fitting was tried and failed."""
        if self._fitted is None:
            if self._tried:
                raise Skipped("there is no artefact: the fit failed")
            self._tried = True
            drawn, start = randomness(), time.perf_counter()
            artefact = self.fit(self.lm)
            seconds = time.perf_counter() - start
            self._fitted = Fitted(artefact, seconds, self.traces(), differing(drawn, randomness()))
        return self._fitted

    @contextmanager
    def steered(self, strength: float | None = None) -> Iterator[LM]:
        """Yield the steered model."""
        chosen = self.strongest if strength is None else strength
        with self.lm.steered(self.method, self.fitted.artefact, chosen) as lm:
            yield lm


@dataclass(frozen=True)
class Fitted:
    """The result of a fit, and the names of what it changed in the model and among the random generators."""

    artefact: Artefact
    seconds: float
    trace: list[str]
    drawn: list[str]


# -- what is compared ----------------------------------------------------------------------------------------------


def digest(tensor: Tensor) -> str:
    """Return a hash of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha1(flat.numpy().data, usedforsecurity=False).hexdigest()


def state(model: nn.Module) -> dict[str, Any]:
    """Return everything in a model that steering could leave changed, by name."""
    found: dict[str, Any] = {f"buffer {name}": digest(buffer) for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        found[f"weight {name}"] = digest(parameter)
        found[f"requires_grad of {name}"] = parameter.requires_grad
        found[f"gradient of {name}"] = parameter.grad is not None
    for path, module in model.named_modules():
        name = path or "the model"
        found[f"hooks on {name}"] = sum(len(getattr(module, table)) for table in HOOKS)
        found[f"training mode of {name}"] = module.training
        found[f"forward of {name}"] = type(module).__name__, "forward" in vars(module)
    everywhere = nn.modules.module
    found["hooks on all modules"] = len(everywhere._global_forward_hooks) + len(everywhere._global_forward_pre_hooks)
    return found


def randomness() -> dict[str, Any]:
    """Return the state of the global random generators."""
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's generator": str(np.random.get_state(legacy=False)),
        "Python's generator": random.getstate(),
    }


@contextmanager
def other_randomness() -> Iterator[None]:
    """Seed the global random generators differently inside the block, and restore them afterwards."""
    python, old = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        np.random.seed(11)
        random.seed(11)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(old)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the entries that differ."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def logits(lm: LM) -> Tensor:
    """(T, V) logits at the last token of each prompt and at each token of its continuation, from one forward a prompt.

    Several prompts are used, since a method may leave some prompts as they are.
    """
    return torch.cat([whole(lm, lm.encode(prompt), tokens(lm)) for prompt in PROMPTS])


def tokens(lm: LM, text: str = CONTINUATION) -> list[int]:
    """The token ids of a continuation, without special tokens."""
    return list(lm.tokenizer(text, add_special_tokens=False).input_ids)


def whole(lm: LM, head: list[int], tail: list[int]) -> Tensor:
    """(T, V) logits at the last token of `head` and each of `tail`, from one forward over both."""
    ids = torch.tensor([head + tail])
    rows = lm.start(torch.tensor([len(head)]))
    return lm.read(rows, ids, torch.ones_like(ids, dtype=torch.bool), keep=len(tail) + 1)[0]


def stepwise(lm: LM, heads: Sequence[list[int]], tail: list[int]) -> Tensor:
    """(B, T, V) the logits of `whole`, but from a batch padded on the left and then token by token with the cache."""
    rows, last = prefill(lm, heads)
    found = [last]
    for token in tail:
        ids = torch.full((len(heads), 1), token)
        found.append(lm.read(rows, ids, torch.ones_like(ids, dtype=torch.bool), keep=1)[:, -1])
    return torch.stack(found, dim=1)


def gap(wanted: Tensor, got: Tensor) -> float:
    """Return the largest difference of two sets of logits, as a share of their spread."""
    difference = torch.where(wanted == got, 0, wanted.float() - got.float()).abs().max()
    return float(difference / wanted[wanted.isfinite()].float().std())


def rounding(lm: LM) -> float:
    """Return the gap that a different order of summation may explain."""
    return min(ROUNDINGS * torch.finfo(lm.model.dtype).eps, MOST)


def demand_equal(lm: LM, what: str, wanted: Tensor, got: Tensor) -> float:
    """Return the gap; raise Failure if it is larger than rounding explains."""
    found = gap(wanted, got)
    if not found <= rounding(lm):
        raise Failure(f"{what}: logits differ by {found:.2g} of their spread; rounding explains {rounding(lm):.2g}")
    return found
