"""What scorers that are models of transformers have in common: where the model is from, and its options."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.hub.failures import Repo
from bench.model import checkpoint, hub_files, model_folder
from bench.scorers.base import by_length, judging_device
from methods.errors import SetupError

BLANK = {"toxicity": 0.0, "refusal": 0.0, "topic": 0.0, "sentiment": 0.5}
"""The score of a blank text, by what is measured: it is not toxic, refuses nothing, has no topic, and is neutral."""


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """A model in a folder or on the hub that judges each text without its prompt.

    Exactly one of path and id is given. max_tokens: longer texts are cut at the end. device: None is the run's
    (`runtime_device`). name: the name under which the scores are stored, so that several such scorers can judge one
    run; the same as its key in conf/scorer.
    """

    path: str | None = None
    id: str | None = None
    revision: str = "main"
    max_tokens: int | None = None
    measures: Literal["toxicity", "sentiment", "refusal", "topic"] = "toxicity"
    batch_size: int = 64
    device: str | None = None
    offline: bool = False
    runtime_device: str = "cpu"
    name: str

    def __post_init__(self) -> None:
        """Raises SetupError for mistakes that can be found without reading the model."""
        if (self.path is None) == (self.id is None):
            raise SetupError(
                f"{self.option}: set exactly one of path and id: {self.option}.path=FOLDER for a folder that "
                f"save_pretrained wrote, {self.option}.id=ORG/NAME for the hub"
            )
        if self.path is not None:
            model_folder.check_folder(self.path, f"{self.option}.path")
        else:
            checkpoint.check_id(str(self.id), f"{self.option}.id")
        if self.measures not in BLANK:
            raise SetupError(f"{self.option}.measures={self.measures}: allowed are {', '.join(BLANK)}")
        for key in ("batch_size", "max_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise SetupError(f"{self.option}.{key}={value}: expected a whole number above 0")

    @property
    def option(self) -> str:
        """The name of the scorer's options in messages."""
        return f"scorer.{self.name}"

    def batches(self, completions: Sequence[str]) -> list[list[int]]:
        """Return batches of texts of similar length; padding changes the last bits of what a model computes."""
        return by_length(completions, self.batch_size)

    def fetch(self) -> None:
        """Fetch the model. Raises SetupError if that fails."""
        if self.id is not None:
            hub_files.fetch(Repo("model", self.id, self.option), self._commit(), self.offline)

    def _source(self) -> dict[str, Any]:
        """Return what names the model's bytes: its files or its commit."""
        if self.path is not None:
            return {"files": model_folder.fingerprint(Path(self.path).resolve())}
        return {"id": self.id, "revision": self._commit()}

    def _location(self) -> tuple[str, str | None, dict[str, str]]:
        """Return the folder or the id, the commit of an id, and the hashes of a folder's files."""
        if self.path is None:
            return str(self.id), self._commit(), {}
        where = str(Path(self.path).resolve())
        return where, None, model_folder.fingerprint(Path(where))

    def _commit(self) -> str:
        assert self.id is not None
        return checkpoint.commit(self.id, self.revision, self.offline, self.option)

    @property
    def _where(self) -> str:
        """The device on which texts are judged."""
        return judging_device(self.device, self.runtime_device)

    @property
    def _kind_of_device(self) -> str:
        return (self.device or "cpu").partition(":")[0]
