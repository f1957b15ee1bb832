"""How exact a gradient is in each memory layout: single precision against double, on the CPU.

    python -m benchmarks.layout_error

prints, for each network and layout, the norm of the error of the gradient over the norm of the
gradient: one batch of 128 random images, new weights, dropout off, batch norms in training mode.

*Held*, every ReLU and every max-pool lets pass what it does in double precision, so that the error
is of rounding alone. *Free*, they decide for themselves: one that rounding tips over moves the
gradient in a step, and which one does is chance, by the seed and by the processor.
"""

import copy
import sys

import torch
from torch import Tensor, nn

from constrained_cnn import models

__all__ = ["LAYOUTS", "Held", "gradient", "hold", "main", "relative_error"]

LAYOUTS = {"torch's own": torch.contiguous_format, "channels_last": torch.channels_last}


class Held(nn.Module):
    """A ReLU or a max-pool that lets pass what the first of its name did.

    Args:
        part: The ReLU, or a max-pool whose windows do not overlap.
        decided: What was let pass, a mask for each name; the first to run adds its own.
        name: Its name there.
    """

    def __init__(self, part: nn.Module, decided: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.part, self.decided, self.name = part, decided, name

    def forward(self, input: Tensor) -> Tensor:
        """Return what ``part`` would, if it let pass what it should."""
        if self.name not in self.decided:
            source = input.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.part(source).sum(), source)
            self.decided[self.name] = slope.bool()  # each is made of slopes 0 and 1
        passed = input * self.decided[self.name]
        if isinstance(self.part, nn.MaxPool2d):  # of each window one cell is left
            return nn.functional.avg_pool2d(passed, self.part.kernel_size, divisor_override=1)
        return passed


def hold(model: nn.Module, decided: dict[str, Tensor]) -> nn.Module:
    """Put :class:`Held` in the place of every ReLU and max-pool of ``model``, and return it."""
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.ReLU | nn.MaxPool2d):
            model.set_submodule(name, Held(part, decided, name))
    return model


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy as one row of doubles."""
    nn.functional.cross_entropy(model(inputs), targets).backward()
    parts = [part.grad for part in model.parameters() if part.grad is not None]
    return torch.cat([part.double().reshape(-1) for part in parts])


def relative_error(
    model: nn.Module, layout: torch.memory_format, *, seed: int, held: bool
) -> float:
    """Return the error of the single-precision gradient in ``layout``, over its norm."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(128, 1, 28, 28, generator=generator)
    targets = torch.randint(0, 10, (128,), generator=generator)
    model = copy.deepcopy(model).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            part.p = 0.0
    double = copy.deepcopy(model).double()
    single = model.to(memory_format=layout)
    if held:
        decided: dict[str, Tensor] = {}
        double, single = hold(double, decided), hold(single, decided)
    exact = gradient(double, inputs.double(), targets)
    found = gradient(single, inputs.contiguous(memory_format=layout), targets)
    return float((found - exact).norm() / exact.norm())


def main() -> int:
    """Print the least and the greatest error over five seeds for each network and layout."""
    for name in models.list_models():
        for held in (True, False):
            for label, layout in LAYOUTS.items():
                errors = []
                for seed in range(5):
                    torch.manual_seed(seed)
                    net = models.create_model(name)
                    errors.append(relative_error(net, layout, seed=seed, held=held))
                kind = "held" if held else "free"
                print(f"{name}, {kind}, {label}: {min(errors):.1e} to {max(errors):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
