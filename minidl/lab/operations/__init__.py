"""Every operation of a backend, held against its float64 definition.

    for operation in operations():
        for case in cases(operation):
            for row in check_operation(backend, operation, case):
                print(row)

An operation is a method of `minidl.backends.Backend`, or "batchnorm_layer": a training pass of batch normalization as a
whole. A case is a shape, an input family (minidl.lab.inputs) and the operation's options, by name. A row compares one
answer with the reference, element by element, in units of the error that is allowed there (minidl.lab.budget).
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from minidl.backends import Backend
from minidl.errors import ConfigError
from minidl.lab.operations import (
    averaging,
    batchnorm,
    batchnorm_forward,
    batchnorm_passes,
    batchnorm_residual,
    convolution,
    convolution_normalized,
    elementwise,
    gradient_norm,
    group_norm,
    images,
    linear,
    loss,
    loss_scale,
    metrics,
    noise,
    optimizer,
    pooling,
    pooling_normalized,
    scale,
    softmax,
    steps,
)
from minidl.lab.operations.case import Case, named
from minidl.lab.operations.check import Row, check_case, make, run

_CASES: dict[str, Callable[[], Iterable[Case]]] = {
    **convolution.CASES,
    **convolution_normalized.CASES,
    **linear.CASES,
    **batchnorm.CASES,
    **batchnorm_forward.CASES,
    **batchnorm_residual.CASES,
    **batchnorm_passes.CASES,
    **group_norm.CASES,
    **elementwise.CASES,
    **scale.CASES,
    **noise.CASES,
    **images.CASES,
    **pooling.CASES,
    **pooling_normalized.CASES,
    **softmax.CASES,
    **loss.CASES,
    **metrics.CASES,
    **optimizer.CASES,
    **averaging.CASES,
    **steps.CASES,
    **gradient_norm.CASES,
    **loss_scale.CASES,
}


def operations() -> list[str]:
    """The names of what can be checked."""
    return list(_CASES)


def cases(operation: str, backend: Backend | None = None) -> list[str]:
    """The names of an operation's cases, such as "mean-1e4-std-1e-2/130x3/relu".

    With a backend, those that it can be given: arrays that are stored in 16 bits are for devices alone.

    Raises:
        ConfigError: There is no such operation.
    """
    takes_narrow = backend is None or hasattr(backend, "storages")
    return [name for name, case in _cases(operation).items() if takes_narrow or not case.narrow]


def check_operation(
    backend: Backend,
    operation: str,
    case: str,
    seed: int = 0,
    variant: str = "default",
    against: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """Run one case of an operation on `backend` and compare every answer with the reference.

    Args:
        backend: The device under test.
        operation: One of `operations()`.
        case: One of `cases(operation)`.
        seed: Of the inputs. The bounds hold for any.
        variant: What the rows call the technique that the backend uses, where it has several.
        against: Compare with these answers instead, of another device to the same case and seed.

    Returns:
        A row for each answer with its worst element, and one for each fault: an element that was not written, a write
        beyond an array's ends, a changed input. All of them have `passed` in a sound backend.

    Raises:
        ConfigError: There is no such operation or case.
    """
    return check_case(backend, operation, _case(operation, case), seed, variant, against)


def answers(backend: Backend, operation: str, case: str, seed: int = 0) -> Mapping[str, np.ndarray]:
    """What `backend` answers, as it is: to compare the bits of one run with those of another.

    Raises:
        ConfigError: There is no such operation or case.
    """
    chosen = _case(operation, case)
    return run(backend, make(operation, chosen, seed), chosen.layout)[0]


@functools.cache
def _cases(operation: str) -> dict[str, Case]:
    if operation not in _CASES:
        raise ConfigError(f"there is no operation '{operation}'; known operations: {', '.join(_CASES)}")
    return named(_CASES[operation]())


def _case(operation: str, case: str) -> Case:
    known = _cases(operation)
    if case not in known:
        raise ConfigError(f"{operation} has no case '{case}'; its cases are such as {', '.join(list(known)[:3])}")
    return known[case]


__all__ = ["Row", "answers", "cases", "check_operation", "operations"]
