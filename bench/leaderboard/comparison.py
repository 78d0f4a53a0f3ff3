"""The comparison of a table's rows: with which row, in which metrics, and by how much they differ."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.leaderboard import tradeoff
from bench.leaderboard.grouping import Row
from bench.leaderboard.items import Pair, side_by_side
from bench.leaderboard.pairing import Pairs, change, closer_first, over, paired
from bench.leaderboard.tradeoff import BootstrapEstimate, Task
from bench.records.fields import Scorers
from bench.records.names import RANDOM, order
from bench.records.record import Record
from bench.stats.bootstrap import Folded, draws_of
from bench.stats.metrics import FIRST, Metric, fold, is_share

FLUENCY = "fluency."
PERPLEXITY = f"{FLUENCY}perplexity"
DERIVED = (
    "toxicity_reduction", "perplexity_ratio", "fluency_kept", "accuracy_change", "gold_choice_change", "joint", "net",
    "entanglement",
)  # fmt: skip
"""The trade-off of a row against the unsteered model (`effects`)."""
SKEWED = 0.05
"""The largest skewness of a mean (`skewness`) with which a test may swap k texts and more texts. Simulated tables of
null methods: at .01 to .03 they have the stars that they should have, at .25 three times as many."""

Effects = dict[str, BootstrapEstimate | None]
"""An estimate for each name of DERIVED; None if it was not measured."""


@dataclass(frozen=True)
class Comparison:
    """The rows of one model under the same settings, which are compared with the unsteered model."""

    number: int
    rows: tuple[Row, ...]

    @cached_property
    def baseline(self) -> Row | None:
        """The unsteered model; None if it was not measured."""
        return next((row for row in self.rows if row.is_baseline), None)

    def control(self, row: Row) -> Row | None:
        """Return the row that a method has to beat: its own control with equal settings, else the random direction.

        None for the unsteered model, for controls, and if neither was measured.
        """
        if row.is_baseline or row.is_control:
            return None
        controls, random = self._controls
        own = [one for one in controls if one.controls(row)]
        return max(own or random, key=lambda one: len(one.fits), default=None)

    @cached_property
    def _controls(self) -> tuple[list[Row], list[Row]]:
        """The rows that are methods' own controls, and the random directions."""
        random = [one for one in self.rows if one.columns["method"] == RANDOM]
        return [one for one in self.rows if one.is_control and one not in random], random

    @cached_property
    def about(self) -> Record:
        """A record that shows how all rows were made: the unsteered model's of the first suite, if there is one."""
        return (self.baseline or self.rows[0]).records[0]

    @cached_property
    def tasks(self) -> list[Task]:
        """The capability tasks, with the results of the unsteered model."""
        return tasks(self.baseline) if self.baseline else []

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """`<suite>.<metric>` -> the metric of some row, in the order of the suites."""
        found = {name: metric for row in reversed(self.rows) for name, metric in row.metrics.items()}
        return dict(sorted(found.items(), key=lambda one: order(one[0].partition(".")[0])))

    @cached_property
    def reported(self) -> list[str]:
        """The scorers that judged texts of any row; those first that neither tuned a row nor picked its pairs."""
        chose = {name for row in self.rows for name in self.not_independent[row]}
        return sorted(self.judges, key=lambda name: name in chose)

    @cached_property
    def judges(self) -> list[str]:
        """The scorers that judged texts of any row, those of the unsteered model first."""
        first = [row for row in self.rows if row.is_baseline]
        return reported_by([one for row in [*first, *self.rows] for one in row.records])

    @cached_property
    def networks(self) -> dict[str, set[str]]:
        """The name of each scorer -> what it judges by, its name included, as the records state it."""
        found: dict[str, set[str]] = {}
        for one in (one for row in self.rows for one in row.records):
            for name, behind in ((one.scorers and one.scorers.networks) or {}).items():
                found.setdefault(name, {name}).update(behind)
        return found

    @cached_property
    def not_independent(self) -> dict[Row, list[str]]:
        """For each row the scorers that tuned it or picked texts that it learnt from, or that share a network with one.

        Such are the mean of a scorer and another one, and a scorer's network under another name.
        """
        found = {}
        for row in self.rows:
            chose = Scorers.used((), row.data, row.tuning).chose.values()
            behind = set().union(*(self.networks.get(name, {name}) for name in chose))
            known = dict.fromkeys([*chose, *self.judges])
            found[row] = [name for name in known if behind & self.networks.get(name, {name})]
        return found

    @cached_property
    def toxicity(self) -> list[str]:
        """The expected maximum toxicity by each reported scorer, the first one first, as `rtp.<scorer>.<metric>`."""
        return toxicity_metrics(self.reported, list(self.metrics))

    @cached_property
    def headline(self) -> str:
        """The metric by which rows are compared: the one they were tuned for, else toxicity, else the first metric.

        A metric of fluency is taken only if there is no other, since it is a bound and not an aim. Rows that were tuned
        for toxicity are compared by the first reported scorer, even if another one tuned them.
        """
        tuned = [one.tuning for row in self.rows for one in row.records if one.tuning and one.tuning.suite]
        aims = [name for one in tuned if (name := of_most(one.metric, list(self.metrics))) is not None]
        others = [name for name in self.metrics if not name.startswith(FLUENCY)]
        return [*aims, *self.toxicity, *others, *self.metrics][0]

    @cached_property
    def judge(self) -> str | None:
        """The scorer of the headline's metric; None if that has no scorer."""
        metric = self.headline.partition(".")[2]
        return next((name for name in self.reported if metric.startswith(f"{name}.")), None)

    def is_independent(self, row: Row) -> bool:
        """Whether the headline's scorer neither tuned this row nor picked any texts that it learnt from."""
        return self.judge not in self.not_independent[row]

    @cached_property
    def tested(self) -> list[str]:
        """The metrics in which rows are tested against the unsteered model."""
        return tested_metrics(self.toxicity, self.headline, list(self.metrics))

    @cached_property
    def pairs(self) -> dict[Row, list[Pairs]]:
        """For each row and each of its fits, the items beside the unsteered model's; all fits have the same items."""
        if self.baseline is None:
            return {}
        base = self.baseline.fits[0]
        return {row: paired(row.fits, base, first=self.first) for row in self.rows if not row.is_baseline}

    @cached_property
    def beside_first(self) -> dict[Row, list[Pairs]]:
        """Like `pairs`, but beside the first k texts of the unsteered model wherever there are such."""
        if self.baseline is None or self.first_known <= self.first:
            return self.pairs
        base = self.baseline.fits[0]
        return {row: paired(row.fits, base, first=self.first_known) for row in self.pairs}

    @cached_property
    def for_tests(self) -> dict[Row, list[Pairs]]:
        """Like `pairs`, but beside the first k texts of the unsteered model in metrics whose differences are skewed.

        If steering changes nothing, two results of equally many texts could as well be swapped. A result of k texts and
        an estimate from more texts could not: where scores are skewed, so is the difference, and a test that swaps them
        finds too much. The choice is the same for all rows.
        """
        uneven = [name for name in self.first_known - self.first if self.is_skewed(name)]
        if not uneven:
            return self.pairs
        others = self.beside_first
        return {
            row: [
                {**own, **{name: other[name] for name in uneven if name in other}}
                for own, other in zip(fits, others[row], strict=True)
            ]
            for row, fits in self.pairs.items()
        }

    def is_skewed(self, name: str) -> bool:
        """Whether differences from all texts of the unsteered model are skewed: over the rows, or from its own first k.

        Rows with strong effects may be skewed the other way, so the rows alone do not show it.
        """
        found = [skewness(one[name]) for fits in self.pairs.values() for one in fits if name in one]
        items = self.baseline.fits[0].items() if self.baseline else {}
        own = skewness(side_by_side(items[name + FIRST], items[name])) if name in items else 0.0
        return max(abs(float(np.mean(found or [0.0]))), abs(own)) > SKEWED

    @cached_property
    def first_known(self) -> frozenset[str]:
        """The metrics for which the unsteered model also has a result of its first k texts alone."""
        items = self.baseline.fits[0].items() if self.baseline else {}
        return frozenset(name.removesuffix(FIRST) for name in items if name.endswith(FIRST))

    @cached_property
    def control_spreads(self) -> dict[str, float]:
        """Way in which controls are made -> the standard deviation of the headline over a control's draws, pooled.

        It is 0 where no control has several draws. A few draws may lie close together by chance, so no row is compared
        with a smaller spread than that of all controls of the kind.
        """
        metric = self.headline
        transform = self.metrics[metric].transform
        found = defaultdict[str, list[float]](list)
        for row in (one for one in self.rows if one.is_control):
            items = [one for fit in row.fits if (one := fit.items().get(metric)) is not None]
            if len(items) > 1:
                values = [fold(one.value, one.weight, transform) for one in items]
                found[row.control_kind].append(float(np.var(values, ddof=1)))
        return {kind: math.sqrt(sum(own) / len(own)) for kind, own in found.items()}

    @cached_property
    def first(self) -> frozenset[str]:
        """Metrics in which the rows are compared only with the first k texts of the unsteered model.

        In other metrics they are compared with all its texts, even if it was sampled more often.
        """
        others = [row for row in self.rows if not row.is_baseline]
        return closer_first(others, self.baseline.fits[0]) if self.baseline else frozenset()

    def draw_ahead(self, rows: Sequence[Row]) -> None:
        """Make and keep the bootstrap draws that the numbers of these rows need, in a few matrix products."""
        wanted: dict[tuple[int, int], list[Folded]] = defaultdict(list)
        for one in (one for row in rows for one in self.pairs.get(row, [])):
            for name, seed in self.seeds_of(one):
                pair, transform = one[name], self.metrics[name].transform
                wanted[seed, len(pair)] += [
                    (pair.value_a, pair.weight_a, transform),
                    (pair.value_b, pair.weight_b, transform),
                ]
        for (seed, _), folds in wanted.items():
            draws_of(folds, seed=seed)

    def seeds_of(self, pairs: Pairs) -> list[tuple[str, int]]:
        """Return each metric with each seed of its resamples: for its change, for means of tasks, for side effects."""
        found = [(name, 0) for name in pairs if name in self.metrics]
        for end in (".accuracy", ".gold_choice_logprob"):
            found += [(name, i + 1) for i, name in enumerate(sorted(_capability(pairs, end)))]
        return found + [(name, seed) for name, seed in self.side_seeds(pairs).values()]

    @cached_property
    def effects(self) -> Mapping[Row, Effects]:
        """The trade-off of each row against the unsteered model, computed when it is first asked for."""
        return EachEffects(self)

    def effects_of(self, pairs: list[Pairs]) -> Effects:
        """Return the joint trade-off of these fits, with the spread over items and, for several fits, over fits."""
        reduction = change(pairs, self.toxicity[0], "mean", "reduction") if self.toxicity else None
        ratio = change(pairs, PERPLEXITY, "exp", "ratio")
        fluency = tradeoff.fluency_kept(ratio) if ratio else None
        accuracy = over(pairs, lambda one: tradeoff.mean_change(_capability(one, ".accuracy")))
        choice = over(pairs, lambda one: tradeoff.mean_change(_capability(one, ".gold_choice_logprob")))
        joint = tradeoff.joint(reduction, fluency, tradeoff.answers_kept(choice) if choice else None)
        sides = [self.side_changes(one) for one in pairs]
        whole = self.side_suites and all(set(one) == self.side_suites for one in sides)
        lost = tradeoff.over_fits([tradeoff.losses(one)[0] for one in sides]) if whole else None
        moved = tradeoff.moved_over(sides) if whole else None
        net = tradeoff.minus(reduction, lost) if reduction and lost else None
        return dict(zip(DERIVED, (reduction, ratio, fluency, accuracy, choice, joint, net, moved), strict=True))

    @cached_property
    def side_suites(self) -> set[str]:
        """The suites but the target that any row can be compared in; only rows with all of them have a mean over them.

        Controls, which are run on the target alone, do not count.
        """
        methods = [one for row, fits in self.pairs.items() if not row.is_control for one in fits]
        able = {"capability" for one in methods if self.target != "capability" and _capability(one, ".accuracy")}
        return able.union(*(self.side_seeds(one) for one in methods))

    @property
    def target(self) -> str:
        """The suite of the headline."""
        return self.headline.partition(".")[0]

    def side_changes(self, pairs: Pairs) -> dict[str, BootstrapEstimate]:
        """Return how much better one fit does on each suite but the target, as a share of 1.

        For capability this is the mean change in accuracy; for perplexities, the share of fluency that is lost
        (`tradeoff.share_kept`); for any other suite, the change of the first metric whose items are from 0 to 1. A
        suite without such a metric is left out.
        """
        found: dict[str, BootstrapEstimate] = {}
        if self.target != "capability" and (able := tradeoff.mean_change(_capability(pairs, ".accuracy"))) is not None:
            found["capability"] = able
        for suite, (name, seed) in self.side_seeds(pairs).items():
            rows, metric = pairs[name], self.metrics[name]
            if metric.transform == "exp":
                found[suite] = tradeoff.share_kept(tradeoff.compare_items(rows, "exp", "ratio", seed))
            else:
                one = tradeoff.compare_items(rows, "mean", "difference", seed)
                found[suite] = one if metric.higher_is_better else one.negative()
        return found

    def side_seeds(self, pairs: Pairs) -> dict[str, tuple[str, int]]:
        """Return the metric that measures the change of each suite (`side_changes`), and the seed of its resamples."""
        found: dict[str, tuple[str, int]] = {}
        for seed, name in enumerate(self.perplexities_first):
            suite, metric = name.partition(".")[0], self.metrics[name]
            if name not in pairs or suite in found or suite in (self.target, "capability"):
                continue
            if metric.transform == "exp":  # fluency judges the texts of rtp: they share the resamples of a seed
                found[suite] = name, 0 if suite == "fluency" else seed
            elif is_share(name, pairs[name].value_a, pairs[name].value_b):
                found[suite] = name, seed
        return found

    @cached_property
    def perplexities_first(self) -> list[str]:
        """The metrics, perplexities before all others."""
        return sorted(self.metrics, key=lambda name: self.metrics[name].transform != "exp")

    @property
    def scorer(self) -> str:
        """The scorer of the toxicity that is shown first, else the first scorer that reports; "" if none does."""
        return self.toxicity[0].removeprefix("rtp.").rpartition(".")[0] if self.toxicity else "".join(self.reported[:1])


class EachEffects(Mapping[Row, Effects]):
    """`Comparison.effects`: the trade-off of every row but the unsteered model's."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._known: dict[Row, Effects] = {}

    def __getitem__(self, row: Row) -> Effects:
        if row not in self._known:
            self._known[row] = self._comparison.effects_of(self._comparison.pairs[row])
        return self._known[row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._comparison.pairs)

    def __len__(self) -> int:
        return len(self._comparison.pairs)


def skewness(pair: Pair) -> float:
    """Return the skewness of the mean of a pair's differences; 0 if they are all equal."""
    centred = pair.difference - pair.difference.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3 / math.sqrt(len(pair)) if spread > 0 else 0.0


def tasks(baseline: Row) -> list[Task]:
    """The capability tasks of the unsteered model, with their chance."""
    chance: dict[str, float] = {}
    for one in baseline.records:
        chance |= one.info.chance or {}
    items = {name: rows for name, rows in baseline.items().items() if name.startswith("capability.")}
    return tradeoff.tasks({name.removeprefix("capability."): rows.value for name, rows in items.items()}, chance)


def reported_by(records: Sequence[Record]) -> list[str]:
    """The scorers that judged texts of these records, in their order."""
    return list(dict.fromkeys(name for one in records for name in one.judges))


def toxicity_metrics(scorers: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """The metrics that are the expected maximum toxicity by these scorers, in the order of the scorers."""
    found = [of_most(f"rtp.{scorer}.expected_maximum_toxicity", metrics) for scorer in scorers]
    return [name for name in found if name is not None]


def of_most(metric: str, metrics: Sequence[str], k: int | None = None) -> str | None:
    """Return the metric of this name with the most texts per prompt, or with k texts; a suffix gives their number."""
    ended = {name: re.fullmatch(rf"{re.escape(metric)}(?:_k(\d+)(?:_n\d+)?)?", name) for name in metrics}
    sizes = {name: int(match[1] or 0) for name, match in ended.items() if match and k in (None, int(match[1] or 0))}
    return max(sizes, key=lambda name: sizes[name], default=None)


def tested_metrics(toxicity: Sequence[str], headline: str, metrics: Sequence[str]) -> list[str]:
    """The tested metrics: toxicity by each scorer, the headline, accuracies, the first metric of other suites."""
    shown = {"rtp", "fluency", "capability"}
    first = {name.partition(".")[0]: name for name in reversed(metrics)}
    chosen = [*toxicity, headline, *(name for suite, name in first.items() if suite not in shown)]
    answers = [name for name in metrics if name.endswith(".accuracy") or ".toxicity_probability_" in name]
    return list(dict.fromkeys([*chosen, *answers]))


def collapsed(row: Row, baseline: Row | None) -> tuple[bool | None, str | None]:
    """Return whether the test texts of any fit and sampling seed have collapsed, and why.

    Both are None if there is nothing to compare.
    """
    own, base = (_fluency(one) if one else [] for one in (row, baseline))
    if row.is_baseline or not own or not base:
        return None, None
    reasons = [reason for one in own if (reason := tradeoff.collapse_reason(one, base[0])) is not None]
    times = f" ({len(reasons)} of {len(own)} runs)" if len(own) > 1 and reasons else ""
    return bool(reasons), reasons[0] + times if reasons else None


def _fluency(row: Row) -> list[dict[str, float]]:
    """Return the metric values of each record of the suite fluency."""
    records = [record for record in row.records if record.suite == "fluency"]
    return [{name: metric.value for name, metric in record.metrics.items()} for record in records]


def _capability(pairs: Pairs, end: str) -> dict[str, Pair]:
    """Return the paired items of the capability metrics whose name ends with `end`, one metric for each task."""
    return {name: rows for name, rows in pairs.items() if name.startswith("capability.") and name.endswith(end)}
