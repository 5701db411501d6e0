"""Convolution and linear layers, each direction by itself."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.conv.geometry import Geometry
from kernels.launch import Cost
from minidl.backends import Array, Backend
from minidl.lab.bench.operations.problem import (
    Answers,
    Arrays,
    Call,
    Compiled,
    Input,
    Problem,
    normal,
    without_gradients,
)
from minidl.lab.bench.shapes import Shape


def _calls(backend: Backend, shape: tuple[int, ...], name: str, operate: Callable[[Array], None]) -> Call:
    """A call that writes into a new array each time, as layers do."""

    def run() -> Answers:
        out = backend.empty(shape)
        operate(out)
        return {name: out}

    return Call(run)


def convolution(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """conv2d_forward, conv2d_backward_input or conv2d_backward_weight, without a bias."""
    kernel, stride, padding = shape.kernel, shape.stride, shape.padding
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    geometry = Geometry(shape.h, shape.w, shape.c_in, kh, kw, shape.c_out, sh, sw, ph, pw)
    x_shape = (shape.n, shape.h, shape.w, shape.c_in)
    w_shape = (*kernel, shape.c_in, shape.c_out)
    y_shape = (shape.n, geometry.ho, geometry.wo, shape.c_out)
    x, w = Input(normal(rng, x_shape), "activation"), Input(normal(rng, w_shape, geometry.taps**-0.5), "weight")
    dy = Input(normal(rng, y_shape), "activation")
    window = stride, padding

    def backward(torch: Any, tensors: Mapping[str, Any], compiled: Compiled, which: int) -> Callable[[], Answers]:
        mask = [position == which for position in range(3)]

        def back(dy: Any, x: Any, w: Any) -> Any:
            options = list(stride), list(padding), [1, 1], False, [0, 0], 1
            return torch.ops.aten.convolution_backward(dy, x, w, None, *options, mask)[which]

        name = ("dx", "dw")[which]
        arguments = tensors["dy"], tensors["x"], tensors["w"]
        return without_gradients(torch, compiled(back), arguments, name).run

    if operation == "conv2d_forward":
        return Problem(
            inputs={"x": x, "w": w},
            ours=lambda on, a: _calls(on, y_shape, "y", lambda y: on.conv2d_forward(a["x"], a["w"], None, y, *window)),
            theirs=lambda torch, t, compiled: without_gradients(
                torch,
                compiled(lambda x, w: torch.nn.functional.conv2d(x, w, None, stride, padding)),
                (t["x"], t["w"]),
            ),
            outputs={"y": "activation"},
            cost=geometry.forward_cost(shape.n),
            uses=(operation,),
            gains_by_compiling=False,
        )
    if operation == "conv2d_backward_input":
        return Problem(
            inputs={"x": x, "w": w, "dy": dy},
            ours=lambda on, a: _calls(
                on, x_shape, "dx", lambda dx: on.conv2d_backward_input(a["dy"], a["w"], dx, *window)
            ),
            theirs=lambda torch, t, compiled: Call(backward(torch, t, compiled, 0)),
            outputs={"dx": "activation"},
            cost=geometry.backward_input_cost(shape.n),
            uses=(operation,),
            gains_by_compiling=False,
        )
    return Problem(
        inputs={"x": x, "w": w, "dy": dy},
        ours=lambda on, a: _calls(
            on, w_shape, "dw", lambda dw: on.conv2d_backward_weight(a["x"], a["dy"], dw, *window)
        ),
        theirs=lambda torch, t, compiled: Call(backward(torch, t, compiled, 1)),
        outputs={"dw": "weight"},
        cost=geometry.backward_weight_cost(shape.n, 1),
        uses=(operation,),
        gains_by_compiling=False,
    )


def linear(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """linear_forward with a bias, linear_backward_input or linear_backward_weight."""
    n, c_in, c_out = shape.n, shape.c_in, shape.c_out
    x, w = Input(normal(rng, (n, c_in))), Input(normal(rng, (c_out, c_in), c_in**-0.5))
    bias, dy = Input(normal(rng, (c_out,))), Input(normal(rng, (n, c_out)))
    sizes = {"x": n * c_in, "w": c_in * c_out, "y": n * c_out}
    flops = 2 * n * c_in * c_out

    def ours_forward(on: Backend, a: Arrays) -> Call:
        return _calls(on, (n, c_out), "y", lambda y: on.linear_forward(a["x"], a["w"], a["bias"], y))

    if operation == "linear_forward":
        return Problem(
            inputs={"x": x, "w": w, "bias": bias},
            ours=ours_forward,
            theirs=lambda torch, t, compiled: without_gradients(
                torch, compiled(torch.nn.functional.linear), (t["x"], t["w"], t["bias"])
            ),
            outputs={"y": "plain"},
            cost=Cost(4 * (sizes["x"] + sizes["w"] + c_out), 4 * sizes["y"], flops),
            uses=(operation,),
            has_layout=False,
            gains_by_compiling=False,
        )
    if operation == "linear_backward_input":
        return Problem(
            inputs={"w": w, "dy": dy},
            ours=lambda on, a: _calls(on, (n, c_in), "dx", lambda dx: on.linear_backward_input(a["dy"], a["w"], dx)),
            theirs=lambda torch, t, compiled: without_gradients(torch, compiled(torch.mm), (t["dy"], t["w"]), "dx"),
            outputs={"dx": "plain"},
            cost=Cost(4 * (sizes["y"] + sizes["w"]), 4 * sizes["x"], flops),
            uses=(operation,),
            has_layout=False,
            gains_by_compiling=False,
        )
    return Problem(
        inputs={"x": x, "dy": dy},
        ours=lambda on, a: _calls(on, (c_out, c_in), "dw", lambda dw: on.linear_backward_weight(a["x"], a["dy"], dw)),
        theirs=lambda torch, t, compiled: without_gradients(
            torch, compiled(lambda dy, x: torch.mm(dy.t(), x)), (t["dy"], t["x"]), "dw"
        ),
        outputs={"dw": "plain"},
        cost=Cost(4 * (sizes["x"] + sizes["y"]), 4 * sizes["w"], flops),
        uses=(operation,),
        has_layout=False,
        gains_by_compiling=False,
    )
