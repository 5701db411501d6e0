"""Training: the loop, and what a run leaves behind.

`Trainer` is the loop for programs; `begin` and `resume` make a `Session`, the whole run that `minidl train` is.
"""

from minidl.training.config import TrainConfig
from minidl.training.evaluation import ImageSource, Result, evaluate, reestimate
from minidl.training.progress import Progress
from minidl.training.saved import load_model
from minidl.training.session import Reporter, Session
from minidl.training.starting import begin, resume
from minidl.training.trainer import Trainer

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
