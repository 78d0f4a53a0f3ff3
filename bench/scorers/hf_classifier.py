"""Any sequence classifier of transformers, from a folder or the hub: one label's probability is the score."""

import functools
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench import models
from methods.errors import SetupError

BLANK = {"toxicity": 0.0, "refusal": 0.0, "sentiment": 0.5}
"""What a text without any word scores, by what is measured: it is not toxic, refuses nothing, and has no mood."""


class Classifier(NamedTuple):
    """A loaded model: its column of the asked label, and the longest input."""

    model: Any
    tokenizer: Any
    column: int
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class HFClassifier:
    """Probability of one label by a sequence classifier (`AutoModelForSequenceClassification`), in float32.

    The softmax over the labels, or for a model whose config says problem_type=multi_label_classification, or that has a
    single label, the sigmoid of the one label. The text is judged alone, without its prompt. Blank texts are not shown
    to the model: they score 0, and .5 where sentiment is measured (BLANK).

    Exactly one of path and id is given. label: the label's name, or its place in the model's output. max_tokens: longer
    texts are cut at the end; None is the model's own limit. name: what its scores are filed under, so that several of
    them can judge one run; as its key in conf/scorer.
    """

    label: str | int
    path: str | None = None
    id: str | None = None
    revision: str = "main"
    max_tokens: int | None = None
    measures: Literal["toxicity", "sentiment", "refusal"] = "toxicity"
    batch_size: int = 64
    device: str = "cpu"
    offline: bool = False
    name: str = "hf_classifier"

    def __post_init__(self) -> None:
        """Raises SetupError for what can be seen to be wrong without reading the model."""
        option = f"scorer.{self.name}"
        if (self.path is None) == (self.id is None):
            raise SetupError(
                f"{option}: set exactly one of path and id: {option}.path=FOLDER for a folder that save_pretrained "
                f"wrote, {option}.id=ORG/NAME for the hub"
            )
        if self.path is not None:
            models.check_folder(self.path, f"{option}.path")
            if labels := _labels(Path(self.path) / "config.json"):
                column(labels, self.label, self.name)
        if self.measures not in BLANK:
            raise SetupError(f"{option}.measures={self.measures}: allowed are {', '.join(BLANK)}")
        for key in ("batch_size", "max_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise SetupError(f"{option}.{key}={value}: a whole number above 0")

    def identity(self) -> dict[str, Any]:
        """The model's files or its commit, and how it is read. Raises SetupError where a branch cannot be resolved."""
        if self.path is not None:
            source: dict[str, Any] = {"files": models.fingerprint(Path(self.path).resolve())}
        else:
            source = {"id": self.id, "revision": self._commit()}
        return {
            "name": self.name,
            "version": 1,
            **source,
            "label": self.label,
            "max_tokens": self.max_tokens,
            "measures": self.measures,
            "device": self.device.partition(":")[0],
        }

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """One score per completion alone; None where the model gives no number."""
        del prompts
        scores: list[float | None] = [BLANK[self.measures]] * len(completions)
        order = sorted((i for i, text in enumerate(completions) if text.strip()), key=lambda i: len(completions[i]))
        if not order:
            return scores
        loaded = self._loaded()
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, _judged(loaded, [completions[i] for i in batch], self.device), strict=True):
                scores[i] = None if math.isnan(score) else score
        return scores

    def _commit(self) -> str:
        assert self.id is not None
        return models.commit(self.id, self.revision, self.offline, f"scorer.{self.name}")

    def _loaded(self) -> Classifier:
        """The model. Raises SetupError where it cannot be had, or lacks a classifier or the label."""
        where = str(Path(self.path).resolve()) if self.path is not None else str(self.id)
        revision = None if self.path is not None else self._commit()
        model, tokenizer, longest = _load(where, revision, self.device, self.offline, f"scorer.{self.name}")
        return Classifier(
            model, tokenizer, column(model.config.id2label, self.label, self.name), self.max_tokens or longest
        )


def _labels(file: Path) -> dict[str, str]:
    """Labels by their place as a config.json lists them; {} where it does not, or cannot be read."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")).get("id2label") or {})
    except (ValueError, AttributeError):
        return {}  # loading the model says what is wrong with it


def column(id2label: Mapping[Any, str], label: str | int, name: str) -> int:
    """Place of a label in the model's output. Raises SetupError that lists the model's labels."""
    labels = {int(place): str(one) for place, one in id2label.items()}
    found = [place for place, one in labels.items() if label in (place, one)]
    if not found:
        listed = ", ".join(f"{place} {one}" for place, one in sorted(labels.items()))
        raise SetupError(f"scorer.{name}.label={label}: the model has no such label; it has {listed}")
    return found[0]


def _judged(loaded: Classifier, texts: list[str], device: str) -> list[float]:
    import torch

    model, tokenizer, place, limit = loaded
    with torch.inference_mode():
        fed = tokenizer(texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt")
        logits = model(**fed.to(device)).logits.float()  # (B, labels)
        one_by_one = model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        probabilities = logits.sigmoid() if one_by_one else logits.softmax(-1)
    return [float(one) for one in probabilities[:, place].tolist()]


@functools.lru_cache(maxsize=4)
def _load(where: str, revision: str | None, device: str, offline: bool, option: str) -> tuple[Any, Any, int | None]:
    """Model, tokenizer and the longest input (None: any). Raises SetupError."""
    import torch
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of all its network errors
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    named: dict[str, Any] = {"revision": revision, "local_files_only": offline} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **named)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, **named
        )
    except (OSError, ValueError, RuntimeError, HTTPError, SafetensorError, pickle.UnpicklingError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SetupError(
            f"{option}: cannot load a sequence classifier from {where}: {why}. Without network: copy the model's files "
            f"into a folder and set {option}.path=FOLDER {option}.id=null"
        ) from error
    if info["missing_keys"]:
        raise SetupError(
            f"{option}: {where} has no weights for {', '.join(sorted(info['missing_keys']))}, so it is not a finished "
            "sequence classifier; give one that was trained as such"
        )
    if tokenizer.pad_token is None:
        pad = model.config.pad_token_id
        tokenizer.pad_token = tokenizer.eos_token if pad is None else tokenizer.convert_ids_to_tokens(pad)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval().to(device), tokenizer, longest(model, tokenizer)


def longest(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model has positions for; RoBERTa's tables begin after the padding's, so 514 rows hold 512."""
    limits = [tokenizer.model_max_length]
    if (positions := getattr(model.config, "max_position_embeddings", None)) is not None:
        tables = [part for path, part in model.named_modules() if path.endswith("position_embeddings")]
        padding = next((part.padding_idx for part in tables if getattr(part, "padding_idx", None) is not None), -1)
        limits.append(positions - padding - 1)
    shortest = min(limits)
    return int(shortest) if shortest < 10**6 else None  # tokenizers without a limit say 10^30
