"""Figures for papers: one file for each kind, each one function from a DataFrame to a matplotlib Figure.

`python -m bench.plots` draws them from records; `bench.plots.sweeps` makes the frames that are not the leaderboard's
own.
"""
