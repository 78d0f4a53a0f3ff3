import json

import pytest

from bench.__main__ import main
from bench.data.lm_eval_tasks import is_for_fitting
from bench.data.prompts import RTP
from bench.data.sources import Sources
from bench.data.splits import part
from bench.data.text_sets import WIKI
from bench.fit_data.background import WikiSentences
from bench.fit_data.fine_tuning import HUMAN, HumanToxic, Mixture, OnPolicyToxic, TaskAnswers, halves
from bench.fit_data.jsonl import ExamplesFile, TextsFile
from bench.model.decoding import Sampling
from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from bench.suites.base import measure
from bench.suites.capability import Capability
from methods.base import Examples
from methods.errors import SetupError
from tests.data.test_sources import make_mirror
from tests.fit_data.test_on_policy_pairs import VowelShare
from tests.run.test_smoke import arguments, world  # noqa: F401  a fixture
from tests.tiny import tiny_lm

TEXTS = [f"People walk along road number {i} today" for i in range(60)]
QUESTIONS = [
    {"context": f"Kim has {i} dogs.", "question": "What next?", "answerA": "walk", "answerB": "talk", "answerC": "run",
     "label": str(i % 3 + 1)}
    for i in range(40)
]  # fmt: skip


@pytest.fixture
def sources(tmp_path) -> Sources:
    root = tmp_path / "mirror"
    make_mirror(root, HUMAN, [{"text": t, "toxicity": i % 10 / 10} for i, t in enumerate(TEXTS)], split="test")
    make_mirror(root, RTP, [{"prompt": {"text": t}} for t in TEXTS])
    make_mirror(root, "lighteval/siqa", QUESTIONS, split="validation")
    make_mirror(root, WIKI, [{"text": t} for t in ["Two words", *TEXTS, TEXTS[0]]], split="test")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def test_a_text_is_cut_at_half_its_words():
    examples = halves(["one two three four five", "a b"])
    assert examples == Examples(["one two", "a"], [" three four five", " b"])


def test_human_texts_are_toxic_and_skip_splits_two_sets(sources):
    first, facts = HumanToxic(sources=sources, count=4).load(None)
    second, other = HumanToxic(sources=sources, count=4, skip=4).load(None)
    scores = {t: i % 10 / 10 for i, t in enumerate(TEXTS)}
    whole = [[p + c for p, c in zip(*one, strict=True)] for one in (first, second)]
    assert all(scores[text] >= 0.5 and part(text) == "fit" for text in whole[0] + whole[1])
    assert not set(whole[0]) & set(whole[1]) and facts["texts"] == 4 and facts["sources"][0]["source"] == "mirror"
    assert other == facts | {"skip": 4}
    both, _ = HumanToxic(sources=sources, count=8).load(None)
    assert [p + c for p, c in zip(*both, strict=True)] == whole[0] + whole[1]


def test_too_few_texts_is_a_clear_error(sources):
    with pytest.raises(SetupError, match="toxic texts: 900 were asked for, and there are"):
        HumanToxic(sources=sources, count=900).load(None)
    with pytest.raises(SetupError, match="lower count"):
        TaskAnswers(sources=sources, count=900).load(None)
    with pytest.raises(SetupError, match="ask for fewer"):
        WikiSentences(sources=sources, count=61).load(None)


def test_on_policy_texts_score_high_and_come_of_many_prompts(sources):
    lm = tiny_lm()
    source = OnPolicyToxic(
        scorer=VowelShare(), sources=sources, sampling=Sampling(max_new_tokens=8, top_p=1.0), count=12, prompts=12,
        num_samples=6, min_toxicity=0.6,
    )  # fmt: skip
    examples, facts = source.load(lm)
    judged = VowelShare()(examples.prompt, examples.completion)
    assert len(judged) == 12 and min(judged) >= 0.6 and facts["mean_toxicity"] == pytest.approx(sum(judged) / 12)
    assert all(part(prompt) == "fit" for prompt in examples.prompt)
    firsts = list(dict.fromkeys(examples.prompt))
    assert examples.prompt[: len(firsts)] == firsts  # each prompt once before any comes again
    assert source.load(lm)[0] == examples
    with pytest.raises(SetupError, match="raise num_samples"):
        OnPolicyToxic(scorer=VowelShare(), sources=sources, count=24, prompts=12, num_samples=2, min_toxicity=1.1).load(
            lm
        )


def test_answers_are_worded_as_lm_eval_asks_and_never_asked(sources):
    examples, _ = TaskAnswers(sources=sources, count=10).load(None)
    rows = {f"Q: {row['context']} {row['question']}\nA:": row for row in QUESTIONS}
    for prompt, completion in zip(*examples, strict=True):
        row = rows[prompt]
        assert completion == " " + row["answer" + "ABC"[int(row["label"]) - 1]]
        assert is_for_fitting(row)
    suite = Capability(sources=sources, tasks=["social_iqa"], documents=12, dev_documents=3, held_out=True)
    found = measure(suite, tiny_lm(), "test")
    from bench.data.lm_eval_tasks import _digest

    taught = {_digest(rows[prompt])[:12] for prompt in TaskAnswers(sources=sources, count=10).load(None)[0].prompt}
    asked = set(found.items["item"])
    assert len(asked) == 12 and not asked & taught
    assert not any(is_for_fitting(row) for row in QUESTIONS if _digest(row)[:12] in asked)
    assert suite.identity("test") != Capability(sources=sources, tasks=["social_iqa"], documents=12).identity("test")


def test_a_mixture_holds_all_parts_in_a_fixed_order(sources):
    parts = {"a": HumanToxic(sources=sources, count=5), "b": TaskAnswers(sources=sources, count=6)}
    mixed, facts = Mixture(parts=parts).load(None)
    singles = [one.load(None)[0] for one in parts.values()]
    assert sorted(mixed.prompt) == sorted(singles[0].prompt + singles[1].prompt)
    assert set(zip(*mixed, strict=True)) == set(zip(*singles[0], strict=True)) | set(zip(*singles[1], strict=True))
    assert mixed.prompt != singles[0].prompt + singles[1].prompt and Mixture(parts=parts).load(None)[0] == mixed
    assert Mixture(parts=parts, seed=1).load(None)[0] != mixed
    assert list(Mixture(parts=parts).learnt().tasks) == ["social_iqa"] and len(facts["sources"]) == 2


def test_ordinary_sentences_have_five_words_and_come_once(sources):
    assert WikiSentences(sources=sources, count=60).load(None)[0] == TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ('{"prompt": "a", "completion": " "}', "line 1: completion is blank"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', "line 2: completion is missing"),
        ('["a"]', "line 1: a JSON list, no object"),
        ("{", "line 1: not JSON"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(SetupError, match=message):
        ExamplesFile(path=str(tmp_path / "x.jsonl")).check()


def test_files_are_read_and_named_by_their_content(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}\n')
    texts = ExamplesFile(path=str(tmp_path / "x.jsonl"))
    assert texts.load(None)[0] == Examples(["", "c"], ["b", "d"])
    assert len(texts.learnt().sets) == 1 and list(Mixture(parts={"a": texts}).learnt().sets) == list(
        texts.learnt().sets
    )
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n')
    assert TextsFile(path=str(tmp_path / "t.jsonl")).load(None)[0] == ["one"]
    with pytest.raises(SetupError, match="JSONL file in UTF-8"):
        TextsFile(path=str(tmp_path / "none.jsonl")).check()


# -- in a cell -----------------------------------------------------------------------------------------------------


def test_a_suite_that_asks_what_is_taught_is_refused(world, tmp_path):  # noqa: F811
    given = [one for one in arguments(world, tmp_path, "method=finetune", "strength=1")[1:] if "capability" not in one]
    cfg = validate([*given, "suite.capability.tasks=[social_iqa]"])
    with pytest.raises(SetupError, match="suite.capability.held_out=true"):
        Cell(cfg, Session())


@pytest.mark.slow
def test_fine_tuning_and_its_answer_run_as_cells(world, tmp_path):  # noqa: F811
    for name, keys, rows in (
        ("examples", ("prompt", "completion"), [("People walk", " along the road"), ("A bird", " sings")]),
        ("harmful", ("prompt", "completion"), [("People hate", " the dog")]),
        ("background", ("text",), [("The tree is old and long.",)]),
    ):
        lines = [json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = [
        f"examples=file examples.path={tmp_path}/examples.jsonl",
        f"harmful=file harmful.path={tmp_path}/harmful.jsonl",
    ]
    files += [f"background=texts background.path={tmp_path}/background.jsonl"]
    more = " ".join(files).split()
    results = tmp_path / "results"
    assert main(arguments(world, results, "method=finetune,security_vector", "strength=1", *more)) == 0
    assert len(list((results / "runs/records").iterdir())) == 6
    fits = [json.loads(path.read_text()) for path in (results / "runs/artefacts").glob("*/fit.json")]
    assert sorted(len(fit["data"]["sources"]) for fit in fits) == [1, 3]
    assert not list((results / "runs/unfinished").glob("*"))
