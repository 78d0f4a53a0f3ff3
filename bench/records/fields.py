"""The parts of a record with typed fields: model, method, data, fit, cost, tuning, decoding, scorers, provenance.

Each part is made from a JSON mapping and written as one. A mapping may hold more than a part has fields for, since
older and newer versions, plug-ins and data sets add their own: that is kept, in its order, and written again.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self, TypeAlias

from bench.stats.metrics import Metric

Json: TypeAlias = "None | bool | int | float | str | Sequence[Json] | Mapping[str, Json]"


@dataclass(frozen=True, kw_only=True)
class Fields:
    """A JSON mapping with typed fields. A field with a default may be missing, and None of it is not written.

    stored: the mapping that it was made from, with what has no field.
    """

    stored: Mapping[str, Json] = field(default_factory=dict, repr=False)

    READ: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """Field -> how its value is made from JSON; any other field holds the JSON value itself."""
    KEYS: ClassVar[Mapping[str, str]] = {}
    """Field -> its key in JSON, if that is not a valid name in Python."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The part that a mapping holds; the schema says what its values are (`bench.records.schema`)."""
        values = {name: cls._read(name, found[key]) for name, key in cls._keys().items() if key in found}
        return cls(stored=found, **values)

    def to_json(self) -> dict[str, Any]:
        """The mapping to write: what was read, with the fields that differ from it."""
        written: dict[str, Any] = dict(self.stored)
        for name, key in self._keys().items():
            value = getattr(self, name)
            if key in self.stored:
                if self._read(name, self.stored[key]) != value:
                    written[key] = plain(value)
            elif value is not None or (not self.stored and name not in self._optional()):
                written[key] = plain(value)
        return written

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        return cls.READ[name](value) if name in cls.READ else value

    @classmethod
    @functools.cache
    def _keys(cls) -> dict[str, str]:
        return {one.name: cls.KEYS.get(one.name, one.name) for one in fields(cls) if one.name != "stored"}

    @classmethod
    @functools.cache
    def _optional(cls) -> frozenset[str]:
        return frozenset(one.name for one in fields(cls) if one.default is not MISSING)


def plain(value: Any) -> Any:
    """A value of a field as JSON."""
    if isinstance(value, Fields):
        return value.to_json()
    if isinstance(value, Metric):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def some(kind: type[Fields]) -> Callable[[Any], Any]:
    """The part, or None if it is null or empty, which mean the same."""
    return lambda value: kind.from_json(value) if value else None


def each(kind: type[Fields]) -> Callable[[Any], Any]:
    """A list of parts, or null."""
    return lambda value: None if value is None else tuple(map(kind.from_json, value))


def count(about: Mapping[str, Json]) -> int:
    """How many texts a set has by the facts about it; of a mixture, that of its parts together."""
    own = next((found for key in ("pairs", "texts", "examples") if isinstance(found := about.get(key), int)), None)
    return sum(count(one) for one in about.values() if isinstance(one, Mapping)) if own is None else own


def texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts, or null."""
    return None if value is None else tuple(value)


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Fields):
    """The model: the name that the config has for it, and everything about it that can change a number."""

    name: str

    @property
    def identity(self) -> dict[str, Any]:
        """Everything but the name, which changes no number."""
        return {key: value for key, value in self.to_json().items() if key != "name"}


@dataclass(frozen=True, kw_only=True)
class ControlFacts(Fields):
    """How a method's control was made (`bench.run.control`), and the strength of the method that it was made for."""

    how: str
    of_strength: float


@dataclass(frozen=True, kw_only=True)
class MethodFacts(Fields):
    """The method, its hyper-parameters and its strength. class_path: of a method that a plug-in brings."""

    KEYS = {"class_path": "class"}
    READ = {"control": some(ControlFacts)}

    strength_unit: str | None = None
    name: str
    family: str
    version: int
    parameters: Mapping[str, Json]
    class_path: str | None = None
    control: ControlFacts | None = None  # of a method's control
    residual_norms: Json = None  # the strength in mean residual-stream norms, where it adds to that
    strength: float


@dataclass(frozen=True, kw_only=True)
class Seeds(Fields):
    """The seeds of a result. fit: None where the method draws nothing in its fit."""

    fit: int | None
    sample: int


@dataclass(frozen=True, kw_only=True)
class Source(Fields):
    """A data set, and where it was read."""

    name: str
    source: str
    config: Json = None
    split: Json = None
    revision: Json = None
    fingerprint: Json = None


DRAWN = ("flipping", "subset")
"""What a record says of pairs that were drawn, with the seed."""


def _recipe(value: Any) -> Any:
    if isinstance(value, Mapping):
        told = {key: one for key, one in value.items() if key not in (*DRAWN, "unverified", "source", "revision")}
        return {key: _recipe(one) for key, one in told.items() if not isinstance(one, float)}
    return [_recipe(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class LearntFrom(Fields):
    """The data that a method learnt from. pairs: how many contrast pairs; further texts are in fields of their own."""

    READ = {"sources": each(Source)}

    name: str | None = None
    pairs: int | None = None
    sources: tuple[Source, ...] | None = None

    @property
    def flip(self) -> float | None:
        """The share of the pairs whose labels were swapped; None where none was to be."""
        share = self.stored.get("flip")
        return float(share) if isinstance(share, str) else None

    @property
    def seed(self) -> int | None:
        """The seed by which some of the pairs were taken, or swapped; None where nothing was drawn."""
        drawn = [one for key in DRAWN if isinstance(one := self.stored.get(key), Mapping)]
        return next((seed for one in drawn if isinstance(seed := one.get("seed"), int)), None)

    @property
    def draws(self) -> list[list[Any]]:
        """Every seed by which pairs were taken or swapped, those of single parts of a stack too: where, how, seed."""
        places = {"": self.stored} | {key: one for key, one in self.stored.items() if isinstance(one, Mapping)}
        return sorted(
            [place, how, drawn["seed"]]
            for place, about in places.items()
            for how in DRAWN
            if isinstance(drawn := about.get(how), Mapping) and isinstance(drawn.get("seed"), int)
        )

    @property
    def recipe(self) -> dict[str, Json]:
        """All that it says but for the draws, and for measured numbers, which are rounded elsewhere on each machine."""
        return _recipe(self.to_json())  # type: ignore[no-any-return]

    @property
    def measured(self) -> dict[str, Json]:
        """The measured numbers, of data without parts of its own."""
        return {key: one for key, one in self.stored.items() if isinstance(one, float)}

    @property
    def scorers(self) -> dict[str, str]:
        """The scorers that chose the data: `pairs`, and any other texts by their field of FitData, `harmful`.

        Where the parts of a stack have pairs of their own, `pairs` is the scorer of the first of them.
        """
        others = {key: one for key, one in self.stored.items() if isinstance(one, Mapping)}
        of_parts = [one for key, one in others.items() if key.endswith(".pairs")]
        used = {"pairs": self.stored if "scorer" in self.stored or not of_parts else of_parts[0]} | others
        named = {use: about.get("scorer") for use, about in used.items()}
        return {use: name for use, name in named.items() if isinstance(name, str)}

    @property
    def all_sources(self) -> list[Source]:
        """The sources of the pairs, then those of each of the other texts."""
        others = [each(Source)(one.get("sources")) for one in self.stored.values() if isinstance(one, Mapping)]
        return [source for found in (self.sources, *others) for source in found or ()]

    @property
    def named(self) -> dict[str, str | int | bool]:
        """The fields that are plain values: the name of the data, and how many texts of each kind there are.

        Of texts besides the pairs: where they are from, and how many they are.
        """
        found = {key: value for key, value in self.to_json().items() if isinstance(value, str | int | bool)}
        for key, about in self.stored.items():
            if isinstance(about, Mapping) and "sources" in about:
                sources = each(Source)(about["sources"]) or ()
                found |= {f"{key}.sources": " and ".join(one.name for one in sources), f"{key}.texts": count(about)}
        return found

    @property
    def examples(self) -> tuple[int, str] | None:
        """How many of a user's examples were read, and where they are from; None where none were."""
        named = self.named
        keys = [key.removesuffix(".texts") for key in named if ("." + key).endswith(".examples.texts")]
        return (int(named[f"{keys[0]}.texts"]), str(named[f"{keys[0]}.sources"])) if keys else None


@dataclass(frozen=True, kw_only=True)
class FitFacts(Fields):
    """What a fit took, and what the method found out in it."""

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    artefact_bytes: int | None = None
    facts: Mapping[str, Json] | None = None

    def number(self, fact: str) -> float | None:
        """A fact that is one number; None where the fit does not state it."""
        value = (self.facts or {}).get(fact)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, kw_only=True)
class Cost(Fields):
    """relative_speed: sampled tokens a second over those of the unsteered model, and a 95% interval of the ratio."""

    relative_speed: float | None = None
    relative_speed_low: float | None = None  # older versions kept none
    relative_speed_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial(Fields):
    """One strength on the dev split. Both ratios are relative to the unsteered model.

    reduction: of the toxicity, where that was the objective; gain: in any other objective.
    """

    strength: float
    perplexity_ratio: float | None = None
    reduction: float | None = None
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tuned(Fields):
    """How a strength was chosen: by which scorer, least or most of what, within which bounds, from which trials.

    suite, direction, gain: of the objective; None where it is the least toxicity of the suite rtp, as it always was in
    records of older versions. scorer: None for a suite whose metrics have none. chosen_trial: its place among the
    trials; None in records of older versions, which tuned nothing but strengths. constraints: the bounds as numbers,
    by name; bounds: the same with their suite, metric and comparison, None in records of older versions.
    """

    READ = {"trials": each(Trial)}

    scorer: str | None
    objective: str
    suite: str | None = None
    direction: str | None = None
    gain: str | None = None
    split: Json = None
    constraints: Mapping[str, Json] | None = None
    bounds: Mapping[str, Mapping[str, Json]] | None = None
    search: Json = None
    feasible: bool | None = None
    chosen: float
    chosen_trial: int | None = None
    baseline: Mapping[str, Json] | None = None
    trials: tuple[Trial, ...]

    @property
    def place(self) -> int | None:
        """The index of the chosen trial; None if no trial has the chosen strength."""
        same = (i for i, trial in enumerate(self.trials) if trial.strength == self.chosen)
        return next(same, None) if self.chosen_trial is None else self.chosen_trial

    @property
    def metric(self) -> str:
        """The metric that was looked at, as a table names it but for a suffix with the number of texts."""
        scorer = f"{self.scorer}." if self.scorer else ""
        return f"{self.suite or 'rtp'}.{scorer}{self.objective}"

    @property
    def unsteered_value(self) -> float:
        """The objective of the unsteered model on the dev split; NaN where the record does not say."""
        found = self.baseline or {}
        return _number(found.get("toxicity", found.get("value")))

    @property
    def perplexity_bound(self) -> float:
        """The largest perplexity ratio that was allowed; NaN where there was no bound."""
        return _number((self.constraints or {}).get("perplexity_ratio"))

    @property
    def how(self) -> dict[str, Any]:
        """Scorer, objective, constraints, search and number of trials: equal where two strengths were tuned alike."""
        kept = ("scorer", "objective", "constraints", "search")
        named = {key: value for key, value in self.to_json().items() if key in kept}
        return named | {"trials": len(self.trials)}


@dataclass(frozen=True, kw_only=True)
class Decoding(Fields):
    """The decoding of sampled texts; only settings that can change a text."""

    max_new_tokens: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Json = None

    @property
    def setting(self) -> dict[str, Any]:
        """The settings of decoding without the seed."""
        return {key: value for key, value in self.to_json().items() if key != "seed"}


@dataclass(frozen=True, kw_only=True)
class Scorers(Fields):
    """What the scorers of a result did. report: those that judged its texts."""

    READ = {"report": texts}

    report: tuple[str, ...] | None = None

    @classmethod
    def used(cls, report: Sequence[str], data: LearntFrom | None, tuning: Tuned | None) -> Self:
        """The scorers that report; `tune` chose the strength, `pairs` the contrast pairs, where a scorer did."""
        tune = {} if tuning is None else {"tune": tuning.scorer}
        return cls.from_json({"report": list(report)} | tune | ({} if data is None else data.scorers))

    @property
    def chose(self) -> dict[str, str]:
        """A mapping from what a scorer chose to the scorer: `tune` is the strength, other keys are training texts."""
        return {use: name for use, name in self.stored.items() if use != "report" and isinstance(name, str)}

    @property
    def picked(self) -> str | None:
        """The scorers that picked texts to learn from, of any kind and of any part of a stack; None where none did."""
        return ", ".join(dict.fromkeys(name for use, name in self.chose.items() if use != "tune")) or None


@dataclass(frozen=True, kw_only=True)
class Info(Fields):
    """What a suite says of its result: k continuations of each of so many prompts, or tasks with their chance."""

    READ = {"scorers": texts}

    k: Json = None
    prompts: Json = None
    population: Json = None  # prompts that the source has
    scorers: tuple[str, ...] | None = None
    chance: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Git(Fields):
    """The commit that computed a result. dirty: with changes."""

    commit: Json = None
    dirty: Json = None


@dataclass(frozen=True, kw_only=True)
class Provenance(Fields):
    """Time, code and machine of a result; none of it is part of an id."""

    READ = {"git": some(Git)}

    time: Json = None
    git: Git | None = None
    packages: Mapping[str, Json] | None = None
    gpu: Json = None  # its name, of what a GPU computed
    hub: Mapping[str, Json] | None = None  # id and commit of a model that is from there
    rescored_from: Json = None

    @property
    def machine(self) -> dict[str, Any]:
        """The machine and its Python: what results of one installation share, apart from the packages."""
        own = {"time", "git", "packages", "hub", "rescored_from"}
        return {key: value for key, value in self.to_json().items() if key not in own}


def _number(value: Json) -> float:
    return value if isinstance(value, int | float) else math.nan


def metrics_from(value: Mapping[str, Any]) -> dict[str, Metric]:
    """Metric name -> the metric."""
    return {name: metric_from(one) for name, one in value.items()}


def metric_from(found: Mapping[str, Any]) -> Metric:
    """A metric; records of older versions may lack its error and the count of what was not judged."""
    return Metric(
        found["value"], found.get("standard_error"), found["n"], found.get("unscored"), found["higher_is_better"],
        found["transform"],
    )  # fmt: skip
