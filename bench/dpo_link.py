"""`python -m bench.dpo_link`: how much of the gradient of DPO's first step lies in the subspaces that a method removes.

The paper of DeTox (ProFS, arXiv 2405.13967) calls the method a denoised step of DPO. If it is, its subspaces hold more
of that step's gradient than random subspaces of equal rank. For each layer whose directions a fit holds, this prints

share     the part of the gradient's squared norm that lies in the span of the directions
random    the same for random subspaces of equal rank: their mean, lowest and highest share
expected  rank / width, the share of a random subspace on average

and writes dpo_link.csv, which names the fit, and a figure. The gradient is that of the layer's MLP value matrix, on the
pairs that the method learnt from.

Exit code 0: done; 2: something the user must fix; 130: stopped by Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bench.console import command, escape
from bench.console.escape import terminal
from bench.files.atomic import write_whole
from methods.errors import SetupError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.run.cell import Cell

RANDOM = 10  # random subspaces of each layer
DIRECTIONS = re.compile(r"layers\.(\d+)\.directions")
COLUMNS = [
    "model", "method", "fit_id", "layer", "rank", "width", "share", "random", "random_low", "random_high", "expected",
    "pairs",
]  # fmt: skip
ABOUT = (
    "Measure how much of the gradient of DPO's first step is in the subspaces that a method, such as detox, removes."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    parser = command.parser("dpo_link", ABOUT, parents=[command.shared()])
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="options of the configuration; the method is detox by default"
    )
    return command.run(_run, parser.parse_intermixed_args(arguments))


def _run(given: argparse.Namespace) -> None:
    from bench.config import command_line, compose
    from bench.config.packed import changeable
    from bench.run import validate

    named = any(one.startswith("method=") for one in given.settings)
    settings = [*([] if named else ["method=detox"]), *given.settings, "--results", str(given.results)]
    jobs = compose.jobs(command_line.at_once(settings), multirun=True)
    if len(jobs) != 1:
        raise SetupError(f"this names {len(jobs)} cells; name one, and run the command once for each")
    (composed,) = validate.validate_all(jobs)
    cfg = changeable(composed)
    cfg.suite, cfg.strength = {}, 1.0  # nothing is judged here

    from bench.run.cell import Cell
    from bench.run.session import Session

    frame = link(Cell(cfg, Session()))
    show(frame)
    for path in write(frame, given.results):
        command.console.print(terminal(str(path)))


def link(cell: "Cell") -> pd.DataFrame:
    """Return a row with the values of COLUMNS for each layer of which the method's fit holds directions.

    Raises SetupError if the fit holds no directions, or if the method does not learn from pairs.
    """
    from bench.console.progress import Bar
    from bench.run.session import torch_threads
    from methods.base import required_pairs
    from methods.preference_gradient import energy_share, random_directions, value_gradients
    from methods.training import encoded_pairs

    cell.fetch_model()  # it prints, so it has to run before the bar is shown
    with torch_threads(cell.threads), Bar(cell.fit.tokens()) as cell.session.bar:
        artefact, _ = cell.fit.fitted
        found = {int(m[1]): tensor for name, tensor in artefact.items() if (m := DIRECTIONS.fullmatch(name))}
        if not found:
            raise SetupError(f"{cell.method.name} does not learn a subspace of any layer; use method=detox")
        pairs = required_pairs(cell.fit.data()[0], cell.method.name)
        model, tokenizer = cell.model.lm.model, cell.model.lm.tokenizer
        texts = encoded_pairs(model, tokenizer, pairs, getattr(cell.method, "max_tokens", None) or 512)
        gradients = value_gradients(model, texts.desired, texts.undesired, sorted(found))
    rows, fit = [], (cell.cfg.model.name, cell.method.name, cell.names.fit_id)
    for layer, gradient in gradients.items():
        rank, width = found[layer].shape
        drawn = [energy_share(gradient, random_directions(rank, width, seed)) for seed in range(RANDOM)]
        mean = sum(drawn) / len(drawn)
        share = energy_share(gradient, found[layer])
        count = len(texts.desired)
        spread = share, mean, min(drawn), max(drawn), rank / width
        rows.append((*fit, layer, rank, width, *spread, count))
    return pd.DataFrame(rows, columns=COLUMNS)


def show(frame: pd.DataFrame) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for name in ("layer", "rank", "share", "random", "lowest to highest", "expected"):
        table.add_column(name, justify="right")
    for row in frame.to_dict("records"):
        spread = f"{row['random_low']:.3f} to {row['random_high']:.3f}"
        numbers = (f"{row['share']:.3f}", f"{row['random']:.3f}", spread, f"{row['expected']:.3f}")
        table.add_row(str(row["layer"]), str(row["rank"]), *numbers)
    Console(highlight=False).print(table)


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the shares that `link` computes, by layer, beside the band of random subspaces."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    from bench.plots import style
    from bench.records import titles

    @style.styled
    def draw() -> Any:
        drawn = style.blank("single", 2.2)
        ax = drawn.subplots()
        ax.fill_between(frame["layer"], frame["random_low"], frame["random_high"], color=style.PALE, linewidth=0)
        ax.plot(frame["layer"], frame["random"], color=style.GREY, linestyle=style.DASHES, linewidth=1)
        ax.plot(frame["layer"], frame["share"], color=style.COLOURS[0], marker="o", markersize=3, linewidth=1)
        ax.set_xlabel("block")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("share of the gradient's\nsquared norm")
        ax.set_ylim(0, max(0.05, 1.1 * float(frame[["share", "random_high"]].max().max())))
        ax.grid()
        method = titles.title(str(frame["method"].iloc[0]))
        keys = [
            style.key(style.MarkerStyle(style.COLOURS[0], "o", ""), f"subspaces of {method}"),
            Line2D([], [], color=style.GREY, linestyle=style.DASHES, label=f"{RANDOM} random subspaces: mean"),
            Patch(facecolor=style.PALE, edgecolor=style.GREY, label="their range"),
        ]
        style.legend(drawn, keys)
        return drawn

    found: Figure = draw()
    return found


def write(frame: pd.DataFrame, results: Path) -> list[Path]:
    """Write dpo_link.csv and figures/dpo_link.*. Raises SetupError if the folder cannot be written."""
    from bench.plots import style

    path = results / "dpo_link.csv"
    write_whole(path, escape.csv(frame))
    return [path, *style.save(figure(frame), results / "figures", "dpo_link")]


if __name__ == "__main__":
    command.leave(main(sys.argv[1:]))
