"""One self-contained page of the results: leaderboards, figures, a page per method, texts side by side.

`python -m bench.report` writes it from stored records alone, without torch. columns.py holds the leaderboard's columns,
lines.py the page of a method, texts.py the continuations, page.py puts them together; page.html, page.css and page.js
are what a browser gets.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.page import Built, rebuild

__all__ = ["Built", "rebuild"]


def __getattr__(name: str) -> Any:
    """What the page needs is imported when it is asked for, so that the command heeds a signal meanwhile."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.report import page

    return getattr(page, name)
