"""Read the arguments of a command line with Hydra's parser, and say what is wrong with arguments that it refuses."""

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import ListConfig

from bench.config import old_spellings
from bench.config.experiment import IN_A_FILE, KEYS
from bench.config.folders import NAMED, defaults, groups, top_keys
from bench.config.values import near, shown
from bench.console.escape import HIDDEN
from methods.errors import SetupError

MOST = 10_000  # values that one argument sweeps over
LONGEST = 500  # letters of an argument that is shown whole
UNREADABLE = (HydraException, ValueError, TypeError, AttributeError, RecursionError)
"""Errors by which Hydra's parser refuses an argument."""
PLUS = re.compile(r"\+{1,2}(?=experiment=)")
"""What Hydra's users write before an experiment; here the group is always there, so it adds nothing."""
WRITE = "write key=value, for example method=caa suite.rtp.k=5; see --help"
FLAGS = {
    ("--cfg", "-c"): "--cfg job after python -m bench prints the config of every cell and runs nothing",
    ("--resolve",): "it belongs to --cfg job, which then prints values in place of interpolations",
    ("--package", "-p"): "a part of a config is not printed; --cfg job prints all of it",
    ("--info", "-i"): "--help all lists every option here, and --cfg job prints the config of every cell",
    ("--hydra-help",): "Hydra's own options are not known here; --help all lists those that are",
    ("--version",): "steerbench --version or python -m bench --version prints the versions",
    ("--run", "-r"): "a command runs anyway; leave it out",
    ("--experimental-rerun",): "the same command again computes what is missing; leave it out",
    ("--config-name", "-cn"): f"a config of your own is an experiment: {NAMED}=[FOLDER] experiment=NAME",
    ("--config-path", "-cp", "--config-dir", "-cd"): f"write {NAMED}=[FOLDER], laid out as conf/ is",
    ("--shell-completion", "-sc"): "steerbench --shell-completion bash, zsh or fish prints the script for that shell",
}
"""Options of Hydra's own launcher, by their names, and what there is in their place."""


def parse(arguments: Sequence[str]) -> list[Override]:
    """Parse the overrides of a command line.

    Raises SetupError that lists each argument that is not an override, with the right spelling if it is known.
    """
    found, problems = list[Override](), list[str]()
    left = [PLUS.sub("", argument) for argument in old_spellings.arguments(arguments)]
    while left:
        argument = left.pop(0)
        if argument.startswith("-"):
            word = bool(left) and bool(left[0]) and not left[0].startswith("-") and "=" not in left[0]
            problems.append(_no_flag(argument, left.pop(0) if word else ""))
        elif argument.lstrip("+~").startswith(("=", "@")):
            problems.append(f"{_told(argument)}: there is no key before the equals sign; {WRITE}")
        else:
            try:
                found += OverridesParser.create().parse_overrides([argument])
                found[-1].value()  # what a word such as range(...) comes to
            except UNREADABLE:
                problems.append(_unreadable(argument))
    if problems:
        raise SetupError("\n".join(problems))
    return found


def _no_flag(flag: str, word: str) -> str:
    """Say what to write instead of an argument that begins with a dash; word: the next one, which may belong to it."""
    told = f"{_told(flag)}{f' {_told(word)}' if word else ''}"
    name, _, value = flag.partition("=")
    value = value or word or "VALUE"
    if instead := next((text for names, text in FLAGS.items() if name in names), None):
        return f"{told}: {instead}"
    plain = name.lstrip("-")
    if plain.partition(".")[0] in top_keys():
        return f"{told}: a key has no dash before it; write {typed(f'{plain}={value}')}"
    hint = near(name, ["--multirun", "--help", "--cfg", "--results", "--version"])
    return f"{told}: there is no such option{f'; {WRITE}' if hint == '.' else hint}"


def _unreadable(argument: str) -> str:
    """Say what is wrong with an argument that Hydra cannot read."""
    key, equals, value = argument.partition("=")
    told, key = _told(argument), key.lstrip("+~")
    if not argument.strip():
        return f"{argument!r}: an argument is empty, perhaps from a shell variable without a value; leave it out"
    if any("\ud800" <= one <= "\udfff" for one in argument):
        return f"{told}: it has bytes that are not UTF-8; if it names a file, rename the file"
    if not equals and key.partition(".")[0] in top_keys():
        return f"{told}: it has no value; {WRITE}"
    if not equals and key.isidentifier() and _is_command(key):
        return f"{told}: a command of its own; write python -m bench.{key}, or steerbench {key}"
    several = re.split(r"[,\s]+(?=[+~]*[\w./@]+=)", argument)
    if len(several) > 1 and all(re.split(r"[=./@]", one.lstrip("+~"))[0] in top_keys() for one in several):
        return f"{told}: these are several arguments; write them apart: {' '.join(map(typed, several))}"
    if key in groups():
        names = "[NAME,NAME]" if isinstance(defaults()[key], ListConfig) else "NAME"
        return f"{told}: cannot be read; write {key}={names}, with names that --help lists"
    if (first := key.partition(".")[0]) in KEYS:
        return f"{told}: {first} {IN_A_FILE}"
    if shell := quoted(argument):
        shell = shell if len(shell) <= LONGEST else f"'{_told(key)}=\"...\"', in both kinds of quotes"
        return f"{told}: the value has characters that need quotes of their own; write {shell}"
    if value.startswith(("[", "{")):
        return f'{told}: cannot be read; put texts with special characters in quotes, as in key=["a=b",c]'
    return f"{told}: cannot be read; {WRITE}"


def _is_command(name: str) -> bool:
    """Return whether `python -m bench.NAME` is a command: a module that runs, or a folder with a `__main__`."""
    place = Path(__file__).parents[1]
    module = place / f"{name}.py"
    runs = module.is_file() and '__name__ == "__main__"' in module.read_text("utf-8")
    return runs or (place / name / "__main__.py").is_file()


def _told(argument: str) -> str:
    """Return an argument as one line of a message, cut if it is long."""
    return shown(argument).replace("\n", "\\n")


def typed(argument: str) -> str:
    """Return an argument as one types it in bash or zsh, with invisible characters escaped."""
    if not HIDDEN.search(argument):
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{HIDDEN.sub(_escape, escaped)}'"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


ITEM = re.compile(r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,]*?)\s*(?:,|$)""", re.DOTALL)


def quoted(argument: str) -> str | None:
    """Put an argument's value, or the items of its list that need it, in quotes that Hydra and a shell understand."""
    key, equals, value = argument.partition("=")
    if not equals or not value.strip() or (value[0] == "{" and value[-1] == "}"):
        return None
    if len(value) > 2 and value[0] == "[" and value[-1] == "]":
        items = [one for one in ITEM.findall(value[1:-1]) if one]
        if any(one.count(left) != one.count(right) for one in items for left, right in ("[]", "{}")):
            return None  # lists in lists
        text = "[" + ",".join(one if _is_read(f"key={one}") else _in_quotes(one) for one in items) + "]"
    else:
        text = _in_quotes(value)
    line = f"{key}={text}"
    return typed(line) if _is_read(line) else None


def _is_read(argument: str) -> bool:
    """Return whether Hydra reads this argument, and as one value."""
    try:
        (found,) = OverridesParser.create().parse_overrides([argument])
    except UNREADABLE:
        return False
    return not found.is_sweep_override()


def _in_quotes(text: str) -> str:
    """Put a text in Hydra's quotes, in place of quotes that it has already."""
    bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return QuotedString(bare, Quote.double).with_quotes()


RANGE = (
    "write {key}=range(START,STOP,STEP), which counts from START by STEP and ends before STOP, as in {key}=range(1,4)"
)


def product(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield every combination of the swept values, as override strings.

    Raises SetupError for an override that sweeps over no value, or over too many.
    """
    choices = []
    for one in overrides:
        if one.is_sweep_override():
            key = one.get_key_element()
            try:
                values = list(itertools.islice(one.sweep_string_iterator(), MOST + 1))
            except (ValueError, ArithmeticError, HydraException) as error:  # a step of 0, a bound that is no number
                raise SetupError(
                    f"{one.input_line!r} cannot be expanded to a list of values; {RANGE.format(key=key)}"
                ) from error
            if len(values) > MOST:
                raise SetupError(f"{one.input_line!r} sweeps over more than {MOST} values; name fewer")
            if not values:
                raise SetupError(f"{one.input_line!r} names no value, so nothing would run; {RANGE.format(key=key)}")
            choices.append([f"{key}={value}" for value in values])
        else:
            assert one.input_line is not None
            choices.append([one.input_line])
    for combination in itertools.product(*choices):
        yield list(combination)


FOLDER_OPTIONS = {"--results": "runtime.results=FOLDER", **dict.fromkeys(("--config-dir", "-cd"), f"{NAMED}=[FOLDER]")}
"""Options that a folder follows, with the override that says the same."""


def with_results(arguments: Sequence[str]) -> list[str]:
    """Replace `--results FOLDER` and `--config-dir FOLDER` in the arguments by overrides that mean the same.

    Folders of YAML files become one list, in whichever way they are named. Raises SetupError if no folder follows.
    """
    left, places, rest = list[str](), list[str](), iter(arguments)
    for argument in rest:
        name, equals, folder = argument.partition("=")
        if name not in FOLDER_OPTIONS:
            left.append(argument)
            continue
        folder = folder if equals else next(rest, "")
        if not folder:
            raise SetupError(f"{name}: it has no value; write {name} FOLDER, or {FOLDER_OPTIONS[name]}")
        plain = re.fullmatch(r"[A-Za-z_./][\w./+-]*", folder)
        text = folder if plain else QuotedString(folder, Quote.double).with_quotes()
        if name == "--results":
            left.append(f"runtime.results={text}")
        else:
            places.append(text)
    if not places:
        return left
    written = [one for one in left if one.startswith(f"{NAMED}=")]
    before = [inner for one in written if (inner := one.partition("=")[2].removeprefix("[").removesuffix("]"))]
    return [*(one for one in left if one not in written), f"{NAMED}=[{','.join([*before, *places])}]"]


def at_once(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command that has no dry run. Raises SetupError if they ask for one."""
    left = with_results(arguments)
    for one in left:
        if one.lstrip("+").startswith("runtime.dry_run=") and not one.lower().endswith("=false"):
            raise SetupError(f"{one}: only python -m bench and python -m bench.prefetch have a dry run; leave it out")
    return left


class Printed(NamedTuple):
    """What `--cfg` prints: the config of the cells, Hydra's, or both. resolved: whether `${...}` is resolved."""

    part: Literal["job", "all", "hydra"]
    resolved: bool


def without_cfg(arguments: Sequence[str]) -> tuple[list[str], Printed | None]:
    """Split `--cfg job` and `--resolve` from the arguments; returns the rest, and what to print (None for no config).

    Raises SetupError for a word other than job, all and hydra.
    """
    left, part, rest = list[str](), "", iter(arguments)
    for argument in rest:
        name, equals, word = argument.partition("=")
        if name not in ("--cfg", "-c"):
            left.append(argument)
            continue
        part = word if equals else next(rest, "")
        if part not in get_args(Printed.__annotations__["part"]):
            got = f"{name}={_told(part)}" if equals else f"{name} {_told(part)}" if part and "=" not in part else name
            raise SetupError(
                f"{got}: write {name} job, which prints the config of every cell and runs nothing; all also prints "
                "Hydra's own config, and hydra prints only that one"
            )
    if not part:
        return left, None
    resolved = "--resolve" in left
    return [one for one in left if one != "--resolve"], Printed(cast(Literal["job", "all", "hydra"], part), resolved)


KEY = re.compile(r"\s*[+~]*[\w./@]+=")


def without_added(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `add=[...]` from the arguments; returns the rest, and the entries: settings, separated by blanks.

    A comma ends an entry only if a key follows; any other comma is part of a value, as in strength=1,2. So it does not
    matter that a shell removes quotes. Raises SetupError if the brackets hold no entry.
    """
    left, lines = list[str](), list[str]()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key.lstrip("+") != "add" or not equals:
            left.append(argument)
            continue
        found = list[str]()
        for part in _at_commas(text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text):
            if KEY.match(part) or not found:
                found.append(part)
            else:
                found[-1] += f",{part}"
        if not found or not all(KEY.match(one) for one in found):
            raise SetupError(
                f"{_told(argument)}: add=[method=NAME] adds a cell, and 'add=[method=NAME strength=1,2]' two cells; "
                "further ones follow a comma"
            )
        lines += found
    return left, lines


def _at_commas(text: str) -> list[str]:
    """Split a text at commas outside brackets and quotes; quotes around a whole part are removed."""
    parts, depth, quote, start = list[str](), 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    parts = [part.strip() for part in [*parts, text[start:]]]
    return [one[1:-1] if len(one) > 1 and one[0] == one[-1] and one[0] in "'\"" else one for one in parts if one]


def alone(run: str, overrides: Sequence[str]) -> str:
    """Return the command that runs only the cell with these overrides. run: how this program is called."""
    no_sweep = ["sweep=null"] if any(one.lstrip("+").startswith("experiment=") for one in overrides) else []
    return " ".join([run, *map(typed, [*overrides, *no_sweep])])
