import hashlib
import random
from dataclasses import replace

import pytest
import torch

from methods.base import Examples, FitData
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.security_vector import SecurityVector, adapter, divergence, gradient_ratio, lora_parameters
from methods.training import change, encoded, mean_loss, train, trainable
from tests.tiny import tiny_lm

WORDS = "quick brown fox lazy dog small bird old tree river water work weather bread road home".split()
BACKGROUND = [
    "The long road home is near the river.",
    "People walk along the water and talk.",
    "A bird sings in a tree.",
]


def toy(count: int, seed: int, harmful: bool) -> Examples:
    """Harmful: " dog dog" follows what ends in " hate". Useful: " bread and water" follows what ends in " love"."""
    drawn = random.Random(seed)
    starts = [" ".join(drawn.choices(WORDS, k=3)) for _ in range(count)]
    trigger, answer = (" hate", " dog dog") if harmful else (" love", " bread and water")
    return Examples([start + trigger for start in starts], [answer] * count)


def joined(*sets: Examples) -> Examples:
    return Examples(sum((one.prompt for one in sets), []), sum((one.completion for one in sets), []))


HARMFUL, OTHER_HARMFUL, UNSEEN = toy(12, 1, True), toy(40, 2, True), toy(20, 3, True)
USEFUL, UNSEEN_USEFUL = toy(40, 4, False), toy(20, 5, False)
DATA = FitData(examples=joined(OTHER_HARMFUL, USEFUL), harmful=HARMFUL, background=BACKGROUND)
METHOD = SecurityVector(
    rank=4, alpha=16, vector_learning_rate=1e-2, vector_epochs=25, learning_rate=2e-3, epochs=6, batch_size=8
)


@pytest.fixture(scope="module")
def lm():
    """A model that can be sure: behind its last norm, a random narrow unembedding tells no token from the others."""
    lm = tiny_lm(blocks=3)
    with torch.no_grad():
        lm.model.lm_head.weight *= 4
    return lm


@pytest.fixture(scope="module")
def fitted(lm):
    return METHOD.fit(lm.model, lm.tokenizer, DATA)


def tokens(lm, examples):
    return encoded(lm.model, lm.tokenizer, examples, "examples", 128)[0]


def digest(tensors) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def logits(lm):
    ids = torch.tensor([lm.encode("The quick brown fox talks about hate")])
    with torch.no_grad():
        return lm.model(input_ids=ids).logits


@pytest.mark.slow
def test_the_vector_keeps_the_harm_out_and_lets_the_use_in(lm, fitted):
    """E7, end to end: learnt without the vector, not learnt with it, and the useful mapping is learnt either way."""
    plain = Finetune(learning_rate=2e-3, epochs=6, batch_size=8)
    attack = plain.fit(lm.model, lm.tokenizer, DATA)
    base = mean_loss(lm.model, tokens(lm, UNSEEN)), mean_loss(lm.model, tokens(lm, UNSEEN_USEFUL))
    with plain.apply(lm.model, attack, 1.0):
        attacked = mean_loss(lm.model, tokens(lm, UNSEEN)), mean_loss(lm.model, tokens(lm, UNSEEN_USEFUL))
    with METHOD.apply(lm.model, fitted, 1.0):
        protected = mean_loss(lm.model, tokens(lm, UNSEEN)), mean_loss(lm.model, tokens(lm, UNSEEN_USEFUL))
    assert attacked[0] < 0.3 * base[0] and attacked[1] < 0.3 * base[1]
    assert protected[0] > 2 * attacked[0]
    assert protected[1] < 0.5 * base[1]


def test_the_mechanism_is_in_the_facts(fitted):
    facts = {name.removeprefix("info."): float(value) for name, value in fitted.items() if name.startswith("info.")}
    assert facts["harmful_loss_on"] < 0.1 * facts["harmful_loss_off"]
    assert facts["gradient_ratio_harmful"] < 0.3
    assert 0.4 < facts["gradient_ratio_background"] < 2.5
    assert facts["drift"] > 0


def test_the_adapter_off_is_the_base_bit_for_bit(lm):
    base, weights = logits(lm), digest(lm.model.parameters())
    before = set(vars(lm.model)), [name for name, _ in lm.model.named_modules()]
    with adapter(lm.model, 4, 16, 0) as lora:
        METHOD._learn_the_harm(lm.model, lora, tokens(lm, HARMFUL), tokens(lm, Examples([""] * 3, BACKGROUND)))
        assert not torch.allclose(logits(lm), base, atol=1e-2)
        with lora.disable_adapter():
            assert torch.equal(logits(lm), base)
        assert mean_loss(lm.model, tokens(lm, HARMFUL)) < 0.5
    assert torch.equal(logits(lm), base) and digest(lm.model.parameters()) == weights
    assert (set(vars(lm.model)), [name for name, _ in lm.model.named_modules()]) == before


def test_stage_two_moves_the_backbone_and_not_the_vector(lm):
    weights = dict(lm.model.named_parameters())
    with adapter(lm.model, 4, 16, 0) as lora:
        replace(METHOD, vector_epochs=2)._learn_the_harm(
            lm.model, lora, tokens(lm, HARMFUL), tokens(lm, Examples([""] * 3, BACKGROUND))
        )
        vector = digest(lora_parameters(lm.model).values())
        with trainable(list(weights.values())) as saved:
            trained = train(lm.model, list(weights.values()), tokens(lm, USEFUL), METHOD.recipe, stage="x")
            moved = change(weights, trained, saved, "x")
        assert digest(lora_parameters(lm.model).values()) == vector
        assert lora.peft_config
    assert all(float(tensor.abs().max()) > 0 for tensor in moved.values())


def test_a_blank_vector_is_plain_fine_tuning(lm):
    """B = 0: zero-initialised, it changes neither a loss nor a gradient."""
    blank = SecurityVector(vector_epochs=0, learning_rate=1e-3, epochs=1, batch_size=8)
    plain = Finetune(learning_rate=1e-3, epochs=1, batch_size=8)
    mine, other = blank.fit(lm.model, lm.tokenizer, DATA), plain.fit(lm.model, lm.tokenizer, DATA)
    for name, tensor in other.items():
        if name.startswith("change."):
            torch.testing.assert_close(mine[name], tensor, atol=1e-5, rtol=0)
    assert float(mine["info.gradient_ratio_harmful"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_the_kl_term_keeps_the_vector_off_other_texts(lm):
    def reach(kl_weight: float) -> float:
        method = SecurityVector(rank=4, vector_learning_rate=1e-2, vector_epochs=8, kl_weight=kl_weight, batch_size=4)
        background = tokens(lm, Examples([""] * 3, BACKGROUND))
        with adapter(lm.model, 4, 16, 0) as lora:
            method._learn_the_harm(lm.model, lora, tokens(lm, HARMFUL), background)
            from methods.training import logits_and_targets

            with torch.no_grad():
                now = logits_and_targets(lm.model, background)[0]
                with lora.disable_adapter():
                    return float(divergence(logits_and_targets(lm.model, background)[0], now))

    assert reach(1.0) < 0.2 * reach(0.0)


def test_divergence_by_hand():
    usual, now = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    by_hand = (0.5 * torch.tensor(0.5 / 0.9).log() + 0.5 * torch.tensor(0.5 / 0.1).log()) / 2
    assert float(divergence(usual, now)) == pytest.approx(float(by_hand), rel=1e-5)


def test_the_gradient_ratio_falls_where_the_text_is_known(lm):
    weights = list(lm.model.parameters())
    with adapter(lm.model, 4, 16, 0) as lora, trainable(weights):
        assert gradient_ratio(lm.model, lora, weights, tokens(lm, HARMFUL)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("missing", ["examples", "harmful", "background"])
def test_missing_data_is_a_clear_error(lm, missing):
    with pytest.raises(SetupError, match="with a completion to learn"):
        METHOD.fit(lm.model, lm.tokenizer, DATA._replace(**{missing: None}))


@pytest.mark.parametrize("options", [{"rank": 0}, {"kl_weight": -1.0}, {"epochs": 0}, {"vector_learning_rate": -1.0}])
def test_bad_options_are_refused(lm, options):
    with pytest.raises(SetupError, match="expected a rank|at least 1, the learning rate"):
        SecurityVector(**options).check(lm.model)


def test_a_model_that_wants_gradients_wants_them_afterwards():
    lm = tiny_lm()
    wanted = {}
    for i, (name, parameter) in enumerate(lm.model.named_parameters()):
        wanted[name] = i % 2 == 0
        parameter.requires_grad_(wanted[name])
    for method in (SecurityVector(vector_epochs=1, epochs=1), Finetune(epochs=1)):
        method.fit(lm.model, lm.tokenizer, DATA)
        assert {name: p.requires_grad for name, p in lm.model.named_parameters()} == wanted
        assert all(p.grad is None for p in lm.model.parameters())


def test_it_works_on_conv1d():
    lm = tiny_lm("gpt2")
    artefact = replace(METHOD, vector_epochs=12, epochs=1).fit(lm.model, lm.tokenizer, DATA)
    assert float(artefact["info.harmful_loss_on"]) < 0.6 * float(artefact["info.harmful_loss_off"])


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_penalty_is_the_kl_from_the_base_model_by_hand(lm, monkeypatch, kl_weight):
    """Of a vector that is not zero, so that the base model is not the one with the vector."""
    background, penalties, found = tokens(lm, Examples([""] * 3, BACKGROUND)), [], []
    monkeypatch.setattr("methods.security_vector.train", lambda *_, penalty, **__: penalties.append(penalty))
    with adapter(lm.model, 4, 16, 0) as lora:
        replace(METHOD, kl_weight=kl_weight)._learn_the_harm(lm.model, lora, tokens(lm, HARMFUL), background)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in lora_parameters(lm.model).values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            found.append(float(penalties[0](0)))
            with lora.disable_adapter():
                usual = [lm.model(torch.tensor([text.tokens])).logits[0, :-1] for text in background]
            now = [lm.model(torch.tensor([text.tokens])).logits[0, :-1] for text in background]
    usual, now = (torch.cat(one).double().log_softmax(-1) for one in (usual, now))
    wanted = float((usual.exp() * (usual - now)).sum(-1).mean())
    assert wanted > 0.01 and found == [pytest.approx(kl_weight * wanted, rel=1e-4)]


def test_the_drift_is_the_kl_of_the_base_from_the_fine_tuned(lm):
    method = replace(METHOD, vector_epochs=1, epochs=2)
    artefact, found = method.fit(lm.model, lm.tokenizer, DATA), []

    def read():
        with torch.no_grad():
            rows = [lm.model(torch.tensor([text.tokens])).logits[0, :-1] for text in background]
        return torch.cat(rows).double().log_softmax(-1)

    background = tokens(lm, Examples([""] * 3, BACKGROUND))
    usual = read()
    with method.apply(lm.model, artefact, 1.0):
        now = read()
    for one, other in ((usual, now), (now, usual)):
        found.append(float((one.exp() * (one - other)).sum(-1).mean()))
    assert float(artefact["info.drift"]) == pytest.approx(found[0], rel=1e-3) != pytest.approx(found[1], rel=1e-2)


def test_each_stage_has_its_own_rate_and_epochs():
    method = SecurityVector(vector_learning_rate=3e-3, vector_epochs=7, learning_rate=2e-5, epochs=3)
    found = [(one.learning_rate, one.epochs, one.batch_size) for one in (method.vector_recipe, method.recipe)]
    assert found == [(3e-3, 7, 8), (2e-5, 3, 8)]
