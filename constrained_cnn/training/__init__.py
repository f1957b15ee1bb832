"""Training: a configuration, a trainer, and the history they give.

>>> from constrained_cnn import TrainConfig, Trainer
>>> config = TrainConfig(epochs=19, learning_rate=0.1)
"""

from constrained_cnn.training._config import TrainConfig
from constrained_cnn.training._evaluation import Evaluation
from constrained_cnn.training._folder import RunFolder, check_resume
from constrained_cnn.training._history import EpochRow, History
from constrained_cnn.training._interrupt import InterruptGuard
from constrained_cnn.training._many import (
    Fitted,
    SeedsProgress,
    check_same_seeds,
    check_seeds,
    seeded_model,
    share_cores,
)
from constrained_cnn.training._processes import in_processes
from constrained_cnn.training._source import ResidentSet
from constrained_cnn.training._timings import Timings
from constrained_cnn.training._trainer import Trainer
from constrained_cnn.training._world import World

__all__ = [
    "EpochRow",
    "Evaluation",
    "Fitted",
    "History",
    "InterruptGuard",
    "ResidentSet",
    "RunFolder",
    "SeedsProgress",
    "Timings",
    "TrainConfig",
    "Trainer",
    "World",
    "check_resume",
    "check_same_seeds",
    "check_seeds",
    "in_processes",
    "seeded_model",
    "share_cores",
]
