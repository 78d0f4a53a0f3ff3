"""One file per export format, and what a method does to a model, measured (`effect`)."""
