"""Find out the states of Slurm's jobs, even on a cluster that keeps no accounting.

submitit only asks `sacct`; if that command knows nothing, it waits forever for a job that was lost.
"""

import subprocess
import time

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

DELAY_SECONDS = 60
"""How often the cluster is asked at most; submitit's 600 s leave a lost job unnoticed for that long."""
GONE = "ENDED"
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", GONE)
"""Final states of jobs as `squeue` names them, and GONE for jobs that it forgot; in any other a job may run."""
QUEUE = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")


class Watcher(SlurmInfoWatcher):
    """Asks Slurm for the states of jobs: by `sacct`, or by `squeue` if the cluster keeps no accounting."""

    def update(self) -> None:
        """Ask for all jobs that are watched."""
        command = self._make_command()
        if command is None:
            return
        try:
            output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            self._info_dict.update(self.read_info(output))
        except (OSError, subprocess.CalledProcessError):
            self._info_dict.update(self._queued())
        self._last_status_check = time.time()
        self._finished |= {one for one in self._registered if self.is_done(one, mode="cache")}

    def wait(self) -> None:
        """Return when no job runs or waits any more."""
        while not all(self.is_done(one) for one in self._registered - self._finished):
            time.sleep(1.0)

    def _queued(self) -> dict[str, dict[str, str]]:
        """Return the state of each watched job; a job that left the queue has ended. Empty if Slurm does not answer."""
        try:
            output = subprocess.run(QUEUE, capture_output=True, check=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return {}
        states = dict(line.split("|", 1) for line in output.split())
        found = {one: states.get(one, GONE) for one in self._registered - self._finished}
        return {one: {"JobID": one, "State": state if state in ENDED else "RUNNING"} for one, state in found.items()}


def watch() -> Watcher:
    """Make this process use the watcher for the jobs that it launches."""
    SlurmJob.watcher = found = Watcher(delay_s=DELAY_SECONDS)
    return found
