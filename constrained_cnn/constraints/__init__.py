"""Constraints: rules as data, judged on what runs.

>>> from constrained_cnn import models
>>> from constrained_cnn.constraints import check
>>> report = check(models.mnist_12k(), (1, 28, 28), "mnist-12k")
>>> report.ok
True
"""

from constrained_cnn.constraints._check import as_constraints, check
from constrained_cnn.constraints._constraints import Constraints
from constrained_cnn.constraints._costs import EveryNormFolds, Macs, Memory, Parameters, WeightBytes
from constrained_cnn.constraints._fields import CoversInput, FieldAtPools, FieldSize
from constrained_cnn.constraints._layers import Count, Dropout, Padding
from constrained_cnn.constraints._measured import Limits, Measure, Measured
from constrained_cnn.constraints._order import (
    BlockOrder,
    CleanPrediction,
    ConvsBeforePool,
    Distance,
)
from constrained_cnn.constraints._reading import (
    constraints_from_dict,
    get_constraints,
    list_constraints,
    load_constraints,
    rule_from_dict,
    save_constraints,
)
from constrained_cnn.constraints._report import Report
from constrained_cnn.constraints._results import (
    Accuracy,
    BestAccuracy,
    LastEpochs,
    Seeds,
    TestUnseen,
)
from constrained_cnn.constraints._rule import AllOf, AnyOf, Finding, Not, Rule, Verdict
from constrained_cnn.constraints._runs import (
    Augmentation,
    BatchSize,
    DataSet,
    Epochs,
    Normalisation,
)
from constrained_cnn.constraints._subject import CannotTellError, Subject
from constrained_cnn.constraints._table import register_rule, rule_kinds

__all__ = [
    "Accuracy",
    "AllOf",
    "AnyOf",
    "Augmentation",
    "BatchSize",
    "BestAccuracy",
    "BlockOrder",
    "CannotTellError",
    "CleanPrediction",
    "Constraints",
    "ConvsBeforePool",
    "Count",
    "CoversInput",
    "DataSet",
    "Distance",
    "Dropout",
    "Epochs",
    "EveryNormFolds",
    "FieldAtPools",
    "FieldSize",
    "Finding",
    "LastEpochs",
    "Limits",
    "Macs",
    "Measure",
    "Measured",
    "Memory",
    "Normalisation",
    "Not",
    "Padding",
    "Parameters",
    "Report",
    "Rule",
    "Seeds",
    "Subject",
    "TestUnseen",
    "Verdict",
    "WeightBytes",
    "as_constraints",
    "check",
    "constraints_from_dict",
    "get_constraints",
    "list_constraints",
    "load_constraints",
    "register_rule",
    "rule_from_dict",
    "rule_kinds",
    "save_constraints",
]
