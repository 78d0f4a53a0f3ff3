import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods import fitting, training
from methods.base import Examples
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.training import Recipe, completion_loss, encoded, mean_loss, train, trainable
from tests.tiny import tiny_lm

EXAMPLES = Examples(
    ["The quick brown", "People walk along the", "A small", "We talk about", "The old"],
    [" fox jumps over the dog", " water", " bird sings near the river", " work and love", " tree"],
)
RECIPE = Recipe(learning_rate=3e-3, epochs=3, batch_size=2, seed=5)


@pytest.fixture
def lm():
    return tiny_lm()


def texts(lm):
    return encoded(lm.model, lm.tokenizer, EXAMPLES, "examples", 128)[0]


def test_the_loss_counts_the_completions_tokens_alone(lm):
    """By hand: text by text, no padding, each completion token told from the column before it."""
    batch, total, count = texts(lm), 0.0, 0
    for text in batch:
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([text.tokens])).logits[0].double()
        for column in range(text.prompt, len(text.tokens)):
            total -= float(logits[column - 1].log_softmax(-1)[text.tokens[column]])
            count += 1
    assert len({len(text.tokens) for text in batch}) > 1 and count == sum(len(t.tokens) - t.prompt for t in batch)
    assert float(completion_loss(lm.model, batch)) == pytest.approx(total / count, rel=1e-5)
    assert mean_loss(lm.model, batch, batch_size=2) == pytest.approx(total / count, rel=1e-5)


def test_a_text_without_prompt_is_learnt_from_its_second_token_on():
    lm = tiny_lm(bos="none")
    ((text,), cut) = encoded(lm.model, lm.tokenizer, Examples([""], ["The old tree"]), "texts", 128)
    assert not cut and text.prompt == 1 and len(text.tokens) > 1


@pytest.mark.parametrize("examples", [None, Examples([], []), Examples(["The old"], [""])])
def test_nothing_to_learn_is_a_clear_error(lm, examples):
    with pytest.raises(SetupError, match="no examples with a completion"):
        encoded(lm.model, lm.tokenizer, examples, "examples", 128)


def test_each_epoch_reads_every_row_once_in_another_order():
    batches = Recipe(1e-3, 2, 4, 0).batches(10)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(batches[:3]).tolist(), torch.cat(batches[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_the_learning_rate_rises_and_falls_to_nearly_nothing():
    rates = [Recipe(1.0, 1, 1, 0).rate(step, 20) for step in range(20)]
    assert rates[0] == 0.5 and rates[1] == rates[2] == 1.0 and rates[-1] == pytest.approx(1 / 18)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_training_equals_plain_adam(lm):
    """The oracle is written out: Adam with its bias corrections, one parameter vector."""
    parameters, batch = list(lm.model.parameters()), texts(lm)[:1]
    recipe = Recipe(1e-3, 4, 1, 0)
    with trainable(parameters):
        start = [p.detach().double().clone() for p in parameters]
        first = [torch.zeros_like(p) for p in start]
        second = [torch.zeros_like(p) for p in start]
        expected = [p.clone() for p in start]
        for step in range(4):
            with torch.no_grad():
                for parameter, value in zip(parameters, expected, strict=True):
                    parameter.copy_(value)
            gradients = torch.autograd.grad(completion_loss(lm.model, batch), parameters)
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient.double()
                second[i] = 0.999 * second[i] + 0.001 * gradient.double() ** 2
                corrected = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
                expected[i] = expected[i] - recipe.rate(step, 4) * corrected[0] / (corrected[1].sqrt() + 1e-8)
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        train(lm.model, parameters, batch, recipe, stage="x")
        moved = max(float((p.detach() - s).abs().max()) for p, s in zip(parameters, start, strict=True))
        for parameter, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), value, atol=3e-5, rtol=0)
    assert moved > 1e-3


def test_every_trained_byte_is_restored(lm):
    parameters = list(lm.model.parameters())
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(KeyError), trainable(parameters):
        train(lm.model, parameters, texts(lm), RECIPE, stage="x")
        assert not torch.equal(parameters[0], before[0])
        raise KeyError
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in parameters)


class StoppedError(Exception):
    """Ctrl-C at the worst moment."""


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_stopped_training_goes_on_to_the_same_bits(lm, tmp_path, monkeypatch, share):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0.0)
    data = fitting_data()
    method = Finetune(learning_rate=3e-3, epochs=3, batch_size=2)
    everything: list[float] = []
    with fitting.listening(everything.append):
        whole = method.fit(lm.model, lm.tokenizer, data)
    read = 0.0

    def stop(tokens: float) -> None:
        nonlocal read
        read += tokens
        if read > share * sum(everything):
            raise StoppedError

    with pytest.raises(StoppedError), fitting.checkpointing(tmp_path), fitting.listening(stop):
        method.fit(lm.model, lm.tokenizer, data)
    kept = tmp_path / "finetune.safetensors"
    good = kept.read_bytes()
    kept.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])  # one bit, in a file as readable as before
    with pytest.raises(SetupError, match="is not what was kept.*delete it"), fitting.checkpointing(tmp_path):
        method.fit(lm.model, lm.tokenizer, data)
    other = tmp_path / "other" / kept.name  # of another fit, whole by itself
    other.parent.mkdir()
    other.write_bytes(good)
    with pytest.raises(SetupError, match="is of another training"), fitting.checkpointing(other.parent):
        method.fit(lm.model, lm.tokenizer, data)
    save_file(load_file(other), kept)  # without digest
    with pytest.raises(SetupError, match="was kept by an older version"), fitting.checkpointing(tmp_path):
        method.fit(lm.model, lm.tokenizer, data)
    kept.write_bytes(good)
    steps = []
    with fitting.checkpointing(tmp_path), fitting.listening(steps.append):
        resumed = method.fit(lm.model, lm.tokenizer, data)
    assert len(steps) < len(everything)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def fitting_data():
    from methods.base import FitData

    return FitData(examples=EXAMPLES)


def test_a_loss_that_is_not_finite_is_a_clear_error(lm):
    parameters = list(lm.model.parameters())
    with trainable(parameters), pytest.raises(SetupError, match="lower the learning rate"):
        train(lm.model, parameters, texts(lm), Recipe(1e30, 5, 2, 0), stage="x")


def test_fine_tuning_learns_its_examples_and_strength_scales_the_change(lm):
    method = Finetune(learning_rate=3e-3, epochs=10, batch_size=2)
    artefact = method.fit(lm.model, lm.tokenizer, fitting_data())
    assert artefact["info.loss_after"] < 0.5 * artefact["info.loss_before"]
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    batch, _ = encoded(lm.model, lm.tokenizer, EXAMPLES, "examples", 128)
    with method.apply(lm.model, artefact, 1.0):
        assert mean_loss(lm.model, batch) == pytest.approx(float(artefact["info.loss_after"]), rel=1e-4)
    with method.apply(lm.model, artefact, -0.5):
        for name, parameter in lm.model.named_parameters():
            torch.testing.assert_close(parameter, before[name] - 0.5 * artefact[f"change.{name}"])


def test_the_artefact_of_another_model_is_refused(lm):
    artefact = Finetune(epochs=1).fit(lm.model, lm.tokenizer, fitting_data())
    other = tiny_lm("gpt2")
    with pytest.raises(SetupError, match="was not fitted on this model"), Finetune().apply(other.model, artefact, 1.0):
        pass


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": math.inf}]
)
def test_a_recipe_that_trains_nothing_is_refused(lm, options):
    with pytest.raises(SetupError, match="at least 1"):
        Finetune(**options).check(lm.model)


def test_the_mean_of_functional_is_over_all_tokens_of_a_batch(lm):
    """Two texts of one and five tokens: not the mean of two means."""
    batch = texts(lm)[:2]
    each = [float(completion_loss(lm.model, [one])) for one in batch]
    counts = [len(one.tokens) - one.prompt for one in batch]
    by_token = sum(loss * n for loss, n in zip(each, counts, strict=True)) / sum(counts)
    assert counts[0] != counts[1] and float(completion_loss(lm.model, batch)) == pytest.approx(by_token, rel=1e-5)
