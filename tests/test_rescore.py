"""Stored continuations judged again, through the command lines' own functions on a tiny model."""

import json
import shutil

import pandas as pd
import pytest

from bench import record
from bench.__main__ import main
from bench.data.sources import default_cache
from bench.rescore import main as rescore
from tests.test_smoke import arguments, contents, world  # noqa: F401  world is a fixture

pytestmark = pytest.mark.wheel  # the second scorer is in a wheel


def where(world, results):  # noqa: F811
    return [f"runtime.results={results}", f"data.mirror={world / 'mirror'}", f"runtime.cache={default_cache()}"]


def run(world, results, scorer):  # noqa: F811
    given = arguments(world, results, "method=unsteered,caa", "suite=[rtp,fluency]", "strength=2")
    own = ("suite.capability", "scorer", "runtime.cache", "data.mirror", "runtime.results")
    kept = [one for one in given if not one.startswith(own)]
    return main(
        [*kept, *where(world, results), f"scorer=[{scorer}]", f"data.scorer={scorer}", f"tuning.scorer={scorer}"]
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
    monkeypatch.setattr("bench.lm.load_lm", None)  # neither a model nor a sample is needed
    monkeypatch.setattr("bench.generations.continuations", None)
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 0
    assert "2 results judged anew, 0 were known" in capsys.readouterr().err
    after = contents(results)
    assert before.items() < after.items()
    direct = contents(tmp_path / "direct")
    assert {key: value for key, value in after.items() if key not in before} == {
        key: value for key, value in direct.items() if key not in before
    }
    table = pd.read_csv(results / "leaderboard.csv")
    assert any("lexicon.mean_toxicity" in name for name in table.columns)
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 0
    assert "0 results judged anew, 2 were known" in capsys.readouterr().err
    assert contents(results) == after


def test_the_new_record_says_where_it_is_from(world, results):  # noqa: F811
    old = {path.name for path in (results / "runs/records").iterdir()}
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 0
    for path in (results / "runs/records").iterdir():
        one = record.read(path)
        if path.name not in old:
            assert one["provenance"]["rescored_from"] in old
            assert one["scorers"] == {"report": ["lexicon"]}  # it neither tuned the strength nor chose the pairs
            assert one["settings"]["k"] == 2 and one["suite"] == "rtp"


def test_texts_that_are_gone(world, results, capsys):  # noqa: F811
    shutil.rmtree(results / "runs/generations")
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 2
    assert "cannot be judged again; run their cell anew" in capsys.readouterr().err


def test_what_cannot_be_judged(world, results, tmp_path, capsys):  # noqa: F811
    assert rescore([f"runtime.results={results}"]) == 2
    assert "name the scorers" in capsys.readouterr().err
    assert rescore(["scorer=[lexcon]", *where(world, results)]) == 2
    assert "did you mean lexicon" in capsys.readouterr().err
    assert rescore(["scorer=[lexicon]", *where(world, tmp_path / "none")]) == 2
    assert "no records" in capsys.readouterr().err
    for path in (results / "runs/records").glob("*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": None}))  # as written by older versions
    assert rescore(["scorer=[lexicon]", *where(world, results)]) == 2
    assert "holds no record of a suite that judges continuations" in capsys.readouterr().err
