"""What a GPU has of each kind of memory that kernels hold data in between two passes."""

from typing import NamedTuple


class Chip(NamedTuple):
    """The numbers of a GPU that decide how much of an array fits on it."""

    multiprocessors: int
    shared_bytes: int  # that one block may have, static and dynamic
    registers: int  # of a multiprocessor, 4 bytes each


HOPPER = Chip(multiprocessors=132, shared_bytes=227 * 1024, registers=65536)  # H100 and H200, compute capability 9.0
