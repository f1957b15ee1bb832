"""Rules on what a network becomes on a device."""

from dataclasses import dataclass
from typing import ClassVar

from constrained_cnn.budget._folding import foldings_of
from constrained_cnn.budget._order import better_order
from constrained_cnn.constraints._rule import Finding, Rule
from constrained_cnn.constraints._subject import Subject
from constrained_cnn.constraints._table import register_rule


@register_rule
@dataclass(frozen=True, repr=False)
class EveryNormFolds(Rule):
    """Nothing is left of any norm once the network is folded, as ``fold_bn`` does it.

    Norms that work out statistics of the sample, such as group norm, never fold; those on which no
    output depends do not matter.

    Examples:
        >>> from torch import nn
        >>> from constrained_cnn.constraints import Subject
        >>> from constrained_cnn.tracing import trace
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> EveryNormFolds().judge(Subject(trace(net, (1, 8, 8)))).measured
        '1 of 1 norms folds'
    """

    kind: ClassVar[str] = "norms_fold"
    title = "every norm folds"
    required = "nothing left of any norm"

    def find(self, subject: Subject) -> Finding:
        """Return the norms of which something is left, and why."""
        graph = subject.graph
        norms = [one for one in foldings_of(graph) if one.position in graph.live_layers]
        left = [str(one) for one in norms if one.left]
        if not left:
            subject.check_known()
        order = better_order(graph) if left else None
        folding = len(norms) - len(left)
        measured = f"{folding} of {len(norms)} norms {'folds' if folding == 1 else 'fold'}"
        return self.finding(
            not left,
            measured if norms else "there is no norm",
            excess=f"{len(left)} {'stays' if len(left) == 1 else 'stay'}" if left else "",
            evidence=(*left, *([str(order)] if order else [])),
        )
