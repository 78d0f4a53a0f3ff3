"""Sources of training data for methods; one file per source."""
