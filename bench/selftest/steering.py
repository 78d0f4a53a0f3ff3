"""Checks of `apply`: that it has an effect, where it acts, and that all of it is undone."""

import copy
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from bench.files.atomic import temporary_folder
from bench.selftest.hook_watch import Watch, described, summary
from bench.selftest.subject import (
    PROMPTS,
    STEPS,
    Failure,
    Skipped,
    Subject,
    differing,
    gap,
    logits,
    some,
    state,
    stepwise,
    tokens,
    whole,
)
from methods import base
from methods.base import Examples, FitData, Steering


def undo(subject: Subject) -> str:
    """After the block, and after an exception in it, the model is bit-equal; steering again gives the same."""
    unsteered = logits(subject.lm)

    def demand_undone(when: str) -> None:
        left = subject.traces()
        if left:
            raise Failure(f"{when}, traces are left: {some(left)}")
        if not torch.equal(logits(subject.lm), unsteered):
            raise Failure(f"{when}, logits differ by {gap(unsteered, logits(subject.lm)):.2g} of their spread")

    with subject.steered() as lm:
        inside = logits(lm)
    demand_undone("after the block")
    with subject.steered() as lm:
        if not torch.equal(logits(lm), inside):
            raise Failure(f"switched off and on again, logits differ by {gap(inside, logits(lm)):.2g} of their spread")
    try:
        with subject.steered() as lm:
            logits(lm)
            raise Interruption
    except Interruption:
        demand_undone("after an exception")
    else:
        raise Failure("apply swallows an exception that is raised inside its block")
    return f"{len(subject.clean)} facts about the model and its logits are the same; after an exception too"


class Interruption(Exception):
    """Raised inside a steered block, to test that steering is undone."""


def strength_zero(subject: Subject) -> str:
    """Strength 0 is the base model exactly."""
    unsteered = logits(subject.lm)
    with subject.method.apply(subject.lm.model, subject.fitted.artefact, 0) as steering:
        changed = subject.traces()
        got = logits(replace(subject.lm, steering=steering))
    if steering != Steering():
        raise Failure("it has a prefix or a function of the logits at strength 0")
    if not torch.equal(got, unsteered):
        raise Failure(f"logits differ by {gap(unsteered, got):.2g} of their spread")
    if changed:
        raise Failure(f"the logits are the same, yet it touches the model: {some(changed)}")
    return "bit-equal logits"


def effect(subject: Subject) -> str:
    """Steering changes the logits."""
    unsteered = logits(subject.lm)
    with subject.steered() as lm:
        found = gap(unsteered, logits(lm))
    if subject.method.family == "none":
        if found:
            raise Failure(f"family 'none' changes nothing, but logits differ by {found:.2g} of their spread")
        return "nothing changes, as its family says"
    if not found > 16 * torch.finfo(subject.lm.model.dtype).eps:
        raise Failure(f"strength {subject.strongest:g} does nothing: logits differ by {found:.2g} of their spread")
    return f"logits move by up to {found:.2g} of their spread at strength {subject.strongest:g}"


def grid(subject: Subject) -> str:
    """Different strengths of the grid give different logits."""
    if not subject.method.strengths:
        raise Skipped("it has no grid")
    unsteered = logits(subject.lm)
    seen: dict[float, Tensor] = {0: unsteered}
    for strength in subject.method.strengths:
        with subject.steered(strength) as lm:
            got = logits(lm)
        same = [f"{other:g}" for other, one in seen.items() if torch.equal(one, got)]
        if same:
            raise Failure(f"strength {strength:g} gives the same logits as {', '.join(same)}")
        if not got.isfinite().any(-1).all():
            raise Failure(f"strength {strength:g} gives no finite logit")
        seen[strength] = got
    moves = ", ".join(f"{gap(unsteered, got):.2g} at {strength:g}" for strength, got in seen.items() if strength)
    return f"logits move by {moves}"


def where(subject: Subject) -> str:
    """The method acts on the same tokens of a text, whether it is read token by token, padded, or in one pass."""
    with Watch(subject.lm.model) as watch, subject.steered() as lm:
        inside = subject.traces()
        head, longer = (lm.encode(prompt) for prompt in PROMPTS[:2])
        tail = tokens(lm)[:STEPS]
        watch.start()
        text = len(head + tail)
        alone = watch.acted(text, lambda: stepwise(lm, [head], tail))
        padded = watch.acted(text, lambda: stepwise(lm, [head, longer], tail))
        at_once = watch.acted(text, lambda: whole(lm, head, tail))
        steering = lm.steering
    for how, other in (("beside a longer text", padded), ("when the text is read at once", at_once)):
        for name, one in alone.items():
            here, there = (described(columns, len(head)) for columns in (one.columns, other[name].columns))
            if here != there:
                raise Failure(f"{name} changes {here}; {how} it changes {there}")
    edited = sum(name.startswith("weight ") for name in inside)
    total = sum(name.startswith("weight ") for name in subject.clean)
    replaced = sum(name.startswith("forward of") for name in inside)
    parts = [
        f"{edited} of {total} weights edited" if edited else "",
        f"{replaced} modules replaced or with another forward" if replaced else "",
        f"a prefix of {len(tokens(subject.lm, steering.prefix))} tokens" if steering.prefix else "",
        "the next token's logits are changed" if steering.next_logits is not None else "",
        summary(alone, len(head)),
    ]
    return "; ".join(part for part in parts if part)


def saved(subject: Subject) -> str:
    """A new instance of the method gives bit-equal logits with the saved artefact, without its `info.` entries."""
    with temporary_folder() as folder:
        path = folder / "artefact.safetensors"
        base.save(subject.fitted.artefact, path)
        loaded = {name: tensor for name, tensor in base.load(path).items() if not name.startswith(base.INFO)}
    with subject.steered() as lm:
        wanted = logits(lm)
    with subject.lm.steered(subject.make(), loaded, subject.strongest) as lm:
        got = logits(lm)
    if not torch.equal(wanted, got):
        raise Failure(f"logits differ by {gap(wanted, got):.2g} of their spread")
    return "bit-equal logits from a fresh object, without the info.* facts"


COPIES = 5  # of the model, in bytes: the copy, its saved bytes, gradients and changes, and masters and moments in fp32
FEW = 2  # texts to train on in bfloat16, which is an order of magnitude slower on a CPU without it


def _few(data: FitData) -> FitData:
    """Return all pairs, and a few of the texts that are trained on."""
    examples, harmful = (
        one and Examples(one.prompt[:FEW], one.completion[:FEW]) for one in (data.examples, data.harmful)
    )
    return data._replace(examples=examples, harmful=harmful)


def dtype(subject: Subject) -> str:
    """The method works on a bfloat16 copy of the model, which stays bfloat16 and is left bit-equal."""
    if subject.lm.model.dtype == torch.bfloat16:
        raise Skipped("the model is bfloat16 already")
    device, size = subject.lm.device, sum(one.nbytes for one in subject.lm.model.parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    needed = COPIES * size
    if free < needed:
        raise Skipped(f"a copy and its fit may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    low = replace(subject.lm, model=copy.deepcopy(subject.lm.model).to(torch.bfloat16))  # type: ignore[arg-type]
    before, unsteered = state(low.model), logits(low)
    learnt = subject.fit(low, _few(subject.data))
    with low.steered(subject.method, learnt, subject.strongest) as lm:
        got = logits(lm)
        others = [name for name, one in low.model.named_parameters() if one.dtype != torch.bfloat16]
    if others or got.dtype != torch.bfloat16:
        raise Failure(f"no longer bfloat16: {some([*others, f'logits ({got.dtype})'])}")
    if not got.isfinite().any(-1).all():
        raise Failure("steered, it gives no finite logit")
    left = differing(before, state(low.model))
    if left:
        raise Failure(f"traces are left in the copy: {some(left)}")
    return f"fitted and undone on a bfloat16 copy; logits move by {gap(unsteered, got):.2g} of their spread"
