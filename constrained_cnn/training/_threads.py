"""How many processor cores this process may really use."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many cores the process may use: by affinity, and by a container's quota.

    Torch counts the cores of the machine, and in a container that may use two of sixty-four starts
    64 threads, which then wait for one another.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = _quota(_CGROUP)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(root: Path) -> float | None:
    """Return the cores that a Linux control group grants, version 2 or 1; None for no limit."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii")
        except OSError:
            return None
    try:
        granted = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return granted if granted > 0 else None


@contextmanager
def using_threads(threads: int | None) -> Iterator[int]:
    """Let torch use so many threads for a while.

    Args:
        threads: How many; None for as many as torch would use, and no more than there are cores
            for this process. A choice of the user's, by ``OMP_NUM_THREADS`` or
            :func:`torch.set_num_threads`, is thereby kept.
    """
    before = torch.get_num_threads()
    chosen = min(before, usable_cores()) if threads is None else threads
    if chosen != before:
        torch.set_num_threads(chosen)
    try:
        yield chosen
    finally:
        if chosen != before:
            torch.set_num_threads(before)
