"""Topic steering: share of texts about the topic, and perplexity of sentences on it and off it."""

import json
from dataclasses import replace

import pytest
import torch

from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.data.text_sets import WIKI, file_texts
from bench.scorers.keywords import Keywords
from bench.suites.base import measure
from bench.suites.topic import Topic, TopicPerplexity
from methods.act_add import ActAdd
from methods.base import FitData
from methods.errors import SetupError
from tests.data.test_sources import make_mirror
from tests.suites.test_refusal import Toxicity, saying
from tests.tiny import tiny_lm

WORDS = ["bread", "loaf of bread"]
NEUTRAL = [f"People walk along road {i} and talk about the weather near the river" for i in range(9)]
SENTENCES = [
    *(f"In house {i} people talk of the bread and the old tree" for i in range(3)),  # behind the given words
    *(f"The bread of house {i} is near the river and the road home" for i in range(2)),  # among them alone: neither
    *(f"In house {i} people talk of the weather and the old tree" for i in range(5)),
    "Too short.",
]


class Classifier(Toxicity):
    """Finds the topic where the word list does not."""

    name, measures = "classifier", "topic"

    def __call__(self, prompts, completions):
        return [0.7 if "flour" in text else 0.2 for text in completions]


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"text": text} for text in ("Some bread is what these first words already tell of", *NEUTRAL)]
    root = make_mirror(tmp_path / "mirror", WIKI, rows, split="test")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def topic(sources: Sources, **options) -> Topic:
    given = {"sources": sources, "scorers": [Toxicity(), Classifier()], "words": WORDS, "prompts": 6, "skip": 0}
    return Topic(**given | {"prefix_words": 6, "dev_prompts": 2} | options)


def number(prompt: str) -> int:
    return int(prompt.split()[4])


def test_a_word_counts_whole_and_in_any_case():
    judge = Keywords(["Wedding", "wedding dress", "café"])
    texts = ["a WEDDING.", "weddings", "my wedding\n dress", "(wedding)", "Café", "cafés", ""]
    assert judge([""] * len(texts), texts) == [1, 0, 1, 1, 1, 0, 0]
    assert judge.identity() == Keywords(["café", "wedding dress", "WEDDING"]).identity()
    assert Keywords(["a.b"]).mentions("a.b") and not Keywords(["a.b"]).mentions("axb")
    assert judge.mentions("cafe\u0301") and not Keywords(["cafe"]).mentions("cafe\u0301")
    ids = [Keywords(words).identity()["words"] for words in (["Straße"], ["strasse"], ["a  b", "A b"], ["a b"])]
    assert ids[0] != ids[1] and ids[2] == ids[3]
    for wrong in ([], [" "]):
        with pytest.raises(SetupError, match="at least one word"):
            Keywords(wrong)


def test_the_share_of_texts_about_the_topic_by_hand(sources):
    """Of two texts each: two mention the word in prompt 0, one does in 1, a classifier alone finds 2's."""
    said = {0: ["some bread", "Bread!"], 1: ["a loaf of bread", "a bird"], 2: ["flour", "breads"]}
    found = measure(topic(sources, prompts=None), saying(lambda p: said.get(number(p), ["", "a bird"])))
    values = {name: (one.value, one.n) for name, one in found.metrics.items()}
    assert values == {
        "keywords.on_topic": (pytest.approx(1.5 / 9), 9),
        "classifier.on_topic": (pytest.approx(0.5 / 9), 9),
    }
    assert all(one.higher_is_better for one in found.metrics.values())


def test_no_beginning_mentions_the_topic_and_none_is_in_both(sources):
    suite = topic(sources)
    test, dev = ([one.text for one in suite.texts(split)[0]] for split in ("test", "dev"))
    assert len(test) == 6 and len(dev) == 2 and not set(test) & set(dev)
    assert all(text.startswith("People walk along road") and len(text.split()) == 6 for text in test + dev)
    assert topic(sources, words=["road"], prompts=None).texts("test")[0][0].text.startswith("Some bread")
    assert len(topic(sources, skip=3, prompts=None).texts("test")[0]) == 7
    assert suite.leak(Learnt(wiki=0)) is None and "suite.topic.skip=5" in suite.leak(Learnt(wiki=5))
    ids = [one.identity("test") for one in (suite, topic(sources, words=["loaf"]), topic(sources, prefix_words=7))]
    assert len({json.dumps(one) for one in ids}) == 3


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "sentences.jsonl"
    path.write_text("".join(json.dumps({"text": f" {text} "}) + "\n" for text in [*SENTENCES, SENTENCES[0]]) + "\n")
    return str(path)


def perplexities(file: str, **options) -> TopicPerplexity:
    given = {"sources": Sources(offline=True), "words": WORDS, "path": file, "prefix_words": 5, "texts": 2}
    return TopicPerplexity(**given | {"dev_texts": 1} | options)


def test_kinds_of_sentences_and_their_splits(file, sources):
    suite = perplexities(file, texts=None)
    kinds = {kind: sorted(one.text for one in those) for kind, those in suite.sentences("test")[0].items()}
    assert kinds == {"on_topic": SENTENCES[:3], "off_topic": SENTENCES[5:10]}
    few = perplexities(file)
    for kind, those in few.sentences("test")[0].items():
        dev = few.sentences("dev")[0][kind]
        assert (len(those), len(dev)) == (2, 1) and not set(those) & set(dev)
    assert few.identity("test") != few.identity("dev") and few.tokens("test") == 4 * 40
    with pytest.raises(SetupError, match="no sentence of sentences.jsonl is on topic; set other words"):
        perplexities(file, words=["flour"]).sentences("test")
    asked = topic(sources, path=file, prompts=None, skip=99).texts("test")[0]
    assert len(asked) == 5, "of a file none is skipped, equal beginnings are one, and two mention the topic"


@torch.inference_mode()
def test_the_perplexity_is_of_the_words_behind_the_given_ones(file):
    lm = tiny_lm()
    found = measure(perplexities(file, texts=None), lm).metrics
    total, tokens = 0.0, 0
    for text in SENTENCES[:3]:
        words = text.split()
        given = lm.tokenizer(" ".join(words[:5])).input_ids
        ids = lm.tokenizer(text).input_ids
        assert ids[: len(given)] == given
        logits = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(logits[at - 1, ids[at]]) for at in range(len(given), len(ids)))
        tokens += len(ids) - len(given)
    expected = torch.tensor(total / tokens).exp().item()
    assert found["on_topic.perplexity"].value == pytest.approx(expected, rel=1e-4)
    assert (found["on_topic.perplexity"].n, found["off_topic.perplexity"].n) == (3, 5)
    assert not found["off_topic.perplexity"].higher_is_better


def test_what_is_added_to_the_front_moves_the_perplexity(file):
    """perplexity_* give one token, to which ActAdd adds nothing that matters; here all of its rows are given."""
    lm, method = tiny_lm(), ActAdd(desired=" bread", undesired=" road", layer=1)
    artefact = method.fit(lm.model, lm.tokenizer, FitData())
    plain = measure(perplexities(file), lm).metrics
    with lm.steered(method, artefact, 8.0) as steered:
        moved = measure(perplexities(file), steered, baseline=lm).metrics
    assert all(abs(moved[name].value / plain[name].value - 1) > 0.01 for name in plain)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1]", "line 1"),
        ('{"text": 3}', "line 1: text is not a string"),
        ("{", "line 1"),
        ("", "the file is empty"),
        (" ", "the file is empty"),
    ],
)
def test_a_file_that_holds_no_texts(tmp_path, line, told):
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(SetupError, match=told):
        file_texts(str(tmp_path / "x.jsonl"))


def test_wrong_options(sources, file):
    for options, told in (
        ({"words": []}, "suite.topic.words"),
        ({"prefix_words": 0}, "prefix_words=0: expected at least 1"),
    ):
        with pytest.raises(SetupError, match=told):
            topic(sources, **options)
    for options, told in (({"texts": 0}, "texts=0"), ({"words": [""]}, "suite.topic_perplexity.words")):
        with pytest.raises(SetupError, match=told):
            perplexities(file, **options)
    with pytest.raises(SetupError, match="suite.topic.prompts=99"):
        replace(topic(sources), prompts=99).texts("test")
