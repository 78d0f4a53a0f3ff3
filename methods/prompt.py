"""Steering by words: a prefix that asks for a harmless continuation is put before every prompt.

This baseline is cheap and hard to beat (AxBench, arXiv 2501.17148 section 5), so every table should have it. CAA
is compared with system prompts of this kind in its paper (arXiv 2312.06681 appendix, table 14).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options
from methods.base import Artefact, FitData, Method, Steering
from methods.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """Strength i puts prefix i of `prompts` (counted from 1) before the text; strength 0 puts nothing there.

    For a base model, the prefix is plain text before the prompt. In a chat, the prefix is the system message; if the
    chat template allows no system message, the prefix comes before the user's text.

    Example:
        >>> from methods import FitData, Prompt
        >>> method = Prompt(prompts=["Be kind. ", "Be polite. "], strengths=(1, 2))
        >>> artefact = method.fit(model, tokenizer, FitData())
        >>> with method.apply(model, artefact, 2) as steering:
        ...     steering.prefix
        'Be polite. '
    """

    name: ClassVar[str] = "prompt"
    title: ClassVar[str] = "Prompt"
    family: ClassVar[str] = "prompt"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "prompt number"
    discrete: ClassVar[bool] = True

    prompts: Sequence[str]
    strengths: Sequence[float] = (1, 2, 3, 4, 5)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError when the grid names a prompt that does not exist, or a prompt is empty."""
        del model
        options.check_types(self)
        for number in self.strengths:
            if not self._chosen(number).strip():
                raise SetupError(f"method.prompts: prompt {number} is empty; write one or take it out of the list")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return an empty artefact, since there is nothing to learn."""
        del model, tokenizer, data
        return {}

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Put the prompt of this number before every text inside the `with`. Raises SetupError if there is none."""
        del model, artefact
        yield Steering(prefix=self._chosen(strength)) if strength else Steering()

    def _chosen(self, number: float) -> str:
        if number not in range(1, len(self.prompts) + 1):
            raise SetupError(
                f"strength {number:g}: {self.name} has prompts 1 to {len(self.prompts)}; choose one of these, or add a "
                "prompt to method.prompts"
            )
        return self.prompts[int(number) - 1]
