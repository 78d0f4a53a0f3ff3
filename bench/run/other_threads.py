"""Stored results that a command cannot use only because they were computed with another number of threads."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.run.cell import Cell
from bench.run.names import Names


def told(cells: Sequence[Cell]) -> str | None:
    """Return a line that counts such results of these cells and says how to use them; None if there are none."""
    found: dict[str, int] = {}
    for cell in cells:
        found |= dict(differing(cell))
    if not found:
        return None
    threads = sorted(set(found.values()))
    mine = sorted({cell.threads for cell in cells})
    one, name = len(found) == 1, " or ".join(map(str, threads))
    return (
        f"{len(found)} stored record{'' if one else 's'} differ{'s' * one} only in threads ({name}, here "
        f"{' and '.join(map(str, mine))}); set runtime.threads={threads[0]} to use {'it' if one else 'them'}"
    )


def differing(cell: Cell) -> Iterator[tuple[str, int]]:
    """Yield the id and the threads of each stored result that this cell could use but for its number of threads."""
    if cell.names.model.get("threads") is None:  # another device than the CPU
        return
    others: dict[int, list[dict[str, Any]]] = {}
    for facts in _facts(cell.records):
        threads = facts["model"].get("threads")
        if isinstance(threads, int) and threads != cell.threads and facts.get("suite") in cell.parts.suites:
            others.setdefault(threads, []).append(facts)
    for threads, stored in others.items():
        names = Names(cell.cfg, cell.parts, threads, cell.fetch_model)
        for facts in stored:
            suite, strength = cell.parts.suites[facts["suite"]], float(facts["method"]["strength"])
            if names.record_id(suite, facts["split"], strength) == facts["id"]:
                yield str(facts["id"]), threads


def _facts(records: Path) -> Iterator[dict[str, Any]]:
    """Yield the facts of each record that can be read; broken records are passed over, and reported where needed."""
    for path in sorted(records.glob("*/record.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(facts["model"], dict) and facts["split"] in ("dev", "test") and "strength" in facts["method"]:
                yield facts
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
