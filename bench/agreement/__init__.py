"""Measure how far scorers agree with people's labels and with Perspective's (`python -m bench.agreement`)."""
