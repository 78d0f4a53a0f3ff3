"""For tests of steering at decoding time: a step with readings that are given, and texts read token by token."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.model.lm import LM, Request
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import prefill
from methods.decoding import Step


@dataclass
class Given:
    """Readings that a test has made up; asked: the names, and what was put before, in their order."""

    others: list[Tensor] = field(default_factory=list)  # (B, K, V) each, given in the order in which names appear
    states: Tensor | None = None  # (V, D): the final state after each token
    asked: dict[str, list[int]] = field(default_factory=dict)

    def other(self, name, inside, before=()):
        self.asked.setdefault(name, list(before))
        with inside():
            return self.others[list(self.asked).index(name)]

    def ahead(self, tokens):
        return self.states[tokens]


def step(logits: Tensor, *others: Tensor, states: Tensor | None = None, ids: Tensor | None = None) -> Step:
    """A step of logits (B, K, V), of which the other readings give `others`."""
    rows, columns = logits.shape[:2]
    ids = torch.zeros(rows, columns, dtype=torch.long) if ids is None else ids
    last = torch.arange(ids.shape[1] - columns, ids.shape[1])
    real = torch.ones_like(ids, dtype=torch.bool)
    return Step(logits, ids, real, last, torch.ones(rows, dtype=torch.long), Given(list(others), states))


def steered_logits(method, artefact, strength: float, model, given: Step) -> Tensor:
    """What the method makes of a step's logits."""
    with method.apply(model, artefact, strength) as steering:
        return steering.next_logits(given)


def stepwise(lm: LM, prompt: list[int], tokens: list[int]) -> Tensor:
    """(T, V) logits before each of the tokens, as sampling sees them: read one by one from the cache."""
    rows, last = prefill(lm, [prompt])
    found = [last[0]]
    for token in tokens[:-1]:
        ids = torch.tensor([[token]])
        found.append(lm.read(rows, ids, torch.ones_like(ids, dtype=torch.bool), keep=1)[0, -1])
    return torch.stack(found)


def gap_to_sampling(lm: LM, prompts: list[str], tokens: list[int]) -> float:
    """How far likelihoods of tokens after prompts are from what sampling sees before each of the tokens, in nats."""
    encoded = [lm.encode(prompt) for prompt in prompts]
    asked = [Request(ids, tokens[: 1 + number]) for number, ids in enumerate(encoded)]
    found = likelihoods(lm, asked)
    gaps = []
    for one, (ids, said) in zip(found, asked, strict=True):
        said_at = torch.tensor(said)[:, None]
        wanted = stepwise(lm, ids, said).double().log_softmax(-1).gather(-1, said_at).sum()
        gaps.append(abs(one.logprob - float(wanted)))
    return max(gaps)
