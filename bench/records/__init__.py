"""Results on disk: a record's content, its id, its provenance, and all records as one table."""
