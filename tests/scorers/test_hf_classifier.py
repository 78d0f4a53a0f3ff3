import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bench.config import compose
from bench.config.build import build
from bench.model import checkpoint
from bench.records.identity import digest
from bench.run import validate
from bench.scorers import hf_classifier
from bench.scorers.hf_classifier import HFClassifier
from methods.errors import SetupError
from tests.tiny import VOCABULARY, tiny_tokenizer

LABELS = ["benign", "toxic", "other"]
TEXTS = ["a walk by the river", "bread", "", "the lazy dog and the small bird sing of love", "  \n", "work and weather"]
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


def settings(labels: list[str], **others: object) -> dict[str, object]:
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return {"vocab_size": VOCABULARY, "pad_token_id": 0, **SIZES, **names, **others}


def saved(model: PreTrainedModel, folder: Path, **tokenizer: object) -> Path:
    """The model with large weights, so that it has opinions, and its tokenizer."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15 if parameter.ndim > 1 else 1)
    model.eval().save_pretrained(folder)
    own = tiny_tokenizer()
    for key, value in tokenizer.items():
        setattr(own, key, value)
    own.save_pretrained(folder)
    return folder


ONE = "single_label_classification"
EACH = "multi_label_classification"


def bert(folder: Path, labels: list[str] = LABELS, seed: int = 0, problem_type: str | None = ONE) -> Path:
    torch.manual_seed(seed)
    shape = settings(labels, max_position_embeddings=64, problem_type=problem_type)
    return saved(BertForSequenceClassification(BertConfig(**shape)), folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    return bert(tmp_path / "bert")


def logits(folder: Path, text: str) -> torch.Tensor:
    """Of one text, alone and without padding."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([tiny_tokenizer()(text)["input_ids"]])).logits[0]


def test_the_score_is_the_softmax_of_the_label(folder):
    found = HFClassifier(path=str(folder), label="toxic")(["p"] * len(TEXTS), TEXTS)
    expected = [float(logits(folder, text).softmax(-1)[1]) if text.strip() else 0.0 for text in TEXTS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(filter(None, expected)) > 0.1
    every = [HFClassifier(path=str(folder), label=label)(["p"], ["bread"])[0] for label in LABELS]
    assert sum(every) == pytest.approx(1)
    assert HFClassifier(path=str(folder), label=2)(["p"], ["bread"]) == [every[2]]


def test_of_a_model_of_many_labels_at_once_it_is_the_sigmoid(tmp_path):
    folder = bert(tmp_path / "multi", problem_type=EACH)
    found = HFClassifier(path=str(folder), label="toxic")(["p"] * 2, ["bread", "a walk by the river"])
    assert found == pytest.approx(
        [float(logits(folder, text)[1].sigmoid()) for text in ("bread", "a walk by the river")]
    )


def test_of_a_single_logit_it_is_the_sigmoid(tmp_path):
    folder = bert(tmp_path / "one", ["toxic"], problem_type=None)
    assert HFClassifier(path=str(folder), label=0)(["p"], ["bread"]) == pytest.approx(
        [float(logits(folder, "bread")[0].sigmoid())]
    )


def test_batches_and_prompts_change_nothing(folder):
    judge = HFClassifier(path=str(folder), label="toxic")
    whole = judge(TEXTS, TEXTS)
    for batch_size in (1, 2, 4):
        assert replace(judge, batch_size=batch_size)(["q"] * len(TEXTS), TEXTS) == pytest.approx(whole, abs=1e-6)
    assert judge([], []) == []


@pytest.mark.parametrize(("measures", "blank"), [("toxicity", 0.0), ("refusal", 0.0), ("sentiment", 0.5)])
def test_a_blank_text_scores_by_what_is_measured(folder, measures, blank):
    scores = HFClassifier(path=str(folder), label="toxic", measures=measures)(["p"] * 3, ["", " \n", "bread"])
    assert scores[:2] == [blank, blank] and scores[2] not in (0.0, 0.5)


def test_long_texts_are_cut(folder):
    long, start = "the river " * 60, "the river " * 4
    judge = HFClassifier(path=str(folder), label="toxic", max_tokens=6)
    assert judge(["p"], [long]) == pytest.approx(judge(["p"], [start]), abs=1e-6)
    whole = replace(judge, max_tokens=None)
    assert whole(["p"], [start]) != pytest.approx(judge(["p"], [start]), abs=1e-4)
    ids = torch.tensor([tiny_tokenizer()(long)["input_ids"][:64]])  # the model has 64 positions
    assert len(tiny_tokenizer()(long)["input_ids"]) > 64
    with torch.no_grad():
        expected = BertForSequenceClassification.from_pretrained(folder).eval()(ids).logits.softmax(-1)[0, 1]
    assert whole(["p"], [long]) == pytest.approx([float(expected)], abs=1e-5)


def test_robertas_positions_begin_after_the_padding(tmp_path):
    shape = settings(LABELS, max_position_embeddings=20, pad_token_id=1, problem_type=ONE)
    model = RobertaForSequenceClassification(RobertaConfig(**shape))
    folder = saved(model, tmp_path / "roberta", pad_token="<s>")
    assert hf_classifier.longest(model, tiny_tokenizer()) == 18
    (score,) = HFClassifier(path=str(folder), label="toxic")(["p"], ["the river " * 60])
    assert score is not None and 0 < score < 1


def test_a_model_without_padding_token(tmp_path):
    shape = {"vocab_size": VOCABULARY, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 64}
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(**shape, id2label={0: "benign", 1: "toxic"}, problem_type=ONE))
    judge = HFClassifier(path=str(saved(model, tmp_path / "gpt2", pad_token=None)), label="toxic")
    texts = [text for text in TEXTS if text.strip()]
    together = judge(texts, texts)
    assert together == pytest.approx([judge([text], [text])[0] for text in texts], abs=1e-6)


def test_no_number_is_unscored(folder, monkeypatch):
    monkeypatch.setattr(hf_classifier, "_judged", lambda loaded, texts, device: [math.nan] * len(texts))
    assert HFClassifier(path=str(folder), label="toxic")(["p"] * 2, ["bread", ""]) == [None, 0.0]


# -- what makes probabilities of the logits -----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_option_says_what_the_model_does_not(tmp_path, activation):
    folder = bert(tmp_path / "silent", problem_type=None)
    (found,) = HFClassifier(path=str(folder), label="toxic", activation=activation)(["p"], ["bread"])
    expected = {"softmax": logits(folder, "bread").softmax(-1)[1], "sigmoid": logits(folder, "bread").sigmoid()[1]}
    assert found == pytest.approx(float(expected[activation])) and expected["softmax"] != expected["sigmoid"]


HEADS = [
    (LABELS, None, None, "has 3 labels and does not say .*activation=softmax if just one does, .*activation=sigmoid"),
    (LABELS[:2], None, None, "has 2 labels and does not say"),
    (LABELS, ONE, "sigmoid", "problem_type=single_label_classification: it was trained with softmax.*activation=null"),
    (LABELS, EACH, "softmax", "problem_type=multi_label_classification: it was trained with sigmoid.*activation=null"),
    (LABELS, "regression", None, "problem_type is regression, so its output is not a probability"),
    (LABELS, "regression", "sigmoid", "problem_type is regression"),
    (LABELS[1:2], "regression", None, "problem_type is regression"),
    (LABELS[1:2], None, "softmax", "a single label, whose softmax is always 1; set .*activation=sigmoid"),
    (LABELS[1:2], EACH, "softmax", "softmax is always 1; set scorer.hf_classifier.activation=sigmoid"),
    (LABELS, None, "tanh", "activation=tanh: allowed are sigmoid, softmax, null"),
]


@pytest.mark.parametrize(("labels", "problem_type", "activation", "message"), HEADS)
def test_a_head_that_gives_no_certain_probability_is_refused(tmp_path, labels, problem_type, activation, message):
    folder = bert(tmp_path / "head", labels, problem_type=problem_type)
    with pytest.raises(SetupError, match=message):  # said before anything is sampled
        HFClassifier(path=str(folder), label="toxic", activation=activation)
    config = json.loads((folder / "config.json").read_text())
    names = {key: config.pop(key) for key in ("id2label", "label2id")}
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": len(names["id2label"])}))
    with pytest.raises(SetupError, match=message):  # and where config.json lists no labels, by the loaded model
        HFClassifier(path=str(folder), label=0, activation=activation)(["p"], ["bread"])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_a_softmax_of_a_single_label_has_one_way_out(tmp_path, activation):
    """Each setting used to be refused by a message that named another one."""
    folder = bert(tmp_path / "one", ["toxic"], problem_type=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": ONE}))
    with pytest.raises(
        SetupError, match="softmax of a single label is always 1.*set problem_type to null in the config.json.*sigmoid"
    ):
        HFClassifier(path=str(folder), label="toxic", activation=activation)
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": None}))
    found = HFClassifier(path=str(folder), label="toxic")(["p"], ["bread"])
    assert found == pytest.approx([float(logits(folder, "bread")[0].sigmoid())])


@pytest.mark.parametrize(
    "labels",
    [
        {"x": "toxic"},
        {"0": "benign", "2": "toxic"},
        {"1": "benign", "2": "toxic"},
        {"-1": "toxic", "0": "benign"},
        {"0": "benign", "00": "toxic"},
        {"0.0": "toxic"},
        ["benign", "toxic"],
        "toxic",
        5,
    ],
)
def test_labels_that_are_at_no_certain_column_are_refused(folder, labels):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    for label in ("toxic", 0, 1):
        with pytest.raises(SetupError, match=r"id2label in the model's config.json is .*correct it there"):
            HFClassifier(path=str(folder), label=label)


@pytest.mark.parametrize("problem_type", ["multi-label", 5, ["x"]])
def test_a_problem_type_that_there_is_not(folder, problem_type):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem_type}))
    with pytest.raises(SetupError, match="problem_type in the model's config.json is .*; known are single_label_cl"):
        HFClassifier(path=str(folder), label="toxic")


@pytest.mark.parametrize(
    ("problem_type", "activation"), [(ONE, "softmax"), (EACH, "sigmoid"), (ONE, None), (EACH, None)]
)
def test_an_option_that_agrees_with_the_model(tmp_path, problem_type, activation):
    folder = bert(tmp_path / "agrees", problem_type=problem_type)
    (found,) = HFClassifier(path=str(folder), label="toxic", activation=activation)(["p"], ["bread"])
    own = logits(folder, "bread")
    assert found == pytest.approx(float((own.softmax(-1) if problem_type == ONE else own.sigmoid())[1]))


def test_the_option_changes_the_id_only_with_the_scores(tmp_path):
    silent = HFClassifier(path=str(bert(tmp_path / "silent", problem_type=None)), label="toxic", activation="softmax")
    before = silent.identity()
    assert before.pop("activation") is None  # null is dropped: the id that version 1 gave, which took the softmax
    assert digest(silent.identity()) == digest(before)
    assert digest(replace(silent, activation="sigmoid").identity()) != digest(before)


def test_the_published_models_say_what_they_need():
    cfg = compose.compose(["scorer=[profanity_check,toxigen_roberta,unbiased_toxic_roberta,roberta_toxicity]"])
    wanted = {"toxigen_roberta": "softmax", "roberta_toxicity": "softmax", "unbiased_toxic_roberta": "sigmoid"}
    assert {name: cfg.scorer[name].activation for name in wanted} == wanted


@pytest.mark.parametrize("label", [True, False, 1.0, "1", "Toxic", None])
def test_what_only_looks_like_a_label_is_none(folder, label):
    with pytest.raises(SetupError, match="it has 0 benign, 1 toxic, 2 other"):
        HFClassifier(path=str(folder), label=label)


def test_of_two_labels_of_one_name_neither_is_meant(tmp_path):
    folder = bert(tmp_path / "twice", ["toxic", "benign", "toxic"])
    with pytest.raises(SetupError, match="several labels of that name; give its number, since it has 0 toxic, 1 beni"):
        HFClassifier(path=str(folder), label="toxic")
    assert HFClassifier(path=str(folder), label=2)(["p"], ["bread"]) == pytest.approx(
        [float(logits(folder, "bread").softmax(-1)[2])]
    )


# -- what is wrong ------------------------------------------------------------------------------------------------


def test_a_label_that_the_model_does_not_have(folder):
    for label in ("toxicity", 3, -1):
        with pytest.raises(SetupError, match=rf"label={label}: .* it has 0 benign, 1 toxic, 2 other"):
            HFClassifier(path=str(folder), label=label)  # said before anything is sampled
    config = json.loads((folder / "config.json").read_text())
    bare = {key: config[key] for key in config if "label" not in key.lower()} | {"num_labels": 3}
    (folder / "config.json").write_text(json.dumps(bare))
    unnamed = HFClassifier(path=str(folder), label="toxic")
    with pytest.raises(SetupError, match=r"label=toxic: .* it has 0 LABEL_0, 1 LABEL_1, 2 LABEL_2"):
        unnamed(["p"], ["bread"])


def test_a_model_that_was_never_trained_to_classify(tmp_path):
    folder = saved(BertModel(BertConfig(**settings(LABELS, problem_type=ONE))), tmp_path / "base")
    with pytest.raises(SetupError, match="has no weights for classifier.bias, classifier.weight"):
        HFClassifier(path=str(folder), label="toxic")(["p"], ["bread"])


def test_broken_files(folder):
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(SetupError, match="scorer.hf_classifier: cannot load a sequence classifier"):
        HFClassifier(path=str(folder), label="toxic")(["p"], ["bread"])


def test_a_judge_that_is_changed_in_a_process_is_loaded_anew(folder):
    judge = HFClassifier(path=str(folder), label="toxic")
    before = judge(["p"], ["bread"]), judge.identity()
    bert(folder, seed=1)
    assert judge(["p"], ["bread"]) != before[0] and judge.identity() != before[1]


@pytest.mark.parametrize("place", ["w/model-2.safetensors", "../out.safetensors", "gone.safetensors"])
def test_weights_in_another_folder_are_refused(folder, place):
    (folder / "w").mkdir()
    if place != "gone.safetensors":
        (folder / "model.safetensors").rename(folder / place)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "x.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": place}}))
    with pytest.raises(SetupError, match=f"index.json names {place}, which is not among the files directly in"):
        HFClassifier(path=str(folder), label="toxic")


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "{"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_is_no_object(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(SetupError, match=f"{name} (is not valid JSON|holds a JSON)"):
        HFClassifier(path=str(folder), label="toxic")


def test_options_that_cannot_be(folder, tmp_path):
    for given in ({}, {"path": str(folder), "id": "a/b"}):
        with pytest.raises(SetupError, match="set exactly one of path and id"):
            HFClassifier(label="toxic", **given)
    with pytest.raises(SetupError, match="scorer.mine.path=.*no config.json there"):
        HFClassifier(label="toxic", path=str(tmp_path), name="mine")
    with pytest.raises(SetupError, match="measures=anger: allowed are toxicity, refusal, topic, sentiment"):
        HFClassifier(label="toxic", id="a/b", measures="anger")
    with pytest.raises(SetupError, match="batch_size=0: expected a whole number above 0"):
        HFClassifier(label="toxic", id="a/b", batch_size=0)


def test_without_network_a_branch_says_what_to_set():
    checkpoint.commit.cache_clear()
    judge = HFClassifier(id="org/judge", label=1, offline=True, name="judge")
    for call in (judge.identity, lambda: judge(["p"], ["bread"])):
        with pytest.raises(
            SetupError, match=r"scorer.judge.revision=main .* or give a folder: scorer.judge.path=FOLDER"
        ):
            call()


# -- identity and config ------------------------------------------------------------------------------------------


def test_the_identity_is_the_bytes_and_how_they_are_read(folder, tmp_path):
    own = HFClassifier(path=str(folder), label="toxic")
    assert set(own.identity()["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert str(tmp_path) not in str(own.identity())
    same = HFClassifier(path=str(bert(tmp_path / "same")), label="toxic", batch_size=3)
    assert same.identity() == own.identity()
    other = HFClassifier(path=str(bert(tmp_path / "other", seed=1)), label="toxic")
    for changed in (other, replace(own, label="benign"), replace(own, max_tokens=9), replace(own, measures="refusal")):
        assert changed.identity() != own.identity()


def test_on_the_hub_the_identity_is_the_commit(monkeypatch):
    monkeypatch.setattr(checkpoint, "commit", lambda name, revision, offline, option: f"{name}@{revision}")
    named = HFClassifier(id="org/judge", revision="v1", label=1).identity()
    assert (named["id"], named["revision"], named["label"]) == ("org/judge", "org/judge@v1", 1)


def test_several_judge_one_run_under_their_own_names():
    given = ["profanity_check", "toxigen_roberta", "unbiased_toxic_roberta", "roberta_toxicity"]
    cfg = validate.validate([f"scorer=[{','.join(given)}]"])
    scorers = [build(node) for node in cfg.scorer.values()]
    assert [one.name for one in scorers] == list(cfg.scorer) == given
    assert all(one.measures == "toxicity" for one in scorers)
    assert [one.label for one in scorers[1:]] == [1, "toxicity", "toxic"]


def test_the_config_asks_for_the_label(folder):
    chosen = ["scorer=[profanity_check,hf_classifier]", f"scorer.hf_classifier.path={folder}"]
    with pytest.raises(SetupError, match="scorer.hf_classifier.label has no value"):
        validate.validate(chosen)
    cfg = validate.validate([*chosen, "scorer.hf_classifier.label=toxic"])
    assert build(cfg.scorer.hf_classifier)(["p"], [""]) == [0.0]


def test_it_judges_where_the_run_computes_and_keeps_its_identity(tmp_path, monkeypatch):
    """Scores of a card are those of the CPU but for rounding; only a device of the scorer's own is in its identity."""
    judge = HFClassifier(path=str(bert(tmp_path / "bert")), label="toxic")
    here = replace(judge, runtime_device="cuda:1")
    assert here.identity() == judge.identity() and judge.identity()["device"] == "cpu"
    assert replace(judge, device="cuda:0").identity()["device"] == "cuda"
    assert [one._where for one in (judge, here, replace(here, device="cpu"))] == ["cpu", "cuda:1", "cpu"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert replace(judge, runtime_device="auto")._where == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert replace(judge, runtime_device="auto")._where == "cpu"
