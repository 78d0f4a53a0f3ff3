"""A tiny model with a planted attention sink and a planted direction, for the tests of methods that read features.

The residual stream of this model is, almost exactly, the embedding of each token: whatever writes into it is scaled
down to nothing. Desired continuations consist of tokens that carry +direction, undesired ones of tokens that carry
-direction, and BOS, which stands before every text, is as long as the sink of a real model: a hundred times the rest,
in a direction of its own. Desired and undesired continuations differ in length, so that a mean over all tokens does
not cancel the sink.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.model.lm import LM
from methods import layout
from methods.base import Pairs
from tests.tiny import tiny_model, tiny_tokenizer

SINK_NORM = 100.0
ORDINARY_NORM = 0.1  # of what is neither sink nor direction; the direction itself has norm 1
WRITERS = 1e-4  # what is left of the matrices that write into the residual stream
DESIRED, UNDESIRED = "01234", "56789"  # no digit occurs in the tokenizer's corpus, so each is one token


class Planted(NamedTuple):
    """What was planted: `direction` and `sink` are unit vectors (D,), orthogonal to each other."""

    lm: LM
    pairs: Pairs
    direction: Tensor
    sink: Tensor


def planted_sink(
    architecture: str = "llama", seed: int = 0, sink_norm: float = SINK_NORM, count: int = 24, blocks: int | None = None
) -> Planted:
    """A model (llama or gpt2) whose first token is a sink, and pairs that differ in one planted direction."""
    model, tokenizer = tiny_model(architecture, seed, blocks), tiny_tokenizer("prepend")
    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings().weight  # (V, D)
    width = embedding.shape[1]
    direction, sink = torch.linalg.qr(torch.randn(width, 2, generator=generator)).Q.T  # (D,) each
    new = torch.randn(embedding.shape, generator=generator) * ORDINARY_NORM / width**0.5
    new[_ids(tokenizer, DESIRED)] += direction
    new[_ids(tokenizer, UNDESIRED)] -= direction
    new[tokenizer.bos_token_id] = sink_norm * sink
    with torch.no_grad():
        embedding.copy_(new)
        if architecture == "gpt2":
            model.get_submodule("transformer.wpe").weight.mul_(WRITERS)  # a position writes as well
        for layer in range(len(layout.blocks(model))):
            layout.value_matrix(model, layer).parameter.mul_(WRITERS)
            layout.stream_rows(model, layer, "o").parts[0].parameter.mul_(WRITERS)
    lm = LM(model, tokenizer, {"tiny": architecture, "sink": sink_norm})
    return Planted(lm, _pairs(generator, count), direction, sink)


def _ids(tokenizer, characters: str) -> list[int]:
    ids = tokenizer(characters, add_special_tokens=False).input_ids
    assert len(ids) == len(characters)
    return ids


def _pairs(generator: torch.Generator, count: int) -> Pairs:
    """Random digits after a few harmless words; the desired continuations are shorter."""

    def digits(among: str, length: int) -> str:
        return "".join(among[i] for i in torch.randint(len(among), (length,), generator=generator).tolist())

    words = ("the old tree", "a small bird sings", "people walk along the water and talk")
    return Pairs(
        prompt=[words[i % len(words)] for i in range(count)],
        desired=[digits(DESIRED, 3 + i % 3) for i in range(count)],
        undesired=[digits(UNDESIRED, 9 + i % 5) for i in range(count)],
    )
