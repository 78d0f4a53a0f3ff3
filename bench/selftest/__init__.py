"""What every method promises, one function for each promise; `bench.selftest` lists them all.

A check returns a line about what it saw. It raises `subject.Failure`, with numbers, where the promise is broken, and
`subject.Skipped`, with the reason, where it cannot be asked.
"""
