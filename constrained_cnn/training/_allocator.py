"""Memory that a training step frees stays for the next one."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

_MOST = 2**31 - 1  # mallopt takes an int
# The most that glibc takes as its threshold, and that its own adjustment sets it to.
_MMAP_MOST = 32 * 2**20

# Who sets one of these has made the choice already, or has another allocator.
CHOICES = (
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process, up to 2 GiB, while the block runs.

    A step on a CPU frees its activations, and glibc, the C library of most Linux systems, gives
    them back to the system; the next step takes them again, page by page, and the system clears
    each page first. Here glibc is told to keep them, and at the end of the block to give back what
    is free.

    glibc does not tell what its thresholds were, so not all is undone: afterwards they are as large
    as its own adjustment makes them once blocks of 32 MiB were freed (32 MiB for a block of its
    own, 64 MiB free at the end of the heap), and that adjustment stays off. A block in another ends
    both.

    Nothing is done without glibc, or where the environment says how memory is allocated
    (``GLIBC_TUNABLES``, ``LD_PRELOAD``, ``MALLOC_TRIM_THRESHOLD_`` and the like).

    Examples:
        >>> import torch
        >>> with keep_freed_memory():
        ...     total = sum(torch.ones(1000, 1000).sum() for _ in range(10))
        >>> total
        tensor(10000000.)

    References:
        mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _MMAP_MOST)
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MMAP_MOST)
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc and nobody has told it what to keep."""
    if sys.platform != "linux" or any(os.environ.get(name) for name in CHOICES):
        return None
    libc = ctypes.CDLL(None)
    # Another C library may have a mallopt of its own, with other numbers.
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in wanted) else None
