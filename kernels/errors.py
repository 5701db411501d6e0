"""Errors that an operation raises before it computes anything."""

from typing import Any


class ShapeError(ValueError):
    """Array shapes that do not fit the operation or each other."""


class TechniqueError(ValueError):
    """A technique was asked for by name that cannot take these arrays."""

    def __init__(self, operation: str, technique: str, why: str, instead: str) -> None:
        super().__init__(f"{operation} cannot be computed by technique '{technique}': {why}; {instead} can take it")
        self.operation, self.technique, self.why, self.instead = operation, technique, why, instead


class OutOfMemoryError(MemoryError):
    """The device has no room for an array; says how much was asked for, and what to change."""


def same_shape(operation: str, **arrays: Any) -> None:
    """Raise ShapeError, naming both, unless all arrays have the first one's shape."""
    (first, expected), *others = ((name, tuple(array.shape)) for name, array in arrays.items())
    for name, shape in others:
        if shape != expected:
            raise ShapeError(f"{operation}: {name} has shape {shape}, expected {expected} as {first} has")


def require_shape(operation: str, name: str, array: Any, expected: tuple[int, ...]) -> None:
    """Raise ShapeError, naming both, unless `array` has the expected shape."""
    if tuple(array.shape) != expected:
        raise ShapeError(f"{operation}: {name} has shape {tuple(array.shape)}, expected {expected}")
