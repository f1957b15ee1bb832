"""Every public name is documented, and so are all the modules."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import constrained_cnn

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
MODULES = sorted(
    module.name
    for module in pkgutil.iter_modules(constrained_cnn.__path__)
    if not module.name.startswith("_")
)


def _page(module: str) -> str:
    return (REFERENCE / f"{module}.md").read_text(encoding="utf-8")


def _sources(module: str) -> str:
    package = Path(constrained_cnn.__path__[0])
    files = [package / f"{module}.py", *(package / module).glob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())


@pytest.mark.parametrize("module", MODULES)
def test_each_public_module_has_a_page_in_the_reference(module: str) -> None:
    directive = rf"\.\. automodule:: constrained_cnn\.{module}\n   :members:\n"
    assert re.search(directive, _page(module))
    index = (REFERENCE / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"^{module}$", index, flags=re.MULTILINE), f"{module} is not in the index"


def test_each_page_of_the_reference_has_its_module() -> None:
    assert {page.stem for page in REFERENCE.glob("*.md")} == {"index", *MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_is_documented(module: str) -> None:
    imported = importlib.import_module(f"constrained_cnn.{module}")
    assert imported.__doc__
    undocumented = []
    for name in imported.__all__:
        value = getattr(imported, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            # A dataclass without a docstring gets its signature for one; that documents nothing.
            text = inspect.getdoc(value) or ""
            found = bool(text) and not text.startswith(f"{name}(")
        else:
            found = _constant_is_documented(module, name)
        if not found:
            undocumented.append(name)
    assert undocumented == []


def _constant_is_documented(module: str, name: str) -> bool:
    """Whether the page names it, or a string or a ``#:`` comment stands beside its assignment."""
    if f"autodata:: constrained_cnn.{module}.{name}\n" in _page(module):
        return True
    assignment = rf"^{name}(: [^\n]+?)? = "
    before = rf"^#: [^\n]+\n{assignment}"
    after = rf'{assignment}(?:[^\n]*|[(\[{{]\n(?: [^\n]*\n)*[)\]}}])\nr?"""'
    source = _sources(module)
    return any(re.search(pattern, source, flags=re.MULTILINE) for pattern in (before, after))


@pytest.mark.parametrize("module", MODULES)
def test_public_methods_are_documented(module: str) -> None:
    imported = importlib.import_module(f"constrained_cnn.{module}")
    undocumented = [
        f"{name}.{member}"
        for name in imported.__all__
        if inspect.isclass(value := getattr(imported, name))
        for member, function in vars(value).items()
        if not member.startswith("_")
        and (inspect.isroutine(function) or isinstance(function, property))
        and not inspect.getdoc(getattr(value, member))
    ]
    assert undocumented == []


def test_each_name_at_the_root_is_in_the_index() -> None:
    index = (REFERENCE / "index.md").read_text(encoding="utf-8")
    names = set(constrained_cnn.__all__) - {"__version__"}
    assert {name for name in names if not re.search(rf"\b{name}\b", index)} == set()
