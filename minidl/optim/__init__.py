"""Optimizers with PyTorch's update rules, and what is done beside them: clipping gradients, averaging weights.

Parameters come as a list, or as groups (dicts with "params" and any option that differs for the group), so that weight
decay can leave out biases and normalization: `decay_groups(model, weight_decay)` makes those two groups.

    optimizer.zero_grad()
    ...                                                     # forward and backward
    clip_grad_norm(model.parameters(), max_norm=1.0)
    optimizer.step()
    average.update()                                        # a WeightAverage(model)
"""

from minidl.optim.adam import Adam, AdamW
from minidl.optim.averaging import WeightAverage
from minidl.optim.clipping import clip_grad_norm
from minidl.optim.groups import decay_groups
from minidl.optim.optimizer import Group, Optimizer
from minidl.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Group", "Optimizer", "WeightAverage", "clip_grad_norm", "decay_groups"]
