"""The treatment of results that are stored already: `runtime.overwrite`."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.files import digests
from methods.errors import SetupError

Rule = Literal["damaged", "never", "always"]
NEVER = "with runtime.overwrite=never nothing is set aside; look at it, and move it away or leave that option out"


@dataclass(frozen=True)
class Overwrite:
    """The rule of a command for stored results.

    "damaged": a damaged result is set aside and computed again. "never": a damaged result is an error. "always":
    everything is computed again, once, and an old result stays until the new one is whole.

    began: when the command began, in seconds since 1970. made: names of the folders that this process has written.
    """

    rule: Rule = "damaged"
    began: float = field(default_factory=time.time)
    made: set[str] = field(default_factory=set)

    @property
    def replaces(self) -> bool:
        """Return whether new results replace results that are complete."""
        return self.rule == "always"

    def counts(self, folder: Path) -> bool:
        """Return whether the content of a folder may be used; with "always" only if this command has written it."""
        if not self.replaces or folder.name in self.made:
            return True
        try:
            return folder.stat().st_mtime >= self.began
        except OSError:
            return False

    def forget(self, folder: Path) -> None:
        """Remove unfinished work that a stopped run has kept in this folder, unless it counts."""
        if not self.counts(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def set_aside(self, folder: Path, error: digests.DamagedError) -> None:
        """Set a damaged folder aside, with a warning. Raises SetupError with "never"."""
        if self.rule == "never":
            raise SetupError(f"{error}; {NEVER}")
        digests.set_aside(folder, error)
