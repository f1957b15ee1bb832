"""Kinds that depend on the arguments of a call."""

import math
from collections.abc import Callable, Mapping

from constrained_cnn.graph import Setting
from constrained_cnn.tracing.operations._call import Call, data_of, tensors
from constrained_cnn.tracing.operations._mixing import factors, letters_of
from constrained_cnn.tracing.operations._windows import windows_of_pool

Settings = Mapping[str, Setting]
KindRule = Callable[[Call, Settings], str]


def clamp(call: Call, settings: Settings) -> str:
    """Return what a clamp is: a ReLU, another activation, or one of two tensors."""
    if not {"min", "max"}.intersection(settings):
        return "nonlinear"  # by tensors, which may depend on the input
    below, above = settings.get("min"), settings.get("max")
    return "relu" if below == 0 and above in (None, math.inf) else "activation"


def hardtanh(call: Call, settings: Settings) -> str:
    """Return "relu" where it only cuts off what is below 0."""
    is_relu = settings.get("min_val") == 0 and settings.get("max_val") == math.inf
    return "relu" if is_relu else "activation"


def leaky_relu(call: Call, settings: Settings) -> str:
    """Return "relu" where it does not leak."""
    return "relu" if settings.get("negative_slope") == 0 else "activation"


def threshold(call: Call, settings: Settings) -> str:
    """Return "relu" where it puts 0 for what is not above 0."""
    is_relu = settings.get("threshold") == 0 and settings.get("value") == 0
    return "relu" if is_relu else "activation"


def quotient(call: Call, settings: Settings) -> str:
    """Return "quotient" where it divides by an input, and "scale" where not, unless it rounds."""
    if settings.get("rounding_mode") is not None:
        return "nonlinear"
    return "quotient" if id(call.get(1, "other")) in call.values else "scale"


def power(call: Call, settings: Settings) -> str:
    """Return "moves" for the first power."""
    return "moves" if settings.get("exponent") == 1 else "nonlinear"


def cast(call: Call, settings: Settings) -> str:
    """Return "moves" for another type with a fraction; without one it rounds, or tells a sign."""
    given = tensors((call.args, call.kwargs))
    if not given or not call.outputs:
        return "moves"
    x = given[0]
    had = x.is_floating_point() or x.is_complex()
    has = call.output.is_floating_point() or call.output.is_complex()
    return "nonlinear" if had and not has else "moves"


def new(call: Call, settings: Settings) -> str:
    """Return "source" for a tensor of numbers; one of what tensors hold is a copy."""
    return "moves" if tensors(data_of(call)) else "source"


def sampled(call: Call, settings: Settings) -> str:
    """Return "resample" where the input says nothing of the places."""
    return "nonlinear" if id(call.get(1, "grid")) in call.values else "resample"


def indexed(kind: str) -> KindRule:
    """Return what gives a kind, or another where numbers of the input say which units it takes."""

    def rule(call: Call, settings: Settings) -> str:
        first, *others = tensors((call.args, call.kwargs))
        if not any(id(t) in call.values and not t.is_floating_point() for t in others):
            return kind
        is_table = kind == "cut" and id(first) not in call.values
        return "embedding" if is_table else "nonlinear"

    return rule


def einsum(call: Call, settings: Settings) -> str:
    """Return "scale" where no letter is summed over, as in a product unit by unit."""
    left, right, operands = letters_of(call)
    pairs = (zip(*one, strict=True) for one in zip(left, (o.shape for o in operands), strict=True))
    long = {letter for pair in pairs for letter, size in pair if size > 1}
    return "scale" if long <= set(right) else "product"


def power_mean(call: Call, settings: Settings) -> str:
    """Return "lp_pool", or "nonlinear" where the window is of one unit and takes a size alone."""
    return "lp_pool" if any(w.kernel > 1 for w in windows_of_pool(call)) else "nonlinear"


def product(call: Call, settings: Settings) -> str:
    """Return "scale" where two inputs are multiplied and nothing is summed."""
    both = factors(call)
    unit_wise = both[0].shape[-1] == 1 and all(id(one) in call.values for one in both)
    return "scale" if unit_wise else "product"


def resampling(call: Call, settings: Settings) -> str:
    """Return "avg_pool" for the mean of areas."""
    return "avg_pool" if settings.get("mode") == "area" else "resample"
