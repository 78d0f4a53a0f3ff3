"""What one cell of a sweep sets is no other cell's: threads, decoding, the loaded model."""

import weakref

import pytest
import torch

from bench.__main__ import main
from bench.data.sources import Sources
from bench.fit_data.fine_tuning import OnPolicyToxic
from bench.fit_data.on_policy_pairs import OnPolicy
from bench.model.decoding import Sampling
from bench.records import identity, record
from bench.run import validate
from bench.run.cell import Cell
from bench.run.cell_model import CellModel
from bench.run.runner import by_model, plan, run_cell
from bench.run.session import Session, torch_threads
from bench.scorers.profanity_check import ProfanityCheck
from bench.suites.rtp import RTP
from tests.run.test_smoke import arguments, without_figures, world  # noqa: F401  # fixtures


@pytest.fixture
def computed_with(monkeypatch) -> list[tuple[int, int]]:
    """For each look at a model: the threads that torch had, and those in the model's identity."""
    seen = []
    ask = RTP.ask

    def noted(self, lm, split):
        seen.append((torch.get_num_threads(), lm.identity["threads"]))
        return ask(self, lm, split)

    monkeypatch.setattr(RTP, "ask", noted)
    return seen


def cells(world, results, *threads):  # noqa: F811
    session = Session()
    given = [one for one in arguments(world, results, "suite=[rtp]") if not one.startswith(("-m", "suite.capability"))]
    return [Cell(validate.validate([*given, f"runtime.threads={one}"]), session) for one in threads]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("order", ["2,3,null", "null,3,2", "3,null,2"])
def test_each_cell_of_a_sweep_runs_with_its_own_threads(world, tmp_path, computed_with, order):  # noqa: F811
    found = torch.get_num_threads()
    command = arguments(world, tmp_path, f"runtime.threads={order}", "suite=[rtp]")
    assert main([one for one in command if not one.startswith("suite.capability")]) == 0
    expected = [found if one == "null" else int(one) for one in order.split(",")]
    assert computed_with == [(number, number) for number in expected]
    assert torch.get_num_threads() == found
    records = [record.read(path) for path in (tmp_path / "runs/records").iterdir()]
    assert {one.model.identity["threads"] for one in records} == set(expected)


def test_constructors_set_nothing_and_the_plan_is_what_runs(world, tmp_path, computed_with):  # noqa: F811
    found = torch.get_num_threads()
    sweep = cells(world, tmp_path, 3, "null", 2)
    assert torch.get_num_threads() == found
    planned = [plan(cell) for cell in sweep]
    ids = [cell.names.record_id(cell.parts.suites["rtp"], "test", 0.0) for cell in sweep]
    assert len(set(ids)) == 3 and [list(one) for one in planned] == [[f"rtp {one}"] for one in ids]
    results = [run_cell(cell)[0] for cell in sweep]
    assert [one.id for one in results] == ids and [one for one, _ in computed_with] == [3, found, 2]
    assert [plan(cell) for cell in cells(world, tmp_path, 3, "null", 2)] == [{}, {}, {}]


def test_the_model_is_loaded_once_and_named_anew_for_each(world, tmp_path):  # noqa: F811
    two, three = cells(world, tmp_path, 2, 3)
    assert two.model.lm.model is three.model.lm.model
    assert (two.model.lm.identity["threads"], three.model.lm.identity["threads"]) == (2, 3)


def of_types(world, results, *types):  # noqa: F811
    session = Session()
    given = [one for one in arguments(world, results, "suite=[rtp]") if not one.startswith(("-m", "suite.capability"))]
    return [Cell(validate.validate([*given, f"model.dtype={one}"]), session) for one in types]


def test_a_models_weights_are_freed_before_the_next_is_loaded(world, tmp_path, monkeypatch):  # noqa: F811
    first, second = of_types(world, tmp_path, "float32", "bfloat16")
    load, alive = CellModel._load, []

    def noted(cell):
        alive.append([one for one in held if one() is not None])
        lm = load(cell)
        held.append(weakref.ref(lm.model))
        return lm

    held: list[weakref.ref] = []
    monkeypatch.setattr(CellModel, "_load", noted)
    assert run_cell(first)[0].metrics and run_cell(second)[0].metrics
    assert alive == [[], []] and held[0]() is None and len(second.session.models) == 1
    assert first.model.lm.model.dtype == torch.float32 and len(held) == 3  # whoever needs it again loads it again


def test_cells_of_one_model_run_together_in_their_order(world, tmp_path):  # noqa: F811
    sweep = of_types(world, tmp_path, "float32", "bfloat16", "float32", "float16", "bfloat16")
    assert [sweep.index(cell) for cell in by_model(sweep)] == [0, 2, 1, 4, 3]


def test_threads_are_as_before_also_after_a_failure():
    found = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(found + 2):
        assert torch.get_num_threads() == found + 2
        raise RuntimeError
    assert torch.get_num_threads() == found


@pytest.mark.parametrize("kind", [OnPolicy, OnPolicyToxic])
def test_texts_that_were_sampled_otherwise_are_other_data(world, kind):  # noqa: F811
    """The stop string too: with the same identity one cell would learn from the texts of another."""
    sources = Sources(mirror=str(world / "mirror"), cache=world / "cache", offline=True)

    def named(**changes: object) -> str:
        return identity.digest(kind(scorer=ProfanityCheck(), sources=sources, sampling=Sampling(**changes)).identity())

    others = ({"stop": "."}, {"stop": "\n"}, {"max_new_tokens": 7}, {"temperature": 0.5}, {"top_p": 0.5})
    assert len({named(), *(named(**one) for one in others)}) == 1 + len(others)
    assert named(seed=3, batch_size=2) == named()
