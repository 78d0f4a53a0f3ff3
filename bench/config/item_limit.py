"""`limit=N`: every suite asks at most N items, to try out a command that takes long.

The options that set how many items a suite asks are lowered to N if they are larger. So the results have ids of their
own, as with any other number of items, and are never mistaken for those of the whole suite; records and tables name N.

"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bench.config.keys import TARGET, UNRESOLVED
from bench.config.values import shown
from methods.errors import SetupError

OPTIONS = ("prompts", "per_group", "documents", "limit", "texts")
"""What suites call the number of their items on the test split; with dev_ before it, that on the dev split."""
CUT = "cut"
"""Where a config keeps what the options were before, by suite."""


def cut(cfg: DictConfig) -> None:
    """Lower the options to the limit of the config, if it has a valid one; `validate` reports wrong values."""
    most, suites = cfg._get_node("limit"), cfg._get_node("suite")
    number = most._value() if most is not None else None  # type: ignore[union-attr]
    if type(number) is not int or number < 1 or not isinstance(suites, DictConfig):
        return
    before = {str(name): dict(_larger(suites[name], number)) for name in suites if _is_suite(suites._get_node(name))}
    with open_dict(cfg):
        cfg[CUT] = {name: {option: old for option, (old, _) in found.items()} for name, found in before.items()}
        for name, found in before.items():
            for option, (_, new) in found.items():
                suites[name][option] = new


def _is_suite(node: Any) -> bool:
    return isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and TARGET in node


def _larger(node: DictConfig, most: int) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the options of a suite that are larger than the limit, or null (all items), with old and new value."""
    from bench.config.build import class_of

    try:
        parameters = inspect.signature(class_of(str(node[TARGET]))).parameters
    except SetupError:
        return
    for option in (f"{split}{name}" for name in OPTIONS for split in ("", "dev_")):
        if option not in parameters or (option not in node and type(parameters[option].default) is not int):
            continue
        try:
            value = node[option] if option in node else parameters[option].default
        except UNRESOLVED:
            continue
        if isinstance(value, DictConfig):
            by_name = OmegaConf.to_container(value, resolve=True)
            assert isinstance(by_name, dict)
            new: Any = {name: _least(one, most) for name, one in by_name.items()}
            if new != by_name:
                yield option, (by_name, new)
        elif value != (new := _least(value, most)):
            yield option, (value, new)


def _least(value: Any, most: int) -> Any:
    """Return the smaller of both numbers; null means all items. A value that is not a number stays."""
    return most if value is None or (type(value) is int and value > most) else value


def told(cells: Sequence[DictConfig]) -> str | None:
    """Return a line that says what `limit` has cut in the cells of a command; None if no cell has a limit."""
    numbers = list(dict.fromkeys(cfg.limit for cfg in cells if cfg.limit is not None))
    if not numbers:
        return None
    found: dict[str, Mapping[str, Any]] = {}
    for cfg in cells:
        found |= {str(name): options for name, options in cfg.get(CUT, {}).items()}
    parts = [
        f"{name} ({', '.join(f'{option} from {_all(old)}' for option, old in options.items())})"
        for name, options in found.items()
        if options
    ]
    whole = [name for name, options in found.items() if not options]
    text = f"limit={','.join(map(str, numbers))} cuts {', '.join(parts) or 'nothing'}"
    return text + (f"; not {', '.join(whole)}" if whole and parts else "")


def _all(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return "all" if plain is None else shown(plain)
