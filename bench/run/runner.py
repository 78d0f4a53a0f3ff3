"""One cell of the table, from config to records. Read this file first.

A cell is one model, method and strength, measured by every suite that the config names. Stored results are read from
their records; model, data and fit are loaded only if a result is missing.
"""

import errno
import math
import os
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from bench.config.build import class_of
from bench.config.item_limit import CUT
from bench.console import command, stopping
from bench.console.escape import terminal
from bench.data.sources import cache_folder
from bench.files import atomic, digests
from bench.files.overwrite import NEVER
from bench.model import checkpoint
from bench.records import identity, record, unfinished
from bench.records.fields import (
    Decoding,
    FitFacts,
    Info,
    LearntFrom,
    MethodFacts,
    ModelFacts,
    Provenance,
    Scorers,
    Seeds,
    Source,
    Tuned,
)
from bench.records.names import CONTROL_FAMILY
from bench.records.provenance import provenance
from bench.records.record import Record
from bench.run import control, search, speeds, tuning
from bench.run.cell import Cell
from bench.run.session import Session, torch_threads
from bench.scorers.base import networks
from bench.suites.base import Split, Suite
from methods.errors import SetupError


def run(cell: Cell) -> list[Record]:
    """Return all results of the cell on the test split; each records how its strength was chosen."""
    cell, strength, choice = choose(cell, result)
    results = []
    for suite in cell.suites:
        found = result(cell, suite, "test", strength)
        if choice is not None and found.tuning != (tuned := Tuned.from_json(choice.record())):
            judged = found.judged_by
            scorers = Scorers.used(judged.report or (), found.data, tuned, judged.networks)
            found = record.amend(cell.records / found.id, tuning=tuned, scorers=scorers)
        results.append(found)
    return results


Result = TypeVar("Result")
Obtain = Callable[[Cell, Suite[Any], Split, float], Record]
"""The function that gets a result: `result` computes what is missing, `stored` raises NotStored."""


class NotStored(LookupError):
    """A result is not stored. The argument is the number of the cell's trials that are stored."""


def choose(cell: Cell, obtain: Obtain) -> tuple[Cell, float, tuning.Choice | None]:
    """Return the cell and strength that the config names; with strength=auto, those that tuning chose, and how."""
    if not cell.method.strengths:
        return cell, 0.0, None
    if cell.cfg.control is not None:
        return as_method(cell, obtain)
    if cell.cfg.strength != "auto":
        return cell, cell.in_own_unit(float(cell.cfg.strength), obtain is result), None
    baseline = trial(cell, 0.0, None, obtain)
    trials: list[tuning.Trial] = []
    cells: list[Cell] = []
    for point in search.points(cell.parts.tuning, cell.method, trials):
        try:
            mine = cell.variant(point.options)
            strength = mine.in_own_unit(point.strength, obtain is result)
            trials.append(trial(mine, strength, baseline, obtain, point.options))
        except LookupError as missing:
            raise NotStored(len(trials)) from missing
        cells.append(mine)
    choice = tuning.choose(cell.parts.tuning, baseline, trials)
    return cells[trials.index(choice.chosen)], choice.chosen.strength, choice


def as_method(cell: Cell, obtain: Obtain) -> tuple[Cell, float, None]:
    """Return a control with its method's options, and the strength at which its vectors are as long as the method's."""
    real, strength, _ = choose(cell.controlled, obtain)
    mine = cell.of_same_options(real)
    if obtain is not result and not (real.fit.store.is_stored and mine.fit.store.is_stored):
        raise NotStored(0)
    sizes = (cell.method.changes(cell.fit.fitted[0]) for cell in (real, mine))
    return mine, control.strength(strength, *sizes), None


def trial(
    cell: Cell, strength: float, baseline: tuning.Trial | None, obtain: Obtain, options: Mapping[str, Any] | None = None
) -> tuning.Trial:
    """Return the trial of one strength, from its dev results."""
    looks = {name: obtain(cell, cell.parts.suites[name], "dev", strength).metrics for name in cell.parts.tuning.suites}
    values = {suite: {name: one.value for name, one in metrics.items()} for suite, metrics in looks.items()}
    return tuning.trial(cell.parts.tuning, strength, values, baseline, options)


def stored(cell: Cell, suite: Suite[Any], split: Split, strength: float) -> Record:
    """Return the stored result. Raises NotStored if there is none."""
    found = known(cell, suite, split, strength)
    if found is None:
        raise NotStored(0)
    return found


def known(cell: Cell, suite: Suite[Any], split: Split, strength: float) -> Record | None:
    """Return the stored result; None if there is no whole one, or if `Overwrite.counts` refuses it."""
    path, overwrite = cell.records / cell.names.record_id(suite, split, strength), cell.overwrite
    if not overwrite.counts(path):
        return None
    try:
        return record.checked(path)
    except record.NotWholeError as error:
        if overwrite.rule == "never" and (path.exists() or path.is_symlink()):
            cell.session.damaged[path] = str(error).partition(";")[0]
        return None


def refuse_damaged(session: Session) -> None:
    """Raise SetupError that names the damaged records that were found under runtime.overwrite=never."""
    if session.damaged:
        told = [f"{path}: {wrong}" for path, wrong in session.damaged.items()]
        raise SetupError("\n".join([*told, NEVER]))


def result(cell: Cell, suite: Suite[Any], split: Split, strength: float) -> Record:
    """Return the stored result; compute and store it first if there is none."""
    stored = known(cell, suite, split, strength)
    if stored is not None:
        return stored
    if cell.records / cell.names.record_id(suite, split, strength) in cell.session.damaged:
        refuse_damaged(cell.session)
    label = f"{cell.label(strength)} · {suite.name}" + (" · tuning" if split == "dev" else "")
    with cell.alone(cell.names.record_id(suite, split, strength), label):
        return known(cell, suite, split, strength) or _computed(cell, suite, split, strength, label)


def _computed(cell: Cell, suite: Suite[Any], split: Split, strength: float, label: str) -> Record:
    """Compute a result that is not stored, and store it."""
    name = cell.names.record_id(suite, split, strength)
    place = cell.unfinished(name)
    cell.overwrite.forget(place)
    with unfinished.keeping(place, suite, cell.method, *cell.parts.scorers.values()):
        share = suite.tokens(split) if split == "dev" else math.inf  # the plan has one entry for all trials
        with cell.session.bar.stage(stage_key(cell, suite, split, strength), label, share):
            with cell.steered(strength) as lm, digests.unverified() as asking:
                answers = suite.ask(lm, split)
            with digests.unverified() as scoring:
                found = suite.score(answers, cell.model.lm)
        about = replace(
            describe(cell, suite, split, strength),
            metrics=found.metrics,
            info=Info.from_json(found.info),
            sources=tuple(map(Source.from_json, found.info.get("sources", []))),
            generations=tuple(answers.generations),
            unverified=tuple(sorted(asking.union(scoring, lm.unverified, cell.fit.unverified() if strength else []))),
            unexpected_weights=tuple(lm.unexpected_weights),
            system_role=lm.system_role,
            thinking=lm.thinking and lm.thinking.mode,
        )
        about = replace(about, scorers=about.judged_by)  # those that judged
        if split == "test" and strength != 0 and cell.cfg.control is None:
            about = replace(about, cost=cell.measured_cost(strength))
        written = record.write(cell.records, about, found.items, found.scores, anew=cell.overwrite.replaces)
    cell.session.written += 1
    cell.session.made.add(name)
    return written


def describe(cell: Cell, suite: Suite[Any], split: Split, strength: float) -> Record:
    """Return the record of a result without its numbers."""
    method = {"name": "unsteered", "family": "none", "version": 1, "parameters": {}}
    fit, data, fit_id, seed = None, None, None, None
    settings: Any = OmegaConf.to_container(cell.cfg.suite[suite.name], resolve=True)
    if isinstance(settings.get("path"), str):  # its sha256 is among the sources
        settings["path"] = Path(settings["path"]).name
    if strength != 0:
        method = identity.method_identity(cell.method) | {"family": cell.method.family}
        method["strength_unit"] = cell.method.strength_unit
        length = cell.method.residual_norms(cell.fit.fitted[1]["facts"])
        method["residual_norms"] = None if length is None else strength * length
        fit = dict(cell.fit.fitted[1])
        data, fit_id, seed = fit.pop("data"), cell.names.fit_id, cell.method.seed
        if cell.cfg.control is not None:
            seed = int(cell.cfg.control)
            of = choose(cell.controlled, stored)[1]
            about = {"how": control.how(cell.method), "of_strength": of}
            method |= {"family": CONTROL_FAMILY, "control": about}
    decoding, offline = cell.names.decoding(suite), cell.cfg.runtime.offline
    return Record(
        id=cell.names.record_id(suite, split, strength),
        suite=suite.name,
        split=split,
        comparison=cell.names.comparison_id(suite, split),
        model=ModelFacts.from_json({"name": cell.cfg.model.name, **cell.names.model}),
        method=MethodFacts.from_json({"strength_unit": None} | method | {"strength": strength}),
        fit_id=fit_id,
        seed=Seeds(fit=seed, sample=cell.parts.sampling.seed),
        data=None if data is None else LearntFrom.from_json(data),
        fit=None if fit is None else FitFacts.from_json(fit),
        cost=None,
        tuning=None,
        scorers=Scorers(
            report=tuple(cell.parts.scorers),
            networks={name: networks(one) for name, one in cell.parts.scorers.items()},
        ),
        sampling=None if decoding is None else Decoding.from_json(decoding),
        settings=settings,
        provenance=Provenance.from_json(provenance(cell.model.card, checkpoint.published(cell.cfg.model, offline))),
        metrics={},
        info=Info(),
        sources=(),
        limit=cell.cfg.get("limit") if cell.cfg.get(CUT, {}).get(suite.name) else None,
    )


# -- how much there is to do ---------------------------------------------------------------------------------------


def stage_key(cell: Cell, suite: Suite[Any], split: Split, strength: float) -> str:
    """Return the name of a stage in the plan; its first word is the suite, as the kind of work.

    Strengths are not known when the plan is made, so the stages of steered models are named by their cell.
    """
    if strength == 0:
        return f"{suite.name} {cell.names.record_id(suite, split, strength)}"
    return f"{suite.name} {split} {cell.plan_key}"


def plan(cell: Cell) -> dict[str, float]:
    """Return the tokens that are still to be computed, by stage; stored results cost nothing."""
    stages: dict[str, float] = {}
    chosen, strength, left = cell, None, 0
    try:
        chosen, strength, _ = choose(cell, stored)
    except LookupError as missing:
        if cell.cfg.strength == "auto" and cell.cfg.control is None:
            done = missing.args[0] if isinstance(missing, NotStored) else 0
            left = search.budget(cell.parts.tuning, cell.method) - done
            for suite in (cell.parts.suites[name] for name in cell.parts.tuning.suites):
                stages |= {stage_key(cell, suite, "dev", 1.0): left * float(suite.tokens("dev"))}
                if not known(cell, suite, "dev", 0.0):
                    stages[stage_key(cell, suite, "dev", 0.0)] = float(suite.tokens("dev"))
    for suite in cell.suites:
        if strength is None or not known(chosen, suite, "test", strength):
            stage = stage_key(chosen, suite, "test", 1.0 if strength is None else strength)
            stages[stage] = float(suite.unsteered_tokens("test") if strength == 0 else suite.tokens("test"))
    if stages and cell.method.needs and not chosen.fit.store.is_stored:
        return stages | chosen.fit.tokens()
    return stages


# -- the cell boundary ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A cell that ended without its records.

    setup: whether the user must fix something; False for a defect of the program. alone: the command that runs only
    this cell.
    """

    label: str
    message: str
    traceback: Path | None
    setup: bool
    alone: str = ""


def bounded(cfg: DictConfig, label: str, work: Callable[[], Result]) -> Result | Failure:
    """Run the work on one cell. Every exception is caught here and nowhere else, so that the other cells go on.

    Signals (`bench.console.stopping`), which stop the whole run, are not caught.
    """
    try:
        return work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        stopping.check()  # a library may have turned a signal into another error
        if isinstance(error, SetupError):
            return Failure(label, str(error), None, setup=True)
        return _failure(cfg, label, _message(error), is_full(error))


def is_full(error: BaseException) -> bool:
    """Return whether the error is a full disk, or a used up quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _message(error: BaseException) -> str:
    """The message for an error that is a defect of the program."""
    if isinstance(error, SystemExit):
        return f"something that it calls ended the program by sys.exit({error.code!r})"
    if isinstance(error, OSError) and error.errno is not None:
        return command.of_system(error)
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as another:
        return f"{type(error).__name__}, whose text cannot be shown ({type(another).__name__})"


def _failure(cfg: DictConfig, label: str, message: str, full: bool) -> Failure:
    """Return a failure with its traceback in a file; if no file can be written, print the traceback.

    full: whether the disk is full, which the user must fix; its message alone says enough.
    """
    told = traceback.format_exc()
    try:
        settings = OmegaConf.to_yaml(cfg, resolve=True)
        path = Path(cfg.runtime.results) / "runs" / "failures" / f"{identity.digest(settings)}.txt"
        atomic.write_whole(path, f"{settings}\n{told}")
    except Exception as error:  # mostly a full disk, which may have failed the cell as well
        if not full:
            command.console.print(terminal(f"{told}{label}: its traceback could not be kept ({error})", lines=True))
        return Failure(label, message, None, setup=full)
    return Failure(label, message, path, setup=full)


def prepare(
    cfg: DictConfig, session: Session, weights: bool = True, command: str = ""
) -> tuple[Cell, dict[str, float]] | Failure:
    """Return the cell and what it has to compute; checks the method and, if `weights`, fetches the model's weights.

    command: the command that runs only this cell.
    """
    cell = bounded(cfg, _named(cfg), lambda: Cell(cfg, session, command=command))
    if isinstance(cell, Failure):
        return replace(cell, alone=command)

    def look() -> tuple[Cell, dict[str, float]]:
        stages = plan(cell)
        if stages:
            check_methods(cell)
        if stages and weights:
            cell.model.fetch_weights()  # it prints, so it has to run before the bar is shown
        return cell, stages

    found = bounded(cfg, cell.label(), look)
    return replace(found, alone=command) if isinstance(found, Failure) else found


def _named(cfg: DictConfig) -> str:
    """Return the name of a config's method, for a cell that cannot be made; that of the class if it has no other."""
    target = str(cfg.method._target_)
    with suppress(SetupError, AttributeError):
        return str(class_of(target).name)  # type: ignore[attr-defined]
    return target.rpartition(".")[2]


def ready(
    configs: Sequence[DictConfig], session: Session, alone: Sequence[str] = (), weights: bool = True
) -> tuple[list[tuple[Cell, dict[str, float]]], list[Failure]]:
    """Return the cells that can run, with what each has to compute, and those that cannot.

    alone: for each cell the command that runs only this cell. Raises SetupError if no steered cell is left, since
    computing the unsteered model would be useless, and if results are damaged and must not be overwritten.
    """
    commands = alone or [""] * len(configs)
    prepared = [prepare(cfg, session, weights, line) for cfg, line in zip(configs, commands, strict=True)]
    refuse_damaged(session)
    failures = [one for one in prepared if isinstance(one, Failure)]
    left = [one for one in prepared if not isinstance(one, Failure)]
    if any(one.setup for one in failures) and left and not any(cell.method.strengths for cell, _ in left):
        reasons = dict.fromkeys(f"{one.label}: {one.message}" for one in failures)
        raise SetupError(
            "\n".join([*reasons, "the remaining cells are not steered, so nothing is computed; fix these first"])
        )
    return left, failures


def by_model(cells: Sequence[Cell]) -> list[Cell]:
    """Sort the cells so that those of one model are together, since memory holds one model at a time."""
    first = {cell.model.key: number for number, cell in reversed(list(enumerate(cells)))}
    return sorted(cells, key=lambda cell: first[cell.model.key])


def check_methods(cell: Cell) -> None:
    """Raise SetupError if the method, with any of the options that are tuned, does not suit the model."""
    cell.model.check_method()
    if cell.cfg.strength == "auto":
        for option, values in search.space(cell.parts.tuning, cell.method)[1].items():
            for value in values:
                cell.variant({option: value}).model.check_method()


FOLDERS = ("records", "generations", "artefacts", "unfinished", "failures", "locks", "sweeps", "launched")
"""The folders in runs/."""


def tidy(cfg: DictConfig) -> None:
    """Remove half-written files of dead processes from the folders of results and of the cache.

    Raises SetupError if a file is in the place of one of these folders.
    """
    for path in (Path(cfg.runtime.results) / "runs" / name for name in FOLDERS):
        if path.is_symlink() or path.exists():
            if not path.is_dir():
                raise SetupError(f"{path} is not a folder, but results are stored there; rename or delete it")
    results, cache = Path(cfg.runtime.results), cache_folder(cfg.runtime.cache)
    runs = results / "runs"
    atomic.sweep(*(Path(folder) for place in (results, cache) for folder, _, _ in os.walk(place)))
    whole = {"records": "record.json", "generations": "samples.jsonl.gz", "artefacts": "fit.json"}
    for folder in (runs / "unfinished").glob("*"):  # work that another process has finished meanwhile
        if any((runs / kind / folder.name / file).exists() for kind, file in whole.items()):
            shutil.rmtree(folder, ignore_errors=True)


def run_cell(cell: Cell) -> list[Record] | Failure:
    """Run one cell, with the threads that it asks for."""

    def work() -> list[Record]:
        with torch_threads(cell.threads), speeds.noting(cell):
            return run(cell)

    return bounded(cell.cfg, cell.label(), work)
