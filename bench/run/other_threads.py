"""Stored results that a command cannot use only because they were computed with another number of threads."""

from collections.abc import Iterator, Sequence

from bench.config.packed import Packed
from bench.records import record
from bench.records.record import Record
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
    others: dict[int, list[Record]] = {}
    for path in sorted(cell.records.glob("*")):
        one = record.read(path)  # a damaged record is passed over here, and reported where it is needed
        threads = one and one.model.threads
        if one and threads and threads != cell.threads and one.suite in cell.parts.suites:
            others.setdefault(threads, []).append(one)
    for threads, stored in others.items():
        names = Names(Packed(cell.cfg), cell.parts, threads, cell.fetch_model)
        for one in stored:
            if names.record_id(cell.parts.suites[one.suite], one.split, one.method.strength) == one.id:
                yield one.id, threads
