"""One table of columns: every file that shows a leaderboard takes titles and formats from it."""

import pandas as pd
import pytest

from bench.leaderboard import build, columns, formatting, latex
from bench.leaderboard.columns import COLUMNS, Column
from bench.leaderboard.frame import tables
from bench.leaderboard.meanings import meaning
from bench.records.table import read_records
from bench.report.columns import columns as of_page
from tests.record_files import FORESEEN, cell, world


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    results = tmp_path_factory.mktemp("columns")
    world(results)
    return tables(read_records(results / "runs")[0])[0]


def test_every_column_of_the_csv_is_described(table):
    known = {one.name for one in COLUMNS}
    shown = [str(name) for name in build.leaderboard([table]) if "." not in str(name)]
    interval = {f"{name}{end}" for name in known for end in ("_low", "_high")}
    assert [name for name in shown if name not in known | interval] == []
    assert known - set(shown) == {"notes"}  # in words what other columns say
    assert all(one.about.endswith(".") for one in COLUMNS) and len(known) == len(COLUMNS)


def test_titles_stand_once_in_each_place(table):
    for audience in ("text", "latex", "page"):
        titles = [title for one in table.columns if (title := getattr(one, audience))]
        assert len(titles) == len(set(titles)) > 5, audience


def test_each_output_shows_the_columns_titled_for_it(table):
    text = formatting.readable(table)
    assert list(text.columns) == [
        "#", "method", "strength", "toxicity\nk5", "change", "group", "by\nprofanity_check", "ppl\nratio",
        "accuracy\nchange", "answers\nnats", "joint", "vs\ncontrol", "dev-test", "pairs", "fit s", "speed", "notes",
    ]  # fmt: skip
    head = next(line for line in latex.tabular(table).splitlines() if line.strip().startswith("method &"))
    assert head.strip() == (
        r"method & strength & toxicity $\downarrow$ & group & reduction $\uparrow$ & ppl.\ ratio $\downarrow$ & "
        r"accuracy $\uparrow$ & answers $\uparrow$ & joint $\uparrow$ \\"
    )
    page = [one for one in of_page(table) if one.part == columns.MAIN]
    assert [one.title for one in page][:7] == [
        "rank",
        "strength",
        "toxicity k5",
        "change",
        "p (Holm)",
        "group",
        "by profanity_check",
    ]
    assert [one.title for one in of_page(table) if one.part == columns.COST] == ["fit s", "fit memory", "artefact"]


def test_what_fits_foresee_is_on_the_page_alone(table):
    rows = table.frame.set_index("method")
    for name, title in (("d_prime", "d′ of pairs"), ("mean_cosine", "cosine of pairs")):
        (column,) = (one for one in of_page(table) if one.title == title)
        assert column.part == columns.WHAT
        assert {method: rows.loc[method, name] for method in FORESEEN} == {
            method: facts[name] for method, facts in FORESEEN.items()
        }
        assert rows.drop(index=list(FORESEEN))[name].isna().all()


def test_a_fact_is_the_mean_over_the_fits_and_only_a_number(tmp_path):
    fit = {"seconds": 1.0, "peak_memory_bytes": None, "artefact_bytes": 8}
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for seed, facts in enumerate(
        ({"d_prime": 1.0, "mean_cosine": [0.5, 0.1]}, {"d_prime": 2.0}, {"d_prime": True}, {})
    ):
        cell(tmp_path, "detox", 0.5, 0.0, 1.0, n=8, fit_seed=seed, fit=fit | {"facts": facts})
    (found,) = tables(read_records(tmp_path / "runs")[0])
    row = found.frame.set_index("method").loc["detox"]
    assert row["fits"] == 4 and row["d_prime"] == 1.5 and pd.isna(row["mean_cosine"])


def test_a_headline_that_is_no_toxicity_is_shown_too(table):
    frame = table.frame
    found = columns.of_table(frame, "fluency.perplexity", [], ["fluency.perplexity"], ["fluency.perplexity"])
    assert {"fluency perplexity", "change", "group"} <= {one.text for one in found}
    assert "group" in {one.latex for one in found}
    assert {"fluency perplexity", "change", "group"} <= {one.page for one in found}


def test_a_cell_in_text_and_on_the_page():
    row = pd.Series({"joint": 0.456, "joint_low": 0.4, "joint_high": 0.6})
    plain = Column(name="joint", about="", text="joint")
    assert plain.as_text(row) == "0.46" and plain.as_cell(row) == ("0.46", "[0.40, 0.60]", 0.456)
    assert Column(name="joint", about="", text="joint", with_half=True).as_text(row) == "0.46 ±0.10"
    missing = pd.Series({"joint": None})
    assert plain.as_text(missing) == columns.NONE and plain.as_cell(missing) == (columns.NONE, "", None)


@pytest.mark.parametrize("better, title", [(True, r"x $\uparrow$"), (False, r"x $\downarrow$"), (None, "x")])
def test_the_arrow_in_latex_shows_which_way_is_better(better, title):
    assert Column(name="x", about="", latex="x", higher_is_better=better).latex_title == title


@pytest.mark.parametrize("low, high, told", [(1, 1, "1"), (1, 3, "1\n(1..3)"), (None, None, "1")])
def test_a_rank_with_the_ranks_of_most_resamples(low, high, told):
    row = pd.Series({"rank": 1, "rank_low": low, "rank_high": high}, dtype=object)
    assert columns.place(row) == told


def test_kl_follows_perplexity_where_it_was_measured(table):
    assert "KL" not in [one.text for one in table.columns]
    found = columns.of_table(
        table.frame, table.aims.headline, table.aims.toxicity, ["kl.mean_kl", *table.metrics], table.aims.tested
    )
    titles = [one.text for one in found if one.text]
    assert titles[titles.index("ppl\nratio") + 1] == "KL"
    (shown,) = (one for one in found if one.text == "KL")
    assert shown.as_text(pd.Series({"kl.mean_kl": 0.0836})) == "0.084"
    assert [one.page for one in found].count("kl mean kl") == 1


def speeds(results):
    (found,) = tables(read_records(results / "runs")[0])
    return list(formatting.readable(found)["speed"])


def test_the_speed_of_fits_has_the_mean_of_their_intervals(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    for seed, (low, speed, high) in enumerate([(0.9, 0.97, 1.0), (0.94, 0.99, 1.04)]):
        cost = {"relative_speed": speed, "relative_speed_low": low, "relative_speed_high": high}
        cell(tmp_path, "caa", 0.5, 0.1, 1.0, fit_seed=seed, cost=cost)
    assert speeds(tmp_path) == ["–", "0.98 [0.92, 1.02]"]


def test_a_speed_without_an_interval_as_older_versions_kept_it(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    cell(tmp_path, "caa", 0.5, 0.1, 1.0)
    assert speeds(tmp_path) == ["–", "0.97"]


def test_a_metrics_meaning_is_told_where_it_is_known():
    assert meaning("fluency.short_share") == "share of texts that the model ended before max_new_tokens"
    assert meaning("capability.piqa.gold_choice_logprob").startswith("log-probability of the right answer among")
    assert meaning("toxigen.toxic_comment.toxic_share.latino") == "share of texts that are toxic"
    assert meaning("rtp.lexicon.expected_maximum_toxicity_k5_n120").startswith("the highest toxicity")
    assert meaning("letters.share_of_e") == "" == meaning("accuracy")
