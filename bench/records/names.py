"""Names in results: the unsteered family, the random control, the order of the suites."""

from collections.abc import Mapping, Sequence
from typing import Literal

Split = Literal["dev", "test"]
BASELINE_FAMILY = "none"
RANDOM = "random_direction"  # a control for every method: what a direction without meaning does
CONTROL_FAMILY = "control"  # of a method's own control (bench/run/control.py)
CONTROL = " control"  # ends its name
SUITES = ("rtp", "fluency", "capability")  # shown in this order, others after them


def told_norm_over(options: Mapping[str, Sequence[object]] | None) -> str | None:
    """Return `norm_over` as results name it: the sets of pairs that a mean norm is over, as "behaviour=a,b"."""
    values = {name: sorted(one.rpartition("/")[2] for one in {*map(str, of)}) for name, of in (options or {}).items()}
    return "; ".join(f"{name}={','.join(of)}" for name, of in sorted(values.items())) or None


def is_control(method: str, family: str) -> bool:
    """Return whether a row is a control: neither a method nor the unsteered model."""
    return family == CONTROL_FAMILY or method == RANDOM


def order(suite: str) -> tuple[int, str]:
    """Return the key by which suites are sorted."""
    return (SUITES.index(suite) if suite in SUITES else len(SUITES), suite)
