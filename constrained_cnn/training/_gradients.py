"""The gradients of several processes made one."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from constrained_cnn.training._world import World


class GradientExchange:
    """Makes the gradients of all processes one, after each backward pass.

    Called with the number of samples that this process met, it leaves in ``grad`` the mean over the
    samples of all processes, given that each has the mean over its own. One all-reduce; nothing is
    read on the host as long as this process met samples and every parameter has a gradient, and
    nothing while a CUDA graph is captured: then gradients are missing where they were in the step
    before, which is the warm-up. A gradient that no process has stays None. Whatever a process
    without samples holds is replaced.

    The buffer holds the sums of the gradients over this process's samples, whether each gradient is
    there, and the number of samples. It is made once, as a CUDA graph needs it, and anew where
    weights were frozen or unfrozen meanwhile.

    Args:
        world: The processes.
        parameters: The parameters of the network, alike in every process; those that require no
            gradient are passed over.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter]) -> None:
        self._world = world
        self._all = list(parameters)
        self._arrange()

    def _arrange(self) -> None:
        self._required = [part.requires_grad for part in self._all]
        self._parameters = [part for part in self._all if part.requires_grad]
        dtype = torch.float32
        for part in self._parameters:
            dtype = torch.promote_types(dtype, part.dtype)
        sizes = [part.numel() for part in self._parameters]
        device = self._parameters[0].device if sizes else self._world.device
        self._buffer = torch.zeros(sum(sizes) + len(sizes) + 1, dtype=dtype, device=device)
        self._sums, self._met, self._samples = self._buffer.split([sum(sizes), len(sizes), 1])
        pieces = zip(self._sums.split(sizes), self._parameters, strict=True) if sizes else ()
        self._views = [piece.view(part.shape) for piece, part in pieces]
        self._somewhere = [True] * len(sizes)

    @torch.no_grad()
    def __call__(self, samples: int) -> None:
        """Exchange the gradients, of which this process has the mean over so many samples."""
        if [part.requires_grad for part in self._all] != self._required:
            self._arrange()
        gradients = [part.grad if samples else None for part in self._parameters]
        self._fill(gradients, samples)
        self._world.add_up(self._buffer)
        self._sums.div_(self._samples)
        if any(gradient is None for gradient in gradients):
            self._fit_gradients()
        pairs = [
            (part.grad, view)
            for part, view in zip(self._parameters, self._views, strict=True)
            if part.grad is not None
        ]
        if pairs:
            torch._foreach_copy_([old for old, _ in pairs], [new for _, new in pairs])

    def _fill(self, gradients: Sequence[Tensor | None], samples: int) -> None:
        self._samples.fill_(samples)
        pairs = [
            (view, gradient)
            for view, gradient in zip(self._views, gradients, strict=True)
            if gradient is not None
        ]
        if len(pairs) == len(gradients):
            self._met.fill_(1)
        else:
            self._sums.zero_()
            for met, gradient in zip(self._met, gradients, strict=True):
                met.fill_(gradient is not None)
        if pairs:
            torch._foreach_copy_([view for view, _ in pairs], [grad for _, grad in pairs])
            self._sums.mul_(samples)

    def _fit_gradients(self) -> None:
        """Give a parameter a gradient where any process has one, and none where none has."""
        if not (self._buffer.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._somewhere = (self._met > 0).tolist()
        for part, somewhere in zip(self._parameters, self._somewhere, strict=True):
            if not somewhere:
                part.grad = None
            elif part.grad is None:
                part.grad = torch.empty_like(part)
