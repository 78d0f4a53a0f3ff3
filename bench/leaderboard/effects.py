"""The trade-off of each row of a comparison against the unsteered model: its aim, and what it costs elsewhere."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from bench.leaderboard import tradeoff
from bench.leaderboard.aims import FLUENCY, Aims
from bench.leaderboard.grouping import Row
from bench.leaderboard.items import Pair
from bench.leaderboard.paired_rows import OfRows
from bench.leaderboard.pairing import Pairs, change, over
from bench.leaderboard.tradeoff import BootstrapEstimate
from bench.stats.bootstrap import Folded, draws_of
from bench.stats.metrics import Metric, is_share

PERPLEXITY = f"{FLUENCY}perplexity"
DERIVED = (
    "toxicity_reduction", "perplexity_ratio", "fluency_kept", "accuracy_change", "gold_choice_change", "joint", "net",
    "entanglement",
)  # fmt: skip
"""The trade-off of a row against the unsteered model."""

TradeOff = dict[str, BootstrapEstimate | None]
"""An estimate for each name of DERIVED; None if it was not measured."""


class Effects(Mapping[Row, TradeOff]):
    """The trade-off of every row but the unsteered model's, computed when it is first asked for.

    metrics: all metrics of the comparison, by name. pairs: the rows' items beside the unsteered model's.
    """

    def __init__(self, metrics: Mapping[str, Metric], aims: Aims, pairs: OfRows) -> None:
        self._metrics, self._aims, self._pairs = metrics, aims, pairs
        self._known: dict[Row, TradeOff] = {}

    def __getitem__(self, row: Row) -> TradeOff:
        if row not in self._known:
            self._known[row] = self.of(self._pairs[row])
        return self._known[row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def of(self, pairs: list[Pairs]) -> TradeOff:
        """Return the joint trade-off of these fits, with the spread over items and, for several fits, over fits."""
        toxicity = self._aims.toxicity
        reduction = change(pairs, toxicity[0], "mean", "reduction") if toxicity else None
        ratio = change(pairs, PERPLEXITY, "exp", "ratio")
        fluency = tradeoff.fluency_kept(ratio) if ratio else None
        accuracy = over(pairs, lambda one: tradeoff.mean_change(_capability(one, ".accuracy")))
        choice = over(pairs, lambda one: tradeoff.mean_change(_capability(one, ".gold_choice_logprob")))
        joint = tradeoff.joint(reduction, fluency, tradeoff.answers_kept(choice) if choice else None)
        sides = [self.side_changes(one) for one in pairs]
        whole = self._side_suites and all(set(one) == self._side_suites for one in sides)
        lost = tradeoff.over_fits([tradeoff.losses(one)[0] for one in sides]) if whole else None
        moved = tradeoff.moved_over(sides) if whole else None
        net = tradeoff.minus(reduction, lost) if reduction and lost else None
        return dict(zip(DERIVED, (reduction, ratio, fluency, accuracy, choice, joint, net, moved), strict=True))

    # -- the other suites ----------------------------------------------------------------------------------------------

    @cached_property
    def _side_suites(self) -> set[str]:
        """The suites but the target that any row can be compared in; only rows with all of them have a mean over them.

        Controls, which are run on the target alone, do not count.
        """
        methods = [one for row, fits in self._pairs.items() if not row.is_control for one in fits]
        aside = self._aims.target != "capability"
        able = {"capability" for one in methods if aside and _capability(one, ".accuracy")}
        return able.union(*(self._side_seeds(one) for one in methods))

    def side_changes(self, pairs: Pairs) -> dict[str, BootstrapEstimate]:
        """Return how much better one fit does on each suite but the target, as a share of 1.

        For capability this is the mean change in accuracy; for perplexities, the share of fluency that is gained or,
        below 0, lost (`tradeoff.share_kept`); for any other suite, the change of the first metric whose items are from
        0 to 1. A suite without such a metric is left out.
        """
        found: dict[str, BootstrapEstimate] = {}
        able = tradeoff.mean_change(_capability(pairs, ".accuracy")) if self._aims.target != "capability" else None
        if able is not None:
            found["capability"] = able
        for suite, (name, seed) in self._side_seeds(pairs).items():
            rows, metric = pairs[name], self._metrics[name]
            if metric.transform == "exp":
                found[suite] = tradeoff.share_kept(tradeoff.compare_items(rows, "exp", "ratio", seed))
            else:
                one = tradeoff.compare_items(rows, "mean", "difference", seed)
                found[suite] = one if metric.higher_is_better else one.negative()
        return found

    def _side_seeds(self, pairs: Pairs) -> dict[str, tuple[str, int]]:
        """Return the metric that measures the change of each suite (`side_changes`), and the seed of its resamples."""
        found: dict[str, tuple[str, int]] = {}
        for seed, name in enumerate(self._perplexities_first):
            suite, metric = name.partition(".")[0], self._metrics[name]
            if name not in pairs or suite in found or suite in (self._aims.target, "capability"):
                continue
            if metric.transform == "exp":  # fluency judges the texts of rtp: they share the resamples of a seed
                found[suite] = name, 0 if suite == "fluency" else seed
            elif is_share(name, pairs[name].value_a, pairs[name].value_b):
                found[suite] = name, seed
        return found

    @cached_property
    def _perplexities_first(self) -> list[str]:
        """The metrics, perplexities before all others."""
        return sorted(self._metrics, key=lambda name: self._metrics[name].transform != "exp")

    # -- the bootstrap draws -------------------------------------------------------------------------------------------

    def draw_ahead(self, rows: Sequence[Row]) -> None:
        """Make and keep the bootstrap draws that the numbers of these rows need, in a few matrix products."""
        wanted: dict[tuple[int, int], list[Folded]] = defaultdict(list)
        for one in (one for row in rows for one in self._pairs.get(row, [])):
            for name, seed in self._seeds(one):
                pair, transform = one[name], self._metrics[name].transform
                wanted[seed, len(pair)] += [
                    (pair.value_a, pair.weight_a, transform),
                    (pair.value_b, pair.weight_b, transform),
                ]
        for (seed, _), folds in wanted.items():
            draws_of(folds, seed=seed)

    def _seeds(self, pairs: Pairs) -> list[tuple[str, int]]:
        """Return each metric with each seed of its resamples: for its change, for means of tasks, for side effects."""
        found = [(name, 0) for name in pairs if name in self._metrics]
        for end in (".accuracy", ".gold_choice_logprob"):
            found += [(name, i + 1) for i, name in enumerate(sorted(_capability(pairs, end)))]
        return found + [(name, seed) for name, seed in self._side_seeds(pairs).values()]


def _capability(pairs: Pairs, end: str) -> dict[str, Pair]:
    """Return the paired items of the capability metrics whose name ends with `end`, one metric for each task."""
    return {name: rows for name, rows in pairs.items() if name.startswith("capability.") and name.endswith(end)}
