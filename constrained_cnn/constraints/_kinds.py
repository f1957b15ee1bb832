"""Which kind of layer an operation is: told from what it does, not from what it is called."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from constrained_cnn.constraints._steps import Step, is_vector
from constrained_cnn.errors import InvalidInputError, closest

_ACTIVATIONS = frozenset(
    """
    celu clamp clamp_max clamp_min clip elu gelu glu hardshrink hardsigmoid hardswish hardtanh
    leaky_relu log_sigmoid logsigmoid mish prelu relu relu6 rrelu selu sigmoid silu softplus
    softshrink softsign tanh tanhshrink threshold
    """.split()  # noqa: SIM905
)
# Neither linear nor called an activation: a network can make one of these.
_BENDS = frozenset(
    """
    abs absolute acos acosh addcdiv addcmul amax amin asin asinh atan atan2 ceil copysign cos cosh
    erf erfc exp exp2
    expm1 floor fmax fmin fmod frac heaviside hypot log log10 log1p log2 logaddexp logaddexp2 logit
    masked_fill max maximum min minimum nan_to_num pow reciprocal remainder round rsqrt sgn sign sin
    sinc sinh sqrt square tan trunc where xlogy
    kthvalue lerp linalg_vector_norm logsumexp lp_pool1d lp_pool2d lp_pool3d median mode normalize
    prod std topk var
    """.split()  # noqa: SIM905
)
_CLAMPS = ("clamp", "clamp_max", "clamp_min", "clip")
_NORMS = (
    *(f"{kind}_norm" for kind in ("batch", "group", "instance", "layer", "rms")),
    "local_response_norm",
)
DROPOUTS: Mapping[str, str] = {
    "dropout": "elementwise",
    "dropout1d": "channel",
    "dropout2d": "channel",
    "dropout3d": "channel",
    "feature_dropout": "channel",
    "alpha_dropout": "alpha",
    "feature_alpha_dropout": "channel alpha",
    "scaled_dot_product_attention": "attention",
    "multi_head_attention_forward": "attention",
    "lstm": "recurrent",
    "gru": "recurrent",
    "rnn_tanh": "recurrent",
    "rnn_relu": "recurrent",
}
# What a tensor goes through unchanged.
MOVES = frozenset(
    """
    _to_copy alias bfloat16 clone contiguous detach double float half lift_fresh_copy requires_grad
    to type
    """.split()  # noqa: SIM905
)
# What only orders its elements anew.
RESHAPES = frozenset(
    """
    _unsafe_view flatten moveaxis movedim permute reshape reshape_as squeeze swapaxes swapdims t T
    transpose unflatten unsqueeze view view_as
    """.split()  # noqa: SIM905
)

# Words that people use, for the sake of the error.
_SHORT = {
    "bn": "batch_norm",
    "gn": "group_norm",
    "ln": "layer_norm",
    "drop": "dropout",
    "gap": "global_average_pool",
    "fc": "fully_connected",
    "dense": "fully_connected",
    "linear": "fully_connected",
    "convolution": "conv",
    "maxpool": "max_pool",
    "avgpool": "avg_pool",
    "batchnorm": "batch_norm",
}


@dataclass(frozen=True)
class Window:
    """What a convolution or pool slides, along each axis of the image.

    Attributes:
        kernel: Its taps.
        stride: Cells from one place to the next.
        padding: Cells before the first.
        dilation: Cells from tap to tap.
        after: Cells behind the last.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    after: tuple[int, ...] = ()


def window_of(step: Step) -> Window | None:
    """Return the window of a convolution or pool; None for what slides none of a fixed size."""
    axes = re.fullmatch(r"(?:conv|conv_transpose|max_pool|avg_pool|lp_pool)([123])d", step.op)
    if step.op == "linear":
        places = (1,) * (len(step.before) - 1)
        return Window(places, places, (0,) * len(places), places)
    if axes is None:
        return None
    count = int(axes[1])
    kernel = _spread(step.settings.get("kernel_size"), count)
    stride = step.settings.get("stride") or (kernel if "pool" in step.op else 1)
    dilation = _spread(step.settings.get("dilation") or 1, count)
    padding = step.settings.get("padding") or 0
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        before = tuple(span // 2 for span in spans)
        after = tuple(span - span // 2 for span in spans)
    else:
        before = after = _spread(0 if padding == "valid" else padding, count)
    return Window(kernel, _spread(stride, count), before, dilation, after)


def _spread(value: object, count: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    return given * count if len(given) == 1 else given


def is_conv(step: Step) -> bool:
    """Return whether a step is a convolution; a linear layer at each place of an image is 1x1."""
    if step.op == "linear":
        return step.weighted and step.at_places
    return re.fullmatch(r"conv[123]d", step.op) is not None


def is_any_conv(step: Step) -> bool:
    """Return whether a step is a convolution, transposed or not."""
    return is_conv(step) or step.op.startswith("conv_transpose")


def is_weighted_product(step: Step) -> bool:
    """Return whether a step is a convolution, transposed or not, or a linear layer."""
    return is_any_conv(step) or (step.weighted and step.op in _PRODUCTS)


_PRODUCTS = ("linear", "matmul", "mm", "bmm", "baddbmm", "einsum")


def is_fully_connected(step: Step) -> bool:
    """Return whether a step multiplies one vector for each sample by a weight."""
    return step.weighted and step.op in _PRODUCTS and is_vector(step.before)


def may_bend(step: Step) -> bool:
    """Return whether a step is no activation by name, and could be one all the same."""
    if step.op in ("mul", "multiply"):  # x times a mask made of x; a gate is of another shape
        return len(step.shapes) > 1 and len(set(step.shapes)) == 1
    if step.op in _CLAMPS:  # by a tensor
        return not {"min", "max"}.intersection(step.settings)
    return step.op in _BENDS


def channels(step: Step) -> tuple[int, int]:
    """Return the channels a convolution is given and those it makes."""
    axis = -1 if step.op == "linear" else 0
    return step.before[axis], step.after[axis]


def _is_depthwise(step: Step) -> bool:
    groups = step.settings.get("groups") or 1
    return is_conv(step) and step.op != "linear" and groups == channels(step)[0] > 1


def _is_dilated(step: Step) -> bool:
    window = window_of(step) if is_conv(step) else None
    return window is not None and any(
        d > 1 and k > 1 for d, k in zip(window.dilation, window.kernel, strict=True)
    )


def _is_strided(step: Step) -> bool:
    window = window_of(step) if is_conv(step) or _is_pool(step) else None
    return window is not None and any(stride > 1 for stride in window.stride)


def _pools(step: Step, *kinds: str) -> bool:
    """Whether a step pools in one of some ways; a window of one cell that steps by one does not."""
    found = re.fullmatch(rf"(adaptive_)?({'|'.join(kinds)})_pool[123]d", step.op)
    if found is None:
        return False
    window = window_of(step)
    if window is None:
        return step.before != step.after
    return any(size > 1 for size in (*window.kernel, *window.stride))


def _is_pool(step: Step) -> bool:
    return _pools(step, "max", "avg", "lp")


def _is_relu(step: Step) -> bool:
    given = step.settings
    match step.op:
        case "relu":
            return True
        case "clamp" | "clip" | "clamp_min":
            return given.get("min") == 0 and given.get("max") in (None, math.inf)
        case "hardtanh":
            return given.get("min_val") == 0 and given.get("max_val") == math.inf
        case "leaky_relu":
            return given.get("negative_slope") == 0
        case "threshold":
            return given.get("threshold") == 0 and given.get("value") == 0
    return False


def dropout_p(step: Step) -> float | None:
    """Return the probability with which a step drops; None if it is no dropout, or is off."""
    if step.op not in DROPOUTS:
        return None
    settings = step.settings
    if DROPOUTS[step.op] == "recurrent" and settings.get("num_layers") == 1:
        return None  # it drops between layers
    if DROPOUTS[step.op] in ("attention", "recurrent"):
        p = settings.get("dropout_p", settings.get("dropout")) or None
    else:
        p = settings.get("p", 0.5)
    on = settings.get("training", settings.get("train", True))
    return float(p) if on and isinstance(p, int | float) else None


def is_dropout(step: Step) -> bool:
    """Return whether a step drops anything."""
    return bool(dropout_p(step))


KINDS: Mapping[str, Callable[[Step], bool]] = {
    "conv": is_conv,
    "depthwise": _is_depthwise,
    "dilated": _is_dilated,
    "strided": _is_strided,
    "transposed_conv": lambda step: step.op.startswith("conv_transpose"),
    "fully_connected": is_fully_connected,
    "max_pool": lambda step: _pools(step, "max"),
    "avg_pool": lambda step: _pools(step, "avg"),
    "pool": _is_pool,
    "batch_norm": lambda step: step.op == "batch_norm",
    "group_norm": lambda step: step.op == "group_norm",
    "instance_norm": lambda step: step.op == "instance_norm",
    "layer_norm": lambda step: step.op == "layer_norm",
    "norm": lambda step: step.op in _NORMS,
    "relu": _is_relu,
    "activation": lambda step: step.op in _ACTIVATIONS or _is_relu(step),
    "softmax": lambda step: step.op in ("softmax", "log_softmax", "softmin"),
    "dropout": is_dropout,
}
GLOBAL_AVERAGE_POOL = "global_average_pool"
WORDS = (*KINDS, GLOBAL_AVERAGE_POOL)


def check_word(name: str, word: object, words: tuple[str, ...] = WORDS) -> str:
    """Return ``word`` if it names a kind of layer; raise with the nearest if not."""
    if isinstance(word, str) and word in words:
        return word
    near = _SHORT.get(str(word).lower().replace(" ", "_").replace("-", "_"))
    hint = f"; did you mean {near!r}?" if near in words else closest(str(word), words)
    raise InvalidInputError(f"{name}={word!r}: must be one of {', '.join(words)}{hint}")


def words_of(step: Step) -> str:
    """Return what a step is, in words: its kernel, and what makes it special.

    Examples:
        >>> words_of(Step("conv2d", "a: conv2d", (0,), (1,), settings={"kernel_size": (3, 3)}))
        '3x3 conv2d'
    """
    window = window_of(step)
    kernel = "x".join(map(str, window.kernel)) if window else ""
    return f"{kernel} {step.op}".strip()
