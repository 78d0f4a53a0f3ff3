"""A table of hundreds of rows costs as much per row as one of tens."""

import time
from pathlib import Path

import numpy as np
import pytest

from bench.leaderboard.build import rebuild
from bench.stats import bootstrap
from tests.record_files import K, write

METHODS = ("caa", "detox", "probe_rows", "act_add")
SCORES = [f"{scorer}.{name}_k{K}" for scorer in ("profanity_check", "lexicon")
          for name in ("expected_maximum_toxicity", "toxicity_probability")]  # fmt: skip
ANSWERS = [f"{task}.{name}" for task in ("boolq", "piqa") for name in ("accuracy", "gold_choice_logprob")]
SUITES = {"rtp": SCORES, "fluency": ["perplexity", "distinct_2"], "capability": ANSWERS, "sentiment": ["rate", "score"]}
ITEMS = 60


def folder_of(results: Path, rows: int) -> Path:
    """Records of so many rows, the unsteered model among them: methods at several layers, measured by four suites."""
    generator = np.random.default_rng(rows)
    for i in range(rows):
        method, layer = ("unsteered", None) if i == 0 else (METHODS[i % len(METHODS)], i // len(METHODS))
        for suite, metrics in SUITES.items():
            right = {name: name.endswith(("accuracy", "rate", f"probability_k{K}")) for name in metrics}
            values = {name: generator.random(ITEMS).round(0 if right[name] else 9) for name in metrics}
            write(results, suite, method, values, parameters={"layer": layer})
    return results


@pytest.mark.slow
def test_time_of_a_table_grows_as_its_rows_do(tmp_path):
    seconds = {}
    for rows in (20, 100, 200):  # the first one pays for what is imported
        folder = folder_of(tmp_path / str(rows), rows)
        bootstrap._kept.clear()
        began = time.process_time()
        (table,) = rebuild(folder).tables
        seconds[rows] = time.process_time() - began
        assert len(table.frame) == rows
    assert seconds[200] <= 2.5 * seconds[100], seconds


def test_draws_made_together_are_those_made_alone():
    generator = np.random.default_rng(0)
    for n in (7, 60, 150):
        weights = generator.integers(1, 90, n).astype(float)
        several = [(generator.random(n), one, "mean") for one in (weights, np.ones(n), weights, np.ones(n), weights)]
        together = bootstrap.draws_of(several, seed=3)
        for (values, own, transform), drawn in zip(several, together, strict=True):
            bootstrap._kept.clear()
            assert bootstrap.draws(values, own, transform, seed=3) == pytest.approx(drawn, rel=1e-14)


def test_what_is_kept_of_draws_is_bounded(monkeypatch):
    monkeypatch.setattr(bootstrap, "KEPT", 3)
    values = np.random.default_rng(1).random((9, 20))
    found = bootstrap.draws_of([(one, np.ones(20), "mean") for one in values])
    assert len(found) == 9 and len(bootstrap._kept) == 3
