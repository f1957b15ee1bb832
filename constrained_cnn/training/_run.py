"""One call of ``Trainer.fit``: the state that moves from step to step."""

import itertools
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from constrained_cnn.errors import InvalidInputError, NonFiniteLossError, OutputError, reason_of
from constrained_cnn.training._alike import check_alike
from constrained_cnn.training._average import Average
from constrained_cnn.training._batch_norm import measure_batch_norm
from constrained_cnn.training._evaluation import (
    Evaluation,
    StoppedError,
    Tally,
    evaluate,
    evaluation_of,
    explained,
    reading,
    sums_over,
    until_stopped,
)
from constrained_cnn.training._executor import Executor, Parts, outputs_of
from constrained_cnn.training._gradients import GradientExchange
from constrained_cnn.training._graph import make_executor
from constrained_cnn.training._history import EpochRow, History
from constrained_cnn.training._keeper import Keeper
from constrained_cnn.training._memory import is_out_of_memory, out_of_memory
from constrained_cnn.training._plan import (
    Plan,
    check_no_sparse_gradients,
    first_outputs_checked,
    make_optimizer,
    make_rates,
    warn_of_average,
)
from constrained_cnn.training._progress import Progress
from constrained_cnn.training._saved import (
    Moment,
    frozen_now,
    made_on,
    restore,
    say_optimizer,
    say_rates,
    set_random_state,
    warn_of_changes,
)
from constrained_cnn.training._source import epoch_seed
from constrained_cnn.training._timings import EVALUATION, TRAINING, Stopwatch, Timings

# Steps between two moments at which several processes ask one another whether to stop or to save.
AGREE_EVERY = 16


class Asking(Protocol):
    """Says whether the run is to stop; an ``InterruptGuard`` does."""

    @property
    def requested(self) -> bool:
        """Whether it is."""


class Asked(NamedTuple):
    """A step that is to be taken.

    Attributes:
        inputs: The inputs of its batch.
        targets: The targets.
        number: Its number in the whole run, from 0.
        epoch: Its epoch, from 1.
        step: Its number in the epoch, from 1.
    """

    inputs: Tensor
    targets: Tensor
    number: int
    epoch: int
    step: int


Given = tuple[Tensor, Tensor | None]
Steps = Generator[Asked, Given, History]


class Run:
    """The moving state of one run.

    Attributes:
        plan: What the run is made of.
        rows: The epochs that are done.
        tally: What the steps of the epoch under way gave.
        spent: Seconds of that epoch in parts of the run before this one.
        random: Where torch's generators were in the middle of that epoch; None at its start.
        loader_random: Where the generators of a DataLoader's own were at its start; empty between
            two epochs.
        callables: What the caller's callables are, as far as it can be said.
        frozen_at_start: By name, the weights that were frozen at its very start.
        timings: Those of the parts of the run before this one.
        optimizer: Moves the weights.
        average: Running average of the weights, or None.
        parts: What a step works on.
        executor: Runs the steps.
        keeper: Writes what the run can go on from.
        watch: Measures where the time goes.
    """

    def __init__(self, plan: Plan, watch: Stopwatch) -> None:
        self.plan = plan
        self.rows: list[EpochRow] = []
        self.tally = Tally()
        self.spent = 0.0
        self.random: dict[str, Tensor] | None = None
        self.loader_random: list[Tensor] = []
        self.timings = Timings()
        self.watch = watch
        self._steps = plan.train.steps
        self._samples = 0  # met in this part of the run
        self._started = time.perf_counter()  # when the epoch under way would have begun, unbroken
        self._one_sample: tuple[Tensor, Tensor] | None = None
        config = plan.config
        self.optimizer = make_optimizer(plan)
        self.callables = dict.fromkeys(plan.callables, "given")
        if plan.make_optimizer is not None:
            self.callables["optimizer"] = say_optimizer(self.optimizer, plan.model)
        self.average: Average | None = None
        if config.weight_averaging is not None:
            self.average = Average(plan.model, config.weight_averaging)
        self._rates = make_rates(plan, self.optimizer)
        if plan.make_scheduler is not None:
            self.callables["scheduler"] = say_rates(self._rates)
        self.frozen_at_start = frozen_now(self)
        self.parts: Parts
        self.executor: Executor
        self.keeper = Keeper(self)

    def start(self) -> None:
        """Make ready for the first step of a new run, and show that it could be resumed.

        Raises:
            OutputError: If the folder cannot be written.
            InvalidInputError: If the model holds what no checkpoint can.
        """
        check_alike(self, resume=False)
        check_no_sparse_gradients(self.plan)
        self._make_executor()
        warn_of_average(self.plan)
        self.keeper.begin()

    def load(self) -> None:
        """Go on from the folder's checkpoint; nothing is changed unless all of it fits."""
        check_alike(self, resume=True)
        check_no_sparse_gradients(self.plan)
        world, folder = self.plan.world, self.plan.folder

        def read() -> tuple[Path, dict[str, Any]]:
            assert folder is not None
            return folder.load()

        path, state = world.from_first(read)
        restore(self, state, str(path))
        self._make_executor()
        if folder is not None:  # a run may be killed after its checkpoint and before its history
            # Nothing else is written of one that is finished, were it on a disk for reading only.
            finished = len(self.rows) == self.plan.config.epochs
            with suppress(OutputError) if finished else nullcontext():
                self.keeper.save_history()
        if world.is_first:
            warn_of_changes(state["made_on"], made_on(self))

    def _make_executor(self) -> None:
        plan = self.plan
        several = plan.world.size > 1
        parts = Parts(
            plan.model,
            plan.loss,
            self.optimizer,
            self._rates,
            self.average,
            plan.config.clip_gradient,
            exchange=GradientExchange(plan.world, plan.model.parameters()) if several else None,
            stand_in=self._stand_in if several and plan.norms is not None else None,
            autocast=plan.config.autocast,
        )
        self.parts = parts
        self.executor = make_executor(
            plan.executor,
            parts,
            plan.device,
            plan.train.steps,
            agree=(lambda could: not plan.world.any(not could)[0]) if several else None,
        )

    def _stand_in(self) -> None:
        """Meet the other processes in every batch norm, with a sample that counts nothing."""
        assert self.plan.norms is not None
        assert self._one_sample is not None
        inputs, targets = self._one_sample
        with self.plan.norms.standing_in():
            outputs = outputs_of(self.plan.model, inputs, self.plan.config.autocast)
            self.plan.loss(outputs, targets).backward()

    def go(self, guard: Asking, shown: Progress) -> History:
        """Run the epochs that are left, until done or asked to stop."""
        try:
            with closing(self.steps(guard, shown)) as steps:
                answer: Any = None  # what a generator is sent first
                while True:
                    try:
                        asked = steps.send(answer)
                    except StopIteration as end:
                        history: History = end.value
                        return history
                    answer = self._take(asked)
        finally:
            self.executor.close()
            self.plan.model.eval()

    def steps(self, guard: Asking, shown: Progress) -> Steps:
        """Yield every step that is to be taken, be sent what it gave, and return the history.

        Who takes the steps is thereby another's business: several runs can be led side by side. The
        model is left in training mode.
        """
        epochs = self.plan.config.epochs
        self.keeper.wait()
        with shown, first_outputs_checked(self.plan):
            while len(self.rows) < epochs and not self._agreed(guard.requested)[0]:
                row = yield from self._epoch(guard, shown)
                if row is None:
                    break
                self.rows.append(row)
                self._begin_epoch()
                self.keeper.save()  # first, as what shows it may fail
                shown.end_epoch(row)
            history = self.history()
            shown.end_run(history)
        return history

    def history(self) -> History:
        """Return what the run gave so far."""
        finished = len(self.rows) == self.plan.config.epochs
        return History(
            tuple(self.rows),
            "finished" if finished else "interrupted",
            self.plan.judged_on,
            steps_of_next=self.tally.steps,
            made_on={**made_on(self), "processes": self.plan.world.size},
            timings=self.timings_now(),
        )

    def timings_now(self) -> Timings:
        """Return where the time went up to now."""
        return self.watch.read(
            self.plan.device,
            samples=self._samples,
            captured=self.executor.capture_seconds,
            before=self.timings,
        )

    def seconds_of_epoch(self) -> float:
        """Return how long the epoch under way has taken up to now."""
        return time.perf_counter() - self._started

    def _begin_epoch(self) -> None:
        self.tally, self.spent, self.random = Tally(), 0.0, None
        self.loader_random = []

    def _take(self, asked: "Asked") -> Given:
        """Take one step; an error says which, and of a full memory what fits."""
        exhausted = ""
        try:
            with explained("train", asked.step, asked.inputs, asked.targets):
                return self.executor.step(asked.inputs, asked.targets, asked.number)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            exhausted = reason_of(error)
        # Here, where nothing of the step is held any more.
        where = f"step {asked.step} of epoch {asked.epoch}"
        raise out_of_memory(self.parts, asked.inputs, asked.targets, where, exhausted)

    def _epoch(self, guard: Asking, shown: Progress) -> Generator["Asked", Given, EpochRow | None]:
        """Do what is left of the next epoch; return its row, or None if it was cut short."""
        epoch = len(self.rows) + 1
        self._started = time.perf_counter() - self.spent
        shown.start_epoch(epoch, self.tally.steps)
        self.watch.start(TRAINING)
        try:
            whole = yield from self._train(epoch, guard, shown)
        except StoppedError:  # the next batch did not come any more
            whole = False
        if not whole:
            self.keeper.save(within=True)
            return None
        self.check_finite(epoch)
        trained = evaluation_of(*sums_over(self.plan.world, self.tally))
        self._samples += trained.samples - self.tally.samples * self.plan.world.size
        self.watch.start(EVALUATION)
        self._unite()
        last = epoch == self.plan.config.epochs
        # What an evaluation may change would be changed again when it is done anew.
        before = None if last or self.plan.validation is None else Moment(self)
        if last:
            # From here on the model is what the run gives, and no longer what could go on.
            self.keeper.save(within=True)
        try:
            if last:
                self._finish(guard)
            judged = self._validate(guard)
        except StoppedError:
            if before is not None:
                before.put_back()
                self.keeper.save(within=True)
            return None
        return EpochRow(
            epoch=epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            validation_loss=None if judged is None else judged.loss,
            validation_accuracy=None if judged is None else judged.accuracy,
            learning_rate=self._rates.of((epoch - 1) * (self.plan.train.steps or 0))[0],
            seconds=self.seconds_of_epoch(),
        )

    def _train(self, epoch: int, guard: Asking, shown: Progress) -> Generator["Asked", Given, bool]:
        """Take the steps that are left of an epoch; return whether all of them were taken."""
        config, source, tally = self.plan.config, self.plan.train, self.tally
        rank = self.plan.world.rank
        if source.steps != self._steps:
            raise InvalidInputError(
                f"train: had {self._steps} batches at the start, and {source.steps} in epoch "
                f"{epoch}; the learning-rate schedule goes by their number, so it must stay"
            )
        torch.manual_seed(epoch_seed(config.seed, epoch))
        self.plan.model.train()
        generators = source.generators()
        for generator, state in zip(generators, self.loader_random, strict=False):
            generator.set_state(state)
        self.loader_random = [generator.get_state() for generator in generators]
        several = self.plan.world.size > 1
        stopped = self._stopped_by(guard)
        try:
            with reading(stopped):
                batches = source.training_batches(seed=config.seed, epoch=epoch, start=tally.steps)
        finally:
            if self.random is not None:
                set_random_state(self.random, self.plan.device)
            elif rank:
                torch.manual_seed(epoch_seed(config.seed, epoch, rank))
        steps = source.steps
        first = (epoch - 1) * (steps or 0)
        step = tally.steps
        for inputs, targets in until_stopped(batches, stopped):
            if step == steps:
                raise InvalidInputError(f"train: its len is {steps}, and it gave more batches")
            if several and self._one_sample is None:
                # Made once, as a CUDA graph needs it, and of a batch that may be without samples.
                ones = [part.new_zeros((1, *part.shape[1:])) for part in (inputs, targets)]
                self._one_sample = ones[0], ones[1]
            loss, correct = yield Asked(inputs, targets, first + step, epoch, step + 1)
            tally.add(loss, correct, len(inputs))
            self._samples += len(inputs) * self.plan.world.size  # about, until the epoch is done
            step += 1
            shown.advance(step)
            if step == steps or (several and step % AGREE_EVERY):
                continue
            stop, save = self._agreed(guard.requested, self.keeper.is_due)
            if stop:
                return False
            if save:
                self.keeper.save(within=True)
        if step == 0:
            raise InvalidInputError(
                f"train: gave no batches in epoch {epoch}; pass something that can be iterated "
                "anew for every epoch, such as a list or a DataLoader, not a generator"
            )
        if steps not in (None, step):
            raise InvalidInputError(
                f"train: its len is {steps}, and it gave {step} batches in epoch {epoch}; the "
                "learning-rate schedule goes by the len"
            )
        return True

    def _validate(self, guard: Asking) -> Evaluation | None:
        if self.plan.validation is None:
            return None
        model, world = self.plan.model, self.plan.world
        if self.average is not None:
            self.average.catch_up(model)
            model = self.average.module
        return evaluate(
            model,
            self.plan.loss,
            self.plan.validation,
            world=world,
            stop=self._stopped_by(guard),
        )

    def _stopped_by(self, guard: Asking) -> Callable[[], bool]:
        """Return what says whether to stop between two batches, which several do not agree on."""
        return lambda: guard.requested and self.plan.world.size == 1

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Return which of the flags are set in any process."""
        return flags if self.plan.world.size == 1 else self.plan.world.any(*flags)

    def _unite(self) -> None:
        """Make one what each process has of its own: running statistics and random numbers."""
        world = self.plan.world
        if world.size == 1:
            return
        # What is read from here on is read alike, were it in the order that a loader draws anew.
        torch.set_rng_state(world.from_first(torch.get_rng_state))
        samples = self.tally.samples
        world.mean_buffers(self.plan.model, samples)
        if self.average is not None:
            world.mean_buffers(self.average.module, samples)

    def _finish(self, guard: Asking) -> None:
        """Make the model what the run gives: averaged weights, fresh batch-norm statistics."""
        config, model = self.plan.config, self.plan.model
        if self.average is not None:
            self.average.copy_to(model)
            self.average = None
        if config.precise_bn is not None:
            # Whole batches in every process, so that all come to the same statistics.
            whole = self.plan.train.whole()
            batches = whole.training_batches(seed=config.seed, epoch=config.epochs)
            batches = until_stopped(batches, self._stopped_by(guard))
            with self.plan.norms.paused() if self.plan.norms else nullcontext():
                measure_batch_norm(model, itertools.islice(batches, config.precise_bn))

    def check_finite(self, epoch: int) -> None:
        """Raise NonFiniteLossError if the steps of an epoch lost their way, in any process."""
        step = self.tally.first_bad_step()
        if step is None:
            # The loss of a step is that of the weights before it, so the last step shows here.
            moved = [part for part in self.plan.model.parameters() if part.requires_grad]
            weights = [part for part in moved if part.is_floating_point()]
            if not all(bool(torch.isfinite(part).all()) for part in weights):
                step = self.tally.steps
        step = self.plan.world.lowest(step)
        if step is None:
            return
        kept = "" if not self.plan.keeps else "; the last checkpoint, from before it, is kept"
        raise NonFiniteLossError(
            f"the loss is not finite at step {step} of epoch {epoch}{kept}; "
            "lower the learning rate, set clip_gradient, or look for NaN in the data",
            epoch=epoch,
            step=step,
        )
