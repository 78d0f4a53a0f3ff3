"""Watch the hooks of a steering: which fire, how often, and at which tokens of a text they change the activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Acted(NamedTuple):
    """The actions of one hook over one text. fired, forwards: how often it ran, and in how many passes of the model.

    columns: (T,) true at the tokens whose tensor it changed; None if there is no tensor (B, T, D).
    """

    fired: int
    forwards: int
    columns: Tensor | None


class Watch(AbstractContextManager["Watch"]):
    """A watch over hooks. Enter it before the steering and call `start` inside the steering.

    The hooks that the steering adds between these two steps are watched. A wrapper replaces each hook in its module's
    table of hooks, under the same key, so the handle of the hook's owner removes the wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known = {(name, key) for name, _, key in self._hooks()}
        self.names: list[str] = []
        self.forwards: list[tuple[int, list[tuple[str, Tensor | None]]]] = []  # each: columns, and the hooks that fired

    def _hooks(self) -> Iterator[tuple[str, dict[int, Callable[..., Any]], int]]:
        for module_name, module in self.model.named_modules():
            for site, table in (("input", module._forward_pre_hooks), ("output", module._forward_hooks)):
                for key in list(table):
                    yield f"{site} of {module_name or 'the model'}", table, key

    def start(self) -> None:
        """Start to watch the hooks that were added since the watch was entered."""
        for name, table, key in list(self._hooks()):
            if (name, key) not in self.known:
                again = sum(other.split(" #")[0] == name for other in self.names)
                self.names.append(name + (f" #{again + 1}" if again else ""))
                table[key] = self._watched(self.names[-1], table[key])
        self.begin = self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)

    def __exit__(self, *error: object) -> None:
        """Remove our own hooks; the others went with the steering."""
        if hasattr(self, "begin"):
            self.begin.remove()

    def _begin(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self.forwards.append((kwargs["input_ids"].shape[1], []))

    def _watched(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(module: nn.Module, *given: Any) -> Any:
            through = given if name.startswith("input") else given[-1]
            before = _stream(through)
            kept = before.clone() if before is not None else None  # the hook may write in place
            result = hook(module, *given)
            after = before if result is None else _stream(result)
            changed = None
            if kept is not None and after is not None and kept.shape == after.shape:
                changed = torch.ne(kept, after).any(-1).cpu()  # (B, T)
            self.forwards[-1][1].append((name, changed))
            return result

        return run

    def acted(self, tokens: int, read: Callable[[], object]) -> dict[str, Acted]:
        """Return what each hook did to the first row while `read` ran; the row's text is the last `tokens` columns."""
        self.forwards.clear()
        read()
        return {name: self._acted(name, tokens) for name in self.names}

    def _acted(self, name: str, tokens: int) -> Acted:
        parts, fired, known = [], 0, True
        for width, firings in self.forwards:
            part = torch.zeros(width, dtype=torch.bool)
            for other, changed in firings:
                if other == name:
                    fired += 1
                    if changed is not None and changed.shape[1] == width:
                        part |= changed[0]
                    else:
                        known = False
            parts.append(part)
        return Acted(fired, len(self.forwards), torch.cat(parts)[-tokens:] if known else None)


def _stream(value: Any) -> Tensor | None:
    """Return the (B, T, D) tensor among the inputs or outputs of a module; None if there is none."""
    if isinstance(value, Tensor):
        return value if value.ndim == 3 else None
    if isinstance(value, dict):
        value = [value["hidden_states"]] if "hidden_states" in value else list(value.values())
    found = (_stream(one) for one in value) if isinstance(value, tuple | list) else ()
    return next((one for one in found if one is not None), None)


def described(columns: Tensor | None, prompt: int) -> str:
    """Describe the tokens that were acted on, for a text whose first `prompt` tokens are the prompt."""
    if columns is None:
        return "tokens that are unknown"
    return f"{_which(columns[:prompt].tolist(), 'prompt')} and {_which(columns[prompt:].tolist(), 'new')}"


def _which(acts: Sequence[bool], kind: str) -> str:
    count = sum(acts)
    if not count:
        return f"no {kind} token"
    if count == len(acts):
        return f"all {count} {kind} tokens"
    if acts[-1] and count == 1:
        return f"the last of {len(acts)} {kind} tokens"
    if all(acts[:count]):
        return f"the first {count} of {len(acts)} {kind} tokens"
    return f"{kind} tokens {', '.join(str(i + 1) for i, one in enumerate(acts) if one)} of {len(acts)}"


def summary(acted: Mapping[str, Acted], prompt: int) -> str:
    """Describe all hooks, in one clause for those that did the same."""
    groups: dict[str, list[str]] = {}
    for name, one in acted.items():
        did = f"{described(one.columns, prompt)}, fired {one.fired} times in {one.forwards} passes"
        groups.setdefault(did, []).append(name)
    clauses = []
    for did, names in groups.items():
        who = f"{len(names)} hooks, {names[0]} to {names[-1]}" if len(names) > 2 else " and ".join(names)
        clauses.append(f"{who}: {did}")
    return "; ".join(clauses) or "no hooks"
