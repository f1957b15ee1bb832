"""The rules of a recipe: judged before the first step, and with the record after the last."""

import dataclasses
import warnings
from dataclasses import dataclass

from torch import nn

from constrained_cnn.constraints import Constraints, Report, as_constraints, check
from constrained_cnn.errors import ConstraintError, InvalidInputError, reason_of
from constrained_cnn.recipes._recipe import Recipe
from constrained_cnn.record import RunRecord


@dataclass(frozen=True)
class RulesOfARecipe:
    """The rules of a recipe, and the network they are of.

    Attributes:
        recipe: The recipe.
        model: The network.
        rules: The rules; None where the recipe has none.
    """

    recipe: Recipe
    model: nn.Module
    rules: Constraints | None

    @classmethod
    def of(cls, recipe: Recipe, model: nn.Module) -> "RulesOfARecipe":
        """Return the rules of a recipe for its model.

        Raises:
            InvalidInputError: If there are no rules of that name, or a departure names no rule.
        """
        if recipe.constraints is None:
            return cls(recipe, model, None)
        rules = as_constraints(recipe.constraints)
        names = sorted(rule.name for rule in rules if rule.name)
        for name in recipe.departures:
            if name not in names:
                raise InvalidInputError(
                    f"departures: name={name!r}: no rule has it; names are {names}"
                )
        return cls(recipe, model, rules)

    def check_before(self) -> None:
        """Raise if the network breaks a rule that it is not known to break.

        Raises:
            ConstraintError: With what is broken, and the evidence.
        """
        if self.rules is None:
            return
        report = self._report(self.rules)
        broken = [one for one in report.failed if one.rule.name not in self.recipe.departures]
        if broken:
            kept = dataclasses.replace(report, findings=tuple(broken))
            raise ConstraintError(f"before the first step: {kept.explain()}", report=report)

    def judged(self, record: RunRecord) -> RunRecord:
        """Return the record with the report on the network and on the run itself.

        A rule that fails to judge costs the report, with a warning, and never the run.
        """
        if self.rules is None:
            return record
        try:
            report = self._report(self.rules, record).to_dict()
        except Exception as error:  # noqa: BLE001 - a rule may be anybody's
            warnings.warn(f"the run was not judged by its rules: {reason_of(error)}", stacklevel=3)
            return record
        return dataclasses.replace(record, report=report)

    def _report(self, rules: Constraints, record: RunRecord | None = None) -> Report:
        report = check(self.model, self.recipe.input_shape, rules, run=record)
        return dataclasses.replace(report, model=self.recipe.model)
