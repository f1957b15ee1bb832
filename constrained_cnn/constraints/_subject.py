"""What rules are judged on: the graph of a network, what is measured on it, records of its runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from constrained_cnn.budget import Budget, measure_budget
from constrained_cnn.constraints._steps import Course, evaluation_of, training_of
from constrained_cnn.graph import Graph
from constrained_cnn.receptive_field import LayerField, ReceptiveField, measure_receptive_field
from constrained_cnn.record import RunRecord


class CannotTellError(Exception):
    """A rule cannot be judged; says why."""


@dataclass(frozen=True)
class Subject:
    """A network as it runs, and the records of its runs. What is measured is measured once.

    Attributes:
        graph: The network.
        runs: The records.
    """

    graph: Graph
    runs: tuple[RunRecord, ...] = ()

    @cached_property
    def budget(self) -> Budget:
        """What it costs."""
        return measure_budget(self.graph)

    @cached_property
    def field(self) -> ReceptiveField:
        """What its units see, up to the last that stand at places of the image."""
        return measure_receptive_field(self.graph)

    @cached_property
    def sheet(self) -> ReceptiveField:
        """What the units of every layer see, where it can be said and where it cannot.

        Raises:
            CannotTellError: If no layer runs.
        """
        if not self.graph.layers:
            raise CannotTellError("no layer runs")
        return measure_receptive_field(self.graph, layer=self.graph.layers[0].name)

    @cached_property
    def fields(self) -> Mapping[str, LayerField]:
        """What the units of each layer see, by its name; layers of other inputs are not in it."""
        return {row.name: row for row in self.sheet.layers}

    @cached_property
    def evaluation(self) -> Course:
        """The operations in evaluation mode."""
        return evaluation_of(self.graph)

    @cached_property
    def training(self) -> Course:
        """The operations in training mode.

        Raises:
            CannotTellError: If the network cannot run in training mode.
        """
        problem = self.graph.training.problem
        if problem:
            raise CannotTellError(f"the network does not run in training mode: {problem}")
        return training_of(self.graph)
