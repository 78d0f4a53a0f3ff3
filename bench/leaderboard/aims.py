"""The aims of a comparison: the metrics by which its rows are compared, and the scorers behind these metrics."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.leaderboard.grouping import Row
from bench.records.fields import Scorers
from bench.records.record import Record

FLUENCY = "fluency."
BOUNDS = (FLUENCY, "fluency_act.")  # how the metrics that are no aim begin


@dataclass(frozen=True)
class Aims:
    """The metrics by which rows are compared, and the scorers of their texts.

    reported: the scorers that judged texts of any row; scorers that neither tuned a row nor picked its pairs come
    first. not_independent: for each row the scorers that tuned it or picked texts that it learnt from, or that share a
    network with such a scorer. toxicity: the expected maximum toxicity by each reported scorer, as
    `rtp.<scorer>.<metric>`. headline: the metric by which rows are ranked. tested: the metrics in which rows are tested
    against the unsteered model.
    """

    reported: Sequence[str]
    not_independent: Mapping[Row, list[str]]
    toxicity: Sequence[str]
    headline: str
    tested: Sequence[str]

    @property
    def target(self) -> str:
        """The suite of the headline."""
        return self.headline.partition(".")[0]

    @property
    def judge(self) -> str | None:
        """The scorer of the headline's metric; None if that has no scorer."""
        metric = self.headline.partition(".")[2]
        return next((name for name in self.reported if metric.startswith(f"{name}.")), None)

    def is_independent(self, row: Row) -> bool:
        """Whether the headline's scorer neither tuned this row nor picked any texts that it learnt from."""
        return self.judge not in self.not_independent[row]

    @property
    def scorer(self) -> str:
        """The scorer of the toxicity that is shown first, else the first scorer that reports; "" if none does."""
        return self.toxicity[0].removeprefix("rtp.").rpartition(".")[0] if self.toxicity else "".join(self.reported[:1])


def aims(rows: Sequence[Row], metrics: Sequence[str]) -> Aims:
    """Find the aims of rows that are compared. metrics: the names of all their metrics, as `<suite>.<metric>`."""
    first = [row for row in rows if row.is_baseline]
    judges = reported_by([one for row in [*first, *rows] for one in row.records])
    chose = not_independent(rows, judges)
    choosers = {name for own in chose.values() for name in own}
    reported = sorted(judges, key=lambda name: name in choosers)
    toxicity = toxicity_metrics(reported, metrics)
    headline = headline_of(rows, toxicity, metrics)
    return Aims(reported, chose, toxicity, headline, tested_metrics(toxicity, headline, metrics))


def headline_of(rows: Sequence[Row], toxicity: Sequence[str], metrics: Sequence[str]) -> str:
    """Return the metric by which rows are ranked: the one they were tuned for, else toxicity, else the first metric.

    A metric of fluency is taken only if there is no other, since it is a bound and not an aim. Rows that were tuned for
    toxicity are compared by the first reported scorer, even if another one tuned them.
    """
    tuned = [one.tuning for row in rows for one in row.records if one.tuning and one.tuning.suite]
    wanted = [name for one in tuned if (name := of_most(one.metric, metrics)) is not None]
    others = [name for name in metrics if not name.startswith(BOUNDS)]
    return [*wanted, *toxicity, *others, *metrics][0]


def not_independent(rows: Sequence[Row], judges: Sequence[str]) -> dict[Row, list[str]]:
    """Return for each row the scorers that tuned it or picked its training texts, or share a network with such scorers.

    For example, the mean of two scorers shares a network with each of the two, and one network may have two names.
    """
    networks, found = networks_of(rows), {}
    for row in rows:
        chose = Scorers.used((), row.data, row.tuning).chose.values()
        behind = set().union(*(networks.get(name, {name}) for name in chose))
        known = dict.fromkeys([*chose, *judges])
        found[row] = [name for name in known if behind & networks.get(name, {name})]
    return found


def networks_of(rows: Sequence[Row]) -> dict[str, set[str]]:
    """Map the name of each scorer to what it judges by, its name included, as the records state it."""
    found: dict[str, set[str]] = {}
    for one in (one for row in rows for one in row.records):
        for name, behind in ((one.scorers and one.scorers.networks) or {}).items():
            found.setdefault(name, {name}).update(behind)
    return found


def reported_by(records: Sequence[Record]) -> list[str]:
    """Return the scorers that judged texts of these records, in their order."""
    return list(dict.fromkeys(name for one in records for name in one.judges))


def toxicity_metrics(scorers: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """Return the metrics that are the expected maximum toxicity by these scorers, in the order of the scorers."""
    found = [of_most(f"rtp.{scorer}.expected_maximum_toxicity", metrics) for scorer in scorers]
    return [name for name in found if name is not None]


def of_most(metric: str, metrics: Sequence[str], k: int | None = None) -> str | None:
    """Return the metric of this name with the most texts per prompt, or with k texts; a suffix gives their number."""
    ended = {name: re.fullmatch(rf"{re.escape(metric)}(?:_k(\d+)(?:_n\d+)?)?", name) for name in metrics}
    sizes = {name: int(match[1] or 0) for name, match in ended.items() if match and k in (None, int(match[1] or 0))}
    return max(sizes, key=lambda name: sizes[name], default=None)


def tested_metrics(toxicity: Sequence[str], headline: str, metrics: Sequence[str]) -> list[str]:
    """Return the tested metrics: toxicity by each scorer, the headline, accuracies, each other suite's first metric."""
    shown = {"rtp", "fluency", "capability"}
    first = {name.partition(".")[0]: name for name in reversed(metrics)}
    chosen = [*toxicity, headline, *(name for suite, name in first.items() if suite not in shown)]
    answers = [name for name in metrics if name.endswith(".accuracy") or ".toxicity_probability_" in name]
    return list(dict.fromkeys([*chosen, *answers]))
