"""Chains of convolutions on tensor cores, in the emulator: every product that a model asks for is within its budget.

That the operations are put together rightly is shown in float64 (test_normalized_convolution.py). Here each call that
training makes is held against the float64 definition of the very arrays that it was given.
"""

from typing import Any

import numpy as np
import pytest

from kernels.batch_statistics import GradientSums, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_gradient_sums_reference, batchnorm_statistics_reference
from kernels.conv import reference
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32, storage_of
from minidl import nn
from minidl.backends.device import NARROW
from minidl.backends.emulated import EmulatorBackend
from minidl.lab.budget import compare
from minidl.lab.operations.batchnorm_bounds import GIVEN, elements, sums_bounds
from minidl.lab.operations.convolution_normalized_bounds import (
    activation,
    given,
    gradient,
    masked_bound,
    product_bound,
    statistics_bounds,
    wide,
)
from minidl.lab.operations.stored import half_unit


class Held(EmulatorBackend):
    """The emulator, whose fused convolutions are held against their definition."""

    def __init__(self, precision: str) -> None:
        super().__init__(EmulatorRunner(checks=False), precision)
        self.storage = NARROW.get(precision, FLOAT32)
        self.held: list[str] = []
        self.worst: dict[str, float] = {}
        self.chosen: set[str] = set()
        self.run.on_choice = lambda chosen: self.chosen.add(f"{chosen.operation} {chosen.technique}")

    def hold(self, what: str, got: Any, expected: Any, bound: Any) -> None:
        if what in ("y", "dx", "g") and self.storage is not FLOAT32:  # rounded once more
            bound = bound + half_unit(expected, bound, self.storage)
        found = compare(plain(got).astype(np.float64), expected, bound)
        assert found.passed, (what, found)
        self.worst[what] = max(found.ratio, self.worst.get(what, 0))
        self.held.append(what)

    def conv2d_normalized_forward(self, x, before, w, y, stride, padding, eps, out) -> None:
        super().conv2d_normalized_forward(x, before, w, y, stride, padding, eps, out)

        def made(a: np.ndarray, w: np.ndarray) -> np.ndarray:
            return reference.conv2d_forward_reference(a, w, None, stride, padding)

        a, b = activation(plain(x), plain(before)), given(plain(w), is_image=False)
        bound = product_bound(made, a, b, int(np.prod(w.shape[:3])), self.precision)
        self.hold("y", y, made(a.value, b.value), bound)
        stored = plain(y).astype(np.float64)
        right, shift = batchnorm_statistics_reference(stored, eps), plain(out.shift).astype(np.float64)
        bounds = statistics_bounds(stored, eps, shift, self.storage)
        self.hold("mean", shift + plain(out.delta), right.shift, bounds["mean"])
        self.hold("var", out.var, right.var, bounds["var"])

    def conv2d_normalized_backward_weight(self, x, before, dy, dw, stride, padding) -> None:
        super().conv2d_normalized_backward_weight(x, before, dy, dw, stride, padding)

        def made(a: np.ndarray, g: np.ndarray) -> np.ndarray:
            return reference.conv2d_backward_weight_reference(a, g, dw.shape, stride, padding)

        a, b = activation(plain(x), plain(before)), gradient(plain(dy))
        bound = product_bound(made, a, b, int(np.prod(dy.dy.shape[:3])), self.precision)
        self.hold("dw", dw, made(a.value, b.value), bound)

    def conv2d_normalized_backward_input(self, dy, w, dx, stride, padding, x, before, sums) -> None:
        super().conv2d_normalized_backward_input(dy, w, dx, stride, padding, x, before, sums)

        def made(g: np.ndarray, w: np.ndarray) -> np.ndarray:
            return reference.conv2d_backward_input_reference(g, w, dx.shape, stride, padding)

        a, b = gradient(plain(dy)), given(plain(w), is_image=False)
        full, bound = made(a.value, b.value), product_bound(made, a, b, w[..., 0, :].size, self.precision)
        if x is None:
            self.hold("dx", dx, full, bound)
            return
        x, before, g = plain(x), plain(before), plain(dx).astype(np.float64)
        e = elements(x, before.statistics, before.gamma, before.beta, GIVEN)
        self.hold("g", dx, np.where(before.relu & (e.y <= 0), 0, full), masked_bound(full, bound, x, before))
        right = batchnorm_gradient_sums_reference(x.astype(np.float64), g, wide(before._replace(relu=False)))
        bounds = sums_bounds(e, g, before.statistics.inv_std.astype(np.float64), False)
        for name, value in sums._asdict().items():
            self.hold(name, value, getattr(right, name), bounds[name])


def plain(value: Any) -> Any:
    """In host memory, whatever it is made of; images as float32."""
    if isinstance(value, Normalization):
        statistics = type(value.statistics)(*(plain(part) for part in value.statistics))
        return Normalization(statistics, plain(value.gamma), plain(value.beta), value.relu)
    if isinstance(value, PendingGradient):
        return PendingGradient(*(plain(part) for part in value))
    if isinstance(value, GradientSums):
        return GradientSums(*(plain(part) for part in value))
    if value is None:
        return None
    host = np.array(value.copy(), subok=False)
    return storage_of(host).decode(host) if host.itemsize == 2 else host


def network() -> nn.Sequential:
    """A first convolution that is not fused, a chain, a block with a way around; few kernels, for the emulator."""
    nn.manual_seed(6)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Residual(
            *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
            downsample=nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)),
            activation=nn.ReLU(),
        ),
        nn.GlobalAvgPool2d(),
        nn.Linear(8, 3),
    )


UNITS = {"tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}  # a factor loses up to this of itself


@pytest.mark.parametrize("precision", UNITS)
def test_training_is_within_its_budget(rng, precision: str) -> None:
    device = Held(precision)
    model, exact = network().to(device), network().to("reference")
    assert len(nn.fuse(model)) == 3
    model[0].input_gradient = exact[0].input_gradient = False
    x, dy = rng.standard_normal((3, 5, 5, 1)), rng.standard_normal((3, 3))
    ends = []
    for each in (model, exact):
        y = each.forward(each.backend.array(x))
        each.backward(each.backend.array(dy))
        ends.append(each.backend.numpy(y).astype(np.float64))
    # Of four convolutions; two of them read an activation that was written, one of these for two of them.
    counts = {what: device.held.count(what) for what in ("y", "mean", "dw", "dx", "g", "slope")}
    assert counts == {"y": 4, "mean": 4, "dw": 4, "dx": 2, "g": 2, "slope": 2}
    fused = [one.split() for one in device.chosen if one.startswith("conv2d_normalized")]
    assert len(fused) == 3
    assert {technique for _, technique in fused} == {"tensor_core"}
    # Both factors of each product, in four layers one behind another and the linear one, and in 16 bits what is stored.
    assert np.linalg.norm(ends[0] - ends[1]) < 5 * 3 * UNITS[precision] * np.linalg.norm(ends[1])
    assert np.linalg.norm(ends[0] - ends[1]) > 0
