import pytest

from bench.console import progress
from bench.console.progress import Bar
from methods.progress import advance, listening


def test_stages_add_up_to_the_plan_whatever_is_reported():
    with Bar({"a": 10, "b": 30}) as bar:
        with bar.stage("a", "first"):
            advance(4)
            assert bar.done == 4
            advance(100)  # more than was planned
            assert bar.done == 10
        with bar.stage("unplanned", "known"):
            advance(5)
        assert bar.done == 10
        with bar.stage("b", "second"):
            pass
        assert bar.done == 40


def test_without_a_listener_nothing_happens():
    advance(3)
    with listening(None):
        advance(3)


def test_a_stage_inside_a_stage_moves_forward_alone():
    """A fit is made when a suite first asks for it: what it took must not count against the suite."""
    bar = Bar({"suite": 100, "fit": 1000})
    seen = []
    with bar.stage("suite", "suite"):
        with bar.stage("fit", "fit"):
            advance(600)
            seen.append(bar.done)
        seen.append(bar.done)
        advance(40)
        seen.append(bar.done)
        advance(400)
        seen.append(bar.done)
    assert [*seen, bar.done] == [600, 1000, 1040, 1100, 1100]


def test_stages_of_one_key_take_their_share_of_the_plan():
    """The plan of a tuning has one entry for all its trials: the first one must not count as all of them."""
    bar, seen = Bar({"rtp dev": 300, "rtp test": 100}), []
    for _ in range(4):
        with bar.stage("rtp dev", "trial", 100):
            advance(60)
        seen.append(bar.done)
    assert seen == [100, 200, 300, 300]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets forward."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def work(bar: Bar, clock: list[float], key: str, tokens: int, seconds_a_token: float) -> None:
    with bar.stage(key, key):
        for _ in range(tokens):
            clock[0] += seconds_a_token
            advance(1)


def test_the_time_left_knows_that_kinds_of_work_differ(clock):
    bar = Bar({"sample 1": 10, "sample 2": 100, "read 1": 20, "read 2": 1000})
    assert bar.seconds_left() is None
    work(bar, clock, "sample 1", 10, 2.0)
    assert bar.seconds_left() is None, "most of what is left was never timed"
    work(bar, clock, "read 1", 20, 0.1)
    assert bar.seconds_left() == pytest.approx(100 * 2.0 + 1000 * 0.1, rel=0.15)
    work(bar, clock, "sample 2", 100, 2.0)
    assert bar.seconds_left() == pytest.approx(1000 * 0.1)
    work(bar, clock, "read 2", 1000, 0.1)
    assert bar.seconds_left() == 0


def test_loading_before_the_first_token_does_not_count_as_speed(clock):
    bar = Bar({"rtp 1": 10, "rtp 2": 10})
    with bar.stage("rtp 1", "first"):
        clock[0] += 500.0
        advance(1)
        clock[0] += 9.0
        advance(9)
    assert bar.seconds_left() == pytest.approx(10 * 0.9)


def test_a_fit_inside_a_suite_is_timed_by_itself(clock):
    bar = Bar({"rtp 1": 10, "fit 1": 10, "rtp 2": 10})
    with bar.stage("rtp 1", "suite"):
        advance(0.001)
        with bar.stage("fit 1", "fit"):
            clock[0] += 100.0
            advance(10)
        clock[0] += 10.0
        advance(10)
    assert bar.seconds_left() == pytest.approx(10.0, rel=0.01)
