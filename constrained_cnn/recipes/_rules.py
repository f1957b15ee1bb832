"""The rules of a recipe: judged before the first step, and with the record after the last."""

import dataclasses
from dataclasses import dataclass

from torch import nn

from constrained_cnn.constraints import Constraints, check
from constrained_cnn.constraints import get_constraints as rules_named
from constrained_cnn.errors import ConstraintError
from constrained_cnn.graph import Graph
from constrained_cnn.recipes._recipe import Recipe
from constrained_cnn.record import RunRecord
from constrained_cnn.tracing import trace


@dataclass(frozen=True)
class RulesOfARecipe:
    """The rules of a recipe, and the network they are of.

    Attributes:
        rules: The rules; None where the recipe has none.
        graph: The network; None where there is nothing to judge.
        departures: Names of rules that the network is known to break.
    """

    rules: Constraints | None = None
    graph: Graph | None = None
    departures: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, model: nn.Module) -> "RulesOfARecipe":
        """Return the rules of a recipe for its model.

        Raises:
            InvalidInputError: If there are no rules of that name, or a departure names no rule.
        """
        rules = recipe.constraints
        if rules is None:
            return cls()
        rules = rules_named(rules) if isinstance(rules, str) else rules
        rules.without(*recipe.departures)  # raises if one is no rule's name
        graph = dataclasses.replace(trace(model, recipe.input_shape), model=recipe.model)
        return cls(rules, graph, recipe.departures)

    def check_before(self) -> None:
        """Raise if the network breaks a rule that it is not known to break.

        Raises:
            ConstraintError: With what is broken, and the evidence.
        """
        if self.rules is None or self.graph is None:
            return
        report = check(self.graph, constraints=self.rules)
        broken = [one for one in report.failed if one.rule.name not in self.departures]
        if broken:
            kept = dataclasses.replace(report, findings=tuple(broken))
            raise ConstraintError(f"before the first step: {kept.explain()}", report=report)

    def judged(self, record: RunRecord) -> RunRecord:
        """Return the record with the report on the network and on the run itself."""
        if self.rules is None or self.graph is None:
            return record
        report = check(self.graph, constraints=self.rules, run=record)
        return dataclasses.replace(record, report=report.to_dict())
