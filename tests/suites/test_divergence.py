import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from bench.__main__ import main
from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.data.text_sets import WIKI, wiki_sentences
from bench.fit_data.background import WikiSentences
from bench.fit_data.fine_tuning import Mixture
from bench.model.decoding import Sampling
from bench.suites.base import SuiteError, measure
from bench.suites.divergence import Divergence, Logits, divergence
from methods import layout
from methods.base import Steering
from methods.errors import SetupError
from methods.intervention import Hook, adding, edited, hooked
from tests.data.test_sources import make_mirror
from tests.run.test_smoke import arguments, world, write_set  # noqa: F401  world is a fixture
from tests.tiny import tiny_lm

WORDS = "fox dog bird tree river water bread road home work weather love".split()
SENTENCES = [f"The old {a} and a {b} {'sing along the river ' * (i % 3)}." for i, a in enumerate(WORDS) for b in WORDS]


@pytest.fixture
def sources(tmp_path):
    rows = [{"text": text} for text in ["Bread", *SENTENCES, SENTENCES[0]]]
    return Sources(mirror=str(make_mirror(tmp_path / "mirror", WIKI, rows, split="test")), cache=tmp_path / "cache")


def suite(sources, **options) -> Divergence:
    return Divergence(sources=sources, **{"texts": 7, "dev_texts": 3, "skip": 20} | options)


@dataclass(frozen=True)
class Moved:
    """Adds to what is generated, says something first, changes weights or logits."""

    name: ClassVar[str] = "moved"
    prefix: str = ""
    add: bool = False
    scale: bool = False
    next_logits: Callable | None = None

    @contextmanager
    def apply(self, model, artefact, strength):
        vector = strength * torch.linspace(-1, 1, layout.width(model))
        hooks = [Hook(layout.blocks(model)[1], "output", adding(vector, "generation"))] if self.add else []
        weight = model.get_output_embeddings().weight
        with hooked(hooks), edited({weight: (1 + strength) * weight} if self.scale else {}):
            yield Steering(prefix=self.prefix, next_logits=self.next_logits)


def steered(one, lm, method, strength=1.0):
    with lm.steered(method, {}, strength) as moved:
        answers = one.ask(moved, "test")
    return one.score(answers, lm)


@torch.inference_mode()
def logits_of(lm, ids):
    return lm.model(torch.tensor([ids])).logits[0].double()


def kl_of(p, q) -> list[float]:
    """By torch's own function, a row at a time."""
    rows = zip(p.log_softmax(-1), q.log_softmax(-1), strict=True)
    return [float(functional.kl_div(b, a, reduction="sum", log_target=True)) for a, b in rows]


def check(found, expected: list[list[float]]):
    """expected: a row for each text, in the suite's order: of its tokens, and of the one after them."""
    of_tokens = [row[:-1] for row in expected]
    assert len({len(row) for row in of_tokens}) > 1, "texts of one length would need no padding"
    tokens = [value for row in of_tokens for value in row]
    assert found.metrics["mean_kl"].value == pytest.approx(np.mean(tokens), rel=1e-4)
    assert found.metrics["kl_95"].value == pytest.approx(np.mean([np.quantile(r, 0.95) for r in of_tokens]), rel=1e-4)
    assert found.metrics["last_token_kl"].value == pytest.approx(np.mean([row[-1] for row in expected]), rel=1e-4)
    items = found.items[found.items["metric"] == "mean_kl"]
    assert items["value"].tolist() == pytest.approx([np.mean(row) for row in of_tokens], rel=1e-4)
    assert items["weight"].tolist() == [len(row) for row in of_tokens]
    assert found.metrics["mean_kl"].value > 0.01


def test_divergence_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]]).log() + 7  # logits are known but for a constant
    assert divergence(p, q).tolist() == pytest.approx([0.25 * math.log(2), 0], abs=1e-7)
    other = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert divergence(p[:1], other).tolist() != pytest.approx(divergence(other, p[:1]).tolist(), rel=0.01)
    assert divergence(p, p).tolist() == [0, 0]
    forbidden = torch.tensor([[0.0, -math.inf, 0.0]])
    assert divergence(p[:1], forbidden).tolist() == [math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_come_back_bit_by_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    held, kept = [torch.randn(t, 11, generator=generator).to(dtype) for t in (5, 2, 9)], Logits()
    for number in (2, 0, 1):
        kept.add(number, held[number])
    assert all(torch.equal(kept.read(number), one) for number, one in enumerate(held))
    assert kept.read(1).dtype == dtype


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_unsteered_model_and_strength_0_are_exactly_0(sources, architecture):
    lm = tiny_lm(architecture)
    plain = measure(suite(sources), lm)
    still = steered(suite(sources), lm, Moved(prefix="We talk. ", add=True), 0.0)
    for found in (plain, still):
        assert (found.items["value"] == 0).all() and {one.value for one in found.metrics.values()} == {0.0}
    assert {one.n for one in plain.metrics.values()} == {7} and len(plain.items) == 21
    assert not any(one.higher_is_better for one in plain.metrics.values())
    assert next(iter(plain.metrics)) == "mean_kl"  # the one that the leaderboard tests
    assert "text" not in plain.scores.columns


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_steering_acts_on_the_sentence_not_on_its_prefix(sources, batch_size):
    lm = replace(tiny_lm(bos="none"), sampling=Sampling(batch_size=batch_size))
    vector = torch.linspace(-1, 1, layout.width(lm.model))

    def add(hidden):
        moved = hidden + vector
        moved[:, 0] = hidden[:, 0]  # the prompt
        return moved

    expected = []
    for text in suite(sources).asked("test")[0]:
        ids = [lm.end_of_text, *lm.tokenizer(text.text).input_ids]
        p = logits_of(lm, ids)
        with hooked([Hook(layout.blocks(lm.model)[1], "output", add)]):
            expected.append(kl_of(p, logits_of(lm, ids)))
    assert all(row[0] == 0 for row in expected)  # predicted from the prompt
    check(steered(suite(sources), lm, Moved(add=True)), expected)


def test_weights_and_a_prefix(sources):
    """The same tokens of the sentence are compared, wherever they stand."""
    lm = tiny_lm()
    prefix = lm.tokenizer("We talk. ", add_special_tokens=False).input_ids
    texts = [lm.tokenizer(one.text, add_special_tokens=False).input_ids for one in suite(sources).asked("test")[0]]
    expected = []
    for ids in texts:
        p, q = logits_of(lm, [lm.end_of_text, *ids]), logits_of(lm, [lm.end_of_text, *prefix, *ids])
        expected.append(kl_of(p, 1.5 * q[len(prefix) :]))
    check(steered(suite(sources), lm, Moved(prefix="We talk. ", scale=True), 0.5), expected)


def test_decoding_time_steering_counts(sources):
    lm = tiny_lm()
    texts = [lm.tokenizer(one.text, add_special_tokens=False).input_ids for one in suite(sources).asked("test")[0]]
    read = [logits_of(lm, [lm.end_of_text, *ids]) for ids in texts]
    check(steered(suite(sources), lm, Moved(next_logits=lambda step: step.logits / 3)), [kl_of(p, p / 3) for p in read])


def test_a_forbidden_token_is_infinitely_far(sources):
    def forbid(step):
        return step.logits.index_fill(-1, torch.tensor([5]), -math.inf)

    with pytest.raises(SuiteError, match="NaN or infinite in 7 of 7 texts"):
        steered(suite(sources), tiny_lm(), Moved(next_logits=forbid))


def test_a_sentence_is_cut_and_a_prefix_has_to_fit(sources):
    lm = tiny_lm()
    found = measure(suite(sources, max_tokens=4), lm)
    assert found.scores["tokens"].tolist() == [4] * 7 and found.info["tokens"] == 28
    with pytest.raises(SetupError, match=r"the model reads 256; set suite.kl.max_tokens=\d+ for all methods"):
        steered(suite(sources), lm, Moved(prefix="We talk. " * 60))


def test_no_sentence_is_in_two_places(sources):
    whole = wiki_sentences(sources)[1]
    assert whole == SENTENCES  # without the short one and the double
    one = suite(sources)
    test, dev = ({prompt.text for prompt in one.asked(split)[0]} for split in ("test", "dev"))
    learnt, _ = WikiSentences(sources=sources, count=20).load(None)
    assert (len(test), len(dev), len(learnt)) == (7, 3, 20)
    assert not test & dev and not (test | dev) & set(learnt)
    more = {prompt.text for prompt in suite(sources, texts=9).asked("test")[0]}
    assert test < more
    assert one.identity("test") != one.identity("dev")
    assert one.identity("test") == suite(sources, dev_texts=2).identity("test")
    with pytest.raises(SetupError, match=r"suite.kl.texts=125: there are 124"):
        suite(sources, texts=125).asked("test")
    with pytest.raises(SetupError, match="the dev split needs 3 others"):
        suite(sources, texts=122).asked("dev")


def test_a_method_that_learns_from_the_sentences_is_refused(sources):
    one = suite(sources)
    few, many = (WikiSentences(sources=sources, count=count) for count in (20, 21))
    assert one.leak(few.learnt()) is None and one.leak(Learnt(rtp=True)) is None
    assert "set suite.kl.skip=21, or background.count=20" in one.leak(many.learnt())
    assert Mixture(parts={"a": few, "b": many}).learnt().wiki == 21


@pytest.mark.parametrize("option", ["texts", "dev_texts", "max_tokens"])
def test_options_that_hold_nothing(sources, option):
    with pytest.raises(SetupError, match=f"suite.kl.{option}=0: expected at least 1"):
        suite(sources, **{option: 0})


@pytest.mark.slow
def test_it_bounds_a_tuned_strength(world, tmp_path, capsys, monkeypatch):  # noqa: F811  a fixture
    """The strongest strength whose divergence on the dev split is within the bound is chosen, and the bound decides."""
    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])
    write_set(world / "mirror" / WIKI, [{"text": text} for text in SENTENCES], "test")
    own = ["method=caa", "suite.kl.texts=6", "suite.kl.dev_texts=4", "suite.kl.skip=0"]
    free = [f"tuning.constraints.{name}=null" for name in ("perplexity_ratio", "distinct_2_ratio")]
    free += [f"tuning.constraints.{name}=null" for name in ("repetition_increase", "empty_share_increase")]
    aim = ["tuning.objective={suite:kl,metric:last_token_kl,direction:maximize,gain:difference}", "tuning.scorer=null"]

    def tuned(folder, bound):
        more = [*own, *free, *aim, "suite=[kl]", f"tuning.constraints.kl_increase.at_most={bound}"]
        assert main(arguments(world, tmp_path / folder, *more)) == 0
        records = [json.loads(path.read_text()) for path in (tmp_path / folder / "runs/records").glob("*/record.json")]
        (found,) = (one["tuning"] for one in records if one["split"] == "test" and one["tuning"])
        return found, records

    found, records = tuned("loose", 1e6)
    assert found["constraints"] == {"kl_increase": 1e6} and found["baseline"]["mean_kl"] == 0
    divergences = {one["strength"]: one["mean_kl"] for one in found["trials"]}
    assert all(value > 0 for value in divergences.values()) and found["feasible"]
    (test,) = (one for one in records if one["split"] == "test" and one["method"]["name"] == "caa")
    assert test["metrics"]["mean_kl"]["value"] > 0 and test["suite"] == "kl"

    bound = sorted(divergences.values())[1]
    found, _ = tuned("bound", f"{bound * (1 + 1e-9):.17g}")
    kept = [one for one in found["trials"] if one["feasible"]]
    assert len(kept) == 2 and found["feasible"]
    best = max(found["trials"], key=lambda one: one["gain"])
    assert found["chosen"] == max(kept, key=lambda one: one["gain"])["strength"] != best["strength"]

    table = pd.read_csv(tmp_path / "bound/leaderboard.csv")
    assert set(table["method"]) == {"caa"} and (table["kl.mean_kl"] > 0).all()
    capsys.readouterr()
    assert main(arguments(world, tmp_path / "no", "method=caa", "tuning.constraints.kl_increase.at_most=0.1")) == 2
    assert "chosen by the suites rtp and fluency and kl; add them" in capsys.readouterr().err
