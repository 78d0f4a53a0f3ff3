"""The pages of `python -m bench --help`, made from the YAML files and their comments.

PyYAML says where each option stands, and its comment is the rest of that line. A parser that keeps comments, as ruamel
does, would be a dependency for this page alone.
"""

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text
from yaml.nodes import MappingNode, Node, SequenceNode

from bench.config.plugins import Plugin
from bench.config.values import near, shown
from bench.console.command import OVERVIEW_WIDTH, called, overview
from bench.console.escape import terminal, visible
from methods.errors import SetupError

COMMENT = 120
"""Columns at which the comments of the YAML files are wrapped."""
COLUMN = 54
"""Letters of the longest command on the first page."""
FLAGS = {
    "-m, --multirun": "sweep over comma-separated values",
    "--results FOLDER": "where results go; the same as runtime.results=FOLDER, in every command",
    "--config-dir FOLDER": "YAML files of your own, laid out as conf/; the same as hydra.searchpath=[FOLDER]",
    "--cfg job|all": "print the config of every cell (all: with Hydra's) and run nothing; --resolve replaces ${...}",
    "add=[method=NAME]": "a cell beside those of an experiment; two: 'add=[method=NAME strength=1,2]'",
    "--help [all|GROUP]": "this page, or each option of one group or of all, with its default and meaning",
    "--version": "the versions of steerbench, torch, transformers and lm-eval",
}
GROUPS = {
    "model": "what is steered",
    "method": "how it is steered",
    "pairs": "contrast pairs that the methods learn from",
    "examples": "what an attacker fine-tunes on",
    "harmful": "harmful texts: security vectors, DExperts, task negation",
    "background": "ordinary texts that a method compares with",
    "labelled": "single labelled texts, in place of pairs",
    "suite": "what is measured; a list: suite=[rtp,fluency]",
    "scorer": "what judges a text; a list: scorer=[profanity_check,lexicon]",
    "sampling": "how texts are decoded",
    "tuning": "objective and bounds of strength=auto",
    "runtime": "where it runs",
    "experiment": "a whole sweep",
    "launcher": "how a sweep's cells are distributed",
}


def show(conf: Path, plugins: Sequence[Plugin] = (), topic: str | None = None) -> None:
    """Print the first page; with a topic, print all groups or one group, with every option of every choice.

    Raises SetupError if the topic is neither "all" nor a group.
    """
    if topic is None:
        _first_page(conf, plugins)
        return
    if topic not in ("all", *GROUPS):
        holding = [group for group in GROUPS if (conf / group / f"{topic}.yaml").is_file()]
        hint = f"; it is a choice of {holding[0]}: --help {holding[0]}" if holding else near(topic, ["all", *GROUPS])
        more = " --help all lists every option" if hint == "." else ""
        raise SetupError(f"--help {visible(topic)}: there is no such group{hint}{more}")
    out = overview()
    if topic == "all":
        out.print("[bold]options of every cell[/]")
        _options(out, conf / "config.yaml", "")
    for group in GROUPS if topic == "all" else [topic]:
        _group(out, group, conf, plugins)


def _first_page(conf: Path, plugins: Sequence[Plugin]) -> None:
    """Print the usage, the first commands, the options of a command, and the names of each group's choices."""
    out, run = overview(), called("run")
    usage = f"{run} [-m] key=value ..."
    out.print(terminal(usage, "bold"), terminal("  compare ways of steering a language model"), end="\n\n")
    for line, what in (
        (f"{run} experiment=quickstart", "the table of the README: five methods, and controls of three"),
        (f"{run} method=caa suite=[rtp,fluency]", "one cell: one model, method and strength"),
        (f"{run} -m method=caa,detox seed.fit=0,1", "a sweep: every combination"),
        (f"{called('leaderboard')} --method caa,detox", "the table of some of the methods"),
        (f"{called('report')}", "one HTML page with tables, figures and texts"),
    ):
        out.print(terminal(f"  {line:<{COLUMN}}", "bold"), terminal(what))
    out.print(
        "\n  A key is a group below (method=caa) or an option in it (method.layer=0.5). Nothing is computed twice.\n"
    )
    for name, what in FLAGS.items():
        out.print(terminal(f"  {name:<20}", "cyan"), terminal(what))
    out.print()
    for title, file, prefix in (
        ("options of every cell", "config.yaml", ""),
        ("options of the run", "runtime/local.yaml", "runtime."),
    ):
        names = [name for name, *_ in _written(conf / file, prefix)]
        out.print(terminal(title, "bold"))
        out.print(terminal(_wrapped(names), lines=True))
    out.print(terminal("\ngroups and their choices", "bold", lines=True))
    for group, meaning in GROUPS.items():
        names = [file.stem for file in _files(group, conf, plugins)]
        named = terminal(f"  {group:<11}", "bold")
        line = f"{meaning}:  {'  '.join(names)}"
        if len(line) <= OVERVIEW_WIDTH - 16:
            out.print(named, terminal(line))
            continue
        out.print(named, terminal(meaning))
        out.print(terminal(_wrapped(names, 14), lines=True))
    out.print(
        terminal(
            f"{run} --help GROUP shows the options of a group with their meaning; --help all shows those of all groups."
        )
    )


def _wrapped(names: Sequence[str], indent: int = 2) -> str:
    """Wrap names to lines that fit into a terminal of the usual width."""
    blank = " " * indent
    return textwrap.fill("  ".join(names), OVERVIEW_WIDTH - 2, initial_indent=blank, subsequent_indent=blank,
                         break_on_hyphens=False)  # fmt: skip


def _files(group: str, conf: Path, plugins: Sequence[Plugin]) -> list[Path]:
    """Return the YAML files of a group, including those of plug-ins, sorted by name."""
    folders = [conf / group, *(plugin.conf / group for plugin in plugins)]
    return sorted((file for folder in folders for file in folder.glob("*.yaml")), key=lambda file: file.stem)


def _group(out: Console, group: str, conf: Path, plugins: Sequence[Plugin]) -> None:
    """Print every choice of a group with its options; a plug-in's choices are marked as such."""
    owners = {file: plugin.owner for plugin in plugins for file in plugin.conf.rglob("*.yaml")}
    files = _files(group, conf, plugins)
    out.print()
    _hanging(out, group, f" {GROUPS[group]}: {', '.join(file.stem for file in files)}", "bold")
    for file in files:
        owner = f"   brought by {owners[file]}" if file in owners else ""
        out.print(Text.assemble("  ", terminal(f"{group}={file.stem}", "bold"), terminal(owner)))
        for line in _summary(file):
            _hanging(out, "    ", line, "italic", "italic")
        if group != "experiment":
            above = {"suite": f"suite.{file.stem}.", "scorer": f"scorer.{file.stem}.", "launcher": ""}
            _options(out, file, above.get(group, f"{group}."))


def _summary(file: Path) -> list[str]:
    """Return the paragraphs of a YAML file's head comment, without its first line; lines of a table are not joined."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines[1:])
    head: list[str] = []
    before = ""
    for text in (line.removeprefix("#").removeprefix(" ").rstrip() for line in comment):
        if _goes_on(before, text):
            head[-1] += f" {text}"
        else:
            head.append(text)
        before = text
    return head


def _goes_on(line: str, after: str) -> bool:
    """Return whether a comment was wrapped between two lines: the next word had no room, and neither is a table's."""
    full = len(f"# {line} {after.partition(' ')[0]}") > COMMENT
    return bool(line and after) and full and "  " not in line + after


def _options(console: Console, file: Path, prefix: str) -> None:
    """Print each option of a YAML file with its full name, its value and its comment."""
    for name, written, meaning in _written(file, prefix):
        _hanging(console, f"    {name}={written}", f"   {meaning}" if meaning else "", "cyan")


def _hanging(out: Console, name: str, meaning: str, style: str, rest: str = "default") -> None:
    """Print a name and its meaning; the further lines of the meaning are indented."""
    indent = " " * (len(name) - len(name.lstrip()) + 4)
    lines = textwrap.wrap(f"{'x' * len(name)}{meaning}", max(out.width, 40), subsequent_indent=indent,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    told = "\n".join(lines)[len(name) :]
    out.print(terminal(name, style).append_text(terminal(told, rest, lines=True)), soft_wrap=True)


def _written(file: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield the full name of each option of a YAML file, its value as it is written, and the comment after it."""
    text = file.read_text(encoding="utf-8")
    for name, key, value in _nodes(yaml.compose(text, Loader=yaml.SafeLoader), prefix):
        in_line = key.start_mark.line == value.start_mark.line
        written = text[value.start_mark.index : value.end_mark.index] if in_line else ""
        if not in_line and isinstance(value, SequenceNode):
            written = shown(f"[{', '.join(one.value.strip() for one in value.value)}]")
        end = value.end_mark if in_line else key.end_mark
        meaning = "".join(text[end.index :].splitlines()[:1]).partition("#")[2].strip()
        if written or meaning:
            yield name, written, meaning


def _nodes(node: Node | None, above: str) -> Iterator[tuple[str, Node, Node]]:
    """Yield full name, key and value of each option, also of options that are mappings; without Hydra's own keys."""
    for key, value in node.value if isinstance(node, MappingNode) else ():
        if key.value not in ("_target_", "defaults"):
            yield f"{above}{key.value}", key, value
            if not getattr(value, "flow_style", None) or value.start_mark.line > key.start_mark.line:
                yield from _nodes(value, f"{above}{key.value}.")
