"""`steerbench COMMAND ...`: every command of the project under one name. `steerbench run ...` is `python -m bench ...`.

Exit code: the command's own; 2 for an unknown command.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """The module whose `main` takes the arguments and gives the exit code, and what it does in one line."""

    module: str
    about: str


COMMANDS = {
    "run": Command("__main__", "compute a cell or a sweep, then rebuild leaderboard and figures"),
    "leaderboard": Command("leaderboard.__main__", "rebuild the tables from the records, whole or a selection"),
    "plots": Command("plots.__main__", "draw the figures for papers from the records"),
    "report": Command("report.__main__", "write one page: tables, figures, methods, texts side by side"),
    "export": Command("export.__main__", "write a steered model as files that other programs load"),
    "selftest": Command("selftest.__main__", "check that a method meets the requirements for all methods"),
    "rescore": Command("rescore", "judge stored texts by other scorers, without sampling"),
    "agreement": Command("agreement.__main__", "measure how well each scorer agrees with human labels"),
    "reproduction": Command("reproduction", "compare the papers' numbers with ours"),
    "speed": Command("speed.__main__", "measure speed beside transformers and lm-eval"),
    "dpo_link": Command("dpo_link", "compare a fit's subspaces with DPO's first step"),
    "tampering": Command("tampering", "test what fine-tuning leaves of each method's effect"),
    "prefetch": Command("prefetch.__main__", "fetch all that a command needs, for a machine without network"),
    "status": Command("status", "show the progress of a running or stopped sweep"),
    "ls": Command("ls", "list what was computed, one line per cell"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        return _guarded(show_help)
    if given[0] == "--version":
        return _guarded(_show_versions)
    if given[0] == "--complete":
        return _complete(given[1:])
    if given[0] in ("--shell-completion", "-sc"):
        return _guarded(_shell_completion, *given[1:])
    if given[0] not in COMMANDS:
        return _guarded(_unknown, given[0])
    module = importlib.import_module(f"bench.{COMMANDS[given[0]].module}")
    return int(module.main(given[1:]))


def _guarded(work: Callable[..., int | None], *arguments: str) -> int:
    """Run a function that prints, with the error handling of every command."""
    from bench.console import command

    return command.run(work, *arguments)


def script() -> NoReturn:
    """The entry point of the installed program."""
    stopping.begin()
    from bench.console import command

    command.leave(main())


def show_help() -> None:
    """Print a line for each command."""
    longest = max(map(len, COMMANDS))
    print("steerbench COMMAND ...   compare ways of steering a language model\n")
    for name, one in COMMANDS.items():
        print(f"  {name:{longest}}  {one.about}")
    print("\n`steerbench COMMAND --help` has the options of each; `steerbench --version` has the versions.")
    print("`steerbench --shell-completion bash`, zsh or fish prints a script that completes commands with the tab key.")


def _show_versions() -> None:
    from bench.console import command

    command.show_versions()


def _complete(line: Sequence[str]) -> int:
    """Print the words that may complete a shell's command line; the script in the shell throws errors away."""
    from bench.config import completion

    modules = {name: one.module for name, one in COMMANDS.items()}
    print("\n".join(completion.words(line[0] if line else "", modules)))
    return 0


def _shell_completion(*shells: str) -> int:
    from bench.config import completion

    print(completion.script(shells[0] if shells else ""), end="")
    return 0


def _unknown(name: str) -> int:
    import difflib

    from bench.console.escape import visible

    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
    if "=" in name:
        hint = "; to compute a cell, begin with `steerbench run`"
    print(f"steerbench: error: no command {visible(name)!r}{hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    script()
