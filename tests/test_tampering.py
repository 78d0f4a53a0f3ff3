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
from tests.record_files import cell


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
