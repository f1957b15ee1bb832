"""An operation: one record of all that is known of it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from constrained_cnn.graph import Setting, Window, Work
from constrained_cnn.tracing.operations._call import Call, Reads

ReadRule = Callable[[Call], Reads]
WorkRule = Callable[[Call], Work]
KindRule = Callable[[Call, Mapping[str, Setting]], str]
WindowRule = Callable[[Call], list[Window]]


@dataclass(frozen=True)
class Operation:
    """All that is known of an operation.

    Attributes:
        kind: What it is, one of ``constrained_cnn.graph.KINDS``; a function of the call and its
            settings where that depends on its arguments.
        reads: Gives for each output the reads it makes; an output without reads is a constant.
        work: Gives its arithmetic.
        arguments: Names of its arguments, where torch's function does not say them.
        windows: Gives the windows it slides, one for each axis of the image.
        drops: What it drops, if it can: ``"elementwise"``, ``"channel"``, ``"attention"``, ...
        draws: Whether it draws random numbers.
        partial: Whether ``reads`` leaves out inputs on purpose; if not, an input that no read
            speaks of is read whole.
        gradient: How a gradient hides what it reads: ``"passes"``: one unit reads one, but with a
            slope that may be 0; ``"chooses"`` one of its inputs; ``"largest"`` of an axis or
            window; ``"selects"`` by all it reads and passes some on; ``"casts"`` to a type that
            may have none; ``"rounds"`` to the unit it reads; empty where it hides nothing.
        stands_for: Gives the call of another operation that does the same, which has the rest.
    """

    kind: str | KindRule
    reads: ReadRule
    work: WorkRule
    arguments: tuple[str, ...] = ()
    windows: WindowRule | None = None
    drops: str = ""
    draws: bool = False
    partial: bool = False
    gradient: str = ""
    stands_for: Callable[[Call], Call] | None = None

    def kind_of(self, call: Call, settings: Mapping[str, Setting]) -> str:
        """Return what a call is."""
        return self.kind if isinstance(self.kind, str) else self.kind(call, settings)


def settings_of(
    func: Callable[..., Any], call: Call, names: tuple[str, ...] = ()
) -> dict[str, Setting]:
    """Return the arguments of a call that are numbers, flags, words, or rows of numbers.

    Args:
        func: What is called.
        call: The call.
        names: Names of its arguments; of those that the function says itself if there are none.
    """
    named = {**dict(zip(names or _parameters(func), call.args, strict=False)), **call.kwargs}
    settings = {name: _plain(value) for name, value in named.items() if _is_plain(value)}
    if "groups" in names and "weight" in names:
        settings["kernel_size"] = tuple(call.get(1, "weight").shape[2:])
    if names[1:3] == ("weight", "bias"):
        settings["bias"] = call.get(2, "bias") is not None
    return settings


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Setting:
    return tuple(value) if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=1024)
def _parameters(func: Callable[..., Any]) -> tuple[str, ...]:
    schema = getattr(func, "_schema", None)  # of what torch.library or ATen describes
    if schema is not None:
        return tuple(argument.name for argument in schema.arguments)
    try:
        return tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return ()
