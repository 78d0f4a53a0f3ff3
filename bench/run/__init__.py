"""Turn configs into records: of one cell, of the strengths that tuning tries, and of a sweep of cells."""
