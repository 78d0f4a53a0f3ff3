"""Where texts come from: sources, prompts, and what methods learn from."""
