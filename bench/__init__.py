"""steerbench: compare ways of steering a language model on the same prompts, decoding, seeds and budgets.

For a notebook:

    load_lm, LM             a model with its tokenizer; inside `with lm.steered(method, artefact, strength) as steered`
                            the LM that is yielded is the steered one
    sample, log_likelihood  the texts that a model writes after prompts, and the probabilities that it gives to texts
    collect, compare, build_leaderboard
                            tables of results, read from a folder of results; they need no torch

`help(NAME)` has shapes, units, errors and an example of each. The methods themselves are in the package `methods`.
Every name is loaded when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import build_leaderboard as build_leaderboard
    from bench.api import collect as collect
    from bench.api import compare as compare
    from bench.model.lm import LM as LM
    from bench.model.lm import load_lm as load_lm
    from bench.model.log_likelihood import log_likelihood as log_likelihood
    from bench.model.sampling import sample as sample

_WHERE = {
    "LM": "model.lm",
    "build_leaderboard": "api",
    "collect": "api",
    "compare": "api",
    "load_lm": "model.lm",
    "log_likelihood": "model.log_likelihood",
    "sample": "model.sampling",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
