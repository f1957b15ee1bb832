"""What a checkpoint holds of a run, and how a run goes on from it."""

import json
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constrained_cnn.errors import CheckpointError, InvalidInputError
from constrained_cnn.training._average import overwrite
from constrained_cnn.training._checkpoint import (
    check_same,
    check_same_model,
    check_same_optimizer,
    say_tensor,
)
from constrained_cnn.training._evaluation import Tally
from constrained_cnn.training._history import EpochRow, History, row_from_dict
from constrained_cnn.training._optimizers import KERNELS
from constrained_cnn.training._schedule import Rates
from constrained_cnn.training._timings import Timings

if TYPE_CHECKING:
    from constrained_cnn.training._run import Run

IDENTITY = ("config", "callables", "data", "processes")
PASSED_OVER = ("params", *KERNELS)


def identity_of(run: "Run") -> dict[str, dict[str, Any]]:
    """Return what must be the same for a run to go on."""
    plan = run.plan
    return {
        "config": plan.config.to_dict(),
        "callables": run.callables,
        "data": {**plan.train.describe(), "judged_on": plan.judged_on},
        "processes": {"number": plan.world.size},
    }


def say_optimizer(optimizer: Optimizer, model: nn.Module) -> str:
    """Return what an optimizer does, as it was made; by a checksum also with which weights."""
    names = {id(part): name for name, part in model.named_parameters()}
    groups = [
        {name: _say_setting(value) for name, value in group.items() if name not in PASSED_OVER}
        for group in optimizer.param_groups
    ]
    told = [", ".join(f"{name}={value}" for name, value in group.items()) for group in groups]
    moved = [[names[id(part)] for part in group["params"]] for group in optimizer.param_groups]
    checksum = zlib.crc32(repr((told, moved)).encode())
    said = "; ".join(dict.fromkeys(told))
    return (
        f"{type(optimizer).__name__}({said}) over {sum(map(len, moved))} weights ({checksum:08x})"
    )


def _say_setting(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_say_setting, value))})"
    return repr(value.tolist()) if isinstance(value, Tensor) else repr(value)


def own_generators(run: "Run") -> list[torch.Generator]:
    """Return torch's generators that model, loss and the validation set keep for themselves."""
    plan = run.plan
    parts = [*plan.model.modules()]
    parts += [*plan.loss.modules()] if isinstance(plan.loss, nn.Module) else []
    found = [one for part in parts for one in vars(part).values()]
    found += [] if plan.validation is None else plan.validation.generators()
    own = {id(one): one for one in found if isinstance(one, torch.Generator)}
    return list(own.values())


def frozen_now(run: "Run") -> dict[str, Any]:
    """Return by name which weights are frozen."""
    parts = run.plan.model.named_parameters()
    return {name: "frozen" for name, part in parts if not part.requires_grad}


def say_rates(rates: Rates) -> str:
    """Return which learning rates a run has."""
    table = rates.table or [rates.constant]
    content = json.dumps([[float(rate) for rate in row] for row in table]).encode()
    ends = " to ".join(f"{row[0]:g}" for row in (table[0], table[-1]))
    return f"rates from {ends} (checksum {zlib.crc32(content):08x})"


def made_on(run: "Run") -> dict[str, Any]:
    """Return what may change, and with it the last bits of the result."""
    return {
        "device": run.plan.device.type,
        "executor": run.executor.name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return where torch's generators are."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's generators where they were."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def state_of_rank(run: "Run") -> dict[str, Any]:
    """Return what each process has of its own: random numbers, tally, buffers."""
    return {
        "random": random_state(run.plan.device),
        "loader": run.loader_random or [one.get_state() for one in run.plan.train.generators()],
        "generators": [one.get_state() for one in own_generators(run)],
        "tally": run.tally.state(),
        # All of them, as a state_dict leaves out those that are not persistent.
        "buffers": [buffer.cpu() for buffer in _buffers_of(run)],
    }


def _own_buffers(run: "Run") -> list[Tensor]:
    loss = run.plan.loss
    return [*run.plan.model.buffers(), *(loss.buffers() if isinstance(loss, nn.Module) else ())]


def _buffers_of(run: "Run") -> list[Tensor]:
    own = _own_buffers(run)
    return own if run.average is None else [*own, *run.average.module.buffers()]


def state_of(
    run: "Run", ranks: list[dict[str, Any]], timings: Timings, seconds: float
) -> dict[str, Any]:
    """Return everything that a run needs to go on.

    Args:
        run: The run.
        ranks: What each process has of its own, as :func:`state_of_rank` says.
        timings: Those up to now.
        seconds: Those of the epoch under way.
    """
    optimizer = run.optimizer.state_dict()
    # A rate may be a tensor here and a number there: the file does not depend on the executor.
    groups = [{**_plain(group), "lr": float(group["lr"])} for group in optimizer["param_groups"]]
    return {
        **identity_of(run),
        "validation": {} if run.plan.validation is None else run.plan.validation.describe(),
        "frozen": {"at_start": run.frozen_at_start, "now": frozen_now(run)},
        "made_on": made_on(run),
        "epoch": len(run.rows),
        "step": run.tally.steps,
        "ranks": ranks,
        "seconds": seconds,
        "timings": timings.to_dict(),
        "model": run.plan.model.state_dict(),
        "loss": state_of_loss(run.plan.loss),
        "optimizer": {**optimizer, "param_groups": groups},
        "average": None if run.average is None else run.average.state_dict(),
        "rows": History(tuple(run.rows)).to_dicts(),
    }


def state_of_loss(loss: object) -> dict[str, Any]:
    """Return the state of a loss that is a module; that of another cannot be known."""
    return loss.state_dict() if isinstance(loss, nn.Module) else {}


def _plain(value: Any) -> Any:
    """Return plain Python numbers in place of NumPy's, which a checkpoint may not hold."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value.item() if isinstance(value, np.generic) else value


@torch.no_grad()
def restore(run: "Run", state: Mapping[str, Any], path: str) -> None:
    """Make a run go on from a checkpoint; nothing is changed unless all of it fits.

    Raises:
        CheckpointError: If it is of another run, or damaged.
    """
    plan = run.plan
    rows, timings, own = check_fits_run(run, state, path)
    if run.average is not None and state["average"] is not None:
        run.average.load_state_dict(state["average"])
    _restore_optimizer(run.optimizer, state["optimizer"])
    # The names were compared, as the module says them: a hook of it may leave some out.
    plan.model.load_state_dict(_writable(plan.model, state["model"]), strict=False)
    if isinstance(plan.loss, nn.Module):
        plan.loss.load_state_dict(state["loss"])
    for buffer, value in zip(_buffers_of(run), own["buffers"], strict=False):
        overwrite(buffer, value)
    for generator, value in zip(own_generators(run), own["generators"], strict=False):
        generator.set_state(value)
    for name, part in plan.model.named_parameters():
        part.requires_grad_(name not in state["frozen"]["now"])
    run.rows = rows
    run.timings = timings
    run.tally = Tally.from_state(own["tally"], plan.device)
    run.spent = state["seconds"]
    run.random = own["random"] if state["step"] else None
    run.loader_random = own["loader"]
    run.frozen_at_start = state["frozen"]["at_start"]


def _writable(model: nn.Module, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without the buffers that are expanded, which nothing can be copied to."""
    expanded = {
        name for name, part in model.named_buffers() if part.numel() > 1 and 0 in part.stride()
    }
    return {name: part for name, part in saved.items() if name not in expanded}


def _restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    before = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(saved))
    for group, own in zip(optimizer.param_groups, before, strict=True):
        group.update({name: own[name] for name in KERNELS if name in own})
        if isinstance(own["lr"], Tensor):  # with which the arithmetic is another
            group["lr"] = own["lr"].fill_(float(group["lr"]))
    # Torch casts what was kept for a weight to the type of the weight.
    weights = [part for group in optimizer.param_groups for part in group["params"]]
    for number, weight in enumerate(weights):
        state, kept = optimizer.state.get(weight), saved["state"].get(number)
        if isinstance(state, dict) and isinstance(kept, dict):
            state.update({n: _as_kept(state[n], kept[n]) for n in state if n in kept})


def _as_kept(loaded: Any, kept: Any) -> Any:
    """Return what was loaded, in the types that it was kept in."""
    if isinstance(loaded, Tensor) and isinstance(kept, Tensor):
        return loaded if loaded.dtype == kept.dtype else kept.to(loaded.device)
    if isinstance(loaded, list | tuple) and isinstance(kept, list | tuple):
        return type(loaded)(map(_as_kept, loaded, kept))
    if isinstance(loaded, dict) and isinstance(kept, dict):
        return {name: _as_kept(part, kept.get(name)) for name, part in loaded.items()}
    return loaded


def check_fits_run(
    run: "Run", state: Mapping[str, Any], path: str
) -> tuple[list[EpochRow], Timings, dict[str, Any]]:
    """Return epochs, timings and what this process has of its own in a checkpoint of this run.

    Raises:
        CheckpointError: If it is of another run, or damaged.
    """
    plan = run.plan
    trained = {name for name, part in plan.model.named_parameters() if part.requires_grad}
    check_same_model(path, state["model"], plan.model.state_dict(), trained)
    current = identity_of(run)
    for name in IDENTITY:
        check_same(path, name, state[name], current[name])
    if plan.validation is not None and state["validation"]:  # one may come or go
        judged = plan.validation.describe()
        check_same(path, f"{plan.judged_on} data", state["validation"], judged)
    check_same_model(path, state["loss"], state_of_loss(plan.loss), (), what="loss")
    frozen, here = state["frozen"], frozen_now(run)
    if here not in (frozen.get("at_start"), frozen.get("now")):
        check_same(path, "frozen weights", dict(frozen.get("at_start") or {}), here)
    check_same_optimizer(path, state["optimizer"], run.optimizer)
    try:
        rows = [row_from_dict(row) for row in state["rows"]]
        timings = Timings.from_dict(state["timings"])
    except InvalidInputError as error:
        raise CheckpointError(f"{path!r} is damaged: {error}") from error
    if [row.epoch for row in rows] != list(range(1, state["epoch"] + 1)):
        raise CheckpointError(f"{path!r} is damaged: its epochs are not 1, 2, 3 and so on")
    if len(rows) > plan.config.epochs:
        raise CheckpointError(f"{path!r} is damaged: it has more epochs than were asked for")
    finished = len(rows) == plan.config.epochs
    averaged = run.average is not None and not finished  # the end makes it the model
    if averaged != (state["average"] is not None):
        raise CheckpointError(f"{path!r} is damaged: it holds no averaged weights")
    if averaged and run.average is not None:
        averages = {f"module.{name}" for name, _ in plan.model.named_parameters()}
        check_same_model(path, state["average"], run.average.state_dict(), averages)
    own = _rank_of(path, state, plan.world.rank)
    _check_buffers(path, own.get("buffers"), _buffers_of(run), own=len(_own_buffers(run)))
    _check_position(path, state, own["tally"], plan.train.steps, finished=finished)
    return rows, timings, own


def _check_position(
    path: str, state: Mapping[str, Any], tally: Any, steps: int | None, *, finished: bool
) -> None:
    """Raise unless the step and what was tallied up to it fit each other."""
    step = state["step"]
    shapes = {"losses": (step,), "sizes": (step,), "correct": (step,)}
    fits = isinstance(tally, dict) and set(tally) == set(shapes)
    fits = fits and step >= 0 and 0 <= state["seconds"] < math.inf
    for name, shape in shapes.items() if fits else ():
        part = tally[name]
        whole = part is None and name == "correct"
        fits = fits and (whole or (isinstance(part, Tensor) and tuple(part.shape) == shape))
    if fits:
        sizes, correct = tally["sizes"], tally["correct"]
        counts = sizes if correct is None else torch.stack([sizes, correct.to(sizes)])
        fits = not sizes.is_floating_point() and bool(((counts >= 0) & (counts <= sizes)).all())
    fits = fits and (steps is None or step <= steps) and not (finished and step)
    if not fits:
        raise CheckpointError(f"{path!r} is damaged: it is at no step that such a run can be at")


def _rank_of(path: str, state: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Return what this process has of its own in a checkpoint."""
    ranks = state["ranks"]
    try:
        if len(ranks) != state["processes"]["number"]:
            raise ValueError
        own: dict[str, Any] = ranks[rank]
        for random in (own["random"]["cpu"], *own["loader"], *own["generators"]):
            torch.Generator().set_state(random)
        own["tally"]
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path!r} is damaged: it holds no state of the random numbers of process {rank}"
        ) from error
    return own


def _check_buffers(path: str, saved: Any, current: Sequence[Tensor], *, own: int) -> None:
    """Raise unless the saved buffers are those that are here, of which ``own`` are the model's.

    Those of an average are gone from the checkpoint of a finished run.
    """
    fits = isinstance(saved, list) and own <= len(saved) <= len(current)
    for there, here in zip(saved, current, strict=False) if fits else ():
        fits = fits and isinstance(there, Tensor) and say_tensor(there) == say_tensor(here)
    if not fits:
        raise CheckpointError(f"{path!r} holds the buffers of another model")


def warn_of_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn if a run goes on with something else than it was made with."""
    changed = [
        f"{name} was {before.get(name)} and is {now[name]}"
        for name in now
        if before.get(name) != now[name]
    ]
    if changed:
        warnings.warn(
            f"the run goes on elsewhere than it began ({'; '.join(changed)}): its result may "
            "differ in the last bits from that of an unbroken run",
            stacklevel=2,
        )


class Moment:
    """What an evaluation may change of a run, as it is now: buffers and random numbers."""

    def __init__(self, run: "Run") -> None:
        self._device = run.plan.device
        self._buffers = [(part, part.clone()) for part in _buffers_of(run)]
        self._random = random_state(self._device)
        self._generators = [(one, one.get_state()) for one in own_generators(run)]

    @torch.no_grad()
    def put_back(self) -> None:
        """Make it what it was."""
        for part, value in self._buffers:
            overwrite(part, value)
        set_random_state(self._random, self._device)
        for generator, state in self._generators:
            generator.set_state(state)
