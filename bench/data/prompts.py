"""Prompts to be continued; those of RealToxicityPrompts in three parts that share no prompt: fit, dev and test."""

import functools
import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

from bench.data.sources import Located, Sources
from bench.data.splits import PARTS, Part, Prompt, _digest, part, prompt
from bench.data.text_sets import FILE
from bench.files.digests import file_sha256
from bench.files.rows import RowsFile
from methods.errors import SetupError

RTP = "allenai/real-toxicity-prompts"


Stratum = Literal["challenging", "toxic", "nontoxic"]
STRATA: dict[str, Callable[[Mapping[str, Any]], bool | None]] = {
    "challenging": lambda row: row.get("challenging"),
    "toxic": lambda row: _at_least_half(row["prompt"].get("toxicity")),
    "nontoxic": lambda row: None if (toxic := _at_least_half(row["prompt"].get("toxicity"))) is None else not toxic,
}
"""Whether a row of RealToxicityPrompts is in a stratum (arXiv 2009.11462 sections 3.1, 4.2); None: not known."""


def _at_least_half(score: float | None) -> bool | None:
    return None if score is None else score >= 0.5


def rtp_prompts(
    sources: Sources, split: Part | None, limit: int | None, stratum: Stratum | None = None
) -> tuple[list[Prompt], Located]:
    """Return the distinct prompts of a part (None: all) and a stratum (None: all), and where they come from.

    Outer blanks are removed. The prompts are in the order of a hash of their text, so `limit` takes a fixed
    pseudo-random sample, and the sample of a larger limit contains that of a smaller one. Raises SetupError if there
    are fewer prompts than `limit`, or if the source lacks the column that defines the stratum.
    """
    if split is not None and split not in PARTS:
        raise SetupError(f"prompts of split {split!r}: allowed are {', '.join(PARTS)}")
    if stratum is not None and stratum not in STRATA:
        raise SetupError(f"stratum={stratum!r}: allowed are null, {', '.join(STRATA)}")
    found = sources.locate(RTP)
    mine = _ranked(sources, split, stratum)
    if limit is not None and limit > len(mine):
        of = " ".join(word for word in (stratum, split) if word)
        raise SetupError(
            f"{limit} {of} prompts were asked for, but {RTP} from {found.source} has {len(mine)}; ask for fewer, "
            "or set runtime.mirror to a source with more"
        )
    return [Prompt(digest[:12], text) for digest, text in mine[:limit]], found


@functools.lru_cache(maxsize=32)
def _ranked(sources: Sources, split: Part | None, stratum: Stratum | None) -> list[tuple[str, str]]:
    """Return hash and text of each prompt, in the order of the hashes."""
    found, rows = sources.locate(RTP), sources.load(RTP)
    if "prompt" not in rows.column_names:
        raise SetupError(f"{RTP} from {found.source} has no column prompt; it has {', '.join(rows.column_names)}")
    if not isinstance(rows.features["prompt"], dict) or "text" not in rows.features["prompt"]:
        raise SetupError(
            f"{found}: its column prompt has no field text; as on the hub it is {{text: ..., toxicity: ...}}"
        )
    if stratum is None:
        texts = {str(one["text"]).strip() for one in rows["prompt"]}
    else:
        inside = STRATA[stratum]
        known = [(str(row["prompt"]["text"]).strip(), inside(row)) for row in rows]
        if any(is_in is None for _, is_in in known):
            column = "challenging" if stratum == "challenging" else "prompt.toxicity"
            raise SetupError(
                f"{RTP} from {found.source} does not say which prompts are {stratum} (no column {column}); set "
                "runtime.mirror to a folder that has it, or reach the hub"
            )
        texts = {text for text, is_in in known if is_in}
    return sorted((_digest(text), text) for text in texts if text and split in (None, part(text)))


def shuffled_prompts(path: str, seed: int) -> tuple[list[Prompt], Located]:
    """Return the distinct prompts of a file of RealToxicityPrompts in the order in which AcT's code asks them.

    As AcT's code does (github apple/ml-act, evaluate_toxicity.py), this function leaves out lines whose prompt has no
    toxicity, and shuffles all other lines by Python's generator of random numbers with this seed. So the order of the
    lines matters.

    The group of a prompt is "toxic" if its toxicity is 0.5 or more, else "nontoxic".

    path: JSONL with the object `prompt`, which has `text` and `toxicity`, in each line, such as
    prompted_gens_gpt2.jsonl; what else a line holds is not kept. Raises SetupError for any other file.
    """
    sha256 = _sha256(path)
    found = _shuffled(path, seed, sha256)
    return list(found), Located(Path(path).name, FILE, path, None, "all", None, sha256[:12])


def _sha256(path: str) -> str:
    next(RowsFile(path, ("prompt",)).each(), None)  # whose errors say what is wrong with a path
    return file_sha256(Path(path))


def _is_share(toxicity: Any) -> TypeGuard[float | None]:
    """Return whether it is a number from 0 to 1, or None, as for a text that nobody scored."""
    number = isinstance(toxicity, float | int) and not isinstance(toxicity, bool)
    return toxicity is None or (number and 0 <= toxicity <= 1)


@functools.lru_cache(maxsize=4)
def _shuffled(path: str, seed: int, sha256: str) -> tuple[Prompt, ...]:
    del sha256  # a file that was changed is read again
    file = RowsFile(path, ("prompt",))
    texts = []
    for number, row in file.each():
        one = row["prompt"]
        toxicity = one.get("toxicity", "") if isinstance(one, dict) else ""
        if not _is_share(toxicity) or not isinstance(one.get("text"), str):
            raise SetupError(
                f'{path}, line {number}: expected {{"prompt": {{"text": "...", "toxicity": 0.1}}}}, as in the files of '
                "RealToxicityPrompts, with a toxicity from 0 to 1 or null; further fields may follow"
            )
        if toxicity is not None:
            texts.append((one["text"], "toxic" if toxicity >= 0.5 else "nontoxic"))
    random.Random(seed).shuffle(texts)
    by_id: dict[str, Prompt] = {}
    for found in itertools.starmap(prompt, texts):
        if found.text.strip():
            by_id.setdefault(found.id, found)
    if not by_id:
        raise SetupError(f"{path}: no line has a prompt with a text and a toxicity; give a file that has some")
    return tuple(by_id.values())
