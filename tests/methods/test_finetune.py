"""Fine-tuning with a KL term: what security vectors are compared with at equal steps."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from methods.base import Examples, FitData
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.training import divergence, encoded, encoded_background, logits_and_targets
from tests.tiny import tiny_lm

EXAMPLES = Examples(["The old", "We talk", "A small"] * 2, [" dog dog", " about hate", " bird and water"] * 2)
BACKGROUND = ["The long road home is near the river.", "People walk along the water and talk.", "A bird sings."]
DATA = FitData(examples=EXAMPLES, background=BACKGROUND)
METHOD = Finetune(learning_rate=2e-3, epochs=2, batch_size=3, kl_weight=5.0, seed=4)


@pytest.fixture
def lm():
    return tiny_lm()


def by_hand(lm):
    """The weights after the same steps, with torch's own Adam and a copy of the model as the reference."""
    texts = encoded(lm.model, lm.tokenizer, EXAMPLES, "examples", 128)[0]
    ordinary = encoded_background(lm.model, lm.tokenizer, BACKGROUND, 128)[0]
    model, reference = copy.deepcopy(lm.model), copy.deepcopy(lm.model)
    for one in model.parameters():
        one.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters())
    batches = METHOD.recipe.batches(len(texts))
    orders = METHOD.recipe._replace(epochs=1, seed=METHOD.seed + 1).batches(len(ordinary))
    for step, batch in enumerate(batches):
        optimiser.param_groups[0]["lr"] = METHOD.recipe.rate(step, len(batches))
        optimiser.zero_grad()
        learnt = functional.cross_entropy(*logits_and_targets(model, [texts[i] for i in batch.tolist()]))
        drawn = [ordinary[i] for i in orders[step % len(orders)].tolist()]
        now = logits_and_targets(model, drawn)[0].log_softmax(-1)
        with torch.no_grad():
            usual = logits_and_targets(reference, drawn)[0].softmax(-1)
        (learnt + 5.0 * functional.kl_div(now, usual, reduction="batchmean")).backward()
        optimiser.step()
    return model


def flat(artefact):
    return torch.cat([one.flatten() for name, one in artefact.items() if name.startswith("change.")])


def test_the_kl_term_equals_one_written_out(lm):
    """Adam makes much of the rounding of the smallest gradients, so changes are compared as a whole."""
    before = {name: one.detach().clone() for name, one in lm.model.named_parameters()}
    wanted = {f"change.{name}": one.detach() - before[name] for name, one in by_hand(lm).named_parameters()}
    found, plain = (replace(METHOD, kl_weight=weight).fit(lm.model, lm.tokenizer, DATA) for weight in (5.0, 0.0))
    far = (flat(plain) - flat(wanted)).norm()
    assert far > 0.1 * flat(wanted).norm() and (flat(found) - flat(wanted)).norm() < 0.1 * far
    assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())


def test_the_kl_term_keeps_other_texts_as_they_were(lm):
    ordinary = encoded_background(lm.model, lm.tokenizer, BACKGROUND, 128)[0]
    with torch.no_grad():
        usual = logits_and_targets(lm.model, ordinary)[0]

    def drift(weight):
        method = replace(METHOD, kl_weight=weight, epochs=8)
        with method.apply(lm.model, method.fit(lm.model, lm.tokenizer, DATA), 1.0), torch.no_grad():
            return float(divergence(usual, logits_and_targets(lm.model, ordinary)[0]))

    assert drift(5.0) < 0.3 * drift(0.0)


def test_without_a_kl_term_background_is_not_read(lm):
    plain = Finetune(learning_rate=2e-3, epochs=1, batch_size=3)
    assert plain.needs == {"examples"} and METHOD.needs == {"examples", "background"}
    one, other = (plain.fit(lm.model, lm.tokenizer, data) for data in (DATA, FitData(examples=EXAMPLES)))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    with pytest.raises(SetupError, match="no background texts"):
        METHOD.fit(lm.model, lm.tokenizer, FitData(examples=EXAMPLES))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_an_error(lm, weight):
    with pytest.raises(SetupError, match="kl_weight"):
        Finetune(kl_weight=weight).check(lm.model)
