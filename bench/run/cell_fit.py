"""The fit of a cell: the data that its method learns from, and the artefact that it makes of them."""

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from bench.config.packed import changeable
from bench.files import digests
from bench.records import unfinished
from bench.records.names import told_norm_over
from bench.run import control, cost, first_part, norm_over
from bench.run.cell_model import CellModel
from bench.run.fit_sources import filled
from bench.run.fit_store import FitStore
from bench.run.setting import Setting
from methods.base import INFO, Artefact, FitData
from methods.progress import checkpointing

Fitted = tuple[Artefact, dict[str, Any]]
"""An artefact, and what fitting it took: seconds, memory, the facts that the method states, the data."""


class CellFit:
    """What the method of a cell learns; it is learnt when it is first asked for.

    store: the place where the artefact is stored, `artefacts/<fit_id>`.
    """

    def __init__(self, setting: Setting, model: CellModel) -> None:
        self._of, self._model = setting, model

    @cached_property
    def store(self) -> FitStore:
        """The place where the artefact is stored."""
        return FitStore(self._of.runs / "artefacts" / self._of.names.fit_id, self._of.method, self._of.overwrite)

    @cached_property
    def fitted(self) -> Fitted:
        """The artefact and what fitting it took, read if they are stored and made otherwise."""
        stored = self._stored()
        if stored is None:
            with self._of.alone(self._of.names.fit_id, f"{self._of.label()} · fit"):
                stored = self._stored() or self._fit()
        return stored

    def _stored(self) -> Fitted | None:
        return self.store.read(lambda: self._model.lm.model)

    def unverified(self) -> list[str]:
        """Return those folders of the fit and its data that have no digest."""
        fit = self.fitted[1]
        return [*fit.get("unverified", []), *(fit["data"] or {}).get("unverified", [])]

    # -- the data ------------------------------------------------------------------------------------------------------

    def data(self) -> tuple[FitData, dict[str, Any]]:
        """The training data of the method, with the facts about it."""
        session = self._of.session
        found, about, read = dict[str, Any](), dict[str, Any](), list[Any]()
        for name, source in self._of.parts.fit_sources.items():
            key = self._of.names.source_id(name)
            if key not in session.fit_data:
                with session.bar.stage(self._source_stage(name), f"{source.name}: training data ({name})"):
                    with digests.unverified() as unverified:
                        texts, of_source = source.load(self._model.lm)
                    told = {"unverified": sorted(unverified)} if unverified else {}
                    session.fit_data[key] = texts, of_source | told
            found[name], of_source = session.fit_data[key]
            read += of_source.get("sources", [])
            about |= of_source if name == "pairs" else {name: of_source}
        return filled(found), about | {"sources": read}

    def _source_stage(self, field: str) -> str:
        """Return the name, in a plan, of the stage that makes the texts of a field; its first word is the field."""
        return f"{field} {self._of.names.origin_id(field)}"

    def source_stages(self) -> dict[str, float]:
        """Return how many tokens each stage of making the training data takes."""
        return {self._source_stage(field): float(one.tokens()) for field, one in self._of.parts.fit_sources.items()}

    def tokens(self) -> dict[str, float]:
        """Return how many tokens each stage of making the artefact takes."""
        sources, making = self._of.parts.fit_sources, self.source_stages()
        for one in (one for one in self._apart if not one.store.is_stored):
            making |= one.tokens()
        own = 0.0 if self._apart else self._of.method.passes() * sum(s.size() for s in sources.values())
        return making | {f"fit {self._of.names.fit_id}": own}

    # -- how it is made ------------------------------------------------------------------------------------------------

    def _fit(self) -> Fitted:
        """Make and store the artefact; returns it with what fitting it took."""
        fit_id, parts = self._of.names.fit_id, self._of.parts
        place = self._of.unfinished(fit_id)
        self._of.overwrite.forget(place)
        with unfinished.keeping(place, self._of.method, *parts.fit_sources.values(), *parts.scorers.values()):
            if self._of.cfg.control is not None and control.how(self._of.method) == "random rotation":
                self._rotate()
            elif self._apart:
                self._make_as_long()
            else:
                self._learn(place)
        self._of.session.made.add(fit_id)
        stored = self._stored()
        assert stored is not None
        return stored

    def _learn(self, place: Path) -> None:
        """Let the method learn, and store the artefact. place: the folder for the parts that are finished."""
        lm, (data, about) = self._model.lm, self.data()
        method, stage = self._of.method, f"fit {self._of.names.fit_id}"
        known, before = self.first_part()
        with self._of.session.bar.stage(stage, f"{self._of.label()} · fit"), checkpointing(place) as earlier:
            with cost.peak_memory(lm.device) as peak:
                start = time.perf_counter()
                artefact = method.fit(lm.model, lm.tokenizer, data._replace(fitted=known))
                seconds = time.perf_counter() - start
        self.store.write(artefact, before + earlier.seconds + seconds, peak.bytes, about if method.needs else None)

    def first_part(self) -> tuple[dict[str, Artefact], float]:
        """Return what a stack's first part learnt, and its seconds, if it was fitted alone; else nothing and 0."""
        name, cfg = first_part.alone(self._of.cfg, self._of.method) or ("", None)
        stored = self._other(cfg)._stored() if cfg else None
        if stored is None or "unverified" in stored[1]:
            return {}, 0.0
        artefact, fit = stored
        return {name: artefact | _info(fit["facts"])}, fit["seconds"]

    def _rotate(self) -> None:
        """Store the vectors of the method that this control is made for, turned by a random rotation."""
        cfg = changeable(self._of.cfg)
        cfg.control = None
        artefact, fit = self._other(cfg).fitted
        kept = {name: fact for name, fact in fit["facts"].items() if "norm" in name}  # a rotation keeps lengths
        turned = control.rotated(self._of.method.changes(artefact), int(self._of.cfg.control))
        self.store.write(artefact | turned | _info(kept), 0.0, None, fit["data"])

    def _make_as_long(self) -> None:
        """Store the vector of the cell's own pairs, rescaled to the mean length of the vectors of all sets of pairs."""
        own, fit = self._other(norm_over.alone(self._of.cfg)).fitted
        norm_over.check(own, fit["facts"])
        every = {one.store.folder.name: one.fitted for one in self._apart}
        facts = _info(fit["facts"])
        by = norm_over.scale(own, [artefact for artefact, _ in every.values()])
        about = fit["data"] | {"norm_over": told_norm_over(self._of.cfg.pairs.norm_over)}
        if unverified := sorted({name for one in self._apart for name in one.unverified()}):
            about |= {"unverified": unverified}
        seconds = sum(took["seconds"] for _, took in every.values())
        scaled = norm_over.scaled(own | facts, by) | {f"{INFO}norm_over_scale": torch.tensor(by)}
        self.store.write(scaled, seconds, fit["peak_memory_bytes"], about)

    @cached_property
    def _apart(self) -> "list[CellFit]":
        """The fits that determine the length of this cell's vector (`bench.run.norm_over`); usually none."""
        return [self._other(cfg) for cfg in self._of.names.apart]

    def _other(self, cfg: DictConfig) -> "CellFit":
        """Return the fit of another config, in the same session."""
        setting = Setting(cfg, self._of.session, self._of.plan_key)
        return CellFit(setting, CellModel(setting))


def _info(facts: Mapping[str, Any]) -> Artefact:
    """Return the facts about a fit under the names that the method gave them in its artefact."""
    return {f"{INFO}{name}": torch.tensor(fact) for name, fact in facts.items()}
