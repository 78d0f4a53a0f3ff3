"""Shares of toxic texts corrected for the errors of the scorer that found them; from two CSV files, without torch.

`python -m bench.agreement --correct RESULTS` prints the raw and the corrected toxic_fraction of each row of
RESULTS/leaderboard.csv, by Rogan and Gladen 1978 (`bench.statistics.corrected`). The error rates are the scorer's on
rtp_continuations in RESULTS/scorer_agreement.csv, whose texts are nearest to what a suite samples: so the corrected
share is what Perspective would call toxic, if the scorer errs on the model's texts as on people's. That is an
assumption, the weaker the further steering moves the texts, and it fails for broken text. Scorers go by their names: a
scorer whose options were changed between the two commands is corrected by the wrong rates.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bench.escape import read_csv, terminal
from bench.statistics import corrected
from methods.errors import SetupError

BY = "rtp_continuations"
FILE = "scorer_agreement"


def show(results: Path, out: Console) -> None:
    """Print the table. Raises SetupError for a missing file, and where there is nothing to correct."""
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    titles = ("table", "model", "method", "strength", "metric", "raw", "corrected (95 %)")
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
    """A row for each toxic_fraction of each row of the leaderboard."""
    board, rates = read(results / "leaderboard.csv"), read(results / f"{FILE}.csv")
    whole = rates[(rates["set"] == BY) & rates["group"].isna()]
    by = {str(row["scorer"]): row for row in whole.to_dict("records")}
    found = []
    for row in board.to_dict("records"):
        for metric in map(str, board.columns):
            of = re.fullmatch(r"[^.]+\.(.+)\.toxic_fraction[^.]*", metric)
            if of is not None and not pd.isna(row[metric]):
                named = [str(row[key]) for key in ("table", "model", "method", "strength")]
                told = corrected_text(row[metric], row[f"{metric}.se"], by.get(of[1]))
                found.append([*named, metric, f"{row[metric]:.4f}", told])
    if not found:
        raise SetupError(
            f"{results}/leaderboard.csv has no metric toxic_fraction; run a suite that has one: suite=[rtp]"
        )
    return found


def corrected_text(raw: float, standard_error: float, rates: Any) -> str:
    """The corrected share, or why there is none."""
    if rates is None:
        return f"not measured on {BY}"
    negatives = int(rates["n"] - rates["positives"])
    sensitivity, specificity = 1 - rates["false_negative_rate"], 1 - rates["false_positive_rate"]
    spread = 0.0 if pd.isna(standard_error) else standard_error
    found = corrected(raw, spread, sensitivity, int(rates["positives"]), specificity, negatives)
    return "no better than a coin" if found is None else f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def read(path: Path) -> pd.DataFrame:
    """A table of the results folder. Raises SetupError that names the command which makes it."""
    if not path.is_file():
        folder = path.parent
        command = f"agreement runtime.results={folder}" if path.stem == FILE else f"leaderboard --results {folder}"
        raise SetupError(f"{path} is not there; make it with python -m bench.{command}")
    return read_csv(path)
