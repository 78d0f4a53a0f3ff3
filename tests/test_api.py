"""What a notebook user types: the names of `methods` and `bench`, what importing them costs, and README's example."""

import ast
import doctest
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import bench
import methods
from bench import build_leaderboard, collect, compare, log_likelihood, sample
from bench.console import escape
from bench.model.log_likelihood import Likelihood, likelihoods
from methods import CAA, FitData, Pairs, layout
from methods.errors import SetupError
from methods.intervention import record
from tests.methods.test_contract import DATA
from tests.tiny import tiny_lm

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "results" / "published" / "quickstart"
TOXICITY = "rtp.toxic_comment.expected_maximum_toxicity_k5_n120"
HEAVY = ("torch", "transformers", "hydra", "omegaconf", "lm_eval", "pandas", "matplotlib")
PAIRS = methods.Pairs(["The quick brown", "People walk"], [" fox jumps", " and talk"], [" dog is lazy", " in hate"])


@functools.cache
def quickstart_table():
    return build_leaderboard(QUICKSTART)


@functools.cache
def quickstart_comparison():
    return compare(QUICKSTART)


@pytest.fixture(scope="module")
def some_methods(tmp_path_factory):
    """Four methods of the quickstart: each comparison of all of them takes a second."""
    folder = tmp_path_factory.mktemp("some")
    for path in (QUICKSTART / "runs" / "records").iterdir():
        facts = json.loads((path / "record.json").read_text())
        if facts["method"]["name"] in ("unsteered", "caa", "detox", "prompt") and facts["split"] == "test":
            shutil.copytree(path, folder / "runs" / "records" / path.name)
    return folder


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY this code imports."""
    told = python(f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])")
    assert told.returncode == 0, told.stderr
    return set(told.stdout.split())


def lazy_names(package) -> tuple[set[str], set[str]]:
    """The names that type checkers see, and those that the package gives."""
    (block,) = (one for one in ast.parse(Path(package.__file__).read_text()).body if isinstance(one, ast.If))
    return {alias.asname for node in block.body for alias in node.names}, set(package.__all__)


def test_importing_the_methods_costs_nothing():
    assert loaded_by("import methods; dir(methods); methods.SetupError") == set()


@pytest.mark.parametrize("package", [methods, bench])
def test_every_public_name_is_there_and_explained(package):
    seen, given = lazy_names(package)
    assert seen == given <= set(dir(package))
    for name in given - {"Artefact"}:  # a type, explained beside it
        assert getattr(package, name).__doc__, name
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'CAAA'"):
        getattr(package, "CAAA")  # noqa: B009


def test_every_method_is_public():
    classes = {getattr(methods, name) for name in methods.__all__ if isinstance(getattr(methods, name), type)}
    names = {one.name for one in classes if hasattr(one, "name")}
    assert names == {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}


def test_the_example_in_the_readme_runs_without_bench_and_hydra(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    after = "import sys; assert not {'bench', 'hydra'} & set(sys.modules)"
    ran = python(f"{code.replace('FOLDER', str(tmp_path))}\n{after}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("<s>The weather today is") and len(ran.stdout) > 40


@pytest.mark.parametrize("scope", ["generation", "prompt", "all"])
def test_generate_is_steered_as_our_own_sampling_is(scope):
    """A batch with padding on the left, greedy, against bench.sample at temperature 0."""
    lm = tiny_lm()
    method = methods.CAA(layer=2, scope=scope)
    artefact = method.fit(lm.model, lm.tokenizer, methods.FitData(pairs=PAIRS))
    prompts = ["The old tree near the river", "We"]
    lm.tokenizer.padding_side = "left"
    inputs = lm.tokenizer(prompts, return_tensors="pt", padding=True)
    texts = {}
    for strength in (0.0, 8.0):
        with method.apply(lm.model, artefact, strength), methods.generating(lm.model):
            ids = lm.model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
        texts[strength] = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        with lm.steered(method, artefact, strength) as steered:
            wanted = sample(steered, prompts, num_samples=1, max_new_tokens=12, temperature=0)
        assert texts[strength] == [prompt + text for prompt, (text,) in zip(prompts, wanted, strict=True)]
    assert texts[0.0] != texts[8.0]
    assert not lm.model._forward_pre_hooks


def test_steering_that_needs_positions_says_how_to_give_them():
    lm = tiny_lm()
    method = methods.CAA()
    artefact = method.fit(lm.model, lm.tokenizer, methods.FitData(pairs=PAIRS))
    with (
        method.apply(lm.model, artefact, 1.0),
        pytest.raises(RuntimeError, match=r"inside `with methods\.generating\(model\)`"),
    ):
        lm.model(input_ids=torch.tensor([[1, 5]]))
    assert not any(block._forward_hooks for block in layout.blocks(lm.model))


def run_example(found, name: str, **given) -> None:
    """Run the example in a docstring, which knows only the names that are given, not those of its module."""
    (test,) = doctest.DocTestFinder(recurse=False).find(found, name, globs=given)
    assert any(one.want for one in test.examples), f"{name} has no example that shows a result"
    told: list[str] = []
    outcome = doctest.DocTestRunner().run(test, out=told.append)
    assert outcome.failed == 0, "".join(told)


@pytest.fixture(scope="module")
def given():
    """What the examples of the methods take for granted; the docstring of `methods` lists it."""
    lm = tiny_lm()
    inputs = lm.tokenizer("We talk about", return_tensors="pt")
    with record(lm.model, range(len(layout.blocks(lm.model)))) as stream:
        logits = lm.model(**inputs).logits
    weights = {name: one.clone() for name, one in lm.model.named_parameters()}
    names = {"inputs": inputs, "logits": logits, "stream": stream, "weights": weights}
    return {"model": lm.model, "tokenizer": lm.tokenizer, **names, **DATA}


@pytest.mark.parametrize("name", [one for one in methods.__all__ if one != "Artefact"])  # a type: it has no docstring
def test_the_example_of_each_public_name_runs(name, given, tmp_path):
    run_example(getattr(methods, name), name, **given, folder=tmp_path)
    changed = [key for key, one in given["model"].named_parameters() if not one.equal(given["weights"][key])]
    assert changed == [], f"{name} left the model changed"


# -- bench ---------------------------------------------------------------------------------------------------------


def test_tables_need_no_torch_no_model_and_no_config(some_methods):
    assert loaded_by("import bench") == set()
    frames = f"""
from bench import build_leaderboard, collect, compare
collect({str(some_methods)!r})
compare({str(some_methods)!r})
build_leaderboard({str(some_methods)!r})"""
    assert loaded_by(frames) <= {"pandas", "matplotlib"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    lm, path = tiny_lm(), tmp_path_factory.mktemp("model")
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("name", bench.__all__)
def test_the_example_of_each_name_runs(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_example(getattr(bench, name), name, lm=tiny_lm(), folder=folder)


def test_log_likelihood_is_that_of_the_worded_texts():
    lm = tiny_lm()
    prompts, ends = ["The quick brown", "", "We talk"], [" fox", " dog and", ""]
    found = log_likelihood(lm, prompts, ends)
    assert found == likelihoods(lm, lm.encode_pairs(prompts, ends))
    assert all(isinstance(one, Likelihood) for one in found)
    ids = torch.tensor([lm.encode("The quick brown fox")])
    said = lm.model(input_ids=ids).logits[0].double().log_softmax(-1)  # (T, V)
    count = found[0].tokens
    wanted = sum(said[i - 1, ids[0, i]] for i in range(ids.shape[1] - count, ids.shape[1]))
    assert found[0].logprob == pytest.approx(float(wanted), abs=1e-4)


def test_collect_takes_the_folder_of_the_results_or_its_runs(some_methods):
    frame = collect(some_methods)
    assert frame.equals(collect(some_methods / "runs"))
    assert len(frame["id"].unique()) == len(list((some_methods / "runs" / "records").iterdir()))
    for table in (compare, build_leaderboard):
        pd.testing.assert_frame_equal(table(some_methods / "runs"), table(some_methods))
    with pytest.raises(SetupError, match="the unsteered model has no change"):
        compare(some_methods, "unsteered")
    with pytest.raises(SetupError, match="no records"):
        collect(ROOT / "methods")


def test_a_list_of_methods_and_no_metric_are_told(some_methods):
    with pytest.raises(SetupError, match="each method is an argument of its own, not a list"):
        compare(some_methods, ["caa"])
    with pytest.raises(SetupError, match="metric ''"):
        compare(some_methods, metric="")
    with pytest.raises(SetupError, match="/nope/runs/records is not a folder"):
        collect("/nope")


def test_one_text_in_the_place_of_a_list_is_refused():
    lm = tiny_lm()
    for given in (lambda: sample(lm, "one"), lambda: log_likelihood(lm, "one", "two")):
        with pytest.raises(SetupError, match="prompts: expected a list of texts"):
            given()
    with pytest.raises(SetupError, match="2 prompts and 1 continuations"):
        log_likelihood(lm, ["a", "b"], [" c"])
    with pytest.raises(SetupError, match="pairs.prompt: expected a list of texts"):
        CAA().fit(lm.model, lm.tokenizer, FitData(pairs=Pairs("ab", "cd", "ef")))
    with pytest.raises(SetupError, match="method.read='x': allowed are"):
        CAA(read="x").fit(lm.model, lm.tokenizer, FitData(pairs=Pairs(["a"] * 2, ["b"] * 2, ["c"] * 2)))


def test_the_leaderboard_of_a_notebook_is_that_of_the_file():
    table, file = quickstart_table(), escape.read_csv(QUICKSTART / "leaderboard.csv")
    shared = [name for name in file if name in table and name != "group"]
    named = {"value": TOXICITY} | {name: f"{TOXICITY}.{name}" for name in ("low", "delta", "p_holm")}
    assert len(shared) > 20 and len(table.columns) > 400
    for name, full in (dict(zip(shared, shared, strict=True)) | named).items():
        if pd.api.types.is_numeric_dtype(table[full]):
            wanted = table[full].astype(float).tolist()
            assert file[name].astype(float).tolist() == pytest.approx(wanted, rel=1e-5, nan_ok=True), name
        else:
            assert file[name].tolist() == table[full].tolist(), name


def test_the_leaderboard_is_written_where_that_is_asked_for(some_methods, tmp_path):
    (tmp_path / "runs").symlink_to(some_methods / "runs")
    one = build_leaderboard(tmp_path, method="caa", suite=["rtp"])
    assert one["method"].tolist() == ["unsteered", "caa control", "caa"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "nothing is written"
    again = build_leaderboard(tmp_path, method="caa", suite=["rtp"], write=True)
    assert one.equals(again)
    assert {path.name for path in tmp_path.glob("*.csv")} == {"selection.csv", "selection_tidy.csv"}
    with pytest.raises(SetupError, match="caaa"):
        build_leaderboard(tmp_path, method="caaa")


def test_tables_are_written_beside_the_runs_that_were_named(some_methods, tmp_path, monkeypatch):
    shutil.copytree(some_methods / "runs", tmp_path / "x" / "runs")
    shutil.copytree(some_methods / "runs", tmp_path / "x" / "other")
    with pytest.raises(SetupError, match="x/other has another name"):
        build_leaderboard(tmp_path / "x" / "other", write=True)
    monkeypatch.chdir(tmp_path / "x" / "runs")
    assert len(build_leaderboard(".", write=True)) and (tmp_path / "x" / "leaderboard.csv").is_file()


def test_compare_says_what_the_leaderboard_says():
    whole, rows = quickstart_table().set_index("method"), quickstart_comparison()
    assert set(rows["method"]) == set(whole.index) - {"unsteered"}
    assert set(rows["metric"]) == {TOXICITY}
    for _, row in rows.iterrows():
        wanted = whole.loc[row["method"]]
        assert row["value"] == wanted[TOXICITY]
        for name in ("delta", "delta_low", "delta_high", "p", "p_holm", "detectable", "detectable_holm"):
            assert row[name] == pytest.approx(wanted[f"{TOXICITY}.{name}"], rel=0, abs=0, nan_ok=True), name
    assert rows.set_index("method")["p_holm"].isna().to_dict() == {
        name: name.endswith(" control") for name in rows["method"]
    }, "the control is no hypothesis"


def test_compare_picks_rows_without_another_correction(some_methods):
    every, some = compare(some_methods), compare(some_methods, "caa", "detox")
    assert some["method"].tolist() == ["caa", "detox"]
    assert some.equals(every[every["method"].isin(["caa", "detox"])].reset_index(drop=True))
    untested = compare(some_methods, "caa", metric="fluency.distinct_2").iloc[0]
    assert untested["delta_low"] <= untested["delta"] <= untested["delta_high"]
    assert untested["p"] != untested["p"], "NaN"
    with pytest.raises(
        SetupError,
        match=r"metric 'fluency.distinct': no record of the test split has it; did you mean fluency.distinct_",
    ):
        compare(some_methods, metric="fluency.distinct")
    with pytest.raises(SetupError, match="method 'cca': no record of the test split has it; did you mean caa?"):
        compare(some_methods, "cca")
