"""Rules on the record of a run: what they read, what they refuse to say, and several runs."""

import copy
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from constrained_cnn import models, recipes
from constrained_cnn.constraints import (
    Accuracy,
    Augmentation,
    BatchSize,
    BestAccuracy,
    DataSet,
    Epochs,
    Finding,
    LastEpochs,
    Normalisation,
    Parameters,
    Rule,
    Seeds,
    TestUnseen,
    Verdict,
    check,
    get_constraints,
)
from constrained_cnn.errors import InvalidInputError
from constrained_cnn.graph import Graph
from constrained_cnn.record import RunRecord
from constrained_cnn.tracing import trace

PASS, FAIL, CANNOT_TELL = Verdict.PASS, Verdict.FAIL, Verdict.CANNOT_TELL
SHAPE = (1, 28, 28)
RUNS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "runs"
GOAL = Accuracy(at_least=99.4, data="mnist")
HELD_OUT = {"samples": 5_000, "checksum": "5eed"}


@functools.cache
def network() -> Graph:
    return trace(models.mnist_12k(), SHAPE)


@functools.cache
def own_record() -> RunRecord:
    """The record of the run that gave the weights that come with the package, with 54 errors."""
    record = models.get_weights("mnist_12k", "mnist").record
    assert isinstance(record, RunRecord)
    result = {**record.result, "test_errors": 54, "test_accuracy": 99.46}
    return dataclasses.replace(record, result=result)


def altered(record: RunRecord | None = None, **parts: Any) -> RunRecord:
    """Return a record with other parts; what is a table is merged into the one that is there."""
    record = own_record() if record is None else record
    for name, value in parts.items():
        there = getattr(record, name)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            parts[name] = {**there, **value}
    return dataclasses.replace(record, **parts)


def without(part: str, *keys: str) -> RunRecord:
    table = getattr(own_record(), part)
    left = {key: value for key, value in table.items() if key not in keys}
    return with_part(part, left)


def with_part(part: str, value: Any) -> RunRecord:
    parts: dict[str, Any] = {part: value}
    return altered(dataclasses.replace(own_record(), **parts))


def with_errors(errors: int, seed: int = 0) -> RunRecord:
    result = {"test_errors": errors, "test_accuracy": 100 - errors / 100}
    return altered(seed=seed, config={"seed": seed}, result=result)


def with_curve(curve: Sequence[float | None], **parts: Any) -> RunRecord:
    """Return a finished run whose watched images were read after some epochs."""
    history = [{"epoch": i, "validation_accuracy": value} for i, value in enumerate(curve, 1)]
    return altered(epochs=len(curve), history=history, **parts)


def found(rule: Rule, *runs: RunRecord) -> Finding:
    return check(network(), constraints=rule, run=list(runs)).findings[0]


def why(finding: Finding) -> str:
    """Return the evidence of what is not passed, which must have some."""
    assert finding.verdict is not PASS
    assert finding.evidence
    return "; ".join(finding.evidence)


# Epochs and batches -------------------------------------------------------------------------------


def interrupted_after(epochs: int) -> RunRecord:
    return altered(
        epochs=epochs, history=own_record().history[:epochs], status="interrupted", result={}
    )


def test_epochs_are_those_that_ran() -> None:
    finding = found(Epochs(exactly=19), own_record())
    assert (finding.verdict, finding.measured, finding.margin) == (PASS, "19", 0)
    short = altered(epochs=12, history=own_record().history[:12])
    assert short.config["epochs"] == 19
    finding = found(Epochs(exactly=19), short)
    assert (finding.verdict, finding.measured, finding.margin) == (FAIL, "12", -7)
    assert finding.evidence == ("asked for 19, finished",)
    assert found(Epochs(at_most=19), short).ok
    assert found(Epochs(exactly=12), short).ok


def test_a_run_that_may_go_on_has_so_many_epochs_at_least() -> None:
    short = interrupted_after(12)
    finding = found(Epochs(exactly=19), short)
    assert (finding.verdict, finding.measured, finding.margin) == (CANNOT_TELL, "at least 12", None)
    assert why(finding) == "asked for 19, and the run is not finished: 12 ran so far"
    wanted = {
        Epochs(exactly=12): CANNOT_TELL,
        Epochs(exactly=11): FAIL,
        Epochs(at_most=11): FAIL,
        Epochs(at_most=19): CANNOT_TELL,
        Epochs(at_least=12): PASS,
        Epochs(at_least=13): CANNOT_TELL,
    }
    for rule, verdict in wanted.items():
        assert found(rule, short).verdict is verdict, rule


def test_a_stopped_run_breaks_no_rule_of_the_reference_network() -> None:
    report = check(network(), constraints="mnist-12k", run=interrupted_after(12))
    assert report.failed == ()
    assert {one.rule.name for one in report.unclear} == {"R2", "R11", "R11 epochs"}


def test_epochs_that_the_history_does_not_have_are_not_believed() -> None:
    finding = found(Epochs(exactly=19), altered(history=own_record().history[:12]))
    assert finding.verdict is CANNOT_TELL
    assert "says 19 epochs and has 12" in why(finding)


def test_epochs_of_each_run_count() -> None:
    runs = [altered(seed=1), interrupted_after(12)]
    assert found(Epochs(exactly=19), *runs).verdict is CANNOT_TELL
    assert found(Epochs(at_least=12), *runs).verdict is PASS
    assert "seed 1: asked for 19, finished" in why(found(Epochs(exactly=19), *runs))
    short = altered(epochs=12, history=own_record().history[:12])
    for rule in (Epochs(exactly=19), Epochs(at_least=19)):  # whatever becomes of the other
        assert found(rule, short, interrupted_after(12)).verdict is FAIL


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_no_epoch_has_run_none(epochs: int) -> None:
    finding = found(Epochs(at_least=1), interrupted_after(epochs))
    assert finding.verdict is (PASS if epochs else CANNOT_TELL)


def test_batch_size() -> None:
    assert found(BatchSize(exactly=128), own_record()).ok
    finding = found(BatchSize(exactly=128), altered(config={"batch_size": 64}))
    assert (finding.verdict, finding.measured, finding.margin) == (FAIL, "64", -64)
    finding = found(BatchSize(exactly=128), without("config", "batch_size"))
    assert finding.verdict is CANNOT_TELL
    assert "config has no batch_size" in why(finding)


# Data ---------------------------------------------------------------------------------------------


def with_augmentation(**amounts: Any) -> RunRecord:
    return altered(data={"augmentation": {**own_record().data["augmentation"], **amounts}})


def test_augmentation_is_so_and_in_no_other_way() -> None:
    assert found(Augmentation(rotation=5), own_record()).ok
    finding = found(Augmentation(rotation=5), with_augmentation(shift=0.1))
    assert finding.verdict is FAIL
    assert finding.measured == "rotation 5, shift 0.1, scale 0"
    for run in (with_augmentation(scale=0.1), with_augmentation(rotation=10.0)):
        assert found(Augmentation(rotation=5), run).verdict is FAIL
    assert found(Augmentation(), own_record()).verdict is FAIL
    assert found(Augmentation(rotation=5, shift=0.1), own_record()).verdict is FAIL


def test_how_a_pixel_is_filled_in_is_no_other_augmentation() -> None:
    run = with_augmentation(interpolation="nearest", fill=255.0)
    assert found(Augmentation(rotation=5), run).ok


def test_an_augmentation_that_the_rule_does_not_know_is_not_passed() -> None:
    assert found(Augmentation(rotation=5), with_augmentation(shear=20.0)).verdict is not PASS


def test_no_augmentation_at_all_is_known() -> None:
    """A set that is not augmented writes None, see ``ImageSet.describe``."""
    plain = altered(data={"augmentation": None})
    assert found(Augmentation(), plain).verdict is PASS
    assert found(Augmentation(rotation=5), plain).verdict is FAIL


def test_augmentation_that_is_not_in_the_record_cannot_be_told() -> None:
    finding = found(Augmentation(rotation=5), without("data", "augmentation"))
    assert finding.verdict is CANNOT_TELL
    assert "data has no augmentation" in why(finding)


def test_augmentation_of_each_run_counts() -> None:
    runs = [own_record(), with_augmentation(shift=0.1)]
    assert found(Augmentation(rotation=5), *runs).verdict is FAIL
    assert found(Augmentation(rotation=5), *runs[:1], altered(seed=1)).verdict is PASS


INPUTS = Normalisation(mean=(0.1307,), std=(0.3081,), data="mnist")


def test_normalisation() -> None:
    assert found(INPUTS, own_record()).ok
    assert found(INPUTS, altered(data={"mean": [0.13066], "std": [0.30814]})).ok  # rounding
    for numbers in ({"mean": [0.5]}, {"std": [0.5]}, {"mean": [0.1307] * 3, "std": [0.3081] * 3}):
        finding = found(INPUTS, altered(data=numbers))
        assert finding.verdict is FAIL
        assert finding.measured != found(INPUTS, own_record()).measured
    assert found(INPUTS, own_record(), altered(data={"mean": [0.5]})).verdict is FAIL


def test_other_data_is_normalised_by_numbers_of_its_own() -> None:
    other = altered(data={"name": "digits", "mean": [0.3], "std": [0.4]})
    finding = found(INPUTS, other)
    assert finding.verdict is PASS
    assert finding.measured == "mean 0.3, std 0.4 on digits"
    assert found(dataclasses.replace(INPUTS, data=None), other).verdict is FAIL


def test_data_without_a_name_is_not_other_data() -> None:
    unnamed = altered(data={"name": None, "mean": [0.3], "std": [0.4]})
    assert found(INPUTS, unnamed).verdict is not PASS


@pytest.mark.parametrize("key", ["mean", "std"])
def test_normalisation_that_is_not_in_the_record_cannot_be_told(key: str) -> None:
    assert found(INPUTS, without("data", key)).verdict is CANNOT_TELL
    broken = altered(data={key: own_record().data[key] * 2})  # not as many means as deviations
    assert found(INPUTS, broken).verdict is not PASS


def test_data_set_by_name() -> None:
    assert found(DataSet("mnist"), own_record()).ok
    finding = found(DataSet("mnist"), altered(data={"name": "digits"}))
    assert (finding.verdict, finding.measured) == (FAIL, "digits")
    assert "is on digits" in why(finding)
    assert found(DataSet("mnist"), without("data", "name")).verdict is CANNOT_TELL


def test_data_set_by_checksum() -> None:
    parts = {part: own_record().data[part] for part in ("train", "test")}
    rule = DataSet(
        "mnist",
        train_checksum=parts["train"]["checksum"],
        test_checksum=parts["test"]["checksum"],
    )
    assert found(rule, own_record()).ok
    for part in ("train", "test"):
        changed = altered(data={part: {**parts[part], "checksum": "0ther"}})
        finding = found(rule, changed)
        assert finding.verdict is FAIL
        assert f"the checksum of its {part} images is 0ther" in why(finding)
        assert found(rule, own_record(), changed).verdict is FAIL
        assert found(DataSet("mnist"), changed).ok
        assert found(rule, without("data", part)).verdict is CANNOT_TELL
        unknown = altered(data={part: {"samples": 10}})
        assert found(rule, unknown).verdict is not PASS


# The final accuracy -------------------------------------------------------------------------------


def test_final_accuracy_is_judged_by_the_number_of_errors() -> None:
    finding = found(GOAL, own_record())
    assert (finding.verdict, finding.measured) == (PASS, "99.46 %")
    at_the_limit, below = found(GOAL, with_errors(60)), found(GOAL, with_errors(61))
    assert (at_the_limit.verdict, at_the_limit.measured, at_the_limit.margin) == (
        *(PASS, "99.4 %"),
        0,
    )
    assert (below.verdict, below.measured) == (FAIL, "99.39 %")
    assert below.margin == pytest.approx(-0.01)
    rounded = altered(result={"test_errors": 61, "test_accuracy": 99.4})
    assert found(GOAL, rounded).verdict is FAIL


@given(errors=st.integers(0, 9_900))
def test_a_limit_in_hundredths_is_met_exactly(errors: int) -> None:
    rule = Accuracy(at_least=float(f"{(10_000 - errors) // 100}.{(10_000 - errors) % 100:02}"))
    assert found(rule, with_errors(errors)).margin == 0
    assert found(rule, with_errors(errors + 1)).verdict is FAIL


def test_accuracy_without_the_number_of_errors() -> None:
    bare = altered(result={"test_errors": None})
    assert found(GOAL, bare).measured == "99.46 %"
    nothing = dataclasses.replace(own_record(), result={"seconds": 1.0})
    assert "not read after the last epoch" in why(found(GOAL, nothing))
    assert found(GOAL, nothing).verdict is CANNOT_TELL


def test_accuracy_of_a_run_that_is_not_finished_cannot_be_told() -> None:
    for record in (interrupted_after(12), altered(status="interrupted")):
        finding = found(GOAL, record)
        assert finding.verdict is CANNOT_TELL
        assert "not finished" in why(finding)


def test_accuracy_on_other_data_cannot_be_told() -> None:
    other = altered(data={"name": "digits"})
    finding = found(GOAL, other)
    assert finding.verdict is CANNOT_TELL
    assert "on digits, not on mnist" in why(finding)
    assert found(Accuracy(at_least=99.4), other).verdict is PASS
    assert found(GOAL, without("data", "name")).verdict is CANNOT_TELL


def test_a_held_out_run_has_no_test_accuracy() -> None:
    result = {"validation_accuracy": 99.5, "validation_errors": 25}
    held_out = dataclasses.replace(altered(data={"held_out": HELD_OUT}), result=result)
    assert found(GOAL, held_out).verdict is CANNOT_TELL
    finding = found(Accuracy(at_least=99.5, of="validation"), held_out)
    assert (finding.verdict, finding.margin) == (PASS, 0)
    assert found(Accuracy(at_least=99.51, of="validation"), held_out).verdict is FAIL
    assert found(Accuracy(at_least=1, of="validation"), own_record()).verdict is CANNOT_TELL


def test_accuracy_of_several_seeds() -> None:
    runs = [with_errors(errors, seed) for seed, errors in enumerate([50, 60, 70])]
    finding = found(GOAL, *runs)
    assert (finding.verdict, finding.measured) == (FAIL, "99.5 %, 99.4 %, 99.3 %")
    assert finding.evidence == ("seed 0: 99.5 %", "seed 1: 99.4 %", "seed 2: 99.3 %")
    assert found(GOAL, *runs[:2]).verdict is PASS
    assert found(GOAL, *runs[:2], interrupted_after(3)).verdict is not PASS
    mean = Accuracy(at_least=99.4, data="mnist", over_seeds="mean")
    assert found(mean, *runs).verdict is PASS
    assert found(mean, *runs[1:]).verdict is FAIL


@settings(max_examples=60)
@given(errors=st.lists(st.integers(0, 60), min_size=1, max_size=9))
@example(errors=[3, 1, 0])
@example(errors=[5, 8, 60, 0])
def test_a_mean_at_the_limit_is_within_it(errors: list[int]) -> None:
    """Errors in pairs around 60, so that their mean is 60 exactly."""
    both = [error for one in errors for error in (60 - one, 60 + one)] + [60]
    runs = [with_errors(error, seed) for seed, error in enumerate(both)]
    rule = Accuracy(at_least=99.4, over_seeds="mean")
    assert found(rule, *runs).verdict is PASS
    assert found(rule, *runs[:-1], with_errors(61, 99)).verdict is FAIL


# The curve ----------------------------------------------------------------------------------------


def test_best_accuracy_where_every_epoch_was_read() -> None:
    run = with_curve([98.0, 99.5, 99.3, 99.5, 99.4])
    finding = found(BestAccuracy(at_least=99.5), run)
    assert (finding.verdict, finding.measured, finding.margin) == (PASS, "99.5 %", 0)
    assert finding.evidence == ("epoch 2, chosen on the test images: optimistic",)
    assert found(BestAccuracy(at_least=99.51), run).verdict is FAIL
    assert found(BestAccuracy(at_most=99.5), run).verdict is PASS


def test_best_accuracy_where_epochs_were_not_read_is_a_lower_bound() -> None:
    """Only the last was, at 99.46: any other may have been better."""
    wanted = {99.4: PASS, 99.46: PASS, 99.5: CANNOT_TELL}
    for limit, verdict in wanted.items():
        assert found(BestAccuracy(at_least=limit), own_record()).verdict is verdict
    assert found(BestAccuracy(at_most=99.4), own_record()).verdict is FAIL
    assert found(BestAccuracy(at_most=99.46), own_record()).verdict is CANNOT_TELL
    finding = found(BestAccuracy(at_least=99.4), own_record())
    assert finding.measured == "at least 99.46 %"
    assert finding.evidence == ("epoch 19, the others were not read",)


def test_best_accuracy_that_nobody_read_cannot_be_told() -> None:
    nothing = dataclasses.replace(own_record(), result={})
    assert "were not read" in why(found(BestAccuracy(at_least=1), nothing))
    assert found(BestAccuracy(at_least=1), nothing).verdict is CANNOT_TELL
    curve = with_curve([99.5] * 3, status="interrupted")
    assert found(BestAccuracy(at_least=99), curve).verdict is CANNOT_TELL


def test_the_curve_of_a_held_out_run_is_of_its_held_out_images() -> None:
    run = with_curve([99.0, 99.6, 99.5], data={"held_out": HELD_OUT})
    run = dataclasses.replace(run, result={"validation_errors": 25})
    assert found(BestAccuracy(exactly=99.6, of="validation"), run).verdict is PASS
    assert "optimistic" not in found(BestAccuracy(at_least=1, of="validation"), run).evidence[0]
    assert found(BestAccuracy(at_least=1, of="test"), run).verdict is CANNOT_TELL
    assert found(LastEpochs(2, at_least=99.5, of="validation"), run).verdict is PASS
    assert found(LastEpochs(1, at_least=1, of="test"), run).verdict is CANNOT_TELL


def test_last_epochs_where_all_were_read() -> None:
    run = with_curve([10.0, 99.4, 99.5, 99.4])
    finding = found(LastEpochs(3, at_least=99.4), run)
    assert (finding.verdict, finding.margin) == (PASS, 0)
    assert finding.measured == "99.4 %, 99.5 %, 99.4 %"
    assert found(LastEpochs(4, at_least=99.4), run).verdict is FAIL
    assert found(LastEpochs(3, at_least=99.41), run).verdict is FAIL


def test_a_mean_that_was_rounded_where_it_was_worked_out_is_no_miss() -> None:
    assert found(LastEpochs(1, at_least=99.4), with_curve([99.39999999999999])).ok
    assert found(LastEpochs(1, at_least=99.4), with_curve([99.39999])).verdict is FAIL


def test_one_of_the_last_epochs_below_is_enough_to_fail() -> None:
    run = with_curve([None, 99.3, None, None])
    finding = found(LastEpochs(3, at_least=99.4), run)
    assert finding.verdict is FAIL
    assert "99.3 %" in finding.measured
    assert found(LastEpochs(2, at_least=99.4), run).verdict is CANNOT_TELL


def test_last_epochs_that_were_not_read_cannot_be_told() -> None:
    finding = found(LastEpochs(3, at_least=99.4), own_record())
    assert finding.verdict is CANNOT_TELL
    assert "2 of these epochs were not read on the test images" in why(finding)
    assert found(LastEpochs(1, at_least=99.4), own_record()).verdict is PASS
    assert found(LastEpochs(1, at_least=99.47), own_record()).verdict is FAIL


def test_more_last_epochs_than_ran_are_not_passed() -> None:
    finding = found(LastEpochs(5, at_least=90), with_curve([99.5] * 4))
    assert finding.verdict is not PASS
    assert "only 4 epochs ran" in why(finding)


@given(
    curve=st.lists(st.sampled_from([None, 99.3, 99.4, 99.5]), min_size=1, max_size=8),
    last=st.integers(1, 8),
)
def test_last_epochs_against_the_values_one_by_one(curve: list[float | None], last: int) -> None:
    run = with_curve(curve)
    read = [*curve[:-1], 99.46 if curve[-1] is None else curve[-1]][-last:]
    verdict = found(LastEpochs(last, at_least=99.4), run).verdict
    if any(value is not None and value < 99.4 for value in read):
        assert verdict is FAIL
    elif last > len(curve):
        assert verdict is CANNOT_TELL
    else:
        assert verdict is (CANNOT_TELL if None in read else PASS)


# Seeds --------------------------------------------------------------------------------------------


def seeds(*numbers: int) -> list[RunRecord]:
    return [with_errors(50, seed) for seed in numbers]


def test_seeds() -> None:
    finding = found(Seeds(at_least=3), *seeds(2, 0, 1))
    assert (finding.verdict, finding.measured, finding.evidence) == (PASS, "3", ("seeds 0, 1, 2",))
    assert found(Seeds(at_least=3, from_zero=True), *seeds(2, 0, 1)).ok
    assert found(Seeds(at_least=3), *seeds(0, 1)).verdict is FAIL


def test_a_seed_counts_once_and_only_if_its_run_is_finished() -> None:
    assert found(Seeds(exactly=2), *seeds(0, 1, 1, 0)).ok
    cut = altered(seed=2, config={"seed": 2}, status="interrupted")
    assert found(Seeds(exactly=2), *seeds(0, 1), cut).ok
    assert found(Seeds(at_least=1), cut).verdict is FAIL


def test_a_seed_that_was_left_out_is_named() -> None:
    rule = Seeds(at_least=3, from_zero=True)
    finding = found(rule, *seeds(0, 1, 3, 5))
    assert finding.verdict is FAIL
    assert finding.evidence == ("left out: 2, 4",)
    assert found(rule, *seeds(1, 2, 3)).verdict is FAIL
    assert found(Seeds(at_least=3), *seeds(1, 2, 3)).verdict is PASS


def test_what_is_left_out_before_a_large_seed_is_told_in_short() -> None:
    finding = found(Seeds(at_least=1, from_zero=True), *seeds(100_000))
    assert finding.verdict is FAIL
    assert len(why(finding)) < 1_000


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"learning_rate": 0.1}},
        {"config": {"epochs": 20}},
        {"recipe": "another"},
        {"data": {"checksum": "0ther"}},
        {"data": {"augmentation": {"rotation": 20.0, "shift": 0.0, "scale": 0.0}}},
        {"data": {"mean": [0.5]}},
        {"data": {"held_out": HELD_OUT}},
    ],
    ids=["rate", "epochs", "recipe", "images", "augmentation", "inputs", "held out"],
)
def test_runs_that_differ_in_more_than_their_seed_are_not_counted_together(
    other: dict[str, Any],
) -> None:
    finding = found(Seeds(at_least=2), own_record(), altered(with_errors(50, 1), **other))
    assert finding.verdict is CANNOT_TELL
    assert "differ in more than their seed" in why(finding)


# Test images --------------------------------------------------------------------------------------

AT_THE_END = {"epoch": 19, "purpose": "after the last epoch"}
EVERY = [{"epoch": epoch, "purpose": "after every epoch"} for epoch in range(1, 20)]


def test_test_images_read_once_at_the_end_or_never() -> None:
    finding = found(TestUnseen(), own_record())
    assert (finding.verdict, finding.measured) == (PASS, "read 1 time")
    finding = found(TestUnseen(), altered(test_readings=[]))
    assert (finding.verdict, finding.measured) == (PASS, "read 0 times")


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        ([*EVERY, AT_THE_END], "read after epoch 1, 2, 3, 4, 5 and more"),
        (EVERY, "after every epoch"),
        ([AT_THE_END, AT_THE_END], "read 2 times"),
        ([{**AT_THE_END, "epoch": 7}, AT_THE_END], "read after epoch 7"),
        ([{**AT_THE_END, "purpose": "to choose a seed"}], "to choose a seed"),
        ([{"epoch": 19}], "for another purpose"),
        ([{"purpose": "after the last epoch"}], "read after epoch"),
    ],
)
def test_test_images_that_were_read_otherwise(readings: list[dict[str, Any]], reason: str) -> None:
    finding = found(TestUnseen(), altered(test_readings=readings))
    assert finding.verdict is FAIL
    assert reason in why(finding)
    assert found(TestUnseen(), altered(seed=1), altered(test_readings=readings)).verdict is FAIL


def test_test_images_that_were_trained_on() -> None:
    finding = found(TestUnseen(), altered(data={"test": own_record().data["train"]}))
    assert finding.verdict is FAIL
    assert "the test images are the training images" in why(finding)


def test_sets_without_a_checksum_cannot_be_told_apart() -> None:
    bare = altered(data={"train": {"samples": 60_000}, "test": {"samples": 10_000}})
    assert found(TestUnseen(), bare).verdict is CANNOT_TELL


def test_what_was_read_early_is_a_failure_whatever_else_is_not_known() -> None:
    run = altered(without("data", "test"), test_readings=EVERY)
    assert found(TestUnseen(), run).verdict is FAIL
    assert found(TestUnseen(), without("data", "test")).verdict is CANNOT_TELL


# The record and the network -----------------------------------------------------------------------


def test_the_record_of_the_package_passes_every_rule() -> None:
    for require_run in (False, True):
        report = check(
            network(), constraints="mnist-12k", run=own_record(), require_run=require_run
        )
        assert report.ok
        assert all(finding.judged and finding.ok for finding in report.findings)
        assert report.runs == ("mnist-12k seed 0",)
        assert len(report.findings) == len(get_constraints("mnist-12k"))


def test_without_a_record_rules_on_a_run_are_listed_and_do_not_count() -> None:
    report = check(network(), constraints="mnist-12k")
    assert report.ok is True
    on_a_run = [finding for finding in report.findings if finding.rule.of_run]
    assert len(on_a_run) == 6
    for finding in report.findings:
        assert finding.judged is not finding.rule.of_run
    assert {finding.verdict for finding in on_a_run} == {CANNOT_TELL}
    assert report.unclear == ()
    assert "6 on a run, not judged" in report.summary()
    json.loads(report.to_json())


def test_with_require_run_they_cannot_be_told() -> None:
    report = check(network(), constraints="mnist-12k", require_run=True)
    assert report.ok is None
    assert len(report.unclear) == 6
    assert all(finding.judged for finding in report.findings)


def test_a_rule_in_part_on_a_run_counts_where_the_rest_decides() -> None:
    on_a_run = Accuracy(at_least=99.4)
    kept, broken = Parameters(at_most=12_000), Parameters(at_most=11_999)
    undecided: tuple[Rule, ...] = (kept & on_a_run, broken | on_a_run, ~on_a_run)
    decided: dict[Rule, Verdict] = {
        broken & on_a_run: FAIL,
        kept | on_a_run: PASS,
        ~(kept | on_a_run): FAIL,
    }
    for rule in undecided:
        finding = check(network(), constraints=rule).findings[0]
        assert (finding.verdict, finding.judged) == (CANNOT_TELL, False)
        assert check(network(), constraints=rule, require_run=True).ok is None
    for rule, verdict in decided.items():
        finding = check(network(), constraints=rule).findings[0]
        assert (finding.verdict, finding.judged) == (verdict, True)
    assert check(network(), constraints=kept & on_a_run, run=own_record()).ok


@pytest.mark.parametrize("others", [0, 1])
def test_the_record_of_another_network_is_an_error(others: int) -> None:
    runs = [own_record()] * others + [altered(seed=3, parameters=12_734, model="another")]
    with pytest.raises(InvalidInputError, match=r"another \(seed 3\).*12,734.*12,000"):
        check(network(), constraints=GOAL, run=runs)
    tiny = nn.Sequential(nn.Conv2d(1, 10, 3), nn.Flatten(1))
    with pytest.raises(InvalidInputError, match=r"12,000 parameters, and this one has 100"):
        check(tiny, SHAPE, GOAL, run=own_record())


@pytest.mark.parametrize("run", ["runs/mnist-12k", {"seed": 0}, [own_record, None], 5])
def test_what_is_no_record_is_an_error(run: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"run=.*must be a RunRecord"):
        check(network(), constraints=GOAL, run=run)


def test_judging_leaves_the_record_as_it_was() -> None:
    record = copy.deepcopy(own_record())
    check(network(), constraints="mnist-12k", run=[record, record])
    assert record == own_record()


def kept_records() -> list[Path]:
    return sorted(RUNS.glob("*.json"))


@pytest.mark.parametrize("file", kept_records(), ids=lambda file: str(file.stem))
def test_records_of_the_benchmarks(file: Path) -> None:
    record = RunRecord.load(file)
    errors = record.result["test_errors"]
    rules = [GOAL, Epochs(exactly=19), BatchSize(exactly=128), TestUnseen(), DataSet("mnist")]
    more = [Augmentation(rotation=5), INPUTS, LastEpochs(3, at_least=99.4, name="last")]
    best = BestAccuracy(at_least=99.4, name="best")
    report = check(models.create_model(record.model), SHAPE, [*rules, *more, best], run=record)
    first, *others, last, best_found = report.findings
    assert first.verdict is (PASS if errors <= 60 else FAIL)
    assert first.measured == f"{(10_000 - errors) / 100:.10g} %"
    assert {finding.verdict for finding in others} == {PASS}
    # Read only at the end: the last tells against all three, but not for them.
    assert last.verdict is (CANNOT_TELL if errors <= 60 else FAIL)
    assert best_found.verdict is (PASS if errors <= 60 else CANNOT_TELL)


def test_the_five_seeds_of_the_benchmarks() -> None:
    records = [RunRecord.load(file) for file in RUNS.glob("mnist-12k-seed-?.json")]
    if not records:
        pytest.skip("the records of the benchmarks are not here")
    rules = [Seeds(exactly=5, from_zero=True), GOAL, Accuracy(at_least=99.48, over_seeds="mean")]
    assert check(network(), constraints=rules, run=records).ok
    # (46 + 48 + 47 + 55 + 54) / 5 = 50 errors
    assert found(Accuracy(exactly=99.5, over_seeds="mean"), *records).ok
    assert found(Accuracy(at_least=99.46), *records).verdict is FAIL


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("digits") / "run"
    return recipes.run("mnist-12k", 0, data_name="digits", epochs=1, out=folder, progress=False)


def test_a_short_run_on_other_data(digits_run: RunRecord) -> None:
    report = check(models.mnist_12k(), SHAPE, "mnist-12k", run=digits_run)
    wanted = {"R2": FAIL, "R11": CANNOT_TELL}
    verdicts = {finding.rule.name: finding.verdict for finding in report.findings}
    assert verdicts == {name: wanted.get(name, PASS) for name in verdicts}
    by_name = {finding.rule.name: finding for finding in report.findings}
    assert (by_name["R2"].measured, by_name["R2"].margin) == ("1", -18)
    assert by_name["R11"].evidence == ("the run is on digits, not on mnist",)
    assert by_name["R9 inputs"].measured.endswith("on digits")
    assert report.ok is False


def test_the_number_of_errors_of_a_real_run_is_its_accuracy(digits_run: RunRecord) -> None:
    samples = digits_run.data["test"]["samples"]
    wanted = 100 * (samples - digits_run.result["test_errors"]) / samples
    assert found(Accuracy(exactly=wanted), digits_run).ok
    assert found(TestUnseen(), digits_run).ok
    assert found(BestAccuracy(exactly=wanted), digits_run).ok


EVERY_RULE: list[Rule] = [
    Epochs(exactly=19),
    BatchSize(exactly=128),
    Augmentation(rotation=5),
    INPUTS,
    DataSet("mnist", train_checksum="71d3", test_checksum="4718"),
    GOAL,
    Accuracy(at_least=99, over_seeds="mean", of="validation"),
    BestAccuracy(at_least=99),
    LastEpochs(3, at_least=99),
    Seeds(at_least=1, from_zero=True),
    TestUnseen(),
]


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.kind)
def test_a_record_that_says_little_is_never_an_error_and_never_the_better(rule: Rule) -> None:
    """Take away each entry, by leaving it out and by None: no rule raises, and none turns pass."""
    before = found(rule, own_record()).verdict
    for part in ("config", "data", "result"):
        for key in getattr(own_record(), part):
            emptied = {**getattr(own_record(), part), key: None}
            for poorer in (without(part, key), with_part(part, emptied)):
                after = found(rule, poorer).verdict
                assert after is not PASS or before is PASS, (part, key)
    for part in ("config", "data", "result", "test_readings", "history"):
        empty: Any = {} if part in ("config", "data", "result") else ()
        found(rule, with_part(part, empty))


def test_numbers_of_other_kinds_in_a_record() -> None:
    for accuracy in (np.float64(99.5), np.float32(99.5)):
        run = altered(result={"test_accuracy": accuracy, "test_errors": None})
        assert found(Accuracy(at_least=99.0), run).verdict is PASS
    for huge in (10**400, float("nan")):
        run = altered(result={"test_accuracy": huge, "test_errors": None})
        assert found(Accuracy(at_least=99.0), run).verdict is CANNOT_TELL


def test_a_record_of_another_network_of_equal_size_is_refused() -> None:
    shapes = [list(weight.shape) for weight in network().weights if not weight.buffer]
    mine = altered(weight_shapes=shapes)
    assert check(network(), constraints=Epochs(exactly=19), run=mine).ok is True
    other = altered(weight_shapes=[*shapes[:-2], shapes[-1], shapes[-2]])
    with pytest.raises(InvalidInputError, match="whose weights have other shapes"):
        check(network(), constraints=Epochs(exactly=19), run=other)
