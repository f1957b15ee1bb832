"""Inputs of a network on the command line: ``--input`` and ``--batch-axis``."""

import argparse
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrained_cnn.errors import InvalidInputError, closest

if TYPE_CHECKING:
    from torch import Tensor, nn

_LARGEST_SIDE, _MOST_ELEMENTS = 10**7, 10**12
_DTYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)


@dataclass(frozen=True)
class InputOption:
    """One ``--input``.

    Attributes:
        shape: Shape of one sample; empty for one number.
        name: The argument of the network's ``forward``; empty for the next in order.
        dtype: Its type; empty for that of the network.
    """

    shape: tuple[int, ...]
    name: str = ""
    dtype: str = ""


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add what the network is given."""
    parser.add_argument(
        "--input",
        type=input_option,
        action="append",
        required=True,
        metavar="[NAME:][TYPE:]SHAPE",
        help="shape of one sample, channels first: 1,28,28; with its type, ids:int64:128, and the "
        "name it has in forward; once for each input, in order",
    )
    parser.add_argument(
        "--batch-axis",
        type=batch_axes,
        metavar="AXIS",
        help="where the batch comes in: an index (0 if left out), or none; one for all inputs, or "
        "one for each: 0,none",
    )


def input_option(text: str) -> InputOption:
    """Return the input that a text names.

    Examples:
        >>> input_option("3x224x224").shape, input_option("ids:int64:128")
        ((3, 224, 224), InputOption(shape=(128,), name='ids', dtype='int64'))
    """
    *words, size = (part.strip() for part in text.split(":"))
    dtype = words.pop() if len(words) == 2 or (words and words[-1] in _DTYPES) else ""
    name = "".join(words)
    if len(words) > 1 or (text.count(":") and not (dtype or name)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be SHAPE, TYPE:SHAPE or NAME:TYPE:SHAPE")
    if dtype and dtype not in _DTYPES:
        hint = closest(dtype, _DTYPES) or f"; the types are {', '.join(_DTYPES)}"
        raise argparse.ArgumentTypeError(f"{text!r}: {dtype!r} is no type{hint}")
    if name and not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r}: {name!r} is no name of an argument")
    return InputOption(() if size == "scalar" else shape(size), name, dtype)


def shape(text: str) -> tuple[int, ...]:
    """Return the shape that a text names.

    Examples:
        >>> shape("1,28,28"), shape("3x224x224")
        ((1, 28, 28), (3, 224, 224))
    """
    parts = [part.strip() for part in text.lower().replace("x", ",").split(",")]
    if not all(part.isdecimal() and part.strip("0") for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a shape such as 1,28,28")
    if any(len(part) > 20 for part in parts) or max(map(int, parts)) > _LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: has a side of more than {_LARGEST_SIDE:,}")
    sides = tuple(map(int, parts))
    if math.prod(sides) > _MOST_ELEMENTS:
        raise argparse.ArgumentTypeError(f"{text!r}: has more than {_MOST_ELEMENTS:,} elements")
    return sides


def batch_axes(text: str) -> tuple[int | None, ...]:
    """Return the axes that a text names.

    Examples:
        >>> batch_axes("1"), batch_axes("0,none")
        ((1,), (0, None))
    """
    words = [word.strip().lower() for word in text.split(",")]
    if not all(word == "none" or (word.isdecimal() and len(word) < 4) for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be an index or none, or one of these for each input: 0,none"
        )
    return tuple(None if word == "none" else int(word) for word in words)


def network_inputs(model: "nn.Module", options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments ``inputs`` and ``batch_axis`` of what measures a network.

    Raises:
        InvalidInputError: If the axes are not as many as the inputs, or a name is missing.
    """
    axes = _axes(options)
    values = list(map(_as_input, options.input, axes or [0] * len(options.input)))
    if not any(option.name for option in options.input):
        return {"inputs": values, "batch_axis": axes or "auto"}
    names = _names(model, options.input)
    by_name = dict(zip(names, axes, strict=True)) if axes else "auto"
    return {"inputs": dict(zip(names, values, strict=True)), "batch_axis": by_name}


def sample_tensors(model: "nn.Module", options: argparse.Namespace) -> "list[Any] | dict[str, Any]":
    """Return the inputs as tensors of one sample each, in order or by name.

    Raises:
        InvalidInputError: As :func:`network_inputs`.
    """
    import torch

    axes = _axes(options) or (0,) * len(options.input)
    # Zeros, which are a valid index of every table.
    tensors = [
        torch.zeros_like(_tensor(option, axis), device="cpu")
        for option, axis in zip(options.input, axes, strict=True)
    ]
    if not any(option.name for option in options.input):
        return tensors
    return dict(zip(_names(model, options.input), tensors, strict=True))


def _axes(options: argparse.Namespace) -> tuple[int | None, ...]:
    """Return the batch axis of each input; empty if none was named."""
    axes: tuple[int | None, ...] = options.batch_axis or ()
    count = len(options.input)
    if len(axes) == 1:
        return axes * count
    if axes and len(axes) != count:
        raise InvalidInputError(
            f"batch-axis: names {len(axes)} axes for {count} inputs; give one for all, or one each"
        )
    return axes


def _as_input(option: InputOption, axis: int | None) -> "tuple[int, ...] | Tensor":
    """Return a shape, or a tensor without content where a shape does not say all."""
    return _tensor(option, axis) if option.dtype or not option.shape else option.shape


def _tensor(option: InputOption, axis: int | None) -> "Tensor":
    import torch

    from constrained_cnn.tracing._inputs import with_batch

    dtype = getattr(torch, option.dtype) if option.dtype else torch.get_default_dtype()
    return torch.empty(with_batch(option.shape, axis, 1), dtype=dtype, device="meta")


def _names(model: "nn.Module", inputs: Sequence[InputOption]) -> list[str]:
    """Return the argument of ``forward`` that each input is for; those without a name come first.

    Raises:
        InvalidInputError: If that cannot be told.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    in_order = [one.name for one in parameters if one.kind in kinds]
    unnamed = [number for number, option in enumerate(inputs) if not option.name]
    if unnamed != list(range(len(unnamed))) or len(unnamed) > len(in_order):
        raise InvalidInputError(
            "input: some have a name; name the others too, or give them first, in the order of the "
            f"arguments of forward: {', '.join(in_order)}"
        )
    names = [*in_order[: len(unnamed)], *(option.name for option in inputs[len(unnamed) :])]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise InvalidInputError(f"input: two are for the argument {doubled!r}")
    return names
