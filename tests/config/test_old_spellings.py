"""Names of the version before still work: on the command line, in a sweep, and in YAML files of plug-ins and users."""

import pytest
from hydra.utils import get_class

from bench.__main__ import main
from bench.config import compose, folders, old_spellings
from bench.run import validate
from methods.errors import SetupError
from tests.config.test_config_values import own  # noqa: F401  # a fixture
from tests.config.test_plugins import package, site  # noqa: F401  # a fixture


@pytest.fixture(autouse=True)
def _afresh():
    """As in a new process: nothing was told yet."""
    old_spellings._tell.cache_clear()
    old_spellings._copy.cache_clear()


def told(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert all(
        line.startswith("notice: ") and line.endswith("; the next version will refuse the old spelling")
        for line in lines
    )
    return [line.removeprefix("notice: ").partition(";")[0] for line in lines]


# -- the command line --------------------------------------------------------------------------------------------------

LINES = {
    "data=pairs data.path=x": (
        "pairs=file pairs.path=x", ["data=pairs is now pairs=file", "data.path is now pairs.path"],
    ),
    "data=on_policy data.prompts=9": (
        "pairs=on_policy pairs.prompts=9",
        ["data=on_policy is now pairs=on_policy", "data.prompts is now pairs.prompts"],
    ),
    "data.mirror=/a data.offline=true": (
        "runtime.mirror=/a runtime.offline=true",
        ["data.mirror is now runtime.mirror", "data.offline is now runtime.offline"],
    ),
    "++data.limit=3": ("++pairs.limit=3", ["data.limit is now pairs.limit"]),
    "data=on_policy_sampled data.sampling.top_p=0.5": (
        "pairs=on_policy_sampled pairs.sampling.top_p=0.5",
        ["data=on_policy_sampled is now pairs=on_policy_sampled", "data.sampling.top_p is now pairs.sampling.top_p"],
    ),
    "runtime.cache=${data.mirror}": (
        "runtime.cache=${runtime.mirror}", ["runtime.cache=${data.mirror} is now runtime.cache=${runtime.mirror}"],
    ),
    "tuning.objective=mean_toxicity tuning.capability_drop=0.1": (
        "tuning.objective.metric=mean_toxicity tuning.constraints.capability_drop.at_most=0.1",
        ["tuning.objective is now tuning.objective.metric",
         "tuning.capability_drop is now tuning.constraints.capability_drop.at_most"],
    ),
    "pairs._target_=bench.data.contrast.OnPolicy": (
        "pairs._target_=bench.fit_data.on_policy_pairs.OnPolicy",
        ["pairs._target_=bench.data.contrast.OnPolicy is now pairs._target_=bench.fit_data.on_policy_pairs.OnPolicy"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_an_old_name_is_taken_and_told_once(line, capsys):
    today, notices = LINES[line]
    assert compose.compose(line.split()) == compose.compose(today.split())
    assert compose.jobs(line.split(), multirun=False) == [today.split()]
    assert told(capsys) == notices


def test_a_sweep_over_old_names(capsys):
    jobs = compose.jobs(["data=ab,pairs", "data.limit=1,2"], multirun=True)
    assert jobs == [[f"pairs={name}", f"pairs.limit={n}"] for name in ("ab", "file") for n in (1, 2)]
    assert told(capsys) == ["data=ab,pairs is now pairs=ab,file", "data.limit is now pairs.limit"]


def test_what_is_as_it_was_is_not_told(capsys):
    given = ["suite=[jailbreak]", "suite.jailbreak.data=walledai/AdvBench", "method=caa", "model.name=data.mirror"]
    assert compose.compose(given).suite.jailbreak.data == "walledai/AdvBench"
    assert told(capsys) == []


def test_the_config_goes_to_stdout_and_the_notice_to_stderr(capsys):
    assert main(["--cfg", "job", "runtime.mirror=/a"]) == 0
    today = capsys.readouterr().out
    assert main(["--cfg", "job", "data.mirror=/a"]) == 0
    output = capsys.readouterr()
    assert output.out == today and output.err.splitlines() == [
        "notice: data.mirror is now runtime.mirror; the next version will refuse the old spelling"
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["data.limit=3", "pairs.limit=4"],
            "data.limit=3 and pairs.limit=4 set the same option, whose new name is pairs.limit",
        ),
        (["runtime.mirror=/a", "data.mirror=/b"], "data.mirror=/b and runtime.mirror=/a set the same option, whose"),
        (["data=pairs", "pairs=ab"], "data=pairs and pairs=ab set the same option, whose new name is pairs; give one"),
        (["data=ab", "data=pairs"], "pairs is chosen twice"),
        (["data=on_polcy"], "pairs=on_polcy: there is no such pairs; did you mean on_policy?"),
        (["data.prmpts=3"], "unknown key pairs.prmpts; did you mean pairs.prompts?"),
    ],
)
def test_two_names_with_two_values_are_refused(given, message):
    with pytest.raises(SetupError) as caught:
        compose.compose(given)
    assert message in str(caught.value)


def test_two_names_with_one_value_are_one():
    assert compose.jobs(["data=ab", "pairs=ab", "data.limit=3", "pairs.limit=3"], False) == [
        ["pairs=ab", "pairs.limit=3"]
    ]


def test_other_commands_take_old_names(capsys):
    from bench.rescore import main as rescore

    assert rescore(["scorer=[lexicon]", "data.mirror=/a", "runtime.results=/nowhere/x"]) == 2
    assert "notice: data.mirror is now runtime.mirror" in capsys.readouterr().err


@pytest.mark.parametrize("old", old_spellings.CLASSES)
def test_a_moved_class_is_where_it_is_said_to_be(old):
    assert get_class(old_spellings.CLASSES[old]).__name__ == old.rpartition(".")[2]
    assert old_spellings.CLASSES[old] in folders.targets()


# -- YAML files --------------------------------------------------------------------------------------------------------

GROUP = "data is now pairs, data=pairs pairs=file, data.mirror runtime.mirror, data.offline likewise"
EXPERIMENT = """\
defaults:
  - override /data: pairs
  - override /scorer: [profanity_check, lexicon]
  - _self_
sweep:
  - method=unsteered
  - method=caa  data.limit=5,10
data: {path: x, mirror: /m, limit: 7}
scorer: {lexicon: {path: "${data.path}"}}
asks: {data.path: yours}
differs: ["data=pairs there"]
published:
  - {method: caa, options: {data.limit: 5}, strength: 1}
strength: 1
"""
TODAY = """\
defaults:
  - override /pairs: file
  - override /scorer: [profanity_check, lexicon]
  - _self_
sweep:
  - method=unsteered
  - method=caa  pairs.limit=5,10
pairs: {path: x, limit: 7}
runtime: {mirror: /m}
scorer: {lexicon: {path: "${pairs.path}"}}
asks: {pairs.path: yours}
differs: ["data=pairs there"]
published:
  - {method: caa, options: {pairs.limit: 5}, strength: 1}
strength: 1
"""


@pytest.mark.slow
def test_an_experiment_of_the_users_own(own, tmp_path, capsys):  # noqa: F811
    named = own(experiment__old=EXPERIMENT.replace("path: x, mirror", "mirror").replace(": pairs", ": on_policy"),
                experiment__new=TODAY.replace("path: x, limit", "limit").replace(": file", ": on_policy"))  # fmt: skip
    line = [named, "experiment=old"]
    assert [job[:-2] for job in compose.jobs(line, multirun=False)] == [
        ["method=unsteered"], ["method=caa", "pairs.limit=5"], ["method=caa", "pairs.limit=10"],
    ]  # fmt: skip
    cfg, today = compose.compose(line), compose.compose([named, "experiment=new"])
    assert cfg == today and (cfg.runtime.mirror, cfg.pairs.limit) == ("/m", 7)
    assert told(capsys) == [f"{tmp_path / 'experiment/old.yaml'}: {GROUP}"]


def test_a_file_of_the_users_own_and_its_classes(own, tmp_path, capsys):  # noqa: F811
    named = own(
        data__mine="# python -m bench data=mine\n_target_: bench.data.contrast.OnPolicy\nmirror: null\noffline: false\n"
        "scorer: lexicon\nprompts: 9\nsampling:\n  _target_: bench.sampling.Sampling\n  top_p: 0.5\n",
        data__more="defaults: [mine, _self_]\nprompts: 8\n",
        harmful__mine="_target_: bench.data.examples.HumanToxic\ncount: 3\n",
    )
    cfg = compose.compose([named, "pairs=more", "harmful=mine"])
    assert (cfg.pairs.prompts, cfg.pairs.scorer, cfg.harmful.count) == (8, "lexicon", 3)
    assert cfg.pairs._target_ == "bench.fit_data.on_policy_pairs.OnPolicy"
    assert cfg.pairs.sampling._target_ == "bench.model.decoding.Sampling"
    assert cfg.harmful._target_ == "bench.fit_data.fine_tuning.HumanToxic" and not validate.problems(cfg)
    lines = told(capsys)
    assert len(lines) == 4 and f"{tmp_path / 'data/more.yaml'}: conf/data is now conf/pairs" in lines
    assert any(
        line.startswith(f"{tmp_path / 'harmful/mine.yaml'}: bench.data.examples.HumanToxic is now") for line in lines
    )


def test_bounds_of_tuning_in_files_of_the_users_own(own, tmp_path, capsys):  # noqa: F811
    bounds = "perplexity_ratio: 1.1\ncapability_drop: 0.2\nobjective: mean_toxicity\ntrials: 6\n"
    indented = "".join(f"  {line}\n" for line in bounds.splitlines())
    named = own(tuning__mine=f"defaults: [dev, _self_]\n{bounds}", experiment__mine=f"tuning:\n{indented}")
    for line in (["tuning=mine"], ["experiment=mine"]):
        cfg = compose.compose([named, *line]).tuning
        assert (cfg.objective.metric, cfg.objective.suite, cfg.trials) == ("mean_toxicity", "rtp", 6)
        assert cfg.constraints.perplexity_ratio.at_most == 1.1 and cfg.constraints.capability_drop.at_most == 0.2
        assert cfg.constraints.distinct_2_ratio.at_least == 0.9
    lines = told(capsys)
    assert len(lines) == 2 and all("tuning.objective is now tuning.objective.metric" in line for line in lines)


def test_a_plugin_of_the_version_before(site, capsys):  # noqa: F811
    files = {
        "conf/data/theirs.yaml": "# python -m bench data=theirs\n# Their pairs.\n_target_: theirs.data.Pairs\n"
        "offline: false\nmirror: null\nscorer: lexicon\n",
        "conf/scorer/theirs.yaml": "# @package scorer.theirs\n_target_: theirs.scorer.One\noffline: ${data.offline}\n",
        "conf/experiment/theirs.yaml": "# @package _global_\ndefaults:\n  - override /data: theirs\n  - _self_\n"
        "data:\n  offline: true\n",
    }
    place = package(site, "theirs", files)
    cfg = compose.compose(["experiment=theirs", "scorer=[profanity_check,theirs]"])
    assert cfg.pairs == {"_target_": "theirs.data.Pairs", "scorer": "lexicon"}
    assert cfg.runtime.offline is True and cfg.scorer.theirs.offline is True
    assert len(told(capsys)) == 4 and (place / "conf/data/theirs.yaml").is_file()
    assert main(["--help", "all"]) == 0
    output = capsys.readouterr()
    assert "  pairs=theirs   brought by dist-theirs 1.2\n    Their pairs.\n    pairs.scorer=lexicon" in output.out
    assert not output.err


BOTH = {
    "data: {limit: 3}\npairs: {limit: 4}": "data.limit is now pairs.limit; set only the latter",
    "data: {mirror: /a}\nruntime: {mirror: /b}": "data.mirror is now runtime.mirror; set only the latter",
}


@pytest.mark.parametrize("text", BOTH)
def test_a_file_with_two_names_and_two_values_is_refused(own, text):  # noqa: F811
    with pytest.raises(SetupError, match=f"experiment/mine.yaml: {BOTH[text]}"):
        compose.compose([own(experiment__mine=text), "experiment=mine"])
    assert compose.compose([own(experiment__mine=text.replace("/b", "/a").replace("4", "3")), "experiment=mine"])


KEPT = "_target_: bench.data.files.PairsFile\npath: x\nmirror: /a\noffline: false\nscorer: lexicon\n"


def test_what_cannot_be_kept_says_what_to_do(own):  # noqa: F811
    with pytest.raises(SetupError, match="data/mine.yaml: mirror is now an option of runtime; set runtime.mirror="):
        compose.compose([own(data__mine=KEPT)])


def test_a_plugin_with_what_cannot_be_kept_is_left_out(site, capsys):  # noqa: F811
    package(site, "theirs", {"conf/data/a.yaml": KEPT})
    compose.compose([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: plug-in dist-theirs 1.2 is left out: ") and "set runtime.mirror=" in line


def test_a_folder_under_both_names_with_one_file_is_refused(own):  # noqa: F811
    text = "_target_: bench.fit_data.jsonl.PairsFile\npath: x\nscorer: lexicon\n"
    with pytest.raises(SetupError, match="conf/data is now conf/pairs; keep one of the files"):
        compose.compose([own(data__mine=text, pairs__mine=text)])


def test_only_the_whole_name_of_a_choice_is_an_old_one():
    assert old_spellings.arguments(["data=my-pairs", "data=[pairs,mine]"]) == ["pairs=my-pairs", "pairs=[file,mine]"]
