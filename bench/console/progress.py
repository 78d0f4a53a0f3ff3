"""The one bar of a command; what it shows is reported deep in the run (`methods.progress.advance`)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.console.escape import terminal, visible
from methods.progress import listening


class Bar:
    """One bar with a time left over all the work of a command, measured in tokens.

    planned: tokens by the key of each stage; a stage that is not in it counts nothing. On a terminal the bar moves; in
    a log a line is printed now and then.
    """

    LINE_EVERY_SECONDS = 20.0

    def __init__(self, planned: Mapping[str, float]) -> None:
        self.planned = dict(planned)
        self.done = 0.0
        self.began = self.printed = time.monotonic()
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            speed_estimate_period=180,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("", total=max(sum(self.planned.values()), 1))

    def __enter__(self) -> "Bar":
        """Show the bar."""
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self.progress.stop()

    @contextmanager
    def stage(self, key: str, label: str) -> Iterator[None]:
        """Work on one planned stage; when it ends, all that was planned for it counts as done. Stages may nest."""
        planned = self.planned.pop(key, 0.0)
        spent = 0.0

        def advance(tokens: float) -> None:
            nonlocal spent
            step = min(tokens, planned - spent)
            spent += step
            self._move(self.done + step, label)

        def skip(tokens: float) -> None:
            nonlocal planned
            step = min(tokens, planned - spent)
            planned -= step
            self._shrink(step)

        self._move(self.done, label)
        with listening(advance, skip):
            yield
        self._move(self.done + planned - spent, label)

    def _shrink(self, tokens: float) -> None:
        """There is less to do than was planned: an earlier run has kept it."""
        total = self.progress.tasks[self.task].total or 1
        self.progress.update(self.task, total=max(total - tokens, 1))

    def _move(self, done: float, label: str) -> None:
        self.done = done
        self.progress.update(self.task, completed=done, description=visible(label))
        now = time.monotonic()
        if self.progress.disable and now - self.printed > self.LINE_EVERY_SECONDS:
            self.printed = now
            total = self.progress.tasks[self.task].total or 1
            spent = now - self.began
            left = f"{spent * (total - done) / done / 60:.0f} min left" if done else "time left unknown yet"
            self.console.print(terminal(f"{100 * done / total:3.0f} %  {spent / 60:4.1f} min  {left}  {label}"))
