"""How Sphinx builds this documentation."""

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from make_inventories import build_inventories  # noqa: E402 - found beside this file

import constrained_cnn  # noqa: E402

project = "constrained_cnn"
author = "The constrained_cnn authors"
project_copyright = f"2026, {author}"
release = version = constrained_cnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = "constrained_cnn"
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Docstring examples are run by pytest, where they stand; -b doctest runs those of the pages.
doctest_test_doctest_blocks = ""

intersphinx_mapping = build_inventories(HERE / "_build" / "inventories")

# Imported for type checkers alone, so that a hint has only the short name.
HINTS = {
    "Axes": "matplotlib.axes.Axes",
    "Figure": "matplotlib.figure.Figure",
    "Table": "rich.table.Table",
}


def resolve_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> Any:
    """Point a hint's ``package.noun._file.Name``, or the root's ``package.Name``, to its page."""
    target = node.get("reftarget", "")
    if target in HINTS:
        node["reftarget"] = HINTS[target]
        return None
    parts = [part for part in target.split(".") if not part.startswith("_")]
    if len(parts) == 2 and parts[1] in constrained_cnn._NAMES:
        parts.insert(1, constrained_cnn._NAMES[parts[1]])
    public = ".".join(parts)
    if parts[0] != "constrained_cnn" or public == target:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], public, node, contnode
    )


def setup(app: Sphinx) -> None:
    """Connect the resolver, ahead of intersphinx, which looks up what it leaves."""
    app.connect("missing-reference", resolve_name, priority=400)


# Examples that write a file write it where nobody has to clear it away, and every page starts from
# the same: what the one before has registered or set is put back.
sys.path.insert(0, str(HERE.parent / "tests"))
doctest_global_setup = """
import contextlib
import os
import random
import tempfile

import numpy
import torch
from left_behind import nothing_left_behind

_page = contextlib.ExitStack()
_page.enter_context(nothing_left_behind())
_page.enter_context(contextlib.chdir(_page.enter_context(tempfile.TemporaryDirectory())))
random.seed(0)
numpy.random.seed(0)
torch.manual_seed(0)
"""
doctest_global_cleanup = "_page.close()"
