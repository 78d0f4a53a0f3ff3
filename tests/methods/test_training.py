import functools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods import progress, training
from methods.base import Examples, Pairs
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.training import Recipe, completion_loss, encoded, encoded_pairs, mean_loss, train, trainable
from tests.tiny import tiny_lm

EXAMPLES = Examples(
    ["The quick brown", "People walk along the", "A small", "We talk about", "The old"],
    [" fox jumps over the dog", " water", " bird sings near the river", " work and love", " tree"],
)
RECIPE = Recipe(learning_rate=3e-3, epochs=3, batch_size=2, seed=5)
LONGER = Finetune(learning_rate=3e-3, epochs=3, batch_size=2)


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


def test_a_text_without_prompt_is_learnt_from_token_two():
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


@functools.cache
def undisturbed():
    """What a training that nobody stops comes to, and how far it says that it is."""
    model, said = tiny_lm(), list[float]()
    with progress.listening(said.append):
        return LONGER.fit(model.model, model.tokenizer, fitting_data()), said


def stopped(lm, folder, share):
    """A training that was stopped at this share; what it comes to, how often it says how far it is, and its state."""
    (whole, everything), method, read = undisturbed(), LONGER, 0.0

    def stop(tokens: float) -> None:
        nonlocal read
        read += tokens
        if read > share * sum(everything):
            raise StoppedError

    with pytest.raises(StoppedError), progress.checkpointing(folder), progress.listening(stop):
        method.fit(lm.model, lm.tokenizer, fitting_data())
    return method, whole, len(everything), folder / "finetune.safetensors"


def goes_on(lm, method, folder):
    """The artefact, and how often the training says how far it is."""
    steps: list[float] = []
    with progress.checkpointing(folder), progress.listening(steps.append):
        artefact = method.fit(lm.model, lm.tokenizer, fitting_data())
    return artefact, len(steps)


def test_the_seconds_of_the_steps_before_a_stop_are_told(tmp_path):
    lm, told = tiny_lm(), list[float]()
    method, *_ = stopped(lm, tmp_path, 0.5)
    for _ in range(3):
        with progress.checkpointing(tmp_path) as earlier:
            method.fit(lm.model, lm.tokenizer, fitting_data())
        told.append(earlier.seconds)
    assert 0 < told[0] < told[1] == told[2]  # of the steps before the stop, and of all


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_stopped_training_goes_on_to_the_same_bits(lm, tmp_path, monkeypatch, share):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0.0)
    method, whole, steps, _ = stopped(lm, tmp_path, share)
    resumed, taken = goes_on(lm, method, tmp_path)
    assert taken < steps and same(whole, resumed)


def one_bit(path):
    good = path.read_bytes()
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])  # in a file as readable as before


def of_another_training(path):
    """Whole by itself."""
    state = load_file(path)
    save_file(state, path, metadata={"sha256": training.digest(state), "of": "other finetune.safetensors"})


def of_other_weights(path):
    state = {"losses": torch.ones(3)}
    of = f"{path.parent.name} {path.name}"
    save_file(state, path, metadata={"sha256": training.digest(state), "of": of})


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_bit, "is not what was kept (its sha256 differs)"),
        (of_another_training, "is of another training, 'other finetune.safetensors'"),
        (of_other_weights, "is of a training of other weights"),
        (lambda path: save_file(load_file(path), path), "was written by an older version"),
        (lambda path: path.write_bytes(b""), "cannot be read (SafetensorError)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read (SafetensorError)"),
        (lambda path: path.write_bytes(b"\x80\x04}."), "cannot be read (SafetensorError)"),
        (a_folder, "cannot be read"),
    ],
)
def test_training_restarts_from_a_damaged_checkpoint(lm, tmp_path, monkeypatch, capsys, damage, message):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0.0)
    method, whole, steps, kept = stopped(lm, tmp_path, 0.5)
    damage(kept)
    found, taken = goes_on(lm, method, tmp_path)
    assert taken == steps and same(whole, found)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told.startswith(f"warning: '{kept}' ") and message in told
    assert "set aside as '.finetune.safetensors.damaged', and the training begins again" in told
    assert kept.with_name(".finetune.safetensors.damaged").exists()
    assert goes_on(lm, method, tmp_path)[1] < steps  # what is kept now is read


def test_a_kept_state_that_cannot_be_set_aside_is_named(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0.0)
    method, _, _, kept = stopped(lm, tmp_path, 0.5)
    one_bit(kept)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(SetupError, match="cannot be set aside .Permission denied.; delete it, and"):
        goes_on(lm, method, tmp_path)


def fitting_data():
    from methods.base import FitData

    return FitData(examples=EXAMPLES)


def test_a_loss_that_is_not_finite_is_a_clear_error(lm):
    parameters = list(lm.model.parameters())
    with trainable(parameters), pytest.raises(SetupError, match="lower the learning rate"):
        train(lm.model, parameters, texts(lm), Recipe(1e30, 5, 2, 0), stage="x")


def test_fine_tuning_learns_and_strength_scales_the_change(lm):
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


def test_what_is_learnt_begins_where_the_prompt_ends(lm):
    """The prompt's tokens are given, and not learnt, in single texts as in pairs."""
    begins = [len(lm.encode(prompt)) for prompt in EXAMPLES.prompt]
    assert [text.prompt for text in texts(lm)] == begins and min(begins) > 1
    pairs = Pairs(EXAMPLES.prompt, EXAMPLES.completion, EXAMPLES.completion[::-1])
    both = encoded_pairs(lm.model, lm.tokenizer, pairs, 128)
    assert [[text.prompt for text in side] for side in (both.desired, both.undesired)] == [begins, begins]


def test_a_completion_of_one_token_is_learnt_from(lm):
    found = encoded_pairs(lm.model, lm.tokenizer, Pairs(["The old", "A small"], [".", ","], [",", "."]), 128)
    assert [len(text.tokens) - text.prompt for text in (*found.desired, *found.undesired)] == [1] * 4
    single, _ = encoded(lm.model, lm.tokenizer, Examples(["The old"], ["."]), "examples", 128)
    assert [len(text.tokens) - text.prompt for text in single] == [1]
