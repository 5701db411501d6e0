"""Checks of the optimizers, over several steps: an error of one step is carried into the next."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from kernels.optimizer_numbers import adam_numbers, sgd_numbers
from minidl.backends import Backend
from minidl.lab.budget import TINY, U
from minidl.lab.inputs import FAMILIES, Family, normal
from minidl.lab.operations.case import Answers, Arrays, Case, Host, Problem, Values, in_all_layouts, label, within

PLAIN = FAMILIES["ordinary"]
STEPS = 4
# One element to many, none, and enough for several threads.
SHAPES: tuple[tuple[int, ...], ...] = ((1,), (3, 5), (0, 2), (17,), (140009,))
GRADIENTS: dict[str, Family] = {
    "ordinary": PLAIN,
    "mean-1e4": normal(1e4, 1),
    "tiny": normal(0, 1e-6),
    **{name: FAMILIES[name] for name in ("mixed-scales", "denormal", "zeros", "nan", "inf")},
}


def _listed(arrays: Any, prefix: str, tensors: int) -> list[Any]:
    return [arrays[f"{prefix}.{i}"] for i in range(tensors)]


def sgd_bounds(
    state: Values, grads: list[Host], numbers: list[Host], tensor: int, *, nesterov: bool
) -> dict[str, Host]:
    """Of value and velocity after a step for each of `grads`: the reference's steps, with the errors beside them."""
    momentum = f"velocity.{tensor}" in state
    value = state[f"value.{tensor}"].astype(np.float64)
    velocity = state[f"velocity.{tensor}"].astype(np.float64) if momentum else np.zeros_like(value)
    of_value = np.zeros_like(value)
    of_velocity = np.zeros_like(value)
    for grad, given in zip(grads, numbers, strict=True):
        lr, factor, decay = given.astype(np.float64)
        g = grad.astype(np.float64) + decay * value
        # Every product rounds, every sum rounds. An exact 0 costs nothing.
        of_g = decay * of_value + (U * decay * np.abs(value) + U * np.abs(g) + TINY if decay else 0)
        direction, of_direction = g, of_g
        if momentum:
            of_velocity = factor * of_velocity + U * factor * np.abs(velocity) + of_g + TINY
            velocity = factor * velocity + g
            of_velocity += U * np.abs(velocity)
            direction, of_direction = velocity, of_velocity
            if nesterov:
                direction = g + factor * velocity
                of_direction = of_g + factor * of_velocity + U * factor * np.abs(velocity) + TINY
                of_direction += U * np.abs(direction)
        value = value - lr * direction
        of_value = of_value + lr * of_direction + U * lr * np.abs(direction) + U * np.abs(value) + TINY
    bounds = {f"value.{tensor}": of_value}
    return {**bounds, f"velocity.{tensor}": of_velocity} if momentum else bounds


def adam_bounds(state: Values, grads: list[Host], numbers: list[Host], tensor: int) -> dict[str, Host]:
    """Of value and moments after a step for each of `grads`, by the rounded numbers that all devices are given."""
    value, m1, m2 = (state[f"{name}.{tensor}"].astype(np.float64) for name in ("value", "first", "second"))
    of_value, of_m1, of_m2 = (np.zeros_like(value) for _ in range(3))
    for grad, given in zip(grads, numbers, strict=True):
        decay, shrink, beta1, new1, beta2, new2, rate, scale, eps = given.astype(np.float64)
        g, of_g = grad.astype(np.float64), np.zeros_like(value)
        if shrink != 1:
            of_value = of_value + U * np.abs(value)
            value = value * shrink
        if decay:
            g = g + decay * value
            of_g = decay * of_value + U * decay * np.abs(value) + U * np.abs(g) + TINY

        def moment(
            beta: float, share: float, before: Host, of_before: Host, new: Host, of_new: Host
        ) -> tuple[Host, Host]:
            after = beta * before + share * new
            carried = beta * of_before + share * of_new
            # Each term's products round, and the sum. The form before + (1 - beta) * (new - before) is not allowed for:
            # with beta near 0 it keeps what `before` rounded by.
            of_each = beta * np.abs(before) + 2 * share * np.abs(new)
            rounds = of_each + np.abs(after)
            return after, carried + U * rounds + TINY

        m1, of_m1 = moment(beta1, new1, m1, of_m1, g, of_g)
        m2, of_m2 = moment(beta2, new2, m2, of_m2, g**2, 2 * np.abs(g) * of_g + U * g**2 + TINY)

        # The root of a number that is off by d: off by d / root, and never by more than the root of d.
        root = np.sqrt(m2)
        of_root = np.where(root > 0, np.minimum(of_m2 / np.where(root > 0, root, 1), np.sqrt(of_m2)), np.sqrt(of_m2))
        denominator = root * scale + eps
        of_denominator = (of_root + 2 * U * root) * scale + U * denominator
        update = rate * m1 / denominator
        of_update = rate * of_m1 / denominator + np.abs(update) * (of_denominator / denominator + 3 * U)
        value = value - update
        of_value = of_value + of_update + U * np.abs(value) + TINY
    return {f"value.{tensor}": of_value, f"first.{tensor}": of_m1, f"second.{tensor}": of_m2}


def _grads(rng: np.random.Generator, family: Family, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Host]:
    return {f"grad{t}.{i}": family(rng, shape) for t in range(STEPS) for i, shape in enumerate(shapes)}


def _bounds(
    one: Callable[..., dict[str, Host]], state: Values, inputs: Values, tensors: int, **options: Any
) -> Callable[[Answers], Values]:
    bounds: dict[str, Host] = {}
    for i in range(tensors):
        numbers = [inputs[f"numbers{t}"][_rows(tensors)[i]] for t in range(STEPS)]
        bounds |= one(state, [inputs[f"grad{t}.{i}"] for t in range(STEPS)], numbers, i, **options)
    return within(**bounds)


def _rows(tensors: int) -> list[int]:
    """Tensors go by two rows of numbers, in turns, as if they were of two parameter groups."""
    return [i % 2 for i in range(tensors)]


def sgd_cases() -> Iterator[Case]:
    """Of sgd; of two parameter groups, the second learns at half the rate and with other decay."""

    def case(
        name: str,
        shapes: tuple[tuple[int, ...], ...],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
    ) -> Case:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}

        def make(rng: np.random.Generator) -> Problem:
            groups = (lr, momentum, weight_decay), (lr / 2, momentum, 3 * weight_decay)
            numbers = np.array([sgd_numbers(*group) for group in groups]).astype(np.float32)
            inputs = _grads(rng, GRADIENTS[name], shapes) | {f"numbers{t}": numbers for t in range(STEPS)}
            state = {f"value.{i}": PLAIN(rng, shape) for i, shape in enumerate(shapes)}
            if momentum:
                state.update({f"velocity.{i}": PLAIN(rng, shape) for i, shape in enumerate(shapes)})

            def call(backend: Backend, a: Arrays) -> None:
                velocities = _listed(a, "velocity", len(shapes)) if momentum else []
                for t in range(STEPS):
                    arrays = _listed(a, "value", len(shapes)), _listed(a, f"grad{t}", len(shapes)), velocities
                    backend.sgd(*arrays, a[f"numbers{t}"], _rows(len(shapes)), nesterov)

            bounds = _bounds(sgd_bounds, state, inputs, len(shapes), nesterov=nesterov)
            return Problem(inputs=inputs, state=state, call=call, bounds=bounds)

        return Case(label(name, *_words(shapes, options)), make)

    few = ((5,), (3, 7))
    yield case("ordinary", SHAPES)
    for momentum, weight_decay in product((0.0, 0.9), (0.0, 5e-4)):
        for nesterov in (False, True) if momentum else (False,):
            yield case("ordinary", few, 0.1, momentum, weight_decay, nesterov)
    yield from (case(name, few) for name in GRADIENTS if name != "ordinary")
    yield case("ordinary", few, lr=0.0)
    yield from in_all_layouts(case("ordinary", ((4, 3),)))


def adam_cases() -> Iterator[Case]:
    """Of adam, from its first step and from a later one; a second group is a step ahead, and decays otherwise."""

    def case(
        name: str,
        shapes: tuple[tuple[int, ...], ...],
        first_step: int = 1,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> Case:
        options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
        options |= {"weight_decay": weight_decay, "decoupled": decoupled}

        def make(rng: np.random.Generator) -> Problem:
            inputs = _grads(rng, GRADIENTS[name], shapes)
            for t in range(STEPS):
                groups = (first_step + t, weight_decay), (first_step + t + 1, 3 * weight_decay)
                numbers = [adam_numbers(step, lr, beta1, beta2, eps, decay, decoupled) for step, decay in groups]
                inputs[f"numbers{t}"] = np.array(numbers).astype(np.float32)
            state = {}
            for i, shape in enumerate(shapes):
                used = float(first_step > 1)  # before the first step the moments are 0
                state[f"value.{i}"] = PLAIN(rng, shape)
                state[f"first.{i}"] = (used * PLAIN(rng, shape)).astype(np.float32)
                state[f"second.{i}"] = (used * PLAIN(rng, shape) ** 2).astype(np.float32)

            def call(backend: Backend, a: Arrays) -> None:
                moments = _listed(a, "first", len(shapes)), _listed(a, "second", len(shapes))
                for t in range(STEPS):
                    arrays = _listed(a, "value", len(shapes)), _listed(a, f"grad{t}", len(shapes)), *moments
                    backend.adam(*arrays, a[f"numbers{t}"], _rows(len(shapes)))

            bounds = _bounds(adam_bounds, state, inputs, len(shapes))
            return Problem(inputs=inputs, state=state, call=call, bounds=bounds)

        return Case(label(name, *_words(shapes, {"step": first_step, **options})), make)

    few = ((5,), (3, 7))
    yield case("ordinary", SHAPES)
    for first_step, weight_decay, decoupled in product((1, 1000), (0.0, 0.01), (False, True)):
        yield case("ordinary", few, first_step, weight_decay=weight_decay, decoupled=decoupled)
    yield from (case(name, few, first_step) for name in GRADIENTS if name != "ordinary" for first_step in (1, 1000))
    yield case("ordinary", few, lr=0.0)
    yield case("ordinary", few, beta1=0.0, beta2=0.99, eps=1e-3)
    yield from in_all_layouts(case("ordinary", ((4, 3),)))


def _words(shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> list[str]:
    """How a case is told apart: its largest shape and the options that matter."""
    words = [label(max(shapes, key=np.prod))]
    for name, value in options.items():
        if isinstance(value, bool):
            words += [name.replace("_", "-")] if value else []
        else:
            words.append(f"{name.replace('_', '-')}-{value:g}")
    return words


CASES = {"sgd": sgd_cases, "adam": adam_cases}
