"""Errors that an operation raises before it computes anything."""


class ShapeError(ValueError):
    """Array shapes that do not fit the operation or each other."""
