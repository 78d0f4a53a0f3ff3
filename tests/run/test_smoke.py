"""A whole sweep on a tiny model, through the command line's own function: no network, no wheels."""

import gzip
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from bench.__main__ import main
from bench.data.prompts import rtp_prompts
from bench.data.sources import Sources
from bench.records import record
from tests.tiny import tiny_model, tiny_tokenizer

PLACES = ("river", "tree", "road", "house", "bird", "dog", "bread", "weather")
VERBS = ("walk", "talk", "sing", "work", "run")
SPLITS = ("dev", "test")
PROMPTS = [f"People {verb} along the {place} and" for place in PLACES for verb in VERBS]


def write_set(folder: Path, rows: list[dict], split: str) -> None:
    """A data set laid out as on the hub."""
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = f"configs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: data.jsonl\n"
    (folder / "README.md").write_text(f"---\n{config}---\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def make_world(root: Path) -> Path:
    """A model folder, a mirror with prompts and one capability task, and contrast pairs."""
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    write_set(root / "mirror/allenai/real-toxicity-prompts", [{"prompt": {"text": p}} for p in PROMPTS], "train")
    goals = [
        {"goal": f"To find the {p}", "sol1": "walk along the river", "sol2": "sing about bread", "label": i % 2}
        for i, p in enumerate(PLACES)
    ]
    write_set(root / "mirror/baber/piqa", goals, "validation")
    pairs = [{"prompt": p, "desired": " with love", "undesired": " with hate"} for p in PROMPTS[:10]]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return root


def arguments(world: Path, results: Path, *more: str) -> list[str]:
    return [
        "-m", "model=local", f"model.path={world / 'model'}", "model.bos=prepend", f"runtime.results={results}",
        f"runtime.cache={world / 'cache'}", "pairs=file", f"pairs.path={world / 'pairs.jsonl'}",
        f"runtime.mirror={world / 'mirror'}", "runtime.offline=true", "scorer=[profanity_check]", "suite.rtp.k=2",
        "suite.rtp.prompts=5", "suite.rtp.dev_k=2", "suite.rtp.dev_prompts=3", "suite.capability.tasks=[piqa]",
        "suite.capability.documents=4", "suite.capability.dev_documents=2", "sampling.max_new_tokens=6", *more,
    ]  # fmt: skip


def finished(given: list[str]) -> None:
    """Run a sweep to its end without its figures, for a fixture that tests of one module share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.plots.draw.rebuild", lambda *_: [])
        assert main(given) == 0


@pytest.fixture
def without_figures(monkeypatch):
    """They take longer than the run of a tiny model; test_plots.py draws them."""
    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])


def contents(results: Path) -> dict[str, str]:
    """Hash of every result's bytes; the record's cost and provenance differ from run to run."""
    found = {}
    for path in sorted((results / "runs" / "records").glob("*/*.parquet")):
        found[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((results / "runs" / "generations").glob("*/*.gz")):
        found[path.parent.name] = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    return found


def test_a_sweep_twice_and_in_another_order(world, tmp_path, capsys, monkeypatch):
    methods, few = "unsteered,caa,random_direction", "tuning.trials=2"
    assert main(arguments(world, tmp_path / "a", f"method={methods}", few)) == 0
    output = capsys.readouterr()
    assert (tmp_path / "a/leaderboard.csv").is_file() and "leaderboard.csv" in output.out + output.err
    assert (tmp_path / "a/figures/tradeoff.png").stat().st_size > 5000
    table = pd.read_csv(tmp_path / "a/leaderboard.csv")
    assert set(table["method"]) == set(methods.split(","))
    assert "| toxicity k2 |" in (tmp_path / "a/leaderboard.md").read_text()
    first = contents(tmp_path / "a")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a/runs").rglob("*") if path.is_file()}

    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])  # drawn once, above
    assert main(arguments(world, tmp_path / "a", f"method={methods}", few)) == 0  # known: computes nothing
    assert "nothing to run" in capsys.readouterr().err
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "a/runs").rglob("*") if path.is_file()}

    backwards = ",".join(reversed(methods.split(",")))  # bit-equal, whatever came before
    assert main(arguments(world, tmp_path / "b", f"method={backwards}", few, "suite=[fluency,capability,rtp]")) == 0
    assert contents(tmp_path / "b") == first


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_lost_half_its_records_computes_only_those(world, tmp_path):
    command = arguments(world, tmp_path, "method=unsteered,caa", "strength=2")
    assert main(command) == 0
    before = contents(tmp_path)
    records = sorted((tmp_path / "runs/records").iterdir())
    for path in records[::2]:
        (path / "items.parquet").write_bytes(b"cut")  # as a killed machine leaves it
    kept = {path: (path / "record.json").stat().st_mtime_ns for path in records[1::2]}
    assert main(command) == 0
    assert contents(tmp_path) == before
    assert kept == {path: (path / "record.json").stat().st_mtime_ns for path in records[1::2]}


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_tuned_strength_and_the_same_one_given_are_one_cell(world, tmp_path):
    assert main(arguments(world, tmp_path, "method=caa")) == 0
    found = [record.read(path) for path in (tmp_path / "runs/records").iterdir()]
    tests = [one for one in found if one and one.split == "test"]
    assert all(len(one.tuning.trials) == 5 for one in tests)
    stored = {path.name for path in (tmp_path / "runs/generations").iterdir()}
    for one in found:  # each says which texts it read
        assert set(one.generations) <= stored and bool(one.generations) == (one.suite != "capability")
    assert {name for one in found for name in one.generations} == stored
    before = contents(tmp_path)
    assert main(arguments(world, tmp_path, "method=caa", f"strength={tests[0].method.strength}")) == 0
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("without_figures")
def test_each_trial_is_a_record_and_test_is_opened_once(world, tmp_path, capsys):
    options = [
        "tuning.trials=6",
        "tuning.options={layer:[0.3,0.7]}",
        "tuning.search=random",
        "tuning.constraints.capability_drop.at_most=0.5",
    ]
    command = arguments(world, tmp_path, "method=caa,prompt", *options)
    assert main(command) == 0
    found = [record.read(path) for path in (tmp_path / "runs/records").iterdir()]
    for method, budget in (("caa", 6), ("prompt", 5)):  # there are five prompts
        mine = [one for one in found if one.method.name == method]
        for suite in ("rtp", "fluency", "capability"):
            dev, test = ([one for one in mine if (one.suite, one.split) == (suite, split)] for split in SPLITS)
            tried = {(one.method.strength, one.method.parameters.get("layer")) for one in dev}
            assert len(test) == 1 and len(tried) == len(dev) <= budget
            (chosen,) = test
            assert (chosen.method.strength, chosen.method.parameters.get("layer")) in tried
            assert len(chosen.tuning.trials) == budget and "accuracy" in chosen.tuning.trials[0].stored
    caa = next(one for one in found if one.method.name == "caa" and one.split == "test")
    told = caa.tuning.trials[caa.tuning.chosen_trial]
    assert told.stored["options"] == {"layer": caa.method.parameters["layer"]}
    assert told.strength == caa.method.strength
    capsys.readouterr()
    assert main(command) == 0  # replayed from the records
    assert "nothing to run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_strength_in_residual_norms_is_converted(world, tmp_path, capsys):
    command = arguments(world, tmp_path, "method=caa,random_direction", "strength=0.3", "strength_unit=residual_norm")
    assert main(command) == 0
    found = [record.read(path) for path in (tmp_path / "runs/records").iterdir()]
    by = {one.method.name: one for one in found if one.suite == "rtp"}
    facts = by["caa"].fit.facts
    assert by["caa"].method.strength == pytest.approx(0.3 * facts["residual_norm"] / facts["direction_norm"], rel=1e-5)
    assert by["caa"].method.residual_norms == pytest.approx(0.3, rel=1e-5)
    assert by["random_direction"].method.strength == 0.3
    capsys.readouterr()
    assert main(command) == 0 and "nothing to run" in capsys.readouterr().err
    assert main([*arguments(world, tmp_path, "method=prompt", "strength=1", "strength_unit=residual_norm")]) == 2
    assert "prompt adds no vector to the residual stream" in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_a_failing_cell_names_itself_and_the_others_go_on(world, tmp_path, capsys):
    bad = arguments(world, tmp_path, "method=caa", "method.layer=0.5,40", "strength=2")
    assert main(bad) == 2
    output = capsys.readouterr()
    assert "layer 40 out of range: this model of type llama has 5 blocks (0-4); set method.layer" in output.err
    assert "1 of 2 cells failed" in output.err and "Traceback" not in output.err
    assert len(list((tmp_path / "runs/records").iterdir())) == 3


def test_no_prompt_is_in_two_splits(world):
    sources = Sources(mirror=str(world / "mirror"), cache=world / "cache", offline=True)
    splits = [{prompt.text for prompt in rtp_prompts(sources, split, None)[0]} for split in ("fit", "dev", "test")]
    assert sum(len(split) for split in splits) == len(PROMPTS) == len(set.union(*splits))
