"""Kinds of layers that rules speak of, told from what an operation does and not from its name."""

from collections.abc import Callable, Mapping

from constrained_cnn.constraints._subject import is_vector
from constrained_cnn.errors import InvalidInputError, closest
from constrained_cnn.graph import ACTIVATIONS, NORMS, POOLS, PRODUCTS, Layer, Setting

# Words that people use, and that are not like ours, for the sake of the error.
_SHORT = {
    "bn": "batch_norm",
    "gn": "group_norm",
    "ln": "layer_norm",
    "gap": "global_average_pool",
    "fc": "fully_connected",
    "dense": "fully_connected",
    "linear": "fully_connected",
    "convolution": "conv",
}


def is_conv(layer: Layer) -> bool:
    """Return whether a layer is a convolution; a linear layer at each place of an image is 1x1."""
    return layer.kind in ("conv", "pointwise")


def is_any_conv(layer: Layer) -> bool:
    """Return whether a layer is a convolution, transposed or not."""
    return is_conv(layer) or layer.kind == "transposed_conv"


def is_weighted_product(layer: Layer) -> bool:
    """Return whether a layer is a convolution, transposed or not, or a linear layer."""
    return is_any_conv(layer) or (bool(layer.weights) and layer.kind in PRODUCTS)


def is_fully_connected(layer: Layer) -> bool:
    """Return whether a layer multiplies one vector for each sample by a weight."""
    linear = layer.kind in ("linear", "product") and bool(layer.weights)
    return linear and is_vector(layer.input_shape)


def is_on_one_cell(layer: Layer) -> bool:
    """Return whether a layer is a convolution on one cell, which is a fully connected layer."""
    return is_conv(layer) and _groups(layer) == 1 and is_vector(layer.input_shape)


def may_be_nonlinear(layer: Layer) -> bool:
    """Return whether a layer is no activation by name, and could be one all the same."""
    if layer.kind == "scale":  # x times a mask made of x; a gate is of another shape
        shapes = {tuple(size for size in shape if size > 1) for shape in layer.input_shapes}
        return len(layer.input_shapes) > 1 and len(shapes) == 1
    return layer.kind in ("nonlinear", "quotient", "random", "unknown")


def channels(layer: Layer) -> tuple[int, int]:
    """Return the channels a convolution is given and those it makes."""
    axis = -1 if layer.kind == "pointwise" else 0
    return layer.input_shape[axis], layer.output_shape[axis]


def _is_depthwise(layer: Layer) -> bool:
    return layer.kind == "conv" and _groups(layer) == channels(layer)[0] > 1


def _groups(layer: Layer) -> Setting:
    return layer.settings.get("groups") or 1


def _is_dilated(layer: Layer) -> bool:
    return is_conv(layer) and any(
        window.dilation > 1 and window.kernel > 1 for window in layer.windows
    )


def _is_strided(layer: Layer) -> bool:
    slides = is_conv(layer) or _is_pool(layer)
    return slides and any(window.stride > 1 for window in layer.windows)


def _pools(layer: Layer, *kinds: str) -> bool:
    """Whether a layer pools in one of some ways; one cell at a time, step by step, is no pool."""
    if layer.kind not in kinds:
        return False
    if not layer.windows:
        return layer.input_shape != layer.output_shape
    return any(window.kernel > 1 or window.stride > 1 for window in layer.windows)


def _is_pool(layer: Layer) -> bool:
    return _pools(layer, *POOLS)


def dropout_p(layer: Layer) -> float | None:
    """Return the probability with which a layer drops; None if it is no dropout, or is off."""
    if not layer.drops:
        return None
    settings = layer.settings
    if layer.drops == "recurrent" and settings.get("num_layers") == 1:
        return None  # it drops between layers
    if layer.kind != "dropout":
        p = settings.get("dropout_p", settings.get("dropout")) or None
    else:
        p = settings.get("p", 0.5)
    on = settings.get("training", settings.get("train", True))
    return float(p) if on and isinstance(p, int | float) else None


def is_dropout(layer: Layer) -> bool:
    """Return whether a layer drops anything."""
    return bool(dropout_p(layer))


def near_miss(layer: Layer, word: str) -> str:
    """Return why a layer that looks like one of a kind is none; empty if it does not look so."""
    why = ""
    if word == "depthwise" and layer.kind == "conv" and 1 != _groups(layer) != channels(layer)[0]:
        why = (
            f"{_groups(layer)} groups of {channels(layer)[0]} channels; depthwise has a group for "
            "each channel"
        )
    if word == "fully_connected" and is_on_one_cell(layer):
        why = "works on one cell, where it is the same arithmetic"
    if word == "dropout" and layer.drops and not is_dropout(layer):
        if layer.kind == "dropout":
            off = dropout_p(layer) is None
            why = "is off in training mode" if off else "p = 0 drops nothing"
        elif layer.settings.get("dropout"):
            why = "drops between its layers, and there is but one"
    return f"{layer.name}: {why}" if why else ""


KINDS: Mapping[str, Callable[[Layer], bool]] = {
    "conv": is_conv,
    "depthwise": _is_depthwise,
    "dilated": _is_dilated,
    "strided": _is_strided,
    "transposed_conv": lambda layer: layer.kind == "transposed_conv",
    "fully_connected": is_fully_connected,
    "classifier": lambda layer: is_fully_connected(layer) or is_on_one_cell(layer),
    "max_pool": lambda layer: _pools(layer, "max_pool"),
    "avg_pool": lambda layer: _pools(layer, "avg_pool"),
    "pool": _is_pool,
    "batch_norm": lambda layer: layer.kind == "batch_norm",
    "group_norm": lambda layer: layer.kind == "group_norm",
    "instance_norm": lambda layer: layer.kind == "instance_norm",
    "layer_norm": lambda layer: layer.kind == "layer_norm",
    "norm": lambda layer: layer.kind in NORMS,
    "relu": lambda layer: layer.kind == "relu",
    "activation": lambda layer: layer.kind in ACTIVATIONS,
    "softmax": lambda layer: layer.kind == "softmax",
    "dropout": is_dropout,
}
GLOBAL_AVERAGE_POOL = "global_average_pool"
WORDS = (*KINDS, GLOBAL_AVERAGE_POOL)


def check_word(name: str, word: object, words: tuple[str, ...] = WORDS) -> str:
    """Return ``word`` if it names a kind of layer; raise with the nearest if not."""
    if isinstance(word, str) and word in words:
        return word
    near = _SHORT.get(str(word).lower())
    hint = f"; did you mean {near!r}?" if near in words else closest(str(word), words)
    raise InvalidInputError(f"{name}={word!r}: must be one of {', '.join(words)}{hint}")


def words_of(layer: Layer) -> str:
    """Return what a layer is, in words: its kernel, and its operation.

    Examples:
        >>> from constrained_cnn.graph import Window
        >>> words_of(Layer("conv2d", "a", (1,), (), windows=(Window(3), Window(3))))
        '3x3 conv2d'
    """
    kernel = "x".join(str(window.kernel) for window in layer.windows)
    return f"{kernel} {layer.op}".strip()
