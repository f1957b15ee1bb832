"""``--input`` and ``--batch-axis``: types, names and the place of the batch."""

import json
from pathlib import Path

import pytest

from constrained_cnn.cli import main

Captured = pytest.CaptureFixture[str]

NETS = """
import torch
from torch import nn

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(100, 8), nn.Linear(8, 4)
    def forward(self, ids, mask=None):
        out = self.linear(self.table(ids))
        return out if mask is None else out * mask[..., None]

class Diffusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(10, 4)
    def forward(self, image, step, *, mask):
        return (self.conv(image) + self.time(step)[:, :, None, None]) * mask

class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(16, 8), nn.Linear(8, 8)
    def forward(self, x, pos):
        return x + self.linear(self.table(pos))

class Any(nn.Module):
    def forward(self, *images):
        return sum(images)

def transformer():
    return nn.TransformerEncoderLayer(16, 2, 32)

def conv():
    return nn.Conv2d(3, 4, 3, padding=1)
"""


@pytest.fixture(autouse=True)
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")


CONV = 4 * 27 * 32 * 32
INPUTS = [
    ("Text", ["ids:int64:128"], None, 128 * 32, [[128]]),
    ("Text", ["int32:128"], None, 128 * 32, [[128]]),
    ("Text", ["ids:int64:128", "mask:bool:128"], None, 128 * 32, [[128], [128]]),
    ("Text", ["int64:128", "mask:128"], None, 128 * 32, [[128], [128]]),
    ("Text", ["mask:128", "ids:int64:128"], None, 128 * 32, [[128], [128]]),
    (
        "Diffusion",
        ["3,32,32", "int64:scalar", "mask:bool:1,32,32"],
        None,
        CONV,
        [[3, 32, 32], [], [1, 32, 32]],
    ),
    ("Diffusion", ["image:3x32x32", "step:int64:scalar", "mask:1,1,1"], None, CONV, None),
    ("transformer", ["10,16"], "1", 23_680, [[10, 16]]),
    ("transformer", ["src:float32:10,16"], "1", 23_680, [[10, 16]]),
    ("Positions", ["16,8", "int64:16"], "0,none", 16 * 64, [[16, 8], [16]]),
    ("Positions", ["pos:int64:16", "x:16,8"], "none,0", 16 * 64, [[16], [16, 8]]),
    ("conv", ["3,32,32"], "None", CONV, [[3, 32, 32]]),
]


@pytest.mark.parametrize(("net", "inputs", "axis", "macs", "shapes"), INPUTS)
def test_what_a_network_is_given(
    net: str,
    inputs: list[str],
    axis: str | None,
    macs: int,
    shapes: list[list[int]] | None,
    capsys: Captured,
) -> None:
    options = [word for text in inputs for word in ("--input", text)]
    options += [] if axis is None else ["--batch-axis", axis]
    assert main(["budget", f"nets.py:{net}", *options, "--json", "--totals"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["macs"] == macs
    if shapes is not None:
        assert content["input_shapes"] == shapes
    assert main(["summary", f"nets.py:{net}", *options]) == 0
    assert "Total params" in capsys.readouterr().out


def test_the_other_commands_take_them_too(capsys: Captured) -> None:
    text = ["--input", "ids:int64:16", "--input", "mask:bool:16"]
    assert main(["diff", "nets.py:Text", "nets.py:Text", *text, "--json"]) == 0
    totals = {row["name"]: row for row in json.loads(capsys.readouterr().out)["totals"]}
    assert totals["MACs"]["new"] == 16 * 32
    Path("rules.toml").write_text('name = "mine"\n[[rules]]\nrule = "macs"\nat_most = 23_680\n')
    arguments = ["check", "nets.py:transformer", "--input", "10,16", "--spec", "rules.toml"]
    assert main([*arguments, "--batch-axis", "1"]) == 0
    assert "23,680" in capsys.readouterr().out
    assert main(["rf", "nets.py:conv", "--input", "3,9,9", "--batch-axis", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["axes"][0]["size"] == 3
    assert (
        main(["rf", "nets.py:conv", "--input", "input:3,9,9", "--batch-axis", "0", "--verify"]) == 0
    )
    assert "proved" in capsys.readouterr().out


REFUSED = [
    ("budget", "transformer", ["10,16"], None, "give batch_axis=1"),
    ("budget", "Positions", ["16,8", "int64:16"], "0,1,0", "names 3 axes for 2 inputs"),
    ("budget", "Positions", ["16,8", "int64:16"], "5", "must be an integer from 0 to 2"),
    ("budget", "Text", ["mask:bool:3", "int64:3"], None, "give them first, in the order"),
    ("budget", "Text", ["int64:3", "ids:int64:3"], None, "two are for the argument 'ids'"),
    ("budget", "Text", ["int64:3", "maks:bool:3"], None, "unexpected keyword argument 'maks'"),
    ("budget", "Any", ["3", "image:3"], None, "input: some have a name"),
    ("rf", "transformer", ["10,16"], "1", "no image axis after the channels with batch_axis=1"),
    ("rf --verify", "Text", ["int64:3"], None, "verify: proves networks whose input is real"),
    ("rf --verify", "conv", ["3,9,9"], "none", "the batch at axis 0"),
]


@pytest.mark.parametrize(("command", "net", "inputs", "axis", "message"), REFUSED)
def test_what_cannot_be(
    command: str, net: str, inputs: list[str], axis: str | None, message: str, capsys: Captured
) -> None:
    options = [word for text in inputs for word in ("--input", text)]
    options += [] if axis is None else ["--batch-axis", axis]
    name, *flags = command.split()
    assert main([name, f"nets.py:{net}", *options, *flags]) == 2
    assert message in capsys.readouterr().err


WORDS = [
    ("--input", "ids:int46:128", "'int46' is no type; did you mean 'int64'?"),
    ("--input", "a:b:c:3", "must be SHAPE, TYPE:SHAPE or NAME:TYPE:SHAPE"),
    ("--input", ":3", "must be SHAPE, TYPE:SHAPE or NAME:TYPE:SHAPE"),
    ("--input", "my ids:int64:3", "'my ids' is no name of an argument"),
    ("--input", "ids:int64:", "must be a shape such as 1,28,28"),
    ("--input", "ids:int64:0", "must be a shape such as 1,28,28"),
    ("--batch-axis", "one", "must be an index or none"),
    ("--batch-axis=-1", "", "must be an index or none"),
    ("--batch-axis", "0,", "must be an index or none"),
]


@pytest.mark.parametrize(("option", "text", "message"), WORDS)
def test_words_that_name_nothing(option: str, text: str, message: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["budget", "nets.py:conv", "--input", "3,9,9", option, *filter(None, [text])])
    assert message in capsys.readouterr().err
