"""The entries of an experiment's YAML that describe the experiment as a whole and set nothing in a cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bench.config.folders import folders
from bench.config.values import mistakes
from methods.errors import SetupError


@dataclass(frozen=True)
class Experiment:
    """The entries of an experiment's YAML that are not settings of its cells.

    sweep: its cells; each line holds overrides, and a comma in one sweeps over values.
    published: the numbers that its paper reports, one entry each; `python -m bench.reproduction` prints ours too.
    differs: where it cannot follow the paper's protocol, one line each; printed below these numbers.
    needs: what it takes to run: `memory` of the card, `hours` on it, and `access` to models or data that are not open.
    asks: descriptions of values that only the user has, by the option's name; errors for missing values show them.
    """

    sweep: Sequence[str] = ()
    published: Sequence[Mapping[str, Any]] = ()
    differs: Sequence[str] = ()
    needs: Mapping[str, str | float] = field(default_factory=dict)
    asks: Mapping[str, str] = field(default_factory=dict)


KEYS = tuple(one.name for one in fields(Experiment))
IN_A_FILE = "says what an experiment is; write it in a YAML file, conf/experiment/NAME.yaml"


def taken_out(cfg: DictConfig) -> Experiment:
    """Remove these entries from a composed config and return them. Raises SetupError for a value of the wrong type."""
    hints, found, wrong = get_type_hints(Experiment), dict[str, Any](), list[str]()
    with open_dict(cfg):
        for key in [key for key in KEYS if key in cfg]:
            node: Any = cfg._get_node(key)
            del cfg[key]
            try:
                found |= OmegaConf.to_container(OmegaConf.create({key: node}), resolve=True)  # type: ignore[arg-type]
            except OmegaConfBaseException as error:
                wrong.append(f"{key} does not resolve: {str(error).splitlines()[0]}")
            else:
                wrong += [told for _, told in mistakes(key, found[key], hints[key])]
    if wrong:
        raise SetupError("\n".join(wrong))
    return Experiment(**found)


def may_be_published(name: str) -> bool:
    """Return whether an experiment's YAML has published figures or takes over another's; composing it takes seconds."""
    files = [folder / "experiment" / f"{name}.yaml" for folder in folders()]
    for file in (one for one in files if one.is_file()):
        try:
            own: Any = OmegaConf.to_container(OmegaConf.load(file))
            chosen = [one if isinstance(one, str) else " ".join(map(str, one)) for one in own.get("defaults") or ()]
        except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, AttributeError):
            return True  # composing it says what is wrong
        if "published" in own or any(one != "_self_" and not one.startswith("override ") for one in chosen):
            return True
    return False
