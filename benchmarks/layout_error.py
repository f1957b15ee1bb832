"""How exact a gradient is in each memory layout: single precision against double, on the CPU.

    python -m benchmarks.layout_error

prints, for each network and layout, the norm of the error of the gradient over the norm of the
gradient: one batch of 128 random images, new weights, dropout off, batch norms in training mode.
"""

import copy
import sys

import torch
from torch import Tensor, nn

from constrained_cnn import models

__all__ = ["LAYOUTS", "gradient", "main", "relative_error"]

LAYOUTS = {"torch's own": torch.contiguous_format, "channels_last": torch.channels_last}


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy as one row of doubles; the model stays."""
    model = copy.deepcopy(model)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    parts = [part.grad for part in model.parameters() if part.grad is not None]
    return torch.cat([part.double().reshape(-1) for part in parts])


def relative_error(model: nn.Module, layout: torch.memory_format, *, seed: int) -> float:
    """Return the error of the single-precision gradient in ``layout``, over its norm."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(128, 1, 28, 28, generator=generator)
    targets = torch.randint(0, 10, (128,), generator=generator)
    model = copy.deepcopy(model).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            part.p = 0.0
    exact = gradient(copy.deepcopy(model).double(), inputs.double(), targets)
    laid_out = copy.deepcopy(model).to(memory_format=layout)
    found = gradient(laid_out, inputs.contiguous(memory_format=layout), targets)
    return float((found - exact).norm() / exact.norm())


def main() -> int:
    """Print the median over five seeds for each network and layout."""
    for name in models.list_models():
        for label, layout in LAYOUTS.items():
            errors = []
            for seed in range(5):
                torch.manual_seed(seed)
                errors.append(relative_error(models.create_model(name), layout, seed=seed))
            print(f"{name}, {label}: {sorted(errors)[2]:.1e} (median of 5 seeds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
