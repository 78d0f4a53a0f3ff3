import pytest

from bench.model.sampling import sample
from methods.base import Steering
from methods.errors import SetupError
from methods.prompt import Prompt
from tests.tiny import tiny_lm

METHOD = Prompt(prompts=["Be kind. ", "Be calm. "], strengths=(1, 2))


def test_strength_is_the_number_of_the_prompt():
    lm = tiny_lm()
    plain = sample(lm, ["the river"], 3, 8)
    for number, prefix in ((1, "Be kind. "), (2.0, "Be calm. ")):
        with lm.steered(METHOD, {}, number) as steered:
            assert steered.steering == Steering(prefix=prefix)
            assert steered.encode("the river") == lm.encode(prefix + "the river")
            texts = sample(steered, ["the river"], 3, 8)
        # the texts are those after the whole prompt, but from the random stream of the prompt without the prefix
        assert texts != plain and not any(prefix in text for text in texts[0])


@pytest.mark.parametrize("number", [3, -1, 1.5])
def test_a_number_without_a_prompt(number):
    lm = tiny_lm()
    with pytest.raises(SetupError, match="prompt has prompts 1 to 2; choose one of these, or add a prompt to"):
        with METHOD.apply(lm.model, {}, number):
            pytest.fail("entered")


def test_check_finds_too_long_a_grid_and_an_empty_prompt():
    lm = tiny_lm()
    METHOD.check(lm.model)
    with pytest.raises(SetupError, match="strength 3"):
        Prompt(prompts=["Be kind. ", "Be calm. "], strengths=(1, 2, 3)).check(lm.model)
    with pytest.raises(SetupError, match="prompt 2 is empty"):
        Prompt(prompts=["Be kind. ", "  "], strengths=(1, 2)).check(lm.model)
