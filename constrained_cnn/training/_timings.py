"""Where the time of a run went, and how much memory it took."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from constrained_cnn.errors import InvalidInputError, check_integer, check_known_keys, check_number

START_UP, CAPTURE, TRAINING, EVALUATION, SAVING = (
    "start_up",
    "capture",
    "training",
    "evaluation",
    "saving",
)
PHASES = (START_UP, CAPTURE, TRAINING, EVALUATION, SAVING)


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of a run went; a run that was resumed adds up.

    Attributes:
        start_up: Seconds from the call to the first step: data to the device, a trial of the model,
            the table of learning rates.
        capture: Seconds in which the training step was captured as a CUDA graph; 0 without one.
        training: Seconds of training steps.
        evaluation: Seconds of the readings after epochs, and of what comes after the last step.
        saving: Seconds in which checkpoints and histories were written.
        samples: Number of samples that the training steps met, in all processes.
        peak_memory: Bytes, of this process: on a GPU the most that tensors took at one time; else
            the most memory that it ever had, whatever for. None where the system does not say.
    """

    start_up: float = 0.0
    capture: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    saving: float = 0.0
    samples: int = 0
    peak_memory: int | None = None

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return sum(getattr(self, phase) for phase in PHASES)

    @property
    def throughput(self) -> float | None:
        """Training samples a second, while training; None before the first."""
        return self.samples / self.training if self.samples and self.training > 0 else None

    def __str__(self) -> str:
        parts = [
            f"{phase.replace('_', '-')} {getattr(self, phase):.1f} s"
            for phase in PHASES
            if getattr(self, phase) >= 0.05
        ]
        if self.throughput is not None:
            parts.append(f"{self.throughput:,.0f} samples/s")
        if self.peak_memory is not None:
            parts.append(f"peak memory {self.peak_memory / 2**20:,.0f} MiB")
        return ", ".join(parts) or "no time taken"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, with ``throughput``."""
        return {**dataclasses.asdict(self), "throughput": self.throughput}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Timings":
        """Return the timings that :meth:`to_dict` described.

        Raises:
            InvalidInputError: If a value is unknown or of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"timings={values!r}: must be a table")
        fields = {field.name for field in dataclasses.fields(cls)}
        check_known_keys("timings", values, fields | {"throughput"})
        own = {name: value for name, value in values.items() if name in fields}
        for phase in PHASES:
            check_number(phase, own.get(phase, 0.0), minimum=0.0)
        check_integer("samples", own.get("samples", 0), minimum=0)
        if own.get("peak_memory") is not None:
            check_integer("peak_memory", own["peak_memory"], minimum=0)
        return cls(**own)


class Stopwatch:
    """Adds up the seconds of each phase; at any time one of them runs.

    Args:
        device: Where the run trains; from now on its peak of memory is that of the run.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = START_UP
        self._since = time.perf_counter()

    def start(self, phase: str) -> str:
        """Let ``phase`` run from now on, and return the one that ran."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before

    def read(
        self, device: torch.device, *, samples: int, captured: float, before: Timings
    ) -> Timings:
        """Return the timings up to now.

        Args:
            device: Where the run trains.
            samples: Samples met by the training steps of this part of the run.
            captured: Seconds of the training phase in which a step was captured.
            before: Those of the parts of the run that came before.
        """
        self.start(self._phase)
        seconds = dict(self._seconds)
        seconds[CAPTURE] += captured
        seconds[TRAINING] = max(0.0, seconds[TRAINING] - captured)
        sums = {phase: getattr(before, phase) + seconds[phase] for phase in PHASES}
        peaks = [peak for peak in (before.peak_memory, peak_memory(device)) if peak is not None]
        return Timings(
            **sums, samples=before.samples + samples, peak_memory=max(peaks, default=None)
        )


def peak_memory(device: torch.device) -> int | None:
    """Return the most memory that was in use, in bytes; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
