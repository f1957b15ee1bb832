"""What a run can hold besides weights comes back with a checkpoint, or is refused at the start."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import CheckpointError, InvalidInputError
from constrained_cnn.training import History

STEPS = 4  # 14 samples in batches of 4
CONFIG: dict[str, Any] = {"epochs": 3, "batch_size": 4, "learning_rate": 0.05, "seed": 3}


class PowerCutError(BaseException):
    """Nothing that handles errors sees it, as with a real one."""


def make_net(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), *more, nn.ReLU(), nn.Linear(6, 3))


def make_set(count: int = 14, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(count) % 3)


def fit(
    model: nn.Module,
    folder: Path | None = None,
    *,
    data: Any = None,
    validation: Any = None,
    resume: bool = False,
    fail_after: int | None = None,
    **options: Any,
) -> History:
    """Train, and lose power in a step if that is asked for."""
    settings = {*CONFIG, "weight_averaging", "precise_bn"}
    words = {name: options.pop(name) for name in settings if name in options}
    trainer = Trainer(
        TrainConfig(**{**CONFIG, **words}),
        device="cpu",
        **{"progress": False, "checkpoint_seconds": 0, **options},
    )
    if fail_after is not None:
        steps = itertools.count(1)

        def look(module: nn.Module, inputs: Any) -> None:
            if module.training and next(steps) > fail_after:
                raise PowerCutError

        model.register_forward_pre_hook(look)
    data = make_set() if data is None else data
    return trainer.fit(model, data, validation, folder=folder, resume=resume)


class Odd(Optimizer):
    """Keeps for a weight what is neither a number nor of its shape."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for part in group["params"]:
                state = self.state[part]
                state["name"] = "odd"
                state["norms"] = [*state.get("norms", []), part.grad.norm().reshape(1)]
                part.data -= group["lr"] * part.grad / torch.cat(state["norms"]).sum()


class Counting(nn.Module):
    """Scales by a number that only ``get_extra_state`` tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1 + 0.1 * self.calls)

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


class Fleeting(nn.Module):
    """Scales by a buffer that is in no ``state_dict``."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale.mul_(0.9)
        return x * self.scale


class Centred(nn.Module):
    """A loss that remembers how large it was."""

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.ones(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        if outputs.requires_grad:
            self.level.lerp_(loss.detach(), 0.3)
        return loss / self.level


def make_loader(seed: int = 5) -> DataLoader[Any]:
    images = make_set()
    inputs = torch.cat([part for part, _ in images.batches(14)])
    own = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(inputs, images.labels), 4, shuffle=True, generator=own)


class Expanded(nn.Module):
    """Has a buffer that cannot be written to."""

    ones: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(1).expand(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.ones


class Drawing(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator) if self.training else x


class Forgetful(Centred):
    """A loss whose memory is in no ``state_dict``."""

    def __init__(self) -> None:
        super().__init__()
        del self.level
        self.register_buffer("level", torch.ones(()), persistent=False)


class Adapter(nn.Module):
    """Leaves its frozen half out of its state, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.own = nn.Linear(6, 6)
        self.register_state_dict_post_hook(self._leave_out)  # type: ignore[no-untyped-call]

    @staticmethod
    def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in [name for name in state if name.startswith(f"{prefix}base.")]:
            del state[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.own(x)


class Doubled(nn.Module):
    """Computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


def make_batch_sampler() -> DataLoader[Any]:
    held = make_loader().dataset
    own = torch.Generator().manual_seed(6)
    batches = BatchSampler(RandomSampler(held, generator=own), 4, False)  # type: ignore[arg-type]
    return DataLoader(held, batch_sampler=batches)


KINDS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "factored state": lambda: (
        make_net(),
        {"optimizer": lambda model: Adafactor(model.parameters(), lr=0.05)},
    ),
    "odd state": lambda: (
        make_net(),
        {"optimizer": lambda model: Odd(model.parameters(), lr=0.05)},
    ),
    "extra state": lambda: (make_net(Counting()), {}),
    "buffer that is not persistent": lambda: (make_net(Fleeting()), {}),
    "buffer that is expanded": lambda: (make_net(Expanded()), {}),
    "loss with state": lambda: (make_net(), {"loss": Centred()}),
    "averaged extra state": lambda: (make_net(Counting()), {"weight_averaging": 0.7}),
    "generator in a module": lambda: (make_net(Drawing()), {}),
    "loss with a buffer that is not persistent": lambda: (make_net(), {"loss": Forgetful()}),
    "state without frozen weights": lambda: (make_net(Adapter()), {"weight_averaging": 0.7}),
    "optimizer's numbers in single precision": lambda: (
        Doubled(),
        {"optimizer": lambda model: NAdam(model.parameters(), lr=0.02)},
    ),
    "rate that is a tensor": lambda: (
        make_net(),
        {"optimizer": lambda model: AdamW(model.parameters(), lr=torch.tensor(0.02))},
    ),
    "generator of a batch sampler": lambda: (make_net(), {"data": make_batch_sampler()}),
    "loader with a generator": lambda: (make_net(), {"data": make_loader()}),
}


@pytest.mark.parametrize("steps", [2, STEPS, STEPS + 1, 2 * STEPS + 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_to_the_bit(kind: str, steps: int, tmp_path: Path) -> None:
    whole, words = KINDS[kind]()
    unbroken = fit(whole, **words)
    broken, words = KINDS[kind]()
    with pytest.raises(PowerCutError):
        fit(broken, tmp_path, fail_after=steps, **words)
    resumed, words = KINDS[kind]()
    history = fit(resumed, tmp_path, resume=True, **words)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    rows = [[{**row, "seconds": 0} for row in one.to_dicts()] for one in (unbroken, history)]
    assert rows[0] == rows[1]


def test_the_average_takes_over_what_is_no_tensor() -> None:
    model = make_net(Counting())
    fit(model, weight_averaging=0.7)
    assert model[2].calls == 3 * STEPS  # type: ignore[index]


class Watching(Centred):
    """Its memory moves while the validation set is read, too; a signal comes then."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not outputs.requires_grad:
            self.level.mul_(1.01)
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)
        return super().forward(outputs, targets)


def test_a_stop_within_an_evaluation_is_as_if_it_had_not_begun(tmp_path: Path) -> None:
    whole = make_net(nn.Dropout(0.2))
    unbroken = fit(whole, loss=Watching(0), validation=make_set(12, 1))
    broken = fit(make_net(nn.Dropout(0.2)), tmp_path, loss=Watching(5), validation=make_set(12, 1))
    assert (broken.status, len(broken), broken.steps_of_next) == ("interrupted", 1, STEPS)
    resumed = make_net(nn.Dropout(0.2))
    history = fit(resumed, tmp_path, loss=Watching(0), validation=make_set(12, 1), resume=True)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
    rows = [[{**row, "seconds": 0} for row in one.to_dicts()] for one in (unbroken, history)]
    assert rows[0] == rows[1]


def test_weights_that_were_unfrozen_stay_so(tmp_path: Path) -> None:
    def run(folder: Path, **words: Any) -> nn.Module:
        model = make_net()
        model[1].requires_grad_(False)  # type: ignore[index]

        def thaw(row: Any) -> None:
            model[1].requires_grad_(True)  # type: ignore[index]

        words = {"progress": thaw, **words}
        if words.get("fail_after"):
            with pytest.raises(PowerCutError):
                fit(model, folder, **words)
        else:
            fit(model, folder, **words)
        return model

    whole = run(tmp_path / "whole")
    run(tmp_path / "broken", fail_after=STEPS + 2)
    resumed = run(tmp_path / "broken", resume=True, progress=False)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    other = make_net()
    other[3].requires_grad_(False)  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"other frozen weights: 1\.bias was 'frozen' and is"):
        fit(other, tmp_path / "broken", resume=True)


class Growing(nn.Module):
    """Makes a buffer when it is called first."""

    mean: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.detach().mean(0)
        return x - self.mean


def test_a_module_that_changes_while_it_trains_is_said_at_the_first_checkpoint(
    tmp_path: Path,
) -> None:
    with pytest.warns(UserWarning, match=r"cannot be resumed: 1\.mean came, went or changed"):
        fit(nn.Sequential(nn.Flatten(), Growing(), nn.Linear(16, 3)), tmp_path, data=make_loader())


class OneWay(Counting):
    set_extra_state = nn.Module.set_extra_state


def test_a_module_that_does_not_take_its_state_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="2, a OneWay, has get_extra_state and no set_"):
        fit(make_net(OneWay()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def sgd(**options: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **options})


def steps_of(size: int) -> Callable[[Optimizer], Any]:
    return lambda optimizer: StepLR(optimizer, size, 0.5)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"optimizer": sgd()},
            {"optimizer": sgd(weight_decay=0.01)},
            r"optimizer was 'SGD\(.*weight_decay=0,.*and is 'SGD\(.*weight_decay=0\.01",
        ),
        (
            {"optimizer": sgd()},
            {"optimizer": sgd(lr=0.1)},
            r"optimizer was 'SGD\(lr=0\.05, .*and is 'SGD\(lr=0\.1, ",
        ),
        (
            {"optimizer": lambda model: SGD(model[1].parameters(), lr=0.1)},
            {"optimizer": lambda model: SGD(model[3].parameters(), lr=0.1)},
            r"optimizer was 'SGD\(lr=0\.1, .* over 2 weights",
        ),
        (
            {"scheduler": steps_of(2)},
            {"scheduler": steps_of(3)},
            r"scheduler was 'rates from 0\.05 to 0\.00156.*and is 'rates from 0\.05 to 0\.00625",
        ),
        (
            {"validation": make_set(6, 1)},
            {"validation": make_set(6, 2)},
            "other validation data: checksum was ",
        ),
        (
            {"loss": Centred()},
            {"loss": nn.CrossEntropyLoss(torch.ones(3))},
            "weights of another loss: weight is not in the file; level is only in the file",
        ),
    ],
    ids=["decay", "rate", "weights", "schedule", "validation", "loss"],
)
def test_what_has_changed_is_refused(
    before: dict[str, Any], after: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PowerCutError):
        fit(make_net(), tmp_path, fail_after=5, **before)
    with pytest.raises(CheckpointError, match=message):
        fit(make_net(), tmp_path, resume=True, **after)
    assert fit(make_net(), tmp_path, resume=True, **before).status == "finished"


@pytest.mark.parametrize("first", [None, make_set(6, 1)])
def test_a_validation_set_may_come_or_go(first: ImageSet | None, tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        fit(make_net(), tmp_path, fail_after=5, validation=first)
    second = None if first else make_set(6, 1)
    history = fit(make_net(), tmp_path, resume=True, validation=second)
    assert [row.validation_loss is None for row in history] == [
        first is None,
        bool(first),
        bool(first),
    ]


def test_weights_of_another_type_are_those_of_another_model(tmp_path: Path) -> None:
    fit(make_net(), tmp_path, data=make_loader())
    message = (
        r"another model: 1\.weight is float32 \(6, 16\) in the file and float64 \(6, 16\) here"
    )
    with pytest.raises(CheckpointError, match=message):
        fit(make_net().double(), tmp_path, data=make_loader(), resume=True)


class Foreign(Counting):
    """Has a state that may be in no file."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state


@pytest.mark.parametrize(
    ("state", "kind"),
    [([{"a": Path("here")}], r"\[0\]\['a'\] is a PosixPath"), (lambda: 0, " is a function")],
    ids=["a class", "a function"],
)
def test_a_model_that_no_checkpoint_can_hold_is_refused_at_the_start(
    state: Any, kind: str, tmp_path: Path
) -> None:
    message = rf"could not be resumed, .*state of the model\['2\._extra_state'\]{kind}"
    with pytest.raises(InvalidInputError, match=message):
        fit(make_net(Foreign(state)), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fit(make_net(Foreign(state))).status == "finished"


class Careless(Odd):
    """Keeps an object of a class of its own, from its first step on."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        self.state[self.param_groups[0]["params"][0]]["where"] = Path("here")


def test_an_optimizer_that_no_checkpoint_can_hold_is_said_at_its_first(tmp_path: Path) -> None:
    def make_optimizer(model: nn.Module) -> Optimizer:
        return Careless(model.parameters(), lr=0.05)

    message = r"cannot be resumed: the state of the optimizer.*\['where'\] is a PosixPath"
    with pytest.warns(UserWarning, match=message) as met:
        history = fit(make_net(), tmp_path, optimizer=make_optimizer)
    assert len(met) == 1
    assert history.status == "finished"


@pytest.mark.parametrize("folder", [True, False])
def test_a_lazy_module_that_was_never_called_is_refused(folder: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    batches = list(make_loader())
    with pytest.raises(InvalidInputError, match=r"1\.weight has no shape yet.*call the model once"):
        fit(model, tmp_path if folder else None, data=batches)
    model(batches[0][0])
    assert fit(model, data=batches).status == "finished"
    # An ImageSet shows the shape.
    assert fit(nn.Sequential(nn.Flatten(), nn.LazyLinear(3))).status == "finished"
