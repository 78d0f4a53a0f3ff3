"""Sample-size curves: how many pairs a method has to learn from."""

import pandas as pd
from matplotlib.figure import Figure

from bench.plots import style
from bench.plots.panels import panels
from bench.plots.style import Nothing, Width


@style.styled
def sample_size(frame: pd.DataFrame, width: Width = "double") -> Figure:
    """Toxicity reduction, perplexity ratio and capability kept against the number of pairs learnt from.

    A line per method with its 95 % band; the axis of pairs is logarithmic.

    Args:
        frame: of `curves.sizes`.
        width: of one or two columns.

    Raises:
        Nothing: no method learnt from several numbers of pairs.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise Nothing(
            "no method learnt from several numbers of pairs with all else equal; run "
            "`python -m bench experiment=curves`, or `python -m bench -m method=caa strength=3 pairs.limit=5,10,20,40`"
        )
    style.one_table(frame)
    return panels(frame, "unit", width, from_zero=False, doubling=True)
