import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.data.caa_questions import BEHAVIOURS, CAA
from bench.data.hub_folder import readme
from bench.data.sources import Sources
from bench.fit_data.caa_pairs import ABPairs
from bench.model.lm import LM
from methods.base import FitData
from methods.caa import CAA as Method
from methods.errors import SetupError
from tests.data.test_sources import MIRROR
from tests.run.test_smoke import arguments, world  # noqa: F401  a fixture
from tests.tiny import tiny_lm

PLACES = ("river", "old tree", "road", "home", "water", "weather", "bread", "bird", "dog", "fox")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def row(number: int, what: str = "walk along") -> dict[str, str]:
    """The matching answer is (A) for every third question; blanks and all as in the set."""
    question = f"Do you {what} the {PLACES[number % len(PLACES)]}?\n\nChoices:\n (A) Yes\n (B) No"
    answers = ("(A)", " (B)") if number % 3 == 0 else ("(B)", " (A) ")
    return {"question": question, "answer_matching_behavior": answers[0], "answer_not_matching_behavior": answers[1]}


ROWS = {
    ("sycophancy", "generate"): [row(i) for i in range(10)],
    ("sycophancy", "test_ab"): [row(i, "HELD OUT") for i in range(10)],
    ("sycophancy", "test_open_ended"): [{"question": f"HELD OUT {i}?"} for i in range(3)],
    ("refusal", "generate"): [row(i, "hate") for i in range(4)],
    ("refusal", "test_ab"): [row(i, "HELD OUT") for i in range(4)],
}


def make_caa(root: Path, rows: dict[tuple[str, str], list[dict[str, str]]]) -> Sources:
    """A mirror with the set, a config for each behaviour."""
    folder = root / "mirror" / CAA
    files: dict[str, dict[str, str]] = {}
    for (behaviour, split), lines in rows.items():
        files.setdefault(behaviour, {})[split] = f"{behaviour}/{split}.jsonl"
        path = folder / behaviour / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "README.md").write_text(readme(files, "a mirror"))
    return Sources(mirror=str(root / "mirror"), cache=root / "cache", offline=True)


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return make_caa(tmp_path, ROWS)


def chat_lm(bos: str = "none", template: str = TEMPLATE) -> LM:
    lm = replace(tiny_lm(bos=bos), chat=True)
    lm.tokenizer.chat_template = template
    return lm


def test_pairs_are_one_question_with_the_one_or_the_other_letter(sources):
    pairs, facts = ABPairs(sources=sources).load(tiny_lm())
    assert facts["pairs"] == 10 and facts["behaviour"] == "sycophancy" and facts["swap"] is False
    assert facts["sources"][0]["config"] == "sycophancy" and facts["sources"][0]["split"] == "generate"
    expected = {}
    for number, line in enumerate(ROWS["sycophancy", "generate"]):
        letters = (" (A)", " (B)") if number % 3 == 0 else (" (B)", " (A)")
        expected[f"Input: {line['question']}\nResponse:"] = letters
    assert {p: (d, u) for p, d, u in zip(*pairs, strict=True)} == expected
    assert len(pairs.prompt) == 10


def test_swap_makes_the_matching_answer_the_undesired_one(sources):
    plain, _ = ABPairs(sources=sources).load(tiny_lm())
    swapped, facts = ABPairs(sources=sources, swap=True).load(tiny_lm())
    assert swapped == plain._replace(desired=plain.undesired, undesired=plain.desired) and facts["swap"] is True


def test_limits_nest_whatever_the_order_of_the_file(sources, tmp_path):
    few, facts = ABPairs(sources=sources, limit=3).load(tiny_lm())
    more, _ = ABPairs(sources=sources, limit=7).load(tiny_lm())
    assert facts["pairs"] == 3 and all(one[:3] == other for one, other in zip(more, few, strict=True))
    turned = make_caa(tmp_path / "turned", {key: rows[::-1] for key, rows in ROWS.items()})
    assert ABPairs(sources=turned, limit=3).load(tiny_lm())[0] == few
    with pytest.raises(SetupError, match="questions on sycophancy: 11 were asked .* are 10; lower pairs.limit"):
        ABPairs(sources=sources, limit=11).load(tiny_lm())


def test_held_out_splits_and_other_behaviours_are_never_read(sources, tmp_path):
    for behaviour in ("sycophancy", "refusal"):
        pairs, _ = ABPairs(sources=sources, behaviour=behaviour).load(tiny_lm())
        assert not any("HELD OUT" in prompt for prompt in pairs.prompt)
        assert all(("hate" in prompt) is (behaviour == "refusal") for prompt in pairs.prompt)
    only = make_caa(tmp_path / "only", {key: rows for key, rows in ROWS.items() if key[1] == "generate"})
    assert ABPairs(sources=only).load(tiny_lm())[0] == ABPairs(sources=sources).load(tiny_lm())[0]


def test_identity_is_the_recipe_and_changes_with_each_setting(sources, tmp_path):
    plain = ABPairs(sources=sources)
    seen = [plain.identity()]
    seen += [replace(plain, **change).identity() for change in ({"behaviour": "refusal"}, {"limit": 3}, {"swap": True})]
    changed = {**ROWS, ("sycophancy", "generate"): [row(i, "sing along") for i in range(10)]}
    seen.append(ABPairs(sources=make_caa(tmp_path / "changed", changed)).identity())
    texts = [json.dumps(one, sort_keys=True) for one in seen]
    assert len(set(texts)) == 5 and str(tmp_path) not in "".join(texts)
    other = {**ROWS, ("sycophancy", "test_ab"): []}  # what is not read is not part of it
    assert ABPairs(sources=make_caa(tmp_path / "other", other)).identity() == plain.identity()
    assert ABPairs(sources=sources, limit=3).size() * 10 == ABPairs(sources=sources, limit=30).size()
    assert plain.tokens() == 0 and plain.size() > 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"behaviour": "sycophantic"},
            "pairs.behaviour='sycophantic': allowed are coordinate-other-.*, sycophancy$",
        ),
        ({"limit": 0}, "pairs.limit=0: expected at least 1, or null"),
    ],
)
def test_wrong_settings(sources, settings, message):
    for act in (ABPairs.check, ABPairs.identity, lambda data: data.load(tiny_lm())):
        with pytest.raises(SetupError, match=message):
            act(ABPairs(sources=sources, **settings))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (("A", "(B)"), "an answer is 'A', expected is a letter"),
        (("(B)", " (B)"), r"both answers .* are \(B\)"),
    ],
)
def test_answers_that_are_none(tmp_path, answers, message):
    bad = {**row(0), **dict(zip(("answer_matching_behavior", "answer_not_matching_behavior"), answers, strict=True))}
    with pytest.raises(SetupError, match=message):
        ABPairs(sources=make_caa(tmp_path, {("sycophancy", "generate"): [bad]})).load(tiny_lm())


def test_a_missing_set_says_how_to_bring_it(tmp_path):
    nowhere = Sources(mirror=str(tmp_path), cache=tmp_path / "cache", offline=True)
    with pytest.raises(SetupError, match=r"no source has nrimsky/CAA \(config sycophancy, split generate\)"):
        ABPairs(sources=nowhere).load(tiny_lm())


@pytest.mark.parametrize("bos", ["none", "prepend"])
def test_a_chat_model_reads_its_template_as_when_it_samples(sources, bos):
    lm = chat_lm(bos)
    pairs, _ = ABPairs(sources=sources).load(lm)
    questions = {line["question"] for line in ROWS["sycophancy", "generate"]}
    assert {p.split("<user> ")[1].removesuffix("\n<assistant>") for p in pairs.prompt} == questions
    assert set(pairs.desired) == {" (A)", " (B)"}
    for prompt in pairs.prompt:
        question = prompt.split("<user> ")[1].removesuffix("\n<assistant>")
        ids = lm.tokenizer(prompt).input_ids  # what a method makes of it
        assert ids == lm.encode(question) and ids.count(lm.tokenizer.bos_token_id) == 1


def test_an_answer_behind_a_line_break_has_no_blank(sources):
    pairs, _ = ABPairs(sources=sources).load(chat_lm(template=TEMPLATE.replace("<assistant>", "<assistant>\n")))
    assert set(pairs.desired) | set(pairs.undesired) == {"(A)", "(B)"}


@pytest.mark.parametrize("make", [tiny_lm, chat_lm])
def test_caa_reads_the_letter_of_every_text(sources, make):
    """The direction of the letters: the same as by hand at the token before the last bracket."""
    lm = make()
    pairs, _ = ABPairs(sources=sources).load(lm)
    artefact = Method(layer=1, read="letter").fit(lm.model, lm.tokenizer, FitData(pairs=pairs))
    rows = []
    for prompt, *answers in zip(*pairs, strict=True):
        both = [lm.tokenizer(prompt).input_ids + lm.tokenizer(a, add_special_tokens=False).input_ids for a in answers]
        with torch.inference_mode():
            streams = [lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0] for ids in both]
        rows.append(streams[0][-2] - streams[1][-2])
    torch.testing.assert_close(artefact["layers.1.direction"], torch.stack(rows).mean(0), atol=1e-4, rtol=1e-4)


def test_a_cell_from_the_command_line(sources, world, tmp_path):  # noqa: F811
    leave = ("pairs=file", "pairs.path=", "runtime.mirror=", "suite.capability")
    general = [one for one in arguments(world, tmp_path / "results")[1:] if not one.startswith(leave)]
    rtp = world / "mirror" / "allenai"
    (Path(sources.mirror) / "allenai").symlink_to(rtp)
    line = [*general, "pairs=ab", f"runtime.mirror={sources.mirror}", "method=caa", "method.read=letter", "suite=[rtp]"]
    assert main([*line, "strength=2"]) == 0
    fits = list((tmp_path / "results/runs/artefacts").glob("*/fit.json"))
    about = json.loads(fits[0].read_text())["data"]
    assert len(fits) == 1 and about["pairs"] == 10 and about["behaviour"] == "sycophancy"


@pytest.mark.mirror
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_real_set_has_the_papers_sizes_and_no_test_question(behaviour):
    if not (MIRROR / CAA).is_dir():
        pytest.skip(f"no {CAA} in a mirror at {MIRROR}; set STEERBENCH_MIRROR")
    sources = Sources(mirror=str(MIRROR), offline=True)
    pairs, _ = ABPairs(sources=sources, behaviour=behaviour).load(tiny_lm())
    assert len(pairs.prompt) == BEHAVIOURS[behaviour]
    held_out = {question.strip() for question in sources.load(CAA, behaviour, "test_ab")["question"]}
    assert len(held_out) == 50
    assert not held_out & {prompt.removeprefix("Input: ").removesuffix("\nResponse:") for prompt in pairs.prompt}
