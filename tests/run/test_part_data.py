"""Two behaviours stacked in one command: each part learns from data of its own, each behaviour has its suite."""

import json

import pytest

from bench.__main__ import main
from bench.config import compose
from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from methods.errors import SetupError
from tests.run.test_smoke import arguments, without_figures, world  # noqa: F401  fixtures

STACK = ("method=stack", "method@method.parts.second=probe_rows", "method.at.second=1", "strength=1")
OWN = "+labelled@part_data.second.labelled=file"


@pytest.fixture
def files(tmp_path):
    """Single texts that are labelled, and texts that are asked."""
    verbs = ("walk", "talk", "sing", "work", "run", "go")
    rows = "".join(f"We {verb} by the river,{i % 3 // 2}\n" for i, verb in enumerate(verbs))
    (tmp_path / "labels.csv").write_text("text,label\n" + rows)
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"text": f"No bird {i}"}) + "\n" for i in range(4)))
    return tmp_path


def stacked(files) -> list[str]:
    quick = [f"method.parts.{part}.min_steps=20" for part in ("first", "second")]
    own = ["method.parts.second.learns_from=labelled", OWN, f"part_data.second.labelled.path={files}/labels.csv"]
    return [*STACK, *quick, *own]


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_two_behaviours_each_with_its_data_and_its_suite(world, files):  # noqa: F811
    asked = ["suite.attitude.data=file", f"suite.attitude.path={files}/asked.jsonl", "suite.attitude.prompts=null"]
    more = ["suite=[rtp,attitude]", *asked, "suite.attitude.decoding.max_new_tokens=4"]
    for method in (["method=unsteered"], stacked(files)):
        assert main(arguments(world, files / "results", *method, *more)) == 0
    (fit,) = (json.loads(path.read_text()) for path in (files / "results/runs/artefacts").glob("*/fit.json"))
    assert fit["data"]["pairs"] == 10 and fit["data"]["second.labelled"]["texts"] == 6
    assert sorted(source["name"] for source in fit["data"]["sources"]) == ["labels.csv", "pairs.jsonl"]
    assert {"first.probe_loss_desired", "second.probe_norm"} <= set(fit["facts"])
    told = (files / "results/leaderboard.md").read_text()
    assert "**attitude (n = 4)**" in told and "negative share" in told and "| toxicity k2 |" in told


def cell(*given: str) -> Cell:
    return Cell(validate([*STACK, *given]), Session())


def test_what_all_parts_have_of_their_own_is_not_made(files, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "desired": " b", "undesired": " c"}\n' * 3)
    own = [
        f"+pairs@part_data.{part}.pairs=file part_data.{part}.pairs.path={tmp_path}/x.jsonl"
        for part in ("first", "second")
    ]
    one, both = cell(*own[1].split()), cell(*" ".join(own).split())
    assert list(one.parts.fit_sources) == ["pairs", "second.pairs"]
    assert list(both.parts.fit_sources) == ["first.pairs", "second.pairs"]
    flipped = cell(*" ".join(own).split(), "part_data.second.pairs.flip=0.5", "part_data.second.pairs.subset=2")
    assert flipped.parts.fit_sources["second.pairs"].share == 0.5
    assert flipped.parts.fit_sources["second.pairs"].source.count == 2
    plain = Cell(validate(["method=caa", *" ".join(own).split()]), Session())
    assert list(plain.parts.fit_sources) == ["pairs"]  # a method without parts learns from the run's


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["+pairs@part_data.secnd.pairs=on_policy"], "part_data.secnd: no part of stack; did you mean second?"),
        (["+examples@part_data.second.examples=toxic_and_siqa"], "part second reads no examples; it learns from pairs"),
        (["+pairs@part_data.second.pairs=on_policy", "part_data.second.pairs.scorer=vader"], "scorer=vader: allowed"),
        (["+pairs@part_data.second.pairs=file"], "part_data.second.pairs.path has no value"),
        (
            ["+pairs@part_data.second.pairs=on_policy", "part_data.second.pairs.prompt=3"],
            "mean part_data.second",
        ),
        (["part_data.second=3"], "part_data.second=3: expected a mapping"),
    ],
)
def test_data_of_no_part_or_of_no_kind_is_told(given, message):
    with pytest.raises(SetupError, match=message):
        cell(*given)


def test_a_command_changes_what_an_experiment_gives_a_part():
    given = ["experiment=model_surgery_stacked_llama2_7b", "labelled@part_data.first.labelled=file"]
    own = compose.compose([*given, "part_data.first.labelled.path=x.csv"]).part_data.first.labelled
    assert (own.path, own.label) == ("x.csv", "label")
