"""Fetch everything that a cell or a sweep needs, without loading a model, and write down what it was."""
