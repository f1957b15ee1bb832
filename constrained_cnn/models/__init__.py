"""The model zoo: networks by name, with weights where there are some.

>>> from constrained_cnn import models
>>> models.list_models()
['mnist_12k', 'mnist_12k_source']
>>> model = models.create_model("mnist_12k")
"""

from constrained_cnn.models._mnist import mnist_12k, mnist_12k_source
from constrained_cnn.models._registry import create_model, list_models, register_model
from constrained_cnn.models._weights import (
    Weights,
    get_weights,
    list_weights,
    load_weights,
    save_weights,
)

__all__ = [
    "Weights",
    "create_model",
    "get_weights",
    "list_models",
    "list_weights",
    "load_weights",
    "mnist_12k",
    "mnist_12k_source",
    "register_model",
    "save_weights",
]
