import pandas as pd
import pytest

from bench import record

ITEMS = pd.DataFrame({"metric": ["m"], "item": ["a"], "value": [1.0], "weight": [1.0]})


def test_write_and_read(tmp_path):
    written = record.write(tmp_path, {"id": "abc", "x": 1}, ITEMS, ITEMS)
    assert record.read(tmp_path / "abc") == written
    assert pd.read_parquet(tmp_path / "abc" / "items.parquet").equals(ITEMS)
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


@pytest.mark.parametrize("name", ["record.json", "items.parquet", "scores.parquet"])
def test_a_broken_record_is_not_known(tmp_path, name):
    record.write(tmp_path, {"id": "abc"}, ITEMS, ITEMS)
    (tmp_path / "abc" / name).write_bytes(b"cut")
    assert record.read(tmp_path / "abc") is None
    (tmp_path / "abc" / name).unlink()
    assert record.read(tmp_path / "abc") is None


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), record.whole_folder(tmp_path / "abc") as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(tmp_path, {"id": "abc", "x": float("nan")}, ITEMS, ITEMS)
    assert list(tmp_path.iterdir()) == []


def test_amend_keeps_the_rest(tmp_path):
    record.write(tmp_path, {"id": "abc", "x": 1}, ITEMS, ITEMS)
    record.amend(tmp_path / "abc", tuning={"chosen": 2})
    after = record.read(tmp_path / "abc")
    assert after is not None and after["x"] == 1 and after["tuning"] == {"chosen": 2}
