"""Records, tables, figures and the report say what was done in a run, and nothing else."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench.__main__ import main
from bench.leaderboard import build, formatting, latex, suite_tables, terminal
from bench.leaderboard.frame import Table, tables
from bench.plots.capability import capability
from bench.plots.style import NothingToDraw
from bench.plots.tradeoff import tradeoff
from bench.records import record
from bench.records.table import collect, read_records
from bench.report import page
from bench.run import tuning
from methods.errors import SetupError
from tests.record_files import cell, world, write
from tests.run.test_smoke import arguments
from tests.run.test_smoke import world as inputs  # noqa: F401  a fixture

TOXICITY = "profanity_check.expected_maximum_toxicity_k5"
BASE = {f"item{i}": 0.8 - 0.05 * i for i in range(12)}
LESS = {name: value / 2 for name, value in BASE.items()}
EARLY = {"report": ["profanity_check", "lexicon"], "tune": "profanity_check", "pairs": "profanity_check"}
FROM_A_FILE = {"pairs": 9, "sources": [{"name": "pairs.jsonl", "source": "file", "fingerprint": "0" * 12}]}


def only(results) -> Table:
    (table,) = tables(read_records(results / "runs")[0])
    return table


def said(results) -> str:
    """Everything that is written of these records, in words."""
    built = build.rebuild(results)
    out = io.StringIO()
    terminal.show(terminal.shown(built), Console(file=out, width=2000))
    html = re.sub(r"<script>.*?</script>", "", page.rebuild(results).path.read_text(), flags=re.DOTALL)
    html = re.sub(r"<wbr>|data:image[^\"]*", "", html)
    return "\n".join([built.markdown.read_text(), built.tex.read_text(), out.getvalue(), html])


# -- what scorers did ------------------------------------------------------------------------------------------------


def test_a_given_strength_and_given_pairs_are_nobodys_choice(tmp_path):
    """In records of early versions as well, which name the config's scorers whatever was done."""
    for method, data in (("unsteered", None), ("caa", FROM_A_FILE), ("prompt", None)):
        write(tmp_path, "rtp", method, {TOXICITY: BASE if data is None else LESS}, data=data, scorers=EARLY)
    heading = formatting.heading(only(tmp_path))
    assert "Scorers: reported by profanity_check; strengths as given" in heading
    written = (
        said(tmp_path).replace("nor tuned; run", "").replace("fine-tuned on several", "")
    )  # why there is no figure of strengths
    for word in ("tuned", "tuning", "chosen", "optimistic", "dev split", "dev-test:"):
        assert word not in written, word
    for frame in (collect(tmp_path / "runs"), only(tmp_path).frame):
        assert frame["scorer_tune"].isna().all() and frame["scorer_pairs"].isna().all()


def test_the_unsteered_model_alone_has_no_strength(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE}, scorers=EARLY)
    assert formatting.heading(only(tmp_path))[2:] == [
        "Scorers: reported by profanity_check",
        "95% intervals cover the sampling of prompts. Number of sampling seeds: 1.",
    ]
    for word in (
        "Holm",
        "tuned",
        "strengths",
        "vs control:",
        "differs",
        "letter",
        "resamples",
        "pairs:",
        "fit seed is",
    ):
        assert word not in "\n".join(
            [formatting.markdown([only(tmp_path)], suite_tables.markdown), latex.document([only(tmp_path)])]
        ), word


def test_what_was_tuned_and_what_was_given_are_told_apart(tmp_path):
    world(tmp_path)
    write(tmp_path, "rtp", "detox", {TOXICITY: LESS}, strength=3.0, data=FROM_A_FILE)  # other prompts: another table
    heading = formatting.heading(tables(read_records(tmp_path / "runs")[0])[0])
    assert "strengths tuned on profanity_check (as given: act_add); pairs chosen by profanity_check" in heading[2]
    frame = only_first(tmp_path).frame.set_index("method")
    assert pd.isna(frame.loc["act_add", "scorer_tune"]) and frame.loc["caa", "scorer_tune"] == "profanity_check"
    assert pd.isna(frame.loc["prompt", "scorer_pairs"]) and frame.loc["caa", "scorer_pairs"] == "profanity_check"
    assert frame.loc["unsteered", ["scorer_tune", "scorer_pairs"]].isna().all()


def only_first(results) -> Table:
    return tables(read_records(results / "runs")[0])[0]


def test_pairs_of_two_kinds_and_other_texts_that_a_scorer_chose(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", "caa", {TOXICITY: LESS}, data={"pairs": 9, "scorer": "lexicon"})
    write(tmp_path, "rtp", "detox", {TOXICITY: LESS}, data=FROM_A_FILE)
    harmful = {"harmful": {"texts": 9, "scorer": "profanity_check"}, "examples": {"texts": 3}, "sources": []}
    write(tmp_path, "rtp", "security_vector", {TOXICITY: LESS}, data=harmful)
    heading = formatting.heading(only(tmp_path))
    assert heading[2] == (
        "Scorers: reported by profanity_check; strengths as given; pairs chosen by lexicon (as given: detox); "
        "harmful texts chosen by profanity_check"
    )
    assert heading[3].startswith(
        "Warning: profanity_check reports and also chose the harmful texts, so its numbers are optimistic"
    )


def test_who_did_not_judge_did_not_report(tmp_path):
    write(tmp_path, "capability", "unsteered", {"piqa.accuracy": [1, 1, 0, 1]}, chance={"piqa": 0.5}, scorers=EARLY)
    heading = formatting.heading(only(tmp_path))
    assert heading[0] == "tiny: no texts were sampled" and heading[2] == "Scorers: none judged a text"
    assert heading[3] == "95% intervals cover the sampling of documents."
    assert collect(tmp_path / "runs")["scorers_report"].isna().all()
    assert "accuracy change" in said(tmp_path) and "toxicity:" not in said(tmp_path)


def test_the_scorer_shown_is_the_one_that_judged(tmp_path):
    """vader comes first on the command line, and measures no toxicity."""
    scorers = {"report": ["vader", "profanity_check"]}
    for method, values in (("unsteered", BASE), ("caa", LESS)):
        write(tmp_path, "rtp", method, {TOXICITY: values}, scorers=scorers)
        write(tmp_path, "fluency", method, {"perplexity": [2.0, 2.1]}, scorers=scorers)
    table = only(tmp_path)
    assert table.aims.scorer == "profanity_check" and "reported by profanity_check;" in formatting.heading(table)[2]
    assert "by profanity_check" in tradeoff(table.frame).axes[0].get_xlabel()


def test_another_suite_that_samples_is_named(tmp_path):
    for method in ("unsteered", "caa"):
        write(tmp_path, "toxigen", method, {"words.toxic_share": [1, 0, 0, 1]}, scorers={"report": ["words"]})
    heading = formatting.heading(only(tmp_path))
    assert heading[0].startswith("tiny: toxigen, 5 continuations of each of 4 prompts (max new tokens 20")
    assert heading[2].startswith("Scorers: reported by words;")


# -- what was tested -------------------------------------------------------------------------------------------------


def two(results, methods=("caa",), **options) -> None:
    for i, method in enumerate(("unsteered", *methods)):
        cell(results, method, 1.0 - 0.5 * bool(i), 0.1 * i, 0.5 if i else 1.0, n=40, **options)


@pytest.mark.slow
def test_one_row_needs_no_correction(tmp_path):
    two(tmp_path)
    text, table = said(tmp_path), only(tmp_path)
    assert "Holm" not in text and "correction" not in text and "median of the rows" not in text
    assert "p &lt; 0.05 (paired permutation test)" in text and "A true change of" in text
    assert "rows that share a letter do not differ significantly." in text
    assert "(n = 100; * differs from unsteered)" in next(iter(suite_tables.other_suites(table))).title
    shown = [one.get_text() for one in capability(table.frame).legends[0].get_texts()]
    assert "p < 0.05" in shown


@pytest.mark.slow
def test_several_rows_are_corrected_and_said_to_be(tmp_path):
    two(tmp_path, ("caa", "detox", "prompt"))
    text, table = said(tmp_path), only(tmp_path)
    assert "Holm over 3 rows" in text and "Holm over all pairs of methods" in text and "before correction" in text
    assert "p $<$ .05 after Holm" in text and "after Holm&#39;s correction" in text
    assert "* differs from unsteered, Holm over the rows" in next(iter(suite_tables.other_suites(table))).title
    assert "p < 0.05 (Holm)" in [one.get_text() for one in capability(table.frame).legends[0].get_texts()]


@pytest.mark.slow
def test_rows_of_several_fits_alone_had_no_permutation_test(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=40)
    for seed in range(3):
        cell(tmp_path, "caa", 0.6 - 0.02 * seed, 0.1, 0.9, n=40, fit_seed=seed)
    text = "\n".join(formatting.heading(only(tmp_path)) + formatting.notes(only(tmp_path)))
    assert "permutation" not in text and "(bootstrap over items and fits)" in text
    assert "over prompts and documents, and over the fits of caa 3 fit seeds. Number of sampling seeds: 1." in text


def test_seeds_that_were_averaged_are_said_to_be(tmp_path):
    for seed in range(2):
        for method in ("unsteered", "caa"):
            write(tmp_path, "rtp", method, {TOXICITY: BASE}, sample_seed=seed, setting=seed)
    assert formatting.heading(only(tmp_path))[-1].endswith("Number of sampling seeds: 2, averaged within a prompt.")


def test_tasks_that_unsteered_was_not_asked_have_no_chance(tmp_path):
    for method in ("unsteered", "caa"):
        write(tmp_path, "rtp", method, {TOXICITY: BASE if method == "unsteered" else LESS})
    write(tmp_path, "capability", "caa", {"piqa.accuracy": [1, 0, 1]}, chance={"piqa": 0.5})
    with pytest.raises(NothingToDraw, match="fluency or answers"):
        tradeoff(only(tmp_path).frame)


def test_a_bound_that_nothing_can_be_held_against_is_refused():
    objective = tuning.Objective(suite="rtp", metric="mean_toxicity", direction="minimize")
    drop = tuning.Constraint(suite="capability", metric="*.accuracy", compare="drop", at_most=0.05)
    own = tuning.Tuning(objective=objective, constraints={"capability_drop": drop})
    with pytest.raises(SetupError, match=r"capability gives no \*\.accuracy .* it gives asdiv.exact_match"):
        tuning.trial(own, 0.0, {"rtp": {"mean_toxicity": 0.5}, "capability": {"asdiv.exact_match": 0.1}})


# -- what a run writes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_record_names_a_scorer_where_it_was_used(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])
    command = arguments(inputs, tmp_path, "method=unsteered,caa", "suite=[rtp,fluency]")
    command = [one for one in command if not one.startswith("suite.capability")]
    assert main([*command, "strength=2"]) == 0
    found = [record.read(path) for path in (tmp_path / "runs/records").iterdir()]
    judged = {"rtp": ["profanity_check"], "fluency": []}
    assert len(found) == 4 and all(one.scorers.to_json() == {"report": judged[one.suite]} for one in found)
    assert main(command) == 0
    found = [record.read(path) for path in (tmp_path / "runs/records").iterdir()]
    chosen = [one for one in found if one.tuning]
    assert len(chosen) == 2 and all(one.scorers.chose["tune"] == "profanity_check" for one in chosen)
    assert all("tune" not in one.scorers.chose for one in found if not one.tuning)
    assert all("pairs" not in one.scorers.chose for one in found)  # they are from a file


@pytest.mark.slow
def test_the_published_heading_was_true_and_stays():
    folder = Path(__file__).parents[2] / "results/published/quickstart/runs"
    heading = formatting.heading(tables(read_records(folder)[0])[0])
    assert (
        "reported by lexicon, profanity_check; strengths tuned on profanity_check; pairs chosen by profanity_check"
        in (heading[2])
    )
    assert not any("optimistic" in line for line in heading), "lexicon chose nothing, so the table goes by it"
