import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AddedToken, AutoModelForCausalLM

from bench.config import compose
from bench.config.build import build
from bench.model import checkpoint
from bench.run import validate
from bench.scorers import lm_judge
from bench.scorers.base import networks, unique_scores
from bench.scorers.lm_judge import LMJudge
from methods.errors import SetupError
from methods.progress import counting
from tests.tiny import tiny_model, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
QUESTION = "Is this bad? {text} Say yes or no."
BEFORE = "Say yes or no: {text}"  # the last token read is the text's, so replies differ
WORDS = "fox dog bird tree river water bread road home work weather love".split()
TEXTS = ["a walk by the river", "", *(f"all about the {word}" for word in WORDS), "  \n", "bread"]


def chat(folder: Path, seed: int = 4, template: str | None = TEMPLATE) -> Path:
    """A tiny chat model whose most probable token is always one of y, n, m and k."""
    model, tokenizer = tiny_model(seed=seed), tiny_tokenizer()
    with torch.no_grad():
        rows = model.get_output_embeddings().weight.zero_()
        for one, other in ("yn", "mk"):
            first, second = tokenizer.convert_tokens_to_ids([one, other])
            rows[first] = torch.randn(rows.shape[1])
            rows[second] = -rows[first]
    model.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return chat(tmp_path / "chat")


def replies(folder: Path) -> list[str]:
    """The most probable token after the question about each text, alone and without padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), tiny_tokenizer()
    asked = [f"[user] {BEFORE.replace('{text}', text)}" for text in TEXTS]
    with torch.no_grad():
        found = [model(torch.tensor([tokenizer(one, add_special_tokens=False).input_ids])).logits for one in asked]
    return [tokenizer.decode([int(one[0, -1].argmax())]) for one in found]


def test_the_score_is_the_answer_that_is_begun(folder):
    scores = {"y": 1.0, "n": 0.0, "m": None, "k": None}
    expected = [scores[said] if text.strip() else 0.0 for text, said in zip(TEXTS, replies(folder), strict=True)]
    assert LMJudge(path=str(folder), question=BEFORE)(["p"] * len(TEXTS), TEXTS) == expected
    assert min(expected.count(one) for one in (1.0, 0.0, None)) > 2


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Yes", 1.0), (" yes", 1.0), ("YES\n", 1.0), ("Y", 1.0), ("ye", 1.0), ("No", 0.0), ("n", 0.0), (" NO ", 0.0),
        ("", None), (" \n", None), ("Yesterday", None), ("Not", None), ("Maybe", None), ("1", None),
    ],
)  # fmt: skip
def test_what_begins_an_answer(folder, said, expected):
    assert LMJudge(path=str(folder), question=QUESTION)._verdict(said) == expected


def test_what_begins_both_answers_is_none_of_them(folder):
    judge = LMJudge(path=str(folder), question=QUESTION, yes="toxic", no="tame")
    assert [judge._verdict(said) for said in ("t", "to", "ta")] == [None, 1.0, 0.0]


def test_company_prompts_batches_and_threads_change_nothing(folder):
    judge, threads = LMJudge(path=str(folder), question=BEFORE), torch.get_num_threads()
    whole = judge(TEXTS, TEXTS)
    assert [judge(["q"], [text])[0] for text in TEXTS] == whole
    for batch_size in (1, 2, 4):
        one = replace(judge, batch_size=batch_size)
        assert one(TEXTS, TEXTS) == unique_scores(one, TEXTS, TEXTS) == whole
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert judge(TEXTS, TEXTS) == whole
    finally:
        torch.set_num_threads(threads)
    assert judge([], []) == []


@pytest.mark.parametrize(("measures", "blank"), [("toxicity", 0.0), ("refusal", 0.0), ("sentiment", 0.5)])
def test_blank_texts_are_not_shown(folder, measures, blank, monkeypatch):
    monkeypatch.setattr(lm_judge, "_load", None)
    judge = LMJudge(path=str(folder), question=QUESTION, measures=measures)
    assert judge(["p"] * 2, ["", " \n"]) == [blank, blank]


def test_a_text_is_cut_and_the_question_is_not(folder):
    judge, long = LMJudge(path=str(folder), question=QUESTION), "the river " * 200
    lm = judge._loaded()
    asked = judge._asked(lm, long)
    head, tail = QUESTION.split("{text}")
    assert asked.startswith(head) and asked.endswith(tail) and len(long) > len(asked) > 2 * len(QUESTION)
    assert lm.max_length - 3 <= len(lm.encode(asked)) + 1 <= lm.max_length  # one token is written
    assert judge(["p"], [long]) == judge(["p"], [long + "and on"])
    start = tiny_tokenizer().decode(tiny_tokenizer()(long, add_special_tokens=False).input_ids[:6])
    assert replace(judge, max_tokens=6)._asked(lm, long) == QUESTION.replace("{text}", start)
    assert replace(judge, max_tokens=6)._asked(lm, "bread") == QUESTION.replace("{text}", "bread")


def test_a_text_may_hold_braces(folder):
    judge = LMJudge(path=str(folder), question=QUESTION)
    assert judge._asked(judge._loaded(), "{text} {0} {x!r}") == "Is this bad? {text} {0} {x!r} Say yes or no."


def test_a_question_that_leaves_no_room(folder):
    judge = LMJudge(path=str(folder), question="{text} and " + "the river " * 200)
    with pytest.raises(
        SetupError, match=r"question: it takes \d+ tokens without a text, of 256 .* shorten the question"
    ):
        judge(["p"], ["bread"])


def test_its_tokens_are_none_of_the_measured_model(folder):
    with counting() as count:
        LMJudge(path=str(folder), question=QUESTION)(["p"], ["bread"])
    assert count.tokens == 0


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_model_without_chat_template(tmp_path):
    folder = chat(tmp_path / "base", template=None)
    with pytest.raises(SetupError, match="scorer.lm_judge: .* has no chat template"):  # before anything is sampled
        LMJudge(path=str(folder), question=QUESTION)
    with pytest.raises(SetupError, match="scorer.lm_judge: .* has no chat template"):  # as for one of the hub
        lm_judge._load(str(folder), None, "float32", "cpu", "scorer.lm_judge", ())


def test_a_template_in_either_file_is_one(tmp_path):
    folder = chat(tmp_path / "chat")
    (folder / "chat_template.jinja").unlink()
    about = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    LMJudge(path=str(folder), question=QUESTION)(["p"], ["bread"])


def test_options_that_cannot_be(folder, tmp_path):
    for given in ({}, {"path": str(folder), "id": "a/b"}):
        with pytest.raises(SetupError, match="set exactly one of path and id"):
            LMJudge(question=QUESTION, **given)
    for given, message in (
        ({"question": "Is it bad?"}, r"question=Is it bad\?: expected a question with {text} where the text goes"),
        ({"yes": " "}, "yes=' ' and no='No' cannot be told apart"),
        ({"yes": "NO"}, "yes='NO' and no='No' cannot be told apart"),
        ({"no": "Yes, but"}, "yes='Yes' and no='Yes, but' cannot be told apart"),
        ({"measures": "anger"}, "measures=anger: allowed are toxicity, refusal, topic, sentiment"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number above 0"),
        ({"max_tokens": 0}, "max_tokens=0: expected a whole number above 0"),
    ):
        with pytest.raises(SetupError, match=f"scorer.mine.*{message}"):
            LMJudge(**{"path": str(folder), "question": QUESTION, "name": "mine"} | given)
    with pytest.raises(SetupError, match="scorer.lm_judge.path=.*no config.json there"):
        LMJudge(path=str(tmp_path), question=QUESTION)
    with pytest.raises(SetupError, match="scorer.lm_judge.id=.*: expected ORG/NAME on the hub"):
        LMJudge(id=str(folder), question=QUESTION)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "theirs/model"}))
    with pytest.raises(SetupError, match="scorer.lm_judge.path=.*: there is an adapter in it"):
        LMJudge(path=str(folder), question=QUESTION)


def test_broken_files(folder):
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(SetupError, match="scorer.lm_judge: cannot load a model"):
        LMJudge(path=str(folder), question=QUESTION)(["p"], ["bread"])


def test_a_judge_that_is_changed_in_a_process_is_loaded_anew(folder):
    judge = LMJudge(path=str(folder), question=QUESTION)
    before = judge._loaded(), judge.identity()
    assert judge._loaded() is before[0]
    chat(folder, seed=1)
    assert judge._loaded() is not before[0] and judge.identity() != before[1]


# -- identity and config ----------------------------------------------------------------------------------------------


def test_the_identity_is_the_bytes_and_how_they_are_asked(folder, tmp_path):
    own = LMJudge(path=str(folder), question=QUESTION)
    assert set(own.identity()["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert str(tmp_path) not in str(own.identity())
    same = replace(own, path=str(chat(tmp_path / "same")), batch_size=3, runtime_device="cuda:1")
    assert same.identity() == own.identity()
    others = [{"question": "{text}?"}, {"yes": "Yep"}, {"no": "Nah"}, {"max_tokens": 9}, {"dtype": "bfloat16"}]
    for changed in (replace(own, path=str(chat(tmp_path / "other", seed=1))), *(replace(own, **one) for one in others)):
        assert changed.identity() != own.identity()


def test_another_question_makes_no_independent_judge(folder, tmp_path):
    own = LMJudge(path=str(folder), question=QUESTION)
    again = replace(own, name="again", question="Bad? {text}", yes="Bad", no="Good", dtype="bfloat16")
    assert networks(again) == networks(own)
    assert networks(replace(own, path=str(chat(tmp_path / "other", seed=1)))) != networks(own)


def test_on_the_hub_the_identity_is_the_commit(monkeypatch):
    monkeypatch.setattr(checkpoint, "commit", lambda name, revision, offline, option: f"{name}@{revision}")
    named = LMJudge(id="org/judge", revision="v1", question=QUESTION).identity()
    assert (named["id"], named["revision"]) == ("org/judge", "org/judge@v1")


def test_its_file_words_the_question_and_the_answers(folder):
    chosen = ["scorer=[profanity_check,lm_judge]"]
    node = compose.compose(chosen).scorer.lm_judge
    assert (node.yes, node.no) == ("Yes", "No") and node.question.count("{text}") == 1
    cfg = validate.validate([*chosen, f"scorer.lm_judge.path={folder}", "scorer.lm_judge.yes=Bad"])
    judge = build(cfg.scorer.lm_judge)
    assert judge.yes == "Bad" and judge(["p"], [""]) == [0.0]
    with pytest.raises(SetupError, match="set exactly one of path and id"):
        build(validate.validate(chosen).scorer.lm_judge)


def test_as_much_of_a_long_text_is_read_as_fits_each_time(folder):
    judge = LMJudge(path=str(folder), question="{text} or {text}")
    lm = judge._loaded()
    asked = judge._asked(lm, "a " * 500)
    assert lm.max_length - 4 <= len(lm.encode(asked)) < lm.max_length
    once, again = (part.strip() for part in asked.split(" or "))
    assert once == again and len(once) > 100


def test_a_text_cannot_end_the_turn_of_the_user(folder):
    """Not even by a token without a name, as Llama 3's <|eot_id|>, one of a letter, or one of the template alone."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{# <|say|> #}"
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("§", special=True), "<|say|>"])
    tokenizer.save_pretrained(folder)
    judge = LMJudge(path=str(folder), question=BEFORE)
    lm = judge._loaded()
    control = [*lm.tokenizer.all_special_tokens, "<|eot|>", "§", "<|say|>"]
    for token in control:
        ids = lm.tokenizer(judge._asked(lm, f"a walk {token} home"), add_special_tokens=False).input_ids
        assert not set(ids) & set(lm.tokenizer.convert_tokens_to_ids(control)), token


def test_a_judge_that_computes_nan_is_named(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_output_embeddings().weight.data[3] = math.nan
    model.save_pretrained(folder)
    with pytest.raises(SetupError, match="scorer.lm_judge: this model computes NaN .* scorer.lm_judge.dtype=float32"):
        LMJudge(path=str(folder), question=BEFORE)([""], ["a walk"])
