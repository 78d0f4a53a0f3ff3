"""The progress bar of a command; the work itself reports its tokens through `methods.progress.advance`."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.console.escape import terminal, visible
from methods.progress import listening

UNKNOWN = "time left not known"
FORGETS = 0.5
"""Factor on the tokens and seconds of a kind's earlier stages when a stage begins; the first one includes loading."""
TIMED_SECONDS = 2.0
"""A kind of work has a speed once it has run for longer than this, or once a stage of it has ended."""


class Kind:
    """One kind of work: the tokens that are left, and the seconds that the finished tokens took.

    all_done, all_seconds: finished tokens and their seconds over all stages, for later estimates (`bench.run.speeds`).
    """

    def __init__(self) -> None:
        self.left = self.done = self.seconds = 0.0
        self.all_done = self.all_seconds = 0.0
        self.ended = False

    @property
    def is_timed(self) -> bool:
        """Whether enough of this kind of work was done for its speed to be used in an estimate."""
        return self.done > 0 and (self.ended or self.seconds > TIMED_SECONDS)


class Bar:
    """One bar over all the work of a command, measured in tokens, with an estimate of the time left.

    Sampling a token takes longer than reading one, so each kind of work has its own speed. The time left is shown once
    kinds with a known speed make up most of the remaining work. On a terminal the bar moves; in a log a line is printed
    now and then.

    planned: the tokens of each stage, by its key; a stage without an entry counts nothing. The first word of a key is
    the kind of work, as in "rtp 3f2a".
    """

    LINE_EVERY_SECONDS = 20.0

    def __init__(self, planned: Mapping[str, float]) -> None:
        self.planned = dict(planned)
        self.kinds: dict[str, Kind] = {}
        for key, tokens in self.planned.items():
            self._kind(key).left += tokens
        self.running: Kind | None = None
        self.started = False  # time before the first token is loading, which counts for no kind
        self.done = 0.0
        self.began = self.printed = self.charged = time.monotonic()
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("", total=max(sum(self.planned.values()), 1), left=UNKNOWN)

    def __enter__(self) -> "Bar":
        """Show the bar."""
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        self.progress.stop()

    @contextmanager
    def stage(self, key: str, label: str, tokens: float = math.inf) -> Iterator[None]:
        """Report work on one planned stage; when it ends, all its planned tokens count as done. Stages may nest.

        tokens: how many of the planned tokens this stage takes, if other stages with its key follow.
        """
        planned = min(self.planned.get(key, 0.0), tokens)
        self.planned[key] = self.planned.get(key, 0.0) - planned  # the rest is for further stages of this key
        kind, outer = self._kind(key), self.running
        spent = 0.0

        def advance(tokens: float) -> None:
            nonlocal spent
            step = min(tokens, planned - spent)
            spent += step
            self._move(kind, step, label)

        def skip(tokens: float) -> None:
            nonlocal planned
            step = min(tokens, planned - spent)
            planned -= step
            kind.left -= step
            self._shrink(step)

        self._charge()
        self.running = kind
        kind.done, kind.seconds = FORGETS * kind.done, FORGETS * kind.seconds
        self._move(kind, 0.0, label)
        try:
            with listening(advance, skip):
                yield
            self._move(kind, planned - spent, label)
            kind.ended = True
        finally:
            self._charge()
            self.running = outer

    def seconds_left(self) -> float | None:
        """Return the estimate; None until kinds of work with a known speed make up half of the remaining work."""
        left = {name: max(kind.left, 0.0) for name, kind in self.kinds.items()}
        timed = [name for name, kind in self.kinds.items() if kind.is_timed]
        if not timed or sum(left[name] for name in timed) < 0.5 * sum(left.values()):
            return None
        known = [self.kinds[name] for name in timed]
        average = sum(kind.seconds for kind in known) / sum(kind.done for kind in known)
        speeds = {name: self.kinds[name].seconds / self.kinds[name].done for name in timed}
        return sum(tokens * speeds.get(name, average) for name, tokens in left.items())

    def _kind(self, key: str) -> Kind:
        return self.kinds.setdefault(key.partition(" ")[0], Kind())

    def _charge(self) -> None:
        """Add the time since the last report to the kind of work that runs."""
        now = time.monotonic()
        if self.running is not None and self.started:
            self.running.seconds += now - self.charged
            self.running.all_seconds += now - self.charged
        self.charged = now

    def _shrink(self, tokens: float) -> None:
        """Reduce the planned work by a part that an earlier run has kept."""
        total = self.progress.tasks[self.task].total or 1
        self.progress.update(self.task, total=max(total - tokens, 1))

    def _move(self, kind: Kind, tokens: float, label: str) -> None:
        self._charge()
        self.started = self.started or tokens > 0
        self.done += tokens
        kind.done += tokens
        kind.all_done += tokens
        kind.left -= tokens
        left = told(self.seconds_left())
        self.progress.update(self.task, completed=self.done, description=visible(label), left=left)
        now = time.monotonic()
        if self.progress.disable and now - self.printed > self.LINE_EVERY_SECONDS:
            self.printed = now
            total = self.progress.tasks[self.task].total or 1
            spent = (now - self.began) / 60
            self.console.print(terminal(f"{100 * self.done / total:3.0f}%  {spent:4.1f} min  {left}  {label}"))


def told(seconds: float | None) -> str:
    """Describe the time that is left in words."""
    if seconds is None:
        return UNKNOWN
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"
