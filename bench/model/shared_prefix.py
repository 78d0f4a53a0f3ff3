"""Finds contexts with a long common beginning, such as the few-shot examples of a task, which is then read once."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

Tokens = tuple[int, ...]

WORTH = 64  # tokens that must be saved before a beginning is read by itself, which costs a forward
LEFT = 32  # tokens at the end of each context that are never shared, since steering may look back at them
LEVELS = 30  # most levels of beginnings within beginnings


class Alike(NamedTuple):
    """Contexts whose first `shared` tokens are equal; 0 if each is read from its beginning."""

    shared: int
    contexts: list[Tokens]

    @property
    def saved(self) -> int:
        """The number of tokens that need not be read again."""
        return (len(self.contexts) - 1) * self.shared


def alike(contexts: Sequence[Tokens]) -> list[Alike]:
    """Group contexts so that most tokens are saved; the first group holds those that share no long beginning."""
    alone: list[Tokens] = []
    groups = []
    for group in _best(sorted(contexts), LEVELS) if contexts else []:
        if group.saved >= WORTH:
            groups.append(group)
        else:
            alone += group.contexts
    return [Alike(0, alone), *groups] if alone else groups


def _best(contexts: list[Tokens], levels: int) -> list[Alike]:
    """Return the split of these sorted contexts that saves most: all as one group, or each branch by itself."""
    depth = _common(contexts[0], contexts[-1])  # shared by the first and last of sorted contexts, hence by all
    whole = Alike(max(0, min(depth, min(map(len, contexts)) - LEFT)), contexts)
    if len(contexts) == 1 or not levels:
        return [whole]
    parts = [group for branch in _branches(contexts, depth) for group in _best(branch, levels - 1)]
    return parts if sum(group.saved for group in parts) > whole.saved else [whole]


def _branches(contexts: list[Tokens], depth: int) -> list[list[Tokens]]:
    """Group contexts by the token that follows the first `depth`; one that ends there is a branch of its own."""
    return [list(branch) for _, branch in itertools.groupby(contexts, key=lambda one: one[depth : depth + 1])]


def _common(one: Tokens, other: Tokens) -> int:
    """Return the number of tokens at the beginning that both share."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
