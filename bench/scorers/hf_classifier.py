"""Any sequence classifier of transformers, from a folder or the hub: one label's probability is the score."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.model import model_folder
from bench.scorers.of_model import BLANK, OfModel
from methods.broken import reading
from methods.errors import SetupError

Activation = Literal["sigmoid", "softmax"]
TRAINED: dict[str, Activation] = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
"""By problem_type in config.json: the activation that makes probabilities of logits, as transformers trains models."""


class Classifier(NamedTuple):
    """A loaded model: its column of the asked label, its map from logits to probabilities, and the longest input."""

    model: Any
    tokenizer: Any
    column: int
    activation: Activation
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class HFClassifier(OfModel):
    """Probability of one label by a sequence classifier (`AutoModelForSequenceClassification`), in float32.

    activation: "softmax" over all labels, for a model in which exactly one label holds for a text, or "sigmoid" of the
    one label, for a model in which several labels may hold at once. None: what the problem_type of the model's config
    says, and the sigmoid for a model with a single label; a model with several labels and no problem_type is refused.
    An activation that contradicts the problem_type is refused, too.

    The text is judged without its prompt. Blank texts are not shown to the model: they score 0, and .5 if sentiment is
    measured (BLANK).

    Exactly one of path and id is given. label: the label's name, or its place in the model's output. max_tokens: longer
    texts are cut at the end; None is the model's own limit. device: None is the run's (`runtime_device`). name: the
    name under which its scores are stored, so that several classifiers can judge one run; the same as its key in
    conf/scorer.
    """

    label: str | int
    activation: Activation | None = None
    name: str = "hf_classifier"

    def __post_init__(self) -> None:
        """Raises SetupError for mistakes that can be found without reading the model."""
        super().__post_init__()
        if self.activation not in (None, "sigmoid", "softmax"):
            raise SetupError(f"{self.option}.activation={self.activation}: allowed are sigmoid, softmax, null")
        if self.path is not None:
            about = model_folder.read_object(Path(self.path) / "config.json")
            if labels := about.get("id2label"):
                column(labels, self.label, self.name)
                activation_of(about.get("problem_type"), len(labels), self.activation, self.name)

    def identity(self) -> dict[str, Any]:
        """Return the model's files or commit, and how it is used. Raises SetupError if a branch cannot be resolved."""
        return {
            "name": self.name,
            "version": 1,
            **self._source(),
            "label": self.label,
            # softmax is left out: before this option existed, version 1 took it wherever it is not refused now
            "activation": None if self.activation == "softmax" else self.activation,
            "max_tokens": self.max_tokens,
            "measures": self.measures,
            "device": self._kind_of_device,
        }

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Score each completion by itself; None if the model gives no number."""
        del prompts
        scores: list[float | None] = [BLANK[self.measures]] * len(completions)
        order = sorted((i for i, text in enumerate(completions) if text.strip()), key=lambda i: len(completions[i]))
        if not order:
            return scores
        loaded = self._loaded()
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, _judged(loaded, [completions[i] for i in batch], self._where), strict=True):
                scores[i] = None if math.isnan(score) else score
        return scores

    def _loaded(self) -> Classifier:
        """Return the loaded model. Raises SetupError if it cannot be fetched, or lacks a classifier or the label."""
        where, revision, files = self._location()
        self.fetch()
        model, tokenizer, longest = _load(where, revision, self._where, self.option, tuple(files.values()))
        labels = model.config.id2label
        return Classifier(
            model,
            tokenizer,
            column(labels, self.label, self.name),
            activation_of(model.config.problem_type, len(labels), self.activation, self.name),
            self.max_tokens or longest,
        )


def column(id2label: Mapping[Any, str], label: str | int, name: str) -> int:
    """Return the place of a label in the model's output.

    Raises SetupError, which lists the labels, unless exactly one label matches, or if they are not numbered 0, 1, ...
    """
    numbered = isinstance(id2label, Mapping) and all(str(place).isdecimal() for place in id2label)
    if not numbered or sorted(map(int, id2label)) != list(range(len(id2label))):
        raise SetupError(
            f"scorer.{name}: id2label in the model's config.json is {str(id2label)[:200]}, so it is not known which "
            'column is which label; expected {"0": LABEL, "1": LABEL, ...}, without a gap; correct it there'
        )
    labels = {int(place): str(one) for place, one in id2label.items()}
    number = isinstance(label, int) and not isinstance(label, bool)
    found = [place for place, one in labels.items() if (place if number else one) == label]
    if len(found) != 1:
        what = "has several labels of that name; give its number, since it" if found else "has no such label; it"
        listed = ", ".join(f"{place} {one}" for place, one in sorted(labels.items()))
        raise SetupError(f"scorer.{name}.label={label}: the model {what} has {listed}")
    return found[0]


def activation_of(problem_type: str | None, labels: int, asked: Activation | None, name: str) -> Activation:
    """Return how logits become probabilities: as the model's `problem_type` says or, if it is None, as `asked`.

    Raises SetupError if both are None for a model with several labels, if they contradict each other, and if the
    model's output is no probability.
    """
    option = f"scorer.{name}.activation"
    if problem_type == "regression":
        raise SetupError(
            f"scorer.{name}: the model's problem_type is regression, so its output is not a probability; "
            "take a classifier"
        )
    if problem_type is not None and problem_type not in list(TRAINED):
        raise SetupError(
            f"scorer.{name}: problem_type in the model's config.json is {problem_type!r}; known are "
            f"{', '.join(TRAINED)}, regression; correct it there"
        )
    trained = TRAINED[problem_type] if problem_type else None
    if labels == 1 and trained == "softmax":
        raise SetupError(
            f"scorer.{name}: the model has a single label, and its config.json says problem_type={problem_type}: the "
            "softmax of a single label is always 1, and newer versions of transformers do not load it. If it was "
            "trained to say yes or no to that label, set problem_type to null in the config.json of a copy of its "
            "folder, so that its sigmoid is used; otherwise take another classifier"
        )
    if labels > 1 and trained and asked and trained != asked:
        raise SetupError(
            f"{option}={asked}, but the model's config.json says problem_type={problem_type}: it was trained with "
            f"{trained}, and its scores would not be probabilities with {asked}; set {option}=null"
        )
    activation = asked or trained or ("sigmoid" if labels == 1 else None)
    if activation is None:
        raise SetupError(
            f"scorer.{name}: the model has {labels} labels and does not say whether just one of them holds (no "
            f"problem_type in its config.json); set {option}=softmax if just one does, {option}=sigmoid if each may"
        )
    if activation == "softmax" and labels == 1:
        raise SetupError(
            f"{option}=softmax: the model has a single label, whose softmax is always 1; set {option}=sigmoid"
        )
    return activation


def _judged(loaded: Classifier, texts: list[str], device: str) -> list[float]:
    import torch

    model, tokenizer, place, activation, limit = loaded
    where = tokenizer.name_or_path
    step = "give the tokenizer's files (tokenizer.json, tokenizer_config.json) as they belong to the model"
    with reading(lambda error: SetupError(f"{where}: its tokenizer cannot read a text ({error}); {step}"), Exception):
        fed = tokenizer(texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**fed.to(device)).logits.float()  # (B, labels)
        probabilities = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)
    return [float(one) for one in probabilities[:, place].tolist()]


@functools.lru_cache(maxsize=4)
def _load(
    where: str, revision: str | None, device: str, option: str, _files: tuple[str, ...]
) -> tuple[Any, Any, int | None]:
    """Return model, tokenizer and longest input in tokens (None: any), from files on this machine. Raises SetupError.

    _files: the folder's hashes, so that a changed folder is loaded again.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from bench.model.weights import check_vocabulary, why_not

    named: dict[str, Any] = {"revision": revision, "local_files_only": True} if revision else {}

    def told(error: BaseException) -> SetupError:
        step = f"without network, copy the model's files into a folder and set {option}.path=FOLDER {option}.id=null"
        return SetupError(f"{option}: cannot load a sequence classifier from {where}: {why_not(where, error, step)}")

    with reading(told, Exception):  # damaged files can make the libraries raise any error
        model_folder.check_config(where, **named)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **named)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **named
        )
    if info["missing_keys"]:
        raise SetupError(
            f"{option}: {where} has no weights for {', '.join(sorted(info['missing_keys']))}, so it is not a finished "
            "sequence classifier; give one that was trained as such"
        )
    check_vocabulary(where, model.get_input_embeddings().weight.shape[0], tokenizer)
    if tokenizer.pad_token is None:
        pad = model.config.pad_token_id
        tokenizer.pad_token = tokenizer.eos_token if pad is None else tokenizer.convert_ids_to_tokens(pad)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval().to(device), tokenizer, longest(model, tokenizer)


def longest(model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens the model can read; None: there is no limit.

    RoBERTa's table of positions begins after the padding's row, so 514 rows hold 512 tokens.
    """
    limits = [tokenizer.model_max_length]
    if (positions := getattr(model.config, "max_position_embeddings", None)) is not None:
        tables = [part for path, part in model.named_modules() if path.endswith("position_embeddings")]
        padding = next((part.padding_idx for part in tables if getattr(part, "padding_idx", None) is not None), -1)
        limits.append(positions - padding - 1)
    shortest = min(limits)
    return int(shortest) if shortest < 10**6 else None  # tokenizers without a limit say 10^30
