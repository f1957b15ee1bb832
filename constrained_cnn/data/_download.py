"""A download by torchvision that gives up in time and leaves nothing half done."""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from constrained_cnn.data._files import check_files

__all__ = ["download_files"]

# One mirror that does not answer costs 5 seconds; the whole is given up 10 seconds after the last
# byte. The second limit holds where the first does not: name look-ups, hosts with many addresses.
_ANSWER_SECONDS = 5.0
_STALL_SECONDS = 10.0


def download_files(
    torchvision_name: str, root: Path, folder: str, files: Sequence[str], md5: Sequence[str]
) -> None:
    """Download a set of ``torchvision.datasets`` and put its files into ``root / folder``.

    It goes to a temporary folder first, and in place when all files are complete.

    Raises:
        OSError: If the network does not answer, or the folder cannot be written.
        RuntimeError: If what came is not what was asked for, or nothing came for 10 seconds.
        DataError: If the files unpacked are damaged.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    attempt = _Attempt(torchvision_name, temporary)
    try:
        with _answer_within(_ANSWER_SECONDS), contextlib.redirect_stdout(sys.stderr):
            attempt.start()
            _wait(attempt)
        if attempt.error is not None:
            raise attempt.error
        check_files(temporary / folder, files, md5)
        _put_in_place(temporary / folder, root / folder, files)
    finally:
        attempt.left = True
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # only those that are empty go, innermost first
            for empty in made:
                empty.rmdir()


class _Attempt(threading.Thread):
    """The download, in a thread: one that hangs in the system cannot be stopped, only left."""

    def __init__(self, torchvision_name: str, target: Path) -> None:
        super().__init__(name=f"download of {torchvision_name}", daemon=True)
        self.torchvision_name = torchvision_name
        self.target = target
        self.error: Exception | None = None
        self.left = False

    def run(self) -> None:
        try:
            from torchvision import datasets

            getattr(datasets, self.torchvision_name)(self.target, download=True)
        except (OSError, RuntimeError) as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  (a broken answer or archive: many types)
            self.error = RuntimeError(f"{type(error).__name__}: {error}")
        if self.left:
            shutil.rmtree(self.target, ignore_errors=True)


def _wait(attempt: _Attempt) -> None:
    size, last_growth = -1, time.monotonic()
    while attempt.is_alive():
        attempt.join(timeout=0.1)
        now, grown = time.monotonic(), _size(attempt.target)
        if grown != size:
            size, last_growth = grown, now
        elif now - last_growth > _STALL_SECONDS:
            raise RuntimeError(f"no answer from the network for {_STALL_SECONDS:.0f} seconds")


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(path, name))
    return total


def _put_in_place(source: Path, target: Path, files: Sequence[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        target.rmdir()  # only an empty one goes
    if not target.exists():
        with contextlib.suppress(OSError):  # another process may have been faster
            source.replace(target)
            return
    for name in files:
        (source / name).replace(target / name)


@contextlib.contextmanager
def _answer_within(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
