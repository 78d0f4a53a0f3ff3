"""The effect of a method that remains after fine-tuning: measures against the number of later examples."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.leaderboard.frame import Table
from bench.leaderboard.grouping import Row, learnt_from
from bench.plots import style
from bench.plots.panels import UNSTEERED, panels
from bench.plots.style import MADE_OF_OTHERS, NothingToDraw, Width
from bench.plots.sweeps import MEASURES, Place, at, frame, named, settings

OWN = ("examples.texts", "examples.sources")  # what differs along a curve, and between panels

ALONE = "finetune"  # the method that fine-tunes the unsteered model


@style.styled
def tampering(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction, perplexity ratio and right answers against the number of examples of a fine-tuning.

    Each method is a line with its 95% band; each kind of examples has its own panels. At 0 stands the method before the
    fine-tuning. Each page also has the curve of the unsteered model after the same fine-tuning, for comparison.

    Args:
        frame: the frame of `tampering.fine_tuned`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NoSuchPage: there are fewer pages.
        NothingToDraw: nothing was fine-tuned on several numbers of examples.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise NothingToDraw(
            "nothing was fine-tuned on several numbers of examples with all else equal; run `python -m bench "
            "experiment=tamper`, or `python -m bench -m method=finetune strength=1 examples=toxic examples.count=8,32`"
        )
    style.one_table(frame)
    alone = sorted(set(frame.loc[frame["method"] == ALONE, "curve"]))
    return panels(frame, "unit", width, page, from_zero=False, doubling=True, everywhere=alone)


def fine_tuned(table: Table) -> pd.DataFrame:
    """Return a curve, as in `bench.plots.sweeps`, for each method that several numbers of examples were fine-tuned on.

    At 0 examples stands the start of the fine-tuning: for a stack (a method made of others) of two parts, the row of
    the first part alone; for a method that is no stack, the unsteered model, which has no interval. Empty if nothing
    was fine-tuned in this way.
    """
    places = [place for row in table.rows if (place := of_examples(row)) is not None]
    found = frame(table, [*places, *(beginning(table.rows, place) for place in places)], "test")
    first = found.groupby(["curve", "unit"], sort=False).head(1)
    alone = first[(first["x"] > 0) & (first["family"] != MADE_OF_OTHERS)]
    whole = pd.concat([found, unsteered(alone)]) if len(alone) else found
    return whole.sort_values(["curve", "unit", "x"], kind="stable").reset_index(drop=True)


def of_examples(row: Row) -> Place | None:
    """Return a row's place by its number of examples; None if it read none, and for controls."""
    found = row.data.examples if row.data and not row.is_control else None
    if found is None:
        return None
    data = {key: value for key, value in learnt_from(row.fits[0]).items() if not key.endswith(OWN)}
    unit = f"{style.texts(found[1])} fine-tuned on"
    return Place(float(found[0]), unit, named(row) | at(row) | settings(row) | data, row)


def beginning(rows: Sequence[Row], place: Place) -> Place | None:
    """Return the place at 0 of a two-part stack: its first part alone, at the strength and on the data it has there."""
    wanted = first_part(place)
    if wanted is None:
        return None
    same = [row for row in rows if named(row) | at(row) | settings(row) == wanted]
    first = next((row for row in same if has_data_of(row, place)), None)
    return place._replace(x=0.0, row=first) if first is not None else None


def has_data_of(row: Row, place: Place) -> bool:
    """Return whether a row learnt from the same data as the first part of a stack, whether its own or shared ones."""
    if row.data is None or place.row.data is None:
        return row.data is None
    found = place.row.data.of_part(next(iter(place.row.method.parts)))
    files = [{one.fingerprint for one in data.all_sources} for data in (row.data, found)]
    return row.data.named.items() <= found.named.items() and files[0] <= files[1]


def first_part(place: Place) -> dict[str, Any] | None:
    """Return method, strength and settings of the first part of a stack of two; None if they cannot be stated.

    They cannot be stated if the last part is not the fine-tuning, or if the fits of the stack have different strengths.
    """
    method = place.row.method
    if method.family != MADE_OF_OTHERS or len(method.parts) != 2 or len(place.row.strengths) > 1:
        return None
    (name, one), (_, last) = method.parts.items()
    if last.name != ALONE:
        return None
    strength = method.strength_of(name, place.row.strengths[0])
    if strength is None:  # a plug-in's method may apply its parts in another way
        return None
    return {"method": one.name, "version": one.version, "strength": f"{strength:g}", **one.settings}


def unsteered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return these points moved to 0 examples, with the unsteered model's values and no intervals."""
    values = {name: rows[name].where(rows[name].isna(), UNSTEERED[name]) for name in MEASURES}
    ends = dict.fromkeys([f"{name}_{end}" for name in MEASURES for end in ("low", "high")], float("nan"))
    return rows.assign(x=0.0, **values, **ends)
