"""Freed memory stays while it is asked to, and only with glibc, where nobody has chosen."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from constrained_cnn.training import _allocator
from constrained_cnn.training._allocator import CHOICES, keep_freed_memory

# Page faults of taking and freeing 8 blocks of 16 MB: before, within and after. The system gives a
# page of 4 kB, or a larger one, at a fault.
FAULTS = """
import resource

import torch
from constrained_cnn.training._allocator import keep_freed_memory

torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(4 * 2**20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with keep_freed_memory():
    faults()
    print(faults())
print(faults())
"""


class Calls:
    """A glibc that writes down what it is asked."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int, int]] = []

    def gnu_get_libc_version(self) -> bytes:
        return b"2.36"

    def mallopt(self, parameter: int, value: int) -> int:
        self.made.append(("mallopt", parameter, value))
        return 1

    def malloc_trim(self, pad: object) -> int:
        self.made.append(("malloc_trim", 0, 0))
        return 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A Linux with glibc, in an environment that chooses nothing."""
    libc = Calls()
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    return libc


# After the block the heap keeps at most 64 MiB; malloc.h: M_TRIM_THRESHOLD -1, M_MMAP_THRESHOLD -3.
WITHIN = [("mallopt", -3, 2**25), ("mallopt", -1, 2**31 - 1)]
AFTER = [("mallopt", -1, 2**26), ("malloc_trim", 0, 0)]


@pytest.mark.skipif(_allocator._glibc() is None, reason="not glibc, or told what to keep")
def test_faults_vanish_within_and_come_back_after() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, within, after = map(int, run.stdout.split())
    assert before > 10 * within, run.stdout
    assert after > 10 * max(within, 100), run.stdout  # how many depends on the version of torch


def test_what_glibc_is_told(calls: Calls) -> None:
    with keep_freed_memory():
        assert calls.made == WITHIN
    assert calls.made == WITHIN + AFTER


def test_it_ends_where_the_block_fails(calls: Calls) -> None:
    with pytest.raises(KeyError), keep_freed_memory():
        raise KeyError
    assert calls.made == WITHIN + AFTER


@pytest.mark.parametrize("name", CHOICES)
def test_the_users_choice_stands(name: str, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with keep_freed_memory():
        pass
    assert calls.made == []


def test_an_empty_variable_is_no_choice(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    with keep_freed_memory():
        assert calls.made == WITHIN


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_nothing_is_done_on_other_systems(
    platform: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with keep_freed_memory():
        pass
    assert calls.made == []


@pytest.mark.parametrize("missing", ["gnu_get_libc_version", "mallopt", "malloc_trim"])
def test_nothing_is_done_with_another_c_library(
    missing: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Musl has none of these; Android's C library has a mallopt with other numbers."""
    names = {"gnu_get_libc_version", "mallopt", "malloc_trim"} - {missing}
    other = SimpleNamespace(**{name: getattr(calls, name) for name in names})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: other)
    with keep_freed_memory():
        pass
    assert calls.made == []
