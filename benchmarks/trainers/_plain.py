"""What needs no other library: the source's way, a raw loop, and the Trainer."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import source_way
from benchmarks.trainers._task import Batch, Clock, Task
from constrained_cnn.training import Trainer

__all__ = ["bfloat16", "eager", "graph", "raw", "source"]


def source(task: Task, clock: Clock) -> int:
    """Train as the source did."""
    return source_way.train(task.model, task.images, task.config, task.device, clock.tick)


def raw(task: Task, clock: Clock) -> int:
    """Train as one writes it by hand: tensors on the device, loss and accuracy once an epoch."""
    model = task.model.to(task.device)
    images, labels = (tensor.to(task.device) for tensor in task.arrays())
    loss_of = task.config.make_loss()
    optimizer = task.config.make_optimizer(model.parameters())
    scheduler = task.config.make_scheduler(optimizer, task.steps, task.config.epochs)
    steps = 0
    for epoch in range(1, task.config.epochs + 1):
        model.train()
        loss_sum = torch.zeros((), device=task.device)
        correct = torch.zeros((), device=task.device, dtype=torch.int64)
        for inputs, targets in task.batches or _draw(task, images, labels):
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_of(outputs, targets)
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            loss_sum += loss.detach() * len(targets)
            correct += (outputs.detach().argmax(1) == targets).sum()
            steps += 1
        mean, right = loss_sum.item() / len(labels), correct.item() / len(labels)
        print(f"epoch {epoch}: loss {mean:.4f}, accuracy {100 * right:.2f} %")
        clock.tick()
    return steps


def _draw(task: Task, images: Tensor, labels: Tensor) -> Iterator[Batch]:
    """Yield the batches of an epoch in random order."""
    order = torch.randperm(len(labels), device=task.device)
    for chosen in order.split(task.config.batch_size):
        inputs = images[chosen]
        if task.images.augmentation is not None:
            inputs = rotate(inputs, task)
        yield inputs, labels[chosen]


def rotate(inputs: Tensor, task: Task) -> Tensor:
    """Rotate each image of a batch by an angle of its own, as far as the recipe says."""
    how = task.images.augmentation
    assert how is not None
    angles = (2 * torch.rand(len(inputs), device=inputs.device) - 1) * math.radians(how.rotation)
    cos, sin, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([cos, -sin, none, sin, cos, none], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(inputs.shape), align_corners=False)
    background = (how.fill / 255 - task.images.mean[0]) / task.images.std[0]
    rotated = F.grid_sample(inputs - background, grid, how.interpolation, align_corners=False)
    return rotated + background


def _trainer(executor: str, task: Task, clock: Clock) -> int:
    """Train with the library's Trainer."""
    trainer = Trainer(task.config, device=task.device, executor=executor)
    history = trainer.fit(task.model, task.batches or task.images)
    clock.note(row.seconds for row in history)
    return len(history) * task.images.steps(task.config.batch_size)


eager, graph = partial(_trainer, "eager"), partial(_trainer, "graph")


def bfloat16(task: Task, clock: Clock) -> int:
    """Train as the library does with its two options that trade exactness for speed."""
    config = dataclasses.replace(task.config, autocast="bfloat16", channels_last=True)
    return _trainer("auto", dataclasses.replace(task, config=config), clock)
