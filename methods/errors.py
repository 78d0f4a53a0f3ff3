"""The error for what a user, not a developer, must fix, and messages that several modules share."""

import importlib.util
from collections.abc import Iterable
from pickle import UnpicklingError


class SetupError(ValueError):
    """An error that tells the user what to install, download or set; printed without a traceback, exit code 2.

    The message says what is wrong, what was got, what is allowed, and the next step.

    Example:
        >>> from methods import CAA, SetupError
        >>> try:
        ...     CAA(layer=40).check(model)
        ... except SetupError as error:
        ...     print(error)
        layer 40 out of range: this model of type llama has 5 blocks (0-4); set method.layer
    """


def refuse_one_text(texts: object, name: str) -> None:
    """Raise SetupError for one text in the place of a list; its letters would be taken for the texts."""
    if isinstance(texts, str):
        raise SetupError(f"{name}: expected a list of texts, got one text; write [{texts[:20]!r}...]")


def check_texts(texts: Iterable[object], name: str) -> None:
    """Raise SetupError for one text in the place of a list, and for entries that are not texts, such as None."""
    refuse_one_text(texts, name)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise SetupError(f'{name}: expected texts, got {text!r} as number {number}; leave it out, or write ""')


def require(package: str, feature: str, extra: str) -> None:
    """Raises SetupError if a package is missing that only this feature needs, and names the extra that installs it."""
    if importlib.util.find_spec(package) is None:
        raise SetupError(f"{feature} needs {package}; run: pip install 'steerbench[{extra}]'")


def loading_failure(error: Exception) -> str:
    """Return one line that says why files of a model could not be loaded.

    If the files bring their own code, the libraries' error messages advise the user to run that code; this advice is
    left out, since such code is never run.
    """
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text or "custom code" in text:
        return (
            "it brings code of its own (auto_map or attn_implementation in its config.json), and code of a model is "
            "never run here; take one of an architecture that transformers itself has"
        )
    if "weights_only" in text or isinstance(error, UnpicklingError):
        return (
            "its weights are damaged, or a pickle that holds more than tensors, and nothing in a pickle is ever run; "
            "take *.safetensors if there are any"
        )
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    first, *rest = text.splitlines()
    return kind + (f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first)
