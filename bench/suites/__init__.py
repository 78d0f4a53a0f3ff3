"""Suites, which measure a model; one file per suite."""
