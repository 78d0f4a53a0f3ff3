"""Controls built like the method: through the command line on a tiny model, and by their parts."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.leaderboard.frame import tables
from bench.leaderboard.grouping import Fit, Row
from bench.records.fields import LearntFrom
from bench.records.table import read_records
from bench.run import control
from methods import (
    ARGRE,
    CAA,
    SASA,
    AcT,
    AurA,
    DeTox,
    DExperts,
    FitData,
    Gate,
    LinEAS,
    Pairs,
    ProbeRows,
    Prompt,
    RandomDirection,
    RepE,
    SelfDebias,
    Stack,
    Unsteered,
    WordFilter,
)
from methods.errors import SetupError
from tests.methods.test_contract import PAIRS
from tests.run.test_smoke import arguments, finished, without_figures, world  # noqa: F401
from tests.tiny import tiny_lm


def test_a_rotation_keeps_lengths_and_angles_and_turns_the_rest():
    directions = torch.linalg.qr(torch.randn(20, 2)).Q.T.contiguous()
    artefact = {"v": torch.randn(7), "layers.1.directions": directions, "rows": torch.tensor([[1, 2]]),
                "info.norm": torch.tensor([2.0, 3.0])}  # fmt: skip
    turned = control.rotated(artefact, 5)
    for name in ("v", "layers.1.directions"):
        before, after = (one[name].reshape(-1, one[name].shape[-1]) for one in (artefact, turned))
        torch.testing.assert_close(after @ after.T, before @ before.T)
        assert (after - before).abs().max() > 0.1 and turned[name].shape == artefact[name].shape
    assert torch.equal(turned["rows"], artefact["rows"]) and torch.equal(turned["info.norm"], artefact["info.norm"])
    assert torch.equal(control.rotated(artefact, 5)["v"], turned["v"])
    assert not torch.equal(control.rotated(artefact, 6)["v"], turned["v"])


def test_rotations_have_no_direction_of_their_own():
    vector = {"v": torch.tensor([3.0] + [0.0] * 49)}
    drawn = torch.stack([control.rotated(vector, seed)["v"] for seed in range(400)])
    assert drawn.mean(0).norm() < 0.3  # .15 expected, of 400 draws of length 3


def test_how_a_control_is_made(tmp_path):
    assert control.how(CAA()) == control.how(ProbeRows()) == "flipped pairs"
    assert control.how(DeTox()) == "random rotation", "which text of a pair is desired changes nothing in T^T T"
    assert control.how(RepE()) == control.how(ARGRE()) == "random rotation", "swapped pairs have the same axis"
    assert control.how(RandomDirection()) == "random rotation", "its pairs give a length alone"
    assert control.how(DExperts(anti_expert="undesired")) == control.how(WordFilter()) == "flipped pairs"
    assert control.how(DExperts()) == "random rotation", "it reads no pairs"
    assert control.how(DExperts(expert="desired")) == "random rotation", "no swap changes its harmful texts"
    with pytest.raises(SetupError, match="the control of each part alone"):
        control.how(Stack(parts={"first": CAA()}, at={"first": 1.0}))
    words = tmp_path / "words.txt"
    words.write_text("a\n")
    for method in (Prompt(prompts=["Be kind."]), Unsteered(), SelfDebias(), WordFilter(words=str(words))):
        with pytest.raises(SetupError, match=f"{method.name} has no control, since it learns"):
            control.how(method)


def test_a_direction_that_scores_states_has_a_control_as_long():
    """SASA's direction has length 1 whatever the labels are, so its control has the same strength."""
    lm, method = tiny_lm(), SASA()
    assert control.how(method) == "flipped pairs"
    half = [pair[:: -1 if i % 2 else 1] for i, pair in enumerate(zip(PAIRS.desired, PAIRS.undesired, strict=True))]
    shuffled = Pairs(PAIRS.prompt, *(list(side) for side in zip(*half, strict=True)))
    real, other = (method.fit(lm.model, lm.tokenizer, FitData(pairs)) for pairs in (PAIRS, shuffled))
    assert control.strength(20.0, method.changes(real), method.changes(other)) == 20.0
    assert abs(float(real["direction"] @ other["direction"])) < 0.99


def test_a_short_vector_is_made_as_long_as_the_methods():
    method, short = {"v": torch.tensor([3.0, 4.0]), "info.x": torch.tensor(9.0)}, {"v": torch.tensor([0.0, 0.5])}
    assert control.strength(2.0, method, short) == 20.0
    with pytest.raises(SetupError, match="has length 0"):
        control.strength(2.0, method, {"v": torch.zeros(2)})


MAPS = {"layers.0.mlp.scale": torch.tensor([1.0, 4.0]), "layers.0.mlp.shift": torch.tensor([0.0, 4.0])}
SUPPORT = {"layers.0.mlp.low": torch.tensor([-9.0, -9.0]), "layers.0.mlp.high": torch.tensor([9.0, 9.0])}


@pytest.mark.parametrize(("method", "artefact", "size"), [
    (CAA(), {"layers.1.direction": torch.tensor([3.0, 4.0])}, 5), (LinEAS(), MAPS, 5), (AcT(), MAPS | SUPPORT, 5),
    (AurA(), {"layers.0.up.alpha": torch.tensor([1.0, 0.25, 1.0]), "layers.0.down.alpha": torch.tensor([0.0])}, 1.25),
    (Gate(inner=AcT()), {f"inner.{key}": one for key, one in MAPS.items()} | {"gate.w": torch.ones(50)}, 5),
])  # fmt: skip
def test_the_size_is_that_of_what_is_changed(method, artefact, size):
    """Factors of 1 and supports change nothing, so they must not make two artefacts alike in size."""
    assert control.size(method.changes(artefact)) == pytest.approx(size)


def test_a_control_of_shuffled_pairs_changes_as_much():
    lm, method = tiny_lm(), LinEAS(steps=3, learning_rate=0.5)
    swapped = [pair[:: -1 if i % 2 else 1] for i, pair in enumerate(zip(PAIRS.desired, PAIRS.undesired, strict=True))]
    shuffled = Pairs(PAIRS.prompt, *(list(side) for side in zip(*swapped, strict=True)))
    real, other = (method.fit(lm.model, lm.tokenizer, FitData(pairs)) for pairs in (PAIRS, shuffled))
    strength = control.strength(0.4, method.changes(real), method.changes(other))
    own, others = (
        math.hypot(
            *(float((one - float(key.endswith("scale"))).norm()) for key, one in found.items() if "info" not in key)
        )
        for found in (real, other)
    )
    assert 0.4 * own == pytest.approx(strength * others, rel=1e-4) and abs(strength - 0.4) > 0.01


def test_a_method_without_vectors_keeps_its_strength():
    places = {"layers.1.elements": torch.tensor([3, 5]), "info.differences": torch.tensor([1.0, 2.0])}
    assert control.strength(2.0, places, {"layers.0.elements": torch.tensor([7, 9])}) == 2.0


@pytest.mark.parametrize("inner", [RepE(), RepE(center=True), ARGRE()])
def test_a_gate_is_controlled_like_the_method_inside(inner):
    gate = Gate(inner=inner)
    assert control.how(gate) == control.how(inner) and gate.control_version == inner.control_version


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> tuple[Path, list[str]]:  # noqa: F811
    """Results of a method and its controls, and how the controls were asked for."""
    results = tmp_path_factory.mktemp("controls")
    words = [(" with love", " with hate"), (" sing", " run to the river"), (" bread", " weather"), (" a bird", " dogs")]
    pairs = [{"prompt": f"People walk {i} and", "desired": a, "undesired": b} for i, (a, b) in enumerate(words * 3)]
    (results / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    given = arguments(world, results, "suite=[rtp,fluency]", "tuning.trials=2", "suite.rtp.unsteered_k=5")
    given = [f"pairs.path={results / 'pairs.jsonl'}" if one.startswith("pairs.path=") else one for one in given]
    finished([*given, "method=unsteered,caa,detox"])
    given += ["method=caa,detox", "control=0,1"]
    finished(given)
    return results, given


def controls(results: Path):
    return [one for one in read_records(results / "runs")[0] if one.record.method.family == "control"]


@pytest.mark.slow
def test_a_control_is_as_large_as_its_tuned_method(run):
    results, _ = run
    found = controls(results)
    assert sorted((one.record.method.name, one.record.seed.fit, one.record.suite) for one in found) == [
        ("caa", 0, "rtp"), ("caa", 1, "rtp"), ("detox", 0, "rtp"), ("detox", 1, "rtp"),
    ]  # fmt: skip
    chosen = {
        one.record.method.name: one.record.tuning.chosen
        for one in read_records(results / "runs")[0]
        if one.record.tuning is not None
    }
    for one in found:
        about, name = one.record.method.control, one.record.method.name
        assert about.to_json() == {"how": control.how(CAA() if name == "caa" else DeTox()), "of_strength": chosen[name]}
        assert one.record.tuning is None
        if name == "detox":
            assert one.record.method.strength == chosen[name], "a rotation has the same size"
    fits = {name: folder for folder in (results / "runs/artefacts").iterdir() if (name := folder.name)}
    norms = {
        name: json.loads((folder / "fit.json").read_text())["facts"].get("direction_norm")
        for name, folder in fits.items()
    }
    (real,) = {
        one.record.fit_id
        for one in read_records(results / "runs")[0]
        if one.record.tuning and one.record.method.name == "caa"
    }
    for one in found:
        if one.record.method.name == "caa":
            size = one.record.method.strength * norms[one.record.fit_id]
            assert size == pytest.approx(chosen["caa"] * norms[real], rel=1e-5)


def test_draws_of_a_control_are_one_row_to_compare_with(run):
    (table,) = tables(read_records(run[0] / "runs")[0])
    frame = table.frame.set_index("method")
    assert list(frame.index[:3]) == ["unsteered", "caa control", "detox control"]
    assert (frame.loc[["caa control", "detox control"], "fits"] == 2).all()
    assert frame.loc[["caa control", "detox control"], "rank"].isna().all()
    assert frame.loc[["caa control", "detox control"], "group"].isna().all()
    own = next(row for row in table.rows if row.about.method == "caa")
    assert table.control(own).about.method == "caa control" and table.control(table.control(own)) is None
    headline = table.aims.headline
    difference = frame.loc["caa", headline] - frame.loc["caa control", headline]
    assert frame.loc["caa", "vs_control"] == pytest.approx(difference)


def test_a_control_is_of_the_pairs_that_its_method_learnt_from(run):
    """Of two rows of one method each has its own, however labels were swapped."""
    (table,) = tables(read_records(run[0] / "runs")[0])
    rows = {row.about.method: row for row in table.rows}
    assert rows["caa control"].controls(rows["caa"]) and not rows["caa control"].controls(rows["detox"])
    other = LearntFrom.from_json({"name": "file", "pairs": 3})
    others = [one._replace(record=replace(one.record, data=other)) for one in rows["caa"].fits[0].results]
    assert not rows["caa control"].controls(Row([Fit(others)]))


def test_a_rotated_control_states_no_fact_of_the_methods_pairs(run):
    facts = [one.record.fit.facts for one in controls(run[0]) if one.record.method.name == "detox"]
    assert facts and not any("d_prime" in one or "mean_cosine" in one for one in facts)


def test_a_known_control_computes_nothing(run, capsys):
    results, given = run
    before = sorted(path.name for path in (results / "runs/records").iterdir())
    finished(given)
    assert sorted(path.name for path in (results / "runs/records").iterdir()) == before


def test_the_unsteered_model_may_be_asked_for_more(run):
    every = read_records(run[0] / "runs")[0]
    of_base = [one for one in every if one.record.method.family == "none"]
    (base,) = [one for one in of_base if one.record.suite == "rtp" and one.record.split == "test"]
    names = set(base.items["metric"])
    assert {f"profanity_check.expected_maximum_toxicity_k2_n5{end}" for end in ("", "_first_k")} <= names
    scores = pd.read_parquet(run[0] / "runs/records" / base.record.id / "scores.parquet")
    assert set(scores["sample"]) == set(range(5)) and base.record.info.k == 2
    maxima = scores[scores["sample"] < 2].groupby("item")["profanity_check"].max()
    first = base.items[base.items["metric"] == "profanity_check.expected_maximum_toxicity_k2_n5_first_k"]
    assert dict(zip(first["item"], first["value"], strict=True)) == pytest.approx(dict(maxima))


def test_a_control_of_what_learns_no_vector_is_refused(world, tmp_path, capsys):  # noqa: F811
    assert main([*arguments(world, tmp_path, "method=prompt", "control=0", "suite=[rtp,fluency]")]) != 0
    assert "learns nothing that swapped pairs" in capsys.readouterr().err


def test_a_control_whose_pairs_are_also_swapped_is_refused(world, tmp_path, capsys):  # noqa: F811
    assert main([*arguments(world, tmp_path, "method=caa", "control=0", "pairs.flip=0.25", "suite=[rtp,fluency]")]) != 0
    assert "pairs.flip=0.25: a control swaps the labels of half of the pairs by itself" in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "asked", [["dexperts", "method.anti_expert=undesired"], ["word_filter", "method.min_log_odds=-9"]]
)
def test_decoding_methods_have_controls(world, tmp_path, asked):  # noqa: F811
    method, option = asked
    assert (
        main(arguments(world, tmp_path, f"method={method}", option, "strength=1", "control=null,0", "suite=[rtp]")) == 0
    )
    own, (other,) = read_records(tmp_path / "runs")[0], controls(tmp_path)
    real = next(one for one in own if one.record.method.family == "decoding")
    assert other.record.method.control.to_json() == {"how": "flipped pairs", "of_strength": 1.0}
    assert other.record.fit_id != real.record.fit_id
    assert other.record.method.strength == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize("wrong", ["control=-1", "pairs.flip_seed=-1", "pairs.flip=1.5"])
def test_an_unknown_draw_or_share_is_refused_early(wrong, capsys):
    assert main(["method=caa", wrong]) == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err
