"""Folding: batch normalization, by its running statistics, made part of the convolution or linear layer beside it.

What the folded weights are, and what float32 loses by them: minidl/nn/folded_weights.py. They can be

    behind a layer    always: the network goes conv, bn, ReLU
    before a layer    where nothing but normalized values reaches it. Padding puts zeros beside values that are
                      normalized already, and the folded bias would count for them, too: no bias is right both at the
                      borders and in the middle. So before a convolution it works only without padding.

Speed. A pass over memory is saved; but a step that does batch normalization and ReLU together (`fuse`) takes as many
passes as the ReLU that is left of it, and with a residual sum fewer. So against a fused model folding wins nothing by
itself; it is for devices and files that are to have no batch normalization.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

import numpy as np

from minidl.nn.activation import Dropout
from minidl.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d
from minidl.nn.folded_weights import FoldedWeights
from minidl.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d
from minidl.nn.group_norm import SampleNorm
from minidl.nn.linear import Conv2d, Linear
from minidl.nn.lines import Line, lines, without
from minidl.nn.module import Module
from minidl.nn.noise import NoisyBatchNorm1d, NoisyBatchNorm2d
from minidl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d

# Exactly these: a subclass may compute something else. In evaluation all of them are x s + t.
_OF_IMAGES = (BatchNorm2d, GhostBatchNorm2d, NoisyBatchNorm2d)
_OF_VECTORS = (BatchNorm1d, GhostBatchNorm1d, NoisyBatchNorm1d)
_SHOWN = 3  # layers in a message


class Folded(NamedTuple):
    """What `fold` gives.

    Attributes:
        model: The model without the normalization that was folded; in evaluation mode.
        folded: For each layer of batch normalization that is gone, the layer that does its work: {"bn1": "conv1"}.
        left: For each normalization that is still there, of any kind, why.
    """

    model: Module
    folded: dict[str, str]
    left: dict[str, str]


def fold(model: Module, untrained: bool = False) -> Folded:
    """Fold batch normalization into the convolutions and linear layers beside it, for inference.

    The outputs are those of the model in evaluation, but for rounding. All other layers stay as they are, under their
    names, and so does their fusion. What cannot be folded is left in its place, and `left` says why.

    Args:
        model: Any nesting of minidl's containers, on any device. It is not changed, and nothing is shared with it.
        untrained: Fold running statistics that no batch has gone into, too: to measure speed, or to have a model that
            takes the state of a folded one.

    Returns:
        The folded model and what was done: `model, folded, left = fold(model)`.

    Raises:
        ValueError: Nothing can be folded; a layer stands in two places; running statistics are untrained, or none that
            one can normalize by; or folded weights are beyond what the device's floating-point numbers can hold.
    """
    _require_one_place_each(model)
    plan = _Plan()
    for line in lines(model):
        plan.see(line)
    left = _left(model, plan)
    if not plan.steps:
        raise ValueError(f"fold: {_why_nothing(model, left)}")
    _require_good_statistics(plan, untrained)
    weights = _weights(plan)

    result = copy.deepcopy(model)
    result.zero_grad()
    layers = dict(result.named_modules())
    for layer in layers.values():
        layer._kept = None
    for path, of_layer in weights.items():
        layer = layers[path]
        assert _has_weights(layer)
        of_layer.put_into(layer)
    folded = {path: plan.steps[path].into for path, _ in model.named_modules() if path in plan.steps}
    return Folded(without(result, folded).eval(), folded, left)


# What goes where.


class _Step(NamedTuple):
    norm: BatchNorm
    into: str
    behind: bool  # whether normalization is behind the layer that takes it


@dataclass
class _Plan:
    """Steps in the order in which they are taken, and why there are no others; by the paths of the normalizations."""

    steps: dict[str, _Step] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    targets: dict[str, Conv2d | Linear] = field(default_factory=dict)

    def see(self, line: Line) -> None:
        """Plan what can be folded along a line: into the layer before, or else into the one behind."""
        waiting: dict[str, str] = {}
        target, obstacle = "", line.before
        for path, layer in line.links:
            if _has_weights(layer):
                target, obstacle, self.targets[path] = path, "", layer
            elif isinstance(layer, BatchNorm):
                why = _unfit(layer) or (f"it comes after {obstacle}" if obstacle else _misfit(layer, self, target))
                if not why:
                    self.steps[path] = _Step(layer, target, behind=True)
                    continue
                (self.left if _unfit(layer) else waiting)[path] = why
                obstacle = f"{type(layer).__name__} {path}"
            elif type(layer) is not Dropout:
                obstacle = f"{type(layer).__name__} {path}"

        target, obstacle, flattened = "", line.after, False
        for path, layer in reversed(line.links):
            if _has_weights(layer):
                target, obstacle, flattened = path, _padding(path, layer), False
            elif path in waiting:
                assert isinstance(layer, BatchNorm)
                why = obstacle or _misfit_before(layer, self, target, flattened)
                if not why:
                    self.steps[path] = _Step(layer, target, behind=False)
                    continue
                self.left[path] = f"{waiting[path]}, and {why}"
                obstacle = f"{type(layer).__name__} {path} follows"
            elif type(layer) is Flatten:
                flattened = True
            elif path not in self.steps and not _keeps_affine_maps(layer):
                obstacle = f"{type(layer).__name__} {path} follows"


def _has_weights(layer: Module) -> TypeGuard[Conv2d | Linear]:
    return type(layer) in (Conv2d, Linear)


def _keeps_affine_maps(layer: Module) -> bool:
    """Whether it gives (x s + t) for each channel where it would have given x."""
    if type(layer) is AvgPool2d:
        return layer.padding == (0, 0)  # zeros that count are not normalized, as in a convolution
    return type(layer) in (Dropout, GlobalAvgPool2d)  # in evaluation


def _padding(path: str, layer: Conv2d | Linear) -> str:
    if isinstance(layer, Linear) or layer.padding == (0, 0):
        return ""
    return f"{path}, which follows, pads with zeros that are not normalized: the borders would be wrong"


def _unfit(norm: BatchNorm) -> str:
    if type(norm) not in _OF_IMAGES + _OF_VECTORS:
        return f"what a {type(norm).__name__} does beyond batch normalization is not known"
    if not norm.track_running_stats:
        return "it normalizes by each batch, in evaluation too (track_running_stats=False)"
    return ""


def _misfit(norm: BatchNorm, plan: _Plan, target: str) -> str:
    layer = plan.targets[target]
    given = layer.out_channels if isinstance(layer, Conv2d) else layer.out_features
    kinds = _OF_IMAGES if isinstance(layer, Conv2d) else _OF_VECTORS
    fits = type(norm) in kinds and given == norm.num_features
    return "" if fits else f"it does not take what {target} gives"


def _misfit_before(norm: BatchNorm, plan: _Plan, target: str, flattened: bool) -> str:
    layer, channels = plan.targets[target], norm.num_features
    taken = layer.in_channels if isinstance(layer, Conv2d) else layer.in_features
    fits = taken % channels == 0 if flattened and isinstance(layer, Linear) else taken == channels
    return "" if fits else f"{target} does not take what it gives"


def _left(model: Module, plan: _Plan) -> dict[str, str]:
    left = {}
    for path, layer in model.named_modules():
        if path not in plan.steps and isinstance(layer, BatchNorm):
            left[path] = plan.left.get(path, "it is inside a container whose wiring is not known")
        elif isinstance(layer, SampleNorm):
            left[path] = f"{type(layer).__name__} goes by statistics of its input, which are no constants"
    return left


@np.errstate(over="ignore", invalid="ignore")  # refused below
def _weights(plan: _Plan) -> dict[str, FoldedWeights]:
    """The weights of all layers that take in normalization, by their paths."""
    weights: dict[str, FoldedWeights] = {}
    for norm, path, behind in plan.steps.values():
        found = weights.setdefault(path, FoldedWeights.of(plan.targets[path]))
        (found.behind if behind else found.before)(norm)
    for path, found in weights.items():
        layer = plan.targets[path]
        if not all(np.isfinite(array.astype(layer.backend.dtype)).all() for array in (found.w, found.b)):
            raise ValueError(
                f"fold: the folded weights of {path} are not finite in {np.dtype(layer.backend.dtype).name}; look for "
                f"NaN, infinity or very large numbers in it and in the normalization beside it"
            )
    return weights


# What is refused.


def _require_one_place_each(model: Module) -> None:
    places: dict[Module, str] = {}
    for path, layer in model.named_modules():
        if layer in places:
            raise ValueError(
                f"fold: {type(layer).__name__} stands in two places, {places[layer]} and {path}, and what is folded at "
                "one would be wrong at the other; give each place a layer of its own"
            )
        places[layer] = path


def _require_good_statistics(plan: _Plan, untrained: bool) -> None:
    fresh = []
    for path, (norm, *_) in plan.steps.items():
        mean, var = (norm.backend.numpy(buffer) for buffer in (norm.running_mean, norm.running_var))
        if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var + norm.eps > 0).all()):
            raise ValueError(f"fold: {path}: the running statistics hold NaN, infinity or a negative variance")
        if norm.num_batches_tracked == 0 and not mean.any() and (var == 1).all():
            fresh.append(path)
    if fresh and not untrained:
        raise ValueError(
            f"fold: no batch has gone into the running statistics of {_few(fresh)}; train or load the model first, or "
            "give untrained=True"
        )


def _why_nothing(model: Module, left: Mapping[str, str]) -> str:
    if not left:
        return f"this {type(model).__name__} has no normalization"
    if "" in left:
        return f"nothing can be folded into a {type(model).__name__} alone"
    return f"nothing can be folded: {_few(reasons(left), '; ')}"


def reasons(left: Mapping[str, str]) -> list[str]:
    """`Folded.left` in words: "norm1, norm2: why", the layers of one reason together."""
    together: dict[str, list[str]] = {}
    for path, why in left.items():
        together.setdefault(why, []).append(path)
    return [f"{_few(paths)}: {why}" for why, paths in together.items()]


def _few(texts: Iterable[str], separator: str = ", ") -> str:
    texts = list(texts)
    more = f"{separator}and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return separator.join(texts[:_SHOWN]) + more
