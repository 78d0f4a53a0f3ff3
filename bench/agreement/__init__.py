"""Measure how far scorers agree with human labels and with Perspective's (`python -m bench.agreement`)."""
