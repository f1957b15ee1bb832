"""Ctrl-C and SIGTERM: finish the step in flight, then stop; a second one stops at once."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """Turns the first SIGINT or SIGTERM into a flag while it is entered.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Args:
        quiet: Whether to say nothing.

    Attributes:
        requested: Whether the run was asked to stop.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.requested = False
        self._quiet = quiet
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {one: signal.signal(one, self._handle) for one in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one, handler in self._previous.items():
            # None is what was set by other than Python, which cannot be set again.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._quiet:
            return
        again = "press Ctrl-C again" if number == signal.SIGINT else "send the signal again"
        print(f"\nStopping after this step; {again} to stop at once.", file=sys.stderr, flush=True)
