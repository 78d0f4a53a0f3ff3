"""Checks that steering does not depend on the cache, on the batch or on the order of prompts."""

import torch

from bench.model.sampling import prefill, sample
from bench.selftest.subject import PROMPTS, STEPS, Failure, Skipped, Subject, demand_equal, stepwise, tokens, whole

SAMPLES, BATCHES = 8, (4, 16)  # texts of each prompt, and the rows of a batch, that are compared
FLIPS = 0.05  # share of texts above which rounding in float32 is not an explanation; it flips fewer than 1 of 1,000


def cached(subject: Subject) -> str:
    """Reading token by token with the cache gives the same logits as reading the text at once, or without a cache."""
    worst, agreed, count = 0.0, 0, 0
    with subject.steered() as lm:
        for prompt in PROMPTS[:2]:
            head, new = lm.encode(prompt), list[int]()
            rows, last = prefill(lm, [head])
            steps = [last[0]]
            for _ in range(STEPS):
                new.append(int(steps[-1].argmax()))
                steps.append(lm.read(rows, torch.tensor([[new[-1]]]), torch.tensor([[True]]), keep=1)[0, -1])
            found = torch.stack(steps)  # (T, V)
            afresh = torch.stack([whole(lm, head, new[:step])[-1] for step in range(STEPS + 1)])
            worst = max(worst, demand_equal(lm, "from the cache and afresh for each token", afresh, found))
            at_once = whole(lm, head, new)
            worst = max(worst, demand_equal(lm, "from the cache and the whole text at once", at_once, found))
            agreed += int((afresh.argmax(-1) == found.argmax(-1)).sum())
            count += STEPS + 1
    return f"{agreed} of {count} greedy tokens agree; on the same tokens, logits differ by {worst:.2g} of their spread"


def left_padding(subject: Subject) -> str:
    """Prompts in a batch, padded on the left, give the same logits as each alone, even in the steps that follow."""
    worst = 0.0
    with subject.steered() as lm:
        heads, tail = [lm.encode(prompt) for prompt in PROMPTS], tokens(lm)[:STEPS]
        if len({len(head) for head in heads}) == 1:
            raise Skipped("all prompts have the same length here, so nothing is padded")
        for prompt, head, row in zip(PROMPTS, heads, stepwise(lm, heads, tail), strict=True):
            what = f"alone and in a batch padded on the left, {prompt!r}"
            worst = max(worst, demand_equal(lm, what, stepwise(lm, [head], tail)[0], row))
    pads = ", ".join(str(max(map(len, heads)) - len(head)) for head in heads)
    return f"with {pads} pads, logits differ by {worst:.2g} of their spread"


def right_padding(subject: Subject) -> str:
    """Texts in a batch, padded on the right as for likelihoods, give the same logits as each alone."""
    worst = 0.0
    with subject.steered() as lm:
        heads, tail = [lm.encode(prompt) for prompt in PROMPTS], tokens(lm)
        width = max(map(len, heads)) + len(tail)
        ids = torch.tensor([head + tail + [0] * (width - len(head + tail)) for head in heads])
        length = torch.tensor([len(head) for head in heads])
        real = torch.arange(width)[None, :] < (length + len(tail))[:, None]
        batch = lm.read(lm.start(length), ids, real)
        for prompt, head, row in zip(PROMPTS, heads, batch, strict=True):
            what = f"alone and in a batch padded on the right, {prompt!r}"
            mine = row[len(head) - 1 : len(head + tail)]
            worst = max(worst, demand_equal(lm, what, whole(lm, head, tail), mine))
    return f"logits differ by {worst:.2g} of their spread"


def batch_size(subject: Subject) -> str:
    """Texts sampled in batches of 4 and of 16 rows are the same; in half precision, differing ones are counted."""
    with subject.steered() as lm:
        small, large = (sample(lm, PROMPTS, SAMPLES, 4 * STEPS, batch_size=rows) for rows in BATCHES)
    pairs = [pair for texts in zip(small, large, strict=True) for pair in zip(*texts, strict=True)]
    flipped, kind = sum(one != other for one, other in pairs), str(lm.model.dtype).removeprefix("torch.")
    told = f"{flipped} of {len(pairs)} texts differ between batches of {BATCHES[0]} and {BATCHES[1]} rows in {kind}"
    if kind == "float32" and flipped > FLIPS * len(pairs):
        raise Failure(f"{told}; rounding explains one of a thousand")
    return told


def order(subject: Subject) -> str:
    """A sampled text does not depend on the prompts that were sampled before."""
    with subject.steered() as lm:
        first = {prompt: sample(lm, [prompt], 2, STEPS) for prompt in PROMPTS}
        again = {prompt: sample(lm, [prompt], 2, STEPS) for prompt in reversed(PROMPTS)}
    other = [prompt for prompt in PROMPTS if first[prompt] != again[prompt]]
    if other:
        raise Failure(f"{len(other)} of {len(PROMPTS)} prompts get other texts in the opposite order: {other[0]!r}")
    return f"{2 * len(PROMPTS)} sampled texts are the same in the opposite order"
