"""What every test and example stands on: fixed seeds, one thread, no network, nothing left behind.

It lies here, and not in ``tests``, for the examples in the docstrings of the package.
"""

import ipaddress
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from left_behind import nothing_left_behind

# More threads than one change the order of sums, and fight with one another on small networks.
torch.set_num_threads(1)

# How long an example takes, and to draw it, is a matter of the machine and of what else it does.
hypothesis.settings.register_profile(
    "dev", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("dev"), derandomize=True, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

SHARED_DATA = Path(__file__).resolve().parents[1] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-randomly draw the order alone: the seeds of the tests are those set here."""
    config.option.randomly_reset_seed = False


class NetworkUsedError(Exception):
    """A test tried to leave the machine.

    It is not an ``OSError``, so that code which is ready for a missing network cannot hide it.
    """


def _is_local(host: Any) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        text = host.decode() if isinstance(host, bytes) else str(host)
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Make every connection and every name look-up that would leave the machine an error."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def refuse_remote(address: Any) -> None:
        # A Unix socket has a path for an address, not a pair.
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise NetworkUsedError(f"address={address!r}: tests must pass without a network")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse_remote(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse_remote(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_remote((host,))
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Put registries back, and fail a test that leaves a setting of the process changed."""
    with nothing_left_behind():
        yield


@pytest.fixture(autouse=True)
def _same_seeds(_nothing_left_behind: None) -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - other libraries draw from numpy's global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that holds the real ``MNIST/raw``; the test is skipped where there is none."""
    named = os.environ.get("CONSTRAINED_CNN_DATA")
    root = Path(named).resolve() if named else SHARED_DATA
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(
            f"no MNIST/raw in {str(root)!r}: set CONSTRAINED_CNN_DATA to the folder that holds it"
        )
    return root


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say the seed of the order at the end too, where a failure is read."""
    seed = terminalreporter.config.getoption("randomly_seed", None)
    if isinstance(seed, int):
        terminalreporter.write_line(f"the order of tests: --randomly-seed={seed}")
