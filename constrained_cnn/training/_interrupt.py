"""Ctrl-C and SIGTERM: finish the step in flight, then stop; a second one stops at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """Turns the first SIGINT or SIGTERM into a flag while it is entered.

    One that is entered within another shares its flag: who asks the inner one to stop means both,
    and who asked before the inner one was entered is not forgotten. Outside the main thread, where
    Python delivers no signals, it does nothing.

    Args:
        quiet: Whether to say nothing.
        patient: Whether further signals mean no more than the first, where another process decides
            when to stop at once.
    """

    _outermost: ClassVar["InterruptGuard | None"] = None

    def __init__(self, *, quiet: bool = False, patient: bool = False) -> None:
        self._quiet = quiet
        self._patient = patient
        self._previous: dict[signal.Signals, Any] = {}
        self._asked = False
        self._leading = self

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self._leading._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            if InterruptGuard._outermost is None:
                InterruptGuard._outermost = self
                self._previous = {one: signal.signal(one, self._handle) for one in SIGNALS}
            self._leading = InterruptGuard._outermost
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if InterruptGuard._outermost is self:
            InterruptGuard._outermost = None
        for one, handler in self._previous.items():
            # None is what was set by other than Python, which cannot be set again.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            if self._patient:
                return
            raise KeyboardInterrupt
        self._asked = True
        # torchrun passes a signal on to each of its processes; the first one speaks for all.
        if self._quiet or os.environ.get("RANK", "0") != "0":
            return
        again = "press Ctrl-C again" if number == signal.SIGINT else "send the signal again"
        # This runs within a step, which must not fail because nobody reads what is said.
        with suppress(OSError, ValueError):
            print(
                f"\nStopping after this step; {again} to stop at once.", file=sys.stderr, flush=True
            )


@contextmanager
def signals_held(*signals: signal.Signals) -> Iterator[None]:
    """Let a process that is begun meanwhile get none of these signals, unless it asks for them.

    Ctrl-C goes to all processes of a terminal. It would end one that is still importing, or one
    that reads batches for a step that is to be finished.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start, with that of the process, would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
