"""A plug-in of steerbench: a method, a scorer, a suite, a model and an experiment."""
