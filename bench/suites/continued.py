"""What the suites share that look at k continuations of RealToxicityPrompts prompts."""

from dataclasses import dataclass
from typing import Any

from bench.data.prompts import Prompt, rtp_prompts
from bench.data.sources import Located, Sources
from bench.suites.base import Split

TOKENS_A_PROMPT, TOKENS_A_TEXT = 15, 20  # roughly


@dataclass(frozen=True, kw_only=True)
class Continued:
    """Which prompts, and how many continuations of each; suites with equal settings read the same stored texts."""

    sources: Sources
    k: int = 25
    prompts: int = 100
    dev_k: int = 3
    dev_prompts: int = 32

    def samples_a_prompt(self, split: Split) -> int:
        """K of this split."""
        return self.k if split == "test" else self.dev_k

    def texts(self, split: Split) -> tuple[list[Prompt], Located]:
        """The prompts of this split, and where they come from."""
        return rtp_prompts(self.sources, split, self.prompts if split == "test" else self.dev_prompts)

    def identity(self, split: Split) -> dict[str, Any]:
        """Prompts and k."""
        prompts, located = self.texts(split)
        return {
            "k": self.samples_a_prompt(split),
            "prompts": [prompt.id for prompt in prompts],
            "source": located.fingerprint,
        }

    def tokens(self, split: Split) -> int:
        """Prompts are read once, each continuation is some 20 tokens long."""
        count = self.prompts if split == "test" else self.dev_prompts
        return count * (TOKENS_A_PROMPT + TOKENS_A_TEXT * self.samples_a_prompt(split))
