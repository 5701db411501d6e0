"""Convolution on the CPU by Winograd's F(4x4, 3x3): right on whole numbers but for rounding, and where it is taken."""

from typing import Any

import numpy as np
import pytest
from cpu_convolutions import (
    CUTS,
    Answers,
    Case,
    Surrounded,
    arrays,
    chained,
    chained_references,
    cut_into,
    ordinary,
    plain,
    plain_references,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.conv import conv2d_forward_reference
from kernels.errors import TechniqueError
from minidl.backends import get_backend
from minidl.backends.cpu import CpuBackend, convolution_winograd, winograd
from minidl.backends.cpu.convolution_plan import forward_plan
from minidl.backends.cpu.convolution_winograd import Cut, pays
from minidl.backends.cpu.winograd import matrices
from minidl.backends.techniques import DIRECT, WINOGRAD
from minidl.errors import ConfigError

OPERATIONS = [
    f"conv2d_{kind}{product}"
    for kind in ("", "normalized_")
    for product in ("forward", "backward_input", "backward_weight")
]
CASES = {
    "even": Case((5, 8, 24, 32), (3, 3), 32, padding=(1, 1)),
    "not quite": Case((2, 14, 10, 16), (3, 3), 32, padding=(1, 1)),
    "odd": Case((2, 9, 7, 17), (3, 3), 33, padding=(1, 1)),
    "one window": Case((2, 3, 3, 20), (3, 3), 16),
    "one pixel": Case((1, 1, 1, 1), (3, 3), 1, padding=(1, 1)),
    "no padding": Case((2, 5, 8, 16), (3, 3), 48),
    "padding of the kernel's size and more": Case((2, 2, 3, 5), (3, 3), 18, padding=(3, 4)),
    "no images": Case((0, 5, 4, 6), (3, 3), 7, padding=(1, 0)),
    "a wide line": Case((2, 2, 300, 5), (3, 3), 6, padding=(1, 1)),
    "many images": Case((70, 4, 4, 6), (3, 3), 8, padding=(1, 1)),
    "many channels": Case((1, 4, 4, 70), (3, 3), 130, padding=(1, 1)),
}


def by_name(backend: CpuBackend, technique: str = WINOGRAD) -> CpuBackend:
    for operation in OPERATIONS:
        backend.use(operation, technique)
    return backend


CLOSE = 0.01, 2e-6  # and of the largest; on whole numbers, what is left out or taken twice is off by 1 or more


def agree(got: Answers, wanted: Answers) -> None:
    """But for rounding, which must be less than 1."""
    assert {*wanted} - {*got} <= {"mean"}
    largest = {name: float(np.abs(right).max(initial=1)) for name, right in wanted.items()}
    assert all(CLOSE[0] + CLOSE[1] * largest[name] < 1 for name in ("y", "dx", "dw"))
    for name, right in wanted.items():
        found = np.float64(got["shift"]) + got["delta"] if name == "mean" else got[name]
        size = largest["y"] if name == "mean" else largest["y"] ** 2 if name == "var" else largest[name]
        np.testing.assert_allclose(found, right, rtol=0, atol=CLOSE[0] + CLOSE[1] * size, err_msg=name)


def check(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for relu in (True, False):
        given_arrays = arrays(case, rng, relu=relu)
        agree(plain(by_name(Surrounded(drains=relu)), case, given_arrays), plain_references(case, given_arrays))
        for first in (False, True):
            wanted = chained_references(case, given_arrays, first)
            agree(chained(by_name(Surrounded(drains=relu)), case, given_arrays, first), wanted)


def noted(patch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What convolutions go through from now on: windows or gradients, and whether by Winograd."""
    found: list[tuple[str, bool]] = []
    for what, name in (("windows", "_go_through_tiles"), ("gradients", "_partial_gradients")):
        whole = getattr(CpuBackend, name)

        def noting(*given_arguments: Any, what: str = what, whole: Any = whole) -> Any:
            found.append((what, any(isinstance(one, Cut) for one in given_arguments)))
            return whole(*given_arguments)

        patch.setattr(CpuBackend, name, noting)
    return found


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_whole_numbers_are_convolved_by_winograd(monkeypatch: pytest.MonkeyPatch, name: str, cut: str) -> None:
    found = noted(monkeypatch)
    with cut_into(CUTS[cut]):
        check(CASES[name], seed=1)
    assert set(found) == {("windows", True), ("gradients", True)}  # nothing is left to the definition


@st.composite
def geometries(draw: Any) -> Case:
    padding = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    sizes = [max(1, 3 - 2 * pad) + draw(st.integers(0, 13)) for pad in padding]
    channels = st.one_of(st.integers(1, 70), st.sampled_from([1, 4, 8, 16, 17, 32, 64, 65]))
    return Case((draw(st.integers(0, 4)), *sizes, draw(channels)), (3, 3), draw(channels), padding=padding)


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(case=geometries(), cut=st.sampled_from(sorted(CUTS)), strip=st.sampled_from([1, 5, 56]), seed=st.integers(0, 99))
def test_any_geometry_is_convolved_by_winograd(case: Case, cut: str, strip: int, seed: int) -> None:
    with cut_into(CUTS[cut]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_winograd, "STRIP", strip)
        check(case, seed)


@pytest.mark.parametrize("cut", ["usual", "few lines", "splits", "many shares"])
@pytest.mark.parametrize("name", ["even", "odd", "many images", "many channels"])
def test_winograds_bits_do_not_depend_on_the_number_of_threads(name: str, cut: str) -> None:
    case = CASES[name]
    given_arrays = arrays(case, np.random.default_rng(2), ordinary)

    def answers(threads: int) -> Answers:
        backend = by_name(CpuBackend(threads))
        in_a_chain = chained(backend, case, given_arrays)
        return plain(backend, case, given_arrays) | {f"chained {name}": array for name, array in in_a_chain.items()}

    with cut_into(CUTS[cut]):
        alone = answers(1)
        for threads in (2, 3, 5):
            for name, array in answers(threads).items():
                assert array.tobytes() == alone[name].tobytes(), f"{name} with {threads} threads"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("where", ["x", "w", "dy"])
def test_what_is_not_finite_has_the_bits_of_the_definition(where: str, value: float) -> None:
    """It does not spread over its tile; and sums that are too large for the tile alone are not too large."""
    case = CASES["even"]
    given_arrays = arrays(case, np.random.default_rng(4), ordinary)
    array = getattr(given_arrays, where)
    array[1:2, 2, 3:5, ::5] = value  # 3e38 twice side by side, or behind each other, overflows where both are added
    found = plain(by_name(CpuBackend(2)), case, given_arrays)
    right = plain(by_name(CpuBackend(2), DIRECT), case, given_arrays)
    met = {"x": ("y", "dw"), "w": ("y", "dx"), "dy": ("dx", "dw")}[where]
    for name in met:
        assert np.isfinite(right[name]).any() or where == "w"
        assert found[name].tobytes() == right[name].tobytes(), name


def test_a_tile_that_overflows_is_done_by_the_definition() -> None:
    """Every output is finite; only what the transform adds up is not."""
    case = Case((1, 4, 4, 16), (3, 3), 16, padding=(1, 1))
    given_arrays = arrays(case, np.random.default_rng(5), ordinary)
    given_arrays.x[...] = 2e38
    given_arrays.w[...] = 0
    given_arrays.w[1, 1] = 1e-3
    y = plain(by_name(CpuBackend(1)), case, given_arrays)["y without bias"]
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, 16 * 2e35, rtol=1e-6)


SPREADS = {
    "ordinary": lambda z: z,
    "behind a ReLU": lambda z: np.maximum(z, 0),
    "with heavy tails": lambda z: z**3,
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("c", [16, 64])
def test_errors_are_a_few_times_those_of_the_definition(c: int, spread: str) -> None:
    rng = np.random.default_rng(6)
    x = SPREADS[spread](rng.standard_normal((4, 14, 14, c))).astype(np.float32)
    w = rng.standard_normal((3, 3, c, c)).astype(np.float32)
    right = conv2d_forward_reference(x.astype(np.float64), w.astype(np.float64), None, (1, 1), (1, 1))
    errors = {}
    for technique in (DIRECT, WINOGRAD):
        y = np.empty(right.shape, np.float32)
        by_name(CpuBackend(1), technique).conv2d_forward(x, w, None, y, (1, 1), (1, 1))
        errors[technique] = np.sqrt(np.square(y - right).mean())
    assert 0 < errors[WINOGRAD] < 3.2 * errors[DIRECT]


def test_the_matrices_make_a_convolution_of_polynomials_values() -> None:
    """All outer products of them: A^T [(G g) * (B^T d)] is the correlation of any d and g."""
    window, weights, outputs = matrices()
    for i, d in enumerate(np.eye(winograd.SIDE)):
        for j, g in enumerate(np.eye(winograd.TAPS)):
            y = outputs @ ((weights @ g) * (window @ d))
            np.testing.assert_allclose(y, [float(i == k + j) for k in range(winograd.TILE_SIDE)], rtol=0, atol=1e-14)


@pytest.mark.parametrize("c", [16, 64])
def test_rounding_loses_some_half_of_what_it_does_at_the_usual_points(c: int) -> None:
    rng = np.random.default_rng(12)
    d, g = rng.standard_normal((64, 6, 6, c)).astype(np.float32), rng.standard_normal((3, 3, c)).astype(np.float32)
    lost = {}
    for points in ((winograd.NEAR, winograd.FAR), (1, 2)):
        made = []
        for dtype in (np.float32, np.float64):
            window, weights, outputs = (matrix.astype(dtype) for matrix in matrices(*points))
            taken = window @ np.moveaxis(d, 3, 1).astype(dtype) @ window.T
            turned = weights @ np.moveaxis(g, 2, 0).astype(dtype) @ weights.T
            summed = np.zeros((64, 6, 6), dtype)
            for i in range(c):
                summed += taken[:, i] * turned[i]
            made.append(outputs @ summed @ outputs.T)
        lost[points] = np.sqrt(np.square(made[0] - made[1]).mean())
    assert 0 < lost[winograd.NEAR, winograd.FAR] < 0.6 * lost[1, 2]


@pytest.mark.parametrize("matrix", [0, 2])
def test_all_but_the_denominators_are_numbers_of_float32(matrix: int) -> None:
    """What the docstring of winograd.py says, and the budgets count on."""
    exact = matrices()[matrix]
    assert (exact.astype(np.float32) == exact).all()


ALL = [("windows", True)] * 3 + [("gradients", True)]  # forward with and without a bias, and backward
NONE = [(what, False) for what, _ in ALL]
WHERE = {
    "usual": (Case((8, 14, 14, 32), (3, 3), 64, padding=(1, 1)), ALL),
    "few channels": (Case((8, 14, 14, 7), (3, 3), 64, padding=(1, 1)), NONE),
    "few outputs": (Case((8, 14, 14, 64), (3, 3), 3, padding=(1, 1)), NONE),
    "a stride": (Case((8, 14, 14, 32), (3, 3), 64, (2, 2), (1, 1)), NONE),
    "5x5": (Case((8, 14, 14, 32), (5, 5), 64, padding=(2, 2)), NONE),
    "tiles that are half empty": (Case((40, 5, 5, 32), (3, 3), 64, padding=(1, 1)), NONE),
    "few tiles": (Case((1, 8, 8, 64), (3, 3), 64, padding=(1, 1)), NONE),
    "few tiles for the gradient of weights": (Case((2, 14, 14, 32), (3, 3), 64, padding=(1, 1)), ALL[:3] + NONE[3:]),
}


@pytest.mark.parametrize("name", WHERE)
def test_winograd_is_taken_where_it_pays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, wanted = WHERE[name]
    given_arrays = arrays(case, np.random.default_rng(8), ordinary)
    found = noted(monkeypatch)
    plain(CpuBackend(1), case, given_arrays)
    assert found == wanted
    found.clear()
    plain(CpuBackend(1, "fp32"), case, given_arrays)
    assert [which for _, which in found] == [False] * len(found)


def test_weights_that_would_take_too_much_memory_are_left_to_the_definition() -> None:
    images = 64, 14, 14
    assert pays(forward_plan((*images, 512), (3, 3), (*images, 512), (1, 1), (1, 1)), of_weights=True)
    assert not pays(forward_plan((*images, 512), (3, 3), (*images, 1024), (1, 1), (1, 1)), of_weights=False)


def test_no_other_device_has_it() -> None:
    with pytest.raises(ConfigError, match=r"device emulator computes in .* only; device cpu has it"):
        get_backend("emulator", precision="winograd")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_cannot_be_done_so_is_refused_before_anything_is_written(operation: str) -> None:
    case, backend = Case((1, 6, 6, 4), (5, 5), 4, padding=(2, 2)), CpuBackend(1)
    backend.use(operation, WINOGRAD)
    given_arrays = arrays(case, np.random.default_rng(9))
    operations = chained if "normalized" in operation else plain
    with pytest.raises(
        TechniqueError, match=f"{operation} cannot .* 'winograd': it takes 3x3 kernels without a stride"
    ):
        operations(backend, case, given_arrays)


def test_unknown_techniques_are_refused() -> None:
    backend = CpuBackend(1)
    with pytest.raises(ConfigError, match="conv2d_forward has no technique 'fft'; its techniques are direct, winograd"):
        backend.use("conv2d_forward", "fft")
    with pytest.raises(ConfigError, match="relu_forward has no technique 'winograd'; it has no techniques"):
        backend.use("relu_forward", "winograd")


def test_whoever_listens_hears_what_is_taken_and_why() -> None:
    case, backend, heard = CASES["even"], CpuBackend(1), []
    given_arrays = arrays(case, np.random.default_rng(11))
    backend.on_choice = heard.append
    plain(backend, case, given_arrays)
    assert {(one.technique, one.why) for one in heard} == {("winograd", "3x3 without a stride, and it pays")}
    assert {one.operation for one in heard} == set(OPERATIONS[:3])
    heard.clear()
    plain(by_name(backend, DIRECT), case, given_arrays)
    assert {(one.technique, one.why) for one in heard} == {("direct", "asked for by name")}
