"""Batch-norm statistics, measured once more when the weights have stopped moving."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._evaluation import evaluating


def measure_batch_norm(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the running statistics of every batch norm by the average over ``batches``.

    During training the running mean and variance trail behind the moving weights, and they are
    taken of activations that dropout has thinned, while a prediction is made without dropout: the
    variance a layer was told to expect is not the one it meets. Here everything but the batch norms
    is in evaluation mode, so dropout is off. (:func:`torch.optim.swa_utils.update_bn` leaves it
    on.) No weight changes, and every module has its own mode again afterwards.

    Args:
        model: The network.
        batches: (inputs, targets) on the model's device; the targets are not looked at.

    Raises:
        InvalidInputError: If there are no batches.

    References:
        Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (PreciseBN).
        Li et al., "Understanding the Disharmony between Dropout and Batch Normalization by
        Variance Shift", CVPR 2019.
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to say: average over all batches
                norm.train()
            met = 0
            for inputs, _ in batches if norms else ():
                model(inputs)
                met += 1
            if norms and not met:
                raise InvalidInputError(
                    "precise_bn: train gave no batches to measure; pass something that can be "
                    "iterated once more after the last epoch, not a generator"
                )
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
