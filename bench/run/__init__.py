"""Running: a config becomes records, for one cell, for the strengths that are tried, and for a sweep of cells."""
