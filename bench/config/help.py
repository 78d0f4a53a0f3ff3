"""What `python -m bench --help` prints, read off the YAML files, so that it cannot fall behind them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text
from yaml.nodes import MappingNode, Node, SequenceNode

from bench.config.plugins import Plugin
from bench.config.values import shown
from bench.console.command import called, overview
from bench.console.escape import terminal

EXAMPLES = (
    ("one cell", "{run} method=caa suite=[rtp,fluency] suite.rtp.k=5"),
    ("a sweep", "{run} -m method=caa,detox seed.sample=0,1"),
    ("a published table", "{run} experiment=quickstart"),
)
GROUPS = {
    "model": "what is steered",
    "method": "how it is steered",
    "pairs": "contrast pairs that the methods learn from",
    "examples": "what a user fine-tunes on (finetune, security_vector)",
    "harmful": "harmful texts that a security vector learns",
    "background": "ordinary texts that a method compares with",
    "suite": "what is measured; a list: suite=[rtp,fluency]",
    "scorer": "what judges a text; a list: scorer=[profanity_check,lexicon]",
    "sampling": "how texts are decoded",
    "tuning": "how strength=auto is chosen",
    "runtime": "where it runs",
    "experiment": "a sweep of its own, one file each",
}


def show(conf: Path, plugins: Sequence[Plugin] = ()) -> None:
    """Print the commands, the groups, and every option of every choice; a plug-in's choices are marked as such."""
    owners = {file: plugin.owner for plugin in plugins for file in plugin.conf.rglob("*.yaml")}
    console, run = overview(), called("run")
    console.print(f"[bold]{run}[/] \\[-m] [italic]key=value ...[/]   compare ways of steering a language model\n")
    for what, command in EXAMPLES:
        console.print(terminal(f"  {what:<18}"), terminal(command.format(run=run), "bold"))
    console.print(
        "\n  A key is a group below (method=caa), or an option in it (suite.rtp.k=5, method.layer=0.5). -m sweeps over"
        "\n  comma-separated values. What is known is not computed again; the leaderboard is rebuilt at the end."
        "\n  --cfg job prints the config of every cell as YAML, and runs nothing."
        f"\n  Then: {', '.join(called(name) for name in ('leaderboard', 'plots', 'report'))} (each with --help);"
        "\n  `steerbench` lists all commands.\n"
    )
    console.print("[bold]options of every cell[/]")
    _options(console, conf / "config.yaml", "")
    for group, meaning in GROUPS.items():
        folders = [conf / group, *(plugin.conf / group for plugin in plugins)]
        files = sorted((file for folder in folders for file in folder.glob("*.yaml")), key=lambda file: file.stem)
        console.print()
        console.print(terminal(group, "bold"), terminal(f" {meaning}: {', '.join(file.stem for file in files)}"))
        for file in files:
            owner = f"   brought by {owners[file]}" if file in owners else ""
            console.print(Text.assemble("  ", terminal(f"{group}={file.stem}", "bold"), terminal(owner)))
            for line in _summary(file):
                console.print(terminal(f"    {line}", "italic"))
            if group != "experiment":
                _options(console, file, f"{group}.{file.stem}." if group in ("suite", "scorer") else f"{group}.")


def _summary(file: Path) -> list[str]:
    """The comment lines at the head of a YAML file after the command."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    head = []
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return head


def _options(console: Console, file: Path, prefix: str) -> None:
    """Each option of a YAML file with its full name, its value as it is written and the comment behind it."""
    text = file.read_text(encoding="utf-8")
    for name, key, value in _nodes(yaml.compose(text, Loader=yaml.SafeLoader), prefix):
        in_line = key.start_mark.line == value.start_mark.line
        written = text[value.start_mark.index : value.end_mark.index] if in_line else ""
        if not in_line and isinstance(value, SequenceNode):
            written = shown(f"[{', '.join(one.value.strip() for one in value.value)}]")
        end = value.end_mark if in_line else key.end_mark
        meaning = "".join(text[end.index :].splitlines()[:1]).partition("#")[2].strip()
        if written or meaning:
            option = terminal(f"    {name}={written}", "cyan")
            console.print(option.append_text(terminal(f"   {meaning}" if meaning else "", "default")))


def _nodes(node: Node | None, above: str) -> Iterator[tuple[str, Node, Node]]:
    """Full name, key and value of each option, mappings of further options included; without what is Hydra's."""
    if isinstance(node, MappingNode) and not node.flow_style:
        for key, value in node.value:
            if key.value not in ("_target_", "defaults"):
                yield f"{above}{key.value}", key, value
                yield from _nodes(value, f"{above}{key.value}.")
