"""What methods learn from, one file for each source."""
