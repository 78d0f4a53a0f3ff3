"""Whether a results folder holds results of a model."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.records.identity import canonical


def has_model(records: Path, named: Mapping[str, Any]) -> bool:
    """Return whether the folder has a record of a model whose files have these hashes; looked up once per process."""
    return _has_model(records.absolute(), json.dumps(canonical(named), sort_keys=True))


@functools.cache
def _has_model(records: Path, named: str) -> bool:
    wanted = json.loads(named)
    for path in sorted(records.glob("*/record.json")):
        try:
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
            if all(model.get(key) == value for key, value in wanted.items()):
                return True
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # whoever reads the record says what is wrong with it
    return False
