"""Composed configs in little memory, since a sweep of a thousand cells holds all of them until its end."""

import functools
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import overload

from omegaconf import DictConfig, OmegaConf

UNPACKED = 8  # configs that are in memory as they are; each is about 150 kB


class Packed:
    """A composed config as about 2 kB of bytes; unpacking takes some milliseconds.

    Interpolations stay as they are written. A config that JSON does not keep as it is, such as one with numbers for
    keys (`runtime.max_memory={0:20GiB}`), is kept unpacked.
    """

    def __init__(self, cfg: DictConfig) -> None:
        plain = OmegaConf.to_container(cfg, resolve=False)
        try:
            text = json.dumps(plain)
            kept = json.loads(text) == plain
        except TypeError:
            kept = False
        self._whole: bytes | DictConfig = changeable(cfg)
        if kept:
            self._whole = zlib.compress(f"{bool(OmegaConf.is_struct(cfg)):d}{text}".encode(), 1)
        else:
            OmegaConf.set_readonly(self._whole, True)

    @property
    def cfg(self) -> DictConfig:
        """The config, which is read-only, since it may be unpacked anew at any time; see `changeable`."""
        return _unpacked(self._whole) if isinstance(self._whole, bytes) else self._whole


class Configs(Sequence[DictConfig]):
    """Composed configs, packed; each is unpacked when it is asked for, and is read-only."""

    def __init__(self, configs: Iterable[DictConfig]) -> None:
        self._packed = [Packed(one) for one in configs]

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, place: int) -> DictConfig: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[DictConfig]: ...
    def __getitem__(self, place: int | slice) -> DictConfig | Sequence[DictConfig]:
        """Return one config, or some of them as a list."""
        if isinstance(place, slice):
            return [one.cfg for one in self._packed[place]]
        return self._packed[place].cfg


def changeable(cfg: DictConfig) -> DictConfig:
    """Return a copy of a config that may be changed."""
    own = cfg.copy()
    OmegaConf.set_readonly(own, None)
    return own


@functools.lru_cache(maxsize=UNPACKED)
def _unpacked(packed: bytes) -> DictConfig:
    text = zlib.decompress(packed).decode()
    cfg = OmegaConf.create(json.loads(text[1:]))
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True if text[0] == "1" else None)
    OmegaConf.set_readonly(cfg, True)
    return cfg
