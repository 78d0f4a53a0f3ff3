"""What users of Hydra know: --cfg, --config-dir, glob and the like, beside add=[...], sweep=null and limit=N."""

import pytest
from omegaconf import OmegaConf

from bench.__main__ import main
from bench.config import compose, folders, item_limit
from bench.config.command_line import Printed, alone, at_once, with_results, without_added, without_cfg
from bench.run import validate
from methods.errors import SetupError
from tests.config.test_plugins import sample, site  # noqa: F401


def of(jobs, key):
    return [next((line.partition("=")[2] for line in job if line.startswith(f"{key}=")), None) for job in jobs]


# -- --cfg, --resolve, --config-dir ------------------------------------------------------------------------------------


def test_interpolations_stay_unless_they_are_to_be_resolved(capsys):
    assert main(["--cfg", "job", "method=caa", "suite.rtp.k=4"]) == 0
    assert OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))["suite"]["fluency"]["k"].startswith("${")
    assert main(["--cfg", "job", "--resolve", "method=caa", "suite.rtp.k=4"]) == 0
    assert OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))["suite"]["fluency"]["k"] == 4


def test_which_config_is_asked_for():
    assert without_cfg(["a=1", "--cfg", "all", "--resolve"]) == (["a=1"], Printed("all", resolved=True))
    assert without_cfg(["-c=hydra", "a=1"]) == (["a=1"], Printed("hydra", resolved=False))
    assert without_cfg(["--resolve"]) == (["--resolve"], None)  # told later what it belongs to


def test_a_command_without_a_dry_run_refuses_it():
    assert at_once(["--results", "a", "runtime.dry_run=false"]) == ["runtime.results=a", "runtime.dry_run=false"]
    with pytest.raises(SetupError, match="runtime.dry_run=true: only python -m bench and .*prefetch have a dry run"):
        at_once(["runtime.dry_run=true"])


def test_a_swept_option_is_named_once():
    with pytest.raises(SetupError, match="strength=1,2 and strength=3: strength is swept and set once more"):
        compose.jobs(["method=caa", "strength=1,2", "strength=3"], multirun=True)
    assert len(compose.jobs(["method=caa", "strength=1", "strength=3"], multirun=True)) == 1  # the last, as in Hydra


@pytest.mark.parametrize("more", [[], ["--resolve"]], ids=str)
def test_hydras_own_node_is_that_of_the_launcher(more, capsys):
    assert main(["-m", "--cfg", "all", *more, "method=caa,detox", "launcher=joblib", "hydra.launcher.n_jobs=3"]) == 0
    cells = [OmegaConf.create(one) for one in capsys.readouterr().out.split("\n---\n")]
    assert [one.method._target_.rpartition(".")[2] for one in cells] == ["CAA", "DeTox"]
    assert all("Joblib" in one.hydra.launcher._target_ and one.hydra.launcher.n_jobs == 3 for one in cells)
    assert main(["--cfg", "hydra", *more, "method=caa"]) == 0
    (alone_,) = [OmegaConf.create(one) for one in capsys.readouterr().out.split("\n---\n")]
    assert list(alone_) == ["hydra"] and "Basic" in alone_.hydra.launcher._target_


@pytest.mark.slow
def test_a_folder_of_ones_own_is_named_by_an_option(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# python -m bench experiment=mine\nstrength: 7\nsweep: [method=caa, method=detox]\n"
    (tmp_path / "experiment/mine.yaml").write_text(text)
    for option in (["--config-dir", str(tmp_path)], [f"-cd={tmp_path}"]):
        assert main(["--cfg", "job", *option, "+experiment=mine"]) == 0
        cells = [OmegaConf.create(one) for one in capsys.readouterr().out.split("\n---\n")]
        assert [one.strength for one in cells] == [7, 7] and cells[0].searchpath == [str(tmp_path)]
    assert main(["--cfg", "job", "experiment=mine"]) == 2
    assert "there is no such experiment" in capsys.readouterr().err


def test_folders_of_both_spellings_are_one_list():
    both = with_results(["--config-dir", "/a b", "method=caa", "hydra.searchpath=[/c]", "-cd", "/d", "--results", "r"])
    assert both == ["method=caa", "runtime.results=r", 'hydra.searchpath=[/c,"/a b",/d]']
    with pytest.raises(SetupError, match=r"-cd: it has no value; write -cd FOLDER, or hydra\.searchpath"):
        with_results(["method=caa", "-cd"])


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_functions_that_list_values():
    assert of(compose.jobs(["strength=choice(1,4)"], True), "strength") == ["1", "4"]
    assert of(compose.jobs(["seed.fit=range(1,4)"], True), "seed.fit") == ["1", "2", "3"]
    every = folders.groups()["method"]
    assert of(compose.jobs(["method=glob(*)"], True), "method") == every
    some = [name for name in every if name[0] in "cd" and name != "caa"]
    assert of(compose.jobs(["method=glob([c*,d*],exclude=caa)"], True), "method") == some and some
    suites = [f"[{name}]" for name in folders.groups()["suite"] if name.startswith("rtp")]
    assert of(compose.jobs(["suite=glob(rtp*)"], True), "suite") == suites and len(suites) == 5


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("method=glob(x*)", "no method is named like that. Allowed: ablation"),
        ("method=glob(*,exclude=*)", "exclude takes all of them away, so none is left. Allowed: ablation"),
        ("strength=range(1,1)", "names no value, so nothing would run; write strength=range(START,STOP,STEP)"),
        ("strength=sort(range(3,1))", "names no value"),
        ("seed.fit=range(0,3,-1)", "names no value"),
        ("strength=range(0.5,1.5,0)", "cannot be expanded to a list of values; write strength=range(START,STOP,STEP)"),
        ("strength=range(1,10,0)", "cannot be expanded to a list of values; write strength=range(START,STOP,STEP)"),
        ("strength=range(0,nan)", "cannot be expanded to a list of values"),
        ("add=[method=caa strength=range(2,1)]", "names no value"),
        ("strength=glob(*)", "glob(...) chooses files of a group"),
        ("strength=interval(0,1)", "only optimisers draw from an interval; list values, as in -m strength=VALUE,VALUE"),
        ("experiment=glob(c*)", "each experiment has its own sweep"),
        ("add=[]", "add=[method=NAME] adds a cell"),
        ("add=[caa]", "add=[method=NAME] adds a cell"),
        ("add=[experiment=ci]", "in a line of a sweep"),
        ("sweep=[]", "sweep says what an experiment is"),
        ("sweep=x", "sweep says what an experiment is"),
    ],
)
def test_what_cannot_be_swept_says_what_to_write(argument, message):
    with pytest.raises(SetupError) as error:
        validate.validate_all(compose.jobs([argument], True))
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_glob_is_a_sweep_and_needs_its_option():
    with pytest.raises(SetupError, match="add -m"):
        compose.jobs(["method=glob(c*)"], False)


def test_an_experiment_may_be_added_as_hydra_writes_it():
    plain = compose.jobs(["experiment=quickstart"], False)
    for sign in ("+", "++"):
        assert compose.jobs([f"{sign}experiment=quickstart"], False) == plain


# -- add=[...] and sweep=null ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[method=a]", ["method=a"]),
        ("method=a", ["method=a"]),
        ("[method=a,method=b]", ["method=a", "method=b"]),
        ("['method=a strength=1,2']", ["method=a strength=1,2"]),
        ("[method=a strength=1,2]", ["method=a strength=1,2"]),  # as a shell leaves it
        ("[method=a strength=1,2,method=b]", ["method=a strength=1,2", "method=b"]),
        ("[method=a suite=[rtp,fluency], 'method=b']", ["method=a suite=[rtp,fluency]", "method=b"]),
        ("[method=a x={layer:[1,2]},+method@x=b]", ["method=a x={layer:[1,2]}", "+method@x=b"]),
    ],
)  # fmt: skip
def test_lines_are_read_with_and_without_quotes(text, lines):
    assert without_added(["x=1", f"add={text}", "add=[seed.fit=1]"]) == (["x=1"], [*lines, "seed.fit=1"])


def test_added_cells_leave_the_others_as_they_are():
    plain = compose.jobs(["experiment=quickstart", "runtime.results=r"], False)
    more = compose.jobs(["experiment=quickstart", "add=[method=stack strength=1,2,method=caa seed.fit=9]",
                         "runtime.results=r"], False)  # fmt: skip
    assert more[: len(plain)] == plain and len(plain) > 10
    added = more[len(plain) :]
    assert [set(job) - {"experiment=quickstart", "runtime.results=r"} for job in added] == [
        {"method=stack", "strength=1"}, {"method=stack", "strength=2"}, {"method=caa", "seed.fit=9"},
    ]  # fmt: skip
    assert all({"experiment=quickstart", "runtime.results=r"} < set(job) for job in added)


def test_a_value_in_a_line_of_a_sweep_may_hold_blanks():
    *_, added = compose.jobs(
        ["method=caa", """add=[method=act_add method.desired=" a b" method.undesired=' ' strength=1]"""], True
    )
    assert 'method.desired=" a b"' in added and "method.undesired=' '" in added and "strength=1" in added


def test_what_a_line_says_goes_before_the_command_line():
    jobs = compose.jobs(["method=caa,detox", "strength=3", "add=[method=prompt strength=1]"], True)
    assert jobs == [["method=caa", "strength=3"], ["method=detox", "strength=3"], ["method=prompt", "strength=1"]]


def test_a_command_for_one_cell_gives_that_cell_alone():
    import shlex

    jobs = compose.jobs(["experiment=quickstart", "runtime.results='a b'", "add=[method=stack strength=2]"], False)
    for job in jobs:
        line = shlex.split(alone("steerbench run", job))
        assert line[:2] == ["steerbench", "run"] and compose.jobs(line[2:], False) == [job]
    (plain,) = compose.jobs(["method=caa"], False)
    assert alone("python -m bench", plain) == "python -m bench method=caa"


# -- limit=N -----------------------------------------------------------------------------------------------------------


def test_every_suite_is_cut_to_the_limit():
    every = ",".join(folders.groups()["suite"])
    whole = validate.validate([f"suite=[{every}]"])
    cut = validate.validate([f"suite=[{every}]", "limit=3"])
    for name, node in OmegaConf.to_container(cut.suite, resolve=True).items():
        options = {key.removeprefix("dev_") for key in cut.cut[name]}
        assert options & {"prompts", "per_group", "documents", "limit", "texts"}, f"{name} is asked as a whole"
        for option in cut.cut[name]:
            counts = node[option].values() if isinstance(node[option], dict) else [node[option]]
            assert set(counts) == {3}
        untouched = {key: value for key, value in node.items() if key not in cut.cut[name]}
        plain = OmegaConf.to_container(whole.suite[name], resolve=True)
        assert untouched == {key: value for key, value in plain.items() if key not in cut.cut[name]}


def test_what_is_smaller_than_the_limit_stays():
    cfg = validate.validate(["suite=[rtp,capability]", "suite.rtp.prompts=2", "suite.rtp.dev_prompts=4", "limit=4"])
    assert (cfg.suite.rtp.prompts, cfg.suite.rtp.dev_prompts, cfg.suite.capability.documents) == (2, 4, 4)
    assert dict(cfg.cut.rtp) == {} and dict(cfg.cut.capability) == {"documents": 100, "dev_documents": 20}
    assert item_limit.told([cfg]) == "limit=4 cuts capability (documents from 100, dev_documents from 20); not rtp"
    assert item_limit.told([validate.validate(["method=caa"])]) is None
    assert "cut" not in validate.validate(["method=caa"])


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "x", "[1]", "${seed}"])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(SetupError, match=r"^limit=?"):
        validate.validate([f"limit={value}"])


def test_a_suite_of_a_plugin_is_cut_where_it_counts_alike(sample):  # noqa: F811
    del sample
    (name,) = set(folders.groups()["suite"]) - {file.stem for file in (folders.folder() / "suite").glob("*.yaml")}
    cfg = validate.validate([f"suite=[{name}]", "limit=1", "strength=1"])
    assert dict(cfg.cut[name]) == {"prompts": 100, "dev_prompts": 32} and cfg.suite[name].prompts == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["runtime.results=/tmp/a,/tmp/b"], r"runtime\.results has several values in one command \(/tmp/a, /tmp/b\)"),
        (["add=[runtime.dry_run=true strength=3]", "strength=2"], r"runtime\.dry_run has several values"),
        (["hydra.searchpath="], r"hydra\.searchpath= has no value"),
    ],
)
def test_what_belongs_to_a_whole_command_has_one_value(given, told):
    with pytest.raises(SetupError, match=told):
        validate.validate_all(compose.jobs(["method=caa", *given], multirun=True))
