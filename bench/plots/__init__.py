"""Figures for papers: each kind has a file with a function from a DataFrame to a matplotlib Figure.

`python -m bench.plots` draws them from records; `bench.plots.sweeps` makes those frames that the leaderboard does not
have.
"""
