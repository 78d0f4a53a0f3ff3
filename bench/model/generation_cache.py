"""Sampled texts on disk, shared by every suite and run that asks for the same ones."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from bench.files import atomic, digests, locks
from bench.files.overwrite import Overwrite
from bench.model.decoding import Continuation, Outcome, Sampling
from bench.model.lm import LM, Generated
from bench.model.sampling import VERSION, continuations
from bench.records import identity, unfinished
from methods.broken import reading
from methods.errors import SetupError

FILE = "samples.jsonl.gz"


def decoding_identity(sampling: Sampling) -> dict[str, Any]:
    """Return the settings of the decoding that can change a text; for greedy texts without seed, top_p and top_k."""
    drawn = sampling.temperature != 0
    kept = {key: value for key, value in sampling.facts().items() if drawn or key not in ("top_p", "top_k")}
    return kept | ({"seed": sampling.seed} if drawn else {}) | {"version": VERSION}


class Writer(NamedTuple):
    """All that decides a text besides the prompt: the model, its steering (None: unsteered) and the decoding."""

    model: Mapping[str, Any]
    steering: Mapping[str, Any] | None
    sampling: Sampling

    def id(self, prompts: Sequence[str], num_samples: int) -> str:
        """Return the id of a set of continuations."""
        decoding = decoding_identity(self.sampling)
        return identity.generation_id(self.model, self.steering, prompts, num_samples, decoding)


def writer(lm: LM) -> Writer:
    """Return the identity of the model as the writer of texts."""
    return Writer(lm.identity, lm.steering_identity, lm.sampling)


def sampled(lm: LM, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
    """Return `num_samples` continuations of each prompt, decoded by `lm.sampling`; stored ones are not made again."""
    return generate(lm, prompts, num_samples).read()


def generate(lm: LM, prompts: Sequence[str], num_samples: int) -> Generated:
    """Return the same texts as `sampled`, read from the store as needed, so that they do not stay in memory."""
    if lm.store is not None:
        return lm.store.generate(lm, prompts, num_samples)
    rows = judged(lm.identity, continuations(lm, prompts, num_samples, lm.sampling))
    return Generated(None, lambda: rows)


def judged(model: Mapping[str, Any], rows: list[list[Continuation]]) -> list[list[Continuation]]:
    """Return the part of the texts that is judged: with model.thinking=strip only the answers, else everything."""
    return [[one.answered() for one in row] for row in rows] if model.get("judged") == "answer" else rows


class Generations:
    """The store: a file `<id>/samples.jsonl.gz` for each set, sealed by its sha256. The texts are never committed."""

    def __init__(self, folder: Path, overwrite: Overwrite | None = None) -> None:
        self.folder, self.overwrite = folder, overwrite or Overwrite()

    def generate(self, lm: LM, prompts: Sequence[str], num_samples: int) -> Generated:
        """Return the stored continuations; they are sampled now if they are missing, damaged, or stored without tokens.

        Older versions kept only texts, and numbers from texts are not comparable with numbers from tokens. They also
        did not look for the answers of a model that thinks.
        """
        own = writer(lm)
        target, runs = self.folder / own.id(prompts, num_samples), self.folder.parent
        if not self._is_whole(target, lm, prompts, num_samples):
            with locks.alone(runs / "locks" / f"{target.name}.lock", f"{num_samples * len(prompts)} texts"):
                if not self._is_whole(target, lm, prompts, num_samples):
                    self.overwrite.forget(runs / "unfinished" / target.name)
                    with unfinished.keeping(runs / "unfinished" / target.name):
                        rows = continuations(lm, prompts, num_samples, lm.sampling)
                        self._write(target, prompts, rows)
        return self.stored(own, prompts, num_samples)

    def _is_whole(self, folder: Path, lm: LM, prompts: Sequence[str], num_samples: int) -> bool:
        """Return whether these continuations are stored; anything else in their place is set aside."""
        if not (folder / FILE).exists() or not self.overwrite.counts(folder):
            return False
        try:
            found = _read(folder, prompts, num_samples)
            thinks = lm.thinking is not None and lm.thinking.tags is not None
            if all(one.tokens is not None and (one.answer or not thinks) for row in found for one in row):
                return True
            what = "answers" if thinks else "sampled tokens"
            raise digests.DamagedError(f"{folder / FILE} lacks the {what}, as an older version wrote it")
        except digests.DamagedError as error:
            self.overwrite.set_aside(folder, error)
            return False

    def _write(self, target: Path, prompts: Sequence[str], rows: Sequence[Sequence[Continuation]]) -> None:
        """Write a set and its seal."""
        with atomic.whole_folder(target, [FILE], replace=self.overwrite.replaces) as temporary:
            with gzip.open(temporary / FILE, "wt", encoding="utf-8") as out:
                for prompt, row in zip(prompts, rows, strict=True):
                    out.write(json.dumps({"prompt": prompt, "continuations": [one.stored() for one in row]}) + "\n")
            digests.seal(temporary, name=target.name)
        self.overwrite.made.add(target.name)

    def stored(self, writer: Writer, prompts: Sequence[str], num_samples: int) -> Generated:
        """Return the stored continuations; reading them raises SetupError if there are none, or if they are damaged."""
        target = self.folder / writer.id(prompts, num_samples)

        def read() -> list[list[Continuation]]:
            if not (target / FILE).exists():
                raise SetupError(
                    f"{target} is missing, so these texts cannot be judged again; run their cell again with "
                    "runtime.overwrite=always"
                )
            return judged(writer.model, _read(target, prompts, num_samples))

        return Generated(target.name, read)


def _read(folder: Path, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
    """Return the texts of a set. Raises DamagedError if the file was changed or holds other texts than asked for."""
    digests.verified(folder)
    again = "delete the folder, and run its cell again"
    with reading(lambda error: digests.DamagedError(f"{folder / FILE} cannot be read ({error}); {again}")):
        with gzip.open(folder / FILE, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        found = [[Continuation.read(one) for one in row["continuations"]] for row in rows]
        asked = [row["prompt"] for row in rows]
    if asked != list(prompts) or any(len(row) != num_samples for row in found):
        raise digests.DamagedError(
            f"{folder / FILE} does not hold {num_samples} texts of each of the {len(prompts)} prompts; {again}"
        )
    if not all(_is_one(one) for row in found for one in row):
        raise digests.DamagedError(f"{folder / FILE} holds texts or tokens of the wrong type; {again}")
    return found


def _is_one(one: Continuation) -> bool:
    """Return whether what was read is a text, with its tokens or, as older versions wrote it, without them."""
    tokens: Any = one.tokens
    numbers = tokens is None or isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
    return isinstance(one.text, str) and isinstance(one.ended, bool) and numbers and _is_answer(one)


def _is_answer(one: Continuation) -> bool:
    """Return whether the answer that was read is valid; no answer is valid, too."""
    if one.answer is None:
        return True
    text, start, outcome = one.answer
    within = type(start) is int and 0 <= start <= len(one.tokens or ())
    return isinstance(text, str) and within and outcome in get_args(Outcome)
