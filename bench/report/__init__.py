"""One self-contained page of the results: leaderboards, figures, a page per method, texts side by side.

`python -m bench.report` writes it from stored records alone and needs no torch. columns.py makes the leaderboard's
columns, method_page.py the page of a method, texts.py the continuations, and page.py puts them together; templates/
holds the HTML, style and script.
"""
