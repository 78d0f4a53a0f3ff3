"""Fetch everything that a cell or a sweep needs, without loading a model, and list what was fetched."""
