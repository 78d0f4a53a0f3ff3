import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.model.lm import LM
from bench.model.log_likelihood import log_likelihood
from bench.model.sampling import prefill, sample
from bench.records import identity
from methods import directions, layout, sites
from methods.ablation import Ablation
from methods.act import AcT
from methods.act_add import ActAdd
from methods.base import FitData, Method, Pairs, Steering, facts
from methods.caa import CAA
from methods.detox import DeTox
from methods.errors import SetupError
from methods.gate import Gate, Sets, chosen, cross_validated, regression, similarity, weighed
from methods.intervention import Hook, Positions, adding, at, edited, hooked, record, wrapped
from methods.repe import RepE
from methods.stack import Stack
from tests.methods.test_contract import DATA, PAIRS
from tests.tiny import CORPUS, tiny_lm

LAYER = 3
PROMPTS = ["The quick fox", "People walk along the water and", "a bird", "Bread near the long road home", "The"]
ENDS = [" the old tree"] * len(PROMPTS)
INNER = CAA(layer=LAYER)
GATE = Gate(inner=INNER, condition_layer=1)
STRENGTH = 3.0
POOLED_AT = directions.pooled_at


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm()


@pytest.fixture(scope="module")
def found(lm):
    """The artefact of the gate, whose threshold tests set as they need it."""
    return GATE.fit(lm.model, lm.tokenizer, FitData(**DATA))


def prompt_similarity(lm: LM, artefact, prompt: str) -> float:
    """By hand: the mean of the input of block 1 over the prompt but its first token."""
    with torch.inference_mode():
        hidden = lm.model(torch.tensor([lm.encode(prompt)]), output_hidden_states=True).hidden_states[1][0].double()
    mean = hidden[1:].mean(0) if len(hidden) > 1 else hidden[-1]
    axis = artefact["condition"].double()
    projected = torch.tanh(axis * (axis @ mean))
    return float(mean @ projected / (mean.norm() * projected.norm()))


def between(lm: LM, artefact, prompts: Sequence[str] = PROMPTS):
    """The artefact with a threshold that two of the prompts are below, and which ones are open then."""
    sims = [prompt_similarity(lm, artefact, prompt) for prompt in prompts]
    ordered = sorted(sims)
    cut = (ordered[1] + ordered[2]) / 2
    return artefact | {"threshold": torch.tensor(cut), "above": torch.tensor(1.0)}, [one > cut for one in sims]


@pytest.mark.parametrize("where", ["attention", "block"])
def test_a_method_that_is_fitted_block_by_block_behind_a_gate(lm, where, monkeypatch):
    """AcT runs a block on all batches before the next: each batch keeps its own verdicts."""
    whole = GATE.fit(lm.model, lm.tokenizer, FitData(**DATA))
    threshold = between(lm, whole, PAIRS.prompt)[0]["threshold"]
    parts = {"gate": replace(GATE, threshold=float(threshold), when="above"), "act": AcT(where=where)}
    found = []
    for size in (100, 5, 3):
        monkeypatch.setattr(directions, "pooled_at", partial(POOLED_AT, batch_size=size))
        found.append(Stack(parts=parts, at={"gate": STRENGTH, "act": 1.0}).fit(lm.model, lm.tokenizer, FitData(**DATA)))
    assert 0 < found[0]["info.gate.open_prompts"] < 1
    for key in (key for key in found[0] if key.startswith("act.") and key.endswith(("scale", "shift"))):
        for other in found[1:]:
            torch.testing.assert_close(other[key], found[0][key], atol=1e-4, rtol=1e-4, msg=key)


def test_ordinary_texts_without_tokens_to_read_are_left_out():
    lm = tiny_lm(bos="none")
    with_empty = {**DATA, "background": [*DATA["background"], ""]}
    plain, more = (GATE.fit(lm.model, lm.tokenizer, FitData(**data)) for data in (DATA, with_empty))
    assert torch.equal(plain["condition"], more["condition"]) and more["info.left_out_background"] == 1
    with pytest.raises(
        SetupError, match="and 1 of 2 are longer than the 1 token\\(s\\) that method.skip_first leaves out"
    ):
        GATE.fit(lm.model, lm.tokenizer, FitData(**DATA | {"background": ["", "an ordinary text"]}))


def set_to(artefact, threshold: float):
    return artefact | {"threshold": torch.tensor(threshold), "above": torch.tensor(1.0)}


def texts(lm: LM, method: Method, artefact, strength: float = STRENGTH):
    with lm.steered(method, artefact, strength) as steered:
        return sample(steered, PROMPTS, 3, 6), log_likelihood(steered, PROMPTS, ENDS)


def ungated(artefact):
    return {key.removeprefix("inner."): one for key, one in artefact.items() if key.startswith("inner.")}


# -- CAST ---------------------------------------------------------------------------------------------------------


def test_condition_by_hand(lm, found):
    """Means by hand, the axis by an eigenvalue problem, threshold and side by trying all."""
    sets = [[p + t for p, t in zip(PAIRS.prompt, PAIRS.undesired, strict=True)], DATA["background"]]
    rows = []
    for text in (one for side in sets for one in side):
        with torch.inference_mode():
            out = lm.model(torch.tensor([lm.encode(text)]), output_hidden_states=True)
        rows.append(out.hidden_states[1][0, 1:].double().mean(0).numpy())  # input of block 1
    rows = np.stack(rows)
    axis = np.linalg.eigh(np.cov(rows.T))[1][:, -1]
    axis *= np.sign(axis @ found["condition"].double().numpy())
    np.testing.assert_allclose(found["condition"].numpy(), axis, atol=1e-4)
    projected = np.tanh(np.outer(rows @ axis, axis))
    sims = (rows * projected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(projected, axis=1)
    labels, best = np.arange(len(rows)) < len(PAIRS.prompt), 0.0
    for cut in (np.sort(sims)[1:] + np.sort(sims)[:-1]) / 2:
        for is_open in (sims > cut, sims < cut):
            best = max(best, 2 * (is_open & labels).sum() / (is_open.sum() + labels.sum()))
    is_open = (sims > float(found["threshold"])) == bool(found["above"])
    assert 2 * (is_open & labels).sum() / (is_open.sum() + labels.sum()) == pytest.approx(best)
    assert float(found["info.f1"]) == pytest.approx(best)
    assert float(found["info.open_source"]) == pytest.approx(is_open[labels].mean())
    assert float(found["info.open_control"]) == pytest.approx(is_open[~labels].mean())


def test_the_best_threshold_by_hand():
    source, control = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.25, 0.6, 0.7, 0.8])
    threshold, above, f1 = chosen(source, control, None, "auto")
    assert not above and threshold == pytest.approx(0.45) and f1 == pytest.approx(6 / 7)
    assert chosen(source, control, 0.22, "auto") == (0.22, False, pytest.approx(4 / 5))
    assert chosen(source, control, 0.22, "above") == (0.22, True, pytest.approx(2 / 8))


def test_similarity_has_no_sign():
    features, axis = torch.randn(4, 6), torch.nn.functional.normalize(torch.randn(6), dim=0)
    torch.testing.assert_close(similarity(features, axis), similarity(features, -axis))


def test_open_is_ungated_and_closed_is_unsteered(lm, found):
    assert texts(lm, GATE, set_to(found, -2)) == texts(lm, INNER, ungated(found)) != texts(lm, INNER, {}, 0)
    assert texts(lm, GATE, set_to(found, 2)) == texts(lm, INNER, {}, 0)


def test_each_row_is_judged_by_itself(lm, found):
    """Beside others and alone, padded, in every step: as the prompt's own mean says."""
    judged, is_open = between(lm, found)
    assert 0 < sum(is_open) < len(PROMPTS)
    ids = [lm.encode(prompt) for prompt in PROMPTS]

    def steps(method, artefact, ids, strength=STRENGTH):
        step = torch.tensor([[40]] * len(ids)), torch.ones(len(ids), 1, dtype=torch.bool)
        with lm.steered(method, artefact, strength) as steered:
            rows, first = prefill(steered, ids)
            return torch.stack([first, *(steered.read(rows, *step)[:, -1] for _ in range(3))], 1)  # (B, 4, V)

    base, always = steps(INNER, {}, ids, 0), steps(INNER, ungated(found), ids)
    together = steps(GATE, judged, ids)
    for row, one in enumerate(is_open):
        assert torch.equal(together[row], (always if one else base)[row])
        assert not torch.equal(base[row], always[row])
        torch.testing.assert_close(steps(GATE, judged, [ids[row]])[0], together[row], atol=1e-4, rtol=1e-4)


def test_sampled_rows_keep_the_verdict(lm, found):
    judged, is_open = between(lm, found)
    gated, steered, base = (texts(lm, *one)[0] for one in ((GATE, judged), (INNER, ungated(found)), (INNER, {}, 0)))
    for row, one in enumerate(is_open):
        assert gated[row] == (steered if one else base)[row]


def test_a_context_may_be_read_in_parts(lm, found):
    """Contexts that begin alike are read once up to there; the mean is that of the whole."""
    prompts = [CORPUS[:150] + prompt for prompt in PROMPTS] + PROMPTS
    judged, is_open = between(lm, found, prompts)

    def scores(method, artefact, strength=STRENGTH):
        with lm.steered(method, artefact, strength) as steered:
            return log_likelihood(steered, prompts, ENDS * 2)

    gated, steered, base = scores(GATE, judged), scores(INNER, ungated(found)), scores(INNER, {}, 0)
    assert [one == other for one, other in zip(gated, steered, strict=True)] == is_open
    assert [one == other for one, other in zip(gated, base, strict=True)] == [not one for one in is_open]


def test_it_does_not_guess_what_was_read_elsewhere(lm, found):
    two, ids = torch.tensor([2]), torch.tensor([[5, 6]])
    with GATE.apply(lm.model, found, 1.0), at(Positions(0 * two, two, two, 2 * two)):
        with pytest.raises(RuntimeError, match="some were read without keeping what was seen"):
            lm.model(ids, use_cache=False)


@pytest.mark.parametrize(("threshold", "told"), [(-2.0, "always_open"), (2.0, "never_opens")])
def test_a_condition_that_always_or_never_holds_is_said(lm, threshold, told):
    method = replace(GATE, threshold=threshold, when="above")
    found = facts(method.fit(lm.model, lm.tokenizer, FitData(**DATA)))
    assert {"always_open", "never_opens"} & set(found) == {told} and found[told] == 1
    assert found["open_source"] == found["open_prompts"] == (1 if threshold < 0 else 0)


def test_the_inside_is_fitted_as_without_a_gate(lm, found):
    alone = INNER.fit(lm.model, lm.tokenizer, FitData(**DATA))
    assert torch.equal(found[f"inner.layers.{LAYER}.direction"], alone[f"layers.{LAYER}.direction"])
    assert GATE.residual_norms(facts(found)) == INNER.residual_norms(facts(alone))
    assert GATE.strengths == INNER.strengths and GATE.strength_unit == INNER.strength_unit


# -- DSAS ---------------------------------------------------------------------------------------------------------


DSAS = Gate(inner=RepE(first_layer=0, last_layer=LAYER), kind="dsas", min_accuracy=0.0)


def constant(artefact, share: float):
    """Every gate wholly open or closed."""
    gates = {key: torch.zeros_like(one) for key, one in artefact.items() if key.startswith("gates.")}
    for row in gates.values():
        row[-1] = 1e3 if share else -1e3
    return artefact | gates


@pytest.mark.parametrize(("architecture", "inner"), [("llama", RepE(first_layer=1, last_layer=2)),
                                                     ("opt", Ablation(layer=1)), ("gptj", CAA(layer=1))])  # fmt: skip
def test_open_tokens_are_ungated_and_closed_ones_unsteered(architecture, inner):
    lm = tiny_lm(architecture)
    method = Gate(inner=inner, kind="dsas", min_accuracy=0.0)
    found = method.fit(lm.model, lm.tokenizer, FitData(**DATA))
    one = max(inner.strengths)
    base, steered = texts(lm, inner, {}, 0), texts(lm, inner, ungated(found), one)
    assert texts(lm, method, constant(found, 1), one) == steered != base
    assert texts(lm, method, constant(found, 0), one) == base
    assert texts(lm, method, found, one) not in (steered, base)


def test_regression_is_sklearns():
    generator = torch.Generator().manual_seed(0)
    source, control = torch.randn(12, 9, generator=generator) + 0.5, torch.randn(8, 9, generator=generator)
    features = torch.cat([source, control]).double().numpy()
    labels = np.arange(20) < 12
    coordinates = PCA(3).fit(features)
    scaled = coordinates.transform(features) / coordinates.transform(features).std(0, ddof=1)
    wanted = LogisticRegression(C=1.0, max_iter=1000).fit(scaled, labels).decision_function(scaled)
    row = regression(source, control, 3)
    np.testing.assert_allclose(features @ row[:-1].numpy() + float(row[-1]), wanted, rtol=1e-3, atol=1e-4)
    whole = make_pipeline(PCA(9), StandardScaler(), LogisticRegression(C=1.0)).fit(features, labels)
    assert whole.score(features, labels) >= np.mean((features @ row[:-1].numpy() + float(row[-1]) > 0) == labels)


def test_shares_by_hand():
    hidden, moved = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]]), torch.tensor([[[3.0, 2.0], [0.0, 7.0]]])
    share = 1 / (1 + np.exp(-(0.5 * np.array([1, 0]) + 0.25 * np.array([2, -1]) - 0.1)))
    wanted = torch.tensor([[[1 + 2 * share[0], 2.0], [0.0, -1 + 8 * share[1]]]], dtype=torch.float32)
    torch.testing.assert_close(weighed(hidden, moved, torch.tensor([0.5, 0.25, -0.1])), wanted)


def test_places_where_nothing_tells_the_sets_apart_are_off(lm, monkeypatch):
    """Planted: the label stands in the features of block 2 alone."""
    method, generator = replace(DSAS, min_accuracy=0.75), torch.Generator().manual_seed(1)
    width = layout.width(lm.model)

    def planted(_model, texts, places, **_):
        label = 3.0 * (planted.calls == 0)
        planted.calls += 1
        made = [torch.randn(len(texts), width, generator=generator) for _ in places]
        made[2][:, 4] += 2 * label
        return made

    planted.calls = 0
    monkeypatch.setattr(directions, "pooled_at", planted)
    source = Pairs(PAIRS.prompt * 4, PAIRS.desired * 4, PAIRS.undesired * 4)
    data = FitData(pairs=source, background=DATA["background"] * 4)
    found = method.fit(lm.model, lm.tokenizer, data)
    on = {key: bool(one) for key, one in found.items() if key.startswith("on.")}
    assert on == {f"on.model.layers.{layer}.output": layer == 2 for layer in range(LAYER + 1)}
    streams = []
    for strength in (0.0, 0.5):
        with torch.no_grad(), method.apply(lm.model, found, strength), record(lm.model, [1, 2]) as seen:
            lm.model(torch.tensor([[5, 6, 7]]))
        streams.append(seen)
    assert torch.equal(streams[0][1], streams[1][1]) and not torch.equal(streams[0][2], streams[1][2])


def test_folds_see_no_text_that_they_are_asked():
    """Sets that do not differ: a regression that saw them would be right on most."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(30, 40, generator=generator) for _ in range(2)]
    row = regression(*sides, 40)
    seen = sum(
        int((sign * (side.double() @ row[:-1] + row[-1]) > 0).sum()) for side, sign in zip(sides, (1, -1), strict=True)
    )
    assert seen / 60 > 0.85 and cross_validated(*sides, 40) < 0.7


# -- what cannot be gated -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Planted(Method):
    """Does in `apply` what a test says."""

    name: ClassVar[str] = "planted"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "one"

    what: str
    scope: str = "generation"
    strengths: Sequence[float] = (1,)

    def fit(self, model, tokenizer, data):
        return {}

    @contextmanager
    def apply(self, model, artefact, strength) -> Iterator[Steering]:
        vector = torch.linspace(-2, 3, layout.width(model)).sin()  # not the same everywhere, which LayerNorm takes off
        if self.what == "weights":
            weight = layout.value_matrix(model, 1).parameter
            with edited({weight: weight * 2}):
                yield Steering()
        elif self.what == "prefix":
            yield Steering(prefix="Well. ")
        elif self.what == "mlp":
            place = sites.written(model, 2, "mlp")
            with hooked([place.hook(adding(vector, "generation", boundary=True))]):
                yield Steering()
        else:
            with hooked([Hook(layout.blocks(model)[0], "output", adding(vector, "generation"))]):
                yield Steering()


def number_of_hooks(lm: LM) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in lm.model.modules())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "this method edits weights, which act on every row and token"),
        ("prefix", "steers by a text before the prompt or by the logits"),
        ("early", r"acts at model.layers.0, before block 1, .*set method.condition_layer to a lower block"),
    ],
)
def test_what_no_gate_closes(lm, found, what, message):
    before, hooks = [one.clone() for one in lm.model.parameters()], number_of_hooks(lm)
    method = replace(GATE, inner=Planted(what=what))
    with pytest.raises(SetupError, match=message), method.apply(lm.model, found, 1.0):
        raise AssertionError("it must not get here")
    assert all(torch.equal(one, other) for one, other in zip(lm.model.parameters(), before, strict=True))
    assert number_of_hooks(lm) == hooks
    with hooked([]), edited({}):  # nothing of the wrapping is left
        pass


def test_rows_of_a_flat_tensor_are_gated():
    """OPT's MLP holds all rows' tokens as one axis."""
    lm, inner = tiny_lm("opt"), Planted(what="mlp")
    method = Gate(inner=inner, condition_layer=1)
    found = method.fit(lm.model, lm.tokenizer, FitData(**DATA))
    judged, is_open = between(lm, found)
    gated, steered, base = (texts(lm, *one) for one in ((method, judged, 9.0), (inner, {}, 9.0), (inner, {}, 0)))
    assert 0 < sum(is_open) < len(PROMPTS)
    for row, one in enumerate(is_open):
        assert gated[1][row] == (steered if one else base)[1][row] != (base if one else steered)[1][row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "both"}, "method.kind='both': allowed are cast, dsas"),
        ({"when": "near"}, "method.when='near': allowed are auto, above, below"),
        ({"condition_layer": 9}, "layer 9 out of range: .*set method.condition_layer"),
        ({"skip_first": -1}, "method.skip_first=-1 is negative"),
        ({"components": 0}, "method.components=0: expected at least 1"),
        ({"min_accuracy": 2}, "method.min_accuracy=2 is outside 0 to 1"),
        ({"inner": DeTox()}, "method.inner=detox is of the family weights"),
        ({"inner": CAA(scope="all")}, r"steers what comes before \(scope all\); set method.inner.scope=generation"),
        ({"inner": ActAdd()}, r"method.inner=act_add steers what comes before \(scope None\)"),
        ({"inner": CAA(layer=9)}, "layer 9 out of range"),
    ],
)
def test_settings_that_are_not_allowed(lm, options, message):
    with pytest.raises(SetupError, match=message):
        replace(GATE, **options).check(lm.model)


def test_both_sets_are_needed(lm):
    with pytest.raises(SetupError, match="got none; set background=wiki"):
        GATE.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))
    with pytest.raises(SetupError, match="got one; set"):
        GATE.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS, background=["The"]))
    same = ["The fox", "The fox"]
    with pytest.raises(SetupError, match="the texts do not differ at the input of block 1"):
        GATE._condition(lm.model, Sets(*[directions_texts(lm, same)] * 3))
    assert GATE.needs == {"pairs", "background"}


def directions_texts(lm: LM, some: list[str]):
    from methods.tokens import encode

    return encode(lm.model, lm.tokenizer, [""] * len(some), some)[0]


def test_a_gate_of_another_model_is_refused(lm, found):
    with pytest.raises(SetupError, match="without condition was not fitted on this model"):
        texts(lm, GATE, ungated(found))
    with pytest.raises(SetupError, match="the artefact has no gate for the model.layers.3.output"):
        texts(lm, replace(GATE, kind="dsas"), found)


def test_another_method_inside_is_another_fit():
    methods = [GATE, replace(GATE, inner=CAA(layer=2)), replace(GATE, kind="dsas")]
    ids = {identity.digest(identity.method_identity(one)) for one in methods}
    assert len(ids) == 3


def test_nested_wraps_run_from_the_inside():
    seen = []
    outer, inner = (lambda hook, name=name: (seen.append(name), hook)[1] for name in ("outer", "inner"))
    with wrapped(outer), wrapped(inner), hooked([Hook(torch.nn.Linear(1, 1), "output", lambda hidden: hidden)]):
        assert seen == ["inner", "outer"]


def test_the_similarity_by_hand_is_that_of_a_bent_projection():
    """Entries of the projection far above 1 are all 1 to the hyperbolic tangent."""
    features = torch.tensor([[3.0, 1.0, 0.0], [-40.0, 5.0, 20.0]], dtype=torch.double)
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.double)
    wanted = []
    for row in features.tolist():
        along = sum(x * a for x, a in zip(row, axis.tolist(), strict=True))
        bent = [math.tanh(along * a) for a in axis.tolist()]
        wanted.append(sum(x * b for x, b in zip(row, bent, strict=True)) / math.hypot(*row) / math.hypot(*bent))
    torch.testing.assert_close(similarity(features, axis), torch.tensor(wanted, dtype=torch.double))


def test_the_regressions_are_of_means_over_tokens_by_hand(lm):
    """Of one place: all tokens but the first two, which a shorter prompt keeps its last one of."""
    method = Gate(inner=INNER, kind="dsas", components=3, min_accuracy=0.0, skip_first=2)
    found = method.fit(lm.model, lm.tokenizer, FitData(**DATA))
    undesired = [p + t for p, t in zip(PAIRS.prompt, PAIRS.undesired, strict=True)]
    sides = []
    for texts in (undesired, DATA["background"], PAIRS.prompt):
        with torch.inference_mode():
            every = [lm.model(torch.tensor([lm.encode(t)]), output_hidden_states=True).hidden_states for t in texts]
        streams = [one[LAYER + 1][0].double() for one in every]
        sides.append(torch.stack([one[min(2, len(one) - 1) :].mean(0) for one in streams]))
    row = regression(*sides[:2], 3)
    key = f"gates.model.layers.{LAYER}.output"
    torch.testing.assert_close(found[key].double(), row, rtol=1e-3, atol=1e-3 * float(row.abs().max()))
    for name, side in zip(("source", "control", "prompts"), sides, strict=True):
        is_open = side @ row[:-1] + row[-1] > 0
        assert float(found[f"info.open_{name}"]) == pytest.approx(float(is_open.double().mean()))
