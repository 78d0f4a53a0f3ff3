"""Build objects from a config: each node that names a class by `_target_` becomes an object of this class."""

import inspect
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from bench.config import folders
from methods.errors import SetupError


def build(node: DictConfig, leave: tuple[str, ...] = (), **available: Any) -> Any:
    """Build an object of the class that a node's `_target_` names.

    The constructor also gets each entry of `available` for which it has a parameter. Nodes inside the node that name a
    `_target_` are built in the same way. Raises SetupError for a class that no YAML file of the config's folders names
    (`folders.targets`).
    """
    settings = OmegaConf.to_container(node, resolve=True)
    assert isinstance(settings, dict)
    named = OmegaConf.select(node._get_root(), folders.FOLDERS, default=())
    kept = {key: value for key, value in settings.items() if key not in leave}
    return built(kept, available, folders.targets(tuple(named)))


def built(settings: Any, available: dict[str, Any], allowed: frozenset[str] | None = None) -> Any:
    """Build from plain values. allowed: the allowed classes; None: those that conf/ and installed plug-ins name."""
    allowed = folders.targets() if allowed is None else allowed
    folders.check_targets(settings, allowed)
    return _built(settings, available)


def _built(settings: Any, available: dict[str, Any]) -> Any:
    if not isinstance(settings, dict):
        return settings
    given = {str(key): _built(value, available) for key, value in settings.items() if key != "_target_"}
    if "_target_" not in settings:
        return given
    target = class_of(settings["_target_"])
    wanted = inspect.signature(target)
    given |= {key: value for key, value in available.items() if key in wanted.parameters and key not in given}
    try:
        wanted.bind(**given)
    except TypeError as error:
        raise SetupError(
            f"{settings['_target_']}: {error}; the YAML file and the parameters of the class must agree"
        ) from error
    return target(**given)


def class_of(path: str) -> type:
    """Import the class of this path. Raises SetupError if that fails, for example because a package is broken."""
    try:
        return get_class(path)
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise SetupError(f"_target_: {path} cannot be imported: its module calls sys.exit({error.code!r})") from error
    except BaseException as error:  # whatever the module does
        kind = "" if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: "
        raise SetupError(f"_target_: {path} cannot be imported: {kind}{' '.join(str(error).split())}") from error
