"""The only ways to touch a model: record it, hook it, edit it. And where in a text the running forward stands.

Every change is undone when its block is left, by copying saved bytes back or removing the hook, also after an
exception.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods import layout

Scope = Literal["all", "front", "prompt", "generation"]
Site = Literal["input", "output"]  # of a block: resid_pre or resid_post


class Positions(NamedTuple):
    """Where the columns of the running forward stand in each row's own text; all (B,), counted in real tokens.

    Padding, on either side, is not counted: the first real token of a row is position 0.
    """

    first: Tensor  # first real column of this forward (number of pads on the left)
    length: Tensor  # real columns of this forward
    cached: Tensor  # real tokens already in the KV cache
    prompt: Tensor  # length of the prompt (in likelihood: of the context), prefix included

    def in_text(self, columns: int) -> Tensor:
        """(B, T) position of each column in its row's text; -1 at padding."""
        column = torch.arange(columns, device=self.first.device)[None, :]  # (1, T)
        real = (column >= self.first[:, None]) & (column < (self.first + self.length)[:, None])  # (B, T)
        return torch.where(real, column - self.first[:, None] + self.cached[:, None], -1)


_current: ContextVar[Positions | None] = ContextVar("positions", default=None)


@contextmanager
def at(positions: Positions) -> Iterator[None]:
    """Tell the hooks where the forward inside this block stands."""
    token = _current.set(positions)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block transformers' own `model.generate` tells the hooks where each forward stands.

    A forward without anything in its KV cache is taken to hold the prompts, whole; padding is what the attention mask
    says. Batches (padded on the left, as `generate` wants them), sampling and beams are followed, prefill in chunks and
    assisted decoding are not.
    """
    prompt = torch.zeros(0)

    def tell(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal prompt
        given = next(
            one for one in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if one is not None
        )
        columns, cache = given.shape[1], kwargs.get("past_key_values")
        before = 0 if cache is None else int(cache.get_seq_length())
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(len(given), before + columns, dtype=torch.long, device=given.device)
        real = mask[:, before:].bool()  # (B, T)
        prompt = prompt if before else real.sum(-1)  # (B,)
        _current.set(Positions(real.long().argmax(-1), real.sum(-1), mask[:, :before].sum(-1), prompt))

    token = _current.set(None)
    handle = model.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _current.reset(token)


def current_positions() -> Positions:
    """Positions of the running forward. Raises RuntimeError where nobody set them."""
    positions = _current.get()
    if positions is None:
        raise RuntimeError(
            "this steering needs to know where the prompt ends, and the running forward does not say; "
            "call model.generate inside `with methods.generating(model)`, run the model through bench.load_lm, or set "
            "`with methods.intervention.at(Positions(...))` around each forward"
        )
    return positions


def scope_mask(scope: Scope, columns: int, *, front: int = 0, boundary: bool = False) -> Tensor | None:
    """(B, T) true where a hook of this scope acts; None means everywhere, padding included.

    front: the first `front` tokens of the text. prompt: the prompt's tokens. generation: everything after the prompt,
    and with `boundary` also the last prompt token, from which the first new token is predicted.
    """
    if scope == "all":
        return None
    positions = current_positions()
    index = positions.in_text(columns)  # (B, T)
    prompt = positions.prompt[:, None]  # (B, 1)
    if scope == "front":
        return (index >= 0) & (index < front)
    if scope == "prompt":
        return (index >= 0) & (index < prompt)
    if scope == "generation":
        return (index >= 0) & (index >= (prompt - 1 if boundary else prompt))
    raise ValueError(f"scope {scope!r} is not one of all, front, prompt, generation")


def adding(vector: Tensor, scope: Scope, *, boundary: bool = False) -> Callable[[Tensor], Tensor]:
    """The function h -> h + vector where a hook of this scope acts (`scope_mask`); elsewhere h bit for bit.

    vector: (D,), cast to the dtype and device of h.
    """

    def function(hidden: Tensor) -> Tensor:
        moved = hidden + vector.to(hidden)  # (B, T, D)
        mask = scope_mask(scope, hidden.shape[1], boundary=boundary)
        return moved if mask is None else torch.where(mask[..., None].to(hidden.device), moved, hidden)

    return function


class Hook(NamedTuple):
    """A function of the residual stream (B, T, D) at one site of one module; it returns a new tensor."""

    module: nn.Module
    site: Site
    function: Callable[[Tensor], Tensor]


@contextmanager
def hooked(hooks: Iterable[Hook]) -> Iterator[None]:
    """Run the hooks inside the block. Module outputs may be tensors or tuples (GPT-J); the kind is kept."""
    with ExitStack() as stack:
        for hook in hooks:
            if hook.site == "input":
                handle = hook.module.register_forward_pre_hook(_input_hook(hook.function), with_kwargs=True)
            else:
                handle = hook.module.register_forward_hook(_output_hook(hook.function))
            stack.callback(handle.remove)
        yield


def _input_hook(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

    return run


def _output_hook(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def run(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (function(output[0]), *output[1:])
        return function(output)

    return run


@contextmanager
def record(model: PreTrainedModel, layers: Sequence[int], site: Site = "output") -> Iterator[dict[int, Tensor]]:
    """Inside the block, the dict holds the residual stream (B, T, D) of the latest forward for each layer.

    It is taken at the block itself, so the last layer is before the final norm. Padding columns hold whatever the
    model computed there: pool with a mask.
    """
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def function(hidden: Tensor) -> Tensor:
            seen[layer] = hidden.detach()
            return hidden

        return function

    modules = layout.blocks(model)
    with hooked(Hook(modules[layer], site, keep(layer)) for layer in layers):
        yield seen


class _Written(Exception):
    """The block has written: what comes after it is not wanted."""


@contextmanager
def stopped_after(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """A forward inside the block ends, and the block with it, as soon as block `layer` has written.

    Hooks that were set before see the output of that block; blocks above it, final norm and unembedding never run.
    """

    def stop(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _Written

    handle = layout.blocks(model)[layer].register_forward_hook(stop)
    try:
        yield
    except _Written:
        pass
    finally:
        handle.remove()


@contextmanager
def edited(new: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Give parameters new values inside the block; afterwards the saved bytes are copied back."""
    with ExitStack() as stack:
        for parameter, value in new.items():
            if value.shape != parameter.shape:
                raise ValueError(f"new value has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
            stack.callback(_write, parameter, parameter.detach().clone())
            _write(parameter, value)
        yield


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
