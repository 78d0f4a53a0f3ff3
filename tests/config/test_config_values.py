"""Keys and values of configs: every one is known and sound before anything is loaded, and each error names the key."""

import copy
import functools
import importlib.util
import shlex
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.__main__ import main
from bench.config import command_line, compose, keys
from bench.config.experiment import Experiment
from bench.config.values import fits, words
from bench.console.escape import visible
from bench.run import validate
from methods.errors import SetupError

QUIET = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


def refused(*overrides: str) -> str:
    """The message that these overrides are refused with, "" where they are taken."""
    try:
        validate.validate_all(compose.jobs(overrides, multirun=True))
    except SetupError as error:
        return str(error)
    return ""


@pytest.fixture
def own(tmp_path):
    """Write YAML files into a folder that the command line names; gives the argument."""

    def write(**files: str) -> str:
        for name, text in files.items():
            group, stem = name.split("__")
            (tmp_path / group).mkdir(exist_ok=True)
            head = "# @package _global_\n" if group == "experiment" else ""
            (tmp_path / group / f"{stem}.yaml").write_text(head + text)
        return f"hydra.searchpath=[{tmp_path}]"

    return write


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("++seed={smaple:5}", "seed.smaple", "seed.sample"),
        ("seed={smaple:5}", "seed.smaple", "seed.sample"),
        ("{sample:7,smaple:5}", "seed.smaple", "seed.sample"),
        ("suite.rtp={k:3,kk:4}", "suite.rtp.kk", "suite.rtp.k"),
        ("suite={rtp:{kk:4}}", "", ""),
        ("++suite.rtp={kk:4}", "suite.rtp.kk", "suite.rtp.k"),
        ("++examples.parts={harmful:{cuont:4}}", "examples.parts.harmful.cuont", "examples.parts.harmful.count"),
        ("+suite.rpt.k=4", "suite.rpt", "suite.rtp"),
        ("++method.parts.first={lair:1}", "method.parts.first.lair", "method.parts.first.layer"),
        ("method.at={frist:1}", "", ""),
    ],
)
def test_a_mapping_holds_only_keys_that_the_yaml_lists(override, key, near):
    message = refused("method=stack", "strength=1", override if "=" in override else f"seed={override}")
    assert f"unknown key {key}; did you mean {near}?" in message if key else message


def test_all_unknown_keys_are_reported_at_once():
    message = refused("seed={smaple:5}", "suite.rtp={k:3,kk:4}", "model.dtyp=x", "seed.sample.deep=1")
    assert len(message.splitlines()) == 4
    for line in message.splitlines():
        key = line.removeprefix("unknown key ").partition(";")[0]
        assert f"did you mean {key}?" not in line


EXPERIMENTS = {
    "seed: {smaple: 3}": "unknown key seed.smaple; did you mean seed.sample?",
    "sede: 3": "unknown key sede; did you mean seed?",
    "suite: {rpt: {k: 1}}": "unknown key suite.rpt; did you mean suite.rtp?",
    "suite: {rtp: {kk: 1}}": "unknown key suite.rtp.kk; did you mean suite.rtp.k?",
    "scorer: {lexcon: {path: x}}": "unknown key scorer.lexcon; did you mean scorer.lexicon?",
    "runtime: {thread: 1}": "unknown key runtime.thread; did you mean runtime.threads?",
    "tuning: {trial: 3}": "unknown key tuning.trial; did you mean tuning.trials?",
    "model: {dtyp: float16}": "unknown key model.dtyp; did you mean model.dtype?",
    "sampling: {topp: 1}": "unknown key sampling.topp; did you mean sampling.top_p?",
    "pairs: {prmpts: 3}": "unknown key pairs.prmpts; did you mean pairs.prompts?",
    "examples: {parts: {harmful: {cuont: 3}}}": "did you mean examples.parts.harmful.count?",
    "examples: {parts: {mine: {_target_: bench.fit_data.fine_tuning.TaskAnswers, cuont: 3}}}": "mine.count?",
    "sweep: ['method=caa method.lair=3']": "unknown key method.lair; did you mean method.layer?",
    "sweep: ['experiment=ci']": "experiment=ci in a line of a sweep",
    "sweep: method=caa": "sweep=method=caa: expected a list in brackets, each text",
    "swep: [method=caa]": "unknown key swep; did you mean sweep?",
    "asks: [pairs.path]": 'asks=["pairs.path"]: expected a mapping {name: value} (each value text)',
    "differs: ['${nothing}']": "differs does not resolve: Interpolation key 'nothing' not found",
    "sweep: [{method: caa}]": 'sweep[0]={"method": "caa"}: expected text',
    "defaults: [override /model: lama, _self_]": "its defaults name model=lama: there is no such model; did you mean",
    "defaults: [override /suite: [rtp, rpt], _self_]": "suite=rpt: there is no such suite; did you mean rtp?",
    "defaults: [override /modle: local, _self_]": "its defaults name the group modle; did you mean model?",
    "tuning: null": "tuning=null: expected a mapping",
    "defaults: [quickstrt, _self_]": "its defaults name experiment=quickstrt: there is no such experiment; did",
    "suite: {capability: {documents: {piqqa: 3}}}": "piqqa is not among the tasks that are asked; did you mean piqa?",
    "strength: strong": "strength=strong: a number in the method's unit, or auto",
}


@pytest.mark.every(6)
@pytest.mark.parametrize("text", EXPERIMENTS)
def test_the_yaml_of_an_experiment_is_held_to_the_same(own, text):
    assert EXPERIMENTS[text] in refused(own(experiment__mine=text), "experiment=mine")


@pytest.mark.slow
def test_so_are_the_other_files_of_a_plugin(own):
    named = own(
        model__typo="defaults: [local, _self_]\ndtyp: float16\n",
        model__less="name: x\npath: x\n",
        method__typo="_target_: methods.caa.CAA\nlair: 3\n",
        model__lost="defaults: [locl, _self_]\n",
        method__nameless="layer: 3\n",
    )
    assert refused(named, "method=nameless", "strength=1") == "method names no class by _target_; its YAML file has to"
    assert "unknown key model.dtyp; did you mean model.dtype?" in refused(named, "model=typo", "model.path=x")
    assert "model.bos is missing; its YAML file has to list it" in refused(named, "model=less")
    assert "unknown key method.lair; did you mean method.layer?" in refused(named, "method=typo")
    assert "model=lost: its defaults name model=locl: there is no such model; did you mean local?" in refused(
        named, "model=lost"
    )


@pytest.mark.slow
def test_what_yaml_files_leave_open_stays_open(own):
    named = own(
        experiment__mine="defaults:\n  - override /method: stack\n  - override /method@method.parts.second: act_add\n"
        "  - override /suite: [rtp, capability]\n  - _self_\n"
        "method: {parts: {second: {desired: x}, third: {_target_: methods.caa.CAA, layer: 3}},\n"
        "  at: {first: 1, second: 1, third: 2}}\nasks: {pairs.path: yours}\nstrength: 1\n"
        "suite: {capability: {tasks: [piqa], documents: {piqa: 3}, configs: {piqa: [a, b]}}, fluency: {k: 3},\n"
        "  rtp: {decoding: {temperature: 0}}}\n",
        experiment__later="sweep: [method=caa]\nmethod: {layer: 3}\nstrength: 1\n",
    )
    (cfg,) = validate.validate_all(compose.jobs([named, "experiment=mine"], multirun=False))
    assert set(cfg.method.parts) == {"first", "second", "third"} and set(cfg.suite) == {"rtp", "capability"}
    (cfg,) = validate.validate_all(compose.jobs([named, "experiment=later"], multirun=False))
    assert cfg.method.layer == 3
    assert not refused("tuning.trials=5", "tuning.options={layer:[0.3,0.5]}", "method=unsteered,caa")


# -- options that are tuned --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{lair:[1]}", "tuning.options.lair: no method of this command has it; did you mean layer?"),
        ("{strengths:[1]}", "tuning.options.strengths: strengths are tuned anyway"),
        ("{_partial_:[1]}", "_partial_: [1] is refused"),
        ("{_x:[1]}", "tuning.options._x: no method of this command has it"),
        ("{layer:[nan]}", "tuning.options.layer[0]=nan: expected a value without nan, inf"),
        ("{layer:[0.3,deep]}", "tuning.options.layer[1]=deep: expected a number"),
        ("{layer:[]}", "a list of the values to try"),
        ("{layer:0.3}", "tuning.options.layer=0.3: expected a list in brackets"),
        ("{rank:[0]}", "tuning.options.rank[0]=0: expected a whole number above 0"),
    ],
)
def test_an_option_that_no_method_has_is_refused(options, message):
    given = ("method=unsteered,caa,detox", "tuning.trials=4", f"tuning.options={options}")
    assert message in refused(*given)


# -- values ------------------------------------------------------------------------------------------------------------

VALUES = {
    "runtime.offline=flase": "runtime.offline=flase: expected true or false; did you mean false?",
    "model.chat=maybe": "model.chat=maybe: expected true or false",
    "suite.rtp.k=true": "suite.rtp.k=true: expected a whole number above 0",
    "suite.rtp.k=1.5": "suite.rtp.k=1.5: expected a whole number above 0",
    "suite.rtp.k=abc": "suite.rtp.k=abc: expected a whole number above 0",
    "suite.rtp.k=null": "suite.rtp.k=null: expected a whole number above 0",
    "suite.rtp.prompts=0": "suite.rtp.prompts=0: expected a whole number above 0, or null",
    "pairs.prompts=-3": "pairs.prompts=-3: expected a whole number above 0",
    "pairs.max_desired=1.5": "pairs.max_desired=1.5: expected a number from 0 to 1",
    "pairs.max_desired=nan": "pairs.max_desired=nan: a number from 0 to 1; nan and inf are not allowed",
    "strength=nan": "strength=nan: a number in the method's unit, or auto; nan and inf are not allowed",
    "strength=inf": "strength=inf: a number",
    "strength=true": "strength=true: expected a number",
    "strength=null": "strength=null: a number",
    "strength_unit=metod": "strength_unit=metod: allowed are method, residual_norm; did you mean method?",
    "sampling.temperature=inf": "sampling.temperature=inf: a number; nan and inf are not allowed",
    "sampling.max_new_tokens=0": "sampling.max_new_tokens=0: expected a whole number above 0",
    "sampling.stop=[a]": 'sampling.stop=["a"]: expected text, or null',
    "method.layer=nan": "method.layer=nan: a number",
    "method.layer=true": "method.layer=true: a number",
    "method.boundary=1": "method.boundary=1: expected true or false",
    "method.read=al": "method.read=al: allowed are all, continuation, last, letter; did you mean all?",
    "method.strengths=[]": "method.strengths=[]: the list is empty",
    "method.strengths=[1,x]": "method.strengths[1]=x: a number",
    "suite.rtp.part=tset": "suite.rtp.part=tset: allowed are test, whole; did you mean test?",
    "seed=5": "seed=5: expected a mapping of fit, sample",
    "seed.sample=abc": "seed.sample=abc: expected a whole number from 0 to 4294967295",
    "seed.sample=-1": "seed.sample=-1: expected a whole number from 0 to 4294967295",
    "runtime.device=gpuu": "runtime.device=gpuu: there is no such device here",
    "runtime.device=cuda:99": "runtime.device=cuda:99: there is no such device here",
    "scorer.lexicon=5": "scorer.lexicon=5: expected a mapping",
    "runtime.results=''": "runtime.results='': the text is empty",
    "runtime.cache=''": "runtime.cache='': the text is empty; null for none",
    "runtime.results=5": "expected text; a number is text in quotes of its own: 'runtime.results=\"5\"'",
    f"runtime.results={'x' * 300}": "choose another folder",
    "model.name=nan": "model.name=nan: expected text; a number is text",
    "model.name=[a]": 'model.name=["a"]: expected text',
    "model.dtype=float23": "model.dtype=float23: allowed are float32, bfloat16, float16; did you mean float32?",
    "suite.capability.tasks=[]": "suite.capability.tasks=[]: the list is empty",
    "suite.capability.tasks=piqa": "suite.capability.tasks=piqa: expected a list in brackets, each text",
    "suite.capability.configs={piqqa:x}": "piqqa is not among the tasks that are asked; did you mean piqa?",
    "suite.capability.fewshot={piqqa:1}": "piqqa is not among the tasks that are asked; did you mean piqa?",
    "suite.capability.documents={piqa:0}": "documents.piqa=0: expected a whole number above 0, or null",
    "suite.rtp.decoding=gredy": "suite.rtp.decoding=gredy: expected a mapping {name: value}, or null",
    "suite.rtp.decoding={temprature:0}": "did you mean suite.rtp.decoding.temperature?",
    "suite.rtp.decoding={temperature:inf}": "suite.rtp.decoding",
    "tuning.residual_norms=[]": "tuning.residual_norms=[]: the list is empty",
    "tuning.search=gird": "tuning.search=gird: allowed are grid, random, tpe; did you mean grid?",
    "tuning.trials=1.5": "tuning.trials=1.5: expected a whole number above 0, or null",
    "model.name=${nope}": "model.name=${nope}: it does not resolve",
    "model.name=${oc.env:NOPE_AT_ALL}": "model.name=${oc.env:NOPE_AT_ALL}: it does not resolve",
    "model.name=${model.name}": "model.name=${model.name}: it does not resolve",
    "seed.fit=${seed}": "seed.fit=${seed}: it does not resolve",
    "sampling.top_p=${method}": "sampling.top_p=",
    "runtime.results=${method}": "runtime.results=",
    "seed.fit=range(1000000000)": "sweeps over more than 10000 values",
    "sweep=[method=caa strength=1]": "sweep=[method=caa strength=1]: sweep says what an experiment is",
    "sweep=5": "sweep=5: sweep says what an experiment is; write it in a YAML file",
    "+asks.x=5": "+asks.x=5: asks says what an experiment is",
}


@pytest.mark.every(4)
@pytest.mark.parametrize("override", VALUES)
def test_a_value_of_another_type_or_outside_its_range_is_refused(override):
    assert VALUES[override] in refused("method=caa", override)


def test_all_wrong_values_are_told_at_once():
    message = refused("method=caa", "method.layer=nan", "seed.sample=abc", "runtime.device=gpuu", "suite.rtp.part=tset",
                      "model.chat=maybe", "model.path=x", "tuning.scorer=x", "sampling.top_p=2")  # fmt: skip
    keys = {"method.layer", "seed.sample", "runtime.device", "suite.rtp.part", "model.chat", "tuning.scorer"}
    assert {line.partition("=")[0] for line in message.splitlines()} == keys  # what reads seed and model waits for them


def test_sound_values_are_taken_as_they_are():
    given = ["method=caa", "strength=2", "method.layer=13", "method.norm=4", "suite.rtp.prompts=null", "seed.sample=42",
             "suite.capability.documents=null", "model.name='5'", "sampling.stop='\\n'", "sampling.temperature=0",
             "suite.rtp.decoding={temperature:0}", "pairs.limit=3"]  # fmt: skip
    cfg = validate.validate(given)
    assert (cfg.model.name, cfg.method.layer, cfg.suite.rtp.prompts) == ("5", 13, None)


def test_hints_in_words():
    assert words(int | float | None) == "a number, or null" and fits(3, float) and not fits(True, float)
    assert not fits(10**400, float) and not fits(2**63, int) and not fits("\ud800", str)


# -- quoting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["/home/José/x=1", "/a=1", "/a(b)", "/a[b", "/a{b}c", "/naïve #1", "~/x(1)", 'a"b=1', "/大/x"]
)
def test_unreadable_values_are_shown_with_quotes_that_work(value, capsys):
    assert main([f"runtime.mirror={value}"]) == 2
    told = capsys.readouterr().err
    assert "runtime.mirror=" in told and "Exception" not in told and "extraneous" not in told
    message = refused(f"runtime.mirror={value}")
    (line,) = shlex.split(message.partition("; write ")[2])
    assert compose.compose([line]).runtime.mirror == value


def test_lists_are_quoted_by_item_and_commas_may_be_sweeps():
    assert """write 'hydra.searchpath=["/home/José/x"]'""" in refused("hydra.searchpath=[/home/José/x]")
    with pytest.raises(SetupError, match="""part of the value: 'runtime.mirror="/a,b"'"""):
        compose.jobs(["runtime.mirror=/a,b"], multirun=False)
    assert compose.jobs(['runtime.mirror="/a,b"'], multirun=False)


def test_a_mistake_is_told_once_where_it_was_made():
    assert refused("seed.fit=x") == "seed.fit=x: expected a whole number from 0 to 4294967295"
    assert refused("seed=1") == "seed=1: expected a mapping of fit, sample; set one of its keys as in seed.KEY=..."
    assert "pairs.flip_seed=x" in refused("pairs.flip_seed=x")


TOLD_ONCE = {
    ("suite.rtp.k=x",): "suite.rtp.k=x: expected a whole number",  # the suite fluency reads it by oc.select
    ("method=gate", "method.inner.strengths=[a]"): "method.inner.strengths[0]=a: expected a number",
    ("method=caa", "seed.fit=${nope}"): "seed.fit=${nope}: it does not resolve",
    ("seed.fit=${seed.fit}",): "seed.fit=${seed.fit}: it does not resolve",
    ("seed.fit=${seed.sample}", "seed.sample=${seed.fit}"): "seed.fit=${seed.sample}: it does not resolve",
    ("method=detox", "seed.fit=${seed.sample}", "seed.sample=x"): "seed.sample=x: expected a whole number",
    ("pairs.subset_seed=${pairs.flip_seed}", "seed.fit=x"): "seed.fit=x: expected a whole number",
}


@pytest.mark.parametrize("typed", TOLD_ONCE, ids=" ".join)
def test_a_mistake_that_others_read_is_told_once(typed):
    message = refused(*typed)
    assert message.startswith(TOLD_ONCE[typed]) and len(message.splitlines()) == 1


def test_a_mistake_in_a_sweep_names_the_cell():
    with pytest.raises(SetupError, match=r"unknown key method.layer.*\(in cell 2 of 2, method=unsteered\)"):
        validate.validate_all([["method=caa", "method.layer=3"], ["method=unsteered", "method.layer=3"]])


@pytest.mark.parametrize("argument", ["métod=caa", "=5", "--cfg", "method", "x='", "a=range(1)", "seed.fit=range(a,b)"])
def test_what_is_no_override_is_one_line(argument):
    message = refused(argument)
    assert argument.partition("=")[0] in message and len(message.splitlines()) == 1 and "Exception" not in message


def typed_in_bash(words: list[str]) -> list[str]:
    """What a program gets of arguments that are typed so."""
    line = f"printf '%s\\0' {' '.join(words)}"
    run = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    return run.stdout.decode().split("\0")[:-1]


def shown_quoting(argument: str) -> str:
    """How to type the argument, as its message says; the message is as it is on a terminal."""
    with pytest.raises(SetupError) as caught:
        compose.jobs([argument], multirun=False)
    (line,) = visible(caught.value, lines=True).split("\n")
    assert line.lstrip("'\"").startswith(argument[:9]) and "; write " in line or ": 'runtime.mirror" in line
    return line.partition("; write ")[2] or line.partition("part of the value: ")[2]


ODD = [
    "/tmp/a=b,c[1]/ü.jsonl", "/a=b c/d", "/a'b=", '/a"b=', "/a'b\"c=", "/a\\'b", '/a\\"b', '/a\\\\"b', "/a=\\",
    "/a=\\\\", "/(a)", "/{a}", "{a}/ü", "/[a]", "[a]/b", "/a;b&c", "/`a`", "/$(a)", "/#a", "/a!b", "/~", "~/a", "/a,b",
    "/a, b", "/大/é", "/a\nb", "/a\rb", "/ü\t", "/\u202ea", "/a\x1b[31mb", "/\u2764\ufe0f.x", "/\u0085", "/\U000e0001",
    "'/a", '"', "'", "/ü ", " /ü", "/<a>", "/a\u00a0b", "/\ufeffa", "ü", "/%PATH%=", "/$HOME=", "/a^b",
]  # fmt: skip


def test_the_quoting_that_is_shown_works_in_a_shell():
    shown = [shown_quoting(f"runtime.mirror={path}") for path in ODD]
    for path, line in zip(ODD, typed_in_bash(shown), strict=True):
        assert command_line.parse([line])[0].value() == path
    for number in range(0, len(ODD), 7):
        assert compose.compose(typed_in_bash(shown[number : number + 1])).runtime.mirror == ODD[number]


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\"'\\ =,[]{}()$`\n")


@settings(max_examples=8, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
@given(st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=20, max_size=20))
def test_the_quoting_of_any_text_works_in_a_shell(texts):
    quoted = {text: found for text in texts if (found := command_line.quoted(f"runtime.mirror={text}"))}
    bare = {text: text[1:-1] if text[0] == text[-1] in "'\"" and len(text) > 1 else text for text in quoted}
    for text, line in zip(quoted, typed_in_bash(list(quoted.values())), strict=True):
        if not text.startswith("["):
            assert (
                line == f"runtime.mirror={line.partition('=')[2]}"
                and command_line.parse([line])[0].value() == bare[text]
            )


def test_the_command_that_is_shown_for_a_sweep_can_be_typed():
    with pytest.raises(SetupError, match="add -m: (python -m bench .*)$") as caught:
        compose.jobs(["seed.fit=choice(1,2)", "suite=[rtp]", 'model.name="a b"'], multirun=False)
    words = typed_in_bash([str(caught.value).partition("add -m: ")[2]])
    assert words == ["python", "-m", "bench", "-m", "seed.fit=choice(1,2)", "suite=[rtp]", 'model.name="a b"']


# -- options that are none ---------------------------------------------------------------------------------------------

DASHES = {
    "--info": "--info: --help all lists every option here",
    "--info all": "--info all: --help all lists",
    "-i": "-i: --help all lists",
    "--resolve": "--resolve: it belongs to --cfg job",
    "--hydra-help": "--hydra-help: Hydra's own options are not known here; --help all",
    "--version": "--version: steerbench --version or python",
    "-p x": "-p x: a part of a config is not printed; --cfg job prints all of it",
    "--package=x": "--package=x: a part",
    "--config-name=x": "--config-name=x: a config of your own is an experiment: hydra.searchpath=[FOLDER] exper",
    "-cn x": "-cn x: a config of your own",
    "--config-dir /tmp": "--config-dir /tmp: write hydra.searchpath=[FOLDER]",
    "--config-path=/tmp": "--config-path=/tmp: write hydra.searchpath=[FOLDER]",
    "--run": "--run: a command runs anyway; leave it out",
    "--shell-completion": "--shell-completion: steerbench --shell-completion bash, zsh or fish prints",
    "-sc install=bash": "-sc: steerbench --shell-completion bash",
    "--experimental-rerun x": "--experimental-rerun x: the same command again",
    "--cfg all": "--cfg all: --cfg job",
    "--multi-run": "--multi-run: there is no such option; did you mean --multirun?",
    "--nope": "--nope: there is no such option; write key=value",
    "-x --": "-x: there is no such option; write key=value",
    "-": "-: there is no such option; write key=value",
    "--strength=3": "--strength=3: a key has no dash before it; write strength=3",
    "--strength 3": "--strength 3: a key has no dash before it; write strength=3",
    "--suite.rtp.k": "--suite.rtp.k: a key has no dash before it; write suite.rtp.k=VALUE",
}


@pytest.mark.parametrize("given_line", DASHES)
def test_an_option_that_is_none_says_what_there_is_in_its_place(given_line):
    message = refused(*given_line.split(), "method=caa")
    assert message.startswith(DASHES[given_line])
    assert len(message.splitlines()) == 1 + given_line.endswith(" --")


NONE_GIVEN = {
    "": "'': an argument is empty, perhaps from a shell variable",
    " ": "' ': an argument is empty",
    "=": "=: there is no key before the equals sign; write key=value",
    "=3": "=3: there is no key",
    "++=3": "++=3: there is no key",
    "@x=3": "@x=3: there is no key",
    "+": "+: cannot be read; write key=value",
    "~": "~: ~ (deleting a key) is not supported",
    "~suite": "~suite: ~ (deleting a key) is not supported; choose another",
    "++a=1": "unknown key a. Allowed: ",
    "suite": "suite: it has no value; write key=value",
    "+suite": "+suite: it has no value; write key=value",
    "glob(*)": "glob(*): cannot be read; write key=value",
    "strength=glob(*)": "'strength=glob(*)' names no values; list them, as in -m strength=a,b",
    "strength=interval(0,1)": "'strength=interval(0,1)' names no values",
    "hydra/launcher=joblib": "unknown key hydra/launcher. Of Hydra's own options hydra.searchpath=[FOLDER] alone",
    "hydra.sweeper=x": "unknown key hydra.sweeper. Of Hydra's own",
    "method@x=caa": "Could not override 'method@x'; --help all lists what can be set",
    "suite=[rtp": "suite=[rtp: cannot be read; write suite=[NAME,NAME], with names that --help lists",
    "method=caa,": "method=caa,: cannot be read; write method=NAME",
    "strength=1 method=caa": "these are several arguments; write them apart: strength=1 method=caa",
    "model=local,model.path=x": "these are several arguments; write them apart: model=local model.path=x",
    "tuning.options={layer:ü}": 'put texts with special characters in quotes, as in key=["a=b",c]',
    "tuning.options={a:[[ü]]}": "put texts with special characters in quotes",
    "runtime.mirror=\udcff": "it has bytes that are not UTF-8; if it names a file, rename the file",
    "model.name=[a]": "text in brackets is text in quotes of its own, as in 'model.name=\"[x]\"'",
    "model.name=true": "text; this word is text in quotes of its own: 'model.name=\"true\"'",
    "runtime.results=null": "'runtime.results=\"null\"'",
    f"runtime.mirror={'é' * 5000}": "in both kinds of quotes",
}


@pytest.mark.parametrize("argument", NONE_GIVEN, ids=lambda argument: argument[:30])
def test_an_argument_that_is_none_says_what_to_write(argument):
    for more in ((), ("strength=1",)):
        message = refused(argument, *more)
        assert NONE_GIVEN[argument] in message and len(message.splitlines()) == 1 and len(message) < 600


@pytest.mark.parametrize("words", ["suite=rtp,fluency", "scorer=lexicon,vader"])
def test_several_suites_are_a_list_or_a_sweep(words):
    key, _, names = words.partition("=")
    with pytest.raises(SetupError, match=rf"write {key}=\[{names}\] for all of them in one cell, or add -m"):
        compose.jobs([words], multirun=False)


@pytest.mark.parametrize("word", ["choice(1,2)", "range(0,10)"])
def test_a_sweep_by_a_function_is_no_text_with_a_comma(word):
    with pytest.raises(SetupError, match=rf"is a sweep over several values; add -m: .*'seed.fit={word[:5]}.*'$"):
        compose.jobs([f"seed.fit={word}"], multirun=False)


# -- --cfg job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["--cfg job --resolve", "-c job --resolve", "--resolve --cfg=job"])
def test_the_config_of_a_cell_is_printed_and_nothing_is_run(asked, tmp_path, capsys):
    line = ["method=caa", "strength=2", "seed.fit=7", f"runtime.results={tmp_path / 'results'}"]
    assert main([line[0], *asked.split(), *line[1:]]) == 0
    told = capsys.readouterr()
    assert not told.err and list(tmp_path.iterdir()) == []
    assert OmegaConf.create(told.out) == OmegaConf.to_container(validate.validate(line), resolve=True)


def test_an_experiments_own_keys_are_in_no_config_of_a_cell(own, capsys):
    text = (
        "sweep: [method=unsteered, method=caa]\nasks: {pairs.path: yours}\ndiffers: [x]\npublished: [{method: caa}]\n"
    )
    named = own(experiment__mine=text + "strength: 1\n")
    assert main([named, "--cfg", "job", "experiment=mine"]) == 0
    cells = [OmegaConf.create(one) for one in capsys.readouterr().out.split("\n---\n")]
    plain = OmegaConf.to_container(validate.validate(["method=caa", "strength=1"]), resolve=True)
    assert len(cells) == 2 and set(cells[1]) == set(plain) | {"searchpath"}
    _, about = compose.cell([named, "experiment=mine"])
    assert about == Experiment(
        ["method=unsteered", "method=caa"], [{"method": "caa"}], ["x"], {}, {"pairs.path": "yours"}
    )


def test_of_a_sweep_every_config_is_printed(capsys):
    assert main(["-m", "method=unsteered,prompt", "--cfg", "job", "strength=1,2"]) == 0
    found = [OmegaConf.create(one) for one in capsys.readouterr().out.split("\n---\n")]
    assert [one.method._target_.rpartition(".")[2] for one in found] == ["Unsteered"] * 2 + ["Prompt"] * 2
    assert [one.strength for one in found] == [1, 2, 1, 2]


def test_what_cannot_be_seen_is_printed_in_ascii(capsys):
    assert main(["--cfg", "job", 'model.name="a\u202eb\x1b"', "method=unsteered"]) == 0
    told = capsys.readouterr().out
    assert told.isascii() and OmegaConf.create(told).model.name == "a\u202eb\x1b"


@pytest.mark.parametrize("given_line", ["--cfg", "--cfg jobs", "-c=none", "--cfg method=caa"])
def test_no_other_config_is_printed(given_line, capsys):
    assert main(given_line.split()) == 2
    told = capsys.readouterr()
    assert "job, which prints the config of every cell and runs nothing" in told.err and not told.out


def test_a_config_that_would_be_refused_is_refused(capsys):
    assert main(["--cfg", "job", "method=cca", "--nope"]) == 2
    told = capsys.readouterr()
    assert "--nope: there is no such option" in told.err and not told.out


@pytest.mark.slow
def test_the_quoting_works_from_the_shell_to_the_config():
    for path in ODD[::13]:
        line = f"{sys.executable} -m bench --cfg job pairs=file {shown_quoting(f'runtime.mirror={path}')}"
        line += " " + shown_quoting(f"runtime.mirror={path}").replace("runtime.mirror", "pairs.path", 1)
        run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert OmegaConf.create(run.stdout).data.path == path


# -- values of every type at every key ---------------------------------------------------------------------------------

BASES = (
    (),
    ("method=caa", "pairs=on_policy_sampled"),
    ("method=stack", "+method@method.parts.third=prompt", "++method.at={first:1,second:2,third:1}"),
    ("method=security_vector", "strength=1", "harmful=on_policy_toxic"),
    ("suite=[rtp,fluency,capability,math,jailbreak,sentiment,toxigen,ab,perplexity_profs,toxigen_classification]",
     "scorer=[profanity_check,lexicon,detoxify,toxigen_roberta,mean_of]"),
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, "\ud800"])
    | st.sampled_from(["", "auto", "nan", "???", "${seed}", "${method}", "${seed.fit}", "${", "${oc.env:X}", "a\0"])
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@functools.cache
def base(number: int) -> tuple[DictConfig, list[str]]:
    """A config and its keys, mappings included."""
    cfg = compose.compose(list(BASES[number]))
    keys: list[str] = []

    def walk(node: DictConfig, above: str) -> None:
        for name in node:
            keys.append(f"{above}{name}")
            inner = node._get_node(name)
            if isinstance(inner, DictConfig) and not inner._is_none():
                walk(inner, f"{keys[-1]}.")

    walk(cfg, "")
    return cfg, [key for key in keys if not key.endswith("_target_")]


@st.composite
def configs(draw: st.DrawFn) -> DictConfig:
    """A base config with another value at one or two of its keys."""
    cfg, keys = base(draw(st.integers(0, len(BASES) - 1)))
    changed = copy.deepcopy(cfg)
    for key in draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        try:
            OmegaConf.update(changed, key, draw(ANYTHING), merge=draw(st.booleans()), force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, AssertionError, RecursionError):
            assume(False)  # OmegaConf itself does not hold it
    return changed


def holds(cfg: DictConfig) -> None:
    reference = base(0)[0]
    keys.unknown_keys(cfg, reference)
    told = validate.problems(cfg)
    assert all(isinstance(one, str) and one for one in told)


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
@given(configs())
def test_no_value_at_any_key_ends_in_another_error(cfg):
    holds(cfg)


@pytest.mark.slow
@settings(max_examples=1_000, deadline=None, suppress_health_check=QUIET, database=None)
@given(configs())
def test_no_value_at_any_key_ends_in_another_error_at_length(cfg):
    holds(cfg)


def written(value: object) -> str:
    """A value in Hydra's own words."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "null" if value is None else str(value).lower()


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """An override of a key of the default config by a value of any type, or by any text."""
    key = draw(st.sampled_from(base(0)[1]))
    value = draw(ANYTHING.map(written) | st.text(max_size=12))
    return [draw(st.sampled_from(["", "+", "++", "~"])) * draw(st.booleans()) + f"{key}={value}"]


@settings(max_examples=10, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
@given(overrides())
def test_no_command_line_ends_in_another_error(given_line):
    refused(*given_line)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=QUIET, database=None)
@given(overrides())
def test_no_command_line_ends_in_another_error_at_length(given_line):
    refused(*given_line)


def test_a_search_without_its_package_is_told_with_all_else(monkeypatch):
    """Before anything is computed, and beside other mistakes."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "optuna" else there(name, *more)
    )
    needs = "tuning.search=tpe needs Optuna; run: pip install 'steerbench[tpe]', or set tuning.search=random"
    said = refused("method=caa", "tuning.search=tpe", "tuning.trials=5", "runtime.batch_size=0")
    assert needs in said and "runtime.batch_size=0" in said
    assert needs not in refused("method=caa", "tuning.search=random", "tuning.trials=5")
    assert needs not in refused("method=caa", "tuning.search=tpe", "strength=1"), "nothing is tuned"
