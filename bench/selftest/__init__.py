"""Checks of what every method promises, one function for each promise; `bench.selftest` lists them all.

A check returns a line about what it saw. It raises `subject.Failure`, with numbers, if the promise is broken, and
`subject.Skipped`, with the reason, if the promise cannot be checked.
"""
