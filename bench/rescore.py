"""`python -m bench.rescore`: judge stored continuations by other scorers; nothing is sampled, no model is loaded.

Exit code 0: done; 1: some records could not be judged (each is named; the others are judged); 2: no record could be
judged, or there is something else that the user must fix; 130: stopped by Ctrl-C (what has been judged is kept).
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.console import command
from bench.console.command import console
from bench.console.escape import terminal
from methods.errors import SetupError

if TYPE_CHECKING:
    from bench.records.record import Record
    from bench.records.table import Result
    from bench.suites.continued import Judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge what the command line asks for; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if command.asks_help(given):
        show_help()
        return 0
    return command.run(_run, given, stopped="what is judged is kept, and the same command goes on from there")


def show_help() -> None:
    """Print the command and its options."""
    out, prog = command.overview(), command.called("rescore")
    own = "scorer=[...] [--results FOLDER] [scorer.NAME.OPTION=...] [runtime.mirror=FOLDER]"
    out.print(terminal(prog, "bold"), terminal(own, "italic"))
    out.print(
        "\n  Judges the continuations under runs/generations by these scorers and writes a record for each suite and"
        "\n  cell, as if the run had named them; the records that are there stay. Then the leaderboard is rebuilt."
        "\n  Suites that do not judge continuations are left alone. --results FOLDER is runtime.results=FOLDER.\n"
        f"\n  {prog} scorer=[profanity_check,lexicon,detoxify]",
        markup=False,  # the list of scorers is in brackets
        highlight=False,
    )


def _run(given: Sequence[str]) -> int:
    from bench.config import command_line
    from bench.console.progress import Bar
    from bench.leaderboard import build
    from bench.leaderboard import terminal as printed
    from bench.records.table import read_records
    from bench.run import validate

    given = command_line.with_results(given)
    if not any(one.startswith("scorer=") for one in given):
        raise SetupError("name the scorers: scorer=[profanity_check,lexicon]; see --help")
    first = next(one for one in given if one.startswith("scorer=")).partition("=")[2].strip("[]").split(",")[0]
    named = [f"{group}.scorer={first}" for group in ("pairs", "tuning")]  # neither pairs nor strengths are chosen here
    cfg = validate.validate([*given, *[one for one in named if one.partition("=")[0] not in _keys(given)]])
    results = Path(cfg.runtime.results)
    injected = given_to_suites(cfg)
    records, skipped = read_records(results / "runs")
    for line in skipped:
        console.print(terminal(f"warning: {line}"))
    rescored: dict[str, Rescored] = {}  # by id; records that differ only in their scorers give the same one
    failed = 0
    for stored in records:
        with telling(stored.record.id) as told:
            if (one := Rescored.of(stored, cfg, injected)) is not None:
                rescored[one.id] = one
        failed += len(told)
    if not rescored and not failed:
        raise SetupError(f"{results}/runs holds no record of a suite that judges continuations; compute some first")
    due = [one for one in rescored.values() if not one.is_known]
    lost = 0
    with Bar({f"{one.suite.name} {one.id}": float(one.texts) for one in due}) as bar:
        for one in due:
            with (
                telling(one.about.id) as told,
                bar.stage(f"{one.suite.name} {one.id}", f"{one.about.method.name} · {one.suite.name}"),
            ):
                one.write()
            lost += len(told)
    console.print(f"{len(due) - lost} results judged, {len(rescored) - len(due)} were judged already")
    failed += lost
    if failed and len(rescored) == lost:
        raise SetupError(f"none of {failed} records could be judged; see the lines above")
    printed.show(printed.shown(build.rebuild(results)))
    return 1 if failed else 0


@contextmanager
def telling(name: str) -> Iterator[list[str]]:
    """If the block fails, print why this record is skipped, and add the reason to the list; the other records go on.

    A record is data, which anybody may have edited: its settings may fail anywhere between here and the last score.
    """
    told: list[str] = []
    try:
        yield told
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        told.append(str(error) if isinstance(error, SetupError) else f"its settings cannot be used ({kind}: {error})")
        console.print(terminal(f"record {name} skipped: {told[0]}", "yellow"))


def given_to_suites(cfg: Any) -> dict[str, Any]:
    """Return what a suite takes from this run and never from a record: the scorers, and where data is read from."""
    from bench.config.build import build
    from bench.data.sources import Sources, cache_folder

    cache = cache_folder(cfg.runtime.cache)
    runtime = cfg.runtime
    sources = Sources(
        mirror=runtime.mirror, cache=cache, offline=runtime.offline, prefer=runtime.get("prefer", "wheel")
    )
    given: dict[str, Any] = {"sources": sources, "runtime_device": cfg.runtime.device}
    return {"sources": sources, "scorers": [build(node, **given) for node in cfg.scorer.values()]}


def _keys(given: Sequence[str]) -> set[str]:
    return {one.partition("=")[0] for one in given}


@dataclass(frozen=True)
class Rescored:
    """A stored result, to be judged by the scorers of a config."""

    about: "Record"  # the stored one
    suite: "Judged"
    folder: Path  # of records

    @classmethod
    def of(cls, stored: "Result", cfg: Any, injected: Mapping[str, Any]) -> "Rescored | None":
        """Return the stored result to judge; None for a record of tuning or without settings, and if nothing judges it.

        A record is data: only classes of conf/ and of installed plug-ins are built from it, and what a suite takes from
        this run (`given_to_suites`) is never read from it. Raises SetupError for settings that are refused, such as
        those that name other classes.
        """
        from bench.config.build import built
        from bench.suites.continued import Judged

        about = stored.record
        if about.split != "test" or not about.settings:
            return None
        more = {**injected, "name": about.suite}
        own = {key: value for key, value in about.settings.items() if key not in more}
        try:
            suite = built(own, more)
        except Exception as error:  # whatever an edited record may hold
            raise SetupError(f"its settings are refused: {error}") from error
        if not isinstance(suite, Judged) or not suite.judges:
            return None
        return cls(about, suite, Path(cfg.runtime.results) / "runs" / "records")

    @property
    def model(self) -> dict[str, Any]:
        """The identity of the model: what the record says, without the name that a user gave it."""
        return self.about.model.identity

    @property
    def steering(self) -> dict[str, Any] | None:
        """The identity of the steering."""
        return self.about.steering

    @property
    def named(self) -> dict[str, Any]:
        """The identity of the suite with these scorers."""
        from bench.records.identity import named

        own = {"name": self.suite.name, "version": self.suite.version, "decoding": self._decoding}
        return own | named(self.suite, "test")

    @property
    def unsteered(self) -> bool:
        """Whether nothing steered the model that wrote the texts."""
        return self.steering is None

    @property
    def _decoding(self) -> dict[str, Any] | None:
        return self.about.sampling.to_json() if self.about.sampling else None

    @property
    def id(self) -> str:
        """The id of the record to be written."""
        from bench.records.identity import record_id

        own = self.suite.unsteered_only("test") if self.unsteered else {}
        return record_id(self.model, self.steering, self.named | own, "test")

    @property
    def is_known(self) -> bool:
        """True if the record is stored already, so that its texts are not scored again."""
        from bench.records import record

        return record.read(self.folder / self.id) is not None

    @property
    def texts(self) -> int:
        """The number of texts to judge."""
        return int(self.suite.facts("test")["texts"])

    def write(self) -> None:
        """Judge the texts and write the record. Raises SetupError if the texts are gone."""
        from bench.model.decoding import Sampling
        from bench.model.generation_cache import Generations, Writer
        from bench.records import record, unfinished
        from bench.records.fields import Info, Provenance, Scorers, Source
        from bench.records.identity import comparison_id
        from bench.records.provenance import provenance
        from bench.scorers.base import networks

        decoding = {key: value for key, value in (self._decoding or {}).items() if key != "version"}
        runs = self.folder.parent
        writer = Writer(self.model, self.steering, Sampling(**decoding))
        stored = functools.partial(Generations(runs / "generations").stored, writer)
        with unfinished.keeping(runs / "unfinished" / self.id, self.suite, *self.suite.judges):
            answers = self.suite.answered("test", self.about.model.chat, self.unsteered, stored)
            found = self.suite.score(answers)
        judged = replace(
            self.about,
            id=self.id,
            comparison=comparison_id(self.model, self.named, "test"),
            metrics=found.metrics,
            info=Info.from_json(found.info),
            sources=tuple(map(Source.from_json, found.info["sources"])),
            scorers=Scorers.used(
                found.info["scorers"],
                self.about.data,
                self.about.tuning,
                {**(self.about.judged_by.networks or {}), **{one.name: networks(one) for one in self.suite.judges}},
            ),
            provenance=Provenance.from_json(provenance() | {"rescored_from": self.about.id}),
            generations=tuple(answers.generations),
        )
        record.write(self.folder, judged, found.items, found.scores)


if __name__ == "__main__":
    command.leave(main())
