"""A scorer that tuned a row, or picked what the row learnt from, makes no claim about it: no star, no letter."""

import re

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard import build, columns, formatting, latex
from bench.leaderboard.frame import Table, tables
from bench.leaderboard.ranking import NOT_INDEPENDENT
from bench.records.record import Record
from bench.records.table import read_records
from bench.report import page
from tests.record_files import tuning, write

METRIC = "expected_maximum_toxicity_k5"
LEVEL = np.linspace(0.3, 0.9, 40)
FROM_A_FILE = {"pairs": 9, "sources": [{"name": "pairs.jsonl", "source": "file", "fingerprint": "0" * 12}]}


def only(results) -> Table:
    (table,) = tables(read_records(results / "runs")[0])
    return table


def texts(results, method, times=1.0, scorers=("lexicon",), **options) -> None:
    """Toxicity so many times the unsteered model's, by each of the scorers."""
    values = {f"{name}.{METRIC}": times * LEVEL for name in scorers}
    write(results, "rtp", method, values, scorers={"report": list(scorers)}, **{"data": None, **options})


def tuned_by(scorer) -> dict:
    return {"tuning": tuning([(4.0, 1.0, 0.5)], 4.0, scorer=scorer)}


CHOSEN = {
    "tuned": tuned_by("lexicon"),
    "pairs": {"data": {"pairs": 9, "scorer": "lexicon"}},
    "other texts": {"data": {"harmful": {"texts": 9, "scorer": "lexicon"}, "sources": []}},
}


@pytest.mark.parametrize("how", CHOSEN)
def test_a_scorer_claims_nothing_of_a_row_that_it_chose_for(tmp_path, how):
    texts(tmp_path, "unsteered")
    for seed in range(3):
        texts(tmp_path, "random_direction", 1.01, fit_seed=seed)
    texts(tmp_path, "caa", 0.5, **CHOSEN[how])
    texts(tmp_path, "detox", 0.6, data=FROM_A_FILE)
    table = only(tmp_path)
    frame = table.frame.set_index("method")
    assert table.aims.headline == f"rtp.lexicon.{METRIC}" and frame.loc["caa", f"{table.aims.headline}.p_holm"] < 0.01
    assert frame.loc[["caa", "detox"], "verdict"].tolist() == [NOT_INDEPENDENT, "better"]
    assert frame.loc[["unsteered", "caa", "detox"], "group"].tolist() == ["b", "ab", "a"]
    shown = formatting.readable(table).set_index("method")
    assert shown.loc["detox", "change"].endswith("*") and shown.loc["detox", "vs\ncontrol"].endswith("*")
    assert "*" not in "".join(shown.loc["caa"]) and "*" not in "".join(shown.loc["random direction (3 fits)"])
    lines = [line for line in latex.tabular(table).splitlines() if line.count("&") > 3]
    (caa,) = (line for line in lines if r"\steername{CAA" in line)
    (detox,) = (line for line in lines if r"\steername{DeTox" in line)
    assert "{*}" in detox and "{*}" not in caa
    notes = " ".join(formatting.notes(table))
    assert f"{table.aims.headline} supports no claim about caa:" in notes and "No row differs" not in notes
    assert f"{NOT_INDEPENDENT}: CAA" in page.verdict(table) and "better: DeTox (ProFS)" in page.verdict(table)


def test_a_scorer_that_chose_for_every_row_gives_no_finding(tmp_path):
    texts(tmp_path, "unsteered")
    for method, times in (("caa", 0.5), ("detox", 0.9)):
        texts(tmp_path, method, times, **CHOSEN["tuned"])
    table = only(tmp_path)
    assert table.frame["verdict"].dropna().tolist() == [NOT_INDEPENDENT] * 2
    assert table.frame["group"].tolist() == ["a"] * 3
    notes = " ".join(formatting.notes(table))
    assert "no claim about caa, detox:" in notes and "No row differs" not in notes
    assert "Warning: lexicon reports and also tuned the strengths, so its numbers are optimistic" in " ".join(
        formatting.heading(table)
    )


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, "profanity_check"),  # as the records name them
        (tuned_by("profanity_check"), "lexicon"),
        ({"data": {"pairs": 9, "scorer": "profanity_check"}}, "lexicon"),
        (tuned_by("profanity_check") | {"data": {"pairs": 9, "scorer": "lexicon"}}, "profanity_check"),  # both chose
        (tuned_by("elsewhere"), "profanity_check"),
    ],
)
def test_a_scorer_that_chose_nothing_comes_first(tmp_path, options, first):
    both = ("profanity_check", "lexicon")
    texts(tmp_path, "unsteered", scorers=both)
    texts(tmp_path, "caa", 0.5, both, **options)
    texts(tmp_path, "detox", 0.6, both)
    table = only(tmp_path)
    assert (
        table.aims.headline == f"rtp.{first}.{METRIC}"
        and table.aims.scorer == table.aims.judge == table.aims.reported[0] == first
    )
    assert table.frame["scorers_report"].unique().tolist() == ["; ".join(table.aims.reported)]
    other = next(name for name in both if name != first)
    assert f"by\n{other}" in formatting.readable(table)


def test_of_a_headline_that_is_no_toxicity_its_own_scorer_counts(tmp_path):
    """vader tuned caa for sentiment; lexicon, which judges the toxicity beside it, chose nothing but detox's pairs."""
    aim = {"suite": "sentiment", "objective": "neg_to_pos", "direction": "maximize", "gain": "difference"}
    found = tuned_by("vader")["tuning"] | aim | {"baseline": {"value": 0.5}, "trials": [{"strength": 4.0, "gain": 0.2}]}
    rows = {"unsteered": {}, "caa": {"tuning": found}, "detox": {"data": {"pairs": 9, "scorer": "lexicon"}}}
    for method, options in rows.items():
        texts(tmp_path, method, 0.5 if options else 1.0, **options)
        happy = {"vader.neg_to_pos": LEVEL * (0.2 if options else 1.0)}
        write(tmp_path, "sentiment", method, happy, scorers={"report": ["vader"]}, **{"data": None, **options})
    table = only(tmp_path)
    assert (
        table.aims.headline == "sentiment.vader.neg_to_pos"
        and table.aims.judge == "vader"
        and table.aims.scorer == "lexicon"
    )
    frame = table.frame.set_index("method")
    assert frame.loc[["caa", "detox"], "verdict"].tolist() == [NOT_INDEPENDENT, "better"]


def test_a_metric_without_scorer_may_judge_its_own_tuning(tmp_path):
    aim = {"scorer": None, "suite": "ab", "objective": "matching_probability", "direction": "minimize"}
    found = tuned_by("x")["tuning"] | aim | {"baseline": {"value": 0.5}, "trials": [{"strength": 4.0, "gain": 0.2}]}
    for method, times, options in (("unsteered", 1.0, {}), ("caa", 0.5, {"tuning": found})):
        write(tmp_path, "ab", method, {"matching_probability": times * LEVEL}, **{"data": None, **options})
    table = only(tmp_path)
    assert table.aims.judge is None and table.frame.set_index("method").loc["caa", "verdict"] == "better"


SCORERS = ("lexicon", "profanity_check", "vader")


@pytest.mark.parametrize("seed", range(6))
def test_no_star_by_a_scorer_that_chose_and_letters_agree(tmp_path, seed):
    """Of tables in which anything was chosen by anyone."""
    generator = np.random.default_rng(seed)
    reported = [str(one) for one in generator.choice(SCORERS, size=generator.integers(1, 4), replace=False)]

    def noisy(times):
        return {f"{name}.{METRIC}": np.clip(times * LEVEL + generator.normal(0, 0.1, 40), 0, 1) for name in reported}

    chosen: dict[str, set[str]] = {}
    for method in ("unsteered", "random_direction", "caa", "detox", "act_add", "probe_rows"):
        options: dict = {"data": None}
        if method not in ("unsteered", "random_direction") and generator.random() < 0.6:
            options["data"] = {"pairs": 9, "scorer": str(generator.choice(SCORERS))}
        if method != "unsteered" and generator.random() < 0.6:
            options |= tuned_by(str(generator.choice(SCORERS)))
        by = options.get("tuning", {}).get("scorer"), (options["data"] or {}).get("scorer")
        chosen[method] = {name for name in by if name}
        times = 1.0 if method == "unsteered" else generator.choice([1.0, 0.9, 0.6])
        write(tmp_path, "rtp", method, noisy(times), scorers={"report": reported}, **options)
    table = only(tmp_path)
    judge, frame = table.aims.judge, table.frame
    anyone = set().union(*chosen.values())
    assert judge not in anyone or set(reported) <= anyone, "one that chose nothing would come first"
    (base,) = frame.loc[frame["method"] == "unsteered", "group"]
    shown = formatting.readable(table)
    for i, row in frame.iterrows():
        stars = sum(cell.count("*") for cell in shown.loc[i])
        if judge in chosen[row["method"]] or row["method"] in ("unsteered", "random_direction"):
            assert stars == 0, row["method"]
        if row["method"] == "random_direction":
            assert pd.isna(row["group"])
        elif row["method"] != "unsteered":
            assert bool(columns.starred(row)) == (not set(row["group"]) & set(base)), row["method"]


def test_the_files_say_it_too(tmp_path):
    texts(tmp_path, "unsteered")
    texts(tmp_path, "caa", 0.5, **CHOSEN["tuned"])
    texts(tmp_path, "detox", 0.6, data=FROM_A_FILE)
    built = build.rebuild(tmp_path)
    found = pd.read_csv(built.tidy)
    verdicts = found[found["metric"] == "verdict"].set_index("method")["text"]
    assert verdicts.to_dict() == {"caa": NOT_INDEPENDENT, "detox": "better"}
    html = page.rebuild(tmp_path).path.read_text()
    assert re.search(rf"{NOT_INDEPENDENT}, p &lt;0\.001", html) and f"{NOT_INDEPENDENT}: CAA" in html


PARTS = {"lexicon": ["a"], "words": ["b"], "mean_of": ["a", "b", "lexicon", "words"], "alias": ["a"]}
"""What scorers judge by: a mean has the names of its parts, and `alias` is the lexicon under another name."""


@pytest.mark.parametrize(("judge", "chose"), [("mean_of", "lexicon"), ("lexicon", "mean_of"), ("alias", "lexicon")])
def test_a_scorer_that_shares_a_network_is_not_independent(tmp_path, judge, chose):
    scorers = {"scorers": {"report": [judge, "words"], "networks": PARTS}}
    values = {f"{name}.{METRIC}": LEVEL for name in (judge, "words")}
    write(tmp_path, "rtp", "unsteered", values, data=None, **scorers)
    halved = {name: 0.5 * one for name, one in values.items()}
    write(tmp_path, "rtp", "caa", halved, data=None, **scorers, **tuned_by(chose))
    table = only(tmp_path)
    told = set(table.frame.set_index("method").loc["caa", "not_independent"].split("; "))
    assert {judge, chose} <= told and ("words" in told) == (chose == "mean_of")
    assert table.frame["verdict"].dropna().tolist() == ["better" if chose != "mean_of" else NOT_INDEPENDENT]
    assert table.aims.headline == f"rtp.{judge if chose == 'mean_of' else 'words'}.{METRIC}"


def test_many_rows_do_not_read_each_others_scorers(tmp_path, monkeypatch):
    texts(tmp_path, "unsteered")
    for i in range(30):
        texts(tmp_path, "caa", 0.5, strength=1.0 + i, **CHOSEN["tuned"])
    asked = []
    judges = Record.judges.fget
    monkeypatch.setattr(Record, "judges", property(lambda self: asked.append(self) or judges(self)))
    build.rebuild(tmp_path)
    records = len(list((tmp_path / "runs/records").iterdir()))
    assert records >= 31 and len(asked) <= 4 * records
