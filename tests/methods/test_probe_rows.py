import pytest
import torch

from bench.config import compose
from methods import layout
from methods.base import INFO, FitData, Labelled, Pairs
from methods.errors import SetupError
from methods.probe_rows import ProbeRows, linear_probe, logistic_probe, stream_cosines
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

ARCHITECTURES = ["llama", "gpt2", "opt"]
FAST = {"min_steps": 60}


def fit(method, lm, pairs=PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def gates(lm):
    return torch.stack(
        [layout.stream_rows(lm.model, i, "gate").read().clone() for i in range(len(layout.blocks(lm.model)))]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exactly_the_chosen_rows_move_by_alpha_times_the_probe(architecture):
    lm, alpha = tiny_lm(architecture), 1.7
    method = ProbeRows(**FAST)
    artefact = fit(method, lm)
    before, old = {name: p.clone() for name, p in lm.model.named_parameters()}, gates(lm)  # (L, M, D)
    gate = {id(layout.stream_rows(lm.model, i, "gate").parts[0].parameter) for i in range(len(old))}
    chosen = torch.zeros(old.shape[:2], dtype=torch.bool)
    chosen[artefact["rows"][:, 0], artefact["rows"][:, 1]] = True
    assert chosen.sum() == round(16384 / 352256 * chosen.numel())
    with method.apply(lm.model, artefact, alpha):
        moved = gates(lm) - old
        for name, parameter in lm.model.named_parameters():
            assert id(parameter) in gate or torch.equal(parameter, before[name]), name
    assert torch.equal(moved.ne(0).any(-1), chosen)
    torch.testing.assert_close(
        moved[chosen], (alpha * artefact["probe"]).expand(int(chosen.sum()), -1), atol=1e-6, rtol=1e-5
    )
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.model.named_parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_the_smallest_cosines_of_the_whole_model(architecture):
    lm = tiny_lm(architecture)
    artefact = fit(ProbeRows(**FAST, row_fraction=0.2), lm)
    old, probe = gates(lm).double(), artefact["probe"].double()
    cosine = old @ probe / old.norm(dim=-1) / probe.norm()  # (L, M)
    chosen = torch.zeros_like(cosine, dtype=torch.bool)
    chosen[artefact["rows"][:, 0], artefact["rows"][:, 1]] = True
    assert chosen.sum() == round(0.2 * chosen.numel())
    assert cosine[chosen].max() <= cosine[~chosen].min()
    assert artefact["info.rows_per_layer"].tolist() == chosen.sum(-1).tolist()
    assert artefact["info.largest_cosine"] == pytest.approx(float(cosine[chosen].max()), abs=1e-5)


def chosen_rows(lm, probe, **options):
    """The set of (block, row) that a method takes for this vector, without training one."""
    method = ProbeRows(row_fraction=0.1, **options)
    return set(map(tuple, method._rows(lm.model, probe, torch.Generator().manual_seed(0))[0].tolist()))


def test_rows_do_not_depend_on_the_scale_of_probe_or_rows():
    lm = tiny_lm()
    probe = torch.randn(36, generator=torch.Generator().manual_seed(3))
    rows = chosen_rows(lm, probe)
    assert chosen_rows(lm, 8 * probe) == rows
    assert not chosen_rows(lm, -probe) & rows
    with torch.no_grad():
        layout.stream_rows(lm.model, 2, "gate").parts[0].parameter.mul_(16)
    assert chosen_rows(lm, probe) == rows


def test_which_rows_the_ablations_take():
    lm = tiny_lm()
    probe = torch.randn(36, generator=torch.Generator().manual_seed(3))
    where, cosine = stream_cosines(lm.model, probe, "gate")
    order = [tuple(where[i].tolist()) for i in cosine.argsort(stable=True)]
    count = round(0.1 * len(order))
    assert chosen_rows(lm, probe) == set(order[:count])
    assert chosen_rows(lm, probe, rows="aligned") == set(order[-count:]) == chosen_rows(lm, -probe)
    drawn = chosen_rows(lm, probe, rows="random")
    assert len(drawn) == count and not drawn & set(order[:count]) == drawn
    assert len({layer for layer, _ in drawn}) == 5
    # Five blocks in quarters: 0 and 1, 2, 3, 4.
    for quarter, blocks in ((1, {0, 1}), (2, {2}), (3, {3}), (4, {4})):
        rest = [row for row in order if row[0] not in blocks]
        assert chosen_rows(lm, probe, skip_quarter=quarter) == set(rest[:count])


def test_a_random_probe_is_added_to_the_rows_of_the_trained_one():
    lm = tiny_lm()
    trained, drawn = (fit(ProbeRows(**FAST, probe=probe), lm) for probe in ("linear", "random"))
    assert torch.equal(trained["rows"], drawn["rows"])
    assert drawn["probe"].norm() == pytest.approx(float(trained["probe"].norm()), rel=1e-5)
    assert torch.cosine_similarity(drawn["probe"], trained["probe"], dim=0).abs() < 0.5
    assert not torch.equal(fit(ProbeRows(**FAST, probe="random", seed=1), lm)["probe"], drawn["probe"])


@pytest.mark.parametrize("probe", ["linear", "logistic"])
def test_class_row(probe):
    lm, steps = tiny_lm(), {"min_steps": 3000, "learning_rate": 1e-2}
    undesired, desired = (fit(ProbeRows(**steps, probe=probe, class_row=row), lm) for row in ("undesired", "desired"))
    assert torch.cosine_similarity(undesired["probe"], desired["probe"], dim=0) < -0.9
    assert undesired["info.probe_accuracy"] == desired["info.probe_accuracy"]


WRITES = {"down", "o"}


@pytest.mark.parametrize(
    ("architecture", "matrix"),
    [("llama", m) for m in ("gate", "up", "down", "q", "k", "v", "o")]
    + [("gpt2", m) for m in ("gate", "down", "o")]
    + [("opt", m) for m in ("q", "o")],
)
def test_each_matrix_moves_along_the_stream(architecture, matrix):
    """Each row taken changes by alpha times the probe, read or written, and nothing else does."""
    lm, alpha = tiny_lm(architecture), 2.0
    method = ProbeRows(**FAST, matrix=matrix, row_fraction=0.2)
    artefact = fit(method, lm)
    probe, layer = artefact["probe"], int(artefact["rows"][0, 0])
    chosen = artefact["rows"][artefact["rows"][:, 0] == layer, 1]
    module_name = {
        "llama": {"down": "mlp.down_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj"}.get(
            matrix, f"self_attn.{matrix}_proj"
        ),
        "gpt2": {"gate": "mlp.c_fc", "down": "mlp.c_proj", "o": "attn.c_proj"}.get(matrix),
        "opt": {"q": "self_attn.q_proj", "o": "self_attn.out_proj"}.get(matrix),
    }[architecture]
    module = layout.blocks(lm.model)[layer].get_submodule(module_name)
    bias = 0 if module.bias is None else module.bias
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    rows = layout.stream_rows(lm.model, layer, matrix).read().shape[0]
    if matrix in WRITES:
        x = torch.eye(rows)  # one neuron at a time
        expected = torch.zeros(rows, len(probe))
        expected[chosen] = alpha * probe
    else:
        x = torch.eye(len(probe))  # one coordinate of the stream at a time
        expected = torch.zeros(len(probe), rows)
        expected[:, chosen] = alpha * probe[:, None]
    base = module(x) - bias
    with method.apply(lm.model, artefact, alpha):
        torch.testing.assert_close(module(x) - bias - base, expected, atol=1e-4, rtol=1e-4)
        changed = {n for n, p in lm.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(module_name in name for name in changed)


def test_matrices_that_an_architecture_does_not_have():
    for architecture in ("gpt2", "opt"):
        with pytest.raises(
            SetupError, match=f"{architecture} has no up matrix of its own .* has gate, down, q, k, v, o,"
        ):
            ProbeRows(matrix="up").check(tiny_lm(architecture).model)


def test_a_negative_strength_moves_the_other_way():
    lm, method = tiny_lm(), ProbeRows(**FAST)
    artefact, old = fit(method, lm), gates(lm)
    with method.apply(lm.model, artefact, 1.3):
        up = gates(lm) - old
    with method.apply(lm.model, artefact, -1.3):
        torch.testing.assert_close(gates(lm) - old, -up, atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_chosen_neurons_see_the_probe(architecture):
    lm, alpha, layer = tiny_lm(architecture), 2.0, 1
    method = ProbeRows(**FAST, row_fraction=0.2)
    artefact = fit(method, lm)
    module = layout.blocks(lm.model)[layer].get_submodule(layout.of(lm.model).gate[0])
    probe, width = artefact["probe"], layout.width(lm.model)
    chosen = artefact["rows"][artefact["rows"][:, 0] == layer, 1]
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    orthogonal = x - torch.outer(x @ probe, probe) / probe.square().sum()
    base = [module(x), module(orthogonal)]
    with method.apply(lm.model, artefact, alpha):
        change = [module(x) - base[0], module(orthogonal) - base[1]]
    expected = torch.zeros_like(base[0])
    expected[:, chosen] = alpha * (x @ probe)[:, None]
    assert len(chosen) and expected.abs().max() > 0.1
    torch.testing.assert_close(change[0], expected, atol=1e-4, rtol=1e-4)
    assert change[1].abs().max() < 1e-4


def test_raw_has_the_probes_length_and_unit_has_length_one():
    raw, unit = (fit(ProbeRows(**FAST, probe_scale=scale), tiny_lm()) for scale in ("raw", "unit"))
    length = float(raw["info.probe_norm"])
    assert float(raw["probe"].norm()) == pytest.approx(length) != pytest.approx(1, abs=0.1)
    torch.testing.assert_close(unit["probe"], raw["probe"] / length)
    assert torch.equal(unit["rows"], raw["rows"])


def test_a_strong_edit_turns_the_rows_towards_the_probe():
    lm, method = tiny_lm(), ProbeRows(**FAST, probe_scale="unit")
    artefact = fit(method, lm)
    rows, probe = artefact["rows"], artefact["probe"]
    old = gates(lm)[rows[:, 0], rows[:, 1]]
    with method.apply(lm.model, artefact, 5.0):
        new = gates(lm)[rows[:, 0], rows[:, 1]]
    before, after = (torch.cosine_similarity(w, probe[None], dim=-1) for w in (old, new))
    assert (after > before).all() and probe.norm() == pytest.approx(1)


def test_minus_alpha_on_the_saved_rows_takes_alpha_back():
    lm, method = tiny_lm("gpt2"), ProbeRows(**FAST)
    artefact, old = fit(method, lm), gates(lm)
    with method.apply(lm.model, artefact, 1.5), method.apply(lm.model, artefact, -1.5):
        torch.testing.assert_close(gates(lm), old, atol=1e-6, rtol=0)


def gaussians(n=200, width=20):
    """Two classes apart by 4 standard deviations along a unit direction, which is returned too."""
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=g), dim=0)
    labels = torch.arange(n) % 2
    return torch.randn(n, width, generator=g) + torch.outer(4.0 * labels - 2, direction), labels, direction


def test_probes_find_the_undesired_direction():
    features, labels, direction = gaussians()
    train = features[:100], labels[:100]
    probes = linear_probe(*train, 1500, 2e-3, 16, torch.Generator().manual_seed(0)), logistic_probe(*train)
    for probe in probes:
        assert probe.accuracy(features[100:], labels[100:]) > 0.95
        assert torch.cosine_similarity(probe.weight[1], direction, dim=0) > 0.8
    assert torch.cosine_similarity(probes[0].weight[0], -probes[0].weight[1], dim=0) > 0.9


def test_nine_epochs_on_a_small_set_leave_the_random_draw():
    """Why `min_steps` is there: 9 epochs of 8 pairs are 9 steps of at most 1e-4 in each entry."""
    lm = tiny_lm()
    letter, trained = (fit(ProbeRows(min_steps=steps), lm) for steps in (0, 1500))
    assert letter["info.probe_moved"] < 1e-3
    assert trained["info.probe_moved"] > 0.05
    other = fit(ProbeRows(min_steps=0, seed=1), lm)
    assert torch.cosine_similarity(letter["probe"], other["probe"], dim=0).abs() < 0.5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_planted_sink(architecture):
    planted = planted_sink(architecture)

    def cosines(**options):
        artefact = fit(ProbeRows(**options), planted.lm, planted.pairs)
        assert artefact["info.probe_accuracy"] == 1
        w = artefact["probe"] / artefact["probe"].norm()
        return float(w @ planted.direction), abs(float(w @ planted.sink))

    without = {"skip_first": 1}, {"read": "continuation"}
    # After the final norm every token is of one length: there the sink is one token among many.
    for reading in ({}, *without, *({"layer": 1, **reading} for reading in without)):
        along, sink = cosines(probe="logistic", **reading)
        assert along < -0.98 and sink < 0.05, reading  # undesired texts carry -direction
        along, sink = cosines(learning_rate=1e-2, min_steps=500, **reading)
        assert along < -0.7 and sink < 0.15, reading  # what is left of its random draw
    assert cosines(probe="logistic", layer=1)[1] > 0.3  # in a block the sink counts the tokens


def test_final_features_are_hidden_states_after_the_norm(monkeypatch):
    lm, seen = tiny_lm(), {}

    def keep(features, labels, *_):
        seen["features"], seen["labels"] = features, labels
        return logistic_probe(features, labels)

    monkeypatch.setattr("methods.probe_rows.linear_probe", keep)
    pairs = Pairs(["The quick fox"] * 2, [" jumps"] * 2, [" is lazy and old"] * 2)
    for layer, index in (("final", -1), (2, 3)):
        fit(ProbeRows(layer=layer, held_out=0), lm, pairs)
        assert seen["labels"].tolist() == [0, 0, 1, 1]
        for features, tail in zip(seen["features"][::2], (" jumps", " is lazy and old"), strict=True):
            ids = lm.tokenizer("The quick fox").input_ids + lm.tokenizer(tail, add_special_tokens=False).input_ids
            hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[index]
            torch.testing.assert_close(features, hidden[0].mean(0), atol=1e-4, rtol=1e-4)


def test_both_texts_of_a_pair_are_held_out_together(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "methods.probe_rows.logistic_probe", lambda f, y: sizes.append(y.tolist()) or logistic_probe(f, y)
    )
    artefact = fit(ProbeRows(probe="logistic", held_out=0.25), tiny_lm())
    assert sizes == [[0] * 6 + [1] * 6]
    assert artefact["info.probe_held_out_texts"] == 4
    assert "info.probe_moved" not in artefact  # logistic regression starts from no draw


def labelled(lm, texts, labels, **options):
    return ProbeRows(**FAST, learns_from="labelled", **options).fit(
        lm.model, lm.tokenizer, FitData(labelled=Labelled(texts, labels))
    )


WHOLE = [prompt + text for side in PAIRS[1:] for prompt, text in zip(PAIRS.prompt, side, strict=True)]
CLASSES = [0] * len(PAIRS.prompt) + [1] * len(PAIRS.prompt)


def test_single_texts_give_the_probe_of_the_pairs_they_make():
    lm = tiny_lm()
    pairs = fit(ProbeRows(probe="logistic", held_out=0), lm)
    single = labelled(lm, WHOLE[::-1], CLASSES[::-1], probe="logistic", held_out=0)
    torch.testing.assert_close(single["probe"], pairs["probe"], atol=1e-4, rtol=1e-3)
    assert torch.equal(single["rows"], pairs["rows"])
    assert single["info.cut_labelled"] == 0 and "info.cut_pairs" not in single


def test_the_classes_may_differ_in_size():
    lm = tiny_lm()
    found = labelled(lm, WHOLE[: len(PAIRS.prompt) + 2], CLASSES[: len(PAIRS.prompt) + 2], held_out=0.2)
    assert found["info.probe_held_out_texts"] == 2
    assert ProbeRows(learns_from="labelled").needs == {"labelled"} and ProbeRows().needs == {"pairs"}


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], [], r"got 0 texts with 0 labels, \[\]; give both classes"),
        (["a", "b"], [1, 1], r"got 2 texts with 2 labels, \[1\]; give both classes"),
        (["a", "b"], [0, 1, 1], "got 2 texts with 3 labels"),
        (["a", "b", "c"], [0, 1, 2], r"labels, \[0, 1, 2\]; give"),
        (["a", "b", "c", "d"], [0, 1, 0, 0], "2 of 4 labelled texts train the probe, and all are of one class"),
    ],
)
def test_texts_that_are_not_of_two_classes(texts, labels, message):
    with pytest.raises(SetupError, match=message):
        labelled(tiny_lm(), texts, labels, held_out=0.5, seed=1)


def test_the_probes_loss_before_and_behind_the_edit(monkeypatch):
    """Table 13, by hand: the texts held out, read by the model as it is and as edited at `loss_at`."""
    lm, seen = tiny_lm(), {}
    monkeypatch.setattr(
        "methods.probe_rows.linear_probe", lambda *given: seen.setdefault("probe", linear_probe(*given))
    )
    method = ProbeRows(**FAST, held_out=0.5, loss_at=40.0, row_fraction=0.3)
    artefact, probe, order = (
        fit(method, lm),
        seen["probe"],
        torch.randperm(8, generator=torch.Generator().manual_seed(0)),
    )
    for label, (name, side) in enumerate((("desired", PAIRS.desired), ("undesired", PAIRS.undesired))):
        texts = [PAIRS.prompt[i] + side[i] for i in order[:4]]
        for when, strength in (("", 0.0), ("_edited", 40.0)):
            with method.apply(lm.model, artefact, strength):
                states = [
                    lm.model(**lm.tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in texts
                ]
            features = torch.stack([one.hidden_states[-1][0].mean(0) for one in states])
            losses = -(features @ probe.weight.T + probe.bias).log_softmax(-1)[:, label]
            torch.testing.assert_close(artefact[f"{INFO}probe_loss_{name}{when}"], losses.mean(), atol=1e-4, rtol=1e-4)
    assert artefact["info.probe_loss_desired"] != artefact["info.probe_loss_desired_edited"]


def test_when_no_loss_of_the_probe_is_told():
    lm = tiny_lm()
    told = {name: [key for key in fit(method, lm) if "loss" in key] for name, method in {
        "off": ProbeRows(**FAST, held_out=0.5, loss_at=None), "none held out": ProbeRows(**FAST, held_out=0),
        "rows that decide alone": ProbeRows(probe="logistic", held_out=0.5)}.items()}  # fmt: skip
    off = ["info.probe_loss_desired", "info.probe_loss_undesired"]
    assert told == {"off": off, "none held out": [], "rows that decide alone": []}


def test_pairs_that_do_not_differ():
    with pytest.raises(SetupError, match="texts of every pair are equal"):
        fit(ProbeRows(), tiny_lm(), PAIRS._replace(undesired=PAIRS.desired))


def test_no_pairs():
    with pytest.raises(SetupError, match="probe_rows learns from contrast pairs and got none"):
        fit(ProbeRows(), tiny_lm(), None)


def test_too_few_pairs_for_a_probe():
    with pytest.raises(SetupError, match="probe_rows learns from contrast pairs and got 1; give at least 2"):
        fit(ProbeRows(**FAST), tiny_lm(), Pairs(["a"], [" b"], [" c"]))
    two = Pairs(["a", "b"], [" b", " fox"], [" c", " dog"])
    with pytest.raises(SetupError, match="2 pairs with method.held_out=0.5 leave 1 to train a probe on; at"):
        fit(ProbeRows(**FAST, held_out=0.5), tiny_lm(), two)
    artefact = fit(ProbeRows(**FAST), tiny_lm(), two)
    assert artefact["info.probe_held_out_texts"] == 0 and "info.probe_accuracy" not in artefact


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 5}, r"layer 5 out of range: this model of type llama has 5 blocks \(0-4\)"),
        ({"layer": 1.5}, "neither a block number nor a fraction"),
        ({"layer": "last"}, "method.layer='last': allowed are final, a block number"),
        ({"row_fraction": 0}, r"row_fraction=0 is outside \(0, 1\]"),
        ({"row_fraction": 1.2}, r"row_fraction=1.2 is outside \(0, 1\]"),
        ({"held_out": 1}, r"held_out=1 is outside \[0, 1\)"),
        ({"learns_from": "texts"}, "method.learns_from='texts': allowed are pairs, labelled"),
        ({"probe": "svm"}, "method.probe='svm': allowed are linear, logistic, random"),
        ({"class_row": "toxic"}, "method.class_row='toxic': allowed are undesired, desired"),
        ({"rows": "first"}, "method.rows='first': allowed are opposed, aligned, random"),
        ({"matrix": "value"}, "method.matrix='value': allowed are gate, up, down, q, k, v, o"),
        ({"skip_quarter": 5}, "method.skip_quarter=5: allowed are null, 1, 2, 3, 4"),
        ({"probe_scale": "big"}, "method.probe_scale='big': allowed are raw, unit"),
        ({"read": "first"}, "method.read='first': allowed are all, continuation, last"),
    ],
)
def test_check(options, message):
    with pytest.raises(SetupError, match=message):
        ProbeRows(**options).check(tiny_lm().model)


def test_artefact_of_another_model():
    method = ProbeRows(**FAST)
    artefact, other = fit(method, tiny_lm("llama")), tiny_lm("gpt2").model
    narrow = artefact | {"probe": artefact["probe"][:28], "rows": torch.tensor([[0, 0]])}
    with method.apply(other, narrow, 1.0):
        pass
    for of_another in (
        artefact,
        narrow | {"probe": artefact["probe"]},
        narrow | {"rows": torch.tensor([[3, 0]])},
        narrow | {"rows": torch.tensor([[0, 4 * 28]])},
    ):
        with pytest.raises(SetupError, match="was not fitted on this model"), method.apply(other, of_another, 1.0):
            pass


def test_mistral_is_edited_in_as_many_rows_as_by_the_authors():
    """32 blocks of 14336 rows: 16384 of them, or the share that 16384 are of LLaMA2-7B's 352256."""
    jobs = compose.jobs(["experiment=model_surgery_mistral_7b"], multirun=False)
    shares = [compose.compose(job).method.row_fraction for job in jobs if "method=probe_rows" in job]
    assert sorted(round(share * 32 * 14336) for share in shares) == [16384, 21337]


def test_an_epoch_counts_its_last_smaller_batch_as_a_step(monkeypatch):
    """Of 8 pairs, 1 is held out: 14 texts are 5 batches of at most 3."""
    seen = []

    def probe(features, labels, steps, *rest):
        seen.append(steps)
        return linear_probe(features, labels, steps, *rest)

    monkeypatch.setattr("methods.probe_rows.linear_probe", probe)
    fit(ProbeRows(epochs=2, batch_size=3, min_steps=0), tiny_lm())
    fit(ProbeRows(epochs=2, batch_size=3, min_steps=11), tiny_lm())
    assert seen == [10, 11]


def test_the_linear_probe_is_two_rows_of_plain_adam():
    """Cross-entropy over shuffled batches, of which the last of an epoch is smaller, from the same random draw."""
    features, labels, _ = gaussians(n=10, width=6)
    found = linear_probe(features, labels, 5, 0.01, 4, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    rows = ((torch.rand(2, 7, generator=generator) * 2 - 1) / 6**0.5).double()
    order = [batch for _ in range(2) for batch in torch.randperm(10, generator=generator).split(4)][:5]
    first, second = torch.zeros(2, 7).double(), torch.zeros(2, 7).double()
    inputs = torch.cat([features, torch.ones(10, 1)], 1).double()
    for step, batch in enumerate(order, 1):
        wrong = (inputs[batch] @ rows.T).softmax(-1) - torch.nn.functional.one_hot(labels[batch], 2)
        gradient = wrong.T @ inputs[batch] / len(batch)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rows = rows - 0.01 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(torch.cat([found.weight, found.bias[:, None]], 1).double(), rows, rtol=1e-4, atol=1e-5)
