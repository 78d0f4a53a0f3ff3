"""JSON files of plain values; NaN is refused."""

import json
from pathlib import Path
from typing import Any


class NestedError(ValueError):
    """JSON whose mappings and lists are nested too deeply."""


def dumps(value: Any) -> str:
    """Return the value as JSON, in the form of all files here. Raises ValueError for NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def load(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises ValueError for one with NaN or infinity, which `dumps` never writes.

    Raises NestedError, which is a ValueError, for one that is nested too deeply.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{path} holds {name}")

    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        json.dumps(value)  # raises RecursionError for one that is too deep to be written again
    except RecursionError as error:
        raise NestedError(f"{path.name} is nested too deeply to be read; run its cell again") from error
    return value
