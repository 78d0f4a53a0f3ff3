"""What every command does alike: errors and Ctrl-C become one message and an exit code, never a traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console

from bench.escape import terminal, visible
from methods.errors import SetupError

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For whatever is told beside the result itself."""
OVERVIEW_WIDTH = 120
"""Columns of a help page that goes to a file or a pipe."""


class Parser(argparse.ArgumentParser):
    """The parser of every command that has options; what was typed comes back in its messages, as inert text."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {visible(message)}\n")


def run(work: Callable[..., int | None], *arguments: Any, stopped: str = "nothing was written") -> int:
    """The exit code: that of work(*arguments), 0 for none; 2: the user must mend something; 130: stopped by Ctrl-C.

    stopped: what that means for what was computed so far.
    """
    try:
        return work(*arguments) or 0
    except SetupError as error:
        for line in visible(error, lines=True).split("\n"):
            console.print(terminal("error:", "bold red"), terminal(line))
        return 2
    except KeyboardInterrupt:
        console.print(f"stopped; {stopped}")
        return 130


def asks_help(arguments: list[str]) -> bool:
    """For commands whose arguments are key=value: they are not argparse's."""
    return not arguments or bool({"-h", "--help"} & set(arguments))


def overview() -> Console:
    """Where a help page is printed."""
    return Console(width=None if Console().is_terminal else OVERVIEW_WIDTH, highlight=False)
