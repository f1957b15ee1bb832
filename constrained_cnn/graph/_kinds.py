"""Kinds of operations: what an operation is, whatever it is called."""

from typing import Final

# What slides or multiplies by weights.
CONVS: Final = ("conv", "transposed_conv")
PRODUCTS: Final = (*CONVS, "linear", "product")
# What takes windows, or a whole map, into one unit each.
POOLS: Final = ("max_pool", "avg_pool", "lp_pool")
NORMS: Final = (
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "local_response_norm",
)
ACTIVATIONS: Final = ("relu", "activation")

KINDS: Final[dict[str, str]] = {
    "conv": "convolution",
    "transposed_conv": "transposed convolution",
    "linear": "linear layer: every unit of the last axis reads all of it",
    "product": "product of matrices or of tensors",
    "attention": "attention: products, a softmax, and dropout if asked for",
    "recurrent": "recurrent layer: products, activations, and dropout if asked for",
    "embedding": "rows of a table",
    "max_pool": "largest of a window",
    "avg_pool": "mean of a window",
    "lp_pool": "power mean of a window",
    "mean": "mean over axes",
    "sum": "sum over axes",
    "batch_norm": "batch norm",
    "group_norm": "group norm",
    "instance_norm": "instance norm",
    "layer_norm": "layer norm",
    "rms_norm": "root mean square norm",
    "local_response_norm": "local response norm",
    "relu": "the larger of a value and 0",
    "activation": "any other activation",
    "softmax": "softmax, or its logarithm",
    "nonlinear": "not linear, and no activation by name",
    "dropout": "dropout",
    "random": "random numbers, of which a network can make a dropout of its own",
    "add": "sum or difference of its inputs",
    "scale": "product of its inputs, unit by unit, or a quotient by what is no input",
    "quotient": "quotient of two inputs",
    "moves": "the same values",
    "reshapes": "the same values, their axes in another order or cut otherwise",
    "cut": "a part of the values",
    "join": "values of several inputs side by side",
    "repeat": "the same values several times",
    "pad": "values with others around them",
    "shift": "values at other places",
    "shuffle": "values whose channels and places change",
    "unfold": "the windows of an image",
    "resample": "values at other places, interpolated",
    "source": "a new tensor that depends on no input",
    "unknown": "nothing is known of it",
}
"""Every kind that an operation can be of, and what it means."""
