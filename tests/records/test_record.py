import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench.files import atomic, digests, plain_json
from bench.leaderboard.build import rebuild
from bench.records import record, schema, table
from bench.records.fields import Cost, Seeds
from bench.records.table import collect, read_records
from bench.report import page
from methods.errors import SetupError
from tests import record_files

ID = "0123456789ab"
FACTS = {
    "id": ID, "suite": "rtp", "split": "test", "comparison": "c", "model": {"name": "tiny"}, "fit_id": None,
    "method": {"name": "unsteered", "family": "none", "version": 1, "parameters": {}, "strength": 0.0},
    "seed": {"fit": None, "sample": 0}, "data": None, "fit": None, "cost": None, "tuning": None, "sources": [],
    "sampling": None, "info": {},
    "metrics": {"m": {"value": 1.0, "n": 1, "higher_is_better": True, "transform": "mean"}},
}  # fmt: skip
ITEMS = pd.DataFrame({"metric": ["m"], "item": ["a"], "value": [1.0], "weight": [1.0]})


def of(facts) -> record.Record:
    return record.Record.from_json(facts)


def test_write_and_read(tmp_path):
    written = record.write(tmp_path, of(FACTS | {"x": 1}), ITEMS, ITEMS)
    assert record.read(tmp_path / ID) == written
    assert pd.read_parquet(tmp_path / ID / "items.parquet").equals(ITEMS)
    assert [path.name for path in tmp_path.iterdir()] == [ID]


@pytest.mark.parametrize("name", ["record.json", "items.parquet", "scores.parquet"])
def test_a_broken_record_is_not_known(tmp_path, name):
    record.write(tmp_path, of(FACTS), ITEMS, ITEMS)
    (tmp_path / ID / name).write_bytes(b"cut")
    assert record.read(tmp_path / ID) is None
    (tmp_path / ID / name).unlink()
    assert record.read(tmp_path / ID) is None


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic.whole_folder(tmp_path / ID) as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="x is the number 'nan', which no table can hold"):
        of(FACTS | {"x": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(tmp_path, replace(of(FACTS), cost=Cost(relative_speed=math.nan)), ITEMS, ITEMS)
    with pytest.raises(ValueError, match="a record whose cost.relative_speed is the text 'x', .* is not written"):
        record.write(tmp_path, replace(of(FACTS), cost=Cost(relative_speed="x")), ITEMS, ITEMS)
    assert list(tmp_path.iterdir()) == []


def test_amend_keeps_the_rest(tmp_path):
    record.write(tmp_path, of(FACTS | {"x": 1}), ITEMS, ITEMS)
    amended = record.amend(tmp_path / ID, cost=Cost(relative_speed=2))
    after = record.read(tmp_path / ID)
    assert after == amended and after.to_json()["x"] == 1 and after.cost.relative_speed == 2


@pytest.mark.parametrize("name", ["../0123456789ab", "/tmp/0123456789ab", "abc", "0123456789AB", "0123456789ab\n", ""])
def test_what_is_no_id_is_never_a_path(tmp_path, name):
    with pytest.raises(ValueError, match="is not an id"):
        record.write(tmp_path / "records", of(FACTS | {"id": name}), ITEMS, ITEMS)
    assert list(tmp_path.rglob("*")) == []


def test_a_record_in_a_folder_of_another_name_is_not_known(tmp_path):
    record.write(tmp_path, of(FACTS | {"x": 1}), ITEMS, ITEMS)
    (tmp_path / ID).rename(tmp_path / "ba9876543210")
    assert record.read(tmp_path / "ba9876543210") is None
    with pytest.raises(record.NotWholeError, match=f"the id inside, '{ID}', is not the folder's name"):
        record.checked(tmp_path / "ba9876543210")


def test_a_link_is_no_record_and_what_it_points_to_is_left_alone(tmp_path):
    record.write(tmp_path / "elsewhere", of(FACTS | {"x": 1}), ITEMS, ITEMS)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / ID).symlink_to(tmp_path / "elsewhere" / ID)
    with pytest.raises(record.NotWholeError, match="its folder is a link"):
        record.checked(tmp_path / "records" / ID)
    record.write(tmp_path / "records", of(FACTS | {"x": 2}), ITEMS, ITEMS)
    assert record.checked(tmp_path / "records" / ID).to_json()["x"] == 2
    assert record.checked(tmp_path / "elsewhere" / ID).to_json()["x"] == 1


# -- what a field may be ---------------------------------------------------------------------------------------------

FIELDS = ("suite", "split", "comparison", "model", "method", "fit_id", "seed", "data", "fit", "cost", "tuning",
          "scorers", "sources", "sampling", "metrics", "info", "provenance", "settings", "generation_id")  # fmt: skip
VALUES = [5, -1, 0.5, 10**30, True, "text", "", [5], ["text"], [[]], [{}], [{"name": 5}], {}, {"a": 5}, {"name": [5]},
          {"a": {"b": [{}]}}, {"sources": [5]}, {"report": 5}, {"trials": [5]}, None]  # fmt: skip


def edited(path, *places_and_values) -> None:
    """The record with other values at these places, such as ("method", "strength"), and with a seal that fits."""
    facts = plain_json.load(path / "record.json")
    for place, value in places_and_values:
        node = facts
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
    atomic.write_whole(path / "record.json", json.dumps(record.sealed(facts)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A baseline and a tuned method, with all three suites."""
    results = tmp_path_factory.mktemp("shapes")
    record_files.cell(results, "unsteered", 1.0, 0.0, 1.0, n=8)
    record_files.cell(
        results, "caa", 0.5, 0.1, 0.9, n=8, tuning=record_files.tuning([(2.0, 1.1, 0.2), (4.0, 1.1, 0.4)], 4.0)
    )
    return results


@pytest.fixture
def results(world, tmp_path):
    shutil.copytree(world, tmp_path / "own")
    return tmp_path / "own"


def of_caa(results):
    """The record of its texts."""
    paths = sorted((results / "runs/records").iterdir())
    return next(path for path in paths if plain_json.load(path / "record.json")["method"]["name"] == "caa"
                and plain_json.load(path / "record.json")["suite"] == "rtp")  # fmt: skip


PLACES = [
    *((name,) for name in FIELDS), ("model", "name"), ("method", "name"), ("method", "strength"), ("method", "version"),
    ("method", "parameters"), ("method", "family"), ("method", "strength_unit"), ("method", "class"), ("seed", "fit"),
    ("seed", "sample"), ("data", "pairs"), ("data", "sources"), ("data", "harmful"), ("fit", "seconds"), ("info", "k"),
    ("fit", "artefact_bytes"), ("fit", "facts"), ("cost", "relative_speed"), ("tuning", "trials"), ("tuning", "chosen"),
    ("tuning", "chosen_trial"), ("tuning", "baseline"), ("tuning", "constraints"), ("tuning", "feasible"),
    ("tuning", "scorer"), ("tuning", "trials", 0), ("tuning", "trials", 0, "perplexity_ratio"), ("scorers", "report"),
    ("tuning", "trials", 0, "strength"), ("tuning", "trials", 1, "reduction"), ("sources", 0), ("sources", 0, "name"),
    ("sampling", "temperature"), ("sampling", "seed"), ("info", "chance"), ("info", "scorers"), ("provenance", "git"),
    ("metrics", "profanity_check.expected_maximum_toxicity_k5"), ("info", "prompts"), ("provenance", "packages"),
    *(("metrics", "profanity_check.expected_maximum_toxicity_k5", key) for key in
      ("value", "standard_error", "n", "unscored", "higher_is_better", "transform", "id", "feasible")),
]  # fmt: skip


@pytest.mark.every(80)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_field_of_another_kind_is_named_or_does_no_harm(results, place):
    path = of_caa(results)
    before = (path / "record.json").read_bytes()
    several = 0
    for value in VALUES:
        edited(path, (place, value))
        told = schema.wrong(plain_json.load(path / "record.json"))
        if told is None:  # a kind that the field may have: everything is drawn from it
            several += 1
            record.checked(path)
            if value is None or several < 4:
                rebuild(results)
                page.rebuild(results)
                collect(results / "runs")
        else:
            found, skipped = read_records(results / "runs")
            assert len(found) == 5 and skipped == [
                f"record {path.name} skipped: its {told}; was it edited? Run its cell again"
            ]
            assert told.startswith(str(place[0]))
        (path / "record.json").write_bytes(before)


@pytest.mark.parametrize("place, value, told", [
    (("method", "strength"), [4], "method.strength is a list, not a number"),
    (("method", "strength"), True, "method.strength is 'True', not a number"),
    (("metrics", "m"), 5, "metrics.m is the number '5', not a mapping"),
    (("sources",), [{"name": "x"}], "sources[0].source is missing"),
    (
        ("tuning",),
        record_files.tuning([(1.0, 1.0, 0.0)], 1.0) | {"chosen_trial": 1},
        "tuning.chosen_trial is 1 of 1 trials",
    ),
    (("seed", "fit"), 2**63, "seed.fit is the number '9223372036854775808', which no table can hold"),
    (("data",), {"harmful": {"sources": [5]}}, "data.harmful.sources[0] is the number '5', not a mapping"),
    (("data",), {"flip": "a tenth"}, "data.flip is the text 'a tenth', not a number from 0 to 1"),
    (("data",), {"flip": "-3"}, "data.flip is the text '-3', not a number from 0 to 1"),
    (("data",), {"flip": "1_0"}, "data.flip is the text '1_0', not a number from 0 to 1"),
    (("info",), {"chance": {"piqa": "a"}}, "info.chance.piqa is the text 'a', not a number"),
])  # fmt: skip
def test_the_field_is_told(tmp_path, place, value, told):
    record.write(tmp_path, of(FACTS), ITEMS, ITEMS)
    edited(tmp_path / ID, (place, value))
    assert record.read(tmp_path / ID) is None
    with pytest.raises(record.NotWholeError) as error:
        record.checked(tmp_path / ID)
    assert str(error.value) == f"its {told}; was it edited? Run its cell again"
    with pytest.raises(ValueError) as refused:
        of(plain_json.load(tmp_path / ID / "record.json"))
    assert str(refused.value) == told


@pytest.mark.every(9)
@pytest.mark.parametrize("depth", [50, 800, 100_000])
@pytest.mark.parametrize("key", ["x", "info", "model"])
def test_a_record_nested_without_end_is_skipped(results, depth, key):
    path = of_caa(results)
    text = (path / "record.json").read_text()
    (path / "record.json").write_text(f'{{"{key}": {"[" * depth}{"]" * depth}, ' + text.lstrip()[1:])
    if key == "x" and depth < 900:
        facts = plain_json.load(path / "record.json")
        atomic.write_whole(path / "record.json", json.dumps(record.sealed(facts)))
    built = rebuild(results)
    if key == "x" or depth == 100_000:  # of a key that is there twice JSON takes the last one
        (line,) = built.skipped
        assert line.startswith(f"record {path.name} skipped: ")
        assert ("x has more than 40 levels" if depth < 900 else "record.json is nested too deeply to be read") in line
    page.rebuild(results)


def test_one_infinite_number_is_told(tmp_path):
    record.write(tmp_path, of(FACTS), ITEMS, ITEMS)
    path = tmp_path / ID / "record.json"
    text = path.read_text().replace('"value": 1.0', '"value": 1e999')
    path.write_text(text[: text.index(' "sha256"')].rstrip().rstrip(",") + "}")  # as written by an older version
    with pytest.raises(record.NotWholeError, match="metrics.m.value is the number 'inf', which no table can hold"):
        record.checked(tmp_path / ID)


@pytest.mark.parametrize("items, told", [
    (ITEMS.assign(value="x"), "has not the columns metric, item, value, weight, of which the last two are numbers"),
    (ITEMS.rename(columns={"item": "other"}), "has not the columns metric, item, value, weight"),
    (ITEMS.assign(item=[5]), "holds names that are not texts"),
    (pd.concat([ITEMS, ITEMS]), "is not a table with one row per metric and item"),
    (ITEMS.assign(value=float("inf")), "holds NaN or infinity"),
    (ITEMS.assign(weight=-1.0), "holds a negative weight"),
    (ITEMS.assign(metric="other"), "holds the metric 'other', of which record.json says nothing"),
])  # fmt: skip
def test_items_of_another_kind_are_told(tmp_path, items, told):
    record.write(tmp_path / "runs/records", of(FACTS), items, items)
    with pytest.raises(SetupError) as error:
        read_records(tmp_path / "runs")
    assert f"record {ID} skipped: items.parquet {told}" in str(error.value)


def test_a_child_reads_half_of_many_records(results, monkeypatch):
    edited(sorted((results / "runs/records").iterdir())[-1], (("seed", "fit"), "x"))
    found, skipped = read_records(results / "runs")
    monkeypatch.setattr(table, "MANY", 2)
    again, lines = read_records(results / "runs", processes=2)
    assert [one.record for one in again] == [one.record for one in found] and lines == skipped and len(skipped) == 1
    for one, other in zip(found, again, strict=True):
        pd.testing.assert_frame_equal(one.items, other.items)


def test_a_damaged_record_is_told_by_file_and_kind(tmp_path):
    path = tmp_path / ID
    of_cell = " (unsteered, suite rtp); run its cell again"
    for file, content, told in (
        ("record.json", None, "record.json is missing; run its cell again"),
        ("record.json", b"{", "record.json is not valid JSON; run its cell again"),
        ("record.json", b"[1]", "record.json holds no record; run its cell again"),
        ("items.parquet", None, f"items.parquet is missing{of_cell}"),
        ("scores.parquet", b"cut", f"scores.parquet was changed after it was written{of_cell}"),
    ):
        record.write(tmp_path, of(FACTS), ITEMS, ITEMS)
        (path / file).unlink() if content is None else (path / file).write_bytes(content)
        with pytest.raises(record.NotWholeError) as error:
            record.checked(path)
        assert str(error.value) == told
        shutil.rmtree(path)
    record.write(tmp_path, of(FACTS), ITEMS, ITEMS)
    for key, value, told in (
        ("suite", "kl", "record.json was changed after it was written (unsteered, suite kl)"),
        ("schema", 99, "record.json has the schema 99, where "),
    ):
        facts = plain_json.load(path / "record.json") | {key: value}
        atomic.write_whole(path / "record.json", json.dumps(facts))
        with pytest.raises(record.NotWholeError, match=re.escape(told)):
            record.checked(path)


def test_a_file_that_is_no_table_is_told(tmp_path):
    record.write(tmp_path / "runs/records", of(FACTS), ITEMS, ITEMS)
    path = tmp_path / "runs/records" / ID
    (path / "items.parquet").write_bytes(b"no table")
    edited(path, (("files", "items"), digests.sha256(path / "items.parquet")))
    with pytest.raises(SetupError, match="items.parquet is not a table; run its cell again"):
        read_records(tmp_path / "runs")


PUBLISHED = sorted((Path(__file__).parents[2] / "results/published").glob("*/runs/records/*"))


def test_published_records_are_written_as_they_are_read():
    """Byte for byte, whatever an older version put into them."""
    assert len(PUBLISHED) >= 148
    for path in PUBLISHED:
        assert plain_json.dumps(record.checked(path).to_json()) == (path / "record.json").read_text(), path


def test_typed_fields_hold_all_that_readers_look_at():
    """What is built anew from the typed fields of a published record says the same, but for what has no field."""
    for path in PUBLISHED:
        one, facts = record.checked(path), plain_json.load(path / "record.json")
        for key, value in replace(one, stored={}).to_json().items():
            assert value == facts.get(key), (path, key)
        assert (one.generations is None) == ("generations" not in one.to_json())


def test_what_this_version_does_not_know_survives_a_change(tmp_path):
    """At any depth, in its place."""
    facts = FACTS | {
        "of_newer": {"a": [1]}, "cost": {"relative_speed": 1, "watts": 5}, "model": {"name": "tiny", "zeta": None},
        "metrics": {"m": {"value": 1.0, "n": 1, "higher_is_better": True, "transform": "mean", "median": 2.0}},
    }  # fmt: skip
    record.write(tmp_path, of(facts), ITEMS, ITEMS)
    before = plain_json.load(tmp_path / ID / "record.json")
    after = record.amend(tmp_path / ID, tuning=None, generations=("0" * 12,)).to_json()
    assert after == plain_json.load(tmp_path / ID / "record.json")
    assert list(after) == [*(key for key in before if key != "sha256"), "generations", "sha256"]
    assert {key: value for key, value in after.items() if key not in ("generations", "sha256")} == {
        key: value for key, value in before.items() if key != "sha256"
    }
    faster = replace(record.checked(tmp_path / ID), cost=replace(record.checked(tmp_path / ID).cost, relative_speed=2))
    assert faster.to_json()["cost"] == {"relative_speed": 2, "watts": 5}


def test_a_fresh_record_writes_null_for_required_fields_only():
    one = of(FACTS)
    fresh = replace(one, stored={}, seed=Seeds(fit=None, sample=1), method=replace(one.method, stored={}))
    written = fresh.to_json()
    assert written["cost"] is None and written["seed"] == {"fit": None, "sample": 1}
    assert "generations" not in written and "strength_unit" not in written["method"]


def test_the_generations_of_a_record_are_a_column(tmp_path):
    one = of(FACTS)
    for name, changes in (("0" * 12, {"generations": ("a" * 12, "b" * 12)}), ("1" * 12, {"generation_id": "c" * 12}),
                          ("2" * 12, {"generations": ()}), ("3" * 12, {})):  # fmt: skip
        record.write(tmp_path / "records", replace(one, id=name, **changes), ITEMS, ITEMS)
    ids = collect(tmp_path)["generation_id"]
    assert ids[:2].tolist() == [f"{'a' * 12}; {'b' * 12}", "c" * 12] and ids[2:].isna().all()


def test_only_this_package_looks_into_the_json_of_a_record():
    """Everyone else uses the fields of `Record`."""
    bench = Path(__file__).parents[2] / "bench"
    looked = re.compile(r"""\b(facts|record|about|stored|tuning|data)(\[["']|\.get\(["'])""")
    paths = [bench / "reproduction.py", bench / "rescore.py", bench / "run/runner.py"]
    paths += [path for name in ("leaderboard", "plots", "report") for path in sorted((bench / name).rglob("*.py"))]
    lines = [(path, line.strip()) for path in paths for line in path.read_text().splitlines()]
    assert len(lines) > 3000
    assert [f"{path}: {line}" for path, line in lines if looked.search(line)] == []
