"""What a GPU has of each kind of memory that kernels hold data in between two passes."""

from typing import NamedTuple


class Chip(NamedTuple):
    """The numbers of a GPU that decide how much of an array fits on it, and which instructions it has."""

    multiprocessors: int
    shared_bytes: int  # that one block may have, static and dynamic
    registers: int  # of a multiprocessor, 4 bytes each
    capability: tuple[int, int] | None = None  # (9, 0) for Hopper; None where nobody said


# H100 and H200
HOPPER = Chip(multiprocessors=132, shared_bytes=227 * 1024, registers=65536, capability=(9, 0))
