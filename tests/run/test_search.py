from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from bench.run.search import Point, budget, points
from bench.run.tuning import Objective, Tuning
from methods.errors import SetupError


@dataclass(frozen=True)
class Layered:
    name: ClassVar[str] = "layered"
    discrete: ClassVar[bool] = False
    layer: float = 0.5
    strengths: tuple[float, ...] = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Plain:
    name: ClassVar[str] = "plain"
    discrete: ClassVar[bool] = False
    strengths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Numbered:
    name: ClassVar[str] = "numbered"
    discrete: ClassVar[bool] = True
    strengths: tuple[float, ...] = (1, 2, 3, 4, 5)


OBJECTIVE = Objective(suite="rtp", metric="mean_toxicity", direction="minimize")


def asked(method, **options):
    return list(points(Tuning(objective=OBJECTIVE, **options), method, []))


def test_by_default_the_methods_own_grid_as_it_is():
    assert asked(Plain()) == [Point(one) for one in Plain().strengths]


@pytest.mark.parametrize("search", ["grid", "random"])
@pytest.mark.parametrize("method", [Layered(), Plain()])
def test_every_method_has_the_same_number_of_trials(search, method):
    found = asked(method, search=search, trials=12, options={"layer": [0.3, 0.6]})
    assert len(found) == 12
    low, high = min(method.strengths), max(method.strengths)
    assert all(low <= one.strength <= high for one in found)
    if isinstance(method, Layered):
        assert {one.options["layer"] for one in found} == {0.3, 0.6}
    else:  # without the option all trials are strengths
        assert all(one.options == {} for one in found) and len({one.strength for one in found}) == 12


def test_a_longer_grid_keeps_its_ends_at_even_ratios():
    found = [one.strength for one in asked(Layered(), trials=9)]
    assert found[0] == 1 and found[-1] == 16
    assert np.allclose(np.diff(np.log(found)), np.log(16) / 8, atol=1e-3)


def test_random_search_is_log_uniform_and_equal_for_all_methods():
    found = np.array([one.strength for one in asked(Layered(), search="random", trials=400)])
    assert np.mean(found < 4) == pytest.approx(0.5, abs=0.06)  # 4 is halfway from 1 to 16
    other = np.array([one.strength for one in asked(Plain(), search="random", trials=400)])
    shares = np.log(found) / np.log(16), np.log(other / 0.2) / np.log(5)
    assert np.allclose(*shares, atol=2e-3)
    assert asked(Plain(), search="random", trials=5, seed=1) != asked(Plain(), search="random", trials=5)
    assert asked(Plain(), search="random", trials=5) == asked(Plain(), search="random", trials=5)


def test_what_is_numbered_is_never_asked_between_its_numbers():
    for search in ("grid", "random", "tpe"):
        found = follow(Numbered(), search=search, trials=4)[0]
        assert {one.strength for one in found} <= {1, 2, 3, 4, 5} and len(found) == 4
    assert [one.strength for one in asked(Numbered(), trials=12)] == [1, 2, 3, 4, 5]  # there are no more
    assert [one.strength for one in asked(Numbered(), trials=3)] == [1, 3, 5]


def test_a_grid_that_does_not_divide():
    with pytest.raises(SetupError, match="2 combinations of layer, so give a multiple of 2"):
        budget(Tuning(objective=OBJECTIVE, trials=7, options={"layer": [0.3, 0.6]}), Layered())


def test_strengths_in_residual_norms_are_one_grid_for_all():
    for method in (Layered(), Plain()):
        found = asked(method, in_residual_norms=True, residual_norms=[0.1, 0.2])
        assert [one.strength for one in found] == [0.1, 0.2]


def follow(method, best=0.7, allowed=1.0, **options):
    """The points of a search that is told of each: the reduction is largest near `best`, the bound above `allowed`."""
    history, asked_for = [], []
    for point in points(Tuning(objective=OBJECTIVE, **options), method, history):
        asked_for.append(point)
        reduction = 1 - abs(point.strength - best)
        history.append(SimpleNamespace(gain=reduction, violation=max(0.0, point.strength - allowed)))
    return asked_for, history


def test_optuna_looks_where_it_was_good_and_keeps_to_the_bound():
    found, history = follow(Plain(), search="tpe", trials=40)
    assert len(found) == 40
    early, late = (np.array([one.strength for one in part]) for part in (found[:13], found[-13:]))
    assert np.abs(late - 0.7).mean() < 0.6 * np.abs(early - 0.7).mean()
    shares = []
    for allowed in (0.4, 1.0):  # .7 is better and, at first, not allowed
        bounded, _ = follow(Plain(), allowed=allowed, search="tpe", trials=40)
        shares.append(np.mean([one.strength <= 0.4 for one in bounded[-13:]]))
    assert shares[0] > shares[1] + 0.2
    assert follow(Plain(), search="tpe", trials=9)[0] == follow(Plain(), search="tpe", trials=9)[0]


def test_optuna_chooses_options_as_well():
    found, _ = follow(Layered(), best=2.0, allowed=99, search="tpe", trials=12, options={"layer": [0.3, 0.6]})
    assert {one.options["layer"] for one in found} == {0.3, 0.6}


def test_without_optuna_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'steerbench\[tpe\]'"):
        asked(Plain(), search="tpe", trials=5)
