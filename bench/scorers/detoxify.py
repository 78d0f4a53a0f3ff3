"""Detoxify's transformer classifiers; the only place that imports detoxify."""

import functools
import math
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from bench.data.wheels import file_sha256
from methods.errors import SetupError

# The five variants and the model on the hub whose config and tokenizer each one needs besides its checkpoint.
BASES = {
    "original": "bert-base-uncased",
    "unbiased": "roberta-base",
    "multilingual": "xlm-roberta-base",
    "original-small": "albert-base-v2",
    "unbiased-small": "albert-base-v2",
}
LABEL = "toxicity"


@dataclass(frozen=True)
class Detoxify:
    """Probability of the label `toxicity` by a Detoxify model (github.com/unitaryai/detoxify).

    Weights are downloaded once and held against the hash in their published name, or read from `checkpoint`, with
    config and tokenizer of the base model in `config_path` for machines without network.
    """

    name: ClassVar[str] = "detoxify"
    measures: ClassVar[str] = "toxicity"

    model_type: str = "original"
    checkpoint: str | None = None
    config_path: str | None = None
    device: str = "cpu"
    batch_size: int = 64
    offline: bool = False

    def __post_init__(self) -> None:
        """Raises SetupError for a variant or file that does not exist."""
        if self.model_type not in BASES:
            raise SetupError(f"scorer.detoxify.model_type={self.model_type}: allowed are {', '.join(BASES)}")
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise SetupError(f"scorer.detoxify.checkpoint={self.checkpoint}: no such file. {_help(self.model_type)}")
        if self.config_path is not None and not (Path(self.config_path) / "config.json").is_file():
            raise SetupError(
                f"scorer.detoxify.config_path={self.config_path}: no config.json there. {_help(self.model_type)}"
            )

    def identity(self) -> dict[str, Any]:
        """Package, variant and weights: the first 8 hex digits of the checkpoint's sha256, as in published names."""
        weights = file_sha256(Path(self.checkpoint))[:8] if self.checkpoint else _published(self.model_type)[1]
        return {
            "name": self.name,
            "version": 1,
            "detoxify": version("detoxify"),
            "model_type": self.model_type,
            "weights": weights,
            "device": self.device.partition(":")[0],
        }

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """One score per completion alone; blank ones score 0, a score that is no number is None."""
        del prompts
        scores: list[float | None] = [0.0] * len(completions)
        order = sorted((i for i, text in enumerate(completions) if text.strip()), key=lambda i: len(completions[i]))
        if not order:
            return scores
        model = _load(self.model_type, self.checkpoint, self.config_path, self.device, self.offline)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            judged = model.predict([completions[i] for i in batch])[LABEL]
            for i, score in zip(batch, judged if isinstance(judged, list) else [judged], strict=True):
                scores[i] = None if math.isnan(score) else float(score)
        return scores


def _published(model_type: str) -> tuple[str, str]:
    """Address of a variant's checkpoint, and the 8 hex digits of its sha256 that the name carries."""
    from detoxify.detoxify import MODEL_URLS

    url = str(MODEL_URLS[model_type])
    return url, Path(url).stem.rpartition("-")[2]


def _help(model_type: str) -> str:
    """How to use a variant without network."""
    return (
        f"Without network: download {_published(model_type)[0]} and, from huggingface.co/{BASES[model_type]}, "
        "config.json and the tokenizer's files elsewhere, then set scorer.detoxify.checkpoint=FILE "
        "scorer.detoxify.config_path=FOLDER"
    )


@functools.lru_cache(maxsize=2)
def _load(model_type: str, checkpoint: str | None, config_path: str | None, device: str, offline: bool) -> Any:
    """A `detoxify.Detoxify`, from local files wherever they are given.

    Detoxify asks the hub for the base model's config even when it gets `huggingface_config_path`, and reads the number
    of labels from that folder (unitaryai/detoxify pull request 126). So the checkpoint is rewritten to name the folder
    as its base model, which Detoxify then reads with the right number of labels. That also keeps pickles from being
    run: what Detoxify opens is what `weights_only=True` has read.
    """
    import torch
    from detoxify import Detoxify as Model

    file = Path(checkpoint) if checkpoint else _download(model_type, offline)
    content = _read(file)
    try:
        base = content["config"]["arch"]["args"]["model_type"]
        content["config"]["arch"]["args"]["model_type"] = config_path or _base_files(base, model_type, offline)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / file.name
            torch.save({"config": content["config"], "state_dict": content["state_dict"]}, copy)
            model = Model(checkpoint=str(copy), device=device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise SetupError(f"{file} is no Detoxify checkpoint that fits its base model: {error!r}") from error
    if LABEL not in model.class_names:
        raise SetupError(f"{file} has the labels {', '.join(model.class_names)}; {LABEL} is needed")
    return model


def _read(file: Path) -> Any:
    """The checkpoint's content; a pickle that does more than hold data is run only if its hash is a published one."""
    import torch

    trusted = file_sha256(file)[:8] in {_published(variant)[1] for variant in BASES}
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if trusted:
            return torch.load(file, map_location="cpu", weights_only=False)
        raise SetupError(
            f"{file} is refused: it holds more than tensors and plain values, and its sha256 "
            f"{file_sha256(file)[:8]}... is none of Detoxify's published ones"
        ) from error


def _download(model_type: str, offline: bool) -> Path:
    """The published checkpoint in torch's own cache, its hash checked."""
    import torch

    url, digits = _published(model_type)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if file.is_file() and file_sha256(file).startswith(digits):
        return file
    if offline:
        raise SetupError(f"{file.name} is not in {file.parent}, and the network is off. {_help(model_type)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digits)
    except (OSError, RuntimeError) as error:
        raise SetupError(f"cannot download {url}: {error}. {_help(model_type)}") from error
    return file


def _base_files(base: str, model_type: str, offline: bool) -> str:
    """Folder with config and tokenizer of the base model: a local one, or fetched from the hub without its weights."""
    if Path(base).is_dir():
        return base
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of all its network errors

    try:
        return snapshot_download(base, allow_patterns=["*.json", "*.txt", "*.model"], local_files_only=offline)
    except (OSError, ValueError, HTTPError) as error:
        raise SetupError(f"cannot get config and tokenizer of {base}: {error}. {_help(model_type)}") from error
