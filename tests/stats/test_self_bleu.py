"""Self-BLEU against sacrebleu, and on sets of texts whose answer is known."""

import math
import random

import pytest
from sacrebleu.metrics import BLEU

from bench.stats.self_bleu import MOST_REFERENCES, References

ORACLE = BLEU(smooth_method="floor", smooth_value=0.1, effective_order=True, tokenize="none")


def spoken(seed, items, each, words=12, least=0, most=25):
    """Texts of a few words that repeat themselves and each other."""
    draw = random.Random(seed)
    return [
        [" ".join(draw.choices("abcdefghijkl"[:words], k=draw.randint(least, most))) for _ in range(each)]
        for _ in range(items)
    ]


def means(texts):
    items = list(range(len(texts)))
    found = References(items, texts)
    return [found.self_bleu(item, some) for item, some in zip(items, texts, strict=True)]


@pytest.mark.parametrize(("items", "each"), [(2, 1), (5, 30), (7, 3), (40, 2)])
def test_it_is_sacrebleu_against_the_texts_of_other_prompts(items, each):
    for words in (3, 12):
        texts = spoken(items, items, each, words)
        kept = max(1, MOST_REFERENCES // (items - 1))
        for item, found in enumerate(means(texts)):
            others = [text for other, some in enumerate(texts) if other != item for text in some[:kept]]
            expected = [ORACLE.sentence_score(text, others).score / 100 if text else 0.0 for text in texts[item]]
            assert found == pytest.approx(sum(expected) / each, abs=1e-9)


def test_an_item_without_a_reference_has_as_many_of_them():
    texts = spoken(1, 300, 2)
    chosen = [i * 300 // 101 for i in range(101)]
    found = means(texts)
    for item in (chosen[0], chosen[50], chosen[-1], 1, 298):
        others = [i for i in chosen if i != item] if item in chosen else chosen[:-1]
        assert len(others) == MOST_REFERENCES
        expected = [ORACLE.sentence_score(one, [texts[i][0] for i in others]).score / 100 for one in texts[item]]
        assert found[item] == pytest.approx(sum(expected) / 2, abs=1e-9)


@pytest.mark.parametrize("text", ["I am sorry but I cannot help with that", "no", "no no"])
@pytest.mark.parametrize("items", [2, 10, 150])
def test_equal_texts_are_one(text, items):
    assert means([[text] * 3] * items) == pytest.approx([1.0] * items)


def test_texts_without_a_word_in_common_are_nothing():
    words = iter(range(10**6))
    assert means([[" ".join(f"w{next(words)}" for _ in range(20)) for _ in range(3)] for _ in range(30)]) == [0.0] * 30


def test_texts_of_one_prompt_may_be_alike():
    """A prompt that has one answer is no collapse; it is one where other prompts are answered so too."""
    alike = [[" ".join(f"{letter}{i}" for i in range(20))] * 5 for letter in "abcdefgh"]
    assert means(alike) == [0.0] * 8
    assert means(alike[:4] * 2) == pytest.approx([1.0] * 8)


def test_the_share_of_texts_that_fell_together_is_seen():
    texts = [[" ".join(f"{item}.{i}" for i in range(20))] for item in range(40)]
    found = [
        sum(means([["it is what it is"] if item < shared else texts[item] for item in range(40)])) / 40
        for shared in (0, 10, 20, 40)
    ]
    assert found == pytest.approx([0, 0.25, 0.5, 1])


def test_by_hand():
    others = [["a b c d e"], ["a a"]]
    (found, *_) = means([["a a b"], *others])
    # 3 of 3 words (a twice in the second), "a a" and "a b" of 2, "a a b" is in neither; the closest length is 2
    assert found == pytest.approx((1 * 1 * 0.1) ** (1 / 3))
    (found, *_) = means([["a b"], ["a b c d e"]])
    assert found == pytest.approx(math.exp(1 - 5 / 2))  # shorter than any


def test_empty_texts_and_a_single_prompt_have_no_self_bleu():
    assert means([["", "  "], ["", "a"]]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="of several prompts and got those of 1"):
        References(["p"], [["a", "b"]])
