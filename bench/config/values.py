"""Check whether a type hint allows a value of a config, and say in words what is allowed.

The hints are those of the classes that are built; for groups without a class, those in SETTINGS
(bench/config/keys.py).
"""

import json
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from bench.console.command import nearest

LARGEST = 2**63  # what a whole number has to stay below, as torch and numpy hold it
SHOWN = 80  # characters of a value in a message
NUMBERS = {int: "a whole number", float: "a number"}
WORDS = {bool: "true or false", str: "text"}


class Range(NamedTuple):
    """A range of allowed numbers, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


ANY = Range("", lambda _: True)


def near(name: str, allowed: Sequence[object], prefix: str = "") -> str:
    """Return "; did you mean NAME?" with the nearest allowed name, or a full stop if no name is near.

    prefix: what stands before the name in the message.
    """
    known, plain = [str(one) for one in allowed], name.rpartition("/")[2].strip().lower().removesuffix(".yaml")
    found = nearest(name, known) or nearest(plain, known)
    return f"; did you mean {prefix}{found}?" if found and found != name else "."


def shown(value: Any) -> str:
    """Return a value as a user writes it, cut if it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(text, text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def options(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union; any other hint by itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def kind(hint: Any) -> Any:
    """Return Literal, list or dict for hints of these kinds, else the hint itself."""
    origin = get_origin(hint)
    if origin is Literal:
        return Literal
    base = origin if origin is not None else hint
    if isinstance(base, type) and base is not str and issubclass(base, Sequence):
        return list
    return dict if isinstance(base, type) and issubclass(base, Mapping) else hint


def item(hint: Any) -> Any:
    """Return the hint of a list's items or of a mapping's values."""
    found = [one for one in get_args(hint) if one is not ...]
    return found[-1] if found else Any


def mapping(hint: Any) -> Any:
    """Return the alternative that is a mapping with names chosen by the user; None if there is none."""
    return next((one for one in options(hint) if kind(one) is dict), None)


def fits(value: Any, hint: Any, within: Range = ANY) -> bool:
    """Return whether the hint allows a plain value; every number in the value has to be in the range `within`."""
    return any(_fits(value, one, within) for one in options(hint))


def _fits(value: Any, hint: Any, within: Range) -> bool:
    asked = kind(hint)
    if asked is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if asked is list:
        return isinstance(value, list) and all(fits(one, item(hint), within) for one in value)
    if asked is dict:
        named = isinstance(value, dict) and all(isinstance(key, str | int) for key in value)  # 0: a card
        return named and all(fits(one, item(hint), within) for one in value.values())
    if asked is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST and within.holds(value)
    if asked is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and _finite(value) and within.holds(value)
    if asked is str:
        return isinstance(value, str) and _written(value)
    if asked in (bool, types.NoneType):
        return isinstance(value, asked)
    if isinstance(asked, type) and asked not in (Any, object):
        return isinstance(value, dict)  # a class: the mapping that it is built from
    return _sound(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value) and abs(value) < 1e300
    except OverflowError:
        return False


def _is_number(text: str) -> bool:
    try:
        return _finite(float(text))
    except ValueError:
        return False


def _written(value: str) -> bool:
    """Return whether a text can be written to a file and can name a file."""
    return "\0" not in value and not any("\ud800" <= one <= "\udfff" for one in value)


def _sound(value: Any) -> bool:
    """Return whether a value of any type is free of nan, infinity and broken text."""
    if isinstance(value, dict):
        return all(map(_sound, value.values()))
    if isinstance(value, list):
        return all(map(_sound, value))
    if isinstance(value, str):
        return _written(value)
    return _finite(value) if isinstance(value, float) else value is None or isinstance(value, int)


def words(hint: Any, within: Range = ANY) -> str:
    """Say what a hint allows, as in "a whole number above 0, or null"."""
    every = options(hint)
    choices = [str(choice) for one in every if kind(one) is Literal for choice in get_args(one)]
    found = [_words(one, within) for one in every if kind(one) is not Literal and one is not types.NoneType]
    found = [one for one in found if not (float in every and one == _words(int, within))]
    null = ["null"] if types.NoneType in every else []
    if not found:
        return f"allowed are {', '.join([*choices, *null])}"
    rest = [*dict.fromkeys(found), *choices, *null]
    return rest[0] if len(rest) == 1 else f"{', '.join(rest[:-1])}, or {rest[-1]}"


def expected(hint: Any, within: Range = ANY) -> str:
    """Say the same as errors do, as in "expected a number" or "allowed are a, b"."""
    told = words(hint, within)
    return told if told.startswith("allowed are") else f"expected {told}"


def _words(hint: Any, within: Range) -> str:
    asked = kind(hint)
    if asked in NUMBERS:
        return f"{NUMBERS[asked]} {within.words}".strip()
    if asked is list:
        return f"a list in brackets, each {words(item(hint), within)}"
    if asked is dict:
        each = "" if item(hint) is Any else f" (each value {words(item(hint), within)})"
        return f"a mapping {{name: value}}{each}"
    if asked in WORDS:
        return WORDS[asked]
    made = isinstance(asked, type) and asked not in (Any, object)
    return "a mapping that names its class" if made else "a value without nan, inf or broken letters"


def mistakes(key: str, value: Any, hint: Any, within: Range = ANY) -> Iterator[tuple[str, str]]:
    """Yield the key and the error `key=value: what is allowed` of a plain value that the hint does not allow.

    If a list or a mapping is allowed, yield these for each of its wrong items.
    """
    if fits(value, hint, within):
        return
    for one in options(hint):
        if kind(one) is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
            for name, inner in value.items():
                yield from mistakes(f"{key}.{name}", inner, item(one), within)
            return
        if kind(one) is list and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from mistakes(f"{key}[{number}]", inner, item(one), within)
            return
    choices = [str(choice) for one in options(hint) if kind(one) is Literal for choice in get_args(one)]
    choices += ["true", "false"] if bool in options(hint) else []
    hint_at = near(value, choices) if isinstance(value, str) else "."
    told = f"{key}={shown(value)}: {expected(hint, within)}{hint_at if hint_at != '.' else ''}"
    if str in options(hint) and (value is None or isinstance(value, int | float)):
        kind_of = "this word" if value is None or isinstance(value, bool) else "a number"
        told += f"; {kind_of} is text in quotes of its own: '{key}=\"{shown(value)}\"'"
    if str in options(hint) and isinstance(value, dict | list) and "]" not in key:
        told += f"; text in brackets is text in quotes of its own, as in '{key}=\"[x]\"'"
    if value is False and "off" in choices:
        told += '; without quotes off is false in YAML: write "off"'
    if isinstance(value, str) and not {int, float}.isdisjoint(options(hint)) and _is_number(value):
        told += "; in quotes it is text, so leave the quotes out"
    if isinstance(value, float) and not _finite(value) and float in options(hint):
        told += "; nan and inf are not allowed"
    if isinstance(value, str) and not _written(value):
        told += " without NUL characters and broken letters"
    yield key, told
