import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bench.export.effect import measure
from bench.model.sampling import prefill
from methods import layout, sites
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.intervention import hooked
from methods.itic import ITIC
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

TEXT = ("The old tree near", " the river sings")


def fit(method, lm, pairs=PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def shifts(artefact):
    return [artefact[f"layers.{layer}.shift"] for layer in range(sum(key.startswith("layers.") for key in artefact))]


def outputs(lm, ids, read=lambda lm, ids: lm.model(torch.tensor([ids]))):
    """(L, T, D): what each output projection of attention gives for a text, by hooks of the test's own."""
    seen, handles = [], []
    for block in layout.blocks(lm.model):
        module = block.get_submodule(layout.of(lm.model).o[0])
        handles.append(module.register_forward_hook(lambda _module, _args, out: seen.append(out[0].clone())))
    try:
        with torch.inference_mode():
            read(lm, ids)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)


def whole(prompt):
    """Read a text at once as a likelihood is, where the hooks are told how long its prompt is."""

    def read(lm, ids):
        given = torch.tensor([ids])
        lm.read(lm.start(torch.tensor([prompt])), given, torch.ones_like(given, dtype=torch.bool))

    return read


@pytest.mark.parametrize("read", ["continuation", "all", "last"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_shift_by_hand(architecture, read):
    lm, means = tiny_lm(architecture), []
    for side in (PAIRS.desired, PAIRS.undesired):
        for prompt, text in zip(PAIRS.prompt, side, strict=True):
            ids, begin = lm.tokenizer(prompt + text).input_ids, len(lm.encode(prompt))
            start = {"continuation": begin, "all": 0, "last": len(ids) - 1}[read]
            means.append(outputs(lm, ids)[:, start:].double().mean(1).numpy())
    features = np.stack(means, 1)  # (L, 2N, D)
    artefact = fit(ITIC(read=read), lm)
    for shift, one in zip(shifts(artefact), features, strict=True):
        normal = LogisticRegression(C=1.0, max_iter=1000).fit(one, [1] * 8 + [0] * 8).coef_[0]
        normal /= np.linalg.norm(normal)
        expected = torch.from_numpy(np.std(one @ normal) * normal)
        torch.testing.assert_close(shift.double(), expected, atol=2e-5, rtol=1e-3)
    assert artefact["info.sigma"].tolist() == pytest.approx([float(one.norm()) for one in shifts(artefact)], rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_direction_of_the_values_is_found(architecture):
    """Where attention gives the mean of what the tokens so far are, which in this model are their embeddings."""
    lm, pairs, direction, _ = planted_sink(architecture, sink_norm=0.0)
    normed = layout.blocks(lm.model)[1].get_submodule("ln_1" if architecture == "gpt2" else "input_layernorm")
    seen = {}

    def value(hidden):
        seen["read"] = hidden
        return hidden

    def mean(hidden):
        read = seen["read"]
        count = torch.arange(1, read.shape[1] + 1)[None, :, None]
        return (read.cumsum(1) / count)[..., : hidden.shape[-1]]

    place = sites.projected(lm.model, 1, "attention")
    hooks = [sites.Place(normed, "output", place.width).hook(value), place.hook(mean)]
    with hooked(hooks):
        found = shifts(fit(ITIC(), lm, pairs))[1]
        swapped = shifts(fit(ITIC(), lm, Pairs(pairs.prompt, pairs.undesired, pairs.desired)))[1]
    assert torch.cosine_similarity(found, direction, dim=0) > 0.95
    torch.testing.assert_close(swapped, -found, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, [True, True, True]),
        ({"scope": "generation"}, [False, True, True]),
        ({"scope": "generation", "boundary": False}, [False, False, True]),
        ({"scope": "prompt"}, [True, True, False]),
    ],
)
def test_scope_at_the_first_block(options, moved):
    lm, method = tiny_lm(), ITIC(**options)
    artefact, head = fit(method, lm), lm.encode(TEXT[0])
    ids = head + lm.tokenizer(TEXT[1]).input_ids[1:]
    base = outputs(lm, ids, whole(len(head)))[0]
    with lm.steered(method, artefact, -3) as steered:
        after = outputs(steered, ids, whole(len(head)))[0]
    for column, expected in zip((0, len(head) - 1, len(head)), moved, strict=True):
        assert torch.equal(after[column], base[column] + -3 * artefact["layers.0.shift"] if expected else base[column])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_bias_and_a_hook_are_the_same(architecture):
    lm, method = tiny_lm(architecture), ITIC()
    artefact, ids = fit(method, lm), [lm.encode(TEXT[0])]
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    hooks = [
        sites.projected(lm.model, layer, "attention").hook(lambda hidden, by=shift: hidden + 2 * by)
        for layer, shift in enumerate(shifts(artefact))
    ]
    with hooked(hooks):
        wanted = prefill(lm, ids)[1]
    with pytest.raises(ZeroDivisionError), lm.steered(method, artefact, 2) as steered:
        changed = {name for name, one in lm.model.state_dict().items() if not torch.equal(one, before[name])}
        got = prefill(steered, ids)[1]
        raise ZeroDivisionError
    scale = float(wanted.abs().max())
    torch.testing.assert_close(got / scale, wanted / scale, atol=1e-5, rtol=1e-5)
    assert len(changed) == (0 if architecture == "llama" else 3)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())
    base = prefill(lm, ids)[1]
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    assert not torch.equal(got, base)


def test_what_can_be_exported():
    lm, method = tiny_lm("gpt2"), ITIC()
    effect = measure(lm, method, fit(method, lm), 2.0)
    assert effect.beyond is None and not effect.vectors and len(effect.weights) == 3
    assert all(name.endswith("attn.c_proj.bias") for name in effect.weights)


def test_wrong_settings_and_data():
    lm = tiny_lm()
    for options, message in (
        ({"read": "letter"}, "allowed are all, continuation, last"),
        ({"scope": "front"}, "allowed are generation, prompt, all"),
        ({"skip_first": -1}, "is negative"),
    ):
        with pytest.raises(SetupError, match=message):
            ITIC(**options).check(lm.model)
    with pytest.raises(SetupError, match="itic learns from contrast pairs and got 1"):
        fit(ITIC(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="the same mean in 5 of 5 blocks; give pairs whose texts differ"):
        fit(ITIC(), lm, PAIRS._replace(undesired=PAIRS.desired))
    other = tiny_lm("gpt2")
    with pytest.raises(SetupError, match=r"shift \(36,\) was not fitted on this model, whose width is 28"):
        with ITIC().apply(other.model, fit(ITIC(), lm), 1):
            pass


def test_skip_first_leaves_out_the_beginning_of_each_text():
    lm, means = tiny_lm(), []
    for side in (PAIRS.desired, PAIRS.undesired):
        for prompt, text in zip(PAIRS.prompt, side, strict=True):
            means.append(outputs(lm, lm.tokenizer(prompt + text).input_ids)[:, 2:].double().mean(1).numpy())
    for shift, one in zip(shifts(fit(ITIC(read="all", skip_first=2), lm)), np.stack(means, 1), strict=True):
        normal = LogisticRegression(C=1.0, max_iter=1000).fit(one, [1] * 8 + [0] * 8).coef_[0]
        normal /= np.linalg.norm(normal)
        torch.testing.assert_close(
            shift.double(), torch.from_numpy(np.std(one @ normal) * normal), atol=2e-5, rtol=1e-3
        )
