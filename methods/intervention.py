"""The only ways to touch a model: record it, hook it, edit it. `methods.positions` says what part of a text is read.

Every change is undone when its `with` is left, also after an exception: saved bytes are copied back, hooks are removed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods import layout
from methods.errors import SetupError
from methods.placement import REMEDY
from methods.positions import Positions as Positions
from methods.positions import at as at
from methods.positions import current_positions as current_positions
from methods.positions import generating as generating

Scope = Literal["all", "front", "prompt", "generation"]
Site = Literal["input", "output"]  # of a block: resid_pre or resid_post


def scope_mask(scope: Scope, columns: int, *, front: int = 0, boundary: bool = False) -> Tensor | None:
    """Return a mask (B, T), true where a hook of this scope acts; None means everywhere, padding included.

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
    """Return the function h -> h + vector, which acts at the tokens of the scope (`scope_mask`) and at no others.

    vector: (D,), cast to the dtype and device of h, once for all forwards.
    """

    def function(hidden: Tensor) -> Tensor:
        nonlocal vector
        vector = vector.to(hidden)
        moved = hidden + vector  # (B, T, D)
        mask = scope_mask(scope, hidden.shape[1], boundary=boundary)
        return moved if mask is None else torch.where(mask[..., None].to(hidden.device), moved, hidden)

    return function


class Hook(NamedTuple):
    """A function of the residual stream (B, T, D) at one site of one module; it returns a new tensor."""

    module: nn.Module
    site: Site
    function: Callable[[Tensor], Tensor]


_wrap: ContextVar[Callable[[Hook], Hook] | None] = ContextVar("wrap", default=None)


@contextmanager
def wrapped(wrap: Callable[[Hook], Hook]) -> Iterator[None]:
    """Pass every hook inside the `with` through `wrap` before it is set; in this way a gate reaches a method's hooks.

    Weights cannot be edited inside, since their effect cannot be wrapped. If two `wrapped` are nested, the inner one
    wraps first.
    """
    outer = _wrap.get()
    token = _wrap.set(wrap if outer is None else lambda hook: outer(wrap(hook)))
    try:
        yield
    finally:
        _wrap.reset(token)


@contextmanager
def hooked(hooks: Iterable[Hook]) -> Iterator[None]:
    """Run the hooks inside the `with`. Module outputs may be tensors or tuples (GPT-J); the kind is kept."""
    wrap = _wrap.get()
    with ExitStack() as stack:
        for hook in hooks if wrap is None else map(wrap, hooks):
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
    """Inside the `with`, the dict holds the residual stream (B, T, D) of the latest forward for each layer.

    The stream is taken at the block itself, so for the last layer it is the stream before the final norm. Padding
    columns hold whatever the model computed there: pool with a mask.
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
    """Raised once the module has written, to end the forward there."""


def stopped_after(model: PreTrainedModel, layer: int) -> AbstractContextManager[None]:
    """Inside the `with`, a forward ends as soon as block `layer` has written, and the `with` ends with it.

    Hooks that were set before see the output of that block; blocks above it, final norm and unembedding never run.
    """
    return stopped_behind(layout.blocks(model)[layer])


@contextmanager
def stopped_behind(module: nn.Module) -> Iterator[None]:
    """Inside the `with`, a forward ends as soon as the module has written, and the `with` ends with it."""

    def stop(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _Written

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _Written:
        pass
    finally:
        handle.remove()


@contextmanager
def edited(new: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Give parameters new values inside the `with`; afterwards the saved bytes are copied back.

    Raises SetupError for a parameter that is not in memory (`methods.placement`), to which nothing can be written.
    """
    if new and _wrap.get() is not None:
        raise SetupError("this method edits weights, which act on every row and token; only hooks can be wrapped")
    with ExitStack() as stack:
        for parameter, value in new.items():
            if parameter.is_meta:
                raise SetupError(f"a weight of shape {tuple(parameter.shape)} is not in memory; {REMEDY}")
            if value.shape != parameter.shape:
                raise ValueError(f"new value has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
            stack.callback(_write, parameter, parameter.detach().clone())
            _write(parameter, value)
        yield


@contextmanager
def exchanged(new: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Let parameters hold these tensors inside the `with`, and their own again afterwards; no number is copied.

    Use `exchanged` for weights that change at every token: `edited` would copy them at each token, whereas `exchanged`
    copies nothing but needs memory for a second set of weights.
    """
    with ExitStack() as stack:
        for parameter, value in new.items():
            if parameter.is_meta:
                raise SetupError(f"a weight of shape {tuple(parameter.shape)} is not in memory; {REMEDY}")
            if value.shape != parameter.shape:
                raise ValueError(f"new value has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
            stack.callback(setattr, parameter, "data", parameter.data)
            parameter.data = value
        yield


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
