"""Provenance of a result: recorded, never part of its identity."""

import functools
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

PLUGINS = "steerbench"
"""The group of entry points by which packages bring parts of their own."""
PACKAGES = ("steerbench", "torch", "transformers", "lm_eval", "datasets", "tokenizers", "numpy", "scikit-learn")


def provenance(card: str | None = None, hub: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return time, git commit, package versions and machine, as plain JSON values without a path or host name.

    card: the name of the GPU that computed the result. hub: id and commit of a model from the hub.
    """
    further = {"gpu": card, "hub": dict(hub) if hub is not None else None}
    told = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **_steady()}
    return told | {key: value for key, value in further.items() if value is not None}


@functools.cache
def _steady() -> dict[str, Any]:
    return {
        "git": _git(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES} | _plugins(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _plugins() -> dict[str, str]:
    """Return the version of each installed distribution that is a plug-in."""
    return {entry.dist.name: entry.dist.version for entry in entry_points(group=PLUGINS) if entry.dist}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit, and whether files differ from it; None outside a checkout, as in an installed wheel."""
    here = Path(__file__).parent
    try:
        commit = _output("git", "-C", str(here), "rev-parse", "HEAD")
        dirty = bool(_output("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str | None:
    """Return the name of the processor, on Linux from /proc/cpuinfo; None if it is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
