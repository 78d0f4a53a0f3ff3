"""One self-contained page of the results: leaderboards, figures, a page per method, texts side by side.

`python -m bench.report` writes it from stored records alone, without torch. columns.py holds the leaderboard's columns,
lines.py the page of a method, texts.py the continuations, page.py puts them together; page.html, page.css and page.js
are what a browser gets.
"""

from bench.report.page import Built, rebuild

__all__ = ["Built", "rebuild"]
