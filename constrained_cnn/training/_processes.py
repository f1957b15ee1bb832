"""Work that is spread over processes of this machine, one item at a time to each."""

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    OutputError,
    reason_of,
    say_value,
)
from constrained_cnn.training._interrupt import SIGNALS, InterruptGuard, signals_held

Send = Callable[[Any], None]
Work = Callable[[Any, Send], Any]
POLL_SECONDS = 0.1

# What a process says.
READY = "ready"
SENT = "sent"
DONE = "done"
FAILED = "failed"
NOT_BEGUN = "not begun"
NOTHING = "nothing"


def in_processes(
    work: Work,
    items: Sequence[Any],
    *,
    workers: int,
    threads: int,
    on_message: Callable[[Any, Any], None],
) -> Generator[tuple[Any, Any], None, None]:
    """Yield (item, result) of ``work(item, send)`` for every item, as they are done.

    The processes are new ones that import what they need. After Ctrl-C or SIGTERM each finishes as
    if it had got the signal itself, and items that were not begun are left out; so do the others
    where one fails, before its error is raised. A second Ctrl-C ends them at once. If this process
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
        ConstrainedCNNError: If a process died, or what it gave or raised cannot be sent.
        Exception: What ``work`` raised, with a note that says where.
    """
    try:
        content = pickle.dumps(work)
    except Exception as error:  # what pickle calls may raise anything
        raise _not_sendable(error, f"workers={workers}: ") from error
    team: list[_Worker] = []
    with InterruptGuard() as guard, _written(content) as file:
        try:
            for _ in range(min(workers, len(items))):
                _begin(team, file, threads)
            yield from _worked_through(team, items, guard, on_message)
            _finish(team)
        except (Exception, GeneratorExit):
            _finish(team)
            raise
        finally:
            _kill(team)  # they are gone by now, but after a second Ctrl-C


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


class _Worker:
    """A process that does one item at a time, as the first process sees it.

    Not one of a ``ProcessPoolExecutor``: its processes share locks and a pipe, so that where one is
    killed the others may wait for what it held, and it gives them items before they are ready.

    Attributes:
        process: The process.
        pipe: Leads to it and back.
        item: What it was given last.
        ready: Whether it can be given an item, and gets signals.
        busy: Whether it works on an item.
        retired: Whether it begins no further item, as somebody else asked it to stop.
    """

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.item: Any = None
        self.ready = self.busy = self.retired = False
        self._asked_to_stop = self._asked_to_end = False

    def give(self, item: Any) -> None:
        """Let it work on an item."""
        self.item, self.busy = item, True
        self._send((item,))

    def stop(self) -> None:
        """Let it stop what it works on. It is asked once, as a second signal means at once."""
        if self.busy and not self._asked_to_stop:
            self._asked_to_stop = True
            self.process.terminate()

    def end(self) -> None:
        """Let it end: when it has stopped, or now if it works on nothing."""
        if self.busy:
            self.stop()
        elif not self.ready:
            self.process.kill()
        elif not self._asked_to_end:
            self._asked_to_end = True
            self._send(None)

    def hear(self) -> tuple[str, Any]:
        """Return the next that it said: of what kind, and what.

        Raises:
            EOFError: If it has died, and nothing is left to hear.
        """
        alive = self.process.is_alive()  # before it is looked whether it has said something
        try:
            if not self.pipe.poll():
                if alive:
                    return NOTHING, None
                raise EOFError
            kind, content = self.pipe.recv()
        except OSError as error:
            raise EOFError from error
        self.ready = self.ready or kind == READY
        self.busy = self.busy and kind == SENT
        return kind, content

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is dead, which is noticed when it is heard
            self.pipe.send(message)


def _begin(team: list[_Worker], file: Path, threads: int) -> None:
    """Begin a process, and add it to the team."""
    context = multiprocessing.get_context("spawn")
    try:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(file, threads, there))
        team.append(_Worker(process, here))  # before a signal can come in between
        with signals_held(*SIGNALS):  # until it is ready for them
            process.start()
    except OSError as error:
        raise ConstrainedCNNError(
            f"a process that was to train could not be begun ({reason_of(error)}), perhaps because "
            "memory ran out; give fewer workers. What has a folder can be resumed"
        ) from error
    there.close()  # or its end would not be noticed here


def _worked_through(
    team: Sequence[_Worker],
    items: Sequence[Any],
    guard: InterruptGuard,
    on_message: Callable[[Any, Any], None],
) -> Iterator[tuple[Any, Any]]:
    """Give the items out; yield each with its result, until all are done or it is asked to stop."""
    waiting = list(items)
    while any(one.busy for one in team) or (
        waiting and not guard.requested and not all(one.retired for one in team)
    ):
        for one in team:
            if guard.requested:
                one.stop()
            elif waiting and one.ready and not (one.busy or one.retired):
                one.give(waiting.pop(0))
        wait_for_any([one.pipe for one in team], POLL_SECONDS)
        for one in team:
            try:
                kind, content = one.hear()
            except EOFError:
                raise _death(one) from None
            if kind == SENT:
                on_message(one.item, pickle.loads(content))
            elif kind == NOT_BEGUN:  # somebody else asked this one to stop
                waiting.insert(0, one.item)
                one.retired = True
            elif kind == DONE:
                yield one.item, _result(one.item, content)
            elif kind == FAILED:
                raise content.error()


def _finish(team: Sequence[_Worker]) -> None:
    """Let every process stop and end, and wait for it."""
    while alive := [one for one in team if one.process.is_alive()]:
        for one in alive:
            one.end()
        wait_for_any([one.process.sentinel for one in alive], POLL_SECONDS)
        for one in alive:
            # A process ends only when it is heard: what it says may be more than a pipe holds.
            with contextlib.suppress(EOFError):
                while one.hear()[0] != NOTHING:
                    pass


def _kill(team: Sequence[_Worker]) -> None:
    begun = [one.process for one in team if one.process.pid is not None]
    for process in begun:
        process.kill()
    for process in begun:
        process.join()
    for one in team:
        one.pipe.close()


def _death(one: _Worker) -> ConstrainedCNNError:
    """Return the error that says why a process is dead."""
    one.process.join(1)  # it may be about to end
    code = one.process.exitcode or 0
    if code == -signal.SIGKILL:
        return ConstrainedCNNError(
            f"a process that trained was killed (signal {-code}), perhaps because memory ran out; "
            "give fewer workers. What has a folder can be resumed"
        )
    if code < 0:
        return ConstrainedCNNError(
            f"a process that trained crashed (signal {-code}); what it printed may say why. What "
            "has a folder can be resumed"
        )
    if not one.ready:
        return ConstrainedCNNError(
            "a process that was to train could not begin; what it printed says why. A script needs "
            '`if __name__ == "__main__":` around what it runs, as every process imports the script'
        )
    return ConstrainedCNNError(
        f"a process that trained ended of itself (exit code {code}); what it printed says why. "
        "What has a folder can be resumed"
    )


def _result(item: Any, content: bytes) -> Any:
    try:
        return pickle.loads(content)
    except Exception as error:
        raise _not_a_result(item, error) from error


def _not_a_result(item: Any, error: Exception) -> ConstrainedCNNError:
    return ConstrainedCNNError(
        f"item={say_value(item)}: its result cannot be sent from the process that made it "
        f"({reason_of(error)}); it must be what pickle can write and read, or give workers=1"
    )


def _not_sendable(error: Exception, asked: str = "") -> InvalidInputError:
    return InvalidInputError(
        f"{asked}what is to be done cannot be sent to another process ({reason_of(error)}); define "
        "functions and classes at the top of a module, not in a notebook, a function or as a "
        "lambda, or give workers=1"
    )


@dataclass(frozen=True)
class _Failure:
    """An error on its way from the process that raised it.

    Attributes:
        said: Its kind and message.
        trace: Its traceback.
        content: The error as pickle writes it; nothing if it cannot, or if it is none to pass on.
    """

    said: str
    trace: str
    content: bytes

    @classmethod
    def of(cls, error: BaseException) -> "_Failure":
        content = b""
        if isinstance(error, Exception):  # others would end the first process as well
            with contextlib.suppress(Exception):
                content = pickle.dumps(error)
        said = "".join(traceback.format_exception_only(error)).strip()
        return cls(said, "".join(traceback.format_exception(error)), content)

    def error(self) -> Exception:
        """Return the error, or one that names it if it cannot be made again here."""
        error = None
        with contextlib.suppress(Exception):
            error = pickle.loads(self.content)
        if not isinstance(error, Exception):
            error = ConstrainedCNNError(
                f"a process raised {self.said} (the error itself cannot be sent from one process "
                "to another; workers=1 raises it here)"
            )
        error.add_note(f"It was raised in another process:\n{self.trace}")
        return error


def _serve(file: Path, threads: int, pipe: Connection) -> None:
    """Work on one item after another: what a new process does."""
    # Ctrl-C in a terminal goes to all processes at once; the first one passes it on.
    with contextlib.suppress(AttributeError, OSError):
        os.setpgrp()
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # drops what was held
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    busy = threading.Lock()
    # Around all items: a signal between two of them must not end the process.
    with InterruptGuard(quiet=True, patient=True) as guard:
        threading.Thread(target=_follow_parent, args=(busy, file), daemon=True).start()
        torch.set_num_threads(threads)
        try:
            work = pickle.loads(file.read_bytes())
        except (AttributeError, ImportError) as error:  # it is of a notebook, or of the wrong path
            pipe.send((FAILED, _Failure.of(_not_sendable(error))))
            return
        with contextlib.suppress(EOFError, OSError):  # the first process is dead
            pipe.send((READY, None))
            while (given := pipe.recv()) is not None:
                with busy:
                    reply = _reply(work, given[0], guard, pipe)
                pipe.send(reply)


def _reply(work: Work, item: Any, guard: InterruptGuard, pipe: Connection) -> tuple[str, Any]:
    """Work on an item; return what is to be said of it at the end."""

    def send(message: Any) -> None:
        content = pickle.dumps(message)
        with contextlib.suppress(OSError):  # the first process is dead, and the work soon stopped
            pipe.send((SENT, content))

    if guard.requested:
        return NOT_BEGUN, None
    try:
        result = work(item, send)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is to be raised there
        return FAILED, _Failure.of(error)
    try:
        return DONE, pickle.dumps(result)
    except Exception as error:  # noqa: BLE001 - what pickle calls may raise anything
        return FAILED, _Failure.of(_not_a_result(item, error))


def _follow_parent(busy: threading.Lock, file: Path) -> None:
    """Let the item under way end as after a signal when the parent is dead, then the process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(file.parent, ignore_errors=True)  # which the parent would have done
        os.kill(os.getpid(), signal.SIGTERM)
        with busy:
            os._exit(1)  # it waits for an item that nobody sends
