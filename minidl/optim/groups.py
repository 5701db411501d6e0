"""Parameter groups: which parameters weight decay is meant for."""

from minidl.nn import Module
from minidl.optim.optimizer import Group


def decay_groups(model: Module, weight_decay: float, norm_decay: float = 0.0) -> list[Group]:
    """Two parameter groups: weights, and what is apart from them, biases, normalization and `nn.Scale`.

    Args:
        model: Its parameters say which they are, by `Parameter.decay`.
        weight_decay: Of the weights.
        norm_decay: Of the others. 0 is the usual choice; `weight_decay` again is what PyTorch does without groups.
    """
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.decay], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if not parameter.decay], "weight_decay": norm_decay},
    ]
