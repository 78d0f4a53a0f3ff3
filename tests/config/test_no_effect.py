"""Settings of a command line that change nothing are told, and no others are."""

import pytest

from bench.config import compose, no_effect
from bench.run import validate


def told(*given):
    return no_effect.told(given, validate.validate_all(compose.jobs(given, multirun=True)))


@pytest.mark.parametrize(
    "given, setting, why",
    [
        (["suite=[capability]"], "suite.rtp.promts=5", "no cell has the suite rtp"),
        (["scorer=[profanity_check]"], "scorer.lexicon.name=b", "no cell has the scorer lexicon"),
        (["strength=1"], "tuning.search=tpe", "no strength is tuned"),
        (["method=unsteered", "strength=auto"], "tuning.trials=3", "no strength is tuned"),
        (["method=act_add", "strength=1"], "pairs.subset=8", "no method of this command learns from pairs"),
        (["method=act_add", "strength=1"], "pairs=on_policy_sampled", "no method of this command learns from pairs"),
        (
            ["method=caa", "strength=1"],
            "+pairs@part_data.x.pairs=on_policy_sampled",
            "no method of this command has parts",
        ),
        (["method=caa", "strength=1"], "background.count=9", "no method of this command learns from background"),
    ],
)
def test_a_setting_without_effect_is_told(given, setting, why):
    usual = [one for one in ("method=caa", "strength=1") if one.partition("=")[0] not in " ".join(given)]
    (line,) = told(*usual, *given, setting)
    assert line.startswith(f"note: {setting} changes nothing here: {why}")


@pytest.mark.parametrize(
    "given",
    [
        ["suite=[rtp],[capability]", "suite.rtp.prompts=5", "method=caa", "strength=1"],
        ["method=act_add,caa", "pairs.subset=8", "strength=1"],
        ["method=act_add", "pairs.scorer=lexicon", "strength=1"],
        ["method=caa", "strength=auto,1", "tuning.search=tpe"],
        ["method=dexperts", "method.expert=desired,base", "pairs.subset=8", "strength=1"],
        ["method=finetune", "method.kl_weight=1,0", "background.count=9", "strength=1"],
        ["method=caa,stack", "strength=1", "+pairs@part_data.second.pairs=on_policy_sampled"],
        ["method=detox", "strength=1", "add=[method=act_add strength=2]", "pairs.subset=8"],
    ],
)
def test_a_setting_of_one_cell_is_no_noise(given):
    assert told(*given) == []
