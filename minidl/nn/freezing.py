"""Freezing the batch normalization of a whole model, as for fine-tuning with small batches."""

from minidl.nn.batchnorm import BatchNorm
from minidl.nn.module import Module


def freeze_batchnorm(model: Module, statistics: bool = True, affine: bool = True) -> list[str]:
    """Freeze the batch normalization layers of `model`, or thaw them: each of the two becomes what is said.

    Args:
        model: With any layers.
        statistics: Whether the running statistics stay as they are and training normalizes by them
            (`BatchNorm.freeze_statistics`).
        affine: Whether gamma and beta stay as they are (`BatchNorm.freeze_affine`). Alone, as PyTorch's `requires_grad
            = False`, it does not keep the running statistics from moving.

    Returns:
        The names of the layers.

    Raises:
        ValueError: Statistics are to be frozen of a layer that tracks none; nothing is changed.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
    without = [name for name, layer in layers.items() if statistics and not layer.track_running_stats]
    if without:
        raise ValueError(
            f"freeze_batchnorm: {', '.join(without)}: there are no running statistics to freeze; give "
            "statistics=False, or make these layers with track_running_stats=True"
        )
    for layer in layers.values():
        layer.freeze_statistics(statistics).freeze_affine(affine)
    return list(layers)
