"""The names of a cell's fit and results: identities of its model, method, data and suites, and ids made from them."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from bench.config.packed import Packed
from bench.model import checkpoint, devices
from bench.model.generation_cache import decoding_identity
from bench.records import identity
from bench.records.models import has_model
from bench.run import control, norm_over
from bench.run.parts import Parts, parts
from bench.suites.base import Split, Suite

HALF = ("bfloat16", "float16")  # values of model.dtype


class Names:
    """Identities and ids of one cell; each is worked out when it is first asked for.

    threads: CPU threads that the model computes with. location: returns the folder or hub id of the model, whose files
    are read for facts that the config lacks.
    """

    def __init__(self, settings: Packed, parts: Parts, threads: int, location: Callable[[], str]) -> None:
        self._packed, self._parts, self._threads, self._location = settings, parts, threads, location
        self._suites: dict[tuple[str, Split], dict[str, Any]] = {}

    @property
    def _cfg(self) -> DictConfig:
        return self._packed.cfg

    @cached_property
    def model(self) -> dict[str, Any]:
        """Everything about the model that can change a number."""
        node, offline = self._cfg.model, self._cfg.runtime.offline
        device = torch.device(devices.single(self._cfg.runtime.device)).type
        return self._bytes() | {
            "dtype": node.dtype,
            **checkpoint.text_rules(node, self._location, offline),
            "chat": node.chat,
            "device": device,
            "threads": self._threads if device == "cpu" else None,
            **({} if (parts := checkpoint.parts(node)) is None else {"layout": parts}),
        }

    def _bytes(self) -> dict[str, Any]:
        """Return the identity of the model's files; in the form of older versions if results with it are stored.

        In this way the old results are found, and new ones can be paired with them.
        """
        node, offline = self._cfg.model, self._cfg.runtime.offline
        former = checkpoint.former_identity(node, offline)
        if former is not None and has_model(Path(self._cfg.runtime.results) / "runs" / "records", former):
            return former
        return checkpoint.identity(node, offline)

    @cached_property
    def method(self) -> dict[str, Any]:
        """The method with its hyper-parameters; for a control by random rotation, also the seed of the rotation.

        With a 16-bit model the method also states the version of its code for 16 bits, beside its usual version.
        """
        own = identity.method_identity(self._parts.method)
        drawn = self._cfg.control is not None and control.how(self._parts.method) == "random rotation"
        half = self._parts.method.half_version if self._cfg.model.dtype in HALF else 0
        own |= {"half_version": half} if half else {}
        if not drawn:
            return own
        turned = self._parts.method.control_version
        return own | {"rotation_seed": int(self._cfg.control)} | ({"control_version": turned} if turned else {})

    @property
    def apart(self) -> list[DictConfig]:
        """The settings of the fits that determine the length of a vector learnt from pairs; usually none."""
        return norm_over.apart(self._cfg) if "pairs" in self._parts.fit_sources else []

    @cached_property
    def fit_id(self) -> str:
        """The id of the artefact, made only from what the method needs."""
        named = {field: identity.named(source) for field, source in self._parts.fit_sources.items()}
        over = {Names(Packed(one), parts(one), self._threads, self._location).fit_id for one in self.apart}
        of_others = {"norm_over": sorted(over) or None} if "pairs" in named else {}
        data = named.pop("pairs", {}) | named | of_others  # the keys of pairs, the oldest data, are at the top level
        return identity.fit_id(self.model, self.method, data or None)

    def source_id(self, field: str) -> str:
        """Return the id of a source's texts: a hash of their recipe and of the model, which may have written them."""
        return identity.digest([self.model, identity.named(self._parts.fit_sources[field])])

    def origin_id(self, field: str) -> str:
        """Return the id of the texts of which a source may be a subset or a changed copy; they are made once."""
        return identity.digest([self.model, identity.named(self._parts.fit_sources[field].origin())])

    def steering(self, strength: float) -> dict[str, Any] | None:
        """The identity of the steering; None for the unsteered model."""
        return identity.steering_identity(self.fit_id, self.method, strength)

    def decoding(self, suite: Suite[Any]) -> dict[str, Any] | None:
        """Return how the suite's texts are decoded; None if the suite does not sample."""
        return decoding_identity(suite.decoded(self._parts.sampling)) if suite.samples else None

    def suite(self, suite: Suite[Any], split: Split) -> dict[str, Any]:
        """The identity of a suite: all that its numbers depend on besides the model."""
        key = suite.name, split
        if key not in self._suites:
            own = {"name": suite.name, "version": suite.version, "decoding": self.decoding(suite)}
            self._suites[key] = own | identity.named(suite, split)
        return self._suites[key]

    def record_id(self, suite: Suite[Any], split: Split, strength: float) -> str:
        """The id that a suite's result at this strength is stored under."""
        own = suite.unsteered_only(split) if strength == 0 else {}
        return identity.record_id(self.model, self.steering(strength), self.suite(suite, split) | own, split)

    def comparison_id(self, suite: Suite[Any], split: Split) -> str:
        """The id that results share if they differ only in their steering."""
        return identity.comparison_id(self.model, self.suite(suite, split), split)


def model_key(model: Mapping[str, Any], device: str) -> str:
    """Return the id of a loaded model, which is the same for cells that differ only in threads."""
    return identity.digest(dict(model) | {"threads": None, "device": device})
