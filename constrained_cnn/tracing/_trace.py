"""Run a network without data, once in evaluation mode and once in training, and write it down."""

import contextlib
import functools
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, TextIO

import torch
from torch import nn

from constrained_cnn.errors import (
    ConstrainedCNNError,
    InvalidInputError,
    TracingError,
    check_flag,
    reason_of,
)
from constrained_cnn.graph import Graph, Program, Shape
from constrained_cnn.tracing._around import MovableState, states_of_others, undisturbed
from constrained_cnn.tracing._export import replay
from constrained_cnn.tracing._inputs import (
    BatchAxis,
    Inputs,
    as_inputs,
    batch_as_sequence,
    watching_sequences,
)
from constrained_cnn.tracing._meta_copy import MetaCopy, meta_copy
from constrained_cnn.tracing._plain import plain_modules
from constrained_cnn.tracing._recorder import Recorder, UndescribedError
from constrained_cnn.tracing._training import (
    TrainingRecorder,
    differing,
    growing,
    with_saved,
)
from constrained_cnn.tracing.operations import tensors

# A prime: what divides by it grows with the batch, and what does not is kept once.
BATCH = 1009
# Divides by every number up to 10.
DIVISIBLE = 2520


def trace(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    batch_axis: BatchAxis = "auto",
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
            a tensor, with its batch axis, stands for its shape and type. Lists, tuples, dicts and
            dataclasses may hold them at any depth; anything else is passed on as it is.
        batch_axis: Which axis of the tensors is the batch. An index: there it is put into a shape,
            and there the size of a tensor does not matter. None: there is none, and the tensor is
            taken as it is, in training mode too. Or one of these for each input: a tuple in order,
            or a mapping by name (0 for names it leaves out), nested as the inputs are. ``"auto"``
            is 0, and refuses what makes that doubtful.
        strict: Whether an operation that nobody has described is an error. If not, the graph lists
            it as ``Graph.unknown``, and what is measured on the graph
            is incomplete.
        repeat: Whether it runs a second time in any case, to see that it does the same again. It
            does so without being asked where the first run drew random numbers or left a changed
            attribute behind.

    Raises:
        InvalidInputError: If the model is none, the shape no shape, or without ``batch_axis`` it is
            doubtful which axis is the batch: sizes at axis 0 differ, a lone tensor has one axis, or
            a recurrent layer or an attention takes the batch for the sequence.
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

        A sequence of 10, the batch behind it:

        >>> trace(nn.LSTM(16, 32), (10, 16), batch_axis=1).values[0].shape
        (10, 1, 16)
    """
    if not isinstance(model, nn.Module):
        hint = "; call it: a class makes a network" if isinstance(model, type) else ""
        raise InvalidInputError(f"model={type(model).__name__}: must be a torch.nn.Module{hint}")
    check_flag("strict", strict)
    wanted = as_inputs(input_shape, inputs, batch_axis)
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
    copy = meta_copy(model)
    copy.network.eval()
    state = MovableState(copy)
    sequences: list[tuple[str, Shape]] = []
    with watching_sequences(copy.network, lambda *layer: sequences.append(layer)):
        recorded, outputs = _evaluate(copy, wanted, strict)
    if repeat or state.moved:
        recorded, outputs = _settled(copy, wanted, strict, recorded, outputs, state)
    if wanted.is_auto and any(shape[0] == 1 for _, shape in sequences):
        _check_sequences(copy, wanted, sequences)
    if not wanted.is_batch_first:
        larger = _shapes_of_many(copy, wanted, recorded)
        _place_batch(recorded, wanted, larger, BATCH)
    return Graph(
        copy.model,
        recorded.inputs,
        outputs,
        tuple(recorded.values),
        tuple(recorded.layers),
        recorded.modules,
        copy.weights,
        copy.parametrized,
        tuple(recorded.constants),
        recorded.program(recorded.given),
        copy.declared,
        functools.cache(functools.partial(_training_of, copy, wanted, sys.stdout)),
        plain_modules(model),
    )


def _settled(
    copy: MetaCopy,
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
        recorded, outputs = _evaluate(copy, wanted, strict)
        drew = drew or state.drew
        difference = _first_difference(before, recorded)
        if not difference and not drew:
            return recorded, outputs
        if difference and (drew or runs == _RUNS):
            raise TracingError(
                f"{copy.model}: its forward differs from one call to the next, first at "
                f"{difference}{', and it draws random numbers' if drew else ''}, so no one graph "
                "describes it; make what it does depend on its inputs and arguments alone"
            )
    return recorded, outputs


def _check_sequences(copy: MetaCopy, wanted: Inputs, before: Sequence[tuple[str, Shape]]) -> None:
    """Raise if a layer that takes axis 0 for the sequence gets the batch there.

    Two samples tell: a sequence does not grow with them. Where they cannot run it stays doubtful.

    Args:
        copy: The network, without content.
        wanted: What it is given.
        before: What such layers were given while it ran with one sample.
    """
    now: list[tuple[str, Shape]] = []

    def compare(layer: str, shape: Shape) -> None:
        if len(now) < len(before) and shape[0] != before[len(now)][1][0]:
            raise batch_as_sequence(layer, shape)
        now.append((layer, shape))

    with watching_sequences(copy.network, compare), contextlib.suppress(TracingError):
        _run(copy, wanted, strict=False, batch=2)
    for layer, shape in before[len(now) :]:
        if shape[0] == 1:
            raise batch_as_sequence(layer, shape)


def _shapes_of_many(copy: MetaCopy, wanted: Inputs, recorded: Recorder) -> list[Shape]:
    """Return the shapes of the same values for ``BATCH`` samples."""
    with contextlib.suppress(TracingError):
        shapes = [v.shape for v in _run(copy, wanted, strict=False, batch=BATCH)[0].values]
        if len(shapes) == len(recorded.values):  # or with more samples it goes another way
            return shapes
    return [value.shape for value in recorded.values]


def _place_batch(recorded: Recorder, wanted: Inputs, larger: Sequence[Shape], batch: int) -> None:
    """Note which axis of each value is the batch, and leave it out of the layers' shapes.

    It is the axis that grows with the batch; where none does, one of size 1 in front, as networks
    without a batch put there.

    Args:
        recorded: What ran.
        wanted: What it was given.
        larger: The shapes of its values for so many samples.
        batch: A number of samples that no other axis divides by; 1 if nothing grows.
    """

    def axis_of(shape: Shape) -> int | None:
        growing = (i for i, size in enumerate(shape) if size and size % batch == 0 and batch > 1)
        return next(growing, 0 if shape[:1] == (1,) else None)

    axes = [*(s.batch_axis for s in wanted.specs), *map(axis_of, larger[len(wanted.specs) :])]
    pairs = zip(recorded.values, axes, strict=True)
    recorded.values[:] = [replace(value, batch_axis=axis) for value, axis in pairs]
    shapes = [value.sample_shape for value in recorded.values]
    recorded.layers[:] = [
        replace(
            layer,
            input_shapes=tuple(shapes[number] for number in layer.inputs),
            output_shape=shapes[layer.outputs[0]],
        )
        for layer in recorded.layers
    ]


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
    batch_axis: BatchAxis = "auto",
    strict: bool = True,
    repeat: bool = False,
) -> Graph:
    """Return the graph of a network; a graph stands for itself.

    Args:
        model: The network, or its graph.
        input_shape: As in :func:`trace`; not for a graph, which has its own.
        inputs: As in :func:`trace`; not for a graph.
        batch_axis: Which axis of them is the batch, as in :func:`trace`.
        strict: As in :func:`trace`.
        repeat: As in :func:`trace`; not for a graph.

    Raises:
        InvalidInputError: If a graph comes with a shape or inputs, or a network without.
        TracingError: If the network cannot be traced.
    """
    if not isinstance(model, Graph):
        return trace(
            model,
            input_shape,
            inputs=inputs,
            batch_axis=batch_axis,
            strict=strict,
            repeat=repeat,
        )
    if batch_axis != "auto":
        raise InvalidInputError(f"batch_axis={batch_axis!r}: not for a Graph, which has its own")
    if input_shape is not None or inputs is not None:
        raise InvalidInputError(f"input_shape={input_shape!r}: not for a Graph, which has its own")
    return model


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


def _evaluate(copy: MetaCopy, wanted: Inputs, strict: bool) -> tuple[Recorder, tuple[int, ...]]:
    """Run a network in evaluation mode; by torch.export where it writes into parts of tensors."""
    try:
        return _run(copy, wanted, strict)
    except UndescribedError as error:
        if not error.exportable:
            raise TracingError(str(error)) from error
        try:
            return _run(copy, wanted, strict=True, exported=True)
        except Exception as second:  # noqa: BLE001 - export raises errors of every kind
            raise TracingError(_say_both(error, second)) from error


def _run(
    copy: MetaCopy, wanted: Inputs, strict: bool, exported: bool = False, batch: int = 1
) -> tuple[Recorder, tuple[int, ...]]:
    network = copy.network.eval()
    args, kwargs = wanted.samples(batch, copy.dtype)
    inputs = tensors((args, kwargs))
    recorder = Recorder(copy, inputs, strict=strict)
    recorder.is_batched = wanted.is_batched
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
        raise TracingError(_say(error, recorder, wanted)) from error
    if recorder.refusal is not None:  # and the network caught it
        if isinstance(recorder.refusal, ConstrainedCNNError):
            raise recorder.refusal
        raise TracingError(_say(recorder.refusal, recorder, wanted)) from recorder.refusal
    recorder.given = outputs
    return recorder, recorder.numbers_of(outputs)


def _training_of(copy: MetaCopy, wanted: Inputs, out: TextIO) -> Program:
    """Return what runs in training mode; a network that cannot run says why in the result.

    A batch of a prime number of samples tells what grows with it. Some networks cut the batch into
    parts, and take one with many divisors only; then two of these are compared. What the network
    prints goes where it went when it was traced.
    """
    with undisturbed(), redirect_stdout(out):
        batch = BATCH if wanted.is_batched else 1
        program, kept = _train(copy, wanted, batch)
        if not program.problem:
            return with_saved(program, *growing(kept, batch))
        if not wanted.is_batched:
            return program
        divisible, kept = _train(copy, wanted, DIVISIBLE)
        twice, more = _train(copy, wanted, 2 * DIVISIBLE)
        if divisible.problem or twice.problem or len(divisible.layers) != len(twice.layers):
            problem = program.problem
            if problem != divisible.problem:  # it has to do with the batch
                problem += f" (with a batch of {BATCH:,}; {DIVISIBLE:,} fails too)"
            return replace(program, problem=problem)
        return with_saved(divisible, *differing(kept, more, DIVISIBLE))


def _train(copy: MetaCopy, wanted: Inputs, batch: int) -> tuple[Program, Sequence[tuple[int, int]]]:
    """Run a network in training mode; return what ran, and the bytes each layer keeps."""
    network = copy.network.train()
    args, kwargs = wanted.samples(batch, copy.dtype)
    inputs = tensors((args, kwargs))
    recorder = TrainingRecorder(copy, inputs)
    recorder.is_batched = wanted.is_batched
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
    if not wanted.is_batch_first:
        _place_batch(recorder, wanted, [value.shape for value in recorder.values], batch)
    program = recorder.program(outputs)
    program = replace(program, draws=(*program.draws, *draws), problem=problem)
    return program, recorder.kept


def _say(error: Exception, recorder: Recorder, wanted: Inputs) -> str:
    reason = reason_of(error)
    path = recorder.where(error)
    where = f" in {path!r}" if path else ""
    if "meta" in reason and "cpu" in reason:
        return (
            f"{recorder.model} makes a tensor on a fixed device in its forward{where} ({reason}); "
            "make it with device=x.device, or register it as a buffer"
        )
    needs = re.search(r"(aten::_?|torch\.)([a-z_]+)\d?\b.*(Meta tensors|data-independent)", reason)
    if needs:
        return (
            f"{recorder.model}: operation {needs[2]!r}{where} runs on numbers alone: how much it "
            "gives, or how it gets there, depends on them, so no single graph describes it; keep "
            "the shape, with torch.where or a product with the mask"
        )
    if "meta tensor" in reason or "data-dependent" in reason:
        return (
            f"{recorder.model}: its control flow depends on the values of its input{where}, or it "
            f"takes a number out of a tensor, so no single graph describes it ({reason}); trace a "
            "network whose steps depend on shapes"
        )
    return f"{recorder.model} cannot take an input of {wanted.describe()}{where}: {reason}"
