"""The language model: its files, tokenizer and decoding, sampling and log-likelihood, steered or not."""
