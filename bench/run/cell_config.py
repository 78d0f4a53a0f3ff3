"""The composed config of each cell of a launched sweep, as a file `<n>.yaml` in the sweep's folder.

The process of the command composes and checks every cell; a job builds its cells from these files. So all jobs compute
what was asked, even if somebody edits a YAML file while the sweep runs.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bench.config.packed import changeable
from bench.files import atomic
from bench.run import validate
from methods.errors import SetupError


def write(folder: Path, number: int, cfg: DictConfig) -> None:
    """Write the config of cell `number`, with the results folder as an absolute path and interpolations unresolved.

    Raises OSError if it cannot be written.
    """
    own = changeable(cfg)
    own.runtime.results = str(Path(cfg.runtime.results).resolve())
    atomic.write_whole(folder / f"{number}.yaml", OmegaConf.to_yaml(own))


def read(folder: Path, number: int) -> DictConfig:
    """Return the config of cell `number`. Raises SetupError if it cannot be read, or does not suit this machine.

    A machine of a cluster may lack a device or a folder that the machine of the command has.
    """
    path = folder / f"{number}.yaml"
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        told = " ".join(str(error).split())
        raise SetupError(f"{path}, the config of this cell, cannot be read ({told}); run the command again") from error
    if not isinstance(cfg, DictConfig) or "method" not in cfg or "runtime" not in cfg:
        raise SetupError(f"{path}, the config of this cell, is not what was written; run the command again")
    OmegaConf.set_struct(cfg, True)
    if wrong := validate.problems(cfg):
        raise SetupError("\n".join(wrong))
    return cfg
