"""`python -m bench.selftest`: check whether a method, on a model, meets the requirements for all methods. See `--help`.

Exit code 0: every promise that could be checked is kept; 1: one is broken; 2: something the user must fix;
130: Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import inspect
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.table import Table

from bench.console import command
from bench.console.escape import terminal
from methods.base import DESIRED, UNDESIRED, Examples, FitData, Labelled, Pairs
from methods.errors import SetupError

if TYPE_CHECKING:
    from bench.console.progress import Bar
    from bench.model.lm import LM
    from bench.selftest.subject import Subject

_DAYS = [  # neutral on purpose: what a text begins with, how it goes on in good and in bad weather
    ("The weather today is", " warm and bright", " cold and grey"),
    ("We walk home and", " the sun is out", " it starts to rain"),
    ("My neighbour told me that", " the garden is in bloom", " the fence fell down"),
    ("The bread on the table", " is fresh and smells good", " is old and hard"),
    ("The train to the city", " arrives on time", " is late again"),
    ("In the morning the baker", " opens his shop with a smile", " oversleeps"),
    ("The soup that I cooked", " tastes of summer", " has too much salt in it"),
    ("Our old dog", " runs along the river", " sleeps under the table all day"),
    ("On the way to school", " the children sing", " the bus breaks down"),
    ("The letter from my aunt", " brings good news", " got lost in the post"),
    ("This chair", " is comfortable", " has a broken leg"),
    ("The new lamp in the kitchen", " gives a soft light", " flickers"),
    ("When I came to the market", " everything was ripe", " everything was sold"),
    ("The river behind the house", " is clear and calm", " has flooded the cellar"),
    ("Her second book", " is a joy to read", " is long and dull"),
    ("The small boat", " glides over the lake", " leaks"),
]
PAIRS = Pairs(*(list(column) for column in zip(*_DAYS, strict=True)))
HARMFUL = Examples(PAIRS.prompt[:4], PAIRS.undesired[:4])
LABELLED = Labelled(
    [prompt + one for prompt, *both in _DAYS for one in both][:-1], [DESIRED, UNDESIRED] * (len(_DAYS) - 1) + [DESIRED]
)
DATA = FitData(
    pairs=PAIRS,
    examples=Examples(PAIRS.prompt[3:15], [*PAIRS.undesired[3:9], *PAIRS.desired[9:15]]),
    harmful=HARMFUL,  # stands in for what no file of this project may hold
    background=[prompt + desired + "." for prompt, desired, _ in _DAYS[:4]],
    labelled=LABELLED,
)
"""Training data for the checks, which teaches no behaviour."""


class Check(NamedTuple):
    """One promise with its check. by_user: whether the user must fix a SetupError in it, which breaks no promise."""

    name: str
    run: "Callable[[Subject], str]"
    by_user: bool = False


class Result(NamedTuple):
    """The outcome of a check."""

    check: str
    outcome: Literal["PASS", "FAIL", "SKIP"]
    detail: str


def checks() -> list[Check]:
    """Return all checks, in the order in which they run and are printed."""
    from bench.selftest import learning, reading, steering

    return [
        Check("protocol", learning.protocol),
        Check("YAML", learning.yaml),
        Check("suits the model", learning.suits, by_user=True),
        Check("fit leaves no trace", learning.fit, by_user=True),
        Check("artefact", learning.artefact),
        Check("fit again", learning.fit_again),
        Check("shared generators", learning.draws),
        Check("undo", steering.undo),
        Check("strength 0", steering.strength_zero),
        Check("effect", steering.effect),
        Check("grid of strengths", steering.grid),
        Check("where it acts", steering.where),
        Check("cached = uncached", reading.cached),
        Check("left padding", reading.left_padding),
        Check("right padding", reading.right_padding),
        Check("order of prompts", reading.order),
        Check("batch size", reading.batch_size),
        Check("save and load", steering.saved),
        Check("bfloat16", steering.dtype),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if command.asks_help(given):
        show_help()
        return 0
    return command.run(_run, given)


def show_help() -> None:
    """Print the command, its option and a line for each check."""
    out, prog, run = command.overview(), command.called("selftest"), command.called("run")
    out.print(terminal(prog, "bold"), terminal("method=... [model=...] [key=value ...]", "italic"))
    out.print(
        "\n  Checks that a method, on a model, meets the requirements for all methods. It learns from neutral sentences"
        f"\n  that come with the program, so no data is fetched. Keys are those of {run} (method.layer=...).\n"
        "\n  strength=NUMBER   the strength that the checks use; default: the strongest of the method's grid"
        "\n  --results FOLDER  the results folder, as runtime.results=FOLDER; nothing is written there\n"
    )
    table = Table("check", "promise", box=None, padding=(0, 2))
    for check in checks():
        table.add_row(f"[bold]{check.name}[/]", (check.run.__doc__ or "").splitlines()[0])
    out.print(table)
    out.print(
        "\n  Exit code 0: no check failed; 1: one did; 2: the command line or the options do not fit."
        f"\n\n  {prog} method=caa"
        f"\n  {prog} method=mine model=local model.path=FOLDER method.layer=3 strength=2",
        highlight=False,
    )


def _run(given: Sequence[str]) -> int:
    from bench.config import command_line, compose
    from bench.run import validate

    if {"-m", "--multirun"} & set(given):
        raise SetupError("a self-test checks one method on one model; leave out -m, and run the command once for each")
    jobs = compose.jobs(command_line.at_once(given), multirun=True)
    if len(jobs) > 1:
        raise SetupError(f"this names {len(jobs)} cells; a self-test checks one, so run the command once for each")
    (cfg,) = validate.validate_all(jobs)
    if cfg.strength == 0:
        raise SetupError("strength=0 is the unsteered model; give another number, or leave it out")

    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the one bar is ours

    from bench.config.build import build
    from bench.console.progress import Bar
    from bench.run.session import torch_threads
    from bench.selftest.subject import Subject

    began = time.monotonic()
    try:
        method = build(cfg.method)
    except SetupError:
        raise
    except Exception as error:  # the user's class: what it raises is what we are asked to find
        return _told([Result("YAML", "FAIL", _message(error, None))], cfg, began)
    subject = Subject(
        make=lambda: build(cfg.method),
        load=lambda: _load(cfg),
        data=DATA,
        strength=None if cfg.strength == "auto" else float(cfg.strength),
        options=list(cfg.method),
    )
    with Bar(_planned(method)) as bar, torch_threads(cfg.runtime.threads or torch.get_num_threads()):
        results = examine(subject, bar)
    return _told(results, cfg, began, subject)


def _load(cfg: Any) -> "LM":
    """Load the model again."""
    from bench.data.sources import cache_folder
    from bench.model import checkpoint
    from bench.model.lm import load_lm

    node, cache = cfg.model, cache_folder(cfg.runtime.cache)
    published = checkpoint.published(node, cfg.runtime.offline)
    return load_lm(
        checkpoint.fetch(node, cache, cfg.runtime.offline),
        revision=published["commit"] if published is not None else node.revision,
        offline=published is not None,
        dtype=node.dtype,
        device=cfg.runtime.device,
        max_memory=cfg.runtime.get("max_memory"),
        offload=cache / "offload",
        bos=node.bos,
        chat=node.chat,
        thinking=node.get("thinking", "off"),
        parts=checkpoint.parts(node),
    )


def _planned(method: Any) -> dict[str, float]:
    """Estimate the tokens that each check passes through the model."""
    sizes = {
        "pairs": sum(len(text) for column in PAIRS for text in column) + sum(map(len, PAIRS.prompt)),
        "examples": sum(len(text) for column in DATA.examples or () for text in column),
        "harmful": sum(len(text) for column in HARMFUL for text in column),
        "background": sum(map(len, DATA.background or ())),
        "labelled": sum(map(len, LABELLED.text)),
    }
    needs, passes = getattr(method, "needs", ()), getattr(method, "passes", lambda: 1.0)
    fit = passes() * sum(sizes.get(name, 0) for name in needs) / 4
    fits = ("fit leaves no trace", "fit again", "bfloat16")
    return {f"check {check.name}": 300 + (fit if check.name in fits else 0) for check in checks()}


def examine(subject: "Subject", bar: "Bar | None" = None) -> list[Result]:
    """Run every check. Raises SetupError if the method does not suit the model or cannot learn from DATA.

    If a check leaves a trace in the model, the model is loaded again, so that the next check is not blamed for it.
    """
    from bench.console.progress import Bar

    bar = bar or Bar({})
    results: list[Result] = []
    for check in checks():
        with bar.stage(f"check {check.name}", check.name):
            results.append(_result(check, subject))
            broken = any(one.outcome == "FAIL" for one in results)
            if broken and subject.traces():
                subject.lm = subject.load()
    return results


def _result(check: Check, subject: "Subject") -> Result:
    from bench.selftest.subject import Failure, Skipped

    try:
        return Result(check.name, "PASS", check.run(subject))
    except Skipped as reason:
        return Result(check.name, "SKIP", str(reason))
    except Failure as failure:
        return Result(check.name, "FAIL", str(failure))
    except Exception as error:  # a method may raise anything, and the other checks still tell something
        if check.by_user and isinstance(error, SetupError):
            raise
        return Result(check.name, "FAIL", _message(error, inspect.getfile(type(subject.method))))


def _message(error: Exception, file: str | None) -> str:
    """Describe an error: its kind, its text, and its place (the last line in the method's own file, else in any)."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([one for one in frames if one.filename == file] or list(frames))[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def _told(results: Sequence[Result], cfg: Any, began: float, subject: "Subject | None" = None) -> int:
    """Print the table; returns the exit code."""
    out = command.overview()
    colours = {"PASS": "green", "FAIL": "bold red", "SKIP": "yellow"}
    table = Table("check", "result", "detail", box=None, padding=(0, 2, 0, 0))
    for one in results:
        told = terminal(one.detail, lines=True)
        table.add_row(one.check, terminal(one.outcome, colours[one.outcome]), told)
    out.print(table)
    count = {outcome: sum(one.outcome == outcome for one in results) for outcome in colours}
    what = f"{subject.method.name} at strength {subject.strongest:g}" if subject else cfg.method.get("_target_")
    out.print()
    out.print(
        terminal(
            f"{what} on {cfg.model.name}: {count['PASS']} passed, {count['FAIL']} failed, "
            f"{count['SKIP']} skipped, {time.monotonic() - began:.0f} s"
        )
    )
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    command.leave(main())
