"""Fitted artefacts on disk, with facts about fitting: `runs/artefacts/<fit id>/{fit.json, artefact.safetensors}`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bench.files import atomic, digests, plain_json
from bench.files.overwrite import Overwrite
from bench.records import schema
from methods.base import INFO, Artefact, Method, artefact_bytes, facts, load, save
from methods.broken import BROKEN, reading
from methods.errors import SetupError

ARTEFACT = ("fit.json", "artefact.safetensors")
"""Files of a stored fit."""
FIT = schema.fields(
    {
        "facts": schema.MAPPING,
        "data": schema.maybe(
            schema.fields(
                others=schema.where_mapping(schema.fields(sources=schema.SOURCES)),
                sources=schema.SOURCES,
                name=schema.maybe(schema.TEXT),
                pairs=schema.maybe(schema.COUNT),
                unverified=schema.each(schema.TEXT),
            )
        ),
        "seconds": schema.NOT_NEGATIVE,
        "peak_memory_bytes": schema.maybe(schema.COUNT),
        "artefact_bytes": schema.COUNT,
    },
    unverified=lambda _, name: f"{name} was never written",
)
"""What a fit.json has to be, so that a record may be made of it (`bench.records.schema`)."""


@dataclass(frozen=True)
class FitStore:
    """One fit of a method in its folder, which is named by its id."""

    folder: Path
    method: Method
    overwrite: Overwrite = field(default_factory=Overwrite)

    @property
    def is_stored(self) -> bool:
        """Whether the artefact is stored, with the facts about it."""
        return self.overwrite.counts(self.folder) and all((self.folder / name).exists() for name in ARTEFACT)

    def facts(self) -> dict[str, Any] | None:
        """Return what fitting took; None if no artefact is stored, or a damaged one, which is then set aside."""
        if not self.folder.is_dir() or not self.overwrite.counts(self.folder):
            return None
        try:
            verified = digests.verified(self.folder)
            for name in ARTEFACT:
                if not (self.folder / name).exists():
                    raise digests.DamagedError(f"{self.folder / name} is missing")
            fit = _fit_facts(self.folder / "fit.json", needs=bool(self.method.needs))
        except digests.DamagedError as error:
            self.overwrite.set_aside(self.folder, error)
            return None
        return fit if verified else fit | {"unverified": [f"{self.folder.parent.name}/{self.folder.name}"]}

    def read(self, model: Callable[[], PreTrainedModel]) -> tuple[Artefact, dict[str, Any]] | None:
        """Return the stored artefact and what fitting it took; None if there is none, or it is damaged and set aside.

        model: returns the model; called only if the files have no digest, to try the artefact on it.
        """
        fit = self.facts()
        if fit is None:
            return None
        try:
            artefact = _artefact(self.folder / "artefact.safetensors", fit)
            if "unverified" in fit:
                self._try(model(), artefact)
        except digests.DamagedError as error:
            self.overwrite.set_aside(self.folder, error)
            return None
        return artefact, fit

    def _try(self, model: PreTrainedModel, artefact: Artefact) -> None:
        """Raises DamagedError for an artefact that the method cannot apply to its model.

        This is done for files without a digest: they may be whole, but belong to another model or layer.
        """
        try:
            with self.method.apply(model, artefact, next(iter(self.method.strengths), 1.0)):
                pass
        except BROKEN as error:
            told = f"{self.folder} does not hold what {self.method.name} has fitted"
            raise digests.DamagedError(f"{told} ({error})") from error

    def write(
        self, artefact: Artefact, seconds: float, peak_memory_bytes: int | None, data: Mapping[str, Any] | None
    ) -> None:
        """Store an artefact with what fitting it took."""
        fit = {
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes,
            "artefact_bytes": artefact_bytes(artefact),
            "facts": facts(artefact),
            "data": data,
        }
        with atomic.whole_folder(self.folder, ARTEFACT, replace=self.overwrite.replaces) as temporary:
            save(artefact, temporary / "artefact.safetensors")
            atomic.write_whole(temporary / "fit.json", plain_json.dumps(fit))
            digests.seal(temporary, name=self.folder.name)


def _fit_facts(path: Path, *, needs: bool) -> dict[str, Any]:
    """Read what the fit took, as `write` wrote it. needs: whether the method learns from data. Raises DamagedError."""
    with reading(lambda error: digests.DamagedError(f"{path} cannot be read ({error})")):
        fit = plain_json.load(path)
    wrong = schema.unusual(fit, "") or FIT(fit, "")
    if wrong or (needs and fit["data"] is None):
        wrong = wrong or "data is null"
        raise digests.DamagedError(f"{path} is not what was written: {wrong}")
    return fit


def _artefact(path: Path, fit: Mapping[str, Any]) -> Artefact:
    """Read the tensors that `apply` needs. Raises DamagedError for a broken file, or one that fit.json contradicts."""
    try:
        artefact = load(path)
    except SetupError as error:
        raise digests.DamagedError(str(error)) from error
    if facts(artefact) != fit["facts"] or artefact_bytes(artefact) != fit["artefact_bytes"]:
        raise digests.DamagedError(f"{path} does not hold the tensors that its fit.json lists")
    return {name: tensor for name, tensor in artefact.items() if not name.startswith(INFO)}
