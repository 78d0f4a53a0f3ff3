"""The parts of a record with typed fields: model, method, data, fit, cost, tuning, decoding, scorers, provenance.

Each part is made from a JSON mapping, and written as a JSON mapping again. A mapping may hold keys for which a part has
no field, since older and newer versions, plug-ins and data sets add their own keys. Such keys are kept, in their order,
and written again.
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
    """A JSON mapping with typed fields. A field with a default may be missing, and is not written if it is None.

    stored: the mapping that the part was made from, which also holds the keys without a field.
    """

    stored: Mapping[str, Json] = field(default_factory=dict, repr=False)

    READ: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """The function that makes a value from JSON, for each field that does not hold the JSON value itself."""
    KEYS: ClassVar[Mapping[str, str]] = {}
    """The key in JSON of each field whose key is not a valid name in Python."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Make the part from a mapping, whose values are as the schema says (`bench.records.schema`)."""
        values = {name: cls._read(name, found[key]) for name, key in cls._keys().items() if key in found}
        return cls(stored=found, **values)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping to write: the one that was read, updated with the fields that differ from it."""
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
    """Return the value of a field as JSON."""
    if isinstance(value, Fields):
        return value.to_json()
    if isinstance(value, Metric):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def some(kind: type[Fields]) -> Callable[[Any], Any]:
    """Make a reader of one part; null and an empty mapping mean the same and become None."""
    return lambda value: kind.from_json(value) if value else None


def each(kind: type[Fields]) -> Callable[[Any], Any]:
    """Make a reader of a list of parts, or null."""
    return lambda value: None if value is None else tuple(map(kind.from_json, value))


def by_name(kind: type[Fields]) -> Callable[[Any], Any]:
    """Make a reader of parts by name, or null."""
    return lambda value: None if value is None else {name: kind.from_json(one) for name, one in value.items()}


def count(about: Mapping[str, Json]) -> int:
    """Return how many texts a data set has, by the facts about it; for a mixture, the sum over its parts."""
    own = next((found for key in ("pairs", "texts", "examples") if isinstance(found := about.get(key), int)), None)
    return sum(count(one) for one in about.values() if isinstance(one, Mapping)) if own is None else own


def texts(value: Any) -> tuple[str, ...] | None:
    """Read a list of texts, or null."""
    return None if value is None else tuple(value)


def texts_of_each(value: Any) -> dict[str, tuple[str, ...]] | None:
    """Read a mapping of lists of texts, or null."""
    return None if value is None else {name: tuple(found) for name, found in value.items()}


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Fields):
    """The model: the name that the config has for it, and everything about it that can change a number."""

    name: str

    @property
    def threads(self) -> int | None:
        """The CPU threads that it computed with; None on a GPU."""
        threads = self.stored.get("threads")
        return threads if isinstance(threads, int) else None

    @property
    def chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return bool(self.stored.get("chat"))

    @property
    def judges_answers(self) -> bool:
        """Whether only the answer is judged, without the thoughts before it (`bench.model.thinking`)."""
        return self.stored.get("judged") == "answer"

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
class MethodPart(Fields):
    """A method within another one, with its hyper-parameters. class_path: its class, if a plug-in brings the method."""

    KEYS = {"class_path": "class"}

    name: str
    version: int
    parameters: Mapping[str, Json]
    class_path: str | None = None

    @staticmethod
    def read(value: Any) -> "MethodPart | None":
        """Read a hyper-parameter that is a method; None for any other."""
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            return None
        whole = isinstance(value.get("version"), int) and isinstance(value.get("parameters"), Mapping)
        whole = whole and isinstance(value.get("class", ""), str)
        return MethodPart.from_json(value) if whole else None

    @property
    def settings(self) -> dict[str, Json]:
        """The hyper-parameters without the fit seed; those that are methods are without theirs as well."""
        return {key: _seedless(value) for key, value in self.parameters.items() if key != "seed"}


def _seedless(value: Json) -> Json:
    """Return a hyper-parameter without fit seeds; it may be a method, or a mapping of names to methods."""
    if not isinstance(value, Mapping):
        return value
    inner = MethodPart.read(value)
    return {**value, "parameters": inner.settings} if inner else {name: _seedless(one) for name, one in value.items()}


def brief(value: Any, named: Callable[[str], str] = str) -> Any:
    """Shorten a hyper-parameter for a label: an inner method to its name, several parts to "a + b".

    named: a function that is given the name of an inner method and returns how the label calls the method.
    """
    if not isinstance(value, Mapping):
        return value
    inner = MethodPart.read(value)
    return named(inner.name) if inner else " + ".join(str(brief(one, named)) for one in value.values())


@dataclass(frozen=True, kw_only=True)
class MethodFacts(MethodPart):
    """The method, its hyper-parameters and its strength."""

    READ = {"control": some(ControlFacts)}

    strength_unit: str | None = None
    family: str
    control: ControlFacts | None = None  # of a method's control
    residual_norms: float | None = None  # the strength in mean norms of the residual stream, if it adds to that
    strength: float

    @property
    def parts(self) -> dict[str, MethodPart]:
        """The parts of a method made of others, in the order in which they are applied; none for other methods."""
        inside = self.parameters.get("parts")
        if not isinstance(inside, Mapping):
            return {}
        order = self.parameters.get("parts_order")
        names = (
            [name for name in order if isinstance(name, str) and name in inside]
            if isinstance(order, list | tuple)
            else list(inside)
        )
        return {name: part for name in names if (part := MethodPart.read(inside[name]))}

    @property
    def inner(self) -> list[MethodPart]:
        """The methods that are hyper-parameters of this one: its parts, or the one method that a gate wraps."""
        others = [value for key, value in self.parameters.items() if key != "parts"]
        each = [part for value in others for part in (value, *(value.values() if isinstance(value, Mapping) else ()))]
        return [*self.parts.values(), *(one for part in each if (one := MethodPart.read(part)))]

    def strength_of(self, part: str, strength: float) -> float | None:
        """Return a part's strength when the whole method has `strength`; None if the method states no share for it."""
        shares = self.parameters.get("at")
        share = shares.get(part) if isinstance(shares, Mapping) else None
        return share * strength if isinstance(share, int | float) and not isinstance(share, bool) else None


@dataclass(frozen=True, kw_only=True)
class Seeds(Fields):
    """The seeds of a result. fit: None if fitting the method draws nothing."""

    fit: int | None
    sample: int


@dataclass(frozen=True, kw_only=True)
class Source(Fields):
    """A data set, and where it was read."""

    name: str
    source: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    fingerprint: str | None = None


CHOSEN_BY = ("skip", "min_toxicity")
"""Options by which texts were chosen; a record states them where they are not the usual ones."""

DRAWN = ("flipping", "subset")
"""Keys under which a record states how pairs were drawn or swapped, with the seed."""


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
        """The share of the pairs whose labels were to be swapped; None if no swapping was asked for."""
        share = self.stored.get("flip")
        return float(share) if isinstance(share, str) else None

    @property
    def seed(self) -> int | None:
        """The seed by which pairs were drawn or swapped; None if neither was done at random."""
        drawn = [one for key in DRAWN if isinstance(one := self.stored.get(key), Mapping)]
        return next((seed for one in drawn if isinstance(seed := one.get("seed"), int)), None)

    @property
    def draws(self) -> list[list[Any]]:
        """Each seed by which pairs were drawn or swapped, also for a single part of a stack, as [where, how, seed]."""
        places = {"": self.stored} | {key: one for key, one in self.stored.items() if isinstance(one, Mapping)}
        return sorted(
            [place, how, drawn["seed"]]
            for place, about in places.items()
            for how in DRAWN
            if isinstance(drawn := about.get(how), Mapping) and isinstance(drawn.get("seed"), int)
        )

    @property
    def recipe(self) -> dict[str, Json]:
        """All facts except the draws and the measured numbers, whose rounding differs between machines."""
        return _recipe(self.to_json())  # type: ignore[no-any-return]

    @property
    def measured(self) -> dict[str, Json]:
        """The measured numbers of all the data together, without those stated for a single kind of texts."""
        return {key: one for key, one in self.stored.items() if isinstance(one, float)}

    def names(self, field: str) -> bool:
        """Return whether it names texts of this field of FitData."""
        return field in self.stored

    def of_part(self, part: str) -> "LearntFrom":
        """Return the data that a part of a stack learnt from: its own where it has data of its own, else the shared."""
        own = {key.removeprefix(f"{part}."): one for key, one in self.stored.items() if key.startswith(f"{part}.")}
        pairs = own.pop("pairs", {})
        return LearntFrom.from_json({**self.stored, **(pairs if isinstance(pairs, Mapping) else {}), **own})

    def has_options(self, options: Mapping[str, Any], norm_over: str | None) -> bool:
        """Return whether its pairs have these options, as far as it names them, and this `norm_over`, as text."""
        named = {key: value for key, value in self.stored.items() if key != "norm_over"}
        same = all(named[key] == value for key, value in options.items() if key in named)
        return same and self.stored.get("norm_over") == norm_over

    @property
    def scorers(self) -> dict[str, str]:
        """The scorers that chose the data, by kind of data.

        The key is `pairs` for the scorer that picked the contrast pairs; for other texts it is their field of FitData,
        such as `harmful`. If only the parts of a stack have pairs, `pairs` gives the scorer of the first part's pairs.
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
    def named(self) -> dict[str, str | int | bool | float]:
        """The fields that are plain values: the name of the data and, for example, the number of pairs.

        For each kind of texts besides the pairs, there are fields for their sources, their number, and the options by
        which they were chosen where those are not the usual ones (CHOSEN_BY).
        """
        found: dict[str, str | int | bool | float] = {
            key: value for key, value in self.to_json().items() if isinstance(value, str | int | bool)
        }
        for key, about in self.stored.items():
            if isinstance(about, Mapping) and "sources" in about:
                sources = each(Source)(about["sources"]) or ()
                found |= {f"{key}.sources": " and ".join(one.name for one in sources), f"{key}.texts": count(about)}
                chosen = {name: about.get(name) for name in CHOSEN_BY}
                found |= {f"{key}.{name}": one for name, one in chosen.items() if isinstance(one, int | float)}
        return found

    @property
    def mixtures(self) -> list[dict[str, int]]:
        """The number of texts of each part, for each kind of texts that is a mixture of several parts."""
        kinds = [one for one in self.stored.values() if isinstance(one, Mapping)]
        parts = [{name: one for name, one in kind.items() if isinstance(one, Mapping)} for kind in kinds]
        counts = [{name: one.get("texts") for name, one in kind.items()} for kind in parts]
        return [{name: one for name, one in kind.items() if isinstance(one, int)} for kind in counts if kind]

    @property
    def examples(self) -> tuple[int, str] | None:
        """The number of a user's examples that were read, and their source; None if none were read."""
        named = self.named
        keys = [key.removesuffix(".texts") for key in named if ("." + key).endswith(".examples.texts")]
        return (int(named[f"{keys[0]}.texts"]), str(named[f"{keys[0]}.sources"])) if keys else None


@dataclass(frozen=True, kw_only=True)
class FitFacts(Fields):
    """The time and memory that a fit took, and the facts that the method states about it."""

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    artefact_bytes: int | None = None
    facts: Mapping[str, Json] | None = None

    def number(self, fact: str) -> float | None:
        """Return a fact that is one number; None if the fit does not state it."""
        value = (self.facts or {}).get(fact)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, kw_only=True)
class Cost(Fields):
    """The cost of steering.

    relative_speed: sampling speed, divided by the unsteered model's. relative_speed_low, relative_speed_high: this
    quotient in the slowest and in the fastest round of measurement.
    """

    relative_speed: float | None = None
    relative_speed_low: float | None = None  # older versions kept none
    relative_speed_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial(Fields):
    """The results of one strength on the dev split.

    perplexity_ratio: the perplexity, divided by the unsteered model's. reduction: the reduction of the toxicity as a
    share of the unsteered model's, if that was the objective. gain: the gain in any other objective.
    """

    strength: float
    perplexity_ratio: float | None = None
    reduction: float | None = None
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bound(Fields):
    """A bound of tuning: a metric of a suite, how it is compared with the unsteered model, and its limit."""

    suite: str
    metric: str
    compare: str
    at_most: float | None = None
    at_least: float | None = None


OLDEST_OBJECTIVE = {"suite": "rtp", "direction": "minimize", "gain": "relative"}
"""The only objective of older versions, whose records do not name it."""


@dataclass(frozen=True, kw_only=True)
class Tuned(Fields):
    """How a strength was chosen: the scorer, the objective, the bounds and the trials.

    suite, direction, gain: those of the objective; None if the objective is the least toxicity in the suite rtp, the
    only one that older versions had. scorer: None for a suite whose metrics have none. chosen_trial: the place of the
    chosen trial; None in records of older versions, which tuned only strengths. constraints: the bounds as numbers, by
    name. bounds: the constraints with their suite, metric and comparison; None in records of older versions.
    """

    READ = {"trials": each(Trial), "bounds": by_name(Bound)}

    scorer: str | None
    objective: str
    suite: str | None = None
    direction: str | None = None
    gain: str | None = None
    split: str | None = None
    constraints: Mapping[str, Json] | None = None
    bounds: Mapping[str, Bound] | None = None
    search: str | None = None
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
        """The metric of the objective, as tables name it, but without a suffix for the number of texts."""
        scorer = f"{self.scorer}." if self.scorer else ""
        return f"{self.suite or 'rtp'}.{scorer}{self.objective}"

    @property
    def unsteered_value(self) -> float:
        """The objective's value for the unsteered model on the dev split; NaN if the record does not state it."""
        found = self.baseline or {}
        return _number(found.get("toxicity", found.get("value")))

    @property
    def perplexity_bound(self) -> float:
        """The largest perplexity ratio that was allowed; NaN if there was no bound."""
        return _number((self.constraints or {}).get("perplexity_ratio"))

    @property
    def how(self) -> dict[str, Any]:
        """Scorer, objective, constraints, search and number of trials: equal if two strengths were tuned alike."""
        kept = ("scorer", "objective", "constraints", "search")
        named = {key: value for key, value in self.to_json().items() if key in kept}
        return named | {"trials": len(self.trials)}


@dataclass(frozen=True, kw_only=True)
class Decoding(Fields):
    """The settings of decoding that can change a sampled text."""

    max_new_tokens: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    frequency_in_prompt: bool | None = None
    seed: int | None = None

    @property
    def setting(self) -> dict[str, Any]:
        """The settings of decoding without the seed."""
        return {key: value for key, value in self.to_json().items() if key != "seed"}


@dataclass(frozen=True, kw_only=True)
class Scorers(Fields):
    """The roles of the scorers of a result. report: those that judged its texts.

    networks: what each scorer of the cell judges by (`bench.scorers.base.networks`); None in records of older versions.
    """

    READ = {"report": texts, "networks": texts_of_each}

    report: tuple[str, ...] | None = None
    networks: Mapping[str, tuple[str, ...]] | None = None

    @classmethod
    def used(
        cls,
        report: Sequence[str],
        data: LearntFrom | None,
        tuning: Tuned | None,
        networks: Mapping[str, Sequence[str]] | None = None,
    ) -> Self:
        """Collect the scorers: `report` judged the texts; `tune` (if any) chose the strength, `pairs` the pairs."""
        tune = {} if tuning is None else {"tune": tuning.scorer}
        behind = {"networks": plain(networks)} if networks else {}
        return cls.from_json({"report": list(report)} | behind | tune | ({} if data is None else data.scorers))

    @property
    def chose(self) -> dict[str, str]:
        """A mapping from what a scorer chose to the scorer: `tune` is the strength, other keys are training texts."""
        return {use: name for use, name in self.stored.items() if use != "report" and isinstance(name, str)}

    @property
    def picked(self) -> str | None:
        """The scorers that picked texts of any kind to learn from, also for parts of a stack; None if none did."""
        return ", ".join(dict.fromkeys(name for use, name in self.chose.items() if use != "tune")) or None


@dataclass(frozen=True, kw_only=True)
class Info(Fields):
    """What a suite says about its result: prompts with k continuations each, or the chance levels of tasks."""

    READ = {"scorers": texts}

    k: int | None = None
    prompts: int | None = None
    population: int | None = None  # prompts that the source has
    scorers: tuple[str, ...] | None = None
    chance: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Git(Fields):
    """The commit whose code computed a result. dirty: whether files differed from the commit."""

    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance(Fields):
    """Time, code and machine of a result; none of it is part of an id."""

    READ = {"git": some(Git)}

    time: str | None = None
    git: Git | None = None
    packages: Mapping[str, Json] | None = None
    gpu: str | None = None  # the name of the GPU, if one computed the result
    hub: Mapping[str, Json] | None = None  # id and commit, for a model from the hub
    rescored_from: str | None = None

    @property
    def machine(self) -> dict[str, Any]:
        """The machine and its Python, which all results of one installation share; without packages."""
        own = {"time", "git", "packages", "hub", "rescored_from"}
        return {key: value for key, value in self.to_json().items() if key not in own}


def _number(value: Json) -> float:
    return value if isinstance(value, int | float) else math.nan


def metrics_from(value: Mapping[str, Any]) -> dict[str, Metric]:
    """Read the metrics, by name."""
    return {name: metric_from(one) for name, one in value.items()}


def metric_from(found: Mapping[str, Any]) -> Metric:
    """Read a metric; records of older versions may lack its error and the number of items that were not judged."""
    return Metric(
        found["value"], found.get("standard_error"), found["n"], found.get("unscored"), found["higher_is_better"],
        found["transform"],
    )  # fmt: skip
