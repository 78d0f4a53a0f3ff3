"""Several methods one after the other, each fitted on the model as the earlier methods leave it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.base import INFO, Artefact, Demand, FitData, Method, Steering
from methods.decoding import Step, Streams
from methods.errors import SetupError

KEEPS_MODEL = {"none", "prompt", "decoding"}  # families that change neither weights nor what goes on inside the model


@dataclass(frozen=True, kw_only=True)
class Stack(Method):
    """Apply the parts in order, part i at strength * at_i; it is fitted while parts 1 to i - 1 act at their own `at`.

    Model Surgery stacks two of its edits in this way: the second probe is trained on the model that the first edit left
    (arXiv 2407.08770 section 4.5). Any methods can be stacked; prefixes are joined in order, and functions of the next
    logits run in order. But a part that also reads the texts with other weights (DExperts) must follow all parts that
    change the model, so that its experts are steered as the model is.

    All parts learn from the same data, except those that have their own (`FitData.parts`; in a command, `part_data`).
    In this way two behaviours can be stacked, each with its own texts. The paper reports three models: LLaMA2-7B as it
    is, detoxified, and detoxified with a negative attitude stacked on top. In this order, the figures are ToxiGen .791,
    .399, .374; RealToxicityPrompts .514, .0517, .0542; WikiText-2 perplexity 6.10, 6.53, 7.14; negative answers .637
    for the first model and .742 for the last.

    Example:
        >>> from methods import DeTox, FitData, Prompt, Stack
        >>> parts = {"words": Prompt(prompts=["Be kind. "], strengths=(1,)), "edit": DeTox(layer_start=4)}
        >>> method = Stack(parts=parts, at={"words": 1, "edit": 0.5})
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1.0) as steering:
        ...     changed = [name for name, one in model.named_parameters() if not one.equal(weights[name])]
        >>> steering.prefix, changed
        ('Be kind. ', ['model.layers.4.mlp.down_proj.weight'])
    """

    name: ClassVar[str] = "stack"
    title: ClassVar[str] = "Stack"
    family: ClassVar[str] = "stack"
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of each part's own strength"

    parts: Mapping[str, Method] = field(default_factory=dict)
    at: Mapping[str, float] = field(default_factory=dict)
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # depends on the parts
        """The data that any of the parts needs."""
        return frozenset().union(*(part.needs for part in self.parts.values()))

    @property
    def part_needs(self) -> Mapping[str, frozenset[str]]:
        """The needs of each part, which may learn from its own data."""
        return {name: part.needs for name, part in self.parts.items()}

    @property
    def half_version(self) -> int:  # type: ignore[override]
        """The sum of the parts' versions for 16-bit models, which grows if that of any part does."""
        return sum(part.half_version for part in self.parts.values())

    def passes(self) -> float:
        """Return the sum over the parts, since each reads its data by itself."""
        return sum(part.passes() for part in self.parts.values())

    def demand(self) -> Demand:
        """Return the sum of the parts' demands."""
        return _together([part.demand() for part in self.parts.values()])

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError unless there are parts, each with a strength, and each suits the model."""
        if not self.parts or set(self.parts) != set(self.at):
            raise SetupError(
                f"method.parts names {list(self.parts)} and method.at {list(self.at)}; give every part a strength "
                "in method.at"
            )
        for part in self.parts.values():
            part.check(model)
        single = list(_single(self))
        for number, (name, part) in enumerate(single):
            later = [other for other, one in single[number + 1 :] if one.family not in KEEPS_MODEL]
            if part.family == "decoding" and part.demand().copies and later:
                raise SetupError(
                    f"method.parts: {later[0]} comes after {name}, which also reads the texts with other weights, and "
                    f"whether {later[0]} would act on them depends on its form; put {name} last"
                )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return each part's artefact under its name: "first.probe", and its facts as "info.first.probe_norm"."""
        self.check(model)
        found: Artefact = {}
        with ExitStack() as stack:
            for name, part in self.parts.items():
                artefact = (data.fitted or {}).get(name) or part.fit(model, tokenizer, data.of(name))
                for key, tensor in artefact.items():
                    known = key.startswith(INFO)
                    found[f"{INFO}{name}.{key.removeprefix(INFO)}" if known else f"{name}.{key}"] = tensor
                stack.enter_context(part.apply(model, artefact, self.at[name]))
        return found

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Apply all parts inside the `with`, and undo them in the opposite order."""
        with ExitStack() as stack:
            steerings = []
            for name, part in self.parts.items() if strength != 0 else ():
                own = {key.removeprefix(f"{name}."): t for key, t in artefact.items() if key.startswith(f"{name}.")}
                steerings.append(stack.enter_context(part.apply(model, own, strength * self.at[name])))
            functions = [one.next_logits for one in steerings if one.next_logits is not None]
            yield Steering(
                "".join(one.prefix for one in steerings),
                _in_order(functions) if functions else None,
                _together([one.demand for one in steerings]),
            )


def _single(stack: Stack) -> Iterator[tuple[str, Method]]:
    """Yield the parts in order with their names; for a stack inside the stack, yield its own parts instead."""
    for name, part in stack.parts.items():
        yield from _single(part) if isinstance(part, Stack) else [(name, part)]


def _together(demands: Sequence[Demand]) -> Demand:
    """Return the demand of all parts: they try tokens ahead one after the other, but each has its own readings."""
    readings, ahead, copies, room = zip(Demand(), *demands, strict=True)
    return Demand(sum(readings), max(ahead), sum(copies), max(room))


def _in_order(functions: Sequence[Callable[[Step], Tensor]]) -> Callable[[Step], Tensor]:
    def run(step: Step) -> Tensor:  # (B, K, V)
        logits = step.logits
        for number, function in enumerate(functions):
            logits = function(step._replace(logits=logits, streams=_Own(step.streams, number)))
        return logits

    return run


class _Own(NamedTuple):
    """The readings of one part, under names that no other part has."""

    streams: Streams
    number: int

    def other(
        self, name: str, inside: Callable[[], AbstractContextManager[object]], before: Sequence[int] = ()
    ) -> Tensor:
        return self.streams.other(f"{self.number}.{name}", inside, before)

    def ahead(self, tokens: Tensor) -> Tensor:
        return self.streams.ahead(tokens)
