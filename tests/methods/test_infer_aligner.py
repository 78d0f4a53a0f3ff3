from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.export.effect import measure
from bench.model.lm import LM
from bench.model.sampling import prefill, sample
from methods import layout
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.infer_aligner import InferAligner
from methods.intervention import Hook, adding, hooked
from tests.sinks import planted_sink
from tests.tiny import tiny_lm, tiny_model
from tests.vectors import PAIRS, before_and_after, ids_of, mean_length_by_hand, output_by_hand, text_logits

LAYER = 1
KEY = f"layers.{LAYER}.direction"
ONE = {"first_layer": LAYER, "last_layer": LAYER}


def fit(method: InferAligner, lm: LM, pairs: Pairs = PAIRS) -> dict[str, Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def always(artefact: dict[str, Tensor], bias: float = -1e9) -> dict[str, Tensor]:
    """The artefact with gates that are open whatever comes, or closed."""
    return {key: torch.tensor(bias) if key.endswith(".bias") else one for key, one in artefact.items()}


def by_hand(lm: LM, layer: int = LAYER) -> tuple[Tensor, Tensor]:
    """(D,) mean of the output at the last token of the desired texts, and of the undesired."""
    ends = [
        [output_by_hand(lm, sum(ids_of(lm, prompt, text), []), layer)[-1] for text in texts]
        for prompt, *texts in zip(*PAIRS, strict=True)
    ]
    desired, undesired = zip(*ends, strict=True)
    return torch.stack(desired).mean(0), torch.stack(undesired).mean(0)


@pytest.mark.parametrize("aim", ["desired", "harm"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_detector_bias_and_vector_are_those_of_the_formula(architecture, aim):
    lm = tiny_lm(architecture)
    desired, undesired = by_hand(lm)
    unit = (undesired - desired) / (undesired - desired).norm()
    norm = mean_length_by_hand(lm, PAIRS.prompt, PAIRS.desired, LAYER)
    artefact = fit(InferAligner(**ONE, aim=aim), lm)
    torch.testing.assert_close(artefact[f"layers.{LAYER}.detector"].double(), unit, atol=1e-3, rtol=1e-3)
    bias = float((desired + undesired) @ unit / 2)
    assert float(artefact[f"layers.{LAYER}.bias"]) == pytest.approx(bias, rel=1e-3, abs=1e-3)
    towards = unit if aim == "harm" else -unit
    torch.testing.assert_close(artefact[KEY].double(), norm * towards, atol=1e-3 * norm, rtol=1e-3)
    shares = []
    for prompt, texts, side in [(PAIRS.prompt, PAIRS.desired, False), (PAIRS.prompt, PAIRS.undesired, True)]:
        for one, text in zip(prompt, texts, strict=True):
            end = output_by_hand(lm, sum(ids_of(lm, one, text), []), LAYER)[-1]
            shares.append((float(end @ unit) > bias) is side)
    assert float(artefact["info.right"][0]) == pytest.approx(sum(shares) / len(shares))
    ends = [output_by_hand(lm, lm.encode(prompt), LAYER)[-1] for prompt in PAIRS.prompt]
    share = sum(float(end @ unit) > bias for end in ends) / len(ends)
    assert float(artefact["info.open"][0]) == pytest.approx(share)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_harm_opens_the_gate_and_is_steered_away_from(architecture):
    lm, pairs, direction, _ = planted_sink(architecture)
    method = InferAligner(**ONE)
    artefact = fit(method, lm, pairs)
    assert torch.cosine_similarity(artefact[KEY], direction, dim=0) > 0.99
    assert torch.cosine_similarity(artefact[f"layers.{LAYER}.detector"], direction, dim=0) < -0.99
    assert artefact["info.right"][0] == 1
    for end, is_open in (("12340", False), ("98765", True)):
        before, after, prompt = before_and_after(lm, method, artefact, 0.5, LAYER, f"the old tree {end}")
        moved = (before != after).any(-1)
        assert moved.tolist() == [False] * (prompt - 1) + [is_open] * (len(moved) - prompt + 1), end
        if is_open:
            added = (after - before)[moved]
            torch.testing.assert_close(added, 0.5 * artefact[KEY].expand_as(added), atol=1e-4, rtol=1e-4)


def test_open_gates_are_plain_addition_and_closed_ones_nothing():
    lm, method = tiny_lm(), InferAligner(first_layer=1, last_layer=3)
    artefact = fit(method, lm)
    prompts = PAIRS.prompt
    base, unsteered = sample(lm, prompts, 2, 8), text_logits(lm)
    with lm.steered(method, always(artefact, 1e9), 0.5) as steered:
        assert sample(steered, prompts, 2, 8) == base
        assert torch.equal(text_logits(steered), unsteered)
    blocks = layout.blocks(lm.model)
    plain = [
        Hook(blocks[i], "output", adding(0.5 * artefact[f"layers.{i}.direction"], "generation", boundary=True))
        for i in (1, 2, 3)
    ]
    with hooked(plain):
        wanted, logits = sample(lm, prompts, 2, 8), text_logits(lm)
    with lm.steered(method, always(artefact), 0.5) as steered:
        assert sample(steered, prompts, 2, 8) == wanted != base
        assert torch.equal(text_logits(steered), logits)


def test_each_block_is_judged_by_itself():
    """A label that one block can read: the gates of the others stay as they are."""
    lm, method = tiny_lm(), InferAligner(first_layer=1, last_layer=3)
    artefact = always(fit(method, lm), 1e9) | {"layers.2.bias": torch.tensor(-1e9)}
    for layer in (1, 2, 3):
        before, after, prompt = before_and_after(lm, method, artefact, 0.5, layer)
        moved = (before != after).any(-1).tolist()
        assert moved == [False] * (prompt - 1) + [layer == 2] * (len(moved) - prompt + 1)


def test_a_rows_gate_is_its_own():
    """Whatever stands beside it, on whichever side the padding is."""
    lm, method = tiny_lm(), InferAligner(first_layer=1, last_layer=3)
    artefact = fit(method, lm)
    ids = [lm.encode(text) for text in (*PAIRS.prompt, "The old tree near the river and the road")]
    with lm.steered(method, artefact, 0.5) as steered:
        together = prefill(steered, ids)[1]
        for row, one in enumerate(ids):
            torch.testing.assert_close(together[row], prefill(steered, [one])[1][0], atol=1e-4, rtol=1e-4)


def test_without_boundary_the_unsteered_model_is_judged():
    lm = tiny_lm()
    method = InferAligner(first_layer=1, last_layer=3, boundary=False)
    artefact = fit(method, lm)
    pushed = always(artefact) | {key: one for key, one in artefact.items() if key == "layers.3.bias"}
    ends = [output_by_hand(lm, lm.encode(prompt), 3)[-1] for prompt in PAIRS.prompt]
    detector, bias = artefact["layers.3.detector"].double(), float(artefact["layers.3.bias"])
    expected = [float(end @ detector) > bias for end in ends]
    assert 0 < sum(expected) < len(expected)
    found = {}
    for boundary in (False, True):
        found[boundary] = []
        for prompt in PAIRS.prompt:
            judged = replace(method, boundary=boundary)
            before, after, size = before_and_after(lm, judged, pushed, 2, 3, prompt)
            assert torch.equal(before[: size - 1], after[: size - 1])
            assert boundary or torch.equal(before[size - 1], after[size - 1])
            found[boundary].append(not torch.equal(before[size:], after[size:]))
    assert found[False] == expected
    assert found[True] != expected, "blocks 1 and 2 have moved the token that block 3 judges"


def test_the_vector_of_an_aligned_model_and_the_models_own_gate(tmp_path):
    lm, other = tiny_lm(), tiny_lm(seed=7)
    other.model.save_pretrained(tmp_path)
    own, theirs = fit(InferAligner(**ONE), lm), fit(InferAligner(**ONE, aligned=str(tmp_path), aim="harm"), lm)
    for key in ("detector", "bias"):
        assert torch.equal(own[f"layers.{LAYER}.{key}"], theirs[f"layers.{LAYER}.{key}"])
    desired, undesired = by_hand(other)
    unit = (undesired - desired) / (undesired - desired).norm()
    norm = mean_length_by_hand(lm, PAIRS.prompt, PAIRS.desired, LAYER)
    torch.testing.assert_close(theirs[KEY].double(), norm * unit, atol=1e-3 * norm, rtol=1e-3)
    same = fit(InferAligner(**ONE, aligned=str(tmp_path), aim="harm"), other)
    torch.testing.assert_close(same[KEY] / same[KEY].norm(), same[f"layers.{LAYER}.detector"])


def test_open_at_moves_the_threshold_between_the_means():
    lm = tiny_lm()
    desired, undesired = by_hand(lm)
    unit = (undesired - desired) / (undesired - desired).norm()
    for place, mean in ((0, desired), (1, undesired), (3, desired + 3 * (undesired - desired))):
        found = fit(InferAligner(**ONE, open_at=place), lm)
        assert float(found[f"layers.{LAYER}.bias"]) == pytest.approx(float(mean @ unit), rel=1e-3, abs=1e-3)
    assert fit(InferAligner(**ONE, open_at=-99), lm)["info.open"] == 1
    assert fit(InferAligner(**ONE, open_at=99), lm)["info.open"] == 0


def test_an_aligned_model_that_does_not_fit(tmp_path):
    lm = tiny_lm()
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    small = tiny_model()
    small.resize_token_embeddings(40)
    small.save_pretrained(tmp_path / "small")
    large = tiny_model()
    large.resize_token_embeddings(301)
    large.save_pretrained(tmp_path / "large")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("gpt2", "has width 28 and 3 blocks, the model has width 36 and 5 blocks; give an aligned model of"),
        ("small", "has embeddings of 40 tokens, and the model has 300, .*; give an aligned model with the same tok"),
        ("large", "has embeddings of 301 tokens, and the model has 300, .*; give an aligned model with the same tok"),
        ("empty", "cannot be loaded: .*; give the folder of a model"),
    ):
        with pytest.raises(SetupError, match=message):
            fit(InferAligner(aligned=str(tmp_path / name)), lm)


@pytest.mark.parametrize("kind", ["folder", "id", "name"])
def test_an_aligned_model_that_is_not_there(tmp_path, kind, monkeypatch):
    """Told in our words: what was given, and what is expected."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    name = {"folder": str(tmp_path / "gone"), "id": "nobody-here/gone", "name": "gone"}[kind]
    with pytest.raises(SetupError) as error:
        fit(InferAligner(**ONE, aligned=name), tiny_lm())
    said = str(error.value)
    assert said.startswith(f"method.aligned={name}: this machine has no folder and no downloaded model of this name")
    assert "expected the folder of a model, or a hub id ORG/NAME" in said
    assert not any(jargon in said for jargon in ("huggingface.co", "Repo id", "repo_type"))


def test_strength_zero_and_an_exception_leave_every_bit():
    lm, method = tiny_lm(), InferAligner()
    artefact, base = always(fit(method, lm)), text_logits(lm)
    bytes_before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(text_logits(lm), base)
    with pytest.raises(KeyError), method.apply(lm.model, artefact, 0.5):
        assert not torch.equal(text_logits(lm), base)
        raise KeyError
    assert torch.equal(text_logits(lm), base)
    assert all(torch.equal(one, bytes_before[name]) for name, one in lm.model.state_dict().items())


def test_no_file_can_hold_a_gate():
    lm, method = tiny_lm(), InferAligner(**ONE)
    assert measure(lm, method, always(fit(method, lm)), 0.2).beyond
    assert method.residual_norms({}) == 1


def test_wrong_settings_and_pairs_that_end_alike():
    lm = tiny_lm()
    for options, message in (
        ({"aim": "good"}, "allowed are desired, harm"),
        ({"open_at": float("inf")}, "method.open_at=inf: expected a number"),
        ({"aligned_revision": "main"}, "method.aligned_revision=main without method.aligned"),
        ({"last_layer": 5}, "layer 5 out of range"),
    ):
        with pytest.raises(SetupError, match=message):
            InferAligner(**options).check(lm.model)
    with pytest.raises(SetupError, match="infer_aligner learns from contrast pairs and got 1; give at least 2"):
        fit(InferAligner(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="have the same mean at block 1 of the model"):
        fit(InferAligner(**ONE), lm, Pairs(PAIRS.prompt, PAIRS.desired, PAIRS.desired))


def test_an_artefact_of_another_model_or_of_other_layers():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(InferAligner(**ONE), lm)
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with InferAligner(**ONE).apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.2\.direction was not fitted on this model at this layer"):
        with InferAligner(first_layer=1, last_layer=2).apply(lm.model, artefact, 1):
            pass


def test_gates_that_are_always_open_or_never():
    lm, told = tiny_lm(), {-1e30: "info.always_open", 0.5: None, 1e30: "info.never_opens"}
    for open_at, key in told.items():
        found = InferAligner(open_at=open_at).fit(lm.model, lm.tokenizer, FitData(PAIRS))
        assert {one for one in found if one in told.values()} == {key} - {None}
