"""What a record says of the data of a fit: counts of texts, and where they are from."""

import pytest

from bench.records.fields import LearntFrom

ONE, OTHER = {"name": "org/toxic", "source": "wheel"}, {"name": "org/questions", "source": "wheel"}


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"examples": {"texts": 32, "sources": [ONE]}}, (32, "org/toxic")),
        ({"examples": {"examples": 5, "sources": [ONE]}}, (5, "org/toxic")),  # of a file
        (
            {"examples": {"sources": [ONE, OTHER], "harmful": {"texts": 2}, "useful": {"texts": 8}}},
            (10, "org/toxic and org/questions"),
        ),
        ({"second.examples": {"texts": 3, "sources": [OTHER]}, "pairs": 9}, (3, "org/questions")),
        ({"pairs": 9, "sources": [ONE], "flipping": {"seed": 1, "flipped": 3}}, None),
    ],
)
def test_examples_are_counted_and_named(facts, found):
    learnt = LearntFrom.from_json(facts)
    assert learnt.examples == found
    assert {key for key in learnt.named if "flipping" in key} == set()


def test_seeds_of_a_subset_do_not_tell_two_fits_apart():
    one, other = ({"pairs": 8, "subset": {"seed": seed, "of": 59}} for seed in (0, 1))
    assert LearntFrom.from_json(one).named == LearntFrom.from_json(other).named == {"pairs": 8}
