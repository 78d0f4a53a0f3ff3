"""Options that were added after results had been stored: an option at its default changes no id."""

from dataclasses import Field, field
from typing import Any

LATER = "later"


def later(default: Any) -> Any:
    """Declare an option that was added after results had been stored; an id includes it only if it is not its default.

    So results that were made before the option existed keep their ids.
    """
    return field(default=default, metadata={LATER: True})


def is_later(one: Field[Any]) -> bool:
    """Return whether a field was declared by `later`."""
    return bool(one.metadata.get(LATER))
