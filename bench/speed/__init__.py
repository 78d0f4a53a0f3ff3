"""How fast sampling and likelihood are, beside transformers, lm-eval and the model's matrix products alone."""
