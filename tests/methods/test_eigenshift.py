"""EigenShift: directions and edited weights against a whole SVD, a planted direction, and what is untied and undone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.export.effect import measure
from bench.model.lm import LM
from bench.model.sampling import prefill
from methods import untying
from methods.base import FitData, Pairs
from methods.eigenshift import EigenShift, damped, singular, unembedding
from methods.errors import SetupError
from tests.architectures import lm_of
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

TEXT = "The old tree near the river"


def fit(method: EigenShift, lm: LM, pairs: Pairs = PAIRS) -> dict[str, torch.Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def states(lm: LM, pairs: Pairs, side: list[str]) -> list[np.ndarray]:
    """(C, D) of each text, by transformers' own output: the states before the tokens of its continuation."""
    found = []
    for prompt, text in zip(pairs.prompt, side, strict=True):
        ids, begin = lm.tokenizer(prompt + text).input_ids, len(lm.encode(prompt))
        with torch.no_grad():
            hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        found.append(hidden[0, begin - 1 : len(ids) - 1].double().numpy())
    return found


def by_svd(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, sigma and V^T by numpy, each v_i turned so that its entry of largest size is positive."""
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    return left * signs, values, right * signs[:, None]


def by_hand(lm: LM, method: EigenShift, strength: float, pairs: Pairs = PAIRS) -> tuple[set[int], np.ndarray]:
    """The chosen directions, and U diag((1 - strength) sigma) V^T where they are chosen."""
    left, values, right = by_svd(unembedding(lm.model).double().numpy())
    toxic = np.concatenate(states(lm, pairs, pairs.undesired)).mean(0)
    desired = states(lm, pairs, pairs.desired)
    clean = np.concatenate([one[:1] if method.clean == "prompt" else one for one in desired]).mean(0)
    rows = right.T if method.projection == "released" else right
    along = [sum(a * b for a, b in zip(row, toxic - clean, strict=True)) for row in rows]
    gaps = np.abs(along) if method.rank_by == "size" else np.array(along)
    chosen = np.argsort(-gaps)[: max(1, round(method.share * len(values)))]
    values[chosen] *= 1 - strength
    return set(chosen.tolist()), left @ np.diag(values) @ right


CASES = [
    ("llama", {}, 0.7), ("llama", {"clean": "prompt", "share": 0.3}, 1.0), ("gpt2", {"rank_by": "signed"}, 0.5),
    ("gpt2", {"projection": "released", "share": 0.2}, 0.9), ("gptj", {"share": 0.5}, 0.1),
    ("opt", {"projection": "released", "rank_by": "signed"}, 1.0), ("gpt_neox", {}, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "options", "strength"), CASES)
def test_directions_and_weights_are_those_of_a_whole_svd(architecture, options, strength):
    lm, method = tiny_lm(architecture), EigenShift(**options)
    chosen, wanted = by_hand(lm, method, strength)
    artefact = fit(method, lm)
    assert set(artefact["info.chosen"].tolist()) == chosen
    with method.apply(lm.model, artefact, strength):
        found = unembedding(lm.model).double().numpy().copy()
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    assert difference < 5e-6


def test_chosen_values_shrink_and_the_others_stay():
    """W' v_i = (1 - s) W v_i for a chosen v_i, and W v_i for any other; at strength 0 all of W stays."""
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    values, axes = singular(weight)
    np.testing.assert_allclose(values.numpy(), np.linalg.svd(weight.double().numpy())[1], rtol=1e-12)
    edited = damped(weight, axes[[1, 6]].float(), 0.4)
    for number, axis in enumerate(axes.float()):
        factor = 0.6 if number in (1, 6) else 1
        torch.testing.assert_close(edited @ axis, factor * weight @ axis, rtol=1e-5, atol=1e-5)
    assert torch.equal(damped(weight, axes[:3].float(), 0), weight)


@pytest.mark.parametrize("projection", ["paper", "released"])
def test_a_planted_direction_is_found_by_the_formula_alone(projection):
    """States of desired and undesired texts differ along the eighth singular direction, far from the sink."""
    lm, pairs, direction, sink = planted_sink()
    weight = unembedding(lm.model)
    drawn = torch.randn(len(direction), len(direction), generator=torch.Generator().manual_seed(4))
    drawn[0], drawn[1] = direction, sink
    rows = torch.linalg.qr(drawn.T).Q.T  # the first row is the direction, up to its sign
    order = [*range(1, 8), 0, *range(8, len(rows))]
    left = torch.linalg.qr(torch.randn(len(weight), len(rows), generator=torch.Generator().manual_seed(5))).Q
    weight.copy_(left @ torch.diag(torch.linspace(9, 1, len(rows))) @ rows[order])
    artefact = fit(EigenShift(share=1 / len(rows), projection=projection), lm, pairs)
    found = artefact["info.chosen"].tolist()
    assert (found == [7]) == (projection == "paper")
    if projection == "paper":
        assert abs(float(artefact["directions"][0] @ direction)) > 0.999


def test_the_signed_ranking_follows_the_labels():
    """Toxic states that lie higher along v_i are one thing, and clean ones that do another."""
    lm, swapped = tiny_lm(), Pairs(PAIRS.prompt, PAIRS.undesired, PAIRS.desired)
    size, signed = EigenShift(share=0.2), EigenShift(share=0.2, rank_by="signed")
    one, other = (fit(signed, lm, pairs)["info.chosen"].tolist() for pairs in (PAIRS, swapped))
    assert not set(one) & set(other)
    one, other = (fit(size, lm, pairs)["info.chosen"].tolist() for pairs in (PAIRS, swapped))
    assert one == other


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_only_the_unembedding_is_edited_and_all_of_it_restored(architecture):
    lm, method = lm_of(architecture), EigenShift(share=0.3)
    tied = untying.is_tied(lm.model)
    table = lm.model.get_input_embeddings().weight
    ids, before = [lm.encode(TEXT)], {key: one.clone() for key, one in lm.model.state_dict().items()}
    base, artefact = prefill(lm, ids)[1], fit(method, lm)
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base) and untying.is_tied(lm.model) == tied
    with pytest.raises(ZeroDivisionError), lm.steered(method, artefact, 0.8) as steered:
        assert not torch.equal(prefill(steered, ids)[1], base)
        changed = {key for key, one in lm.model.state_dict().items() if not torch.equal(one, before[key])}
        assert changed == {"lm_head.weight"} and not untying.is_tied(lm.model)
        raise ZeroDivisionError
    assert untying.is_tied(lm.model) == tied and lm.model.get_input_embeddings().weight is table
    assert all(torch.equal(one, before[key]) for key, one in lm.model.state_dict().items())
    assert torch.equal(prefill(lm, ids)[1], base)


def test_strength_1_projects_the_directions_off_the_states():
    """Logits are then those of states without any part along the chosen directions."""
    lm, method = tiny_lm(), EigenShift(share=0.25)
    artefact, ids = fit(method, lm), torch.tensor([lm.encode(TEXT)])
    rows = artefact["directions"]
    with torch.no_grad():
        last = lm.model(ids, output_hidden_states=True).hidden_states[-1]
        wanted = lm.model.get_output_embeddings()(last - last @ rows.T @ rows)
        with method.apply(lm.model, artefact, 1.0):
            found = lm.model(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_it_is_exported_as_one_weight_of_low_rank():
    for architecture in ("llama", "gpt2"):
        lm, method = tiny_lm(architecture), EigenShift(share=0.1)
        effect = measure(lm, method, fit(method, lm), 0.5)
        assert effect.beyond is None and not effect.vectors and list(effect.weights) == ["lm_head.weight"]
        assert effect.unties == (architecture == "gpt2")


def test_wrong_settings_and_data():
    lm = tiny_lm()
    for options, message in (
        ({"share": 0}, r"method\.share=0: expected a number above 0 and below 1"),
        ({"share": 1}, r"method\.share=1: expected a number above 0 and below 1"),
        ({"share": "all"}, r"method\.share='all': expected a number above 0 and below 1"),
        ({"projection": "rows"}, "allowed are paper, released"),
        ({"rank_by": "sign"}, "allowed are size, signed"),
        ({"clean": "all"}, "allowed are continuation, prompt"),
        ({"max_tokens": 0}, r"method\.max_tokens=0: expected a whole number, at least 1"),
        ({"max_tokens": 2.5}, r"method\.max_tokens=2\.5: expected a whole number, at least 1"),
    ):
        with pytest.raises(SetupError, match=message):
            fit(EigenShift(**options), lm)
    with pytest.raises(SetupError, match="eigenshift learns from contrast pairs and got 1; give at least 2"):
        fit(EigenShift(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="toxic and clean states have the same mean"):
        fit(EigenShift(), lm, PAIRS._replace(undesired=PAIRS.desired))
    with pytest.raises(SetupError, match=r"directions \(36,\) was not fitted on this model"):
        with EigenShift().apply(lm.model, {"directions": fit(EigenShift(), lm)["directions"][0]}, 1):
            pass
    other = tiny_lm("gpt2")
    with pytest.raises(SetupError, match=r"directions \(2, 36\) was not fitted on this model, whose width is 28"):
        with EigenShift().apply(other.model, fit(EigenShift(), lm), 1):
            pass
    broken = tiny_lm()
    unembedding(broken.model)[3, 2] = torch.nan
    with pytest.raises(SetupError, match="the unembedding is not finite"):
        fit(EigenShift(), broken)
    no_norm = tiny_lm()
    no_norm.model.model.norm = None
    with pytest.raises(SetupError, match="no final norm"):
        EigenShift().check(no_norm.model)


def test_a_single_pair_that_is_left_is_too_few():
    """One pair says how two texts differ, also where other pairs were left out."""
    lm, empty = tiny_lm(), [""] * 7
    with pytest.raises(SetupError, match="1 pair whose texts both have a continuation to learn, and at least 2"):
        fit(EigenShift(), lm, PAIRS._replace(desired=[*PAIRS.desired[:1], *empty]))
    assert fit(EigenShift(), lm, PAIRS._replace(desired=[*PAIRS.desired[:2], *empty[:6]]))["info.left_out_pairs"] == 6


def test_a_pair_with_an_empty_text_is_left_out_and_counted():
    lm = tiny_lm()
    pairs = Pairs([*PAIRS.prompt, "The fox"], [*PAIRS.desired, ""], [*PAIRS.undesired, " hate"])
    artefact, wanted = fit(EigenShift(), lm, pairs), fit(EigenShift(), lm)
    assert artefact["info.left_out_pairs"] == 1 and torch.equal(artefact["directions"], wanted["directions"])
    method = replace(EigenShift(), clean="prompt")
    assert fit(method, lm)["info.clean_states"] == len(PAIRS.prompt)


def test_the_share_of_squares_is_that_of_a_whole_svd():
    lm, method = tiny_lm(), EigenShift(share=0.3)
    chosen, _ = by_hand(lm, method, 1.0)
    squares = np.linalg.svd(unembedding(lm.model).double().numpy())[1] ** 2
    found = float(fit(method, lm)["info.share_of_squares"])
    assert found == pytest.approx(squares[list(chosen)].sum() / squares.sum(), rel=1e-5)


def test_max_tokens_is_how_much_of_a_text_is_read():
    lm = tiny_lm()
    longest = max(len(lm.encode(p + t)) for side in PAIRS[1:] for p, t in zip(PAIRS.prompt, side, strict=True))
    cut = [int(fit(EigenShift(max_tokens=n), lm)["info.cut_pairs"]) for n in (longest, longest - 1)]
    assert cut[0] == 0 < cut[1]
