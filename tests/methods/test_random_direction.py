import pytest
import torch

from methods.base import FitData, Pairs
from methods.directions import pooled_features
from methods.errors import SetupError
from methods.intervention import record
from methods.random_direction import RandomDirection
from methods.tokens import split
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

KEY = "layers.1.direction"


def fit(lm, pairs, **options):
    return RandomDirection(layer=1, **options).fit(lm.model, lm.tokenizer, FitData(pairs))


def test_length_is_the_mean_norm_over_continuation_tokens():
    lm = tiny_lm()
    pairs = Pairs(["The quick fox"] * 2, [" jumps over the dog"] * 2, [" is old"] * 2)
    norms = []
    for continuation in (pairs.desired[0], pairs.undesired[0]):
        (text,) = split(lm.tokenizer, pairs.prompt[:1], [continuation])
        with torch.inference_mode(), record(lm.model, [1]) as seen:
            lm.model(torch.tensor([text.tokens]))
        norms.append(float(seen[1][0, text.prompt :].norm(dim=-1).mean()))
    artefact = fit(lm, pairs)
    assert float(artefact[KEY].norm()) == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert float(artefact["info.residual_norm"]) == pytest.approx(sum(norms) / 2, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_sink_a_hundred_times_as_long_changes_nothing(architecture):
    found = {}
    for sink_norm in (1.0, 100.0):
        lm, pairs, _, _ = planted_sink(architecture, sink_norm=sink_norm)
        found[sink_norm] = float(fit(lm, pairs)["info.residual_norm"])
        texts = split(lm.tokenizer, pairs.prompt, pairs.desired)
    assert found[100.0] == pytest.approx(found[1.0], rel=1e-3)
    assert found[100.0] == pytest.approx(1.0, abs=0.1)  # the planted direction, and little else
    sunk = pooled_features(lm.model, texts, [1], read="all").norm(dim=-1).mean()
    assert sunk > 4 * found[100.0]  # what a mean with the sink would have said


def test_an_empty_prompt_without_bos_keeps_the_norm():
    lm = tiny_lm(bos="none")
    pairs = Pairs([""] * 2, ["The quick fox"] * 2, ["The lazy dog"] * 2)
    texts = split(lm.tokenizer, [""] * 2, [pairs.desired[0], pairs.undesired[0]])
    expected = []
    for text in texts:
        with torch.inference_mode(), record(lm.model, [1]) as seen:
            lm.model(torch.tensor([text.tokens]))
        expected.append(float(seen[1][0, 1:].norm(dim=-1).mean()))
    assert float(fit(lm, pairs)["info.residual_norm"]) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_direction_is_its_seeds_own_and_seeds_differ():
    lm, pairs, _, _ = planted_sink()
    torch.manual_seed(1)
    first = fit(lm, pairs, seed=0)[KEY]
    torch.manual_seed(2)
    assert torch.equal(fit(lm, pairs, seed=0)[KEY], first)
    fewer = Pairs(*(column[:3] for column in pairs))
    assert torch.cosine_similarity(fit(lm, fewer, seed=0)[KEY], first, dim=0) > 1 - 1e-6  # data give the length alone
    drawn = torch.stack([fit(lm, pairs, seed=seed)[KEY] for seed in range(40)])
    unit = drawn / drawn.norm(dim=-1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(40, dtype=torch.bool)]
    assert cosines.abs().max() < 0.75
    assert float((cosines**2).mean()) == pytest.approx(1 / unit.shape[1], rel=0.3)  # as for uniform directions


def test_strength_is_the_share_of_the_norm_that_is_added():
    lm, pairs, _, _ = planted_sink()
    method = RandomDirection(layer=1)
    artefact = method.fit(lm.model, lm.tokenizer, FitData(pairs))
    ids = torch.tensor([lm.encode("the old tree")])
    real = torch.ones_like(ids, dtype=torch.bool)
    length = torch.tensor([ids.shape[1]])
    with record(lm.model, [1]) as seen:
        lm.read(lm.start(length), ids, real)
        before = seen[1][0]
    with lm.steered(method, artefact, 0.4) as steered, record(lm.model, [1]) as seen:
        steered.read(steered.start(length), ids, real)
        after = seen[1][0]
    assert torch.equal(after[:-1], before[:-1])  # acts from the last prompt token on, as CAA does
    moved = (after[-1] - before[-1]).norm()
    assert float(moved) == pytest.approx(0.4 * float(artefact["info.residual_norm"]), rel=1e-3)


def test_errors():
    lm = tiny_lm()
    with pytest.raises(SetupError, match="layer 9 out of range"):
        RandomDirection(layer=9).check(lm.model)
    with pytest.raises(SetupError, match="random_direction learns from contrast pairs"):
        RandomDirection().fit(lm.model, lm.tokenizer, FitData())


def test_artefact_of_another_model():
    method, artefact = RandomDirection(), {"layers.1.direction": torch.zeros(7)}
    with pytest.raises(SetupError, match="not fitted on this model"):
        method.apply(tiny_lm("gpt2").model, artefact, 1.0).__enter__()
    with pytest.raises(SetupError, match="not fitted on this model at this layer"):
        method.apply(tiny_lm("gpt2").model, {}, 1.0).__enter__()


def test_it_is_added_behind_its_own_block_and_no_earlier():
    """Not in a planted model, whose blocks all have the same output."""
    lm = tiny_lm()
    artefact = fit(lm, Pairs(["The quick fox"] * 2, [" jumps over the dog"] * 2, [" is old"] * 2))
    ids = torch.tensor([lm.encode("the old tree")])

    def streams(read):
        with record(lm.model, [0, 1]) as seen:
            read.read(read.start(torch.tensor([ids.shape[1]])), ids, torch.ones_like(ids, dtype=torch.bool))
        return [seen[layer][0, -1] for layer in (0, 1)]

    before = streams(lm)
    with lm.steered(RandomDirection(layer=1), artefact, 0.4) as steered:
        after = streams(steered)
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1] - before[1], 0.4 * artefact[KEY], rtol=1e-4, atol=1e-5)
