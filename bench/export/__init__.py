"""The export formats, one module for each, and the measurement of what a method does to a model (`effect`)."""
