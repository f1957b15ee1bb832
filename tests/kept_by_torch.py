"""The bytes that torch keeps for the backward pass, on a CPU, with numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def plain_formulas() -> Iterator[None]:
    """Run recurrent layers step by step."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def kept(network: nn.Module, x: Tensor) -> int:
    """Return the bytes kept in training mode, of recurrent layers by their formulas."""
    weights = (*network.parameters(), *network.buffers())
    sizes = {part.untyped_storage().data_ptr(): 0 for part in weights}
    held = []

    def note(tensor: Tensor) -> Tensor:
        held.append(tensor.detach())  # so that no address comes twice
        storage = tensor.untyped_storage()
        sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with plain_formulas(), saved_tensors_hooks(note, lambda tensor: tensor):
        network.train()(x)
    return sum(sizes.values())
