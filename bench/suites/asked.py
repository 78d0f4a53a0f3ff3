"""Prompts that are put into a template of the suite, for models without a chat template."""

from dataclasses import dataclass
from typing import Any

from bench.data.splits import Prompt
from bench.suites.base import Split
from bench.suites.continued import Judged
from methods.errors import SetupError

PLACE = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class Asked(Judged):
    """Answers to prompts, each judged.

    template: what a model without chat template reads, with the prompt in the place of {prompt}.
    """

    template: str

    def __post_init__(self) -> None:
        """Raises SetupError for a template that does not hold the prompt once."""
        super().__post_init__()
        if self.template.count(PLACE) != 1:
            raise SetupError(f"suite.{self.name}.template={self.template!r}: it has to hold {PLACE} once")

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the prompts, the scorers and the template."""
        return super().identity(split) | {"template": self.template}

    def worded(self, prompt: Prompt, chat: bool) -> Prompt:
        """Return the prompt inside the suite's template; for a chat model as it is."""
        return prompt if chat else prompt._replace(text=self.template.replace(PLACE, prompt.text))
