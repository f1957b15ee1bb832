"""Rules as data: there and back through TOML and JSON, and what is said of a file that is wrong."""

import builtins
import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rule_strategies import rules
from torch import nn

from constrained_cnn import constraints as package
from constrained_cnn.constraints import (
    Accuracy,
    Augmentation,
    Constraints,
    Count,
    Dropout,
    LastEpochs,
    Normalisation,
    Parameters,
    Rule,
    check,
    constraints_from_dict,
    get_constraints,
    list_constraints,
    load_constraints,
    rule_from_dict,
    save_constraints,
)
from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, OutputError

# The folder of a test is the same for all examples; each writes its file anew.
same_folder = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def told_apart(several: list[Rule]) -> bool:
    named = [rule.name for rule in several if rule.name]
    return len(named) == len(set(named))


texts = st.text(st.characters(codec="utf-8"), max_size=12)
sets_of_rules = st.builds(
    Constraints,
    st.lists(rules, min_size=1, max_size=4).filter(told_apart),
    texts,
    texts,
)


# There and back -----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(rule=rules)
def test_a_rule_goes_through_plain_data_and_json(rule: Rule) -> None:
    content = rule.to_dict()
    assert rule_from_dict(content) == rule
    there = json.loads(json.dumps(content, allow_nan=False))
    assert there == content
    back = rule_from_dict(there)
    assert back == rule
    assert hash(back) == hash(rule)
    assert (back.label, back.required, repr(back)) == (rule.label, rule.required, repr(rule))
    assert back.to_dict() == content


@settings(max_examples=100)
@given(rule=rules)
def test_a_rule_is_written_as_it_is_made(rule: Rule) -> None:
    assert eval(repr(rule), vars(package)) == rule


@settings(same_folder, max_examples=60)
@given(mine=sets_of_rules)
def test_constraints_go_through_toml_and_json(mine: Constraints, tmp_path: Path) -> None:
    file = save_constraints(mine, tmp_path / "mine.toml")
    assert file == tmp_path / "mine.toml"
    assert load_constraints(file) == mine
    assert load_constraints(str(file)) == mine
    assert constraints_from_dict(json.loads(json.dumps(mine.to_dict()))) == mine


@settings(same_folder, max_examples=30)
@given(mine=sets_of_rules)
def test_constraints_go_through_a_pyproject(mine: Constraints, tmp_path: Path) -> None:
    project = {"project": {"name": "x"}, "tool": {"other": {}, "constrained-cnn": mine.to_dict()}}
    file = tmp_path / "pyproject.toml"
    file.write_text(tomli_w.dumps(project), encoding="utf-8")
    assert load_constraints(file) == mine


@settings(max_examples=60)
@given(mine=sets_of_rules)
def test_a_report_is_json_that_holds_its_rules(mine: Constraints) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Dropout(0.1), nn.MaxPool2d(2))
    report = check(network, (1, 8, 8), mine)
    content = json.loads(report.to_json())
    assert content == report.to_dict()
    assert [rule_from_dict(one["rule"]) for one in content["findings"]] == list(mine)
    assert content["constraints"] == mine.name
    json.dumps(content, allow_nan=False)


def test_a_file_says_how_it_is_called() -> None:
    one = {"rules": [{"rule": "parameters", "at_most": 5}]}
    assert constraints_from_dict(one).name == "rules"
    assert constraints_from_dict({**one, "name": "mine"}, name="other").name == "mine"


def test_without_a_name_it_is_that_of_the_file(tmp_path: Path) -> None:
    text = '[[rules]]\nrule = "parameters"\nat_most = 20_000\n'
    assert load_constraints(write(tmp_path, text, "ours.toml")).name == "ours"
    table = text.replace("rules", "tool.constrained-cnn.rules")
    mine = load_constraints(write(tmp_path, table, "pyproject.toml"))
    assert mine == Constraints((Parameters(at_most=20_000),), "constrained-cnn")


@pytest.mark.parametrize("name", list_constraints())
def test_every_set_that_comes_with_the_package(name: str, tmp_path: Path) -> None:
    mine = get_constraints(name)
    assert mine.name == name
    assert mine.about
    assert all(rule.name for rule in mine)
    assert load_constraints(save_constraints(mine, tmp_path / "copy.toml")) == mine
    assert constraints_from_dict(json.loads(json.dumps(mine.to_dict()))) == mine
    extended = constraints_from_dict({"extends": name, "name": name})
    assert extended == mine


def test_a_set_that_does_not_exist_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=r"'mnist-12'.*did you mean 'mnist-12k'\?"):
        get_constraints("mnist-12")
    for name in ("../mnist-12k", "mnist-12k.toml", "", 5, None):
        with pytest.raises(InvalidInputError, match="must be one of"):
            get_constraints(name)  # type: ignore[arg-type]


def test_extends(tmp_path: Path) -> None:
    text = """
        extends = "mnist-12k"
        [[rules]]
        name = "R2"
        rule = "epochs"
        at_most = 30
        [[rules]]
        rule = "macs"
        at_most = 4_000_000
    """
    mine = load_constraints(write(tmp_path, text, "ours.toml"))
    base = get_constraints("mnist-12k")
    changed = [rule.name for rule in base if rule not in mine.rules]
    assert changed == ["R2"]
    assert [rule.name for rule in mine] == [*(rule.name for rule in base), ""]
    assert mine.rules[2].required == "at most 30"
    assert (mine.name, mine.about) == ("ours", base.about)


# What is wrong ------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes, name: str = "rules.toml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(file: Path) -> str:
    """Return what is said of a file; it names the file."""
    with pytest.raises(InvalidInputError) as caught:
        load_constraints(file)
    assert file.name in str(caught.value)
    return str(caught.value)


def read_or_refused(file: Path) -> Constraints | None:
    """Return the rules, or None where they are refused in the one way there is."""
    try:
        return load_constraints(file)
    except InvalidInputError as error:
        message = str(error)
    assert file.name in message
    return None


def use(mine: Constraints) -> None:
    """Do with rules what is done with rules."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
    report = check(network, (1, 8, 8), mine)
    assert str(report)
    json.loads(report.to_json())
    assert constraints_from_dict(mine.to_dict()) == mine


def check_line(text: str, message: str) -> None:
    """One of the lines marked with ``# here`` is the one that the message names."""
    lines = text.split("\n")
    marked = [number for number, line in enumerate(lines, 1) if "# here" in line]
    assert marked
    assert any(f"line {number}:" in message.replace(",", ":") for number in marked), message


LIMITED = '[[rules]]\nrule = "parameters"\n'
COUNT = '[[rules]]\nrule = "count"\nlayer = "conv"\n'
ACCURACY = '[[rules]]\nrule = "accuracy"\n'
BEFORE = '# ours\nname = "mine"\n\n[[rules]]\nrule = "macs"\nat_most = 4_000_000\n\n'

WRONG: dict[str, tuple[str, str]] = {
    # What it says: the text, and a part of the message.
    "unknown rule": ('[[rules]]\nrule = "parameter"  # here\n', "did you mean 'parameters'?"),
    "unknown key": (f"{LIMITED}at_mots = 5  # here\n", "did you mean 'at_most'?"),
    "key of another rule": (f"{LIMITED}at_most = 5\nlayer = 'x'  # here\n", "key 'layer'"),
    "unknown kind of layer": (
        '[[rules]]\nrule = "count"\nat_least = 1\nlayer = "maxpool"  # here\n',
        "did you mean 'max_pool'?",
    ),
    "unknown word in an order": (
        '[[rules]]\nrule = "block_order"\norder = ["conv", "bn"]  # here\n',
        "did you mean 'batch_norm'?",
    ),
    "unknown choice": (f'{LIMITED}at_most = 5\ncount = "trained"  # here\n', "count='trained'"),
    "missing key": (
        '[[rules]]  # here\nrule = "count"  # here\nat_least = 1\n',
        "layer is missing",
    ),
    "missing limit": (
        '[[rules]]  # here\nrule = "parameters"  # here\n',
        "no limit is given",
    ),
    "missing kind": ("[[rules]]  # here\nat_most = 5  # here\n", "says no kind"),
    "missing width": (f"{LIMITED}near = 5  # here\n", "give both"),
    "missing middle": (
        '[[rules]]  # here\nrule = "parameters"  # here\nwithin = 5  # here\n',
        "near",
    ),
    "missing parts": ('[[rules]]  # here\nrule = "any"  # here\n', "of is missing"),
    "at least over at most": (
        f"{LIMITED}at_least = 7  # here\nat_most = 5  # here\n",
        "contradict each other",
    ),
    "exactly outside": (f"{LIMITED}exactly = 7  # here\nat_most = 5  # here\n", "contradict"),
    "near outside": (
        f"{LIMITED}near = 10  # here\nwithin = 2  # here\nat_most = 7  # here\n",
        "contradict",
    ),
    "one of outside": (f"{LIMITED}one_of = [7, 9]  # here\nat_most = 5  # here\n", "contradict"),
    "one of and exactly": (f"{LIMITED}one_of = [7]  # here\nexactly = 5  # here\n", "contradict"),
    "text for a number": (f'{LIMITED}at_most = "5"  # here\n', "at_most='5': must be an integer"),
    "truth for a number": (
        f"{LIMITED}at_most = true  # here\n",
        "at_most=True: must be an integer",
    ),
    "half a parameter": (f"{LIMITED}at_most = 5.5  # here\n", "must be an integer"),
    "negative": (f"{LIMITED}at_least = -1  # here\n", "at least 0"),
    "nan": (f"{LIMITED}at_most = nan  # here\n", "must be an integer"),
    "inf": (f"{LIMITED}at_most = inf  # here\n", "must be an integer"),
    "nan of a percentage": (f"{ACCURACY}at_least = nan  # here\n", "finite number"),
    "over 100 %": (f"{ACCURACY}at_least = 100.5  # here\n", "from 0.0 to 100.0"),
    "text in a list": (f'{LIMITED}one_of = [5, "7"]  # here\n', "one_of='7'"),
    "number for a list": (f"{LIMITED}one_of = 7  # here\n", "must be a list of numbers"),
    "table for a list": (f"{LIMITED}one_of = {{a = 7}}  # here\n", "must be a list of numbers"),
    "table for a number": (f"{LIMITED}at_most = {{a = 7}}  # here\n", "must be an integer"),
    "date": (f"{LIMITED}at_most = 1979-05-27  # here\n", "must be an integer"),
    "number for a layer": (
        '[[rules]]\nrule = "count"\nlayer = 3  # here\nat_most = 0\n',
        "layer=3",
    ),
    "text for a kernel": (f'{COUNT}at_least = 1\nkernel = "3x3"  # here\n', "kernel='3x3'"),
    "number for a truth": (f"{COUNT}at_least = 1\nbias = 1  # here\n", "must be True or False"),
    "text for a list": (
        '[[rules]]\nrule = "block_order"\norder = "conv"  # here\n',
        "order='conv'",
    ),
    "list for a text": ('[[rules]]\nrule = "data_set"\ndata = ["mnist"]  # here\n', "data="),
    "probability of one": ('[[rules]]\nrule = "dropout"\np = 1.0  # here\n', "p=1.0"),
    "number for a kind": ("[[rules]]\nrule = 5  # here\n", "rule=5"),
    "list for a kind": ('[[rules]]\nrule = ["count"]  # here\n', "rule=['count']"),
    "number for a name": (f"{LIMITED}at_most = 5\nname = 5  # here\n", "name=5: must be a text"),
    "one name twice": (
        f'{LIMITED}at_most = 5\nname = "R1"  # here\n{LIMITED}at_most = 6\nname = "R1"  # here\n',
        "2 rules have the name 'R1'",
    ),
    "unknown key at the top": (
        f"rulez = 5  # here\n{LIMITED}at_most = 5\n",
        "did you mean 'rules'?",
    ),
    "rules as a table": (
        "[rules]  # here\nrule = 'macs'\nat_most = 5\n",
        "must be a list of tables",
    ),
    "rules as a text": ('rules = "mnist-12k"  # here\n', "must be a list of tables"),
    "rules as numbers": ("rules = [5]  # here\n", "must be a table"),
    "rules as lists": ("rules = [[]]  # here\n", "must be a table"),
    "no rules": ("rules = []  # here\n", "at least one rule"),
    "extends a number": ("extends = 5  # here\n", "extends=5"),
    "extends a list": ('extends = ["mnist-12k"]  # here\n', "extends="),
    "extends what there is not": ('extends = "mnist-12"  # here\n', "did you mean 'mnist-12k'?"),
    "title as a number": (f"name = 5  # here\n{LIMITED}at_most = 5\n", "name=5"),
    "any of a table": (
        '[[rules]]\nrule = "any"\n[rules.of]  # here\nrule = "macs"\nat_most = 5\n',
        "must be a list of rules",
    ),
    "any of nothing": ('[[rules]]\nrule = "any"\nof = []  # here\n', "at least one rule"),
    "not of a list": ('[[rules]]\nrule = "not"\nof = [5]  # here\n', "must be a table"),
    "not of a text": ('[[rules]]\nrule = "not"\nof = "macs"  # here\n', "must be a table"),
    "a wrong rule within": (
        '[[rules]]\nrule = "not"\n[rules.of]\nrule = "paramters"  # here\nat_most = 5\n',
        "did you mean 'parameters'?",
    ),
    "a wrong key within": (
        '[[rules]]\nrule = "all"\n[[rules.of]]\nrule = "macs"\nat_mots = 5  # here\n',
        "did you mean 'at_most'?",
    ),
    "not TOML": (f"{LIMITED}at_most =  # here\n", "is not TOML"),
    "a key twice": (f"{LIMITED}at_most = 5\nat_most = 6  # here\n", "is not TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_an_error_with_its_line(name: str, tmp_path: Path) -> None:
    text, reason = WRONG[name]
    message = refusal(write(tmp_path, text))
    assert reason in message
    check_line(text, message)


@pytest.mark.parametrize("name", [name for name in WRONG if WRONG[name][0].startswith("[[rules")])
def test_the_line_is_that_of_the_rule_that_is_wrong(name: str, tmp_path: Path) -> None:
    """Other rules with the same keys stand before and after it."""
    text, reason = WRONG[name]
    more = [BEFORE, *(f"{LIMITED}at_least = 1\nat_most = 5\none_of = [3]\n" for _ in range(3))]
    text = "\n".join([*more, text, f"{COUNT}at_least = 1\nkernel = 3\nbias = true\n"])
    message = refusal(write(tmp_path, text))
    assert reason in message
    check_line(text, message)


MISLEADING = {
    "a name with the word rule": '[[rules]]\nname = "a rule"\nrule = "parameter"  # here\n',
    "a remark with the key": f"{LIMITED}# as at_most = 5 would say\nat_most = '5'  # here\n",
    "a remark with rules": "# The constraints of ours\nextends = 'mnist-12'  # here\n",
    "a text of several lines": (
        f'about = """\n[[rules]]\nat_most = 5\n"""\n{LIMITED}at_most = "5"  # here\n'
    ),
    "a separator of lines in a text": (
        f'about = "\u2028\u2028\x85"  # \u2028\n{LIMITED}at_most = "5"  # here\n'
    ),
    "parts of one kind": (
        '[[rules]]\nrule = "any"\n[[rules.of]]\nrule = "macs"\nat_most = 5\n'
        '[[rules.of]]\nrule = "macs"\nat_most = "5"  # here\n'
    ),
    "in a line": (
        'rules = [\n  {rule = "macs", at_most = 5},\n  {rule = "macs", at_most = "5"},  # here\n]\n'
    ),
    "a head in quotes": (
        f'[["rules"]]\nrule = "macs"\nat_most = 5\n{LIMITED}at_most = "5"  # here\n'
    ),
    "the first line": '[[rules]]  # here\nname = "x"\n',
    "a value like the key": f"{COUNT}at_least = 1\nname = 'kernel'\nkernel = 'x'  # here\n",
}


@pytest.mark.parametrize("name", MISLEADING)
def test_the_line_in_a_text_that_misleads(name: str, tmp_path: Path) -> None:
    text = MISLEADING[name]
    check_line(text, refusal(write(tmp_path, text)))


def test_the_line_in_a_pyproject_with_rules_of_others(tmp_path: Path) -> None:
    text = (
        "[[tool.linter.rules]]\nat_most = 1\n[[tool.linter.rules]]\nat_most = 2\n"
        '[[tool.constrained-cnn.rules]]\nrule = "macs"\nat_most = "5"  # here\n'
    )
    check_line(text, refusal(write(tmp_path, text, "pyproject.toml")))


@pytest.mark.parametrize("text", ["", "# nothing\n", 'name = "mine"\n', "extends = ''\n"])
def test_a_file_without_rules_is_an_error(text: str, tmp_path: Path) -> None:
    refusal(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[tool]\n", "tool = 5\n", "tool = []\n", "[[tool]]\n", "[tool.constrained_cnn]\n"),
        *(
            "[tool]\nconstrained-cnn = 5\n",
            "[[tool.constrained-cnn]]\n",
            "[tool.constrained-cnn]\n",
        ),
    ],
)
def test_a_pyproject_without_rules_is_an_error(text: str, tmp_path: Path) -> None:
    refusal(write(tmp_path, text, "pyproject.toml"))


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.toml")
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert "directory" in refusal(folder)
    assert "UTF-8" in refusal(write(tmp_path, b'name = "gr\xf6\xdfe"\n'))
    assert "UTF-8" in refusal(write(tmp_path, LIMITED.encode("utf-16")))
    refusal(write(tmp_path, b"\x00\x01"))
    with pytest.raises(InvalidInputError):
        load_constraints("a\0b.toml")


def chain(depth: int, last: str = LIMITED.removeprefix("[[rules]]\n") + "at_most = 5\n") -> str:
    """Return a rule that is the negation of a negation of ..., in tables, which nest in no code."""
    heads = [f"[rules{'.of' * level}]\n" if level else "[[rules]]\n" for level in range(depth)]
    return "".join(f'{head}rule = "not"\n' for head in heads) + f"[rules{'.of' * depth}]\n{last}"


@pytest.mark.parametrize(
    "text",
    [
        f"{LIMITED}at_most = {'[' * 300}{']' * 300}\n",
        f"{LIMITED}at_most = {'[' * 5_000}{']' * 5_000}\n",
        f"{LIMITED}at_most = {'{a = ' * 200}1{'}' * 200}\n",
        f"{LIMITED}at_most{'.a' * 3_000} = 1\n",
        f"{LIMITED}name{'.a' * 3_000} = 1\n",
        f"rules{'.a' * 3_000} = 1\n",
        f"extends{'.a' * 3_000} = 1\n",
        chain(900, 'rule = "paramters"\n'),
    ],
    ids=lambda text: f"{text[:40]!r} and so on",
)
def test_a_file_that_nests_deep_is_an_error(text: str, tmp_path: Path) -> None:
    refusal(write(tmp_path, text))


# A text per level: were it two, 60 levels would be 2 to the 60th texts, and never end.
@pytest.mark.parametrize("depth", [8, 60, 400, 1_500])
def test_a_rule_that_nests_deep_is_read_or_refused(depth: int, tmp_path: Path) -> None:
    mine = read_or_refused(write(tmp_path, chain(depth)))
    assert mine is not None or depth > 8
    if mine is not None:
        use(mine)
        assert check(nn.Sequential(nn.Conv2d(1, 1, 1)), (1, 4, 4), mine).ok is (depth % 2 == 0)


@pytest.mark.parametrize(
    "number",
    ["9" * 400, "9" * 5_000, f"0x{'f' * 5_000}"],
    ids=["400 digits", "5,000 digits", "5,000 digits to the base of 16"],
)
@pytest.mark.parametrize("key", ["at_most", "exactly", "one_of", "name"])
def test_an_integer_of_any_length_is_a_limit_or_an_error(
    key: str, number: str, tmp_path: Path
) -> None:
    value = f"[{number}]" if key == "one_of" else number
    mine = read_or_refused(write(tmp_path, f"{LIMITED}{key} = {value}\n"))
    if mine is not None:
        use(mine)
        report = check(nn.Sequential(nn.Conv2d(1, 1, 1)), (1, 4, 4), mine)
        assert report.ok is (key == "at_most")
        assert load_constraints(save_constraints(mine, tmp_path / "again.toml")) == mine


def test_limits_that_leave_one_number_are_no_contradiction() -> None:
    """``exactly`` decides; that others of ``one_of`` are not allowed is no matter."""
    rule = Parameters(exactly=5, one_of=(5, 9), at_most=7)
    assert rule.limits.allow(5)
    assert not rule.limits.allow(9)


small = st.integers(0, 8)
maybe = st.one_of(st.none(), small)


@settings(max_examples=200)
@given(
    at_least=maybe,
    at_most=maybe,
    exactly=maybe,
    one_of=st.lists(small, max_size=3),
    near=st.one_of(st.none(), st.tuples(small, small)),
)
def test_limits_are_refused_where_no_number_is_allowed(
    at_least: int | None,
    at_most: int | None,
    exactly: int | None,
    one_of: list[int],
    near: tuple[int, int] | None,
) -> None:
    allowed = [
        number
        for number in range(30)
        if (at_least is None or number >= at_least)
        and (at_most is None or number <= at_most)
        and (exactly is None or number == exactly)
        and (not one_of or number in one_of)
        and (near is None or abs(number - near[0]) <= near[1])
    ]
    given_limits: dict[str, Any] = {"at_least": at_least, "at_most": at_most, "exactly": exactly}
    given_limits |= {"one_of": one_of}
    if near is not None:
        given_limits |= {"near": near[0], "within": near[1]}
    nothing_given = all(value in (None, []) for value in given_limits.values())
    try:
        rule = Parameters(**given_limits)
    except InvalidInputError:
        assert nothing_given or not allowed
    else:
        assert allowed
        assert [number for number in range(30) if rule.limits.allow(number)] == allowed


# Other numbers, other texts -----------------------------------------------------------------------


FROM_ELSEWHERE: dict[str, Any] = {
    "numpy integer": np.int64(5),
    "numpy float": np.float32(99.5),
    "numpy float of two words": np.float64(99.5),
    "tensor": torch.tensor(5),
    "fraction": Fraction(199, 2),
}


def made_of(number: Any) -> list[Callable[[], Rule]]:
    return [
        lambda: Parameters(at_most=number),
        lambda: Parameters(one_of=(number,)),
        lambda: Accuracy(at_least=number),
        lambda: Accuracy(near=number, within=number),
        lambda: Normalisation(mean=(number,), std=(number,), within=number),
        lambda: Augmentation(rotation=number),
        lambda: Count("conv", at_least=1, kernel=(number, number)),
        lambda: Dropout(number / 100),
        lambda: LastEpochs(number, at_least=99),
    ]


@pytest.mark.parametrize("name", FROM_ELSEWHERE)
@pytest.mark.parametrize("which", range(9))
def test_what_a_rule_takes_can_be_written(name: str, which: int, tmp_path: Path) -> None:
    """A number of another library is refused, or made a plain one that a file can hold."""
    try:
        rule = made_of(FROM_ELSEWHERE[name])[which]()
    except InvalidInputError:
        return
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert list(load_constraints(save_constraints(Constraints((rule,)), tmp_path / "x.toml")))


@pytest.mark.parametrize(
    "text", ["", "'", '"', "\\", "\n", "\r\n", "\0", "\x1f", "#", "]]", "é\u2028"]
)
def test_texts_that_toml_has_to_escape(text: str, tmp_path: Path) -> None:
    mine = Constraints((Parameters(at_most=5, name=text),), text, text)
    assert load_constraints(save_constraints(mine, tmp_path / "x.toml")) == mine


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    """Half a character has no place in a file."""
    with pytest.raises(ConstrainedCNNError):
        save_constraints(Constraints((Parameters(at_most=5, name="\ud800"),)), tmp_path / "x.toml")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    mine = Constraints((Parameters(at_most=5),))
    file = save_constraints(mine, tmp_path / "new" / "folder" / "x.toml")
    assert load_constraints(file) == Constraints(mine.rules, "rules")
    with pytest.raises(OutputError):
        save_constraints(mine, file / "below.toml")
    with pytest.raises(OutputError):
        save_constraints(mine, tmp_path)
    assert load_constraints(file) == mine


# Whatever stands in it ----------------------------------------------------------------------------

_words = st.sampled_from(
    [
        *("rule", "rules", "name", "about", "extends", "of", "at_least", "at_most", "exactly"),
        *("one_of", "near", "within", "layer", "kernel", "order", "avoid", "cells", "p", "mean"),
        *("std", "data", "last", "count", "conv", "not", "any", "all", "macs", "mnist-12k"),
    ]
)
_numbers = st.one_of(st.integers(-5, 5), st.integers(), st.floats(), st.booleans(), st.none())
plain_data = st.recursive(
    st.one_of(_numbers, texts, _words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(_words, texts), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def nearly_rules(draw: st.DrawFn) -> dict[str, Any]:
    """A rule as data with one or two entries exchanged for anything."""
    content = draw(rules).to_dict()
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.one_of(st.sampled_from(sorted(content)), _words))
        content[key] = draw(plain_data)
    return content


@settings(max_examples=200)
@given(content=st.one_of(plain_data, st.fixed_dictionaries({"rules": plain_data})))
@example(content={"rules": [{"rule": "accuracy", "near": 1e308, "within": 1e308}]})
def test_any_data_is_read_or_refused(content: Any) -> None:
    try:
        mine = constraints_from_dict(content)
    except InvalidInputError:
        return
    use(mine)


@settings(max_examples=300)
@given(content=nearly_rules())
def test_nearly_a_rule_is_read_or_refused(content: dict[str, Any]) -> None:
    try:
        rule = rule_from_dict(content)
    except InvalidInputError:
        return
    use(Constraints((rule,)))


@st.composite
def edited(draw: st.DrawFn) -> str:
    """A file of rules after a few slips of the hand."""
    text = tomli_w.dumps(draw(sets_of_rules).to_dict())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 6)))
        slip = draw(
            st.one_of(texts, st.sampled_from(["[", "]", "[[rules]]\n", "'", "=", "nan", "."]))
        )
        text = text[:start] + slip + text[stop:]
        if draw(st.booleans()):
            lines = draw(st.permutations(text.split("\n")))
            text = "\n".join(lines)
    return text


@settings(same_folder, max_examples=200)
@given(text=edited(), name=st.sampled_from(["rules.toml", "pyproject.toml"]))
def test_any_file_is_read_or_refused(text: str, name: str, tmp_path: Path) -> None:
    mine = read_or_refused(write(tmp_path, text, name))
    if mine is not None:
        use(mine)


@settings(same_folder, max_examples=60)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path: Path) -> None:
    refusal(write(tmp_path, content))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "__import__('os').mkdir('made')"
    texts = [
        f'[[rules]]\nrule = "{code}"\nat_most = 5\n',
        f'[[rules]]\nrule = "parameters"\nat_most = "{code}"\n',
        f'name = "{code}"\n[[rules]]\nname = "{code}"\nrule = "data_set"\ndata = "{code}"\n',
        f'extends = "{code}"\n',
        '[[rules]]\nrule = "__class__"\n',
        '[[rules]]\nrule = "count"\n__post_init__ = 1\n',
        '[[rules]]\nrule = "parameters"\nat_most = 5\nkind = "macs"\n',
    ]
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"called with {arguments}")

    for file in [write(tmp_path, text, f"{i}.toml") for i, text in enumerate(texts)]:
        with monkeypatch.context() as patch:
            for name in ("eval", "exec", "compile"):
                patch.setattr(builtins, name, refuse)
            patch.setattr(os, "system", refuse)
            read_or_refused(file)
    assert not (tmp_path / "made").exists()
