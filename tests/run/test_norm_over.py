"""Vectors of several behaviours scaled to their mean norm, each fitted by its own cell, through the command line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bench.__main__ import main
from bench.config.compose import compose, jobs
from bench.config.packed import Packed
from bench.records.names import told_norm_over
from bench.records.table import read_records
from bench.run import norm_over
from bench.run.names import Names
from bench.run.parts import parts
from methods.errors import SetupError
from tests.run.test_smoke import arguments, finished, world  # noqa: F401

ENDS = {"a": [(" with love", " with hate"), (" sing", " run to the river")], "b": [(" bread", " weather")]}
KEY = "layers.2.direction"


@pytest.fixture
def given(world, tmp_path):  # noqa: F811
    """The arguments of a sweep over two files of pairs, and where its results are."""

    def of(results: str, *more: str) -> list[str]:
        for name in ENDS:
            ends = [(f"People walk {i} and", *end) for i in range(4) for end in ENDS[name]]
            lines = [dict(zip(("prompt", "desired", "undesired"), one, strict=True)) for one in ends]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        paths = [str(tmp_path / f"{name}.jsonl") for name in ENDS]
        every = arguments(world, tmp_path / results, "method=caa", "strength=1", "suite=[rtp,fluency]", *more)
        every = [one for one in every if not one.startswith(("pairs.path", "suite.cap"))]
        return [*every, f"pairs.path={','.join(paths)}", f"pairs.norm_over={{path:[{','.join(paths)}]}}"]

    return of


def vectors(folder):
    """Fit id -> the vector and the facts of the fit, by whether its length was matched."""
    found = {True: {}, False: {}}
    for path in (folder / "runs/artefacts").iterdir():
        fit = json.loads((path / "fit.json").read_text())
        matched = "norm_over" in fit["data"]
        found[matched][fit["data"]["sources"][0]["name"]] = load_file(path / "artefact.safetensors")[KEY], fit
    return found


def test_each_vector_gets_the_mean_length_of_all(given, tmp_path):
    finished(given("results"))
    found = vectors(tmp_path / "results")
    plain, matched = found[False], found[True]
    lengths = {name: float(vector.double().norm()) for name, (vector, _) in plain.items()}
    assert set(plain) == set(matched) == {"a.jsonl", "b.jsonl"} and abs(lengths["a.jsonl"] - lengths["b.jsonl"]) > 0.01
    mean = sum(lengths.values()) / 2
    for name, (vector, fit) in matched.items():
        assert float(vector.norm()) == pytest.approx(mean, rel=1e-6)
        assert float(vector @ plain[name][0]) == pytest.approx(mean * lengths[name], rel=1e-5), "the same direction"
        assert fit["facts"]["direction_norm"] == pytest.approx(mean, rel=1e-6)
        assert fit["facts"]["norm_over_scale"] == pytest.approx(mean / lengths[name], rel=1e-6)
        assert fit["data"]["norm_over"] == "path=a.jsonl,b.jsonl"
    record = next(one.record for one in read_records(tmp_path / "results/runs")[0])
    assert record.method.residual_norms == pytest.approx(mean / record.fit.facts["residual_norm"], rel=1e-6)


@pytest.mark.slow
def test_neither_order_nor_resuming_changes_a_vector(given, tmp_path, capsys):
    finished(given("results"))
    turned = given("turned")
    turned = [one.replace("a.jsonl", "X").replace("b.jsonl", "a.jsonl").replace("X", "b.jsonl") for one in turned]
    finished(turned)
    both = [vectors(tmp_path / name)[True] for name in ("results", "turned")]
    for name, (vector, _) in both[0].items():
        assert vector.equal(both[1][name][0])
    ids = [sorted(path.name for path in (tmp_path / name / "runs/records").iterdir()) for name in ("results", "turned")]
    assert ids[0] == ids[1]
    for path in (tmp_path / "results/runs/artefacts").iterdir():
        if "norm_over" not in json.loads((path / "fit.json").read_text())["data"]:
            shutil.rmtree(path)  # the fits by themselves: what was made of them needs them no more
    capsys.readouterr()
    finished(given("results"))
    assert "nothing to run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_control_is_as_large_as_what_it_controls(given, tmp_path):
    finished(given("results"))
    finished([*given("results"), "control=0"])
    sizes = set()
    for one in read_records(tmp_path / "results/runs")[0]:
        folder = tmp_path / "results/runs/artefacts" / one.record.fit_id
        sizes.add(round(one.record.method.strength * float(load_file(folder / "artefact.safetensors")[KEY].norm()), 3))
    assert len(sizes) == 1


VECTOR = torch.tensor([3.0, 4.0])


@pytest.mark.parametrize(
    ("artefact", "facts"),
    [
        ({"layers.2.lora_a": torch.ones(2, 3)}, {}),
        ({"direction": VECTOR / 5}, {"direction_norm": 5.0}),
        ({"direction": VECTOR, "condition": VECTOR}, {"direction_norm": 5.0}),
    ],
)
def test_what_is_more_than_a_vector_is_not_rescaled(artefact, facts):
    with pytest.raises(SetupError, match="pairs.norm_over: this method learns more than vectors"):
        norm_over.check(artefact, facts)
    norm_over.check({"0": VECTOR, "1": VECTOR}, {"direction_norm": [5.0, 5.0]})


@pytest.mark.usefixtures("world")
def test_a_method_without_a_length_refuses_it(given, tmp_path, capsys):
    every = ["method=detox" if one == "method=caa" else one for one in given("results")]
    assert main(["-m", *every]) == 2
    assert "pairs.norm_over: this method learns more than vectors" in capsys.readouterr().err


def fit_id(*more: str, method: str = "caa") -> str:
    cfg = compose([f"method={method}", "suite=rtp", *more])
    return Names(Packed(cfg), parts(cfg), 1, str).fit_id


def test_a_fit_is_called_by_what_its_length_is_made_of():
    over = [fit_id(f"pairs.norm_over={{seed:[{seeds}]}}") for seeds in ("0", "0,1", "1,0")]
    assert fit_id("pairs.norm_over=null") == fit_id() and len({fit_id(), *over}) == 3 and over[1] == over[2]
    assert fit_id("pairs.norm_over={}") == fit_id()
    unread = fit_id("pairs.norm_over={seed:[0,1]}", method="prompt")
    assert unread == fit_id(method="prompt"), "it learns from no pairs"


def test_what_is_no_option_or_not_the_cells_own_is_refused(capsys):
    part = ["method=stack", "strength=1", "+pairs@part_data.second.pairs=on_policy"]
    assert main([*part, "part_data.second.pairs.norm_over={seed:[0,1]}"]) == 2
    assert "part_data.second.pairs.norm_over: only a method by itself has it" in capsys.readouterr().err
    told_of = (
        ("colour:[red]", "norm_over.colour: the pairs have no such option"),
        ("seed:[1,2]", "pairs.seed=0 is not in"),
    )
    for wrong, told in told_of:
        assert main(["method=caa", f"pairs.norm_over={{{wrong}}}"]) == 2
        assert told in capsys.readouterr().err


def test_the_papers_sweep_is_over_all_of_its_behaviours():
    told = {told_norm_over(compose(job).pairs.norm_over) for job in jobs(["experiment=caa_llama2_7b_chat"], False)}
    behaviours = "coordinate-other-ais corrigible-neutral-HHH hallucination myopic-reward refusal survival-instinct"
    assert told == {f"behaviour={','.join(behaviours.split())},sycophancy"}
    assert told_norm_over(None) is None
    assert told_norm_over({"path": ["a/x.jsonl", "b/x.jsonl", "b/x.jsonl"]}) == "path=x.jsonl,x.jsonl"
