"""Functions that all commands share: parsers, and the handling of errors and Ctrl-C by a message and an exit code."""

import argparse
import atexit
import difflib
import errno
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from bench.console import stopping
from bench.console.escape import terminal, visible
from methods.errors import SetupError

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Prints messages to stderr, so that stdout holds the result alone."""
OVERVIEW_WIDTH = 120
"""Columns of a help page that goes to a file or a pipe."""


NEXT_STEP = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        "free some space there, or write elsewhere (runtime.results, runtime.cache, --results)",
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "get the right to read and write it, or name another"),
}


RESULTS_KEY = "runtime.results"
"""The results folder in the configuration, which every command also takes as `--results FOLDER`."""
PACKAGES = ("steerbench", "torch", "transformers", "lm-eval")
"""Packages whose versions `--version` prints."""


LIKENESS = 0.66
"""How alike a name must be to one that is offered in its place, as a ratio of `difflib`."""
UNKNOWN = "unrecognized arguments: "
"""How argparse begins its message about what it does not know."""


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that a user probably meant; None if none is like it."""
    found = difflib.get_close_matches(name, known, 1, LIKENESS)
    return found[0] if found else None


class Parser(argparse.ArgumentParser):
    """The parser of every command that has options; its messages show what was typed as inert text."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read `runtime.results=X` as `--results X`, and any other `key=value` as the option --key if there is one.

        An unknown option is an error at once, so that the word after it is not taken for an argument of the command.
        """
        given = [self._as_option(one) for one in (sys.argv[1:] if args is None else args)]
        for name in (one.partition("=")[0] for one in itertools.takewhile("--".__ne__, given)):
            if name.startswith("--") and not any(known.startswith(name) for known in self._option_string_actions):
                self.error(f"{UNKNOWN}{name}")
        return super().parse_known_args(given, namespace)

    def _as_option(self, argument: str) -> str:
        key, equals, value = argument.partition("=")
        option = "--results" if key == RESULTS_KEY else f"--{key}"
        return f"{option}={value}" if equals and option in self._option_string_actions else argument

    def error(self, message: str) -> NoReturn:
        """Print usage and message, with the option that an unknown one is nearest to, and exit with 2."""
        if message.startswith(UNKNOWN):
            name = message.removeprefix(UNKNOWN).partition("=")[0]
            known = {one.lstrip("-"): one for one in [*self._option_string_actions, RESULTS_KEY]}
            near = nearest(name.lstrip("-"), list(known))
            message += f"; did you mean {known[near]}?" if near else "; --help lists what there is"
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {visible(message)}\n")


RESULTS = Path("results")
"""The results folder that is used where none is named."""
RESULTS_HELP = f"folder that holds runs/ (default: %(default)s); {RESULTS_KEY}=FOLDER is the same"
FILTERS = ("model", "suite", "family", "method")
"""What records can be selected by, each an option that takes several names with commas."""


def shared(*filters: str, stays: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of options that several commands share: --results, and the given `filters`, which are of FILTERS.

    A command's parser takes it as one of its `parents`. stays: filters that keep the unsteered model.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=RESULTS_HELP)
    for name in filters:
        kept = "; the unsteered model stays" if name in stays else ""
        text = f"only this {name}, or several with commas{kept}"
        parser.add_argument(f"--{name}", type=lambda given: given.split(","), metavar=name.upper(), help=text)
    return parser


def parser(
    name: str, description: str, *, epilog: str = "", parents: Sequence[argparse.ArgumentParser] = (), raw: bool = False
) -> Parser:
    """Make the parser of the command `name`. "{prog}" in the epilog is replaced by the way in which it was called.

    raw: whether the line breaks of the epilog are kept.
    """
    kind = argparse.RawDescriptionHelpFormatter if raw else argparse.HelpFormatter
    prog = called(name)
    told = epilog.replace("{prog}", prog)
    return Parser(prog=prog, description=description, epilog=told, parents=list(parents), formatter_class=kind)


def called(name: str) -> str:
    """Return how to call the command `name`, in the way in which this process was called.

    Examples are `steerbench plots` or `python -m bench.plots`, and `steerbench run` or `python -m bench`.
    """
    if Path(sys.argv[0]).stem == "steerbench":
        return f"steerbench {name}"
    return "python -m bench" if name == "run" else f"python -m bench.{name}"


def run(
    work: Callable[..., int | None], *arguments: Any, stopped: str | Callable[[], str] = "nothing was written"
) -> int:
    """Run work(*arguments) and return its exit code, 0 if it returns None.

    2: the user must fix something, be it a setting, a file or a full disk. 1: something called `sys.exit`. 130, 143:
    stopped by Ctrl-C, by SIGTERM (`bench.console.stopping`). stopped: the text, or a function that makes it, which
    tells the user what is kept after a signal.
    """

    def farewell(number: int | None) -> None:
        by = f" by {stopping.name_of(number)}" if number else ""
        console.show_cursor(True)  # a bar may have hidden it
        console.print(terminal(f"stopped{by}; {stopped if isinstance(stopped, str) else stopped()}"))

    _standard_streams()
    with stopping.orderly(farewell):
        try:
            code = work(*arguments) or 0
            if (number := stopping.asked()) is None:
                return code
            console.print(terminal(f"{stopping.name_of(number)} came when the work was done"))
            return stopping.exit_code(number)
        except BaseException as error:
            if (number := stopping.asked()) is not None:  # even if a library has replaced the error
                farewell(number)
                return stopping.exit_code(number)
            if isinstance(error, KeyboardInterrupt):
                farewell(None)
                return 130
            return _told(error)


def _told(error: BaseException) -> int:
    """Print what ended the work and return the exit code. Re-raises an error that is a defect of the program."""
    if isinstance(error, SetupError):
        complain(str(error))
        return 2
    pipe = error.__context__ if isinstance(error, SystemExit) else error  # rich makes a SystemExit of it
    if isinstance(pipe, BrokenPipeError):  # whoever read what is printed has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.errno is not None:
        complain(of_system(error))
        return 2
    if isinstance(error, SystemExit):
        complain(f"something that was called ended the program by sys.exit({error.code!r}); nothing more was done")
        return 1
    raise error


def _standard_streams() -> None:
    """Replace a closed stream by one that discards what is printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  for the rest of the process


def leave(code: int) -> NoReturn:
    """End the process with this exit code; after a signal at once, since threads of libraries may be at work."""
    if code <= stopping.exit_code(0):
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def complain(message: str) -> None:
    """Print an error, each line marked as one."""
    for line in visible(message, lines=True).split("\n"):
        console.print(terminal("error:", "bold red"), terminal(line))


def of_system(error: OSError) -> str:
    """Return a message that says what the system refused, on which file, and the next step."""
    return (f"{error.filename}: " if error.filename else "") + refused(error)


def refused(error: OSError) -> str:
    """Return a message that says why the system refused something, and the next step."""
    step = NEXT_STEP.get(error.errno or 0, "check that the file can be read and written")
    return f"{error.strerror or error}; {step}, and run the same command again"


def asks_help(arguments: list[str]) -> bool:
    """Return whether a command whose arguments are key=value, without argparse, should print its help."""
    return not arguments or bool({"-h", "--help"} & set(arguments))


def show_versions() -> None:
    """Print the versions of this package, of Python and of PACKAGES, from their metadata."""
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{name} {version}")
    print(f"python {sys.version.split()[0]}")


def overview() -> Console:
    """Return the console on which help pages are printed."""
    return Console(width=None if Console().is_terminal else OVERVIEW_WIDTH, highlight=False)
