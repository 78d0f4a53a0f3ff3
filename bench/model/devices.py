"""The devices of this machine, the memory that is free on them, and what `auto` stands for."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from re import fullmatch
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from methods import placement
from methods.errors import SetupError

AUTO = "auto"  # accelerate spreads the model over all cards, then the CPU, then the disk
USED = {"cpu": 0.5}
USED_ELSEWHERE = 0.9
"""Share of the free memory that batches may take: on the CPU other programs want some of it as well."""
CGROUP = Path("/sys/fs/cgroup")  # a container's control group, whose limit the system's own figures leave out
SIZE = r"\d+(\.\d+)?\s*(GiB|MiB|KiB|GB|MB|KB)"  # sizes of memory, as accelerate reads them


def available() -> list[str]:
    """Return the names of the devices that torch finds here."""
    found = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return found


def check(device: str, auto: bool = True) -> None:
    """Raises SetupError for a device that this machine lacks. auto: whether `auto` is allowed, too."""
    allowed = [*available(), *([AUTO] if auto else [])]
    if device not in allowed:
        raise SetupError(f"device {device!r}: there is no such device here; allowed are {', '.join(allowed)}")


def single(device: str) -> str:
    """Return the one device for a whole model or a scorer; `auto` stands for a card if there is one."""
    if device != AUTO:
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def check_max_memory(limits: Any, device: str) -> None:
    """Raises SetupError unless the limits are null, or sizes for cards and the CPU with device=auto."""
    if limits is None:
        return
    if device != AUTO:
        raise SetupError(
            f"runtime.max_memory only works with runtime.device=auto, and runtime.device={device}; set "
            "runtime.device=auto, or runtime.max_memory=null"
        )
    wanted = "a mapping of cards and cpu to sizes, such as {0: 20GiB, cpu: 60GiB}"
    if not isinstance(limits, Mapping) or not limits:
        raise SetupError(f"runtime.max_memory={limits}: allowed is {wanted}, or null")
    cards = [str(number) for number in range(torch.cuda.device_count())]
    for name, size in limits.items():
        if str(name) not in ("cpu", *cards):
            raise SetupError(f"runtime.max_memory.{name}: there is no such device here; allowed is {wanted}")
        if not (isinstance(size, str) and fullmatch(SIZE, size)):
            raise SetupError(f"runtime.max_memory.{name}={size}: this is not a size; allowed is {wanted}")


def max_memory(limits: Mapping[Any, str] | None) -> dict[int | str, str] | None:
    """Return the limits as accelerate wants them: cards by their numbers."""
    if limits is None:
        return None
    return {int(name) if str(name).isdecimal() else str(name): size for name, size in limits.items()}


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated on a device now, including those that torch holds there without use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(int(psutil.virtual_memory().available), _left_in_container())


def _left_in_container() -> int:
    """Return the memory that the control group has left; cached file pages, which it would give back, count as free."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        kept = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return 2**63
    return max(0, limit - used + int(kept.get("inactive_file", 0)))


def free_for(model: PreTrainedModel) -> int:
    """Return the memory for batches of a model, in bytes, as if its blocks were all on one device.

    If a model is spread over several devices, each holds the cache of its own blocks, and the device that is full first
    decides.
    """
    own = placement.input_device(model)
    places = getattr(model, "hf_device_map", None) or {"": own}  # each entry of accelerate's map is about a block
    parts = Counter(own if place in ("cpu", "disk") else torch.device(place) for place in places.values())
    return min(
        int(USED.get(device.type, USED_ELSEWHERE) * free_bytes(device) * parts.total() / count)
        for device, count in parts.items()
    )
