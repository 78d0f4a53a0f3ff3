from bench.progress import Bar
from methods.fitting import advance, listening


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
