"""The training loop the project set out from, as such loops are commonly written.

Each image is a PIL picture that torchvision rotates, converts and normalises alone; a DataLoader
puts batches together; and after every step loss and accuracy are read back and shown by tqdm.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm  # type: ignore[import-untyped]

from constrained_cnn.blocks import Dropout, MaxPool2d
from constrained_cnn.data import ImageSet
from constrained_cnn.errors import DataError
from constrained_cnn.training import TrainConfig

__all__ = ["Pictures", "make_loader", "train", "use_torch_parts"]


class Pictures(Dataset[tuple[Tensor, int]]):
    """One-channel images that become PIL pictures when asked for, as torchvision's MNIST does it.

    Each item is an input, float32 (1, H, W), and its label.

    Args:
        images: The images and their augmentation; only its rotation is done.

    Raises:
        DataError: If the images have more than one channel.
    """

    def __init__(self, images: ImageSet) -> None:
        if images.shape[0] != 1:
            raise DataError(f"images of shape {images.shape}: must have one channel")
        self.pixels = images.images[:, 0].cpu()
        self.labels = images.labels.cpu()
        steps = [transforms.ToTensor(), transforms.Normalize(images.mean, images.std)]
        how = images.augmentation
        if how is not None:
            rotation = transforms.RandomRotation(
                (-how.rotation, how.rotation),
                interpolation=transforms.InterpolationMode(how.interpolation),
                fill=how.fill,
            )
            steps.insert(0, rotation)
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index].numpy())
        return self.transform(picture), int(self.labels[index])


def make_loader(images: ImageSet, batch_size: int) -> "DataLoader[tuple[Tensor, int]]":
    """Return a shuffling loader that works in this process."""
    return DataLoader(Pictures(images), batch_size=batch_size, shuffle=True, num_workers=0)


def train(
    model: nn.Module,
    images: ImageSet,
    config: TrainConfig,
    device: torch.device,
    at_epoch_end: Callable[[], None],
) -> int:
    """Train ``model`` in place.

    Args:
        model: A classifier that gives logits; its dropouts and pools become torch's own, as in the
            source.
        images: The training images.
        config: Epochs, batch size, optimizer and schedule; the loss is cross-entropy.
        device: Where to train.
        at_epoch_end: Called when an epoch has ended.

    Returns:
        The number of steps taken.
    """
    loader = make_loader(images, config.batch_size)
    use_torch_parts(model)
    model.to(device)
    optimizer = config.make_optimizer(model.parameters())
    scheduler = config.make_scheduler(optimizer, config.epochs * len(loader), config.epochs)
    steps = 0
    for _ in range(config.epochs):
        steps += _train_epoch(model, loader, optimizer, scheduler, device)
        at_epoch_end()
    return steps


def use_torch_parts(model: nn.Module) -> None:
    """Put torch's own dropouts and pools in the place of the library's, in place."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, Dropout):
                setattr(part, name, nn.Dropout(child.p))
            elif isinstance(child, MaxPool2d):
                setattr(part, name, nn.MaxPool2d(child.kernel_size, child.stride))


def _train_epoch(
    model: nn.Module,
    loader: "DataLoader[tuple[Tensor, int]]",
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    device: torch.device,
) -> int:
    model.train()
    correct, seen = 0.0, 0
    bar = tqdm(loader)
    for step, batch in enumerate(bar):
        inputs, targets = batch[0].to(device), batch[1].to(device)
        optimizer.zero_grad()
        outputs = F.log_softmax(model(inputs), dim=1)
        loss = F.nll_loss(outputs, targets)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        guesses = outputs.argmax(dim=1)
        correct += guesses.eq(targets).sum().item()
        seen += len(targets)
        accuracy = 100 * correct / seen
        bar.set_description(f"loss={loss.item():.4f} batch={step} accuracy={accuracy:.2f}")
    return step + 1
