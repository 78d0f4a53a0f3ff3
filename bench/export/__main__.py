"""`python -m bench.export`: a steered model as files that other programs load. See `--help`.

Exit code 0: written; 2: something the user must fix, or this format cannot hold this method; 130: Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from bench.console import command
from bench.console.command import console
from bench.console.escape import code, file_name, literal, markdown, terminal, visible
from bench.files import plain_json
from methods.errors import SetupError, require

if TYPE_CHECKING:
    from bench.export.effect import Effect
    from bench.run.cell import Cell


class Format(NamedTuple):
    """A format of `bench.export`, with whether it can hold edited weights and whether it can hold added vectors.

    suffix: the ending of the written file; "" if the format is a folder. loads: which programs read it. holds: what it
    can hold, in words.
    """

    suffix: str
    weights: bool
    vectors: bool
    loads: str
    holds: str

    def takes(self, effect: "Effect") -> bool:
        """Return whether this format can hold everything that the method does."""
        return (self.weights or not effect.weights) and (self.vectors or not effect.vectors)


FORMATS = {
    "checkpoint": Format("", True, False, "transformers", "edited weights of any kind"),
    "peft": Format("", True, False, "PEFT (a LoRA adapter)", "edited linear layers whose change is of low rank"),
    "bias": Format("", True, True, "transformers", "vectors added at all positions, where the MLP has a bias"),
    "lm_eval": Format(".pt", False, True, "lm-eval --model steered", "vectors added at all positions"),
    "gguf": Format(".gguf", False, True, "llama.cpp, repeng", "vectors added at all positions, from block 1 on"),
}
"""Each has a file of its name in bench/export."""
FACTS = "export.json"
ARGUMENTS = ("format", "output", "overwrite")
STOPPED = "nothing was exported; what was computed of a fit is kept, and the same command goes on from there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line asks for; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if command.asks_help(given):
        show_help()
        return 0
    return command.run(_run, given, stopped=STOPPED)


def show_help() -> None:
    """Print the command, its own options and a table of the formats."""
    out, prog, run = command.overview(), command.called("export"), command.called("run")
    own = "method=... strength=... format=... [output=...] [overwrite=true] [key=value ...]"
    out.print(terminal(prog, "bold"), terminal(own, "italic"))
    out.print(
        f"\n  Writes a steered model as files that other programs load. All other keys are those of {run}"
        "\n  (model=..., pairs=..., method.layer=...); a fit that a run has stored is reused.\n"
        "\n  strength=NUMBER   in the method's own unit; the leaderboard shows the one that tuning chose"
        "\n  format=...        one of the table below"
        "\n  output=...        folder or file to write; default: under the results folder, in exports"
        "\n  overwrite=true    replace an earlier export"
        "\n  --results FOLDER  the results folder, as runtime.results=FOLDER\n"
    )
    table = Table("format", "writes", "can hold", "read by", box=None, padding=(0, 2))
    for name, one in FORMATS.items():
        table.add_row(f"[bold]{name}[/]", f"a {one.suffix} file" if one.suffix else "a folder", one.holds, one.loads)
    out.print(table)
    out.print(
        "\n  The export applies the method to the model and reads off what changed. No format can hold a prefix before"
        "\n  a prompt, changes of the decoding, or steering at only some positions (the default of caa;"
        "\n  method.scope=all steers at all of them)."
        f"\n\n  {prog} method=detox strength=1 format=checkpoint"
        f"\n  {prog} method=caa method.scope=all strength=2 format=gguf output=calm.gguf",
        highlight=False,
    )


def _run(given: Sequence[str]) -> None:
    own = {key: value for key, _, value in (one.partition("=") for one in given) if key in ARGUMENTS}
    name = own.get("format", "")
    if not name:
        raise SetupError(f"format is missing: add format=NAME. Allowed: {', '.join(FORMATS)}")
    if name not in FORMATS:
        near = command.nearest(name, list(FORMATS))
        hint = f"; did you mean {near}?" if near else "."
        raise SetupError(f"format={name}: there is no such format{hint} Allowed: {', '.join(FORMATS)}")
    if name == "peft":
        require("peft", "format=peft", "export")
    if own.get("overwrite", "false") not in ("true", "false"):
        raise SetupError(f"overwrite={own['overwrite']}: allowed are true, false")
    cell = _cell([one for one in given if one.partition("=")[0] not in ARGUMENTS])
    target = Path(own["output"]) if own.get("output") else _default(cell, name)
    check_target(target, name, overwrite=own.get("overwrite") == "true")
    facts = _write(cell, target, name)
    if facts["largest_logit_difference"] is not None:
        console.print(f"loaded again: largest difference of a logit {facts['largest_logit_difference']:.2g}")
    told = _facts_file(target, name) if FORMATS[name].suffix else target / "README.md"
    console.print(terminal(f"written to {target}; how to load it is in {told.name}"))


def _cell(overrides: Sequence[str]) -> "Cell":
    """Return the one cell that the command line names, after checking it."""
    from bench.config import command_line, compose
    from bench.config.build import class_of
    from bench.export.effect import BY_FAMILY
    from bench.run import validate

    if {"-m", "--multirun"} & set(overrides):
        raise SetupError("an export holds one method at one strength; leave out -m, and run the command once for each")
    jobs = compose.jobs(command_line.at_once(overrides), multirun=True)
    if len(jobs) > 1:
        raise SetupError(
            f"this names {len(jobs)} cells; an export holds one method at one strength, so run the command once for "
            "each"
        )
    (cfg,) = validate.validate_all(jobs)
    method: Any = class_of(cfg.method._target_)
    if reason := BY_FAMILY.get(getattr(method, "family", "")):  # before anything is fitted
        raise SetupError(f"{method.name} cannot be exported: {reason}")
    if not isinstance(cfg.strength, int | float) or cfg.strength == 0:
        raise SetupError(
            f"strength={cfg.strength}: an export needs a number other than 0 in the method's unit; give the strength "
            "that tuning chose, which the leaderboard shows, or another one"
        )

    from transformers.utils import logging

    from bench.config.packed import changeable
    from bench.run.cell import Cell
    from bench.run.session import Session

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    own = changeable(cfg)
    own.suite = {}  # nothing is judged here
    return Cell(own, Session())


def _default(cell: "Cell", name: str) -> Path:
    model, method = (file_name(name, "--") for name in (cell.cfg.model.name, cell.method.name))
    stem = f"{model}-{method}-x{cell.cfg.strength:g}-{cell.names.fit_id}"
    return Path(cell.cfg.runtime.results) / "exports" / f"{stem}{FORMATS[name].suffix or f'-{name}'}"


def _facts_file(target: Path, name: str) -> Path:
    """Return the path of the facts about the export: in its folder, or beside its file."""
    return target.with_name(f"{target.name}.json") if FORMATS[name].suffix else target / FACTS


def check_target(target: Path, name: str, *, overwrite: bool) -> None:
    """Raise SetupError if writing there would replace something else, or if the name has the wrong ending."""
    suffix = FORMATS[name].suffix
    if suffix and target.suffix != suffix:
        raise SetupError(f"output={target}: format={name} writes one file; give it a name that ends in {suffix}")
    if not target.exists():
        return
    if not overwrite:
        raise SetupError(f"{target} exists already; set overwrite=true to replace it, or choose another output=...")
    if target.is_dir() == bool(suffix) or not _facts_file(target, name).is_file():
        raise SetupError(
            f"{target} is not a {name} export of this program, so overwrite=true does not replace it; choose another "
            "output=..."
        )


def _write(cell: "Cell", target: Path, name: str) -> dict[str, Any]:
    """Fit if needed, measure the effect, and write the export; returns the facts."""
    from bench.console.progress import Bar
    from bench.export.effect import ALL_TOKENS, Steered, measure
    from bench.files import atomic
    from bench.run.session import torch_threads

    strength, scope = cell.cfg.strength, cell.method.scope
    if scope not in (None, "all"):  # found before anything is fitted
        told = f"{_label(cell, strength)} cannot be exported: method.scope={scope} acts on some tokens"
        raise SetupError(f"{told}, and what is exported acts on every token; {ALL_TOKENS}")
    cell.fetch_model()  # it prints, so it has to run before the bar is shown
    with torch_threads(cell.threads):
        with Bar({} if cell.fit.store.is_stored else cell.fit.tokens()) as cell.session.bar:
            artefact, _ = cell.fit.fitted
        effect = measure(cell.model.lm, cell.method, artefact, strength)
    check_holds(effect, name, _label(cell, strength))
    node, commit = cell.cfg.model, cell.names.model.get("revision")
    steered = Steered(
        cell.model.lm, cell.method, artefact, strength, effect, cell.fetch_model(), commit, node.id or node.name
    )
    module = importlib.import_module(f"bench.export.{name}")
    if FORMATS[name].suffix:
        facts = _facts(cell, name, module.write(target, steered))
        atomic.write_whole(
            _facts_file(target, name), plain_json.dumps(facts | {"use": _use(module, steered, target.name, _quoted)})
        )
        return facts
    with atomic.whole_folder(target, replace=True) as folder:
        facts = _facts(cell, name, module.write(folder, steered))
        (folder / FACTS).write_text(plain_json.dumps(facts), encoding="utf-8")
        (folder / "README.md").write_text(_readme(facts, _use(module, steered, target.name, literal)), encoding="utf-8")
    return facts


def _label(cell: "Cell", strength: float) -> str:
    """Return the name of the cell with its strength, as within a sentence."""
    return f"{cell.label()} at strength {strength:g}"


def check_holds(effect: "Effect", name: str, label: str) -> None:
    """Raise SetupError, naming formats that can, if this format cannot hold what the method does."""
    if effect.beyond is not None:
        raise SetupError(f"{label} cannot be exported: {effect.beyond}")
    if not effect.weights and not effect.vectors:
        raise SetupError(f"{label} cannot be exported: it leaves the model as it is")
    others = [other for other, one in FORMATS.items() if one.takes(effect) and (other != "bias" or effect.vectors)]
    if name not in others:
        does = [f"edits {len(effect.weights)} weights"] if effect.weights else []
        does += [f"adds a vector at the output of block {layer}" for layer in sorted(effect.vectors)]
        raise SetupError(
            f"{label} cannot be written as {name}, which holds {FORMATS[name].holds}: it {' and '.join(does)}; use "
            + " or ".join(f"format={other}" for other in others)
        )


def _facts(cell: "Cell", name: str, difference: float | None) -> dict[str, Any]:
    from bench.records import identity
    from bench.records.provenance import provenance

    node = cell.cfg.model
    return {
        "format": name,
        "method": identity.method_identity(cell.method),
        "strength": cell.cfg.strength,
        "strength_unit": cell.method.strength_unit,
        "base": {"name": node.name} | cell.names.model,
        "fit": cell.names.fit_id,
        "largest_logit_difference": difference,
        "licence": f"Made from the model {node.name}; its licence holds for this too.",
        "provenance": provenance(),
    }


def _use(module: Any, steered: Any, output: str, quoted: Callable[[str], str]) -> str:
    """Return how to load the export: Python for a folder, a command line for a file. quoted: quotes a name in it."""
    base = steered.base if steered.revision else f"FOLDER OF {steered.base}"
    text: str = module.USE.format(base=quoted(base), output=quoted(output))
    return text


def _quoted(name: str) -> str:
    """Quote one word of a command line; placeholders stay unquoted, to be readable."""
    return name if re.fullmatch(r"(FOLDER OF )?[\w./+-]+", name) else shlex.quote(visible(name))


def _readme(facts: dict[str, Any], use: str) -> str:
    """Return the README of an exported folder."""
    method, base = facts["method"], facts["base"]
    read = " and ".join(code(f"{name}: {base[name]}") for name in ("bos", "chat"))
    return f"""# {markdown(base["name"])} steered by {markdown(method["name"])}

Strength {facts["strength"]:g} ({markdown(facts["strength_unit"])}), format {facts["format"]}, written by steerbench's
`python -m bench.export`.

```python
{use}
```

- Texts were read with {read}; do the same to get the same numbers.
- Loaded again, the largest difference of a logit from the steered model was {facts["largest_logit_difference"]:.2g}.
- {markdown(facts["licence"])}
- Hyper-parameters, fit id and versions are in {FACTS}.
"""


if __name__ == "__main__":
    command.leave(main())
