"""Strength curves: what each method gains and costs as it is turned up."""

import pandas as pd
from matplotlib.figure import Figure

from bench.plots import style
from bench.plots.panels import panels
from bench.plots.style import Nothing, Width


@style.styled
def strength(frame: pd.DataFrame, width: Width = "double") -> Figure:
    """Toxicity reduction, perplexity ratio and capability kept against strength, each method in its own unit.

    Lines start at the unsteered model (star, strength 0); bands are 95 % intervals; a filled marker is the strength
    that tuning chose. Numbers of a prompt are no scale, so prompts are points with bars.

    Args:
        frame: of `curves.strengths` or one of `curves.trials`.
        width: of one or two columns.

    Raises:
        Nothing: no method was run at several strengths.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise Nothing(
            "no method was run at several strengths, nor tuned; run `python -m bench method=caa` (strength=auto tries "
            "five), or `python -m bench -m method=caa strength=1,2,4`"
        )
    style.one_table(frame)
    return panels(frame, "curve", width, from_zero=True)
