"""Run a recipe: from a name and a seed to a folder with a record, weights and pictures."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from constrained_cnn import data, models, plots
from constrained_cnn.data import ImageSet
from constrained_cnn.errors import InvalidInputError, OutputError, check_integer
from constrained_cnn.recipes._environment import describe_environment
from constrained_cnn.recipes._folder import (
    RECORD,
    finished_record,
    run_folder,
)
from constrained_cnn.recipes._recipe import Recipe, get_recipe, run_name
from constrained_cnn.recipes._rules import RulesOfARecipe
from constrained_cnn.record import AFTER_LAST_EPOCH, RunRecord
from constrained_cnn.training import (
    EpochRow,
    History,
    RunFolder,
    TrainConfig,
    Trainer,
    World,
    check_resume,
    seeded_model,
)

EVERY_EPOCH = "every epoch, for a curve: a best epoch chosen from it is optimistic"
SPLIT_SEED = 0


def run(
    recipe: str | Recipe,
    seed: int = 0,
    *,
    data_name: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    resume: bool | str = False,
    held_out: int = 0,
    test_curve: bool = False,
    progress: bool | Callable[[EpochRow], None] = True,
    executor: str = "auto",
    together: bool = True,
    threads: int | None = None,
    checkpoint_seconds: float = 60.0,
) -> RunRecord:
    """Train by a recipe and keep everything: record, weights, checkpoint, history, pictures.

    The test set is read once, after the last epoch. With ``held_out`` it is not read at all: for
    choosing between recipes.

    Args:
        recipe: A recipe or its name.
        seed: Seed of initial weights, order, augmentation and dropout.
        data_name: In place of the recipe's: a name that :func:`constrained_cnn.data.load` knows.
        data_dir: Where the data lies; see :func:`constrained_cnn.data.load`.
        epochs: In place of the recipe's.
        device: As for :class:`constrained_cnn.Trainer`.
        out: Folder of the run; None takes a new one below ``runs``.
        resume: Go on with the folder's unfinished run; ``"if-begun"`` to start one where there is
            none, and to give the record of a finished one, so that the same call serves for all.
        held_out: Number of training images to keep out and read after every epoch, in place of
            the test set; the split is stratified and always the same.
        test_curve: Read the test set after every epoch too; the record says so.
        progress: As for :class:`constrained_cnn.Trainer`.
        executor: As for :class:`constrained_cnn.Trainer`.
        together: Likewise.
        threads: Likewise.
        checkpoint_seconds: Likewise.

    Returns:
        The record, which is also in the folder as ``record.json``.

    Raises:
        InvalidInputError: If an argument breaks its rule; nothing is written.
        DataError: If the data is damaged, or missing and nothing takes its place.
        OutputError: If the folder cannot be written, or holds a run that would be lost.
        CheckpointError: If the run to resume is damaged or another.
        NonFiniteLossError: If the loss became infinite or NaN; the last good checkpoint stays.
        ConstraintError: If the network breaks a rule of the recipe that it is not known to break;
            nothing is written.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    check_resume(resume)
    seed = check_integer("seed", seed, minimum=0)
    held_out = check_integer("held_out", held_out, minimum=0)
    if held_out and test_curve:
        raise InvalidInputError("held_out and test_curve: a run that chooses never reads the test")
    config = config_of(recipe, seed, epochs)
    trainer = Trainer(
        config,
        device=device,
        progress=progress,
        executor=executor,
        together=together,
        threads=threads,
        checkpoint_seconds=checkpoint_seconds,
    )
    sets = load_sets(recipe, data_name, data_dir, held_out=held_out)
    name = run_name(recipe, data_name, held_out=held_out)
    model = seeded_model(lambda: models.create_model(recipe.model), seed)
    rules = RulesOfARecipe.of(recipe, model)
    rules.check_before()
    watched = sets.test if test_curve else sets.held_out
    judged_on = "validation" if held_out else "test"
    with World.joined(trainer.device) if together else nullcontext(World()) as world:
        folder = world.from_first(lambda: run_folder(out, f"{name}-seed-{seed}", resume=resume))
        # One lock from the first step to the record, so that no other run gets in between.
        with RunFolder(folder) if world.is_first else nullcontext() as own:
            kept = world.from_first(lambda: finished_record(folder))
            if kept is not None:  # nothing is left to do, and the test set is not read again
                check_same_experiment(folder, kept, recipe, config, sets)
                return kept
            history = trainer.fit(
                model,
                sets.train,
                watched,
                judged_on=judged_on,
                folder=folder if own is None else own,
                resume=resume,
            )
            record = rules.judged(_record(recipe, trainer, model, sets, history))
            if own is not None:
                record = _keep(own.path, record, trainer, model, sets)
        return world.from_first(lambda: record)


def _keep(
    folder: Path, record: RunRecord, trainer: Trainer, model: nn.Module, sets: "_Sets"
) -> RunRecord:
    """Write what a run leaves, and return its record."""
    if record.status == "finished":
        weights = models.save_weights(model, folder / "weights.safetensors")
        checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
        record = dataclasses.replace(record, weights_sha256=checksum)
        _draw(folder / "pictures", record, sets, trainer.predict(model, sets.judged))
    # Last, so that a folder with a finished record has everything the record speaks of.
    record.save(folder / RECORD)
    return record


@dataclass(frozen=True)
class _Sets:
    asked: str
    train: ImageSet
    held_out: ImageSet | None
    test: ImageSet

    @property
    def judged(self) -> ImageSet:
        """The set whose accuracy is the result."""
        return self.test if self.held_out is None else self.held_out


def load_sets(
    recipe: Recipe,
    data_name: str | None,
    data_dir: str | os.PathLike[str] | None,
    *,
    held_out: int,
) -> _Sets:
    asked = recipe.data if data_name is None else data_name
    train, test = data.load(asked, data_dir)
    if train.shape != recipe.input_shape:
        raise InvalidInputError(
            f"data {train.name!r} has images of shape {train.shape} and recipe {recipe.name!r} "
            f"takes {recipe.input_shape}; choose other data"
        )
    kept = None
    if held_out >= len(train):
        raise InvalidInputError(
            f"held_out={held_out}: must leave some of the {len(train):,} training images of "
            f"{train.name} to train on"
        )
    if held_out:
        train, kept = train.split(held_out, seed=SPLIT_SEED)
    return _Sets(asked, train.augmented(recipe.augmentation), kept, test)


def _record(
    recipe: Recipe,
    trainer: Trainer,
    model: nn.Module,
    sets: _Sets,
    history: History,
) -> RunRecord:
    # From the rows, not from what was asked last: a run may have been resumed in between.
    curve = []
    if sets.held_out is None:
        curve = [row.epoch for row in history if row.validation_loss is not None]
    readings = [{"epoch": epoch, "purpose": EVERY_EPOCH} for epoch in curve]
    result: dict[str, Any] = {"seconds": sum(row.seconds for row in history)}
    if history.timings is not None:
        result["timings"] = history.timings.to_dict()
    if history.steps_of_next:
        result["steps_of_next_epoch"] = history.steps_of_next
    if history.status == "finished":
        judged = trainer.evaluate(model, sets.judged)
        kind = "test" if sets.held_out is None else "validation"
        result |= {
            f"{kind}_accuracy": judged.accuracy,
            f"{kind}_loss": judged.loss,
            f"{kind}_errors": judged.errors,
        }
        if kind == "test":
            readings.append({"epoch": len(history), "purpose": AFTER_LAST_EPOCH})
    return RunRecord(
        recipe=recipe.name,
        model=recipe.model,
        seed=trainer.config.seed,
        status=history.status,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=len(history),
        config=trainer.config.to_dict(),
        rerunnable=not trainer.callables,
        data=_describe(sets),
        test_readings=readings,
        result=result,
        history=history.to_dicts(),
        environment={**describe_environment(trainer.device), **_made_on(history)},
        weight_shapes=[list(parameter.shape) for parameter in model.parameters()],
    )


def config_of(recipe: Recipe, seed: int, epochs: int | None) -> TrainConfig:
    """Return how a run of ``recipe`` is trained."""
    epochs = recipe.config.epochs if epochs is None else epochs
    return dataclasses.replace(recipe.config, seed=seed, epochs=epochs)


def check_same_experiment(
    folder: Path, kept: RunRecord, recipe: Recipe, config: TrainConfig, sets: _Sets
) -> None:
    """Raise if a finished run that is to be kept is of another network, training or data.

    Raises:
        OutputError: With what differs.
    """
    # Through a configuration, as older records lack what it has had since.
    trained = TrainConfig.from_dict(kept.config).to_dict()
    there = {"recipe": kept.recipe, "model": kept.model, **trained, **kept.data}
    here = {"recipe": recipe.name, "model": recipe.model, **config.to_dict(), **_describe(sets)}
    here = json.loads(json.dumps(here))
    there = json.loads(json.dumps(there))
    differing = [
        f"{name} was {there.get(name)!r} and is {here.get(name)!r}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise OutputError(
            f"{str(folder)!r} holds a finished run of another kind: {'; '.join(differing)}. "
            "Give the same options, or another folder"
        )


def _made_on(history: History) -> dict[str, Any]:
    """Return with what it was trained, beside versions and hardware."""
    return {name: history.made_on[name] for name in ("executor", "threads", "processes")}


def _describe(sets: _Sets) -> dict[str, Any]:
    """Return the data of a run as plain data."""
    parts = {"train": sets.train, "held_out": sets.held_out, "test": sets.test}
    sizes = {
        part: None if found is None else {"samples": len(found), "checksum": found.checksum}
        for part, found in parts.items()
    }
    return {**sets.train.describe(), "asked": sets.asked, **sizes}


def _draw(folder: Path, record: RunRecord, sets: _Sets, outputs: Tensor) -> None:
    """Draw the pictures of a finished run."""
    judged = sets.judged.to("cpu")
    predictions = outputs.argmax(1)
    chances = outputs.softmax(1)
    figures = {
        "samples": plots.sample_grid(sets.train.to("cpu")),
        "curves": plots.curves(record.history),
        "confusion": plots.confusion(judged.labels, predictions, judged.classes),
        "misclassified": plots.misclassified(judged, predictions, probabilities=chances),
    }
    for name, figure in figures.items():
        # So that a picture that was sent on alone still says what it is of.
        figure.suptitle(
            f"{record.model} on {judged.name}, seed {record.seed}", fontsize=8, x=0.01, ha="left"
        )
        plots.save_figure(figure, folder / f"{name}.png")
