"""History: its rows survive every file, and its tables say what the rows say."""

import csv
import dataclasses
import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_cnn.errors import CheckpointError, InvalidInputError, OutputError
from constrained_cnn.training import EpochRow, History

numbers = st.floats(allow_nan=False, allow_infinity=False)
percents = st.none() | st.floats(0, 100)


@st.composite
def histories(draw: st.DrawFn) -> History:
    count = draw(st.integers(0, 5))
    return History(
        tuple(
            EpochRow(
                epoch=epoch,
                train_loss=draw(numbers),
                train_accuracy=draw(percents),
                validation_loss=draw(st.none() | numbers),
                validation_accuracy=draw(percents),
                learning_rate=draw(st.floats(0, 10)),
                seconds=draw(st.floats(0, 1e6)),
            )
            for epoch in range(1, count + 1)
        )
    )


def row(epoch: int) -> EpochRow:
    return EpochRow(
        epoch=epoch,
        train_loss=0.5,
        train_accuracy=87.5,
        validation_loss=0.25 if epoch > 1 else None,
        validation_accuracy=90.125 if epoch > 1 else None,
        learning_rate=0.05,
        seconds=1.25,
    )


TWO = History((row(1), row(2)), "interrupted")


@given(history=histories())
def test_json_lines_give_it_back(
    history: History, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = history.save(tmp_path_factory.mktemp("history") / "history.jsonl")
    assert History.load(file) == history
    assert len(file.read_text().splitlines()) == len(history)


@given(history=histories())
def test_csv_holds_every_figure(history: History) -> None:
    found = list(csv.DictReader(io.StringIO(history.to_csv())))
    assert len(found) == len(history)
    for cells, expected in zip(found, history.to_dicts(), strict=True):
        assert list(cells) == list(expected)
        for name, value in expected.items():
            assert (float(cells[name]) if cells[name] else None) == value


def test_a_loss_that_is_not_finite_survives(tmp_path: Path) -> None:
    values = {**TWO.to_dicts()[1], "validation_loss": math.inf}
    history = History((EpochRow(**values),))
    assert History.load(history.save(tmp_path / "history.jsonl")) == history


def test_it_is_a_sequence_of_rows() -> None:
    assert len(TWO) == 2
    assert [found.epoch for found in TWO] == [1, 2]
    assert TWO[-1] is TWO.rows[1]


def test_as_text() -> None:
    heading, first, second, status = str(TWO).splitlines()
    assert heading.split() == (
        ["epoch", "train", "loss", "train", "acc", "val.", "loss", "val.", "acc", "rate", "seconds"]
    )
    assert first.split() == ["1", "0.5000", "87.50", "%", "-", "-", "0.05", "1.2"]
    assert second.split() == ["2", "0.5000", "87.50", "%", "0.2500", "90.12", "%", "0.05", "1.2"]
    assert status == "interrupted after 2 epochs"
    assert len(heading) == len(first) == len(second)


def test_as_markdown() -> None:
    lines = TWO.to_markdown().splitlines()
    assert lines[0] == "| epoch | train loss | train acc | val. loss | val. acc | rate | seconds |"
    assert lines[1] == "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| 1 | 0.5000 | 87.50 % | - | - | 0.05 | 1.2 |"
    assert len(lines) == 4


def test_readings_of_the_test_set_are_called_so(tmp_path: Path) -> None:
    history = dataclasses.replace(TWO, judged_on="test")
    assert "test loss" in str(history)
    assert "| test loss | test acc |" in history.to_markdown()
    assert history.to_csv().splitlines()[0].count("test_") == 2
    assert history.to_dicts()[1]["test_accuracy"] == TWO[1].validation_accuracy
    loaded = History.load(history.save(tmp_path / "history.jsonl"))
    assert (loaded.rows, loaded.judged_on) == (history.rows, "test")


def test_what_was_not_judged_has_no_columns() -> None:
    assert "val." not in str(History((row(1),)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"epoch": 2, "train_lo', "line 2"),
        ("[1, 2]", "line 2"),
        ('{"epoch": 2}', "line 2.*train_loss"),
        ('{"epoch": 2, "loss": 1}', "line 2.*unknown key 'loss'"),
        (TWO.to_jsonl().splitlines()[0], "line 2: epoch 1 does not follow the one before it"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_a_damaged_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(TWO.to_jsonl().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(CheckpointError, match=reason):
        History.load(file)


def test_files_it_cannot_read_or_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read history"):
        History.load(tmp_path / "missing.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot read history"):
        History.load(tmp_path / "bytes.jsonl")
    with pytest.raises(InvalidInputError, match=r"must be one of '\.jsonl', '\.csv'"):
        TWO.save(tmp_path / "history.txt")
    with pytest.raises(OutputError, match="cannot write"):
        TWO.save(tmp_path / "bytes.jsonl" / "history.csv")
