"""Operations of a person's own."""

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

from constrained_cnn.errors import ConstrainedCNNError, InvalidInputError, check_choice, closest
from constrained_cnn.graph import KINDS, AxisRead, Read, Work
from constrained_cnn.tracing.operations._call import Call, Reads
from constrained_cnn.tracing.operations._operation import Operation, ReadRule, WorkRule
from constrained_cnn.tracing.operations._table import BUILT_IN

_REGISTERED: dict[str, Operation] = {}  # the one open table; only register_op writes to it


def find(op: str) -> Operation | None:
    """Return what is known of the operation of that name."""
    return BUILT_IN.get(op) or _REGISTERED.get(op)


def described(call: Call) -> tuple[Operation | None, Call]:
    """Return what is known of the operation of a call, and the call as its rules take it."""
    operation = find(call.op)
    while operation is not None and operation.stands_for is not None:
        call = operation.stands_for(call)
        operation = find(call.op)
    return operation, call


def register_op(
    op: str,
    *,
    like: str | None = None,
    kind: str | None = None,
    reads: ReadRule | None = None,
    work: WorkRule | None = None,
) -> None:
    """Say what an operation is, reads and costs, so that networks with it can be traced.

    Either ``like`` names an operation that is, reads and costs the same, or both rules are given;
    one that is given beside ``like`` stands in place of that operation's. The name is the one that
    the error names: ``"erfinv"``, or ``"mylib::gate"`` for an operation of ``torch.library``.
    Registering the same name again replaces what was said.

    Args:
        op: Name of the operation.
        like: Name of a known operation with the same arguments.
        kind: What it is, one of ``constrained_cnn.graph.KINDS``; that of ``like`` if there is one.
            Without either it is ``"unknown"``, and a rule that could be broken by it cannot tell.
        reads: Gets the :class:`Call`, returns for each output the
            :class:`~constrained_cnn.graph.Read` it makes; :func:`elementwise` is one.
        work: Gets the :class:`Call`, returns the :class:`~constrained_cnn.graph.Work`.

    Raises:
        InvalidInputError: If the library describes that operation itself, ``like`` or ``kind`` is
            unknown, or a rule is missing: what an operation costs is never taken to be nothing.

    Examples:
        >>> from constrained_cnn.tracing import Call, elementwise, register_op
        >>> register_op("erfinv", like="tanh")
        >>> def product_of_all(call: Call) -> Work:
        ...     return Work(elementwise=call.input.numel())
        >>> register_op("mylib::scale", kind="scale", reads=elementwise, work=product_of_all)
    """
    if not isinstance(op, str) or not op:
        raise InvalidInputError(f"op={op!r}: must be the name of an operation, such as 'erfinv'")
    if op in BUILT_IN:
        raise InvalidInputError(f"op={op!r}: is described by the library; it is not replaced")
    if kind is not None:
        check_choice("kind", kind, tuple(KINDS))
    if like is None:
        if not callable(reads) or not callable(work):
            raise InvalidInputError(
                f"reads={reads!r}, work={work!r}: both must be functions of a Call; or give like="
            )
        rules = _checked_reads(op, reads), _checked_work(op, work)
        _REGISTERED[op] = Operation(kind or "unknown", *rules)
        return
    known = find(like) if isinstance(like, str) else None
    if known is None:
        hint = closest(str(like), [*BUILT_IN, *_REGISTERED])
        raise InvalidInputError(f"like={like!r}: no such operation is known{hint}")
    _REGISTERED[op] = _like(op, like, known, kind, reads, work)


def _like(
    op: str,
    like: str,
    known: Operation,
    kind: str | None,
    reads: ReadRule | None,
    work: WorkRule | None,
) -> Operation:
    """Return what is known of an operation that is like another, whose rules may ask its name."""

    def renamed(call: Call) -> Call:
        return replace(call, op=like)

    if kind is None and reads is None and work is None:
        return replace(known, stands_for=renamed)
    if known.stands_for is not None:
        raise InvalidInputError(
            f"like={like!r}: is another name of an operation; give that one, or both rules"
        )
    return replace(
        known,
        kind=kind or (known.kind if isinstance(known.kind, str) else "unknown"),
        reads=_checked_reads(op, reads) if reads else lambda call: known.reads(renamed(call)),
        work=_checked_work(op, work) if work else lambda call: known.work(renamed(call)),
        windows=None,
    )


def _checked_reads(op: str, rule: ReadRule) -> ReadRule:
    """Return the rule with what it gives looked at, for a rule of the user's own."""

    def reads(call: Call) -> Reads:
        found = _asked(op, "reads", rule, call)
        wanted = f"one tuple of Reads for each of its {len(call.outputs)} outputs"
        if not isinstance(found, tuple | list) or len(found) != len(call.outputs):
            raise InvalidInputError(f"the rule reads= of {op!r} gave {found!r}: must be {wanted}")
        for each, out in zip(found, call.outputs, strict=True):
            if not isinstance(each, tuple | list) or not all(isinstance(r, Read) for r in each):
                raise InvalidInputError(
                    f"the rule reads= of {op!r} gave {each!r}: must be {wanted}"
                )
            entries = [entry for read in each for entry in read.axes]
            wrong = any(not isinstance(entry, AxisRead | None) for entry in entries)
            if wrong or any(len(read.axes) != out.ndim for read in each):
                raise InvalidInputError(
                    f"the rule reads= of {op!r} gave {each!r}: must have one AxisRead or None for "
                    f"each of the {out.ndim} axes of its output"
                )
        return tuple(map(tuple, found))

    return reads


def _checked_work(op: str, rule: WorkRule) -> WorkRule:
    def work(call: Call) -> Work:
        found = _asked(op, "work", rule, call)
        numbers = astuple(found) if isinstance(found, Work) else ()
        if not numbers or not all(type(n) is int and n >= 0 for n in numbers):
            raise InvalidInputError(
                f"the rule work= of {op!r} gave {found!r}: must be a Work of integers from 0"
            )
        return found

    return work


def _asked(op: str, name: str, rule: Callable[[Call], Any], call: Call) -> Any:
    try:
        return rule(call)
    except ConstrainedCNNError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInputError(f"the rule {name}= of {op!r} failed: {reason}") from error
