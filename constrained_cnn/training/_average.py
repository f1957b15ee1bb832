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

    def catch_up(self, model: nn.Module) -> None:
        """Take over what modules keep beside tensors, before the average is used."""
        for own, part in zip(self.module.modules(), model.modules(), strict=True):
            if type(part).set_extra_state is not nn.Module.set_extra_state:
                own.set_extra_state(part.get_extra_state())

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give a model the averaged weights and buffers."""
        for part, average in zip(_tensors(model), _tensors(self.module), strict=True):
            overwrite(part, average)

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes; not made by the module, whose hooks choose."""
        return {f"module.{name}": part for name, part in _named(self.module)} | {"kept": self._kept}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, in place."""
        self._kept.copy_(state["kept"])
        for name, part in _named(self.module):
            overwrite(part, state[f"module.{name}"])


def _is_smooth(part: Tensor) -> bool:
    return part.is_floating_point() or part.is_complex()


def overwrite(part: Tensor, value: Tensor) -> None:
    """Make a tensor equal to another. One that is expanded, and equal, cannot be written to."""
    value = value.to(part.device)
    if not torch.equal(part, value):
        part.copy_(value)


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [part for _, part in _named(model)]
