"""Measures against two settings of a method's training: the learning rate, and the number of epochs."""

import pandas as pd
from matplotlib.figure import Figure

from bench.leaderboard.frame import Table
from bench.leaderboard.grouping import Row, learnt_from
from bench.plots import style
from bench.plots.panels import panels
from bench.plots.style import NothingToDraw, Width
from bench.plots.sweeps import Place, at, frame, named, settings

SETTINGS = {"learning_rate": "learning rate", "epochs": "epochs"}


@style.styled
def training(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction, perplexity ratio and right answers against the learning rate and the number of epochs.

    Each method is a line with its 95% band; both settings are drawn on logarithmic axes. Markers of texts that have
    collapsed are hollow.

    Args:
        frame: the frame of `training.trained`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NoSuchPage: there are fewer pages.
        NothingToDraw: no method was trained at several learning rates, nor for several numbers of epochs.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise NothingToDraw(
            "no method was trained at several learning rates, or epochs, with all else equal; run `python -m bench "
            "experiment=security_vectors_curves`, or `python -m bench -m method=lora strength=1 method.epochs=1,2,4`"
        )
    style.one_table(frame)
    return panels(frame, "unit", width, page, from_zero=False, doubling=True)


def trained(table: Table) -> pd.DataFrame:
    """Return the curves of methods that were trained at several learning rates or epochs, all else equal."""
    return frame(table, [of_setting(row, name) for name in SETTINGS for row in table.rows], "test")


def of_setting(row: Row, name: str) -> Place | None:
    """Return a row's place by a setting of its training; None if it has no such number, and for controls."""
    rest = settings(row)
    value = rest.pop(name, None)
    if row.is_control or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Place(float(value), SETTINGS[name], named(row) | at(row) | rest | learnt_from(row.fits[0]), row)
