"""The operation table: for each operation of torch, what its outputs read and what work it is.

Operations are known by the name torch gives them, in-place and reflected forms under the plain
name: ``add_``, ``__radd__`` and ``torch.add`` are all ``add``. :func:`register_op` adds to it.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, closest
from constrained_cnn.graph import AxisRead, Read, Work
from constrained_cnn.tracing import _axes, _mixing, _windows, _work
from constrained_cnn.tracing._call import Call, Reads, elementwise

ReadRule = Callable[[Call], Reads]
WorkRule = Callable[[Call], Work]


@dataclass(frozen=True)
class Operation:
    """What is known of an operation.

    Attributes:
        reads: Gives for each output the reads it makes.
        work: Gives its arithmetic.
    """

    reads: ReadRule
    work: WorkRule


_ELEMENTWISE = frozenset(
    """
    abs absolute acos acosh add addcdiv addcmul and arccos arcsin arctan asin asinh atan atan2
    atanh bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max
    clamp_min clip copysign cos cosh deg2rad dequantize div divide elu eq erf erfc exp exp2 expm1
    fake_quantize_per_tensor_affine fix float_power floor floor_divide floordiv fmax fmin fmod frac
    ge gelu greater gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot invert isclose
    isfinite isinf isnan le leaky_relu lerp less log log10 log1p log2 logaddexp logaddexp2
    log_sigmoid
    logical_and logical_not logical_or logical_xor logit logsigmoid lt masked_fill maximum minimum
    mish mod mul multiply nan_to_num ne neg negative or pow prelu quantize_per_tensor rad2deg
    reciprocal relu relu6 remainder round rrelu rsqrt selu sgn sigmoid sign signbit silu sin sinc
    sinh softplus softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold
    true_divide truediv trunc truncate where xlogy xor
    """.split()  # noqa: SIM905
)

# Unit reads unit, and nothing is computed; dropout computes nothing in evaluation mode.
_MOVES = frozenset(
    """
    _to_copy alias alpha_dropout bfloat16 clone contiguous cpu detach double dropout dropout1d
    dropout2d dropout3d feature_alpha_dropout feature_dropout float half int lift_fresh_copy long
    requires_grad tril triu type
    """.split()  # noqa: SIM905
)

_REDUCTIONS = frozenset(
    """
    all amax amin aminmax any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean min
    nanmean nansum norm prod std std_mean sum var var_mean
    """.split()  # noqa: SIM905
)

_UPSAMPLES = (
    *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
)

# They read their first tensor; a second one only says which shape or type is wanted.
REFERENCES = frozenset({"expand_as", "reshape_as", "to", "type_as", "view_as"})

# Of their first tensor they read only what the second does not replace.
OVERWRITERS = frozenset({"copy", "fill", "slice_scatter", "select_scatter"})

# They take a tensor for its shape, not for what it holds.
SOURCES = frozenset(
    """
    empty_like fill full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like
    randint_like randn_like zero zeros_like
    """.split()  # noqa: SIM905
)

# Multiply-accumulates, which count even where they do not depend on the input.
PRODUCTS = frozenset(
    """
    addmm baddbmm bmm conv1d conv2d conv3d einsum linear matmul mm scaled_dot_product_attention
    """.split()  # noqa: SIM905
)


def _table() -> dict[str, Operation]:
    """Return what is known without :func:`register_op`."""
    rules: dict[str, tuple[ReadRule, WorkRule]] = {
        **dict.fromkeys(_ELEMENTWISE, (elementwise, _work.each)),
        **dict.fromkeys(_MOVES, (elementwise, _work.none)),
        **dict.fromkeys(_REDUCTIONS, (_mixing.reduction, _work.reduction)),
        **{f"conv{n}d": (_windows.convolution, _work.convolution) for n in (1, 2, 3)},
        **{
            f"conv_transpose{n}d": (_windows.transposed_convolution, _work.transposed_convolution)
            for n in (1, 2, 3)
        },
        **{
            f"{kind}_pool{n}d{indices}": (_windows.pool, _work.pool)
            for kind in ("max", "avg", "lp")
            for n in (1, 2, 3)
            for indices in ("", "_with_indices")
        },
        **{
            f"adaptive_{kind}_pool{n}d{indices}": (_windows.adaptive_pool, _work.adaptive_pool)
            for kind in ("max", "avg")
            for n in (1, 2, 3)
            for indices in ("", "_with_indices")
        },
        **dict.fromkeys(
            ["softmax", "log_softmax", "softmin", "normalize"], (_mixing.along, _work.each)
        ),
        **dict.fromkeys(
            ["batch_norm", "group_norm", "instance_norm"], (_mixing.position_norm, _work.norm)
        ),
        # Batch norm with stored statistics, as torch.export calls it.
        "_native_batch_norm_legit_no_training": (_mixing.stored_norm, _work.stored_norm),
        **dict.fromkeys(["layer_norm", "rms_norm"], (_mixing.layer_norm, _work.norm)),
        "local_response_norm": (_mixing.across_channels, _work.norm),
        "linear": (_mixing.linear, _work.linear),
        **dict.fromkeys(["matmul", "mm", "bmm"], (_mixing.matmul, _work.matmul)),
        **dict.fromkeys(["addmm", "baddbmm"], (_mixing.matmul, _work.added_matmul)),
        "einsum": (_mixing.product, _work.product),
        "multi_head_attention_forward": (
            _mixing.multi_head_attention,
            _work.multi_head_attention,
        ),
        "scaled_dot_product_attention": (_mixing.attention, _work.attention),
        **dict.fromkeys(
            ["lstm", "gru", "rnn_tanh", "rnn_relu"], (_mixing.recurrent, _work.recurrent)
        ),
        **dict.fromkeys(["upsample", "interpolate"], (_windows.interpolate, _work.interpolate)),
        "glu": (_mixing.glu, _work.each),
        "embedding": (_mixing.embedding, _work.none),
        "channel_shuffle": (_mixing.shuffled_channels, _work.none),
        **dict.fromkeys(
            ["cat", "concat", "concatenate", "stack"], (_mixing.concatenation, _work.none)
        ),
        **dict.fromkeys(
            ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"],
            (_mixing.cumulated, _work.each),
        ),
        "diff": (_mixing.differences, _work.each),
        **dict.fromkeys(
            ["sort", "argsort", "msort", "topk", "kthvalue", "median", "mode"],
            (_mixing.ordered, _work.reduction_of_input),
        ),
        "one_hot": (_mixing.embedding, _work.none),
        **dict.fromkeys(
            ["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"],
            (_axes.permutation, _work.none),
        ),
        **dict.fromkeys(["T", "mT", "H", "mH", "t", "adjoint"], (_axes.permutation, _work.none)),
        **dict.fromkeys(
            ["view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"],
            (_axes.reshape, _work.none),
        ),
        **dict.fromkeys(["squeeze", "unsqueeze"], (_axes.squeeze, _work.none)),
        **dict.fromkeys(
            ["expand", "expand_as", "broadcast_to", "type_as", "to"], (_axes.stretched, _work.none)
        ),
        **dict.fromkeys(
            ["chunk", "split", "split_with_sizes", "tensor_split", "narrow", "unbind", "select"],
            (_axes.parts, _work.none),
        ),
        **dict.fromkeys(["repeat", "tile"], (_axes.repeated, _work.none)),
        # What torch.export makes of writing into part of a tensor, and its names for resampling.
        "slice": (_axes.sliced, _work.none),
        **dict.fromkeys(["slice_scatter", "select_scatter"], (_axes.scattered, _work.none)),
        "copy": (_axes.copied, _work.none),
        "fill": (_axes.filled, _work.none),
        **dict.fromkeys(_UPSAMPLES, (_windows.resampled, _work.interpolate)),
        **dict.fromkeys(
            [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]
            + ["constant_pad_nd"],
            (_axes.padding, _work.none),
        ),
        "repeat_interleave": (_axes.interleaved, _work.none),
        "unfold": (_axes.unfolded, _work.none),
        "im2col": (_axes.patches, _work.none),
        "index_select": (_axes.selected, _work.none),
        "flip": (_axes.flip, _work.none),
        "getitem": (_axes.indexing, _work.none),
        "pad": (_axes.padding, _work.none),
        "roll": (_axes.rolled, _work.none),
        "pixel_shuffle": (_windows.pixel_shuffle, _work.none),
        "pixel_unshuffle": (_windows.pixel_unshuffle, _work.none),
    }
    return {op: Operation(*pair) for op, pair in rules.items()}


_BUILT_IN = _table()
_REGISTERED: dict[str, Operation] = {}  # the one open table; only register_op writes to it


def find(op: str) -> Operation | None:
    """Return what is known of the operation of that name."""
    return _BUILT_IN.get(op) or _REGISTERED.get(op)


def is_unit_wise(op: str) -> bool:
    """Return whether each unit of what the operation gives reads the same unit of its inputs."""
    operation = find(op)
    return operation is not None and operation.reads is elementwise


def register_op(
    op: str,
    *,
    like: str | None = None,
    reads: ReadRule | None = None,
    work: WorkRule | None = None,
) -> None:
    """Say what an operation reads and costs, so that networks with it can be traced.

    Either ``like`` names an operation that reads and costs the same, or both rules are given; one
    that is given beside ``like`` stands in place of that operation's. The name is the one that the
    error names: ``"erfinv"``, or ``"mylib::gate"`` for an operation of ``torch.library``.
    Registering the same name again replaces what was said.

    Args:
        op: Name of the operation.
        like: Name of a known operation with the same arguments.
        reads: Gets the :class:`Call`, returns for each output the
            :class:`~constrained_cnn.graph.Read` it makes; :func:`elementwise` is one.
        work: Gets the :class:`Call`, returns the :class:`~constrained_cnn.graph.Work`.

    Raises:
        InvalidInputError: If the library describes that operation itself, ``like`` is unknown, or
            a rule is missing: what an operation costs is never taken to be nothing.

    Examples:
        >>> register_op("erfinv", like="tanh")
        >>> def product_of_all(call: Call) -> Work:
        ...     return Work(elementwise=call.input.numel())
        >>> register_op("mylib::scale", reads=elementwise, work=product_of_all)
    """
    if not isinstance(op, str) or not op:
        raise InvalidInputError(f"op={op!r}: must be the name of an operation, such as 'erfinv'")
    if op in _BUILT_IN:
        raise InvalidInputError(f"op={op!r}: is described by the library; it is not replaced")
    if like is not None:
        known = find(like)
        if known is None:
            hint = closest(str(like), [*_BUILT_IN, *_REGISTERED])
            raise InvalidInputError(f"like={like!r}: no such operation is known{hint}")
        reads, work = reads or known.reads, work or known.work
    if not callable(reads) or not callable(work):
        raise InvalidInputError(
            f"reads={reads!r}, work={work!r}: both must be functions of a Call; or give like="
        )
    _REGISTERED[op] = Operation(_checked_reads(op, reads), _checked_work(op, work))


def _checked_reads(op: str, rule: ReadRule) -> ReadRule:
    """Return the rule with what it gives looked at, for a rule of the user's own."""

    def reads(call: Call) -> Reads:
        found = _asked(op, "reads", rule, call)
        wanted = f"one tuple of Reads for each of its {len(call.outputs)} outputs"
        if not isinstance(found, tuple | list) or len(found) != len(call.outputs):
            raise InvalidInputError(f"the rule reads= of {op!r} gave {found!r}: must be {wanted}")
        for each, out in zip(found, call.outputs, strict=True):
            if not isinstance(each, tuple | list) or not all(isinstance(r, Read) for r in each):
                raise InvalidInputError(
                    f"the rule reads= of {op!r} gave {each!r}: must be {wanted}"
                )
            entries = [entry for read in each for entry in read.axes]
            wrong = any(not isinstance(entry, AxisRead | None) for entry in entries)
            if wrong or any(len(read.axes) != out.ndim for read in each):
                raise InvalidInputError(
                    f"the rule reads= of {op!r} gave {each!r}: must have one AxisRead or None for "
                    f"each of the {out.ndim} axes of its output"
                )
        return tuple(map(tuple, found))

    return reads


def _checked_work(op: str, rule: WorkRule) -> WorkRule:
    def work(call: Call) -> Work:
        found = _asked(op, "work", rule, call)
        numbers = astuple(found) if isinstance(found, Work) else ()
        if not numbers or not all(type(n) is int and n >= 0 for n in numbers):
            raise InvalidInputError(
                f"the rule work= of {op!r} gave {found!r}: must be a Work of integers from 0"
            )
        return found

    return work


def _asked(op: str, name: str, rule: Callable[[Call], Any], call: Call) -> Any:
    try:
        return rule(call)
    except ConstrainedCNNError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInputError(f"the rule {name}= of {op!r} failed: {reason}") from error
