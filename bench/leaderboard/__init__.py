"""Tables from records: which results compare, by how much they differ, who ranks where, and as which files."""
