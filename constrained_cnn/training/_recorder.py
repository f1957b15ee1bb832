"""What records a step: a CUDA device, or in a test a stand-in that needs none."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Recorder(Protocol):
    """Runs steps and records them. A test puts a stand-in here that needs no GPU."""

    def run(self, step: Callable[[], Result]) -> Result:
        """Run a step in the place where steps are recorded."""

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run a step, and raise RuntimeError where the host reads from the device."""

    def capture(self, step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record a step without executing it.

        Returns:
            What executes it, and what it returned while it was recorded.
        """

    def close(self) -> None:
        """Give back what was recorded, of which nothing is executed any more."""


class CudaRecorder:
    """Records on a CUDA device, each graph in a memory pool of its own.

    Everything happens on one stream beside the current one, with the order of the two kept, and no
    step runs on the current one. For as long as anything of a backward pass is held, autograd
    remembers the stream of its weights, and a recording that waits for another stream breaks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def run(self, step: Callable[[], Result]) -> Result:
        """Run a step after what the current stream has to do, and before what it will have to."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream):
                    return step()
            finally:
                current.wait_stream(self._stream)

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run a step, with torch watching for what makes the host wait.

        A recording would fail there as well, but leaves more behind that has to be cleaned up.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # Torch warns that the mode does not see everything. The recording does.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.run(step)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def capture(self, step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record a step; where that fails, leave stream and random numbers in working order."""
        graph = torch.cuda.CUDAGraph()
        failure: BaseException | None = None
        collecting = gc.isenabled()
        gc.disable()  # freeing some other graph or memory in the middle would end the recording
        try:
            with (
                torch.cuda.device(self._device),
                # torch.cuda.graph enters it too, and does not give it back where its end fails.
                torch.cuda.stream(self._stream),
                # Other threads may do as they like meanwhile: a DataLoader that pins memory does.
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    result = step()
                except BaseException as error:
                    failure = error
                    raise
        except BaseException:
            self._clean_up()
            if failure is not None:
                raise failure from None  # not what the end of a broken recording says
            raise
        finally:
            failure = None  # else it would hold, through its traceback, itself and the graph
            if collecting:
                gc.enable()
        self._graphs.append(graph)
        return graph.replay, result

    def close(self) -> None:
        """Give back graphs and memory, once the device is done with them.

        NCCL waits at the end of a process group for the graphs that hold its exchanges.
        """
        if self._graphs:
            torch.cuda.synchronize(self._device)
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()

    def _clean_up(self) -> None:
        """Make random numbers work after a recording that failed."""
        torch.cuda.synchronize(self._device)
        try:
            torch.empty(1, device=self._device).uniform_()
        except RuntimeError:
            # In older torch the generator goes on believing that it is recorded. A copy does not.
            with torch.cuda.device(self._device):
                index = torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def settings_for(device: torch.device) -> Iterator[None]:
    """Set for a while how torch chooses kernels and casts, as a recording needs it."""
    backend = torch.backends.cudnn
    benchmark = backend.benchmark
    # Trying kernels out is done in the rehearsals, and pays as the choice holds for the whole run.
    repeatable = torch.are_deterministic_algorithms_enabled() or backend.deterministic
    backend.benchmark = not repeatable
    try:
        # A weight that autocast has cast and kept would never be cast again.
        with torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        ):
            yield
    finally:
        backend.benchmark = benchmark
