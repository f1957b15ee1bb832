"""The Trainer: the way in to training, evaluation and prediction."""

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from constrained_cnn.errors import (
    InvalidInputError,
    NonFiniteLossError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
)
from constrained_cnn.training._allocator import keep_freed_memory
from constrained_cnn.training._config import TrainConfig
from constrained_cnn.training._device import check_autocast, find_device
from constrained_cnn.training._evaluation import (
    Evaluation,
    check_fits,
    evaluate,
    evaluating,
    explained,
    no_stretching,
)
from constrained_cnn.training._executor import Loss
from constrained_cnn.training._folder import IF_BEGUN, RunFolder, check_resume
from constrained_cnn.training._graph import EXECUTORS
from constrained_cnn.training._history import TEST, VALIDATION, EpochRow, History
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._many import (
    FitOne,
    Fitted,
    check_same_seeds,
    check_seeds,
    fit_many,
    share_cores,
    shared_out,
)
from constrained_cnn.training._plan import Plan, check_has_shapes
from constrained_cnn.training._progress import EpochProgress, FinishedAlready, Progress, Told
from constrained_cnn.training._run import Run
from constrained_cnn.training._side_by_side import fit_side_by_side
from constrained_cnn.training._source import Data, Source
from constrained_cnn.training._synchronised_norm import synchronised_norms
from constrained_cnn.training._threads import using_threads
from constrained_cnn.training._timings import Stopwatch
from constrained_cnn.training._world import World

CLASSIFIER_LOSSES = ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")


class Trainer:
    """Trains any :class:`torch.nn.Module` as a :class:`TrainConfig` says.

    Randomness is a pure function of (seed, epoch): the same configuration gives the same run, and
    on a CPU a run resumed at any step ends bitwise where the unbroken run ends. Losses and counts
    stay on the device until the epoch ends. The caller's random state is left as it was.

    Args:
        config: What to do.
        device: ``"auto"`` (CUDA where there is one, else the CPU) or the name of a torch device.
        optimizer: Makes an optimizer from the model, in place of the one the configuration names.
        scheduler: Makes a schedule from the optimizer, likewise.
        loss: Maps (outputs, targets) to a scalar mean, likewise.
        progress: Whether to show progress: in a notebook one display with curves, elsewhere lines
            on standard error; or a callable that is given the
            :class:`EpochRow` of every epoch instead.
        executor: What runs the training steps: ``"eager"``, operation by operation; ``"graph"``,
            captured once as a CUDA graph and replayed; ``"auto"`` for the graph where there can be
            one.
        together: Whether processes that ``torchrun`` started train one network together; False for
            each on its own.
        threads: Threads of torch on a CPU while this trainer works; None for torch's own number,
            and no more than there are cores for the process.
        checkpoint_seconds: Longest time between two checkpoints within an epoch, of a run with a
            folder; after every epoch there is one anyway. 0 for one after every step.

    Raises:
        InvalidInputError: If the device is not there, an argument is not callable, or a number out
            of its range.

    Examples:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 64).reshape(64, 1)
        >>> batches = [(x[i : i + 16], 2 * x[i : i + 16] + 1) for i in range(0, 64, 16)]
        >>> config = TrainConfig(epochs=30, loss="MSELoss", learning_rate=0.1)
        >>> trainer = Trainer(config, device="cpu", progress=False)
        >>> history = trainer.fit(torch.nn.Linear(1, 1), batches)
        >>> len(history), history[-1].train_loss < 1e-3
        (30, True)
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        device: str | torch.device = "auto",
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss: Loss | None = None,
        progress: bool | Callable[[EpochRow], None] = True,
        executor: str = "auto",
        together: bool = True,
        threads: int | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise InvalidInputError(f"config={config!r}: must be a TrainConfig")
        given = {"optimizer": optimizer, "scheduler": scheduler, "loss": loss}
        for name, value in given.items():
            if value is not None and not callable(value):
                raise InvalidInputError(
                    f"{name}={value!r}: must be callable; a torch name goes into the TrainConfig"
                )
        self.config = config
        self.device = find_device(device)
        check_autocast(config.autocast, self.device)
        if progress not in (True, False) and not callable(progress):
            raise InvalidInputError(
                f"progress={progress!r}: must be True, False, or a callable that takes the row of "
                "every epoch"
            )
        self.progress = progress
        self.executor = check_choice("executor", executor, EXECUTORS)
        self.together = check_flag("together", together)
        if threads is not None:
            threads = check_integer("threads", threads, minimum=1, maximum=4096)
        self.threads = threads
        self.checkpoint_seconds = check_number(
            "checkpoint_seconds", checkpoint_seconds, minimum=0.0
        )
        self.callables = [name for name, value in given.items() if value is not None]
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._loss: Loss = config.make_loss().to(self.device) if loss is None else loss

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        judged_on: str = VALIDATION,
        folder: str | os.PathLike[str] | None = None,
        resume: bool | str = False,
    ) -> History:
        """Train ``model`` in place.

        Args:
            model: The network; it is moved to the device and left there, in evaluation mode.
            train: An ImageSet, or an iterable of (inputs, targets) that can be iterated anew for
                every epoch, such as a DataLoader.
            validation: Likewise; read after every epoch, never learned from.
            judged_on: What that set is: ``"validation"``, or ``"test"`` if it is the test set after
                all; history and progress call its columns so.
            folder: Where ``checkpoint.pt``, ``history.jsonl`` and ``history.csv`` are written
                after every epoch, the checkpoint also within it; None writes nothing.
            resume: Go on from the newest checkpoint of the folder that is whole; ``"if-begun"``
                where there is one, else begin.

        Returns:
            One row per epoch. After Ctrl-C or SIGTERM its status is ``"interrupted"``; the
            checkpoint holds every step that was taken, and a resumed run goes on with the next.

        Raises:
            InvalidInputError: If model and data do not fit each other.
            CheckpointError: If the checkpoint is missing, damaged, or of another run.
            OutputError: If the folder cannot be written, holds a run that is not to go on, or
                another process is training in it.
            NonFiniteLossError: If the loss became infinite or NaN; the last good checkpoint stays.
        """
        watch = Stopwatch(self.device)
        check_resume(resume)
        if resume and folder is None:
            raise InvalidInputError(
                f"resume={resume!r}: needs the folder that holds the checkpoint"
            )
        check_choice("judged_on", judged_on, (VALIDATION, TEST))
        with (
            World.joined(self.device) if self.together else nullcontext(World()) as world,
            using_threads(self.threads),
            keep_freed_memory() if self.device.type == "cpu" else nullcontext(),
            InterruptGuard() as guard,
        ):
            if self.config.batch_size < world.size:
                raise InvalidInputError(
                    f"batch_size={self.config.batch_size}: {world.size} processes share a batch, "
                    "so it must be at least that; start fewer processes"
                )
            own = None
            if folder is not None and world.is_first:
                own = folder if isinstance(folder, RunFolder) else RunFolder(folder)
            with own or nullcontext():
                # Asked of all, as one that is asked for something else must not wait here.
                begun = world.any(own is not None and own.holds_checkpoint)[0]
                resume = begun if resume == IF_BEGUN else resume
                if own is not None and not resume:
                    own.check_free()
                plan = self._plan(model, train, validation, judged_on, own, world)
                world.copy_from_first([*model.parameters(), *model.buffers()])
                synchronised = self.config.sync_batch_norm and world.size > 1
                with synchronised_norms(model, world) if synchronised else nullcontext() as norms:
                    plan = dataclasses.replace(plan, keeps=folder is not None, norms=norms)
                    return self._run(plan, watch, guard, resume=bool(resume))

    def _plan(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None,
        judged_on: str,
        folder: RunFolder | None,
        world: World | None = None,
    ) -> Plan:
        """Put everything on the device, and return what a run is made of."""
        world = world or World()
        held_out = None
        source = self._fitting_source(model, train, "train", world)
        if validation is not None:
            held_out = self._fitting_source(model, validation, "validation", world)
        # Not before: a set that lives on the device has tried the model.
        check_has_shapes(model)
        return Plan(
            config=self.config,
            model=model,
            device=self.device,
            train=source,
            validation=held_out,
            judged_on=judged_on,
            classifier=self._is_classifier,
            loss=self._loss,
            make_optimizer=self._make_optimizer,
            make_scheduler=self._make_scheduler,
            callables=self.callables,
            folder=folder,
            keeps=folder is not None,
            executor=self.executor,
            checkpoint_seconds=self.checkpoint_seconds,
            world=world,
            norms=None,
        )

    def fit_many(
        self,
        make_model: Callable[[], nn.Module],
        seeds: Sequence[int],
        train: Data,
        validation: Data | None = None,
        *,
        judged_on: str = VALIDATION,
        folder: str | os.PathLike[str] | None = None,
        resume: bool | str = False,
        workers: int | None = None,
    ) -> list[Fitted]:
        """Train one network for each seed, several at a time.

        The seed decides everything random: the first weights, the order of the images, augmentation
        and dropout. On a CPU the seeds are spread over processes; each gives, to the bit, what
        :meth:`fit` gives it alone with the same number of threads. On a GPU their steps are led
        side by side, as branches of one step: without dropout each gives what it gives alone up to
        rounding; with it, the elements that are dropped are others, by the same law. Processes that
        ``torchrun`` started share the seeds, each training its own.

        Args:
            make_model: Makes a new network, with weights from torch's global generator. For more
                than one process it must be a function or class at the top of a module.
            seeds: The seeds, listed in advance.
            train: As for :meth:`fit`; for more than one process it must be something that can be
                pickled, as an ImageSet and a list of batches can.
            validation: Likewise.
            judged_on: As for :meth:`fit`.
            folder: Each seed writes into its own folder ``seed-N`` below it; None writes nothing.
            resume: Go on with seeds that were begun, and keep those that are finished;
                ``"if-begun"`` means the same. On a GPU these are trained one after another.
            workers: How many at a time: on a CPU processes, None for one for each core; on a GPU
                branches, None for up to 16.

        Returns:
            What each seed gave, in the order of the seeds. A seed that diverged is among them, with
            its error; those that were not begun when the run was stopped are left out.

        Raises:
            InvalidInputError: If the seeds are none, or one is there twice, or something cannot be
                sent to another process; and as for :meth:`fit`.

        Examples:
            >>> import functools, torch
            >>> from constrained_cnn import TrainConfig, Trainer
            >>> x = torch.linspace(-1, 1, 64).reshape(64, 1)
            >>> trainer = Trainer(TrainConfig(epochs=30, loss="MSELoss"), progress=False)
            >>> make_model = functools.partial(torch.nn.Linear, 1, 1)
            >>> found = trainer.fit_many(make_model, [0, 1], [(x, 2 * x + 1)], workers=1)
            >>> [one.seed for one in found], found[0].history[-1].train_loss < 0.1
            ([0, 1], True)
        """
        seeds = check_seeds(seeds)
        if not callable(make_model):
            raise InvalidInputError(
                f"make_model={make_model!r}: must be callable, and make a network"
            )
        check_resume(resume)
        if resume and folder is None:
            raise InvalidInputError(f"resume={resume!r}: needs the folder that holds the seeds")
        if callable(self.progress):
            raise InvalidInputError(
                "progress: a callable is given the epochs of one run, not knowing of which seed; "
                "with fit_many make the trainer with progress=True or False"
            )
        one = FitOne(
            trainer=self,
            make_model=make_model,
            train=train,
            validation=validation,
            folder=None if folder is None else RunFolder(folder).path,
            resume=bool(resume),
            options={"judged_on": judged_on},
        )
        with (
            World.joined(self.device, patient=True)
            if self.together
            else nullcontext(World()) as world
        ):
            check_same_seeds(world, seeds)
            # Each process has its own seeds, and trains them alone.
            own = list(seeds)[world.rank :: world.size]
            alone = dataclasses.replace(one, trainer=self._alone())
            fitted = self._fit_own(alone, own, workers if world.size == 1 else 1)
            return shared_out(world, one, seeds, fitted)

    def _alone(self) -> "Trainer":
        """Return the same trainer, which knows of no other processes."""
        twin = copy.copy(self)
        twin.together = False
        return twin

    def _fit_own(self, one: FitOne, seeds: Sequence[int], workers: int | None) -> list[Fitted]:
        """Train these seeds in this process, or in processes of its own."""
        if not seeds:
            return []
        if one.folder is not None and not one.resume:
            for seed in seeds:  # before the first of them runs
                RunFolder(one.folder / f"seed-{seed}").check_free()
        if self.device.type == "cpu":
            return fit_many(one, seeds, *share_cores(len(seeds), workers, self.threads))
        at_once = 16 if workers is None else check_integer("workers", workers, minimum=1)
        if at_once == 1 or one.resume:
            return fit_many(one, seeds, 1, 1)
        found: list[Fitted] = []
        for start in range(0, len(seeds), at_once):
            found += fit_side_by_side(one, seeds[start : start + at_once])
            if any(each.history and each.history.status != "finished" for each in found):
                break
        return found

    def with_seed(
        self, seed: int, *, progress: bool | Callable[[EpochRow], None] = False
    ) -> "Trainer":
        """Return the same trainer with another seed."""
        twin = copy.copy(self)
        twin.config = dataclasses.replace(self.config, seed=seed)
        twin.progress = progress
        return twin

    def _run(self, plan: Plan, watch: Stopwatch, guard: InterruptGuard, *, resume: bool) -> History:
        run = Run(plan, watch)
        if resume:
            run.load()
        else:
            run.start()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), no_stretching():
                return run.go(guard, self._shown(plan, run.rows))
        except NonFiniteLossError:
            raise  # its last good checkpoint stays, were it that of the start
        except Exception:
            if not resume:
                with suppress(OSError):  # the error is what matters
                    run.keeper.forget()
            raise

    def _shown(self, plan: Plan, rows: Sequence[EpochRow]) -> Progress:
        """Return what shows how far a run is, of which ``rows`` are done already."""
        if callable(self.progress):
            return Told(self.progress)
        shows = self.progress and plan.world.is_first
        if shows and len(rows) == self.config.epochs:
            return FinishedAlready(len(rows))
        return EpochProgress(
            epochs=self.config.epochs,
            steps=plan.train.steps,
            judged_on=None if plan.validation is None else plan.judged_on,
            enabled=shows,
            rows=rows,
        )

    def evaluate(self, model: nn.Module, data: Data) -> Evaluation:
        """Return loss and accuracy of ``model`` on ``data``; its weights and mode stay.

        Raises:
            InvalidInputError: If model and data do not fit each other.
        """
        return evaluate(model, self._loss, self._fitting_source(model, data, "data"))

    def predict(self, model: nn.Module, data: Data | Tensor) -> Tensor:
        """Return the model's outputs for every sample, in order, on the CPU.

        Args:
            model: The network; its weights and mode stay.
            data: An ImageSet, which normalizes its images; or an iterable of (inputs, targets) or
                a tensor of inputs ``(N, ...)``, which go in as they are: pixels are brought into
                the form the model was trained on by ``images.normalised(pixels)``.

        Returns:
            Outputs ``(N, ...)``; for a classifier the logits.

        Raises:
            InvalidInputError: If the data holds nothing, or the model cannot take it.
        """
        if isinstance(data, Tensor):
            if data.dtype == torch.uint8:
                raise InvalidInputError(
                    "data=uint8 tensor: pixels have to be normalized first, as the model was "
                    "trained; pass an ImageSet, or images.normalised(pixels) of the set it learned "
                    "from"
                )
            parts = data.split(self.config.batch_size) if len(data) else ()
            data = [(part, part) for part in parts]
        source = self._source(model, data, "data")
        outputs: list[Tensor] = []
        with evaluating(model), torch.no_grad():
            for inputs, _ in source.batches():
                with explained("data", len(outputs) + 1, inputs):
                    outputs.append(model(inputs).cpu())
        if not outputs:
            raise InvalidInputError("data: gave no batches")
        return torch.cat(outputs)

    def _source(
        self, model: nn.Module, data: Data, name: str, world: World | None = None
    ) -> Source:
        """Return ``data`` as batches on the device, where the model is put as well."""
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"model={type(model).__name__}: must be a torch.nn.Module")
        source = Source(
            data,
            batch_size=self.config.batch_size,
            device=self.device,
            channels_last=self.config.channels_last,
            name=name,
            part=(0, 1) if world is None else (world.rank, world.size),
        )
        model.to(self.device)
        if self.config.channels_last:
            # Not model.to(memory_format=...), which refuses the 5-D weights of a Conv3d.
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)
        return source

    def _fitting_source(
        self, model: nn.Module, data: Data, name: str, world: World | None = None
    ) -> Source:
        source = self._source(model, data, name, world)
        check_fits(model, source, classifier=self._is_classifier)
        return source

    @property
    def _is_classifier(self) -> bool:
        return "loss" not in self.callables and self.config.loss in CLASSIFIER_LOSSES
