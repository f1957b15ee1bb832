"""TrainConfig: everything a training run is told, as plain data."""

import dataclasses
import inspect
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from constrained_cnn.errors import (
    InvalidInputError,
    check_choice,
    check_flag,
    check_integer,
    check_known_keys,
    check_number,
    closest,
)
from constrained_cnn.record import write_atomically
from constrained_cnn.training._schedule import rate_table

CONSTANT = "constant"
SGD_DEFAULTS: Mapping[str, Any] = {"momentum": 0.9, "nesterov": True}
ONE_CYCLE_DEFAULTS: Mapping[str, Any] = {"pct_start": 0.2, "cycle_momentum": False}
TRIAL_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train: epochs, batches, optimizer, schedule, loss. Plain data that a file can hold.

    Optimizers, schedules and losses go by their torch names, and their options by torch's argument
    names. What a name cannot say (an optimizer with parameter groups, a loss of your own) is a
    callable and goes to the :class:`Trainer`.

    Attributes:
        epochs: Number of passes over the training set.
        batch_size: Samples in a step; the last batch of an epoch may be smaller.
        learning_rate: The rate, or the peak of the schedule.
        optimizer: Name of a class in :mod:`torch.optim`.
        optimizer_options: Its options. Left out, SGD gets Nesterov momentum of 0.9.
        schedule: Name of a class in :mod:`torch.optim.lr_scheduler`, or ``"constant"``.
        schedule_options: Its options. What torch demands and only the run knows (``total_steps``
            and ``max_lr`` of OneCycleLR, ``T_max`` of CosineAnnealingLR) is filled in. Left out,
            OneCycleLR warms up over the first fifth.
        schedule_interval: ``"step"`` or ``"epoch"``: when the schedule moves on.
        loss: Name of a loss class in :mod:`torch.nn`.
        loss_options: Its options.
        weight_averaging: Decay of an exponential moving average of the weights, such as 0.999; the
            averaged weights are then the result. It looks back over some ``1 / (1 - decay)`` steps,
            of which a run should have several times as many. None for none.
        clip_gradient: Largest norm of the gradient; a larger one is scaled down. None for none.
        precise_bn: Number of training batches over which the statistics of batch norms are measured
            anew, without dropout, after the last step; no weight changes. It pays where dropout
            stands before a batch norm. None keeps the running statistics.
        sync_batch_norm: Whether batch norms take their statistics from a batch as a whole where
            several processes train together; else each from its own samples.
        channels_last: Whether images are laid out with the channels innermost. Which layout is
            faster depends on device, threads and network. Results differ by rounding (on a CPU more
            than elsewhere, as torch's batch norm sums in plain float32 in this layout), and in
            which elements dropout drops, as it draws in the order of memory.
        autocast: ``"bfloat16"`` for convolutions and linear layers in that precision, in the
            training step alone, on processors and GPUs that are quicker with it; weights, loss and
            evaluation stay as they are. It has 8 bits where float32 has 24. None for none.
        seed: Seed of order, augmentation and dropout.

    Raises:
        InvalidInputError: If a value breaks its rule, or torch refuses an option.

    Examples:
        >>> config = TrainConfig(epochs=19, optimizer="AdamW", learning_rate=0.01)
        >>> TrainConfig.from_json(config.to_json()) == config
        True
        >>> TrainConfig(epochs=0)
        Traceback (most recent call last):
        ...
        constrained_cnn.errors.InvalidInputError: epochs=0: must be an integer of at least 1
    """

    epochs: int = 19
    batch_size: int = 128
    learning_rate: float = 0.1
    optimizer: str = "SGD"
    optimizer_options: Mapping[str, Any] | None = None
    schedule: str = "OneCycleLR"
    schedule_options: Mapping[str, Any] | None = None
    schedule_interval: str = "step"
    loss: str = "CrossEntropyLoss"
    loss_options: Mapping[str, Any] | None = None
    weight_averaging: float | None = None
    clip_gradient: float | None = None
    precise_bn: int | None = None
    sync_batch_norm: bool = False
    channels_last: bool = False
    autocast: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._set("epochs", check_integer("epochs", self.epochs, minimum=1))
        check_integer("epochs", self.epochs, maximum=10**6)
        self._set("batch_size", check_integer("batch_size", self.batch_size, minimum=1))
        self._set("seed", check_integer("seed", self.seed, minimum=0, maximum=2**63 - 1))
        rate = check_number("learning_rate", self.learning_rate, minimum=0.0)
        if rate == 0.0:
            raise InvalidInputError("learning_rate=0: must be greater than 0")
        self._set("learning_rate", rate)
        check_choice("schedule_interval", self.schedule_interval, ("step", "epoch"))
        if self.precise_bn is not None:
            self._set("precise_bn", check_integer("precise_bn", self.precise_bn, minimum=1))
        for name, maximum in (("weight_averaging", 1.0), ("clip_gradient", None)):
            value = getattr(self, name)
            if value is not None:
                self._set(name, check_number(name, value, minimum=0.0, maximum=maximum))
        if self.clip_gradient == 0.0:
            raise InvalidInputError("clip_gradient=0: no weight would move; None clips nothing")
        if self.weight_averaging == 1.0:
            raise InvalidInputError("weight_averaging=1: the average would stay at the start")
        check_flag("channels_last", self.channels_last)
        check_flag("sync_batch_norm", self.sync_batch_norm)
        if self.autocast is not None:
            check_choice("autocast", self.autocast, ("bfloat16",))
        self._fill_options()
        # Built once here, so that an option torch refuses is an error before anything starts.
        self.make_loss()
        rate_table(
            self.make_optimizer([nn.Parameter(torch.zeros(1, 1))]),
            lambda trial: self.make_scheduler(trial, TRIAL_STEPS, TRIAL_STEPS),
            epochs=1,
            steps_per_epoch=2,  # the second shows whether momentum moves
        )

    def _set(self, name: str, value: Any) -> None:
        """Put the plain Python value of a field in place, as NumPy's numbers fit in no file."""
        object.__setattr__(self, name, value)

    def _fill_options(self) -> None:
        defaults = {
            "optimizer_options": SGD_DEFAULTS if self.optimizer == "SGD" else {},
            "schedule_options": ONE_CYCLE_DEFAULTS if self.schedule == "OneCycleLR" else {},
            "loss_options": {},
        }
        for name, default in defaults.items():
            given = getattr(self, name)
            if given is not None and not isinstance(given, Mapping):
                raise InvalidInputError(f"{name}={given!r}: must be a mapping of option names")
            self._set(name, _plain(name, dict(default if given is None else given)))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer this configuration names, over ``parameters``."""
        kind = _torch_class("optimizer", self.optimizer, torch.optim, Optimizer)
        if kind is torch.optim.LBFGS:
            raise InvalidInputError(
                "optimizer='LBFGS': evaluates the loss several times a step, which this trainer "
                "does not do; choose one that takes a single gradient"
            )
        if "lr" in (self.optimizer_options or {}):
            raise InvalidInputError("optimizer_options: leave out 'lr' and set learning_rate")
        options = {"lr": self.learning_rate, **(self.optimizer_options or {})}
        return _build("optimizer_options", self.optimizer, kind, (list(parameters),), options)

    def make_scheduler(
        self, optimizer: Optimizer, steps: int, epochs: int
    ) -> lr_scheduler.LRScheduler | None:
        """Return the schedule this configuration names, or None for a constant rate.

        Args:
            optimizer: The optimizer whose rate it sets.
            steps: Steps in the whole run.
            epochs: Epochs in the whole run.
        """
        if self.schedule == CONSTANT:
            if self.schedule_options:
                raise InvalidInputError("schedule='constant': takes no schedule_options")
            return None
        kind = _torch_class("schedule", self.schedule, lr_scheduler, lr_scheduler.LRScheduler)
        options = dict(self.schedule_options or {})
        length = steps if self.schedule_interval == "step" else epochs
        accepted = inspect.signature(kind).parameters
        if kind is lr_scheduler.ReduceLROnPlateau:
            raise InvalidInputError(
                "schedule='ReduceLROnPlateau': depends on results, so the rate is not known in "
                "advance; choose one that depends on the step alone, like 'OneCycleLR'"
            )
        if "total_steps" in accepted and "epochs" not in options:
            options.setdefault("total_steps", length)
        for name, value in (("max_lr", self.learning_rate), ("T_max", length)):
            if name in accepted:
                options.setdefault(name, value)
        warm_up, total = options.get("pct_start"), options.get("total_steps")
        if isinstance(warm_up, int | float) and isinstance(total, int) and warm_up * total == 1:
            # A warm-up of a single step, at whose length less one torch divides: a hair longer.
            options["pct_start"] = warm_up * (1 + 1e-6)
        return _build("schedule_options", self.schedule, kind, (optimizer,), options)

    def make_loss(self) -> nn.Module:
        """Return the loss this configuration names."""
        kind = _torch_class("loss", self.loss, nn, nn.Module, suffix="Loss")
        options = dict(self.loss_options or {})
        for name in ("reduction", "reduce", "size_average"):
            if options.get(name, "mean") not in ("mean", None):
                raise InvalidInputError(
                    f"loss_options: {name}={options[name]!r}: a training step and its figures need "
                    "the mean, which is what comes without this option; leave it out"
                )
        return _build("loss_options", self.loss, kind, (), options)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that ``values`` describe; what is left out has its default.

        Raises:
            InvalidInputError: If a key is unknown (the nearest is suggested), or a value wrong.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"configuration {values!r}: must be a table of settings")
        check_known_keys("TrainConfig", values, {f.name for f in dataclasses.fields(cls)})
        return cls(**values)

    def to_json(self) -> str:
        """Return the configuration as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Return the configuration written in ``text`` by :meth:`to_json`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"configuration is not JSON: {error}") from error
        return cls.from_dict(values)

    def to_toml(self) -> str:
        """Return the configuration as TOML; what is None is left out, as TOML has no null."""
        import tomli_w

        return tomli_w.dumps(_without_none(self.to_dict()))

    @classmethod
    def from_toml(cls, text: str) -> "TrainConfig":
        """Return the configuration written in ``text`` by :meth:`to_toml`."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidInputError(f"configuration is not TOML: {error}") from error
        return cls.from_dict(values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrainConfig":
        """Read a configuration from a ``.json`` or ``.toml`` file.

        Raises:
            InvalidInputError: If the file cannot be read, or what it says is wrong.
        """
        file = Path(path)
        check_choice("suffix", file.suffix, (".json", ".toml"))
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"cannot read configuration {str(file)!r}: {error}") from error
        return cls.from_json(text) if file.suffix == ".json" else cls.from_toml(text)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the configuration to a ``.json`` or ``.toml`` file, atomically."""
        suffix = check_choice("suffix", Path(path).suffix, (".json", ".toml"))
        text = self.to_json() if suffix == ".json" else self.to_toml()
        return write_atomically(path, text.encode())


def _torch_class(name: str, value: Any, module: Any, base: type, suffix: str = "") -> Any:
    """Return the class called ``value`` in ``module``, or raise with the nearest name."""
    names = [
        key
        for key, item in vars(module).items()
        if isinstance(item, type) and issubclass(item, base) and item is not base
        if key.endswith(suffix) and not key.startswith("_")
    ]
    if value in names:
        return getattr(module, value)
    hint = closest(value, names) if isinstance(value, str) else ""
    if not isinstance(value, str):
        hint = "; a callable of your own goes to the Trainer"
    constant = f"{CONSTANT!r} or " if name == "schedule" else ""
    raise InvalidInputError(
        f"{name}={value!r}: must be {constant}the name of a class in {module.__name__}{hint}"
    )


def _build(
    name: str, kind_name: str, kind: Callable[..., Any], arguments: tuple[Any, ...], options: Any
) -> Any:
    known = set(inspect.signature(kind).parameters) - {"self", "params", "optimizer"}
    check_known_keys(f"{name} of {kind_name}", options, known)
    for option, parameter in inspect.signature(kind).parameters.items():
        # Torch takes anything here, and "no" counts as True.
        if isinstance(parameter.default, bool) and option in options:
            check_flag(f"{name}[{option!r}]", options[option])
    try:
        return kind(*arguments, **options)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(f"{kind_name} refuses {name}={options!r}: {error}") from error


def _plain(name: str, value: Any) -> Any:
    """Return an option as a file gives it back: its sequences are tuples, whatever they were."""
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(name, item) for item in value)
    if isinstance(value, float) and math.isnan(value):
        raise InvalidInputError(f"{name}=nan: must be a number")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InvalidInputError(
        f"{name}={value!r}: must be a number, text, True, False, or a list of these, which a file "
        "can hold; what is built from anything else goes to the Trainer as a callable"
    )


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
