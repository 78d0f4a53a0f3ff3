"""Methods as their YAML files in conf/method set them up.

tests/config/test_config.py composes each of the files with Hydra, which takes a third of a second for each.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bench.config.build import build
from bench.config.compose import compose

FOLDER = Path(__file__).parents[2] / "conf" / "method"
ALL = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def node(name: str, *settings: str) -> Any:
    """The config of a method; settings: as on the command line, "method.layer=-1"."""
    own = OmegaConf.load(FOLDER / f"{name}.yaml")
    if "defaults" in own:
        return compose([f"method={name}", *settings]).method
    whole = OmegaConf.create({"seed": {"fit": 0}, "method": own})
    return OmegaConf.merge(whole, OmegaConf.from_dotlist(list(settings))).method


def load(name: str, *settings: str) -> Any:
    """The method."""
    return build(node(name, *settings))
