"""Sampled texts on disk, shared by every suite and run that asks for the same ones."""

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from bench.files import atomic, digests
from bench.model.decoding import Continuation, Sampling
from bench.model.lm import LM
from bench.model.sampling import VERSION, continuations
from bench.records import identity, unfinished
from methods.broken import reading
from methods.errors import SetupError

FILE = "samples.jsonl.gz"
_read_ids: ContextVar[dict[str, None] | None] = ContextVar("read_ids", default=None)


@contextmanager
def generations_read() -> Iterator[dict[str, None]]:
    """Its keys are, when the block ends, the ids of the sets of texts that were read inside it, in their order."""
    ids: dict[str, None] = {}
    token = _read_ids.set(ids)
    try:
        yield ids
    finally:
        _read_ids.reset(token)


def decoding_identity(sampling: Sampling) -> dict[str, Any]:
    """What of the decoding can change a text: neither the batch size, nor seed and nucleus where nothing is drawn."""
    unused = {"batch_size"} | ({"seed", "top_p"} if sampling.temperature == 0 else set())
    return {key: value for key, value in asdict(sampling).items() if key not in unused} | {"version": VERSION}


class Asker(Protocol):
    """Who asks for texts: a language model, or what is known of one."""

    @property
    def identity(self) -> dict[str, Any]:
        """Of the model."""
        ...

    @property
    def steering_identity(self) -> dict[str, Any] | None:
        """Of the steering; None: unsteered."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How texts are decoded."""
        ...


def generation_id(lm: Asker, prompts: Sequence[str], num_samples: int) -> str:
    """Of a set of continuations: model, steering, prompts, decoding."""
    decoding = decoding_identity(lm.sampling)
    return identity.generation_id(lm.identity, lm.steering_identity, prompts, num_samples, decoding)


def sampled(lm: LM, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
    """`num_samples` continuations of each prompt, decoded as `lm.sampling` says; stored ones are not sampled again."""
    if lm.store is not None:
        return lm.store.sampled(lm, prompts, num_samples)
    return continuations(lm, prompts, num_samples, lm.sampling)


class Generations:
    """A folder `<id>/samples.jsonl.gz` a set, sealed by its sha256; they hold text, so they are never committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sampled(self, lm: LM, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
        """The stored continuations, sampled now where there are none, where they are damaged, or without their tokens.

        An older version kept texts alone, and what is made of texts is not comparable with what is made of tokens.
        """
        target = self.folder / generation_id(lm, prompts, num_samples)
        if (target / FILE).exists():
            try:
                found = _read(target, prompts, num_samples)
                if all(one.tokens is not None for row in found for one in row):
                    return found
                raise digests.DamagedError(f"{target / FILE} lacks the sampled tokens, as an older version wrote it")
            except digests.DamagedError as error:
                digests.set_aside(target, error)
        with unfinished.keeping(self.folder.parent / "unfinished" / target.name):
            rows = continuations(lm, prompts, num_samples, lm.sampling)
            self._write(target, prompts, rows)
        return _read(target, prompts, num_samples)

    def _write(self, target: Path, prompts: Sequence[str], rows: Sequence[Sequence[Continuation]]) -> None:
        """Write a set and its seal."""
        with atomic.whole_folder(target, [FILE]) as temporary:
            with gzip.open(temporary / FILE, "wt", encoding="utf-8") as out:
                for prompt, row in zip(prompts, rows, strict=True):
                    out.write(json.dumps({"prompt": prompt, "continuations": row}) + "\n")
            digests.seal(temporary, name=target.name)

    def stored(self, lm: Asker, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
        """The stored continuations. Raises SetupError where there are none, and where they are damaged."""
        target = self.folder / generation_id(lm, prompts, num_samples)
        if not (target / FILE).exists():
            raise SetupError(f"{target} is not there, so these texts cannot be judged again; run their cell anew")
        return _read(target, prompts, num_samples)


def _read(folder: Path, prompts: Sequence[str], num_samples: int) -> list[list[Continuation]]:
    """The texts of a set. Raises DamagedError for a file that is not what was written, or not what is asked for."""
    digests.verified(folder)
    if (ids := _read_ids.get()) is not None:
        ids[folder.name] = None
    again = "delete the folder, and run its cell anew"
    with reading(lambda error: digests.DamagedError(f"{folder / FILE} cannot be read ({error}); {again}")):
        with gzip.open(folder / FILE, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        found = [[Continuation(*one) for one in row["continuations"]] for row in rows]
        asked = [row["prompt"] for row in rows]
    if asked != list(prompts) or any(len(row) != num_samples for row in found):
        raise digests.DamagedError(
            f"{folder / FILE} does not hold {num_samples} texts of each of the {len(prompts)} prompts; {again}"
        )
    if not all(_is_one(one) for row in found for one in row):
        raise digests.DamagedError(f"{folder / FILE} holds texts or tokens that are none; {again}")
    return found


def _is_one(one: Continuation) -> bool:
    """Whether what was read is a text, with its tokens or, as older versions wrote it, without them."""
    tokens: Any = one.tokens
    numbers = tokens is None or isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
    return isinstance(one.text, str) and isinstance(one.ended, bool) and numbers
