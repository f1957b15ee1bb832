"""A running average of the weights, moved on the device alone."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a network's weights and buffers.

    :class:`torch.optim.swa_utils.AveragedModel` asks the device in every step whether it is the
    first, which makes the host wait and cannot be captured. Here the answer is a number on the
    device that the average is multiplied by. Counters are taken over as they are.

    Args:
        model: The network; it is copied.
        decay: How much of the old average is kept in a step, such as 0.999.

    Attributes:
        module: The network with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        for part in self.module.parameters():
            part.requires_grad_(False)
        self._decay = decay
        device = next((part.device for part in model.parameters()), torch.device("cpu"))
        # What is kept of the old average: nothing in the first step, then the decay.
        self._kept = torch.zeros((), device=device)

    def of(self, module: nn.Module) -> "Average":
        """Return the part of this average that ``module``, a part of :attr:`module`, holds."""
        part = copy.copy(self)
        part.module = module
        return part

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights as they are now."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        smooth = [pair for pair in pairs if _is_smooth(pair[0])]
        averages = [old for old, _ in smooth]
        news = [new.detach() for _, new in smooth]
        torch._foreach_mul_(averages, self._kept)
        torch._foreach_add_(averages, torch._foreach_mul(news, 1 - self._kept))
        for old, new in pairs:
            if not _is_smooth(old):
                old.copy_(new)
        self._kept.fill_(self._decay)

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes."""
        return {**self.module.state_dict(prefix="module."), "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, in place."""
        self._kept.copy_(state["kept"])
        prefix = "module."
        weights = {
            name.removeprefix(prefix): part
            for name, part in state.items()
            if name.startswith(prefix)
        }
        self.module.load_state_dict(weights)


def _is_smooth(part: Tensor) -> bool:
    return part.is_floating_point() or part.is_complex()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
