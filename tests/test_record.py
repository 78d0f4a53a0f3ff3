import pandas as pd
import pytest

from bench import record

ID = "0123456789ab"
ITEMS = pd.DataFrame({"metric": ["m"], "item": ["a"], "value": [1.0], "weight": [1.0]})


def test_write_and_read(tmp_path):
    written = record.write(tmp_path, {"id": ID, "x": 1}, ITEMS, ITEMS)
    assert record.read(tmp_path / ID) == written
    assert pd.read_parquet(tmp_path / ID / "items.parquet").equals(ITEMS)
    assert [path.name for path in tmp_path.iterdir()] == [ID]


@pytest.mark.parametrize("name", ["record.json", "items.parquet", "scores.parquet"])
def test_a_broken_record_is_not_known(tmp_path, name):
    record.write(tmp_path, {"id": ID}, ITEMS, ITEMS)
    (tmp_path / ID / name).write_bytes(b"cut")
    assert record.read(tmp_path / ID) is None
    (tmp_path / ID / name).unlink()
    assert record.read(tmp_path / ID) is None


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), record.whole_folder(tmp_path / ID) as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(tmp_path, {"id": ID, "x": float("nan")}, ITEMS, ITEMS)
    assert list(tmp_path.iterdir()) == []


def test_amend_keeps_the_rest(tmp_path):
    record.write(tmp_path, {"id": ID, "x": 1}, ITEMS, ITEMS)
    record.amend(tmp_path / ID, tuning={"chosen": 2})
    after = record.read(tmp_path / ID)
    assert after is not None and after["x"] == 1 and after["tuning"] == {"chosen": 2}


@pytest.mark.parametrize("name", ["../0123456789ab", "/tmp/0123456789ab", "abc", "0123456789AB", "0123456789ab\n", ""])
def test_what_is_no_id_is_never_a_path(tmp_path, name):
    with pytest.raises(ValueError, match="is no id"):
        record.write(tmp_path / "records", {"id": name}, ITEMS, ITEMS)
    assert list(tmp_path.rglob("*")) == []


def test_a_record_in_a_folder_of_another_name_is_not_known(tmp_path):
    record.write(tmp_path, {"id": ID, "x": 1}, ITEMS, ITEMS)
    (tmp_path / ID).rename(tmp_path / "ba9876543210")
    assert record.read(tmp_path / "ba9876543210") is None
    with pytest.raises(record.NotWholeError, match=f"the id inside, '{ID}', is not the folder's name"):
        record.checked(tmp_path / "ba9876543210")


def test_a_link_is_no_record_and_what_it_points_to_is_left_alone(tmp_path):
    record.write(tmp_path / "elsewhere", {"id": ID, "x": 1}, ITEMS, ITEMS)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / ID).symlink_to(tmp_path / "elsewhere" / ID)
    with pytest.raises(record.NotWholeError, match="its folder is a link"):
        record.checked(tmp_path / "records" / ID)
    record.write(tmp_path / "records", {"id": ID, "x": 2}, ITEMS, ITEMS)
    assert record.checked(tmp_path / "records" / ID)["x"] == 2
    assert record.checked(tmp_path / "elsewhere" / ID)["x"] == 1
