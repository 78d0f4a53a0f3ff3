"""Which contexts begin alike for long, so that what they share is read once: the few-shot examples of a task."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Tokens = tuple[int, ...]

WORTH = 64  # tokens that must be saved before a beginning is read by itself, which costs a forward
LEFT = 32  # tokens at the end of each context that are never shared: steering may look so far back from where it ends


class Alike(NamedTuple):
    """Contexts whose first `shared` tokens are equal; 0 where they are read each from its beginning."""

    shared: int
    contexts: list[Tokens]

    @property
    def saved(self) -> int:
        """Tokens that are not read again."""
        return (len(self.contexts) - 1) * self.shared


def alike(contexts: Sequence[Tokens]) -> list[Alike]:
    """The contexts in groups that share a long beginning; those that share none are one group, the first.

    Sorted contexts are gone through once: a group takes the next one where that saves no fewer tokens than the group
    does without it.
    """
    alone: list[Tokens] = []
    groups = []
    for group in _runs(sorted(contexts)):
        if group.saved >= WORTH:
            groups.append(group)
        else:
            alone += group.contexts
    return [Alike(0, alone), *groups] if alone else groups


def _runs(contexts: list[Tokens]) -> Iterator[Alike]:
    group: list[Tokens] = []
    depth = 0  # tokens that all of the group share
    for context in contexts:
        common = min(depth, _common(group[-1], context)) if group else 0
        if group and len(group) * common < max(1, (len(group) - 1) * depth):
            yield _alike(depth, group)
            group = []
        depth = common if group else len(context)
        group.append(context)
    if group:
        yield _alike(depth, group)


def _alike(depth: int, contexts: list[Tokens]) -> Alike:
    return Alike(max(0, min(depth, min(map(len, contexts)) - LEFT)), contexts)


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))  # noqa: B905
