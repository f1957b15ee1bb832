"""Whether several processes are asked for the same run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from constrained_cnn.errors import InvalidInputError
from constrained_cnn.training._checkpoint import say_tensor
from constrained_cnn.training._saved import identity_of

if TYPE_CHECKING:
    from constrained_cnn.training._run import Run


def check_alike(run: "Run", *, resume: bool) -> None:
    """Raise in every process unless all of them are asked for the same run.

    Otherwise they would wait for one another in different places, or each learn something else.

    Raises:
        InvalidInputError: With what differs.
    """
    plan = run.plan
    if plan.world.size == 1:
        return
    judged = {} if plan.validation is None else plan.validation.describe()
    asked = {
        **identity_of(run),
        "words": {
            "folder": plan.keeps,
            "resume": resume,
            "executor": plan.executor,
            "validation": "given" if judged else None,
        },
        "weights": {
            name: f"{say_tensor(part)}{', trained' if part.requires_grad else ''}"
            for name, part in plan.model.named_parameters()
        },
        "buffers": {name: say_tensor(part) for name, part in plan.model.named_buffers()},
        "validation": {f"validation {name}": value for name, value in judged.items()},
    }
    differing = _differences(plan.world.gathered(asked))
    if differing:
        listed = "; ".join(differing[:4]) + ("; ..." if len(differing) > 4 else "")
        raise InvalidInputError(
            f"the processes are asked for different runs: {listed}. Give all of them the same, "
            "and the data whole: every batch is shared out here"
        )


def _differences(told: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return in what each of several processes says something else than the first."""
    return [
        f"{name} is {told[0][what].get(name)!r} in process 0 and {other[what].get(name)!r} in "
        f"process {rank}"
        for rank, other in enumerate(told)
        for what in other
        for name in sorted({*told[0][what], *other[what]})
        if other[what].get(name) != told[0][what].get(name)
    ]
