"""Separate the arguments of a command line that are for a launcher of Hydra from those that describe cells."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from bench.config.command_line import parse
from bench.config.folders import NAMED
from methods.errors import SetupError

HONOURED = ("hydra/launcher", "hydra.launcher", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.env_set")
PRE_DISPATCH = re.compile(r"all|([1-9]\d* *\* *)?n_jobs( *\* *[1-9]\d*)?|[1-9]\d*").fullmatch
SWEEPER = (
    "hydra/sweeper is refused: a sweep is expanded and checked here as a whole, and strengths are chosen at equal "
    "budgets for every method; leave it out. For Optuna write tuning.search=tpe"
)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the arguments that describe cells and those for a launcher.

    The second list is empty if no launcher is named; then this process runs the cells. Raises SetupError for an option
    of Hydra that steerbench does not support.
    """
    parsed = [(argument, one) for argument in arguments for one in _hydras(argument)]
    own = [argument for argument in arguments if not list(_hydras(argument))]
    for _, one in parsed:
        key = one.key_or_group
        if key == "hydra/sweeper" and one.value() != "basic":
            raise SetupError(SWEEPER)
        if key not in ("launcher", "hydra/sweeper") and not any(key == k or key.startswith(f"{k}.") for k in HONOURED):
            raise SetupError(f"{one.input_line}: only these options of Hydra work: {', '.join((NAMED, *HONOURED))}")
        if one.is_sweep_override() or key in ("launcher", "hydra/launcher") and not isinstance(one.value(), str | None):
            raise SetupError(f"{one.input_line}: one launcher runs the whole sweep; name one")
        if told := _of_launcher(one):
            raise SetupError(f"{one.input_line}: {told}")
    named = [one for _, one in parsed if one.key_or_group in ("launcher", "hydra/launcher")]
    if len(named) > 1:
        raise SetupError(f"two launchers are named, {named[0].input_line} and {named[1].input_line}; name one")
    if named and named[0].value() not in (None, "basic"):
        return own, [argument for argument, one in parsed if one.key_or_group != "hydra/sweeper"]
    for argument, one in parsed:
        if one.key_or_group.startswith("hydra."):
            raise SetupError(f"{argument} needs a launcher, but none is named; add launcher=joblib, or leave it out")
    return own, []


def _of_launcher(one: Override) -> str | None:
    """Return what is wrong with an option of the launcher, if Hydra would not say it; else None."""
    key, value = one.key_or_group, one.value()
    if key in ("hydra.launcher", "hydra.launcher._target_"):
        return "name the launcher by launcher=joblib|submitit_local|slurm|ray, and its options one by one"
    if key.startswith("hydra.launcher.") and (one.is_add() or one.is_force_add() or one.is_delete()):
        return "an option of the launcher is set without + or ~, so that a name which it does not have is refused"
    if key == "hydra.launcher.backend" and value not in (None, "loky"):
        return "Hydra's joblib launcher only works with backend=loky; leave it out"
    if key.startswith("hydra.job.env_set.") and not (one.is_add() or one.is_force_add()):
        return f"a variable of the jobs is set with +, as in +{one.input_line}"
    if "${" in str(value):
        return None  # Hydra reads it
    if key == "hydra.launcher.n_jobs" and (not isinstance(value, int) or isinstance(value, bool) or value == 0):
        return "expected a number of processes, or -1 for one for each core"
    if key == "hydra.launcher.pre_dispatch" and not (isinstance(value, int) and value > 0 or PRE_DISPATCH(str(value))):
        return "expected a number of jobs above 0, all, or a text such as 2*n_jobs"
    if key in ("hydra.sweep.dir", "hydra.sweep.subdir") and value in (None, ""):
        return "expected a folder; leave it out for the default"
    return None


def _hydras(argument: str) -> list[Override]:
    """Return the argument as an override in a list if it sets an option of Hydra or names a launcher, else nothing."""
    key = argument.lstrip("+").partition("=")[0]
    if key != "launcher" and not (key.startswith(("hydra/", "hydra.")) and key != NAMED):
        return []
    return parse([argument])
