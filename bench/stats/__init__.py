"""Metrics, intervals and tests of differences. Nothing here knows of models, records or files."""
