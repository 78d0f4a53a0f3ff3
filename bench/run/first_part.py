"""The first part of a stack as a cell of its own: it is fitted on the bare model, so its fit may be stored already."""

from omegaconf import DictConfig

from bench.config.packed import changeable
from methods.base import Method


def alone(cfg: DictConfig, method: Method) -> tuple[str, DictConfig] | None:
    """The first part's name, and the settings that fit it alone; None for a method without parts."""
    if not method.part_needs or "parts" not in cfg.method:
        return None
    name = next(iter(method.part_needs))
    own = changeable(cfg)
    own.method = cfg.method.parts[name]
    for field, node in (cfg.part_data.get(name) or {}).items():
        own[field] = node
    own.part_data = {}
    return name, own
