"""The operation table: what each operation of torch is, reads and costs, in one record.

Nothing else in the package names an operation.
"""

from constrained_cnn.tracing.operations._call import Call, Reads, elementwise, spread, tensors
from constrained_cnn.tracing.operations._operation import Operation, settings_of
from constrained_cnn.tracing.operations._register import described, find, register_op
from constrained_cnn.tracing.operations._table import BUILT_IN

__all__ = [
    "BUILT_IN",
    "Call",
    "Operation",
    "Reads",
    "described",
    "elementwise",
    "find",
    "register_op",
    "settings_of",
    "spread",
    "tensors",
]
