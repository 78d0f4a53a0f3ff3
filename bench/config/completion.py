"""What the tab key offers after `steerbench`: commands, groups with their choices, options. Nothing heavy is imported.

Hydra's own completion asks an application that Hydra starts; here a shell asks `steerbench --complete LINE`. The answer
is made from the YAML files and from the source of the other commands, without building their parsers.
"""

import ast
import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.console.command import FILTERS
from methods.errors import SetupError

SCRIPTS = {
    "bash": """# Completion for bash; put this line into ~/.bashrc: eval "$(steerbench --shell-completion bash)"
_steerbench() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n' word cut=""
    word="${line##* }"
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then cut="${word%"${word##*=}"}"; fi
    COMPREPLY=($(steerbench --complete "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -o nospace -F _steerbench steerbench
""",
    "zsh": """#compdef steerbench
# Completion for zsh; put this line into ~/.zshrc, below compinit: eval "$(steerbench --shell-completion zsh)"
_steerbench() {
    local -a found
    found=("${(@f)$(steerbench --complete "$LBUFFER" 2>/dev/null)}")
    compadd -Q -U -S '' -- "${found[@]}"
}
compdef _steerbench steerbench
""",
    "fish": """# Completion for fish; put this line into config.fish: steerbench --shell-completion fish | source
complete -c steerbench -f -a '(steerbench --complete (commandline -cp) 2>/dev/null)'
""",
}
CONFIGURED = ("run", "prefetch", "export", "selftest", "rescore", "agreement", "speed")
"""Commands that take key=value."""
OF_RUN = (
    "-m", "--multirun", "--cfg", "--resolve", "--config-dir", "--results", "--help", "--version", "add=[", "sweep=null",
)  # fmt: skip


def script(shell: str) -> str:
    """Return the script by which a shell asks for completions here. Raises SetupError for an unknown shell."""
    name = shell.removeprefix("install=").removeprefix("query=")
    if name not in SCRIPTS:
        raise SetupError(f"--shell-completion {shell}: write --shell-completion with one of {', '.join(SCRIPTS)}")
    return SCRIPTS[name]


def words(line: str, commands: Mapping[str, str]) -> list[str]:
    """Return the sorted words to which the last word of a command line can be completed.

    line: the command line up to the cursor. commands: the module in bench/ of each command.
    """
    given = _split(line)
    if len(given) < 2:
        return []
    if len(given) == 2:
        return _matching([*commands, "--help", "--version", "--shell-completion"], given[1])
    command, before, last = given[1], given[2:-1], given[-1]
    if command == "--shell-completion":
        return _matching(SCRIPTS, last)
    if command not in commands:
        return []
    if before and before[-1] in ("--cfg", "-c") and command == "run":
        return _matching(["job", "all", "hydra"], last)
    if before and before[-1] == "--help":
        return _matching(["all", *_groups()], last)
    options = OF_RUN if command == "run" else _options_of(commands[command])
    keys = list(_keys(before, last)) if command in CONFIGURED and not last.startswith("-") else []
    return _matching([*(one for one in options if last or not one.startswith("-")), *keys], last)


def _split(line: str) -> list[str]:
    """Split a line into words, of which the last may be empty or have an open quote."""
    for end in ("", "'", '"'):
        try:
            found = shlex.split(line + end)
        except ValueError:
            continue
        return [*found, ""] if line[-1:].isspace() and not end else found
    return line.split()


def _matching(names: Any, start: str) -> list[str]:
    return list(dict.fromkeys(name for name in names if name.startswith(start)))


def _groups() -> dict[str, list[str]]:
    from bench.config import folders

    return folders.groups()


def _keys(before: Sequence[str], last: str) -> Iterator[str]:
    """Yield key=value words: choices after `group=`, options after `group.`, else groups and options of every cell."""
    from bench.config import folders

    groups, listed = _groups(), folders.defaults()
    key, equals, value = last.partition("=")
    if equals:
        if key.lstrip("+") in groups:
            several = not isinstance(listed[key.lstrip("+")], str | None)
            yield from _choices(key, value, groups[key.lstrip("+")], several)
        return
    if "." in key:
        group = key.partition(".")[0]
        for name in _chosen(before, group, groups, listed):
            prefix = f"{group}.{name}." if group in ("suite", "scorer") else f"{group}."
            for place in folders.folders():
                yield from (f"{option}=" for option in _written(place / group / f"{name}.yaml", prefix))
        return
    for name in groups:
        yield f"{name}="
        yield f"{name}."
    yield from (f"{option}=" for option in _written(folders.folder() / "config.yaml", ""))


def _choices(key: str, value: str, names: Sequence[str], several: bool) -> Iterator[str]:
    """Yield choices of a group; in a list or a sweep, those that may follow the last comma."""
    done, comma, _ = value.rpartition(",")
    for name in names:
        if several:
            yield f"{key}={done}{comma}{name}" if comma else f"{key}=[{name}"
        else:
            yield f"{key}={done}{comma}{name}"


def _chosen(before: Sequence[str], group: str, groups: dict[str, list[str]], listed: dict[str, Any]) -> list[str]:
    """Return the choices of a group in this command line, or its default choices."""
    named = [one.partition("=")[2] for one in before if one.lstrip("+").startswith(f"{group}=")]
    if named:
        chosen = named[-1].strip("[]").split(",")
    else:
        default = listed.get(group)
        chosen = [] if default is None else [default] if isinstance(default, str) else list(default)
    return [one for one in chosen if one in groups.get(group, ())]


def _written(file: Path, prefix: str) -> list[str]:
    """Return the full names of the options of a YAML file."""
    from bench.config import help

    return [name for name, *_ in help._written(file, prefix)] if file.is_file() else []


@functools.cache
def _options_of(module: str) -> list[str]:
    """Return the options of a command that begin with dashes, read from its source."""
    file = Path(__file__).parents[1] / (module.replace(".", "/") + ".py")
    found = ["--help"]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        arguments = node.args if isinstance(node, ast.Call) else []
        texts = [one.value for one in arguments if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if name == "add_argument":
            found += [text for text in texts if text.startswith("--")]
        elif name == "shared":
            every = FILTERS if any(isinstance(one, ast.Starred) for one in arguments) else ()
            found += ["--results", *(f"--{text}" for text in (*texts, *every))]
    return list(dict.fromkeys(found))
