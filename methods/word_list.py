"""A list of words as an automaton over tokens, which tells which tokens would complete a word after a row's tokens.

Words are found in the text, not in one way to tokenise it: a word counts wherever its letters are between characters
that belong to no word, however they are split into tokens, and in capitals or small letters.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from methods.base import Artefact
from methods.decoding import Step
from methods.errors import SetupError

WORD = re.compile(r"\w+")
"""Letters, digits and underscores. A token that is a part of a letter's bytes decodes to U+FFFD, none of these."""

START = 0  # the state between two words
BY_STATE = -1  # for a token of letters alone: the state after it depends on the state before it
NOTHING = -2  # for a token that adds nothing to a text, such as a special token


class Automaton(NamedTuple):
    """An automaton over tokens. A state says which beginning of a listed word the text so far ends in.

    State 0 is the empty beginning: the next letter begins a word. In the last state, the text ends in letters that
    cannot become a listed word by adding more letters.

    after: (V,) the state after each token, or BY_STATE or NOTHING. key: (N,), ascending: state * V + token for each
    token that continues a word from that state; `to`: (N,) the state after that token. always: tokens that complete a
    listed word from any state. first: (S + 1,) for each of S states, the index in `completing` at which the tokens
    begin that complete a word from that state.
    """

    after: Tensor
    key: Tensor
    to: Tensor
    always: Tensor
    first: Tensor
    completing: Tensor
    longest: Tensor  # (1,) letters of the longest word

    def states(self, step: Step) -> Tensor:
        """Return the state (B, K) after each column that has logits."""
        device, length, none = step.ids.device, int(self.longest), len(self.first) - 2
        written = step.real & (self.after[step.ids] != NOTHING)  # (B, C)
        place = (~written).to(torch.uint8).argsort(dim=-1, stable=True)  # (B, C) columns that add text come first
        rank = written.long().cumsum(-1)[:, step.columns]  # (B, K) the number of such columns so far
        # A token of letters has at least one, so a listed word in progress began within the last `length` tokens.
        back = rank[..., None] - length + torch.arange(length, device=device)  # (B, K, W)
        columns = place.gather(1, back.clamp(min=0).flatten(1)).view_as(back)
        tokens = step.ids.gather(1, columns.flatten(1)).view_as(back)
        state = torch.where(rank <= length, START, none)  # (B, K)
        for number in range(length):
            token = tokens[..., number]
            key = state * len(self.after) + token
            at = torch.searchsorted(self.key, key).clamp(max=len(self.key) - 1)
            going_on = torch.where(self.key[at] == key, self.to[at], none)
            reached = torch.where(self.after[token] == BY_STATE, going_on, self.after[token])
            state = torch.where(back[..., number] >= 0, reached, state)
        return state

    def penalised(self, logits: Tensor, state: Tensor, penalty: float) -> Tensor:
        """Return logits (..., V), with the penalty subtracted at the tokens that complete a word from states (...)."""
        found = logits.clone(memory_format=torch.contiguous_format)
        found[..., self.always] -= penalty
        flat, state = found.view(-1, found.shape[-1]), state.flatten()  # (N, V), (N,)
        count = self.first[state + 1] - self.first[state]  # (N,)
        row = torch.arange(len(flat), device=state.device).repeat_interleave(count)
        begin = (self.first[state] - count.cumsum(0) + count).repeat_interleave(count)
        flat[row, self.completing[begin + torch.arange(len(row), device=state.device)]] -= penalty
        return found

    def to_device(self, device: torch.device) -> "Automaton":
        """Return the same automaton on another device."""
        return Automaton(*(one.to(device) for one in self))

    def saved(self) -> Artefact:
        """Return the tensors by name."""
        return dict(self._asdict())


def loaded(artefact: Artefact) -> Automaton:
    """Return the automaton that was saved. Raises SetupError for another method's artefact."""
    if missing := [name for name in Automaton._fields if name not in artefact]:
        raise SetupError(f"word_filter: an artefact without {', '.join(missing)} holds no word list; fit it again")
    return Automaton(*(artefact[name] for name in Automaton._fields))


def words_of(text: str) -> list[str]:
    """Return the words of a text, in small letters."""
    return WORD.findall(text.casefold())


def token_texts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Return what each of the first `count` tokens adds to a text, in small letters; special or unknown ones add ""."""
    before = list(tokenizer("a", add_special_tokens=False).input_ids)  # in front, so that no leading space is dropped
    start, special = str(tokenizer.decode(before, clean_up_tokenization_spaces=False)), set(tokenizer.all_special_ids)
    known = min(count, len(tokenizer))
    texts = tokenizer.batch_decode([[*before, token] for token in range(known)], clean_up_tokenization_spaces=False)
    found = ["" if i in special else text[len(start) :].casefold() for i, text in enumerate(texts)]
    return found + [""] * (count - known)


def automaton(words: Collection[str], texts: Sequence[str]) -> Automaton:
    """Build the automaton of words in small letters. texts: the text of each token (`token_texts`)."""
    beginnings = sorted({word[:end] for word in words for end in range(1, len(word))})
    number = {"": START} | {beginning: i for i, beginning in enumerate(beginnings, 1)}
    none = len(number)
    leading: dict[str, list[int]] = {}  # tokens by the letters that they begin with
    after, always = [], []
    for token, text in enumerate(texts):
        runs = WORD.findall(text)
        begins = bool(runs) and text.startswith(runs[0])
        if begins:
            leading.setdefault(runs[0], []).append(token)
        if any(run in words for run in runs[begins:]):
            always.append(token)
        if not text:
            after.append(NOTHING)
        elif begins and runs[0] == text:
            after.append(BY_STATE)
        else:
            last = runs[-1] if runs and text.endswith(runs[-1]) else ""
            after.append(number.get(last, none))
    going_on: dict[int, int] = {}
    completing: list[set[int]] = [set() for _ in range(none + 1)]
    for word in words:
        for start in range(len(word)):
            state = number[word[:start]]
            completing[state].update(leading.get(word[start:], ()))
            for end in range(start + 1, len(word)):
                for token in leading.get(word[start:end], ()):
                    if after[token] == BY_STATE:
                        going_on[state * len(texts) + token] = number[word[:end]]
    whole = set(always)
    lists = [sorted(tokens - whole) for tokens in completing]
    key = sorted(going_on) or [-1]
    return Automaton(
        torch.tensor(after),
        torch.tensor(key),
        torch.tensor([going_on.get(one, none) for one in key]),
        torch.tensor(always, dtype=torch.long),
        torch.tensor([0, *map(len, lists)]).cumsum(0),
        torch.tensor([token for tokens in lists for token in tokens], dtype=torch.long),
        torch.tensor([max(map(len, words))]),
    )


def share_with(words: Collection[str], texts: Iterable[str]) -> float:
    """Return the share of the texts that hold a listed word."""
    held = [any(word in words for word in words_of(text)) for text in texts]
    return sum(held) / len(held)
