"""The arguments of a call that are no tensors, by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from constrained_cnn.graph._graph import Setting
from constrained_cnn.tracing._call import Call

# Functions written in C++ do not say what their arguments are called.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_POOL = ("input", "kernel_size", "stride", "padding")
_ADAPTIVE = ("input", "output_size", "return_indices")
DROPOUTS = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("alpha_dropout", "feature_alpha_dropout"),
)
_NAMES = {
    **{f"conv{n}d": _CONVOLUTION for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _TRANSPOSED for n in (1, 2, 3)},
    **{f"max_pool{n}d": (*_POOL, "dilation", "ceil_mode", "return_indices") for n in (1, 2, 3)},
    **{f"avg_pool{n}d": (*_POOL, "ceil_mode", "count_include_pad") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": _ADAPTIVE for kind in ("max", "avg") for n in (1, 2, 3)},
    **dict.fromkeys(["mean", "sum", "amax", "amin", "max", "min"], ("input", "dim", "keepdim")),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack"], ("tensors", "dim")),
    **dict.fromkeys(["chunk", "split"], ("input", "sizes", "dim")),
    "flatten": ("input", "start_dim", "end_dim"),
    "linear": ("input", "weight", "bias"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p"),
    **dict.fromkeys(
        ["lstm", "gru", "rnn_tanh", "rnn_relu"],
        ("input", "hx", "weights", "bias", "num_layers", "dropout", "training"),
    ),
    **dict.fromkeys(DROPOUTS, ("input", "p", "training")),
    **dict.fromkeys(["clamp", "clip"], ("input", "min", "max")),
    "clamp_min": ("input", "min"),
    "clamp_max": ("input", "max"),
    "channel_shuffle": ("input", "groups"),
    "pixel_shuffle": ("input", "upscale_factor"),
    "pixel_unshuffle": ("input", "downscale_factor"),
}
_CONVOLUTIONS = tuple(name for name in _NAMES if name.startswith("conv"))


def settings_of(func: Callable[..., Any], call: Call) -> dict[str, Setting]:
    """Return the arguments of ``call`` that are numbers, flags, words, or rows of numbers."""
    names = _NAMES.get(call.op) or _parameters(func)
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    settings = {name: _plain(value) for name, value in given.items() if _is_plain(value)}
    if call.op in _CONVOLUTIONS:
        settings["kernel_size"] = tuple(call.get(1, "weight").shape[2:])
    if call.op in _CONVOLUTIONS or call.op == "linear":
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
    try:
        return tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return ()
