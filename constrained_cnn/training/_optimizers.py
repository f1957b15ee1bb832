"""Optimizers made ready: for one kernel that moves all weights, and for a CUDA graph."""

import torch
from torch import Tensor, nn, optim
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

# Those whose fused step torch has on a GPU, by the name of its operator.
FUSED_KERNELS = ((SGD, "sgd"), (Adam, "adam"), (AdamW, "adamw"), (Adagrad, "adagrad"))
# Those that keep numbers for a weight, and tensors of its shape.
ELEMENTWISE = (
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax),
    *(optim.Adadelta, optim.Adagrad, optim.RMSprop, optim.Rprop, optim.ASGD),
)
# What they keep that is one number for a weight.
SCALARS = ("step", "mu_product", "eta", "mu")
# Settings that say which kernels are used: a matter of the device, not of the run.
KERNELS = ("foreach", "fused", "capturable")
# Those of which every torch from 2.6 on has a fused step, on a CPU and on a GPU.
FUSED = (SGD, Adam, AdamW)


def use_fused_kernel(optimizer: Optimizer, model: nn.Module) -> None:
    """Let one kernel move all weights, where torch has one and the options do not say otherwise.

    One by one is torch's default on a CPU, and of a small network a call each costs more than the
    arithmetic.
    """
    sparse = any(getattr(module, "sparse", False) is True for module in model.modules())
    if sparse or not isinstance(optimizer, FUSED):
        return
    for group in optimizer.param_groups:
        floats = all(part.is_floating_point() for part in group["params"])
        chosen = any(group.get(key) for key in ("foreach", "differentiable", "capturable"))
        if group.get("fused") is not None or not floats or chosen:
            continue
        if group.get("momentum"):
            # The kernel takes momentum of all weights or of none. Of one whose first gradient
            # comes late, as it was frozen, there would be none; of zeros it is the same.
            if group["dampening"]:
                continue
            for part in group["params"]:
                optimizer.state[part]["momentum_buffer"] = torch.zeros_like(part)
        group["fused"] = True


def prepare_optimizer(optimizer: Optimizer, device: torch.device) -> str | None:
    """Make an optimizer read nothing on the host in its step, or return why that cannot be.

    Its learning rates become float32 tensors on the device, one for each group; it uses the fused
    kernels of torch where the device has them, else the ``capturable`` way; state that lives on the
    host moves to the device. What it computes stays the same up to rounding. Called again it finds
    nothing to do, and where a state was loaded meanwhile it makes good what that undid.
    """
    name = type(optimizer).__name__
    groups = optimizer.param_groups
    parameters = [part for group in groups for part in group["params"]]
    if not all(is_on(part, device) for part in parameters):
        return f"{name} moves parameters that are not on {device}"
    if any(group.get("differentiable") for group in groups):
        return f"{name} is differentiable"
    fused = has_fused_kernel(optimizer, device)
    fused = fused and all(part.is_floating_point() for part in parameters)
    if not fused and not all("capturable" in group for group in groups):
        return (
            f"{name} knows neither fused nor capturable, so its step reads numbers on the host; "
            "SGD, AdamW and most other optimizers of torch do not have to"
        )
    # Torch warns of a capturable step outside a recording, if the optimizer is a copy.
    optimizer._warned_capturable_if_run_uncaptured = True
    taken: set[int] = set()
    for group in groups:
        # Not foreach with fused, as some optimizers look at foreach first.
        chosen = {"foreach": not fused, "fused": fused, "capturable": True}
        group.update({key: value for key, value in chosen.items() if key in group})
        rate = group["lr"]
        fits = isinstance(rate, Tensor) and is_on(rate, device) and rate.dtype == torch.float32
        if not fits or rate.ndim or id(rate) in taken:  # torch gives all groups the same tensor
            group["lr"] = torch.tensor(float(rate), dtype=torch.float32, device=device)
        taken.add(id(group["lr"]))
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and not is_on(value, device):
                dtype = torch.float32 if key == "step" else value.dtype
                state[key] = value.to(device, dtype)
    return None


def is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def has_fused_kernel(optimizer: Optimizer, device: torch.device) -> bool:
    """Whether torch has a fused step for it that takes the rate as a tensor: depends on version."""
    for kind, name in FUSED_KERNELS:
        if isinstance(optimizer, kind):
            operator, key = f"aten::_fused_{name}_.tensor_lr", device.type.upper()
            try:
                return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, key))
            except RuntimeError:  # torch 2.6 has no such operator for Adagrad
                return False
    return False
