"""Settings of a command line that change nothing in any of its cells. The user is told of them before anything runs."""

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

from bench.config.build import build
from bench.config.command_line import parse
from methods.errors import SetupError

LISTS, PARTS = ("suite", "scorer"), "part_data"
DATA = ("pairs", "examples", "harmful", "background", "labelled")
"""The groups of data that methods learn from, by the fields of `methods.base.FitData`."""


def told(arguments: Sequence[str], configs: Sequence[DictConfig]) -> list[str]:
    """Return a line for each such setting of the command line. configs: those of all its cells."""
    asked = [one for one in arguments if one.lstrip("+").startswith((*LISTS, *DATA, "tuning", PARTS))]
    keys = ((one.input_line, str(one.package or one.key_or_group).split(".")) for one in parse(asked))
    found = ((line, _why(key, configs)) for line, key in keys)
    return [f"note: {line} changes nothing here: {why}" for line, why in found if why is not None]


def _why(key: Sequence[str], configs: Sequence[DictConfig]) -> str | None:
    """Return why a setting changes nothing; None if it changes something in a cell."""
    if key[0] in LISTS and len(key) > 2 and not any(key[1] in cfg[key[0]] for cfg in configs):
        return f"no cell has the {key[0]} {key[1]}; add it to {key[0]}=[...]"
    if key[0] == "tuning" and not any(cfg.strength == "auto" and cfg.method.get("strengths", True) for cfg in configs):
        return "no strength is tuned; set strength=auto, for a method that has strengths"
    if key[0] == PARTS and not any("parts" in cfg.method for cfg in configs):
        return "no method of this command has parts, as a stack has"
    if key[0] in DATA and key[1:] != ["scorer"] and not any(_reads(cfg, key[0]) for cfg in _different(configs)):
        return f"no method of this command learns from {key[0]}"
    return None


def _different(configs: Sequence[DictConfig]) -> Iterator[DictConfig]:
    """Yield one config for each method with its options, on which the data that it reads may depend."""
    seen = set[str]()
    for cfg in configs:
        if (method := str(cfg.method)) not in seen:
            seen.add(method)
            yield cfg


def _reads(cfg: DictConfig, field: str) -> bool:
    """Return whether the method learns from this field of the data, or another setting refers to it."""
    if f"${{{field}." in OmegaConf.to_yaml(cfg):
        return True
    try:
        return field in build(cfg.method).needs
    except SetupError:  # the cell reports it
        return True
