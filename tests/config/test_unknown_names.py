"""A name that nobody lists is an error with the nearest one: every group, every command that composes configs."""

import pytest

from bench.__main__ import main
from bench.agreement.__main__ import main as agreement
from bench.config import compose, folders
from bench.export.__main__ import main as export
from bench.reproduction import main as reproduction
from bench.rescore import main as rescore
from bench.run import validate
from bench.selftest.__main__ import main as selftest
from methods.errors import SetupError

LISTS = ("suite", "scorer")
NEAREST = {
    "background": "wikki", "pairs": "on_polcy", "examples": "toxic_and_siq", "experiment": "quikstart",
    "harmful": "human_toxi", "labelled": "hate_speec", "method": "cca", "model": "smollm2_135",
    "runtime": "locall", "sampling": "nucleos", "scorer": "lexcon", "suite": "rpt", "tuning": "devv",
}  # fmt: skip


def written(group: str, choice: str) -> str:
    return f"{group}=[{choice}]" if group in LISTS else f"{group}={choice}"


def refused(*overrides: str) -> str:
    """The message that these overrides are refused with."""
    with pytest.raises(SetupError) as caught:
        for job in compose.jobs(overrides, multirun=False):
            validate.validate(job)
    return str(caught.value)


def test_every_group_is_tried():
    assert set(NEAREST) == set(folders.groups())


@pytest.mark.parametrize("group", NEAREST)
def test_a_misspelt_choice_names_the_nearest(group):
    known = folders.groups()[group]
    message = refused(written(group, NEAREST[group]))
    near = message.partition("did you mean ")[2].partition("?")[0]
    assert message.startswith(f"{group}={NEAREST[group]}: there is no such {group}") and near in known
    assert "Allowed: " + ", ".join(known) in message


OTHER = [
    "",
    "../../x",
    "../{}",
    "./{}",
    "/{}",
    "/etc/passwd",
    "{}.yaml",
    "{}/",
    "' {}'",
    "null",
    "1",
    "true",
    "{{a:1}}",
]


@pytest.mark.parametrize("form", OTHER)
def test_paths_in_place_of_names_are_refused(form):
    for group, (choice, *_) in folders.groups().items():
        message = refused(written(group, form.format(choice)))
        assert f"there is no such {group}" in message or "the list is empty" in message or "key=value" in message


@pytest.mark.parametrize("group", [group for group in NEAREST if group != "experiment"])
def test_upper_case_is_another_name(group):
    choice = folders.groups()[group][0]
    assert f"did you mean {choice}?" in refused(written(group, choice.upper()))


@pytest.mark.parametrize("group", NEAREST)
def test_a_list_where_one_is_wanted_and_the_other_way_round(group):
    choice = folders.groups()[group][0]
    if group in LISTS:
        assert list(compose.compose([f"{group}={choice}"])[group]) == [choice]  # one of a list needs no brackets
        assert f"{group}=[]: the list is empty; name at least one, for example {group}=[" in refused(f"{group}=[]")
        assert "there is no such" in refused(f"{group}=[[{choice}]]")
    else:
        for line in (f"{group}=[{choice}]", f"{group}=[{choice},{choice}]"):
            assert f"{line}: expected one choice, {group}={choice}" in refused(line)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+experiment=nope"], "experiment=nope: there is no such experiment"),
        (["++experiment=nope"], "experiment=nope: there is no such experiment"),
        (["+experiment@foo=nope"], "experiment=nope: there is no such experiment"),
        (["+experiment@foo=quickstart"], "unknown key foo"),
        (["experiment=[nope]"], "experiment=nope: there is no such experiment"),
        (["experiment=${oc.env:HOME}"], "there is no such experiment"),
        (["+suite=[jailbrake]"], "suite=jailbrake: there is no such suite; did you mean jailbreak?"),
        (["method@foo=caa"], "method@foo"),
        (["+method@foo=caa"], "unknown key foo"),
        (["+method@_global_=caa"], "unknown key _global_"),
        (["+method@method.parts.third=promt", "method=stack"], "did you mean prompt?"),
        (["+method@method.parts.third=prompt", "method=caa"], "unknown key method.parts.third"),
        (["+method@method.layer.third=prompt", "method=caa"], "unknown key method.layer.third"),
        (["+model@model.a.b=local"], "unknown key model.a.b"),
        (["~experiment"], "~experiment: ~ (deleting a key) is not supported"),
        (["~method"], "~method: ~ (deleting a key) is not supported"),
        (["~method=caa"], "~method=caa: ~ (deleting a key) is not supported"),
        (["~suite.rtp.k"], "~suite.rtp.k: ~ (deleting a key) is not supported"),
        (["method=caa", "method=detox"], "method is chosen twice"),
        (["experiment=nope", "experiment=quickstart"], "experiment=nope: there is no such experiment"),
        (["experiment=quickstart", "experiment=ci"], "experiment is chosen twice"),
        (["hydra.run.dir=x"], "unknown key hydra.run.dir"),
        (["hydra/launcher=x"], "unknown key hydra/launcher"),
        (["method/x=caa"], "unknown key method/x; did you mean method?"),
        (["runtime.threads=0"], "runtime.threads=0: expected a whole number above 0"),
        (["runtime.threads=true"], "runtime.threads=true: expected a whole number above 0"),
        (["runtime.threads=1.5"], "runtime.threads=1.5: expected a whole number above 0"),
    ],
    ids=str,
)
def test_prefixes_and_places_are_no_way_round(overrides, message):
    assert message in refused(*overrides)


def test_several_wrong_names_are_told_at_once():
    assert len(refused("method=cca", "experiment=nope", "suite=[rtp,rpt,lfuency]").splitlines()) == 4


def test_the_way_that_is_documented_still_works():
    third = ["method=stack", "+method@method.parts.third=prompt", "++method.at={first:1,second:2,third:1}"]
    assert set(validate.validate([*third, "strength=1"]).method.parts) == {"first", "second", "third"}
    assert set(validate.validate(["+suite=[jailbreak]"]).suite) == {"rtp", "capability", "fluency", "jailbreak"}
    assert not compose.cell([])[1].sweep and compose.cell(["experiment=quickstart"])[1].sweep


COMMANDS = [
    (main, ["experiment=nope"]),
    (main, ["-m", "method=unsteered,caa", "experiment=nope"]),
    (main, ["-m", "method=unsteered,cca"]),
    (main, ["-m", "experiment=nope,quickstart"]),
    (main, ["-m", "method=glob(x*)"]),
    (main, ["-m", "strength=glob(*)"]),
    (export, ["experiment=nope", "strength=1"]),
    (export, ["method=cca", "strength=1"]),
    (selftest, ["experiment=nope"]),
    (selftest, ["method=cca"]),
    (agreement, ["experiment=nope"]),
    (agreement, ["scorer=[lexcon]"]),
    (agreement, ["scorer=lexikon"]),
    (rescore, ["scorer=[lexicon]", "experiment=nope"]),
    (rescore, ["scorer=[lexcon]"]),
    (rescore, ["scorer=lexikon"]),
    (reproduction, ["nope"]),
    (reproduction, ["../../x"]),
    (reproduction, ["Quickstart"]),
]


@pytest.mark.parametrize(("command", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", str(value)))
def test_every_command_ends_with_two_and_writes_nothing(command, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(arguments) == 2
    told = capsys.readouterr().err
    assert "error: " in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_user_names_is_read_for_that_run(tmp_path):
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "mine.yaml").write_text("_target_: methods.caa.CAA\nlayer: 3\n")
    named = f"hydra.searchpath=[{tmp_path / 'own'}]"
    assert compose.compose([named, "method=mine"]).method.layer == 3
    assert "did you mean mine?" in refused(named, "method=mime")
    assert "there is no such method" in refused("method=mine")
    assert "did you mean method.layer?" in refused(named, "method=mine", "method.lair=3")
    assert "did you mean method?" in refused(named, "metod=mine")
    assert "no such folder" in refused(f"hydra.searchpath=[{tmp_path / 'none'}]")
    (tmp_path / "own" / "method" / "caa.yaml").write_text("_target_: methods.caa.CAA\n")
    assert "method=caa is defined twice" in refused(named, "method=caa")
