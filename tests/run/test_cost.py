import time
from contextlib import contextmanager

import torch

from bench.run import cost
from bench.run.cost import peak_memory, relative_speed
from methods.base import Steering
from methods.intervention import Hook, hooked
from methods.random_direction import RandomDirection
from tests.tiny import tiny_lm


def test_peak_memory_sees_a_large_tensor():
    with peak_memory(torch.device("cpu"), interval_seconds=0.001) as peak:
        tensor = torch.ones(30_000_000)  # 120 MB
        tensor += 1
        del tensor
    assert 80e6 < peak.bytes < 400e6


def test_relative_speed_of_a_slow_method(monkeypatch):
    for name, value in (("ROUNDS", 6), ("ROWS", 32), ("NEW_TOKENS", 4)):  # which tests/conftest.py shortens
        monkeypatch.setattr(cost, name, value)
    lm = tiny_lm()

    class Slow(RandomDirection):
        @contextmanager
        def apply(self, model, artefact, strength):
            def wait(hidden):
                time.sleep(0.02)
                return hidden

            with hooked([Hook(model.model.layers[0], "output", wait)]):
                yield Steering()

    found = relative_speed(lm, Slow(), {}, 1.0)
    assert found.relative_speed < 0.75
    assert found.relative_speed_low < found.relative_speed < found.relative_speed_high
