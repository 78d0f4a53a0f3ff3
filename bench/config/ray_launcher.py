"""A launcher for Hydra that runs each job as a task of Ray (https://docs.ray.io).

Hydra's own plug-in, hydra-ray-launcher 1.2.2, needs cloudpickle below 3, but joblib, which scikit-learn needs, requires
3 or above, so the two cannot be installed together.
"""

import logging
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class RayLauncher(Launcher):
    """A launcher that makes each job a task with this number of CPUs and GPUs.

    address: the address of a running cluster that shares the results folder; None: Ray is started on this machine.
    """

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0) -> None:
        self.address, self.needs = address, {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives a launcher before the first jobs."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a task for each list of overrides, and wait for all, even if one is lost."""
        import ray

        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        remote: Any = ray.remote(**self.needs)  # type: ignore[call-overload]
        task, state = remote(_run), Singleton.get_state()
        numbered = enumerate(job_overrides, initial_job_idx)
        found = [
            task.remote(self.context, self.task, self.config, list(one), number, state) for number, one in numbered
        ]
        ray.wait(found, num_returns=len(found))
        return list(ray.get(found))


def _run(
    context: HydraContext, task: TaskFunction, config: DictConfig, overrides: list[str], number: int, state: Any
) -> JobReturn:
    """Run one job in a process of Ray."""
    setup_globals()
    Singleton.set_state(state)
    own = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(own):
        own.hydra.job.id, own.hydra.job.num = f"{own.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(own)
    return run_job(
        task_function=task, config=own, job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )  # fmt: skip
