"""The schema of records, which says what each field holds. Every record is checked when it is read or written.

A check takes a value and the name of its field, and says in a few words what is wrong, or nothing. Fields that are not
named here may hold anything.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], str | None]
DEPTH = 40  # mappings and lists in one another; those of records are fewer than ten


def wrong(record: Any) -> str | None:
    """Describe the first field of a record that breaks the schema; None if none does."""
    return unusual(record, "") or RECORD(record, "") or chosen_is_a_trial(record["tuning"])


def is_a(kind: type | tuple[type, ...], words: str, holds: Callable[[Any], bool] = lambda _: True) -> Check:
    """Make a check of the type and of `holds`; a bool counts as a number only if bool is named."""

    def check(value: Any, name: str) -> str | None:
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) and holds(value)
        return None if right else f"{name or 'it'} is {told(value)}, not {words}"

    return check


def told(value: Any) -> str:
    """Describe a value in a message: its type, and the value itself if it is short."""
    kinds = {dict: "a mapping", list: "a list", str: "the text ", bool: "", type(None): "null"}
    words = kinds.get(type(value), "the number ")
    return words if isinstance(value, dict | list) or value is None else f"{words}{str(value)[:40]!r}"


def maybe(check: Check) -> Check:
    """Make a check that also allows null."""
    return lambda value, name: None if value is None else check(value, name)


def each(check: Check) -> Check:
    """Make a check of a list: `check` is applied to each of its values."""

    def whole(value: Any, name: str) -> str | None:
        if found := LIST(value, name):
            return found
        return next((found for i, one in enumerate(value) if (found := check(one, f"{name}[{i}]"))), None)

    return whole


def fields(needed: Mapping[str, Check] | None = None, others: Check | None = None, **known: Check) -> Check:
    """Make a check of a mapping; needed: the required fields, known: optional ones, others: the check of any other."""

    def whole(value: Any, name: str) -> str | None:
        if found := MAPPING(value, name):
            return found
        path = f"{name}." if name else ""
        if missing := [key for key in needed or {} if key not in value]:
            return f"{path}{missing[0]} is missing"
        checks = {**known, **(needed or {})}
        inside = ((checks.get(key, others), one, path + key) for key, one in value.items())
        return next((found for check, one, at in inside if check and (found := check(one, at))), None)

    return whole


def where_mapping(check: Check) -> Check:
    """Make a check that applies `check` to a mapping and allows anything else."""
    return lambda value, name: check(value, name) if isinstance(value, dict) else None


def where_text(check: Check) -> Check:
    """Make a check that applies `check` to a text and allows anything else."""
    return lambda value, name: check(value, name) if isinstance(value, str) else None


def is_share(text: str, name: str) -> str | None:
    """Check that a text is a number from 0 to 1, as `0.25`."""
    try:
        inside = "_" not in text and 0 <= float(text) <= 1
    except ValueError:
        inside = False
    return None if inside else f"{name} is {told(text)}, not a number from 0 to 1"


def unusual(value: Any, name: str, depth: int = 0) -> str | None:
    """Find what a field must not hold: a number that no table can hold, or more levels than `DEPTH`."""
    if isinstance(value, int | float):
        fine = -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)
        return None if fine else f"{name} is {told(value)}, which no table can hold"
    if not isinstance(value, dict | list):
        return None
    if depth == DEPTH:
        return f"{name.partition('.')[0]} has more than {DEPTH} levels"
    inside = value.items() if isinstance(value, dict) else ((str(i), one) for i, one in enumerate(value))
    deeper = (unusual(one, f"{name}.{key}" if name else key, depth + 1) for key, one in inside)
    return next(filter(None, deeper), None)


def chosen_is_a_trial(tuning: Mapping[str, Any] | None) -> str | None:
    """Check that the chosen trial of a tuning is among its trials."""
    if not tuning or tuning.get("chosen_trial", 0) < len(tuning["trials"]) or "chosen_trial" not in tuning:
        return None
    return f"tuning.chosen_trial is {tuning['chosen_trial']} of {len(tuning['trials'])} trials"


TEXT = is_a(str, "a text")
NUMBER = is_a((int, float), "a number")
NOT_NEGATIVE = is_a((int, float), "a number that is not negative", lambda number: number >= 0)
WHOLE = is_a(int, "a whole number")
COUNT = is_a(int, "a count", lambda number: number >= 0)
FLAG = is_a(bool, "true or false")
LIST = is_a(list, "a list")
MAPPING = is_a(dict, "a mapping")
SPLIT = is_a(str, "dev or test", lambda text: text in ("dev", "test"))
FOLD = is_a(str, "mean or exp", lambda text: text in ("mean", "exp"))

SHARE = where_text(is_share)

TEXTS = maybe(each(TEXT))
SOURCES = maybe(each(fields(
    {"name": TEXT, "source": TEXT},
    config=maybe(TEXT), split=maybe(TEXT), revision=maybe(TEXT), fingerprint=maybe(TEXT),
)))  # fmt: skip
METRIC = fields(
    {"value": NUMBER, "n": COUNT, "higher_is_better": FLAG, "transform": FOLD},
    standard_error=maybe(NOT_NEGATIVE), unscored=maybe(COUNT),
)  # fmt: skip
TRIAL = fields({"strength": NUMBER}, perplexity_ratio=maybe(NOT_NEGATIVE), reduction=maybe(NUMBER), gain=maybe(NUMBER))
BOUND = fields({"suite": TEXT, "metric": TEXT, "compare": TEXT}, at_most=NUMBER, at_least=NUMBER)
TUNING = fields(
    {"scorer": maybe(TEXT), "objective": TEXT, "chosen": NUMBER, "trials": each(TRIAL)},
    suite=maybe(TEXT), direction=maybe(TEXT), gain=maybe(TEXT), chosen_trial=COUNT, feasible=maybe(FLAG),
    split=maybe(TEXT), search=maybe(TEXT), baseline=maybe(MAPPING), constraints=maybe(MAPPING),
    bounds=maybe(fields(others=BOUND)),
)  # fmt: skip
RECORD = fields(
    {
        "id": TEXT, "suite": TEXT, "split": SPLIT, "comparison": TEXT, "fit_id": maybe(TEXT),
        "model": fields({"name": TEXT}),
        "method": fields({"name": TEXT, "family": TEXT, "version": WHOLE, "parameters": MAPPING, "strength": NUMBER},
                         strength_unit=maybe(TEXT), residual_norms=maybe(NUMBER),
                         control=maybe(fields({"how": TEXT, "of_strength": NUMBER})),
                         **{"class": TEXT}),
        "seed": fields({"fit": maybe(WHOLE), "sample": WHOLE}),
        "metrics": fields(others=METRIC),
        "info": fields(scorers=TEXTS, chance=maybe(fields(others=NUMBER)), k=maybe(COUNT), prompts=maybe(COUNT),
                       population=maybe(COUNT)),
        "sampling": maybe(fields(
                max_new_tokens=NUMBER, temperature=NUMBER, top_p=NUMBER, top_k=NUMBER, repetition_penalty=NUMBER,
                frequency_penalty=NUMBER, frequency_in_prompt=FLAG, seed=maybe(WHOLE),
            )),
        "data": maybe(fields(others=where_mapping(fields(sources=SOURCES)), sources=SOURCES, name=maybe(TEXT),
                             pairs=maybe(COUNT), flip=SHARE)),
        "fit": maybe(fields(seconds=maybe(NOT_NEGATIVE), peak_memory_bytes=maybe(COUNT), artefact_bytes=maybe(COUNT),
                            facts=maybe(MAPPING))),
        "cost": maybe(fields(relative_speed=maybe(NUMBER), relative_speed_low=maybe(NUMBER),
                             relative_speed_high=maybe(NUMBER))),
        "tuning": maybe(TUNING),
        "sources": SOURCES,
    },
    scorers=maybe(fields(report=TEXTS, networks=maybe(fields(others=each(TEXT))))),
    settings=maybe(fields(template=maybe(TEXT))),
    provenance=maybe(fields(git=maybe(fields(commit=maybe(TEXT), dirty=maybe(FLAG))), packages=maybe(MAPPING),
                            hub=maybe(MAPPING), time=maybe(TEXT), gpu=maybe(TEXT), rescored_from=maybe(TEXT))),
    unverified=TEXTS, unexpected_weights=TEXTS, generations=TEXTS,
    generation_id=maybe(TEXT), thinking=maybe(TEXT), system_role=maybe(FLAG), limit=maybe(COUNT),
)  # fmt: skip
