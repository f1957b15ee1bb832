"""What a run was and gave, as plain data: :class:`RunRecord`. Imports no torch.

A record is one JSON file that a person can read and a program can trust: it carries its schema
version and a checksum of its own content, so a truncated or edited file is noticed.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from constrained_cnn.errors import (
    CheckpointError,
    InvalidInputError,
    OutputError,
    check_flag,
    check_integer,
    check_known_keys,
    say_value,
)

__all__ = ["SCHEMA_VERSION", "RunRecord", "write_atomically"]

SCHEMA_VERSION = 1
# The end of the name of a file that is being written.
UNFINISHED = ".constrained-cnn-part"  # nobody else's files end so
# The one purpose for which a reading of the test set chooses nothing.
AFTER_LAST_EPOCH = "after the last epoch"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never half.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed. Missing folders are made.

    Returns:
        The path written.

    Raises:
        OutputError: If the folder cannot be made or written; what was there stays.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent
        )
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files only their owner can read; a result is as open as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise OutputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; "
            "choose a folder you can write to"
        ) from error
    finally:
        # Also after Ctrl-C: nothing half written stays behind.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return target


def remove_unfinished(folder: Path) -> None:
    """Remove what :func:`write_atomically` left in a folder when its process was killed.

    Only for who alone writes into the folder: what another is writing just now looks the same.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training run: what went in, what came out, and on what machine.

    Accuracies are in percent, losses are means over samples, times are in seconds.

    Attributes:
        recipe: Name of the recipe, or of the script that ran.
        model: Name of the model in the registry, or of its class.
        seed: The seed of initial weights, order, augmentation and dropout.
        status: ``"finished"`` or ``"interrupted"``.
        parameters: Number of parameters, all of them counted.
        epochs: Number of epochs that really ran to their end.
        config: The training configuration, as plain data.
        rerunnable: Whether the record is enough to run it again; False where a Python callable
            took part, which a file cannot hold.
        data: The data set: name, checksums and sizes, mean and deviation, augmentation.
        test_readings: Every reading of the test set, in order: its epoch and its purpose.
        result: Final figures: ``test_accuracy``, ``test_loss``, ``test_errors``, ``seconds``, and
            ``timings``: where the time went, samples a second, peak memory.
        history: One row per epoch.
        weights_sha256: Checksum of the run's weight file; None if the run is not finished.
        environment: Versions, hardware, threads, commit, date.
        weight_shapes: Shape of each parameter of the network, in order, by which it is known again;
            None where it was not noted.
        report: What was found of the recipe's rules, as
            :meth:`constrained_cnn.constraints.Report.to_dict` gives it; None where it has none.
    """

    recipe: str
    model: str
    seed: int
    status: str
    parameters: int
    epochs: int
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    rerunnable: bool = True
    test_readings: Sequence[Mapping[str, Any]] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    weights_sha256: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    weight_shapes: Sequence[Sequence[int]] | None = None
    report: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_integer("seed", self.seed))
        object.__setattr__(self, "epochs", check_integer("epochs", self.epochs, minimum=0))
        parameters = check_integer("parameters", self.parameters, minimum=0)
        object.__setattr__(self, "parameters", parameters)
        check_flag("rerunnable", self.rerunnable)
        if not isinstance(self.weight_shapes, list | tuple | None):
            raise InvalidInputError(
                f"weight_shapes={say_value(self.weight_shapes)}: must be a list"
            )
        for shape in self.weight_shapes or ():
            if not isinstance(shape, list | tuple):
                raise InvalidInputError(f"weight_shapes={say_value(shape)}: must be lists of sizes")
            for size in shape:
                check_integer("weight_shapes", size, minimum=0)
        if not isinstance(self.report, Mapping | None):
            raise InvalidInputError(f"report={say_value(self.report)}: must be a table")
        if not isinstance(self.weights_sha256, str | None):
            raise InvalidInputError(f"weights_sha256={self.weights_sha256!r}: must be a text")
        for name in ("recipe", "model", "status"):
            if not isinstance(getattr(self, name), str):
                raise InvalidInputError(f"{name}={say_value(getattr(self, name))}: must be a text")
        for name in ("config", "data", "result", "environment"):
            if not isinstance(getattr(self, name), Mapping):
                raise InvalidInputError(f"{name}={say_value(getattr(self, name))}: must be a table")
        for name in ("history", "test_readings"):
            rows = getattr(self, name)
            if not isinstance(rows, list | tuple) or not all(isinstance(r, Mapping) for r in rows):
                raise InvalidInputError(f"{name}={say_value(rows)[:80]}: must be a list of tables")

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test set after the last epoch, in percent; None if it was not read."""
        value = self.result.get("test_accuracy")
        return None if value is None else float(value)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, with its schema version and checksum."""
        content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        content = json.loads(json.dumps(content, allow_nan=True))
        return {**content, "checksum": _checksum(content)}

    def to_json(self) -> str:
        """Return the record as indented JSON."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record to ``path``, atomically.

        Raises:
            OutputError: If the path cannot be written.
        """
        return write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RunRecord":
        """Read a record back.

        Args:
            path: A ``record.json``, or the folder that holds one.

        Raises:
            CheckpointError: If there is none, or it is damaged, or from a newer version.
        """
        file = Path(path)
        file = file / "record.json" if file.is_dir() else file
        if not file.exists():
            below = sorted(found.parent for found in Path(path).glob("*/record.json"))
            hint = f"; there are runs below it, such as {str(below[0])!r}" if below else ""
            raise CheckpointError(f"{str(file)!r} is not a readable run record: no such file{hint}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{str(file)!r} is not a readable run record: {error}") from error
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            raise CheckpointError(
                f"{str(file)!r} is not a run record of schema version {SCHEMA_VERSION}"
            )
        if content.pop("checksum", None) != _checksum(content):
            raise CheckpointError(
                f"{str(file)!r} does not match its checksum: it was damaged or edited"
            )
        del content["schema_version"]
        try:
            check_known_keys(str(file), content, {f.name for f in dataclasses.fields(cls)})
            return cls(**content)
        except (InvalidInputError, TypeError) as error:
            raise CheckpointError(f"{str(file)!r} is not a run record: {error}") from error


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
