"""The commands that say what a network costs and sees, called in-process."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import constrained_cnn
from constrained_cnn.cli import main

NET = """
from torch import nn
class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
wide = nn.Sequential(nn.Conv2d(1, 9, 3))
def needs(width): return wide
def nothing(): return 3
def odd():
    import torch
    class Odd(nn.Module):
        def forward(self, x): return torch.fft.fft2(x)
    return Odd()
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.far = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 5, padding=2)
    def forward(self, one, other): return self.conv(one) * self.far(other)
class Talks(nn.Module):
    def __init__(self):
        print("made by hand")
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (3, 5))
    def forward(self, x):
        print("runs by hand")
        return self.conv(x)
class Raises(nn.Module):
    def forward(self, x): raise ValueError("my bug\\nand more")
def factory_raises():
    raise ValueError("my bug\\nand more")
def ends():
    import sys
    sys.exit(7)
class Größe(nn.Module):
    def __init__(self):
        super().__init__()
        self.maß = nn.Conv2d(1, 4, 3)
    def forward(self, x): return self.maß(x)
"""
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_for_tests.py").write_text(NET, encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("name", ["nets_for_tests:Small", "nets_for_tests.py:Small"])
def test_a_budget_of_a_file_or_module(name: str, capsys: Captured) -> None:
    assert main(["budget", name, "--input", "1,28,28", "--json", "--advise"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["parameters"]["total"] == 80 + 16 + 292
    assert content["macs"] == 26 * 26 * 72 + 24 * 24 * 288
    assert content["advice"]["costs"][0]["parameters"] == 10 + 2 + 36


def test_a_budget_for_people(capsys: Captured) -> None:
    assert main(["budget", "nets_for_tests:Small", "--input", "1x28x28", "--advise"]) == 0
    out = capsys.readouterr().out
    assert "Small on 1 x 28 x 28" in out
    assert "388" in out
    assert "One more channel in nets_for_tests:Small" in out
    assert main(["budget", "mnist_12k", "--input", "1,28,28", "--markdown", "--totals"]) == 0
    assert "| parameters | 12,000 |" in capsys.readouterr().out


def test_a_field_and_its_proof(capsys: Captured) -> None:
    assert main(["rf", "nets_for_tests:Small", "--input", "1,28,28", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "3: conv2d: 5 of 28, jump 1, start 0" in out
    assert "proved (nan 4 of 4, gradient 4 of 4, change 4 of 4)" in out
    arguments = ["rf", "nets_for_tests:Small", "--input", "1,28,28", "--layer", "0"]
    assert main([*arguments, "--json", "--verify"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["axes"][0]["size"], content["proved"]) == (3, True)


def test_the_sheet_as_csv(capsys: Captured) -> None:
    assert main(["rf", "mnist_12k_source", "--input", "1,28,28", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    sizes = ["3", "5", "6", "10", "14", "16", "24", "24", "32", "all"]
    assert [row["r"] for row in rows] == sizes
    assert rows[-1]["n_in"] == "3"
    arguments = ["rf", "mnist_12k_source", "--input", "1,28,28", "--layer", "stage_2"]
    assert main([*arguments, "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| stage_2.1.conv: conv2d | 14 |")
    assert main(["rf", "nets_for_tests:Talks", "--input", "1,9,9", "--csv", "--axis", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["conv: conv2d,9,5,0,1,1,5,1,5"]


def test_a_diff(capsys: Captured) -> None:
    arguments = ["diff", "nets_for_tests:wide", "nets_for_tests:Small", "--input", "1,28,28"]
    assert main([*arguments, "--json"]) == 0
    totals = {row["name"]: row for row in json.loads(capsys.readouterr().out)["totals"]}
    assert (totals["parameters"]["old"], totals["parameters"]["new"]) == (90, 388)
    assert (totals["receptive field"]["old"], totals["receptive field"]["new"]) == (3, 5)
    assert main([*arguments, "--markdown"]) == 0
    assert "| parameters | 90 | 388 | +298 | +331.1 % |" in capsys.readouterr().out


def test_a_summary(capsys: Captured) -> None:
    assert main(["summary", "nets_for_tests:Small", "--input", "1,28,28"]) == 0
    assert "Total params: 388" in capsys.readouterr().out


def test_pictures(capsys: Captured) -> None:
    options = ["--plot", "a.png", "--plot-memory", "b.svg"]
    assert main(["budget", "nets_for_tests:Small", "--input", "1,28,28", *options]) == 0
    assert main(["rf", "nets_for_tests:Small", "--input", "1,28,28", "--plot", "c.png"]) == 0
    assert all(Path(name).stat().st_size > 1000 for name in ("a.png", "b.svg", "c.png"))
    assert capsys.readouterr().err.count("Picture: ") == 3


def test_what_nobody_has_described(capsys: Captured) -> None:
    arguments = ["budget", "nets_for_tests:odd", "--input", "1,8,8"]
    assert main(arguments) == 2
    assert "'fft_fft2'" in capsys.readouterr().err
    assert main([*arguments, "--allow-unknown"]) == 2
    assert "incomplete" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["budget", "rf"])
def test_an_error_names_the_way_around_it(command: str, capsys: Captured) -> None:
    arguments = [command, "nets_for_tests:odd", "--input", "1,8,8"]
    assert main(arguments) == 2
    assert "--allow-unknown" in capsys.readouterr().err
    assert main([command, "nets_for_tests:Raises", "--input", "1,8,8"]) == 2
    assert "--allow-unknown" not in capsys.readouterr().err
    assert main([*arguments, "--allow-unknown"]) == 2
    assert "in no rule" not in capsys.readouterr().err


def test_a_field_of_a_network_with_something_unknown(capsys: Captured) -> None:
    arguments = ["rf", "nets_for_tests:half_odd", "--input", "1,8,8", "--layer", "conv"]
    with Path("nets_for_tests.py").open("a", encoding="utf-8") as file:
        file.write("""
class HalfOdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
    def forward(self, x):
        import torch
        return torch.special.bessel_j1(self.conv(x))
half_odd = HalfOdd()
""")
    arguments[1] = "nets_for_tests.py:half_odd"
    assert main([*arguments, "--allow-unknown"]) == 2
    said = capsys.readouterr()
    assert "3 of 8" in said.out
    assert "not known: special_bessel_j1" in said.err


def test_several_inputs(capsys: Captured) -> None:
    inputs = ["--input", "1,8,8", "--input", "1,8,8"]
    for command in ("budget", "rf"):
        assert main([command, "nets_for_tests:Two", *inputs, "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["macs"] == 64 * 4 * (9 + 25)
    assert json.loads(second)["axes"][0]["size"] == 3
    assert main(["rf", "nets_for_tests:Two", *inputs, "--json", "--image", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["axes"][0]["size"] == 5
    assert main(["diff", "nets_for_tests:Two", "nets_for_tests:Two", *inputs]) == 0
    assert main(["summary", "nets_for_tests:Two", *inputs]) == 0
    assert "Total params: 144" in capsys.readouterr().out
    assert main(["rf", "nets_for_tests:Two", *inputs, "--image", "2"]) == 2
    assert main(["rf", "nets_for_tests:Two", *inputs, "--verify"]) == 2
    assert "leave --verify out" in capsys.readouterr().err


def test_two_files_have_their_own_neighbours(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, width in (("old", 4), ("new", 6)):
        Path(folder, "parts").mkdir(parents=True)
        Path(folder, "parts", "__init__.py").write_text("")
        Path(folder, "parts", "later.py").write_text(f"BIAS = {width == 4}")
        Path(folder, "widths.py").write_text(f"WIDTH = {width}")
        Path(folder, "net.py").write_text("""
import os, sys
from torch import nn
from widths import WIDTH
sys.path.insert(0, "/nowhere")
def Net():
    from parts.later import BIAS
    os.chdir("/")
    return nn.Conv2d(1, WIDTH, 3, bias=BIAS)
""")
    path, here, modules = list(sys.path), os.getcwd(), set(sys.modules)
    assert main(["diff", "old/net.py:Net", "new/net.py:Net", "--input", "1,8,8", "--json"]) == 0
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert (totals[0]["old"], totals[0]["new"]) == (4 * 10, 6 * 9)
    assert (sys.path, os.getcwd()) == (path, here)
    assert not {name for name in set(sys.modules) - modules if "widths" in name or "net" in name}


def planted(folder: Path, *names: str) -> Path:
    """Put modules into a folder that write a file where they are run, and return that file."""
    folder.mkdir(exist_ok=True)
    ran = folder / "ran"
    for name in names:
        text = f"open({str(ran)!r}, 'a').write({name!r})\nraise ImportError('planted')\n"
        (folder / f"{name}.py").write_text(text)
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(ran)!r}, 'w')\nraise ImportError('planted')\n")
    return ran


NAMES = ("random", "json", "sympy", "torchinfo", "rich", "numpy", "argparse", "tomllib")


def command(folder: Path, *words: str, module: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder: as it is installed, or as a module."""
    call = "import sys; sys.path.remove(''); from constrained_cnn.cli import main; sys.exit(main())"
    start = ["-m", "constrained_cnn"] if module else ["-c", call]
    return subprocess.run(
        [sys.executable, *start, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(constrained_cnn.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", [False, True])
def test_modules_that_lie_about_are_not_run(tmp_path: Path, module: bool) -> None:
    ran = planted(tmp_path / "here", *NAMES, "opt_einsum")
    for name in ("budget", "summary"):
        done = command(ran.parent, name, "mnist_12k", "--input", "1,28,28", module=module)
        assert done.returncode == 0, done.stderr
        assert "12,000" in done.stdout
    assert not ran.exists()


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("word", ["net.py:Net", "net:Net", "../here/net.py:Net"])
def test_neighbours_are_found_behind_what_is_installed(
    tmp_path: Path, word: str, module: bool
) -> None:
    ran = planted(tmp_path / "here", *NAMES)
    (ran.parent / "neighbour.py").write_text("WIDTH = 7")
    (ran.parent / "net.py").write_text(
        "import random, json, argparse, tomllib, torch\nfrom neighbour import WIDTH\n"
        "def Net(): return torch.nn.Conv2d(1, WIDTH, 1)"
    )
    done = command(ran.parent, "summary", word, "--input", "1,4,4", module=module)
    assert done.returncode == 0, done.stderr
    assert "Total params: 14" in done.stdout
    assert not ran.exists()


def test_what_is_on_the_path(capsys: Captured) -> None:
    Path("folder").mkdir()
    Path("folder", "shows.py").write_text(
        "import json, sys\nfrom torch import nn\n"
        "def net():\n    print(json.dumps(sys.path))\n    return nn.Conv2d(1, 2, 3)"
    )
    Path("shows_too.py").write_text(Path("folder", "shows.py").read_text())
    for word, folder in (("folder/shows.py:net", Path("folder")), ("shows_too:net", Path())):
        assert main(["budget", word, "--input", "1,8,8"]) == 0
        assert json.loads(capsys.readouterr().err) == [*sys.path, str(folder.resolve())]


def test_a_module_behind_an_installed_one_is_named_as_a_file(capsys: Captured) -> None:
    Path("random.py").write_text("from torch import nn\nthe_network = nn.Conv2d(1, 2, 3)")
    assert main(["budget", "random:the_network", "--input", "1,8,8"]) == 2
    assert "so give the file: random.py:the_network" in capsys.readouterr().err
    assert main(["budget", "random.py:the_network", "--input", "1,8,8"]) == 0


def test_what_a_network_prints_is_kept_off_the_result(capsys: Captured) -> None:
    arguments = ["nets_for_tests.py:Talks", "--input", "1,9,9"]
    for command, option in (("budget", "--json"), ("rf", "--json"), ("rf", "--csv")):
        assert main([command, *arguments, option]) == 0
        said = capsys.readouterr()
        assert "made by hand" in said.err
        assert "runs by hand" in said.err
        assert "by hand" not in said.out
    assert main(["summary", *arguments]) == 0
    assert "by hand" not in capsys.readouterr().out


def test_totals_alone_in_json(capsys: Captured) -> None:
    arguments = ["budget", "nets_for_tests:Small", "--input", "1,28,28", "--json"]
    assert main([*arguments, "--totals"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert "layers" not in content
    assert content["parameters"]["total"] == 388


def test_a_field_that_cannot_be_compared_is_said(capsys: Captured) -> None:
    Path("flat.py").write_text("from torch import nn\nnet = nn.Linear(8, 2)")
    arguments = ["diff", "flat.py:net", "nets_for_tests:wide"]
    assert main(["diff", "flat.py:net", "flat.py:net", "--input", "8"]) == 0
    assert "No receptive field of flat.py:net: " in capsys.readouterr().out
    assert main([*arguments, "--input", "1,8,8", "--markdown"]) == 0
    assert "| receptive field | 1 | 3 | +2 |" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
@pytest.mark.parametrize("command", ["budget", "rf", "diff"])
def test_a_narrow_terminal_breaks_no_number(
    command: str, columns: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["mnist_12k", *(["mnist_12k_source"] if command == "diff" else [])]
    assert main([command, *names, "--input", "1,28,28"]) == 0
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= columns for line in said.splitlines())
    wanted = {"budget": "3,774,276", "rf": "7 x 7", "diff": "12,734"}
    assert wanted[command] in said
    assert ("Left out" in said) == (columns < {"budget": 150, "rf": 80, "diff": 120}[command])


def test_streams_that_are_closed_or_know_few_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["budget", "nets_for_tests.py:Größe", "--input", "1,9,9"]
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert main(arguments) == 0
    assert b"ma\\xdf: conv2d" in ascii_only.buffer.getvalue()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main([*arguments, "--plot", "a.png"]) == 0
    assert Path("a.png").exists()
    sys.stdout.close()
    sys.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rf", "mnist_21k", "--input", "1,28,28"], "did you mean 'mnist_12k'"),
        (["rf", "nets_for_tests:Smal", "--input", "1,28,28"], "did you mean 'Small'"),
        (["rf", "nets_for_test:Small", "--input", "1,28,28"], "cannot be imported"),
        (["rf", "nets_for_tests:needs", "--input", "1,28,28"], "without arguments (missing"),
        (["rf", "nets_for_tests:nothing", "--input", "1,28,28"], "gave an object of type int"),
        (
            ["rf", "nets_for_tests.py:factory_raises", "--input", "1,28,28"],
            "factory_raises raised ValueError: my bug (nets_for_tests.py, line 30)\n",
        ),
        (
            ["rf", "nets_for_tests:factory_raises", "--input", "1,28,28"],
            "raised ValueError: my bug (nets_for_tests.py, line 30)",
        ),
        (
            ["budget", "nets_for_tests.py:ends", "--input", "1,28,28"],
            "ends the program: SystemExit: 7 (nets_for_tests.py, line 33)",
        ),
        (["budget", "ends.py:net", "--input", "1,28,28"], "SystemExit: bye (ends.py, line 1)"),
        (["budget", "broken.py:net", "--input", "1,28,28"], "SyntaxError"),
        (["budget", "none.py:net", "--input", "1,28,28"], "there is no file 'none.py'"),
        (["budget", "nets_for_tests.py", "--input", "1,28,28"], "nets_for_tests.py:FACTORY"),
        (["budget", "resnet18", "--input", "3,32,32"], "torchvision.models:resnet18"),
        (["summary", "nets_for_tests:Small", "--input", "3,28,28"], "cannot take an input"),
        (["summary", "nets_for_tests:Small", "--input", "1,2,2"], "cannot take an input"),
        (["summary", "nets_for_tests:Raises", "--input", "1,2,2"], "(1, 2, 2): my bug"),
        (["rf", "mnist_12k", "--input", "1,28,28", "--axis", "1"], "--csv or --markdown"),
        (["rf", "nets_for_tests:NET", "--input", "1,28,28"], "has no 'NET'"),
        (["rf", "nets_for_tests:Small", "--input", "3,28,28"], "cannot take an input"),
        (["rf", "nets_for_tests:Small", "--input", "1,28,28", "--layer", "9"], "no such module"),
        (["budget", "mnist_12k", "--input", "1,28,28", "--plot", "a.jpg"], "must end in .png"),
    ],
)
def test_errors_say_what_is_wrong(arguments: list[str], message: str, capsys: Captured) -> None:
    Path("ends.py").write_text("import sys; sys.exit('bye')")
    Path("broken.py").write_text("def net(:")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rf", "mnist_12k", "--input", "1,28,zero"], "must be a shape such as 1,28,28"),
        (["rf", "mnist_12k", "--input", "1,28,0"], "must be a shape such as 1,28,28"),
        (["rf", "mnist_12k", "--input", "1,10000001,1"], "side of more than 10,000,000"),
        (["rf", "mnist_12k", "--input", f"1,{'9' * 5000},1"], "side of more than 10,000,000"),
        (["rf", "mnist_12k", "--input", "3,1000000,1000000"], "more than 1,000,000,000,000"),
        (["summary", "mnist_12k", "--input", "1,28,28", "--depth", "-1"], "0 or more"),
    ],
)
def test_words_that_are_wrong(arguments: list[str], message: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", ""], "path=''"),
        (["--plot", "a.jpg"], "must end in .png, .svg or .pdf"),
        (["--plot-memory", ".png"], "must end in .png, .svg or .pdf"),
        (["--plot", "folder.png"], "is a folder"),
        (["--plot", "nets_for_tests.py/a.png"], "nothing can be written to"),
        (["--plot", "a.png", "--plot-memory", "./a.png"], "name another file"),
    ],
)
def test_a_picture_with_no_place_is_found_before_the_work(
    options: list[str], message: str, capsys: Captured
) -> None:
    Path("folder.png").mkdir()
    assert main(["budget", "nets_for_tests:factory_raises", "--input", "1,9,9", *options]) == 2
    assert message in capsys.readouterr().err  # and not what the factory raises


@pytest.mark.parametrize("suffix", [".png", ".SVG", ".pdf"])
def test_pictures_that_pass_the_check_are_drawn(suffix: str) -> None:
    picture = Path("new", "folder", f"a{suffix}")
    assert main(["rf", "mnist_12k", "--input", "1,28,28", "--plot", str(picture)]) == 0
    assert picture.exists()
