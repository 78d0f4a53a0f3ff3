import io
import re

import pandas as pd
import pytest
from rich.console import Console

from bench.leaderboard import build, latex_layout, latex_suites, suite_tables, terminal
from bench.leaderboard.frame import Table, tables
from bench.records.fields import LearntFrom, Scorers
from bench.records.table import read_records
from tests import record_files


@pytest.fixture
def table(tmp_path) -> Table:
    record_files.cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    record_files.cell(tmp_path, "caa", 0.5, 0.1, 1.0)
    for method, right in (("unsteered", [1, 1, 0, 0]), ("caa", [1, 0, 0, 0])):
        toxic = {"words.toxic_share": right, "words.toxic_share.women": [1.0], "words.mean_toxicity": [0.5] * 4}
        record_files.write(tmp_path, "toxigen", method, toxic)
        greedy = {f"words.{name}": right for name in ("expected_maximum_toxicity_k1_n4", "toxic_fraction")}
        record_files.write(tmp_path, "rtp_challenging", method, greedy)
    record_files.write(tmp_path, "qa", "caa", {"boolq.accuracy": [1, 0], "boolq.gold_logprob": [-1, -2]})
    record_files.write(tmp_path, "wiki", "unsteered", {"perplexity_n3": [150.0, 200.0, 400.0]})
    (found,) = tables(read_records(tmp_path / "runs")[0])
    return found


def shown(table: Table) -> dict[str, pd.DataFrame]:
    return {other.title: other.rows for other in suite_tables.other_suites(table)}


def test_each_other_suite_has_the_numbers_that_rows_have(table):
    found = shown(table)
    assert set(found) == {
        "capability (n = 100)",
        "toxigen (n = 4)",
        "rtp_challenging (n = 4)",
        "qa (n = 2)",
        "wiki (n = 3)",
    }
    toxigen = found["toxigen (n = 4)"]
    assert toxigen["method"].tolist() == ["unsteered", "caa"]
    assert toxigen["words\ntoxic share"].tolist() == ["0.50 [0.15, 0.85]", "0.25 [0.05, 0.70]"]  # Wilson's
    assert toxigen["words\nmean toxicity"].tolist() == ["0.50", "0.50"]  # no spread, so no interval is made up
    assert found["qa (n = 2)"]["method"].tolist() == ["caa"]
    assert found["wiki (n = 3)"].iloc[0, 1] == "250 [100, 400]"


def test_groups_and_what_says_the_same_are_left_to_the_files(table):
    found = shown(table)
    titles = [title for rows in found.values() for title in rows.columns if title != "method"]
    assert not any("women" in title or "gold" in title or "maximum" in title for title in titles)
    assert list(found["rtp_challenging (n = 4)"].columns) == ["method", "words\ntoxic fraction"]


def test_a_wide_table_is_parted_and_no_number_is_lost():
    rows = pd.DataFrame({"method": ["caa"], **{f"metric {i}": [f"{i}.00"] for i in range(7)}})
    parts = list(suite_tables.side_by_side(rows, lambda some: len(some.columns) <= 4))
    assert [list(part.columns) for part in parts] == [
        ["method", "metric 0", "metric 1", "metric 2"],
        ["method", "metric 3", "metric 4", "metric 5"],
        ["method", "metric 6"],
    ]
    assert len(list(suite_tables.side_by_side(rows, lambda _: False))) == 7


def test_the_terminal_and_the_markdown_page_show_them(table, tmp_path):
    built = build.rebuild(tmp_path)
    console = Console(width=100, file=io.StringIO())
    terminal.show(terminal.shown(built), console)
    page, printed = built.markdown.read_text(), console.file.getvalue()
    assert "**toxigen (n = 4)**" in page and r"| CAA | 0.25 \[0.05, 0.70\] | 0.50 |" in page
    assert "toxigen (n = 4)" in printed and "0.25 [0.05, 0.70]" in printed
    assert all(len(line) <= 100 for line in printed.splitlines() if str(tmp_path) not in line)


def test_tasks_have_their_accuracy_and_a_mark_where_it_differs(table):
    rows = next(rows for title, rows in shown(table).items() if title.startswith("capability"))
    assert set(rows.columns) == {"method", *(f"{task.replace('_', ' ')}\naccuracy" for task in record_files.TASKS)}
    assert not rows.loc[0].str.endswith("*").any()  # the unsteered model does not differ from itself
    assert rows.loc[1, "piqa\naccuracy"] == suite_tables.value_with_interval(
        table.frame.loc[1], "capability.piqa.accuracy"
    )
    different = table.frame.loc[1].copy()
    different["capability.piqa.accuracy.p_holm"] = 0.04
    assert suite_tables.value_with_interval(different, "capability.piqa.accuracy").endswith("*")
    different["capability.piqa.accuracy.p_holm"] = 0.05
    assert not suite_tables.value_with_interval(different, "capability.piqa.accuracy").endswith("*")


def test_a_scorer_that_picked_a_parts_texts_gets_no_mark():
    own = {"pairs": 9, "scorer": "vader", "second.pairs": {"scorer": "lexicon"}, "harmful": {"scorer": "detoxify"}}
    picked = Scorers.used((), LearntFrom.from_json(own), None).picked
    for scorer, mark in (("vader", False), ("lexicon", False), ("detoxify", False), ("toxic_comment", True)):
        metric = f"toxigen.{scorer}.toxic_share"
        row = pd.Series({metric: 0.2, f"{metric}.p_holm": 0.01, "not_independent": picked.replace(", ", "; ")})
        assert suite_tables.differs(row, metric) == mark
    assert Scorers.used((), None, None).picked is None


def test_latex_has_each_suite_with_its_rows_and_intervals(table):
    text = latex_suites.document([table])
    captions = re.findall(r"\\caption\{(.*?)\.\}", text)
    assert sorted(captions) == [
        "Capability; tiny; n = 100", "Qa; tiny; n = 2", "Rtp challenging; tiny; n = 4", "Toxigen; tiny; n = 4",
        "Wiki; tiny; n = 3",
    ]  # fmt: skip
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert {"tab:steering-1-toxigen", "tab:steering-1-rtp-challenging"} < set(labels)
    (toxigen,) = (part for part in text.split(r"\begin{table}") if "Toxigen" in part)
    assert r"\steername{CAA~\cite{panickssery2023caa}}".partition("~")[0] in toxigen
    assert r"\steerinterval{$0.25$}{$[0.05, 0.70]$}" in toxigen and "$0.50$" in toxigen
    assert r"95\% intervals" in toxigen and "differs from unsteered" not in toxigen


def test_latex_prints_before_it_has_too_many_tables(table, monkeypatch):
    monkeypatch.setattr(latex_suites, "FLOATS", 2)
    text = latex_suites.document([table])
    assert [part.count(r"\begin{table") for part in text.split(r"\clearpage")] == [2, 2, 1]
    assert r"\begin{table" not in latex_suites.document([])


def test_a_long_title_of_a_metric_takes_several_lines():
    head = latex_suites.head("my_suite.profanity_check.share_of_texts_that_break")
    assert head.latex.count(r"\\") == 3 and head.height == 4 * latex_layout.LINE
    assert latex_suites.head("ab.accuracy").latex == "accuracy"
