"""`python -m bench.tampering`: methods before and after a fine-tuning, and beside the fine-tuning alone."""

import pandas as pd
import pytest

from bench import tampering
from bench.leaderboard.frame import tables
from bench.leaderboard.pairing import pairwise_ps
from bench.records.table import read_records
from bench.stats.significance import holm
from tests.plots.test_tampering import FINETUNE, TOXIC, learnt, world
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


def test_what_was_not_computed_is_left_empty(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    both = learnt(8, TOXIC, pairs=40)
    cell(tmp_path, "security_vector", 0.7, 0.0, 1.0, n=8, strength=1.0, data=both, fit_id="v")
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
