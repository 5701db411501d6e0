"""Whole networks and blocks of them against the same in PyTorch: five training steps, array by array.

Weights move across by state dicts, so names and shapes are PyTorch's too; PyTorch refuses others.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minidl import models, nn
from minidl.models.cost import cost
from minidl.nn.init import manual_seed

torch = pytest.importorskip("torch", reason='PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"')

import steps  # noqa: E402
import torch_twins  # noqa: E402

CLASSES = 5
RUNS = 10
SMALL, LARGER = (9, 8, 2), (9, 9, 2)

# Model, images, how many of them, normalization.
EVERY_NORM = ("batch", "ghost:4", "group:4", "layer", "instance", "none", "skipinit", "batch-after", "layer-after")
NORMS = [("resnet-8", SMALL, 8, norm) for norm in EVERY_NORM]
NORMS += [("preact-resnet-8", SMALL, 8, norm) for norm in ("batch", "group:8", "none", "skipinit", "batch-after")]
NORMS += [("mlp-3", SMALL, 8, norm) for norm in ("layer", "group:8", "none", "batch-after")]
NORMS += [("plain-7", SMALL, 8, norm) for norm in ("batch", "instance")]
NORMS += [("small-cnn", SMALL, 6, norm) for norm in ("batch", "none", "group:8-after")]
WHOLE = [
    ("plain-20", SMALL, 8, "batch"),
    ("resnet-20", SMALL, 8, "batch"),
    ("resnet-18", LARGER, 4, "batch"),
    ("preact-resnet-20", SMALL, 8, "batch"),
    ("preact-resnet-18", LARGER, 4, "batch"),
    ("inception-small", (8, 8, 2), 4, "batch"),
    ("mlp-3", SMALL, 8, "batch"),
    ("mlp-5", SMALL, 8, "batch"),
    ("mlp-10", SMALL, 8, "batch"),
]
# Not SkipInit's numbers: the gradient of each is a sum of thousands of terms that cancel, right by luck or not at all;
# `verify` holds it against the bound of its own terms. Nor both networks of 18 layers, which are large.
IN_FLOAT32 = [case for case in NORMS + WHOLE if case[3] != "skipinit" and case[0] != "preact-resnet-18"]


def pair_of(name: str, image: Any, norm: str, dtype: Any, zero_gamma: bool = False) -> Any:
    """Ours, and PyTorch's with the same state in `dtype`."""
    manual_seed(1)
    model = models.build(name, image, CLASSES, norm, zero_gamma)
    if not zero_gamma:
        steps.scatter_state(model)
    return model, same_state(torch_twins.twin(name, image, CLASSES, norm), model, dtype)


def same_state(twin: Any, model: nn.Module, dtype: Any) -> Any:
    twin.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in model.state_dict().items()})
    return twin.to(dtype)


def hold_against_float64(model: nn.Module, twin: Any, given: list[steps.Batch]) -> None:
    both = zip(steps.ours(model.to("reference"), given), steps.theirs(torch, twin, given), strict=True)
    for step, (mine, other) in enumerate(both):
        steps.assert_equal_but_for_rounding(mine.arrays, other.arrays, step)


def hold_against_float32(trio: Callable[[], Any], given: Callable[[int], list[steps.Batch]]) -> None:
    """Compare ours, PyTorch's in float32, and PyTorch's in float64, until rounding decides something (`decide_alike`).

    Then the next run begins, with other images: until as many steps as one run has were compared in all.
    """
    compared = 0
    for seed in range(RUNS):
        (model, twin, exact), batches = trio(), given(seed)
        runs = steps.ours(model, batches), steps.theirs(torch, twin, batches), steps.theirs(torch, exact, batches)
        for step, (mine, other, right) in enumerate(zip(*runs, strict=True)):
            if not steps.decide_alike(mine, other, right):
                break
            steps.assert_as_exact(mine.arrays, other.arrays, right.arrays, step)
            compared += 1
        if compared >= steps.STEPS:
            return
    pytest.fail(f"rounding decided so much that of {RUNS} runs {compared} steps could be compared")


@pytest.mark.parametrize(("name", "image", "count", "norm"), NORMS + WHOLE)
def test_it_trains_as_pytorchs_does(name: str, image: Any, count: int, norm: str) -> None:
    """Float64 on both sides: nothing but rounding, which a step multiplies, lies between the two."""
    model, twin = pair_of(name, image, norm, torch.float64)
    hold_against_float64(model, twin, steps.batches(image, CLASSES, count))


@pytest.mark.parametrize(
    ("name", "norm", "zero_gamma"),
    [
        ("resnet-8", "batch", False),
        ("resnet-8", "ghost:4", True),
        ("preact-resnet-8", "batch", False),
        ("plain-7", "batch", False),
        ("inception-small", "batch", False),
        ("mlp-3", "batch", False),
    ],
)
def test_fused_it_trains_as_pytorchs_does(name: str, norm: str, zero_gamma: bool) -> None:
    image = (5, 4, 2) if name == "inception-small" else SMALL
    model, twin = pair_of(name, image, norm, torch.float64, zero_gamma=zero_gamma)
    assert nn.fuse(model)
    hold_against_float64(model, twin, steps.batches(image, CLASSES, 8))


@pytest.mark.parametrize(("name", "image", "count", "norm"), IN_FLOAT32)
def test_on_the_cpu_it_is_as_exact_as_pytorch_in_float32(name: str, image: Any, count: int, norm: str) -> None:
    def trio() -> Any:
        return *pair_of(name, image, norm, torch.float32), pair_of(name, image, norm, torch.float64)[1]

    hold_against_float32(trio, lambda seed: steps.batches(image, CLASSES, count, seed))


# Blocks: a part of a network for itself. Their twins are the parts of the twins with the same names.

BLOCKS = [
    ("resnet-8", "layer1.0", (4, 5, 16), (4, 5, 16)),
    ("resnet-8", "layer2.0", (6, 5, 16), (3, 3, 32)),
    ("preact-resnet-8", "layer1.0", (4, 5, 16), (4, 5, 16)),
    ("preact-resnet-8", "layer2.0", (6, 5, 16), (3, 3, 32)),
    ("inception-small", "inception1", (4, 5, 96), (4, 5, 64)),
    ("inception-small", "down1", (4, 5, 80), (2, 3, 160)),
]


def block_of(name: str, path: str, dtype: Any) -> tuple[nn.Module, Any]:
    model, twin = pair_of(name, SMALL, "batch", dtype)
    return dict(model.named_modules())[path], dict(twin.named_modules())[path]


def inputs_of(shape: Any, output: Any, count: int, seed: int = 3) -> list[steps.Batch]:
    """Inputs and gradients of the output."""
    rng = np.random.default_rng(seed)
    both = ((rng.standard_normal((count, *shape)), rng.standard_normal((count, *output))) for _ in range(steps.STEPS))
    return [(x.astype(np.float32), dy.astype(np.float32)) for x, dy in both]


@pytest.mark.parametrize(("name", "path", "shape", "output"), BLOCKS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_block_trains_as_pytorchs_does(name: str, path: str, shape: Any, output: Any, fused: bool) -> None:
    block, twin = block_of(name, path, torch.float64)
    if fused:
        nn.fuse(block)
    hold_against_float64(block, twin, inputs_of(shape, output, 3))


def test_a_block_on_the_emulator_is_as_exact_as_pytorch_in_float32() -> None:
    def trio() -> Any:
        block, twin = block_of("resnet-8", "layer2.0", torch.float32)
        return block.to("emulator"), twin, block_of("resnet-8", "layer2.0", torch.float64)[1]

    hold_against_float32(trio, lambda seed: inputs_of((6, 5, 16), (3, 3, 32), 2, seed))


def test_resnet_110_has_pytorchs_names_and_shapes() -> None:
    for name in ("resnet-110", "preact-resnet-110"):
        model = models.build(name, (32, 32, 3), 10)
        twin = torch_twins.twin(name, (32, 32, 3), 10)
        theirs = {key: tuple(value.shape) for key, value in twin.state_dict().items()}
        assert {key: value.shape for key, value in model.state_dict().items()} == theirs


@pytest.mark.parametrize("norm", ["batch", "none", "skipinit"])
def test_flops_and_parameters_are_those_that_pytorch_counts(norm: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    image = 13, 12, 3
    names = {"batch": models.NAMES, "none": ("small-cnn", "plain-6", "resnet-14", "inception-small", "mlp-3")}
    for name in names.get(norm, ("resnet-14", "preact-resnet-14")):
        twin = torch_twins.twin(name, image, 7, norm).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin(torch.zeros(1, 3, 13, 12))
        found = cost(models.build(name, image, 7, norm), image)
        assert found.flops == counter.get_total_flops(), name
        assert found.parameters == sum(parameter.numel() for parameter in twin.parameters()), name
