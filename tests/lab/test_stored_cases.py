"""The cases of activations in 16 bits: who is given them, how their bounds follow from the storage, what they catch."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, STORAGES
from minidl.backends import get_backend
from minidl.backends.emulated import EmulatorBackend
from minidl.lab.operations import Row, cases, check_operation
from minidl.lab.operations.stored import families, half_unit
from minidl.lab.verify import plan

CASE = "ordinary/16x16/bfloat16"
OPERATIONS = (
    "relu_forward", "relu_backward", "add", "concat", "split", "channels_first", "channels_last", "dropout",
    "scale_forward", "scale_backward", "all_finite", "conv2d_normalized_forward", "conv2d_normalized_backward_weight",
    "conv2d_normalized_backward_input", "max_pool2d_normalized_forward", "max_pool2d_normalized_backward",
)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_devices_are_given_both_storages_and_the_cpu_neither(operation: str) -> None:
    known = cases(operation)
    for storage in ("bfloat16", "float16"):
        assert sum(storage in case for case in known) >= 10
    for_devices = {case for task in plan(EmulatorBackend(), operation) for case in task.cases}
    assert for_devices == set(known)
    for_the_cpu = {case for task in plan(get_backend("cpu"), operation) for case in task.cases}
    assert for_the_cpu == {case for case in known if "float16" not in case}


def test_half_a_unit_in_the_last_place() -> None:
    x = np.array([1.0, 1.99, 2.0, 65504.0, 2.0**-14, 2.0**-15, 0.0, np.inf, np.nan])
    of_float16 = 2.0 ** np.array([-11, -11, -10, 4, -25, -25, -25, -25, -25])
    assert_array_equal(half_unit(x, 0.0, FLOAT16), of_float16)
    assert_array_equal(half_unit(-x, 0.0, FLOAT16), of_float16)
    assert_array_equal(half_unit(x[:3], 0.0, BFLOAT16), 2.0 ** np.array([-8, -8, -7]))
    assert half_unit(np.float64(2.0**-130), 0.0, BFLOAT16) == 2.0**-134
    assert half_unit(np.float64(1.999), 0.01, FLOAT16) == 2.0**-10  # it may have reached 2 before it was rounded


@pytest.mark.parametrize("storage", STORAGES, ids=repr)
def test_the_numbers_of_a_storages_families_are_its_own(storage) -> None:
    rng = np.random.default_rng(7)
    for family in families(storage).values():
        x = family(rng, (50, 7))
        assert x.dtype == np.float32
        assert_array_equal(storage.rounded(x), x)
    largest = families(storage)["largest"](rng, (50, 7)).astype(np.float64)
    assert np.abs(largest).max() == 2.0**storage.most * (2 - 2.0**-storage.fraction) < storage.overflow
    smallest = np.abs(families(storage)["smallest"](rng, (50, 7)))
    assert 0 < smallest[smallest > 0].min() < 2.0**storage.least < smallest.max() * 4


class Truncating(EmulatorBackend):
    """Cuts off what does not fit in 16 bits."""

    def add(self, a, b, out) -> None:
        total = BFLOAT16.decode(a) + BFLOAT16.decode(b)
        out[...] = (total.view(np.uint32) >> 16).astype(np.uint16)


class RoundingTwice(EmulatorBackend):
    """Takes float16 for bfloat16 on the way."""

    def add(self, a, b, out) -> None:
        out[...] = BFLOAT16.encode(FLOAT16.rounded(BFLOAT16.decode(a) + BFLOAT16.decode(b)))


class Forgetting(EmulatorBackend):
    """Leaves the last element as it was."""

    def add(self, a, b, out) -> None:
        last = out[-1, -1]
        super().add(a, b, out)
        out[-1, -1] = last


class Saturating(EmulatorBackend):
    """Takes the largest number for what is infinite."""

    def add(self, a, b, out) -> None:
        super().add(a, b, out)
        out[...] = np.where(np.isinf(out) & np.isfinite(a) & np.isfinite(b), np.copysign(65504, out), out)


def failed(backend: EmulatorBackend, case: str) -> list[Row]:
    return [row for row in check_operation(backend, "add", case) if not row.passed]


def test_wrong_roundings_are_found() -> None:
    assert not failed(EmulatorBackend(), CASE)
    assert failed(Truncating(), CASE)[0].ratio > 1.5
    assert failed(RoundingTwice(), "mixed-scales/3x5x7x5/bfloat16")
    saturated = failed(Saturating(), "largest/3x5x7x5/float16")
    assert [abs(row.expected) for row in saturated] == [np.inf]
    assert [abs(row.got) for row in saturated] == [65504]


CHAIN = "ordinary/x2x5x7x8-k3x3-o16-s1x1-p1x1"


class OfFewerRows(EmulatorBackend):
    """Finds statistics without the last image."""

    def conv2d_normalized_forward(self, x, before, w, y, stride, padding, eps, out) -> None:
        super().conv2d_normalized_forward(x, before, w, y, stride, padding, eps, None)
        self.batchnorm_statistics(y[:-1].copy(), eps, out)


class OfAnotherStorage(EmulatorBackend):
    """Multiplies weights that were rounded to the other storage's fraction, or one bit more coarsely."""

    def conv2d_normalized_forward(self, x, before, w, y, stride, padding, eps, out) -> None:
        other = BFLOAT16.rounded(w * np.float32(1 + 2.0**-8))
        super().conv2d_normalized_forward(x, before, other.copy(), y, stride, padding, eps, out)


class WithoutTheMean(EmulatorBackend):
    """Leaves the mean of g out of a pending gradient."""

    def conv2d_normalized_backward_weight(self, x, before, dy, dw, stride, padding) -> None:
        dy = dy._replace(sums=dy.sums._replace(mean_g=self.zeros(dy.sums.mean_g.shape)))
        super().conv2d_normalized_backward_weight(x, before, dy, dw, stride, padding)


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_what_is_wrong_in_a_chain_in_16_bits_is_found(storage: str) -> None:
    def wrong(backend: EmulatorBackend, direction: str) -> set[str]:
        operation = f"conv2d_normalized_{direction}"
        assert not [
            row for row in check_operation(EmulatorBackend(), operation, f"{CHAIN}/{storage}") if not row.passed
        ]
        rows = check_operation(backend, operation, f"{CHAIN}/{storage}")
        return {row.output for row in rows if not row.passed}

    assert {"mean", "var"} <= wrong(OfFewerRows(), "forward")
    assert "y" in wrong(OfAnotherStorage(), "forward")
    assert wrong(WithoutTheMean(), "backward_weight") == {"dw"}


def test_an_element_that_is_not_written_is_found() -> None:
    (row,) = (row for row in failed(Forgetting(), CASE) if row.fault)
    assert row.fault == "was not written, as 1 of 256 elements"
    assert row.index == (15, 15)


def test_the_reference_computes_with_the_numbers_themselves() -> None:
    for case in (CASE, "largest/3x5x7x5/float16"):
        for row in check_operation(get_backend("reference"), "add", case):
            assert row.passed
            assert row.error == 0


def test_float32_is_stored_as_it_is() -> None:
    x = np.random.default_rng(7).standard_normal(100)
    assert_array_equal(FLOAT32.encode(x), x.astype(np.float32))
    assert_array_equal(FLOAT32.decode(x.astype(np.float32)), x.astype(np.float32))
