"""Speed of sampling and likelihood, beside transformers, lm-eval and the model's matrix products alone."""
