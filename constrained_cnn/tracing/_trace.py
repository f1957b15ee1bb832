"""Run a network without data, once in evaluation mode and once in training, and write it down."""

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    TracingError,
    check_flag,
    check_integer,
    reason_of,
)
from constrained_cnn.graph import Graph, TrainingRun, Weight
from constrained_cnn.tracing._around import states_of_others, undisturbed
from constrained_cnn.tracing._call import tensors
from constrained_cnn.tracing._copy import copied
from constrained_cnn.tracing._export import replay
from constrained_cnn.tracing._recorder import Recorder, UndescribedError
from constrained_cnn.tracing._training import TrainingRecorder
from constrained_cnn.tracing._watcher import META

# A prime: what divides by it grows with the batch, and what does not is kept once.
BATCH = 1009

_MOST_ELEMENTS = 10**12

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def trace(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Graph:
    """Return what ``model`` does with one sample, operation by operation, in evaluation mode.

    The network runs on torch's meta device, which works out shapes and computes nothing: no weight
    is allocated. It is a copy that runs, so the model stays as it was in every way. A second run,
    in training mode, notes which operations run then and what they keep for the backward pass
    (``Graph.training``).

    Args:
        model: The network.
        input_shape: Shape of one sample, without the batch: ``(1, 28, 28)``.
        inputs: In place of ``input_shape``, for a network with several inputs: everything its
            ``forward`` takes, in order or by name. A tuple of integers is the shape of one sample;
            a tensor, with its batch axis, stands for its shape and type; anything else is passed
            on as it is.
        strict: Whether an operation that nobody has described is an error. If not, the graph lists
            it as ``Graph.unknown``, and what is measured on the graph
            is incomplete.

    Raises:
        InvalidInputError: If the model is none, or the shape no shape.
        TracingError: If the network cannot take that shape, depends on the values of its input, or
            runs an operation nobody has described.

    Examples:
        >>> graph = trace(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), (1, 28, 28))
        >>> [layer.name for layer in graph.layers], graph.values[graph.outputs[0]].shape
        (['0: conv2d', '1: relu'], (1, 8, 26, 26))

        Two inputs, of which one is a flag:

        >>> class Masked(nn.Module):
        ...     def forward(self, x, mask, double):
        ...         return x * mask * (2 if double else 1)
        >>> graph = trace(Masked(), inputs=[(3, 8, 8), (1, 8, 8), False])
        >>> [graph.values[number].shape for number in graph.inputs]
        [(1, 3, 8, 8), (1, 1, 8, 8)]
    """
    if not isinstance(model, nn.Module):
        hint = "; call it: a class makes a network" if isinstance(model, type) else ""
        raise InvalidInputError(f"model={type(model).__name__}: must be a torch.nn.Module{hint}")
    check_flag("strict", strict)
    wanted = _wanted(input_shape, inputs)
    try:
        _check_python(model)
        with undisturbed():
            return _traced(model, wanted, strict)
    except RecursionError as error:
        raise TracingError(
            f"{type(model).__name__}: its modules lie in one another deeper than Python's limit of "
            f"{sys.getrecursionlimit()} calls; raise it by sys.setrecursionlimit, or nest less"
        ) from error


def _traced(model: nn.Module, wanted: Inputs, strict: bool) -> Graph:
    shadow, weights, numbers = _shadow_of(model)
    try:
        recorded, outputs = _evaluate(model, shadow, numbers, wanted, strict)
    except UndescribedError as error:
        try:
            recorded, outputs = _evaluate_exported(model, shadow, numbers, wanted)
        except Exception as second:  # noqa: BLE001 - export raises errors of every kind
            raise TracingError(_say_both(error, second)) from error
    training, trained = _train(model, shadow, wanted)
    return Graph(
        type(model).__name__,
        recorded.inputs,
        outputs,
        tuple(recorded.values),
        tuple(recorded.layers),
        recorded.modules,
        weights,
        _evaluated(shadow),
        training,
        tuple(recorded.constants),
        _idle(shadow, weights, recorded, trained),
    )


def _say_both(first: UndescribedError, second: Exception) -> str:
    """Return one message for what both front ends say."""
    if isinstance(second, UndescribedError) and second.what == first.what:
        return str(second)
    return f"{first.what}. torch.export does not take it apart either: {reason_of(second)}"


def as_graph(
    model: nn.Module | Graph,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Graph:
    """Return the graph of a network; a graph stands for itself.

    Args:
        model: The network, or its graph.
        input_shape: As in :func:`trace`; not for a graph, which has its own.
        inputs: As in :func:`trace`; not for a graph.
        strict: As in :func:`trace`.

    Raises:
        InvalidInputError: If a graph comes with a shape or inputs, or a network without.
        TracingError: If the network cannot be traced.
    """
    if not isinstance(model, Graph):
        return trace(model, input_shape, inputs=inputs, strict=strict)
    if input_shape is not None or inputs is not None:
        raise InvalidInputError(f"input_shape={input_shape!r}: not for a Graph, which has its own")
    return model


def _wanted(
    input_shape: Sequence[int] | None, inputs: Sequence[Any] | Mapping[str, Any] | None
) -> Inputs:
    """Return the arguments and keyword arguments of the network's forward, checked."""
    if (input_shape is None) == (inputs is None):
        raise InvalidInputError(
            f"input_shape={input_shape!r}, inputs={'None' if inputs is None else '...'}: give "
            "either the shape of one sample, such as (1, 28, 28), or all inputs"
        )
    if inputs is None:
        if not isinstance(input_shape, tuple | list | torch.Size) or not input_shape:
            raise InvalidInputError(
                f"input_shape={_shortly(input_shape)}: must be a shape, such as (1, 28, 28)"
            )
        shape = tuple(check_integer("input_shape", size, minimum=1) for size in input_shape)
        _check_size("input_shape", shape)
        return (shape,), {}
    if isinstance(inputs, Mapping):
        given: Inputs = ((), dict(inputs))
    elif isinstance(inputs, list | tuple):
        given = (tuple(inputs), {})
    else:
        raise InvalidInputError(
            f"inputs={type(inputs).__name__}: must be a list of all inputs, or a dict by name"
        )
    every = [*given[0], *given[1].values()]
    if not any(_is_shape(item) or isinstance(item, Tensor) for item in every):
        raise InvalidInputError(
            f"inputs={inputs!r}: must hold a shape, such as (1, 28, 28), or a tensor"
        )
    for shape in filter(_is_shape, every):
        _check_size("inputs", shape)
    return given


def _shortly(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)


def _check_size(name: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > _MOST_ELEMENTS:
        raise InvalidInputError(
            f"{name}={shape}: must have at most {_MOST_ELEMENTS:,} elements, or torch cannot count "
            "what layers make of it"
        )


def _check_python(model: nn.Module) -> None:
    """Refuse what torch has compiled: its operations do not pass by Python any more."""
    if hasattr(model, "_orig_mod"):
        raise InvalidInputError(
            f"model={type(model).__name__}: is compiled; give what it was made of: model._orig_mod"
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            place = f"module {path!r}" if path else "model"
            raise InvalidInputError(
                f"{place}={type(module).__name__}: is TorchScript, which cannot be looked into; "
                "give the Python module it was made of"
            )


def _is_shape(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in item)
    )


def _samples(wanted: Inputs, batch: int, dtype: torch.dtype) -> Inputs:
    """Return the inputs as tensors without content."""

    def sample(item: Any) -> Any:
        if isinstance(item, Tensor):
            return torch.empty((batch, *item.shape[1:]), device=META, dtype=item.dtype)
        if _is_shape(item):
            return torch.empty((batch, *item), device=META, dtype=dtype)
        return item

    return tuple(map(sample, wanted[0])), {name: sample(item) for name, item in wanted[1].items()}


def _dtype_of(shadow: nn.Module) -> torch.dtype:
    kinds = {part.dtype for part in shadow.parameters() if part.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.get_default_dtype()


def _evaluate(
    model: nn.Module,
    shadow: nn.Module,
    numbers: Mapping[int, int],
    wanted: Inputs,
    strict: bool,
) -> tuple[Recorder, tuple[int, ...]]:
    shadow.eval()
    args, kwargs = _samples(wanted, 1, _dtype_of(shadow))
    recorder = Recorder(
        type(model).__name__, shadow, list(tensors((args, kwargs))), numbers, strict=strict
    )
    with torch.no_grad(), recorder.watching():
        try:
            outputs = shadow(*args, **kwargs)
        except ConstrainedCNNError:
            raise
        except Exception as error:
            raise TracingError(_say(error, recorder, args, kwargs)) from error
    return recorder, recorder.numbers_of(outputs)


def _evaluate_exported(
    model: nn.Module, shadow: nn.Module, numbers: Mapping[int, int], wanted: Inputs
) -> tuple[Recorder, tuple[int, ...]]:
    """Record the operations that ``torch.export`` takes the network apart into."""
    shadow.eval()
    args, kwargs = _samples(wanted, 1, _dtype_of(shadow))
    given = list(tensors((args, kwargs)))
    recorder = Recorder(type(model).__name__, shadow, given, numbers, strict=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what export deprecates in itself
        outputs = replay(recorder, shadow, args, kwargs)
    return recorder, recorder.numbers_of(outputs)


def _train(
    model: nn.Module, shadow: nn.Module, wanted: Inputs
) -> tuple[TrainingRun, TrainingRecorder]:
    """Return what runs in training mode; a network that cannot says why in the result."""
    shadow.train()
    args, kwargs = _samples(wanted, BATCH, _dtype_of(shadow))
    recorder = TrainingRecorder(
        type(model).__name__, shadow, list(tensors((args, kwargs))), batch=BATCH
    )
    with torch.enable_grad(), recorder.watching():
        before = states_of_others()
        try:
            outputs = shadow(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the evaluation graph stands
            return recorder.run(problem=reason_of(error)), recorder
    draws = [name for name, state in states_of_others().items() if state != before[name]]
    return recorder.run(outputs, draws=draws), recorder


def _idle(
    shadow: nn.Module, weights: Sequence[Weight], recorded: Recorder, trained: TrainingRecorder
) -> dict[str, str]:
    """Return the modules without modules in them that neither ran nor lent a weight."""
    read = {number for layer in recorded.layers for number in layer.weights}
    lenders = {name.rpartition(".")[0] for number in read for name in weights[number].names}
    busy = recorded.ran | trained.ran | lenders
    return {
        path: _kind(module)
        for path, module in shadow.named_modules(remove_duplicate=False)
        if path and path not in busy and next(module.children(), None) is None
    }


def _kind(module: nn.Module) -> str:
    """Return the name of a module's class, and of the class of torch's that it derives from."""
    own = type(module)
    base = next((one for one in own.__mro__ if one.__module__.startswith("torch.nn.")), own)
    derived = base not in (own, nn.Module)
    return f"{own.__name__}, a {base.__name__}" if derived else own.__name__


def _say(error: Exception, recorder: Recorder, args: Any, kwargs: Any) -> str:
    reason = reason_of(error)
    path = recorder.where(error)
    where = f" in {path!r}" if path else ""
    if "meta" in reason and "cpu" in reason:
        return (
            f"{recorder.model} makes a tensor on a fixed device in its forward{where} ({reason}); "
            "make it with device=x.device, or register it as a buffer"
        )
    if "meta tensor" in reason or "data-dependent" in reason:
        return (
            f"{recorder.model}: its control flow depends on the values of its input{where}, or it "
            f"takes a number out of a tensor, so no single graph describes it ({reason}); trace a "
            "network whose steps depend on shapes"
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in tensors((args, kwargs))]
    said = f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(map(str, shapes))}"
    return f"{recorder.model} cannot take an input of {said}{where}: {reason}"


def _shadow_of(model: nn.Module) -> tuple[nn.Module, tuple[Weight, ...], dict[int, int]]:
    """Return a copy whose tensors have no content, the weights, and the number of each by id."""
    for name, part in _named(model):
        if is_lazy(part):
            raise TracingError(
                f"{type(model).__name__}: {name!r} has no shape before the first call; call the "
                "model once on a sample, then trace it"
            )
    shadow = copied(model, lambda tensor: torch.empty_like(tensor, device=META))
    names: dict[int, list[str]] = {}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for (name, part), (_, empty) in zip(_named(model), _named(shadow), strict=True):
        names.setdefault(id(part), []).append(name)
        found[id(part)] = part, empty
    weights = tuple(_weight(names[key], part) for key, (part, _) in found.items())
    numbers = {id(empty): number for number, (_, empty) in enumerate(found.values())}
    return shadow, weights, numbers


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer under each of its names."""
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _weight(names: Sequence[str], part: Tensor) -> Weight:
    ahead, found, behind = names[0].partition("parametrizations.")
    is_parameter = isinstance(part, nn.Parameter)
    return Weight(
        tuple(names),
        tuple(part.shape),
        str(part.dtype).removeprefix("torch."),
        is_parameter and part.requires_grad,
        not is_parameter,
        ahead + behind.split(".")[0] if found else "",
    )


def _evaluated(shadow: nn.Module) -> dict[str, int]:
    """Return the elements of each tensor that a parametrisation makes, by its path."""
    found: dict[str, int] = {}
    shadow.eval()
    for path, module in shadow.named_modules():
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:
                tensor = getattr(module, name)
                found[f"{path}.{name}" if path else name] = tensor.numel()
    return found
