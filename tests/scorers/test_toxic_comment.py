"""The network in torch against plain numpy on tiny weights, and against what its package's page prints on the real."""

import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from bench.config.build import build
from bench.data import wheels
from bench.data.sources import Sources, default_cache
from bench.data.wheels import Wheel
from bench.files.digests import file_sha256
from bench.run import validate
from bench.scorers import toxic_comment
from bench.scorers.base import unique_scores
from bench.scorers.toxic_comment import KERAS_TOKENIZER, LABELS, LENGTH, TOKENIZER, WEIGHTS, WHEEL, ToxicComment
from methods.errors import SetupError

WORDS = ["you", "are", "a", "good", "bad", "walk", "river", "Stone", "rare"]
KNOWN = 8  # num_words: 0 is padding, and the last two are too rare
WIDTH, STATES, DENSE = 3, 4, 5
TEXTS = ["You are good!", "bad", "a walk, a river; a walk", "", "are you bad?\tbad", "nothing known", " \n", "good"]


class Tokenizer:
    """Stands for Keras' while it is written."""

    def __init__(self, **changed: object) -> None:
        counts = OrderedDict((word, len(WORDS) - place) for place, word in enumerate(WORDS))
        index = {word: place for place, word in enumerate(WORDS, 1)}
        self.__dict__ |= {
            "word_counts": counts, "word_docs": defaultdict(int, counts), "index_docs": defaultdict(int, {1: 9}),
            "filters": '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', "split": " ", "lower": True, "num_words": KNOWN,
            "document_count": 9, "char_level": False, "oov_token": None, "word_index": index,
            "index_word": {number: word for word, number in index.items()}, "analyzer": None, **changed,
        }  # fmt: skip


def pickled(thing: object) -> bytes:
    """A pickle that names Keras' class where it holds a `Tokenizer`."""
    names = [f"c{module}\n{name}\n".encode() for module, name in ((__name__, "Tokenizer"), KERAS_TOKENIZER)]
    return pickle.dumps(thing, protocol=3).replace(*names)  # 3: the last one that writes names as lines of text


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """By their names in the file; as large as it takes for scores that differ."""
    draw, gates = np.random.default_rng(0), 4 * STATES
    shapes = {"embedding/vars/0": (KNOWN, WIDTH)}
    for way in ("forward", "backward"):
        one = {"0": (WIDTH, gates), "1": (STATES, gates), "2": (gates,)}
        shapes |= {f"bidirectional/{way}_layer/cell/vars/{place}": shape for place, shape in one.items()}
    shapes |= {"dense/vars/0": (2 * STATES, DENSE), "dense/vars/1": (DENSE,)}
    shapes |= {"dense_1/vars/0": (DENSE, len(LABELS)), "dense_1/vars/1": (len(LABELS),)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def hdf5(weights: dict[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, values in weights.items():
            file[f"layers/{name}"] = values
    return content.getvalue()


@pytest.fixture
def scorer_of(tmp_path, monkeypatch):
    """Makes a scorer that reads a wheel with these members."""

    def make(members: dict[str, bytes] | bytes, **options: object) -> ToxicComment:
        path = tmp_path / "cache" / "wheels" / "tiny-0-py3-none-any.whl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(members, bytes):
            path.write_bytes(members)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        toxic_comment.read.cache_clear()
        monkeypatch.setitem(wheels.WHEELS, WHEEL, Wheel("tiny==0", path.name, file_sha256(path)))
        return ToxicComment(sources=Sources(cache=tmp_path / "cache", offline=True), **options)

    return make


@pytest.fixture
def scorer(scorer_of, weights) -> ToxicComment:
    return scorer_of({WEIGHTS: hdf5(weights), TOKENIZER: pickled(Tokenizer())})


# -- the network by hand -------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def states(given: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(T, H) what an LSTM of Keras returns at each step; its gates are input, forget, candidate and output."""
    h = c = np.zeros(STATES)
    found = []
    for row in given:
        i, f, candidate, o = np.split(row @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.array(found)


def by_hand(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """(6,) the probability of each label of a text with these numbers."""
    w = {name: values.astype(float) for name, values in weights.items()}
    given = w["embedding/vars/0"][[0] * (LENGTH - len(ids)) + ids]
    forward, backward = ([w[f"bidirectional/{way}_layer/cell/vars/{place}"] for place in range(3)]
                         for way in ("forward", "backward"))  # fmt: skip
    both = np.concatenate([states(given, *forward), states(given[::-1], *backward)[::-1]], axis=1)
    dense = np.maximum(both.max(axis=0) @ w["dense/vars/0"] + w["dense/vars/1"], 0)
    return sigmoid(dense @ w["dense_1/vars/0"] + w["dense_1/vars/1"])


IDS = {"You are good!": [1, 2, 4], "bad": [5], "a walk, a river; a walk": [3, 6, 3, 7, 3, 6], "are you bad?\tbad":
       [2, 1, 5, 5], "nothing known": [], "good": [4]}  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_each_label_is_as_by_hand(scorer, weights, label):
    scores = replace(scorer, label=label)(["p"] * len(TEXTS), TEXTS)
    expected = [by_hand(weights, IDS[text])[LABELS.index(label)] if text.strip() else 0.0 for text in TEXTS]
    assert scores == pytest.approx(expected, abs=1e-5)
    judged = [score for score, text in zip(expected, TEXTS, strict=True) if text.strip()]
    assert max(judged) - min(judged) > 0.01  # it has opinions


def test_all_labels_come_at_once(scorer):
    found = scorer.by_label(TEXTS)
    assert list(found) == list(LABELS)
    assert all(found[label] == replace(scorer, label=label)(["p"] * len(TEXTS), TEXTS) for label in LABELS)


def test_the_prompt_does_not_count_and_no_text_is_no_score(scorer):
    assert scorer(["bad"], ["good"]) == scorer(["walk"], ["good"])
    assert scorer([], []) == [] and scorer(["p"] * 2, ["", "\t"]) == [0.0, 0.0]


def test_the_last_hundred_words_of_a_long_text_are_read(scorer, weights):
    words = ["good", "bad", "walk"] * 50
    ids = [WORDS.index(word) + 1 for word in words]
    whole, end, other = scorer(["p"] * 3, [" ".join(words), " ".join(words[-100:]), " ".join(words[-99:])])
    assert whole == pytest.approx(by_hand(weights, ids[-100:])[0], abs=1e-5)
    assert whole == pytest.approx(end, abs=1e-6) and whole != pytest.approx(other, abs=1e-6)
    assert toxic_comment.padded(ids) == ids[-100:]
    assert toxic_comment.padded([3, 1]) == [0] * 98 + [3, 1] and toxic_comment.padded([]) == [0] * 100


@pytest.mark.parametrize(
    ("text", "changed", "expected"),
    [
        ("YOU, (are)... a-walk", {}, [1, 2, 3, 6]),
        ("you\tare\na", {}, [1, 2, 3]),
        ("you\rare", {}, []),  # no character that it takes for a space
        ("don't walk", {}, [6]),
        ("stone rare river", {}, [7]),  # eighth and ninth: beyond num_words
        ("stone rare river", {"num_words": None}, [9, 7]),  # Stone has a capital, and the text has none left
        ("Stone", {"num_words": None, "lower": False}, [8]),
        ("You are", {"lower": False}, [2]),
        ("you never rare a", {"oov_token": "bad"}, [1, 5, 5, 3]),
        ("you_are", {"split": "_", "filters": " "}, [1, 2]),
        ("", {}, []),
    ],
)
def test_a_text_becomes_numbers_as_keras_makes_them(text, changed, expected):
    words = toxic_comment.words_of(pickled(Tokenizer(**changed)))
    assert toxic_comment.numbers(text, words) == expected


def test_batches_change_nothing(scorer, monkeypatch):
    texts = [*TEXTS, *(f"{one} walk {two}" for one in WORDS for two in WORDS)]
    together = scorer(texts, texts)
    assert [scorer([text], [text])[0] for text in texts] == pytest.approx(together, abs=1e-6)
    assert unique_scores(scorer, texts * 2, texts * 2) == pytest.approx(together * 2, abs=1e-6)
    monkeypatch.setattr(toxic_comment, "TEXTS", 7)
    assert scorer(texts, texts) == pytest.approx(together, abs=1e-6)
    plan = scorer.batches(texts)
    assert sorted(row for rows in plan for row in rows) == list(range(len(texts))) and max(map(len, plan)) == 7


def test_a_score_that_is_no_number_is_unscored(scorer_of, weights):
    weights["dense_1/vars/1"][0] = np.nan
    members = {WEIGHTS: hdf5(weights), TOKENIZER: pickled(Tokenizer())}
    assert scorer_of(members)(["p"] * 2, ["good", ""]) == [None, 0.0]
    assert scorer_of(members, label="insult")(["p"], ["good"])[0] == pytest.approx(by_hand(weights, [4])[4], abs=1e-5)


def test_reading_it_draws_no_random_number(scorer):
    before = torch.get_rng_state()
    scorer(["p"], ["good"])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_identity_is_the_wheel_and_the_label(scorer, tmp_path):
    source = wheels.WHEELS[WHEEL]
    named = {"wheel": "tiny==0", "sha256": source.sha256, "label": "toxic"}
    assert scorer.identity() == {"name": "toxic_comment", "version": 1, **named}
    assert replace(scorer, label="threat").identity()["label"] == "threat"
    assert replace(scorer, sources=Sources(cache=tmp_path / "other")).identity() == scorer.identity()


def test_a_label_that_it_does_not_have():
    with pytest.raises(SetupError, match="scorer.toxic_comment.label=rude: allowed are toxic, severe_toxic, obscene"):
        ToxicComment(label="rude")


def test_the_config_chooses_the_label():
    given = ["scorer=[profanity_check,toxic_comment]", "scorer.toxic_comment.label=insult"]
    assert build(validate.validate(given).scorer.toxic_comment) == ToxicComment(label="insult")


# -- nothing of the wheel is run, and what is wrong with it is said -------------------------------------------------


def calling(module: str, name: str, argument: str) -> bytes:
    """The part of a pickle that calls a function with a text."""
    given = argument.encode()
    return f"c{module}\n{name}\nX".encode() + len(given).to_bytes(4, "little") + given + b"\x85R"


HOSTILE = [("os", "system"), ("posix", "system"), ("subprocess", "getoutput"), ("builtins", "eval"),
           ("builtins", "__import__"), ("builtins", "getattr"), ("builtins", "dict"), ("collections", "Counter"),
           ("collections", "OrderedDict.fromkeys"), (KERAS_TOKENIZER[0], "os.system"), ("pathlib", "Path")]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), HOSTILE)
def test_a_pickle_with_other_names_is_refused_and_not_run(scorer_of, weights, tmp_path, module, name):
    call = calling(module, name, f"touch {tmp_path}/was-run")
    inside = pickled(Tokenizer(analyzer="PLACE")).replace(b"X\x05\x00\x00\x00PLACE", call)
    for bad in (b"\x80\x03" + call + b".", inside):
        with pytest.raises(SetupError) as caught:
            scorer_of({WEIGHTS: hdf5(weights), TOKENIZER: bad})(["p"], ["good"])
        told = f"its tokenizer is a pickle that names {module}.{name}; nothing of it is run"
        assert told in str(caught.value) and "it is fetched again" in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_such_a_pickle_would_run(tmp_path):
    """So that the test before proves something."""
    pickle.loads(b"\x80\x03" + calling("os", "system", f"touch {tmp_path}/was-run") + b".")
    assert (tmp_path / "was-run").exists()


def test_what_reads_a_tokenizer_has_no_code_of_it():
    made = toxic_comment._Plain(pickled(Tokenizer())).load()
    assert type(made).__module__ == "bench.scorers.toxic_comment" and not isinstance(made, Tokenizer)
    assert type(made.word_docs) is dict and type(made.word_counts) is dict
    assert made.word_docs == made.word_counts == dict(Tokenizer().word_docs)
    other = type(toxic_comment._Plain(pickled(Tokenizer())).load())
    assert type(made) is not other  # whatever a pickle does to the class, the next one is read with another


BROKEN_TOKENIZERS = {
    "a list": (pickle.dumps([1]), "__dict__"),
    "of characters": (pickled(Tokenizer(char_level=True)), "one that splits into words"),
    "with a function": (pickled(Tokenizer(analyzer="split")), "one that splits into words"),
    "cut": (pickled(Tokenizer())[:99], "truncated|ran out"),
    "nothing": (b"", "EOFError"),
    "without words": (pickled(Tokenizer(word_index={})), "ValueError"),
    "without its own unknown": (pickled(Tokenizer(oov_token="<unk>")), "<unk>"),
    "with too many": (pickled(Tokenizer(num_words=9)), "more words than the 8 of its network"),
    "no mapping": (pickled(Tokenizer(word_index=[1])), "AttributeError"),
}


@pytest.mark.parametrize("name", BROKEN_TOKENIZERS)
def test_a_broken_tokenizer(scorer_of, weights, name):
    content, told = BROKEN_TOKENIZERS[name]
    with pytest.raises(SetupError, match=rf"tiny-0-py3-none-any.whl cannot be read \(.*({told}).*; delete it, and"):
        scorer_of({WEIGHTS: hdf5(weights), TOKENIZER: content})(["p"], ["good"])


def without(name: str):
    return lambda weights: {key: values for key, values in weights.items() if not key.startswith(name)}


def shaped(name: str, *shape: int):
    return lambda weights: weights | {name: np.zeros(shape, np.float32)}


BROKEN_WEIGHTS = {
    "no embedding": without("embedding"),
    "one direction": without("bidirectional/backward_layer"),
    "no biases": without("bidirectional/forward_layer/cell/vars/2"),
    "no output": without("dense_1"),
    "another width": shaped("embedding/vars/0", KNOWN, WIDTH + 1),
    "unlike directions": shaped("bidirectional/backward_layer/cell/vars/1", STATES, STATES),
    "another dense": shaped("dense/vars/0", STATES, DENSE),
    "five labels": lambda weights: shaped("dense_1/vars/0", DENSE, 5)(shaped("dense_1/vars/1", 5)(weights)),
    "a number": shaped("embedding/vars/0"),
}


@pytest.mark.parametrize("name", BROKEN_WEIGHTS)
def test_weights_that_are_not_those_of_the_network(scorer_of, weights, name):
    members = {WEIGHTS: hdf5(BROKEN_WEIGHTS[name](weights)), TOKENIZER: pickled(Tokenizer())}
    with pytest.raises(
        SetupError, match=r"tiny-0-py3-none-any.whl cannot be read \(.*\); delete it, and it is fetched"
    ):
        scorer_of(members)(["p"], ["good"])


def test_a_damaged_wheel(scorer_of, weights):
    whole = {WEIGHTS: hdf5(weights), TOKENIZER: pickled(Tokenizer())}
    for bad in (b"no archive", {TOKENIZER: whole[TOKENIZER]}, {WEIGHTS: whole[WEIGHTS]},
                whole | {WEIGHTS: b""}, whole | {WEIGHTS: whole[WEIGHTS][:2000]}):  # fmt: skip
        with pytest.raises(SetupError, match=r"whl cannot be read \(.*; delete it, and it is fetched again"):
            scorer_of(bad)(["p"], ["good"])
        assert scorer_of(bad)(["p"], [" "]) == [0.0]  # nothing is read for it


def test_other_bytes_than_the_pinned_ones_are_not_read(scorer, tmp_path):
    (tmp_path / "cache" / "wheels" / "tiny-0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(SetupError, match="has other bytes than the pinned ones in .*, and runtime.offline is set"):
        scorer(["p"], ["good"])


# -- the published weights -----------------------------------------------------------------------------------------

PUBLISHED = {"toxic": 0.9889403, "severe_toxic": 0.0725677, "obscene": 0.6204293, "threat": 0.0193485,
             "insult": 0.8664075, "identity_hate": 0.0407295}  # fmt: skip
"""What the package's page prints for the text below, computed by Keras."""


@pytest.fixture
def published():
    toxic_comment.read.cache_clear()
    return ToxicComment(sources=Sources(cache=default_cache(), offline=True))


@pytest.mark.wheel
def test_the_published_weights_give_what_their_page_prints(published):
    text = "You are so dumb and stupid!"
    found = {label: replace(published, label=label)(["p"], [text])[0] for label in LABELS}
    assert found == pytest.approx(PUBLISHED, abs=1e-5)


@pytest.mark.wheel
def test_it_tells_insults_from_other_texts(published):
    toxic = ["You are stupid", "shut up, idiot", "What a dumb and pathetic idiot you are."]
    mild = ["I took a walk by the river.", "The meeting is on Tuesday at nine.", "What a lovely day!", "...", "xqzv"]
    scores = published([""] * 8, toxic + mild)
    assert min(scores[:3]) > 0.8 > 0.2 > max(scores[3:])
    assert len(set(scores[6:])) == 1  # the network sees padding alone
