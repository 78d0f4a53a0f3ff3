"""The papers' numbers, called figures here, from the experiments' YAML, beside ours, from the records.

python -m bench.reproduction [experiment ...] [--results results]
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from bench.config import compose, folders
from bench.config.build import class_of
from bench.config.experiment import may_be_published
from bench.console import command, escape
from bench.console.escape import terminal
from bench.files.atomic import write_whole
from bench.records.fields import Decoding, LearntFrom
from bench.records.identity import canonical
from bench.records.names import told_norm_over
from bench.records.record import Record
from bench.records.table import read_records
from methods.errors import SetupError
from methods.later import is_later

RUN, NOT_RUN, NOT_MEASURED, LOOK_UP = "run", "not run", "not measured", "look it up"
ARROW = " → "
PIPE_WIDTH = 140  # columns of the output if there is no terminal
NEEDS = ("memory", "hours", "access")
OVERVIEW = ("experiment", "published numbers", *NEEDS)
SHOWN = ("method", "metric", "published", "ours", "difference", "source")
DRAWN = ("max_new_tokens", "temperature", "top_p")
PENALTIES = {"top_k": None, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "frequency_in_prompt": False}
"""The values that turn these settings off."""
HOW = (
    "published and ours: unsteered → steered (relative change). difference: ours less published, of the steered model. "
    "Levels compare only where scorer, prompts and decoding agree; read the differences below each table first."
)
TAKES = (
    "What each experiment takes, by arithmetic, not measured. memory: weights, 256 texts at once (fewer where that is "
    "not free) and classifiers. hours: on one H100, by the assumptions of conf/experiment/standard.yaml, without "
    "downloads."
)


class Reproduction(NamedTuple):
    """An experiment's figures, a row each (`row`), how its protocol differs from the paper's, and what a run takes."""

    experiment: str
    command: str
    rows: list[dict[str, Any]]
    differs: list[str]
    needs: Mapping[str, str | float]


def experiments(asked: Sequence[str]) -> list[str]:
    """The experiments that were asked for, or all with published figures. Raises SetupError for any other name."""
    names = list(dict.fromkeys(one.removeprefix("experiment=") for one in asked)) or list(
        filter(may_be_published, folders.groups()["experiment"])
    )
    having = [name for name in names if compose.cell([f"experiment={name}"])[1].published]
    if asked and len(having) < len(names):
        without = ", ".join(name for name in names if name not in having)
        raise SetupError(f"{without}: no published figure to compare with; give no name to compare all that have one")
    return having


def reproduction(experiment: str, records: Sequence[Record]) -> Reproduction:
    """Compare the experiment's figures with the records of the same cells. Raises SetupError as `cell_of` does."""
    jobs = compose.jobs([f"experiment={experiment}"], multirun=False)
    about = compose.cell(jobs[0])[1]
    methods = {f"method={figure['method']}" for figure in about.published}
    cells = [(job, compose.plain(compose.compose(job))) for job in jobs if methods.intersection(job)]
    rows = []
    for figure in about.published:
        cell = cell_of(figure, cells)
        rows.append({"experiment": experiment, "model": cell["model"]["name"]} | row(figure, cell, records))
    return Reproduction(experiment, f"python -m bench experiment={experiment}", rows, list(about.differs), about.needs)


def cell_of(figure: Mapping[str, Any], cells: Sequence[tuple[Sequence[str], dict[str, Any]]]) -> dict[str, Any]:
    """Return the settings of the cell that has the method, the options and, if named, the strength of a figure.

    Raises SetupError unless there is exactly one such cell.
    """
    options = figure.get("options") or {}
    found = [
        cell
        for job, cell in cells
        if f"method={figure['method']}" in job
        and all(canonical(option(cell, key)) == canonical(value) for key, value in options.items())
        and ("strength" not in figure or canonical(cell["strength"]) == canonical(figure["strength"]))
    ]
    if len(found) != 1:
        raise SetupError(
            f"published figure of {label(figure)}: {len(found)} cells of the experiment's sweep match it; name "
            "options and strength in its entry so that one does"
        )
    return found[0]


def option(cell: Mapping[str, Any], name: str) -> Any:
    """Return the value of an option of the method, or of another group by its dotted name, as in pairs.behaviour."""
    *groups, key = name.split(".")
    node: Any = cell
    for group in groups or ["method"]:
        node = node.get(group) or {}
    return node.get(key)


def label(figure: Mapping[str, Any]) -> str:
    """Return the method with the options and strength that the figure names; options of suites are in the metric."""
    told = {key: value for key, value in (figure.get("options") or {}).items() if not key.startswith("suite.")}
    told |= {"strength": figure["strength"]} if "strength" in figure else {}
    shown = ", ".join(f"{key}={'null' if value is None else value}" for key, value in told.items())
    return f"{figure['method']} ({shown})" if shown else str(figure["method"])


def row(figure: Mapping[str, Any], cell: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return a row with a published number and ours; a missing number is None, and `status` says why ours is missing.

    A published number of the unsteered model itself is in `published`, like any other number.
    """
    ours, base, n = None, None, None
    suite, _, metric = (figure["ours"] or "").partition(".")
    mine = [one for one in records if one.suite == suite and metric in one.metrics and same_setting(one, cell)]
    plain = [one for one in mine if one.method.strength == 0]
    itself = figure["method"] == "unsteered"
    steered = most(plain if itself else [o for o in mine if is_cell(o, figure["method"], cell)], metric)
    if steered is not None:
        ours, n = steered.metrics[metric].value, steered.metrics[metric].n
        plain = [one for one in plain if one.comparison == steered.comparison]
    unsteered = None if itself else most(plain, metric)
    if unsteered is not None:
        base = unsteered.metrics[metric].value
    known = ours is not None and figure["value"] is not None
    return {
        "method": label(figure),
        "metric": figure["metric"],
        "published_unsteered": figure["unsteered"],
        "published": figure["value"],
        "ours_metric": figure["ours"],
        "ours_unsteered": base,
        "ours": ours,
        "ours_n": n,
        "difference": ours - figure["value"] if known else None,
        "status": NOT_MEASURED if figure["ours"] is None else NOT_RUN if ours is None else RUN,
        "record": steered.id if steered is not None else None,
        "source": figure["source"],
    }


def same_setting(one: Record, cell: Mapping[str, Any]) -> bool:
    """Return whether a record is of the test split and of the cell's model, and decoded as the cell asks."""
    asked = dict(cell["sampling"]) | (cell["suite"].get(one.suite, {}).get("decoding") or {})
    decoded = one.sampling or Decoding()
    return (
        one.model.name == cell["model"]["name"]
        and one.split == "test"
        and all(known == asked[key] for key in DRAWN if (known := getattr(decoded, key)) is not None)
        and all((getattr(decoded, key) or off) == asked.get(key, off) for key, off in PENALTIES.items())
    )


def is_cell(record: Record, name: str, cell: Mapping[str, Any]) -> bool:
    """Return whether a record belongs to a cell: whether its method has this name and the cell's options.

    It must also have the cell's strength, unless that is tuned, and the same options of the training data, as far as
    the record names them; the pairs themselves may differ. The record of a control belongs to no cell.
    """
    method, norm_over = record.method, told_norm_over(cell["pairs"].get("norm_over"))
    return (
        method.name == name
        and method.control is None
        and method.strength != 0
        and has_options(method.parameters, cell["method"])
        and cell["strength"] in ("auto", method.strength)
        and (record.data or LearntFrom()).has_options(cell["pairs"], norm_over)
    )


def has_options(parameters: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """Return whether the hyper-parameters in a record are the method's options in the settings."""
    options = {key: value for key, value in canonical(node).items() if key not in ("_target_", "strengths")}
    return all(
        _agrees(parameters[key], value) if key in parameters else _is_later(node["_target_"], key, value)
        for key, value in options.items()
    )


def _agrees(kept: Any, value: Any) -> bool:
    """Return whether a stored value is that of the settings; methods inside a method are compared by their options."""
    if not isinstance(value, Mapping):
        return bool(kept == value)
    if "_target_" in value:
        kind: Any = class_of(value["_target_"])
        return bool(kept["name"] == kind.name) and has_options(kept["parameters"], value)
    return list(kept) == list(value) and all(_agrees(kept[key], one) for key, one in value.items())


def _is_later(target: str, key: str, value: Any) -> bool:
    """Return whether the value is the default of an option that was added later; records leave such a default out."""
    kind: Any = class_of(target)
    option = kind.__dataclass_fields__[key]
    return is_later(option) and bool(canonical(option.default) == value)


def most(found: Sequence[Record], metric: str) -> Record | None:
    """Return the record with the most items; among equals, the first by id."""
    order = sorted(found, key=lambda one: (-one.metrics[metric].n, one.id))
    return order[0] if order else None


# -- as people read it ---------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """The number with three significant digits."""
    return "?" if value is None else f"{value:#.3g}".rstrip(".")


def change(before: float | None, after: float | None) -> str:
    """`before → after (relative change)`, as far as the numbers are known."""
    if after is None:
        return f"{number(before)}{ARROW}?"
    told = f"{number(before)}{ARROW}{number(after)}"
    return told if not before else f"{told} ({(after - before) / before:+.0%})"


def readable(one: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row as text, by the names in SHOWN."""
    itself = one["method"].startswith("unsteered")  # nothing changes
    pairs = {key: (one[f"{key}_unsteered"], one[key]) for key in ("published", "ours")}
    told = {key: number(after) if itself else change(before, after) for key, (before, after) in pairs.items()}
    published = LOOK_UP if one["published"] is None else told["published"]
    ours = f"{told['ours']} n={one['ours_n']}" if one["status"] == RUN else one["status"]
    if one["status"] == NOT_RUN and one["ours_unsteered"] is not None:
        ours = f"{change(one['ours_unsteered'], None)} {NOT_RUN}"
    difference = "" if one["difference"] is None else f"{one['difference']:+.3g}"
    return {
        "method": one["method"], "metric": one["metric"], "published": published, "ours": ours,
        "difference": difference, "source": one["source"],
    }  # fmt: skip


def overview(one: Reproduction) -> list[str]:
    """Return an experiment's row of the overview, in the columns of OVERVIEW."""
    states = [figure["status"] for figure in one.rows]
    run = f"{states.count(RUN)} of {len(states) - states.count(NOT_MEASURED)} computed here"
    return [one.experiment, run, *(str(one.needs.get(key, "?")) for key in NEEDS)]


def markdown(found: Sequence[Reproduction]) -> str:
    """All tables as one document."""
    lines = ["# Published and ours", "", TAKES, ""]
    lines += [*escape.markdown_table(OVERVIEW, map(overview, found)), "", HOW]
    for one in found:
        lines += ["", f"## {escape.markdown(one.experiment)}", "", escape.code(one.command), ""]
        lines += escape.markdown_table(SHOWN, ([readable(figure)[key] for key in SHOWN] for figure in one.rows))
        if one.differs:
            lines += ["", "Not as in the paper:", "", *(f"- {escape.markdown(line)}" for line in one.differs)]
    return "\n".join(lines) + "\n"


def show(found: Sequence[Reproduction], console: Console) -> None:
    """Print the tables."""
    console.print(terminal(TAKES, "dim"))
    table = RichTable(*OVERVIEW, box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for one in found:
        table.add_row(*map(terminal, overview(one)))
    console.print(table)
    console.print(terminal(HOW, "dim"))
    for one in found:
        console.print()
        console.print(terminal(one.experiment, "bold"), terminal(one.command, "dim"))
        table = RichTable(box=box.SIMPLE, padding=0, pad_edge=False, collapse_padding=True)
        for key in SHOWN:
            table.add_column(key, justify="right" if key == "difference" else "left", overflow="fold")
        for figure in one.rows:
            told = readable(figure)
            table.add_row(*(terminal(told[key]) for key in SHOWN))
        console.print(table)
        for line in ("Not as in the paper:", *(f"  - {line}" for line in one.differs)) if one.differs else ():
            console.print(terminal(line, "dim"))


def rebuild(found: Sequence[Reproduction], results: Path) -> list[Path]:
    """Write reproduction.csv and .md. Raises SetupError if the folder cannot be written."""
    frame = pd.DataFrame([figure for one in found for figure in one.rows]).astype({"ours_n": "Int64"})
    written = {results / "reproduction.csv": escape.csv(frame), results / "reproduction.md": markdown(found)}
    for path, content in written.items():
        try:
            write_whole(path, content)
        except OSError as error:
            raise SetupError(f"cannot write {path}: {error.strerror}; give another --results") from error
    return list(written)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; returns the exit code."""
    parser = command.parser(
        "reproduction",
        "Compare the papers' numbers with ours, and say how the protocols differ. Writes reproduction.csv and .md.",
        parents=[command.shared()],
    )
    parser.add_argument("experiment", nargs="*", help="names of conf/experiment (default: all with published numbers)")
    given = parser.parse_args(arguments)
    return command.run(_run, given.experiment, given.results)


def _run(named: Sequence[str], results: Path) -> None:
    names = experiments(named)
    try:
        found, skipped = read_records(results / "runs")
    except SetupError as error:  # nothing was run yet: the published figures can be read all the same
        found, skipped = [], str(error).splitlines()
    records = [one.record for one in found]
    compared = [reproduction(name, records) for name in names]
    written = rebuild(compared, results)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for line in skipped:
        console.print(terminal(line, "yellow"))
    show(compared, console)
    console.print()
    for path in written:
        console.print(terminal(path), soft_wrap=True)


if __name__ == "__main__":
    command.leave(main())
