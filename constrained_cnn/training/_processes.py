"""Work that is spread over processes of this machine, one item at a time to each."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, OutputError, reason_of
from constrained_cnn.training._interrupt import SIGNALS, InterruptGuard

Send = Callable[[Any], None]
Work = Callable[[Any, Send], Any]
POLL_SECONDS = 0.1
NOT_BEGUN = "not begun"


def in_processes(
    work: Work,
    items: Sequence[Any],
    *,
    workers: int,
    threads: int,
    on_message: Callable[[Any, Any], None],
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, result) of ``work(item, send)`` for every item, as they are done.

    The processes are new ones that import what they need. After Ctrl-C or SIGTERM each finishes as
    if it had got the signal itself, and items that were not begun are left out. If this process
    dies, each finishes as if it had got SIGTERM, and ends.

    Args:
        work: What to do; it is sent to the processes once, and may carry data.
        items: What to do it with.
        workers: Number of processes.
        threads: Threads of torch in each.
        on_message: Is called here with the item and what its work sent.

    Raises:
        InvalidInputError: If ``work`` cannot be sent to another process.
        OutputError: If it cannot be written to a temporary file, from which they read it.
        ConstrainedCNNError: If a process died.
    """
    try:
        content = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"workers={workers}: what is to be done cannot be sent to another process "
            f"({reason_of(error)}); define functions and classes at the top of a module, not in a "
            "notebook, a function or as a lambda, or give workers=1"
        ) from error
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    pids: set[int] = set()

    def read_messages() -> None:
        while not messages.empty():
            item, message = messages.get()
            if item is None:
                pids.add(message)
            else:
                on_message(item, message)

    with (
        InterruptGuard() as guard,
        _written(content) as file,
        ProcessPoolExecutor(
            workers, context, initializer=_begin, initargs=(file, threads, messages)
        ) as pool,
    ):
        waiting = list(items)
        begun: dict[Future[Any], Any] = {}
        told: set[int] = set()
        try:
            while begun or (waiting and not guard.requested):
                # No more than there are processes, as the pool begins what it has been given.
                while waiting and len(begun) < workers and not guard.requested:
                    item = waiting.pop(0)
                    begun[_submitted(pool, item)] = item
                done, _ = wait(begun, POLL_SECONDS, return_when=FIRST_COMPLETED)
                read_messages()
                for future in done:
                    item, result = begun.pop(future), future.result()
                    if result != NOT_BEGUN:
                        yield item, result
                if guard.requested:
                    _send_signal(pids - told, signal.SIGTERM)
                    told |= pids
        except BrokenProcessPool as error:
            raise ConstrainedCNNError(
                "a process that trained was killed from outside, perhaps because memory ran out; "
                "give fewer workers. What has a folder can be resumed"
            ) from error
        except BaseException as error:
            # The others keep what they have, but for a second Ctrl-C.
            at_once = not isinstance(error, Exception | GeneratorExit)
            _send_signal(pids, signal.SIGKILL if at_once else signal.SIGTERM)
            raise


@contextlib.contextmanager
def _written(content: bytes) -> Iterator[Path]:
    """Write what the processes are to read into a file that is gone afterwards.

    What is sent to a new process goes through a pipe: were it more than the pipe holds, and the
    process killed before it read it, this one would wait for it forever.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "work"
            file.write_bytes(content)
        except OSError as error:
            raise OutputError(
                f"cannot write {len(content):,} bytes for the processes that train to a temporary "
                f"file: {reason_of(error)}; TMPDIR names another folder for it"
            ) from error
        yield file


def _submitted(pool: ProcessPoolExecutor, item: Any) -> Future[Any]:
    """Hand an item to the pool, which begins a process for it if none is free."""
    try:
        with _signals_held():
            return pool.submit(_do, item)
    except OSError as error:  # also where a pool was broken while it began a process
        raise ConstrainedCNNError(
            f"a process that was to train could not be begun ({reason_of(error)}), perhaps because "
            "memory ran out; give fewer workers. What has a folder can be resumed"
        ) from error


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let a process that is begun meanwhile get no signal until it is ready for them.

    Ctrl-C goes to all processes of a terminal, and would end one that is still importing. (The
    resource tracker of multiprocessing must run already: its start would let them through.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send_signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


_work: Work
_messages: Any
_guard: InterruptGuard
_busy = threading.Lock()  # held while an item is worked on


def _begin(file: Path, threads: int, messages: Any) -> None:
    """Make a new process ready; the names it sets are its own."""
    global _work, _messages, _guard
    # Ctrl-C in a terminal goes to all processes at once; the first one passes it on.
    with contextlib.suppress(AttributeError, OSError):
        os.setpgrp()
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # drops what was held
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # For as long as the process lives: a signal between two items must not end it.
    _guard = InterruptGuard(quiet=True).__enter__()
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _work = pickle.loads(file.read_bytes())
    _messages = messages
    _messages.put((None, os.getpid()))


def _follow_parent() -> None:
    """Let the item under way end as after a signal when the parent is dead, then the process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        with _busy:
            os._exit(1)  # it waits for an item that nobody sends


def _do(item: Any) -> Any:
    with _busy:
        if _guard.requested:
            return NOT_BEGUN
        return _work(item, lambda message: _messages.put((item, message)))
