"""Training: the loop, and what a run leaves behind.

`Trainer` is the loop for programs; `begin` and `resume` make a `Session`, the whole run that `minidl train` is.
"""

from minidl.training.config import TrainConfig
from minidl.training.evaluation import ImageSource, Result, evaluate, reestimate
from minidl.training.saved import load_model
from minidl.training.session import Reporter, Session, begin, resume
from minidl.training.trainer import Progress, Trainer

__all__ = [
    "ImageSource",
    "Progress",
    "Reporter",
    "Result",
    "Session",
    "TrainConfig",
    "Trainer",
    "begin",
    "evaluate",
    "load_model",
    "reestimate",
    "resume",
]
