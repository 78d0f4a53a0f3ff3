"""RealToxicityPrompts prompts in three parts that share no prompt: fit, dev and test."""

import hashlib
from typing import Literal, NamedTuple

from bench.data.sources import Located, Sources
from methods.errors import SetupError

RTP = "allenai/real-toxicity-prompts"
Part = Literal["fit", "dev", "test"]
PARTS: dict[str, tuple[float, float]] = {"fit": (0.0, 0.45), "dev": (0.45, 0.60), "test": (0.60, 1.0)}


class Prompt(NamedTuple):
    """A prompt; id: 12 hex digits of the sha256 of its text."""

    id: str
    text: str


def part(text: str) -> Part:
    """Which part a prompt belongs to: 45 % fit, 15 % dev, 40 % test, by a hash of its text without outer blanks.

    The text alone decides, so a prompt that several sources have is in the same part everywhere.
    """
    place = int(_digest(text)[-16:], 16) / 16**16  # in [0, 1)
    for name, (low, high) in PARTS.items():
        if low <= place < high:
            return name  # type: ignore[return-value]
    raise AssertionError(place)


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def rtp_prompts(sources: Sources, split: Part, limit: int | None) -> tuple[list[Prompt], Located]:
    """Distinct prompts of a part, outer blanks removed, and where they come from.

    They are in the order of a hash of their text, so `limit` takes a fixed pseudo-random sample, and a larger limit
    contains a smaller one. Raises SetupError when the part has fewer prompts than `limit`.
    """
    if split not in PARTS:
        raise SetupError(f"prompts of split {split!r}: allowed are {', '.join(PARTS)}")
    found = sources.locate(RTP)
    texts = {str(prompt["text"]).strip() for prompt in sources.load(RTP)["prompt"]}
    mine = sorted((_digest(text), text) for text in texts if text and part(text) == split)
    if limit is not None and limit > len(mine):
        raise SetupError(
            f"{limit} {split} prompts were asked for, but {RTP} from {found.source} has {len(mine)}; ask for fewer, "
            "or set data.mirror to a source with more"
        )
    return [Prompt(digest[:12], text) for digest, text in mine[:limit]], found
