"""Names that results go by: the unsteered family, the random control, the order of the suites."""

BASELINE_FAMILY = "none"
RANDOM = "random_direction"  # the control: what a direction without meaning does
SUITES = ("rtp", "fluency", "capability")  # shown in this order, others after them


def order(suite: str) -> tuple[int, str]:
    """Sort key of suites."""
    return (SUITES.index(suite) if suite in SUITES else len(SUITES), suite)
