"""steerbench: compare ways of steering a language model on the same prompts, decoding, seeds and budgets."""
