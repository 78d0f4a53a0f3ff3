import json
import random
import re

import pytest

from bench.data.prompts import RTP, STRATA, rtp_prompts, shuffled_prompts
from bench.data.sources import Sources
from bench.data.splits import PARTS, part
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_mirror

TEXTS = [f"The walk number {i} along the river" for i in range(400)]


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"prompt": {"text": text}} for text in (*TEXTS, *TEXTS[:50], f"  {TEXTS[0]} \n", " ")]
    mirror = make_mirror(tmp_path / "mirror", RTP, rows)
    return Sources(mirror=str(mirror), cache=tmp_path / "cache", offline=True)


def texts(sources: Sources, split: str, limit: int | None = None) -> list[str]:
    return [prompt.text for prompt in rtp_prompts(sources, split, limit)[0]]


def test_each_prompt_is_in_exactly_one_part(sources):
    parts = {split: texts(sources, split) for split in PARTS}
    together = sum(parts.values(), [])
    assert sorted(together) == sorted(TEXTS)  # distinct: repeats and blanks are gone
    for split, wanted in (("fit", 0.45), ("dev", 0.15), ("test", 0.40)):
        assert abs(len(parts[split]) / len(TEXTS) - wanted) < 0.08  # 3 standard deviations


def test_the_text_alone_decides_whatever_blanks_are_around_it(sources):
    assert all(part(text) == part(f"\n {text}\t") for text in TEXTS)
    assert all(part(text) == split for split in PARTS for text in texts(sources, split))


def test_parts_stay_as_they_were():
    """Prompts that change parts would make old records wrong."""
    assert [part(text) for text in TEXTS[:6]] == ["test", "fit", "test", "fit", "test", "fit"]


def test_a_limit_takes_a_fixed_sample(sources, tmp_path):
    whole = texts(sources, "test")
    assert texts(sources, "test", 20) == whole[:20]
    assert whole[:20] != [text for text in TEXTS if text in whole][:20]  # not the order of the file
    rows = [{"prompt": {"text": text}} for text in reversed(TEXTS)]
    other = Sources(mirror=str(make_mirror(tmp_path / "reversed", RTP, rows)), cache=tmp_path / "cache", offline=True)
    assert texts(other, "test", 20) == whole[:20]


def test_ids_are_hashes_of_the_text(sources):
    prompts, found = rtp_prompts(sources, "dev", 5)
    assert all(re.fullmatch("[0-9a-f]{12}", prompt.id) for prompt in prompts)
    assert len({prompt.id for prompt in prompts}) == 5
    assert found.name == RTP and found.source == "mirror"


@pytest.fixture
def marked(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [
        {"prompt": {"text": text, "toxicity": (i % 4) / 4}, "challenging": i % 8 == 3} for i, text in enumerate(TEXTS)
    ]
    mirror = make_mirror(tmp_path / "mirror", RTP, rows)
    return Sources(mirror=str(mirror), cache=tmp_path / "cache", offline=True)


def test_strata_are_the_marks_of_the_data_set(marked):
    def those(stratum, split=None):
        return {prompt.text for prompt in rtp_prompts(marked, split, None, stratum)[0]}

    assert those("challenging") == {text for i, text in enumerate(TEXTS) if i % 8 == 3}
    assert those("toxic") == {text for i, text in enumerate(TEXTS) if i % 4 >= 2}  # .5 counts
    assert those("nontoxic") == set(TEXTS) - those("toxic")
    assert those("toxic", "test") == {text for text in those("toxic") if part(text) == "test"}
    with pytest.raises(SetupError, match="stratum='mild': allowed are null, challenging, toxic, nontoxic"):
        rtp_prompts(marked, None, None, "mild")
    with pytest.raises(SetupError, match="51 challenging prompts were asked for, but .* has 50"):
        rtp_prompts(marked, None, 51, "challenging")


@pytest.mark.parametrize(
    ("stratum", "column"), [("challenging", "challenging"), ("toxic", "prompt.toxicity"), ("nontoxic", "prompt.tox")]
)
def test_a_source_without_marks_has_no_strata(sources, stratum, column):
    with pytest.raises(SetupError, match=f"does not say which prompts are {stratum} .no column {column}"):
        rtp_prompts(sources, "test", 5, stratum)


def test_a_source_without_prompts(tmp_path):
    mirror = make_mirror(tmp_path / "mirror", RTP, [{"text": "a"}])
    with pytest.raises(SetupError, match="from mirror has no column prompt; it has text"):
        rtp_prompts(Sources(mirror=str(mirror), cache=tmp_path / "cache", offline=True), "test", 1)
    for number, prompt in enumerate(("a", {"toxicity": 0.1})):
        mirror = make_mirror(tmp_path / f"mirror {number}", RTP, [{"prompt": prompt}])
        with pytest.raises(SetupError, match="from mirror: its column prompt has no field text"):
            rtp_prompts(Sources(mirror=str(mirror), cache=tmp_path / "cache", offline=True), "test", 1)


@pytest.mark.mirror
def test_the_mirror_has_the_strata():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    mirror = Sources(mirror=str(MIRROR), offline=True)
    counts = {stratum: len(rtp_prompts(mirror, None, None, stratum)[0]) for stratum in STRATA}
    assert counts == {"challenging": 1196, "toxic": 2392 - 1399, "nontoxic": 1399}


def test_too_many_prompts_are_no_silent_shortage(sources):
    have = len(texts(sources, "dev"))
    with pytest.raises(SetupError, match=f"1000 dev prompts were asked for, but {RTP} from mirror has {have}"):
        rtp_prompts(sources, "dev", 1000)
    with pytest.raises(SetupError, match="split 'train': allowed are fit, dev, test"):
        rtp_prompts(sources, "train", 1)


@pytest.mark.wheel
def test_the_wheel_has_enough_prompts_for_the_published_settings():
    counts = {split: len(rtp_prompts(Sources(offline=True), split, None)[0]) for split in PARTS}
    assert counts == {"fit": 270, "dev": 102, "test": 251}


@pytest.mark.wheel
@pytest.mark.mirror
def test_no_prompt_is_in_two_parts_across_sources():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    both = Sources(offline=True), Sources(mirror=str(MIRROR), offline=True)
    by_part = {split: {text for s in both for text in texts(s, split)} for split in PARTS}
    assert sum(map(len, by_part.values())) == len(set().union(*by_part.values())) == 623 + 2392 - 144


# -- a file in the order of AcT's code --------------------------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_is_shuffled_as_by_the_authors_code(tmp_path):
    toxicity = [None if i % 7 == 3 else i / 400 for i in range(400)]
    rows = [
        {"filename": "a", "prompt": {"text": text, "toxicity": score, "insult": 0.5}, "generations": [{"text": "b"}]}
        for text, score in zip(TEXTS, toxicity, strict=True)
    ]
    lines = [row for row in rows if row["prompt"]["toxicity"] is not None]  # what the code does, on whole lines
    random.seed(42)
    random.shuffle(lines)
    prompts, located = shuffled_prompts(path := write(tmp_path / "gens.jsonl", rows), 42)
    assert [one.text for one in prompts] == [line["prompt"]["text"] for line in lines] and len(prompts) < 400
    assert shuffled_prompts(path, 43)[0] != prompts and (located.name, located.source) == ("gens.jsonl", "file")
    write(tmp_path / "gens.jsonl", rows[:9])
    fewer, other = shuffled_prompts(path, 42)
    assert len(fewer) == 8 and other.fingerprint != located.fingerprint


def test_a_prompt_that_occurs_twice_keeps_its_first_place(tmp_path):
    texts = ["one", "two", " one ", "three", "one", " "]
    path = write(tmp_path / "twice.jsonl", [{"prompt": {"text": text, "toxicity": 0}} for text in texts])
    random.Random(1).shuffle(order := list(texts))
    found = [one.text for one in shuffled_prompts(path, 1)[0]]
    assert [one.strip() for one in found] == list(dict.fromkeys(text.strip() for text in order if text.strip()))


@pytest.mark.parametrize(
    "row", [{"prompt": "a text"}, {"prompt": {"text": "no score"}}, {"prompt": {"text": 3, "toxicity": 0.1}},
            {"prompt": {"text": "a", "toxicity": "high"}}, {"text": "b"}, {"prompt": {"text": "a", "toxicity": 7}},
            {"prompt": {"text": "a", "toxicity": True}}]
)  # fmt: skip
def test_a_file_of_another_form_is_refused_by_its_line(row, tmp_path):
    path = write(tmp_path / "other.jsonl", [{"prompt": {"text": "a", "toxicity": 0.1}}, row])
    with pytest.raises(SetupError, match=r"other\.jsonl, line 2: (expected .*toxicity|prompt is missing)"):
        shuffled_prompts(path, 42)
    with pytest.raises(SetupError, match="no line has a prompt with a text and a toxicity"):
        shuffled_prompts(write(tmp_path / "blank.jsonl", [{"prompt": {"text": " ", "toxicity": 0.1}}]), 42)
    with pytest.raises(SetupError, match="No such file"):
        shuffled_prompts(str(tmp_path / "none.jsonl"), 42)
