import numpy as np
import pytest
import torch

from methods import layout
from methods.base import FitData, Pairs
from methods.detox import DeTox, projected_off, random_subspace, toxic_subspace
from methods.errors import SetupError
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

ARCHITECTURES = ["llama", "gpt2", "opt"]


def fit(method, lm, pairs=PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def projection(directions):
    return directions.double().T @ directions.double()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edit_removes_the_subspace_and_nothing_else(architecture):
    lm, method = tiny_lm(architecture), DeTox(layer_start=1, rank=2)
    artefact = fit(method, lm)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    weights = [layout.value_matrix(lm.model, layer).read().clone() for layer in range(len(layout.blocks(lm.model)))]
    edited = {id(layout.value_matrix(lm.model, layer).parameter) for layer in range(1, len(weights))}
    with method.apply(lm.model, artefact, 1.0):
        for name, parameter in lm.model.named_parameters():
            assert torch.equal(parameter, before[name]) == (id(parameter) not in edited), name
        for layer in range(1, len(weights)):
            v, new = artefact[f"layers.{layer}.directions"], layout.value_matrix(lm.model, layer).read()
            size = weights[layer].norm()
            assert (v @ weights[layer]).norm() > 0.05 * size
            assert (v @ new).norm() < 1e-6 * size
            assert new.norm() < size
            torch.testing.assert_close(projected_off(new, v), new, atol=1e-6, rtol=1e-5)  # idempotent
            lost = np.linalg.matrix_rank(weights[layer].numpy()) - np.linalg.matrix_rank(new.numpy(), tol=1e-4)
            assert lost <= 2
    assert f"layers.{0}.directions" not in artefact
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.model.named_parameters())


def test_strength_is_the_fraction_projected():
    weight, v = torch.randn(5, 7), torch.eye(5)[[1, 3]]
    for strength in (0.0, 0.25, 1.0, 2.0):
        expected = weight.clone()
        expected[[1, 3]] *= 1 - strength
        torch.testing.assert_close(projected_off(weight, v, strength), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mlp_output_without_bias_is_orthogonal_to_the_subspace(architecture):
    lm, method = tiny_lm(architecture), DeTox(layer_start=1)
    artefact = fit(method, lm)
    value = layout.blocks(lm.model)[1].get_submodule(layout.of(lm.model).value[0])
    x = torch.randn(40, layout.value_matrix(lm.model, 1).read().shape[1])
    bias = 0 if value.bias is None else value.bias
    v = artefact["layers.1.directions"]
    assert ((value(x) - bias) @ v.T).abs().max() > 1
    with method.apply(lm.model, artefact, 1.0):
        assert ((value(x) - bias) @ v.T).abs().max() < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(("text", "read"), [("continuation", "all"), ("full", "all"), ("full", "continuation")])
def test_fit_by_hand(architecture, text, read):
    lm, layer = tiny_lm(architecture, bos="none"), 1
    pooled = {}
    for kind in ("desired", "undesired"):
        rows = []
        for prompt, tail in zip(PAIRS.prompt, getattr(PAIRS, kind), strict=True):
            head = lm.tokenizer(prompt).input_ids if text == "full" else []
            ids = torch.tensor([head + lm.tokenizer(tail).input_ids])
            hidden = lm.model(ids, output_hidden_states=True).hidden_states[layer + 1][0]  # output of block 1
            rows.append(hidden[len(head) if read == "continuation" else 0 :].mean(0))
        pooled[kind] = torch.stack(rows).double().numpy()
    mean = np.linalg.svd(pooled["desired"])[2][0]
    t = (pooled["desired"] - pooled["undesired"]) / 2 @ (np.eye(len(mean)) - np.outer(mean, mean))
    values, v = np.linalg.svd(t)[1:]
    artefact = fit(DeTox(layer_start=1, layer_stop=2, text=text, read=read), lm)
    assert [name for name in artefact if not name.startswith("info.")] == ["layers.1.directions"]
    found = artefact["layers.1.directions"].double().numpy()
    np.testing.assert_allclose(found.T @ found, v[:2].T @ v[:2], atol=1e-4)
    np.testing.assert_allclose(found @ mean, 0, atol=1e-4)
    explained = (values[:2] ** 2).sum() / (values**2).sum()
    assert artefact["info.explained_variance"].tolist() == pytest.approx([explained], rel=1e-3)


def test_mu_is_taken_out_where_the_desired_texts_have_no_mean():
    desired = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])  # mu is the first axis, of either sign
    undesired = desired + torch.tensor([[9.0, 1.0, 0.0], [-9.0, 1.0, 0.0]])
    found = toxic_subspace(desired, undesired, 1)
    torch.testing.assert_close(found.directions, torch.tensor([[0.0, 1.0, 0.0]]))
    assert found.mean.abs().tolist() == pytest.approx([1, 0, 0])


def factors(n=60, width=30, k=3, noise=0.01, seed=0):
    """Desired = mean + context; undesired = the same + random amounts of k directions and of the mean."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, k + 1, generator=g, dtype=torch.float64)).Q.T
    mean, planted = basis[0], basis[1:]
    context = torch.randn(n, width, generator=g, dtype=torch.float64)
    desired = 50 * mean + context + noise * torch.randn(n, width, generator=g)
    amounts = 1 + torch.rand(n, k, generator=g, dtype=torch.float64) * 3
    leak = 6 * torch.randn(n, 1, generator=g, dtype=torch.float64)
    return desired, desired + amounts @ planted + leak * mean, planted, mean


def test_planted_factors_are_found_without_the_mean():
    desired, undesired, planted, mean = factors()
    found = toxic_subspace(desired, undesired, 3).directions.double()
    assert torch.linalg.svdvals(found @ planted.T).min() > 0.99  # cosines of the principal angles
    assert (found @ mean).abs().max() < 0.05
    leaking = toxic_subspace(desired, undesired, 3, center=False).directions.double()
    assert (leaking @ mean).norm() > 0.99


def test_directions_are_orthonormal_and_orthogonal_to_mu():
    desired, undesired, _, _ = factors(noise=0.5)
    v = toxic_subspace(desired, undesired, 4).directions
    torch.testing.assert_close(v @ v.T, torch.eye(4), atol=1e-6, rtol=0)
    p = projection(v)
    torch.testing.assert_close(p @ p, p, atol=1e-6, rtol=0)
    assert torch.equal(p, p.T) and p.trace() == pytest.approx(4, abs=1e-5)
    mu = torch.linalg.svd(desired)[2][0].float()
    assert (v @ mu).abs().max() < 1e-6
    scaled = toxic_subspace(300 * desired, 300 * undesired, 4).directions
    torch.testing.assert_close(projection(scaled), projection(v), atol=1e-6, rtol=0)


def test_swapped_pairs_change_nothing_while_mu_is_fixed():
    desired, undesired, _, _ = factors(noise=0.5)
    swap = torch.arange(len(desired)) % 3 == 0
    flipped = [torch.where(swap[:, None], a, b) for a, b in ((undesired, desired), (desired, undesired))]
    v, w = (toxic_subspace(*x, 3, center=False).directions for x in ((desired, undesired), flipped))
    torch.testing.assert_close(projection(w), projection(v), atol=1e-6, rtol=0)


def test_directions_point_to_undesired_and_mu_to_desired_texts():
    desired, undesired, planted, mean = factors(k=1)
    for sign in (1, -1):  # whatever sign the SVD happens to give
        found = toxic_subspace(sign * desired, sign * undesired, 1)
        assert sign * found.directions[0].double() @ planted[0] > 0.99
        assert sign * found.mean.double() @ mean > 0.9


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_top_tokens(architecture):
    lm, method = tiny_lm(architecture), DeTox(layer_start=1, layer_stop=2)
    artefact = fit(method, lm)
    directions, unembedding = artefact["layers.1.directions"], lm.model.get_output_embeddings().weight  # (V, D)
    logits = directions @ unembedding.T
    best = artefact["info.layers.1.top_tokens"]
    assert best.shape == (2, 10) and artefact["info.layers.1.mean_top_tokens"].shape == (10,)
    for row, scores in zip(best, logits, strict=True):
        assert scores[row].min() >= scores[[i for i in range(len(scores)) if i not in row.tolist()]].max()
        assert scores[row].tolist() == sorted(scores.tolist(), reverse=True)[:10]


def test_random_subspace():
    desired, undesired, _, mean = factors(noise=0.5)
    one, same, other = (
        random_subspace(desired, undesired, 3, torch.Generator().manual_seed(seed)).directions for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and (one @ other.T).norm() < 1.5
    torch.testing.assert_close(one @ one.T, torch.eye(3), atol=1e-6, rtol=0)
    assert (one @ torch.linalg.svd(desired)[2][0].float()).abs().max() < 1e-6
    loose = random_subspace(desired, undesired, 29, torch.Generator().manual_seed(0), center=False)
    assert (loose.directions.double() @ mean).norm() > 0.9
    assert loose.explained > 0.5
    lm = tiny_lm()
    control = fit(DeTox(subspace="random"), lm)
    assert (control["info.explained_variance"] < fit(DeTox(), lm)["info.explained_variance"]).all()
    seeds = [fit(DeTox(subspace="random", seed=seed), lm)["layers.2.directions"] for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


def test_independent_pairing_takes_undesired_texts_elsewhere():
    lm = tiny_lm()
    order = torch.randperm(len(PAIRS.prompt), generator=torch.Generator().manual_seed(5)).tolist()
    assert sorted(order) != order
    by_hand = PAIRS._replace(
        undesired=[PAIRS.undesired[i] for i in order]
    )  # read by themselves, so prompts do not count
    drawn = fit(DeTox(pairing="independent", seed=5), lm)["layers.3.directions"]
    torch.testing.assert_close(drawn, fit(DeTox(), lm, by_hand)["layers.3.directions"], atol=1e-5, rtol=0)
    paired = fit(DeTox(), lm)["layers.3.directions"]
    assert (projection(drawn) - projection(paired)).abs().max() > 0.05


def angle(found, expected):
    """The largest principal angle between two subspaces of orthonormal rows, in degrees."""
    return float(torch.linalg.svdvals(found.double() @ expected.double().T).clamp(max=1).acos().max().rad2deg())


@pytest.mark.parametrize("pad_token", ["<pad>", None])  # OPT has a token of its own, GPT-2 none
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_padding_is_averaged_in_as_the_authors_code_does(architecture, side, pad_token):
    """Written from what it does: one padded call with the mask passed on, then the mean over all columns."""
    lm, layer = tiny_lm(architecture, bos="none"), 1
    tokenizer, oracle, unmasked = lm.tokenizer, [], []
    tokenizer.padding_side, tokenizer.pad_token = side, pad_token or tokenizer.eos_token
    for texts in (PAIRS.desired, PAIRS.undesired):
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
        assert (inputs.attention_mask == 0).any() and (inputs.input_ids == tokenizer.pad_token_id).any()
        with torch.inference_mode():
            oracle.append(lm.model(**inputs, output_hidden_states=True).hidden_states[layer + 1].mean(1))
            ids = torch.where(inputs.attention_mask == 1, inputs.input_ids, tokenizer.eos_token_id)
            unmasked.append(lm.model(ids, output_hidden_states=True).hidden_states[layer + 1].mean(1))
    expected = toxic_subspace(*oracle, 2).directions
    tokenizer.pad_token = pad_token
    method = DeTox(mask_padding=False, layer_start=layer, layer_stop=layer + 1)
    found = fit(method, lm)[f"layers.{layer}.directions"]
    assert angle(found, expected) < 0.1
    assert angle(toxic_subspace(*unmasked, 2).directions, expected) > 5  # padding that attends, as it was here once
    masked = fit(DeTox(layer_start=layer, layer_stop=layer + 1), lm)[f"layers.{layer}.directions"]
    assert angle(masked, expected) > 5


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_read_behind_a_prompt_leaves_the_prompt_out(side):
    lm, layer = tiny_lm(), 2
    lm.tokenizer.padding_side, pooled = side, []
    for texts in (PAIRS.desired, PAIRS.undesired):
        heads = [len(lm.tokenizer(prompt).input_ids) for prompt in PAIRS.prompt]
        wholes = [prompt + text for prompt, text in zip(PAIRS.prompt, texts, strict=True)]
        inputs = lm.tokenizer(wholes, return_tensors="pt", padding=True)
        hidden = lm.model(**inputs, output_hidden_states=True).hidden_states[layer + 1]
        place = inputs.attention_mask.cumsum(-1) * inputs.attention_mask  # counted from 1; 0 at padding
        read = (place == 0) | (place > torch.tensor(heads)[:, None])
        pooled.append(torch.stack([row[where].mean(0) for row, where in zip(hidden, read, strict=True)]))
    expected = toxic_subspace(*pooled, 2).directions
    method = DeTox(mask_padding=False, text="full", read="continuation", layer_start=layer)
    assert angle(fit(method, lm)[f"layers.{layer}.directions"], expected) < 0.1


@pytest.mark.parametrize(("architecture", "readers"), [("llama", ["mlp.gate_proj", "mlp.up_proj"]), ("opt", ["fc1"])])
def test_keys_no_longer_read_the_subspace(architecture, readers):
    lm, method = tiny_lm(architecture), DeTox(layer_start=1, layer_stop=2, keys=True)
    artefact = fit(method, lm)
    v = artefact["layers.1.directions"]
    block, before = layout.blocks(lm.model)[1], {n: p.clone() for n, p in lm.model.named_parameters()}
    x = torch.randn(9, v.shape[1])
    along = x + 3 * v[0] - 2 * v[1]
    with method.apply(lm.model, artefact, 1.0):
        for name in readers:
            module = block.get_submodule(name)
            torch.testing.assert_close(module(along), module(x), atol=1e-4, rtol=1e-4)
        changed = {n for n, p in lm.model.named_parameters() if not torch.equal(p, before[n])}
    assert len(changed) == len(readers) + 1 and all("1." in name for name in changed)
    module = block.get_submodule(readers[0])
    assert (module(along) - module(x)).abs().max() > 0.1


def test_half_precision_is_edited_in_fp32():
    lm, method = tiny_lm(), DeTox(layer_start=1, layer_stop=2)
    lm.model.to(torch.bfloat16)
    artefact = fit(method, lm)
    v = artefact["layers.1.directions"]
    torch.testing.assert_close(v @ v.T, torch.eye(2), atol=1e-6, rtol=0)
    weight = layout.value_matrix(lm.model, 1).read().clone()
    exact = weight.double() - v.double().T @ (v.double() @ weight.double())
    with method.apply(lm.model, artefact, 1.0):
        new = layout.value_matrix(lm.model, 1).read()
        assert new.dtype == torch.bfloat16
        assert (new == exact.to(torch.bfloat16)).float().mean() > 0.999  # rounded once, at the end


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_planted_sink(architecture):
    planted = planted_sink(architecture)

    def cosines(**options):
        method = DeTox(layer_start=1, layer_stop=2, rank=1, **options)
        v = fit(method, planted.lm, planted.pairs)["layers.1.directions"][0]
        return abs(float(v @ planted.direction)), abs(float(v @ planted.sink))

    for reading in ({"skip_first": 1}, {"text": "full", "skip_first": 1}, {"text": "full", "read": "continuation"}):
        along, sink = cosines(center=False, **reading)
        assert along > 0.99 and sink < 0.01, reading
    for text in ("continuation", "full"):
        assert cosines(center=False, text=text)[1] > 0.9  # lengths differ, so the sink does not cancel
        along, sink = cosines(text=text)  # mu is the sink's direction: centering takes it out
        assert along > 0.99 and sink < 0.05, text
    # Without a sink mu is what the desired texts share; here that is the planted direction itself.
    assert cosines(skip_first=1)[0] < 0.1


def test_rank_beyond_the_pairs():
    with pytest.raises(SetupError, match="rank=3 needs at least as many pairs and got 2"):
        fit(DeTox(rank=3), tiny_lm(), Pairs(["a", "d"], [" b", " e"], [" c", " f"]))


def test_one_pair():
    with pytest.raises(SetupError, match="detox learns from contrast pairs and got 1; give at least 2"):
        fit(DeTox(rank=1), tiny_lm(), Pairs(["a"], [" b"], [" c"]))


def test_pairs_that_do_not_differ():
    with pytest.raises(SetupError, match="differ in only 0 directions"):
        fit(DeTox(), tiny_lm(), PAIRS._replace(undesired=PAIRS.desired))


def test_pairs_that_differ_in_fewer_directions_than_the_rank():
    same = PAIRS._replace(undesired=PAIRS.undesired[:1] + PAIRS.desired[1:])
    with pytest.raises(SetupError, match="rank=2, but .* only 1 directions"):
        fit(DeTox(), tiny_lm(), same)


def test_no_pairs():
    with pytest.raises(SetupError, match="detox learns from contrast pairs and got none"):
        fit(DeTox(), tiny_lm(), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 is outside 1 to 35"),
        ({"rank": 36}, "rank=36 is outside 1 to 35"),
        (
            {"layer_start": 5},
            r"layer 5 out of range: this model of type llama has 5 blocks \(0-4\); set method.layer_start",
        ),
        ({"layer_start": 3, "layer_stop": 3}, "method.layer: no block between 3 and 3"),
        ({"text": "prompt"}, "method.text='prompt': allowed are continuation, full"),
        ({"read": "last"}, "method.read='last': allowed are all, continuation"),
        ({"pairing": "none"}, "method.pairing='none': allowed are paired, independent"),
        ({"subspace": "mean"}, "method.subspace='mean': allowed are pairs, random"),
    ],
)
def test_check(options, message):
    with pytest.raises(SetupError, match=message):
        DeTox(**options).check(tiny_lm().model)


def test_an_edit_that_changes_nothing_is_an_error():
    lm, method = tiny_lm(), DeTox()
    with pytest.raises(SetupError, match="changed no matrix"), method.apply(lm.model, {}, 1.0):
        pass
    with method.apply(lm.model, {}, 0.0):
        pass
    artefact = fit(method, lm)
    with torch.no_grad():
        for layer in range(len(layout.blocks(lm.model))):
            layout.value_matrix(lm.model, layer).parameter.zero_()  # MLPs that write nothing have nothing to lose
    with pytest.raises(SetupError, match="changed no matrix"), method.apply(lm.model, artefact, 1.0):
        pass


def test_artefact_of_another_model():
    method = DeTox()
    artefact = fit(method, tiny_lm("llama"))
    with pytest.raises(SetupError, match="was not fitted on this model"):
        method.apply(tiny_lm("gpt2").model, artefact, 1.0).__enter__()


def test_max_tokens_is_how_much_of_a_text_is_read():
    lm = tiny_lm()
    longest = max(len(lm.encode(p + t)) for side in PAIRS[1:] for p, t in zip(PAIRS.prompt, side, strict=True))
    cut = [int(fit(DeTox(text="full", max_tokens=n), lm)["info.cut_pairs"]) for n in (longest, longest - 1)]
    assert cut[0] == 0 < cut[1]
