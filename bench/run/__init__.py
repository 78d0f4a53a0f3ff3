"""From a config to records: a cell, the strengths that are tried for it, and a sweep of cells."""
