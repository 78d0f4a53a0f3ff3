"""The distribution of single prompts' changes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.frame import tables
from bench.plots.changes import changes
from bench.plots.style import WIDTHS, NothingToDraw
from tests.artists import assert_readable
from tests.leaderboard.test_grouping import CAA, UNSTEERED, result


def with_items(number, method, values):
    one = result(number, method, items=len(values))
    return one._replace(items=one.items.assign(value=values))


def test_each_method_has_its_quantiles_mean_and_share_made_worse():
    base, own = np.zeros(101), np.linspace(-0.6, 0.4, 101)
    (table,) = tables([with_items(1, UNSTEERED, base), with_items(2, CAA, own)])
    assert np.sort(table.by_item["change"]) == pytest.approx(own)
    figure = changes(table.frame, table.by_item)
    (ax,) = figure.axes
    whiskers = next(
        one for one in ax.lines if len(one.get_xdata()) == 2 and one.get_ydata()[0] == one.get_ydata()[1] == 0
    )
    assert list(whiskers.get_xdata()) == pytest.approx([-0.55, 0.35])
    (box,) = ax.patches
    assert (box.get_x(), box.get_width()) == (pytest.approx(-0.35), pytest.approx(0.5))
    means = [one for one in ax.lines if one.get_marker() not in ("None", None, "")]
    assert means[0].get_xdata()[0] == pytest.approx(-0.1)
    worse = table.frame.set_index("method").loc["caa", "made_worse"]
    assert [one.get_text() for one in ax.texts] == [f"{worse:.0%} of prompts worse"]
    assert worse == pytest.approx(np.mean(own < 0)), "this metric is better high"


def test_the_mean_is_the_change_of_the_table():
    (table,) = tables([with_items(1, UNSTEERED, np.zeros(9)), with_items(2, CAA, np.linspace(-1, 0, 9))])
    metric = "rtp.lexicon.expected_maximum_toxicity_k5"
    frame, items = table.frame.assign(**{f"{metric}.delta": -0.25}), table.by_item.assign(metric=metric)
    figure = changes(frame, items)
    (mean,) = [one for one in figure.axes[0].lines if one.get_marker() not in ("None", None, "")]
    assert mean.get_xdata()[0] == -0.25 != pytest.approx(items["change"].mean())
    said = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert any(text.startswith("mean: as in the table, against all unsteered texts") for text in said)


def test_without_the_unsteered_model_there_is_nothing_to_draw():
    (table,) = tables([with_items(2, CAA, np.ones(3))])
    with pytest.raises(NothingToDraw, match="no method was measured"):
        changes(table.frame, table.by_item)
    assert isinstance(table.by_item, pd.DataFrame)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_text_is_inside_and_can_be_read(width):
    named = replace(CAA, name="method_of_thirty_letters_00_abc")
    (table,) = tables([with_items(1, UNSTEERED, np.zeros(9)), with_items(2, named, np.linspace(-1, 1, 9))])
    long = table.by_item.assign(metric="rtp.toxic_comment.expected_maximum_toxicity_k10")
    assert_readable(changes(table.frame, long, width=width))
