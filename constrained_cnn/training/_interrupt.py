"""Ctrl-C: finish the step in flight, then stop; a second one stops at once."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class InterruptGuard:
    """Turns the first SIGINT into a flag while it is entered.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._active = False

    def __enter__(self) -> Self:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print(
            "\nStopping after this step; press Ctrl-C again to stop at once.",
            file=sys.stderr,
            flush=True,
        )
