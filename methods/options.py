"""Checks of a method's hyper-parameters, for `Method.check`."""

import math
from collections.abc import Callable, Collection
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from methods.errors import SetupError

LARGEST = 1e300  # a number that is not below it is refused, as in the configuration


def check_choice(option: str, value: object, allowed: Collection[object]) -> None:
    """Raises SetupError if the value of a method's option is not one of the allowed values."""
    if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
        names = ", ".join(str(one).lower() if isinstance(one, bool) else str(one) for one in allowed)
        raise SetupError(f"method.{option}={value!r}: allowed are {names}")


def check_whole(option: str, value: object, least: int | None = None) -> None:
    """Raises SetupError if an option is not a 64-bit whole number, or is below `least`; `true` is not a number."""
    if type(value) is not int or abs(value) >= 2**63 or (least is not None and value < least):
        wanted = "a whole number" if least is None else f"a whole number, at least {least}"
        raise SetupError(f"method.{option}={value!r}: expected {wanted}")


def check_number(option: str, value: object, holds: Callable[[float], bool], words: str) -> None:
    """Raises SetupError if an option is not a finite number, or does not pass `holds`, which `words` describes."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    if not number or not holds(value):  # type: ignore[arg-type]
        raise SetupError(f"method.{option}={value!r}: expected a number {words}")


def check_flag(option: str, value: object) -> None:
    """Raises SetupError if an option is neither true nor false; a text, even "false", would count as true."""
    if not isinstance(value, bool):
        raise SetupError(f"method.{option}={value!r}: expected true or false")


def check_types(method: Any) -> None:
    """Raises SetupError if an option that is a flag, a whole number, a number or a text holds something else, or NaN.

    method: a dataclass of options. Options of other types, such as choices and lists, are not looked at.
    """
    for one in fields(method):
        value, types = getattr(method, one.name), {one.type}
        if get_origin(one.type) is UnionType:
            types = set(get_args(one.type))
        if types in ({str}, {str, NoneType}) and not isinstance(value, str) and not (value is None and len(types) == 2):
            raise SetupError(f"method.{one.name}={value!r}: expected a text")
        if not types <= {bool, int, float, NoneType} or (value is None and NoneType in types):
            continue
        if bool in types:
            check_flag(one.name, value)
        elif float not in types:
            check_whole(one.name, value)
        elif not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            raise SetupError(f"method.{one.name}={value!r}: expected a number")
