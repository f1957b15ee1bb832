"""One call of a torch operation, as the rules see it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from constrained_cnn.graph import AxisRead, Patch, Read, Window

Reads = tuple[tuple[Read, ...], ...]


@dataclass(frozen=True)
class Call:
    """A call of an operation on tensors, some of which depend on the network's input.

    Attributes:
        op: Name of the operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        outputs: The tensors it gave.
        values: The number of each tensor that depends on the network's input, by its ``id``.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    values: Mapping[int, int]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def input(self) -> Tensor:
        """The first tensor given."""
        return tensors((self.args, self.kwargs))[0]

    @property
    def output(self) -> Tensor:
        """The first tensor it gave."""
        return self.outputs[0]

    def traced(self) -> list[Tensor]:
        """Return the tensors given that depend on the network's input."""
        given = tensors((self.args, self.kwargs))
        return [tensor for tensor in given if id(tensor) in self.values]

    def read(
        self,
        tensor: Any,
        axes: Sequence[AxisRead | None],
        *,
        gate: bool = False,
        unplaced: Sequence[int] = (),
        picks: Sequence[tuple[int, int]] = (),
        patches: Sequence[Patch] = (),
        reshapes: bool = False,
    ) -> tuple[Read, ...]:
        """Return a read of ``tensor``, or none where it does not depend on the network's input.

        The other arguments are those of :class:`~constrained_cnn.graph.Read`.
        """
        if id(tensor) not in self.values:
            return ()
        return (
            Read(
                self.values[id(tensor)],
                tuple(axes),
                gate,
                tuple(unplaced),
                tuple(picks),
                tuple(patches),
                reshapes,
            ),
        )

    def broadcast(self, tensor: Any, *, gate: bool = False) -> tuple[Read, ...]:
        """Return a read of ``tensor`` unit by unit, stretched over the output as torch does."""
        if id(tensor) not in self.values:
            return ()
        axes: list[AxisRead | None] = []
        ahead = self.output.ndim - tensor.ndim
        for axis, size in enumerate(self.output.shape):
            if axis < ahead:
                axes.append(None)
            elif tensor.shape[axis - ahead] == size:
                axes.append(AxisRead(axis - ahead))
            else:
                axes.append(AxisRead(axis - ahead, Window(stride=0)))
        return self.read(tensor, axes, gate=gate)


def tensors(arguments: Any) -> list[Tensor]:
    """Return the tensors in ``arguments``, however nested; what holds itself is entered once."""
    found: list[Tensor] = []
    _collect(arguments, found, ())
    return found


def _collect(item: Any, found: list[Tensor], inside: tuple[Any, ...]) -> None:
    if isinstance(item, Tensor):
        found.append(item)
        return
    if isinstance(item, list | tuple):
        parts: Iterable[Any] = item
    elif isinstance(item, Mapping):
        parts = item.values()
    elif is_dataclass(item) and not isinstance(item, type):
        parts = [getattr(item, part.name, None) for part in fields(item)]
    else:
        return
    for outer in inside:
        if outer is item:
            return
    inside = (*inside, item)
    for part in parts:
        if type(part) not in _PLAIN:
            _collect(part, found, inside)


_PLAIN = frozenset({bool, int, float, str, type(None)})


def data_of(call: Call) -> Any:
    """Return what a new tensor is made of: the first argument, of ``x.new_tensor`` the second."""
    return call.get(int(call.op.startswith("new_")), "data")


def elementwise(call: Call) -> Reads:
    """Every unit reads the same unit of every input."""
    reads = tuple(read for tensor in call.traced() for read in call.broadcast(tensor))
    return (reads,) * len(call.outputs)


def nothing(call: Call) -> Reads:
    """No output reads any input."""
    return ((),) * len(call.outputs)


def kept(tensor: Tensor, *, whole: Sequence[int] = ()) -> list[AxisRead | None]:
    """Return axes that read themselves, but for those read whole."""
    gone = {axis % tensor.ndim for axis in whole}
    return [None if axis in gone else AxisRead(axis) for axis in range(tensor.ndim)]


def spread(value: Any, count: int) -> list[Any]:
    """Return ``value`` once for each axis."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    return given * count if len(given) == 1 else given
