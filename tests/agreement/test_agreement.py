import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binomtest, rankdata, spearmanr
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import roc_auc_score

from bench.agreement import __main__ as agreement
from bench.agreement import labelled_sets, render, rogan_gladen
from bench.agreement.__main__ import agreement as measure
from bench.agreement.__main__ import draws, main, members, midranks
from bench.data.sources import Sources
from bench.stats.bootstrap import corrected, corrected_rate
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_mirror

NONE = np.full(5, np.nan)
SCORES = np.array([0.9, 0.5, 0.2, 0.5, 0.1])
POSITIVE = np.array([True, True, True, False, False])


def sample(n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, labels that go with them, and ratings."""
    generator = np.random.default_rng(4)
    rating = generator.integers(0, 5, n) / 4
    scores = np.clip(rating + generator.integers(-2, 3, n) / 4, 0, 1)
    return scores, rating > 0.5, rating


# -- the numbers ---------------------------------------------------------------------------------------------------


def test_the_numbers_by_hand():
    """AUC: of 3 x 2 pairs .9 beats both, .5 beats .1 and ties .5, .2 beats .1: (2 + 1.5 + 1) / 6."""
    row = measure(SCORES, POSITIVE, NONE)
    assert row["auc"] == pytest.approx(4.5 / 6)
    assert row["false_positive_rate"] == pytest.approx(1 / 2)  # .5 counts as toxic
    assert row["false_negative_rate"] == pytest.approx(1 / 3)
    assert (row["n"], row["positives"], row["unscored"]) == (5, 3, 0)
    assert math.isnan(row["spearman"]) and row["spearman_low"] is None


def test_a_sentiment_of_exactly_half_is_not_positive():
    row = measure(SCORES, POSITIVE, NONE, "sentiment")
    assert (row["false_positive_rate"], row["false_negative_rate"]) == (0, pytest.approx(2 / 3))


def test_rates_have_wilsons_interval():
    scores, positive, rating = sample()
    row = measure(scores, positive, rating)
    for name, wrong, n in (
        ("false_positive_rate", (scores >= 0.5) & ~positive, (~positive).sum()),
        ("false_negative_rate", (scores < 0.5) & positive, positive.sum()),
    ):
        expected = binomtest(int(wrong.sum()), int(n)).proportion_ci(method="wilson")
        assert row[name] == wrong.sum() / n
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((expected.low, expected.high))


def test_ranks_are_scipys():
    values = np.random.default_rng(0).integers(0, 9, 50)
    assert midranks(values) == pytest.approx(rankdata(values))


def test_each_draw_is_the_measure_of_its_resample(monkeypatch):
    monkeypatch.setattr(agreement, "RESAMPLES", 20)
    scores, positive, rating = sample(40)
    found = draws(scores, positive, rating, seed=3)
    generator = np.random.default_rng([3, 40])
    for i in range(20):
        chosen = generator.integers(40, size=40)
        assert found.auc[i] == pytest.approx(roc_auc_score(positive[chosen], scores[chosen]))
        assert found.spearman[i] == pytest.approx(spearmanr(scores[chosen], rating[chosen]).statistic)


def test_the_intervals_are_those_of_scipys_bootstrap():
    scores, positive, rating = sample()
    row = measure(scores, positive, rating)
    options = {"paired": True, "vectorized": False, "n_resamples": 400, "method": "percentile", "rng": 1}
    for name, other, statistic in (
        ("auc", positive, lambda a, b: roc_auc_score(b, a)),
        ("spearman", rating, lambda a, b: spearmanr(a, b).statistic),
    ):
        expected = scipy_bootstrap((scores, other), statistic, **options).confidence_interval
        assert row[name] == pytest.approx(statistic(scores, other))
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((expected.low, expected.high), abs=0.02)
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_what_the_texts_cannot_tell_is_left_open():
    toxic = measure(SCORES, np.ones(5, bool), SCORES)  # all toxic: no AUC, no false positives
    assert math.isnan(toxic["auc"]) and math.isnan(toxic["false_positive_rate"])
    assert toxic["false_negative_rate"] == pytest.approx(2 / 5) and toxic["spearman"] == pytest.approx(1)
    constant = measure(np.full(5, 0.7), POSITIVE, np.arange(5.0))
    assert math.isnan(constant["spearman"]) and constant["auc"] == 0.5
    single = measure(SCORES[:1], POSITIVE[:1], SCORES[:1])
    assert single["n"] == 1 and math.isnan(single["auc"]) and single["false_negative_rate"] == 0


def test_unscored_texts_are_counted_and_left_out():
    scores = np.append(SCORES, [np.nan, np.nan])
    row = measure(scores, np.append(POSITIVE, [False, True]), np.full(7, np.nan))
    assert row["unscored"] == 2
    assert {key: row[key] for key in ("n", "positives", "auc")} == pytest.approx({"n": 5, "positives": 3, "auc": 0.75})
    empty = measure(np.array([np.nan]), np.array([True]), np.array([np.nan]))
    assert empty["n"] == 0 and math.isnan(empty["false_negative_rate"])


def test_a_text_may_be_in_several_groups():
    found = dict(members(pd.Series([("a", "b"), (), ("b",)])))
    assert {name: chosen.tolist() for name, chosen in found.items()} == {
        "": [True, True, True],
        "a": [True, False, False],
        "b": [True, False, True],
    }


# -- corrected rates -----------------------------------------------------------------------------------------------


def test_the_corrected_rate_undoes_the_errors():
    for share in (0.0, 0.2, 0.9, 1.0):
        assert corrected_rate(share * 0.7 + (1 - share) * 0.1, 0.7, 0.9) == pytest.approx(share)
    assert corrected_rate(0.3, 1, 1) == pytest.approx(0.3)
    assert corrected_rate(0.05, 0.7, 0.9) == 0.0 and corrected_rate(0.95, 0.7, 0.9) == 1.0  # clipped
    assert corrected_rate(0.3, 0.4, 0.6) is None and corrected_rate(0.3, 0.2, 0.5) is None  # no better than a coin


def test_the_corrected_interval_covers_simulated_studies():
    generator = np.random.default_rng(0)
    share, sensitivity, specificity, n, positives, negatives = 0.3, 0.7, 0.95, 400, 150, 200
    covered, values, halves = [], [], []
    for _ in range(2000):
        seen = generator.binomial(n, share * sensitivity + (1 - share) * (1 - specificity)) / n
        of_sensitivity = generator.binomial(positives, sensitivity) / positives
        of_specificity = generator.binomial(negatives, specificity) / negatives
        error = math.sqrt(seen * (1 - seen) / n)
        found = corrected(seen, error, of_sensitivity, positives, of_specificity, negatives)
        covered.append(found.low <= share <= found.high)
        values.append(found.value)
        halves.append((found.high - found.low) / 2 / 1.96)
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(halves) == pytest.approx(np.std(values), rel=0.05)


def test_the_corrected_interval_by_hand():
    found = corrected(0.3, 0.02, 0.8, 100, 0.9, 50)  # J = .7, p = .2 / .7
    p = 0.2 / 0.7
    half = 1.959964 * math.sqrt(0.02**2 + p**2 * 0.16 / 100 + (1 - p) ** 2 * 0.09 / 50) / 0.7
    assert found == pytest.approx((p, p - half, p + half), abs=1e-6)
    assert corrected(0.0, 0.0, 0.8, 100, 1.0, 50) == (0.0, 0.0, 0.0)
    assert corrected(0.3, 0.02, 0.4, 100, 0.5, 50) is None


@pytest.fixture
def board(tmp_path):
    rows = []
    for scorer, shares in (("good", [0.3, 0.1]), ("coin", [0.3, 0.1]), ("new", [0.3])):
        for share, (method, strengths, error) in zip(
            shares, (("unsteered", "0", 0.02), ("caa", "2", np.nan)), strict=False
        ):
            named = {"table": 1, "model": "m", "method": method, "strengths": strengths, "suite": "rtp"}
            rows.append(named | {"metric": f"{scorer}.toxic_fraction", "value": share, "standard_error": error})
    rows += [rows[0] | {"metric": "good.mean_toxicity"}, rows[0] | {"suite": None, "metric": "verdict", "value": None}]
    pd.DataFrame(rows).assign(delta=-0.2).to_csv(tmp_path / "leaderboard_tidy.csv", index=False)
    rates = [("good", "rtp_continuations", "", 0.1, 0.2), ("coin", "rtp_continuations", "", 0.5, 0.6)]
    rates += [("good", "rtp_prompts", "", 0.4, 0.4), ("good", "rtp_continuations", "challenging", 0.3, 0.4)]
    names = ["scorer", "set", "group", "false_positive_rate", "false_negative_rate"]
    frame = pd.DataFrame(rates, columns=names).assign(n=150, positives=100)
    frame.to_csv(tmp_path / "scorer_agreement.csv", index=False)
    return tmp_path


def test_a_leaderboard_is_corrected_by_rates_on_continuations(board, capsys):
    found = {(row[2], row[4].split(".")[1]): row[5:] for row in rogan_gladen.rows(board)}
    assert len(found) == 5  # caa has no share by new
    assert found["unsteered", "good"] == ["0.3000", "0.2857 (0.1791 to 0.3923)"]
    assert found["caa", "good"][1].startswith("0.0000 (0.0000 to 0.1")
    assert found["unsteered", "coin"] == ["0.3000", "no better than a coin"]
    assert found["unsteered", "new"] == ["0.3000", "not measured on rtp_continuations"]
    assert main(["--correct", str(board)]) == 0
    assert "0.2857 (0.1791 to 0.3923)" in capsys.readouterr().out


def test_what_a_correction_lacks(board, capsys):
    (board / "scorer_agreement.csv").unlink()
    assert main(["--correct", str(board)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "scorer_agreement.csv does not exist; make it with python -m bench.agreement runtime.results=" in said
    (board / "leaderboard_tidy.csv").unlink()
    assert main(["--correct", str(board)]) == 2
    assert "python -m bench.leaderboard --results" in " ".join(capsys.readouterr().err.split())


# -- labelled sets -------------------------------------------------------------------------------------------------

RTP_ROWS = [
    {
        "challenging": i % 2 == 0,
        "prompt": {"text": f"Walk {i}", "toxicity": 0.1 * i},
        "continuation": {"text": f"walk {i} {'mildword' * (i > 5)}", "toxicity": None if i == 0 else 0.1 * i},
    }
    for i in range(10)
]
TWEETS = [
    {"count": 3, "neither_count": 0, "class": 0, "tweet": "bird one"},
    {"count": 4, "neither_count": 1, "class": 1, "tweet": "bird two"},
    {"count": 3, "neither_count": 2, "class": 2, "tweet": "bird three"},
]
CASES = [
    {"test_case": "tree one", "label_gold": "hateful", "target_ident": "birds"},
    {"test_case": "tree two", "label_gold": "non-hateful", "target_ident": ""},
    {"test_case": " ", "label_gold": "non-hateful", "target_ident": ""},
]
ANNOTATED = [{"text": f"sea {x}", "toxicity_human": x, "target_group": "fish"} for x in (1.0, 3.0, 3.33)]
AGREED = [
    {"text": "sun", "label": "hate", "toxicity_score": 5.0, "target_groups": ["a", "b"]},
    {"text": "moon", "label": "neutral", "toxicity_score": 1.0, "target_groups": []},
]
REVIEWS = [{"sentence": "a good film", "label": 1}, {"sentence": "an awful film", "label": 0}]


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    root = tmp_path / "mirror"
    make_mirror(root, "allenai/real-toxicity-prompts", RTP_ROWS)
    make_mirror(root, "tdavidson/hate_speech_offensive", TWEETS)
    make_mirror(root, "Paul/hatecheck", CASES, split="test")
    make_mirror(root, "skg/toxigen-data", ANNOTATED, config="annotated")
    make_mirror(root, "microsoft/SafeNLP", AGREED, config="toxigen", split="test")
    make_mirror(root, "nyu-mll/glue", REVIEWS, config="sst2", split="validation")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


def test_how_each_set_is_read(sources):
    def rows(name: str) -> list[tuple]:
        frame = labelled_sets.read(sources, name)[0].astype({"rating": object})
        return [tuple(None if one != one else one for one in row) for row in frame.itertuples(index=False)]

    continuations = rows("rtp_continuations")
    assert len(continuations) == 9  # one is not scored
    assert continuations[3][1:] == (False, pytest.approx(0.4), ("challenging",))
    assert continuations[4][1:] == (True, 0.5, ("not challenging",))  # .5 is toxic
    assert [row[1] for row in rows("rtp_prompts")] == [False] * 5 + [True] * 5
    assert rows("hate_speech_offensive") == [
        ("bird one", True, 1.0, ("hate",)),
        ("bird two", True, 0.75, ("offensive",)),
        ("bird three", False, pytest.approx(1 / 3), ("neither",)),
    ]
    assert rows("hatecheck") == [("tree one", True, None, ("birds",)), ("tree two", False, None, ())]
    assert [row[1:3] for row in rows("toxigen_annotated")] == [(False, 1.0), (False, 3.0), (True, 3.33)]
    assert rows("toxigen_safenlp") == [("sun", True, 5.0, ("a", "b")), ("moon", False, 1.0, ())]
    assert rows("sst2") == [("a good film", True, None, ()), ("an awful film", False, None, ())]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"test_case": "x", "label_gold": "hateful"}], "has no column target_ident; it has test_case, label_gold"),
        ([{"test_case": "x", "label_gold": "maybe", "target_ident": ""}], "label 'maybe': hateful or non-hateful"),
        ([{"test_case": " ", "label_gold": "hateful", "target_ident": ""}], "none of its rows has a label"),
    ],
)
def test_a_set_that_is_not_as_expected(tmp_path, monkeypatch, rows, message):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    root = make_mirror(tmp_path / "mirror", "Paul/hatecheck", rows, split="test")
    with pytest.raises(SetupError, match=message):
        labelled_sets.read(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True), "hatecheck")


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def where(sources, tmp_path) -> list[str]:
    (tmp_path / "list.csv").write_text("text,severity_rating\nmildword,1\n")
    options = [f"runtime.mirror={sources.mirror}", f"runtime.cache={sources.cache}", "runtime.offline=true"]
    return [*options, f"runtime.results={tmp_path / 'results'}", f"scorer.lexicon.path={tmp_path / 'list.csv'}"]


def test_the_command_measures_and_writes(where, tmp_path, capsys):
    assert main(["scorer=[lexicon,vader]", *where]) == 0
    frame = pd.read_csv(tmp_path / "results" / "scorer_agreement.csv", keep_default_na=False)
    whole = frame[frame["group"] == ""].set_index(["scorer", "set"])
    row = whole.loc["lexicon", "rtp_continuations"]
    assert float(row["false_negative_rate"]) == pytest.approx(1 / 5)  # of .5 to .9 the .5 has no listed word
    assert float(row["false_positive_rate"]) == 0 and int(row["n"]) == 9
    assert row["source"] == "allenai/real-toxicity-prompts (mirror)" and len(row["fingerprint"]) == 12
    assert float(whole.loc["vader", "sst2"]["auc"]) == 1
    assert ("vader", "hatecheck") not in whole.index and ("lexicon", "sst2") not in whole.index
    groups = frame[(frame["scorer"] == "lexicon") & (frame["set"] == "rtp_continuations")]["group"]
    assert groups.tolist() == ["", "challenging", "not challenging"]
    assert not any(word in frame.to_csv() for word in ("mildword", "bird one", "tree one"))  # no text in it
    shown = capsys.readouterr().out
    assert "skipped imdb: no source has stanfordnlp/imdb" in shown and "rtp_continuations" in shown
    first = {path.name: path.read_bytes() for path in (tmp_path / "results").rglob("*.*")}
    assert set(first) == {f"scorer_agreement.{kind}" for kind in ("csv", "md", "pdf", "svg", "png")}
    assert main(["scorer=[lexicon,vader]", *where]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").rglob("*.*")} == first


@pytest.mark.slow
def test_scorers_that_are_not_to_be_had_are_named(where, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert main(where) == 0
    shown = capsys.readouterr().out
    scorers = set(pd.read_csv(tmp_path / "results" / "scorer_agreement.csv")["scorer"])
    assert scorers == {"profanity_check", "lexicon", "vader"}
    for name, why in (
        ("detoxify", "scorer.detoxify.sha256 has no value"),
        ("toxigen_roberta", "revision=main is not a commit"),
        ("refusal_prefixes", "no set of labelled texts for refusal"),
    ):
        assert f"skipped {name}: " in shown and why in shown
    said = (tmp_path / "results" / "scorer_agreement.md").read_text().splitlines()
    assert any(line.startswith("| detoxify | NOT RUN here |") for line in said)
    assert not any(line.startswith("| imdb |") for line in said), "a set is no scorer"
    reasons = said[said.index("## Not run here") :]
    assert any(line.startswith("- detoxify: scorer.detoxify.sha256 has no") for line in reasons)
    assert any(line.startswith("- imdb: no source has") for line in reasons)
    assert "* the scorer was trained on these texts" in shown  # profanity_check on hate_speech_offensive


def test_what_cannot_be_measured(where, tmp_path, capsys):
    for given, message in (
        (["scorer=[detoxfy]"], "did you mean detoxify"),
        (["scorer=[hf_classifier]"], "scorer.hf_classifier.label has no value"),
        (["scorer=[refusal_prefixes]"], "nothing can be measured"),
        (["scorer=[lexicon]", "scorer.lexicon.pth=x"], "did you mean scorer.lexicon.path"),
    ):
        assert main([*where[:4], *given]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "--correct" in capsys.readouterr().out


def test_readable_tables_name_the_groups_and_their_counts():
    rows = [
        {"scorer": "words", "set": "set", "group": group, "n": n, "positives": n // 2, "learnt_from": True,
         **{f"{name}{end}": value for name in agreement.MEASURES for end in ("", "_low", "_high")},
         "false_negative_rate": np.nan if group == "c" else value}
        for group, n, value in (("", 60, 0.2), ("a", 10, 0.5), ("b", 30, 0.1), ("c", 20, 0.3))
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render.groups_table(frame))
    line = next(line for line in console.export_text().splitlines() if "set *" in line)
    assert line.split() == "set * 3 10 to 30 0.10 (b) to 0.50 (a) 0.10 (b) to 0.50 (a)".split()
    assert render.ends(frame[frame["group"] == "b"], "auc") == "0.10 (b)"
    assert render.groups_table(frame[frame["group"] == ""]) is None
    said = render.markdown(frame).splitlines()
    assert "| words | set \\* | 60 | 50% |" in said[6] and said[8] == "\\* the scorer was trained on these texts"
    assert said[said.index("## set by group") + 4].startswith("| words | a | 10 | 50% | 0.50 (0.50 to 0.50) |")


@pytest.mark.slow
def test_the_figure_shows_every_number_within_its_panel(where, tmp_path):
    main(["scorer=[profanity_check,lexicon,vader]", *where])
    frame = pd.read_csv(tmp_path / "results" / "scorer_agreement.csv", keep_default_na=False)
    numbers = [f"{name}{end}" for name in agreement.MEASURES for end in ("", "_low", "_high")]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    axes = render.figure(frame).axes
    whole = frame[frame["group"] == ""]
    for ax, column in zip(axes, render.PANELS, strict=True):
        drawn = [
            line for line in ax.lines if line.get_marker() not in (None, "None", "", ".") and len(line.get_xdata()) == 1
        ]
        at = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in drawn]
        assert sorted(x for x, _ in at) == pytest.approx(sorted(whole[column].dropna()))
        assert len({(round(x, 6), round(y, 6)) for x, y in at}) == len(at)
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert all(left <= x <= right and top <= y <= bottom for x, y in at)
    groups = frame[(frame["group"] != "") & frame["false_negative_rate"].notna()]
    dots = [line for line in axes[2].lines if line.get_marker() == "."]
    assert sorted(x for line in dots for x in line.get_xdata() if x is not None and x == x) == pytest.approx(
        sorted(groups["false_negative_rate"])
    )
    hollow = [line for line in axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1  # profanity_check on the tweets that it was trained on


# -- as the documents state ----------------------------------------------------------------------------------------


@pytest.mark.mirror
def test_profanity_check_agrees_with_perspective_as_stated():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    from bench.scorers.profanity_check import ProfanityCheck

    for name, auc, rho, right in (("rtp_continuations", 0.916, 0.81, 0.81), ("rtp_prompts", 0.948, 0.81, 0.90)):
        texts, _ = labelled_sets.read(Sources(mirror=str(MIRROR), offline=True), name)
        positive, scores = texts["positive"].to_numpy(), agreement.judged(ProfanityCheck(), texts["text"].tolist())
        row = measure(scores, positive, texts["rating"].to_numpy())
        assert row["auc"] == pytest.approx(auc, abs=0.001) and row["spearman"] == pytest.approx(rho, abs=0.006)
        assert np.mean((scores >= 0.5) == positive) == pytest.approx(right, abs=0.006)
