from contextlib import contextmanager

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
from methods.iti import ITI
from methods.probes import logistic, sides
from tests.methods.test_contract import PAIRS
from tests.tiny import CORPUS, tiny_lm

WORDS = CORPUS.replace(".", "").replace(",", "").split()
TEXT = ("The old tree near", " the river sings")


def fit(method, lm, pairs=PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def shifts(artefact):
    """(L, H * d) by block, of those with a chosen head."""
    return {int(key.split(".")[1]): one for key, one in artefact.items() if key.startswith("layers.")}


def random_pairs(count, seed=0):
    """Texts whose side nothing in them tells."""
    generator = torch.Generator().manual_seed(seed)

    def text(length):
        return "".join(" " + WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())

    return Pairs(*([text(4) for _ in range(count)] for _ in range(3)))


@contextmanager
def planted(lm, pairs, layer, head, axis):
    """One head of one block carries in one coordinate which side a text is of, at every token."""
    wanted = {
        tuple(lm.tokenizer(prompt + text).input_ids) for prompt, text in zip(pairs.prompt, pairs.desired, strict=True)
    }
    heads, seen = sites.heads(lm.model, layer), {}

    def look(_module, _args, kwargs):
        rows = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
        seen["sign"] = torch.tensor([1.0 if tuple(row[real].tolist()) in wanted else -1.0 for row, real in rows])

    def write(hidden):
        moved = hidden.clone()
        moved[..., head * heads.size + axis] += 20 * seen["sign"][:, None]
        return moved

    handle = lm.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with hooked([heads.place.hook(write)]):
            yield
    finally:
        handle.remove()


def head_inputs(lm, ids):
    """(L, T, H, d) of one text: what goes into each output projection, read by hooks of the test's own."""
    seen, handles = {}, []
    for layer, block in enumerate(layout.blocks(lm.model)):
        module = block.get_submodule(layout.of(lm.model).o[0])
        handles.append(
            module.register_forward_pre_hook(lambda _, args, at=layer: seen.update({at: args[0][0].clone()}))
        )
    try:
        with torch.inference_mode():
            lm.model(torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    heads = lm.model.config.num_attention_heads
    return torch.stack([seen[layer] for layer in range(len(seen))]).unflatten(-1, (heads, -1))


def by_hand(lm, pairs, count, seed, followed=None):
    """The shifts of the formula, (L, H, d), in double precision; followed: the texts of sigma."""

    def last(texts):
        return np.stack([head_inputs(lm, lm.tokenizer(text).input_ids)[:, -1].double().numpy() for text in texts], 2)

    wanted, unwanted = (
        last([p + t for p, t in zip(pairs.prompt, side, strict=True)]) for side in (pairs.desired, pairs.undesired)
    )  # (L, H, N, d)
    order = torch.randperm(len(pairs.prompt), generator=torch.Generator().manual_seed(seed)).numpy()
    test, train = order[: round(0.2 * len(order))], order[round(0.2 * len(order)) :]
    scores = []
    for layer, head in np.ndindex(*wanted.shape[:2]):
        one, other = wanted[layer, head], unwanted[layer, head]
        probe = LogisticRegression(C=1.0, max_iter=1000)
        probe.fit(np.concatenate([one[train], other[train]]), [1] * len(train) + [0] * len(train))
        held = np.concatenate([one[test], other[test]])
        truth = np.array([1] * len(test) + [0] * len(test))
        likelihood = probe.predict_log_proba(held)[np.arange(len(truth)), truth].mean()
        scores.append((-(probe.predict(held) == truth).mean(), -likelihood, layer, head))
    both = np.concatenate([wanted, unwanted], 2) if followed is None else last(followed)
    expected = np.zeros(wanted.shape[:2] + wanted.shape[3:])
    for _, _, layer, head in sorted(scores)[:count]:
        theta = wanted[layer, head].mean(0) - unwanted[layer, head].mean(0)
        theta /= np.linalg.norm(theta)
        expected[layer, head] = np.std(both[layer, head] @ theta) * theta
    return torch.from_numpy(expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_shift_by_hand(architecture):
    lm, pairs = tiny_lm(architecture), random_pairs(12)
    method = ITI(head_fraction=0.25, seed=3)
    heads = len(layout.blocks(lm.model)) * lm.model.config.num_attention_heads
    expected = by_hand(lm, pairs, round(0.25 * heads), 3)
    found = shifts(fit(method, lm, pairs))
    assert set(found) == {layer for layer, one in enumerate(expected) if one.any()}
    for layer, shift in found.items():
        torch.testing.assert_close(shift.double(), expected[layer].flatten(), atol=2e-5, rtol=2e-4)
        assert torch.equal(shift == 0, expected[layer].flatten() == 0)


def test_sigma_of_other_texts_by_hand():
    lm, pairs = tiny_lm(), random_pairs(12)
    method = ITI(head_fraction=0.25, sigma="tuning")
    seen = set()

    def look(_module, _args, kwargs):
        mask = kwargs["attention_mask"].bool()
        seen.update(tuple(row[real].tolist()) for row, real in zip(kwargs["input_ids"], mask, strict=True))

    handle = lm.model.register_forward_pre_hook(look, with_kwargs=True)
    found = shifts(fit(method, lm, pairs))
    handle.remove()
    ends = [f"\n{prompt}" for prompt in pairs.prompt]
    texts = [p + t for side in (pairs.desired, pairs.undesired) for p, t in zip(pairs.prompt, side, strict=True)]
    followed = [text + end for text in texts for end in ends if tuple(lm.tokenizer(text + end).input_ids) in seen]
    assert len(followed) == len(texts) and {text.rpartition("\n")[2] for text in followed} == set(pairs.prompt)
    expected = by_hand(lm, pairs, 8, 0, followed)  # a quarter of 30 heads, rounded to even
    for layer, shift in found.items():
        torch.testing.assert_close(shift.double(), expected[layer].flatten(), atol=2e-5, rtol=2e-4)
    other = shifts(fit(ITI(head_fraction=0.25), lm, pairs))
    assert all(not torch.allclose(found[layer], other[layer], rtol=1e-3) for layer in found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_planted_head_ranks_first_along_its_axis(architecture):
    lm, pairs = tiny_lm(architecture), random_pairs(40)
    layer, head, axis = len(layout.blocks(lm.model)) - 1, 2, 3  # the last block, so that no other one sees it
    size = sites.heads(lm.model, layer).size
    for direction in ("mass_mean", "probe"):
        with planted(lm, pairs, layer, head, axis):
            artefact = fit(ITI(head_fraction=1e-6, direction=direction), lm, pairs)
        assert artefact["info.heads"].tolist() == [[layer, head]]
        assert artefact["info.probe_accuracy"].tolist() == [1.0] and artefact["info.mean_probe_accuracy"] < 0.7
        (shift,) = shifts(artefact).values()
        own = torch.zeros_like(shift)
        own[head * size + axis] = 1
        assert torch.cosine_similarity(shift, own, dim=0) > 0.95, direction
        assert float(shift.norm()) == pytest.approx(20, rel=0.1)  # the spread of two points 40 apart


def test_swapped_labels_turn_the_sign():
    lm, pairs = tiny_lm(), random_pairs(20)
    swapped = Pairs(pairs.prompt, pairs.undesired, pairs.desired)
    for direction in ("mass_mean", "probe"):
        method = ITI(head_fraction=0.2, direction=direction)
        one, other = (fit(method, lm, some) for some in (pairs, swapped))
        assert torch.equal(one["info.heads"], other["info.heads"])
        for layer, shift in shifts(one).items():
            torch.testing.assert_close(shifts(other)[layer], -shift, atol=1e-4, rtol=1e-3)


def test_random_directions_keep_heads_and_spread():
    lm, pairs = tiny_lm(), random_pairs(20)
    one, other = (fit(ITI(head_fraction=0.2, direction="random", seed=seed), lm, pairs) for seed in (0, 1))
    plain = fit(ITI(head_fraction=0.2), lm, pairs)
    assert torch.equal(one["info.heads"], plain["info.heads"])
    assert not torch.equal(one["info.sigma"], other["info.sigma"])
    for key in shifts(one):
        cosine = torch.cosine_similarity(shifts(one)[key], shifts(plain)[key], dim=0)
        assert abs(cosine) < 0.9
    lengths = torch.cat([shift.view(6, -1).norm(dim=-1) for shift in shifts(one).values()])
    torch.testing.assert_close(lengths[lengths > 0].sort().values, one["info.sigma"].sort().values)


def inputs_of(lm, layer, head, tail, method=None, artefact=None, strength=2.0):
    """(T, H * d): what goes into the output projection, with our own hook behind the method's."""
    seen = {}
    place = sites.heads(lm.model, layer).place

    def keep(hidden):
        seen["hidden"] = hidden[0].clone()
        return hidden

    def read(one):
        ids = torch.tensor([head + tail])
        with hooked([place.hook(keep)]):
            logits = one.read(one.start(torch.tensor([len(head)])), ids, torch.ones_like(ids, dtype=torch.bool))
        return seen["hidden"], logits[0]

    if method is None:
        return read(lm)
    with lm.steered(method, artefact, strength) as steered:
        return read(steered)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, [False, True, True]),
        ({"boundary": False}, [False, False, True]),
        ({"scope": "prompt"}, [True, True, False]),
        ({"scope": "all"}, [True, True, True]),
    ],
)
def test_only_chosen_heads_move_and_only_in_scope(architecture, options, moved):
    """First prompt token, last prompt token, continuation; each by strength times the shift."""
    lm = tiny_lm(architecture)
    method = ITI(head_fraction=0.2, **options)
    artefact = fit(method, lm)
    layer = min(shifts(artefact))
    shift, head, tail = shifts(artefact)[layer], lm.encode(TEXT[0]), lm.tokenizer(TEXT[1]).input_ids[1:]
    if method.scope == "all" and architecture == "gpt2":
        return  # a bias, see below
    (base, logits), (steered, changed) = (
        inputs_of(lm, layer, head, tail),
        inputs_of(lm, layer, head, tail, method, artefact),
    )
    assert (shift == 0).any()
    assert torch.equal(steered[:, shift == 0], base[:, shift == 0])
    for column, expected in zip((0, len(head) - 1, len(head)), moved, strict=True):
        assert torch.equal(steered[column], base[column] + 2.0 * shift if expected else base[column])
    if method.scope == "generation":
        first = len(head) - method.boundary
        assert torch.equal(changed[:first], logits[:first])
        assert ((changed - logits)[first:].abs().amax(-1) > 1e-4).all()


def test_a_likelihood_is_steered_as_a_sample_is():
    """Read at once, or the prompt first and then token by token from the cache."""
    lm, method = tiny_lm(), ITI(head_fraction=0.2)
    artefact, head = fit(method, lm), lm.encode(TEXT[0])
    tail = lm.tokenizer(TEXT[1]).input_ids[1:]
    _, whole = inputs_of(lm, 0, head, tail, method, artefact)
    with lm.steered(method, artefact, 2.0) as steered:
        rows, last = prefill(steered, [head])
        steps = [last[0]]
        for token in tail:
            steps.append(steered.read(rows, torch.tensor([[token]]), torch.tensor([[True]]))[0, -1])
    torch.testing.assert_close(torch.stack(steps), whole[len(head) - 1 :], atol=1e-3, rtol=1e-4)


def test_strength_0_is_the_model_itself():
    lm, ids = tiny_lm(), [tiny_lm().encode(TEXT[0])]
    base = prefill(lm, ids)[1]
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    for method in (ITI(), ITI(scope="all")):
        artefact = fit(method, lm)
        with method.apply(lm.model, artefact, 0):
            assert torch.equal(prefill(lm, ids)[1], base)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_bias_and_a_hook_at_all_tokens_are_the_same(architecture):
    """b = W_o (strength * sigma * theta), not the shift of the heads as it is."""
    lm = tiny_lm(architecture)
    method = ITI(head_fraction=0.2, scope="all")
    artefact, ids = fit(method, lm), [lm.encode(TEXT[0])]
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    hooks = [
        sites.heads(lm.model, layer).place.hook(lambda hidden, by=shift: hidden + 3 * by)
        for layer, shift in shifts(artefact).items()
    ]
    with hooked(hooks):
        wanted = prefill(lm, ids)[1]
    with pytest.raises(ZeroDivisionError), lm.steered(method, artefact, 3) as steered:
        changed = {name for name, one in lm.model.state_dict().items() if not torch.equal(one, before[name])}
        got = prefill(steered, ids)[1]
        raise ZeroDivisionError
    scale = float(wanted.abs().max())
    torch.testing.assert_close(got / scale, wanted / scale, atol=1e-5, rtol=1e-5)
    assert len(changed) == (0 if architecture == "llama" else len(shifts(artefact)))
    assert all(name.endswith("bias") for name in changed)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())


def test_what_can_be_exported():
    lm = tiny_lm("gpt2")
    folded, scoped = ITI(scope="all"), ITI()
    effect = measure(lm, folded, fit(folded, lm), 3.0)
    assert effect.beyond is None and not effect.vectors
    assert [name.split(".", 3)[3] for name in effect.weights] == ["attn.c_proj.bias"] * len(effect.weights) != []
    assert measure(lm, scoped, fit(scoped, lm), 3.0).beyond is not None


def test_the_probe_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(30, 5, generator=generator) + 0.5, torch.randn(20, 5, generator=generator)
    features, positive = sides(one, other)
    assert positive.tolist() == [True] * 30 + [False] * 20
    found = logistic(features, positive)
    plain = LogisticRegression(max_iter=1000).fit(features.double().numpy(), positive.numpy())
    np.testing.assert_allclose(found.weight, plain.coef_[0], rtol=1e-6)
    right = plain.predict(features.double().numpy()) == positive.numpy()
    assert ((found.margins(features, positive) > 0).numpy() == right).all() and found.converged
    assert not logistic(features, positive, max_iter=1).converged


def test_wrong_settings_and_data():
    lm = tiny_lm()
    for options, message in (
        ({"read": "first"}, "allowed are all, continuation, last"),
        ({"direction": "pca"}, "allowed are mass_mean, probe, random"),
        ({"sigma": "none"}, "allowed are fit, tuning"),
        ({"scope": "front"}, "allowed are generation, prompt, all"),
        ({"skip_first": -1}, "is negative"),
        ({"head_fraction": 1.5}, r"outside \(0, 1\]"),
        ({"head_fraction": 0}, "0 would choose no head"),
        ({"held_out": 0}, r"outside \(0, 1\)"),
    ):
        with pytest.raises(SetupError, match=message):
            ITI(**options).check(lm.model)
    two = Pairs(*(column[:2] for column in PAIRS))
    with pytest.raises(SetupError, match="iti learns from contrast pairs and got none"):
        ITI().fit(lm.model, lm.tokenizer, FitData())
    with pytest.raises(SetupError, match=r"iti: 2 pairs with method.held_out=0.2 leave 1 to train probes on"):
        fit(ITI(), lm, two)
    same = PAIRS._replace(undesired=PAIRS.desired)
    with pytest.raises(SetupError, match="the same mean in all but 0 of 30 heads, and 1 are to be chosen"):
        fit(ITI(), lm, same)
    lm.model.config.num_attention_heads = 5
    with pytest.raises(SetupError, match="which are not 5 heads"):
        ITI().check(lm.model)


def test_constant_heads_are_never_chosen():
    lm = tiny_lm()
    with hooked([sites.heads(lm.model, layer).place.hook(torch.ones_like) for layer in (0, 1, 2, 4)]):
        artefact = fit(ITI(head_fraction=0.2), lm)
        assert set(shifts(artefact)) == {3}
        with pytest.raises(SetupError, match="the same mean in all but 6 of 30 heads, and 15 are to be chosen"):
            fit(ITI(head_fraction=0.5), lm)


def test_an_artefact_of_another_model():
    lm, other = tiny_lm(), tiny_lm("gpt2")
    with pytest.raises(SetupError, match=r"shift \(36,\) was not fitted on this model"):
        with ITI(head_fraction=1).apply(other.model, fit(ITI(head_fraction=1), lm), 1):
            pass


def test_heads_that_differ_between_blocks_are_refused(monkeypatch):
    """As in Gemma 4, whose blocks with global attention have larger heads."""
    lm, heads = tiny_lm(), sites.heads
    monkeypatch.setattr(sites, "heads", lambda model, layer: heads(model, layer)._replace(size=6 + 6 * (layer == 2)))
    with pytest.raises(SetupError, match=r"differ from block to block \(6 of 6, 6 of 12 .* choose itic or sadi"):
        ITI().check(lm.model)


def test_skip_first_leaves_out_the_beginning_of_each_text():
    """All heads are shifted, so that no ranking decides."""
    lm, rows = tiny_lm(), []
    for side in (PAIRS.desired, PAIRS.undesired):
        texts = [p + t for p, t in zip(PAIRS.prompt, side, strict=True)]
        rows.append(
            torch.stack([head_inputs(lm, lm.tokenizer(one).input_ids)[:, 2:].double().mean(1) for one in texts])
        )
    theta = torch.nn.functional.normalize(rows[0].mean(0) - rows[1].mean(0), dim=-1)  # (L, H, d)
    along = torch.einsum("nlhd,lhd->nlh", torch.cat(rows), theta)
    wanted = along.std(0, correction=0)[..., None] * theta
    found = shifts(fit(ITI(head_fraction=1, read="all", skip_first=2), lm, PAIRS))
    for layer, shift in found.items():
        torch.testing.assert_close(shift.double(), wanted[layer].flatten(), atol=2e-5, rtol=2e-4)
    assert len(found) == len(wanted)
