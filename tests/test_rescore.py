"""Stored continuations judged again, through the command lines' own functions on a tiny model."""

import shutil

import pandas as pd
import pytest

from bench.__main__ import main
from bench.data.sources import default_cache
from bench.files import plain_json
from bench.records import record
from bench.rescore import main as rescore
from tests import record_files
from tests.run.test_smoke import arguments, contents, world  # noqa: F401  world is a fixture

pytestmark = pytest.mark.wheel  # the second scorer is in a wheel


def where(world, results):  # noqa: F811
    return [f"runtime.results={results}", f"runtime.mirror={world / 'mirror'}", f"runtime.cache={default_cache()}"]


def run(world, results, scorer):  # noqa: F811
    given = arguments(world, results, "method=unsteered,caa", "suite=[rtp,fluency]", "strength=2")
    own = ("suite.capability", "scorer", "runtime.cache", "runtime.mirror", "runtime.results")
    kept = [one for one in given if not one.startswith(own)]
    return main(
        [*kept, *where(world, results), f"scorer=[{scorer}]", f"pairs.scorer={scorer}", f"tuning.scorer={scorer}"]
    )


@pytest.fixture(scope="module")
def judged(world, tmp_path_factory):  # noqa: F811
    results = tmp_path_factory.mktemp("judged")
    assert run(world, results, "profanity_check") == 0
    return results


@pytest.fixture
def results(judged, tmp_path):
    shutil.copytree(judged, tmp_path / "own")
    return tmp_path / "own"


def test_it_is_as_if_the_run_had_named_the_scorer(world, results, tmp_path, monkeypatch, capsys):  # noqa: F811
    assert run(world, tmp_path / "direct", "lexicon") == 0
    before = contents(results)
    monkeypatch.setattr("bench.model.lm.load_lm", None)  # neither a model nor a sample is needed
    monkeypatch.setattr("bench.model.generation_cache.continuations", None)
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 0
    assert "2 results judged, 0 were judged already" in capsys.readouterr().err
    after = contents(results)
    assert before.items() < after.items()
    direct = contents(tmp_path / "direct")
    assert {key: value for key, value in after.items() if key not in before} == {
        key: value for key, value in direct.items() if key not in before
    }
    table = pd.read_csv(results / "leaderboard_tidy.csv")
    assert table["metric"].str.contains("lexicon.mean_toxicity").any()
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 0
    assert "0 results judged, 2 were judged already" in capsys.readouterr().err
    assert contents(results) == after


def test_the_new_record_says_where_it_is_from(world, results):  # noqa: F811
    old = {path.name for path in (results / "runs/records").iterdir()}
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 0
    for path in (results / "runs/records").iterdir():
        one = record.read(path)
        if path.name not in old:
            assert one.provenance.rescored_from in old
            assert one.scorers.report == ("lexicon",) and not one.scorers.chose  # it tuned and chose nothing
            assert set(one.scorers.networks) == {"lexicon", "profanity_check"}  # of the stored result, and its own
            assert one.settings["k"] == 2 and one.suite == "rtp"


def test_texts_that_are_gone(world, results, capsys):  # noqa: F811
    shutil.rmtree(results / "runs/generations")
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 2
    assert "cannot be judged again; run their cell again" in capsys.readouterr().err


KNOWN = {"k": 2, "prompts": 5, "dev_k": 2, "dev_prompts": 3}
WRONG = {
    "prompts in a list": ({"prompts": [5]}, "suite.rtp.prompts=[5]: expected a whole number from 1 to 1,000,000"),
    "k too large": ({"k": 10**9}, "suite.rtp.k=1000000000: expected a whole number"),
    "k negative": ({"k": -1}, "suite.rtp.k=-1: expected a whole number"),
    "k as text": ({"k": "2"}, "suite.rtp.k='2': expected a whole number"),
    "k as a flag": ({"k": True}, "suite.rtp.k=True: expected a whole number"),
    "more prompts than there are": ({"prompts": 999}, "999 test prompts were asked for"),
    "a class in the stratum": ({"stratum": {"_target_": "bench.suites.rtp.RTP"}}, "cannot be used (TypeError"),
    "a scorer in the stratum": ({"stratum": {"_target_": "bench.scorers.lexicon.Lexicon"}}, "allowed are null"),
    "a list in the stratum": ({"stratum": ["toxic"]}, "unhashable"),
    "an unknown stratum": ({"stratum": "x"}, "stratum='x': allowed are"),
    "decoding of another kind": ({"decoding": {"top_p": "x"}}, "its settings are refused"),
    "other texts": ({"k": 3}, "cannot be judged again; run their cell again"),
    "an option that is none": ({"x": 1}, "unexpected keyword argument"),
    "a template without its place": (
        {"_target_": "bench.suites.refusal.Jailbreak", "template": "x"}, "it has to hold {prompt} once"
    ),
    "a data set that is not there": ({"_target_": "bench.suites.refusal.Jailbreak"}, "skipped"),
}  # fmt: skip


def of_texts(results):
    """The records of the suite rtp, by id."""
    paths = sorted((results / "runs/records").iterdir())
    return [path for path in paths if plain_json.load(path / "record.json")["suite"] == "rtp"]


@pytest.mark.parametrize("name", WRONG)
def test_a_record_with_wrong_settings_is_named_and_skipped(world, results, name, capsys):  # noqa: F811
    settings, told = WRONG[name]
    first, *others = of_texts(results)
    facts = record_files.edit(first, settings={"_target_": "bench.suites.rtp.RTP"} | KNOWN | settings)
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 1
    error = capsys.readouterr().err
    (line,) = (one for one in error.splitlines() if "skipped" in one)
    assert line.startswith(f"record {first.name} skipped: ") and told in line
    assert f"{len(others)} results judged, 0 were judged already" in error
    for path in others:
        record_files.edit(path, settings=facts["settings"])
    if others and name != "other texts":
        shutil.rmtree(results / "runs/generations")
    made = [one for one in of_texts(results) if one not in [first, *others]]
    for one in made:
        shutil.rmtree(one)
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 2
    assert f"none of {1 + len(others)} records could be judged; see the lines above" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"sampling": {"seed": 0, "x": 1}}, {"sampling": None}, {"info": {}}])
def test_a_record_with_other_facts_is_named_or_judged(world, results, changes, capsys):  # noqa: F811
    first, *_ = of_texts(results)
    record_files.edit(first, **changes)
    code = rescore(["scorer=[lexicon]", *where(world, results)])
    assert (code == 1) == (f"record {first.name} skipped: " in capsys.readouterr().err) == ("sampling" in changes)


def test_texts_of_one_record_are_gone(world, results, capsys):  # noqa: F811
    gone = next(iter(sorted((results / "runs/generations").iterdir())))
    shutil.rmtree(gone)
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 1
    error = capsys.readouterr().err
    assert f"{gone} is missing" in error and "1 results judged, 0 were judged already" in error


def test_what_cannot_be_judged(world, results, tmp_path, capsys):  # noqa: F811
    assert rescore([f"runtime.results={results}"]) == 2
    assert "name the scorers" in capsys.readouterr().err
    assert rescore(["scorer=[lexcon]", *where(world, results)]) == 2
    assert "did you mean lexicon" in capsys.readouterr().err
    assert rescore(["scorer=[lexicon]", *where(world, tmp_path / "none")]) == 2
    assert "no records" in capsys.readouterr().err
    for path in (results / "runs/records").glob("*/record.json"):
        record_files.edit(path.parent, settings=None)  # as written by older versions
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 2
    assert "holds no record of a suite that judges continuations" in capsys.readouterr().err
