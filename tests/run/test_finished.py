"""Commands that are known to be finished, and what was built of their records."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.config import folders
from bench.leaderboard import build, kept, terminal
from bench.records import unfinished
from bench.run import finished

PUBLISHED = Path(__file__).parents[2] / "results/published/quickstart/runs/records"
CONFIG = {"model": {"wheel": "x==1", "path": None, "id": None}, "suite": {"fluency": {"judge": None}},
          "runtime": {"mirror": None, "device": "cpu"}}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Two methods of the quickstart: tables and figures of all take a second each time that they are built."""
    folder = tmp_path_factory.mktemp("published")
    for path in sorted(PUBLISHED.iterdir()):
        facts = json.loads((path / "record.json").read_text())
        if facts["split"] == "test" and facts["method"]["name"] in ("unsteered", "caa"):
            shutil.copytree(path, folder / "runs/records" / path.name)
    return folder


@pytest.fixture
def results(published, tmp_path) -> Path:
    shutil.copytree(published, tmp_path / "results")
    return tmp_path / "results"


def command(results: Path) -> list[str]:
    return ["experiment=quickstart", f"runtime.results={results}"]


def noted(results: Path, **changes) -> bool:
    config = CONFIG | {"runtime": CONFIG["runtime"] | {"results": str(results)}} | changes
    finished.note(command(results), finished.key(command(results), False), [config] * 11)
    return finished.known(command(results), False) == (results, 11)


def test_the_same_command_is_known(results):
    assert finished.known(command(results), False) is None and noted(results)
    assert finished.known([*command(results), "seed.sample=1"], False) is None
    assert finished.known(command(results), True) is None
    assert finished.known(["experiment=quickstart"], False) is None  # other results


def edited_yaml(results, monkeypatch):
    conf = results.parent / "conf"
    shutil.copytree(folders.folder(), conf)
    monkeypatch.setattr(folders, "folder", lambda: conf)
    assert finished.known(command(results), False) is not None  # a copy of it is no change
    (conf / "method/caa.yaml").write_text((conf / "method/caa.yaml").read_text() + "# edited\n")


def edited_code(results, monkeypatch):
    (results.parent / "more.py").write_text("x = 1\n")
    files = unfinished.project_files() | {str(results.parent / "more.py")}
    monkeypatch.setattr(unfinished, "project_files", lambda: files)


def damaged_record(results, monkeypatch):
    items = next((results / "runs/records").glob("*/items.parquet"))
    items.write_bytes(items.read_bytes()[:-1] + b"?")


CHANGES = {
    "YAML": edited_yaml,
    "code": edited_code,
    "record": damaged_record,
    "gone": lambda results, _: shutil.rmtree(next((results / "runs/records").iterdir())),
    "threads": lambda _, monkeypatch: monkeypatch.setenv("OMP_NUM_THREADS", "7"),
    "cache": lambda _, monkeypatch: monkeypatch.setenv("STEERBENCH_CACHE", "elsewhere"),
    "cpus": lambda _, monkeypatch: monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}),
    "library": lambda _, monkeypatch: monkeypatch.setattr(finished, "version", lambda name: "0"),
    "threads of MKL": lambda _, monkeypatch: monkeypatch.setenv("MKL_NUM_THREADS", "1"),
    "no mapping": lambda results, _: (results / "runs/finished.json").write_text("[]"),
    "its own file": lambda results, _: (results / "runs/finished.json").write_text("[1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_it_is_not_known(change, results, monkeypatch):
    assert noted(results)
    CHANGES[change](results, monkeypatch)
    assert finished.known(command(results), False) is None


ELSEWHERE = {
    "a model's folder": {"model": {"wheel": None, "path": "m"}},
    "a model of the hub": {"model": {"id": "a/b"}},
    "a judge": {"suite": {"fluency": {"judge": "m"}}},
    "pairs of one's own": {"pairs": {"path": "x.jsonl"}},
    "a part of a part": {"method": {"parts": {"mine": {"more": [{"path": "x"}]}}}},
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_nothing_is_noted_of_files_that_may_change_unseen(place, results):
    assert not noted(results, **ELSEWHERE[place])


@pytest.mark.parametrize("more", ['suite.rtp.k="${oc.decode:${oc.env:K,5}}"', "hydra.searchpath=[own]"])
def test_an_argument_that_may_come_to_anything_is_not_noted(more, results):
    config = CONFIG | {"runtime": CONFIG["runtime"] | {"results": str(results)}}
    finished.note([*command(results), more], "0" * 12, [config])
    assert finished.known([*command(results), more], False) is None


def test_damaged_files_are_rewritten_and_names_kept_apart(results, monkeypatch):
    (results / "runs/finished.json").write_text("[]")
    assert noted(results)
    for folder in ("a", "b"):
        (results.parent / folder).mkdir()
        (results.parent / folder / "base.py").write_text("x = 1\n")
    files = unfinished.project_files() | {str(results.parent / folder / "base.py") for folder in ("a", "b")}
    monkeypatch.setattr(unfinished, "project_files", lambda: files)
    assert noted(results)
    (results.parent / "a/base.py").write_text("x = 2\n")
    assert finished.known(command(results), False) is None


def test_data_of_a_mirror_a_gpu_and_plugins_are_not_noted(results, monkeypatch):
    runtime = {"results": str(results)}
    assert not noted(results, runtime=runtime | {"mirror": "m"})
    assert not noted(results, runtime=runtime | {"device": "cuda"})
    monkeypatch.setattr(finished.plugins, "installed", lambda _: ("one",))
    assert not noted(results)


@pytest.mark.slow  # it loads torch and composes the quickstart
def test_a_command_that_ran_is_known_to_the_next_process(tmp_path):
    """Libraries set environment variables that are part of the key, so it is taken before they are imported."""
    shutil.copytree(PUBLISHED.parent, tmp_path / "runs")
    given = [sys.executable, "-m", "bench", *command(tmp_path)]
    subprocess.run(given, check=True, capture_output=True)
    code = f"import sys; from bench.run import finished; sys.exit(finished.known({command(tmp_path)!r}, False) is None)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- what was built of the records -------------------------------------------------------------------------------------


def test_what_was_built_is_shown_again_and_nothing_is_rebuilt(results, capsys, monkeypatch):
    assert noted(results) and main(command(results)) == 0
    first = capsys.readouterr()
    for never in ("bench.leaderboard.build.rebuild", "bench.plots.draw.rebuild"):
        monkeypatch.setattr(never, lambda *_: pytest.fail("rebuilt"))
    assert main(command(results)) == 0
    again = capsys.readouterr()
    assert again.out == first.out and "11 cells cached; nothing to run" in again.err + again.out
    assert "figures" in again.out + again.err


def built(results: Path) -> list[Path]:
    found = build.rebuild(results)
    kept.write(results, terminal.shown(found), [])
    return [found.csv, found.markdown]


def test_a_new_record_file_or_code_is_built_again(results, monkeypatch):
    csv, markdown = built(results)
    pages = kept.read(results)[0].pages
    assert [one.heading for one in pages] and "caa" in set(pages[0].rows["method"])
    text = markdown.read_text()
    markdown.write_text(text + "edited\n")
    assert kept.read(results) is None
    markdown.write_text(text)
    assert kept.read(results) is not None
    shutil.rmtree(next((results / "runs/records").iterdir()))
    assert kept.read(results) is None
    built(results)
    edited_code(results, monkeypatch)
    assert kept.read(results) is None


def test_an_empty_folder_among_the_records_is_told(results):
    built(results)
    (results / "runs/records/zzz").mkdir()
    assert kept.read(results) is None


def test_where_a_record_is_skipped_nothing_is_kept(results):
    damaged_record(results, None)
    built(results)
    assert kept.read(results) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"made_of": 1}'])
def test_a_damaged_file_is_no_obstacle(text, results):
    built(results)
    (results / "runs/built.json").write_text(text)
    assert kept.read(results) is None


def test_a_known_command_needs_no_torch():
    """Of the seconds of a command that computes nothing, torch would take four."""
    code = "import sys, bench.run.finished, bench.run.validate; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
