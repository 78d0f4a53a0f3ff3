"""Topic steering: does the model write about what it is steered to, and does it foresee such text better?

topic             Share of the continuations that are about a topic, although their beginnings are not. ActAdd's
                  experiment (arXiv 2308.10248): completions are steered by vectors such as "weddings" minus a space.
                  Over 90% of GPT-2-XL's completions are about weddings if its best layer is steered, about 2%
                  unsteered. The paper's later version takes 1,000 completions for each of several topics, and
                  GPT-4o-mini finds the share of relevant ones to be 5 to 25 points higher than unsteered.
                  Differs: beginnings of Wikipedia's sentences from a wheel, or of a file's texts, as the paper's are
                  not known to us; a list of words judges, and every scorer of the run that measures "topic" (an
                  hf_classifier of yours with measures=topic).
topic_perplexity  Perplexity of sentences on the topic and off it, of which the first words are given: ActAdd's check
                  that a vector helps where it should and nowhere else, with the positions of the intervention left out
                  of the loss. The paper takes documents of OpenWebText; here they are sentences of a wheel's 200 film
                  reviews, few of which are about any one topic, or the sentences of a file. Read the change against the
                  unsteered model.

Both depend on their list of words, so only rows of the same list, texts and decoding compare. A list also counts "he
married his work", and misses texts that use other words. A model whose text has collapsed may repeat the word alone:
read `on_topic` beside the fluency of the same row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from bench.data.sources import Located, Sources
from bench.data.splits import Learnt, Prompt, part_of, prompt, rank
from bench.data.text_sets import WIKI, file_texts, leak, texts_of, wiki_leak, wiki_sentences
from bench.model.lm import LM
from bench.model.log_likelihood import log_likelihood
from bench.records.identity import named
from bench.scorers.base import Scorer
from bench.scorers.keywords import Keywords
from bench.stats import metrics
from bench.suites.base import Answers, Split, Suite, SuiteResult
from bench.suites.continued import Judged
from methods.errors import SetupError

ON_TOPIC = 0.5  # a text with at least this score is about the topic
REVIEWS = "stanfordnlp/imdb"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
FEWEST_PREDICTED = 5  # words that follow those that are given
SENTENCE_TOKENS = 40  # roughly
KINDS = ("on_topic", "off_topic")


@dataclass(frozen=True, kw_only=True)
class Topic(Judged):
    """Continuations of beginnings that do not mention the topic; an item for each beginning.

    on_topic   share of a beginning's k continuations that are about the topic (score of at least .5).

    words: the topic's words; whole words count, in capitals or small letters. path: a file, JSONL or CSV, with the
    column `text`, whose beginnings are given; None: sentences of Wikipedia. prefix_words: how many words of a text are
    given; shorter texts, and those whose beginning mentions the topic, are left out. skip: how many of Wikipedia's
    sentences, from the first on, are not asked, since methods may learn from them.
    """

    version: ClassVar[int] = 1
    reads: ClassVar[str] = "topic"
    higher_is_better: ClassVar[bool] = True

    name: str = "topic"
    words: Sequence[str]
    path: str | None = None
    prefix_words: int = 8
    skip: int = 200
    k: int = 2
    dev_k: int = 1

    def __post_init__(self) -> None:
        """Raises SetupError for a list without words, and for a prefix without a word."""
        super().__post_init__()
        _checked(self.name, self.words, self.prefix_words)

    @property
    def judges(self) -> list[Scorer]:
        """The list of words, then the run's scorers of topics."""
        return [Keywords(self.words), *super().judges]

    def texts(self, split: Split) -> tuple[list[Prompt], list[Located]]:
        """Return beginnings without the topic. Raises SetupError if there are too few."""
        located, found = wiki_sentences(self.sources) if self.path is None else file_texts(self.path)
        found = found[self.skip :] if self.path is None else found
        topic, count = Keywords(self.words), self.prefix_words
        begun = [" ".join(text.split()[:count]) for text in found if len(text.split()) >= count]
        neutral = sorted((text for text in set(begun) if not topic.mentions(text)), key=rank)
        prompts = [prompt(text) for text in neutral]
        return part_of(prompts, split, self.prompts, self.dev_prompts, f"suite.{self.name}.prompts"), [located]

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from sentences that are asked here must not be measured; None if it may."""
        of_set = leak(learnt, WIKI, self.name, self.path)
        return of_set or (wiki_leak(learnt, self.name, self.skip) if self.path is None else None)

    def prompt_metrics(self, scores: pd.DataFrame, scorer: str, split: Split) -> dict[str, "pd.Series[float]"]:
        """Return the share of texts that are about the topic."""
        del scorer, split
        about = (scores["score"] >= ON_TOPIC) & (scores["empty"] == 0)
        return {"on_topic": about.astype(float).groupby(scores["item"], sort=False).mean()}


@dataclass(frozen=True, kw_only=True)
class TopicPerplexity(Suite[Mapping[str, pd.DataFrame]]):
    """exp(sum of -log p / number of tokens) of sentences after their first words; an item for each sentence.

    on_topic.perplexity   of sentences whose predicted part mentions the topic.
    off_topic.perplexity  of sentences that do not mention it at all.

    A sentence that mentions the topic only in its given part is in neither kind. words: as in `Topic`. path: a file,
    JSONL or CSV, with the column `text`, each a sentence; None: sentences of film reviews. prefix_words: how many words
    are given; they must have at least as many tokens as a method such as ActAdd steers at the front of a text.
    texts: how many sentences of each kind at most, the first in the order of a hash; None for all. dev_texts: how
    many sentences of each kind the dev split has.
    """

    version: ClassVar[int] = 1

    name: str = "topic_perplexity"
    sources: Sources
    words: Sequence[str]
    path: str | None = None
    prefix_words: int = 8
    texts: int | None = 100
    dev_texts: int = 16

    def __post_init__(self) -> None:
        """Raises SetupError for a list without words, a prefix without a word, and a number of texts below 1."""
        _checked(self.name, self.words, self.prefix_words)
        for option in ("texts", "dev_texts"):
            if (count := getattr(self, option)) is not None and count < 1:
                raise SetupError(f"suite.{self.name}.{option}={count}: expected at least 1")

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from texts of this suite must not be measured on them; None if it may."""
        return leak(learnt, REVIEWS, self.name, self.path)

    def sentences(self, split: Split) -> tuple[dict[str, list[Prompt]], Located]:
        """Return the sentences of each kind. Raises SetupError if a kind has none, or too few for the dev split."""
        located, found = _review_sentences(self.sources) if self.path is None else file_texts(self.path)
        topic, kinds = Keywords(self.words), {kind: list[Prompt]() for kind in KINDS}
        for text in sorted({text for text in found if self._is_long(text)}, key=rank):
            if topic.mentions(self._cut(text)[1]):
                kinds["on_topic"].append(prompt(text))
            elif not topic.mentions(text):
                kinds["off_topic"].append(prompt(text))
        chosen = {}
        for kind, those in kinds.items():
            if not those:
                raise SetupError(
                    f"suite.{self.name}: no sentence of {located.name} is {kind.replace('_', ' ')}; set other words, "
                    f"or suite.{self.name}.path=FILE with sentences of both kinds"
                )
            most = None if self.texts is None else min(self.texts, len(those))
            chosen[kind] = part_of(those, split, most, self.dev_texts, f"suite.{self.name}.texts")
        return chosen, located

    def _is_long(self, text: str) -> bool:
        return len(text.split()) >= self.prefix_words + FEWEST_PREDICTED

    def _cut(self, text: str) -> tuple[str, str]:
        """Return the words that are given, and the rest, which is predicted, with the blank before it."""
        words = text.split()
        return " ".join(words[: self.prefix_words]), " " + " ".join(words[self.prefix_words :])

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the sentences, how many words of each are given, and the list of words."""
        chosen, located = self.sentences(split)
        texts = {kind: [one.id for one in those] for kind, those in chosen.items()}
        of = {"source": located.fingerprint, "prefix_words": self.prefix_words, "topic": named(Keywords(self.words))}
        return of | texts

    def tokens(self, split: Split) -> int:
        """Count the tokens of each sentence, read once."""
        return SENTENCE_TOKENS * sum(map(len, self.sentences(split)[0].values()))

    def ask(self, lm: LM, split: Split) -> Answers[Mapping[str, pd.DataFrame]]:
        """Return the loss of each sentence."""
        said = {}
        for kind, those in self.sentences(split)[0].items():
            given, predicted = zip(*(self._cut(one.text) for one in those), strict=True)
            read = log_likelihood(lm, given, predicted)
            rows = [
                (f"{kind}.perplexity", one.id, -found.logprob / found.tokens, float(found.tokens))
                for one, found in zip(those, read, strict=True)
            ]
            said[kind] = pd.DataFrame(rows, columns=metrics.ITEM_COLUMNS)
        return Answers(split, said)

    def score(self, answers: Answers[Mapping[str, pd.DataFrame]], baseline: LM) -> SuiteResult:
        """Return the perplexity over the sentences of each kind."""
        del baseline
        measured = {
            f"{kind}.perplexity": metrics.metric(table, higher_is_better=False, transform="exp")
            for kind, table in answers.said.items()
        }
        items = pd.concat(answers.said.values(), ignore_index=True)
        info = {"sources": [self.sentences(answers.split)[1].facts()], "texts": len(items)}
        return SuiteResult(measured, items, items[["item", "value", "weight"]], info)


def _checked(name: str, words: Sequence[str], prefix_words: int) -> None:
    """Raises SetupError for words or a prefix that the suites of this file cannot use."""
    try:
        Keywords(words)
    except SetupError as error:
        raise SetupError(f"suite.{name}.{error}") from error
    if prefix_words < 1:
        raise SetupError(f"suite.{name}.prefix_words={prefix_words}: expected at least 1")


def _review_sentences(sources: Sources) -> tuple[Located, list[str]]:
    """Return the place and the sentences of film reviews, cut after full stops, exclamation and question marks."""
    reviews, located = texts_of(sources, REVIEWS)
    return located, [text for one in reviews for text in SENTENCE_END.split(one.text.replace("<br />", " "))]
