"""The model of a cell: where it comes from, and the loaded model, which the cells of a process share."""

import weakref
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from bench.files import digests
from bench.model import checkpoint, memory
from bench.model.generation_cache import Generations
from bench.model.lm import LM, load_lm
from bench.run.names import model_key
from bench.run.setting import Setting


class CellModel:
    """The unsteered model of a cell, which is loaded when it is first asked for."""

    def __init__(self, setting: Setting) -> None:
        self._of = setting
        self._suits: weakref.ref[PreTrainedModel] | None = None  # the model that the method was checked on

    @property
    def key(self) -> str:
        """The id of the loaded model."""
        return model_key(self._of.names.model, self._of.cfg.runtime.device)

    @property
    def card(self) -> str | None:
        """The name of the GPU that the cell computes on; None on another device."""
        device = torch.device(self._of.cfg.runtime.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else None

    @property
    def revision(self) -> str | None:
        """The commit of a model on the hub, also if the config names a branch."""
        published = checkpoint.published(self._of.cfg.model, self._of.cfg.runtime.offline)
        return published["commit"] if published is not None else None

    def fetch_weights(self) -> str:
        """Do as `Setting.fetch_model`, and fetch a hub model's weights, so that loading it needs no network."""
        return checkpoint.fetch(self._of.cfg.model, self._of.parts.cache, self._of.cfg.runtime.offline)

    def check_method(self) -> None:
        """Raise SetupError if the method does not suit the model, which is checked by its config, without weights."""
        location, offline = self._of.fetch_model(), self._of.cfg.runtime.offline
        self._of.method.check(checkpoint.skeleton(self._of.cfg.model, location, self.revision, offline))

    @property
    def lm(self) -> LM:
        """The loaded model, shared by the cells of a process that differ only in threads or method.

        Ask for it anew in each stage: only one model is kept, and it is loaded again if another one took its place.
        """
        models = self._of.session.models
        if self.key not in models:
            while models:
                memory.release(models.popitem()[1].device)
            models[self.key] = self._load()
        lm = models[self.key]
        if self._suits is None or self._suits() is not lm.model:
            self._of.method.check(lm.model)
            self._suits = weakref.ref(lm.model)
        store = Generations(self._of.runs / "generations", self._of.overwrite)
        return replace(lm, identity=self._of.names.model, sampling=self._of.parts.sampling, store=store)

    def _load(self) -> LM:
        node, runtime, revision = self._of.cfg.model, self._of.cfg.runtime, self.revision
        with digests.unverified() as unverified:
            lm = load_lm(
                self.fetch_weights(),
                revision=revision,
                offline=node.id is not None,  # only files that were fetched are read
                dtype=node.dtype,
                device=runtime.device,
                max_memory=runtime.get("max_memory"),
                offload=self._of.parts.cache / "offload",
                bos=node.bos,
                chat=node.chat,
                thinking=node.get("thinking", "off"),
                parts=checkpoint.parts(node),
            )
            checkpoint.check_files(node, revision)
            checkpoint.check_unchanged(node, self._of.names.model)
        return replace(lm, unverified=tuple(sorted(unverified)))
