"""Checks of the optimizers, over several steps: an error of one step is carried into the next."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

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


def sgd_bounds(state: Values, grads: list[Host], tensor: int, **options: Any) -> dict[str, Host]:
    """Of value and velocity after a step for each of `grads`: the reference's steps, with the errors beside them."""
    lr, momentum, decay, nesterov = (options[name] for name in ("lr", "momentum", "weight_decay", "nesterov"))
    value = state[f"value.{tensor}"].astype(np.float64)
    velocity = state[f"velocity.{tensor}"].astype(np.float64) if momentum else np.zeros_like(value)
    of_value = np.zeros_like(value)
    of_velocity = np.zeros_like(value)
    for grad in grads:
        g = grad.astype(np.float64) + decay * value
        # Every product rounds, and so did its coefficient; every sum rounds. An exact 0 costs nothing.
        of_g = decay * of_value + (2 * U * decay * np.abs(value) + U * np.abs(g) + TINY if decay else 0)
        direction, of_direction = g, of_g
        if momentum:
            of_velocity = momentum * of_velocity + 2 * U * momentum * np.abs(velocity) + of_g + TINY
            velocity = momentum * velocity + g
            of_velocity += U * np.abs(velocity)
            direction, of_direction = velocity, of_velocity
            if nesterov:
                direction = g + momentum * velocity
                of_direction = of_g + momentum * of_velocity + 2 * U * momentum * np.abs(velocity) + TINY
                of_direction += U * np.abs(direction)
        value = value - lr * direction
        of_value = of_value + lr * of_direction + 2 * U * lr * np.abs(direction) + U * np.abs(value) + TINY
    bounds = {f"value.{tensor}": of_value}
    return {**bounds, f"velocity.{tensor}": of_velocity} if momentum else bounds


def adam_bounds(state: Values, grads: list[Host], tensor: int, first_step: int, **options: Any) -> dict[str, Host]:
    """Of value and moments after a step for each of `grads`.

    1 - beta is a coefficient like any other: off by U of itself. Taken in float32 from a rounded beta2 = 0.999 it would
    be off by 1e-5, and with it the second moment.
    """
    lr, beta1, beta2, eps = (options[name] for name in ("lr", "beta1", "beta2", "eps"))
    decay, decoupled = options["weight_decay"], options["decoupled"]
    value, m1, m2 = (state[f"{name}.{tensor}"].astype(np.float64) for name in ("value", "first", "second"))
    of_value, of_m1, of_m2 = (np.zeros_like(value) for _ in range(3))
    for step, grad in enumerate(grads, first_step):
        g, of_g = grad.astype(np.float64), np.zeros_like(value)
        if decay and decoupled:
            of_value = of_value + 2 * U * np.abs(value)
            value = value * (1 - lr * decay)
        elif decay:
            g = g + decay * value
            of_g = decay * of_value + 2 * U * decay * np.abs(value) + U * np.abs(g) + TINY

        def moment(beta: float, before: Host, of_before: Host, new: Host, of_new: Host) -> tuple[Host, Host]:
            after = beta * before + (1 - beta) * new
            carried = beta * of_before + (1 - beta) * of_new
            # Each term's coefficient and product round, and the sum. The form before + (1 - beta) * (new - before) is
            # not allowed for: with beta near 0 it keeps what `before` rounded by.
            of_each = 2 * beta * np.abs(before) + 3 * (1 - beta) * np.abs(new)
            rounds = of_each + np.abs(after)
            return after, carried + U * rounds + TINY

        m1, of_m1 = moment(beta1, m1, of_m1, g, of_g)
        m2, of_m2 = moment(beta2, m2, of_m2, g**2, 2 * np.abs(g) * of_g + U * g**2 + TINY)

        # The root of a number that is off by d: off by d / root, and never by more than the root of d.
        root = np.sqrt(m2)
        of_root = np.where(root > 0, np.minimum(of_m2 / np.where(root > 0, root, 1), np.sqrt(of_m2)), np.sqrt(of_m2))
        correction = np.sqrt(1 - beta2**step)
        denominator = root / correction + eps
        of_denominator = (of_root + 3 * U * root) / correction + U * eps + U * denominator
        rate = lr / (1 - beta1**step)
        update = rate * m1 / denominator
        of_update = rate * of_m1 / denominator + np.abs(update) * (of_denominator / denominator + 4 * U)
        value = value - update
        of_value = of_value + of_update + U * np.abs(value) + TINY
    return {f"value.{tensor}": of_value, f"first.{tensor}": of_m1, f"second.{tensor}": of_m2}


def _grads(rng: np.random.Generator, family: Family, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Host]:
    return {f"grad{t}.{i}": family(rng, shape) for t in range(STEPS) for i, shape in enumerate(shapes)}


def _bounds(
    one: Callable[..., dict[str, Host]], state: Values, grads: Values, tensors: int, **options: Any
) -> Callable[[Answers], Values]:
    bounds: dict[str, Host] = {}
    for i in range(tensors):
        bounds |= one(state, [grads[f"grad{t}.{i}"] for t in range(STEPS)], i, **options)
    return within(**bounds)


def sgd_cases() -> Iterator[Case]:
    """Of sgd."""

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
            grads = _grads(rng, GRADIENTS[name], shapes)
            state = {f"value.{i}": PLAIN(rng, shape) for i, shape in enumerate(shapes)}
            if momentum:
                state.update({f"velocity.{i}": PLAIN(rng, shape) for i, shape in enumerate(shapes)})

            def call(backend: Backend, a: Arrays) -> None:
                velocities = _listed(a, "velocity", len(shapes)) if momentum else []
                for t in range(STEPS):
                    arrays = _listed(a, "value", len(shapes)), _listed(a, f"grad{t}", len(shapes)), velocities
                    backend.sgd(*arrays, lr, momentum, weight_decay, nesterov)

            bounds = _bounds(sgd_bounds, state, grads, len(shapes), **options)
            return Problem(inputs=grads, state=state, call=call, bounds=bounds)

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
    """Of adam, from its first step and from a later one."""

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
            grads = _grads(rng, GRADIENTS[name], shapes)
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
                    backend.adam(*arrays, first_step + t, lr, beta1, beta2, eps, weight_decay, decoupled)

            bounds = _bounds(adam_bounds, state, grads, len(shapes), first_step=first_step, **options)
            return Problem(inputs=grads, state=state, call=call, bounds=bounds)

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
