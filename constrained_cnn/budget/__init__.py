"""What a network costs: parameters, multiply-accumulates and memory, exact, per layer."""

from constrained_cnn.budget._advice import ChannelCost
from constrained_cnn.budget._advise import Advice, advise
from constrained_cnn.budget._budget import Budget, LayerCost, Memory, measure_budget
from constrained_cnn.budget._diff import Change, Diff, Quantities, diff
from constrained_cnn.budget._fold import ScaleShift, fold_bn, foldings
from constrained_cnn.budget._folding import Folding
from constrained_cnn.budget._memory import Timeline, memory_timeline
from constrained_cnn.budget._order import NormOrder
from constrained_cnn.budget._parameters import Parameters, count_parameters

__all__ = [
    "Advice",
    "Budget",
    "Change",
    "ChannelCost",
    "Diff",
    "Folding",
    "LayerCost",
    "Memory",
    "NormOrder",
    "Parameters",
    "Quantities",
    "ScaleShift",
    "Timeline",
    "advise",
    "count_parameters",
    "diff",
    "fold_bn",
    "foldings",
    "measure_budget",
    "memory_timeline",
]
