"""What a run is told of memory and hours before it begins."""

import re

import pytest

from bench.config import compose
from bench.model import devices, memory
from bench.run import forecast, memory_needed, runner
from bench.run.cell import Cell
from bench.run.cell_model import CellModel
from bench.run.forecast import Speeds, Work
from bench.run.session import Session
from methods.base import Demand
from tests.run.test_smoke import arguments, world
from tests.tiny import tiny_lm, tiny_model

__all__ = ["world"]


@pytest.fixture
def planned(world, tmp_path):
    """CAA and the unsteered model, with what each has to do."""
    session = Session()
    jobs = compose.jobs(arguments(world, tmp_path, "method=unsteered,caa")[1:], multirun=True)
    cells = [Cell(compose.compose(job), session) for job in jobs]
    return [(cell, runner.plan(cell)) for cell in cells]


def test_what_is_sampled_and_what_is_read(planned):
    """5 prompts x (15 + 2 x 6) tokens, and 3 for each of 5 strengths and the unsteered model on the dev split."""
    found = forecast.work(planned)
    assert found.sampled == 2 * 5 * (15 + 2 * 20) + 6 * 3 * (15 + 2 * 20)
    assert sum(found) == sum({key: tokens for _, own in planned for key, tokens in own.items()}.values())
    assert found.read > found.sampled  # fluency reads them again, and the documents come on top
    assert forecast.work([*planned, *planned]) == found  # shared stages count once


def test_pairs_are_made_once_for_subsets_and_swapped_copies(world, tmp_path):
    changes = ("method=caa pairs.subset=8,9 pairs.flip=0,0.5", "method=caa")
    found = []
    for asked in changes:
        jobs = compose.jobs(arguments(world, tmp_path, *asked.split())[1:], multirun=True)
        cells = [Cell(compose.compose(job), Session()) for job in jobs]
        assert len({cell.names.fit_id for cell in cells}) == len(cells)
        found.append({key: one for cell in cells for key, one in runner.plan(cell).items() if key.startswith("pairs ")})
    assert found[0] == found[1] and len(found[0]) == 1


def test_hours_follow_from_the_speeds():
    assert Speeds(100.0, 1000.0).hours(Work(720_000.0, 1_800_000.0)) == pytest.approx(2 + 0.5)
    told = forecast.hours_told(3, Work(720_000.0, 1_800_000.0), Speeds(100.0, 1000.0), 64, "cpu")
    assert "3 cells, 0.72 million tokens to sample, at 100 a second (64 texts at once)" in told
    assert "1.8 million to read, at 1,000: about 2.5 hours on cpu" in told
    assert "about 3 minutes on cpu" in forecast.hours_told(1, Work(18_000.0, 0.0), Speeds(100.0, 1.0), 64, "cpu")


def test_both_speeds_are_measured(monkeypatch):
    clock = iter([10.0, 12.0, 16.0])
    monkeypatch.setattr("bench.run.forecast.time.perf_counter", lambda: next(clock))
    lm = tiny_lm()
    rows = -(-lm.sampling.batch_size // len(forecast.PROMPTS)) * len(forecast.PROMPTS)
    assert forecast.speeds(lm) == (rows * forecast.NEW_TOKENS / 2, forecast.READ_TEXTS * forecast.READ_TOKENS / 4)


def test_memory_is_told_before_a_weight_is_loaded(planned, monkeypatch):
    monkeypatch.setattr(CellModel, "lm", property(lambda _: pytest.fail("a model was loaded")))
    (told,) = memory_needed.told(planned)  # of methods that neither read more nor train there is nothing to say
    model = tiny_model()
    size = sum(one.nbytes for one in model.parameters())
    batch = memory.estimate(model, 10, 5, memory_needed.PROMPT_TOKENS, 6).total
    assert f"take {size / 1e6:.3g} MB, a batch of 10 texts of 100 + 6 tokens takes {batch / 1e6:.3g} MB" in told
    assert re.search(r"cpu: [\d.]+ (GB|MB) free$", told)


@pytest.mark.slow
def test_memory_of_steering_and_of_training_is_told(world, tmp_path, monkeypatch):
    monkeypatch.setattr(CellModel, "lm", property(lambda _: pytest.fail("a model was loaded")))
    jobs = compose.jobs(arguments(world, tmp_path, "method=caa,sasa,self_debias,lora")[1:], multirun=True)
    session, model = Session(), tiny_model()
    cells = [Cell(compose.compose(job), session) for job in jobs]
    busy = [(cell, runner.plan(cell)) for cell in cells]
    _, steering, training = memory_needed.told(busy)
    plain, read_twice = (memory.estimate(model, 10, 5, 100, 6, one).total for one in (Demand(), Demand(readings=1)))
    assert re.search(r"^memory of steering, .*: sasa [\d.]+ MB, self_debias ([\d.]+) MB, lora", steering)
    assert f"self_debias {(read_twice - plain) / 1e6:.3g} MB" in steering
    assert f"lora {sum(one.nbytes for one in model.parameters()) / 1e6:.3g} MB" in steering  # the weights as they were
    assert re.search(r"^memory of training, .* at most: lora [\d.]+ MB$", training)
    monkeypatch.setattr(devices, "free_bytes", lambda _: 1)
    assert memory_needed.told(busy)[-1].endswith("; more than is free: lora")


def told_of(world, tmp_path, *more):
    jobs = compose.jobs(arguments(world, tmp_path, *more)[1:], multirun=True)
    cells = [Cell(compose.compose(job), Session()) for job in jobs]
    return memory_needed.told([(cell, runner.plan(cell)) for cell in cells])[0]


def test_the_batch_is_the_largest_that_is_asked(world, tmp_path):
    """All prompts on the test split leave none for the dev split, which nobody asks at a given strength."""
    (tmp_path / "x.jsonl").write_text("".join(f'{{"text": "People {i}"}}\n' for i in range(3)))
    every = ["suite=[attitude]", "suite.attitude.data=file", f"suite.attitude.path={tmp_path}/x.jsonl"]
    assert "a batch of 3 texts of 100 + 128 tokens" in told_of(
        world, tmp_path, "method=caa", "strength=1", *every, "suite.attitude.prompts=null"
    )
    assert "a batch of 20 texts of" in told_of(world, tmp_path, "method=unsteered", "suite.rtp.unsteered_k=4")


def test_of_two_options_the_larger_demand_is_told(world, tmp_path):
    more = ["method=dexperts", "strength=1", "method.anti_expert=undesired", "method.expert=desired,base"]
    jobs = compose.jobs(arguments(world, tmp_path, *more)[1:], True)
    cells = [Cell(compose.compose(job), Session()) for job in jobs]
    told = [memory_needed.told([(one, runner.plan(one)) for one in of])[1] for of in (cells, cells[::-1], cells[:1])]
    assert told[0] == told[1] == told[2]


def test_little_work_is_not_told(planned, monkeypatch):
    monkeypatch.setattr(CellModel, "lm", property(lambda _: pytest.fail("a model was loaded")))
    assert forecast.told(planned) == []
    monkeypatch.undo()
    monkeypatch.setattr(forecast, "WORTH_TELLING", 1000)
    assert [line.partition(":")[0] for line in forecast.told(planned)] == ["memory", "time"]


def test_a_model_that_cannot_be_loaded_is_left_to_its_cells(planned, monkeypatch):
    monkeypatch.setattr(forecast, "WORTH_TELLING", 1000)
    monkeypatch.setattr(CellModel, "lm", property(lambda _: (_ for _ in ()).throw(MemoryError("none left"))))
    assert [line.partition(":")[0] for line in forecast.told(planned)] == ["memory"]
