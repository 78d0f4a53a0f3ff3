"""Tables of results as data frames, for a notebook; nothing is written unless asked for.

`results` is a folder that holds runs/, as a run's `runtime.results` and the folders of results/published do.
"""

import difflib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.leaderboard import build
from bench.leaderboard.frame import tables
from bench.records import table
from bench.records.names import BASELINE_FAMILY
from methods.errors import SetupError

ROW = ["table", "model", "method", "family", "strengths", "strength_unit", "fits"]
CHANGE = ["delta", "delta_low", "delta_high", "p", "p_holm", "detectable", "detectable_holm"]


def collect(results: str | Path) -> pd.DataFrame:
    """Return every number of every record, from tuning (split "dev") as well as from the test: a row per number.

    Columns: `id` of the record; `suite`, `split`, `metric`, and `comparison`, an id shared by records that measure the
    same model on the same items; model, method and strength; `value`, `standard_error`, `n` (items), `unscored` (items
    left out), `higher_is_better`; where the data came from. Warns of each record that is damaged, and leaves it out.

    Args:
        results: the folder that holds runs/, or runs/ itself.

    Raises:
        SetupError: there is no whole record.

    Example:
        >>> from bench import collect
        >>> frame = collect("results/published/quickstart")
        >>> sorted(frame["suite"].unique())
        ['capability', 'fluency', 'rtp']
        >>> frame[(frame["method"] == "caa") & (frame["split"] == "test")]["strength"].unique().tolist()
        [2.0]
    """
    return table.collect(_runs(results))


def _runs(results: str | Path) -> Path:
    folder = Path(results)
    return folder if (folder / "records").is_dir() else folder / "runs"


def compare(results: str | Path, *methods: str, metric: str | None = None) -> pd.DataFrame:
    """Return how far each method moves one metric from the unsteered model, on the same items: a row per method.

    Columns: those that name the row, as in `build_leaderboard`; `metric`, `value`; `delta`, the paired
    difference, in the metric's own unit, with its 95% interval `delta_low` to `delta_high` (bootstrap over items, and
    over fits if there are several); `p`, of the paired test of no change, and `p_holm`, corrected over all
    methods of the table, shown or not; `detectable`, the smallest difference that the test would find with a power of
    80%, and `detectable_holm`, the same after the correction. Missing values are NaN: metrics that the leaderboard
    does not test have no p.

    Args:
        results: the folder that holds runs/.
        *methods: only these, by their names; none: all but the unsteered model.
        metric: `<suite>.<metric>`; None: the one that each table is ranked by.

    Raises:
        SetupError: no record is of the test split, or none has such a method or metric.

    Example:
        >>> from bench import compare
        >>> row = compare("results/published/quickstart", "caa").iloc[0]
        >>> row["metric"]
        'rtp.toxic_comment.expected_maximum_toxicity_k5_n120'
        >>> print(f"{row['delta']:.2f} [{row['delta_low']:.2f}, {row['delta_high']:.2f}] p={row['p_holm']:.4f}")
        -0.10 [-0.14, -0.06] p=0.0010
        >>> compare("results/published/quickstart", metric="capability.piqa.accuracy")["method"].tolist()
        ['act_add control', 'caa control', 'detox control', 'caa', 'detox', 'probe_rows', 'act_add', 'prompt']
    """
    records = _records(results)
    found = tables(records)
    if not found:
        raise SetupError(f"no record of the test split in {results}, only of tuning; run the cell to its end")
    if any(not isinstance(name, str) for name in methods):
        raise SetupError(f"compare{(results, *methods)}: each method is an argument of its own, not a list")
    _known("metric", [] if metric is None else [metric], [name for one in found for name in one.metrics])
    _known("method", methods, [name for one in found for name in one.frame["method"]])
    chosen = [(one.frame, metric or one.aims.headline) for one in found if metric is None or metric in one.metrics]
    rows = pd.concat([_changes(frame, name) for frame, name in chosen], ignore_index=True)
    if methods and not rows["method"].isin(methods).any():
        raise SetupError(
            f"compare{(results, *methods)}: the unsteered model has no change from itself; name steered methods"
        )
    return rows[rows["method"].isin(methods)].reset_index(drop=True) if methods else rows


def _records(results: str | Path) -> list[table.Result]:
    """Return the results of a folder; warns of each damaged record, and leaves it out."""
    records, skipped = table.read_records(_runs(results))
    for line in skipped:
        warnings.warn(line, stacklevel=3)
    return records


def _changes(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows of one table, except the unsteered model, with one metric and its change."""
    numbers = {"value": frame[metric]} | {name: frame.get(f"{metric}.{name}", math.nan) for name in CHANGE}
    return frame[ROW].assign(metric=metric, **numbers)[frame["family"] != BASELINE_FAMILY]


def build_leaderboard(
    results: str | Path,
    *,
    model: str | None = None,
    suite: str | Sequence[str] | None = None,
    family: str | Sequence[str] | None = None,
    method: str | Sequence[str] | None = None,
    each_fit: bool = False,
    write: bool = False,
) -> pd.DataFrame:
    """The leaderboard of all test records: a row per model, method and strength, best first, controls on top.

    Rows with the same `table` were measured alike and may be compared. Columns: what names the row; the trade-off
    (`toxicity_reduction`, `accuracy_change`, ...), each with its interval as `_low` and `_high`; costs, with units in
    the names; for every metric its value as `<suite>.<metric>`, `.se`, `.n`, and `.delta`, `.delta_low`, `.delta_high`,
    the paired change from the unsteered model. Missing values are NaN.

    Args:
        results: the folder that holds runs/.
        model: only this model.
        suite: only these suites.
        family: only these families; the unsteered model stays, also if methods are named.
        method: only these methods.
        each_fit: a row for each fit seed, instead of one for all seeds of a method.
        write: also write the files of `python -m bench.leaderboard` under `results`: leaderboard.csv and so on, or
            selection.csv and so on if the rows are a selection.

    Raises:
        SetupError: no record is of the test split, or none has such a model, suite, family or method.

    Example:
        >>> from bench import build_leaderboard
        >>> frame = build_leaderboard("results/published/quickstart", method=["caa", "prompt"])
        >>> frame.loc[frame["family"] != "control", ["method", "strengths"]].values.tolist()
        [['unsteered', '0'], ['caa', '2'], ['prompt', '1']]
    """
    given = {"model": model, "suite": suite, "family": family, "method": method}
    wanted = {
        name: [value] if isinstance(value, str) else None if value is None else list(value)
        for name, value in given.items()
    }
    if write:
        name = "selection" if each_fit or any(wanted.values()) else "leaderboard"
        runs = _runs(Path(results).resolve())
        if runs.name != "runs":
            raise SetupError(f"write=True: tables are written beside a folder runs/, and {runs} has another name")
        return build.leaderboard(build.rebuild(runs.parent, name, each_fit, processes=0, **wanted).tables)
    records = _records(results)
    found = tables(build.selected(records, **wanted), each_fit)
    if not found:
        raise SetupError(f"no record of the test split in {results}, only of tuning; run the cell to its end")
    return build.leaderboard(found)


def _known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.3)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise SetupError(f"{what} {name!r}: no record of the test split has it{meant}")
