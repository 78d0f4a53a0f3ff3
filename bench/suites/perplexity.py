"""Perplexity of given texts: five protocols, each with a name and a file in conf/suite, since their numbers differ.

perplexity_surgery         Lee et al. (arXiv 2401.01967) and Model Surgery (2407.08770 table 2, "Wiki"): the rows of
                           WikiText-2-raw's test split joined by two line breaks, empty rows included, cut into windows
                           of 1,024 tokens that do not overlap. The number is exp(sum over windows of mean loss x
                           length / number of all tokens); the first token of a window has no loss, but is counted.
                           Published: GPT-2 medium 21.7, LLaMA2-7B 6.10.
perplexity_profs           DeTox/ProFS (2405.13967): rows that are not empty, joined by two line breaks; windows as long
                           as the model reads, each 512 tokens after the one before; only a window's new tokens are
                           predicted. exp of the mean of the windows' mean losses, short windows included. Differs: the
                           authors take the prompts of Lee et al.'s file, which no source here has, so only changes
                           compare.
perplexity_lm_eval         lm-eval's task wikitext (version 2): whole pages, with the tokenisation of WikiText undone,
                           read in windows as long as the model reads. word_perplexity is per word of the raw page,
                           byte_perplexity and bits_per_byte per byte. Comparable with lm-eval's own numbers.
perplexity_wiki_sentences  ours, from a wheel: sentences of Wikipedia one by one, each after the token that begins a
                           text; exp of the mean loss over all their tokens. Many are titles and captions of about ten
                           tokens with nothing before them, so the level is about 20 times that of the others: read the
                           change. Only comparable with rows of this suite.
perplexity_act             AcT (2410.23054 section 4.1 and its code): sentences of Wikipedia, each after the token that
                           begins a text and cut at 50 tokens; mean_perplexity is the mean over the sentences of their
                           perplexities. Differs: the authors' 20,000 sentences are not published; these are those of
                           perplexity_wiki_sentences, so only changes compare.

The rows of WikiText-2-raw are rebuilt from whole pages (EleutherAI/wikitext_document_level), of which each line is a
row; blanks at the end of a line are kept as the source has them.

Steering is on. On plain text "after the prompt" means nothing; here what a window predicts counts as generated, and
what comes before it as the prompt: one token in perplexity_surgery, _wiki_sentences and _act, the overlap in _profs,
the opening token of lm-eval in _lm_eval. A steering prefix comes before every window and is part of the prompt. So
methods that steer generated tokens steer all but the first token of a text, and act_add, which steers the front of a
prompt, almost none. The record states this scope (info.scope).
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from bench.data.lm_eval_tasks import definitions, load_task
from bench.data.sources import Located, Sources, loaded
from bench.data.splits import Learnt, rank
from bench.data.text_sets import WIKI, wiki_leak, wiki_sentences
from bench.model.lm import LM, Request
from bench.model.log_likelihood import likelihoods
from bench.stats import metrics
from bench.suites.base import Answers, Split, Suite, SuiteResult
from methods.errors import SetupError

Protocol = Literal["surgery", "profs", "lm_eval", "sentences", "act"]
PAGES = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test")
SENTENCES = (WIKI, None, "test")
OF_SENTENCES = ("sentences", "act")
STRIDE = 512  # of perplexity_profs; arXiv 2405.13967's code
SCOPE = "what a window predicts counts as generated, what stands before it as the prompt"
UNITS = {"word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": 1 / math.log(2)}  # of lm-eval's sums, in nats


class Window(NamedTuple):
    """A window: tokens that are given, tokens that are predicted, and the weight of the predicted tokens' mean loss."""

    context: list[int]
    continuation: list[int]
    weight: float


@dataclass(frozen=True, kw_only=True)
class Perplexity(Suite[pd.DataFrame]):
    """Perplexity of a text under the steered model.

    window: the number of tokens of a window, at most as many as the model reads; None: as many as the model reads.
    limit: how many windows, pages or sentences are read, from the first on; the limit is part of the metric's name.
    The dev split reads the windows, pages or sentences after these. skip: for protocols sentences and act, how many of
    the first sentences (`wiki_sentences`) are left out, since with background=wiki methods learn from these.
    """

    version: ClassVar[int] = 1

    name: str = "perplexity"
    sources: Sources
    protocol: Protocol
    window: int | None = None
    limit: int | None = None
    dev_limit: int = 4
    skip: int = 0

    def __post_init__(self) -> None:
        """Raises SetupError for a window or limit that holds nothing, and for an unknown protocol."""
        if self.protocol not in get_args(Protocol):
            allowed = ", ".join(get_args(Protocol))
            raise SetupError(f"suite.{self.name}.protocol={self.protocol!r}: allowed are {allowed}")
        if self.skip < 0 or (self.skip and self.protocol not in OF_SENTENCES):
            raise SetupError(
                f"suite.{self.name}.skip={self.skip}: expected a number of sentences, or 0 for protocol={self.protocol}"
            )
        for option in ("window", "limit", "dev_limit"):
            value = getattr(self, option)
            if value is not None and value < (2 if option == "window" else 1):
                raise SetupError(
                    f"suite.{self.name}.{option}={value}: a window needs at least 2 tokens, and a limit must be above 0"
                )

    def _located(self) -> Located:
        return self.sources.locate(*(SENTENCES if self.protocol in OF_SENTENCES else PAGES))

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the text, the protocol and the windows."""
        return {
            "protocol": self.protocol,
            "source": self._located().fingerprint,
            "window": self.window,
            "limit": self.limit,
            "dev": self.dev_limit if split == "dev" else None,
            # lm-eval's windows are cut from prefix and page as one text; an older version tokenised the two apart
            "prefix": "one text" if self.protocol == "lm_eval" else None,
            **({"skip": self.skip} if self.skip else {}),
        }

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from sentences that are asked here must not be measured; None if it may."""
        return wiki_leak(learnt, self.name, self.skip) if self.protocol in OF_SENTENCES else None

    def tokens(self, split: Split) -> int:
        """Count windows, or texts of the usual length; WikiText-2's test split has about 280,000 tokens."""
        count = self.dev_limit if split == "dev" else self.limit
        if self.protocol in OF_SENTENCES:
            return min(count or 1000, 1000) * 30
        size = 5000 if self.protocol == "lm_eval" else self.window or 2048
        whole = 280_000 * (self.window or 2048) // STRIDE if self.protocol == "profs" else 280_000
        return min(count * size, whole) if count else whole

    def ask(self, lm: LM, split: Split) -> Answers[pd.DataFrame]:
        """Return the loss of each text. Raises SetupError if window and steering prefix exceed what the model reads."""
        return Answers(split, self._pages(lm, split) if self.protocol == "lm_eval" else self._windows(lm, split))

    def score(self, answers: Answers[pd.DataFrame], baseline: LM) -> SuiteResult:
        """Return the perplexity over all texts."""
        found, items = self._located(), answers.said
        measured = {
            str(name): metrics.metric(
                table, higher_is_better=False, transform="mean" if str(name).startswith(("bits", "mean")) else "exp"
            )
            for name, table in items.groupby("metric", sort=False)
        }
        texts = items["item"].nunique()
        info = {"sources": [found.facts()], "scope": SCOPE, "window": self._window(baseline), "texts": texts}
        return SuiteResult(measured, items, items[["item", "value", "weight"]].drop_duplicates("item"), info)

    def _window(self, lm: LM) -> int:
        return min(self.window or lm.max_length, lm.max_length)

    def _named(self, metric: str) -> str:
        return f"{metric}_n{self.limit}" if self.limit is not None else metric

    def _part(self, count: int, split: Split) -> slice:
        """Return which of the windows, pages or sentences are read."""
        if split == "test":
            return slice(0, self.limit)
        if self.limit is None or self.limit >= count:
            given = "null" if self.limit is None else self.limit
            raise SetupError(
                f"suite.{self.name}.limit={given}: the test split takes all {count} windows, pages or sentences, so "
                f"nothing is left for the dev split; set a limit below {count}"
            )
        return slice(self.limit, self.limit + self.dev_limit)

    def _windows(self, lm: LM, split: Split) -> pd.DataFrame:
        prefix = _tokens(lm, lm.steering.prefix) if lm.steering.prefix else []
        cut = list(self._cut(lm))
        windows = cut[self._part(len(cut), split)]
        longest = max(len(prefix) + len(one.context) + len(one.continuation) for one in windows)
        if longest > lm.max_length:
            raise SetupError(
                f"suite.{self.name}: a window with the steering prefix has {longest} tokens, the model reads "
                f"{lm.max_length}; set suite.{self.name}.window={lm.max_length - len(prefix)} for all methods"
            )
        read = likelihoods(lm, [Request(prefix + one.context, one.continuation) for one in windows])
        losses = [-found.logprob / found.tokens for found in read]
        of_each = self.protocol == "act"  # each text has a perplexity of its own
        return pd.DataFrame(
            {
                "metric": self._named("mean_perplexity" if of_each else "perplexity"),
                "item": [_digest(one.context + one.continuation, number) for number, one in enumerate(windows)],
                "value": list(map(_exp, losses)) if of_each else losses,
                "weight": [1.0 if of_each else one.weight for one in windows],
            }
        )[metrics.ITEM_COLUMNS]

    def _cut(self, lm: LM) -> Iterator[Window]:
        """Yield the windows, in the order of the text."""
        if self.protocol in OF_SENTENCES:
            _, rows = loaded(self.sources, *SENTENCES, ["text"])
            learnt = wiki_sentences(self.sources)[1][: self.skip]
            for text in sorted({str(row["text"]).strip() for row in rows} - {"", *learnt}, key=rank):
                ids = lm.tokenizer(text, add_special_tokens=False).input_ids[: self._window(lm) - 1]
                yield Window([lm.end_of_text], ids, len(ids))
            return
        size = self._window(lm)
        ids = _tokens(lm, rows_of(self._page_texts(), empty=self.protocol == "surgery"))
        if self.protocol == "surgery":
            for begin in range(0, len(ids), size):
                window = ids[begin : begin + size]
                if len(window) > 1:  # of a single token nothing is predicted
                    yield Window(window[:1], window[1:], len(window))
            return
        predicted = 1  # the first token of the text has no loss
        for begin in range(0, len(ids), min(STRIDE, size)):
            end = min(begin + size, len(ids))
            if end > predicted:
                yield Window(ids[begin:predicted], ids[predicted:end], 1.0)
            predicted = end
            if end == len(ids):
                return

    def _page_texts(self) -> list[str]:
        return [str(row["page"]) for row in loaded(self.sources, *PAGES, ["page"])[1]]

    def _pages(self, lm: LM, split: Split) -> pd.DataFrame:
        """Return the pages' losses by lm-eval's task wikitext, with its detokeniser and counts of words and bytes."""
        from bench.model.lm_eval_adapter import evaluated, quiet, untouched_randomness

        with quiet(), untouched_randomness():
            task = load_task("wikitext", definitions(("wikitext",))["wikitext"], self._located())
            numbers = list(range(len(task.eval_docs)))[self._part(len(task.eval_docs), split)]
            samples = evaluated(lm, {"wikitext": task}, {"wikitext": numbers})["wikitext"]
        rows = []
        for sample in samples:
            item = hashlib.sha256(sample["doc"]["page"].encode()).hexdigest()[:12]
            for name, unit in UNITS.items():
                logprob, count = sample[name]
                rows.append((self._named(name), item, -logprob / count * unit, float(count)))
        return pd.DataFrame(rows, columns=metrics.ITEM_COLUMNS)


def rows_of(pages: Sequence[str], *, empty: bool) -> str:
    """Return the rows of WikiText as data sets keep them, each ending in a line break, joined by two line breaks.

    A row of blanks is "", and is left out unless `empty`.
    """
    lines = [line for page in pages for line in page.split("\n")]
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    return "\n\n".join(row for row in rows if row or empty)


def _exp(loss: float) -> float:
    """Return the perplexity of a text. Raises ValueError if it is larger than a float can be."""
    try:
        return math.exp(loss)
    except OverflowError as error:
        raise ValueError(f"exp of the mean loss of a sentence, {loss:.4g}, is larger than a float can be") from error


def _tokens(lm: LM, text: str) -> list[int]:
    return list(lm.tokenizer(text).input_ids)


def _digest(tokens: Sequence[int], number: int) -> str:
    """Return the name of a window, made of its place and content, so that only the same windows are paired."""
    return hashlib.sha256(np.asarray([number, *tokens], dtype=np.int64).tobytes()).hexdigest()[:12]
