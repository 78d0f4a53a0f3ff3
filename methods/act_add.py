"""Activation addition (arXiv 2308.10248): the difference of two short prompts, added to the front of every text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import Artefact, FitData, Method, Steering
from methods.errors import SetupError
from methods.intervention import Hook, Positions, at, current_positions, hooked, record, scope_mask
from methods.placement import input_device
from methods.tokens import check_known, check_unsteered

ShortPrompt = Literal["error", "clip"]


@dataclass(frozen=True, kw_only=True)
class ActAdd(Method):
    """h_t <- h_t + strength * v_t at the input of block `layer`, for the first F tokens of the text only.

        v = h(desired) - h(undesired),   (F, D), one row per position, neither pooled nor normalised

    h is the residual stream at the block's input (resid_pre) when the model reads a short prompt. The shorter of the
    two prompts is padded on the right with the token `pad` (section 3, algorithm 1; the code of
    montemac/activation_additions), and F is the length of both in tokens. Row 0 of v falls on the first real token of
    each text, BOS included; tokens that are generated are never changed directly; the addition reaches them through the
    cached keys and values.

    Two options keep attention sinks out of v. A sink can be recognised by its length in `info.desired_norm` and
    `info.undesired_norm`.
    start: a text put before both prompts when they are read. The authors' models begin every text with BOS, so that
    their v_0 is exactly 0. Without BOS, position 0 holds the first word itself, and in most decoders the first token
    is an attention sink, many times longer than other tokens: v_0 is then a difference of two sinks, added to the
    sink of the text. With a `start` of one token v_0 is 0 again and the words are read, and added, one position later.
    pad: by default the paper's space. It is needed only if the prompts differ in their number of tokens. Some models
    make a sink of a lone space as well: in SmolLM2-135M, at block 5, a space after "Love" has length 690 and other
    tokens 80 to 130, so v is mostly that sink. A newline has length 88 there; prompts of equal length (" love",
    " hate") need no pad. With None nothing is padded: h(desired) is added and h(undesired) subtracted, each over its
    own length from the first token, and F is the longer length. The rows after the shorter prompt are then whole
    activations of the longer one instead of differences, so they are as long as the residual stream itself.
    short_prompt: what to do with a text whose prompt has fewer than F tokens. "error" stops, like the authors'
    assertion; "clip" adds the rows that fall on the prompt and drops the remaining rows, so that none falls on a
    generated token.

    Example:
        >>> from methods import ActAdd, FitData, generating
        >>> method = ActAdd(desired=" love", undesired=" hate", layer=1, pad=None)
        >>> artefact = method.fit(model, tokenizer, FitData())
        >>> with method.apply(model, artefact, 5), generating(model):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> artefact["layers.1.front"].shape, moved.tolist()  # both prompts begin with BOS
        (torch.Size([4, 36]), [False, True, True, True, True, True])
    """

    name: ClassVar[str] = "act_add"
    title: ClassVar[str] = "ActAdd"
    cite: ClassVar[str] = "2308.10248"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 2  # start, prompt and pad tokenised as one text
    strength_unit: ClassVar[str] = "coefficient"

    desired: str = "Love"
    undesired: str = "Hate"
    layer: int | float = 0.19
    pad: str | None = " "
    start: str = ""
    short_prompt: ShortPrompt = "error"
    strengths: Sequence[float] = (1, 3, 5, 10, 15)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a layer that the model does not have, and for an unknown `short_prompt`."""
        options.check_types(self)
        layout.layer_index(model, self.layer)
        if self.short_prompt not in get_args(ShortPrompt):
            raise SetupError(f"method.short_prompt={self.short_prompt!r}: allowed are error, clip")

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return the length of what is added, relative to the desired prompt's stream, averaged over positions."""
        ratios = facts["norm_ratio"]
        return sum(ratios) / len(ratios) if isinstance(ratios, list) else float(ratios)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the difference of the two prompts, (F, D). Raises SetupError if the prompts or `pad` allow none."""
        self.check(model)
        del data
        layer = layout.layer_index(model, self.layer)
        prompts = self.tokens(tokenizer)
        check_unsteered(model)
        for ids in prompts:
            check_known(model, tokenizer, ids)
        front = max(len(ids) for ids in prompts)
        desired, undesired = (_longer(residual(model, ids, layer), front) for ids in prompts)  # (F, D) each
        difference = desired - undesired
        norms = desired.norm(dim=-1), undesired.norm(dim=-1)  # (F,) each, 0 after the end of a prompt
        return {
            f"layers.{layer}.front": difference,
            # (F,) length of what is added, divided by the length of what is there
            "info.norm_ratio": difference.norm(dim=-1) / torch.where(norms[0] > 0, *norms),
            "info.desired_norm": norms[0],
            "info.undesired_norm": norms[1],
        }

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Return the token ids of both prompts, each with special tokens and `start` before it.

        `start` and a prompt are tokenised as one text. If `pad` is set, the shorter prompt is padded on the
        right.

        Raises SetupError if `pad` is not one token, if a prompt has no token, and if both prompts have the same tokens.
        """
        texts = [self.start + text for text in (self.desired, self.undesired)]
        desired, undesired = (list(tokenizer(text).input_ids) for text in texts)
        missing = len(undesired) - len(desired)
        if self.pad is not None and missing:
            pad = self._pad(tokenizer, dict(zip(texts, (desired, undesired), strict=True)))
            desired, undesired = desired + [pad] * missing, undesired + [pad] * -missing
        if desired == undesired:
            raise SetupError(
                f"method.desired={self.desired!r} and method.undesired={self.undesired!r} are the same tokens here "
                f"({desired}), so their difference is zero; give two texts that differ"
            )
        for key, ids in (("desired", desired), ("undesired", undesired)):
            if not ids:
                raise SetupError(
                    f"method.{key} has no tokens with this tokenizer; give a text, or set method.pad or method.start"
                )
        return desired, undesired

    def _pad(self, tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, list[int]]) -> int:
        """Return the token that `pad` adds to the shorter text or, if it adds no single token there, to the other one.

        A tokenizer may encode a single space in another way than a space inside a text, so an empty text is tried last.
        """
        grown = []
        for text in sorted(ids, key=lambda text: (not text, len(ids[text]))):
            longer = list(tokenizer(text + str(self.pad)).input_ids)
            if longer[:-1] == ids[text]:
                return int(longer[-1])
            grown.append(f"{text!r} has {ids[text]}, with it {longer}")
        raise SetupError(
            f"method.pad={self.pad!r} does not add exactly one token after a prompt: the tokens of "
            f"{'; of '.join(grown)}; give another text, or null"
        )

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the difference inside the `with`. A forward raises SetupError on a prompt that is too short.

        Raises SetupError for an artefact of another model or layer.
        """
        layer = layout.layer_index(model, self.layer)
        added = strength * directions.fitted(model, artefact, f"layers.{layer}.front", self.name)

        def add(hidden: Tensor) -> Tensor:
            nonlocal added
            added = added.to(hidden)  # moved once for all forwards
            return self._add(hidden, added)

        hook = Hook(layout.blocks(model)[layer], "input", add)
        with hooked([hook] if strength else []):
            yield Steering()

    def _add(self, hidden: Tensor, added: Tensor) -> Tensor:
        """Return stream (B, T, D) plus `added` (F, D) at the front of each row's text, as far as its prompt goes."""
        positions = current_positions()
        front = len(added)
        shortest = int(positions.prompt.min())
        if shortest < front and self.short_prompt == "error":
            raise SetupError(
                f"act_add adds to the first {front} tokens, and a prompt has {shortest}; set method.short_prompt=clip"
            )
        columns = hidden.shape[1]
        in_front, in_prompt = scope_mask("front", columns, front=front), scope_mask("prompt", columns)
        assert in_front is not None and in_prompt is not None
        here = (in_front & in_prompt)[..., None].to(hidden.device)  # (B, T, 1)
        row = positions.in_text(columns).clamp(0, front - 1).to(hidden.device)  # (B, T)
        return torch.where(here, hidden + added[row], hidden)


def _longer(hidden: Tensor, front: int) -> Tensor:
    """Return the rows (T, D) followed by zeros, (F, D) in all."""
    return torch.cat([hidden, hidden.new_zeros(front - len(hidden), hidden.shape[1])])


@torch.inference_mode()
def residual(model: PreTrainedModel, ids: Sequence[int], layer: int) -> Tensor:
    """Return the residual stream at the input of block `layer`, (T, D) fp32 on the CPU.

    The text is read by itself, not in a batch. So two texts that begin with equal tokens give equal bits at these
    tokens.
    """
    tokens = torch.tensor([list(ids)], device=input_device(model))  # (1, T)
    none = torch.zeros(1, dtype=torch.long, device=tokens.device)
    here = Positions(none, none + len(ids), none, none + len(ids))  # for the hooks of a method applied before
    with record(model, [layer], "input") as seen, at(here):
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    return seen[layer][0].float().cpu()
