"""Make one of Hydra's launcher plug-ins ready to launch; only this module knows how Hydra makes launchers."""

import copy
import functools
import os
import re
import signal
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bench.config.command_line import parse
from bench.config.folders import LAUNCHER, NAMED, folder, folders
from bench.config.launch_arguments import FREE, wrong
from bench.config.ray_launcher import RayLauncher
from bench.config.values import shown
from methods.errors import SetupError, require

OF_HYDRA = ("joblib", "submitit_local", "submitit_slurm")
"""Launchers that plug-ins of Hydra bring; conf/launcher has presets for them."""
NOT_INSTALLED = re.compile(f"Could not find 'hydra/launcher/({'|'.join(OF_HYDRA)})'")
RAY_TASKS = {
    "_target_": f"{RayLauncher.__module__}.{RayLauncher.__name__}", "address": None, "num_cpus": 1, "num_gpus": 0,
}  # fmt: skip
NOT_OF_JOBS = re.compile(r"\+*hydra[./](launcher|searchpath)\b")
QUIET = ("hydra.mode=MULTIRUN", "hydra/hydra_logging=none", "hydra/job_logging=none")
FOLDER_OPTIONS = (
    "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.launcher.temp_folder", "hydra.launcher.submitit_folder",
)  # fmt: skip
ON_ONE_MACHINE = ("joblib", "submitit_local", "ray")


@dataclass(frozen=True)
class Ready:
    """A launcher. launch: runs one job for each list of overrides, waits for all, and returns what each returned.

    `launch` raises an error if a job was lost; all other jobs may then go on. settle: waits for these jobs.
    """

    name: str
    launch: Callable[[Sequence[Sequence[str]]], list[Any]]
    settle: Callable[[], None]

    @property
    def shares_a_machine(self) -> bool:
        """Whether the jobs run side by side on this machine."""
        return self.name in ON_ONE_MACHINE

    @property
    def loses_all(self) -> bool:
        """Return whether the launcher ends the other jobs if one job is lost."""
        return self.name == "joblib"

    @property
    def leaves_others(self) -> bool:
        """Whether the other jobs go on after one is lost, and nothing waits for them."""
        return self.name == "submitit_local"


@contextmanager
def launcher_of(
    hydra: Sequence[str], settings: Sequence[str], task: Callable[[DictConfig], Any], place: Path
) -> Iterator[Ready]:
    """Yield the launcher that these arguments name; it can be used inside the block.

    settings: overrides that options of the launcher refer to. task: what a job does. place: where each launch makes a
    folder for its jobs, unless hydra.sweep.dir is set. If the block is stopped, the jobs of submitit_local are ended.
    Raises SetupError if the launcher is not installed, and for an option that it does not have.
    """
    name, given = _name(hydra), {one.key_or_group for one in parse(hydra)}
    own = [] if "hydra.sweep.dir" in given else [_sweep_dir(place)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder()), version_base="1.3", job_name="steerbench"):
        try:
            cfg = compose("config", overrides=[*own, *QUIET, *_found(hydra), *settings], return_hydra_config=True)
            _check(cfg, name, given)
            context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=_no_callbacks())
            with open_dict(cfg):  # a job launches nothing itself
                written: Any = OmegaConf.to_container(cfg.hydra.overrides.hydra)
                cfg.hydra.overrides.hydra = [one for one in written if not NOT_OF_JOBS.match(one)]
            HydraConfig.instance().set_config(cfg)
            made = _made(cfg, context, task)
        except (HydraException, OmegaConfBaseException) as error:
            raise _told(name, hydra, error) from error
        if _kind(cfg) == "joblib":
            _keep_trackers_quiet()
            _keep_workers_quiet()
        first = [0]

        def launch(jobs: Sequence[Sequence[str]]) -> list[Any]:
            returned = made.launch(jobs, initial_job_idx=first[0])
            first[0] += len(jobs)
            return [one.return_value for one in returned]

        try:
            yield Ready(_kind(cfg), launch, _settling(_kind(cfg)))
        except BaseException:
            if _kind(cfg) == "submitit_local":
                _end_local_jobs()
            raise
        finally:
            HydraConfig.instance().cfg = None
            GlobalHydra.instance().clear()


def with_hydra(cells: Sequence[DictConfig], hydra: Sequence[str], part: str, resolved: bool) -> list[DictConfig]:
    """Return the configs, each with Hydra's own node `hydra`, for the launcher that the arguments name, or the default.

    part: if it is "hydra", the list holds a single config with only this node. resolved: whether interpolations are
    replaced by their values, except those that a launcher sets only when it begins a job. Raises SetupError as
    `launcher_of` does.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder()), version_base="1.3", job_name="steerbench"):
        try:
            node = compose("config", overrides=_found(hydra), return_hydra_config=True).hydra
        except (HydraException, OmegaConfBaseException) as error:
            raise _told(_name(hydra), hydra, error) from error
        finally:
            GlobalHydra.instance().clear()
    own = OmegaConf.create({"hydra": _plain(node) if resolved else OmegaConf.to_container(node)})
    if part == "hydra":
        return [own]
    plain = [OmegaConf.to_container(cfg, resolve=resolved) for cfg in cells]
    return [OmegaConf.create({**own, **one}) for one in plain if isinstance(one, dict)]


def _plain(node: Any) -> Any:
    """Return plain values with interpolations resolved as far as possible."""
    if not isinstance(node, DictConfig) or node._is_none():
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    found = {}
    for key in node:
        try:
            found[key] = _plain(node[key])
        except OmegaConfBaseException:
            found[key] = OmegaConf.to_container(node)[key]  # type: ignore[call-overload, index]
    return found


def _sweep_dir(place: Path) -> str:
    quoted = QuotedString(f"{place}/{datetime.now():%Y%m%d-%H%M%S}", Quote.single).with_quotes()
    return f"hydra.sweep.dir={quoted}"


def _name(hydra: Sequence[str]) -> str:
    """Return the launcher that these arguments name."""
    named = (one.value() for one in parse(hydra) if one.key_or_group in ("launcher", "hydra/launcher"))
    return str(next(named, "none"))


def _places(hydra: Sequence[str]) -> list[Path]:
    """Return the folders of plug-ins, and of these arguments, that hold launchers."""
    given: Any = [one.value() for one in parse(hydra) if one.key_or_group == NAMED]
    named = given[-1] if given and isinstance(given[-1], list) else given
    places = folders(tuple(str(Path(str(one).removeprefix("file://")).resolve()) for one in named))[1:]
    return [one for one in places if (one / LAUNCHER).is_dir()]


def _found(hydra: Sequence[str]) -> list[str]:
    """Return the arguments with the folders in which Hydra has to look for launchers; their files are checked."""
    ConfigStore.instance().store("ray_tasks", RAY_TASKS, "hydra/launcher", provider="steerbench")
    places = _places(hydra)
    for file in (file for place in places for file in (place / LAUNCHER).glob("*.yaml")):
        _check_file(file)
    quoted = [QuotedString(f"file://{one}", Quote.single).with_quotes() for one in places]
    return [
        *([f"{NAMED}=[{','.join(quoted)}]"] if quoted else []),
        *(one for one in hydra if not one.startswith(f"{NAMED}=")),
    ]


def _check_file(file: Path) -> None:
    """Raise SetupError for a launcher's file that sets more than a launcher's options; no job would see the rest."""
    held: Any = OmegaConf.to_container(OmegaConf.load(file))
    hydra, listed = held.get("hydra") or {}, held.get("defaults") or []
    entries = [list(one) if isinstance(one, dict) else one for one in listed if one != "_self_"]
    if (
        "# @package _global_" not in file.read_text(encoding="utf-8").splitlines()
        or {*held} - {"defaults", "hydra"}
        or not isinstance(hydra, dict)
        or {*hydra} - {"launcher"}
        or "_target_" in (hydra.get("launcher") or {})
        or not entries
        or any("/" in one if isinstance(one, str) else one != ["override /hydra/launcher"] for one in entries)
    ):
        raise SetupError(
            f"{file}: a launcher's file begins with # @package _global_, names Hydra's launcher in its defaults "
            "(override /hydra/launcher: joblib), and has options below hydra: launcher:, and nothing else; "
            "conf/launcher/joblib.yaml is an example"
        )


def _check(cfg: DictConfig, name: str, given: Container[str]) -> None:
    """Raise SetupError for options with which jobs could not be run. given: the options of the command line."""
    kind, options = _kind(cfg), cfg.hydra.launcher
    if kind == "ray":
        require("ray", "launcher=ray", "ray")
    free = FREE.rpartition(".")[2]
    if kind != "submitit_slurm" and free in options:
        raise SetupError(f"{FREE}: only Slurm has further options; leave it out, or set launcher=slurm")
    more: Any = OmegaConf.to_container(options[free], resolve=True) if free in options else {}
    values = {str(key): options[key] for key in options if key != free}
    values |= {f"{free}.{key}": value for key, value in more.items()}
    found = {key: text for key, value in values.items() if (text := wrong(key, value))}
    if found:
        raise SetupError("\n".join(f"hydra.launcher.{key}={shown(values[key])}: {found[key]}" for key in found))
    if more:
        options[free] = {key: value for key, value in more.items() if value is not None and value is not False}
    if kind.startswith("submitit") and "%" in cfg.hydra.sweep.dir:
        raise SetupError(
            f"launcher {name}: {cfg.hydra.sweep.dir} has a %, which submitit and Slurm take for the beginning of a "
            "variable; choose another runtime.results, or set hydra.sweep.dir to a folder without %"
        )
    trial = copy.deepcopy(cfg)  # as the first job will see it
    with open_dict(trial):
        trial.hydra.job.num, trial.hydra.job.id = 0, "0"
    HydraConfig.instance().set_config(trial)
    OmegaConf.to_container(trial.hydra.job.env_set, resolve=True)
    for key in FOLDER_OPTIONS:
        if key in given and (value := OmegaConf.select(trial, key)) is not None:
            within = Path(trial.hydra.sweep.dir) if key == "hydra.sweep.subdir" else Path()
            _check_folder(f"{key}={value}", within / str(value).partition("%")[0])


def _check_folder(given: str, place: Path) -> None:
    """Raise SetupError if a folder cannot be made or written to; it is not made."""
    try:
        nearest = next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise SetupError(f"{given}: {error.strerror or error}; choose another folder") from error


def _no_callbacks() -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def _made(cfg: DictConfig, context: HydraContext, task: Callable[[DictConfig], Any]) -> Launcher:
    """Make the launcher of a config; Hydra itself only makes launchers that are in the package hydra_plugins."""
    if cfg.hydra.launcher._target_ != RAY_TASKS["_target_"]:
        return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
    own = {str(key): value for key, value in cfg.hydra.launcher.items() if key != "_target_"}
    ray = RayLauncher(**own)
    ray.setup(hydra_context=context, task_function=task, config=cfg)
    return ray


def _settling(name: str) -> Callable[[], None]:
    """Return a function that waits for jobs that go on after one was lost; these are known only for Slurm."""
    if name != "submitit_slurm":
        return lambda: None
    from bench.config import slurm_jobs

    return slurm_jobs.watch().wait


def _end_local_jobs() -> None:
    """End the jobs of submitit_local, which would go on without this process; each keeps what it has computed."""
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if "submitit.local._local" in " ".join(one.cmdline()):
                one.terminate()  # it hands the signal on to its tasks


def _keep_trackers_quiet() -> None:
    """Let Python's and joblib's resource trackers remove what a stopped worker leaves without a warning about it.

    They are processes of their own, which read the variable when they start.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(one for one in (os.environ.get("PYTHONWARNINGS"), quiet) if one)


def _keep_workers_quiet() -> None:
    """Let joblib start its workers with Ctrl-C blocked: each of them would print where it is in its imports.

    A terminal sends Ctrl-C to all processes; this one, which can block it for a moment only, ends its workers.
    """
    from joblib.externals.loky.backend import fork_exec

    start = fork_exec.fork_exec
    if hasattr(start, "__wrapped__"):
        return

    @functools.wraps(start)
    def blocked(*arguments: Any, **options: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return start(*arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    fork_exec.fork_exec = blocked


def _kind(cfg: DictConfig) -> str:
    """Return the name of the launcher's plug-in, also if a preset of it was named."""
    plugin = str(OmegaConf.select(cfg, "hydra.runtime.choices.hydra/launcher"))
    return "ray" if plugin == "ray_tasks" else plugin


def _told(name: str, hydra: Sequence[str], error: Exception) -> SetupError:
    """Return the error that says why a launcher cannot be made."""
    lines = [line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = ": ".join(lines[:2]) if lines[0].endswith("raised while composing config") else lines[0]
    if NOT_INSTALLED.search(first):
        return SetupError(f"launcher {name} is not installed; run: pip install 'steerbench[launchers]'")
    told = f"launcher {name}: {first}"
    if "Could not find" in first:
        files = sorted(file.stem for place in [folder(), *_places(hydra)] for file in (place / LAUNCHER).glob("*.yaml"))
        return SetupError(
            f"{told}. Allowed: launcher={'|'.join(files)}, or Hydra's own: hydra/launcher={'|'.join(OF_HYDRA)}"
        )
    if (key := getattr(error, "full_key", None)) and key not in first:
        told = f"launcher {name}: {key}: {first}"
    return SetupError(f"{told}; --cfg all lists the options and their kinds of values")
