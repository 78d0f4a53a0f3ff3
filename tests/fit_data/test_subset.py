"""Some of the pairs, drawn at random."""

import json

import pytest

from bench.fit_data.jsonl import PairsFile
from bench.fit_data.subset import Subset
from methods.errors import SetupError


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "desired": f"good{i}", "undesired": f"bad{i}"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return PairsFile(path=str(path))


def test_pairs_stay_whole_and_are_drawn_by_the_seed(source):
    pairs, about = Subset(source, 8, 1).load(None)
    numbers = [prompt.removeprefix("p") for prompt in pairs.prompt]
    assert pairs.desired == [f"good{i}" for i in numbers] and pairs.undesired == [f"bad{i}" for i in numbers]
    assert len(set(numbers)) == 8 == about["pairs"] and about["subset"] == {"seed": 1, "of": 40}
    assert Subset(source, 8, 1).load(None)[0] == pairs != Subset(source, 8, 2).load(None)[0]


def test_the_smaller_set_is_in_the_larger(source):
    small, large = (set(Subset(source, count, 3).load(None)[0].prompt) for count in (8, 16))
    assert small < large
    assert Subset(source, 40, 3).load(None)[0] == source.load(None)[0]


def test_gaps_of_all_pairs_are_not_told_of_some(source):
    class Scored(PairsFile):
        def load(self, lm):
            pairs, about = super().load(lm)
            return pairs, about | {"mean_gap": 0.8, "min_gap": 0.6, "scorer": "x"}

    about = Subset(Scored(path=source.path), 8, 1).load(None)[1]
    assert about["scorer"] == "x" and not {"mean_gap", "min_gap"} & set(about)


def test_too_many_and_too_few_are_refused(source):
    with pytest.raises(SetupError, match="has 40 pairs; lower it"):
        Subset(source, 41, 0).load(None)
    with pytest.raises(SetupError, match="at least 2 pairs"):
        Subset(source, 1, 0).check()


def test_the_recipe_names_the_number_and_the_seed(source):
    assert Subset(source, 8, 1).identity() == source.identity() | {"subset": 8, "subset_seed": 1}
