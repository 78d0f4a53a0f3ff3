"""Make one of Hydra's launcher plug-ins ready to launch; only this module knows how Hydra makes launchers."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
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
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bench.config.command_line import parse
from bench.config.folders import folder
from bench.config.ray_launcher import RayLauncher
from methods.errors import SetupError, require

OF_HYDRA = ("joblib", "submitit_local", "submitit_slurm")
"""Launchers that plug-ins of Hydra bring; conf/launcher has presets for them."""
RAY_TASKS = {
    "_target_": f"{RayLauncher.__module__}.{RayLauncher.__name__}", "address": None, "num_cpus": 1, "num_gpus": 0,
}  # fmt: skip
LAUNCHER = re.compile(r"\+*hydra[./]launcher\b")
QUIET = ("hydra.mode=MULTIRUN", "hydra/hydra_logging=none", "hydra/job_logging=none")
ON_ONE_MACHINE = ("joblib", "submitit_local", "ray")


@dataclass(frozen=True)
class Ready:
    """A launcher. launch: runs one job for each list of overrides, waits for all, and returns what each returned.

    `launch` raises an error if a job was lost; the other jobs may then go on, and settle waits for them.
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
    named = next(one for one in parse(hydra) if one.key_or_group in ("launcher", "hydra/launcher"))
    name = str(named.value())
    if name == "ray" and named.key_or_group == "launcher":
        require("ray", "launcher=ray", "ray")
    own = [] if any(one.key_or_group == "hydra.sweep.dir" for one in parse(hydra)) else [_sweep_dir(place)]
    GlobalHydra.instance().clear()
    ConfigStore.instance().store("ray_tasks", RAY_TASKS, "hydra/launcher", provider="steerbench")
    with initialize_config_dir(str(folder()), version_base="1.3", job_name="steerbench"):
        try:
            cfg = compose("config", overrides=[*own, *QUIET, *hydra, *settings], return_hydra_config=True)
            context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=_no_callbacks())
            with open_dict(cfg):  # a job launches nothing itself
                of_jobs = [one for one in cfg.hydra.overrides.hydra if not LAUNCHER.match(one)]
                cfg.hydra.overrides.hydra = of_jobs
            HydraConfig.instance().set_config(cfg)
            made = _made(cfg, context, task)
        except (HydraException, OmegaConfBaseException) as error:
            raise _told(name, error) from error
        if _kind(cfg) == "joblib":
            _keep_trackers_quiet()
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
    """Return the configs with Hydra's own node: that of the launcher in these arguments, or the default one.

    part: "hydra": only that node, once. resolved: without interpolations, except those that a launcher sets only when
    it begins a job. Raises SetupError as `launcher_of` does.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder()), version_base="1.3", job_name="steerbench"):
        try:
            node = compose("config", overrides=list(hydra), return_hydra_config=True).hydra
        except (HydraException, OmegaConfBaseException) as error:
            raise _told(next((one.partition("=")[2] for one in hydra), "none"), error) from error
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
    return f"hydra.sweep.dir='{place}/{datetime.now():%Y%m%d-%H%M%S}'"


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


def _kind(cfg: DictConfig) -> str:
    """Return the name of the launcher's plug-in, also if a preset of it was named."""
    plugin = str(OmegaConf.select(cfg, "hydra.runtime.choices.hydra/launcher"))
    return "ray" if plugin == "ray_tasks" else plugin


def _told(name: str, error: Exception) -> SetupError:
    """Return the error that says why a launcher cannot be made."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if name in (*OF_HYDRA, "slurm") and "Could not find" in first:
        return SetupError(f"launcher {name} is not installed; run: pip install 'steerbench[launchers]'")
    if "hydra.launcher." in first:
        return SetupError(f"launcher {name}: {first}; --cfg all lists its options and their kinds of values")
    allowed = f"launcher=joblib|submitit_local|slurm|ray, or Hydra's own: hydra/launcher={'|'.join(OF_HYDRA)}"
    return SetupError(f"launcher {name}: {first}. Allowed: {allowed}")
