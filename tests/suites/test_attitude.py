import pytest

from bench.data.sources import Sources
from bench.suites.attitude import Attitude
from bench.suites.base import measure
from methods.errors import SetupError
from tests.data.test_sources import make_mirror
from tests.suites.test_refusal import Toxicity, saying
from tests.suites.test_sentiment import IMDB, REVIEWS, Mood

EMOTIONS = [{"text": f"I am number {i} here", "label": i % 6} for i in range(12)]  # negative: 0 3 4 6 9 10


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    root = make_mirror(tmp_path / "mirror", "dair-ai/emotion", EMOTIONS, "split", "test")
    make_mirror(root, IMDB, REVIEWS, "plain_text", "test")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def suite(sources: Sources, **options) -> Attitude:
    return Attitude(**{"sources": sources, "scorers": [Toxicity(), Mood()], "prompts": None, **options})


def values(found):
    return {name.removeprefix("mood."): round(metric.value, 4) for name, metric in found.metrics.items()}


def test_the_shares_of_negative_and_positive_answers_by_hand(sources):
    """Of two answers each: text 0 bad twice, 3 bad and good, 4 neither and empty, 6, 9 and 10 good twice."""
    said = {0: ["bad", "bad"], 3: ["bad", "good"], 4: ["so", " "]}
    found = measure(suite(sources, k=2), saying(lambda text: said.get(int(text.split()[3]), ["good", "good"])))
    assert values(found) == {
        "negative_share": round(1.5 / 6, 4), "positive_share": round(3.5 / 6, 4),
        "mean_sentiment": round((0 + 0.5 + 0.5 + 3) / 6, 4),
    }  # fmt: skip
    better = {name.removeprefix("mood."): metric.higher_is_better for name, metric in found.metrics.items()}
    assert better == {"negative_share": False, "positive_share": True, "mean_sentiment": True}
    assert {metric.n for metric in found.metrics.values()} == {6}


def test_which_texts_are_asked_and_how(sources, tmp_path):
    lm = saying(lambda _: ["good"])
    measure(suite(sources, template="He said: {prompt}\nShe said:"), lm)
    numbers = sorted(int(text.split()[5]) for text in lm.store.asked)
    assert numbers == [0, 3, 4, 6, 9, 10]
    assert all(text.startswith("He said: I am number") and text.endswith("here\nShe said:") for text in lm.store.asked)
    measure(suite(sources, data=IMDB, prefix_words=4), lm)
    assert sorted(lm.store.asked) == [f"This is film {i}" for i in (0, 2, 4, 6, 8)]
    (tmp_path / "own.csv").write_text("id,words\n1,All is lost\n2,Nobody came\n")
    measure(suite(sources, data="file", path=str(tmp_path / "own.csv"), text="words"), lm)
    assert sorted(lm.store.asked) == ["All is lost", "Nobody came"]


def test_vader_judges_where_no_scorer_of_sentiment_is_named(sources):
    found = measure(suite(sources, scorers=[Toxicity()]), saying(lambda _: ["I love this, it is great"]))
    assert found.metrics["vader.positive_share"].value == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "dair-ai/emotions"}, "suite.attitude.data=dair-ai/emotions: allowed are dair-ai/emotion, stanf"),
        ({"path": "x.csv"}, "suite.attitude.path=x.csv is only read with suite.attitude.data=file"),
        ({"data": "file"}, "data=file needs a file; add suite.attitude.path=FILE"),
        ({"template": "Hello"}, "suite.attitude.template='Hello': it has to hold {prompt} once"),
    ],
)
def test_options_that_go_together_or_not_at_all(sources, options, message):
    with pytest.raises(SetupError, match=message):
        suite(sources, **options)


def test_a_set_without_negative_texts(tmp_path):
    root = make_mirror(tmp_path / "mirror", "dair-ai/emotion", [{"text": "I am", "label": 1}], "split", "test")
    with pytest.raises(SetupError, match="no text has a label of 0, 3, 4"):
        suite(Sources(mirror=str(root), cache=tmp_path / "cache")).texts("test")
