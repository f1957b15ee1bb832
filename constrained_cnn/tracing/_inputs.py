"""Inputs of a network: shapes and tensors, however nested, and which axis is the batch."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from constrained_cnn.errors import InvalidInputError, check_integer, check_known_keys, say_value
from constrained_cnn.tracing._kernels import META

BatchAxis = int | None | Literal["auto"] | Sequence[Any] | Mapping[str, Any]

_MOST_ELEMENTS = 10**12


@dataclass(frozen=True)
class InputSpec:
    """Shape and type of a tensor that a network is given.

    Attributes:
        name: Where it stands: ``"inputs[0]['image']"``.
        shape: Its shape for one sample, without the batch.
        batch_axis: Where the batch comes in; None if it has none.
        dtype: Its type; None for that of the network.
        tensor_shape: The whole shape of the tensor it stands for; None if it was given as a shape.
    """

    name: str
    shape: tuple[int, ...]
    batch_axis: int | None
    dtype: torch.dtype | None = None
    tensor_shape: tuple[int, ...] | None = None

    def empty(self, batch: int, dtype: torch.dtype) -> Tensor:
        """Return such a tensor of so many samples, without content."""
        sizes = with_batch(self.shape, self.batch_axis, batch)
        return torch.empty(sizes, device=META, dtype=self.dtype or dtype)


@dataclass(frozen=True)
class Inputs:
    """All that a network's forward is given, with an :class:`InputSpec` in place of each tensor.

    Attributes:
        args: Its arguments.
        kwargs: Its arguments by name.
        specs: The tensors in them, in order.
        is_auto: Whether nobody said which axis is the batch.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    specs: tuple[InputSpec, ...]
    is_auto: bool

    @property
    def is_batched(self) -> bool:
        """Whether any tensor grows with the batch."""
        return any(spec.batch_axis is not None for spec in self.specs)

    @property
    def is_batch_first(self) -> bool:
        """Whether the batch is axis 0 of every tensor."""
        return all(spec.batch_axis == 0 for spec in self.specs)

    def samples(self, batch: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with so many samples in them, as tensors without content."""

        def make(item: Any, axis: Any, name: str) -> Any:
            return item.empty(batch, dtype) if isinstance(item, InputSpec) else item

        return _map_tensors(self.args, 0, "", make), _map_tensors(dict(self.kwargs), 0, "", make)

    def describe(self) -> str:
        """Return the shapes for an error message, and what was taken for the batch."""
        shapes = ", ".join(str(spec.shape) for spec in self.specs)
        text = f"shape {shapes}" if len(self.specs) == 1 else f"shapes {shapes}"
        if not self.is_auto or all(spec.name == "input_shape" for spec in self.specs):
            return text
        tensors = any(spec.tensor_shape is not None for spec in self.specs)
        nested = any(spec.name.count("[") > 1 or "." in spec.name for spec in self.specs)
        if not tensors and not nested:
            return text
        return f"{text} (with the batch at axis 0 of each; if it is elsewhere, give batch_axis)"


def with_batch(shape: Sequence[int], axis: int | None, batch: int) -> tuple[int, ...]:
    """Return the shape of so many samples.

    Examples:
        >>> with_batch((10, 16), 1, 4), with_batch((10, 16), None, 4)
        ((10, 4, 16), (10, 16))
    """
    return tuple(shape) if axis is None else (*shape[:axis], batch, *shape[axis:])


def as_inputs(
    input_shape: Sequence[int] | None,
    inputs: Sequence[Any] | Mapping[str, Any] | None,
    batch_axis: BatchAxis,
) -> Inputs:
    """Return all that a network is given, checked.

    Args:
        input_shape: Shape of one sample, for a network of one input.
        inputs: All inputs, in order or by name.
        batch_axis: As in :func:`~constrained_cnn.tracing.trace`.

    Raises:
        InvalidInputError: If they are none, or if it is doubtful which axis is the batch.
    """
    if (input_shape is None) == (inputs is None):
        raise InvalidInputError(
            f"input_shape={_shortly(input_shape)}, inputs={'None' if inputs is None else '...'}: "
            "give either the shape of one sample, such as (1, 28, 28), or all inputs"
        )
    is_auto = isinstance(batch_axis, str)
    if is_auto and batch_axis != "auto":
        raise InvalidInputError(
            f"batch_axis={batch_axis!r}: must be an index, None, or one of these for each input"
        )
    if inputs is None:
        inputs, name = [_checked_shape(input_shape)], "input_shape"
    elif isinstance(inputs, Mapping | list | tuple):
        name = "inputs"
    else:
        raise InvalidInputError(
            f"inputs={type(inputs).__name__}: must be a list of all inputs, or a dict by name"
        )
    specs: list[InputSpec] = []

    def make(item: Any, axis: Any, name: str) -> InputSpec:
        specs.append(_spec_of(item, axis, name.replace("input_shape[0]", "input_shape")))
        return specs[-1]

    by_name = isinstance(inputs, Mapping)
    # A copy, so that a tuple of integers is seen to be the list of all inputs, and is no shape.
    items = dict(inputs) if isinstance(inputs, Mapping) else list(inputs)
    items = _map_tensors(items, batch_axis, name, make)
    if not specs:
        kinds = ", ".join(type(item).__name__ for item in (items.values() if by_name else items))
        raise InvalidInputError(
            f"inputs=[{kinds}]: must hold a shape, such as (1, 28, 28), or a tensor; lists, "
            "tuples, dicts and dataclasses are looked into"
        )
    made = Inputs(() if by_name else tuple(items), items if by_name else {}, tuple(specs), is_auto)
    if is_auto:
        _check_axis_0(made)
    return made


def _checked_shape(input_shape: Any) -> tuple[int, ...]:
    if not isinstance(input_shape, tuple | list | torch.Size) or not input_shape:
        raise InvalidInputError(
            f"input_shape={_shortly(input_shape)}: must be a shape, such as (1, 28, 28)"
        )
    return tuple(check_integer("input_shape", size, minimum=1) for size in input_shape)


def _shortly(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Tensor) else say_value(value)


def _is_shape(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in item)
    )


def _spec_of(item: Any, axis: Any, name: str) -> InputSpec:
    """Return what stands for a shape or a tensor."""
    shape, is_tensor = tuple(item if isinstance(item, tuple) else item.shape), not _is_shape(item)
    if isinstance(axis, str):  # a tensor without axes has none that could be the batch
        axis = 0 if shape else None
    if isinstance(axis, Mapping | list | tuple):
        raise InvalidInputError(
            f"batch_axis={axis!r}: {name} is one tensor; give it an index, or None"
        )
    if isinstance(axis, Tensor):
        raise InvalidInputError(f"batch_axis of {name}: must be an index or None, and is a tensor")
    if axis is not None:
        most = len(shape) - is_tensor
        if most < 0:
            raise InvalidInputError(f"batch_axis={axis!r}: {name} has no axis; give it None")
        axis = check_integer(f"batch_axis of {name}", axis, minimum=0, maximum=most)
    if not is_tensor:
        if math.prod(shape) > _MOST_ELEMENTS:
            raise InvalidInputError(
                f"{name}={shape}: must have at most {_MOST_ELEMENTS:,} elements, or torch cannot "
                "count what layers make of it"
            )
        return InputSpec(name, shape, axis)
    sample = shape if axis is None else (*shape[:axis], *shape[axis + 1 :])
    return InputSpec(name, sample, axis, item.dtype, shape)


def _map_tensors(
    item: Any,
    axis: Any,
    name: str,
    make: Callable[[Any, Any, str], Any],
    inside: frozenset[int] = frozenset(),
) -> Any:
    """Return a copy of an argument in which something else stands for each tensor and shape.

    What is looked into, and the order, are those of ``operations.tensors``.

    Args:
        item: The argument.
        axis: The batch axis of all tensors in it, or one for each part of it.
        name: What it is called in an error.
        make: Gives what stands for a tensor, a shape or a spec, by it, its batch axis and name.
        inside: What it lies in: what holds itself is entered once.
    """
    if isinstance(item, Tensor | InputSpec) or _is_shape(item):
        return make(item, axis, name)
    if isinstance(item, PackedSequence):
        raise InvalidInputError(
            f"{name}: is a packed sequence, whose lengths are values; give the padded tensor"
        )
    parts = _parts_of(item)
    if not parts or id(item) in inside:
        return item
    axes = _axes_of(axis, list(parts), name)
    replaced = {
        key: _map_tensors(part, axes[key], _name_of(item, name, key), make, inside | {id(item)})
        for key, part in parts.items()
    }
    changed = any(replaced[key] is not part for key, part in parts.items())
    return _rebuilt(item, replaced) if changed else item


def _parts_of(item: Any) -> dict[Any, Any]:
    if isinstance(item, list | tuple):
        return dict(enumerate(item))
    if isinstance(item, Mapping):
        return dict(item.items())
    if is_dataclass(item) and not isinstance(item, type):
        return {part.name: getattr(item, part.name, None) for part in fields(item)}
    return {}


def _name_of(item: Any, name: str, key: Any) -> str:
    by_attribute = not isinstance(item, list | tuple | Mapping)
    return f"{name}.{key}" if by_attribute else f"{name}[{key!r}]"


def _rebuilt(item: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a copy of what ``item`` is, of other parts."""
    if isinstance(item, list | tuple):
        is_named = hasattr(item, "_fields")
        return type(item)(*parts.values()) if is_named else type(item)(parts.values())
    if isinstance(item, Mapping) and not isinstance(item, MutableMapping):
        return dict(parts)
    twin = copy.copy(item)
    for key, part in parts.items():
        if isinstance(item, Mapping):
            twin[key] = part
        else:
            object.__setattr__(twin, key, part)  # it may be frozen
    return twin


def _axes_of(axis: Any, keys: Sequence[Any], name: str) -> dict[Any, Any]:
    """Return the batch axis of each part of an argument."""
    if isinstance(axis, Mapping):
        if not all(isinstance(key, str) for key in keys):
            raise InvalidInputError(
                f"batch_axis={axis!r}: {name} is in order, not by name; give a tuple of {len(keys)}"
            )
        check_known_keys("batch_axis", axis, keys)
        return {key: axis.get(key, 0) for key in keys}
    if isinstance(axis, list | tuple):
        if len(axis) != len(keys):
            raise InvalidInputError(
                f"batch_axis={axis!r}: must be one for each part of {name}, which has {len(keys)}"
            )
        return dict(zip(keys, axis, strict=True))
    return dict.fromkeys(keys, axis)


def _check_axis_0(inputs: Inputs) -> None:
    """Refuse inputs of which axis 0 cannot be the batch of all.

    A shape is that of one sample, so that a tensor beside it holds one sample too.
    """
    specs = [spec for spec in inputs.specs if spec.batch_axis is not None]
    sizes = [1 if spec.tensor_shape is None else spec.tensor_shape[0] for spec in specs]
    if len(set(sizes)) > 1:
        other = next(i for i, size in enumerate(sizes) if size != sizes[0])
        raise InvalidInputError(
            f"inputs: axis 0 cannot be the batch of all: {_describe(specs[0])}, "
            f"{_describe(specs[other])}; say which axis is the batch of each, None where it has "
            f"none: {_suggest(inputs)}"
        )
    if all(spec.tensor_shape is not None and not spec.shape for spec in specs) and sizes[:1] > [1]:
        raise InvalidInputError(
            f"inputs: {_describe(specs[0])}: its one axis may be the batch, or belong to the "
            "sample; give batch_axis=0 or batch_axis=None"
        )


def _describe(spec: InputSpec) -> str:
    if spec.tensor_shape is None:
        return f"{spec.name} is the shape of one sample, {spec.shape}"
    return f"{spec.name} is a tensor of shape {spec.tensor_shape}"


def _suggest(inputs: Inputs) -> str:
    """Return a ``batch_axis`` that fits the sizes, with None for what has another at axis 0."""
    parts: dict[Any, Any] = dict(inputs.kwargs) or dict(enumerate(inputs.args))
    flat = [part for part in parts.values() if isinstance(part, InputSpec)]
    if len(flat) < len(inputs.specs):
        return "batch_axis=..., nested as the inputs are"
    has_shape = any(spec.tensor_shape is None for spec in flat)
    sizes = [1] if has_shape else [s.tensor_shape[0] for s in flat if s.tensor_shape]

    def guess(part: Any) -> int | None:
        shape = part.tensor_shape if isinstance(part, InputSpec) else None
        return 0 if shape is None or shape[:1] == (sizes[0],) else None

    axes = {name: guess(part) for name, part in parts.items()}
    return f"batch_axis={axes if inputs.kwargs else tuple(axes.values())}"


@contextmanager
def watching_sequences(
    network: nn.Module, notice: Callable[[str, tuple[int, ...]], None]
) -> Iterator[None]:
    """Notice what recurrent layers and attention are given in which axis 0 is the sequence.

    That is so with ``batch_first=False``, and for a tensor of two axes, which has no batch.

    Args:
        network: Runs meanwhile.
        notice: Is told, before each runs, which layer it is and the shape of the tensor.
    """

    def look(layer: str, module: Any, args: Any, kwargs: Any) -> None:
        is_attention = isinstance(module, nn.MultiheadAttention)
        names = ("query", "key", "value") if is_attention else ("input",)
        for tensor in (*args[: len(names)], *(kwargs.get(name) for name in names)):
            if isinstance(tensor, Tensor) and not (module.batch_first and tensor.ndim == 3):
                notice(layer, tuple(tensor.shape))

    handles = [
        module.register_forward_pre_hook(
            functools.partial(look, _name_of_layer(path, module)), with_kwargs=True
        )
        for path, module in network.named_modules()
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name_of_layer(path: str, module: Any) -> str:
    place = f"{path!r}, " if path else ""
    return f"{place}a {type(module).__name__} with batch_first={module.batch_first}"


def batch_as_sequence(layer: str, shape: tuple[int, ...]) -> InvalidInputError:
    """Return the error for a layer that takes the batch for the sequence.

    Args:
        layer: Its name.
        shape: Shape of a tensor it is given, whose axis 0 is the batch.
    """
    advice = "batch_axis=1 if the sequence is axis 0 of the inputs"
    if len(shape) == 2:
        advice = "batch_axis=None if the inputs are one sample without a batch"
    return InvalidInputError(
        f"{layer}, takes axis 0 of a tensor of {len(shape)} axes for the sequence, and is given "
        f"the batch there; give {advice}, or batch_axis=0 if it is meant so"
    )
