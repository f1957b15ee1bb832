"""The second front end: operations as ``torch.export`` takes a network apart."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from constrained_cnn.tracing._kernels import META
from constrained_cnn.tracing._recorder import Recorder


def replay(recorder: Recorder, network: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    """Export a network and run what comes out of it before the eyes of a recorder.

    What it writes into part of a tensor becomes operations that have a rule. In-place operations
    become ordinary ones.

    Args:
        recorder: Has seen the inputs, and is not watching yet.
        network: The network, without content.
        args: Its arguments.
        kwargs: Its arguments by name.

    Returns:
        What the network gave, as a flat list.
    """
    with warnings.catch_warnings(), _left_as_it_was():
        warnings.simplefilter("ignore")  # of what export deprecates in itself
        program = torch.export.export(network, args, kwargs, strict=False).run_decompositions({})
    feed = _feed(program, network, args, kwargs)
    recorder.expect(feed)
    with recorder.watching():
        outcome = _Replay(recorder, program).run(*feed)
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [out for out, kind in zip(outcome, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Take back the hook on all modules that an export of torch 2.6 leaves when it fails."""
    hooks = torch.nn.modules.module._global_buffer_registration_hooks
    before = dict(hooks)
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


def _feed(program: ExportedProgram, network: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    """Return what stands for each input of the program's graph."""
    given = iter(tree_leaves((args, kwargs)))
    feed: list[Any] = []
    for spec in program.graph_signature.input_specs:
        target = spec.target or ""
        if spec.kind == InputKind.USER_INPUT:
            feed.append(next(given))
        elif spec.kind == InputKind.PARAMETER:
            feed.append(network.get_parameter(target))
        elif spec.kind == InputKind.BUFFER:
            feed.append(network.get_buffer(target))
        else:
            constant = program.constants[target]
            feed.append(constant.to(META) if isinstance(constant, Tensor) else constant)
    return feed


class _Replay(Interpreter):
    """Runs a program node by node and tells the recorder which module each is of."""

    def __init__(self, recorder: Recorder, program: ExportedProgram) -> None:
        super().__init__(program.graph_module)
        # Or an error would be told with tensors in it, whose telling the recorder would see.
        self.extra_traceback = False
        self._recorder = recorder

    def run_node(self, node: Node) -> Any:
        """Run a node in its module."""
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        with self._recorder.inside(stack[-1] if stack else ""):
            outcome = super().run_node(node)
        for path in stack:
            self._recorder.leave([path], outcome)
        return outcome
