"""Results on disk: what a record holds, what it is called, where it came from, and all records as one table."""
