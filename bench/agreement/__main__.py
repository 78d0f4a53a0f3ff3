"""`python -m bench.agreement`: how far each scorer agrees with human labels and with Perspective's.

Each scorer judges sets of labelled texts (`bench.agreement.labelled_sets`). For all texts of a set, and for those of
each group:

auc                   chance that a text labelled positive scores above one that is not; a tie counts half.
spearman              rank correlation with the rating, if the label has degrees (Perspective's score, or a mean over
                      annotators); over all texts, so the many with the lowest rating tie.
false_positive_rate   share of texts not labelled positive that the scorer calls positive: toxic, with a score >= .5, or
                      of positive sentiment, with a score > .5.
false_negative_rate   share of texts labelled positive that the scorer does not call positive.

Intervals are 95%: by a bootstrap over texts for auc and spearman, Wilson's for rates. A rate does not depend on how
many texts of a set are toxic, but on their kind: challenging prompts, insults, or hatred without a swear word. So it
describes a scorer on such texts. Labels are not the truth either: Perspective's are those of another classifier.

A scorer's error rates give a corrected share of toxic texts, by Rogan and Gladen 1978 (`bench.stats.bootstrap`):
`python -m bench.agreement --correct RESULTS` prints it beside the raw one (`bench.agreement.rogan_gladen`).

Exit code 0: done; 2: something the user must fix; 130: stopped by Ctrl-C.
"""

from bench.console import stopping

if __name__ == "__main__":
    stopping.begin()

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from bench.console import command, escape
from bench.scorers import base
from bench.stats.bootstrap import Estimate, interval, wilson
from methods.errors import SetupError

if TYPE_CHECKING:
    from bench.scorers.base import Scorer

Array = np.ndarray
RESAMPLES = 2_000
BLOCK = 512  # texts judged between two steps of the bar
TOXIC = 0.5
MEASURES = ("auc", "spearman", "false_positive_rate", "false_negative_rate")


class Drawn(NamedTuple):
    """Bootstrap draws of the two measures that have no formula."""

    auc: Array
    spearman: Array


def agreement(scores: Array, positive: Array, rating: Array, measures: str = "toxicity") -> dict[str, Any]:
    """Return the measures of a row: agreement of scores with labels; NaN if these texts do not determine a measure.

    scores: (N,) NaN for unscored texts, which are counted and left out. positive: (N,) the labels. rating: (N,) NaN
    for texts without a rating.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(scores)
    row: dict[str, Any] = {
        "n": int(known.sum()),
        "positives": int(positive[known].sum()),
        "unscored": int((~known).sum()),
    }
    scores, positive, rating = scores[known], positive[known], rating[known]
    both = bool(positive.any() and not positive.all())
    ranked = len(scores) > 1 and not np.isnan(rating).any() and np.ptp(rating) > 0 and np.ptp(scores) > 0
    drawn = draws(scores, positive, rating if ranked else None) if both or ranked else None
    none = Estimate(np.nan, None, None)
    found = dict.fromkeys(MEASURES, none)
    if both and drawn is not None:
        found["auc"] = Estimate(float(roc_auc_score(positive, scores)), *interval(drawn.auc, len(scores)))
    if ranked and drawn is not None:
        rho = float(spearmanr(scores, rating).statistic)
        found["spearman"] = Estimate(rho, *interval(drawn.spearman, len(scores)))
    flagged = scores > TOXIC if measures == "sentiment" else scores >= TOXIC
    for name, wrong in (("false_positive_rate", flagged[~positive]), ("false_negative_rate", ~flagged[positive])):
        if len(wrong):
            found[name] = Estimate(float(wrong.mean()), *wilson(int(wrong.sum()), len(wrong)))
    for name, one in found.items():
        row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return row


def draws(scores: Array, positive: Array, rating: Array | None, seed: int = 0) -> Drawn:
    """(RESAMPLES,) both measures of texts resampled with replacement; NaN where a resample does not determine one."""
    n = len(scores)
    generator = np.random.default_rng([seed, n])
    values = np.unique(scores, return_inverse=True)[1]
    rated = None if rating is None else np.unique(rating, return_inverse=True)[1]
    auc, spearman = np.full(RESAMPLES, np.nan), np.full(RESAMPLES, np.nan)
    for i in range(RESAMPLES):
        chosen = generator.integers(n, size=n)
        ranks = midranks(values[chosen])
        labelled = positive[chosen]
        count = int(labelled.sum())
        if 0 < count < n:
            auc[i] = (ranks[labelled].sum() - count * (count + 1) / 2) / (count * (n - count))  # Mann-Whitney's U
        if rated is not None:
            a, b = ranks - (n + 1) / 2, midranks(rated[chosen]) - (n + 1) / 2
            spread = np.sqrt((a @ a) * (b @ b))
            spearman[i] = a @ b / spread if spread > 0 else np.nan
    return Drawn(auc, spearman)


def midranks(values: Array) -> Array:
    """Return the ranks from 1 of small whole numbers, without sorting; equal values get their mean rank."""
    counts = np.bincount(values)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[values])


# -- the run -------------------------------------------------------------------------------------------------------


def configured(overrides: Sequence[str]) -> Any:
    """Compose the config; without scorer=... it has each scorer whose requirements are installed. Raises SetupError."""
    from bench.config import compose, folders
    from bench.run import validate

    given = {one.partition("=")[0]: one.partition("=")[2] for one in overrides}
    own = list(overrides)
    if "scorer" in given:
        names = [name.strip() for name in given["scorer"].strip("[]").split(",")]
    else:
        names = folders.groups()["scorer"]
        cfg = compose.compose([f"scorer=[{','.join(names)}]", f"pairs.scorer={names[0]}", *own])
        lacking = {name for name, node in compose.plain(cfg)["scorer"].items() if "???" in node.values()}
        set_by_hand = {key.split(".")[1] for key in given if key.startswith("scorer.")}
        names = [name for name in names if name not in lacking - set_by_hand]
        own.append(f"scorer=[{','.join(names)}]")
    own += [
        f"{group}.scorer={names[0]}" for group in ("pairs", "tuning")
    ]  # neither pairs nor strengths are chosen here
    return validate.validate(own)


def measured(cfg: Any) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a row per scorer, set and group (the group "" is all texts), and what was skipped, with reasons.

    Raises SetupError if nothing is left to measure.
    """
    from bench.agreement import labelled_sets
    from bench.console.progress import Bar
    from bench.data.sources import Sources, cache_folder
    from bench.records.identity import digest

    cache = cache_folder(cfg.runtime.cache)
    sources = Sources(mirror=cfg.runtime.mirror, cache=cache, offline=cfg.runtime.offline)
    scorers, skipped = available(cfg, sources)
    sets = {}
    for name in dict.fromkeys(name for one in scorers for name in labelled_sets.names(one.measures)):
        try:
            sets[name] = labelled_sets.read(sources, name)
        except SetupError as error:
            skipped[name] = brief(error)
    pairs = [(one, name) for one in scorers for name in labelled_sets.names(one.measures) if name in sets]
    if not pairs:
        raise SetupError("nothing can be measured:\n" + "\n".join(f"  {key}: {why}" for key, why in skipped.items()))
    rows = []
    with Bar({f"{one.name} {name}": float(len(sets[name][0])) for one, name in pairs}) as bar:
        for scorer, name in pairs:
            texts, located = sets[name]
            about = {"scorer": scorer.name, "scorer_id": digest(scorer.identity()), "set": name}
            source = {"source": f"{located.name} ({located.source})", "fingerprint": located.fingerprint}
            learnt = {"learnt_from": scorer.name in labelled_sets.SETS[name].learnt_by}
            with bar.stage(f"{scorer.name} {name}", f"{scorer.name} · {name}"):
                scores = judged(scorer, texts["text"].tolist())
                for group, chosen in members(texts["groups"]):
                    positive, rating = texts["positive"].to_numpy()[chosen], texts["rating"].to_numpy()[chosen]
                    found = agreement(scores[chosen], positive, rating, scorer.measures)
                    rows.append(about | {"group": group} | found | learnt | source)
    return pd.DataFrame(rows), skipped


def available(cfg: Any, sources: Any) -> tuple[list["Scorer"], dict[str, str]]:
    """Return the scorers that work here and have labelled texts, and why each other one is left out."""
    from bench.agreement import labelled_sets
    from bench.config.build import build

    found, skipped = [], {}
    for name, node in cfg.scorer.items():
        try:
            scorer = build(node, sources=sources)
            if not labelled_sets.names(scorer.measures):
                raise SetupError(f"no set of labelled texts for {scorer.measures}")
            scorer.identity()
            base.scores(scorer, ["A plain sentence."], ["And another one."])
            found.append(scorer)
        except SetupError as error:
            skipped[str(name)] = brief(error)
    return found, skipped


def brief(error: SetupError) -> str:
    """Return the first line of a message and its last one, which says what to do."""
    lines = str(error).splitlines()
    return " ".join(dict.fromkeys((lines[0].rstrip(":") + (";" if len(lines) > 1 else ""), lines[-1].strip()))).rstrip(
        ";"
    )


def judged(scorer: "Scorer", texts: Sequence[str]) -> Array:
    """(N,) the scores; NaN for unscored texts."""
    from methods.progress import advance

    found: list[float | None] = []
    for start in range(0, len(texts), BLOCK):
        block = list(texts[start : start + BLOCK])
        found += base.scores(scorer, [""] * len(block), block)
        advance(len(block))
    return np.array(found, dtype=float)


def members(groups: "pd.Series[Any]") -> list[tuple[str, Array]]:
    """Return each group with (N,) booleans for the texts in it; "" is all texts. A text may be in several groups."""
    named = sorted({group for one in groups for group in one})
    return [("", np.ones(len(groups), bool)), *[(one, np.array([one in own for own in groups])) for one in named]]


# -- the command ---------------------------------------------------------------------------------------------------


def write(frame: pd.DataFrame, results: Path, skipped: Mapping[str, str]) -> list[Path]:
    """Write the tables and their figure. `skipped`: from `measured`. Raises SetupError if they cannot be written."""
    from bench.agreement import render
    from bench.agreement.rogan_gladen import FILE
    from bench.files.atomic import write_whole
    from bench.plots.style import save

    csv, readable = (results / f"{FILE}.{kind}" for kind in ("csv", "md"))
    try:
        write_whole(csv, escape.csv(frame))
        write_whole(readable, render.markdown(frame, skipped))
    except OSError as error:
        raise SetupError(f"cannot write to {results}: {error.strerror}; set runtime.results=FOLDER") from error
    return [csv, readable, *save(render.figure(frame), results / "figures", FILE)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or correct, and print; returns the exit code."""
    parser = command.parser(
        "agreement",
        "Measure scorers against labelled texts; writes scorer_agreement.csv, .md and a figure.",
        epilog="Without scorer=[...] every scorer is tried, and those that cannot be used are listed with the reason. "
        "Example: {prog} scorer=[profanity_check,lexicon] runtime.mirror=FOLDER",
        parents=[command.shared()],
    )
    options = "scorer=[NAME,...] runtime.mirror=FOLDER runtime.offline=true scorer.NAME.OPTION=..."
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=options)
    parser.add_argument(
        "--correct",
        type=Path,
        metavar="RESULTS",
        help="instead: print each toxic_fraction in RESULTS/leaderboard_tidy.csv, corrected for its scorer's errors",
    )
    given = parser.parse_intermixed_args(arguments)
    from bench.agreement import rogan_gladen

    out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if given.correct is not None:
        return command.run(rogan_gladen.show, given.correct, out)
    return command.run(_run, given.overrides, given.results, out)


def _run(overrides: Sequence[str], results: Path, out: Console) -> None:
    from bench.agreement import render
    from bench.config import command_line

    cfg = configured(command_line.with_results([*overrides, "--results", str(results)]))
    frame, skipped = measured(cfg)
    paths = write(frame, Path(cfg.runtime.results), skipped)
    out.print(render.table(frame, intervals=out.width >= render.WIDE))
    if (groups := render.groups_table(frame)) is not None:
        out.print(groups)
    if frame["learnt_from"].any():
        out.print(render.LEARNT)
    for name, why in skipped.items():
        out.print(escape.terminal(f"skipped {name}: {why}", "yellow"), soft_wrap=True)
    for path in paths:
        out.print(escape.terminal(path), soft_wrap=True)


if __name__ == "__main__":
    command.leave(main())
