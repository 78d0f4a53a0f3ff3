"""A stack whose first part was fitted alone takes that fit: on the same bare model it would learn the same again."""

import json

import pytest

from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from tests.run.test_smoke import PROMPTS, arguments, world  # noqa: F401  a fixture

DETOX = ("method=detox", "method.rank=1", "strength=0.5")
STACK = (
    "method=stack", "method@method.parts.first=detox", "method.parts.first.rank=1", "method.at.first=0.5",
    "method@method.parts.second=finetune", "method.at.second=1", "strength=1",
)  # fmt: skip


@pytest.fixture
def cell(world, tmp_path):  # noqa: F811
    """Makes a cell of these options, whose results are in a folder of this name."""
    lines = [json.dumps({"prompt": prompt, "completion": " with hate"}) for prompt in PROMPTS[:6]]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines))
    own = ("examples=file", f"examples.path={tmp_path}/examples.jsonl")
    return lambda name, *given: Cell(validate([*arguments(world, tmp_path / name, *own, *given)[1:]]), Session())


@pytest.mark.slow
def test_a_stack_takes_the_fit_of_its_first_part(cell):
    artefact, fit = cell("both", *DETOX).fit.fitted
    known, seconds = cell("both", *STACK).fit.first_part()
    kept = {name: tensor for name, tensor in known["first"].items() if not name.startswith("info.")}
    assert kept.keys() == artefact.keys() and all(kept[name].equal(tensor) for name, tensor in artefact.items())
    assert seconds == fit["seconds"] > 0
    (taken, about), (made, anew) = (cell(name, *STACK).fit.fitted for name in ("both", "stack"))
    assert taken.keys() == made.keys() and all(taken[name].equal(tensor) for name, tensor in made.items())
    assert about["facts"] == anew["facts"] and about["data"] == anew["data"] and about["seconds"] > seconds


@pytest.mark.parametrize(
    "other",
    [("method.parts.first.center=false",), ("runtime.threads=7",), ("method.parts.first.seed=3",)],
)
def test_another_fit_is_not_taken(cell, other):
    assert cell("both", *DETOX).fit.fitted
    assert cell("both", *STACK, *other).fit.first_part() == ({}, 0.0)


def test_a_part_with_data_of_its_own_takes_the_fit_of_that_data(cell, tmp_path):
    rows = [json.dumps({"prompt": p, "desired": " with bread", "undesired": " with hate"}) for p in PROMPTS[:8]]
    (tmp_path / "other.jsonl").write_text("\n".join(rows))
    own = ("+pairs@part_data.first.pairs=file", f"part_data.first.pairs.path={tmp_path}/other.jsonl")
    assert cell("both", *DETOX).fit.fitted and cell("both", *STACK, *own).fit.first_part() == ({}, 0.0)
    assert cell("both", *DETOX, f"pairs.path={tmp_path}/other.jsonl").fit.fitted
    assert cell("both", *STACK, *own).fit.first_part()[0]
