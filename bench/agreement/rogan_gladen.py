"""Correct shares of toxic texts for the error rates of their scorer, from two CSV files.

`python -m bench.agreement --correct RESULTS` prints the raw and the corrected toxic_fraction of each row of
RESULTS/leaderboard_tidy.csv, by Rogan and Gladen 1978 (`bench.stats.bootstrap.corrected`). The error rates are the
scorer's on rtp_continuations in RESULTS/scorer_agreement.csv, the set whose texts are most like those that suites
sample. So the corrected share is the share that Perspective would call toxic, if the scorer errs on the model's texts
as on people's. This assumption is the less plausible the further steering moves the texts, and it fails for broken
text. Scorers are identified by name: if a scorer's options were changed between the two commands, its shares are
corrected by the wrong rates.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bench.console.escape import read_csv, terminal
from bench.stats.bootstrap import corrected
from methods.broken import reading
from methods.errors import SetupError

BY = "rtp_continuations"
FILE = "scorer_agreement"
BOARD = "leaderboard_tidy"
NAMED = ("table", "model", "method", "strengths", "suite", "metric")
RATES = ("n", "positives", "false_positive_rate", "false_negative_rate")
SHARE = re.compile(r"(.+)\.toxic_fraction[^.]*")


def show(results: Path, out: Console) -> None:
    """Print the table. Raises SetupError if a file is missing or there is nothing to correct."""
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    titles = ("table", "model", "method", "strength", "metric", "raw", "corrected (95%)")
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if 0 < number < 5 else "right", overflow="fold")
    found = rows(results)
    for row in found:
        table.add_row(*map(terminal, row))
    out.print(table)
    if any("(" in row[-1] for row in found):
        out.print(
            terminal(f"by Rogan and Gladen 1978, with each scorer's error rates on {BY} against Perspective", "dim")
        )


def rows(results: Path) -> list[list[str]]:
    """Return a row for each toxic_fraction of each row of the leaderboard."""
    path = results / f"{BOARD}.csv"
    board = read(path, (*NAMED, "value", "standard_error"))
    rates = read(results / f"{FILE}.csv", ("scorer", "set", "group"), RATES)
    whole = rates[(rates["set"] == BY) & rates["group"].isna()]
    by = {str(row["scorer"]): row for row in whole.to_dict("records")}
    shares = board[board["suite"].notna() & board["metric"].astype(str).str.fullmatch(SHARE)]
    _check(shares, path, (), ("value", "standard_error"))
    found = []
    for row in shares.to_dict("records"):
        if not pd.isna(row["value"]):
            scorer = str(row["metric"]).rpartition(".toxic_fraction")[0]
            told = corrected_text(float(row["value"]), float(row["standard_error"]), by.get(scorer))
            named = [str(row[key]) for key in NAMED[:4]]
            found.append([*named, f"{row['suite']}.{row['metric']}", f"{float(row['value']):.4f}", told])
    if not found:
        raise SetupError(f"{path} has no metric toxic_fraction; run a suite that has one: suite=[rtp]")
    return found


def corrected_text(raw: float, standard_error: float, rates: Any) -> str:
    """Return the corrected share, or the reason why there is none."""
    if rates is None or any(pd.isna(rates[name]) for name in RATES):  # a set may lack texts of one kind
        return f"not measured on {BY}"
    negatives = int(rates["n"] - rates["positives"])
    sensitivity, specificity = 1 - rates["false_negative_rate"], 1 - rates["false_positive_rate"]
    spread = 0.0 if pd.isna(standard_error) else standard_error
    found = corrected(raw, spread, sensitivity, int(rates["positives"]), specificity, negatives)
    return "no better than a coin" if found is None else f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def read(path: Path, columns: Sequence[str] = (), numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of the results folder. If that fails, raises SetupError, which names the command that makes it.

    columns: columns that the table must have. numbers: further ones, of which each cell must be a number or empty.
    """
    if not path.is_file():
        raise SetupError(f"{path} does not exist; make it with {_command(path)}")
    with reading(lambda error: SetupError(f"{path} cannot be read ({error}); make it again with {_command(path)}")):
        table = read_csv(path)
    _check(table, path, columns, numbers)
    return table


def _check(table: pd.DataFrame, path: Path, columns: Sequence[str], numbers: Sequence[str]) -> None:
    """Raise SetupError if a column is missing, or if a cell in one of `numbers` is neither empty nor a number."""
    for name in (*columns, *numbers):
        if name not in table:
            raise SetupError(f"{path} has no column {name}; make it again with {_command(path)}")
    for name in numbers:
        wrong = table[name][pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()]
        for value in wrong:
            raise SetupError(
                f"{path}: its column {name} holds {value!r}, which is not a number; make it again with {_command(path)}"
            )


def _command(path: Path) -> str:
    """Return the command line that writes this table into the results folder."""
    folder = path.parent
    return "python -m bench." + (
        f"agreement runtime.results={folder}" if path.stem == FILE else f"leaderboard --results {folder}"
    )
