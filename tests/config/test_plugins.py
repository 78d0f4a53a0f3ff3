"""External packages: the sample in tests/plugin is installed by its metadata alone, as pip would write it."""

import copy
import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from omegaconf import OmegaConf

from bench.__main__ import main
from bench.config import compose, folders, plugins
from bench.config.build import build
from bench.data.sources import Sources
from bench.fit_data.fine_tuning import Mixture, OnPolicyToxic
from bench.fit_data.on_policy_pairs import OnPolicy
from bench.records import identity, provenance, record
from bench.records.fields import Decoding
from bench.rescore import Rescored
from bench.run import validate
from bench.run.cell import Cell
from bench.run.session import Session
from bench.selftest.__main__ import examine
from bench.selftest.subject import Subject
from methods.base import FitData, Pairs
from methods.errors import SetupError
from tests.methods.test_contract import DATA
from tests.run.test_smoke import arguments, without_figures, world  # noqa: F401  # fixtures
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer

SAMPLE = Path(__file__).parents[1] / "plugin"
PROJECT = tomllib.loads((SAMPLE / "pyproject.toml").read_text())["project"]
METHOD = "_target_: methods.caa.CAA\nlayer: 3\n"


def declare(site: Path, name: str, value: str, version: str = "1.2") -> None:
    """What pip leaves in site-packages of a distribution with one entry point."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text(f"[steerbench]\nmine = {value}\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder on sys.path to install into."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def sample(site, monkeypatch) -> Path:
    """The sample is installed."""
    (value,) = PROJECT["entry-points"]["steerbench"].values()
    declare(site, PROJECT["name"], value, PROJECT["version"])
    monkeypatch.syspath_prepend(str(SAMPLE))
    provenance._steady.cache_clear()
    yield SAMPLE / "steerbench_sample"
    provenance._steady.cache_clear()


def package(site: Path, name: str, files: dict[str, str]) -> Path:
    """Install a package `name` whose code must not run, of a distribution dist-<name>, with these files in it."""
    declare(site, f"dist-{name}", name)
    for path, text in {"__init__.py": "raise RuntimeError('imported')", **files}.items():
        (site / name / path).parent.mkdir(parents=True, exist_ok=True)
        (site / name / path).write_text(text)
    return site / name


def twin(thing):
    """The same settings, of a class of the same name in another package."""
    other = copy.copy(thing)
    object.__setattr__(other, "__class__", type(type(thing).__name__, (type(thing),), {"__module__": "elsewhere"}))
    return other


# -- what a plug-in brings -----------------------------------------------------------------------------------------


def test_without_a_plugin_there_is_one_folder():
    assert folders.folders() == [folders.folder()]
    assert "unigram_bias" not in folders.groups()["method"]


def test_its_choices_compose_and_validate(sample, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    overrides = [
        "method=unigram_bias", "method.smoothing=0.5", "suite=[rtp,letters]", "suite.letters.k=7", "strength=1",
        "scorer=[profanity_check,word_list]", "tuning.scorer=word_list", "model=sample_model",
        f"model.path={tmp_path / 'model'}",
    ]  # fmt: skip
    cfg = validate.validate(overrides)
    assert cfg.method._target_ == "steerbench_sample.unigram_bias.UnigramBias" and cfg.method.smoothing == 0.5
    assert set(cfg.suite) == {"rtp", "letters"} and cfg.suite.letters.k == 7 and cfg.suite.letters.dev_k == 3
    assert set(cfg.scorer) == {"profanity_check", "word_list"} and cfg.scorer.word_list.words == ["hate"]
    assert cfg.model.name == "sample_model" and cfg.model.bos == "prepend" and cfg.model.dtype == "float32"


@pytest.mark.slow
def test_its_experiment_is_a_sweep(sample):
    jobs = compose.jobs(["experiment=sample"], multirun=False)
    assert [[one for one in job if "=" in one][:-1] for job in jobs] == [
        ["method=unsteered"],
        ["method=caa", "strength=1"],
        ["method=unigram_bias", "strength=1"],
        ["method=unigram_bias", "strength=2"],
    ]
    for job in jobs:
        assert set(validate.validate(job).suite) == {"rtp", "letters"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=unigram_bia"], "did you mean unigram_bias\\? Allowed: ablation, .*unigram_bias, unsteered"),
        (["suite=[leters]"], "did you mean letters"),
        (["method=unigram_bias", "method.smoothin=2"], "did you mean method.smoothing"),
        (["method=unigram_bias", "+method.word=x"], "Allowed under method: smoothing, strengths"),
        (["scorer=[word_list]"], "pairs.scorer=profanity_check is not among the scorers in use \\(word_list\\)"),
    ],
)
def test_its_choices_are_named_in_error_messages(sample, overrides, message):
    with pytest.raises(SetupError, match=message):
        validate.validate(overrides)


def test_own_files_go_first(sample, monkeypatch):
    """What a plug-in does not bring is composed as without it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == sample.name]:
        monkeypatch.delitem(sys.modules, name)  # where a test before this one used it
    with_plugin = compose.compose(["method=caa"])
    sys.path.remove(str(SAMPLE))
    assert compose.compose(["method=caa"]) == with_plugin
    assert compose._search_path() == []


def test_a_folder_with_odd_characters_in_its_name(tmp_path, monkeypatch):
    odd = tmp_path / "it's, [a] folder=1"
    monkeypatch.syspath_prepend(str(odd))
    package(odd, "odd_one", {"conf/method/odd.yaml": METHOD})
    assert compose.compose(["method=odd"]).method.layer == 3


def test_help_shows_plugins_without_importing_them(site):
    package(site, "quiet", {"conf/method/theirs.yaml": f"# python -m bench method=theirs\n# Adds nothing.\n{METHOD}"})
    declare(site, PROJECT["name"], "steerbench_sample", PROJECT["version"])
    paths = [str(site), str(SAMPLE), str(Path(__file__).parents[2])]
    run = subprocess.run(
        [sys.executable, "-m", "bench", "--help", "all"],
        env={"PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stderr == ""
    lines = run.stdout.splitlines()
    place = lines.index("  method=theirs   brought by dist-quiet 1.2")
    assert lines[place + 1 : place + 3] == ["    Adds nothing.", "    method.layer=3"]
    for choice in ("method=unigram_bias", "scorer=word_list", "suite=letters", "model=sample_model"):
        assert f"  {choice}   brought by steerbench-sample 0.1.0" in lines
    assert "  method=caa" in lines  # of this project: no owner
    assert "task_negation, theirs, unigram_bias, unsteered" in " ".join(run.stdout.split())  # the group's line


# -- where the folder is -------------------------------------------------------------------------------------------


def test_the_folder_is_found_without_running_the_package(site):
    folder = package(site, "outer", {"conf/method/a.yaml": METHOD, "inner/steering.py": "raise RuntimeError"})
    (folder / "inner" / "conf").mkdir()
    assert plugins.conf_folder("outer") == folder / "conf"
    assert plugins.conf_folder("outer.inner.steering") == folder / "inner" / "conf"  # beside the module
    assert plugins.conf_folder("outer.inner") == folder / "inner" / "conf"  # a namespace package
    assert not {"outer", "outer.inner"} & set(sys.modules)


def test_two_entry_points_of_one_folder_are_one_plugin(site):
    folder = package(site, "twice", {"conf/method/a.yaml": METHOD})
    declare(site, "other", "twice.__init__")
    assert folders.folders()[1:] == [folder / "conf"]


# -- what is wrong with a plug-in ----------------------------------------------------------------------------------

BROKEN = {
    "no package": ("absent", {}, "names absent, but no such package can be found"),
    "no such module": ("broken.absent", {}, "names broken.absent, but no such package"),
    "no name": ("not-a-name", {}, "names not-a-name, but no such package"),
    "no conf": ("broken", {}, "no folder .*broken/conf; does the package include its YAML files"),
    "YAML": ("broken", {"conf/method/theirs.yaml": "a: [1\nb: 2\n"}, r"method/theirs.yaml cannot be read: .*line 2"),
    "a key twice": ("broken", {"conf/method/theirs.yaml": "a: 1\na: 2\n"}, "cannot be read: .*duplicate key a"),
    "a list": ("broken", {"conf/method/theirs.yaml": "- 1\n"}, "theirs.yaml holds no `key: value` lines"),
    "a number": ("broken", {"conf/method/theirs.yaml": "5\n"}, "theirs.yaml cannot be read"),
    "group": ("broken", {"conf/methods/theirs.yaml": METHOD}, "in no group of steerbench; did you mean conf/method[?]"),
    "config.yaml": ("broken", {"conf/config.yaml": "strength: 1\n"}, "conf/config.yaml is in no group"),
    "no header": ("broken", {"conf/suite/theirs.yaml": "k: 1\n"}, "lacks the line # @package suite.theirs"),
    "other header": (
        "broken",
        {"conf/scorer/theirs.yaml": "# @package scorer.other\nk: 1\n"},
        "lacks the line # @package scorer.theirs",
    ),
    "experiment": ("broken", {"conf/experiment/theirs.yaml": "seed: 1\n"}, "lacks the line # @package _global_"),
    "hydra": (
        "broken",
        {"conf/experiment/theirs.yaml": "# @package _global_\nhydra: {sweeper: {params: {method: 'caa,detox'}}}\n"},
        "theirs.yaml sets options of Hydra itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_warning_and_the_rest_goes_on(site, sample, capsys, name):
    value, files, message = BROKEN[name]
    package(site, "broken", files)
    if value != "broken":
        (site / "dist_broken-1.2.dist-info/entry_points.txt").write_text(f"[steerbench]\nmine = {value}\n")
    assert compose.compose(["method=unigram_bias"]).method.smoothing == 1  # the sound one
    compose.compose(["method=caa"])
    assert folders.folders() == [folders.folder(), sample / "conf"]
    (line,) = capsys.readouterr().err.splitlines()  # said once
    assert line.startswith("warning: plug-in dist-broken 1.2 is left out: ") and re.search(message, line), line


def test_a_module_by_itself_has_no_folder_of_its_own(site, capsys):
    declare(site, "dist-single", "single")
    (site / "single.py").write_text("")
    (site / "conf" / "method").mkdir(parents=True)  # of nobody
    (site / "conf" / "method" / "theirs.yaml").write_text(METHOD)
    assert folders.folders() == [folders.folder()]
    assert "names single, a module outside a package; name a package that holds conf/" in capsys.readouterr().err


def test_a_choice_that_is_ours_cannot_be_replaced(site):
    folder = package(site, "thief", {"conf/method/caa.yaml": METHOD})
    for refused in (
        folders.groups,
        lambda: compose.compose(["method=caa"]),
        lambda: validate.validate(["method=detox"]),
    ):
        with pytest.raises(SetupError) as caught:
            refused()
        message = str(caught.value)
        assert message.startswith("method=caa is defined twice") and "(steerbench)" in message
        assert str(folders.folder() / "method/caa.yaml") in message
        assert f"{folder / 'conf/method/caa.yaml'} (dist-thief 1.2)" in message


def test_two_plugins_with_one_name_for_a_choice(site):
    first = package(site, "first", {"conf/pairs/a.yaml": "path: x\n", "conf/method/theirs.yaml": METHOD})
    second = package(site, "second", {"conf/scorer/a.yaml": "# @package scorer.a\n", "conf/method/theirs.yaml": METHOD})
    with pytest.raises(SetupError, match="^method=theirs is defined twice") as caught:
        folders.folders()
    for folder, owner in ((first, "dist-first 1.2"), (second, "dist-second 1.2")):
        assert f"{folder / 'conf/method/theirs.yaml'} ({owner})" in str(caught.value)


@pytest.mark.parametrize("arguments", [["--help"], ["method=caa"]])
def test_a_clash_is_told_without_a_traceback(site, capsys, arguments):
    package(site, "thief", {"conf/method/caa.yaml": METHOD})
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert "error: method=caa is defined twice" in output.err and "dist-thief 1.2" in output.err
    assert "Traceback" not in output.err and output.out == ""


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("absent_package.Mine", "", "_target_: absent_package.Mine cannot be imported: .*No module named"),
        ("fragile.Mine", "", "_target_: fragile.Mine cannot be imported: .*RuntimeError\\('imported'\\)"),
        ("bench.config.plugins.PLUGINS", "", "_target_: bench.config.plugins.PLUGINS cannot be imported: .*non-class"),
        ("methods.caa.CAA", "colour: red\n", "methods.caa.CAA: got an unexpected keyword argument 'colour'"),
        ("methods.prompt.Prompt", "", "methods.prompt.Prompt: missing a required argument: 'prompts'"),
    ],
)
def test_a_class_that_cannot_be_made(site, target, more, message):
    package(site, "fragile", {"conf/method/theirs.yaml": f"_target_: {target}\n{more}"})
    with pytest.raises(SetupError, match=message):
        build(compose.compose(["method=theirs"]).method)


# -- ids and records -----------------------------------------------------------------------------------------------


def test_our_ids_stay_and_plugin_ids_name_their_package(sample):
    from steerbench_sample.letters import Letters
    from steerbench_sample.unigram_bias import UnigramBias
    from steerbench_sample.word_list import WordList

    ours = build(compose.compose(["method=caa"]).method)
    assert set(identity.method_identity(ours)) == {"name", "version", "parameters"}
    for file in folders.folder().rglob("*.yaml"):
        targets = re.findall(r"_target_: *(\S+)", file.read_text())
        assert all(target.startswith(("methods.", "bench.")) for target in targets), file

    theirs = UnigramBias()
    assert identity.method_identity(theirs)["class"] == "steerbench_sample.unigram_bias.UnigramBias"
    ids = {identity.fit_id({}, identity.method_identity(one), None) for one in (theirs, twin(theirs))}
    assert len(ids) == 2

    stack = build(compose.compose(["method=stack", "method.parts.first=null"]).method)
    assert "class" not in identity.method_identity(stack)
    named = identity.named(WordList())
    assert named == WordList().identity() | {"class": "steerbench_sample.word_list.WordList"}
    assert identity.origin(Letters(sources=Sources()))["class"] == "steerbench_sample.letters.Letters"


def test_a_class_of_another_package_changes_every_id(world, tmp_path):  # noqa: F811
    cfg = validate.validate(arguments(world, tmp_path, "method=caa", "strength=1")[1:])
    mine, other = Cell(cfg, Session()), Cell(cfg, Session())
    other.parts.fit_sources["pairs"] = twin(mine.parts.fit_sources["pairs"])
    assert mine.names.fit_id != other.names.fit_id and mine.names.source_id("pairs") != other.names.source_id("pairs")

    rtp, scorer = mine.parts.suites["rtp"], mine.parts.scorers["profanity_check"]
    of_suite = mine.names.suite(rtp, "test")
    assert replace(rtp, scorers=[twin(scorer)]).identity("test") != rtp.identity("test")
    assert (foreign := other.names.suite(twin(rtp), "test")) != of_suite
    judged = Rescored(SimpleNamespace(sampling=Decoding.from_json(of_suite["decoding"])), twin(rtp), tmp_path)
    assert judged.named == foreign  # a result judged anew has the id that a run would give it

    sources = Sources(mirror=str(world / "mirror"), cache=world / "cache", offline=True)
    for kind in (OnPolicy, OnPolicyToxic):
        one = kind(scorer=scorer, sources=sources)
        assert replace(one, scorer=twin(scorer)).identity() != one.identity()
    part = mine.parts.fit_sources["pairs"]
    assert Mixture(parts={"a": twin(part)}).identity() != Mixture(parts={"a": part}).identity()


@pytest.mark.usefixtures("without_figures")
def test_a_cell_with_its_method_scorer_and_suite(sample, world, tmp_path, capsys):  # noqa: F811
    command = arguments(world, tmp_path, "method=unsteered,unigram_bias", "strength=2", "suite=[rtp,letters]")
    command[command.index("scorer=[profanity_check]")] = "scorer=[profanity_check,word_list]"
    command = [one for one in command if not one.startswith("suite.capability")]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method")
    assert set(table.index) == {"unsteered", "unigram_bias"}
    rows = pd.read_csv(tmp_path / "leaderboard_tidy.csv")
    assert rows.loc[rows["metric"].str.contains("word_list"), "value"].notna().any()
    assert rows.loc[rows["suite"] == "letters", "metric"].str.startswith("share").any()
    assert any(column.startswith("letters.share") for column in table)

    records = [record.read(path) for path in (tmp_path / "runs" / "records").iterdir()]
    assert {one.suite for one in records} == {"rtp", "letters"}
    for one in records:
        assert one.provenance.packages["steerbench-sample"] == PROJECT["version"]
        steered = one.method.strength == 2
        assert one.method.class_path == ("steerbench_sample.unigram_bias.UnigramBias" if steered else None)
    assert {one.suite: sorted(name for name in one.metrics if "word_list" in name) for one in records}["rtp"]
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to run" in capsys.readouterr().err


# -- the sample itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_sample_method_keeps_every_promise(sample, architecture):
    cfg = compose.compose(["method=unigram_bias"]).method
    results = examine(Subject(lambda: build(cfg), lambda: tiny_lm(architecture), FitData(**DATA), options=list(cfg)))
    assert {one.check: one.detail for one in results if one.outcome != "PASS"} == {}


def test_the_plug_in_of_the_methods_readme_works(site):
    """Its four files, as methods/README.md shows them, and the method keeps every promise."""
    text = (Path(__file__).parents[2] / "methods" / "README.md").read_text()
    shown = dict(re.findall(r"```(toml|yaml|python)\n(.*?)```", text, re.DOTALL))
    project = tomllib.loads(shown["toml"])
    assert project["tool"]["setuptools"]["package-data"] == {"my_package": ["conf/**/*.yaml"]}
    files = {"__init__.py": "", "conf/method/mine.yaml": shown["yaml"], "mine.py": shown["python"]}
    package(site, project["project"]["entry-points"]["steerbench"]["mine"], files)
    cfg = compose.compose(["method=mine"]).method
    results = examine(Subject(lambda: build(cfg), lambda: tiny_lm("llama"), FitData(**DATA), options=list(cfg)))
    assert {one.check: one.detail for one in results if one.outcome == "FAIL"} == {}
    assert sum(one.outcome == "PASS" for one in results) > 15


def test_the_sample_method_by_hand(sample):
    """Pairs of one token each, twice the same: log((2 + s) / (2 + s V)) - log(s / (2 + s V)) = log((2 + s) / s)."""
    from steerbench_sample.unigram_bias import UnigramBias

    tokenizer, model = tiny_tokenizer(), tiny_model()
    good, bad = (tokenizer.convert_ids_to_tokens(one) for one in (70, 71))
    data = FitData(Pairs(["x"] * 2, [good] * 2, [bad] * 2))
    learnt = UnigramBias(smoothing=1).fit(model, tokenizer, data)["bias"]
    assert learnt[70].item() == pytest.approx(math.log(3), abs=1e-5)
    assert learnt[71].item() == pytest.approx(-math.log(3), abs=1e-5)
    assert learnt.count_nonzero() == 2
    with pytest.raises(SetupError, match="number above 0"):
        UnigramBias(smoothing=0).check(model)


def test_the_sample_suite_and_scorer_by_hand(sample):
    from steerbench_sample.letters import share
    from steerbench_sample.word_list import WordList

    assert share("ab c!!") == pytest.approx(4 / 6) and share("") == 0
    assert WordList(words=["Hate"])(["", "", ""], ["I hate it", "love", ""]) == [1.0, 0.0, 0.0]


def test_the_sample_declares_its_yaml_with_commands(sample):
    project = tomllib.loads((SAMPLE / "pyproject.toml").read_text())
    packed = project["tool"]["setuptools"]["package-data"]["steerbench_sample"]
    files = sorted((sample / "conf").rglob("*.yaml"))
    assert files == sorted(file for pattern in packed for file in sample.glob(pattern)) and len(files) == 5
    for file in files:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# python -m bench") and file.stem in lines[0]
        assert OmegaConf.load(file)


def test_the_sample_is_not_part_of_the_wheel():
    project = tomllib.loads((SAMPLE.parents[1] / "pyproject.toml").read_text())
    assert not [one for one in project["tool"]["setuptools"]["packages"] if "tests" in one or "sample" in one]
