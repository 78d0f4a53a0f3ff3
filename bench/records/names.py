"""Names in results: the unsteered family, the random control, the order of the suites."""

BASELINE_FAMILY = "none"
RANDOM = "random_direction"  # a control for every method: what a direction without meaning does
CONTROL_FAMILY = "control"  # of a method's own control (bench/run/control.py)
CONTROL = " control"  # ends its name
SUITES = ("rtp", "fluency", "capability")  # shown in this order, others after them


def is_control(method: str, family: str) -> bool:
    """Whether a row is a control: neither a method nor the unsteered model."""
    return family == CONTROL_FAMILY or method == RANDOM


def order(suite: str) -> tuple[int, str]:
    """Sort key of suites."""
    return (SUITES.index(suite) if suite in SUITES else len(SUITES), suite)
