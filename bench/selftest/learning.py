"""Check a method's declaration and its `fit`."""

import dataclasses
import math

from torch import Tensor

from bench.selftest.subject import (
    Failure,
    Skipped,
    Subject,
    differing,
    digest,
    logits,
    other_randomness,
    randomness,
    some,
)
from methods import base
from methods.base import FitData

FAMILIES = ("none", "prompt", "weights", "activation", "adapter", "decoding", "stack")


def protocol(subject: Subject) -> str:
    """The class has every member of the protocol, with the right type."""
    method = subject.method
    names = ("name", "family", "needs", "version", "strength_unit", "strengths", "passes", "check", "fit", "apply")
    lacking = [name for name in names if not hasattr(method, name)]
    if lacking:
        raise Failure(f"it lacks {', '.join(lacking)}; see methods/base.py")
    if not dataclasses.is_dataclass(method) or not type(method).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise Failure("it is not a frozen dataclass; write @dataclass(frozen=True, kw_only=True)")
    if method.family not in FAMILIES:
        raise Failure(f"family={method.family!r}: allowed are {', '.join(FAMILIES)}")
    unknown = set(method.needs) - set(FitData._fields)
    if unknown:
        raise Failure(f"needs names {', '.join(sorted(unknown))}; there are {', '.join(FitData._fields)}")
    if type(method.version) is not int or method.version < 1:
        raise Failure(f"version={method.version!r}: expected a whole number of at least 1")
    if not method.name or not method.strength_unit:
        raise Failure(f"name={method.name!r}, strength_unit={method.strength_unit!r}: neither may be empty")
    grid = list(method.strengths)
    if not all(isinstance(one, int | float) and math.isfinite(one) and one for one in grid) or len({*grid}) < len(grid):
        raise Failure(f"strengths={grid}: expected distinct numbers other than 0")
    if bool(grid) == (method.family == "none"):
        raise Failure(f"family={method.family!r} with {len(grid)} strengths: only family 'none' has no strengths")
    called = f"{base.title(method)} ({method.name})"
    return f"{called} version {method.version}, {method.family}, {len(grid)} strengths in {method.strength_unit}"


def yaml(subject: Subject) -> str:
    """The YAML lists all hyper-parameters and nothing else."""
    if subject.options is None:
        raise Skipped("made without a YAML")
    own = {one.name for one in dataclasses.fields(subject.method) if one.init}  # type: ignore[arg-type]
    listed = set(subject.options) - {"_target_"}
    if own != listed:
        raise Failure(
            f"not in the YAML: {', '.join(sorted(own - listed)) or 'none'}; "
            f"only in the YAML: {', '.join(sorted(listed - own)) or 'none'}"
        )
    return f"{len(own)} options"


def suits(subject: Subject) -> str:
    """`check` accepts the model."""
    subject.method.check(subject.lm.model)
    return f"{subject.lm.model.config.model_type}, {subject.lm.model.num_parameters() / 1e6:.3g} M parameters"


def fit(subject: Subject) -> str:
    """`fit` leaves the model bit-equal."""
    fitted = subject.fitted
    if fitted.trace:
        raise Failure(f"it leaves traces in the model: {some(fitted.trace)}")
    learnt = f"{len(fitted.artefact)} tensors, {base.artefact_bytes(fitted.artefact):,} bytes"
    return f"{fitted.seconds:.1f} s; {learnt}; the model is bit-equal"


def artefact(subject: Subject) -> str:
    """The artefact can be stored, and used on any device."""
    learnt = subject.fitted.artefact
    for name, tensor in learnt.items():
        if not isinstance(tensor, Tensor):
            raise Failure(f"{name} is a {type(tensor).__name__}, not a tensor")
        strange = int((~tensor.isfinite()).sum())
        faults = {
            f"is on {tensor.device}; move it to the CPU": tensor.device.type != "cpu",
            "is not contiguous": not tensor.is_contiguous(),
            "is an inference tensor; clone it outside inference mode": tensor.is_inference(),
            "wants a gradient; detach it": tensor.requires_grad,
            f"has {strange} entries of {tensor.numel()} that are not finite": bool(strange),
        }
        for fault, there in faults.items():
            if there:
                raise Failure(f"{name} {fault}")
    needed = [name for name in learnt if not name.startswith(base.INFO)]
    return f"{len(needed)} tensors to steer with, {len(learnt) - len(needed)} facts" if learnt else "nothing to learn"


def fit_again(subject: Subject) -> str:
    """A second `fit` is bit-equal, whatever the state of the global random generators."""
    first = subject.fitted.artefact
    with other_randomness():
        again = subject.fit(subject.lm)
    names = [name for name in {**first, **again} if name not in first or name not in again]
    if names:
        raise Failure(f"the second fit gives tensors of other names: {some(names)}")
    for name, tensor in first.items():
        if digest(tensor) != digest(again[name]):
            difference = float((tensor.double() - again[name].double()).abs().max())
            raise Failure(f"{name} differs by up to {difference:.2g} in a second fit with other global seeds")
    return "bit-equal under other global seeds"


def draws(subject: Subject) -> str:
    """Neither `fit` nor `apply` draws from the global random generators."""
    if subject.fitted.drawn:
        raise Failure(f"fit moved {some(subject.fitted.drawn)}; draw from a generator of your own")
    before = randomness()
    with subject.steered() as lm:
        logits(lm)
    moved = differing(before, randomness())
    if moved:
        raise Failure(f"apply moved {some(moved)}; draw from a generator of your own")
    return "torch's, numpy's and Python's generators stand where they stood"
