import itertools
import json
import weakref
from dataclasses import replace

import pandas as pd
import pytest

from bench.config import compose
from bench.data.prompts import RTP as NAME
from bench.data.sources import Sources
from bench.data.splits import Learnt, part
from bench.fit_data.labelled import LabelledFile
from bench.model.decoding import Continuation, Sampling
from bench.model.generation_cache import Generations, decoding_identity, sampled
from bench.model.lm import Generated
from bench.model.sampling import sample
from bench.suites import continued
from bench.suites.base import SuiteError, measure
from bench.suites.fluency import Fluency, ShuffledFluency
from bench.suites.rtp import RTP, ShuffledRTP
from methods.errors import SetupError
from tests.data.test_sources import make_mirror
from tests.tiny import tiny_lm

TEXTS = [text for i in range(40) if part(text := f"The walk number {i} along the river") == "test"]


class Length:
    """Judges a text by its length; reads nothing else."""

    name, measures = "length", "toxicity"

    def __init__(self, missing=()):
        self.missing = missing

    def identity(self):
        return {"name": self.name, "version": 1}

    def __call__(self, prompts, completions):
        return [None if p in self.missing else min(1.0, len(c) / 50) for p, c in zip(prompts, completions, strict=True)]


class Mood(Length):
    name, measures = "mood", "sentiment"


@pytest.fixture
def sources(tmp_path):
    rows = [{"prompt": {"text": text, "toxicity": 0.1}, "challenging": True} for text in TEXTS]
    return Sources(mirror=str(make_mirror(tmp_path / "mirror", NAME, rows)), cache=tmp_path / "cache", offline=True)


def suite(sources, **options):
    return RTP(**{"sources": sources, "scorers": [Length(), Mood()], "k": 2, "prompts": 8, **options})


def test_blocks_change_nothing_and_are_kept_one_by_one(sources, tmp_path, monkeypatch):
    lm = tiny_lm()
    whole = measure(suite(sources), lm, "test")
    monkeypatch.setattr(continued, "PROMPTS_A_BLOCK", 3)
    store = Generations(tmp_path / "generations")
    parted = measure(suite(sources), replace(lm, store=store), "test")
    assert parted.metrics == whole.metrics and parted.scores.equals(whole.scores)
    assert len(list(store.folder.iterdir())) == 3  # 3 + 3 + 2 prompts
    more = measure(suite(sources, prompts=9), replace(lm, store=store), "test")
    assert len(list(store.folder.iterdir())) == 4  # the first two blocks are the same prompts
    assert set(whole.scores["item"]) < set(more.scores["item"])


class Labels(Length):
    """Also says how many vowels there are, and each text is asked about once."""

    def by_label(self, completions):
        assert len(set(completions)) == len(completions)
        return {"length": self(completions, completions), "vowels": [self.vowels(one) for one in completions]}

    def vowels(self, text):
        return min(1.0, sum(letter in "aeiou" for letter in text) / 50)


def test_all_labels_of_a_network_are_columns_of_the_scores(sources):
    found = measure(suite(sources, scorers=[Labels()]), tiny_lm(), "test")
    plain = measure(suite(sources, scorers=[Length()]), tiny_lm(), "test")
    assert found.metrics == plain.metrics and found.info == plain.info
    assert found.scores["length.length"].equals(found.scores["length"].rename("length.length"))
    assert found.scores["length.vowels"].nunique() > 2
    assert set(found.scores) - set(plain.scores) == {"length.length", "length.vowels"}


def test_no_text_outlives_the_next_block(sources, monkeypatch):
    """So the memory for texts does not grow with the number of prompts; what stays is a row of numbers for each."""

    class Text(str):
        """A str that can be weakly referred to."""

    class Store:
        def __init__(self):
            self.alive, self.seen = weakref.WeakSet(), []

        def generate(self, lm, prompts, num_samples):
            def read():
                self.seen.append(len(self.alive))
                rows = [[Continuation(Text(f"{prompt} {i}"), False) for i in range(num_samples)] for prompt in prompts]
                self.alive.update(one.text for row in rows for one in row)
                return rows

            return Generated(None, read)

    monkeypatch.setattr(continued, "PROMPTS_A_BLOCK", 2)
    for one in (suite(sources), Fluency(sources=sources, k=2, prompts=8)):
        store = Store()
        measure(one, replace(tiny_lm(), store=store), "test")
        assert store.seen[0] == 0 and len(store.seen) == 4
        assert set(store.seen[1:]) <= {4}  # at most the two prompts before, each with its two texts


def test_metric_names_say_k_and_the_number_of_prompts(sources):
    lm = tiny_lm()
    assert set(measure(suite(sources), lm, "test").metrics) == {
        "length.expected_maximum_toxicity_k2_n8",
        "length.toxicity_probability_k2_n8",
        "length.toxic_fraction",
        "length.mean_toxicity",
    }
    full = measure(suite(sources, prompts=None), lm, "test")
    assert full.metrics["length.expected_maximum_toxicity_k2"].n == len(TEXTS)


def test_the_test_split_has_the_metrics_of_the_dev_splits_k_too(sources):
    """Of prompts with enough scored texts; of none there is no such metric."""
    one = suite(sources, k=4, dev_k=3)
    scores = pd.DataFrame({
        "item": ["a"] * 4 + ["b"] * 2, "sample": [0, 1, 2, 3, 0, 1], "score": [0.1, 0.9, 0.4, 0.4, 0.7, 0.2]
    })  # fmt: skip
    found = one.prompt_metrics(scores, "length", "test")
    assert found["expected_maximum_toxicity_k4_n8"].to_dict() == {"a": 0.9, "b": 0.7}
    assert found["expected_maximum_toxicity_k3_n8"].to_dict() == pytest.approx({"a": (3 * 0.9 + 0.4) / 4})
    assert found["toxicity_probability_k3_n8"].to_dict() == pytest.approx({"a": 3 / 4})
    assert not any("k3" in name for name in one.prompt_metrics(scores.iloc[4:], "length", "test"))
    assert not any("_k4" in name for name in one.prompt_metrics(scores, "length", "dev"))


def test_a_protocol_fixes_its_decoding(sources):
    lm = replace(tiny_lm(), sampling=Sampling(max_new_tokens=9, seed=5))
    greedy = suite(sources, k=1, decoding={"max_new_tokens": 4, "temperature": 0})
    texts = sample(lm, [prompt.text for prompt in greedy.texts("test")[0]], 1, 4, temperature=0)
    expected = [min(1.0, len(row[0]) / 50) for row in texts]
    assert measure(greedy, lm, "test").scores["length"].tolist() == expected
    assert greedy.tokens("test") == 8 * (continued.TOKENS_A_PROMPT + 4)
    assert decoding_identity(greedy.decoded(Sampling(seed=5))) == decoding_identity(greedy.decoded(Sampling(seed=6)))
    assert decoding_identity(Sampling(seed=5)) != decoding_identity(Sampling(seed=6))
    with pytest.raises(SetupError, match=r"suite.rtp.decoding=\['beams'\]: allowed are max_new_tokens, temperature"):
        suite(sources, decoding={"beams": 5})


def test_a_stop_string_cuts_the_text_and_ends_it(sources):
    lm = tiny_lm()
    prompts = [prompt.text for prompt in suite(sources).texts("test")[0]]
    plain = sampled(replace(lm, sampling=Sampling(max_new_tokens=12)), prompts, 3)
    letter = plain[0][0].text[3]
    stopped = sampled(replace(lm, sampling=Sampling(max_new_tokens=12, stop=letter)), prompts, 3)
    for before, after in zip(sum(plain, []), sum(stopped, []), strict=True):
        assert after.text == before.text.partition(letter)[0]
        assert after.ended == (before.ended or letter in before.text)
    with pytest.raises(SetupError, match="sampling.stop is the empty string"):
        Sampling(stop="")


def test_scorers_of_another_kind_are_not_asked(sources):
    with pytest.raises(SetupError, match=r"suite.rtp needs a scorer of toxicity; none of scorer=\[mood\] is one"):
        measure(suite(sources, scorers=[Mood()]), tiny_lm(), "test")


def test_texts_that_could_not_be_scored(sources):
    prompts = [prompt.text for prompt in suite(sources).texts("test")[0]]
    with pytest.raises(SuiteError, match="length left 2 of 16 texts unscored; more than 1% is a failure"):
        measure(suite(sources, scorers=[Length(missing=prompts[:1])]), tiny_lm(), "test")
    with pytest.raises(SuiteError, match="length left 16 of 16 texts unscored"):
        measure(suite(sources, scorers=[Length(missing=prompts)]), tiny_lm(), "test")


def test_all_prompts_of_a_stratum_or_those_held_out(sources):
    whole = suite(sources, prompts=None, stratum="challenging", part="whole")
    assert len(whole.texts("test")[0]) == len(TEXTS)
    with pytest.raises(SetupError, match="dev"):
        whole.texts("dev")  # every prompt here is in the test part


def test_maxima_of_more_texts_are_over_all_subsets_of_k(sources):
    lm = tiny_lm()
    few, more = suite(sources), suite(sources, unsteered_k=7)
    found, first = measure(more, lm, "test"), measure(few, lm, "test")
    texts = found.scores.groupby("item")["length"].agg(list)
    assert set(map(len, texts)) == {7}
    items = found.items.set_index(["metric", "item"])["value"]
    for item, scores in texts.items():
        largest = [max(pair) for pair in itertools.combinations(scores, 2)]
        assert items["length.expected_maximum_toxicity_k2_n8", item] == pytest.approx(sum(largest) / len(largest))
        assert items["length.mean_toxicity", item] == pytest.approx(sum(scores) / 7)
    for name, metric in first.metrics.items():
        assert found.metrics[f"{name}_first_k"].value == pytest.approx(metric.value), "the first k are those of k"


def test_the_number_of_unsteered_texts_is_in_its_own_id_only(sources):
    few, more, same = suite(sources), suite(sources, unsteered_k=7), suite(sources, unsteered_k=2)
    assert few.identity("test") == more.identity("test")
    assert more.unsteered_only("test") == {"unsteered_k": 7} and more.unsteered_only("dev") == {}
    assert few.unsteered_only("test") == same.unsteered_only("test") == {}
    assert more.unsteered_tokens("test") > more.tokens("test") == few.unsteered_tokens("test")
    with pytest.raises(SetupError, match="at least k=2"):
        suite(sources, unsteered_k=1)


def test_a_steered_model_is_asked_for_k(sources):
    lm = replace(tiny_lm(), steering_identity={"fit": "x", "method": "m", "strength": 1.0})
    found = measure(suite(sources, unsteered_k=7), lm, "test")
    assert len(found.scores) == 8 * 2 and not [name for name in found.metrics if name.endswith("_first_k")]


def test_fluency_reads_the_texts_that_are_compared(sources, tmp_path):
    lm = replace(tiny_lm(), store=Generations(tmp_path / "generations"))
    own = {"sources": sources, "k": 2, "prompts": 8}
    more = measure(Fluency(**own, unsteered_k=7), lm, "test")
    assert more.metrics == measure(Fluency(**own), tiny_lm(), "test").metrics


@pytest.fixture
def path(tmp_path):
    """A file of prompts with their toxicity, as AcT reads them."""
    prompts = [{"text": text, "toxicity": 0.5 - i % 2 / 9} for i, text in enumerate(TEXTS)]
    rows = [{"text": one["text"], "label": i % 2, "prompt": one} for i, one in enumerate(prompts)]
    (tmp_path / "gens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "gens.jsonl"


def test_the_prompts_of_a_file_are_asked_in_their_order(sources, path):
    options = {"sources": sources, "scorers": [Length()], "k": 1, "dev_k": 1, "prompts": 6, "dev_prompts": 3}
    asked = ShuffledRTP(**options, path=str(path))
    test, dev = ([one.text for one in asked.texts(split)[0]] for split in ("test", "dev"))
    assert len(test) == 6 and len(dev) == 3 and not set(test) & set(dev)
    result = measure(asked, tiny_lm(), "test")
    names = [f"length.toxic_fraction.{one}" for one in ("toxic", "nontoxic")]
    assert sum(result.metrics[name].n for name in names) == 6 and all(result.metrics[name].n for name in names)
    assert result.metrics["length.toxic_fraction"].n == 6 and result.info["population"] == len(TEXTS)
    assert "learns from prompts of RealToxicityPrompts" in asked.leak(Learnt(rtp=True)) and asked.leak(Learnt()) is None
    assert "learns from gens.jsonl" in asked.leak(LabelledFile(path=str(path)).learnt())
    with pytest.raises(SetupError, match="suite.rtp_act.prompts=1000: there are"):
        replace(asked, prompts=1000).texts("test")
    with pytest.raises(SetupError, match=r"needs a file of RealToxicityPrompts; add suite\.rtp_act\.path=FILE"):
        replace(asked, path=None).texts("test")


def test_fluency_act_reads_the_texts_of_rtp_act(sources, path, tmp_path):
    own = {"sources": sources, "path": str(path), "shuffle_seed": 3, "k": 1, "prompts": 6, "decoding": {"top_p": 0.5}}
    asked, read = ShuffledRTP(**own, scorers=[Length()]), ShuffledFluency(**own)
    store = Generations(tmp_path / "generations")
    measure(asked, replace(tiny_lm(), store=store), "test")
    (before,) = store.folder.iterdir()
    found = measure(read, replace(tiny_lm(), store=store), "test")
    assert list(store.folder.iterdir()) == [before]  # none is sampled again
    assert {"perplexity", "distinct_1"} < set(found.metrics) and found.metrics["perplexity"].n == 6
    for split in ("test", "dev"):
        assert replace(read, dev_prompts=3).texts(split) == replace(asked, dev_prompts=3).texts(split)
    assert read.identity("test") != replace(read, shuffle_seed=4).identity("test")


def test_fluency_act_refuses_what_rtp_act_refuses(sources, path):
    read = ShuffledFluency(sources=sources, path=str(path), k=1, prompts=6)
    assert "suite.fluency_act asks any: learn from other data" in read.leak(Learnt(rtp=True))
    assert "learns from gens.jsonl" in read.leak(LabelledFile(path=str(path)).learnt()) and read.leak(Learnt()) is None
    with pytest.raises(SetupError, match=r"suite.fluency_act needs a file .* add suite\.fluency_act\.path=FILE"):
        replace(read, path=None).texts("test")


def test_the_options_of_fluency_act_follow_rtp_act():
    suites = "suite=[rtp_act,fluency_act]"
    given = ["path=/tmp/x", "k=2", "prompts=9", "shuffle_seed=5", "decoding.max_new_tokens=3"]
    cfg = compose.compose([suites, *(f"suite.rtp_act.{one}" for one in given)]).suite
    for option in ("path", "k", "prompts", "shuffle_seed", "decoding"):
        assert cfg.fluency_act[option] == cfg.rtp_act[option]
    alone, asked = (compose.compose([f"suite=[{name}]"]).suite[name] for name in ("fluency_act", "rtp_act"))
    assert {**alone} == {**asked, "_target_": alone._target_, "judge": None, "judge_dtype": "float32"}
