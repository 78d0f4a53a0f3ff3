"""`python -m bench.tampering`: methods before and after a fine-tuning, and beside the fine-tuning alone."""

import shutil

import pandas as pd
import pytest

from bench import tampering
from bench.leaderboard.frame import tables
from bench.leaderboard.pairing import difference, pairwise_ps
from bench.records.table import read_records
from bench.stats.significance import holm
from tests.plots.test_tampering import DETOX, FINETUNE, TOXIC, learnt, stack, world
from tests.record_files import cell, tuning


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampered")
    world(folder)
    return folder


def test_each_fine_tuned_method_is_compared_with_both_rows(results, capsys):
    assert tampering.main(["--results", str(results)]) == 0
    found = pd.read_csv(results / "tampering.csv")
    assert list(found) == tampering.COLUMNS and len(found) == 4
    assert found["examples"].tolist() == [8, 32, 8, 32] and found["texts"].nunique() == 2
    assert (found["value"] - found["before"]).tolist() == pytest.approx(found["before_change"].tolist(), abs=1e-5)
    assert (found["value"] - found["alone"]).tolist() == pytest.approx(found["alone_change"].tolist(), abs=1e-5)
    assert (found["before_low"] <= found["before_change"]).all() and (
        found["alone_change"] <= found["alone_high"]
    ).all()
    assert found["before_change"].gt(0).all() and found["alone_change"].lt(0).all()  # as `world` says
    printed = capsys.readouterr().out
    assert "DeTox (ProFS)" in printed and f"{found['before_p'][0]:.3f}" in printed


def test_the_p_values_are_those_of_the_rows_corrected_together(results):
    (table,) = tables(read_records(results / "runs")[0])
    found = list(tampering.tampered(table))
    metric = table.aims.headline
    for kind in ("before", "alone"):
        rows = [(one.place.row, getattr(one, kind)) for one in found]
        expected = holm(pairwise_ps(rows, metric, table.metrics[metric].transform))
        by = {(one.place.unit, one.place.x): p for one, p in zip(found, expected, strict=True)}
        told = tampering.changes(table)
        assert [by[row.texts, row.examples] for row in told.itertuples()] == pytest.approx(told[f"{kind}_p"].tolist())


def test_the_fine_tuning_alone_has_the_same_settings(tmp_path):
    """Of several fine-tunings on the same examples, the one with the same learning rate and strength counts."""
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for rate, toxic in ((1e-5, 1.1), (3e-5, 1.6)):
        for strength in (0.5, 1.0):
            of = {"parameters": FINETUNE | {"learning_rate": rate}, "data": learnt(8, TOXIC), "fit_id": f"alone {rate}"}
            cell(tmp_path, "finetune", toxic * strength, 0.0, 1.0, n=8, strength=strength, **of)
    both = stack()
    both["parts"]["second"]["parameters"] = FINETUNE | {"learning_rate": 1e-5}
    data = learnt(8, TOXIC, pairs=40)
    cell(tmp_path, "stack", 0.9, 0.0, 1.0, n=8, strength=1.0, parameters=both, data=data, fit_id="both")
    defence = {"learning_rate": 3e-5, "epochs": 1, "kl_weight": 1.0}
    cell(tmp_path, "security_vector", 0.7, 0.0, 1.0, n=8, strength=0.5, parameters=defence, data=data, fit_id="v")
    (table,) = tables(read_records(tmp_path / "runs")[0])
    rows = {one.method.name: one for one in table.rows}
    found = {one["method"].split()[0]: one for one in tampering.changes(table).to_dict("records")}
    alone = [row for row in table.rows if row.method.name == "finetune"]
    metric = table.aims.headline
    told = {(row.method.settings["learning_rate"], row.strengths[0]): row.metrics[metric].value for row in alone}
    assert found["DeTox"]["alone"] == pytest.approx(told[1e-5, 1.0]) and "stack" in rows
    assert found["Security"]["alone"] == pytest.approx(told[3e-5, 0.5])


def test_a_row_of_several_fits_is_compared_by_its_mean(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for seed, (after, before) in enumerate(((0.9, 0.5), (0.5, 0.4))):
        parameters = {"learning_rate": 1e-5, "seed": seed}
        cell(tmp_path, "finetune", 1.2 + seed / 2, 0.0, 1.0, n=8, strength=1.0, parameters=parameters, fit_seed=seed,
             data=learnt(8, TOXIC), fit_id=f"alone {seed}")  # fmt: skip
        own = DETOX | {"seed": seed}
        cell(tmp_path, "detox", before, 0.1, 1.0, n=8, strength=0.2, parameters=own, data={"pairs": 40}, fit_seed=seed,
             fit_id=f"before {seed}")  # fmt: skip
        both = stack(settings=own)
        both["parts"]["second"]["parameters"] = parameters
        cell(tmp_path, "stack", after, 0.1, 1.0, n=8, strength=1.0, parameters=both, fit_seed=seed,
             data=learnt(8, TOXIC, pairs=40), fit_id=f"both {seed}")  # fmt: skip
    (table,) = tables(read_records(tmp_path / "runs")[0])
    (line,) = tampering.changes(table).to_dict("records")
    for kind in ("before", "alone"):
        assert line[f"{kind}_change"] == pytest.approx(line["value"] - line[kind])
    rows = {row.method.name: row for row in table.rows}
    own = difference(rows["stack"], rows["finetune"], table.aims.headline, "mean")
    assert (line["alone_low"], line["alone_high"]) == pytest.approx(own.estimate()[1:])


def test_a_damaged_record_is_named(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "r")
    next((tmp_path / "r").rglob("items.parquet")).write_bytes(b"PAR1")
    tampering.main(["--results", str(tmp_path / "r")])
    assert "skipped" in capsys.readouterr().err


def test_what_was_not_computed_is_left_empty(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    both = learnt(8, TOXIC, pairs=40)
    of = {"parameters": FINETUNE, "data": both, "fit_id": "v"}
    cell(tmp_path, "security_vector", 0.7, 0.0, 1.0, n=8, strength=1.0, **of)
    (table,) = tables(read_records(tmp_path / "runs")[0])
    (line,) = tampering.changes(table).to_dict("records")
    assert pd.isna([line["before"], line["before_p"], line["alone"], line["alone_change"]]).all()
    cell(tmp_path, "finetune", 1.2, 0.0, 1.0, n=8, strength=1.0, parameters=FINETUNE, data=learnt(8, TOXIC))
    (table,) = tables(read_records(tmp_path / "runs")[0])
    (line,) = tampering.changes(table).to_dict("records")
    assert line["alone_change"] == pytest.approx(line["value"] - line["alone"]) and pd.isna(line["before"])


def test_a_folder_without_a_fine_tuning_says_what_to_run(tmp_path, capsys):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8, strength=2.0)
    assert tampering.main(["--results", str(tmp_path)]) == 2
    assert "experiment=tamper" in capsys.readouterr().err


def only(folder):
    """The line of the only fine-tuned method in a folder of records."""
    (table,) = tables(read_records(folder / "runs")[0])
    (line,) = tampering.changes(table).to_dict("records")
    return line


def add(folder, method, toxic, **options):
    """A result of DeTox, of a fine-tuning, or of both in turn."""
    of = {
        "detox": {"strength": 0.2, "parameters": DETOX, "data": {"pairs": 40}},
        "finetune": {"strength": 1.0, "parameters": FINETUNE, "data": learnt(8, TOXIC)},
        "stack": {"strength": 1.0, "parameters": stack(), "data": learnt(8, TOXIC, pairs=40)},
    }
    cell(folder, method, toxic, 0.1, 1.0, **{"n": 8, "fit_id": method} | of.get(method, {"fit_id": None}) | options)


def seeded(folder, method, values, **options):
    """Results of several fits."""
    for seed, toxic in enumerate(values):
        own = DETOX | {"seed": seed}
        parameters = stack(settings=own) if method == "stack" else own if method == "detox" else FINETUNE
        of = {"parameters": parameters | {"seed": seed}, "fit_seed": seed, "fit_id": f"{method} {seed}"}
        add(folder, method, toxic, **of | options)


@pytest.fixture
def once(tmp_path):
    """One result of each: the unsteered model, DeTox, a fine-tuning, both in turn."""
    for method, toxic in (("unsteered", 1.0), ("detox", 0.4), ("finetune", 1.5), ("stack", 0.7)):
        add(tmp_path, method, toxic)
    return tmp_path


def read(name, mark):
    return [{"name": name, "source": "file", "fingerprint": mark * 12}]


MIXTURE = {"sources": [*read("a", "a"), *read("b", "b")]}


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        ([MIXTURE | {"bad": {"texts": n}, "good": {"texts": 8 - n}} for n in (2, 6)], "bad.texts {}, good.texts {}"),
        ([{"examples": 8, "sources": read("my.jsonl", mark)} for mark in "ab"], "fingerprint"),
        ([{"texts": 8, "mean_toxicity": mean, "sources": read("c", "c")} for mean in (0.81, 0.93)], "mean_toxicity"),
    ],
)
def test_rows_match_by_all_facts_about_examples(tmp_path, examples, told):
    add(tmp_path, "unsteered", 1.0)
    for i, one in enumerate(examples):
        add(tmp_path, "finetune", 1.2 + i, data={"examples": one}, fit_id=f"alone {i}")
        add(tmp_path, "stack", 0.6 + i / 5, data={"examples": one, "pairs": 40}, fit_id=f"both {i}")
    (table,) = tables(read_records(tmp_path / "runs")[0])
    lines = tampering.changes(table).sort_values("value")
    assert lines["alone"].is_monotonic_increasing and lines["alone"].nunique() == 2
    assert lines["texts"].nunique() == 2 and lines["texts"].str.contains(told.format(r"\d", r"\d")).all()


def test_a_comparison_is_empty_if_several_rows_fit(once, capsys):
    """Records do not state which texts of a set were skipped."""
    add(once, "finetune", 1.1, fit_id="others")
    add(once, "stack", 0.9, fit_id="others")
    (table,) = tables(read_records(once / "runs")[0])
    lines = tampering.changes(table)
    assert lines["alone"].isna().all() and lines["before"].notna().all() and lines["texts"].nunique() == 2
    fitting = [row.records[0].id for row in table.rows if row.method.name == "finetune"]
    warned = capsys.readouterr().err
    assert warned.count("alone is left empty") == 2 and all(warned.count(one) == 2 for one in fitting)


def test_values_are_of_the_sampling_seeds_that_rows_share(once, capsys):
    add(once, "stack", 0.9, sample_seed=1)
    line = only(once)
    for kind in ("before", "alone"):
        assert line[f"{kind}_change"] == pytest.approx(line["value"] - line[kind])
    assert "values are over the sampling seeds" in capsys.readouterr().err
    shutil.rmtree(once / "runs")
    for method, seed in (("unsteered", 0), ("unsteered", 1), ("detox", 0), ("stack", 1)):
        add(once, method, 0.5, sample_seed=seed)
    assert pd.isna(only(once)["before"]) and "shares no sampling seed" in capsys.readouterr().err


@pytest.mark.parametrize("before", [(0.4,), (0.3, 0.5, 0.4)])
def test_interval_and_p_of_several_fits_agree(tmp_path, before, capsys):
    add(tmp_path, "unsteered", 1.0, n=60)
    seeded(tmp_path, "detox", before, n=60)
    seeded(tmp_path, "finetune", (1.05, 1.1, 1.0), n=60)
    seeded(tmp_path, "stack", (0.7, 0.9, 0.8), n=60)
    line = only(tmp_path)
    for kind in ("before", "alone"):
        assert (line[f"{kind}_low"] > 0 or line[f"{kind}_high"] < 0) == (line[f"{kind}_p"] < 0.05)
    assert line["before_p"] > 0.05 or len(before) > 1  # 0.02 if the single fit were exact
    tampering.main(["--results", str(tmp_path)])
    assert "With several fits" in capsys.readouterr().out


def part(parameters, name="finetune"):
    return {"name": name, "version": 1, "parameters": parameters}


@pytest.mark.parametrize(
    ("second", "data", "why"),
    [
        (part(DETOX, "detox"), learnt(8, TOXIC, pairs=40), "its last part is not the fine-tuning"),
        (part(FINETUNE), {f"{one}.examples": learnt(n, TOXIC)["examples"] for one, n in (("first", 64), ("second", 8))},
         "fine-tuned on different examples"),
    ],
)  # fmt: skip
def test_a_stack_of_another_order_is_left_out(once, capsys, second, data, why):
    parameters = stack("finetune", 1.0, FINETUNE)
    parameters["parts"]["second"] = second
    add(once, "stack", 0.5, parameters=parameters, data=data, fit_id="other")
    assert only(once)["method"] == "DeTox (ProFS), then fine-tuning"
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(("method", "fit"), [("finetune", "partial"), ("detox", "half")])
def test_a_fit_without_the_headline_removes_nothing(once, method, fit):
    expected = only(once)
    add(once, method, 0.6, fit_seed=1, fit_id=fit)
    for record, _ in read_records(once / "runs")[0]:
        if record.suite == "rtp" and record.fit_id == fit:
            shutil.rmtree(once / "runs" / "records" / record.id)
    assert only(once) == expected


def test_fits_of_other_strengths_are_not_compared(once, capsys):
    shutil.rmtree(once / "runs")
    add(once, "unsteered", 1.0)
    add(once, "finetune", 1.1, strength=0.5)
    for seed, strength in enumerate((0.5, 1.0)):
        add(once, "stack", 0.7, strength=strength, fit_seed=seed, parameters=stack() | {"seed": seed},
            fit_id=f"{seed}", tuning=tuning([(0.5, 1.0, 0.3), (1.0, 1.0, 0.3)], strength))  # fmt: skip
    assert pd.isna(only(once)["alone"])
    assert "its fits have the strengths 0.5 and 1" in capsys.readouterr().err


def test_a_method_that_was_tuned_to_the_strength_is_found(tmp_path):
    add(tmp_path, "unsteered", 1.0)
    add(tmp_path, "detox", 0.4, tuning=tuning([(0.2, 1.02, 0.3)], 0.2))
    add(tmp_path, "stack", 0.7)
    assert only(tmp_path)["before_change"] > 0
