"""Measure what a method does to a model: which weights it changes, and which vectors it adds where.

So no format has to know a method: changes of weights, and constant vectors added to the residual stream, are found
here, and anything beyond that is described in words.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.model.lm import LM
from methods import layout, untying
from methods.base import Artefact, Method
from methods.errors import SetupError
from methods.intervention import Hook, Site, adding, edited, hooked, record
from methods.tokens import Text, split

SITES: tuple[Site, ...] = get_args(Site)
TEXTS = (  # prompt and continuation: two, of different lengths, on which everything is measured
    (
        "The quick brown fox jumps over the lazy dog while a small bird sings in the old tree near the river, and the",
        " people walk home along the water.",
    ),
    (
        "On the long road from the village to the market two friends talk about work, weather, bread and the harvest,",
        " as they do every week, and then they count the money they have made.",
    ),
)


class Effect(NamedTuple):
    """The weights and vectors that a steering comes down to.

    weights: new values of the parameters that differ, by name. vectors: (D,) added at the output of each block, at
    every position of every text. beyond: what else the steering does, in words; None: nothing. unties: whether the
    unembedding, which shares the token embedding's weight, becomes a weight of its own.
    """

    weights: dict[str, Tensor]
    vectors: dict[int, Tensor]
    beyond: str | None = None
    unties: bool = False


@dataclass(frozen=True)
class Steered:
    """A method at one strength on one model, with its measured effect."""

    lm: LM
    method: Method
    artefact: Artefact
    strength: float
    effect: Effect
    location: str  # folder or hub id of the base model
    revision: str | None
    base: str  # what the base model is called in the files

    def on(self) -> AbstractContextManager[LM]:
        """Return a context that yields the steered model."""
        return self.lm.steered(self.method, self.artefact, self.strength)


BY_FAMILY = {
    "prompt": "it puts a text before every prompt; write that text before your prompts yourself",
    "decoding": "it changes the logits while a text is decoded, which no file of weights can do",
}
"""What methods of a family do besides changing the model, so that no file can hold them."""


def measure(lm: LM, method: Method, artefact: Artefact, strength: float) -> Effect:
    """Measure what the method does to the model at this strength; every text of TEXTS is read a few times."""
    before = {name: _digest(parameter) for name, parameter in lm.model.named_parameters(remove_duplicate=False)}
    tied = untying.is_tied(lm.model)
    with lm.steered(method, artefact, strength) as steered:
        steering = steered.steering
        weights = {
            name: parameter.detach().clone()
            for name, parameter in lm.model.named_parameters()
            if _digest(parameter) != before[name]
        }
        unties = tied and not untying.is_tied(lm.model)
    if steering.prefix:
        return Effect(weights, {}, BY_FAMILY["prompt"])
    if steering.next_logits is not None:
        return Effect(weights, {}, BY_FAMILY["decoding"])
    texts = _encoded(lm)
    zeroed = [_streams(lm, method, artefact, strength, text, zero=True).around for text in texts]
    read = [_streams(lm, method, artefact, strength, text, zero=False) for text in texts]
    natural = [one.around for one in read]
    vectors: dict[int, Tensor] = {}
    for layer, site in zeroed[0]:
        added = [stream[layer, site][1] for stream in zeroed]  # (T, D) each: what becomes of a stream of zeros
        seen = [stream[layer, site] for stream in natural]
        if not any(bool(one.any()) for one in added) and all(torch.equal(*one) for one in seen):
            continue
        block = layer if site == "output" else layer - 1
        vector = added[0][0].clone()  # (D,)
        beyond = _beyond(vector, added, seen, texts, method.scope is not None)
        if beyond is None and block < 0:
            beyond = "it adds a vector where no block has written yet"
        if beyond is not None:
            return Effect(weights, {}, f"at the {site} of block {layer} {beyond}")
        vectors[block] = vectors[block] + vector if block in vectors else vector
    effect = Effect(weights, vectors, unties=unties)
    if not _explains(lm, method, artefact, strength, effect, texts):
        more = "it does more to the model than to change its weights and to add vectors between its blocks"
        return effect._replace(beyond=more)
    if any(one.judged for one in read):  # a gate judged the prompts, and yet no effect of an open gate was seen
        shut = (
            f"its gate was shut on the {len(texts)} texts tried, and no file can hold a gate, which may open on others"
        )
        return effect._replace(beyond=shut)
    return effect


def _digest(parameter: Tensor) -> bytes:
    flat = parameter.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()


def _encoded(lm: LM) -> list[Text]:
    return split(lm.tokenizer, [prompt for prompt, _ in TEXTS], [continuation for _, continuation in TEXTS])


class _Streams(NamedTuple):
    """The hidden states of one text before and after steering, and whether the method judged the prompt.

    around: (T, D) before and after the method's own hooks at each block and site. judged: whether the method keeps a
    verdict about the prompt, so that it may do something else to another text.
    """

    around: dict[tuple[int, Site], tuple[Tensor, Tensor]]
    judged: bool


def _streams(lm: LM, method: Method, artefact: Artefact, strength: float, text: Text, *, zero: bool) -> _Streams:
    """Read a text with the steered model; the last token is read from the cache.

    Hooks run in the order in which they were set: ours before, the method's, ours after. zero: whether the method's
    hooks get zeros instead of the stream; what they return is then exactly what they add.
    """
    blocks = layout.blocks(lm.model)
    layers = range(len(blocks))
    with ExitStack() as stack:
        before = {site: stack.enter_context(record(lm.model, layers, site)) for site in SITES}
        if zero:
            stack.enter_context(hooked(Hook(block, site, torch.zeros_like) for block in blocks for site in SITES))
        steered = stack.enter_context(lm.steered(method, artefact, strength))
        after = {site: stack.enter_context(record(lm.model, layers, site)) for site in SITES}
        rows = steered.start(torch.tensor([text.prompt]))
        parts = []
        for ids in (text.tokens[:-1], text.tokens[-1:]):
            steered.read(rows, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), keep=1)
            parts.append({(i, s): (before[s][i][0], after[s][i][0]) for s in SITES for i in layers})
    return _Streams({key: (_joined(parts, key, 0), _joined(parts, key, 1)) for key in parts[0]}, bool(rows.noted))


def _joined(parts: Sequence[Mapping[tuple[int, Site], tuple[Tensor, Tensor]]], key: tuple[int, Site], i: int) -> Tensor:
    return torch.cat([part[key][i] for part in parts]).clone()  # (T, D)


ALL_TOKENS = "set method.scope=all, which steers differently, so measure that too before you use the export"


def _beyond(
    vector: Tensor, added: Sequence[Tensor], seen: Sequence[tuple[Tensor, Tensor]], texts: Sequence[Text], scoped: bool
) -> str | None:
    """Return the reason why this is not one vector added at all positions of all texts; None if it is.

    The method must act on at least one of the texts.
    """
    moved = [(before != after).any(-1) for before, after in seen]  # (T,) of each text
    acted = [(zeros != 0).any(-1) | one for zeros, one in zip(added, moved, strict=True)]
    touched = [bool(one.any()) for one in (moved if any(bool(one.any()) for one in moved) else acted)]
    if not all(touched):
        return f"it acts on {sum(touched)} of the {len(texts)} texts tried, and what is exported acts on every text"
    if not all(bool(one.all()) for one in acted):
        ends = [text.prompt - 1 for text in texts]
        first = min(int(one.nonzero().min()) - end for one, end in zip(acted, ends, strict=True))
        last = max(int(one.nonzero().max()) - end for one, end in zip(acted, ends, strict=True))
        if first >= 0:
            where = "only from the end of the prompt on"
        elif last < 0:
            where = "only at the first tokens of a text"
        else:
            where = "only in the prompt" if last == 0 else "only at some positions"
        step = f"; {ALL_TOKENS}" if scoped else ""
        return f"it acts {where}, and what is exported acts on every token{step}"
    if not all(torch.equal(one, vector.expand_as(one)) for one in added):
        return "it adds another vector at each position"
    if not all(_equal(before + vector, after) for before, after in seen):
        return "what it adds depends on what is there"
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to a few roundings of the largest entries."""
    return bool((one - other).abs().max() <= 8 * torch.finfo(one.dtype).eps * one.abs().max())


def _explains(
    lm: LM, method: Method, artefact: Artefact, strength: float, effect: Effect, texts: Sequence[Text]
) -> bool:
    """Return whether the measured weights and vectors alone give the steered model's logits."""
    blocks = layout.blocks(lm.model)
    hooks = [Hook(blocks[layer], "output", adding(vector, "all")) for layer, vector in effect.vectors.items()]
    with lm.steered(method, artefact, strength) as steered:
        wanted = [_logits(steered, text) for text in texts]
    with untying.untied(lm.model) if effect.unties else nullcontext():
        parameters = dict(lm.model.named_parameters())
        new: dict[nn.Parameter, Tensor] = {parameters[name]: value for name, value in effect.weights.items()}
        with edited(new), hooked(hooks):
            got = [_logits(lm, text) for text in texts]
    return largest_difference(wanted, got) <= tolerance(wanted)


def _logits(lm: LM, text: Text) -> Tensor:
    ids = torch.tensor([text.tokens])
    return lm.read(lm.start(torch.tensor([text.prompt])), ids, torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def logits(model: PreTrainedModel, lm: LM) -> list[Tensor]:
    """(T, V) the logits of each text of TEXTS, from a plain forward of `model`, as users of an export run it."""
    found = []
    for text in _encoded(lm):
        ids = torch.tensor([text.tokens], device=model.device)
        found.append(model(input_ids=ids, use_cache=False).logits[0])
    return found


def largest_difference(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the largest absolute difference between logits; NaN if any is NaN."""
    pairs = zip(wanted, got, strict=True)
    return float(torch.stack([(one.float() - other.to(one.device).float()).abs().max() for one, other in pairs]).max())


def tolerance(wanted: Sequence[Tensor]) -> float:
    """Return how far rounding may move logits: 256 roundings of the largest logit, or 1/20 of it in low precision."""
    return min(256 * torch.finfo(wanted[0].dtype).eps, 0.05) * max(float(one.abs().max()) for one in wanted)


def verified(steered: Steered, model: PreTrainedModel) -> float:
    """Return the largest difference between the logits of an export, loaded again, and of the steered model.

    Raises SetupError if it is larger than rounding explains.
    """
    with steered.on() as lm:
        wanted = logits(lm.model, lm)
    difference = largest_difference(wanted, logits(model.to(steered.lm.device).eval(), steered.lm))  # type: ignore[arg-type]
    if not difference <= tolerance(wanted):
        raise SetupError(
            f"the export does not give the steered model's logits: they differ by {difference:.2g}, and rounding alone "
            f"explains {tolerance(wanted):.2g}; nothing was written. Choose another format, see --help"
        )
    return difference
