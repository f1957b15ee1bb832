"""Run records: what goes in comes out, and whatever is not what was written is noticed."""

import copy
import hashlib
import json
import math
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_cnn.errors import CheckpointError, OutputError
from constrained_cnn.record import SCHEMA_VERSION, RunRecord, write_atomically

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(), plain, max_size=4)
records = st.builds(
    RunRecord,
    recipe=st.text(),
    model=st.text(),
    seed=st.integers(),
    status=st.sampled_from(["finished", "interrupted"]),
    parameters=st.integers(0),
    epochs=st.integers(0),
    config=mappings,
    data=mappings,
    rerunnable=st.booleans(),
    test_readings=st.lists(mappings, max_size=2),
    result=mappings,
    history=st.lists(mappings, max_size=3),
    environment=mappings,
)

RECORD = RunRecord(
    recipe="mnist",
    model="mnist_12k",
    seed=3,
    status="finished",
    parameters=12_000,
    epochs=2,
    config={"epochs": 2, "optimizer": {"kind": "sgd", "lr": 0.01}, "milestones": (1, 2)},
    data={"name": "mnist", "mean": [0.1307], "augmentation": None},
    test_readings=({"epoch": 2, "purpose": "final"},),
    result={"test_accuracy": 99.42, "test_errors": 58},
    history=({"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}),
    environment={"torch": "2.6.0"},
)


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of the JSON without spaces and with sorted keys, as the format says."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_with_checksum(path: Path, content: dict[str, Any]) -> Path:
    content = {key: value for key, value in content.items() if key != "checksum"}
    path.write_text(json.dumps({**content, "checksum": checksum(content)}))
    return path


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in nested plain data."""
    if not content or not isinstance(content, dict | list):
        return [path]
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return [leaf for key, value in items for leaf in leaves(value, (*path, key))]


# Records


@given(record=records)
def test_record_comes_back_as_it_was(
    record: RunRecord, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "record.json"
    assert record.save(path) == path
    # As text, since NaN does not equal itself.
    assert RunRecord.load(path).to_json() == record.to_json()
    assert RunRecord.load(path.parent).to_json() == record.to_json()


def test_record_is_json_a_person_can_read(tmp_path: Path) -> None:
    content = json.loads(RECORD.save(tmp_path / "record.json").read_text())
    assert content["schema_version"] == SCHEMA_VERSION == 1
    assert content["config"]["milestones"] == [1, 2]
    assert content["history"][1] == {"epoch": 2, "train_loss": 0.25}
    assert content.pop("checksum") == checksum(content)


def test_test_accuracy_is_the_result_or_none() -> None:
    assert RECORD.test_accuracy == 99.42
    bare = RunRecord(
        recipe="", model="", seed=0, status="", parameters=0, epochs=0, config={}, data={}
    )
    assert bare.test_accuracy is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_losses_that_are_no_numbers_survive(loss: float, tmp_path: Path) -> None:
    record = RunRecord(**{**vars(RECORD), "history": ({"epoch": 1, "train_loss": loss},)})
    (row,) = RunRecord.load(record.save(tmp_path / "record.json")).history
    assert row["train_loss"] == pytest.approx(loss, nan_ok=True)


@given(data=st.data())
def test_an_edit_of_any_value_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = RECORD.to_dict()
    *way, last = data.draw(st.sampled_from(leaves(content)))
    edited = copy.deepcopy(content)
    parent = edited
    for key in way:
        parent = parent[key]
    old = parent[last]
    if data.draw(st.booleans(), label="remove"):
        del parent[last]
    else:
        parent[last] = data.draw(scalars.filter(lambda new: json.dumps(new) != json.dumps(old)))
    path = tmp_path_factory.mktemp("run") / "record.json"
    path.write_text(json.dumps(edited))
    with pytest.raises(CheckpointError, match="record"):
        RunRecord.load(path)


def test_an_added_value_is_noticed(tmp_path: Path) -> None:
    content = RECORD.to_dict()
    content["result"]["note"] = "better than it was"
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        RunRecord.load(path)


def test_spaces_and_order_of_keys_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(dict(reversed(RECORD.to_dict().items())), indent=4))
    assert RunRecord.load(path).to_dict() == RECORD.to_dict()


def test_truncation_anywhere_is_noticed(tmp_path: Path) -> None:
    whole = RECORD.to_json().rstrip().encode()
    path = tmp_path / "record.json"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is not a readable run record"):
            RunRecord.load(path)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, None, "1", [SCHEMA_VERSION]])
def test_another_schema_version_is_refused(version: Any, tmp_path: Path) -> None:
    path = write_with_checksum(
        tmp_path / "record.json", {**RECORD.to_dict(), "schema_version": version}
    )
    with pytest.raises(CheckpointError, match="is not a run record of schema version 1"):
        RunRecord.load(path)


def test_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = write_with_checksum(tmp_path / "record.json", {**RECORD.to_dict(), "seeds": 5})
    with pytest.raises(CheckpointError, match="unknown key 'seeds'; did you mean 'seed'"):
        RunRecord.load(path)


def test_missing_key_is_refused_by_name(tmp_path: Path) -> None:
    content = RECORD.to_dict()
    del content["seed"]
    path = write_with_checksum(tmp_path / "record.json", content)
    with pytest.raises(CheckpointError, match="'seed'"):
        RunRecord.load(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"null", b'"text"', b"\xff\xfe", b"{}"])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"record\.json' is not a"):
        RunRecord.load(tmp_path)


def test_missing_record_is_refused_by_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "other.json"):
        with pytest.raises(CheckpointError, match="is not a readable run record"):
            RunRecord.load(path)


class Trap:
    """Makes a folder if it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / "record.json"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CheckpointError, match="is not a readable run record"):
        RunRecord.load(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # the trap would have worked


def test_records_need_no_torch() -> None:
    code = "import sys, constrained_cnn.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# write_atomically


@given(first=st.binary(max_size=100), second=st.binary(max_size=100))
def test_a_file_is_replaced_and_nothing_else_is_left(
    first: bytes, second: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("out")
    path = folder / "new" / "deep" / "file.bin"
    for content in (first, second):
        assert write_atomically(str(path), content) == path
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(),) * 2],
    ids=["disk full", "Ctrl-C"],
)
def test_failure_leaves_the_old_file_and_nothing_else(
    call: str,
    failure: BaseException,
    raised: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")

    def fail(*arguments: Any, **options: Any) -> None:
        raise failure

    expected = raised if isinstance(raised, type) else type(raised)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(expected):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_that_is_no_bytes_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file.txt", "text")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["record.json", "deep/record.json"])
def test_a_place_that_cannot_be_written_says_so(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a regular file")
    target = tmp_path / "file" / below
    with pytest.raises(OutputError) as caught:
        RECORD.save(target)
    message = str(caught.value)
    assert message.startswith(f"cannot write {str(target)!r}: ")
    assert message.endswith("; choose a folder you can write to")


def test_a_folder_in_the_way_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    target.mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        RECORD.save(target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.is_dir()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_file_mode_follows_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        path = write_atomically(tmp_path / "file.txt", b"text")
        assert os.umask(umask) == umask  # and it is left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
