import math
import socket
from importlib.metadata import version

import pytest

from bench.scorers import vader
from bench.scorers.vader import Vader

GOOD = 1.9  # the package's rating of the word, from -4 to 4
ALPHA = 15  # its normalisation: compound = sum / sqrt(sum^2 + 15)


def compound(total: float) -> float:
    return round(total / math.sqrt(total**2 + ALPHA), 4)


def test_the_score_is_the_compound_between_0_and_1():
    scores = Vader()(["p"] * 3, ["good", "not good", "the long road"])
    assert scores == pytest.approx([(compound(GOOD) + 1) / 2, (compound(-0.74 * GOOD) + 1) / 2, 0.5])
    assert scores[0] > 0.5 > scores[1]


def test_the_two_moods():
    texts = ["What a wonderful film, I loved every minute!", "A dull, awful film. I hated it.", "It runs two hours."]
    happy, sad, neither = Vader()(texts, texts)
    assert 0.9 < happy <= 1 and 0 <= sad < 0.1 and neither == 0.5
    assert Vader()([texts[1]], [texts[0]]) == [happy]  # the prompt does not count


def test_blank_and_broken_texts_are_neutral():
    assert Vader()(["p"] * 4, ["", " \n", "qxq vxv 123", "\x00\u202e"]) == [0.5] * 4
    assert Vader()([], []) == []


def test_it_measures_sentiment_and_names_its_package():
    assert Vader().measures == "sentiment"
    assert Vader().identity() == {"name": "vader", "version": 1, "vaderSentiment": version("vaderSentiment")}


def test_nothing_is_downloaded(monkeypatch):
    def unreachable(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    vader._analyzer.cache_clear()
    assert Vader()(["p"], ["good"])[0] > 0.5
