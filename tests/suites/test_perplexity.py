import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.nn import functional

from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.data.text_sets import wiki_sentences
from bench.suites.base import measure
from bench.suites.perplexity import PAGES, SENTENCES, Perplexity, _exp, rows_of
from methods import layout
from methods.base import Steering
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked
from tests.data.test_sources import MIRROR, make_mirror
from tests.tiny import tiny_lm

LINES = ["", " = Birds = ", " ", " The bird sings @-@ in the old tree . ", " People walk , and talk . ", ""]
TEXTS = ["The quick brown fox jumps over the dog.", "Bread and water.", "A bird sings in the old tree near the river."]


@pytest.fixture
def sources(tmp_path):
    pages = [{"page": "\n".join([*LINES, f" page {i} of the long road home . ", " "])} for i in range(9)]
    root = make_mirror(tmp_path / "mirror", PAGES[0], pages, config=PAGES[1], split="test")
    make_mirror(root, SENTENCES[0], [{"text": text} for text in TEXTS], split="test")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def ids_of(lm, sources, empty):
    pages = [row["page"] for row in sources.load(*PAGES)]
    return lm.tokenizer(rows_of(pages, empty=empty)).input_ids


@torch.inference_mode()
def token_losses(lm, ids):
    """-log p of each token but the first."""
    logits = lm.model(torch.tensor([ids])).logits[0]
    return functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


def value(suite, lm, split="test"):
    found = measure(suite, lm, split).metrics
    assert list(found) == ["perplexity" if suite.limit is None else f"perplexity_n{suite.limit}"]
    return next(iter(found.values())).value


def test_rows_are_those_of_the_data_set():
    assert rows_of(["\n".join(LINES)], empty=True) == (
        "\n\n = Birds = \n\n\n\n\n The bird sings @-@ in the old tree . \n\n\n People walk , and talk . \n\n\n"
    )
    assert rows_of(["\n".join(LINES), " x"], empty=False) == (
        " = Birds = \n\n\n The bird sings @-@ in the old tree . \n\n\n People walk , and talk . \n\n\n x\n"
    )


@pytest.mark.parametrize("bos", ["none", "prepend"])
def test_surgery_weighs_a_windows_mean_loss_by_its_length(sources, bos):
    lm = tiny_lm(bos=bos)
    ids, total = ids_of(lm, sources, True), 0.0
    assert len(ids) % 50 > 1
    for begin in range(0, len(ids), 50):
        window = ids[begin : begin + 50]
        total += float(token_losses(lm, window).mean()) * len(window)
    suite = Perplexity(sources=sources, protocol="surgery", window=50)
    assert value(suite, lm) == pytest.approx(math.exp(total / len(ids)), rel=1e-4)


def test_profs_takes_the_mean_of_the_windows_means(sources, monkeypatch):
    monkeypatch.setattr("bench.suites.perplexity.STRIDE", 30)
    lm = tiny_lm(bos="none")
    ids, losses, before = ids_of(lm, sources, False), [], 0
    for begin in range(0, len(ids), 30):
        end = min(begin + 70, len(ids))
        new = token_losses(lm, ids[begin:end])[-(end - before) :]  # of the first window one token has no loss
        losses.append(float(new.mean()))
        before = end
        if end == len(ids):
            break
    assert len(losses) > 5
    suite = Perplexity(sources=sources, protocol="profs", window=70)
    assert value(suite, lm) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_sentences_one_by_one(sources):
    lm = tiny_lm(bos="none")
    total = count = 0
    for text in TEXTS:
        losses = token_losses(lm, [lm.end_of_text, *lm.tokenizer(text).input_ids])
        total, count = total + float(losses.sum()), count + len(losses)
    found = measure(Perplexity(sources=sources, protocol="sentences"), lm, "test")
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found.metrics["perplexity"].n == 3 and not found.metrics["perplexity"].higher_is_better
    assert not {"text", "page"} & set(found.scores.columns)


def test_act_takes_the_mean_of_the_perplexities(sources):
    lm = tiny_lm(bos="none")
    each = [token_losses(lm, [lm.end_of_text, *lm.tokenizer(text).input_ids[:7]]).mean().exp() for text in TEXTS]
    found = measure(Perplexity(sources=sources, protocol="act", window=8), lm, "test").metrics["mean_perplexity"]
    assert found.value == pytest.approx(float(sum(each)) / len(each), rel=1e-4) and not found.higher_is_better
    assert any(len(lm.tokenizer(text).input_ids) > 7 for text in TEXTS)


def test_a_perplexity_beyond_a_float_is_an_error():
    assert _exp(2.0) == pytest.approx(math.e**2)
    with pytest.raises(ValueError, match="larger than a float can be"):
        _exp(800.0)


def test_sentences_that_were_learnt_from_are_not_asked(sources):
    suite = Perplexity(sources=sources, protocol="sentences")
    learnt = wiki_sentences(sources)[1][:1]
    assert "set suite.perplexity.skip=1" in suite.leak(Learnt(wiki=1)) and suite.leak(Learnt()) is None
    fewer = replace(suite, skip=1)
    assert fewer.leak(Learnt(wiki=1)) is None and fewer.identity("test") == suite.identity("test") | {"skip": 1}
    lm = tiny_lm(bos="none")
    read = [lm.tokenizer.decode(window.continuation) for window in fewer._cut(lm)]
    assert len(read) == 2 and not set(learnt) & set(read)
    with pytest.raises(SetupError, match="skip=1: expected"):
        Perplexity(sources=sources, protocol="surgery", skip=1)


def test_lm_evals_task_as_lm_eval_counts(sources):
    """Of each page detokenised by lm-eval; words and bytes are those of the page as it is in the source."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    lm = tiny_lm(bos="none")
    found = measure(Perplexity(sources=sources, protocol="lm_eval"), lm, "test").metrics
    pages = [row["page"] for row in sources.load(*PAGES)]
    plain = [wikitext_detokenizer({"page": page}) for page in pages]
    assert plain[0] != pages[0] and "-" in plain[0] and "@-@" not in plain[0]
    loss = sum(float(token_losses(lm, [lm.end_of_text, *lm.tokenizer(page).input_ids]).sum()) for page in plain)
    words, size = sum(len(re.split(r"\s+", page)) for page in pages), sum(len(page.encode()) for page in pages)
    expected = {
        "word_perplexity": math.exp(loss / words),
        "byte_perplexity": math.exp(loss / size),
        "bits_per_byte": loss / size / math.log(2),
    }
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected, rel=1e-4)
    assert {one.n for one in found.values()} == {9}


@dataclass(frozen=True)
class Push:
    """Adds to what is generated, and says something first."""

    name: ClassVar[str] = "push"
    prefix: str = ""
    scope: str = "generation"

    @contextmanager
    def apply(self, model, artefact, strength):
        vector = strength * torch.ones(layout.width(model))
        with hooked([Hook(layout.blocks(model)[1], "output", adding(vector, self.scope))]):
            yield Steering(prefix=self.prefix)


def test_steering_acts_on_all_but_the_first_token_of_a_window(sources):
    lm = tiny_lm(bos="none")
    suite = Perplexity(sources=sources, protocol="surgery", window=50)
    ids = ids_of(lm, sources, True)
    seen = []

    def add(hidden):
        moved = hidden + 2.0
        moved[:, 0] = hidden[:, 0]  # the first token is the prompt
        return moved

    with hooked([Hook(layout.blocks(lm.model)[1], "output", add)]):
        for begin in range(0, len(ids), 50):
            window = ids[begin : begin + 50]
            seen.append((float(token_losses(lm, window).mean()), len(window)))
    expected = math.exp(sum(loss * size for loss, size in seen) / len(ids))
    with lm.steered(Push(), {}, 2.0) as steered:
        assert value(suite, steered) == pytest.approx(expected, rel=1e-4)
    assert abs(value(suite, lm) / expected - 1) > 0.01


def test_a_prefix_stands_before_every_window(sources):
    lm = tiny_lm(bos="none")
    prefix = lm.tokenizer("We talk. ").input_ids
    ids, total = ids_of(lm, sources, True), 0.0
    for begin in range(0, len(ids), 50):
        window = ids[begin : begin + 50]
        total += float(token_losses(lm, [*prefix, *window])[len(prefix) :].mean()) * len(window)
    with lm.steered(Push(prefix="We talk. "), {}, 1e-9) as steered:
        suite = Perplexity(sources=sources, protocol="surgery", window=50)
        assert value(suite, steered) == pytest.approx(math.exp(total / len(ids)), rel=1e-4)
        with pytest.raises(SetupError, match=r"has 26\d tokens, the model reads 256; set suite.perplexity.window=2"):
            measure(Perplexity(sources=sources, protocol="surgery"), steered, "test")


def test_a_limit_is_named_and_dev_reads_what_follows(sources):
    lm = tiny_lm(bos="none")
    few = Perplexity(sources=sources, protocol="surgery", window=50, limit=2, dev_limit=3)
    whole = measure(Perplexity(sources=sources, protocol="surgery", window=50), lm, "test").items
    test, dev = (measure(few, lm, split).items for split in ("test", "dev"))
    assert test["value"].tolist() == pytest.approx(whole["value"].tolist()[:2], rel=1e-6)
    assert dev["value"].tolist() == pytest.approx(whole["value"].tolist()[2:5], rel=1e-6)
    assert test["item"].tolist() == whole["item"].tolist()[:2]
    assert measure(few, lm, "test").metrics["perplexity_n2"].n == 2
    with pytest.raises(SetupError, match="limit=null: the test split takes all"):
        measure(Perplexity(sources=sources, protocol="surgery", window=50), lm, "dev")
    with pytest.raises(SetupError, match="protocol='other': allowed are surgery, profs, lm_eval, sentences, act"):
        Perplexity(sources=sources, protocol="other")
    with pytest.raises(SetupError, match="window=1: a window needs at least 2 tokens"):
        Perplexity(sources=sources, protocol="profs", window=1)


@pytest.mark.parametrize(
    ("protocol", "message"), [("surgery", "has no column page; it has text"), ("lm_eval", "the columns are text")]
)
def test_a_copy_without_pages(tmp_path, protocol, message):
    root = make_mirror(tmp_path / "mirror", PAGES[0], [{"text": "a"}], config=PAGES[1], split="test")
    own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    with pytest.raises(SetupError, match=message):
        measure(Perplexity(sources=own, protocol=protocol), tiny_lm(), "test")


@pytest.mark.mirror
def test_the_mirror_has_wikitexts_test_split():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    text = rows_of([row["page"] for row in Sources(mirror=str(MIRROR), offline=True).load(*PAGES)], empty=False)
    assert 1_240_000 < len(text) < 1_310_000 and text.count(" = \n") > 500
