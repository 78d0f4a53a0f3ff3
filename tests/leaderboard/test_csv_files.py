"""leaderboard.csv fits a screen, and leaderboard_tidy.csv holds every number of the frame."""

import math

import pandas as pd
import pytest

from bench.console import escape
from bench.leaderboard import csv_files
from bench.leaderboard.build import Built, leaderboard, rebuild
from bench.leaderboard.columns import DTYPES
from tests import record_files

TOXICITY = "rtp.lexicon.expected_maximum_toxicity_k5"


def many_suites(results, count: int) -> None:
    record_files.world(results)
    for number in range(count):
        for method, shift in (("unsteered", 0.0), ("caa", 0.1)):
            values = [0.2 + shift, 0.4 + 0.01 * number + shift, 0.6]
            record_files.write(results, f"suite_{number:02d}", method, {"share": values, "other": values})


@pytest.fixture(scope="module", params=[0, 18])
def built(request, tmp_path_factory) -> Built:
    results = tmp_path_factory.mktemp("csv")
    many_suites(results, request.param)
    return rebuild(results)


def untidied(rows: pd.DataFrame) -> pd.DataFrame:
    """What `bench.build_leaderboard` returns, put together again from leaderboard_tidy.csv."""
    ends = {title: end for end, title in csv_files.NUMBERS.items()}
    of_facts = {title: end for end, title in csv_files.OF_FACTS.items()} | {"value": "", "text": ""}
    found: dict[int, dict[str, object]] = {}
    for row in rows.to_dict("records"):
        own = found.setdefault(row["row"], {name: row[name] for name in csv_files.NAMED})
        is_metric = pd.notna(row["suite"])
        name = f"{row['suite']}.{row['metric']}" if is_metric else row["metric"]
        for title, end in (ends if is_metric else of_facts).items():
            if pd.notna(row[title]):
                own[f"{name}{end}"] = row[title]
    return pd.DataFrame(found.values())


def test_every_number_and_text_of_the_frame_is_in_the_tidy_file(built):
    frame = leaderboard(built.tables)
    again = untidied(escape.read_csv(built.tidy))
    for name in frame:
        for i, value in enumerate(frame[name]):
            there = again[name][i] if name in again else None
            if pd.isna(value):
                assert pd.isna(there), name
            elif isinstance(value, str):
                assert str(there) == value, name
            elif DTYPES.get(name):
                assert float(there) == float(value), f"{name}: a count has all of its digits"
            else:
                assert math.isclose(float(there), float(value), rel_tol=1e-5), name


def test_a_long_count_keeps_its_digits(tmp_path):
    fit = {"seconds": 1.0, "peak_memory_bytes": 123456789, "artefact_bytes": 8}
    record_files.cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    record_files.cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8, fit=fit)
    rows = rebuild(tmp_path).tidy.read_text().splitlines()
    assert sum("peak_fit_memory_bytes,False,123456789," in row for row in rows) == 1


def test_the_file_that_people_open_has_at_most_forty_columns(built):
    rows = escape.read_csv(built.csv)
    assert len(rows.columns) <= csv_files.MOST and rows.columns[-1] == "notes"
    frame = leaderboard(built.tables)
    assert rows["metric"].eq(TOXICITY).all() and rows["value"].to_numpy() == pytest.approx(frame[TOXICITY], rel=1e-5)
    same = {"delta": f"{TOXICITY}.delta", "p_holm": f"{TOXICITY}.p_holm", "joint_low": "joint_low"}
    for name, full in same.items():
        assert rows[name].to_numpy() == pytest.approx(frame[full].to_numpy(float), rel=1e-5, nan_ok=True)
    detox = rows[rows["method"] == "detox"].iloc[0]
    assert "no feasible strength" in detox["notes"] and detox["family"] == "weights"


def test_what_has_no_room_is_named_below_the_readable_table(built):
    rows, last = escape.read_csv(built.csv), built.markdown.read_text().splitlines()[-1]
    suites = sum(name.endswith(".share") for name in rows)
    if "suite_00" in built.markdown.read_text():
        assert suites == 2 and "suite_01.share.low" in rows
        assert last.startswith("leaderboard.csv has at most 40 columns. It leaves out ")
        assert all(f"suite_{number:02d}" in last for number in range(2, 18)) and "suite_01" not in last
    else:
        assert suites == 0 and "by_profanity_check_low" in rows and len(rows.columns) == 40
        assert last.endswith("It leaves out pairs, which leaderboard_tidy.csv has.")


def test_tables_with_other_headlines_share_their_columns(tmp_path):
    for name, metric in (("a", "s.expected_maximum_toxicity_k5"), ("b", "s.expected_maximum_toxicity_k5_n9")):
        for method, value in (("unsteered", 0.6), ("caa", 0.3)):
            values = [value, value + 0.1, value - 0.1]
            model = {"name": name, "sha256": name * 12}
            record_files.write(tmp_path, "rtp", method, {metric: values}, model=model)
    rows = escape.read_csv(rebuild(tmp_path).csv)
    assert rows["table"].tolist() == [1, 1, 2, 2] and rows["value"].tolist() == [0.6, 0.3, 0.6, 0.3]
    assert rows["metric"].nunique() == 2 and len(rows.columns) < 30
