"""`python -m bench.prefetch`: fetch all that a cell or a sweep needs, for machines without network. See `--help`.

Exit code 0: everything was fetched; 2: the user must fix something, all else was fetched; 130: Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from bench.console import command
from bench.console.command import console
from bench.console.escape import terminal
from methods.errors import SetupError

if TYPE_CHECKING:
    from bench.hub.manifest import Entry
    from bench.prefetch.fetching import Failed, Step

OPTION = "--manifest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if command.asks_help(given):
        return command.run(_help)
    return command.run(_run, given, stopped="what has arrived is kept, and the same command goes on")


def _help() -> None:
    page = command.overview()
    name = command.called("prefetch")
    page.print(f"usage: {name} [{OPTION} FILE] ARGUMENTS\n", markup=False)
    page.print(
        "Fetches what the command with the same ARGUMENTS needs: model and tokenizer, data sets, wheels, classifiers "
        "of scorers. No model is loaded. An interrupted download continues where it stopped. Afterwards the command "
        "runs without network if runtime.offline=true is set. A launcher's options change nothing here, and with "
        "runtime.dry_run=true the parts are only listed.",
        markup=False,
    )
    page.print(
        f"\n  {name} experiment=quickstart\n  {name} -m method=caa,detox model=hub model.id=ORG/NAME "
        f"model.revision=main\n\n{OPTION} FILE   write the list of what was fetched to FILE, with sizes and hashes "
        "(default: a file in the cache's manifests/)",
        markup=False,
    )


def _run(given: Sequence[str]) -> int:
    from bench.config import command_line, compose, launch_arguments
    from bench.hub import network
    from bench.prefetch import fetching
    from bench.run import validate

    overrides, target = _manifest(given)
    multirun = bool({"-m", "--multirun"} & set(overrides))
    overrides = command_line.with_results([one for one in overrides if one not in ("-m", "--multirun")])
    overrides, _ = launch_arguments.split(overrides)
    configs = validate.validate_all(compose.jobs(overrides, multirun))
    if all(cfg.runtime.offline for cfg in configs):
        network.forbid()
    began = time.monotonic()
    todo = fetching.steps(configs)
    if any(cfg.runtime.get("dry_run") for cfg in configs):
        for step in todo:
            command.overview().print(terminal(step.label))
        parts = f"{len(todo)} part{'s' if len(todo) != 1 else ''}"
        console.print(
            f"{parts}; runtime.dry_run=true: nothing was fetched, and what is there already was not looked for"
        )
        return 0

    def tell(number: int, step: "Step") -> None:
        spent = time.monotonic() - began
        left = f", about {spent / number * (len(todo) - number):.0f} s left" if number and spent > 5 else ""
        console.print(terminal(f"{number + 1}/{len(todo)}  {step.label}{left}"))

    entries, failed = fetching.fetch(todo, tell)
    if entries:
        written = fetching.as_json(entries, overrides)
        place = target or _default_place(configs[0].runtime.cache, overrides)
        _write(place, written)
        _show(entries, written)
        console.print(terminal(f"manifest     {place}"))
    return _told(entries, failed)


def _manifest(given: Sequence[str]) -> tuple[list[str], Path | None]:
    """Split --manifest from the arguments; returns the rest, and its file. Raises SetupError if it names no file."""
    left, target, wanted = list[str](), None, iter(given)
    for one in wanted:
        if one != OPTION and not one.startswith(f"{OPTION}="):
            left.append(one)
            continue
        named = one.partition("=")[2] or next(wanted, "")
        if not named or Path(named).is_dir():
            raise SetupError(f"{OPTION} {named}: expected the file to write, as in {OPTION} fetched.json")
        target = Path(named)
    return left, target


def _default_place(cache: str | None, arguments: Sequence[str]) -> Path:
    from bench.data.sources import cache_folder
    from bench.records.identity import digest

    return cache_folder(cache) / "manifests" / f"{digest(list(arguments))}.json"


def _write(place: Path, written: dict[str, object]) -> None:
    from bench.files.atomic import write_whole

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(written, indent=1) + "\n")
    except OSError as error:
        raise SetupError(f"{place} cannot be written: {command.refused(error)}") from error


def _show(entries: Sequence["Entry"], written: dict[str, object]) -> None:
    """Print a line for each file."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what", "file", "commit", "size", "sha256"):
        shown.add_column(title, justify="right" if title == "size" else "left", no_wrap=title != "file")
    files = written["files"]
    assert isinstance(files, list)
    for one, about in zip(entries, files, strict=True):
        cells = (one.what, one.file, (one.commit or "")[:12], _bytes(about["bytes"]), about["sha256"][:12])
        shown.add_row(*map(terminal, cells))
    command.overview().print(shown)


def _bytes(number: int) -> str:
    """Write a size in bytes with a unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} B"


def _told(entries: Sequence["Entry"], failed: Sequence["Failed"]) -> int:
    """Say what was fetched and what could not be fetched; returns the exit code."""
    from bench.prefetch.fetching import size

    total, new = sum(size(one.path) for one in entries), [one for one in entries if one.new]
    what = f"{len(entries)} file{'s' if len(entries) != 1 else ''}, {_bytes(total)}"
    fetched = f"{len(new)} fetched now, {_bytes(sum(size(one.path) for one in new))}" if new else "all were there"
    for why in dict.fromkeys(one.why for one in failed):
        labels = ", ".join(one.label for one in failed if one.why == why)
        command.complain(f"{labels}: {why}")
    if failed:
        there = f"{what}; {fetched}" if entries else "nothing was fetched"
        console.print(terminal(f"{there}; the parts above are lacking; the same command tries them again"))
        return 2
    console.print(terminal(f"{what}; {fetched}. Without network, run with runtime.offline=true"))
    return 0


if __name__ == "__main__":
    command.leave(main())
