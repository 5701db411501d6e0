"""How activations of images are stored: as float32, or in 16 bits, while everything is computed in float32.

    FLOAT32     dtype float32    4 elements in 16 bytes
    BFLOAT16    dtype uint16     8; float32's exponents and 7 bits of fraction. An array holds its bits: neither NumPy
                                 nor every CuPy has the type
    FLOAT16     dtype float16    8; from 2^-24 to 65504, 10 bits of fraction

An array's dtype says its storage. Only activations of images (n, h, w, c) and their gradients are ever stored in 16
bits; (n, c) arrays, parameters, statistics, losses and partial sums are float32. All such arrays of an operation have
one storage, which `common_storage` finds, but for operations between images and (n, c): they convert, and each of the
two arrays has its own.

A kernel's factory takes `storage` as its last option, always given. It annotates the pointers of stored arrays with
`storage.pointer` and goes to them by the storage's device functions only, which are inlined:

    load(x, i)                   x[i] as float32, exactly
    store(y, i, value)           y[i] = a float32, rounded to nearest even; NaN stays NaN, what is too large is infinite
    load_wide(x, i, values)      x[i], ..., x[i + wide - 1] into values[0], ..., a local array of `wide` float32, by one
                                 load of 16 bytes; i a multiple of `wide`, x of 16 bytes
    store_wide(y, i, values)     the same backwards
    copy(x, i, y, j)             y[j] = x[i], their bits; copy_wide moves `wide` of them, 16 bytes

    def relu_forward_vector(index: Any, storage: Storage) -> Launch:
        stored: Any = storage.pointer
        wide, load_wide, store_wide = storage.wide, storage.load_wide, storage.store_wide

        def relu_forward(x: stored, y: stored, n: Int64):
            first = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
            if first + wide <= n:
                values = cuda.local.array(wide, float32)
                load_wide(x, first, values)
                for k in range(wide):
                    values[k] = positive(values[k])
                store_wide(y, first, values)
            ...

The local array stays in registers as long as every index into it is a constant once loops of constant length are
unrolled; the check of machine code shows where one is not. What is stored has been rounded: a kernel that sums what it
also stores, or that decides by it, uses the float32 before or after the rounding, and says which.

The host function finds the storage, hands `storage.wide` to `kernels.choice.vectors` (then what it counts must be a
multiple of 8 in 16 bits), and counts `storage.bytes` for an element in its cost:

    storage = common_storage("relu_forward", x=x, y=y)
    vector = vectors(run, "relu_forward", technique, {}, storage.wide, x=x, y=y)
    factory = relu_forward_vector if vector else relu_forward_scalar
    run(factory(index_type(x.size), storage), x, y, x.size)

Its technique's names stay, so do the reference (which is float64-able) and the method of the backend. A kernel names
all storages among its examples. On tensor cores 16 bits need no conversion: kernels/packed.py moves them as they are.

Source  IEEE 754-2019 (binary16, rounding). S. Wang, P. Kanwar, "BFloat16: The secret to high performance on Cloud
        TPUs", 2019. NVIDIA, "PTX ISA" 9.0, Data Movement and Conversion: cvt.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from kernels.device import access
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import Floats, Type
from kernels.packed import load_bits, load_words, store_bits, store_words, unpack_bf16, unpack_f16
from kernels.tensor_core import pack_bf16, pack_f16

Array = NDArray[Any]
ACCESS = 16  # bytes of a wide access
SECTOR = 32  # bytes


@dataclass(frozen=True, eq=False)
class Storage:
    """One way to store activations; there are three, each one object.

    Attributes:
        name: "float32", "bfloat16" or "float16".
        dtype: Of arrays.
        pointer: Annotation of a kernel's parameter.
        load: Device function; for this and the next five see the module.
        store: Device function.
        load_wide: Device function.
        store_wide: Device function.
        copy: Device function.
        copy_wide: Device function.
        fraction: Bits of the fraction, without the leading one.
        least: Exponent of the smallest normal number.
        most: Exponent of the largest numbers.
    """

    name: str
    dtype: np.dtype[Any]
    pointer: Any
    load: Any
    store: Any
    load_wide: Any
    store_wide: Any
    copy: Any
    copy_wide: Any
    fraction: int
    least: int
    most: int

    @property
    def bytes(self) -> int:
        """Of an element."""
        return int(self.dtype.itemsize)

    @property
    def wide(self) -> int:
        """Elements in 16 bytes."""
        return ACCESS // self.bytes

    @property
    def overflow(self) -> float:
        """The least number that rounds to infinity."""
        return 2.0**self.most * (2 - 2.0 ** -(self.fraction + 1))

    def encode(self, values: Any) -> Array:
        """Host numbers, float32 or float64, as an array of this dtype: rounded once, to nearest even.

        A NaN becomes what a kernel makes of it, the bits 0x7fff.
        """
        values = np.asarray(values)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.name == "float32":
                return np.asarray(values.astype(np.float32))
            bits = _bf16(values) if self.name == "bfloat16" else values.astype(np.float16).view(np.uint16)
        return np.asarray(np.where(np.isnan(values), np.uint16(0x7FFF), bits)).view(self.dtype)

    def decode(self, array: Any) -> Array:
        """A host array of this dtype as float32, exactly."""
        array = np.asarray(array)
        if array.dtype != self.dtype:
            raise TypeError(f"decode: an array of dtype {array.dtype}, expected {self.dtype}, as {self.name} is stored")
        if self.name == "bfloat16":
            return np.asarray((array.astype(np.uint32) << np.uint32(16)).view(np.float32))
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return array.astype(np.float32)

    def rounded(self, values: Any) -> Array:
        """Host numbers, float32 or float64, as the nearest that can be stored, float32."""
        return self.decode(self.encode(values))

    def __repr__(self) -> str:
        return self.name


def _bf16(values: Array) -> Array:
    """Bits of numbers that are not NaN: the upper half of a float32, rounded.

    A float64 is first cut to a float32 whose last bit says if that lost any (rounding to odd): a second rounding, to
    fewer bits, then gives what a single one would have.
    """
    nearest = np.asarray(values.astype(np.float32))
    bits = nearest.view(np.uint32)
    if values.dtype != np.float32:
        bits = bits - (np.abs(nearest) > np.abs(values)).astype(np.uint32)  # towards zero
        bits = bits | (bits.view(np.float32) != values).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(rounded.astype(np.uint16))


@access
def _load(x, i):
    return x[i]


@access
def _store(y, i, value):
    y[i] = value


@access
def _load_wide(x, i, values):
    a, b, c, d = load4(x, i)
    values[0] = a
    values[1] = b
    values[2] = c
    values[3] = d


@access
def _store_wide(y, i, values):
    store4(y, i, values[0], values[1], values[2], values[3])


@access
def _copy(x, i, y, j):
    y[j] = x[i]


@access
def _copy_wide(x, i, y, j):
    a, b, c, d = load4(x, i)
    store4(y, j, a, b, c, d)


@access
def _copy_bits(x, i, y, j):
    store_bits(y, j, load_bits(x, i))


@access
def _copy_words(x, i, y, j):
    a, b, c, d = load_words(x, i)
    store_words(y, j, a, b, c, d)


def _narrow(unpack: Any, pack: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """The device functions of 16 bits, of those for the two halves of a word."""

    @access
    def load(x, i):
        low, _ = unpack(load_bits(x, i))
        return low

    @access
    def store(y, i, value):
        store_bits(y, i, pack(value, value))

    @access
    def load_wide(x, i, values):
        a, b, c, d = load_words(x, i)
        values[0], values[1] = unpack(a)
        values[2], values[3] = unpack(b)
        values[4], values[5] = unpack(c)
        values[6], values[7] = unpack(d)

    @access
    def store_wide(y, i, values):
        a, b = pack(values[0], values[1]), pack(values[2], values[3])
        c, d = pack(values[4], values[5]), pack(values[6], values[7])
        store_words(y, i, a, b, c, d)

    return load, store, load_wide, store_wide, _copy_bits, _copy_words


def _pointer(dtype: Any) -> Any:
    return Annotated[Any, Type(np.dtype(dtype), True)]


FLOAT32 = Storage(
    "float32", np.dtype(np.float32), Floats, _load, _store, _load_wide, _store_wide, _copy, _copy_wide, 23, -126, 127
)
BFLOAT16 = Storage("bfloat16", np.dtype(np.uint16), _pointer(np.uint16), *_narrow(unpack_bf16, pack_bf16), 7, -126, 127)
FLOAT16 = Storage(
    "float16", np.dtype(np.float16), _pointer(np.float16), *_narrow(unpack_f16, pack_f16), 10, -14, 15
)  # fmt: skip
STORAGES = FLOAT32, BFLOAT16, FLOAT16

_BY_DTYPE = {storage.dtype: storage for storage in STORAGES}
_KNOWN = "float32, float16 or uint16 (the bits of bfloat16)"


def storage_of(array: DeviceArray, what: str = "an array") -> Storage:
    """By its dtype. Raises TypeError, with `what` for its name, where no activation is stored so."""
    storage = _BY_DTYPE.get(array.dtype)
    if storage is None:
        raise TypeError(f"{what} has dtype {array.dtype}, expected {_KNOWN}")
    return storage


def common_storage(operation: str, **arrays: DeviceArray) -> Storage:
    """That of all these arrays. Raises TypeError, naming two, where they differ, and for an unknown dtype."""
    found: Storage | None = None
    for name, array in arrays.items():
        if found is None:
            first, found = name, storage_of(array, f"{operation}: {name}")
        elif array.dtype != found.dtype:
            other = storage_of(array, f"{operation}: {name}")
            raise TypeError(f"{operation}: {name} is stored as {other}, expected {found} as {first} is")
    assert found is not None
    return found


def require_float32(operation: str, **arrays: DeviceArray) -> None:
    """Raise TypeError, naming it, for an array that is never stored in 16 bits and is not float32."""
    for name, array in arrays.items():
        if array.dtype != FLOAT32.dtype:
            raise TypeError(f"{operation}: {name} has dtype {array.dtype}, expected float32")
