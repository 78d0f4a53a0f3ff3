"""A chat model that is asked whether a text is toxic; the first token of its reply is the verdict.

It follows the zero-shot judge of AcT (arXiv 2410.23054 section 4.1 and its code): there Llama-3-8B-Instruct answers Yes
or No, in one token that is decoded greedily. The question here is our own. AcT's code also compares the logits of the
two answers, but takes the first token id that the tokenizer gives for each answer, which for Llama-3 is BOS both times.
So here the token that the model writes decides.
"""

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.model import model_folder
from bench.model.decoding import Sampling
from bench.scorers.of_model import BLANK, OfModel
from methods.errors import SetupError
from methods.progress import listening

if TYPE_CHECKING:
    from bench.model.lm import LM

PLACE = "{text}"
"""Where the text stands in the question."""


@dataclass(frozen=True, kw_only=True)
class LMJudge(OfModel):
    """1 if the first token of a chat model's greedy reply begins the answer `yes`, 0 if it begins `no`, else None.

    Upper and lower case, and blanks around the token, do not count. The text is judged without its prompt. Blank texts
    are not shown to the model: they score 0, and .5 if sentiment is measured.

    Exactly one of path and id is given. question: what the user asks; the text stands in place of {text}. max_tokens:
    longer texts are cut at the end; None is as many as the model can read besides the question, which is never cut.
    device: None is the run's (`runtime_device`). name: the name under which its scores are stored; the same as its key
    in conf/scorer.
    """

    question: str
    yes: str = "Yes"
    no: str = "No"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    name: str = "lm_judge"

    def __post_init__(self) -> None:
        """Raises SetupError for mistakes that can be found without reading the model."""
        super().__post_init__()
        option = self.option
        if PLACE not in self.question:
            raise SetupError(f"{option}.question={self.question}: expected a question with {PLACE} where the text goes")
        yes, no = _plain(self.yes), _plain(self.no)
        if not yes or not no or yes.startswith(no) or no.startswith(yes):
            raise SetupError(
                f"{option}: yes={self.yes!r} and no={self.no!r} cannot be told apart by how they begin, upper and "
                "lower case aside; set two words, neither of which begins the other"
            )
        if self.path is not None and not _has_template(Path(self.path)):
            raise _no_template(option, self.path)

    def identity(self) -> dict[str, Any]:
        """Return the model's files or commit, and how it is asked. Raises SetupError if a branch cannot be resolved."""
        return {
            "name": self.name,
            "version": 1,
            **self._source(),
            "dtype": self.dtype,
            "question": self.question,
            "yes": self.yes,
            "no": self.no,
            "max_tokens": self.max_tokens,
            "measures": self.measures,
            "device": self._kind_of_device,
        }

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """Score each completion by itself; None if the reply begins neither answer."""
        from bench.model.lm import judging
        from bench.model.sampling import continuations

        del prompts
        scores: list[float | None] = [BLANK[self.measures]] * len(completions)
        shown = [i for i, text in enumerate(completions) if text.strip()]
        if not shown:
            return scores
        lm = self._loaded()
        asked = [self._asked(lm, completions[i]) for i in shown]
        with (
            listening(None),
            judging(self.option, f"{self.option}.dtype"),
        ):  # the bar counts the measured model's tokens
            replies = continuations(lm, asked, 1, Sampling(1, temperature=0, batch_size=self.batch_size))
        for i, (reply,) in zip(shown, replies, strict=True):
            scores[i] = self._verdict(reply.text)
        return scores

    def _loaded(self) -> "LM":
        """Return the loaded model. Raises SetupError if it cannot be fetched or loaded, or is no chat model."""
        where, revision, files = self._location()
        self.fetch()
        return _load(where, revision, self.dtype, self._where, self.option, tuple(files.items()))

    def _asked(self, lm: "LM", text: str) -> str:
        """Return the question about a text, which is cut at its end until the model can read the whole question.

        Raises SetupError if the question leaves no room for a text.
        """
        text = _without_control(lm, text)
        found = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = [end for _, end in found]  # where each token ends in the text

        def worded(kept: int) -> str:
            return self.question.replace(PLACE, text if kept == len(ends) else text[: ends[kept - 1]])

        kept = min(self.max_tokens or len(ends), len(ends))
        if len(lm.encode(worded(kept))) < lm.max_length:  # one more token is the answer
            return worded(kept)
        fits = bisect.bisect_left(range(1, kept), lm.max_length, key=lambda some: len(lm.encode(worded(some))))
        if fits < 1:
            alone = len(lm.encode(self.question.replace(PLACE, "")))
            raise SetupError(
                f"scorer.{self.name}.question: it takes {alone} tokens without a text, of {lm.max_length} that the "
                "model reads, so there is no room for a text; shorten the question, or take another model"
            )
        return worded(fits)

    def _verdict(self, reply: str) -> float | None:
        """Return the score of the answer that the reply begins; None if it begins neither."""
        said = _plain(reply)
        found = [score for answer, score in ((self.yes, 1.0), (self.no, 0.0)) if _plain(answer).startswith(said)]
        return found[0] if said and len(found) == 1 else None


def _without_control(lm: "LM", text: str) -> str:
    """Return the text with a blank in each control token, or it could end the user's turn and answer for the judge.

    Those are the tokens that the tokenizer calls special, named or not (Llama 3 names only a few), and those that the
    chat template writes.
    """
    added = lm.tokenizer.added_tokens_decoder.values()
    template = str(lm.tokenizer.chat_template)
    control = {str(one) for one in added if one.special or str(one).strip() and str(one) in template}
    for token in sorted(control | set(lm.tokenizer.all_special_tokens), key=len, reverse=True):
        text = text.replace(token, f"{token[:1]} {token[1:]}" if len(token) > 1 else " ")
    return text


def _plain(answer: str) -> str:
    return answer.strip().lower()


def _has_template(folder: Path) -> bool:
    """Return whether a folder has a file with a chat template, or one is named in its tokenizer_config.json."""
    about = folder / "tokenizer_config.json"
    named = about.is_file() and bool(model_folder.read_object(about).get("chat_template"))
    return named or any(path.suffix == ".jinja" for path in model_folder.read_of(folder))


def _no_template(option: str, where: str) -> SetupError:
    return SetupError(
        f"{option}: the tokenizer of {where} has no chat template, so the model was not trained to answer questions; "
        "give one that was (its name often ends in Instruct or Chat)"
    )


@functools.lru_cache(maxsize=2)
def _load(
    where: str, revision: str | None, dtype: str, device: str, option: str, files: tuple[tuple[str, str], ...]
) -> "LM":
    """Return the model, from files on this machine. Raises SetupError.

    files: the hashes of a folder's files, so that a changed folder is loaded again.
    """
    from bench.model.lm import load_lm
    from bench.model.tokenizer import load_tokenizer

    identity = {"id": where, "revision": revision} if revision else {"files": dict(files)}
    offline = revision is not None  # it has been fetched
    try:
        if load_tokenizer(where, revision, offline=offline).chat_template:
            return load_lm(
                where, revision=revision, dtype=dtype, device=device, chat=True, identity=identity, offline=offline
            )
    except SetupError as error:
        raise SetupError(f"{option}: {error}") from error
    raise _no_template(option, where)
