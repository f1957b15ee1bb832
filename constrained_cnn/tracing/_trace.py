"""Run a network without data, once in evaluation mode and once in training, and write it down."""

import functools
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from constrained_cnn.graph import Graph, Program, Weight
from constrained_cnn.tracing._around import MovableState, states_of_others, undisturbed
from constrained_cnn.tracing._copy import copied
from constrained_cnn.tracing._export import replay
from constrained_cnn.tracing._recorder import Recorder, UndescribedError
from constrained_cnn.tracing._training import (
    TrainingRecorder,
    differing,
    growing,
    with_saved,
)
from constrained_cnn.tracing._watcher import META
from constrained_cnn.tracing.operations import tensors

# A prime: what divides by it grows with the batch, and what does not is kept once.
BATCH = 1009
# Divides by every number up to 10.
DIVISIBLE = 2520

_MOST_ELEMENTS = 10**12

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Shadow:
    """A copy of a network whose tensors have no content.

    Attributes:
        model: Name of the model's class.
        network: The copy.
        weights: Every parameter and buffer.
        numbers: The number of each, by the ``id`` of its copy.
        hidden: Tensors that take a gradient and are no parameters: by ``id`` what each is.
        held: The same tensors.
    """

    model: str
    network: nn.Module
    weights: tuple[Weight, ...]
    numbers: Mapping[int, int]
    hidden: Mapping[int, str]
    held: Sequence[Tensor]


def trace(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    strict: bool = True,
    repeat: bool = False,
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
        repeat: Whether it runs a second time in any case, to see that it does the same again. It
            does so without being asked where the first run drew random numbers or left a changed
            attribute behind.

    Raises:
        InvalidInputError: If the model is none, or the shape no shape.
        TracingError: If the network cannot take that shape, depends on the values of its input,
            differs from call to call, or runs an operation nobody has described.

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
            return _traced(model, wanted, strict, repeat)
    except RecursionError as error:
        raise TracingError(
            f"{type(model).__name__}: its modules lie in one another deeper than Python's limit of "
            f"{sys.getrecursionlimit()} calls; raise it by sys.setrecursionlimit, or nest less"
        ) from error


def _traced(model: nn.Module, wanted: Inputs, strict: bool, repeat: bool) -> Graph:
    shadow = _shadow_of(model)
    state = MovableState(shadow.network.eval())
    recorded, outputs = _evaluate(shadow, wanted, strict)
    if repeat or state.moved:
        recorded, outputs = _settled(shadow, wanted, strict, recorded, outputs, state)
    return Graph(
        shadow.model,
        recorded.inputs,
        outputs,
        tuple(recorded.values),
        tuple(recorded.layers),
        recorded.modules,
        shadow.weights,
        _evaluated(shadow.network),
        tuple(recorded.constants),
        recorded.program(recorded.given),
        _declared(shadow.network),
        functools.cache(functools.partial(_training_of, shadow, wanted)),
    )


def _settled(
    shadow: Shadow,
    wanted: Inputs,
    strict: bool,
    recorded: Recorder,
    outputs: tuple[int, ...],
    state: MovableState,
) -> tuple[Recorder, tuple[int, ...]]:
    """Return what runs each time, or raise.

    The first call may make what later ones use, such as a table of positions. One that draws random
    numbers gets others each time.
    """
    drew, runs = state.drew, 0
    while runs < (_RUNS_IF_RANDOM if drew else _RUNS):
        before, runs = recorded, runs + 1
        state.reseed(runs)
        recorded, outputs = _evaluate(shadow, wanted, strict)
        drew = drew or state.drew
        difference = _first_difference(before, recorded)
        if not difference and not drew:
            return recorded, outputs
        if difference and (drew or runs == _RUNS):
            raise TracingError(
                f"{shadow.model}: its forward differs from one call to the next, first at "
                f"{difference}{', and it draws random numbers' if drew else ''}, so no one graph "
                "describes it; make what it does depend on its inputs and arguments alone"
            )
    return recorded, outputs


# Three runs tell a state that settles after the first from one that does not. A way that is taken
# with a probability between 0.3 and 0.7 shows in nine runs but for one in twenty.
_RUNS, _RUNS_IF_RANDOM = 2, 8


def _first_difference(one: Recorder, other: Recorder) -> str:
    """Return the first layer in which two runs differ; empty if they are the same."""
    for first, second in itertools.zip_longest(one.layers, other.layers):
        if first != second:
            names = [layer.name if layer else "the end" for layer in (first, second)]
            return repr(names[0]) if names[0] == names[1] else " or ".join(map(repr, names))
    same = one.values == other.values and one.constants == other.constants
    return "" if same else "a value"


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
    repeat: bool = False,
) -> Graph:
    """Return the graph of a network; a graph stands for itself.

    Args:
        model: The network, or its graph.
        input_shape: As in :func:`trace`; not for a graph, which has its own.
        inputs: As in :func:`trace`; not for a graph.
        strict: As in :func:`trace`.
        repeat: As in :func:`trace`; not for a graph.

    Raises:
        InvalidInputError: If a graph comes with a shape or inputs, or a network without.
        TracingError: If the network cannot be traced.
    """
    if not isinstance(model, Graph):
        return trace(model, input_shape, inputs=inputs, strict=strict, repeat=repeat)
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
    """Refuse what torch has compiled or quantized: its operations do not pass by Python."""
    if hasattr(model, "_orig_mod"):
        raise InvalidInputError(
            f"model={type(model).__name__}: is compiled; give what it was made of: model._orig_mod"
        )
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            raise InvalidInputError(
                f"{path or 'model'}={type(module).__name__}: is quantized, and what runs in it "
                "cannot be looked into; give the network that it was made of, before "
                "torch.ao.quantization.convert"
            )
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


def _evaluate(shadow: Shadow, wanted: Inputs, strict: bool) -> tuple[Recorder, tuple[int, ...]]:
    """Run a network in evaluation mode; by torch.export where it writes into parts of tensors."""
    try:
        return _run(shadow, wanted, strict)
    except UndescribedError as error:
        if not error.exportable:
            raise
        try:
            return _run(shadow, wanted, strict=True, exported=True)
        except Exception as second:  # noqa: BLE001 - export raises errors of every kind
            raise TracingError(_say_both(error, second)) from error


def _run(
    shadow: Shadow, wanted: Inputs, strict: bool, exported: bool = False
) -> tuple[Recorder, tuple[int, ...]]:
    network = shadow.network.eval()
    args, kwargs = _samples(wanted, 1, _dtype_of(network))
    inputs = list(tensors((args, kwargs)))
    recorder = Recorder(shadow.model, network, inputs, shadow.numbers, shadow.hidden, strict=strict)
    try:
        with torch.no_grad():
            if exported:
                outputs = replay(recorder, network, args, kwargs)
            else:
                with recorder.watching():
                    outputs = network(*args, **kwargs)
    except ConstrainedCNNError:
        raise
    except Exception as error:
        raise TracingError(_say(error, recorder, args, kwargs)) from error
    if recorder.refusal is not None:  # and the network caught it
        if isinstance(recorder.refusal, ConstrainedCNNError):
            raise recorder.refusal
        raise TracingError(_say(recorder.refusal, recorder, args, kwargs)) from recorder.refusal
    recorder.given = outputs
    return recorder, recorder.numbers_of(outputs)


def _training_of(shadow: Shadow, wanted: Inputs) -> Program:
    """Return what runs in training mode; a network that cannot run says why in the result.

    A batch of a prime number of samples tells what grows with it. Some networks cut the batch into
    parts, and take one with many divisors only; then two of these are compared.
    """
    with undisturbed():
        program, kept = _train(shadow, wanted, BATCH)
        if not program.problem:
            return with_saved(program, *growing(kept, BATCH))
        divisible, kept = _train(shadow, wanted, DIVISIBLE)
        twice, more = _train(shadow, wanted, 2 * DIVISIBLE)
        if divisible.problem or twice.problem or len(divisible.layers) != len(twice.layers):
            return replace(
                program,
                problem=f"{program.problem} (with a batch of {BATCH:,}; {DIVISIBLE:,} fails too)",
            )
        return with_saved(divisible, *differing(kept, more, DIVISIBLE))


def _train(shadow: Shadow, wanted: Inputs, batch: int) -> tuple[Program, Sequence[tuple[int, int]]]:
    """Run a network in training mode; return what ran, and the bytes each layer keeps."""
    network = shadow.network.train()
    args, kwargs = _samples(wanted, batch, _dtype_of(network))
    inputs = list(tensors((args, kwargs)))
    recorder = TrainingRecorder(shadow.model, network, inputs, shadow.numbers, shadow.hidden)
    outputs: Any = ()
    problem = ""
    with torch.enable_grad(), recorder.watching():
        before = states_of_others()
        try:
            outputs = network(*args, **kwargs)
            recorder.numbers_of(outputs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the evaluation graph stands
            problem = reason_of(error)
        draws = [name for name, state in states_of_others().items() if state != before[name]]
    if recorder.refusal is not None and not problem:  # and the network caught it
        problem = reason_of(recorder.refusal)
    program = recorder.program(outputs)
    program = replace(program, draws=(*program.draws, *draws), problem=problem)
    return program, recorder.kept


def _declared(network: nn.Module) -> dict[str, str]:
    """Return the class of each module without modules in it."""
    return {
        path: _kind(module)
        for path, module in network.named_modules(remove_duplicate=False)
        if path and next(module.children(), None) is None
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


def _shadow_of(model: nn.Module) -> Shadow:
    """Return a copy whose tensors have no content."""
    for name, part in _named(model):
        if is_lazy(part):
            raise TracingError(
                f"{type(model).__name__}: {name!r} has no shape before the first call; call the "
                "model once on a sample, then trace it"
            )
    hidden: dict[int, str] = {}
    buffers = {id(part): name for name, part in model.named_buffers()}

    def stand_in(tensor: Tensor) -> Tensor:
        if _is_switch(tensor):
            return tensor.detach().clone()
        empty = torch.empty_like(tensor, device=META)
        if tensor.requires_grad and tensor.is_leaf and not isinstance(tensor, nn.Parameter):
            name = buffers.get(id(tensor))
            hidden[id(empty)] = f"buffer {name!r}" if name else "a tensor"
            held.append(empty)
        return empty

    held: list[Tensor] = []  # an id belongs to a tensor only while it lives
    network = copied(model, stand_in)
    names: dict[int, list[str]] = {}
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for (name, part), (_, empty) in zip(_named(model), _named(network), strict=True):
        names.setdefault(id(part), []).append(name)
        pairs[id(part)] = part, empty
    weights = tuple(_weight(names[key], part) for key, (part, _) in pairs.items())
    numbers = {id(empty): number for number, (_, empty) in enumerate(pairs.values())}
    return Shadow(type(model).__name__, network, weights, numbers, hidden, held)


def _is_switch(tensor: Tensor) -> bool:
    """Whether a tensor keeps its number: a flag, such as whether an observer is on."""
    return tensor.numel() == 1 and not (
        tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta
    )


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
