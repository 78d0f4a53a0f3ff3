"""Curves over a setting, from records: strength, number of training pairs, wrong labels, layer.

Each function returns tidy frames for `bench.plots`, a row per curve and value of the setting, with the columns
table split model scorer headline
                             where the numbers are from; only rows of one frame compare
curve method family fits     the curve's name, its method, and how many fits (seeds) a point is the mean of
x unit                       the setting and what it counts; curves of different units share no axis
collapsed                    whether the texts have collapsed; False where fluency was not measured
chosen feasible tuned_by bound
                             only in frames of strengths, empty if nothing was tuned: whether tuning chose this
                             strength; if so, whether it kept the bounds of tuning; the scorer by which tuning chose;
                             the bound of tuning on the perplexity ratio
headline_change toxicity_reduction perplexity_ratio gold_choice_change
                             against the unsteered model on the same items, each with _low and _high, the 95% interval
                             over items and fits (`Comparison.effects`); NaN if it was not measured. headline_change is
                             NaN also if the headline metric is a toxicity or a fluency: other columns show these
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
from threadpoolctl import threadpool_limits  # comes with scikit-learn

from bench.console import escape
from bench.leaderboard.aims import FLUENCY
from bench.leaderboard.comparison import collapsed
from bench.leaderboard.frame import Table, tables
from bench.leaderboard.grouping import Row, learnt_from
from bench.leaderboard.pairing import change
from bench.leaderboard.tradeoff import BootstrapEstimate
from bench.records import titles
from bench.records.fields import Tuned
from bench.records.identity import digest
from bench.records.names import RANDOM
from bench.records.table import Result

HEADLINE = "headline_change"
MEASURES = (HEADLINE, "toxicity_reduction", "perplexity_ratio", "gold_choice_change")
ENDS = ("", "_low", "_high")
COLUMNS = ("table", "split", "model", "scorer", "headline", "curve", "method", "family", "fits", "x", "unit",
           "collapsed", "chosen", "feasible", "tuned_by", "bound",
           *(f"{name}{end}" for name in MEASURES for end in ENDS))  # fmt: skip
FEWEST = 2  # values of a setting that make a curve


class Place(NamedTuple):
    """The place of a row on a curve: its value of the setting, and its other properties, which the curve shares."""

    x: float
    unit: str
    rest: Mapping[str, Any]
    row: Row


def strengths(table: Table) -> pd.DataFrame:
    """Return the curves of methods that were run at several strengths; empty if none was."""
    return frame(table, [of_strength(row) for row in table.rows], "test")


def trials(results: Sequence[Result]) -> list[pd.DataFrame]:
    """Return the curves over strengths that tuning tried on the dev split, a frame for each group that compares."""
    dev = [
        Result(replace(one.record, split="test"), items_shown(one))  # grouped as results of the test split
        for one in results
        if one.record.split == "dev"
    ]
    tunings: dict[str, list[Tuned]] = defaultdict(list)
    for record, _ in results:
        if record.tuning and record.fit_id:
            tunings[record.fit_id].append(record.tuning)
    found = []
    for table in tables(dev):
        rows = frame(table, [of_strength(row) for row in table.rows], "dev", tunings)
        if len(rows):
            found.append(rows)
    return found


def items_shown(one: Result) -> pd.DataFrame:
    """Return the items of a dev result that figures need; the others are left out to save seconds."""
    metric = one.items["metric"].astype(str)
    return one.items[metric.str.contains(".expected_maximum_toxicity_k", regex=False) | (metric == "perplexity")]


def sizes(table: Table) -> pd.DataFrame:
    """Return the curves of methods that learnt from several numbers of pairs, all else equal; empty if none did."""
    return frame(table, [of_pairs(row) for row in table.rows], "test")


def noise(table: Table) -> pd.DataFrame:
    """Return the curves of methods that learnt from pairs with several shares of swapped labels, all else equal."""
    return frame(table, [of_flips(row) for row in table.rows], "test")


def layers(table: Table) -> pd.DataFrame:
    """Return the curves of methods that were run at several layers, all else equal; empty if none was."""
    return frame(table, [of_layer(row) for row in table.rows], "test")


# -- where a row is on its curve ------------------------------------------------------------------------------------


def of_strength(row: Row) -> Place | None:
    """Return a row's place by strength; None for the unsteered model, and if each fit was tuned to its own strength."""
    if row.is_baseline or len(row.strengths) != 1:
        return None
    rest = named(row) | settings(row) | learnt_from(row.fits[0])
    return Place(row.strengths[0], row.about.strength_unit or "strength", rest, row)


def of_pairs(row: Row) -> Place | None:
    """Return a row's place by its number of pairs; None without pairs. Counts of other texts distinguish curves."""
    pairs = row.data.pairs if row.data else None
    if pairs is None:
        return None
    data = {key: value for key, value in learnt_from(row.fits[0]).items() if isinstance(value, str) or "." in key}
    return Place(float(pairs), "training pairs", named(row) | at(row) | settings(row) | data, row)


def of_flips(row: Row) -> Place | None:
    """Return a row's place by its share of swapped pairs; None without pairs, and for controls (pairs swapped)."""
    if row.data is None or row.data.pairs is None or row.is_control:
        return None
    data = dict(learnt_from(row.fits[0]))
    share = float(data.pop("flip", 0))
    return Place(
        share, "probability that a pair's labels are swapped", named(row) | at(row) | settings(row) | data, row
    )


def of_layer(row: Row) -> Place | None:
    """Return a row's place by its layer: a block, or a share of the depth; None if the layer is not a number."""
    rest = settings(row)
    layer = rest.pop("layer", None)
    if isinstance(layer, bool) or not isinstance(layer, int | float):
        return None
    unit = "block" if isinstance(layer, int) else "share of the depth"
    return Place(float(layer), f"layer ({unit})", named(row) | at(row) | rest | learnt_from(row.fits[0]), row)


def named(row: Row) -> dict[str, Any]:
    """Return the name and version of the row's method."""
    return {"method": row.about.method, "version": row.about.version}


def at(row: Row) -> dict[str, Any]:
    """Return the row's strength if it was given, else "tuned", so that tuned rows share a curve."""
    return {"strength": "tuned" if row.tuning else "; ".join(f"{one:g}" for one in row.strengths)}


def settings(row: Row) -> dict[str, Any]:
    """Return the row's hyper-parameters, except the seed of its fits."""
    return dict(row.method.settings)


# -- frames ----------------------------------------------------------------------------------------------------------


def frame(
    table: Table,
    places: Sequence[Place | None],
    split: str,
    tunings: Mapping[str, Sequence[Tuned]] | None = None,
) -> pd.DataFrame:
    """Return the curves of a table with at least FEWEST points, sorted by name and x. `tunings`: tunings by fit id."""
    curves: dict[str, dict[float, Place]] = defaultdict(dict)
    for place in places:
        if place is not None and place.row in table.paired.pairs:
            one, number = place, 1
            while one.x in curves[key := digest([one.unit, one.rest])]:  # the place is taken: begin a further curve
                number += 1
                one = place._replace(rest={**place.rest, "set": number})
            curves[key][one.x] = one
    kept = [one for one in curves.values() if len(one) >= FEWEST]
    names = curve_names([next(iter(one.values())) for one in kept])
    rows = []
    with threadpool_limits(1, "blas"):  # as for the leaderboard: threads slow small products and could round otherwise
        for name, curve in zip(names, kept, strict=True):
            for x, place in sorted(curve.items()):
                rows.append(point(table, name, place, split) | tuned(table, place.row, x, tunings or {}))
    found = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["curve", "unit", "x"], kind="stable")
    return found.astype({"chosen": "boolean", "feasible": "boolean"}).reset_index(drop=True)


def point(table: Table, name: str, place: Place, split: str) -> dict[str, Any]:
    """Return a point of a curve with its measures."""
    found: dict[str, Any] = {
        "table": table.number, "split": split, "model": table.about.model.name,
        "scorer": table.aims.scorer, "headline": table.aims.headline, "curve": name,
        "method": place.row.about.method, "family": place.row.about.family,
        "fits": len(place.row.fits), "x": place.x, "unit": place.unit,
        "collapsed": bool(collapsed(place.row, table.baseline)[0]),
    }  # fmt: skip
    effects = {**table.effects[place.row], HEADLINE: of_headline(table, place.row)}
    for measure in MEASURES:
        effect = effects[measure]
        ends = effect.estimate() if effect else (None, None, None)
        found |= {f"{measure}{end}": math.nan if one is None else one for end, one in zip(ENDS, ends, strict=True)}
    return found


def of_headline(table: Table, row: Row) -> BootstrapEstimate | None:
    """Return the change of the headline metric, with its interval; None if that is a toxicity or a fluency."""
    metric = row.metrics.get(table.aims.headline)
    if metric is None or table.aims.toxicity or table.aims.headline.startswith(FLUENCY):
        return None
    return change(table.paired.pairs[row], table.aims.headline, metric.transform)


def tuned(table: Table, row: Row, x: float, tunings: Mapping[str, Sequence[Tuned]]) -> dict[str, Any]:
    """Return whether a tuning of any of the row's fits chose this strength, and if so, whether it was feasible.

    The scorers that tuning used, and its bound on perplexity, are returned too. A tuning counts only if it compared
    with the same unsteered texts as this table.
    """
    base = table.baseline.metrics if table.baseline else {}
    mine = [
        one
        for fit in row.fits
        for one in tunings.get(fit.about.fit_id or "", ())
        if any(
            name.startswith(one.metric) and math.isclose(metric.value, one.unsteered_value)
            for name, metric in base.items()
        )
    ]
    if not mine:
        return {"chosen": None, "feasible": None, "tuned_by": None, "bound": math.nan}
    chose = [one for one in mine if one.chosen == x]
    return {
        "chosen": bool(chose),
        "feasible": any(one.feasible is not False for one in chose) if chose else None,  # None: an older record
        "tuned_by": " or ".join(sorted({one.scorer for one in mine if one.scorer})) or None,
        "bound": mine[0].perplexity_bound,
    }


def curve_names(places: Sequence[Place]) -> list[str]:
    """Return the name of each place's curve: the method, with settings that distinguish curves of one name and unit.

    The training data of a method are named only if its settings do not distinguish its curve from another one.
    """
    found = []
    called = titles.called({name for place in places for name in methods(place.row)})
    each = [[called[name] for name in methods(place.row)] for place in places]
    entitled = [
        (", then ".join([first, *map(lower, then)]), place) for (first, *then), place in zip(each, places, strict=True)
    ]
    for name, place in entitled:
        rest = place.rest
        twins = [other.rest for its_name, other in entitled if (its_name, other.unit) == (name, place.unit)]
        told = [key for key in rest if any(other.get(key) != rest[key] for other in twins)]
        own = [key for key in told if key not in learnt_from(place.row.fits[0])]
        if sum(all(other.get(key) == rest[key] for key in own) for other in twins) == 1:
            told = own
        shown = str(rest["method"]).replace("_", " ") if rest["method"] == RANDOM else name
        found.append(escape.visible(shown + (f" ({', '.join(f'{key}={rest[key]}' for key in told)})" if told else "")))
    return found


def methods(row: Row) -> list[str]:
    """Return the method of a row; for a method made of others, its parts in their order."""
    return [part.name for part in row.method.parts.values()] or [row.about.method]


def lower(title: str) -> str:
    """Write a title as within a sentence, beginning with a small letter, unless the name has further capitals."""
    return title[:1].lower() + title[1:] if title[1:].islower() else title
