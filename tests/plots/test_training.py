import pytest

from bench.leaderboard.frame import tables
from bench.plots import draw, style
from bench.plots.training import trained, training
from bench.records.table import read_records
from tests.artists import assert_readable
from tests.record_files import cell


def world(results, settings):
    cell(results, "unsteered", 1.0, 0.0, 1.0, n=12)
    for method in ("finetune", "security_vector"):
        for i, (rate, epochs) in enumerate(settings):
            own = {"learning_rate": rate, "epochs": epochs, "seed": 0}
            cell(results, method, 1 + 0.1 * i, 0.1, 1.0, n=12, strength=1.0, parameters=own)
    (table,) = tables(read_records(results / "runs")[0])
    return table


def test_each_setting_is_a_curve_with_all_else_equal(tmp_path):
    table = world(tmp_path, [(1e-5, 1), (3e-5, 1), (1e-4, 1), (3e-5, 2), (1e-3, 5)])
    found = trained(table)
    curves = {(curve, unit): own["x"].tolist() for (curve, unit), own in found.groupby(["curve", "unit"])}
    wanted = {"learning rate": [1e-5, 3e-5, 1e-4], "epochs": [1.0, 2.0]}
    assert curves == {(name, unit): x for name in ("Fine-tuning", "Security vector") for unit, x in wanted.items()}
    for width in ("single", "double"):
        (figure,) = draw.pages(draw.KINDS["training"], (found,), width)
        assert_readable(figure)
        assert {ax.get_xscale() for ax in figure.axes} == {"log"}


def test_one_learning_rate_is_no_curve(tmp_path):
    with pytest.raises(style.NothingToDraw, match="security_vectors_curves"):
        training(trained(world(tmp_path, [(1e-5, 1)])))
