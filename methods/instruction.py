"""Steering by an instruction's own effect (arXiv 2410.12877): activations with the instruction minus those without."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options, vectors
from methods.base import FEWEST_PAIRS, Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import adding, hooked
from methods.tokens import Text, check_known, check_unsteered, longest_text, split

Operation = Literal["clamp", "add"]
InstructionScope = Literal["all", "prompt", "generation"]
POLITE = "The following text is polite, respectful and harmless.\n\n"


@dataclass(frozen=True, kw_only=True)
class Instruction(Method):
    """Move the stream at the output of block `layer` along r, the direction in which an instruction moves the stream.

        d = mean over prompts of (a(instruction + prompt) - a(prompt)),   r = d / |d|,   (D,)
        clamp:  h_t <- h_t + strength * (c - h_t . r) r,   c = mean over prompts of a(instruction + prompt) . r
        add:    h_t <- h_t + strength * n r

    a(text) is the block's output (resid_post) at the last token of the prompt; the continuations are not read. `clamp`
    is what the paper does for instructions about the format: at strength 1 the projection on r is set to c, the
    projection that the instruction causes. The paper has no strength there; a smaller strength moves the projection
    part of the way. `add` is what the paper does for length and for words, with a strength set by hand. Here the unit
    of the strength is n, the mean length of the stream at the prompts' tokens, so `add` needs another grid, such as
    0.05 to 0.5. A prompt without a word is left out.

    instruction: put directly before every prompt, so it must end in its own space or line break. The paper's are those
    of IFEval (a format, a length, words); a polite tone is a choice of ours, and so is its wording. chat: both texts
    are put into the tokenizer's chat template as a user's message, as in the paper; with false, they are read as they
    are.
    scope: the paper moves every token of prompt and answer. A first token that is an attention sink moves with them.

    Differences from the paper: the layer is set or tuned by the harness, while the authors search layers by a
    perplexity rule of their own; a text is read with its cache, which changes no number.

    Example:
        >>> from methods import FitData, Instruction
        >>> from methods.intervention import record
        >>> method = Instruction(instruction="Answer in one word: ", layer=2)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1.0), record(model, [2]) as steered:
        ...     _ = model(**inputs)
        >>> direction = artefact["layers.2.direction"]
        >>> (steered[2] @ direction / direction.norm()).allclose(artefact["layers.2.target"], atol=1e-4)
        True
    """

    name: ClassVar[str] = "instruction"
    title: ClassVar[str] = "Instruction vector"
    cite: ClassVar[str] = "2410.12877"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the way (clamp) or mean residual norms (add)"
    reads_labels: ClassVar[bool] = False

    instruction: str = POLITE
    layer: int | float = 0.45
    operation: Operation = "clamp"
    chat: bool = False
    scope: InstructionScope = "all"
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1, 1.25)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a layer that the model does not have, and for a setting that is not allowed."""
        options.check_types(self)
        layout.layer_index(model, self.layer)
        options.check_choice("operation", self.operation, get_args(Operation))
        options.check_choice("scope", self.scope, get_args(InstructionScope))
        if not self.instruction.strip():
            raise SetupError("method.instruction is empty; write the text that is put before the prompts")

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return 1 for `add`, whose unit is the mean residual norm, or None for `clamp`, which adds no fixed vector."""
        del facts
        return 1.0 if self.operation == "add" else None

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the direction, as long as the mean residual norm, and the projection that the instruction causes.

        Raises SetupError without pairs, if the instruction changes nothing, and for a text that is too long.
        """
        self.check(model)
        given = required_pairs(data, self.name).prompt
        prompts = [prompt for prompt in given if prompt.strip()]
        if len(prompts) < FEWEST_PAIRS:
            raise SetupError(
                f"instruction learns from prompts, and {len(prompts)} of {len(given)} pairs have one; give at least "
                f"{FEWEST_PAIRS}"
            )
        layer = layout.layer_index(model, self.layer)
        instructed, plain, cut = self.texts(model, tokenizer, prompts)
        there, absent = (  # (N, D) each
            directions.pooled_features(model, texts, [layer], read="last")[0] for texts in (instructed, plain)
        )
        difference = directions.mean_difference(there, absent)  # (D,)
        length = difference.norm()
        if length <= directions.SAME * there.norm(dim=-1).mean():
            raise SetupError(
                f"instruction: method.instruction={self.instruction!r} does not change the output of block {layer} at "
                f"the end of the prompts (by {length:.2g}); give another instruction or a later method.layer"
            )
        unit = difference / length
        norm = directions.mean_norm(model, plain[: directions.YARDSTICK_TEXTS], layer, read="all", skip_first=1)
        projections = there @ unit, absent @ unit  # (N,) each
        return {
            **vectors.kept([layer], unit[None], torch.tensor([norm])),
            f"layers.{layer}.target": projections[0].mean(),
            "info.direction_norm": length,
            "info.target": projections[0].mean(),
            "info.target_without": projections[1].mean(),
            "info.empty_prompts": torch.tensor(len(given) - len(prompts)),
            "info.cut_pairs": torch.tensor(cut),
        }

    def texts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
    ) -> tuple[list[Text], list[Text], int]:
        """Return the prompts with the instruction and without it, and how many pairs of them were cut.

        A text that is too long for the model loses the left end of its prompt, and the other text of the pair loses the
        same tokens. Raises SetupError if nothing of such a prompt would be left, if a text that is too long is in a
        chat template, and if the template is missing.
        """
        if self.chat:
            whole = split(
                tokenizer, [""] * len(prompts), [_asked(tokenizer, self.instruction + one) for one in prompts]
            )
            plain = split(tokenizer, [""] * len(prompts), [_asked(tokenizer, one) for one in prompts])
        else:
            whole = split(tokenizer, [self.instruction] * len(prompts), prompts)
            plain = split(tokenizer, [""] * len(prompts), prompts)
        check_unsteered(model)
        for text in (*whole, *plain):
            check_known(model, tokenizer, text.tokens)
        limit, cut = longest_text(model), 0
        for i, (one, other) in enumerate(zip(whole, plain, strict=True)):
            excess = 0 if limit is None else len(one.tokens) - limit
            if excess > 0:
                if self.chat or excess >= len(other.tokens) - other.special:
                    raise SetupError(
                        f"instruction: prompt {i + 1} has {len(one.tokens)} tokens with the instruction, and the model "
                        f"reads {limit}; shorten the prompt or the instruction"
                    )
                cut += 1
                whole[i], plain[i] = _without(one, one.prompt, excess), _without(other, other.special, excess)
        return whole, plain, cut

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Move the stream inside the `with`. Raises SetupError for an artefact of another model or another layer."""
        layer = layout.layer_index(model, self.layer)
        vector = vectors.fitted(model, artefact, [layer], self.name)[layer]
        if self.operation == "add":
            function = adding(strength * vector, "all")
        else:
            function = vectors.clamping(vector / vector.norm(), float(artefact[f"layers.{layer}.target"]), strength)
        maps = {layer: vectors.within(function, self.scope)} if strength else {}
        with hooked(vectors.hooks(model, maps)):
            yield Steering()


def _asked(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text as a user's message in the chat template, without the BOS that the tokenizer adds by itself.

    Raises SetupError for a tokenizer without a template.
    """
    if not tokenizer.chat_template:
        raise SetupError("method.chat=true: this tokenizer has no chat template; choose a chat model, or set it false")
    messages = [{"role": "user", "content": text}]
    asked = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    bos = tokenizer.bos_token
    return asked.removeprefix(str(bos)) if bos and tokenizer("").input_ids == [tokenizer.bos_token_id] else asked


def _without(text: Text, start: int, count: int) -> Text:
    """Return the text without the `count` tokens that begin at token `start`."""
    return text._replace(tokens=text.tokens[:start] + text.tokens[start + count :])
