"""Sizes of batches: how many rows each has, and what happens if memory runs out in spite of the estimate.

A batch has at most `runtime.batch_size` rows. If its estimated memory exceeds the free memory, the batch has half as
many rows, a quarter, and so on; because of these large steps, a small change of the free memory rarely changes a batch.
If memory runs out all the same, what is not yet computed of the batch is divided in two halves, and no later batch is
larger than these halves.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from bench.model import devices
from bench.model.lm import LM
from bench.model.memory import GIB, WORTH_TELLING, Estimate, ran_out, release
from bench.records.unfinished import Batches
from methods.errors import SetupError

Row = TypeVar("Row")
Part = TypeVar("Part")
Result = TypeVar("Result")


def planned(lm: LM, rows: list[Row], kept: Batches, size: Callable[[list[Row]], Estimate]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each batch and its number of rows: `runtime.batch_size`, halved until memory holds it.

    rows: in the order in which they are computed. kept: batches of an earlier run, which stay as they were.
    """
    limit = devices.free_for(lm.model)

    def fitting(start: int) -> int:
        count = kept.batch_size
        while count > 1 and size(rows[start : start + count]).total > min(limit, lm.memory.ceiling):
            count //= 2
        return count

    start, batches = 0, []
    while start < len(rows):
        count = fitting(start)
        batch = rows[start : start + count]
        batches.append((count, len(batch), size(batch)))
        start += count
    _tell(lm, batches, kept.batch_size, limit)
    start = 0
    while start < len(rows):
        count = kept.rows(start, fitting(start))
        yield start, count
        start += count


def _tell(lm: LM, batches: Sequence[tuple[int, int, Estimate]], asked: int, limit: int) -> None:
    """Print, before the batches are computed, how much memory they take if it is much, and if some have fewer rows.

    batches: for each, how many rows fit, how many it has, and the memory that it takes.
    """
    if not batches:
        return
    fewest = min(count for count, _, _ in batches)
    _, rows, size = max(batches, key=lambda one: one[2].total)
    takes = (
        f"{rows} {'row takes' if rows == 1 else 'rows take'} {size.total / GIB:.2g} GiB (KV cache "
        f"{size.cache / GIB:.2g}, logits {size.logits / GIB:.2g}) of {limit / GIB:.3g} GiB that may be used"
    )
    if fewest < asked:
        few = sum(count < asked for count, _, _ in batches)
        told = f"{few} of {len(batches)} batches have fewer rows than runtime.batch_size={asked}, down to {fewest}"
        lm.memory.tell(("fewer", fewest), f"{takes}; {told}")
    elif size.total >= WORTH_TELLING:
        lm.memory.tell("size", takes)


def in_halves(
    lm: LM,
    part: Part,
    size: Callable[[Part], Estimate],
    halves: Callable[[Part], list[Part]],
    compute: Callable[[Part], list[Result]],
) -> list[Result]:
    """Compute a part (some rows of a batch) at once or, if memory does not suffice, its halves one after the other.

    halves: divides what is not yet computed of a part in two, since an attempt that ran out of memory may have computed
    some of it. Returns [] for a part that cannot be divided.

    Raises SetupError if memory does not suffice for one row.
    """
    if size(part).total <= lm.memory.ceiling or not halves(part):
        try:
            return compute(part)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            left = halves(part)
            if not left:
                raise SetupError(_too_long(lm)) from error
        # outside `except`, since the error would keep what was computed in memory
        lm.memory.ceiling = min(lm.memory.ceiling, max(size(half).total for half in left))
        release(lm.device)
        lm.memory.tell("halved", "it ran out, so the batch goes on in halves, and no later one is as large")
    return [one for half in halves(part) for one in in_halves(lm, half, size, halves, compute)]


def _too_long(lm: LM) -> str:
    return (
        f"{lm.device}: memory does not hold a single text with this model, which was computed in {lm.model.dtype}; "
        "give shorter texts (prompts, sampling.max_new_tokens), set model.dtype=bfloat16, or spread the model over "
        "cards, CPU and disk: runtime.device=auto"
    )


def halved(rows: list[Row]) -> list[list[Row]]:
    """Return both halves of some rows; [] for a single one."""
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]] if len(rows) > 1 else []
