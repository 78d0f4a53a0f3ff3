"""Names that results go by: the unsteered family, the random control, the order of the suites."""

from bench.records.table import Record

BASELINE_FAMILY = "none"
RANDOM = "random_direction"  # the control: what a direction without meaning does
SUITES = ("rtp", "fluency", "capability")  # shown in this order, others after them


def order(suite: str) -> tuple[int, str]:
    """Sort key of suites."""
    return (SUITES.index(suite) if suite in SUITES else len(SUITES), suite)


def sample_seed(record: Record) -> int | None:
    """None for a suite that samples nothing: its record is the same for every seed."""
    return record.facts["seed"]["sample"] if record.facts.get("sampling") else None
