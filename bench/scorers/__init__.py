"""Scorers, which judge one text each; one file per scorer."""
