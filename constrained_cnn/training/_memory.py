"""Out of memory: what fits."""

import gc

import torch
from torch import Tensor, nn

from constrained_cnn.errors import OutOfMemoryError
from constrained_cnn.training._executor import Parts, outputs_of

# How torch's allocator on a CPU, and oneDNN, say it; on a GPU there is a type for it.
_SAYINGS = ("can't allocate memory", "not enough memory", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYINGS)


def out_of_memory(
    parts: Parts, inputs: Tensor, targets: Tensor, where: str, reason: str
) -> OutOfMemoryError:
    """Return the error that says which part of a batch fits, after trying.

    The model's buffers are as before afterwards, and it has no gradients.

    Args:
        parts: What the step works on; its network is in training mode.
        inputs: The batch that does not fit.
        targets: Its targets.
        where: Which step it was.
        reason: What torch said.
    """
    batch_size = len(inputs)
    buffers = [(buffer, buffer.clone()) for buffer in parts.model.buffers()]
    fits = next((n for n in _halves(batch_size) if _fits(parts, inputs[:n], targets[:n])), None)
    for buffer, value in buffers:
        buffer.copy_(value)
    parts.model.zero_grad(set_to_none=True)
    advice = (
        "not even one sample fits: a smaller network or smaller images are needed"
        if fits is None
        else f"{fits} samples were seen to fit: set batch_size={fits}, and a lower learning rate "
        "with it"
    )
    return OutOfMemoryError(
        f"out of memory in {where}, with {batch_size} samples in the batch ({reason}); {advice}",
        batch_size=batch_size,
        fits=fits,
    )


def _halves(size: int) -> list[int]:
    halves = []
    while size > 1:
        size //= 2
        halves.append(size)
    return halves


def _fits(parts: Parts, inputs: Tensor, targets: Tensor) -> bool:
    _release(parts.model)
    failed = False
    try:
        parts.loss(outputs_of(parts.model, inputs, parts.autocast), targets).backward()
    except Exception as error:
        # A batch norm refuses a single row, which a batch cut down may come to.
        if not is_out_of_memory(error) and "more than 1 value per channel" not in str(error):
            raise
        failed = True
    _release(parts.model)  # not before the error, whose frames hold tensors, is gone
    return not failed


def _release(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
