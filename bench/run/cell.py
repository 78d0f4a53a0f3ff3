"""One model, method and strength, as a config describes it: its setting, its model, its fit.

Everything heavy is made when it is first asked for, so a cell whose results are stored loads nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bench.config.packed import changeable
from bench.model.lm import LM
from bench.records import identity
from bench.records.fields import Cost
from bench.run import cost
from bench.run.cell_fit import CellFit
from bench.run.cell_model import CellModel
from bench.run.session import Session
from bench.run.setting import Setting
from bench.suites.base import Suite
from methods.errors import SetupError


class Cell(Setting):
    """A cell of the table, whose model, fit and suites are made when they are needed.

    command: the command that runs only this cell, if the user's command has several cells.
    """

    def __init__(self, cfg: DictConfig, session: Session, plan_key: str | None = None, command: str = "") -> None:
        super().__init__(cfg, session, plan_key)
        self.command = command
        self.model = CellModel(self)
        self.fit = CellFit(self, self.model)
        self._variants: dict[str, Cell] = {}
        self._cost: Cost | None = None

    @property
    def suites(self) -> list[Suite[Any]]:
        """The suites that measure this cell; for a control only the suite that its method is tuned on."""
        every = self.parts.suites
        aim = self.parts.tuning.objective.suite
        return list(every.values()) if self.cfg.control is None or aim not in every else [every[aim]]

    # -- cells beside it -----------------------------------------------------------------------------------------------

    @cached_property
    def controlled(self) -> "Cell":
        """The cell of the method that this control is made for."""
        cfg = changeable(self.cfg)
        cfg.control = None
        return Cell(cfg, self.session, self.plan_key)

    def variant(self, options: Mapping[str, Any]) -> "Cell":
        """This cell with other hyper-parameters of its method; what the process shares stays shared."""
        if not options:
            return self
        key = identity.digest(dict(options))
        if key not in self._variants:
            cfg = changeable(self.cfg)
            cfg.method = OmegaConf.merge(cfg.method, dict(options))
            self._variants[key] = Cell(cfg, self.session, self.plan_key)
        return self._variants[key]

    def of_same_options(self, other: "Cell") -> "Cell":
        """Return this cell with the hyper-parameters of the other cell's method, which may be a variant's."""
        if other.cfg.method == self.cfg.method:
            return self
        cfg = changeable(self.cfg)
        cfg.method = other.cfg.method.copy()
        return Cell(cfg, self.session, self.plan_key)

    # -- the model at work ---------------------------------------------------------------------------------------------

    def in_own_unit(self, strength: float, fit: bool = True) -> float:
        """Convert a strength of the config to the method's unit; a converted strength is rounded to 6 digits.

        fit: whether to fit a method that is not fitted yet; if False, LookupError is raised instead.
        """
        if self.cfg.strength_unit == "method" or strength == 0:
            return strength
        stored = self.fit.fitted[1] if fit else self.fit.store.facts()
        if stored is None:
            raise LookupError(self.fit.store.folder)
        length = self.method.residual_norms(stored["facts"])
        if length is None:
            raise SetupError(
                f"strength_unit=residual_norm: {self.method.name} adds no vector to the residual stream (then set "
                f"strength_unit=method), or its fit lacks the vector's length (then delete {self.fit.store.folder})"
            )
        return float(f"{strength / length:.6g}")

    @contextmanager
    def steered(self, strength: float) -> Iterator[LM]:
        """Yield the cell's model, steered at this strength; at 0 nothing is fitted."""
        if strength == 0:
            yield self.model.lm
            return
        artefact, _ = self.fit.fitted
        with self.model.lm.steered(self.method, artefact, strength, self.names.steering(strength)) as lm:
            yield lm

    def measured_cost(self, strength: float) -> Cost:
        """Return the sampling speed relative to the unsteered model, measured once for each cell."""
        if self._cost is None:
            self._cost = cost.relative_speed(self.model.lm, self.method, self.fit.fitted[0], strength)
        return self._cost
