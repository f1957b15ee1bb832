"""Names that hold control characters or marks are shown by every output, and obeyed by none.

What is shown is compared with the readers of others: an HTML parser, a CommonMark parser, rich.
"""

import csv
import functools
import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from constrained_cnn import models
from constrained_cnn.budget import Advice, Budget, Diff, advise, diff, measure_budget
from constrained_cnn.cli import main
from constrained_cnn.constraints import Constraints, Count, Parameters, Report, check
from constrained_cnn.errors import ConstraintError, TracingError, escape_controls
from constrained_cnn.graph import Graph
from constrained_cnn.proof import FieldProof, effective_receptive_field, verify_receptive_field
from constrained_cnn.pytest_plugin._baseline import Entry, problem_of
from constrained_cnn.receptive_field import ReceptiveField, measure_receptive_field
from constrained_cnn.sizing import Fit, Fits
from constrained_cnn.study import Sample
from constrained_cnn.table import Table, escape_markdown
from constrained_cnn.tracing import trace

Captured = pytest.CaptureFixture[str]

HOSTILE = [
    *(
        "[red]",
        "[/x]",
        "[link=http://a]b[/link]",
        "[CLS]",
        ":smile:",
        "[a](b)",
        "[a]: b",
        "![a](b)",
    ),
    *("a|b", "\\|", "a\\", "`x`", "```", "<script>alert(1)</script>", "<b", "&lt;", "&#7;", "<!--"),
    *("a\nb", "a\r\nb", "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\x00", "\x7f\b", "a\tb", "\x85"),
    *(
        "\u202etxt.exe",
        "\u2066a\u2069",
        "\u2028",
        "\u200f",
        "*a*",
        "**a**",
        "_a_",
        "__init__",
        "a_b",
    ),
    *("# a", "#", "> a", "- a", "+ a", "1. a", "1) a", "---", "===", "~~a~~", "$a$", "max_pool2d"),
    *(":---", "==", "www.a.b", "größe", "层", "é\u0301", "😀", "<", ">", "=", "-", "{a}`b`"),
]
# Any text but halves of a pair, which no file can hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
names = st.one_of(
    st.sampled_from(HOSTILE),
    texts,
    st.lists(st.sampled_from([*"[]()|`<>&*_~#\\/=\n\x1b ", "a"]), min_size=1, max_size=5).map(
        "".join
    ),
).filter(lambda name: name.strip() != "")

_TURN_WRITING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def acts(character: str) -> bool:
    """Whether a character is one that a terminal obeys, or that hides what others say."""
    return unicodedata.category(character) in {"Cc", "Zl", "Zp"} or character in _TURN_WRITING


def as_shown(name: str) -> str:
    """Return a name as it is to be read: what acts is written as Python's repr writes it."""
    return "".join(repr(sign)[1:-1] if acts(sign) else sign for sign in name)


def squeezed(text: str) -> str:
    """Return a text with single spaces: what HTML and Markdown do with spaces is no loss."""
    return " ".join(text.split())


def assert_obeys_nothing(text: str) -> None:
    assert [sign for sign in text if acts(sign) and sign != "\n"] == []


def rendered(thing: Any) -> str:
    console = Console(file=io.StringIO(), width=5_000)
    console.print(thing)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


class Page(HTMLParser):
    """The tags of a page, and the text of each element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def read_markdown(text: str) -> tuple[list[str], list[str]]:
    """Return the kinds of blocks of a document as GitHub reads it, and the text of each line."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    blocks, lines = [], []
    for token in parser.parse(text):
        blocks.append(token.type)
        for child in token.children or []:
            assert child.type in {"text", "strong_open", "strong_close", "softbreak"}, child
        parts = [
            " " if child.type == "softbreak" else child.content for child in token.children or []
        ]
        lines += ["".join(parts)] if parts else []
    return blocks, lines


def assert_shows(make: Callable[[str], Any], name: str) -> None:
    """Assert that whatever a thing prints shows a name, in as many lines as a plain one."""
    plain, hostile, shown = make("plain"), make(name), squeezed(as_shown(name))
    for face in (str, rendered):
        assert_obeys_nothing(face(hostile))
        said = squeezed(face(hostile))
        assert (
            shown in said or repr(name)[1:-1] in said
        )  # as rich shows what has no face of its own
        assert face(hostile).count("\n") == face(plain).count("\n")
    assert_obeys_nothing(repr(hostile))
    if hasattr(hostile, "_repr_html_"):
        assert_obeys_nothing(hostile._repr_html_())
        page = Page(hostile._repr_html_())
        assert page.tags == Page(plain._repr_html_()).tags
        assert any(shown in squeezed(said) for said in page.texts)
    if hasattr(hostile, "to_markdown"):
        assert_obeys_nothing(hostile.to_markdown())
        assert not re.search(r"<[a-zA-Z/!?]", hostile.to_markdown())
        blocks, lines = read_markdown(hostile.to_markdown())
        assert blocks == read_markdown(plain.to_markdown())[0]
        assert any(shown in squeezed(said) for said in lines)
    if hasattr(hostile, "to_csv"):
        assert_obeys_nothing(hostile.to_csv())
        rows, before = (list(csv.reader(io.StringIO(it.to_csv()))) for it in (hostile, plain))
        assert len(rows) == len(before)
        assert any(shown in squeezed(cell) for row in rows for cell in row)
    if hasattr(hostile, "to_json"):
        assert name in texts_within(json.loads(hostile.to_json()))


def texts_within(content: Any) -> str:
    """Return all keys and texts of plain data, one after the other."""
    if isinstance(content, dict):
        return "\0".join(f"{key}\0{texts_within(value)}" for key, value in content.items())
    if isinstance(content, list):
        return "\0".join(map(texts_within, content))
    return str(content)


class Net(nn.Module):
    """A convolution under a name of one's choice, and what comes after it."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(1, width, 3))
        self.after = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        named, after = self.children()
        return after(named(x))


def network(name: str, width: int = 3) -> nn.Module:
    """Return a network of a class that has the name, with a module that has it too."""
    module: nn.Module = type(name, (Net,), {})(name, width)
    return module


def of_module(name: str) -> str:
    """Return a name as a module and a class may have it: not with a dot, not with a zero."""
    name = name.replace(".", ",").replace("\0", "\x1b")
    return f"{name} it" if hasattr(nn.Module(), name) else name


@functools.cache
def graph(name: str) -> Graph:
    return trace(network(name), (1, 9, 9))


def budget(name: str) -> Budget:
    return measure_budget(graph(name))


def field(name: str) -> ReceptiveField:
    return measure_receptive_field(graph(name), layer=name)


@functools.cache
def proved() -> FieldProof:
    return verify_receptive_field(network("plain"), (1, 9, 9), layer="plain")


def proof(name: str) -> FieldProof:
    found = proved()
    first, *others = found.checks
    return replace(
        found, model=name, layer=name, checks=(replace(first, ok=False, note=name), *others)
    )


def report(name: str) -> Report:
    rules = [Parameters(at_most=10, name=name), Count("conv", at_most=1)]
    return check(graph(name), constraints=Constraints(rules, name=name))


def advice(name: str) -> Advice:
    return advise(graph(name))


def change(name: str) -> Diff:
    old, new = measure_budget(network(name), (1, 9, 9)), measure_budget(network(name, 4), (1, 9, 9))
    return replace(diff(old, new, names=(name, "new")), notes=(f"Of {name}.", "Another."))


def fits(name: str) -> Fits:
    answer = Fit({name: 8}, {"parameters": 80}, difference=-20, criterion=0.5)
    return Fits("parameters", 100, {}, f"by {name}", (answer,), 3, f"None but {name}.")


def no_fits(name: str) -> Fits:
    return Fits("parameters", 100, {}, "narrowest", (), 3, f"The last breaks {name}.")


def sample(name: str) -> Sample:
    return Sample((1.0, 2.0), name=name)


def table(name: str) -> Table:
    return Table(
        (f"<{name}", f">{name}", "number"),
        ((name, name, "1"), ("b", "c", "2")),
        totals=(name, "", "3"),
        title=name,
        note=f"{as_shown(name)}\nand a line",
        may_go=(name,),
    )


@given(name=names)
def test_a_table(name: str) -> None:
    # A heading loses a sign of its side, so a name stands behind one.
    assert_shows(table, name)


@pytest.mark.parametrize("make", [fits, no_fits, sample, proof])
@given(name=names)
def test_what_a_name_is_given_to(make: Callable[[str], Any], name: str) -> None:
    assert_shows(make, name)


@given(name=names.map(of_module))
@settings(max_examples=25)
def test_what_is_measured_of_a_network(name: str) -> None:
    for make in (budget, field, report, advice, change):
        assert_shows(make, name)


@given(text=texts)
def test_escaping_again_changes_nothing(text: str) -> None:
    once = escape_controls(text)
    assert once == as_shown(text)
    assert escape_controls(once) == once
    assert escape_controls(text, keep_lines=True) == "\n".join(map(as_shown, text.split("\n")))


@given(lines=st.lists(names, min_size=1, max_size=3))
def test_lines_of_markdown_are_one_paragraph(lines: list[str]) -> None:
    text = "\n".join(escape_markdown(as_shown(line)) for line in lines)
    blocks, read = read_markdown(text)
    assert blocks == ["paragraph_open", "inline", "paragraph_close"]
    assert squeezed(" ".join(read)) == squeezed(" ".join(map(as_shown, lines)))


def test_small_prints() -> None:
    memory = budget("plain").memory
    effective = effective_receptive_field(network("plain"), (1, 9, 9), layer="plain")
    for name in HOSTILE:
        timeline = replace(memory.timeline, layers=(name,) * len(memory.timeline.layers))
        things = (timeline, replace(memory, timeline=timeline), replace(effective, layer=name))
        for thing in things:
            assert_obeys_nothing(repr(thing) + str(thing))
            assert as_shown(name) in repr(thing)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x)


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nerror: b", "\u202e", "\x9bA"])
def test_errors_are_one_line_but_those_of_rules(name: str) -> None:
    unknown = nn.Sequential()
    unknown.add_module(name, Unknown())
    with pytest.raises(TracingError) as refused:
        trace(unknown, (1, 9, 9))
    assert as_shown(name) in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConstraintError) as broken:
        report(name).raise_if_failed()
    assert_obeys_nothing(str(broken.value))
    assert str(broken.value) == report(name).explain()
    assert len(str(broken.value).splitlines()) == len(report("plain").explain().splitlines())


def test_the_baseline_of_the_pytest_plugin() -> None:
    for name in ("\x1b[31m[red]\n", "plain"):
        measured = budget(name)
        now = Entry.of(graph(name), measured)
        said = problem_of(replace(now, quantities={"parameters": 1}), now, measured)
        assert_obeys_nothing(said)
        assert said.count(as_shown(name)) >= 2
        assert len(said.splitlines()) == 7
        for old in (None, replace(now, sample="3 x 9 x 9")):
            assert_obeys_nothing(problem_of(old, now, measured))


NET = """
import json, pathlib
from torch import nn
name = json.loads(pathlib.Path(__file__).with_name("name.json").read_text())
Net = type(name, (nn.Module,), {"forward": lambda self, x: self.children().__next__()(x)})
def make():
    net = Net()
    net.add_module(name, nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
    return net
"""
RULES = '[[rules]]\nrule = "parameters"\nat_most = 10\n'
COMMANDS = [
    ["budget", "--advise"],
    ["budget", "--advise", "--markdown"],
    ["rf"],
    ["rf", "--markdown"],
    ["rf", "--csv", "--verify"],
    ["check", "--spec", "rules.toml", "--evidence"],
    ["check", "--spec", "rules.toml", "--markdown"],
    ["diff", "--spec", "rules.toml"],
    ["diff", "--spec", "rules.toml", "--markdown"],
    ["summary"],
]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_line(
    words: list[str],
    terminal: bool,
    capsys: Captured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    Path("net.py").write_text(NET)
    Path("plain.py").write_text("from torch import nn\nnet = nn.Conv2d(1, 5, 3)")
    Path("rules.toml").write_text(RULES)
    lines = []
    for name in ("plain", "\x1b[2J[red]\r\n\u202e|</b>", "[/x]`\x9b*"):
        Path("name.json").write_text(json.dumps(name))
        nets = ["plain.py:net", "net.py:make"] if words[0] == "diff" else ["net.py:make"]
        assert main([words[0], *nets, "--input", "1,9,9", *words[1:]]) in (0, 1)
        printed = capsys.readouterr()
        colours = r"\x1b\[[0-9;]*m" if terminal else r"(?!)"
        out = re.sub(colours, "", printed.out)
        assert_obeys_nothing(out + printed.err)
        read = "\n".join(read_markdown(out)[1]) if "--markdown" in words else out
        assert as_shown(name) in read
        lines.append(out.count("\n"))
    assert len(set(lines)) == 1


def test_errors_of_the_command_line(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "\x1b[2J\nerror: none\u202e"
    Path("name.json").write_text(json.dumps(name))
    Path("net.py").write_text(NET.replace("nn.ReLU()", "Unknown()") + UNKNOWN)
    assert main(["budget", "net.py:make", "--input", "1,9,9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert as_shown(name) in said
    assert_obeys_nothing(said)
    Path("net.py").write_text(f"def make(): raise ValueError({name!r})")
    assert main(["budget", "net.py:make", "--input", "1,9,9"]) == 2
    assert_obeys_nothing(capsys.readouterr().err)


UNKNOWN = """
class Unknown(nn.Module):
    def forward(self, x):
        import torch
        return torch.fft.fft2(x)
"""


def test_the_classes_and_data_of_a_record(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = models.get_weights("mnist_12k", "mnist").record
    name = "\x1b]0;a\x07[/red]:smile:"
    data = {**shipped.data, "classes": [name] * 10, "name": name}
    replace(shipped, data=data, weights_sha256=None).save(tmp_path / "record.json")
    models.save_weights(models.create_model("mnist_12k"), tmp_path / "weights.safetensors")
    picture = Image.new("L", (40, 40), 255)
    picture.paste(0, (19, 8, 22, 32))
    picture.save(tmp_path / "one.png")
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["predict", str(tmp_path / "one.png"), "--run", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert_obeys_nothing(printed.out + printed.err)
    assert printed.out.count(as_shown(name)) == 2
    assert as_shown(name) in printed.err
    words = ["check", "mnist_12k", "--input", "1,28,28", "--spec", "mnist-12k"]
    for form in ([], ["--markdown"]):
        main([*words, "--run", str(tmp_path), "--evidence", *form])
        assert_obeys_nothing(capsys.readouterr().out)
