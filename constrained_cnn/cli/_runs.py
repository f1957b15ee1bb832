"""The commands that train and that read pictures."""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, TextIO, cast

from constrained_cnn.cli._printing import plain_console
from constrained_cnn.cli._status import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_INTERRUPTED
from constrained_cnn.cli._told import announce, report, say_done_before, stopped_of
from constrained_cnn.errors import CheckpointError, DataError, InvalidInputError, escape_controls

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


DATA_NAMES = ("auto", "mnist", "digits", "fashion-mnist")


def add_run_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``train`` and ``predict``."""
    train = commands.add_parser(
        "train", help="train a recipe and keep its record, weights and pictures"
    )
    train.add_argument("recipe", help="name of a recipe, such as mnist-12k or mnist-12k-source")
    _add_train_options(train)
    train.set_defaults(command=_train)

    predict = commands.add_parser("predict", help="read digits from pictures of your own")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="a picture of one digit")
    predict.add_argument(
        "--run", metavar="DIR", help="a finished run of yours, in place of the package's weights"
    )
    predict.add_argument(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the digit is darker than its background (default: look at the border)",
    )
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.set_defaults(command=_predict)


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="seed of the run (default 0)")
    which.add_argument("--seeds", type=_seed_range, metavar="A-B", help="a run for each of A to B")
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--data", choices=DATA_NAMES, help="in place of the recipe's")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data lies")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 (default: auto)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    again.add_argument(
        "--resume-if-begun",
        dest="resume",
        action="store_const",
        const="if-begun",
        help="go on with an unfinished run, or start one: for a command that is given repeatedly",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: below runs/)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=0,
        metavar="N",
        help="keep N training images out and judge on them; the test set is not read",
    )
    parser.add_argument(
        "--test-curve",
        action="store_true",
        help="read the test set after every epoch too; the record says so",
    )
    parser.add_argument(
        "--executor",
        choices=("auto", "eager", "graph"),
        default="auto",
        help="what runs the steps: a CUDA graph where there can be one (auto), or operation by "
        "operation (eager)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the --seeds (default: one for each core; 1 on a GPU)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch on a CPU")
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="longest time between checkpoints within an epoch (default 60); after every epoch "
        "there is one anyway",
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _seed_range(text: str) -> list[int]:
    """Return the seeds that ``A-B`` names, both included.

    Examples:
        >>> _seed_range("0-3")
        [0, 1, 2, 3]
    """
    first, _, last = text.partition("-")
    if len(text) > 40 or not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be A-B with A <= B, such as 0-15")
    if int(last) - int(first) >= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r}: names more than 10,000 seeds")
    return list(range(int(first), int(last) + 1))


def _train(options: argparse.Namespace) -> int:
    from constrained_cnn.training._progress import BestEffort, standard_error

    out = BestEffort(sys.stdout)
    with _losing_what_cannot_be_shown():
        results = plain_console(cast("TextIO", out))
        status = _train_recipe(options, standard_error() if options.json else results)
    if out.error is not None:  # now that nothing is lost by it
        raise out.error
    return status


@contextmanager
def _losing_what_cannot_be_shown() -> Iterator[None]:
    """Let no training end because nobody reads standard error any more."""
    from constrained_cnn.training._progress import BestEffort

    stream = sys.stderr
    try:
        with redirect_stderr(cast("TextIO", BestEffort(stream))):
            yield
    finally:
        try:
            stream.flush()
        except OSError:  # what is still held back would be an error at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _train_recipe(options: argparse.Namespace, console: "Console") -> int:
    from constrained_cnn import recipes
    from constrained_cnn.training import Trainer, World

    recipe = recipes.get_recipe(options.recipe)
    name = recipes.run_name(recipe, options.data, held_out=options.held_out)
    keywords: dict[str, Any] = {
        "data_name": options.data,
        "data_dir": options.data_dir,
        "epochs": options.epochs,
        "device": options.device,
        "resume": options.resume,
        "held_out": options.held_out,
        "test_curve": options.test_curve,
        "progress": not options.quiet,
        "executor": options.executor,
        "threads": options.threads,
        "checkpoint_seconds": options.checkpoint_seconds,
    }
    config = recipe.config
    if options.epochs is not None:
        config = dataclasses.replace(config, epochs=options.epochs)
    # Here already, as what is wrong with an option is to be said first.
    words = {name: keywords[name] for name in ("device", "threads", "checkpoint_seconds")}
    device = Trainer(config, **words).device
    several = options.seeds is not None
    if options.workers is not None and not several:
        raise InvalidInputError("--workers: shares out --seeds, and there are none; leave it out")
    if options.seed is None:
        options.seed = 0
    with World.joined(device, patient=several) as world, warnings.catch_warnings():
        warnings.showwarning = _show_warning
        if not (world.is_first or several):
            warnings.simplefilter("ignore")  # the first process warns of the same
        options.quiet = options.quiet or not world.is_first
        if world.is_first and device.type == "cpu":
            _warn_of_threads(options.threads)
        if options.seeds is None:
            folder = world.from_first(
                lambda: recipes.run_folder(
                    options.out, f"{name}-seed-{options.seed}", resume=options.resume
                )
            )
            before = world.from_first(lambda: _finished_before(options, folder))
            if world.is_first:
                announce(console, options, recipe, folder, before)
            with _said_if_broken_off(folder):
                records = [recipes.run(recipe, options.seed, out=folder, **keywords)]
        else:
            folder = world.from_first(
                lambda: recipes.seeds_folder(
                    options.out, name, options.seeds, resume=options.resume
                )
            )
            before = world.from_first(lambda: _finished_before(options, folder))
            if world.is_first:
                announce(console, options, recipe, folder, before)
            with _said_if_broken_off(folder):
                records = recipes.run_seeds(
                    recipe, options.seeds, out=folder, workers=options.workers, **keywords
                )
        if world.is_first:
            say_done_before(console, options, folder, before)
            report(console, options, records, folder)
    whole = len(records) == (len(options.seeds) if several else 1)
    return EXIT_DONE if whole and stopped_of(records) is None else EXIT_INTERRUPTED


@contextmanager
def _said_if_broken_off(folder: "Path") -> Iterator[None]:
    """Say at a second Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if folder.exists():
            how = escape_controls(f"--resume --out {folder}")
            print(
                "Stopped at once; what the last checkpoint holds is kept. To go on, give the same "
                f"command with {how}",
                file=sys.stderr,
            )
        raise


def _warn_of_threads(threads: int | None) -> None:
    from constrained_cnn.errors import counted
    from constrained_cnn.training._threads import usable_cores

    cores = usable_cores()
    if threads is not None and threads > cores:
        print(
            f"warning: --threads {threads}: this process may use {counted(cores, 'core')}; with "
            "more threads than that a step can take many times as long",
            file=sys.stderr,
        )


def _finished_before(options: argparse.Namespace, folder: "Path") -> list[int]:
    """Return the seeds whose runs are finished already, so that nothing of them is trained."""
    from constrained_cnn.recipes._folder import finished_record

    if not options.resume:
        return []
    if options.seeds is None:
        return [] if finished_record(folder) is None else [options.seed]
    return [s for s in options.seeds if finished_record(folder / f"seed-{s}") is not None]


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Show a warning so that it cannot be missed."""
    from rich.panel import Panel

    text = escape_controls(str(message), keep_lines=True)
    panel = Panel(text, title=category.__name__, border_style="bold red")
    plain_console(stderr=True).print(panel)


def _predict(options: argparse.Namespace) -> int:
    import torch
    from rich.table import Table

    from constrained_cnn import data

    model, mean, std, classes = _trained_model(options.run)
    read, pictures, unread = [], [], []
    for image in options.images:
        try:
            pictures.append(data.read_pictures(image, invert=options.invert))
            read.append(image)
        except DataError as error:  # one that cannot be read keeps the others from nothing
            unread.append(error)
    for reason in unread:
        print(f"error: {reason}", file=sys.stderr)
    if not read:
        return EXIT_CANNOT_RUN
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        chances = model.eval()((torch.cat(pictures) / 255 - mean) / std).softmax(1)
    best, which = chances.topk(2)
    answers = [
        {
            "image": str(image),
            "class": classes[first],
            "probability": round(chance, 4),
            "runner_up": classes[second],
        }
        for image, (first, second), chance in zip(
            read, which.tolist(), best[:, 0].tolist(), strict=True
        )
    ]
    if options.json:
        print(json.dumps(answers))
        return EXIT_CANNOT_RUN if unread else EXIT_DONE
    table = Table()
    table.add_column("picture", overflow="fold")
    for heading in ("reads", "probability", "next best"):
        table.add_column(heading, justify="right")
    for answer in answers:
        percent = 100 * answer["probability"]
        chance = f"{percent:.1f} %" if percent < 99.95 else "over 99.9 %"
        names = answer["image"], answer["class"], answer["runner_up"]
        picture, reads, next_best = map(escape_controls, names)
        table.add_row(picture, reads, chance, next_best)
    plain_console().print(table)
    return EXIT_CANNOT_RUN if unread else EXIT_DONE


def _trained_model(folder: str | None) -> tuple[Any, ...]:
    """Return model, mean, deviation and classes of a run, or of the weights in the package."""
    from pathlib import Path

    from constrained_cnn import models
    from constrained_cnn.record import RunRecord

    if folder is None:
        shipped = models.get_weights("mnist_12k", "mnist")
        model = models.create_model("mnist_12k", weights="mnist")
        return model, shipped.mean, shipped.std, shipped.classes
    record = RunRecord.load(folder)
    if record.status != "finished":
        raise CheckpointError(f"run={folder!r}: is not finished; go on with it by --resume first")
    if record.data["name"] != "mnist":
        print(
            f"note: this run was trained on {escape_controls(record.data['name'])}, not on MNIST; "
            "it may read drawings badly",
            file=sys.stderr,
        )
    model = models.create_model(record.model)
    file = Path(folder) / "weights.safetensors"
    models.load_weights(model, file, sha256=record.weights_sha256)
    return model, record.data["mean"], record.data["std"], record.data["classes"]
