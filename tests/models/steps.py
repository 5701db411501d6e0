"""Training steps of a network and of its PyTorch twin, side by side: all arrays by name, and how they are compared."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl import nn, optim

STEPS = 5
SMOOTHING, LR, MOMENTUM, DECAY = 0.1, 0.05, 0.9, 1e-3

Arrays = dict[str, np.ndarray]
Decisions = list[np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]  # images and labels, or an input and the gradient of the output


class Step(NamedTuple):
    """One step.

    Attributes:
        arrays: Loss, output, input gradient and parameter gradients, and the state after the step, by name.
        decisions: Of each ReLU in the order of the forward pass where it lets through, and of each max-pool which of
            its elements won.
    """

    arrays: Arrays
    decisions: Decisions


def batches(image: tuple[int, int, int], classes: int, count: int, seed: int = 9) -> list[Batch]:
    """Images in float32, so that float32 and float64 networks are given the same, and labels."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((count, *image)).astype(np.float32), rng.integers(0, classes, count)) for _ in range(STEPS)
    ]


def ours(model: nn.Module, given: list[Batch]) -> Iterator[Step]:
    """Train `model`; of a fused one the decisions are not seen."""
    backend = model.backend
    decisions: Decisions = []
    for _, module in model.named_modules():
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            _watch(module, decisions)
    loss = nn.CrossEntropyLoss(label_smoothing=SMOOTHING, device=backend)
    sgd = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for x, target in given:
        model.zero_grad()
        decisions.clear()
        y = model.forward(backend.array(x))
        record = {"output": backend.numpy(y)}
        if target.dtype.kind == "i":
            record["loss"] = backend.numpy(loss.forward(y, backend.array(target, np.int64)))
            dy = loss.backward()
        else:
            dy = backend.array(target)
        record["dx"] = backend.numpy(model.backward(dy))
        for name, parameter in model.named_parameters():
            gradient = backend.numpy(parameter.grad)
            record[f"gradient of {name}"] = gradient.transpose(parameter.axes or range(gradient.ndim))
        sgd.step()
        yield Step(record | model.state_dict(), list(decisions))


def _watch(module: nn.Module, decisions: Decisions) -> None:
    forward = module.forward

    def watched(x: Any) -> Any:
        y = forward(x)
        decisions.append(module.backend.numpy(module.kept()[0]) if isinstance(module, nn.MaxPool2d) else y > 0)
        return y

    module.forward = watched  # type: ignore[method-assign]


def theirs(torch: Any, model: Any, given: list[Batch]) -> Iterator[Step]:
    """The same of a PyTorch network, in its dtype."""
    decisions: Decisions = []

    def watched(module: Any, inputs: tuple[Any], y: Any) -> None:
        if isinstance(module, torch.nn.MaxPool2d):
            sizes = module.kernel_size, module.stride, module.padding
            y = torch.nn.functional.max_pool2d(*inputs, *sizes, return_indices=True)[1]
        else:
            y = y > 0
        decisions.append((y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy())

    for module in model.modules():
        if isinstance(module, (torch.nn.ReLU, torch.nn.MaxPool2d)):
            module.register_forward_hook(watched)
    dtype = next(model.parameters()).dtype
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    sgd = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for images, target in given:
        sgd.zero_grad()
        decisions.clear()
        x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(dtype).requires_grad_()
        y = model(x)
        record = {"output": y.permute(0, 2, 3, 1) if y.ndim == 4 else y}
        if target.dtype.kind == "i":
            loss = loss_of(y, torch.from_numpy(target))
            record["loss"] = loss
            loss.backward()
        else:
            y.backward(torch.from_numpy(np.moveaxis(target, -1, 1).copy()).to(dtype))
        record["dx"] = x.grad.permute(0, 2, 3, 1)
        record |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
        arrays = {name: value.detach().numpy().copy() for name, value in record.items()}
        sgd.step()
        state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        yield Step(arrays | state, list(decisions))


def scatter_state(model: nn.Module, seed: int = 4) -> None:
    """Move gamma, beta, biases, scalars and running statistics away from the ones and zeros that they start as."""
    rng = np.random.default_rng(seed)
    state = model.state_dict()
    for name, value in state.items():
        if value.dtype.kind == "f" and value.ndim < 2:
            state[name] = (value + rng.uniform(0.1, 0.4, value.shape)).astype(np.float32)
    model.load_state_dict(state)


def decide_alike(*runs: Step) -> bool:
    """Whether no element was so near to a kink that rounding put it on the one side here and on the other there.

    From there on they train different networks. With 100,000 elements it happens in float32 every few steps.
    """
    first, *others = (run.decisions for run in runs)
    assert all(len(other) == len(first) > 0 for other in others)
    return all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def assert_equal_but_for_rounding(mine: Arrays, other: Arrays, step: int) -> None:
    """Both in float64: each array's largest error is below 1e-12 of its largest element."""
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert value.shape == other[name].shape, name
        error = np.abs(value - other[name]).max()
        assert error <= 1e-12 * np.abs(other[name]).max(), f"{name} at step {step}: {error:.3g}"


def assert_as_exact(mine: Arrays, other: Arrays, right: Arrays, step: int) -> None:
    """Ours in float32 is off by at most eight times as much as PyTorch's, both held against float64.

    What float32 costs through many layers and steps is what it costs an independent implementation of them. Errors are
    those of each array's largest one, relative to its largest element. Both sum in orders that depend on the BLAS at
    hand. An array of few elements can be right by luck, so PyTorch's error counts as no less than that of half of the
    arrays of the step. Half a unit of the largest element is what the result alone rounds by; a mean is that of numbers
    which are larger than it by the deviation, and is kept as an element and a rest.
    """
    assert mine.keys() == other.keys() == right.keys()
    scales = {name: np.abs(value).max() for name, value in right.items()}
    for name in scales:
        if name.endswith("running_mean"):
            scales[name] += np.sqrt(right[name.replace("mean", "var")].max())
    theirs_off = {name: _off(other[name], right[name], scale) for name, scale in scales.items()}
    ordinary = float(np.median([off for off in theirs_off.values() if off]))
    for name, scale in scales.items():
        assert mine[name].shape == right[name].shape, name
        off, cost = _off(mine[name], right[name], scale), max(theirs_off[name], ordinary) + 2.0**-24
        assert off <= 8 * cost, f"{name} at step {step}: off by {off:.3g}, PyTorch by {theirs_off[name]:.3g}"


def _off(value: np.ndarray, right: np.ndarray, scale: float) -> float:
    error = float(np.abs(value - right).max())
    return error / float(scale) if scale else (0.0 if error == 0 else np.inf)
