"""A model with its tokenizer: the one place for dtype, device, padding, BOS, chat template and positions.

Nothing else calls the model: sampling and likelihood go through `LM.read`, which tells the hooks of a steering method
the position of each column (`methods.intervention.Positions`), and refuses logits that are not finite.
"""

import math
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.data.sources import default_cache
from bench.model import devices, kv_cache, padding
from bench.model.architecture import check_cache, max_length
from bench.model.decoding import Continuation, Sampling
from bench.model.memory import Memory
from bench.model.model_folder import check_config
from bench.model.rows import Rows
from bench.model.streams import Readings
from bench.model.thinking import Thinking, set_thinking
from bench.model.tokenizer import (
    BOS,
    check_template,
    has_system_role,
    instructed,
    load_tokenizer,
    rendered,
    set_bos,
    stop_tokens,
    user_message,
)
from bench.model.weights import cannot_load, check_kind, check_vocabulary, check_weights
from methods import layout, placement, tokens
from methods.base import Artefact, Method, Steering
from methods.broken import reading
from methods.decoding import Step
from methods.errors import SetupError
from methods.intervention import Positions, at

UNSTEERED = "0 (unsteered)"


class _Steered(NamedTuple):
    """How a model is steered now. ended: the list of the steered LM, which tells it from other LMs of the model."""

    by: str
    ended: list[bool]
    is_changed: bool  # False for a prompt or a filter of logits, beside which an unsteered LM is what it says


_steered: "weakref.WeakKeyDictionary[PreTrainedModel, _Steered]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # held while a model is looked up in `_steered` and entered there


class NotFiniteError(SetupError):
    """The model computed logits that are NaN or infinite, so no result can be computed from them."""


@contextmanager
def judging(where: str, dtype_option: str) -> Iterator[None]:
    """Inside the `with`, a model judges texts of another one; if its logits are not finite, the error names the judge.

    where: the option that names the judge. Raises SetupError in place of NotFiniteError, which is for the judged model.
    """
    try:
        yield
    except NotFiniteError as error:
        raise SetupError(
            f"{where}: this model computes NaN or infinity, so it judges nothing; set {dtype_option}=float32, or check "
            "that its weights are whole"
        ) from error


class Generated(NamedTuple):
    """Continuations of some prompts, which `read` returns. id: the id of the stored set; None if they are in memory."""

    id: str | None
    read: Callable[[], list[list[Continuation]]]


class GenerationStore(Protocol):
    """A place that keeps continuations between suites and runs (`bench.model.generation_cache`)."""

    def generate(self, lm: "LM", prompts: Sequence[str], num_samples: int) -> Generated:
        """Return the stored continuations of these prompts; they are sampled if there are none."""
        ...


class Request(NamedTuple):
    """How probable is `continuation` after `context`? Both are token ids, and neither is empty."""

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class LM:
    """The language model that suites see, steered or not.

    `load_lm` makes one; `steered` gives the same model steered inside a `with`.

    Example:
        >>> from bench import sample
        >>> from methods import ActAdd, FitData
        >>> method = ActAdd(desired=" love", undesired=" hate", pad=None)
        >>> artefact = method.fit(lm.model, lm.tokenizer, FitData())
        >>> with lm.steered(method, artefact, 4.0) as steered:
        ...     texts = sample(steered, ["The quick brown fox jumps over"], num_samples=2)
        >>> len(texts[0])
        2
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]  # everything about the model that can change a number
    sampling: Sampling = Sampling()
    chat: bool = False
    thinking: Thinking | None = None  # None: the model does not think, or its template has no switch
    store: GenerationStore | None = None
    steering: Steering = Steering()
    steering_identity: dict[str, Any] | None = None  # None: unsteered
    steered_by: str = UNSTEERED  # strength and method, as errors name them
    unexpected_weights: tuple[str, ...] = ()  # in the checkpoint, outside blocks, but not in the model
    unverified: tuple[str, ...] = ()  # folders that the model was read from without a digest to check by
    memory: Memory = field(default_factory=Memory, compare=False, repr=False)  # what its batches have shown
    ended: list[bool] = field(default_factory=list, compare=False, repr=False)  # holds True once its `with` has ended

    @property
    def device(self) -> torch.device:
        """Device that the model's inputs go to."""
        return placement.input_device(self.model)

    @property
    def max_length(self) -> int:
        """Longest text in tokens that the model was made for (`bench.model.architecture.max_length`).

        It is reduced by the tokens that the steering needs.
        """
        return max_length(self.model.config, self.tokenizer) - self.steering.demand.room

    def encode(self, prompt: str) -> list[int]:
        """Return token ids of a prompt: steering prefix, chat template and BOS included; never an empty list."""
        ids = list(self.tokenizer(self._worded(prompt), add_special_tokens=not self.chat).input_ids)
        tokens.check_known(self.model, self.tokenizer, ids)
        return ids or [self.end_of_text]

    def encode_pairs(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[Request]:
        """Return each prompt, as `encode` words it, and its continuation as token ids; neither is ever empty.

        Both are tokenised as one text, and a token that spans the join belongs to the continuation
        (`methods.tokens.split`). If no token is left for the continuation, it is the token that ends a text; if none is
        left for the context, it is the token that begins a text.
        """
        worded = [self._worded(prompt) for prompt in prompts]
        return self.requests(tokens.split(self.tokenizer, worded, continuations, special_tokens=not self.chat))

    def requests(self, texts: Sequence[tokens.Text]) -> list[Request]:
        """Return texts as requests, with an end-of-text token in place of an empty context or continuation."""
        for text in texts:
            tokens.check_known(self.model, self.tokenizer, text.tokens)
        return [
            Request(text.tokens[: text.prompt] or [self.end_of_text], text.continuation or [self.closing_token])
            for text in texts
        ]

    def _worded(self, prompt: str) -> str:
        """Return what the model reads before it writes: the prompt with the steering prefix, in the chat template."""
        if not self.chat:
            return self.steering.prefix + prompt
        return rendered(self.tokenizer, instructed(self.tokenizer, self.steering.prefix, [user_message(prompt)]))

    @property
    def system_role(self) -> bool | None:
        """Whether this model's chats have system messages; if not, their text goes into the first user message.

        None if prompts are not worded as chats. The record keeps this value.
        """
        return has_system_role(self.tokenizer) if self.chat else None

    @property
    def end_of_text(self) -> int:
        """The token that stands in for an empty prompt; it says that a text begins."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise SetupError(
            "the tokenizer has neither BOS nor EOS token, so an empty prompt cannot be encoded; leave out empty prompts"
        )

    @property
    def closing_token(self) -> int:
        """The token that says that a text ends."""
        end = self.tokenizer.eos_token_id
        return int(end) if end is not None else self.end_of_text

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's own, and those of the model's generation config."""
        found = self.model.generation_config.eos_token_id if self.model.generation_config else None
        return stop_tokens(found, self.tokenizer.eos_token_id)

    def start(self, prompts: Tensor) -> Rows:
        """Return rows of which nothing has been read yet; prompts (B,) are the lengths of the prompts in tokens."""
        seen = torch.zeros(len(prompts), 0, dtype=torch.bool, device=self.device)
        ids = torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device)
        return Rows(prompts.to(self.device), seen, ids, kv_cache.empty(self.model.config))

    @torch.inference_mode()
    def read(self, rows: Rows, ids: Tensor, real: Tensor, keep: int | Tensor = 0) -> Tensor:
        """Let the model read ids (B, T), of which `real` (B, T) are not padding; `rows` remembers them.

        keep: the columns whose logits are returned: 0 for all (B, T, V), n > 0 for the last n, a tensor for the columns
        that it lists.

        Raises NotFiniteError for a logit that is NaN or infinite, except at padding.
        """
        ids, real = ids.to(self.device), real.to(self.device)
        logits = self._forward(rows, ids, real, keep)
        if self.steering.next_logits is None:
            return logits
        kept = torch.arange(ids.shape[1], device=self.device)
        columns = (kept if isinstance(keep, int) and keep == 0 else kept[_kept(keep)]) + rows.ids.shape[1] - len(kept)
        readings = Readings(self.model, self._forward, self.start, rows, keep, columns)
        step = Step(logits, rows.ids, rows.seen, columns, rows.prompt, readings)
        logits = self.steering.next_logits(step)
        self._check_finite(logits.amax(-1, keepdim=True), rows.seen[:, columns])  # it may forbid tokens, not all
        return logits

    def _forward(self, rows: Rows, ids: Tensor, real: Tensor, keep: int | Tensor) -> Tensor:
        """Return the logits of `read` before any decoding-time steering; the rows remember what was read."""
        if self.ended:
            raise SetupError(
                f"this model was steered at strength {self.steered_by} inside a `with` that has ended, so it is only "
                "partly steered now; sample and score inside `with lm.steered(...) as steered:`"
            )
        steered = _steered.get(self.model)
        if steered is not None and steered.is_changed and steered.ended is not self.ended:
            raise SetupError(
                f"the model is steered now, at strength {steered.by}, but this LM stands for strength "
                f"{self.steered_by}; inside the `with` use the LM that `lm.steered(...)` gives, or this one after it"
            )
        position = rows.append(ids, real)  # (B, T)
        cached = rows.seen.sum(-1) - real.sum(-1)  # (B,)
        with at(Positions(real.long().argmax(-1), real.sum(-1), cached, rows.prompt, rows.noted)):
            logits: Tensor = self.model(
                input_ids=ids,
                attention_mask=rows.seen.long(),
                position_ids=position.clamp(min=0),
                past_key_values=rows.cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        self._check_finite(logits, real if isinstance(keep, int) and keep == 0 else real[:, _kept(keep)])
        return logits

    def _check_finite(self, logits: Tensor, real: Tensor) -> None:
        """Raises NotFiniteError unless the logits (B, T, V) are finite wherever `real` (B, T) is true."""
        if torch.stack(logits.aminmax()).isfinite().all():  # one pass, one transfer; isfinite would make a copy
            return
        broken = ~logits[real].isfinite()  # (N, V)
        if broken.any():
            raise NotFiniteError(
                f"logits are not finite at strength {self.steered_by}: {int(broken.sum())} of {broken.numel()} are NaN "
                f"or infinite, in {self.model.dtype}, so nothing can be computed from them. Lower the strength, set "
                "model.dtype=float32, or check that the model's weights are whole"
            )

    @contextmanager
    def steered(
        self, method: Method, artefact: Artefact, strength: float, identity: dict[str, Any] | None = None
    ) -> Iterator["LM"]:
        """Steer the model inside the `with`, and yield the LM to use there.

        The yielded LM adds the steering's prefix to prompts, and reads and samples texts under the steering.

        identity: the part of the steering that `generation_id` hashes. With strength 0 the LM itself is yielded.

        Raises SetupError for a strength that is no finite number, and for a model that is steered already, by this LM
        or another one, in this thread or another one.
        """
        endless = getattr(method, "family", None) == "decoding"  # a logit may be lowered without end
        number = isinstance(strength, Real) and not isinstance(strength, bool) and not math.isnan(strength)
        if not number or (math.isinf(strength) and not endless):
            raise SetupError(f"strength={strength!r} of {method.name}: expected a finite number, such as 1.5")
        if strength == 0:
            yield self
            return
        named, ended = f"{strength:g} of {method.name}", list[bool]()
        changes = getattr(method, "family", None) not in (
            "none",
            "prompt",
            "decoding",
        )  # which leave the model as it is
        with _claimed(self.model, _Steered(named, ended, changes)):
            padding.needs_no_gaps(self.model)  # is found out and kept before there are hooks
            with method.apply(self.model, artefact, strength) as steering:
                if self.chat and steering.prefix:
                    check_template(self.tokenizer, steering.prefix)
                found = replace(self, steering=steering, steering_identity=identity, steered_by=named, ended=ended)
                try:
                    yield found
                finally:
                    ended.append(True)


@contextmanager
def _claimed(model: PreTrainedModel, steered: _Steered) -> Iterator[None]:
    """Keep inside the `with` how the model is steered. Raises SetupError if it is steered already."""
    with _lock:
        now = _steered.get(model)
        if now is not None:
            raise SetupError(
                f"this model is steered already, at strength {now.by}; leave that `with lm.steered(...)` first, or put "
                "the methods into one (`methods.Stack`), and steer the unsteered model by it"
            )
        _steered[model] = steered
    try:
        if steered.is_changed:
            tokens.steered.add(model)  # for fits, which are refused then
        yield
    finally:
        tokens.steered.discard(model)
        _steered.pop(model, None)


def _kept(keep: int | Tensor) -> slice | Tensor:
    """Return the index of the columns that `LM.read` keeps."""
    return keep if isinstance(keep, Tensor) else slice(-keep, None)


def admit(model: PreTrainedModel, parts: Mapping[str, Any] | None) -> None:
    """Declare where the parts of a model are, as `model.layout` states.

    Raises SetupError for a model that cannot be sampled from here, and for parts that it does not have.
    """
    check_cache(model)
    layout.declare(model, parts)


def load_lm(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    max_memory: Mapping[Any, str] | None = None,
    offload: Path | None = None,
    bos: BOS = "tokenizer",
    chat: bool = False,
    thinking: str = "off",
    sampling: Sampling | None = None,
    identity: dict[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
    offline: bool = False,
) -> LM:
    """Load a model and tokenizer from a folder or from the hub.

    device: "cpu", "cuda", "cuda:0", or "auto": accelerate spreads the model over all cards, then the CPU, then the
    disk. max_memory: with "auto" the most memory that the model may take on each, as {0: "20GiB", "cpu": "60GiB"}.
    offload: folder for the weights that go to the disk; default: in the cache. These weights, and those on the CPU if
    others are on a card, cannot be edited. bos: "tokenizer" begins a text as the tokenizer itself does; "prepend" puts
    the BOS token before every text (once), "none" never. The tokenizer itself is changed, so the methods and lm-eval
    see the same tokens. chat: prompts go through the tokenizer's chat template. thinking: "off", "strip" or "judge",
    for the thoughts that a chat model writes before its answer (`bench.model.thinking`). identity: values that identify
    the model's bytes (a revision, a fingerprint); by default path and revision. parts: where blocks and matrices are,
    for an architecture in which they are not found, or are mistaken for others (`methods.layout.declare`). offline:
    read a model of the hub only from the cache.

    Raises SetupError for a device that this machine lacks, for a model with state-space or recurrent layers
    (`bench.model.architecture`), if files are missing or damaged, if the files lack weights of the model or have
    weights of blocks that the model lacks, and if the tokenizer lacks what `bos`, `chat` or `thinking` asks for. A chat
    template is tried once.

    Example:
        >>> from bench import load_lm
        >>> lm = load_lm(folder)  # or a hub id with revision=COMMIT
        >>> lm.max_length
        256
    """
    devices.check(device)
    devices.check_max_memory(max_memory, device)
    tokenizer = load_tokenizer(path, revision, offline=offline)
    with reading(lambda error: cannot_load(path, error)):
        check_kind(path, check_config(path, revision=revision, local_files_only=offline))
    spread, folder = _spread(max_memory, offload) if device == devices.AUTO else ({}, None)
    model, unexpected = _weights(path, revision=revision, dtype=dtype, local_files_only=offline, **spread)
    if folder is not None:
        weakref.finalize(model, folder.cleanup)
    admit(model, parts)
    check_vocabulary(path, model.get_input_embeddings().weight.shape[0], tokenizer)
    resolved = set_bos(tokenizer, bos)
    if chat and not tokenizer.chat_template:
        raise SetupError(f"model.chat=true, but the tokenizer of {path!r} has no chat template; set model.chat=false")
    thinks, of_thinking = set_thinking(tokenizer, thinking, chat)
    if chat:
        check_template(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # never read: only masks say what is padding
    if device != devices.AUTO:
        model.to(device)
    model.eval()
    padding.check_padding(model)
    own = placement.input_device(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    named = identity or {"path": path, "revision": revision}
    lm = LM(
        model=model,
        tokenizer=tokenizer,
        identity={
            **named,
            "dtype": dtype,
            "device": own.type,
            "threads": torch.get_num_threads() if own.type == "cpu" else None,
            "bos": resolved,
            "chat": chat,
            **of_thinking,
            **({} if parts is None else {"layout": dict(parts)}),
        },
        sampling=sampling or Sampling(),
        chat=chat,
        thinking=thinks,
        unexpected_weights=unexpected,
    )
    _ = lm.stop_tokens  # raises if the config names something that is no token
    return lm


def _weights(path: str, *, dtype: str, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """Load a model from its files; returns it with the names of the weights in the files that it lacks."""
    from transformers import AutoModelForCausalLM

    with reading(lambda error: cannot_load(path, error), Exception):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the error can name them
            trust_remote_code=False,
            **options,
        )
    model, loading = loaded
    return model, check_weights(path, loading)


def _spread(
    max_memory: Mapping[Any, str] | None, offload: Path | None
) -> tuple[dict[str, Any], tempfile.TemporaryDirectory[str]]:
    """Return the options by which transformers spreads a model, and a new folder for what goes to the disk."""
    parent = offload or default_cache() / "offload"
    parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=parent)
    limits = devices.max_memory(max_memory)
    return {"device_map": "auto", "max_memory": limits, "offload_folder": folder.name}, folder


def worded(lm: LM, question: str) -> str:
    """Return what the model reads before the answer: "Input: ..." or the question in the chat template.

    Methods put BOS before every text if the tokenizer does, so the BOS that a template also writes is removed.
    """
    if not lm.chat:
        return f"Input: {question.strip()}\nResponse:"
    messages = [{"role": "user", "content": question.strip()}]
    text = str(lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    bos = lm.tokenizer.bos_token
    return text.removeprefix(bos) if bos and lm.tokenizer("").input_ids == [lm.tokenizer.bos_token_id] else text
