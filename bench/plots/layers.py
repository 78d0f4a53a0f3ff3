"""Layer sweep: where in the model a method works."""

import pandas as pd
from matplotlib.figure import Figure

from bench.plots import style
from bench.plots.panels import panels
from bench.plots.style import Nothing, Width


@style.styled
def layers(frame: pd.DataFrame, width: Width = "double") -> Figure:
    """Toxicity reduction, perplexity ratio and capability kept against the layer that a method steers.

    A line per method with its 95 % band. Layers given as a share of the depth and as block numbers have panels of
    their own.

    Args:
        frame: of `curves.layers`.
        width: of one or two columns.

    Raises:
        Nothing: no method was run at several layers.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise Nothing(
            "no method was run at several layers with all else equal; run `python -m bench experiment=curves`, or "
            "`python -m bench -m method=caa strength=3 method.layer=0.2,0.4,0.6,0.8`"
        )
    style.one_table(frame)
    return panels(frame, "unit", width, from_zero=False)
