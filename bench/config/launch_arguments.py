"""Separate the arguments of a command line that are for a launcher of Hydra from those that describe cells."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from bench.config.command_line import parse
from bench.config.folders import NAMED
from methods.errors import SetupError

HONOURED = ("hydra/launcher", "hydra.launcher", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.env_set")
OF_A_JOB = re.compile(r"hydra[.:]job\.(num|id)\b")
OF_LAUNCHER = "hydra.launcher."
FREE = f"{OF_LAUNCHER}additional_parameters"
"""Options of sbatch under any name, which submitit writes into its script."""
ABOVE = r"[1-9]\d*"
NUMBER = "a whole number above 0"
ALONE = "1, since each job is one process"
PROCESSES = "since jobs need processes of their own; leave it out"
EXPECTED = {
    "n_jobs": (rf"-?{ABOVE}", "a number of processes, or -1 for one for each core"),
    "backend": ("null|loky", f"loky, {PROCESSES}"),
    "prefer": ("processes", f"processes, {PROCESSES}"),
    "require": ("null", f"null, {PROCESSES}"),
    "timeout": ("null", "null, since joblib's timeout ends the whole sweep; leave it out"),
    "pre_dispatch": (
        rf"all|({ABOVE} *\* *)?n_jobs( *\* *{ABOVE})?|{ABOVE}",
        "a number of jobs above 0, all, or a text such as 2*n_jobs",
    ),
    "batch_size": (f"auto|{ABOVE}", "auto or a number of jobs above 0"),
    "max_nbytes": (r"null|\d+|\d+(\.\d+)?[KMG]", "null, a number of bytes, or a text such as 1M"),
    "mmap_mode": (r"r|r\+|w\+|c", "r, r+, w+ or c"),
    "timeout_min": (ABOVE, f"{NUMBER}, in minutes"),
    "cpus_per_task": (f"null|{ABOVE}", f"{NUMBER}, or null for the cluster's default"),
    "mem_gb": (r"null|\d+", "a whole number from 0 (all memory of a machine), or null for the cluster's default"),
    "nodes": ("1", ALONE),
    "tasks_per_node": ("1", ALONE),
    "array_parallelism": (ABOVE, NUMBER),
    "signal_delay_s": (r"\d+", "a whole number from 0, in seconds"),
    "max_num_timeout": (r"\d+", "a whole number from 0"),
    **dict.fromkeys(
        ("gpus_per_node", "gpus_per_task", "cpus_per_gpu"), (r"null|\d+", "a whole number from 0, or null")
    ),
    **dict.fromkeys(("num_cpus", "num_gpus"), (r"null|\d+(\.\d+)?", "a number from 0")),
}  # fmt: skip
"""The values that an option of a launcher may have: a regular expression, and the same in words."""
SWEEPER = (
    "hydra/sweeper is refused: a sweep is expanded and checked here as a whole, and strengths are chosen at equal "
    "budgets for every method; leave it out. For Optuna write tuning.search=tpe"
)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into two lists: the arguments that describe cells, and those for a launcher.

    The second list is empty if no launcher is named; this process then runs the cells. If a launcher is named, the
    second list also has the argument that names folders of YAML files, since these may hold launchers. Raises
    SetupError for an option of Hydra that steerbench does not support.
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
        asked = [_free(argument, one) for argument, one in parsed if one.key_or_group != "hydra/sweeper"]
        return own, asked + [argument for argument in own if argument.startswith(f"{NAMED}=")]
    for argument, one in parsed:
        if one.key_or_group.startswith("hydra."):
            raise SetupError(f"{argument} needs a launcher, but none is named; add launcher=joblib, or leave it out")
    return own, []


def wrong(option: str, value: Any) -> str | None:
    """Return what is wrong with the value of an option of a launcher, such as n_jobs; None if nothing is."""
    if option in EXPECTED:
        pattern, expected = EXPECTED[option]
        return None if re.fullmatch(pattern, "null" if value is None else str(value)) else f"expected {expected}"
    free, dot, name = option.partition(".")
    if free != FREE.removeprefix(OF_LAUNCHER):
        return None
    if not dot:
        return None if isinstance(value, dict) else "expected options of sbatch, as in {qos:high}"
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        return "sbatch has no such option"
    if not isinstance(value, str | int | float | None) or "\n" in str(value):
        return "expected a line of text, a number, true for an option without a value, or null to leave it out"
    return None


def _of_launcher(one: Override) -> str | None:
    """Return what is wrong with an option of the launcher, if Hydra would not say it; else None."""
    key, value = one.key_or_group, one.value()
    if key in ("hydra.launcher", "hydra.launcher._target_"):
        return "name the launcher by launcher=joblib|submitit_local|slurm|ray, and its options one by one"
    free = _is_free(key) and not one.is_delete()
    if key.startswith(OF_LAUNCHER) and not free and (one.is_add() or one.is_force_add() or one.is_delete()):
        return "an option of the launcher is set without + or ~, so that a name which it does not have is refused"
    if key.startswith("hydra.job.env_set.") and not (one.is_add() or one.is_force_add()):
        return f"a variable of the jobs is set with +, as in +{one.input_line}"
    if "override_dirname" in str(value):
        return "a job may run several cells, so their settings cannot name it; use ${hydra.job.num}, its number"
    if OF_A_JOB.search(str(value)) and not key.startswith(("hydra.sweep.subdir", "hydra.job.env_set.")):
        return "it is one for all jobs; only hydra.sweep.subdir and variables of the jobs can have a job's number"
    if "${" in str(value):
        return None  # Hydra reads it
    if key in ("hydra.sweep.dir", "hydra.sweep.subdir") and value in (None, ""):
        return "expected a folder; leave it out for the default"
    return wrong(key.removeprefix(OF_LAUNCHER), value) if key.startswith(OF_LAUNCHER) else None


def _is_free(key: str) -> bool:
    return key == FREE or key.startswith(f"{FREE}.")


def _free(argument: str, one: Override) -> str:
    """Return the argument, with `++` if it sets FREE or an option below it, so that Hydra adds what it lacks."""
    return f"++{argument.lstrip('+')}" if _is_free(one.key_or_group) else argument


def _hydras(argument: str) -> list[Override]:
    """Return the argument as an override in a list if it sets an option of Hydra or names a launcher, else nothing."""
    key = argument.lstrip("+").partition("=")[0]
    if key != "launcher" and not (key.startswith(("hydra/", "hydra.")) and key != NAMED):
        return []
    return parse([argument])
