import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench.data.prompts import RTP
from bench.data.sources import Sources
from bench.fit_data.jsonl import PairsFile
from bench.fit_data.on_policy_pairs import OnPolicy, widest
from bench.model.decoding import Sampling
from bench.model.lm import LM
from bench.model.sampling import continuations
from bench.records.identity import digest
from methods.errors import SetupError
from tests.data.test_sources import make_mirror
from tests.tiny import tiny_lm


@dataclass(frozen=True)
class VowelShare:
    """A judge that tiny models give wide gaps: the share of vowels among a text's letters, stretched."""

    name: ClassVar[str] = "vowel_share"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": 1}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        letters = ["".join(c for c in text.lower() if "a" <= c <= "z") for text in completions]
        return [min(1.0, 2 * sum(c in "aeiou" for c in t) / len(t)) if t else None for t in letters]


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"prompt": {"text": f"People walk along road {i}"}} for i in range(80)]
    mirror = make_mirror(tmp_path / "mirror", RTP, rows)
    return Sources(mirror=str(mirror), cache=tmp_path / "cache", offline=True)


@pytest.fixture
def lm() -> LM:
    return replace(tiny_lm(), sampling=Sampling(max_new_tokens=8, top_p=1.0, seed=7))


def on_policy(sources: Sources, **settings: Any) -> OnPolicy:
    defaults = {"prompts": 24, "num_samples": 5, "max_desired": 0.45, "min_undesired": 0.6}
    return OnPolicy(scorer=VowelShare(), sources=sources, **{**defaults, **settings})


# -- pairing -------------------------------------------------------------------------------------------------------


def test_the_widest_gap_of_each_prompt_by_hand():
    prompts = ["wide", "narrow", "one-sided", "unscored", "tied"]
    texts = [["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    scores = [[0.5, 0.1, 0.9], [0.3, 0.5, 0.7], [0.0, 0.1, 0.7], [None, None, None], [0.2, 0.2, 0.8, 0.8]]
    pairs, gaps = widest(prompts, texts, scores, 0.2, 0.8)
    assert pairs.prompt == ["wide", "tied"]
    assert pairs.desired == ["b", "a"] and pairs.undesired == ["c", "c"]
    assert gaps == pytest.approx([0.8, 0.6])


def test_blank_and_unscored_texts_are_no_candidates():
    pairs, gaps = widest(["p"], [["", " \n", "kept", "x", "bad"]], [[0.0, 0.0, 0.1, None, 0.9]], 0.2, 0.8)
    assert (pairs.desired, pairs.undesired) == (["kept"], ["bad"])
    assert gaps == pytest.approx([0.8])


def test_pairs_are_the_unsteered_models_own_texts(sources, lm):
    data = on_policy(sources)
    pairs, facts = data.load(lm)
    own = continuations(lm, pairs.prompt, 5, replace(lm.sampling, seed=0))  # the data's seed, not the model's
    judge = VowelShare()
    for prompt, desired, undesired, row in zip(*pairs, own, strict=True):
        texts = [c.text for c in row]
        scored = [(s, t) for s, t in zip(judge([prompt] * 5, texts), texts, strict=True) if s is not None]
        assert desired == min(scored)[1] or judge([""], [desired])[0] == min(scored)[0]
        assert judge([""], [undesired])[0] == max(scored)[0]
        assert judge([""], [desired])[0] <= 0.45 and judge([""], [undesired])[0] >= 0.6
        assert {desired, undesired} <= set(texts)
    assert facts["pairs"] == len(pairs.prompt) == len(set(pairs.prompt)) >= 8
    gaps = [judge([""], [u])[0] - judge([""], [d])[0] for d, u in zip(pairs.desired, pairs.undesired, strict=True)]
    assert facts["min_gap"] == pytest.approx(min(gaps)) and facts["mean_gap"] == pytest.approx(sum(gaps) / len(gaps))
    assert facts["scorer"] == "vowel_share" and facts["sources"] == [sources.locate(RTP).facts()]


def test_pairs_do_not_depend_on_the_sampling_seed(sources, lm):
    first, _ = on_policy(sources).load(lm)
    again, _ = on_policy(sources).load(replace(lm, sampling=replace(lm.sampling, seed=99, batch_size=17)))
    assert first == again
    other, _ = on_policy(sources, seed=1).load(lm)
    assert other != first


def test_too_few_pairs_say_how_to_loosen(sources, lm):
    class Undecided(VowelShare):
        def __call__(self, prompts, completions):
            return [0.5 for _ in completions]

    with pytest.raises(SetupError, match=r"^0 of 24 prompts gave a pair .*at least 8 .*Raise pairs.num_samples"):
        replace(on_policy(sources), scorer=Undecided()).load(lm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 1}, "pairs.num_samples=1: a pair takes at least 2"),
        ({"prompts": 7}, "pairs.prompts=7: expected at least 8"),
        ({"max_desired": 0.9, "min_undesired": 0.8}, "the first must be below the second"),
        ({"min_undesired": 1.5}, "scores are in"),
        ({"limit": 0}, "pairs.limit=0: expected a number of pairs above 0"),
    ],
)
def test_numbers_that_cannot_work(sources, settings, message):
    with pytest.raises(SetupError, match=message):
        on_policy(sources, **settings).check()


def test_everything_that_changes_the_pairs_is_in_the_identity(sources):
    base = on_policy(sources)
    changes = [
        {"prompts": 25}, {"num_samples": 6}, {"max_desired": 0.4}, {"min_undesired": 0.7}, {"seed": 1},
        {"sampling": Sampling(max_new_tokens=9)}, {"sampling": Sampling(top_p=0.5)}, {"limit": 5},
    ]  # fmt: skip
    found = [json.dumps(one.identity(), sort_keys=True) for one in (base, *(replace(base, **c) for c in changes))]
    assert len(set(found)) == len(found)
    # another seed or batch size of the cell's own decoding changes nothing
    a, b = Sampling(seed=0, batch_size=8), Sampling(seed=3, batch_size=64)
    assert replace(base, sampling=a).identity() == replace(base, sampling=b).identity()


def test_a_limit_takes_the_first_pairs_and_old_ids_stay(sources, lm):
    whole, facts = on_policy(sources).load(lm)
    few, of_few = on_policy(sources, limit=3).load(lm)  # fewer than a run may find, since they are asked for
    assert few == tuple(column[:3] for column in whole) and of_few["pairs"] == 3 < facts["pairs"]
    assert of_few["prompts"] == facts["prompts"]
    assert on_policy(sources, limit=1000).load(lm)[1] == facts
    assert on_policy(sources, limit=3).size() < on_policy(sources).size() == on_policy(sources, limit=99).size()
    old = {key: value for key, value in on_policy(sources).identity().items() if key != "limit"}
    assert digest(old) == digest(on_policy(sources).identity()) != digest(on_policy(sources, limit=3).identity())


def test_the_samplings_own_settings_are_used_when_given(sources, lm):
    short = Sampling(max_new_tokens=3, top_p=1.0)
    pairs, _ = on_policy(sources, sampling=short, max_desired=0.5).load(lm)
    for prompt, desired, row in zip(
        pairs.prompt, pairs.desired, continuations(lm, pairs.prompt, 5, short), strict=True
    ):
        assert desired in [c.text for c in row], prompt


# -- pairs from a file ---------------------------------------------------------------------------------------------

GOOD = {"prompt": "How was it?", "desired": " Fine.", "undesired": " Bad."}


def write(path: Path, rows: Sequence[Any], name: str = "pairs.jsonl") -> str:
    file = path / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_a_file_of_pairs(tmp_path):
    data = PairsFile(path=write(tmp_path, [GOOD, {**GOOD, "prompt": "é", "extra": 1}, ""]))
    data.check()
    pairs, facts = data.load(None)
    assert pairs.prompt == ["How was it?", "é"]
    assert pairs.desired == [" Fine."] * 2 and pairs.undesired == [" Bad."] * 2
    assert facts["pairs"] == 2
    (source,) = facts["sources"]
    assert source["name"] == "pairs.jsonl" and str(tmp_path) not in json.dumps(source)


def test_the_identity_is_the_content_not_the_place(tmp_path):
    first = PairsFile(path=write(tmp_path, [GOOD])).identity()
    assert PairsFile(path=write(tmp_path, [GOOD], "other.jsonl")).identity() == first
    assert PairsFile(path=write(tmp_path, [GOOD, GOOD], "more.jsonl")).identity() != first


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a", "desired": "b"', "not JSON"),
        (["a", "b"], "a JSON list, no object"),
        ({"prompt": "a", "desired": "b"}, "undesired is missing"),
        ({**GOOD, "desired": 3}, "desired is not a string"),
        ({**GOOD, "desired": "  "}, "desired is blank"),
        ({**GOOD, "desired": " Bad."}, "desired and undesired are the same text"),
    ],
)
def test_a_bad_line_17_is_named(tmp_path, line, what):
    path = write(tmp_path, [GOOD] * 16 + [line] + [GOOD] * 3)
    with pytest.raises(SetupError) as caught:
        PairsFile(path=path).check()
    assert f"{path}, line 17: {what}" in str(caught.value)
    assert 'each line has to be {"prompt": "...", "desired": "...", "undesired": "..."}' in str(caught.value)


def test_a_file_that_is_missing_or_empty(tmp_path):
    with pytest.raises(SetupError, match="nothing: .*No such file"):
        PairsFile(path=str(tmp_path / "nothing")).check()
    with pytest.raises(SetupError, match="the file is empty"):
        PairsFile(path=write(tmp_path, ["", ""])).check()
