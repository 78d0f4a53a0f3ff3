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
