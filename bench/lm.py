"""Model and tokenizer in one object: the one place for dtype, device, padding, BOS, chat template and positions.

Nobody else calls the model: sampling and likelihood go through `LM.read`, which tells the hooks of a steering method
where each column stands (`methods.intervention.Positions`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bench.sampling import Continuation, Sampling, continuations
from bench.token_likelihood import Likelihood, Request, likelihoods
from methods.base import Artefact, Method, Steering
from methods.errors import SetupError
from methods.intervention import Positions, at

BOS = Literal["prepend", "none"]


class GenerationStore(Protocol):
    """Where continuations are kept between suites and runs (`bench.record`)."""

    def sampled(self, lm: "LM", prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
        """Stored continuations of these prompts, sampling them where there are none."""
        ...


@dataclass
class Rows:
    """A batch of texts as far as the model has read them.

    prompt: (B,) length of each prompt in real tokens. seen: (B, C) which cache columns are real.
    """

    prompt: Tensor
    seen: Tensor
    cache: Cache

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        self.cache.batch_select_indices(rows)
        self.prompt, self.seen = self.prompt[rows], self.seen[rows]


@dataclass(frozen=True)
class LM:
    """What suites see: a language model, steered or not."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]  # everything about the model that can change a number
    sampling: Sampling = Sampling()
    chat: bool = False
    store: GenerationStore | None = None
    steering: Steering = Steering()
    steering_identity: dict[str, Any] | None = None  # None: unsteered
    _base: "LM | None" = field(default=None, repr=False)
    _stack: ExitStack | None = field(default=None, repr=False)
    _enter: Any = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Device that the model's inputs go to."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Longest text in tokens that the model was made for."""
        return int(self.model.config.max_position_embeddings)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt: steering prefix, chat template and BOS included. Never empty."""
        if self.chat:
            messages = [{"role": "system", "content": self.steering.prefix}] if self.steering.prefix else []
            messages.append({"role": "user", "content": prompt})
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)
        ids = list(self.tokenizer(self.steering.prefix + prompt).input_ids)
        return ids or [self.end_of_text]

    @property
    def end_of_text(self) -> int:
        """The token that stands for "a text begins" where a prompt is empty."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise SetupError("the tokenizer has neither BOS nor EOS token, so an empty prompt cannot be encoded")

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end a text."""
        found = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = found if isinstance(found, list) else [found, self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in listed if token is not None)

    def start(self, prompts: Tensor) -> Rows:
        """Rows of which nothing has been read; prompts (B,) are the prompt lengths in tokens."""
        seen = torch.zeros(len(prompts), 0, dtype=torch.bool, device=self.device)
        return Rows(prompts.to(self.device), seen, DynamicCache(config=self.model.config))

    @torch.inference_mode()
    def read(self, rows: Rows, ids: Tensor, real: Tensor, keep: int | Tensor = 0) -> Tensor:
        """Let the model read ids (B, T), of which `real` (B, T) are no padding; `rows` remembers them.

        keep: 0 returns the logits (B, T, V) of all columns, n > 0 of the last n, a tensor of those columns.
        """
        ids, real = ids.to(self.device), real.to(self.device)
        before = rows.seen.sum(-1)  # (B,)
        rows.seen = torch.cat([rows.seen, real], dim=-1)  # (B, C)
        position = before[:, None] + real.long().cumsum(-1) - 1  # (B, T)
        with at(Positions(real.long().argmax(-1), real.sum(-1), before, rows.prompt)):
            logits: Tensor = self.model(
                input_ids=ids,
                attention_mask=rows.seen.long(),
                position_ids=position.clamp(min=0),
                past_key_values=rows.cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        if self.steering.next_logits is not None:
            logits = self.steering.next_logits(logits.flatten(0, 1)).view_as(logits)
        return logits

    def sample(self, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
        """`num_samples` continuations of each prompt, decoded as `self.sampling` says; stored ones are not redone."""
        if self.store is not None:
            return self.store.sampled(self, prompts, num_samples)
        return continuations(self, prompts, num_samples, self.sampling)

    def likelihood(self, requests: Sequence[Request]) -> list[Likelihood]:
        """Log-probability of each continuation after its context, both given as token ids."""
        return likelihoods(self, requests)

    @contextmanager
    def steered(
        self, method: Method, artefact: Artefact, strength: float, identity: dict[str, Any] | None = None
    ) -> Iterator["LM"]:
        """The same model steered inside the block: an LM that carries the model's state and what a prompt needs.

        identity: what `generation_id` is to know of the steering; strength 0 is the unsteered model.
        """
        if strength == 0:
            yield self
            return
        with ExitStack() as stack:

            def enter() -> Steering:
                return stack.enter_context(method.apply(self.model, artefact, strength))

            steering = enter()
            yield replace(self, steering=steering, steering_identity=identity, _base=self, _stack=stack, _enter=enter)

    @contextmanager
    def unsteered(self) -> Iterator["LM"]:
        """The base model inside the block, steered again after it. On an unsteered LM it is the LM itself."""
        if self._base is None or self._stack is None:
            yield self
            return
        self._stack.close()
        try:
            yield self._base
        finally:
            self._enter()


def load_lm(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    bos: BOS = "none",
    chat: bool = False,
    sampling: Sampling | None = None,
    identity: dict[str, Any] | None = None,
) -> LM:
    """Load a model and tokenizer from a folder or from the hub.

    bos: "prepend" puts the BOS token before every text (once), "none" never; the tokenizer itself is set so, hence
    the methods and lm-eval see the same tokens. chat: prompts go through the tokenizer's chat template.
    identity: what names the model's bytes (a revision, a fingerprint); defaults to path and revision.

    Raises SetupError where the files are missing or the tokenizer lacks what `bos` or `chat` asks for.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise SetupError(
            f"cannot load a model from {path!r}: {str(error).splitlines()[0]}; give a folder with config.json, "
            "weights and tokenizer (model.path=...), or a hub id that this machine can reach (model.id=...)"
        ) from error
    set_bos(tokenizer, bos)
    if chat and not tokenizer.chat_template:
        raise SetupError(f"model.chat=true, but the tokenizer of {path!r} has no chat template; set model.chat=false")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # never read: padding is known by masks alone
    model.to(device).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    named = identity or {"path": path, "revision": revision}
    return LM(
        model=model,
        tokenizer=tokenizer,
        identity={
            **named,
            "dtype": dtype,
            "device": model.device.type,
            "threads": torch.get_num_threads() if model.device.type == "cpu" else None,
            "bos": bos,
            "chat": chat,
        },
        sampling=sampling or Sampling(),
        chat=chat,
    )


def set_bos(tokenizer: PreTrainedTokenizerBase, bos: BOS) -> None:
    """Make `tokenizer(text)` put BOS before the text once, or never, whatever it did before."""
    if bos not in ("prepend", "none"):
        raise SetupError(f"model.bos={bos!r}: allowed are prepend, none")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SetupError(f"{type(tokenizer).__name__} has no fast tokenizer, which model.bos needs; convert it first")
    if bos == "prepend":
        token, number = tokenizer.bos_token, tokenizer.bos_token_id
        if token is None:
            raise SetupError("model.bos=prepend, but the tokenizer has no BOS token; set model.bos=none")
        backend.post_processor = TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, number)]
        )
    else:
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
