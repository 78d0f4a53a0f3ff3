"""Pairs with swapped labels."""

import pytest

from bench.fit_data.flipped import Flipped, swapped
from bench.fit_data.jsonl import PairsFile
from methods.base import Pairs
from methods.errors import SetupError

PAIRS = Pairs([f"p{i}" for i in range(400)], [f"good{i}" for i in range(400)], [f"bad{i}" for i in range(400)])


def test_so_many_pairs_are_swapped_and_none_is_torn():
    found, count = swapped(PAIRS, 0.25, seed=3)
    moved = [i for i in range(400) if found.desired[i] == f"bad{i}"]
    assert len(moved) == count and 70 < count < 130  # 100, with a standard deviation of 9
    assert found.prompt == PAIRS.prompt
    for i in range(400):
        assert {found.desired[i], found.undesired[i]} == {f"good{i}", f"bad{i}"}


def test_the_coin_is_of_the_seed():
    assert swapped(PAIRS, 0.5, 1) == swapped(PAIRS, 0.5, 1) != swapped(PAIRS, 0.5, 2)
    assert swapped(PAIRS, 0, 1) == (PAIRS, 0) and swapped(PAIRS, 1, 1)[0].desired == PAIRS.undesired


def test_the_recipe_names_the_coin_and_the_record_how_many(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "a", "desired": "b", "undesired": "c"}\n' * 1
        + '{"prompt": "d", "desired": "e", "undesired": "f"}\n'
    )
    source = PairsFile(path=str(path))
    flipped = Flipped(source, 1.0, 7)
    assert flipped.identity() == source.identity() | {"flip": 1.0, "flip_seed": 7}
    pairs, about = flipped.load(None)
    assert pairs.desired == ["c", "f"] and about["flip"] == "1" and about["flipping"] == {"seed": 7, "flipped": 2}
    assert (flipped.name, flipped.tokens(), flipped.learnt()) == (source.name, source.tokens(), source.learnt())
    with pytest.raises(SetupError, match="from 0 to 1"):
        Flipped(source, 1.5, 0).check()
