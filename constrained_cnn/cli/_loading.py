"""Find the network that a word of the command line names, and run what its author wrote."""

import argparse
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from constrained_cnn.cli._inputs import network_inputs
from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    TracingError,
    closest,
)

if TYPE_CHECKING:
    from torch import nn

    from constrained_cnn.graph import Graph


@contextmanager
def opened(word: str) -> "Iterator[nn.Module]":
    """Give the network that a word names; what runs it belongs inside the ``with``.

    Inside, modules beside its file, or in the current folder for ``MODULE:FACTORY``, can be
    imported, unless one of that name is installed; what it prints goes to standard error.
    Afterwards path, folder and modules are as they were, so that another file may have neighbours
    of the same names.

    Args:
        word: Name of a model of the package, ``MODULE:FACTORY`` or ``FILE.py:FACTORY``.

    Raises:
        InvalidInputError: If it names no model.
        TracingError: If its file or factory fails, or gives no network.
    """
    place = Path(word.rpartition(":")[0])
    is_file = place.suffix == ".py"
    folder = place.parent if is_file else Path() if ":" in word else None
    with redirect_stdout(sys.stderr), _as_before(folder, forget=is_file):
        try:
            yield _of_package(word) if ":" not in word else _made(word)
        except SystemExit as error:
            raise TracingError(f"{word} ends the program: {_say(error, place)}") from error


def _of_package(word: str) -> "nn.Module":
    from constrained_cnn import models

    try:
        return models.create_model(word)
    except InvalidInputError as error:
        if word.endswith(".py"):
            raise InvalidInputError(
                f"{word!r}: is a file; say what in it makes the network: {word}:FACTORY"
            ) from error
        raise InvalidInputError(
            f"{error}; a network of your own is FILE.py:FACTORY, one of torchvision's "
            f"torchvision.models:{word if word.isidentifier() else 'resnet18'}"
        ) from error


@contextmanager
def _as_before(folder: Path | None, *, forget: bool) -> Iterator[None]:
    """Let modules of a folder, if any, be imported; then undo it all, and ``forget`` them."""
    here = os.getcwd()
    path, known = list(sys.path), set(sys.modules)
    if folder is not None:
        folder = folder.resolve()
        # Behind all others, so that a random.py or torch/ in it takes the place of nothing.
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        os.chdir(here)
        if folder is not None and forget:
            _forget(set(sys.modules) - known, folder)


def _forget(names: set[str], folder: Path) -> None:
    """Forget modules whose outermost package was found directly in a folder."""
    found = {name for name in names if "." not in name and _home(sys.modules[name]) == folder}
    for name in names:
        if name.partition(".")[0] in found:
            del sys.modules[name]


def _home(module: ModuleType) -> Path | None:
    """Return the folder that a module or package lies in."""
    said = module.__dict__ if isinstance(module, ModuleType) else {}  # not what __getattr__ loads
    folders = list(said.get("__path__") or [])  # of a package
    file = folders[0] if folders else said.get("__file__")
    return Path(file).resolve().parent if file else None


def _made(word: str) -> "nn.Module":
    """Return what a factory in a module or file makes."""
    from torch import nn

    place, _, attribute = word.rpartition(":")
    module = _imported(word, place)
    if not hasattr(module, attribute):
        hint = closest(attribute, vars(module)) or _hidden(module, attribute)
        raise TracingError(f"{word!r}: {place!r} has no {attribute!r}{hint}")
    found = getattr(module, attribute)
    if not isinstance(found, nn.Module):
        found = _called(word, found, Path(place))
    if not isinstance(found, nn.Module):
        kind = type(found).__name__
        raise TracingError(f"{word!r} gave an object of type {kind}, not a torch.nn.Module")
    return found


def _hidden(module: ModuleType, attribute: str) -> str:
    """Return how to name a file of the current folder, where an installed module has its name."""
    file = Path(*module.__name__.split(".")).with_suffix(".py")
    home = _home(module)
    if not file.is_file() or home == file.resolve().parent:
        return ""
    return f"; a module of that name is installed, so give the file: {file}:{attribute}"


def _imported(word: str, place: str) -> ModuleType:
    if place.endswith(".py") and not Path(place).is_file():
        raise TracingError(f"{word!r}: there is no file {place!r}")
    try:
        if place.endswith(".py"):
            return _run_file(Path(place))
        return importlib.import_module(place)
    except Exception as error:
        reason = f"{place!r} cannot be imported: {_say(error, Path(place))}"
        raise TracingError(f"{word!r}: {reason}") from error


def _run_file(file: Path) -> ModuleType:
    """Return a file's module, under a name that no other file's module has."""
    spec = importlib.util.spec_from_file_location(str(file.resolve()).replace(".", "_"), file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and type hints look
    spec.loader.exec_module(module)
    return module


def _called(word: str, factory: Any, place: Path) -> Any:
    if not callable(factory):
        raise TracingError(f"{word!r} is of type {type(factory).__name__}, and makes no network")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TracingError(
            f"{word!r} cannot be called without arguments ({error}); name a function that takes "
            "none and gives the network"
        ) from error
    except ValueError:  # what is written in C need not have a signature
        pass
    try:
        return factory()
    except Exception as error:
        raise TracingError(f"{word} raised {_say(error, place)}") from error


def _say(error: BaseException, place: Path) -> str:
    """Return kind, message and line of an error: the last line in the file, if it went there."""
    text = next(iter(str(error).splitlines()), "")
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    file = place.name if place.suffix == ".py" else f"{place.name.rpartition('.')[2]}.py"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename).name == file]
    if not own or isinstance(error, SyntaxError):  # which says its line itself
        return said
    return f"{said} ({file}, line {own[-1]})"


def traced(model: "nn.Module", name: str, options: argparse.Namespace) -> "Graph":
    """Return the graph of a network under the name it was asked for.

    Raises:
        TracingError: If it cannot be traced.
    """
    from constrained_cnn.tracing import trace

    may_be_unknown: bool | None = getattr(options, "allow_unknown", None)
    inputs = network_inputs(model, options)
    try:
        graph = trace(model, **inputs, strict=not may_be_unknown)
    except TracingError as error:
        if may_be_unknown is False and _only_unknown(model, inputs):
            raise TracingError(f"{error}; or go on without it: --allow-unknown") from error
        raise
    return replace(graph, model=name)


def _only_unknown(model: "nn.Module", inputs: Mapping[str, Any]) -> bool:
    """Whether nothing but operations that nobody has described is in the way."""
    from constrained_cnn.tracing import trace

    try:
        return bool(trace(model, **inputs, strict=False).unknown)
    except ConstrainedCNNError:
        return False
