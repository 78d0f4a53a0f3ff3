"""Which contexts share a beginning that is read once."""

import random

import torch

from bench.model.log_likelihood import log_likelihood
from bench.model.shared_prefix import LEFT, WORTH, alike
from methods.progress import counting
from tests.tiny import tiny_lm


def texts(generator, length):
    return tuple(generator.randrange(100) for _ in range(length))


def test_contexts_are_grouped_by_their_shared_examples():
    generator = random.Random(0)
    subjects = [texts(generator, 300) for _ in range(2)]
    of_subjects = [one + texts(generator, 40) for one in subjects for _ in range(9)]
    others = [texts(generator, generator.randrange(10, 90)) for _ in range(20)]
    contexts = of_subjects + others
    generator.shuffle(contexts)
    first, *groups = alike(contexts)
    assert first.shared == 0 and sorted(first.contexts) == sorted(others)
    assert sorted(group.contexts[0][:300] for group in groups) == sorted(subjects)
    assert all(300 <= group.shared < 305 and len(group.contexts) == 9 for group in groups)


def test_the_end_of_each_context_is_never_shared():
    (group,) = alike([(1,) * 200, (1,) * 200 + (2,), (1,) * 300])
    assert group.shared == 200 - LEFT


def test_a_short_beginning_is_not_worth_a_forward():
    (group,) = alike([(1,) * 40 + (i,) * 40 for i in range(WORTH // 40 + 1)])
    assert group.shared in (0, 40) and (group.shared == 0 or group.saved >= WORTH)


def test_it_is_read_once_and_changes_no_likelihood():
    lm = tiny_lm()
    beginning = "the quick brown fox jumps over the lazy dog and " * 3
    prompts = [f"{beginning}a story about {word} and people who walk: it"
               for word in ("love", "hate", "bread", "the river")]  # fmt: skip
    ends = [" is", " was good", " sings", " ends"]
    with counting() as count:
        together = log_likelihood(lm, prompts, ends)
    with counting() as alone:
        single = [log_likelihood(lm, [prompt], [end])[0] for prompt, end in zip(prompts, ends, strict=True)]
    assert count.tokens < 0.75 * alone.tokens
    found, wanted = (torch.tensor([one.logprob for one in several]) for several in (together, single))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_one_text_that_grows_word_by_word_ends_soon():
    assert sum(len(group.contexts) for group in alike([(1,) * length for length in range(1, 1500)])) == 1499
