"""What looks at a model: one file per suite."""
