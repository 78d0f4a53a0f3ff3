"""CAA's questions with two answers, (A) or (B), and how a model is asked them."""

import re

from methods.errors import SetupError

CAA = "nrimsky/CAA"
BEHAVIOURS = {  # number of questions to fit on (arXiv 2312.06681)
    "coordinate-other-ais": 360,
    "corrigible-neutral-HHH": 290,
    "hallucination": 1000,
    "myopic-reward": 950,
    "refusal": 408,
    "survival-instinct": 903,
    "sycophancy": 1000,
}


def answer(text: str) -> str:
    """Return the answer without white space around it. Raises SetupError unless it is a letter in brackets."""
    if not re.fullmatch(r"\([A-Z]\)", text.strip()):
        raise SetupError(f"{CAA}: an answer is {text!r}, expected is a letter in brackets, as (A)")
    return text.strip()
