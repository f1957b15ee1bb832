"""What goes into a Trainer: devices, callables, sets and iterables; what is said of wrong ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from constrained_cnn import ImageSet, TrainConfig, Trainer
from constrained_cnn.errors import InvalidInputError, NonFiniteLossError, OutputError

Batch = tuple[Tensor, Tensor]

CONSTANT = TrainConfig(epochs=2, batch_size=4, learning_rate=0.01, schedule="constant")
ONE_CYCLE = TrainConfig(epochs=2, batch_size=4, learning_rate=0.01)


def make_set(count: int = 12, side: int = 8, classes: int = 4) -> ImageSet:
    images = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8)
    return ImageSet.from_arrays(images, torch.arange(count) % classes)


def make_net(classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, classes))


def make_batches(count: int = 6) -> list[Batch]:
    return [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])) for _ in range(count)]


def make_trainer(config: TrainConfig = CONSTANT, **options: Any) -> Trainer:
    return Trainer(config, device="cpu", progress=False, **options)


class Stream:
    """Batches without a length, anew for every epoch."""

    def __init__(self, count: int = 6) -> None:
        self.batches = make_batches(count)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Claims(Stream):
    """Batches whose number is not the length they claim."""

    def __init__(self, count: int, claimed: int) -> None:
        super().__init__(count)
        self.claimed = claimed

    def __len__(self) -> int:
        return self.claimed


def test_an_iterable_without_length_trains_at_a_constant_rate() -> None:
    stream = Stream()
    first, second = make_net(), make_net()
    second.load_state_dict(first.state_dict())
    history = make_trainer().fit(first, stream, stream)
    make_trainer().fit(second, stream.batches)  # the same batches with a length
    assert len(history) == 2
    assert history[-1].validation_accuracy is not None
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_an_iterable_without_length_cannot_have_a_schedule() -> None:
    model = make_net()
    before = model[2].weight.clone()  # type: ignore[index]
    with pytest.raises(InvalidInputError, match=r"no len.*give it a __len__, or use schedule"):
        make_trainer(ONE_CYCLE).fit(model, Stream())
    assert torch.equal(model[2].weight, before)  # type: ignore[index]


def test_a_generator_lasts_one_epoch_and_the_error_says_so() -> None:
    with pytest.raises(InvalidInputError, match=r"no batches in epoch 2.*not a generator"):
        make_trainer().fit(make_net(), (batch for batch in make_batches()))


def test_a_generator_for_validation_lasts_one_epoch() -> None:
    with pytest.raises(InvalidInputError, match="validation: gave no batches"):
        make_trainer().fit(make_net(), make_batches(), (batch for batch in make_batches()))


def test_more_batches_than_the_length_says() -> None:
    with pytest.raises(InvalidInputError, match="its len is 5, and it gave more batches"):
        make_trainer(ONE_CYCLE).fit(make_net(), Claims(6, claimed=5))


def test_fewer_batches_than_the_length_says() -> None:
    with pytest.raises(InvalidInputError, match=r"its len is 5, and it gave 2 batches"):
        make_trainer(ONE_CYCLE).fit(make_net(), Claims(2, 5))


def test_a_data_set_of_torch_goes_in_through_a_loader() -> None:
    torch_set = TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8) % 4)
    with pytest.raises(InvalidInputError, match="train=TensorDataset: must be an ImageSet or"):
        make_trainer().fit(make_net(), torch_set)  # type: ignore[arg-type]
    assert len(make_trainer().fit(make_net(), DataLoader(torch_set, 4, drop_last=True))) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "train: holds no batches"),
        (torch.zeros(4, 1, 8, 8), "train=Tensor: must be an ImageSet"),
        ({"inputs": 1}, "train=dict"),
        ("mnist", "train=str"),
        (7, "train=int"),
        ([torch.zeros(4, 1, 8, 8)], "must be a pair (inputs, targets), got Tensor"),
        ([(torch.zeros(4), torch.zeros(4), torch.zeros(4))], "must be a pair (inputs, targets)"),
        ([([1.0, 2.0], [0, 1])], "must be tensors, got list and list"),
        ([(torch.zeros(4, 1, 8, 8), torch.zeros(3).long())], "a batch of 4 inputs and 3 targets"),
        ([(torch.zeros(0, 1, 8, 8), torch.zeros(0).long())], "a batch of 0 inputs and 0 targets"),
    ],
)
def test_data_it_cannot_read(data: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make_trainer().fit(make_net(), data)
    assert message in str(caught.value)


@pytest.mark.parametrize("part", ["train", "validation", "data"])
def test_a_set_that_does_not_fit_the_model_is_named(part: str) -> None:
    trainer, model, good, wide = make_trainer(), make_net(), make_set(), make_set(side=9)
    calls: dict[str, Callable[[], object]] = {
        "train": lambda: trainer.fit(model, wide),
        "validation": lambda: trainer.fit(model, good, wide),
        "data": lambda: trainer.evaluate(model, wide),
    }
    with pytest.raises(InvalidInputError, match=rf"images of {part}, of shape \(1, 9, 9\)"):
        calls[part]()


def test_outputs_must_be_as_many_as_classes() -> None:
    with pytest.raises(InvalidInputError, match="last layer 4 outputs"):
        make_trainer().fit(make_net(classes=3), make_set())
    with pytest.raises(InvalidInputError, match=r"outputs of shape \(2, 6, 6\)"):
        make_trainer().fit(nn.Conv2d(1, 2, 3), make_set())


def test_a_loss_of_ones_own_may_want_other_outputs() -> None:
    trainer = make_trainer(loss=lambda outputs, targets: outputs.square().mean())
    assert len(trainer.fit(make_net(classes=3), make_set())) == 2


def test_nothing_is_trained_when_the_model_does_not_fit() -> None:
    model = make_net(classes=3)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInputError):
        make_trainer().fit(model, make_set())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "SGD"}, "must be callable; a torch name goes into the TrainConfig"),
        ({"loss": 3}, "loss=3: must be callable"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": "meta"}, "only 'cpu', 'cuda' and 'mps'"),
        ({"device": None}, "device=None"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        pytest.param(
            {"device": "cuda"},
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_what_the_trainer_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Trainer(TrainConfig(), **options)
    assert message in str(caught.value)


def test_a_configuration_must_be_one() -> None:
    with pytest.raises(InvalidInputError, match="must be a TrainConfig"):
        Trainer({"epochs": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [lambda model: None, lambda model: torch.optim.LBFGS(model.parameters())],
)
def test_an_optimizer_it_cannot_step(make: Any) -> None:
    with pytest.raises(InvalidInputError, match="single gradient"):
        make_trainer(CONSTANT, optimizer=make).fit(make_net(), make_set())


def test_a_model_must_be_one() -> None:
    with pytest.raises(InvalidInputError, match="model=function: must be a torch"):
        make_trainer().fit(make_net, make_set())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)), r"inputs \(4, 3, 8, 8\)"),
        ((torch.randn(4, 1, 8, 8), torch.full((4,), 9)), r"targets \(4,\) int64.*out of bounds"),
        ((torch.randn(4, 1, 8, 8).double(), torch.zeros(4, dtype=torch.int64)), "float64"),
    ],
    ids=["channels", "labels", "type"],
)
def test_a_batch_that_does_not_fit_is_described_wherever_it_comes(
    batch: Batch, message: str
) -> None:
    trainer, good = make_trainer(), make_batches(2)
    with pytest.raises(InvalidInputError, match=f"batch 1 of train .*{message}"):
        trainer.fit(make_net(), [batch])
    with pytest.raises(InvalidInputError, match=f"batch 3 of train .*{message}"):
        trainer.fit(make_net(), [*good, batch])
    with pytest.raises(InvalidInputError, match=f"batch 2 of validation .*{message}"):
        trainer.fit(make_net(), good, [good[0], batch])
    with pytest.raises(InvalidInputError, match=f"batch 1 of data .*{message}"):
        trainer.evaluate(make_net(), [batch])


@pytest.mark.parametrize(
    "loss",
    [
        "MSELoss",
        "BCEWithLogitsLoss",
        "PoissonNLLLoss",
        "HingeEmbeddingLoss",
        "MultiLabelSoftMarginLoss",
    ],
)
def test_targets_of_another_shape_are_not_stretched_over_the_outputs(loss: str) -> None:
    """Torch broadcasts (4, 1) outputs over (4,) targets, and at most warns."""
    trainer = make_trainer(TrainConfig(epochs=1, loss=loss, schedule="constant"))
    wrong = [(torch.randn(4, 3), torch.rand(4))]
    message = rf"outputs \(4, 1\) float32 for targets \(4,\) float32, and {loss} compares number"
    with pytest.raises(InvalidInputError, match=message):
        trainer.fit(nn.Linear(3, 1), wrong)
    with pytest.raises(InvalidInputError, match=message):
        trainer.evaluate(nn.Linear(3, 1), wrong)
    right = [(torch.randn(4, 3), torch.rand(4, 1))]
    trainer.fit(nn.Linear(3, 1), right, right)
    assert not trainer._loss._forward_pre_hooks  # type: ignore[attr-defined]


def test_a_later_batch_is_not_stretched_either() -> None:
    trainer = make_trainer(TrainConfig(epochs=1, loss="MSELoss", schedule="constant"))
    wrong = [(torch.randn(4, 3), torch.randn(4))]
    with pytest.raises(InvalidInputError, match=r"batch 2 of train .*Using a target size"):
        trainer.fit(nn.Linear(3, 1), [(torch.randn(4, 3), torch.randn(4, 1)), *wrong])


def test_a_classifier_of_one_output_learns_nothing_and_is_refused() -> None:
    """Cross-entropy over one column is 0 whatever the model says: a regression without its loss."""
    batches = [(torch.rand(8, 1), torch.rand(8, 1))]
    config = TrainConfig(epochs=1, schedule="constant")
    with pytest.raises(InvalidInputError, match="one output for each sample"):
        make_trainer(config).fit(nn.Linear(1, 1), batches)
    model = nn.Linear(1, 1)
    make_trainer(TrainConfig(epochs=2, schedule="constant", loss="MSELoss")).fit(model, batches)
    assert not model._forward_hooks


def test_raw_pixels_are_no_input_of_a_model() -> None:
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(InvalidInputError, match="have to be normalized first"):
        make_trainer().predict(make_net(), pixels)


def test_a_model_is_left_in_evaluation_mode_after_an_error_too() -> None:
    model = make_net()
    with pytest.raises(InvalidInputError):
        make_trainer().fit(model, [(torch.zeros(4, 3, 8, 8), torch.zeros(4))])
    assert not model.training


def test_a_loss_of_one_number_in_a_row_counts_as_one_number() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets).reshape(1)

    torch.manual_seed(0)
    plain, reshaped = make_net(), make_net()
    reshaped.load_state_dict(plain.state_dict())
    images = make_set()
    expected = make_trainer().fit(plain, images)
    assert make_trainer(loss=loss).fit(reshaped, images)[-1].train_loss == expected[-1].train_loss


def test_an_optimizer_over_another_models_weights() -> None:
    other = make_net()
    with pytest.raises(InvalidInputError, match="4 parameters that are not the model's"):
        make_trainer(optimizer=lambda model: torch.optim.SGD(other.parameters())).fit(
            make_net(), make_set()
        )


def test_a_schedule_with_a_negative_rate() -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step)

    with pytest.raises(InvalidInputError, match=r"learning rate of -0\.01 at step 3"):
        make_trainer(scheduler=scheduler).fit(make_net(), make_set())


def test_a_loss_that_is_no_scalar_is_described() -> None:
    trainer = make_trainer(loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(InvalidInputError, match="scalar outputs"):
        trainer.fit(make_net(), make_set())


def test_a_refused_run_leaves_nothing_in_its_way(tmp_path: Path) -> None:
    inputs = torch.randn(4, 1, 8, 8)
    with pytest.raises(InvalidInputError):
        make_trainer().fit(make_net(), [(inputs, torch.randn(4))], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    make_trainer().fit(make_net(), [(inputs, torch.zeros(4, dtype=torch.int64))], folder=tmp_path)


def test_weights_that_the_last_step_makes_infinite_are_no_result() -> None:
    config = TrainConfig(
        epochs=1, batch_size=4, learning_rate=3e38, schedule="constant", optimizer_options={}
    )
    batches = [(torch.full((4, 1, 8, 8), 1e4), torch.arange(4))]
    with pytest.raises(NonFiniteLossError, match="step 1 of epoch 1"):
        make_trainer(config).fit(make_net(), batches)


def test_a_model_must_give_a_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": inputs}

    with pytest.raises(InvalidInputError, match="the model gives a dict"):
        make_trainer().fit(Pair(), make_set())


@pytest.mark.parametrize("progress", ["no", None, 2])
def test_progress_is_a_choice_or_a_callable(progress: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"progress={progress!r}: must be True, False, or"):
        Trainer(CONSTANT, progress=progress)


def test_progress_of_many_seeds_is_no_callable() -> None:
    trainer = Trainer(CONSTANT, device="cpu", progress=print)
    with pytest.raises(InvalidInputError, match="not knowing of which seed"):
        trainer.fit_many(make_net, [0], make_set())


@pytest.mark.parametrize("folder", [3, "", "a\0b", "x" * 300, "x/" * 3000])
def test_what_is_no_folder_is_refused(folder: Any) -> None:
    with pytest.raises(OutputError, match=r"folder|cannot write into"):
        make_trainer().fit(make_net(), make_set(), folder=folder)
    with pytest.raises(OutputError, match=r"folder|cannot write into"):
        make_trainer().fit_many(make_net, [0], make_set(), folder=folder, workers=1)


def test_a_taken_folder_of_any_seed_is_seen_before_the_first_runs(tmp_path: Path) -> None:
    make_trainer().fit(make_net(), make_set(), folder=tmp_path / "seed-2")
    with pytest.raises(OutputError, match=r"seed-2'.*of a run, which would be"):
        make_trainer().fit_many(make_net, [0, 1, 2], make_set(), folder=tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["seed-2"]


class Rateless(torch.optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"speed": 1.0})


def test_an_optimizer_without_a_rate_is_refused() -> None:
    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return Rateless(model.parameters())

    with pytest.raises(InvalidInputError, match="made Rateless, whose groups have no 'lr'"):
        make_trainer(optimizer=make_optimizer).fit(make_net(), make_set())


def test_a_loader_whose_length_changes_is_refused() -> None:
    class Growing(Claims):
        def __iter__(self) -> Iterator[Batch]:
            yield from list(super().__iter__())[: self.claimed]
            self.claimed += 1

    with pytest.raises(InvalidInputError, match="had 3 batches at the start, and 4 in epoch 2"):
        make_trainer(ONE_CYCLE).fit(make_net(), Growing(6, 3))


def test_settings_nested_without_end_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="not JSON"):
        TrainConfig.from_json('{"epochs": ' + "[" * 100_000 + "]" * 100_000 + "}")
