"""Data sets: where they come from, prompts and splits, and lm-eval's tasks."""
